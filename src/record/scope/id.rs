//! Number of a combination of keys and values, of one life of it.
//!
//! A number is the place of the combination's slot and how often that slot has been taken. So it is never used again, and no cache
//! that is out of date can take it for another combination.

use crate::base::splitmix;

/// Bits of a number for the slot.
const SLOT_BITS: u32 = 13;

/// Number of a combination. Equal numbers are the same combination, for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ScopeId(u64);

impl ScopeId {
    /// The combination without a key.
    pub(crate) const NONE: ScopeId = ScopeId(0);

    /// Makes the number of a life, from 1 on, of a slot.
    pub(crate) const fn new(slot: usize, life: u64) -> ScopeId {
        debug_assert!(slot < 1 << SLOT_BITS && life != 0 && life < 1 << (u64::BITS - SLOT_BITS));
        ScopeId(life << SLOT_BITS | slot as u64)
    }

    /// Returns the place of the slot; some slot for [`ScopeId::NONE`].
    pub(crate) const fn slot(self) -> usize {
        self.0 as usize % (1 << SLOT_BITS)
    }

    /// Returns the life of the slot; 0 for [`ScopeId::NONE`].
    pub(crate) const fn life(self) -> u64 {
        self.0 >> SLOT_BITS
    }

    /// Returns whether it is [`ScopeId::NONE`].
    pub(crate) const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Returns the term that it adds to the sum of a stack's words: even, and 0 for [`ScopeId::NONE`].
    #[inline]
    pub(crate) fn term(self) -> u64 {
        // Even, so that a check, which is odd, stays odd.
        splitmix::mix(self.0) & !1
    }

    /// Makes some number, for tests.
    #[cfg(test)]
    pub(crate) const fn sample(n: u64) -> ScopeId {
        ScopeId(n)
    }

    /// Returns its bytes.
    pub(crate) fn to_bytes(self) -> [u8; size_of::<ScopeId>()] {
        self.0.to_ne_bytes()
    }

    /// Returns the number of these bytes.
    pub(crate) fn from_bytes(bytes: [u8; size_of::<ScopeId>()]) -> ScopeId {
        ScopeId(u64::from_ne_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn terms_are_even_and_differ() {
        assert_eq!((ScopeId::NONE.term(), ScopeId::NONE.life(), ScopeId::NONE.is_none()), (0, 0, true));
        let ids = (0..4160).flat_map(|slot| [1, 2, 3, 1 << 30].map(|life| ScopeId::new(slot, life)));
        let terms: HashSet<u64> = ids.clone().map(ScopeId::term).collect();
        assert_eq!(terms.len(), 4 * 4160);
        assert!(terms.iter().all(|term| term % 2 == 0 && *term != 0));
        for id in ids {
            assert_eq!(ScopeId::new(id.slot(), id.life()), id);
            assert_eq!(ScopeId::from_bytes(id.to_bytes()), id);
        }
    }
}
