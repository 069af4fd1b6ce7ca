//! Stack id → four monotone numbers: bytes and blocks, allocated and freed.
//!
//! ```text
//! Table ─ chunk pointers, see `chunk_table`
//!           └─ OwnerCounters:  64 × (allocated, freed), each one word: blocks ‖ bytes     (18 bytes an id)
//!           │            └─ high: the carries of both halves, made when first needed
//!           └─ Shared: 64 × (allocated bytes, blocks; freed bytes, blocks), the stack; life (42 bytes an id)
//! ```
//!
//! Nothing moves, and nothing is freed before every thread that may have found it is done with it (see `reclaim`). A thread's
//! own counters are written by load and store, without a read-modify-write; those that threads share
//! use atomic adds. Live is never negative for a reader that reads freed before allocated: a free is
//! stored with Release after everything that led to it, the allocation among it, and loaded with
//! Acquire.
//!
//! # Half words with a carry
//!
//! A half holds the low 32 bits of its count, and the word of the same place in `high` how often
//! bit 31 of it has changed: the count's bits from 31 on. So bit 31 is held twice. The owner stores
//! the low word first; a reader who sees the two disagree has caught it in between, and knows that
//! the high one is behind by one. One addition stays below 2^31 (a larger block is counted
//! in the shared counters), so it is never behind by more.

use crate::base::atomics::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
pub(crate) use crate::record::count::chunk_table::Table;
use crate::record::count::chunk_table::publish;
use crate::record::memory;
use std::ptr::{NonNull, null_mut};

/// Ids in a chunk.
pub(crate) const CHUNK: usize = 1 << CHUNK_BITS;
const CHUNK_BITS: u32 = 6;

/// The side that an event changes: allocated or freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    Allocated,
    Freed,
}

/// The counts of 64 neighbouring ids. All zero bytes are none.
pub(crate) trait Chunk {
    /// Reads bytes and blocks of the id at this place of the chunk. Frees are to be read before
    /// allocations, of all threads: everything that happened before a free that is seen, its
    /// allocation included, is visible to loads after this.
    fn read(&self, place: usize, direction: Direction) -> (u64, u64);
}

// ── Of one thread ───────────────────────────────────────────────────────────────────────────────

/// Blocks and bytes of one id that were allocated, or that were freed, in one word: see the module.
pub(crate) struct Count(AtomicU64);

/// Two counts for each id.
type Counts = [Count; 2 * CHUNK];

/// Counts that one thread writes.
// A pair of cache lines belongs to one thread, see `memory`.
#[repr(C, align(128))]
pub(crate) struct OwnerCounters {
    low: Counts,
    high: AtomicPtr<Counts>,
}

const _: () = assert!(size_of::<OwnerCounters>() == 16 * CHUNK + 128);

/// One block, in a word of an [`OwnerCounters`] chunk.
const BLOCK: u64 = 1 << 32;
/// Bit 31 of both halves.
const TOPS: u64 = 1 << 63 | 1 << 31;
/// More bytes cannot be added at once.
pub(crate) const MOST: u64 = (1 << 31) - 1;

/// Returns the index of a count in its chunk.
#[inline(always)]
fn word(place: usize, direction: Direction) -> usize {
    place % CHUNK * 2 + direction as usize
}

impl Count {
    #[cfg(test)]
    pub(crate) const fn new() -> Count {
        Count(AtomicU64::new(0))
    }

    /// Adds a block of at most [`MOST`] bytes; where a half would have to carry, changes nothing and returns false. Only the thread
    /// that the count belongs to may call it.
    #[inline(always)]
    pub(crate) fn add(&self, bytes: u64) -> bool {
        debug_assert!(bytes <= MOST, "{bytes} bytes may carry twice");
        let before = self.0.load(Ordering::Relaxed);
        let after = before.wrapping_add(bytes).wrapping_add(BLOCK);
        let fits = (before ^ after) & TOPS == 0;
        if fits {
            // Release: pairs with the Acquire of `read`. For frees, see the module; for
            // allocations, a reader that sees this sees every change of `high` before it.
            self.0.store(after, Ordering::Release);
        }
        fits
    }
}

