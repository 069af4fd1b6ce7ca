//! The calling code's stack → its record in the interner, without an event.

use crate::record::stack_id::table;
use crate::record::thread::{self, BUSY, INTERNING};
use crate::record::unwind::{self, Registers};

/// Interns the calling code's stack as that of an allocation; `None` if it could not be.
#[inline(never)]
pub(crate) fn stack_of_caller() -> Option<table::Recorded> {
    let state = thread::current_or_make()?;
    if state.flags() & BUSY != 0 {
        return None;
    }
    let _busy = state.enter(BUSY);
    // SAFETY: this thread's own state, just marked.
    let owner = unsafe { state.owner() };
    let stack = unwind::walk(owner, Registers::here(), None);
    let _interning = state.enter(INTERNING);
    // Allocations of the map of stacks are no blocks of the program.
    state.hot.unsampled.revoke();
    table::recorded(table::intern(state, &mut owner.buffer, stack.hash(), 0).ok()?)
}
