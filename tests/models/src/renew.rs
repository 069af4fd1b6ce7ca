//! Models of ids that are renewed while threads record and read: `renew.rs` and the rounds are the crate's own.

use crate::base::atomics::every_order;
use crate::life::{ID, NEXT, begin_with_blocks, last};
use crate::models::{self, FIRST, Model, SECOND};
use crate::reclaim::{FREED, ROUNDS_OF_A_RUN};
use crate::record::count::counters::Direction::{Allocated, Freed};
use crate::record::count::counters::number;
use crate::record::stack_id::life;
use crate::record::stack_id::reclaim::READER;
use crate::record::stack_id::renew::renew;
use crate::record::thread::Reading;
use crate::record::{epoch, memory};
use crate::state::*;
use loom::thread;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) const ALL_OF_THEM: [(&str, Model); 6] = [
    ("no block comes to an id after its renewal", renewed),
    ("blocks of a renewed id are within their bounds", within_bounds),
    ("a renewed id is given back once it is drained", given_back),
    ("not before its stack has a new one", not_met),
    ("an id that opens again loses no block", reopened),
    ("renewals that are wrong are noticed", mistakes),
];

/// Set once a renewal has returned.
static RENEWED: crate::base::atomics::AtomicU32 = crate::base::atomics::AtomicU32::new(0);
/// Times that a thread began an event after that.
static AFTERWARDS: AtomicUsize = AtomicUsize::new(0);

/// Begins with one live block, of the first thread, and tables that are not nearly full.
fn begin() {
    memory::set_short(false);
    life::set_idle(u64::MAX);
    begin_with_blocks(1, 0);
    RENEWED.store(0, crate::base::atomics::Ordering::Relaxed);
}

/// Begins with none: that one was freed.
fn begin_drained() {
    begin();
    assert!(SECOND.counters.add_slow(ID, Freed, 8));
}

/// Begins as the ids of a drained stack have just been renewed, and then the tables are nearly full.
fn begin_renewed_and_short() {
    begin_drained();
    assert_eq!(renew(&[ID]), 1);
    memory::set_short(true);
    life::set_idle(0);
    assert_eq!(memory::frees(), 0);
}

fn renew_it() {
    assert_eq!(renew(&[ID]), 1);
    RENEWED.store(1, crate::base::atomics::Ordering::Release);
}

fn give_back() {
    ROUNDS_OF_A_RUN.get().give_back(READER);
    FREED.fetch_add(memory::frees(), Ordering::Relaxed);
}

/// Lets the second thread do one thing while the first does another.
fn together(second: fn(), first: fn()) {
    let other = thread::spawn(move || {
        set_current(&SECOND);
        second();
    });
    let acting = thread::spawn(move || {
        set_current(&FIRST);
        first();
    });
    other.join().unwrap();
    acting.join().unwrap();
    set_current(&SECOND);
}

/// Allocates a block of the stack in the first thread, in one of the ways there are.
fn allocate(forget: fn(&State), is_open: fn(u32) -> bool) -> u32 {
    let is_cached = FIRST.cached.load(crate::base::atomics::Ordering::Relaxed) == ID;
    if is_cached && record_last(&FIRST, last(), 8) { ID } else { record_stack(&FIRST, 8, forget, is_open) }
}

fn is_open(id: u32) -> bool {
    SHARED.is_open(id)
}

fn allocate_after(forget: fn(&State), is_open: fn(u32) -> bool) {
    let is_after = RENEWED.load(crate::base::atomics::Ordering::Acquire) == 1;
    let id = allocate(forget, is_open);
    if is_after {
        AFTERWARDS.fetch_add(1, Ordering::Relaxed);
        assert_ne!(id, ID, "a block of a renewed id");
    }
}

fn stacks() -> Counts {
    let (one, other) = (read_at(ID), read_at(NEXT));
    let both = |one: Sum, other: Sum| (one.0 + other.0, one.1 + other.1);
    Counts { allocated: both(one.allocated, other.allocated), freed: both(one.freed, other.freed) }
}

fn totals() -> Counts {
    read_totals(life::changes, stacks)
}

/// Allocates twice while the id is renewed: an event that begins afterwards finds another id.
fn renewed() -> String {
    AFTERWARDS.store(0, Ordering::Relaxed);
    let runs = models::orders_from(begin, || {
        together(renew_it, || {
            allocate_after(State::forget_closed, is_open);
            allocate_after(State::forget_closed, is_open);
        });
        assert_eq!(totals(), Counts { allocated: (24, 3), freed: (0, 0) });
    });
    assert!(AFTERWARDS.load(Ordering::Relaxed) > 0, "no event begins after the renewal");
    runs
}

