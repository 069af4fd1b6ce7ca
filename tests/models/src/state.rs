//! Repeats the thread states, the way of an event to its counter and the order of reading, for `models`. `sources` compares them
//! with their originals.

use crate::base::atomics::{AtomicPtr, AtomicU8, AtomicU32, AtomicUsize, Ordering, compiler_fence};
use crate::record::append_list::{Linked, List};
use crate::record::count::counters::Direction::{Allocated, Freed};
use crate::record::count::counters::{CHUNK, Chunk, Count, Direction, OwnerCounters, Shared, Table};
use crate::record::count::sampling::PEAK_STEP;
use crate::record::count::unsampled::{self, Unsampled};
use crate::record::thread::section::Readings;
use crate::record::{epoch, memory, tag};
use std::cell::Cell;

/// The modelled part of a `ThreadState`. All zero bytes are a new state.
#[repr(C, align(128))]
pub(crate) struct State {
    pub(crate) taken: AtomicU8,
    pub(crate) unsampled: Unsampled,
    pub(crate) counters: Table<OwnerCounters>,
    /// `hot.flags`.
    pub(crate) flags: AtomicU32,
    /// `unpublished.base`.
    pub(crate) base: AtomicU32,
    pub(crate) readings: Readings,
    pub(crate) passed: AtomicUsize,
    /// `owner.closings`.
    pub(crate) closings: AtomicU32,
    /// The one stack of `owner.cache`.
    pub(crate) cached: AtomicU32,
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

/// Repeats `sums::read_chunk`, of one id.
pub(crate) fn read_chunk(id: u32) -> Option<Counts> {
    let (number, place) = (id as usize / CHUNK, id as usize % CHUNK);
    let shared = SHARED.chunk(number)?;
    let mut counts = Counts::default();
    for direction in [Direction::Freed, Direction::Allocated] {
        for chunk in all().filter_map(|state| state.counters.chunk(number)) {
            counts.add(direction, chunk.read(place, direction));
        }
        counts.add(direction, shared.read(place, direction));
    }
    SHARED.chunk(number).is_some_and(|again| std::ptr::eq(again, shared)).then_some(counts)
}

/// Repeats `raw_snapshot::read_at`.
pub(crate) fn read_at(id: u32) -> Counts {
    read_chunk(id).unwrap_or_default()
}

/// Repeats `raw_snapshot::read_unsampled`.
pub(crate) fn read_unsampled(id: u32) -> Counts {
    let threads = || unsampled::all().filter(|unsampled| unsampled.id() == u64::from(id));
    let mut freed = Counts::default();
    for sum in threads().map(Unsampled::read_freed) {
        freed.add(Freed, sum);
    }
    let mut counts = read_at(id);
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

// ── Sections and rounds ─────────────────────────────────────────────────────────────────────────

loom::thread_local! {
    static CURRENT: Cell<Option<&'static State>> = Cell::new(None);
}

/// Gives the calling thread a state.
pub(crate) fn set_current(state: &'static State) {
    CURRENT.with(|current| current.set(Some(state)));
}

/// Repeats `thread::current`.
pub(crate) fn current() -> Option<&'static State> {
    CURRENT.with(Cell::get)
}

/// Repeats `thread::current_or_make`, of threads that have one.
pub(crate) fn current_or_make() -> Option<&'static State> {
    current()
}

pub(crate) const BUSY: u8 = 1;
/// The flags below the generation.
const FLAGS: u32 = epoch::GENERATION - 1;

/// Repeats `Busy` and `Idle`.
pub(crate) struct Busy<'a> {
    state: &'a State,
    set: u32,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if self.set != 0 {
            self.state.unmark_busy();
        }
    }
}

impl State {
    /// Repeats `ThreadState::flags`.
    pub(crate) fn flags(&self) -> u8 {
        (self.flags.load(Ordering::Relaxed) & FLAGS) as u8
    }

    /// Repeats `HotState::mark_busy`.
    fn mark_busy(&self) -> u32 {
        let before = self.flags.load(Ordering::Relaxed);
        self.flags.fetch_or(BUSY.into(), Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        before
    }

    /// Repeats `HotState::unmark_busy`.
    fn unmark_busy(&self) {
        compiler_fence(Ordering::SeqCst);
        self.flags.fetch_and(!u32::from(BUSY), Ordering::Relaxed);
    }

    /// Repeats `HotState::unmark_busy_unless`.
    fn unmark_busy_unless(&self, before: u32) {
        compiler_fence(Ordering::SeqCst);
        self.flags.fetch_and(before | !u32::from(BUSY), Ordering::Relaxed);
    }

    /// Repeats `ThreadState::enter`.
    pub(crate) fn enter(&self, with: u8) -> Busy<'_> {
        let set = u32::from(with) & !self.mark_busy();
        Busy { state: self, set }
    }

    /// Repeats `ThreadState::note_readings`.
    pub(crate) fn note_readings(&self) {
        self.readings.note();
    }

