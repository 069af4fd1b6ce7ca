//! The scopes that a thread is in.

use crate::base::atomics::Ordering;
use crate::record::scope::entered::Entered;
use crate::record::thread::state::{BUSY, HotState, ThreadState};

impl HotState {
    /// Returns the term that the scopes of the thread add to the sum of a stack's words; 0 where it is in none.
    #[inline(always)]
    pub(crate) fn scope_term(&self) -> u64 {
        // Relaxed: the thread's own. For a pass that reads those of other threads, see `scope::pass`.
        self.scope_term.load(Ordering::Relaxed)
    }
}

impl ThreadState {
    /// Changes the scopes that the calling thread is in. `None`, and nothing is changed, in the middle of an event.
    #[inline]
    pub(crate) fn change_scopes<T>(&self, change: impl FnOnce(&mut Entered) -> T) -> Option<T> {
        if self.flags() & BUSY != 0 {
            return None;
        }
        let _busy = self.enter_idle();
        // SAFETY: this thread's own state, just marked.
        let entered = unsafe { &mut self.owner().entered };
        let done = change(entered);
        self.hot.scope_term.store(entered.current().term(), Ordering::Relaxed);
        Some(done)
    }

    /// Leaves all scopes, for a thread that has ended. In the middle of an event, which it has left by a jump, the
    /// combinations that it holds stay held.
    pub(super) fn leave_scopes(&self) {
        if self.change_scopes(Entered::clear).is_none() {
            self.hot.scope_term.store(0, Ordering::Relaxed);
        }
    }
}