impl OwnerCounters {
    /// Adds a block of at most [`MOST`] bytes whatever the halves hold; false without memory.
    #[cold]
    fn add_slow(&self, place: usize, direction: Direction, bytes: u64) -> bool {
        let Some(high) = publish(&self.high, Some(memory::thread_may_grow)) else { return false };
        let (word, low) = (word(place, direction), &self.low[word(place, direction)].0);
        // SAFETY: `publish` gives zeroed words, freed with this chunk.
        let high = unsafe { &(*high)[word].0 };
        let before = low.load(Ordering::Relaxed);
        debug_assert!(bytes <= MOST, "more than one carry: {bytes}");
        let after = join((before as u32).wrapping_add(bytes as u32), ((before >> 32) as u32).wrapping_add(1));
        let changed = (before ^ after) & TOPS;
        low.store(after, Ordering::Release);
        let held = high.load(Ordering::Relaxed);
        debug_assert!(
            held & (BLOCK | 1) == (before & TOPS) >> 31,
            "halves that disagreed before: {held:#x}, {before:#x}"
        );
        // Release: pairs with the Acquire of `read`, which finds the low word at least as new.
        high.store(held.wrapping_add(changed >> 31), Ordering::Release);
        true
    }

    /// Reads the high halves of a word's two counts.
    fn high(&self, word: usize) -> u64 {
        // Acquire: pairs with the Release of `publish`; the zeroes are visible.
        // SAFETY: null, or published and freed with this chunk.
        let high = unsafe { self.high.load(Ordering::Acquire).as_ref() };
        // Acquire: pairs with the Release of `add_slow`.
        high.map_or(0, |high| high[word].0.load(Ordering::Acquire))
    }

    /// Frees a chunk that was unlinked.
    ///
    /// # Safety
    ///
    /// * It came from a thread's table, and nothing follows it any more.
    pub(crate) unsafe fn free(chunk: NonNull<OwnerCounters>) {
        // SAFETY: the caller's duty.
        let high = unsafe { chunk.as_ref() }.high.load(Ordering::Acquire);
        if !high.is_null() {
            // SAFETY: made by `publish` for this chunk alone.
            unsafe { memory::free_array_of_thread(high, 1) };
        }
        // SAFETY: as above.
        unsafe { memory::free_array_of_thread(chunk.as_ptr(), 1) };
    }

    /// Completes the carry that a thread has left half done. While no thread writes.
    fn complete_carry(&self) {
        // SAFETY: null, or published and freed with this chunk.
        let Some(high) = (unsafe { self.high.load(Ordering::Acquire).as_ref() }) else { return };
        for (Count(low), Count(high)) in self.low.iter().zip(high) {
            let held = high.load(Ordering::Relaxed);
            let behind = (low.load(Ordering::Relaxed) & TOPS) >> 31 ^ (held & (BLOCK | 1));
            high.store(held.wrapping_add(behind), Ordering::Relaxed);
        }
    }
}

/// Packs the low halves of two counts in a word.
fn join(bytes: u32, blocks: u32) -> u64 {
    u64::from(blocks) << 32 | u64::from(bytes)
}

/// Combines a count from its two halves, see the module.
fn whole(low: u32, high: u32) -> u64 {
    let behind = (low >> 31) ^ (high & 1);
    u64::from(high.wrapping_add(behind)) << 31 | u64::from(low & MOST as u32)
}

impl Chunk for OwnerCounters {
    fn read(&self, place: usize, direction: Direction) -> (u64, u64) {
        let word = word(place, direction);
        loop {
            // At most one change behind the low word.
            let before = self.high(word);
            // Acquire: pairs with the Release of the thread that adds.
            let low = self.low[word].0.load(Ordering::Acquire);
            // Equal: no low word from after the next change of the high one was seen. Else 2^31 bytes or
            // blocks were counted meanwhile.
            if self.high(word) == before {
                return (whole(low as u32, before as u32), whole((low >> 32) as u32, (before >> 32) as u32));
            }
        }
    }
}

// ── Of several threads ──────────────────────────────────────────────────────────────────────────

/// The counts of one id that several threads write.
#[repr(C, align(32))]
struct Slot {
    /// Bytes and blocks, by [`Direction`].
    counts: [[AtomicU64; 2]; 2],
}

const _: () = assert!(size_of::<Slot>() == 32);

