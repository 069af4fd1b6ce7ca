//! The calling thread's stack → return addresses, by the platform's own unwinder.
//!
//! A hundred times slower than `cfi`. On Unix it takes no lock of the `backtrace` crate (a thread that panics may
//! hold it and allocate). The buffer it fills is the caller's.

use super::Gather;

/// Gathers the addresses from the frame that returns to `from` on, or all of them. Returns true if there were more
/// than the limit.
pub(super) fn walk(gather: &mut Gather<'_>, from: Option<usize>) -> bool {
    let mut truncated = false;
    let mut has_room = true;
    let mut begun = from.is_none();
    let take = |frame: &backtrace::Frame| {
        let address = frame.ip().addr();
        begun |= from == Some(address);
        if begun && address != 0 {
            truncated = !has_room;
            has_room = has_room && gather.push(address);
        }
        !truncated
    };
    // SAFETY: the crate's lock guards its cache of symbols, and dbghelp on Windows. On Unix a walk uses the
    // platform's unwinder alone (`_Unwind_Backtrace`), which any number of threads may call at the same time.
    #[cfg(unix)]
    unsafe {
        backtrace::trace_unsynchronized(take);
    }
    // Where the lock is needed it is taken; a thread that holds it already goes on.
    #[cfg(not(unix))]
    backtrace::trace(take);
    truncated
}
