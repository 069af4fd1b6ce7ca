//! What must hold in every order.

use crate::counters::Counters;
use crate::sync::{AtomicPtr, AtomicU8, Ordering, every_order};
use crate::{memory, tracker};
use loom::sync::atomic::AtomicBool;
use loom::thread;
use std::sync::Arc;

/// What of a `ThreadState` matters here. All zero bytes are a fresh one.
#[repr(C, align(128))]
struct State {
    taken: AtomicU8,
    counters: Counters,
    next: AtomicPtr<State>,
}

// SAFETY: atomics.
unsafe impl Sync for State {}

static ALL: AtomicPtr<State> = AtomicPtr::new(std::ptr::null_mut());
static SHARED: Counters = Counters::with_first_ids();

/// As `thread::make`.
fn make() -> &'static State {
    // SAFETY: zeroes are a state, and it is never freed.
    let state = unsafe { &*memory::zeroed_array::<State>(1) };
    state.taken.store(1, Ordering::Relaxed);
    let mut head = ALL.load(Ordering::Relaxed);
    loop {
        state.next.store(head, Ordering::Relaxed);
        let pointer = (&raw const *state).cast_mut();
        match ALL.compare_exchange(head, pointer, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return state,
            Err(now) => head = now,
        }
    }
}

/// As `thread::all`.
fn all() -> impl Iterator<Item = &'static State> {
    let mut next = ALL.load(Ordering::Acquire);
    std::iter::from_fn(move || {
        // SAFETY: null or a state, never freed.
        let state = unsafe { next.as_ref() }?;
        next = state.next.load(Ordering::Relaxed);
        Some(state)
    })
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

/// Allocated and freed bytes and blocks of one id, in the order of `raw::read_chunk`.
fn read(id: u32) -> ((u64, u64), (u64, u64)) {
    let counters = || all().map(|state| &state.counters).chain(std::iter::once(&SHARED));
    let add = |sum: (u64, u64), more: (u64, u64)| (sum.0 + more.0, sum.1 + more.1);
    let freed =
        counters().filter_map(|counters| counters.slot(id)).map(|slot| slot.read_freed()).fold((0, 0), add);
    let allocated = counters()
        .filter_map(|counters| counters.slot(id))
        .map(|slot| slot.read_allocated())
        .fold((0, 0), add);
    (allocated, freed)
}

fn never_negative(id: u32) {
    let (allocated, freed) = read(id);
    assert!(allocated.0 >= freed.0 && allocated.1 >= freed.1, "{allocated:?} {freed:?}");
}

/// A state that was there before the threads of the model.
static FIRST: State = State::new();
static SECOND: State = State::new();

impl State {
    const fn new() -> State {
        State {
            taken: AtomicU8::new(0),
            counters: Counters::new(),
            next: AtomicPtr::new(std::ptr::null_mut()),
        }
    }
}

/// Puts the two into the list, and touches what is not zero.
fn begin() {
    for state in [&FIRST, &SECOND] {
        state.taken.store(1, Ordering::Relaxed);
        state.next.store(ALL.load(Ordering::Relaxed), Ordering::Relaxed);
        ALL.store((&raw const *state).cast_mut(), Ordering::Release);
    }
    SHARED.chunk(0);
    tracker::base();
    tracker::start();
}

type Model = fn() -> String;

/// Switches between threads in the middle of what they do: more take longer, some minutes with 4.
fn preemptions() -> usize {
    std::env::var("MODEL_PREEMPTIONS").map_or(2, |text| text.parse().expect("MODEL_PREEMPTIONS is a number"))
}

pub(crate) const ALL_OF_THEM: [(&str, Model); 8] = [
    ("live is never negative while a block changes hands", || orders(handed_over)),
    ("nor when whoever frees it has no state", || orders(handed_to_nobody)),
    ("nor while threads begin", || orders(threads_begin)),
    ("an adopted state loses no count", || orders(adopted)),
    ("a clear takes a block whole or not at all", || orders(cleared)),
    ("bases only rise", || orders(bases)),
    ("a reader in the wrong order is noticed", mistake),
    ("the models are those of the sources", as_in_the_sources),
];

fn orders(model: fn()) -> String {
    let runs = every_order(preemptions(), begin, model);
    assert!(runs > 10, "{runs}");
    format!("{runs} orders")
}

/// The block is allocated by one, and freed by another that makes counters for it.
fn handed_over() {
    hand_over(|| SECOND.counters.slot_or_make(ID).unwrap().free(48));
}

fn handed_to_nobody() {
    hand_over(|| SHARED.slot(ID).unwrap().free_shared(48));
}

/// In a chunk that is there from the beginning: of those that are made, models make enough.
const ID: u32 = 5;

fn hand_over(free: fn()) {
    hand_over_while(free, || never_negative(ID));
}

fn hand_over_while(free: fn(), look: fn()) {
    let given = Arc::new(AtomicBool::new(false));
    let giver = {
        let given = given.clone();
        thread::spawn(move || {
            FIRST.counters.slot_or_make(ID).unwrap().allocate(48);
            // As a block does that is handed over.
            given.store(true, Ordering::Release);
        })
    };
    let taker = thread::spawn(move || {
        wait(&given);
        free();
    });
    let reader = thread::spawn(look);
    reader.join().unwrap();
    giver.join().unwrap();
    taker.join().unwrap();
    assert_eq!(read(ID), ((48, 1), (48, 1)));
}

