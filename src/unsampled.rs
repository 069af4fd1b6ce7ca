//! Blocks of one thread that were not sampled → exact counts of them, at one instruction each way.
//!
//! A thread writes its own, inside the allocator; anybody may read. A count is one word, blocks ‖ bytes, that
//! goes on in a second one as those of `counters` do. Here nobody looks at each event whether it has to: every
//! [`STEP`] bytes somebody has to look for other reasons, and by then neither half can have come round.
//!
//! An event is added by a single instruction, so a signal handler that allocates comes before or behind it,
//! never between its load and its store, and a thread need not say that it is busy. Whether the next stop is
//! reached is a question of level, not of passing a mark: what a handler adds is seen the next time.

use crate::counters::{BLOCK, TOPS, halves};
use crate::hint::is_seldom;
use crate::sample::STEP;
use crate::sync::{AtomicU32, AtomicU64, Ordering, add_to_own};
use std::cell::Cell;

/// What was not sampled, of one epoch. All zero bytes are a fresh one, but for the id.
pub(crate) struct Unsampled {
    /// The id in the tags of these blocks; [`Unsampled::NO_ID`] before there is one.
    id: AtomicU32,
    /// Blocks pass while the lower half of `allocated` is not beyond it.
    allocated_stop: AtomicU32,
    /// The peak is told when the lower half of `freed` reaches it.
    freed_stop: AtomicU32,
    allocated: Count,
    freed: Count,
    /// Bytes allocated less bytes freed that the peak knows of.
    known: Cell<i64>,
}

impl Unsampled {
    /// In no tag.
    const NO_ID: u32 = u32::MAX;

    /// Of no thread: nothing passes, and no block is of its id.
    pub(crate) const fn of_nobody() -> Unsampled {
        Unsampled {
            id: AtomicU32::new(Unsampled::NO_ID),
            allocated_stop: AtomicU32::new(0),
            freed_stop: AtomicU32::new(0),
            allocated: Count::new(),
            freed: Count::new(),
            known: Cell::new(0),
        }
    }

    /// Empty, where all bytes are zero so far.
    pub(crate) fn prepare(&self) {
        // Release: pairs with the Acquire of `id`; who sees that an epoch is gone sees the base that ended it.
        self.id.store(Unsampled::NO_ID, Ordering::Release);
    }

    #[inline(always)]
    pub(crate) fn id(&self) -> u32 {
        // Acquire: pairs with the Release of `begin`, whose zeroes a reader has to see.
        self.id.load(Ordering::Acquire)
    }

    /// Forgets everything and counts blocks of this id from now on. None passes before [`Unsampled::open`].
    pub(crate) fn begin(&self, id: u32) {
        self.prepare();
        for count in [&self.allocated, &self.freed] {
            // Release: pairs with the Acquire of `read`; who sees a zero sees the base that ended the old epoch.
            count.lower.store(0, Ordering::Release);
            count.upper.store(0, Ordering::Release);
        }
        self.open(0);
        self.freed_stop.store(STEP, Ordering::Relaxed);
        self.known.set(0);
        self.id.store(id, Ordering::Release);
    }

    /// Books a block if it fits in what is left of the stretch, and returns what its tag is to hold. The size
    /// is below 2^30.
    #[inline(always)]
    pub(crate) fn passes(&self, size: usize) -> Option<u32> {
        // Before the block is booked: should a signal handler begin a new epoch in between, the tag is stale
        // and its free is no concern of the new one.
        let id = self.id();
        if is_seldom(size as i32 > self.left()) {
            return None;
        }
        self.allocated.add(size);
        Some(id)
    }

    /// Bytes left of the stretch; below 0 where a signal handler has taken more.
    #[inline(always)]
    pub(crate) fn left(&self) -> i32 {
        self.allocated_stop.load(Ordering::Relaxed).wrapping_sub(self.allocated.bytes()) as i32
    }

    /// Books a block, and returns what its tag is to hold. The size is below 2^30.
    pub(crate) fn allocate(&self, size: usize) -> u32 {
        let id = self.id();
        self.allocated.add(size);
        id
    }

    /// Lets this many bytes pass, [`STEP`] at most, before somebody has to look.
    pub(crate) fn open(&self, stretch: u32) {
        self.allocated.settle();
        self.allocated_stop.store(self.allocated.bytes().wrapping_add(stretch), Ordering::Relaxed);
    }

    /// Books the free of a block of this id. True: the peak has to be told, see [`Unsampled::news`].
    #[inline(always)]
    pub(crate) fn free(&self, size: usize) -> bool {
        self.freed.add(size);
        self.has_news()
    }

    /// Whether the peak has to be told.
    #[inline(always)]
    pub(crate) fn has_news(&self) -> bool {
        self.freed.bytes().wrapping_sub(self.freed_stop.load(Ordering::Relaxed)) as i32 >= 0
    }

    /// Change of the live bytes since this was asked last.
    pub(crate) fn news(&self) -> i64 {
        self.freed.settle();
        self.freed_stop.store(self.freed.bytes().wrapping_add(STEP), Ordering::Relaxed);
        let live = (self.allocated.read().0 as i64).wrapping_sub(self.freed.read().0 as i64);
        live.wrapping_sub(self.known.replace(live))
    }

