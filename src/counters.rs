//! Stack id → four monotone numbers: bytes and blocks, allocated and freed.
//!
//! ```text
//! Counters ─ segments: 64, 128, 256 … chunk pointers, allocated when first needed, never moved
//!              └─ Chunk: 64 × Slot
//!                          └─ Slot: allocated bytes, blocks; freed bytes, blocks   (32 bytes)
//! ```
//!
//! Nothing moves and nothing is freed, so a reader may follow the pointers at any time. A thread's
//! own counters are written by load and store, without a read-modify-write; the counters that
//! threads share ([`Slot::add_shared`]) use atomic adds. Live is never negative for a reader that
//! reads freed before allocated: a free is stored with Release after everything that led to it, the
//! allocation among it, and loaded with Acquire.

use crate::memory;
use crate::sync::{AtomicPtr, AtomicU64, Ordering};
use std::ptr::null_mut;

/// Ids in a chunk.
pub(crate) const CHUNK: usize = 1 << CHUNK_BITS;
const CHUNK_BITS: u32 = 6;

/// Chunk pointers in segment 0; segment `k` has `FIRST_SEGMENT << k`.
const FIRST_SEGMENT: usize = 64;
/// Enough segments for every 32-bit id.
const SEGMENTS: usize = 21;

/// The counts of one stack id.
#[derive(Default)]
#[repr(C, align(32))]
pub(crate) struct Slot {
    allocated_bytes: AtomicU64,
    allocated_blocks: AtomicU64,
    freed_bytes: AtomicU64,
    freed_blocks: AtomicU64,
}

const _: () = assert!(size_of::<Slot>() == 32);

impl Slot {
    pub(crate) const fn new() -> Slot {
        Slot {
            allocated_bytes: AtomicU64::new(0),
            allocated_blocks: AtomicU64::new(0),
            freed_bytes: AtomicU64::new(0),
            freed_blocks: AtomicU64::new(0),
        }
    }

    /// Books an allocation in counters that only the calling thread writes.
    #[inline(always)]
    pub(crate) fn allocate(&self, bytes: u64) {
        // Relaxed: the block's way to whoever frees it is what publishes this (see the module).
        add_owned(&self.allocated_bytes, bytes, Ordering::Relaxed);
        add_owned(&self.allocated_blocks, 1, Ordering::Relaxed);
    }

    /// Books a free in counters that only the calling thread writes.
    #[inline(always)]
    pub(crate) fn free(&self, bytes: u64) {
        // Release: pairs with the Acquire of `read_freed`.
        add_owned(&self.freed_bytes, bytes, Ordering::Release);
        add_owned(&self.freed_blocks, 1, Ordering::Release);
    }

    /// Books an allocation in counters that several threads write.
    pub(crate) fn allocate_shared(&self, bytes: u64) {
        self.allocated_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.allocated_blocks.fetch_add(1, Ordering::Relaxed);
    }

    /// Books a free in counters that several threads write; Release as in [`Slot::free`].
    pub(crate) fn free_shared(&self, bytes: u64) {
        self.freed_bytes.fetch_add(bytes, Ordering::Release);
        self.freed_blocks.fetch_add(1, Ordering::Release);
    }

    /// Freed bytes and blocks. To be read before [`Slot::read_allocated`] of any thread.
    pub(crate) fn read_freed(&self) -> (u64, u64) {
        // Acquire: pairs with the Release of `free` and `free_shared`; what happened before such a
        // free, its allocation included, is visible to loads after this.
        (self.freed_bytes.load(Ordering::Acquire), self.freed_blocks.load(Ordering::Acquire))
    }

    /// Allocated bytes and blocks.
    pub(crate) fn read_allocated(&self) -> (u64, u64) {
        (self.allocated_bytes.load(Ordering::Relaxed), self.allocated_blocks.load(Ordering::Relaxed))
    }
}

#[inline(always)]
fn add_owned(counter: &AtomicU64, value: u64, order: Ordering) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(value), order);
}

/// 64 slots, of neighbouring ids.
pub(crate) type Chunk = [Slot; CHUNK];

/// Counts by stack id. All zero bytes are an empty one.
pub(crate) struct Counters {
    segments: [AtomicPtr<AtomicPtr<Chunk>>; SEGMENTS],
}

impl Counters {
    pub(crate) const fn new() -> Counters {
        Counters { segments: [const { AtomicPtr::new(null_mut()) }; SEGMENTS] }
    }

