//! Models of memory that is given back while threads record and read.
//!
//! A stand-in of `memory` keeps freed memory, and each use of an atomic in it fails.

use crate::base::atomics::every_order;
use crate::models::{self, SECOND};
use crate::record::count::counters::Count;
use crate::record::count::counters::Direction::{Allocated, Freed};
use crate::record::count::counters::number;
use crate::record::epoch;
use crate::record::memory;
use crate::record::stack_id::life;
use crate::record::stack_id::reclaim::{ENDER, READER, Rounds};
use crate::record::thread::{Reading, in_event};
use crate::state::*;
use loom::thread;
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::models::FIRST;

/// In chunk 1, which a clear ends.
const ID: u32 = 64;

pub(crate) struct Fresh(UnsafeCell<Rounds>);

// SAFETY: replaced where no thread uses it.
unsafe impl Sync for Fresh {}

impl Fresh {
    pub(crate) fn get(&self) -> &Rounds {
        // SAFETY: replaced in `begin_rounds` only, where there is no other thread.
        unsafe { &*self.0.get() }
    }
}

/// The rounds of one run of a model.
pub(crate) static ROUNDS_OF_A_RUN: Fresh = Fresh(UnsafeCell::new(Rounds::new()));

/// Begins without a round.
pub(crate) fn begin_rounds() {
    static INITIAL: Rounds = Rounds::new();
    // Copied, because it is larger than the stacks of loom's threads.
    // SAFETY: no other thread is there, and it has no destructor.
    unsafe { ROUNDS_OF_A_RUN.0.get().copy_from_nonoverlapping(&raw const INITIAL, 1) };
}

fn give_back() {
    ROUNDS_OF_A_RUN.get().give_back(ENDER);
}

/// Times that something was freed, in all orders.
pub(crate) static FREED: AtomicUsize = AtomicUsize::new(0);

/// Address of the first thread's count of [`ID`], as its layout has had it since before the ids ended.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Returns the last stack of the first thread's layout.
fn last() -> Last {
    let count = std::ptr::with_exposed_provenance::<Count>(COUNT.load(Ordering::Relaxed));
    // SAFETY: memory that the model frees stays, see `memory`.
    Last { id: ID, count: unsafe { &*count } }
}

/// Begins with two threads that have counters of [`ID`], one of them up to date.
pub(crate) fn begin() {
    models::begin_with_both();
    begin_rounds();
    let _touched =
        (epoch::next_ids(128), epoch::ended(), epoch::reclaims(), epoch::closings(), life::changes());
    life::set_idle(0);
    for state in [&FIRST, &SECOND] {
        assert!(state.counters.add_slow(ID, Allocated, 8));
    }
    let count: *const Count = FIRST.counters.count(ID, Allocated).unwrap();
    COUNT.store(count.expose_provenance(), Ordering::Relaxed);
    assert!(SHARED.make(ID) && SHARED.add(ID, Allocated, 8));
    let _busy = FIRST.enter(BUSY);
    FIRST.refresh();
    give_back();
}

/// Clears and gives back in the second thread.
fn clear_and_give_back() {
    set_current(&SECOND);
    epoch::clear();
    give_back();
    FREED.fetch_add(memory::frees(), Ordering::Relaxed);
}

