//! All slots, by the number of a combination. No lock: these are used inside allocations and by guards.

use crate::base::atomics::{AtomicU16, AtomicU64, Ordering};
use crate::record::scope::id::ScopeId;
use crate::record::scope::slot::{Candidate, Slot};

/// Slots for combinations that the program makes.
pub(crate) const COMBINATIONS: usize = 4096;
/// Slots for those with `[other]` as every value, one for each set of keys.
pub(crate) const OTHERS: usize = 64;
/// All of them.
pub(crate) const SLOTS: usize = COMBINATIONS + OTHERS;

static ALL: [Slot; SLOTS] = [const { Slot::new() }; SLOTS];

/// Place of the slot with the same keys and `[other]` as values, for each slot; 0 where there is none. Such a slot is never
/// freed, and none is at 0. Relaxed: written before a number of the slot is given out.
static OTHER: [AtomicU16; SLOTS] = [const { AtomicU16::new(0) }; SLOTS];

/// Returns the slot of a number.
fn slot(id: ScopeId) -> Option<&'static Slot> {
    ALL.get(id.slot()).filter(|_| !id.is_none())
}

/// Takes the free slot at this place, for a combination whose `[other]` is at `other`, with one holder.
pub(crate) fn begin(at: usize, other: usize) -> Option<ScopeId> {
    OTHER.get(at)?.store(other as u16, Ordering::Relaxed);
    Some(ScopeId::new(at, ALL.get(at)?.begin()?))
}

/// Holds a combination once more; false where it is over, and for [`ScopeId::NONE`].
pub(crate) fn hold(id: ScopeId) -> bool {
    slot(id).is_some_and(|slot| slot.hold(id.life()))
}

/// Ends one hold of a combination.
pub(crate) fn release(id: ScopeId) {
    if let Some(slot) = slot(id) {
        debug_assert!(slot.is(id.life()), "a combination that is over is held: {id:?}");
        slot.release();
    }
}

/// Notes that a stack is recorded in this combination, which the calling thread is in.
pub(crate) fn note_recorded(id: ScopeId) {
    if let Some(slot) = slot(id) {
        slot.note_recorded();
    }
}

/// Returns whether a combination is over: no block is live in it, and none will be. Not so [`ScopeId::NONE`].
pub(crate) fn is_over(id: ScopeId) -> bool {
    slot(id).is_some_and(|slot| !slot.is(id.life()))
}

/// Returns the number of the combination in the slot at this place, if there is one.
pub(crate) fn id_at(at: usize) -> Option<ScopeId> {
    ALL.get(at)?.life().map(|life| ScopeId::new(at, life))
}

/// Returns the combination of the same keys with `[other]` as values; [`ScopeId::NONE`] where there is none.
pub(crate) fn other_of(id: ScopeId) -> ScopeId {
    let other = OTHER.get(id.slot()).map_or(0, |other| other.load(Ordering::Relaxed));
    if id.is_none() || other == 0 { ScopeId::NONE } else { id_at(other.into()).unwrap_or_default() }
}

/// Returns the number of combinations without a holder, among the first so many slots.
pub(crate) fn without_holder(slots: usize) -> usize {
    ALL.iter().take(slots).filter(|slot| slot.is_without_holder()).count()
}

/// Takes note of the combination in the slot at this place, if it has no holder. In a pass.
pub(crate) fn candidate(at: usize) -> Option<Candidate> {
    ALL.get(at)?.candidate()
}

/// Frees the slot at this place, of a candidate of which nothing is live; false where it was held meanwhile. In a pass.
pub(crate) fn free(at: usize, candidate: Candidate) -> bool {
    let is_freed = ALL.get(at).is_some_and(|slot| slot.free(candidate));
    if is_freed {
        count_freed();
    }
    is_freed
}

/// Frees the slot at this place if its combination has no holder and no stack was ever recorded in it.
pub(crate) fn free_unrecorded(at: usize) -> bool {
    let is_freed = ALL.get(at).is_some_and(Slot::free_unrecorded);
    if is_freed {
        count_freed();
    }
    is_freed
}

/// Number of slots that were freed. Relaxed: a reader that is late finds a combination that had no room just before.
static FREED: AtomicU64 = AtomicU64::new(0);

/// Returns how many slots were freed.
pub(crate) fn freed() -> u64 {
    FREED.load(Ordering::Relaxed)
}

/// Counts a slot that was freed.
pub(super) fn count_freed() {
    FREED.fetch_add(1, Ordering::Relaxed);
}