/// Frees the old block and allocates another one, while the id is renewed and then looked at: of what was live at the look, as many
/// blocks are left at the end as the bounds say.
fn within_bounds() -> String {
    models::orders_from(begin, || {
        let reading = thread::spawn(|| {
            set_current(&SECOND);
            assert_eq!(renew(&[ID]), 1);
            let _reading = Reading::new();
            (read_at(ID), read_at(NEXT))
        });
        let acting = thread::spawn(|| {
            set_current(&FIRST);
            let id = allocate(State::forget_closed, is_open);
            count_free(&FIRST, ID, 8);
            id
        });
        let (mark, id) = (reading.join().unwrap(), acting.join().unwrap());
        set_current(&SECOND);
        never_negative(mark.0);
        never_negative(mark.1);
        for (of, mark) in [(ID, mark.0), (NEXT, mark.1)] {
            let now = read_at(of);
            // The block that is left may be older than the look only where that has counted it.
            let most = u64::from(of == id);
            let (lower, upper) = (mark.allocated.1.saturating_sub(now.freed.1), mark_or_now(mark, now));
            assert!(lower <= most && lower <= upper, "{of}: {lower} to {upper}, {mark:?}, {now:?}");
            if lower == 1 {
                assert!(mark.allocated.1 > u64::from(of == ID), "{of}: {mark:?}");
            }
        }
        assert_eq!(totals(), Counts { allocated: (16, 2), freed: (8, 1) });
    })
}

/// Returns the least number of blocks that were live at two looks.
fn mark_or_now(mark: Counts, now: Counts) -> u64 {
    (mark.allocated.1 - mark.freed.1).min(now.allocated.1 - now.freed.1)
}

/// Meets the stack at a new id while the old one, which is drained, is given back without an idle hour.
fn given_back() -> String {
    FREED.store(0, Ordering::Relaxed);
    let runs = models::orders_from(begin_drained, || {
        together(
            || {
                renew_it();
                give_back();
            },
            || allocate_after(State::forget_closed, is_open),
        );
        give_back();
        give_back();
        assert_eq!(totals(), Counts { allocated: (16, 2), freed: (8, 1) });
    });
    assert!(FREED.load(Ordering::Relaxed) > 0, "nothing is given back");
    runs
}

/// Frees the last block while the id is renewed, and meets the stack no more.
fn not_met() -> String {
    models::orders_from(begin, || {
        together(
            || {
                renew_it();
                give_back();
                give_back();
            },
            || count_free(&FIRST, ID, 8),
        );
        give_back();
        give_back();
        assert_eq!(memory::frees(), 0, "the counts of a stack that may be met again");
    })
}

/// Allocates a block of the stack where there is no room for a new id. Returns where it was counted.
fn allocate_without_room(is_busy: bool) -> u32 {
    let busy = is_busy.then(|| FIRST.enter(BUSY));
    FIRST.refresh();
    FIRST.forget_closed();
    let is_open_again = is_open(ID) || SHARED.chunk(number(ID)).is_some_and(|chunk| chunk.life.reopen(0));
    let busy = busy.unwrap_or_else(|| FIRST.enter(BUSY));
    let id = if is_open_again { ID } else { epoch::base() };
    count(&FIRST, id, Allocated, 8);
    drop(busy);
    id
}

/// Opens a renewed id again while its chunk is closed.
fn reopened() -> String {
    models::orders_from(begin_renewed_and_short, || {
        together(give_back, || _ = allocate_without_room(true));
        give_back();
        give_back();
        assert_eq!(live_blocks(), 1);
    })
}

/// Returns the live blocks of the stack, and of those without one.
fn live_blocks() -> u64 {
    let (stacks, unrecorded) = (totals(), read_at(epoch::base()));
    stacks.allocated.1 - stacks.freed.1 + unrecorded.allocated.1
}

/// Checks that a protocol that is wrong is noticed.
fn mistakes() -> String {
    let nothing_is_forgotten = || together(renew_it, || allocate_after(|_| (), is_open));
    let renewed_ids_are_interned = || {
        together(renew_it, || {
            FIRST.cached.store(0, crate::base::atomics::Ordering::Relaxed);
            allocate_after(State::forget_closed, |_| true);
        });
    };
    let generation_before_the_bit = || {
        together(
            || {
                epoch::ids_closed();
                assert!(SHARED.chunk(number(ID)).unwrap().life.renew(0));
                RENEWED.store(1, crate::base::atomics::Ordering::Release);
            },
            || {
                allocate_after(State::forget_closed, is_open);
                allocate_after(State::forget_closed, is_open);
            },
        );
    };
    let opens_before_the_event = || {
        together(give_back, || _ = allocate_without_room(false));
        give_back();
        give_back();
        assert_eq!(live_blocks(), 1);
    };
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let noticed = [
        (begin as fn(), nothing_is_forgotten as fn()),
        (begin, renewed_ids_are_interned),
        (begin, generation_before_the_bit),
        (begin_renewed_and_short, opens_before_the_event),
    ]
    .map(|(begin, model)| {
        let run = std::panic::catch_unwind(|| every_order(models::preemptions(), begin, model));
        memory::free_all();
        run.is_err()
    });
    std::panic::set_hook(hook);
    assert_eq!(noticed, [true; 4], "a mistake goes unnoticed");
    "4 noticed".to_owned()
}
