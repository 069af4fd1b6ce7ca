//! The scopes that a thread is in.

use crate::base::atomics::Ordering;
use crate::record::scope::entered::Entered;
use crate::record::thread::state::{BUSY, HotState, ThreadState};

impl HotState {
    /// Bytes from a state to its [`scope_term`](HotState::scope_term).
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    pub(crate) const SCOPE_TERM: usize = std::mem::offset_of!(HotState, scope_term);

    /// Returns the term that the scopes of the thread add to the sum of a stack's words; 0 where it is in none.
    #[inline(always)]
    pub(crate) fn scope_term(&self) -> u64 {
        // Relaxed: the thread's own. For a pass that reads those of other threads, see `scope::pass`.
        self.scope_term.load(Ordering::Relaxed)
    }
}

impl ThreadState {
    /// Changes the scopes that the calling thread is in. `None`, and nothing is changed, in the middle of an event.
    pub(crate) fn change_scopes<T>(&self, change: impl FnOnce(&mut Entered) -> T) -> Option<T> {
        (self.flags() & BUSY == 0).then(|| self.change_scopes_idle(change))
    }

    /// Changes the scopes that the calling thread is in, which is not in the middle of an event.
    #[inline]
    pub(crate) fn change_scopes_idle<T>(&self, change: impl FnOnce(&mut Entered) -> T) -> T {
        let _busy = self.enter_idle();
        // SAFETY: this thread's own state, just marked.
        let entered = unsafe { &mut self.owner().entered };
        let done = change(entered);
        self.hot.scope_term.store(entered.term(), Ordering::Relaxed);
        done
    }

    /// Leaves all scopes, for a thread that has ended. In the middle of an event, which it has left by a jump, the
    /// combinations that it holds stay held.
    pub(super) fn leave_scopes(&self) {
        if self.change_scopes(Entered::clear).is_none() {
            self.hot.scope_term.store(0, Ordering::Relaxed);
        }
    }
}