    /// Empty, but for a place for the ids below [`CHUNK`] that no lack of memory can refuse.
    /// For the one set of counters that threads share.
    pub(crate) const fn with_first_ids() -> Counters {
        static CHUNK_0: Chunk = [const { Slot::new() }; CHUNK];
        static SEGMENT_0: [AtomicPtr<Chunk>; FIRST_SEGMENT] = {
            let mut segment = [const { AtomicPtr::new(null_mut()) }; FIRST_SEGMENT];
            segment[0] = AtomicPtr::new((&raw const CHUNK_0).cast_mut());
            segment
        };
        let mut counters = Counters::new();
        counters.segments[0] = AtomicPtr::new((&raw const SEGMENT_0).cast_mut().cast());
        counters
    }

    /// The slot of an id if it was used before.
    #[inline(always)]
    pub(crate) fn slot(&self, id: u32) -> Option<&Slot> {
        let chunk = self.chunk((id >> CHUNK_BITS) as usize)?;
        Some(&chunk[id as usize % CHUNK])
    }

    /// The slot of an id, made if need be; `None` when there is no memory for it.
    #[inline(always)]
    pub(crate) fn slot_or_make(&self, id: u32) -> Option<&Slot> {
        match self.slot(id) {
            Some(slot) => Some(slot),
            None => self.make_slow(id),
        }
    }

    /// The chunk of the ids from `CHUNK * number` on, if one of them was used.
    #[inline(always)]
    pub(crate) fn chunk(&self, number: usize) -> Option<&Chunk> {
        let (segment, offset) = place(number);
        // Acquire, twice: pairs with the Release of `publish`, so that the zeroes are visible.
        let segment = self.segments[segment].load(Ordering::Acquire);
        if segment.is_null() {
            return None;
        }
        // SAFETY: a published segment has `FIRST_SEGMENT << k` pointers, `place` stays below, and it
        // is never freed.
        let chunk = unsafe { &*segment.add(offset) }.load(Ordering::Acquire);
        // SAFETY: a published chunk is never freed or moved; zero is a valid `Slot`.
        unsafe { chunk.as_ref() }
    }

    #[cold]
    #[inline(never)]
    fn make_slow(&self, id: u32) -> Option<&Slot> {
        let (segment, offset) = place((id >> CHUNK_BITS) as usize);
        let segment = publish(&self.segments[segment], FIRST_SEGMENT << segment)?;
        // SAFETY: as in `chunk`.
        publish(unsafe { &*segment.add(offset) }, 1)?;
        self.slot(id)
    }
}

/// The segment of a chunk number, and its place therein.
#[inline(always)]
fn place(number: usize) -> (usize, usize) {
    let shifted = number + FIRST_SEGMENT;
    let segment = (shifted.ilog2() - FIRST_SEGMENT.ilog2()) as usize;
    (segment, shifted - (FIRST_SEGMENT << segment))
}

/// Sets a null pointer to `len` zeroed values, or takes what another thread has set meanwhile.
fn publish<T>(place: &AtomicPtr<T>, len: usize) -> Option<*mut T> {
    let present = place.load(Ordering::Acquire);
    if !present.is_null() {
        return Some(present);
    }
    let fresh = memory::zeroed_array::<T>(len);
    if fresh.is_null() {
        return None;
    }
    // Release: publishes the zeroes; Acquire: takes over those of a faster thread (only counters
    // that threads share have one).
    match place.compare_exchange(null_mut(), fresh, Ordering::Release, Ordering::Acquire) {
        Ok(_) => Some(fresh),
        Err(earlier) => {
            // SAFETY: made above with this length and seen by nobody.
            unsafe { memory::free_array(fresh, len) };
            Some(earlier)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_dense_and_distinct() {
        let mut expected = (0, 0);
        for number in 0..10_000 {
            assert_eq!(place(number), expected);
            expected.1 += 1;
            if expected.1 == FIRST_SEGMENT << expected.0 {
                expected = (expected.0 + 1, 0);
            }
        }
        assert!(place((u32::MAX >> CHUNK_BITS) as usize).0 < SEGMENTS);
    }

    #[test]
    fn ids_count_separately() {
        let counters = Counters::new();
        assert!(counters.slot(5).is_none());
        for id in [0, 1, 63, 64, 4095, 4096, 1 << 20] {
            let slot = counters.slot_or_make(id).unwrap();
            slot.allocate(u64::from(id) + 10);
            slot.allocate_shared(1);
            slot.free(3);
        }
        for id in [0, 1, 63, 64, 4095, 4096, 1 << 20] {
            let slot = counters.slot(id).unwrap();
            assert_eq!(slot.read_allocated(), (u64::from(id) + 11, 2));
            assert_eq!(slot.read_freed(), (3, 1));
        }
        assert_eq!(counters.slot(2).unwrap().read_allocated(), (0, 0));
    }
}
