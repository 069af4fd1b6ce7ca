//! Compares the quick walk, the lookup by layout and the platform's unwinder, on random stacks.
//!
//! A property test makes stacks out of random sequences of the kinds of frames that programs have; at the innermost
//! one the addresses of the quick walk have to be those of the platform's unwinder, and a lookup by layout has to
//! give the id of that very stack. Run in debug and in release builds: the frames differ.

use super::*;
use crate::base::random_input::Random;
use crate::record::cache_counts::{self, CacheCounts};
use crate::record::count::counters::Direction;
use crate::record::thread::{self, BUSY, ThreadState};
use std::collections::HashMap;
use std::future::Future;
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// Stacks seen by a test, with the id of each: reference for the caches.
#[derive(Default)]
struct Model {
    ids: HashMap<Vec<usize>, u32>,
    found_by_layout: usize,
    checked: usize,
    deepest: usize,
}

impl Model {
    /// Compares the walkers here.
    #[inline(never)]
    fn check(&mut self) {
        let state = thread::current_or_make().expect("a thread in its middle has a state");
        let _busy = state.enter(BUSY);
        // SAFETY: this thread's own state, just marked.
        let owner = unsafe { state.owner() };
        let registers = Registers::here();
        refresh(owner);
        let found_by_layout = match lookup_last(&state.hot, owner, Entrance::Allocate) {
            Ok(layout) => layout.id(),
            Err(missed) => lookup_after(owner, state, missed, registers),
        };
        let in_any_way =
            lookup_by_every_layout(&state.hot, owner, &state.counters, registers, Entrance::Allocate);
        let fallbacks = dropped::fallbacks();
        let stack = walk(owner, registers, Some(Entrance::Allocate));
        assert_eq!(dropped::fallbacks(), fallbacks, "the quick walk gave up");
        let found = owner.buffer.addresses[..owner.buffer.header.len as usize].to_vec();
        let mut reference = [0; MAX_ADDRESSES];
        let mut gather = Gather::new(&mut reference, epoch::address_limit());
        let truncated = fallback::walk(&mut gather, found.first().copied());
        let len = gather.len;
        assert_eq!(found, reference[..len], "against the platform's unwinder");
        assert_eq!(owner.buffer.header.truncated, truncated);

        let fresh = self.ids.len() as u32 + 1;
        let id = *self.ids.entry(found).or_insert(fresh);
        // The cache may have evicted a stack that its layout still holds.
        for found_by_layout in [found_by_layout, in_any_way].into_iter().filter(|id| *id != 0) {
            assert_eq!(found_by_layout, id, "found as another stack");
        }
        if found_by_layout | in_any_way != 0 {
            self.found_by_layout += 1;
        }
        owner.cache.insert(stack, id);
        // Else no layout can keep it.
        assert!(state.counters.add_slow(id, Direction::Freed, 0));
        self.checked += 1;
        self.deepest = self.deepest.max(len);
    }
}

/// Looks up a stack that was missed, as an allocation does. Returns its id, or 0.
fn lookup_after(
    owner: &mut OwnerState,
    state: &'static ThreadState,
    missed: Missed,
    registers: Registers,
) -> u32 {
    let counters = &state.counters;
    if let Some(layout) = lookup_missed(owner, counters, missed) {
        return layout.id();
    }
    let hot = &state.hot;
    lookup_by_second_layout(hot, owner, counters, missed, registers, Entrance::Allocate)
        .map_or(0, FrameLayout::id)
}

/// A kind of frame; the numbers vary its size.
#[derive(Clone, Debug)]
enum Kind {
    Plain,
    Large(u8),
    Generic(u8),
    Closure,
    TraitObject(bool),
    Iterator,
    Future,
    Callback,
    Unwinding,
    Repeat(u8),
    Recursion(u8),
}

/// Chooses the kinds of a sequence. Repetition and callbacks branch, so a long one would have too many leaves.
fn kinds(random: &mut Random) -> Vec<Kind> {
    let length = random.below(8);
    let kind = |_| match random.below(11) {
        0 => Kind::Plain,
        1 => Kind::Large(random.next() as u8),
        2 => Kind::Generic(random.next() as u8),
        3 => Kind::Closure,
        4 => Kind::TraitObject(random.one(&[false, true])),
        5 => Kind::Iterator,
        6 => Kind::Future,
        7 => Kind::Callback,
        8 => Kind::Unwinding,
        9 => Kind::Repeat(random.one(&[2, 3])),
        _ => Kind::Recursion(1 + random.below(59) as u8),
    };
    (0..length).map(kind).collect()
}

