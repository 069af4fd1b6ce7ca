//! The calling thread's stack → return addresses, by the platform's own unwinder.
//!
//! A hundred times slower than `cfi`. `trace_unsynchronized` takes no lock of the `backtrace` crate
//! (a thread that panics may hold it and allocate) and the buffer it fills is the caller's.

use super::Gather;

/// Gathers the addresses from the frame that returns to `from` on, or all of them. True if there
/// were more than the limit.
pub(super) fn walk(gather: &mut Gather<'_>, from: Option<usize>) -> bool {
    let mut truncated = false;
    let mut has_room = true;
    let mut begun = from.is_none();
    // SAFETY: the crate asks that nobody else uses it at the same time, because of its symbol
    // caches on other platforms and dbghelp on Windows. On unix tracing is the unwinder alone, which
    // has no such state; on Windows this is documented as not tried.
    unsafe {
        backtrace::trace_unsynchronized(|frame| {
            let address = frame.ip().addr();
            begun |= from == Some(address);
            if begun && address != 0 {
                truncated = !has_room;
                has_room = has_room && gather.push(address);
            }
            !truncated
        });
    }
    truncated
}