    /// Repeats `ThreadState::has_passed`.
    pub(crate) fn has_passed(&self, round: usize) -> bool {
        if self.passed.load(Ordering::Relaxed) == round {
            return true;
        }
        let is_outside = self.flags() & BUSY == 0 && self.readings.have_passed();
        let has_passed = is_outside || self.taken.load(Ordering::Acquire) == 0;
        if has_passed {
            self.passed.store(round, Ordering::Relaxed);
        }
        has_passed
    }

    /// Repeats the parts of `event::refresh_and_record` that bring a state up to date, in a busy one.
    pub(crate) fn refresh(&self) {
        let generation = epoch::generation_slow();
        self.base.store(epoch::base(), Ordering::Relaxed);
        self.flags.store(generation | u32::from(BUSY), Ordering::Relaxed);
    }
}

/// Repeats `thread::enter_at_generation`.
pub(crate) fn enter_at_generation(state: &State) -> Option<Busy<'_>> {
    let before = state.mark_busy();
    if before != epoch::generation() {
        state.unmark_busy_unless(before);
        return None;
    }
    Some(Busy { state, set: BUSY.into() })
}

/// A layout's last stack: its id, and the count of it in the thread.
#[derive(Clone, Copy)]
pub(crate) struct Last {
    pub(crate) id: u32,
    pub(crate) count: &'static Count,
}

/// Repeats `event::count_last`.
pub(crate) fn count_last(state: &State, last: Last, size: u64) -> bool {
    last.id >= state.base.load(Ordering::Relaxed) && last.count.add(size)
}

/// Counts a block at the last stack of a layout, as `event::record_alloc` does; false where it is not up to date.
pub(crate) fn record_last(state: &State, last: Last, size: u64) -> bool {
    enter_at_generation(state).is_some_and(|_busy| count_last(state, last, size))
}

/// Counts a free as `event::try_fast_free` does: the base is read before the thread is marked.
pub(crate) fn try_fast_free_marked(state: &State, id: u32, size: usize) -> bool {
    id >= epoch::base() && {
        let _busy = state.enter(BUSY);
        state.counters.add(id, Freed, size)
    }
}

/// Counts a free as `event::count_free` does: it makes the place that it needs.
pub(crate) fn count_free(state: &State, id: u32, size: usize) {
    let _busy = state.enter(BUSY);
    if id >= epoch::base() {
        assert!(state.counters.add(id, Freed, size) || state.counters.add_slow(id, Freed, size));
    }
}

// ── Ids of stacks that died ─────────────────────────────────────────────────────────────────────

impl State {
    /// Repeats `OwnerState::forget_closed`.
    pub(crate) fn forget_closed(&self) {
        let closings = epoch::closings();
        if self.closings.load(Ordering::Relaxed) != closings {
            if !SHARED.is_open(self.cached.load(Ordering::Relaxed)) {
                self.cached.store(0, Ordering::Relaxed);
            }
            self.closings.store(closings, Ordering::Relaxed);
        }
    }
}

/// The map of stacks, which has one: its id.
pub(crate) static MAP: AtomicU32 = AtomicU32::new(0);

/// Returns the id of the stack, as `table::intern` does for one thread. `is_open` is [`Table::is_open`].
pub(crate) fn intern(is_open: fn(u32) -> bool) -> u32 {
    let known = MAP.load(Ordering::Acquire);
    if known >= epoch::base() && is_open(known) {
        return known;
    }
    let fresh = epoch::next_ids(1).unwrap();
    assert!(SHARED.make(fresh));
    MAP.store(fresh, Ordering::Release);
    fresh
}

/// Allocates a block of the stack as `event::refresh_and_record` does, and returns its id. `forget` is
/// [`State::forget_closed`].
pub(crate) fn record_stack(state: &State, size: usize, forget: fn(&State), is_open: fn(u32) -> bool) -> u32 {
    let _busy = state.enter(BUSY);
    state.refresh();
    forget(state);
    let known = state.cached.load(Ordering::Relaxed);
    let id = if known >= state.base.load(Ordering::Relaxed) { known } else { intern(is_open) };
    state.cached.store(id, Ordering::Relaxed);
    count(state, id, Allocated, size);
    id
}

/// Reads the totals of stacks as `raw_snapshot::read_epoch` does: `read` sums those whose ids are not over.
pub(crate) fn read_totals(changes: fn() -> Option<usize>, read: impl Fn() -> Counts) -> Counts {
    let base = epoch::base();
    for _ in 0..8 {
        let before = changes();
        let mut counts = read();
        let over = SHARED.chunk(epoch::unsampled_id(base) as usize / CHUNK).unwrap().life.read_over();
        counts.add(Freed, over);
        counts.add(Allocated, over);
        if before.is_some() && before == changes() {
            return counts;
        }
        loom::thread::yield_now();
    }
    panic!("no model goes on so long");
}