/// Looks in the wrong order: what was allocated before what was freed.
fn hand_over_and_look_wrongly() {
    let look = || {
        let (allocated, _) = read(ID);
        let (_, freed) = read(ID);
        assert!(allocated.0 >= freed.0, "as expected");
    };
    hand_over_while(|| SECOND.counters.slot_or_make(ID).unwrap().free(48), look);
}

/// That a mistake is noticed at all.
fn mistake() -> String {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let noticed = std::panic::catch_unwind(|| every_order(preemptions(), begin, hand_over_and_look_wrongly));
    std::panic::set_hook(hook);
    assert!(noticed.is_err(), "reading in the wrong order goes unnoticed");
    "noticed".to_owned()
}

fn wait(given: &AtomicBool) {
    while !given.load(Ordering::Acquire) {
        thread::yield_now();
    }
}

/// The thread that allocates and the one that frees are new: their states come into the list while it is read.
fn threads_begin() {
    let given = Arc::new(AtomicBool::new(false));
    let giver = {
        let given = given.clone();
        thread::spawn(move || {
            make().counters.slot_or_make(ID).unwrap().allocate(48);
            given.store(true, Ordering::Release);
        })
    };
    let taker = thread::spawn(move || {
        wait(&given);
        make().counters.slot_or_make(ID).unwrap().free(48);
    });
    let reader = thread::spawn(|| never_negative(ID));
    reader.join().unwrap();
    giver.join().unwrap();
    taker.join().unwrap();
    assert_eq!(read(ID), ((48, 1), (48, 1)));
}

/// One state, two threads that want it: one gets it, and adds to what the thread before it has left, by load and store.
fn adopted() {
    let before = thread::spawn(|| {
        FIRST.counters.slot_or_make(ID).unwrap().allocate(10);
        release(&FIRST);
    });
    let begin = || {
        thread::spawn(|| {
            let state = adopt().unwrap_or_else(make);
            state.counters.slot_or_make(ID).unwrap().allocate(1);
            release(state);
        })
    };
    let (one, other) = (begin(), begin());
    before.join().unwrap();
    one.join().unwrap();
    other.join().unwrap();
    assert_eq!(read(ID).0, (12, 3));
}

/// A thread books a block while another clears: afterwards the epoch holds it whole or not at all, and once it is freed,
/// nothing.
fn cleared() {
    let clearing = thread::spawn(tracker::clear);
    let booking = thread::spawn(|| {
        // As `stacks::intern` and `book::allocate`.
        let id = tracker::next_id().unwrap();
        FIRST.counters.slot_or_make(id).unwrap().allocate(48);
        id
    });
    let reader = thread::spawn(|| {
        for id in tracker::base()..tracker::end_id() {
            never_negative(id);
        }
    });
    reader.join().unwrap();
    clearing.join().unwrap();
    let id = booking.join().unwrap();
    let live = || {
        let ids = tracker::base()..tracker::end_id();
        ids.map(read).fold(0, |sum, (allocated, freed)| sum + allocated.0 - freed.0)
    };
    // As `book::free`: what is from before is not known any more.
    let is_stale = id < tracker::base();
    assert_eq!(live(), if is_stale { 0 } else { 48 });
    if !is_stale {
        FIRST.counters.slot(id).unwrap().free(48);
    }
    assert_eq!(live(), 0);
}

/// One that clears and one that stops and starts: bases only rise, and no two epochs share an id.
fn bases() {
    let first = tracker::base();
    let one = thread::spawn(tracker::clear);
    let other = thread::spawn(|| {
        tracker::stop();
        tracker::start();
    });
    let (before, after) = (tracker::base(), tracker::base());
    assert!(before >= first && (after >= before || before == u32::MAX));
    one.join().unwrap();
    other.join().unwrap();
    assert!(tracker::base() > first && tracker::base() < tracker::end_id());
    assert!(tracker::next_id().unwrap() > tracker::base());
}

/// What is written down here anew is as it is there: the same atomic operations with the same orderings.
fn as_in_the_sources() -> String {
    let operations = |text: &str, function: &str| -> Vec<String> {
        let begin = text.find(&format!("fn {function}(")).unwrap_or_else(|| panic!("no fn {function}"));
        let body = &text[begin..];
        let body = &body[..body.find("\n}\n").unwrap()];
        let body: String = body.lines().map(|line| line.split("//").next().unwrap()).collect();
        let body = body.replace("compare_exchange_weak", "compare_exchange");
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
    let (here, thread) = (include_str!("models.rs"), include_str!("../../../src/thread.rs"));
    for function in ["make", "all", "adopt", "release"] {
        let theirs: Vec<_> = operations(thread, function)
            .into_iter()
            // The hint, and what only the owner touches.
            .filter(|operation| !operation.starts_with("RELEASED") && !operation.starts_with("quiet"))
            .collect();
        assert_eq!(operations(here, function), theirs, "{function}");
    }
    let raw = include_str!("../../../src/raw.rs");
    let body = &raw[raw.find("fn read_chunk(").unwrap()..];
    let (freed, allocated) = (body.find(".read_freed()").unwrap(), body.find(".read_allocated()").unwrap());
    assert!(freed < allocated, "raw.rs reads what was allocated first");
    "the same operations with the same orderings".to_owned()
}
