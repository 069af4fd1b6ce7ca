//! Marks of a thread's present activity, until they are dropped.

use crate::base::atomics::{Ordering, change_own_bits, compiler_fence};
use crate::record::thread::state::{BUSY, HotState, ThreadState, assert_busy};

impl HotState {
    /// Marks the thread busy, and returns its flags and generation from before. In a placeholder, which is busy, this changes
    /// nothing.
    #[inline(always)]
    pub(super) fn mark_busy(&self) -> u32 {
        let before = self.flags.load(Ordering::Relaxed);
        change_own_bits!(HotState, self, flags, "or", fetch_or, const BUSY as u32);
        compiler_fence(Ordering::SeqCst);
        before
    }

    /// Takes the mark away again.
    #[inline(always)]
    pub(super) fn unmark_busy(&self) {
        compiler_fence(Ordering::SeqCst);
        change_own_bits!(HotState, self, flags, "and", fetch_and, const !(BUSY as u32));
    }

    /// Takes the mark away again, unless it was among the flags from before it.
    #[inline(always)]
    pub(super) fn unmark_busy_unless(&self, before: u32) {
        compiler_fence(Ordering::SeqCst);
        change_own_bits!(HotState, self, flags, "and", fetch_and, before | !u32::from(BUSY));
    }
}

/// Clears the flags that [`ThreadState::enter`] set when it is dropped.
pub(crate) struct Busy<'a> {
    pub(super) state: &'a ThreadState,
    /// The flags that were not set before.
    pub(super) set: u32,
}

impl Drop for Busy<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        debug_assert!(u32::from(self.state.flags()) & self.set == self.set, "cleared before");
        compiler_fence(Ordering::SeqCst);
        change_own_bits!(HotState, &self.state.hot, flags, "and", fetch_and, !self.set);
    }
}

/// Clears [`BUSY`], set by [`ThreadState::enter_idle`], when it is dropped.
pub(crate) struct Idle<'a>(&'a ThreadState);

impl<'a> Idle<'a> {
    /// Takes over a mark that was just set.
    #[inline(always)]
    pub(super) fn of_marked(state: &'a ThreadState) -> Idle<'a> {
        assert_busy(state);
        Idle(state)
    }

    /// Returns the state that is busy.
    #[inline(always)]
    pub(crate) fn state(&self) -> &'a ThreadState {
        self.0
    }
}

impl Drop for Idle<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        assert_busy(self.0);
        self.0.hot.unmark_busy();
    }
}
