//! Checks the invariants that hold in every order.

use crate::base::atomics::{AtomicPtr, AtomicU8, Ordering, every_order, jump};
use crate::live_bytes;
use crate::record::append_list::{Linked, List};
use crate::record::count::counters::Direction::{Allocated, Freed};
use crate::record::count::counters::{CHUNK, Chunk, Direction, OwnerCounters, Shared, Table};
use crate::record::count::sampling::PEAK_STEP;
use crate::record::count::unsampled::{self, Unsampled};
use crate::record::{epoch, memory, tag};
use loom::sync::atomic::AtomicBool;
use loom::thread;
use std::sync::Arc;

/// The modelled part of a `ThreadState`. All zero bytes are a new state.
#[repr(C, align(128))]
struct State {
    taken: AtomicU8,
    unsampled: Unsampled,
    counters: Table<OwnerCounters>,
    next: AtomicPtr<State>,
}

// SAFETY: atomics.
unsafe impl Sync for State {}

static ALL: List<State> = List::new();

impl Linked for State {
    fn next(&self) -> &AtomicPtr<State> {
        &self.next
    }
}

static SHARED: Table<Shared> = Table::with_first_ids();

/// As `thread::make`.
fn make() -> &'static State {
    // SAFETY: zeroes are a state, and it is not freed before the run ends.
    let state = unsafe { &*memory::zeroed_array::<State>(1) };
    state.taken.store(1, Ordering::Relaxed);
    state.unsampled.enlist();
    ALL.push(state);
    state
}

/// As `thread::all`.
fn all() -> impl Iterator<Item = &'static State> {
    ALL.iter()
}

/// As `thread::adopt`.
fn adopt() -> Option<&'static State> {
    all().find(|state| {
        state.taken.load(Ordering::Relaxed) == 0
            && state.taken.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
    })
}

/// As `thread::release`.
fn release(state: &State) {
    state.taken.store(0, Ordering::Release);
}

// ── Events ──────────────────────────────────────────────────────────────────────────────────────

/// Books a block in the counters of a state, as `event::allocate` and `event::count_alloc_slow` do.
fn count(state: &State, id: u32, direction: Direction, size: usize) {
    assert!(state.counters.add(id, direction, size) || state.counters.add_slow(id, direction, size));
}

/// A block that is not sampled. Only if the state is fresh or its stretch used up does it come to `record`.
fn record_alloc(state: &State, size: usize) -> u32 {
    try_fast(state, size).unwrap_or_else(|| refresh_and_record(state, size))
}

/// As `event::pass`.
fn try_fast(state: &State, size: usize) -> Option<u32> {
    state.unsampled.try_spend(size)
}

/// As `event::record`, of the same.
fn refresh_and_record(state: &State, size: usize) -> u32 {
    let _generation = epoch::generation_slow();
    state.unsampled.seal();
    let base = live_base();
    record_sampled(state, size, base)
}

/// As `ThreadState::enter_epoch`, as far as blocks are concerned that were not sampled.
fn live_base() -> u32 {
    epoch::base()
}

/// As `event::record_sampled`, of the same.
fn record_sampled(state: &State, size: usize, base: u32) -> u32 {
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
    /// As `ThreadState::publish_in`, as far as blocks are concerned that were not sampled.
    fn publish_in(&self, base: u32) -> i64 {
        let unpublished = self.unsampled.take_unpublished();
        if self.unsampled.id() == u64::from(epoch::unsampled_id(base)) { unpublished } else { 0 }
    }
}

/// As `event::unsampled`.
fn unsampled(state: &State, tag: u64) -> Option<&Unsampled> {
    let unsampled = &state.unsampled;
    (unsampled.id() == tag).then_some(unsampled)
}

/// As `event::free`.
fn record_free(state: &State, id: u32, size: usize) {
    match unsampled(state, id.into()) {
        Some(unsampled) if unsampled.free(size) => _ = state.publish_in(live_base()),
        None if !try_fast_free(state, id, size) => record_free_other(state, id, size),
        _ => {}
    }
}

/// As `event::try_fast_free`.
fn try_fast_free(state: &State, id: u32, size: usize) -> bool {
    id >= epoch::base() && state.counters.add(id, Freed, size)
}

