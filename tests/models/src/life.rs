//! Models of stacks that die while threads record and read: the looks and rounds are the crate's own.

use crate::base::atomics::every_order;
use crate::models::{self, FIRST, Model, SECOND};
use crate::reclaim::{FREED, ROUNDS_OF_A_RUN, begin_rounds};
use crate::record::count::counters::Count;
use crate::record::count::counters::Direction::{Allocated, Freed};
use crate::record::stack_id::life;
use crate::record::stack_id::reclaim::READER;
use crate::record::thread::Reading;
use crate::record::{epoch, memory};
use crate::state::*;
use loom::thread;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The id of the stack, in chunk 1, whose ids are all given out.
pub(crate) const ID: u32 = 64;
/// The next id that is given out.
pub(crate) const NEXT: u32 = 256;

pub(crate) const ALL_OF_THEM: [(&str, Model); 6] = [
    ("a stack that dies loses no block, as its thread allocates", recorded),
    ("nor as another thread meets it", interned),
    ("nor as its last block is freed", freed),
    ("nor as that is resized while suspended", resized_while_suspended),
    ("nor for readers", read),
    ("deaths that are wrong are noticed", mistakes),
];

fn give_back() {
    ROUNDS_OF_A_RUN.get().give_back(READER);
}

/// Address of the first thread's count of [`ID`].
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Returns the last stack of the first thread's layout, which is forgotten with the cached one.
pub(crate) fn last() -> Last {
    let count = std::ptr::with_exposed_provenance::<Count>(COUNT.load(Ordering::Relaxed));
    // SAFETY: memory that the model frees stays, see `memory`.
    Last { id: ID, count: unsafe { &*count } }
}

/// Begins with a stack of which the first thread has allocated a block, and the second has freed it.
fn begin() {
    memory::set_short(true);
    life::set_idle(0);
    begin_with_blocks(1, 1);
}

/// Begins with a stack of which the first thread has allocated blocks, and the second has freed some.
pub(crate) fn begin_with_blocks(allocated: usize, freed: usize) {
    models::begin_with_both();
    begin_rounds();
    let _touched =
        (epoch::next_ids(128), epoch::ended(), epoch::reclaims(), epoch::closings(), life::changes());
    assert!(SHARED.make(ID) && SHARED.make(NEXT));
    // Any pointer: it is not followed.
    let stack = SHARED.chunk(1).unwrap().stack(0);
    stack.store(std::ptr::with_exposed_provenance_mut(8), crate::base::atomics::Ordering::Release);
    (0..allocated).for_each(|_| assert!(FIRST.counters.add_slow(ID, Allocated, 8)));
    (0..freed).for_each(|_| assert!(SECOND.counters.add_slow(ID, Freed, 8)));
    FIRST.cached.store(ID, crate::base::atomics::Ordering::Relaxed);
    MAP.store(ID, crate::base::atomics::Ordering::Relaxed);
    let count: *const Count = FIRST.counters.count(ID, Allocated).unwrap();
    COUNT.store(count.expose_provenance(), Ordering::Relaxed);
    {
        let _busy = FIRST.enter(BUSY);
        FIRST.refresh();
    }
    set_current(&SECOND);
    // Notes how many blocks there were.
    give_back();
    assert_eq!(memory::frees(), 0);
}

/// Begins with one more block, which is live.
fn begin_with_a_live_one() {
    begin();
    assert!(FIRST.counters.add(ID, Allocated, 8));
    give_back();
}

/// Gives back in a thread while the first one acts.
fn while_given_back(act: fn()) {
    let reclaiming = thread::spawn(|| {
        set_current(&SECOND);
        give_back();
        FREED.fetch_add(memory::frees(), Ordering::Relaxed);
    });
    let acting = thread::spawn(move || {
        set_current(&FIRST);
        act();
    });
    reclaiming.join().unwrap();
    acting.join().unwrap();
    set_current(&SECOND);
    give_back();
}

fn stacks() -> Counts {
    let (one, other) = (read_at(ID), read_at(NEXT));
    let both = |one: Sum, other: Sum| (one.0 + other.0, one.1 + other.1);
    Counts { allocated: both(one.allocated, other.allocated), freed: both(one.freed, other.freed) }
}

fn totals() -> Counts {
    read_totals(life::changes, stacks)
}

fn orders(begin: fn(), model: fn()) -> String {
    FREED.store(0, Ordering::Relaxed);
    let runs = models::orders_from(begin, model);
    assert!(FREED.load(Ordering::Relaxed) > 0, "nothing is freed while other threads work");
    runs
}

/// Allocates a block of the stack in the first thread, in one of the ways there are.
fn allocate(forget: fn(&State), is_open: fn(u32) -> bool) -> u32 {
    if FIRST.cached.load(crate::base::atomics::Ordering::Relaxed) == ID && record_last(&FIRST, last(), 8) {
        return ID;
    }
    record_stack(&FIRST, 8, forget, is_open)
}

