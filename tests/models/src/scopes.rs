//! Models of scopes whose lives end while threads hold them, allocate in them and free.

use crate::base::atomics::{AtomicU64, Ordering, every_order};
use crate::models::{Model, orders_from, preemptions};
use crate::record::scope::slot::Slot;
use loom::thread;

static SLOT: Slot = Slot::new();
/// Blocks of the scope, as a thread's counters have them.
static ALLOCATED: AtomicU64 = AtomicU64::new(0);
static FREED: AtomicU64 = AtomicU64::new(0);

/// The life that the models begin with.
const LIFE: u64 = 1;

pub(crate) const ALL_OF_THEM: [(&str, Model); 3] = [
    ("a scope is over once it is not held and nothing of it is live", || orders_from(begin, || held(pass))),
    ("nor while it is held again", || orders_from(begin_without_a_holder, || held_again(pass))),
    ("passes that are wrong are noticed", mistakes),
];

/// Begins with one holder.
fn begin() {
    assert_eq!(SLOT.begin(), Some(LIFE));
    // As by an earlier block: the mark would make any later change of the word show.
    SLOT.note_recorded();
    ALLOCATED.store(0, Ordering::Relaxed);
    FREED.store(0, Ordering::Relaxed);
}

fn begin_without_a_holder() {
    begin();
    SLOT.release();
}

/// Reads frees, then allocations, as `read_chunk` does.
fn counts() -> (u64, u64) {
    let freed = FREED.load(Ordering::Acquire);
    (freed, ALLOCATED.load(Ordering::Acquire))
}

/// Looks for the end of the scope, as `Pass` does.
fn pass() {
    if let Some(candidate) = SLOT.candidate() {
        let (freed, allocated) = counts();
        if freed == allocated {
            SLOT.free(candidate);
        }
    }
}

/// Allocates a block in the scope, which the calling thread holds, and leaves it.
fn allocate_and_leave() {
    assert!(SLOT.is(LIFE), "a scope that is held is over");
    SLOT.note_recorded();
    ALLOCATED.fetch_add(1, Ordering::Release);
    SLOT.release();
}

fn allocate_if_present() {
    if SLOT.hold(LIFE) {
        allocate_and_leave();
    }
}

/// Checks that nothing of the scope is live if it is over.
fn is_right_at_the_end() {
    let (freed, allocated) = counts();
    if !SLOT.is(LIFE) {
        assert_eq!(freed, allocated, "a scope with a live block is over");
        assert!(!SLOT.hold(LIFE));
    }
}

/// Lets the holder leave, and another thread free its block and hold the scope anew, while a third one makes a pass.
fn held(passes: fn()) {
    let passing = thread::spawn(passes);
    let holder = thread::spawn(allocate_and_leave);
    if ALLOCATED.load(Ordering::Acquire) == 1 {
        FREED.fetch_add(1, Ordering::Release);
        allocate_if_present();
    }
    holder.join().unwrap();
    passing.join().unwrap();
    is_right_at_the_end();
}

/// Lets threads hold a scope again that has no holder, while another one makes a pass.
fn held_again(passes: fn()) {
    let passing = thread::spawn(passes);
    let holding = thread::spawn(allocate_if_present);
    allocate_if_present();
    holding.join().unwrap();
    passing.join().unwrap();
    is_right_at_the_end();
}

/// Checks that a mistake is noticed at all.
fn mistakes() -> String {
    let counts_before_the_note: fn() = || {
        held_again(|| {
            let (freed, allocated) = counts();
            if let Some(candidate) = SLOT.candidate()
                && freed == allocated
            {
                SLOT.free(candidate);
            }
        });
    };
    let two_passes_at_once: fn() = || {
        let passing = thread::spawn(pass);
        held_again(pass);
        passing.join().unwrap();
        is_right_at_the_end();
    };
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let noticed = [counts_before_the_note, two_passes_at_once].map(|model| {
        std::panic::catch_unwind(|| every_order(preemptions(), begin_without_a_holder, model)).is_err()
    });
    std::panic::set_hook(hook);
    assert_eq!(noticed, [true; 2], "a mistake goes unnoticed");
    "2 noticed".to_owned()
}
