//! Passes: looks at the counts of all stacks, which find the combinations that are over.
//!
//! ```text
//! candidates: combinations without a holder, that no thread is in ─▶ all stacks are read ─▶ those without a live block are over
//! ```
//!
//! No thread allocates in a candidate any more, and all that was allocated there is seen: see `slot`. Its frees are read before its
//! allocations, of all threads. So where they are equal nothing is live, and nothing will be. One that is held again meanwhile stays.
//!
//! A pass is made by each reader of all stacks, which reads them anyway, and where a new combination finds no slot. Its
//! proof holds for one epoch, so it ends nothing where another began meanwhile. Blocks of earlier epochs are not traced any more.
//!
//! A guard that is forgotten holds nothing after its scope was dropped. So a combination is no candidate either while it is the
//! one that some thread is in, by the term that this thread has. Of scopes that were entered below it this is not known: their
//! blocks would be shown without a scope.

use crate::base::atomics::{AtomicBool, Ordering};
use crate::record::epoch;
use crate::record::scope::id::ScopeId;
use crate::record::scope::slot::Candidate;
use crate::record::scope::slots;
use crate::record::scope::table;
use crate::record::thread;

/// A pass is under way.
static IS_PASSING: AtomicBool = AtomicBool::new(false);

/// A pass that is under way, until it is dropped.
pub(crate) struct Pass {
    /// Candidates by the place of their slot.
    candidates: Vec<Candidate>,
    /// Number of candidates at the beginning.
    noted: usize,
}

impl Pass {
    /// Begins a pass; `None` where another one is under way, and where there is no candidate.
    pub(crate) fn begin() -> Option<Pass> {
        // Acquire: pairs with the Release of `drop`.
        if IS_PASSING.swap(true, Ordering::Acquire) {
            return None;
        }
        let mut pass = Pass { candidates: Vec::new(), noted: 0 };
        let taken = table::taken();
        if taken == 0 {
            return None;
        }
        pass.candidates = (0..taken).map(|at| slots::candidate(at).unwrap_or_default()).collect();
        // After the holders: a thread stores its term before the last of them goes.
        let terms: Vec<u64> =
            thread::all().map(|state| state.hot.scope_term()).filter(|term| *term != 0).collect();
        for (at, candidate) in pass.candidates.iter_mut().enumerate().filter(|(_, found)| found.is_some()) {
            if terms.contains(&ScopeId::new(at, candidate.life()).term()) {
                *candidate = Candidate::default();
            }
        }
        pass.noted = pass.candidates.iter().filter(|candidate| candidate.is_some()).count();
        if pass.noted == 0 {
            table::pass_in_vain();
            return None;
        }
        Some(pass)
    }

    /// Notes a stack that has live blocks in this combination.
    pub(crate) fn note_live(&mut self, id: ScopeId) {
        if let Some(candidate) = self.candidates.get_mut(id.slot())
            && candidate.life() == id.life()
        {
            *candidate = Candidate::default();
        }
    }

    /// Frees the slots of candidates of which nothing is live, after all stacks of the epoch of this base were read. Returns how many.
    pub(crate) fn end(mut self, base: u32) -> usize {
        let candidates = std::mem::take(&mut self.candidates);
        if epoch::base() != base {
            return 0;
        }
        let found = candidates.into_iter().enumerate().filter(|(_, candidate)| candidate.is_some());
        table::free(found, self.noted)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        IS_PASSING.store(false, Ordering::Release);
    }
}

/// Returns whether a pass is under way.
pub(crate) fn is_under_way() -> bool {
    IS_PASSING.load(Ordering::Acquire)
}

/// Forgets, in a forked child, a pass of a thread that it does not have.
#[cfg_attr(not(unix), allow(dead_code))]
pub(crate) fn forget_pass() {
    IS_PASSING.store(false, Ordering::Release);
}
