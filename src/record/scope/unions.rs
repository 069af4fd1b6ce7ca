//! Combinations of two that were made before, for all threads: each request enters a tenant inside a route.
//!
//! A place has two words, of which one is the combination and the other the hash of the two xor that. A reader that finds words of
//! two writers finds neither hash (Hyatt, Mann 2002: *A lockless transposition table implementation for parallel search*). Numbers of
//! combinations are never used again, so nothing here is ever wrong; the combination may be over, which its holder finds.

use crate::base::atomics::{AtomicU64, Ordering};
use crate::base::splitmix;
use crate::record::scope::id::ScopeId;
use crate::record::scope::slots::{self, COMBINATIONS};

/// A remembered combination. Relaxed throughout: see the module.
struct Place {
    check: AtomicU64,
    both: AtomicU64,
}

/// Number of places: there may be as many combinations.
const PLACES: usize = 2 * COMBINATIONS;

static ALL: [Place; PLACES] = [const { Place { check: AtomicU64::new(0), both: AtomicU64::new(0) } }; PLACES];

/// Hashes two numbers. Each is multiplied by an odd number of its own (of xxHash), so that the two products do not wait for each
/// other.
fn hash(outer: ScopeId, inner: ScopeId) -> u64 {
    let [outer, inner] = [outer, inner].map(|id| u64::from_ne_bytes(id.to_bytes()));
    let product =
        outer.wrapping_mul(0x9e37_79b1_85eb_ca87).wrapping_add(inner.wrapping_mul(0xc2b2_ae3d_27d4_eb4f));
    splitmix::mix(product)
}

/// Returns the hash for a combination that has found no room: another one once a slot is free.
fn hash_while_full(hash: u64) -> u64 {
    splitmix::mix(hash ^ slots::freed())
}

fn look(hash: u64) -> Option<ScopeId> {
    let place = ALL.get(hash as usize % PLACES)?;
    let both = place.both.load(Ordering::Relaxed);
    let is_there = both != 0 && place.check.load(Ordering::Relaxed) ^ both == hash;
    is_there.then(|| ScopeId::from_bytes(both.to_ne_bytes()))
}

/// Returns the combination of two, if it is remembered. It may be over.
#[inline]
pub(crate) fn find(outer: ScopeId, inner: ScopeId) -> Option<ScopeId> {
    let hash = hash(outer, inner);
    look(hash).or_else(|| look(hash_while_full(hash)))
}

/// Remembers the combination of two. One whose values are `[other]`, because there was no room, until there is some.
pub(crate) fn note(outer: ScopeId, inner: ScopeId, both: ScopeId) {
    let hash = hash(outer, inner);
    let hash = if both.slot() < COMBINATIONS { hash } else { hash_while_full(hash) };
    let both = u64::from_ne_bytes(both.to_bytes());
    if let Some(place) = ALL.get(hash as usize % PLACES) {
        place.check.store(hash ^ both, Ordering::Relaxed);
        place.both.store(both, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unions_are_remembered() {
        // Of slots that no other test takes.
        let id = |slot| ScopeId::new(slot, 1 << 40);
        let both = |n| id(1000 + n);
        assert_eq!((find(id(0), id(1)), find(ScopeId::NONE, ScopeId::NONE)), (None, None));
        (0..1000).for_each(|n| note(id(n), id(n + 1), both(n)));
        let found = (0..1000).filter(|n| find(id(*n), id(n + 1)) == Some(both(*n))).count();
        assert!(found > 850, "{found} of 1000 in {PLACES} places");
        assert!((0..1000).all(|n| find(id(n + 1), id(n)).is_none()));
        note(id(7), id(8), both(500));
        assert_eq!(find(id(7), id(8)), Some(both(500)));
    }

    #[test]
    fn a_union_without_room_is_forgotten_when_there_is_room() {
        let (outer, inner, other) =
            (ScopeId::new(1, 1 << 41), ScopeId::new(2, 1 << 41), ScopeId::new(COMBINATIONS, 1));
        note(outer, inner, other);
        let before = slots::freed();
        // Another test may free one just now.
        assert!(find(outer, inner) == Some(other) || slots::freed() != before);
        slots::count_freed();
        assert_eq!(find(outer, inner), None);
    }
}