/// Prints its frames when a check among them fails.
struct Descent<'a>(&'a [Kind]);

impl Drop for Descent<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("under {:?}", self.0);
        }
    }
}

/// Calls one frame of the first kind deeper, and checks at the end.
#[inline(never)]
fn descend(kinds: &[Kind], model: &mut Model) {
    let Some((kind, rest)) = kinds.split_first() else { return model.check() };
    match kind {
        Kind::Plain => plain(rest, model),
        Kind::Large(size) if *size < 128 => large::<700>(rest, model),
        Kind::Large(_) => large::<70_000>(rest, model),
        Kind::Generic(width) => match width % 3 {
            0 => generic(1u8, rest, model),
            1 => generic([1u64; 9], rest, model),
            _ => generic(String::from("a"), rest, model),
        },
        Kind::Closure => {
            let step = |model: &mut Model| descend(rest, model);
            call(step, model);
        }
        Kind::TraitObject(small) => {
            let step: Box<dyn Step> = if *small { Box::new(Small) } else { Box::new(Wide([7; 40])) };
            step.step(rest, model);
        }
        Kind::Iterator => {
            let total: usize = (0..2usize).map(|n| (n, descend(rest, model)).0).filter(|n| n % 2 == 1).sum();
            black_box(total);
        }
        Kind::Future => {
            let future = pin!(outer(rest, model));
            let polled = future.poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(polled, Poll::Ready(())));
        }
        Kind::Callback => sort_with(rest, model),
        Kind::Unwinding => {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                let _checked_while_unwinding = OnDrop(rest, model);
                std::panic::resume_unwind(Box::new(1u8));
            }));
            assert!(caught.is_err());
        }
        Kind::Repeat(times) => {
            for _ in 0..*times {
                descend(rest, model);
            }
        }
        Kind::Recursion(depth) => recurse(*depth, rest, model),
    }
    black_box(());
}

#[inline(never)]
fn plain(rest: &[Kind], model: &mut Model) {
    descend(rest, model);
    black_box(());
}

#[inline(never)]
fn large<const N: usize>(rest: &[Kind], model: &mut Model) {
    let room = black_box([1u8; N]);
    descend(rest, model);
    black_box(&room);
}

#[inline(never)]
fn generic<T: Clone>(value: T, rest: &[Kind], model: &mut Model) {
    let copy = value.clone();
    descend(rest, model);
    black_box((&value, &copy));
}

#[inline(never)]
fn call(step: impl Fn(&mut Model), model: &mut Model) {
    step(model);
    black_box(());
}

#[inline(never)]
fn recurse(depth: u8, rest: &[Kind], model: &mut Model) {
    if depth == 0 {
        descend(rest, model);
    } else if depth.is_multiple_of(2) {
        recurse(depth - 1, rest, model);
        black_box(());
    } else {
        recurse(depth - 1, rest, model);
        black_box(depth);
    }
}

trait Step {
    fn step(&self, rest: &[Kind], model: &mut Model);
}
struct Small;
struct Wide([u64; 40]);
impl Step for Small {
    #[inline(never)]
    fn step(&self, rest: &[Kind], model: &mut Model) {
        descend(rest, model);
        black_box(());
    }
}
impl Step for Wide {
    #[inline(never)]
    fn step(&self, rest: &[Kind], model: &mut Model) {
        let copy = black_box(self.0);
        descend(rest, model);
        black_box(&copy);
    }
}

async fn outer(rest: &[Kind], model: &mut Model) {
    let held = black_box([1u64; 12]);
    inner(rest, model).await;
    black_box(held);
}

async fn inner(rest: &[Kind], model: &mut Model) {
    descend(rest, model);
}

/// Runs the rest when it is dropped.
struct OnDrop<'a>(&'a [Kind], &'a mut Model);
impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        descend(self.0, self.1);
    }
}