fn is_open(id: u32) -> bool {
    SHARED.is_open(id)
}

/// Allocates, frees and allocates again, while the stack dies.
pub(crate) fn recorded() -> String {
    let model = || {
        while_given_back(|| {
            let id = allocate(State::forget_closed, is_open);
            count_free(&FIRST, id, 8);
            allocate(State::forget_closed, is_open);
        });
        assert_eq!(totals(), Counts { allocated: (24, 3), freed: (16, 2) });
    };
    orders(begin, model)
}

/// Interns the stack, which this thread does not know, while it dies.
pub(crate) fn interned() -> String {
    let model = || {
        while_given_back(|| {
            FIRST.cached.store(0, crate::base::atomics::Ordering::Relaxed);
            record_stack(&FIRST, 8, State::forget_closed, is_open);
        });
        assert_eq!(totals(), Counts { allocated: (16, 2), freed: (8, 1) });
    };
    orders(begin, model)
}

/// Frees the last block of the stack meanwhile.
pub(crate) fn freed() -> String {
    let model = || {
        while_given_back(|| count_free(&FIRST, ID, 8));
        assert_eq!(totals(), Counts { allocated: (16, 2), freed: (16, 2) });
        assert_eq!(memory::frees(), 3, "the chunks of a stack that died");
    };
    models::orders_from(begin_with_a_live_one, model)
}

/// Resizes the last block meanwhile, in a suspended thread: it keeps its id, closed or not.
pub(crate) fn resized_while_suspended() -> String {
    let model = || {
        while_given_back(|| {
            {
                let _busy = FIRST.enter(BUSY);
                count(&FIRST, ID, Allocated, 16);
            }
            count_free(&FIRST, ID, 8);
        });
        assert_eq!(totals(), Counts { allocated: (32, 3), freed: (16, 2) });
        assert_eq!(memory::frees(), 0);
    };
    models::orders_from(begin_with_a_live_one, model)
}

/// Reads while the stack dies.
pub(crate) fn read() -> String {
    let model = || {
        while_given_back(|| {
            let _reading = Reading::new();
            assert_eq!(totals(), Counts { allocated: (8, 1), freed: (8, 1) });
        });
        assert_eq!(totals(), Counts { allocated: (8, 1), freed: (8, 1) });
    };
    orders(begin, model)
}

/// Checks that a protocol that is wrong is noticed.
pub(crate) fn mistakes() -> String {
    let nothing_is_forgotten = || {
        while_given_back(|| {
            let id = allocate(|_| (), is_open);
            count_free(&FIRST, id, 8);
            allocate(|_| (), is_open);
        });
        assert_eq!(totals(), Counts { allocated: (24, 3), freed: (16, 2) });
    };
    let closed_ids_are_interned = || {
        while_given_back(|| {
            FIRST.cached.store(0, crate::base::atomics::Ordering::Relaxed);
            record_stack(&FIRST, 8, State::forget_closed, |_| true);
        });
        assert_eq!(totals(), Counts { allocated: (16, 2), freed: (8, 1) });
    };
    let generation_before_the_mark = || {
        while_given_back(|| {
            if FIRST.flags.load(crate::base::atomics::Ordering::Relaxed) == epoch::generation() {
                let _busy = FIRST.enter(BUSY);
                count_last(&FIRST, last(), 8);
            } else {
                record_stack(&FIRST, 8, State::forget_closed, is_open);
            }
        });
        assert_eq!(totals(), Counts { allocated: (16, 2), freed: (8, 1) });
    };
    let changes_are_not_looked_at = || {
        while_given_back(|| {
            let _reading = Reading::new();
            assert_eq!(read_totals(|| Some(0), stacks), Counts { allocated: (8, 1), freed: (8, 1) });
        });
    };
    let chunk_is_not_looked_at_again = || {
        while_given_back(|| {
            let _reading = Reading::new();
            let mut counts = Counts::default();
            for direction in [Freed, Allocated] {
                for chunk in all().filter_map(|state| state.counters.chunk(1)) {
                    counts.add(direction, crate::record::count::counters::Chunk::read(chunk, 0, direction));
                }
            }
            never_negative(counts);
        });
    };
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let noticed = [
        nothing_is_forgotten as fn(),
        closed_ids_are_interned,
        generation_before_the_mark,
        changes_are_not_looked_at,
        chunk_is_not_looked_at_again,
    ]
    .map(|model| {
        let run = std::panic::catch_unwind(|| every_order(models::preemptions(), begin, model));
        memory::free_all();
        run.is_err()
    });
    std::panic::set_hook(hook);
    assert_eq!(noticed, [true; 5], "a mistake goes unnoticed");
    "5 noticed".to_owned()
}
