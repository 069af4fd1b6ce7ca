//! Replaces the parts of `thread/` that `reclaim.rs` uses; `section.rs` is the crate's own.

#[path = "../../../../src/record/thread/section.rs"]
pub(crate) mod section;

pub(crate) mod registry {
    pub(crate) use crate::state::current;
}

pub(crate) mod state {
    pub(crate) use crate::state::{BUSY, State as ThreadState};
}

pub(crate) use crate::state::{BUSY, SHARED, State as ThreadState, all, current, current_or_make};
pub(crate) use section::{Reading, in_event, no_stateless_section};

/// Replaces `process_barrier.rs`. loom has no barrier that other threads pass without a step of their own; so each thread has one
/// where it has only a barrier for the compiler, and the pair of the two orders the same.
pub(crate) mod process_barrier {
    use crate::base::atomics::Ordering;

    pub(crate) fn is_available() -> bool {
        true
    }

    pub(crate) fn in_all_threads() -> bool {
        crate::base::atomics::compiler_fence(Ordering::SeqCst);
        true
    }
}

/// One look instead of many: a thread is seen outside or not.
pub(crate) const LOOKS: usize = 1;
