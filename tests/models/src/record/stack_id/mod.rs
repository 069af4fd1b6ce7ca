//! The crate's own files of `record/stack_id/` that end the life of ids.

#[path = "../../../../../src/record/stack_id/life.rs"]
pub(crate) mod life;
#[path = "../../../../../src/record/stack_id/reclaim.rs"]
pub(crate) mod reclaim;
#[path = "../../../../../src/record/stack_id/renew.rs"]
pub(crate) mod renew;
#[path = "../../../../../src/record/stack_id/unlinked.rs"]
mod unlinked;

/// Replaces `table.rs`: the stack of a model is a number.
pub(crate) mod table {
    use super::sums::Counts;
    use crate::base::atomics::Ordering;
    use crate::record::count::counters::{CHUNK, Shared};
    use crate::state::{MAP, State};
    use std::ptr::NonNull;

    pub(crate) fn take_out(_state: &State, _chunk: &Shared, _counts: Option<&[Counts; 1]>) -> Option<u64> {
        Some(0)
    }

    /// Returns whether the stack of a model, which has an id of this chunk or a later one, was renewed and met since.
    pub(crate) fn are_renewed(chunk: &Shared, number: usize) -> bool {
        let latest = MAP.load(Ordering::Acquire) as usize;
        chunk.life.open() & 1 == 0 && latest != number * CHUNK
    }

    pub(crate) fn stacks_of(_chunk: &Shared, _places: u64) -> impl Iterator<Item = NonNull<()>> {
        std::iter::empty()
    }

    pub(crate) fn are_of_ended_scopes(_chunk: &Shared) -> bool {
        false
    }

    pub(crate) unsafe fn free(_stack: NonNull<()>) {}
}

/// Replaces `sums.rs`: reads one id of a chunk, as the others are not used. A chunk of 64 would take a model a day.
pub(crate) mod sums {
    use crate::state::{self, Sum};

    #[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
    pub(crate) struct Counts {
        pub(crate) allocated_bytes: u64,
        pub(crate) allocated_blocks: u64,
        freed: Sum,
    }

    impl Counts {
        pub(crate) fn is_drained(&self) -> bool {
            (self.allocated_bytes, self.allocated_blocks) == self.freed
        }
    }

    pub(crate) fn read_chunk(number: usize) -> Option<[Counts; 1]> {
        let state::Counts { allocated, freed } = state::read_chunk(number as u32 * 64)?;
        Some([Counts { allocated_bytes: allocated.0, allocated_blocks: allocated.1, freed }])
    }
}