    /// Bytes and blocks. To be read before [`Unsampled::read_allocated`] of any thread.
    pub(crate) fn read_freed(&self) -> (u64, u64) {
        self.freed.read()
    }

    /// Bytes and blocks.
    pub(crate) fn read_allocated(&self) -> (u64, u64) {
        self.allocated.read()
    }

    /// Completes what a thread that is no more has left half done. While nobody writes.
    pub(crate) fn settle(&self) {
        self.allocated.settle();
        self.freed.settle();
    }
}

/// Bytes and blocks; see the module and that of `counters`.
struct Count {
    lower: AtomicU64,
    upper: AtomicU64,
}

impl Count {
    const fn new() -> Count {
        Count { lower: AtomicU64::new(0), upper: AtomicU64::new(0) }
    }

    /// Bits 0 to 31 of the bytes.
    #[inline(always)]
    fn bytes(&self) -> u32 {
        self.lower.load(Ordering::Relaxed) as u32
    }

    /// Adds a block; what carries over from the bytes to the blocks, `read` takes away.
    #[inline(always)]
    fn add(&self, size: usize) {
        // A Release: pairs with the Acquire of `read`; for what was freed, see `counters`.
        add_to_own(&self.lower, BLOCK | u64::from(size as u32));
    }

    /// Brings the upper word up to the lower one, at most 2^31 bytes or blocks after the last time.
    fn settle(&self) {
        let (lower, upper) = (self.lower.load(Ordering::Relaxed), self.upper.load(Ordering::Relaxed));
        let behind = ((lower & TOPS) >> 31) ^ (upper & (BLOCK | 1));
        // Release: pairs with the Acquire of `read`, which finds the lower word at least as new.
        self.upper.store(upper.wrapping_add(behind), Ordering::Release);
    }

    fn read(&self) -> (u64, u64) {
        // Acquire: pairs with the Release of `settle`.
        let (bytes, high) = halves(|| self.upper.load(Ordering::Acquire), &self.lower);
        // One instruction has added to both halves, so each 2^32 bytes have carried one into the other.
        (bytes, high.saturating_sub(bytes >> 32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unsampled() -> Unsampled {
        let unsampled = Unsampled::of_nobody();
        unsampled.begin(77);
        unsampled
    }

    /// Its naive twin: plain 64-bit sums. Beyond 2^33 in both halves.
    #[test]
    fn counts_go_on_where_a_half_ends() {
        let unsampled = unsampled();
        let (mut allocated, mut freed, mut told) = (0u64, 0u64, 0i64);
        unsampled.open(STEP);
        for round in 0..20_000u64 {
            let size = 1 + (round * 7_919) % ((1 << 30) - 1);
            if unsampled.passes(size as usize).is_none() {
                unsampled.allocate(size as usize);
                unsampled.open(STEP);
            }
            allocated += size;
            assert_eq!(unsampled.read_allocated(), (allocated, round + 1));
            if unsampled.free(size as usize) {
                told += unsampled.news();
            }
            freed += size;
            assert_eq!(unsampled.read_freed(), (freed, round + 1));
        }
        assert!(allocated > 1 << 40);
        assert_eq!(told + unsampled.news(), 0);
    }

    #[test]
    fn blocks_go_on_too() {
        let unsampled = unsampled();
        let near = u64::from(u32::MAX) - 3;
        unsampled.allocated.lower.store(near << 32, Ordering::Relaxed);
        unsampled.allocated.upper.store((near >> 31) << 32, Ordering::Relaxed);
        for blocks in near + 1..near + 9 {
            unsampled.open(16);
            assert_eq!(unsampled.passes(16), Some(77));
            assert_eq!(unsampled.read_allocated().1, blocks);
        }
    }

    #[test]
    fn a_stretch_is_used_up_to_the_byte() {
        let unsampled = unsampled();
        assert_eq!((unsampled.passes(1), unsampled.left()), (None, 0));
        unsampled.open(100);
        assert_eq!((unsampled.passes(60), unsampled.left()), (Some(77), 40));
        assert_eq!((unsampled.passes(41), unsampled.left()), (None, 40));
        assert_eq!((unsampled.passes(40), unsampled.left()), (Some(77), 0));
        // A signal handler's.
        unsampled.allocate(5);
        assert_eq!((unsampled.left(), unsampled.passes(1), unsampled.passes(1 << 29)), (-5, None, None));
        assert_eq!(unsampled.read_allocated(), (105, 3));
    }

    #[test]
    fn the_peak_is_told_every_step() {
        let unsampled = unsampled();
        unsampled.allocate(200_000);
        assert_eq!((unsampled.news(), unsampled.news()), (200_000, 0));
        let told: Vec<u32> = (0..200)
            .filter(|_| {
                unsampled.free(1_000) && {
                    unsampled.news();
                    true
                }
            })
            .collect();
        assert_eq!(told, [65, 131, 197]);
    }
}