/// As `event::record_free_other`, of what is not traced, and `event::record_free_slow`.
fn record_free_other(state: &State, id: u32, size: usize) {
    if id >= tag::FIRST && id < epoch::base() {
        return;
    }
    count(state, id, Freed, size);
}

// ── Looks ───────────────────────────────────────────────────────────────────────────────────────

/// Bytes and blocks.
type Sum = (u64, u64);

#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
struct Counts {
    allocated: Sum,
    freed: Sum,
}

impl Counts {
    fn add(&mut self, direction: Direction, (bytes, blocks): Sum) {
        let sum = if direction == Allocated { &mut self.allocated } else { &mut self.freed };
        *sum = (sum.0 + bytes, sum.1 + blocks);
    }

    fn is_never_negative(&self) -> bool {
        self.allocated.0 >= self.freed.0 && self.allocated.1 >= self.freed.1
    }

    /// Live bytes.
    fn live(&self) -> u64 {
        assert!(self.is_never_negative(), "{self:?}");
        self.allocated.0 - self.freed.0
    }
}

/// As `raw::read_chunk`, of one id.
fn read_chunk(id: u32) -> Counts {
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

/// As `raw::read_unsampled`.
fn read_unsampled(id: u32) -> Counts {
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

/// As `raw::read_epoch`, of blocks that were not sampled.
fn read_epoch() -> (u32, Counts) {
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

fn never_negative(counts: Counts) {
    assert!(counts.is_never_negative(), "{counts:?}");
}

// ── Models ──────────────────────────────────────────────────────────────────────────────────────

/// States that were there before the threads of the model.
static FIRST: State = State::new();
static SECOND: State = State::new();

impl State {
    const fn new() -> State {
        // SAFETY: see the type.
        unsafe { std::mem::zeroed() }
    }
}

/// Puts a state into the list, and touches what is not zero.
fn enlist(state: &'static State) {
    state.taken.store(1, Ordering::Relaxed);
    state.unsampled.enlist();
    ALL.push(state);
}

/// With the first of them in the list.
pub(crate) fn begin() {
    SHARED.chunk(0);
    epoch::base();
    epoch::generation();
    epoch::set_sample_interval(1 << 30);
    enlist(&FIRST);
    epoch::start();
}

fn begin_with_both() {
    begin();
    enlist(&SECOND);
}

/// And chunks of counters for [`ID`] in both of them: it is not making them that shows who reads what was before.
fn begin_with_places() {
    begin_with_both();
    for state in [&FIRST, &SECOND] {
        count(state, ID + 1, Freed, 0);
    }
}

type Model = fn() -> String;

/// Switches between threads in the middle of what they do: more take longer, some minutes with 4.
fn preemptions() -> usize {
    std::env::var("MODEL_PREEMPTIONS").map_or(2, |text| text.parse().expect("MODEL_PREEMPTIONS is a number"))
}

pub(crate) const ALL_OF_THEM: [(&str, Model); 24] = [
    ("live is never negative while a block changes hands", || orders(handed_over)),
    ("nor when whoever frees it has a place for it", || orders_from(begin_with_places, handed_over)),
    ("nor when whoever frees it has no state", || orders(handed_to_nobody)),
    ("nor while threads begin", || orders(threads_begin)),
    ("an adopted state loses no count", || orders(adopted)),
    ("a clear takes a block whole or not at all", || orders(cleared)),
    ("bases only rise", || orders(bases)),
    ("what is published is of the epoch it is added to", || orders(live_bytes::published_while_cleared)),
    ("nor are bytes that a thread has not published", || {
        orders_from(live_bytes::begin, live_bytes::unpublished_while_cleared)
    }),
    ("a free between a new base and its revocation", live_bytes::free_before_revocation),
    ("bytes carry at 2^31", || carries((HALF - 40, 5), &SMALL)),
    ("bytes carry at 2^32", || carries((2 * HALF - 40, 5), &SMALL)),
    ("blocks carry at 2^31", || carries((100, HALF - 1), &SMALL)),
    ("blocks carry at 2^32", || carries((100, 2 * HALF - 1), &SMALL)),
    ("both carry at each block", || carries((HALF - 1, HALF - 1), &LARGE)),
    ("bytes carry twice before one that fits", || carries((HALF - 1, 1), &TWICE)),
    ("live is never negative while a block changes hands that was not sampled", unsampled_handed_over),
    ("nor while the epoch ends", || orders_from(begin_with_a_block, unsampled_cleared_while_read)),
    ("a clear takes a block whole that was not sampled", || orders_from(begin_closed, unsampled_cleared)),
    ("what a thread allocates after a clear is in its epoch", || orders_from(begin_closed, cleared_before)),
    ("nor does it pass after the plan has changed", || orders_from(begin_closed, planned_before)),
    ("the same in threads that begin", || orders_from(begin_closed, cleared_before_it_began)),
    ("readers that are wrong are noticed", mistakes),
    ("the models are those of the sources", as_in_the_sources),
];

fn orders(model: fn()) -> String {
    orders_from(begin_with_both, model)
}

pub(crate) fn orders_from(
    begin: impl Fn() + Send + Sync + 'static,
    model: impl Fn() + Send + Sync + 'static,
) -> String {
    let runs = every_order(preemptions(), begin, model);
    assert!(runs > 10, "{runs}");
    format!("{runs} orders")
}

/// The block is allocated by one, and freed by another that makes counters for it, if it has none.
fn handed_over() {
    hand_over(|| count(&SECOND, ID, Freed, 48));
}

fn handed_to_nobody() {
    // As `event::record_free_slow`.
    hand_over(|| {
        assert!(SHARED.make(ID));
        assert!(SHARED.add(ID, Freed, 48));
    });
}

/// In a chunk that is there from the beginning: of those that are made, models make enough.
const ID: u32 = 5;

fn hand_over(free: fn()) {
    let give = || count(&FIRST, ID, Allocated, 48);
    hand_over_while(give, || (), free, || never_negative(read_chunk(ID)));
    assert_eq!(read_chunk(ID), Counts { allocated: (48, 1), freed: (48, 1) });
}

/// A thread that does something, and what it sets when that is done: as a block does that is handed over, or whoever
/// else is told so.
fn spawn_telling(work: fn()) -> (thread::JoinHandle<()>, Arc<AtomicBool>) {
    let done = Arc::new(AtomicBool::new(false));
    let tells = done.clone();
    let working = thread::spawn(move || {
        work();
        tells.store(true, Ordering::Release);
    });
    (working, done)
}

/// One gives a block, another does something of its own and then frees it, a third one looks.
fn hand_over_while(give: fn(), before: fn(), free: fn(), look: fn()) {
    let (giver, given) = spawn_telling(give);
    let taker = thread::spawn(move || {
        before();
        while !given.load(Ordering::Acquire) {
            thread::yield_now();
        }
        free();
    });
    let reader = thread::spawn(look);
    reader.join().unwrap();
    giver.join().unwrap();
    taker.join().unwrap();
}

/// The thread that allocates and the one that frees are new: their states come into the list while it is read.
fn threads_begin() {
    let look = || never_negative(read_chunk(ID));
    hand_over_while(|| count(make(), ID, Allocated, 48), || (), || count(make(), ID, Freed, 48), look);
    assert_eq!(read_chunk(ID), Counts { allocated: (48, 1), freed: (48, 1) });
}

/// One state, two threads that want it: one gets it, and adds to what the thread before it has left, by load and store.
fn adopted() {
    let before = thread::spawn(|| {
        count(&FIRST, ID, Allocated, 10);
        assert_eq!(record_alloc(&FIRST, 10), UNSAMPLED);
        release(&FIRST);
    });
    let begin = || {
        thread::spawn(|| {
            let state = adopt().unwrap_or_else(make);
            count(state, ID, Allocated, 1);
            assert_eq!(record_alloc(state, 1), UNSAMPLED);
            release(state);
        })
    };
    let (one, other) = (begin(), begin());
    before.join().unwrap();
    one.join().unwrap();
    other.join().unwrap();
    assert_eq!(read_chunk(ID).allocated, (12, 3));
    assert_eq!(read_unsampled(UNSAMPLED).allocated, (12, 3));
}

/// A thread books a block while another clears: afterwards the epoch holds it whole or not at all, and once it is freed,
/// nothing.
fn cleared() {
    let clearing = thread::spawn(epoch::clear);
    let booking = thread::spawn(|| {
        // As `stacks::intern` and `event::allocate`.
        let id = epoch::next_ids(1).unwrap();
        count(&FIRST, id, Allocated, 48);
        id
    });
    let reader = thread::spawn(|| {
        for id in epoch::base()..epoch::end_id() {
            never_negative(read_chunk(id));
        }
    });
    reader.join().unwrap();
    clearing.join().unwrap();
    let id = booking.join().unwrap();
    let live = || (epoch::base()..epoch::end_id()).map(|id| read_chunk(id).live()).sum::<u64>();
    let is_stale = id < epoch::base();
    assert_eq!(live(), if is_stale { 0 } else { 48 });
    record_free(&FIRST, id, 48);
    assert_eq!(live(), 0);
}

/// One that clears and one that stops and starts: bases only rise, and no two epochs share an id.
fn bases() {
    let (first, generation) = (epoch::base(), epoch::generation());
    let one = thread::spawn(epoch::clear);
    let other = thread::spawn(|| {
        epoch::stop();
        epoch::start();
    });
    let (before, after) = (epoch::base(), epoch::base());
    assert!(before >= first && (after >= before || before == u32::MAX));
    one.join().unwrap();
    other.join().unwrap();
    assert!(epoch::base() > first && epoch::base() < epoch::end_id());
    assert!(epoch::generation() != generation);
    assert!(epoch::next_ids(1).unwrap() > epoch::unsampled_id(epoch::base()));
}

// ── Half words with a carry ───────────────────────────────────────────────────────────────────────

/// Changes of bit 31.
const HALF: u64 = 1 << 31;

/// Brings a count from nothing to so many bytes and blocks, below 2^32: the bytes and whatever changes bit 31 by blocks
/// of `most` bytes, the other blocks by a jump.
fn reach((bytes, blocks): Sum, most: u64, count: impl Fn(usize)) {
    let (mut left, mut booked) = (bytes, 0);
    let jump_from = |booked: u64, to: u64| {
        assert!(booked <= to && (booked ^ to) & HALF == 0);
        if booked < to {
            jump(booked << 32 | bytes, to << 32 | bytes);
        }
    };
    while left > 0 {
        let size = left.min(most);
        count(size as usize);
        (left, booked) = (left - size, booked + 1);
    }
    if blocks >= HALF {
        jump_from(booked, HALF - 1);
        count(0);
        booked = HALF;
    }
    jump_from(booked, blocks);
}

type Events = [(Direction, u64); 3];
const SMALL: Events = [(Allocated, 48), (Freed, 48), (Allocated, 16)];
const LARGE: Events = [(Allocated, HALF - 1), (Freed, HALF - 1), (Allocated, HALF - 1)];
const TWICE: Events = [(Allocated, HALF - 1), (Allocated, HALF - 1), (Allocated, 1)];

/// Returns a count before these events and after each of its own.
fn steps(start: Sum, events: &Events, direction: Direction) -> Vec<Sum> {
    let sizes = events.iter().filter(|event| event.0 == direction).map(|event| event.1);
    let add = |sum: &mut Sum, size| {
        *sum = (sum.0 + size, sum.1 + 1);
        Some(*sum)
    };
    std::iter::once(start).chain(sizes.scan(start, add)).collect()
}

/// Reads what was freed and what was allocated, twice: each a value that the count has had, none less than one before,
/// and never more freed than allocated.
fn look_twice(start: Sum, events: &Events, read: impl Fn(Direction) -> Sum) {
    let mut last = Counts::default();
    for _ in 0..2 {
        let mut counts = Counts::default();
        for direction in [Freed, Allocated] {
            let (sum, steps) = (read(direction), steps(start, events, direction));
            assert!(steps.contains(&sum), "{sum:?} of {steps:?}");
            counts.add(direction, sum);
        }
        assert!(last.freed <= counts.freed && last.allocated <= counts.allocated, "{last:?} {counts:?}");
        never_negative(counts);
        last = counts;
    }
}

/// Reads the counts when all threads have ended.
fn look_at_last(start: Sum, events: &Events, read: impl Fn(Direction) -> Sum) {
    for direction in [Freed, Allocated] {
        assert_eq!(Some(&read(direction)), steps(start, events, direction).last());
    }
}

/// An owner allocates and frees while another thread reads.
fn carries(start: Sum, events: &'static Events) -> String {
    let prepare = move || {
        begin();
        for direction in [Allocated, Freed] {
            reach(start, HALF - 1, |size| count(&FIRST, ID, direction, size));
        }
    };
    orders_from(prepare, move || {
        let owner = thread::spawn(move || {
            for (direction, size) in events {
                count(&FIRST, ID, *direction, *size as usize);
            }
        });
        let chunk = FIRST.counters.chunk(0).unwrap();
        let read = |direction| chunk.read(ID as usize, direction);
        let reader = thread::spawn(move || look_twice(start, events, read));
        owner.join().unwrap();
        reader.join().unwrap();
        look_at_last(start, events, read);
    })
}

// ── What was not sampled ────────────────────────────────────────────────────────────────────────

/// Where blocks count that were not sampled, of the first epoch.
const UNSAMPLED: u32 = tag::FIRST + 1;

/// By a thread that counts such blocks itself, and by one that does not.
fn unsampled_handed_over() -> String {
    fn give() {
        assert_eq!(record_alloc(&FIRST, 48), UNSAMPLED);
    }
    fn free_by_second() {
        record_free(&SECOND, UNSAMPLED, 48);
    }
    fn look() {
        never_negative(read_unsampled(UNSAMPLED));
    }
    let of_its_own = || {
        hand_over_while(give, || SECOND.unsampled.begin(UNSAMPLED), free_by_second, look);
        assert_eq!(SECOND.unsampled.read_freed(), (48, 1));
        assert_eq!(read_unsampled(UNSAMPLED), Counts { allocated: (64, 2), freed: (48, 1) });
    };
    let of_none = || {
        hand_over_while(give, || (), free_by_second, look);
        assert_eq!(read_chunk(UNSAMPLED), Counts { allocated: (0, 0), freed: (48, 1) });
        assert_eq!(read_unsampled(UNSAMPLED), Counts { allocated: (48, 1), freed: (48, 1) });
    };
    let first_counts = || {
        begin_with_both();
        assert_eq!(record_alloc(&FIRST, 16), UNSAMPLED);
    };
    format!("{}, {}", orders_from(first_counts, of_its_own), orders_from(begin_with_places, of_none))
}

/// A thread allocates a block and frees it while another clears: who reads finds what was booked in the epoch that it
/// has read.
fn unsampled_cleared_while_read() {
    clear_while(read_epoch);
}

/// In an epoch where a block was allocated and freed.
fn begin_with_a_block() {
    begin();
    let id = record_alloc(&FIRST, 48);
    record_free(&FIRST, id, 48);
}

/// And where the next block has to ask, so that its thread opens a stretch while the others do what they do.
fn begin_closed() {
    begin_with_a_block();
    FIRST.unsampled.revoke();
}

fn clear_while(read: fn() -> (u32, Counts)) {
    let first = epoch::base();
    let clearing = thread::spawn(epoch::clear);
    let booking = thread::spawn(|| {
        let id = record_alloc(&FIRST, 48);
        record_free(&FIRST, id, 48);
    });
    let reader = thread::spawn(move || {
        let (base, counts) = read();
        never_negative(counts);
        let possible: &[Sum] = if base == first { &[(48, 1), (96, 2)] } else { &[(0, 0), (48, 1)] };
        // The two halves of a sum are read one after the other.
        for (bytes, blocks) in [counts.allocated, counts.freed] {
            assert!(possible.iter().any(|sum| sum.0 == bytes), "{counts:?}");
            assert!(possible.iter().any(|sum| sum.1 == blocks), "{counts:?}");
        }
    });
    reader.join().unwrap();
    clearing.join().unwrap();
    booking.join().unwrap();
    assert!(read_epoch().0 > first);
    assert_eq!(read_epoch().1.live(), 0);
}

/// A thread allocates, frees and allocates while another clears: afterwards the epoch holds the block whole or not at
/// all, and what comes later is in it.
fn unsampled_cleared() {
    let clearing = thread::spawn(epoch::clear);
    let booking = thread::spawn(|| {
        let id = record_alloc(&FIRST, 48);
        record_free(&FIRST, id, 48);
        record_alloc(&FIRST, 16)
    });
    clearing.join().unwrap();
    let id = booking.join().unwrap();
    let (base, counts) = read_epoch();
    assert_eq!(counts.live(), if id < base { 0 } else { 16 });
    record_free(&FIRST, id, 16);
    assert_eq!(read_epoch().1.live(), 0);
    assert_eq!(record_alloc(&FIRST, 8), epoch::unsampled_id(base));
    assert_eq!(read_epoch().1.live(), 8);
}

/// The part of a thread before and during another's change, and after it knows of the change.
fn after(change: fn(), state: fn() -> &'static State, look: fn(&State, is_after: bool)) {
    let (changing, done) = spawn_telling(change);
    let looking = thread::spawn(move || {
        let state = state();
        for _ in 0..2 {
            look(state, done.load(Ordering::Acquire));
        }
        state
    });
    changing.join().unwrap();
    look(looking.join().unwrap(), true);
}

/// In whichever order a thread looks at the base, opens a stretch and is told to close it.
fn cleared_before() {
    after(epoch::clear, || &FIRST, allocate_after_clear);
}

fn cleared_before_it_began() {
    after(epoch::clear, make, allocate_after_clear);
}

fn allocate_after_clear(state: &State, is_cleared: bool) {
    let id = record_alloc(state, 48);
    assert!(!is_cleared || id == epoch::unsampled_id(epoch::base()));
}

fn planned_before() {
    let exact = || epoch::set_sample_interval(0);
    after(
        exact,
        || &FIRST,
        |state, is_planned| {
            // As where every block is recorded.
            if is_planned {
                assert_eq!(try_fast(state, 48), None);
            } else if try_fast(state, 48).is_none() {
                state.unsampled.seal();
                if epoch::sampling() != crate::record::count::sampling::SamplingConfig::EXACT {
                    record_sampled(state, 48, epoch::base());
                }
            }
        },
    );
}

// ── The models themselves ───────────────────────────────────────────────────────────────────────

/// That a mistake is noticed at all.
fn mistakes() -> String {
    let allocated_first = || {
        let look = || {
            let allocated = read_chunk(ID).allocated;
            never_negative(Counts { allocated, freed: read_chunk(ID).freed });
        };
        hand_over_while(|| count(&FIRST, ID, Allocated, 48), || (), || count(&SECOND, ID, Freed, 48), look);
    };
    let unsampled_allocated_first = || {
        let look = || {
            let allocated = read_unsampled(UNSAMPLED).allocated;
            never_negative(Counts { allocated, freed: read_unsampled(UNSAMPLED).freed });
        };
        hand_over_while(|| _ = record_alloc(&FIRST, 48), || (), || record_free(&SECOND, UNSAMPLED, 48), look);
    };
    let base_not_looked_at_again = || {
        clear_while(|| {
            let base = epoch::base();
            (base, read_unsampled(epoch::unsampled_id(base)))
        });
    };
    let state_that_two_have = || {
        let count = || thread::spawn(|| _ = FIRST.unsampled.allocate(1));
        for thread in [count(), count()] {
            thread.join().unwrap();
        }
        assert_eq!(FIRST.unsampled.read_allocated(), (2, 2));
    };
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let noticed = [
        (begin_with_both as fn(), allocated_first as fn()),
        (begin_with_both, unsampled_allocated_first),
        (begin_with_a_block, base_not_looked_at_again),
        (begin, state_that_two_have),
    ]
    .map(|(begin, model)| std::panic::catch_unwind(|| every_order(preemptions(), begin, model)).is_err());
    std::panic::set_hook(hook);
    assert_eq!(noticed, [true; 4], "a mistake goes unnoticed");
    "4 noticed".to_owned()
}

fn constants_of_stand_ins() {
    let tag = include_str!("../../../src/record/tag/mod.rs");
    let stand_in = include_str!("record/tag.rs");
    for constant in stand_in.lines().filter(|line| line.starts_with("pub(crate) const")) {
        assert!(tag.contains(constant), "{constant}");
    }
}

/// Checks that the repeated code has the same atomic operations with the same orderings as its original.
fn as_in_the_sources() -> String {
    // Without comments.
    let body = |text: &str, function: &str| -> String {
        let begin = text.find(&format!("fn {function}(")).unwrap_or_else(|| panic!("no fn {function}"));
        let begin = text[..begin].rfind('\n').unwrap() + 1;
        let indent = text[begin..].chars().take_while(|c| *c == ' ').count();
        let end = text[begin..].find(&format!("\n{}}}\n", " ".repeat(indent))).unwrap();
        text[begin..][..end].lines().map(|line| line.split("//").next().unwrap()).collect()
    };
    // Whatever begins with one of these, to the end of the name.
    let names = |text: &str, function: &str, beginnings: &[&str]| -> Vec<String> {
        let body = body(text, function);
        let is_name = |c: &char| c.is_alphanumeric() || *c == '_';
        let at = body.char_indices().map(|(at, _)| &body[at..]);
        at.filter_map(|rest| {
            let beginning = beginnings.iter().find(|beginning| rest.starts_with(**beginning))?;
            Some(beginning.chars().chain(rest[beginning.len()..].chars().take_while(is_name)).collect())
        })
        .collect()
    };
    let operations = |text: &str, function: &str| -> Vec<String> {
        let body = body(text, function).replace("compare_exchange_weak", "compare_exchange");
        let calls = ["load(", "store(", "compare_exchange("];
        let mut found = Vec::new();
        for (at, _) in body.char_indices() {
            if let Some(call) = calls.iter().find(|call| body[at..].starts_with(**call)) {
                let name: String = body[..at]
                    .trim_end_matches('.')
                    .chars()
                    .rev()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect::<Vec<_>>()
                    .into_iter()
                    .rev()
                    .collect();
                let arguments = &body[at..at + body[at..].find(')').unwrap()];
                let mut orders: Vec<&str> = arguments
                    .split("Ordering::")
                    .skip(1)
                    .map(|order| order.split(|c: char| !c.is_alphabetic()).next().unwrap())
                    .collect();
                if orders.is_empty() {
                    orders = body[at..]
                        .split("Ordering::")
                        .skip(1)
                        .take(2)
                        .map(|order| order.split(|c: char| !c.is_alphabetic()).next().unwrap())
                        .collect();
                }
                found.push(format!("{name}.{call}{})", orders.join(", ")));
            }
        }
        found
    };
    let [here, registry, state, raw, event, alloc, event_free] = [
        include_str!("models.rs"),
        include_str!("../../../src/record/thread/registry.rs"),
        include_str!("../../../src/record/thread/state.rs"),
        include_str!("../../../src/record/raw_snapshot.rs"),
        include_str!("../../../src/record/event/mod.rs"),
        include_str!("../../../src/record/event/alloc.rs"),
        include_str!("../../../src/record/event/free.rs"),
    ];
    for function in ["make", "adopt", "release"] {
        let theirs: Vec<_> = operations(registry, function)
            .into_iter()
            // The hint.
            .filter(|operation| !operation.starts_with("RELEASED"))
            .collect();
        assert_eq!(operations(here, function), theirs, "{function}");
    }
    let unsampled = ["unsampled.", "epoch::base", "epoch::generation", "epoch::unsampled"];
    for (source, function, beginnings) in [
        (registry, "make", &["enlist", "ALL"][..]),
        (registry, "all", &["ALL"]),
        (state, "publish_in", &unsampled),
        (alloc, "try_fast", &unsampled),
        (alloc, "refresh_and_record", &unsampled),
        (alloc, "record_sampled", &unsampled),
        (event, "unsampled", &unsampled),
        (event_free, "record_free", &unsampled),
        (event_free, "try_fast_free", &unsampled),
        (event_free, "record_free_other", &unsampled),
        (raw, "read_chunk", &["Direction::", "all", "SHARED"]),
        (raw, "read_unsampled", &["unsampled::all", "unsampled.id", "Unsampled::", "read_chunk("]),
        (raw, "read_epoch", &["epoch::base"]),
    ] {
        let theirs = names(source, function, beginnings);
        assert!(!theirs.is_empty(), "{function}");
        assert_eq!(names(here, function, beginnings), theirs, "{function}");
    }
    for function in live_bytes::AS_IN_THE_SOURCES {
        let [here, theirs] = [live_bytes::SOURCE, state].map(|text| names(text, function, live_bytes::WORDS));
        assert_eq!(here, theirs, "{function}");
    }
    constants_of_stand_ins();
    "the same operations with the same orderings".to_owned()
}
