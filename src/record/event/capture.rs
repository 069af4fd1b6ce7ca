//! The calling code's stack, without an event.

use crate::record::epoch::MAX_ADDRESSES;
use crate::record::thread::{self, BUSY};
use crate::record::unwind::{self, Registers};

/// Returns the addresses of the calling code's stack as that of an allocation; none if it could not be walked.
#[inline(never)]
pub(crate) fn stack_of_caller() -> Vec<usize> {
    // Before the thread is busy, when it may not allocate.
    let mut addresses = Vec::with_capacity(MAX_ADDRESSES);
    if let Some(state) = thread::current_or_make()
        && state.flags() & BUSY == 0
    {
        let _busy = state.enter(BUSY);
        // SAFETY: this thread's own state, just marked.
        let owner = unsafe { state.owner() };
        unwind::walk(owner, Registers::here(), None);
        addresses.extend_from_slice(owner.buffer.addresses());
    }
    addresses
}
