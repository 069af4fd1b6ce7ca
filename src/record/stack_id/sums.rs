//! Counts of 64 neighbouring ids, summed over all threads.

use crate::record::count::counters::{CHUNK, Chunk, Direction};
use crate::record::count::sampling;
use crate::record::thread::{self, SHARED};

/// Bytes and blocks of one stack id since the last `clear`; both directions only ever grow. Where the blocks of a
/// stack are sampled, these are estimates.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub allocated_bytes: u64,
    pub allocated_blocks: u64,
    pub freed_bytes: u64,
    pub freed_blocks: u64,
}

impl Counts {
    /// Returns bytes allocated less bytes freed.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.allocated_bytes.saturating_sub(self.freed_bytes)
    }

    /// Returns blocks allocated less blocks freed.
    pub(crate) fn live_blocks(&self) -> u64 {
        self.allocated_blocks.saturating_sub(self.freed_blocks)
    }

    /// Returns whether every allocated block was freed. Read as by [`read_chunk`], it was so at one moment at least.
    pub(crate) fn is_drained(&self) -> bool {
        (self.allocated_bytes, self.allocated_blocks) == (self.freed_bytes, self.freed_blocks)
    }
}

impl Counts {
    /// Adds bytes and blocks to the allocated ones, or to the freed ones.
    pub(crate) fn add(&mut self, direction: Direction, bytes: u64, blocks: u64) {
        let (in_bytes, in_blocks) = match direction {
            Direction::Allocated => (&mut self.allocated_bytes, &mut self.allocated_blocks),
            Direction::Freed => (&mut self.freed_bytes, &mut self.freed_blocks),
        };
        *in_bytes += bytes;
        *in_blocks += blocks;
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.allocated_bytes += other.allocated_bytes;
        self.allocated_blocks += other.allocated_blocks;
        self.freed_bytes += other.freed_bytes;
        self.freed_blocks += other.freed_blocks;
    }
}

/// Returns bytes and blocks that were allocated at the first of these ids; where its blocks are sampled, as the ids of weights
/// after it estimate them.
pub(crate) fn allocated(counts: &[Counts], interval: u32) -> (u64, u64) {
    match counts {
        [_, bytes, blocks, ..] if interval > 0 => {
            (sampling::whole_bytes(bytes.allocated_bytes), sampling::whole_blocks(blocks.allocated_bytes))
        }
        [exact, ..] => (exact.allocated_bytes, exact.allocated_blocks),
        [] => (0, 0),
    }
}

/// Reads the counts of 64 neighbouring ids, summed over all threads.
///
/// Reads frees first, of all threads; then the list of threads and their chunks again, and allocations. A free that
/// was seen was preceded by its allocation, which is therefore seen too: live is never negative. In between blocks
/// may come and go, which is why this is done chunk by chunk: over the whole table it would be hundreds.
///
/// `None` where the ids are over, or become so meanwhile: the shared counters, which every id that was given out has, are
/// unlinked first. In an event, or in [`thread::Reading`].
pub(crate) fn read_chunk(number: usize) -> Option<[Counts; CHUNK]> {
    let shared = SHARED.chunk(number)?;
    let mut counts = [Counts::default(); CHUNK];
    for direction in [Direction::Freed, Direction::Allocated] {
        for chunk in thread::all().filter_map(|state| state.counters.chunk(number)) {
            add_chunk(&mut counts, chunk, direction);
        }
        add_chunk(&mut counts, shared, direction);
    }
    SHARED.chunk(number).is_some_and(|again| std::ptr::eq(again, shared)).then_some(counts)
}

/// Adds one side of a chunk's counts.
fn add_chunk(counts: &mut [Counts; CHUNK], chunk: &impl Chunk, direction: Direction) {
    for (place, counts) in counts.iter_mut().enumerate() {
        let (bytes, blocks) = chunk.read(place, direction);
        counts.add(direction, bytes, blocks);
    }
}
