//! The word of one slot: which life of it a combination has, and how many hold that.
//!
//! ```text
//! free ── begin: a life that the slot never had, one holder ──▶ held ◀── hold ──▶ release ──▶ without a holder
//!   ▲                                                                                              │
//!   └── free: without a holder, and not held in between; no stack, or nothing live, has the number ┘
//! ```
//!
//! Handles, futures and guards hold a combination, each from its making until its drop. A thread that is in it is in it by one of
//! them, and leaves before that is dropped. So where there is no holder, no thread allocates in the combination, and it is all seen:
//! [`Slot::release`] is a Release, and [`Slot::candidate`] an Acquire.
//!
//! A pass (see `pass`) takes note of a slot without a holder, then reads counts, and frees the slot if nothing of it is live. A
//! combination that is held in between, even shortly, gets another mark, by which [`Slot::free`] fails. One pass at a time takes
//! notes, so no other one takes that mark away.

use crate::base::atomics::{AtomicU64, Ordering};

/// Bits of the number of holders.
const HOLDERS: u64 = (1 << 26) - 1;
/// More cannot hold a combination: they get none.
const MOST_HOLDERS: u64 = HOLDERS / 2;
/// A combination has it.
const USED: u64 = 1 << 26;
/// It was held since the last pass took note of it.
const HELD_AGAIN: u64 = 1 << 27;
/// A stack was recorded with its number.
const RECORDED: u64 = 1 << 28;
/// Bits below those of the life.
const LIFE: u32 = 29;

/// The word of a slot. 0 is a free one that was never taken.
pub(crate) struct Slot(AtomicU64);

/// A slot without a holder, as a pass has found it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Candidate(u64);

impl Candidate {
    /// Returns whether there is a slot.
    pub(crate) fn is_some(self) -> bool {
        self != Candidate::default()
    }

    /// Returns the life that it was in.
    pub(crate) fn life(self) -> u64 {
        self.0 >> LIFE
    }
}

impl Slot {
    pub(crate) const fn new() -> Slot {
        Slot(AtomicU64::new(0))
    }

    /// Takes a free slot for a combination, with one holder, and returns the life; `None` where its lives are used up. One
    /// thread at a time calls it.
    pub(crate) fn begin(&self) -> Option<u64> {
        let before = self.0.load(Ordering::Relaxed);
        debug_assert!(before & USED == 0 && before & HOLDERS == 0, "a slot that is taken: {before:#x}");
        let life = (before >> LIFE) + 1;
        // An id has more bits for it.
        if life >> (u64::BITS - LIFE) != 0 {
            return None;
        }
        // Release: pairs with the Acquires below.
        self.0.store(life << LIFE | USED | 1, Ordering::Release);
        Some(life)
    }

    /// Holds the combination of this life once more; false where it is over, or too many hold it.
    pub(crate) fn hold(&self, life: u64) -> bool {
        let held = |word: u64| {
            let is_present = word >> LIFE == life && word & USED != 0;
            let mark = if word & HOLDERS == 0 { HELD_AGAIN } else { 0 };
            (is_present && word & HOLDERS < MOST_HOLDERS).then(|| (word | mark) + 1)
        };
        // AcqRel: comes after the changes of those that held it before, and before those of this holder.
        self.0.fetch_update(Ordering::AcqRel, Ordering::Relaxed, held).is_ok()
    }

    /// Ends one hold.
    pub(crate) fn release(&self) {
        // Release: pairs with the Acquire of `candidate`.
        let before = self.0.fetch_sub(1, Ordering::Release);
        debug_assert!(
            before & USED != 0 && before & HOLDERS != 0,
            "released more often than held: {before:#x}"
        );
    }

    /// Notes that a stack is recorded with the number of this combination, which the calling thread is in.
    pub(crate) fn note_recorded(&self) {
        if self.0.load(Ordering::Relaxed) & RECORDED == 0 {
            // Relaxed: the release of the hold comes after it.
            self.0.fetch_or(RECORDED, Ordering::Relaxed);
        }
    }

    /// Returns whether the combination of this life is there.
    pub(crate) fn is(&self, life: u64) -> bool {
        let word = self.0.load(Ordering::Acquire);
        word >> LIFE == life && word & USED != 0
    }

    /// Returns the life of the combination, if there is one.
    pub(crate) fn life(&self) -> Option<u64> {
        let word = self.0.load(Ordering::Acquire);
        (word & USED != 0).then_some(word >> LIFE)
    }

    /// Returns whether there is a combination without a holder.
    pub(crate) fn is_without_holder(&self) -> bool {
        let word = self.0.load(Ordering::Relaxed);
        word & USED != 0 && word & HOLDERS == 0
    }

    /// Takes note of a combination without a holder. In a pass.
    pub(crate) fn candidate(&self) -> Option<Candidate> {
        let noted = |word: u64| (word & USED != 0 && word & HOLDERS == 0).then_some(word & !HELD_AGAIN);
        // Acquire: pairs with the Release of `release`; all counts of the holders are seen.
        let before = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, noted).ok()?;
        Some(Candidate(before & !HELD_AGAIN))
    }

    /// Ends the life that this candidate was in, of which nothing is live; false where it was held meanwhile. In a pass.
    pub(crate) fn free(&self, candidate: Candidate) -> bool {
        let Candidate(word) = candidate;
        let free = word >> LIFE << LIFE;
        // AcqRel: pairs with `hold`, which comes before or after it.
        self.0.compare_exchange(word, free, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Ends the life of a combination without a holder of which no stack was ever recorded; false where it is not one.
    pub(crate) fn free_unrecorded(&self) -> bool {
        let free = |word: u64| {
            let is_unrecorded = word & USED != 0 && word & (HOLDERS | RECORDED) == 0;
            is_unrecorded.then_some(word >> LIFE << LIFE)
        };
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, free).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_ends_once_it_is_not_held() {
        let slot = Slot::new();
        assert!(!slot.hold(0) && !slot.is(0) && slot.life().is_none() && slot.candidate().is_none());
        let first = slot.begin().unwrap();
        assert!(slot.is(first) && slot.hold(first) && slot.candidate().is_none());
        slot.release();
        slot.note_recorded();
        slot.release();
        assert!(!slot.free_unrecorded());
        let candidate = slot.candidate().unwrap();
        assert!(candidate.is_some() && candidate.life() == first);
        assert!(slot.free(candidate) && !slot.is(first) && !slot.hold(first));
        let second = slot.begin().unwrap();
        assert!(second == first + 1 && !slot.hold(first));
        slot.release();
        assert!(slot.free_unrecorded() && !slot.is(second));
    }

    #[test]
    fn a_combination_that_was_held_during_a_pass_stays() {
        let slot = Slot::new();
        let life = slot.begin().unwrap();
        slot.release();
        let candidate = slot.candidate().unwrap();
        assert!(slot.hold(life));
        slot.release();
        assert!(!slot.free(candidate) && slot.is(life));
        let candidate = slot.candidate().unwrap();
        assert!(slot.free(candidate));
    }

    #[test]
    fn holders_and_lives_are_bounded() {
        let slot = Slot(AtomicU64::new(1 << LIFE | USED | (MOST_HOLDERS - 1)));
        assert!(slot.hold(1) && !slot.hold(1));
        let last = Slot(AtomicU64::new(u64::MAX << LIFE));
        assert!(last.begin().is_none());
    }
}
