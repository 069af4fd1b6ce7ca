//! A memory barrier in all threads of the process at once, so that the frequent side of a pair needs none.
//!
//! Where the system has no `membarrier` or does not allow it (Linux before 4.14, some sandboxes), there is none, and
//! callers learn that.

#[cfg(all(target_os = "linux", not(miri)))]
use crate::base::atomics::{AtomicBool, Ordering};

/// Whether the process is registered. Relaxed: the system orders it.
#[cfg(all(target_os = "linux", not(miri)))]
static REGISTERED: AtomicBool = AtomicBool::new(false);

/// Registers the process, before `main`: with one thread that takes microseconds, with several milliseconds.
pub(crate) fn prepare() {
    #[cfg(all(target_os = "linux", not(miri)))]
    REGISTERED.store(membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED), Ordering::Relaxed);
}

/// Returns whether [`in_all_threads`] works here, as far as is known.
pub(crate) fn is_available() -> bool {
    #[cfg(all(target_os = "linux", not(miri)))]
    return REGISTERED.load(Ordering::Relaxed);
    #[cfg(not(all(target_os = "linux", not(miri))))]
    false
}

/// Makes each thread of the process pass a full memory barrier before this returns; false where that is not possible.
pub(crate) fn in_all_threads() -> bool {
    #[cfg(all(target_os = "linux", not(miri)))]
    return membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED);
    #[cfg(not(all(target_os = "linux", not(miri))))]
    false
}

/// Asks the system for a command; false where it fails.
#[cfg(all(target_os = "linux", not(miri)))]
fn membarrier(command: i32) -> bool {
    // SAFETY: a call without pointers.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}