/// Counts that several threads write, and the stacks of their ids.
pub(crate) struct Shared {
    slots: [Slot; CHUNK],
    /// Pointers to the stacks, as `stack_id::table` has them; null for an id that no stack has.
    stacks: [AtomicPtr<()>; CHUNK],
    pub(crate) life: Life,
}

/// State of the ids of a chunk while their epoch lasts, see `stack_id::life` and `stack_id::renew`.
pub(crate) struct Life {
    /// No thread that begins an event now allocates at them.
    closed: AtomicBool,
    /// Places of ids that were renewed, a bit for each: their stacks get new ids when they are met again.
    renewed: AtomicU64,
    /// Number of blocks allocated at the last look. Only the thread that makes a round uses this and the next.
    pub(crate) met: AtomicU64,
    /// Time of the last look that found another number.
    pub(crate) since: AtomicU64,
    /// In the chunk of the id of blocks that are not sampled: bytes and blocks, allocated and freed, of ids of that epoch that
    /// are over.
    over: [AtomicU64; 2],
}

impl Life {
    const fn new() -> Life {
        Life {
            closed: AtomicBool::new(false),
            renewed: AtomicU64::new(0),
            met: AtomicU64::new(0),
            since: AtomicU64::new(0),
            over: [const { AtomicU64::new(0) }; 2],
        }
    }

    /// Closes the chunk.
    pub(crate) fn close(&self) {
        // Release: pairs with the Acquire of `is_closed`.
        self.closed.store(true, Ordering::Release);
    }

    /// Returns whether it is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Renews the id at this place; false where it was, or where the chunk is closed.
    pub(crate) fn renew(&self, place: usize) -> bool {
        let bit = 1 << (place % CHUNK);
        // Release: pairs with the Acquire of `open`.
        !self.is_closed() && self.renewed.fetch_or(bit, Ordering::Release) & bit == 0
    }

    /// Opens the renewed id at this place again; false where the chunk is closed.
    pub(crate) fn reopen(&self, place: usize) -> bool {
        // Relaxed: a thread that still finds it renewed takes the lock of the map, as its caller does.
        self.renewed.fetch_and(!(1 << (place % CHUNK)), Ordering::Relaxed);
        !self.is_closed()
    }

    /// Returns the places of ids that stacks may still be met at, a bit for each.
    pub(crate) fn open(&self) -> u64 {
        // Acquire: pairs with the Release of `renew`.
        if self.is_closed() { 0 } else { !self.renewed.load(Ordering::Acquire) }
    }

    /// Adds bytes and blocks of ids that are over.
    pub(crate) fn add_over(&self, bytes: u64, blocks: u64) {
        // Releases: pair with the Acquires of `read_over`, whose reader then finds the change announced.
        self.over[0].fetch_add(bytes, Ordering::Release);
        self.over[1].fetch_add(blocks, Ordering::Release);
    }

    /// Reads bytes and blocks of ids that are over.
    pub(crate) fn read_over(&self) -> (u64, u64) {
        (self.over[0].load(Ordering::Acquire), self.over[1].load(Ordering::Acquire))
    }
}

impl Shared {
    /// Returns the pointer to the stack of the id at this place.
    pub(crate) fn stack(&self, place: usize) -> &AtomicPtr<()> {
        &self.stacks[place % CHUNK]
    }

    /// Adds a block.
    fn add(&self, place: usize, direction: Direction, bytes: u64) {
        let [in_bytes, in_blocks] = &self.slots[place % CHUNK].counts[direction as usize];
        // Release: as in `OwnerCounters::add`.
        in_bytes.fetch_add(bytes, Ordering::Release);
        in_blocks.fetch_add(1, Ordering::Release);
    }
}

impl Chunk for Shared {
    fn read(&self, place: usize, direction: Direction) -> (u64, u64) {
        let [bytes, blocks] = &self.slots[place % CHUNK].counts[direction as usize];
        // Acquire: pairs with the Release of `add`.
        (bytes.load(Ordering::Acquire), blocks.load(Ordering::Acquire))
    }
}

// ── Tables ──────────────────────────────────────────────────────────────────────────────────────

/// Returns the number of the chunk that contains an id.
#[inline(always)]
pub(crate) fn number(id: u32) -> usize {
    (id >> CHUNK_BITS) as usize
}