fn sort_with(rest: &[Kind], model: &mut Model) {
    use std::cell::Cell;
    thread_local! {
        static HERE: Cell<*mut (&'static [Kind], *mut Model)> = const { Cell::new(std::ptr::null_mut()) };
    }
    unsafe extern "C" fn compare(_a: *const libc::c_void, _b: *const libc::c_void) -> libc::c_int {
        // SAFETY: set below, around the call that leads here, and used by no other code meanwhile.
        let (rest, model) = unsafe { *HERE.get() };
        // SAFETY: as above.
        descend(rest, unsafe { &mut *model });
        0
    }
    // SAFETY: only the lifetime changes; the pointer is taken back before `rest` ends.
    let rest = unsafe { std::mem::transmute::<&[Kind], &'static [Kind]>(rest) };
    let mut here = (rest, &raw mut *model);
    let before = HERE.replace(&raw mut here);
    let mut numbers = [2u32, 1];
    // SAFETY: two numbers of four bytes and a function that compares.
    unsafe { libc::qsort(numbers.as_mut_ptr().cast(), 2, 4, Some(compare)) };
    HERE.set(before);
}

/// Serialises the tests, which share one epoch and its counters.
fn prepared() -> std::sync::MutexGuard<'static, ()> {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    crate::record::startup::ensure();
    epoch::set_frames(epoch::MAX_FRAMES);
    guard
}

#[test]
fn varied_stacks_are_walked_as_the_platform_walks_them() {
    // Debug builds keep every array of a sequence of large frames apart.
    let thread = std::thread::Builder::new().stack_size(64 << 20).spawn(varied_stacks);
    thread.unwrap().join().unwrap();
}

fn varied_stacks() {
    let _one = prepared();
    let mut model = Model::default();
    let mut random = Random::new();
    for _ in 0..6000 {
        let kinds = kinds(&mut random);
        let descent = Descent(&kinds);
        descend(descent.0, &mut model);
        descend(descent.0, &mut model);
    }
    eprintln!(
        "{} stacks checked, {} distinct, {} found_by_layout, deepest {}",
        model.checked,
        model.ids.len(),
        model.found_by_layout,
        model.deepest
    );
    assert!(model.ids.len() > 5000, "{} distinct stacks", model.ids.len());
    assert_eq!(model.deepest, MAX_ADDRESSES, "some are cut at the limit");
    if walker() == "cfi" {
        assert!(model.found_by_layout > model.checked / 4, "{} of {}", model.found_by_layout, model.checked);
    }
}

#[test]
fn stacks_of_other_threads_too() {
    let _one = prepared();
    let threads: Vec<_> = [0, 64 << 10, 8 << 20]
        .into_iter()
        .map(|size| {
            std::thread::Builder::new().stack_size(size.max(64 << 10)).spawn(move || {
                let mut model = Model::default();
                let kinds =
                    [Kind::Recursion(4), Kind::Callback, Kind::Closure, Kind::Large(0), Kind::Iterator];
                for _ in 0..black_box(10) {
                    for from in 0..kinds.len() {
                        descend(&kinds[from..], &mut model);
                    }
                }
                (model.checked, model.found_by_layout)
            })
        })
        .collect();
    for thread in threads {
        let (checked, found_by_layout) = thread.unwrap().join().unwrap();
        assert!(checked >= 50);
        assert!(walker() != "cfi" || found_by_layout >= checked / 2, "{found_by_layout} of {checked}");
    }
}

#[test]
fn a_large_frame_hides_nothing() {
    let _one = prepared();
    let run = || {
        let mut model = Model::default();
        large::<3_000_000>(&[Kind::Plain], &mut model);
        large::<3_000_000>(&[Kind::Plain], &mut model);
        model.checked
    };
    let thread = std::thread::Builder::new().stack_size(32 << 20).spawn(run).unwrap();
    assert_eq!(thread.join().unwrap(), 2);
}

/// Looks the stack of an event up as an allocation does, and walks where it is not found. Returns the number of addresses.
#[inline(never)]
fn event(ids: &mut HashMap<Vec<usize>, u32>) -> usize {
    let state = thread::current_or_make().expect("a thread in its middle has a state");
    let _busy = state.enter(BUSY);
    // SAFETY: this thread's own state, just marked.
    let owner = unsafe { state.owner() };
    let registers = Registers::here();
    let missed = lookup_last(&state.hot, owner, Entrance::Allocate).err();
    if missed.is_some_and(|missed| lookup_after(owner, state, missed, registers) == 0) {
        let stack = walk(owner, registers, Some(Entrance::Allocate));
        let found = owner.buffer.addresses[..owner.buffer.header.len as usize].to_vec();
        let fresh = ids.len() as u32 + 1;
        let id = *ids.entry(found).or_insert(fresh);
        owner.cache.insert(stack, id);
        assert!(state.counters.add_slow(id, Direction::Freed, 0));
    }
    black_box(owner.buffer.header.len as usize)
}

#[inline(never)]
fn leaf(ids: &mut HashMap<Vec<usize>, u32>) -> usize {
    black_box(event(ids))
}

#[inline(never)]
fn middle(ids: &mut HashMap<Vec<usize>, u32>) -> usize {
    black_box(leaf(ids))
}

type Line = fn(&mut HashMap<Vec<usize>, u32>) -> usize;

/// Two functions of one frame layout that call [`middle`]. The numbers differ, or the compiler would merge them.
static LINES: [Line; 2] = [first_line, second_line];

#[inline(never)]
fn first_line(ids: &mut HashMap<Vec<usize>, u32>) -> usize {
    black_box(middle(ids)) + black_box(0) + black_box(3)
}

#[inline(never)]
fn second_line(ids: &mut HashMap<Vec<usize>, u32>) -> usize {
    black_box(middle(ids)) + black_box(1) + black_box(2)
}

/// Says what two stacks of one layout, ten times the first and then ten times in turn, must hit and miss.
#[test]
fn caches_hit_what_they_have_seen() {
    let _one = prepared();
    if walker() != "cfi" {
        return;
    }
    let run = || {
        let mut ids = HashMap::new();
        {
            let state = thread::current_or_make().expect("a thread in its middle has a state");
            let _busy = state.enter(BUSY);
            // SAFETY: this thread's own state, just marked.
            let owner = unsafe { state.owner() };
            refresh(owner);
            // An earlier thread may have had them.
            owner.walk.rules.forget();
            owner.walk.layouts.forget();
        }
        cache_counts::take();
        let call = |first: bool, ids: &mut HashMap<Vec<usize>, u32>| {
            (black_box(LINES)[usize::from(!first)](ids) - 3, cache_counts::take())
        };
        // One place in the code: the frames above are the same for all.
        let turns = (0..20).map(|number| number < 10 || number % 2 == 1);
        turns.map(|first| call(first, &mut ids)).collect::<Vec<_>>()
    };
    let counts = loop {
        let before = (epoch::rules_epoch(), epoch::generation());
        let counts = std::thread::spawn(run).join().unwrap();
        // Else another test has changed the number of addresses, or unloaded a module, which empties the caches; or it has begun
        // an epoch or another sample interval, and a stack is looked up once more.
        if (epoch::rules_epoch(), epoch::generation()) == before {
            break counts;
        }
    };
    let addresses = counts[0].0;
    let none = CacheCounts::default();
    let of_start = 1;
    assert_eq!(
        counts[0].1,
        CacheCounts { out_of_bounds: 1, rule_parsed: addresses + of_start, ..none },
        "the first of all, on a stack that is not known yet"
    );
    let is_another = |counts: CacheCounts| {
        let found = CacheCounts { stack_first: 0, stack_second: 0, ..counts };
        (found, counts.stack_first + counts.stack_second) == (none, 1)
    };
    assert!(is_another(counts[1].1), "the walk has stored it in the stack cache: {:?}", counts[1]);
    for (_, again) in &counts[2..10] {
        assert_eq!(*again, CacheCounts { layout_last: 1, ..none }, "the last stack of its layout");
    }
    // The first walk parsed its rules and made no links; the start has none before it. The line is another one.
    let expected =
        CacheCounts { stack_missed: 1, rule_linked: 1, rule_found: addresses - 1, rule_parsed: 1, ..none };
    assert_eq!(counts[10].1, expected, "a new stack of a known layout");
    assert_eq!(counts[11].1, CacheCounts { layout_last: 1, ..none }, "a walk leaves the last stack");
    for (_, other) in &counts[12..] {
        assert!(is_another(*other), "another stack of the layout: {other:?}");
    }
}