/// Clears and gives back in a thread beside other threads; afterwards the memory is given back.
fn while_given_back(others: &[(&'static State, fn())]) {
    let clearing = thread::spawn(clear_and_give_back);
    let others: Vec<_> = others
        .iter()
        .map(|&(state, act)| {
            thread::spawn(move || {
                set_current(state);
                act();
            })
        })
        .collect();
    clearing.join().unwrap();
    for other in others {
        other.join().unwrap();
    }
    set_current(&SECOND);
    give_back();
    // The chunk of each thread and the shared one.
    assert_eq!(memory::frees(), 3, "chunks of ids that are over");
}

fn orders(model: fn()) -> String {
    FREED.store(0, Ordering::Relaxed);
    let runs = models::orders_from(begin, model);
    assert!(FREED.load(Ordering::Relaxed) > 0, "nothing is freed while other threads work");
    runs
}

/// Allocates by a layout and frees, before, while and after the ids end.
pub(crate) fn recorded() -> String {
    orders(|| {
        while_given_back(&[(&FIRST, || {
            let last = last();
            record_last(&FIRST, last, 8);
            try_fast_free_marked(&FIRST, ID, 8);
            record_last(&FIRST, last, 8);
        })]);
    })
}

/// Makes the place of a count anew, of an id that ends just then: it is found by the next round.
pub(crate) fn made_anew() -> String {
    let model = || {
        let clearing = thread::spawn(clear_and_give_back);
        let recording = thread::spawn(|| {
            set_current(&FIRST);
            count_free(&FIRST, ID, 8);
        });
        clearing.join().unwrap();
        recording.join().unwrap();
        set_current(&SECOND);
        give_back();
        // Rounds of another kind: the chunk of a stack that died.
        let id = epoch::next_ids(128).unwrap();
        assert!(SHARED.make(id));
        (0..3).for_each(|_| ROUNDS_OF_A_RUN.get().give_back(READER));
        assert!(SHARED.chunk(number(id)).is_none(), "the chunk of a stack that died stays");
        epoch::clear();
        give_back();
        assert!(FIRST.counters.chunk(1).is_none(), "a chunk of an id that is over stays");
    };
    orders(model)
}

/// Counts in a thread without a state.
pub(crate) fn recorded_without_a_state() -> String {
    let model = || {
        let clearing = thread::spawn(clear_and_give_back);
        let recording = thread::spawn(|| {
            in_event(|| {
                if ID >= epoch::base() {
                    SHARED.add(ID, Freed, 8);
                }
            });
        });
        clearing.join().unwrap();
        recording.join().unwrap();
    };
    orders(model)
}

/// Reads while it is given back.
pub(crate) fn read() -> String {
    orders(|| {
        while_given_back(&[(&FIRST, || {
            let _reading = Reading::new();
            read_at(ID);
        })]);
    })
}

/// Checks that a protocol that is wrong is noticed.
pub(crate) fn mistakes() -> String {
    let generation_before_mark = || {
        while_given_back(&[(&FIRST, || {
            let last = last();
            if FIRST.flags.load(crate::base::atomics::Ordering::Relaxed) == epoch::generation() {
                let _busy = FIRST.enter(BUSY);
                count_last(&FIRST, last, 8);
            }
        })]);
    };
    let without_a_mark = || {
        while_given_back(&[(&FIRST, || {
            if ID >= epoch::base() {
                FIRST.counters.add(ID, Freed, 8);
            }
        })]);
    };
    let read_without_section = || {
        while_given_back(&[(&FIRST, || {
            read_at(ID);
        })]);
    };
    let base_before_section = || {
        let clearing = thread::spawn(|| {
            set_current(&SECOND);
            epoch::clear();
            give_back();
        });
        let recording = thread::spawn(|| {
            if let Some(shared) = SHARED.chunk(1) {
                in_event(|| {
                    crate::record::count::counters::Chunk::read(shared, 0, Freed);
                });
            }
        });
        clearing.join().unwrap();
        recording.join().unwrap();
    };
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let noticed = [generation_before_mark as fn(), without_a_mark, read_without_section, base_before_section]
        .map(|model| {
            let run = std::panic::catch_unwind(|| every_order(models::preemptions(), begin, model));
            memory::free_all();
            run.is_err_and(|reason| reason.downcast_ref() == Some(&"used after it was freed"))
        });
    std::panic::set_hook(hook);
    assert_eq!(noticed, [true; 4], "a mistake goes unnoticed");
    "4 noticed".to_owned()
}
