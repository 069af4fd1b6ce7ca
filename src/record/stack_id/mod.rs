//! Stack of return addresses → stack id: fingerprint, per-thread caches, and the shared interner.

pub(crate) mod addresses;
pub(crate) mod cache;
pub(crate) mod fingerprint;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) mod frame_layout;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) mod frame_layout_cache;
pub(crate) mod life;
pub(crate) mod packed;
pub(crate) mod reclaim;
pub(crate) mod record;
pub(crate) mod renew;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) mod stack_word;
pub(crate) mod sums;
pub(crate) mod table;
mod unlinked;
