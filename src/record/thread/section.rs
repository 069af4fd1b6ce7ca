//! Sections in which a thread follows pointers that may be unlinked meanwhile: its events, and its readings of counters.
//!
//! A section is marked first, and pointers are loaded after that. So a thread that is seen outside, after a pointer was
//! unlinked and all threads have passed a barrier, finds it no more: see `reclaim`.

use crate::base::atomics::{AtomicUsize, Ordering, compiler_fence};
use crate::record::thread::registry::current;
use crate::record::thread::state::{BUSY, ThreadState};
use std::marker::PhantomData;

/// Times that a round of `reclaim` looks at threads that it has not seen outside of their sections, in a row.
pub(crate) const LOOKS: usize = 32;

/// Number of sections of threads without a state.
static STATELESS: AtomicUsize = AtomicUsize::new(0);

/// Readings of one thread.
pub(crate) struct Readings {
    /// Depth of the present one, 0 for none.
    depth: AtomicUsize,
    /// Number of those that have ended.
    ended: AtomicUsize,
    /// Value of `ended` when the present round had unlinked, see [`Readings::note`].
    noted: AtomicUsize,
}

impl Readings {
    /// Notes the readings that may have found a pointer before.
    pub(crate) fn note(&self) {
        self.noted.store(self.ended.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Returns whether all noted readings have ended.
    pub(crate) fn have_passed(&self) -> bool {
        // Acquire: pairs with the Releases of `Reading::drop`.
        self.depth.load(Ordering::Acquire) == 0
            || self.ended.load(Ordering::Acquire) != self.noted.load(Ordering::Relaxed)
    }

    /// Forgets the reading that the last thread was in the middle of.
    pub(crate) fn reset(&self) {
        self.depth.store(0, Ordering::Relaxed);
    }
}

/// A reading of counters by the calling thread, until it is dropped. Readings nest.
pub(crate) struct Reading {
    /// The state that counts it: none where the thread had none when it began.
    state: Option<&'static ThreadState>,
    /// It belongs to the thread that made it.
    not_send: PhantomData<*const ()>,
}

impl Reading {
    /// Begins a reading.
    pub(crate) fn new() -> Reading {
        let state = current();
        let depth = state.map_or(&STATELESS, |state| &state.readings.depth);
        depth.fetch_add(1, Ordering::SeqCst);
        compiler_fence(Ordering::SeqCst);
        Reading { state, not_send: PhantomData }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        // Releases: pair with the Acquires of `Readings::have_passed` and `no_stateless_section`.
        let Some(state) = self.state else {
            STATELESS.fetch_sub(1, Ordering::Release);
            return;
        };
        // Near its end the thread has given its state away.
        if current().is_some_and(|current| std::ptr::eq(current, state)) {
            if state.readings.depth.load(Ordering::Relaxed) == 1 {
                state.readings.ended.fetch_add(1, Ordering::Release);
            }
            state.readings.depth.fetch_sub(1, Ordering::Release);
        }
    }
}

/// Runs a part of an event in a section: of the thread's state, busy before or not, or of threads that have none.
#[inline]
pub(crate) fn in_event<T>(act: impl FnOnce() -> T) -> T {
    if let Some(state) = current() {
        let _busy = state.enter(BUSY);
        return act();
    }
    STATELESS.fetch_add(1, Ordering::SeqCst);
    compiler_fence(Ordering::SeqCst);
    let done = act();
    compiler_fence(Ordering::SeqCst);
    // Release: as in `Reading::drop`.
    STATELESS.fetch_sub(1, Ordering::Release);
    done
}

/// Returns whether no thread without a state is in a section. In a forked child a section of a thread that it does not have
/// may stay: then nothing is given back.
pub(crate) fn no_stateless_section() -> bool {
    STATELESS.load(Ordering::Acquire) == 0
}
