//! Repeats the thread states, the way of an event to its counter and the order of reading, for `models`. `sources` compares them
//! with their originals.

use crate::base::atomics::{AtomicPtr, AtomicU8, Ordering};
use crate::record::append_list::{Linked, List};
use crate::record::count::counters::Direction::{Allocated, Freed};
use crate::record::count::counters::{CHUNK, Chunk, Direction, OwnerCounters, Shared, Table};
use crate::record::count::sampling::PEAK_STEP;
use crate::record::count::unsampled::{self, Unsampled};
use crate::record::{epoch, memory, tag};

/// The modelled part of a `ThreadState`. All zero bytes are a new state.
#[repr(C, align(128))]
pub(crate) struct State {
    pub(crate) taken: AtomicU8,
    pub(crate) unsampled: Unsampled,
    pub(crate) counters: Table<OwnerCounters>,
    pub(crate) next: AtomicPtr<State>,
}

// SAFETY: atomics.
unsafe impl Sync for State {}

pub(crate) static ALL: List<State> = List::new();

impl Linked for State {
    fn next(&self) -> &AtomicPtr<State> {
        &self.next
    }
}

impl State {
    pub(crate) const fn new() -> State {
        // SAFETY: see the type.
        unsafe { std::mem::zeroed() }
    }
}

pub(crate) static SHARED: Table<Shared> = Table::with_first_ids();

/// Repeats `thread::make`.
pub(crate) fn make() -> &'static State {
    // SAFETY: zeroes are a state, and it is not freed before the run ends.
    let state = unsafe { &*memory::zeroed_array::<State>(1) };
    state.taken.store(1, Ordering::Relaxed);
    state.unsampled.enlist();
    ALL.push(state);
    state
}

/// Repeats `thread::all`.
pub(crate) fn all() -> impl Iterator<Item = &'static State> {
    ALL.iter()
}

/// Repeats `thread::adopt`.
pub(crate) fn adopt() -> Option<&'static State> {
    all().find(|state| {
        state.taken.load(Ordering::Relaxed) == 0
            && state.taken.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
    })
}

/// Repeats `thread::release`.
pub(crate) fn release(state: &State) {
    state.taken.store(0, Ordering::Release);
}

// ── Events ──────────────────────────────────────────────────────────────────────────────────────

/// Counts a block in the counters of a state, as `event::count_alloc` and its slow path do.
pub(crate) fn count(state: &State, id: u32, direction: Direction, size: usize) {
    assert!(state.counters.add(id, direction, size) || state.counters.add_slow(id, direction, size));
}

/// Allocates a block that is not sampled. It takes the slow path where the state is new or its budget is spent.
pub(crate) fn record_alloc(state: &State, size: usize) -> u32 {
    try_fast(state, size).unwrap_or_else(|| refresh_and_record(state, size))
}

/// Repeats `event::try_fast`.
pub(crate) fn try_fast(state: &State, size: usize) -> Option<u32> {
    state.unsampled.try_spend(size)
}

/// Repeats `event::refresh_and_record`, for a block that is not sampled.
pub(crate) fn refresh_and_record(state: &State, size: usize) -> u32 {
    let generation = epoch::generation_slow();
    state.unsampled.seal();
    let base = live_base();
    let id = record_sampled(state, size, base);
    // The original keeps this in the state; no model reads it.
    epoch::generation_of_samples(generation);
    id
}

/// Repeats `ThreadState::enter_epoch`, for blocks that are not sampled.
pub(crate) fn live_base() -> u32 {
    epoch::base()
}

/// Repeats `event::record_sampled`, for a block that is not sampled.
pub(crate) fn record_sampled(state: &State, size: usize, base: u32) -> u32 {
    let unsampled = &state.unsampled;
    let _left = unsampled.remaining();
    if unsampled.id() != u64::from(epoch::unsampled_id(base)) {
        let id = epoch::unsampled_id(base);
        unsampled.begin(id);
    }
    let id = unsampled.allocate(size);
    unsampled.grant(PEAK_STEP);
    state.publish_in(base);
    id
}

