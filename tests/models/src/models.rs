//! Checks the invariants that hold in every order.

use crate::base::atomics::{Ordering, every_order};
use crate::record::count::counters::Direction::{Allocated, Freed};
use crate::record::{epoch, tag};
use crate::state::*;
use crate::{live_bytes, reclaim, sources};
use loom::sync::atomic::AtomicBool;
use loom::thread;
use std::sync::Arc;

/// States that were there before the threads of the model.
pub(crate) static FIRST: State = State::new();
pub(crate) static SECOND: State = State::new();

/// Puts a state into the list, and touches what is not zero.
fn enlist(state: &'static State) {
    state.taken.store(1, Ordering::Relaxed);
    state.unsampled.enlist();
    ALL.push(state);
}

/// Begins with the first of them in the list.
pub(crate) fn begin() {
    SHARED.chunk(0);
    epoch::base();
    epoch::generation();
    epoch::set_sample_interval(1 << 30);
    enlist(&FIRST);
    epoch::start();
}

pub(crate) fn begin_with_both() {
    begin();
    enlist(&SECOND);
}

/// Begins with chunks of counters for [`ID`] in both of them: it is not making them that shows who reads what was before.
fn begin_with_places() {
    begin_with_both();
    for state in [&FIRST, &SECOND] {
        count(state, ID + 1, Freed, 0);
    }
}

pub(crate) type Model = fn() -> String;

/// Switches between threads in the middle of what they do: more take longer, some minutes with 4.
pub(crate) fn preemptions() -> usize {
    std::env::var("MODEL_PREEMPTIONS").map_or(2, |text| text.parse().expect("MODEL_PREEMPTIONS is a number"))
}

pub(crate) const ALL_OF_THEM: [(&str, Model); 24] = [
    ("live is never negative while a block changes hands", || orders(handed_over)),
    ("nor when the freeing thread has counters for it already", || {
        orders_from(begin_with_places, handed_over)
    }),
    ("nor when it is freed by a thread without a state", || orders(freed_without_a_state)),
    ("nor while threads begin", || orders(threads_begin)),
    ("an adopted state loses no count", || orders(adopted)),
    ("a clear takes a block whole or not at all", || orders(cleared)),
    ("bases only rise", || orders(bases)),
    ("no id ends of an epoch that is on, or comes", || orders_from(begin_stopped, ended)),
    ("what is published is of the epoch it is added to", || orders(live_bytes::published_while_cleared)),
    ("nor are bytes that a thread has not published", || {
        orders_from(live_bytes::begin, live_bytes::unpublished_while_cleared)
    }),
    ("a free between a new base and its revocation", live_bytes::free_before_revocation),
    ("live is never negative while a block changes hands that was not sampled", unsampled_handed_over),
    ("nor while the epoch ends", || orders_from(begin_with_a_block, unsampled_cleared_while_read)),
    ("a clear takes a block whole that was not sampled", || orders_from(begin_closed, unsampled_cleared)),
    ("what a thread allocates after a clear is in its epoch", || orders_from(begin_closed, cleared_before)),
    ("nor does it pass after the plan has changed", || orders_from(begin_closed, planned_before)),
    ("the same in threads that begin", || orders_from(begin_closed, cleared_before_it_began)),
    ("nothing is used after it was given back, by events", reclaim::recorded),
    ("nor by events that make a place anew", reclaim::made_anew),
    ("nor in threads without a state", reclaim::recorded_without_a_state),
    ("nor by readers", reclaim::read),
    ("rounds that are wrong are noticed", reclaim::mistakes),
    ("readers that are wrong are noticed", mistakes),
    ("the models are those of the sources", sources::as_in_the_sources),
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

/// Allocates a block in one thread, and frees it in another, which makes counters for it if it has none.
fn handed_over() {
    hand_over(|| count(&SECOND, ID, Freed, 48));
}

fn freed_without_a_state() {
    // As `event::record_free_slow`.
    hand_over(|| {
        assert!(SHARED.make(ID));
        assert!(SHARED.add(ID, Freed, 48));
    });
}

/// In a chunk that is there from the beginning: of those that are made, models make enough.
pub(crate) const ID: u32 = 5;

fn hand_over(free: fn()) {
    let give = || count(&FIRST, ID, Allocated, 48);
    hand_over_while(give, || (), free, || never_negative(read_at(ID)));
    assert_eq!(read_at(ID), Counts { allocated: (48, 1), freed: (48, 1) });
}

/// Starts a thread that works and then sets a flag with Release. Returns both.
fn spawn_telling(work: fn()) -> (thread::JoinHandle<()>, Arc<AtomicBool>) {
    let done = Arc::new(AtomicBool::new(false));
    let tells = done.clone();
    let working = thread::spawn(move || {
        work();
        tells.store(true, Ordering::Release);
    });
    (working, done)
}

/// Runs three threads: one gives a block, another does something of its own and then frees it, a third one looks.
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

/// Begins the thread that allocates and the one that frees: their states come into the list while it is read.
fn threads_begin() {
    let look = || never_negative(read_at(ID));
    hand_over_while(|| count(make(), ID, Allocated, 48), || (), || count(make(), ID, Freed, 48), look);
    assert_eq!(read_at(ID), Counts { allocated: (48, 1), freed: (48, 1) });
}

/// Offers one state to two threads: one gets it, and adds to what the thread before it has left, by load and store.
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
    assert_eq!(read_at(ID).allocated, (12, 3));
    assert_eq!(read_unsampled(UNSAMPLED).allocated, (12, 3));
}