impl Table<OwnerCounters> {
    /// Counts a block of this id and at most [`MOST`] bytes, in the common case that there is a place for it;
    /// else false.
    #[inline(always)]
    pub(crate) fn add(&self, id: u32, direction: Direction, bytes: usize) -> bool {
        self.count(id, direction).is_some_and(|count| count.add(bytes as u64))
    }

    /// Returns one of the counts of this id, if the table has one, to its own thread. It is freed with its chunk,
    /// see `reclaim`.
    #[inline(always)]
    pub(crate) fn count(&self, id: u32, direction: Direction) -> Option<&Count> {
        // Relaxed: seen at the latest when the thread took the table. On aarch64 an Acquire waits for earlier Releases.
        self.chunk_by(number(id), Ordering::Relaxed).map(|chunk| &chunk.low[word(id as usize, direction)])
    }

    /// Counts a block of this id, making place for it; false without memory or room, or for 2 GiB and more. The block
    /// is then to be counted in the counters that threads share.
    #[cold]
    #[inline(never)]
    pub(crate) fn add_slow(&self, id: u32, direction: Direction, bytes: usize) -> bool {
        let (place, bytes) = (id as usize, bytes as u64);
        // The ids that every thread counts at have their place under any limit.
        let may: fn(usize) -> bool = if number(id) == 0 { memory::always } else { memory::thread_may_grow };
        bytes <= MOST
            && self.chunk_or_make(number(id), Some(may)).is_some_and(|chunk| {
                chunk.low[word(place, direction)].add(bytes) || chunk.add_slow(place, direction, bytes)
            })
    }

    /// Completes the carries that an exited thread has left half done, for the ids that no epoch ends and those of this range.
    pub(crate) fn complete_carry(&self, ids: std::ops::Range<u32>) {
        let numbers = std::iter::once(0).chain(number(ids.start).max(1)..=number(ids.end));
        numbers.filter_map(|number| self.chunk(number)).for_each(OwnerCounters::complete_carry);
    }
}

impl Table<Shared> {
    /// Makes a table that is empty, but for a place for the ids below [`CHUNK`] that no lack of memory can refuse.
    pub(crate) const fn with_first_ids() -> Table<Shared> {
        static CHUNK_0: Shared = Shared {
            slots: [const { Slot { counts: [const { [const { AtomicU64::new(0) }; 2] }; 2] } }; CHUNK],
            stacks: [const { AtomicPtr::new(null_mut()) }; CHUNK],
            life: Life::new(),
        };
        let mut table = Table::new();
        table.first[0] = AtomicPtr::new((&raw const CHUNK_0).cast_mut());
        table
    }

    /// Makes a place for an id; false when there is no memory for it.
    pub(crate) fn make(&self, id: u32) -> bool {
        self.chunk(number(id)).is_some() || self.chunk_or_make(number(id), None).is_some()
    }

    /// Returns whether stacks may still be met at this id: it is neither renewed nor over nor about to be.
    pub(crate) fn is_open(&self, id: u32) -> bool {
        self.chunk(number(id)).is_some_and(|chunk| chunk.life.open() >> (id as usize % CHUNK) & 1 != 0)
    }

