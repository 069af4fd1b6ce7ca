//! Returns memory that was freed in bulk to the system, and asks how much more the system would give.
//!
//! Part of the border, because it calls into the C library; the read side uses it. glibc keeps what was freed for
//! the next allocation: after the debug information of a large program has been read, 60 MB and more, for good.

use crate::record::statm::Statm;

/// Above this a walk through the C library's free lists may take long: of a 256 MiB heap in two million
/// pieces, every other one free, 0.1 s, during which other threads wait for that heap.
const LARGEST: usize = 256 << 20;

/// Returns free memory to the system if this process has grown by more than `growth` bytes since it held `before`,
/// and is not so large that this could be felt.
pub(crate) fn trim_if_grown(before: usize, growth: usize) {
    let now = private_bytes();
    if now > before.saturating_add(growth) && now < LARGEST {
        malloc_trim();
    }
}

/// Returns the resident memory that has no file behind it, in bytes; 0 where the system does not tell.
pub(crate) fn private_bytes() -> usize {
    Statm::read().map_or(0, |statm| usize::try_from(statm.private()).unwrap_or(usize::MAX))
}

/// Returns the bytes that the limits of this process still allow: of address space, and of private memory. The
/// process ends where an allocation fails, so it is better asked before.
#[cfg(target_os = "linux")]
pub(crate) fn memory_headroom() -> [u64; 2] {
    let (size, data) = Statm::read().map_or((0, 0), |statm| (statm.size, statm.data));
    [(libc::RLIMIT_AS, size), (libc::RLIMIT_DATA, data)].map(|(resource, used)| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a place to write to.
        if unsafe { libc::getrlimit(resource, &raw mut limit) } != 0 || limit.rlim_cur == libc::RLIM_INFINITY
        {
            return u64::MAX;
        }
        limit.rlim_cur.saturating_sub(used)
    })
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn memory_headroom() -> [u64; 2] {
    [u64::MAX; 2]
}

/// Gives the C library's free pages back to the system.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn malloc_trim() {
    // SAFETY: takes the heap's own locks and touches free memory only; any thread may call it at any time.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn malloc_trim() {}