impl State {
    /// Repeats `ThreadState::publish_in`, for blocks that are not sampled.
    pub(crate) fn publish_in(&self, base: u32) -> i64 {
        let unpublished = self.unsampled.take_unpublished();
        if self.unsampled.id() == u64::from(epoch::unsampled_id(base)) { unpublished } else { 0 }
    }
}

/// Repeats `event::unsampled`.
pub(crate) fn unsampled(state: &State, tag: u64) -> Option<&Unsampled> {
    let unsampled = &state.unsampled;
    (unsampled.own_id() == tag).then_some(unsampled)
}

/// Repeats `event::record_free`.
pub(crate) fn record_free(state: &State, id: u32, size: usize) {
    match unsampled(state, id.into()) {
        Some(unsampled) if unsampled.free(size) => _ = state.publish_in(live_base()),
        None if !try_fast_free(state, id, size) => record_free_other(state, id, size),
        _ => {}
    }
}

/// Repeats `event::try_fast_free`.
pub(crate) fn try_fast_free(state: &State, id: u32, size: usize) -> bool {
    id >= epoch::base() && state.counters.add(id, Freed, size)
}

/// Repeats `event::record_free_other` of a block that is not traced, and `event::record_free_slow`.
pub(crate) fn record_free_other(state: &State, id: u32, size: usize) {
    if id >= tag::FIRST && id < epoch::base() {
        return;
    }
    count(state, id, Freed, size);
}

// ── Reads ───────────────────────────────────────────────────────────────────────────────────────

/// Bytes and blocks.
pub(crate) type Sum = (u64, u64);

#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) allocated: Sum,
    pub(crate) freed: Sum,
}

impl Counts {
    pub(crate) fn add(&mut self, direction: Direction, (bytes, blocks): Sum) {
        let sum = if direction == Allocated { &mut self.allocated } else { &mut self.freed };
        *sum = (sum.0 + bytes, sum.1 + blocks);
    }

    pub(crate) fn is_never_negative(&self) -> bool {
        self.allocated.0 >= self.freed.0 && self.allocated.1 >= self.freed.1
    }

    /// Returns the live bytes.
    pub(crate) fn live(&self) -> u64 {
        assert!(self.is_never_negative(), "{self:?}");
        self.allocated.0 - self.freed.0
    }
}

/// Repeats `raw_snapshot::read_chunk`, of one id.
pub(crate) fn read_chunk(id: u32) -> Counts {
    let (number, place) = (id as usize / CHUNK, id as usize % CHUNK);
    let mut counts = Counts::default();
    for direction in [Direction::Freed, Direction::Allocated] {
        for chunk in all().filter_map(|state| state.counters.chunk(number)) {
            counts.add(direction, chunk.read(place, direction));
        }
        if let Some(chunk) = SHARED.chunk(number) {
            counts.add(direction, chunk.read(place, direction));
        }
    }
    counts
}

/// Repeats `raw_snapshot::read_unsampled`.
pub(crate) fn read_unsampled(id: u32) -> Counts {
    let threads = || unsampled::all().filter(|unsampled| unsampled.id() == u64::from(id));
    let mut freed = Counts::default();
    for sum in threads().map(Unsampled::read_freed) {
        freed.add(Freed, sum);
    }
    let mut counts = read_chunk(id);
    counts.add(Freed, freed.freed);
    for sum in threads().map(Unsampled::read_allocated) {
        counts.add(Allocated, sum);
    }
    counts
}

/// Repeats `raw_snapshot::read_epoch`, of blocks that are not sampled.
pub(crate) fn read_epoch() -> (u32, Counts) {
    let mut tries = 0;
    loop {
        let base = epoch::base();
        let counts = read_unsampled(epoch::unsampled_id(base));
        tries += 1;
        // No model clears so often that a reader gives up.
        assert!(tries < 4);
        if epoch::base() == base {
            return (base, counts);
        }
    }
}

pub(crate) fn never_negative(counts: Counts) {
    assert!(counts.is_never_negative(), "{counts:?}");
}
