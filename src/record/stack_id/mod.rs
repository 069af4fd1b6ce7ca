//! Stack of return addresses → stack id: fingerprint, per-thread caches, and the shared interner.

pub(crate) mod cache;
pub(crate) mod fingerprint;
pub(crate) mod frame_layout;
pub(crate) mod frame_layout_cache;
pub(crate) mod stack_word;
pub(crate) mod table;