/// Records a block in a thread while another clears: afterwards the epoch holds it whole or not at all, and once it is freed,
/// nothing.
fn cleared() {
    let clearing = thread::spawn(epoch::clear);
    let recording = thread::spawn(|| {
        // As `stacks::intern` and `event::allocate`.
        let id = epoch::next_ids(1).unwrap();
        count(&FIRST, id, Allocated, 48);
        id
    });
    let reader = thread::spawn(|| {
        for id in epoch::base()..epoch::end_id() {
            never_negative(read_at(id));
        }
    });
    reader.join().unwrap();
    clearing.join().unwrap();
    let id = recording.join().unwrap();
    let live = || (epoch::base()..epoch::end_id()).map(|id| read_at(id).live()).sum::<u64>();
    let is_stale = id < epoch::base();
    assert_eq!(live(), if is_stale { 0 } else { 48 });
    record_free(&FIRST, id, 48);
    assert_eq!(live(), 0);
}

/// Clears in one thread, stops and starts in another: bases only rise, and no two epochs share an id.
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

fn begin_stopped() {
    begin();
    epoch::stop();
    let _touched = epoch::ended();
}

/// Stops once more in one thread, and starts in another, which gives out ids.
fn ended() {
    let stopping = thread::spawn(epoch::stop);
    let starting = thread::spawn(|| {
        if epoch::start() {
            epoch::next_ids(4).unwrap();
        }
    });
    stopping.join().unwrap();
    starting.join().unwrap();
    epoch::start();
    assert!(epoch::ended() <= epoch::base(), "{} have ended, the base is {}", epoch::ended(), epoch::base());
    // A later move ends those that were left.
    epoch::clear();
    assert_eq!(epoch::ended(), epoch::base());
}

// ── What was not sampled ────────────────────────────────────────────────────────────────────────

/// Where blocks count that were not sampled, of the first epoch.
const UNSAMPLED: u32 = tag::FIRST + 1;

/// Hands blocks to a thread that counts such blocks itself, and to one that does not.
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
        assert_eq!(read_at(UNSAMPLED), Counts { allocated: (0, 0), freed: (48, 1) });
        assert_eq!(read_unsampled(UNSAMPLED), Counts { allocated: (48, 1), freed: (48, 1) });
    };
    let first_counts = || {
        begin_with_both();
        assert_eq!(record_alloc(&FIRST, 16), UNSAMPLED);
    };
    format!("{}, {}", orders_from(first_counts, of_its_own), orders_from(begin_with_places, of_none))
}

/// Allocates and frees a block in a thread while another clears: a reader finds the counts of the epoch that it
/// has read.
fn unsampled_cleared_while_read() {
    clear_while(read_epoch);
}

/// Begins in an epoch where a block was allocated and freed.
fn begin_with_a_block() {
    begin();
    let id = record_alloc(&FIRST, 48);
    record_free(&FIRST, id, 48);
}

/// Begins where the next block has to ask, so that its thread grants a budget while the others do what they do.
fn begin_closed() {
    begin_with_a_block();
    FIRST.unsampled.revoke();
}

fn clear_while(read: fn() -> (u32, Counts)) {
    let first = epoch::base();
    let clearing = thread::spawn(epoch::clear);
    let recording = thread::spawn(|| {
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
    recording.join().unwrap();
    assert!(read_epoch().0 > first);
    assert_eq!(read_epoch().1.live(), 0);
}

/// Allocates, frees and allocates in a thread while another clears: afterwards the epoch holds the block whole or not at
/// all, and what comes later is in it.
fn unsampled_cleared() {
    let clearing = thread::spawn(epoch::clear);
    let recording = thread::spawn(|| {
        let id = record_alloc(&FIRST, 48);
        record_free(&FIRST, id, 48);
        record_alloc(&FIRST, 16)
    });
    clearing.join().unwrap();
    let id = recording.join().unwrap();
    let (base, counts) = read_epoch();
    assert_eq!(counts.live(), if id < base { 0 } else { 16 });
    record_free(&FIRST, id, 16);
    assert_eq!(read_epoch().1.live(), 0);
    assert_eq!(record_alloc(&FIRST, 8), epoch::unsampled_id(base));
    assert_eq!(read_epoch().1.live(), 8);
}

/// Runs the part of a thread before and during another's change, and after it knows of the change.
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

/// Clears while a thread reads the base, grants a budget and has it revoked, in whichever order.
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

/// Checks that a mistake is noticed at all.
fn mistakes() -> String {
    let allocated_first = || {
        let look = || {
            let allocated = read_at(ID).allocated;
            never_negative(Counts { allocated, freed: read_at(ID).freed });
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