    /// Counts a block of this id; false if no place was made for it.
    pub(crate) fn add(&self, id: u32, direction: Direction, bytes: u64) -> bool {
        self.chunk(number(id)).inspect(|chunk| chunk.add(id as usize, direction, bytes)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::Direction::{Allocated, Freed};
    use super::*;
    use std::sync::atomic::AtomicBool;

    impl Table<OwnerCounters> {
        fn count_block(&self, id: u32, direction: Direction, bytes: usize) -> bool {
            bytes as u64 <= MOST && self.add(id, direction, bytes) || self.add_slow(id, direction, bytes)
        }
    }

    fn read<C: Chunk>(table: &Table<C>, id: u32, direction: Direction) -> (u64, u64) {
        table.chunk(number(id)).unwrap().read(id as usize % CHUNK, direction)
    }

    #[test]
    fn ids_count_separately() {
        let (owned, shared) = (Table::<OwnerCounters>::new(), Table::<Shared>::with_first_ids());
        assert!(!owned.add(5, Allocated, 1) && shared.add(5, Allocated, 0) && !shared.add(64, Freed, 1));
        let ids = [0, 1, 63, 64, 12_287, 12_288, 1 << 20];
        for id in ids {
            assert!(owned.count_block(id, Allocated, id as usize + 10));
            assert!(owned.count_block(id, Freed, 3));
            assert!(shared.make(id) && shared.add(id, Allocated, 7) && shared.add(id, Freed, id.into()));
        }
        for id in ids {
            assert_eq!(read(&owned, id, Allocated), (u64::from(id) + 10, 1));
            assert_eq!(read(&owned, id, Freed), (3, 1));
            assert_eq!(read(&shared, id, Allocated), (7, 1));
            assert_eq!(read(&shared, id, Freed), (u64::from(id), 1));
        }
        assert_eq!(read(&owned, 2, Allocated), (0, 0));
        assert!(owned.chunk(0).unwrap().high.load(Ordering::Relaxed).is_null(), "no half is full");
        assert_eq!(read(&shared, 5, Allocated), (0, 1));
    }

    /// Its naive twin: two plain 64-bit sums.
    #[test]
    fn a_half_carries_where_it_ends() {
        let table = Table::<OwnerCounters>::new();
        let (mut bytes, mut state) = (0, 1_u64);
        for blocks in 1..=200_000_u64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let size = if blocks % 3 == 0 { MOST } else { (state >> 33) & MOST } as usize;
            assert!(table.count_block(70, Freed, size));
            bytes += size as u64;
            assert_eq!(read(&table, 70, Freed), (bytes, blocks));
            assert_eq!(read(&table, 70, Allocated), (0, 0));
        }
        assert!(bytes > 1 << 47);
        assert!(!table.count_block(70, Freed, 1 << 31) && !table.count_block(70, Freed, usize::MAX));
        assert_eq!(read(&table, 70, Freed), (bytes, 200_000));
    }

    #[test]
    fn blocks_carry_too() {
        let table = Table::<OwnerCounters>::new();
        let chunk = table.chunk_or_make(0, None).unwrap();
        for start in [u64::from(u32::MAX >> 1), u64::from(u32::MAX)] {
            // As if that many had been counted.
            chunk.low[word(3, Allocated)].0.store(start << 32 | 5, Ordering::Relaxed);
            let high = publish(&chunk.high, None).unwrap();
            // SAFETY: just published.
            unsafe { &(*high)[word(3, Allocated)].0 }.store((start >> 31) << 32, Ordering::Relaxed);
            for more in 1..4 {
                assert!(table.count_block(3, Allocated, 2));
                assert_eq!(read(&table, 3, Allocated), (5 + 2 * more, start + more));
            }
        }
    }

    #[test]
    fn a_carry_left_half_done_is_completed() {
        let table = Table::<OwnerCounters>::new();
        for expected in 1..=4 {
            assert!(table.count_block(9, Allocated, 1 << 30) && table.count_block(9, Allocated, 1 << 30));
            assert_eq!(read(&table, 9, Allocated), (expected << 31, 2 * expected));
            // As if the thread had gone between its two stores.
            let chunk = table.chunk(0).unwrap();
            // SAFETY: made by the first crossing, above.
            let high = unsafe { &(*chunk.high.load(Ordering::Relaxed))[word(9, Allocated)].0 };
            high.store(expected - 1, Ordering::Relaxed);
            assert_eq!(read(&table, 9, Allocated), (expected << 31, 2 * expected));
            table.complete_carry(2..9);
            assert_eq!(high.load(Ordering::Relaxed), expected);
        }
    }

    #[test]
    fn a_reader_never_sees_a_count_fall_or_jump() {
        let (table, done) = (Table::<OwnerCounters>::new(), AtomicBool::new(false));
        let steps = 3_000_000;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..steps {
                    assert!(table.count_block(1, Allocated, MOST as usize));
                }
                done.store(true, Ordering::Release);
            });
            let (mut last, mut looks) = ((0, 0), 0);
            while !done.load(Ordering::Acquire) {
                let Some(chunk) = table.chunk(0) else { continue };
                let now = chunk.read(1, Allocated);
                assert!(now.1 >= last.1 && now.0 == now.1 * MOST, "{now:?} after {last:?}");
                (last, looks) = (now, looks + 1);
            }
            assert!(looks > 10);
        });
        assert_eq!(read(&table, 1, Allocated), (steps * MOST, steps));
    }
}
