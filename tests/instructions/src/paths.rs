//! Lists the hot paths.

use crate::inner;
use crate::reproducible;
use crate::stacks::under;
use heapgauge::{Collector, Scope, ScopeFutureExt, Snapshot};
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, handle_alloc_error, realloc};
use std::future::{Future, pending};
use std::hint::black_box;
use std::ops::Range;
use std::pin::pin;
use std::ptr::null_mut;
use std::task::{Context, Waker};

/// A path, with a function that runs it so many times of at most so many.
pub struct Path {
    pub name: &'static str,
    /// Number of runs; the second process runs it twice as often.
    pub count: usize,
    /// The only function that is counted, unless it is empty.
    pub within: &'static str,
    pub take: fn(usize, usize),
}

/// Number of events before the counted ones, which create the state that later events reuse.
const WARM: usize = 64;
const STACKS_IN_TURN: usize = 64;
/// Number of our frames where it does not matter.
const FRAMES: u32 = 16;
/// An interval larger than the bytes of any path, so that none of its blocks is sampled.
const NEVER: usize = 1 << 30;

const SMALL: Layout = layout(64, 8);
const ALIGNED: Layout = layout(64, 64);
const LARGE: Layout = layout(4_096, 8);

const fn layout(size: usize, align: usize) -> Layout {
    match Layout::from_size_align(size, align) {
        Ok(layout) => layout,
        Err(_) => panic!("no layout"),
    }
}

macro_rules! paths {
    ($($name:literal $count:literal $(within $within:ident)?, $take:expr;)*) => {
        pub const ALL: &[Path] =
            &[$(Path { name: $name, count: $count, within: concat!($(stringify!($within))?), take: $take }),*];
    };
}

// Mostly 4,096 blocks, so that the usual share of them is published to the peak.
paths! {
    "allocate 64 bytes, 5 frames" 4096, |n, most| allocate(n, most, 5, SMALL);
    "allocate 64 bytes, 25 frames" 4096, |n, most| allocate(n, most, 25, SMALL);
    "allocate 64 bytes, 60 frames" 4096, |n, most| allocate(n, most, 60, SMALL);
    "allocate 64 bytes aligned to 64" 4096, |n, most| allocate(n, most, FRAMES, ALIGNED);
    "allocate 4096 bytes" 4096, |n, most| allocate(n, most, FRAMES, LARGE);
    "allocate 64 bytes zeroed" 4096, |n, most| allocate_zeroed(n, most, SMALL);
    "allocate 4096 bytes zeroed" 4096, |n, most| allocate_zeroed(n, most, LARGE);
    "allocate 64 bytes, 64 stacks in turn" 4096, in_turn;
    "free 64 bytes" 4096, |n, most| free(n, most, SMALL);
    "free 64 bytes aligned to 64" 4096, |n, most| free(n, most, ALIGNED);
    "free 4096 bytes" 4096, |n, most| free(n, most, LARGE);
    "free 64 bytes of another thread" 4096, free_of_another_thread;
    "free 64 bytes from before a clear" 4096, free_stale;
    "resize 64 bytes to 96" 4096, |n, most| resize(n, most, SMALL, 96);
    "resize 4096 bytes to 6144" 4096, |n, most| resize(n, most, LARGE, 6_144);
    "allocate 64 bytes while paused" 4096, |n, most| paused(|| allocate(n, most, FRAMES, SMALL));
    "free 64 bytes while paused" 4096, |n, most| paused(|| free(n, most, SMALL));
    "allocate 64 bytes while off" 4096, |n, most| off(|| allocate(n, most, FRAMES, SMALL));
    "free 64 bytes while off" 4096, |n, most| off(|| free(n, most, SMALL));
    "in a scope: allocate 64 bytes" 4096, in_a_scope;
    "two scopes in turn: enter, allocate 64 bytes, leave" 4096, |n, most| two_scopes(n, most, true);
    "one scope: enter, allocate 64 bytes, leave" 4096, |n, most| two_scopes(n, most, false);
    "enter a scope and leave it" 4096, |n, _| enter(n, None, 1);
    "enter a scope in another one and leave it" 4096, |n, _| enter(n, Some(Scope::new("route", "/search")), 1);
    "enter one of 32 scopes in another one and leave it" 4096, |n, _| enter(n, Some(Scope::new("route", "/search")), 32);
    "poll a future in a scope" 4096, |n, _| poll(n, None);
    "poll a future in a scope, in another one" 4096, |n, _| poll(n, Some(Scope::new("route", "/search")));
    "make a scope that exists" 4096, |n, _| make_again(n);
    "known stack in a new scope" 1_000, new_scopes;
    "new stack, 13 to 20 frames" 1_000, |n, most| new_stacks(n, most, 13..21);
    "new stack, 60 frames" 1_000, |n, most| new_stacks(n, most, 60..61);
    "new stack, 13 to 20 frames, beside 16 threads" 1_000, |n, most| beside_threads(16, |_| first_event(), || new_stacks(n, most, 13..21));
    "new stack, 13 to 20 frames, beside 64 threads" 1_000, |n, most| beside_threads(64, |_| first_event(), || new_stacks(n, most, 13..21));
    "first event of a thread, state made" 16 within first_event, first_of_living_threads;
    "first event of a thread, state taken over" 64 within first_event, first_of_threads_in_turn;
    "unsampled: allocate 64 bytes" 4096, |n, most| sampling(NEVER, || allocate(n, most, FRAMES, SMALL));
    "unsampled: allocate 64 bytes aligned to 64" 4096, |n, most| sampling(NEVER, || allocate(n, most, FRAMES, ALIGNED));
    "unsampled: allocate 4096 bytes" 4096, |n, most| sampling(NEVER, || allocate(n, most, FRAMES, LARGE));
    "unsampled: allocate 64 bytes zeroed" 4096, |n, most| sampling(NEVER, || allocate_zeroed(n, most, SMALL));
    "unsampled: free 64 bytes" 4096, |n, most| sampling(NEVER, || free(n, most, SMALL));
    "unsampled: free 64 bytes aligned to 64" 4096, |n, most| sampling(NEVER, || free(n, most, ALIGNED));
    "unsampled: free 4096 bytes" 4096, |n, most| sampling(NEVER, || free(n, most, LARGE));
    "unsampled: free 64 bytes of another thread" 4096, |n, most| sampling(NEVER, || free_of_another_thread(n, most));
    "unsampled: resize 64 bytes to 96" 4096, |n, most| sampling(NEVER, || resize(n, most, SMALL, 96));
    "sampled each 1024 bytes: allocate 64 bytes" 4096, |n, most| sampling(1_024, || allocate(n, most, FRAMES, SMALL));
    "sampled each 1024 bytes: free 64 bytes" 4096, |n, most| sampling(1_024, || free(n, most, SMALL));
    "snapshot of 1000 stacks" 4, snapshots;
    "snapshot of 1000 stacks beside 64 threads" 4, |n, most| beside_threads(64, |_| first_event(), || snapshots(n, most));
    "collection of 1000 stacks" 3 within next_collection, collections;
}

// ── Blocks ──────────────────────────────────────────────────────────────────────────────────────

/// Blocks of one layout, in a list that is allocated before the path runs.
struct Blocks {
    layout: Layout,
    made: Vec<*mut u8>,
}

impl Blocks {
    fn with_room(most: usize, layout: Layout) -> Blocks {
        let blocks = Blocks { layout, made: Vec::with_capacity(WARM + most) };
        inner::begin();
        blocks
    }

    fn push(&mut self, block: *mut u8) {
        if block.is_null() {
            handle_alloc_error(self.layout);
        }
        self.made.push(block);
    }

    #[inline(never)]
    fn allocate(&mut self, count: usize) {
        for _ in 0..count {
            // SAFETY: the layout is of some bytes.
            self.push(unsafe { alloc(black_box(self.layout)) });
        }
    }

    #[inline(never)]
    fn allocate_zeroed(&mut self, count: usize) {
        for _ in 0..count {
            // SAFETY: the layout is of some bytes.
            self.push(unsafe { alloc_zeroed(black_box(self.layout)) });
        }
    }

    /// Frees so many of them; the others are never freed.
    #[inline(never)]
    fn free(&self, count: usize) {
        for block in &self.made[..count] {
            // SAFETY: made with this layout, and freed once.
            unsafe { dealloc(*block, black_box(self.layout)) };
        }
    }

    #[inline(never)]
    fn resize(&mut self, count: usize, size: usize) {
        for block in &mut self.made[..count] {
            // SAFETY: made with this layout, and resized once.
            *block = unsafe { realloc(*block, black_box(self.layout), size) };
        }
    }
}

fn allocate(count: usize, most: usize, frames: u32, layout: Layout) {
    let mut blocks = Blocks::with_room(most, layout);
    under(frames, 0, &mut || blocks.allocate(WARM + count));
}

fn allocate_zeroed(count: usize, most: usize, layout: Layout) {
    let mut blocks = Blocks::with_room(most, layout);
    under(FRAMES, 0, &mut || blocks.allocate_zeroed(WARM + count));
}

/// Runs with sixteen sets of stacks, each at a depth of its own: collisions in a cache depend on addresses and depths, and so
/// on all code before.
fn in_turn(count: usize, most: usize) {
    let mut blocks = Blocks::with_room(16 * 2 * STACKS_IN_TURN + most, SMALL);
    for times in 0..16 {
        for stack in 0..2 * STACKS_IN_TURN + count / 16 {
            let path = times * STACKS_IN_TURN + stack % STACKS_IN_TURN;
            under(FRAMES - 8 + times as u32, path as u64, &mut || blocks.allocate(1));
        }
    }
}

fn allocated(most: usize, layout: Layout) -> Blocks {
    let mut blocks = Blocks::with_room(most, layout);
    under(FRAMES, 0, &mut || blocks.allocate(WARM + most));
    blocks
}

fn free(count: usize, most: usize, layout: Layout) {
    allocated(most, layout).free(WARM + count);
}

fn free_of_another_thread(count: usize, most: usize) {
    let mut blocks = Blocks::with_room(most, SMALL);
    in_thread(&mut || under(FRAMES, 0, &mut || blocks.allocate(WARM + most)));
    blocks.free(WARM + count);
}

fn free_stale(count: usize, most: usize) {
    let blocks = allocated(most, SMALL);
    heapgauge::clear_traces();
    blocks.free(WARM + count);
}

fn resize(count: usize, most: usize, layout: Layout, size: usize) {
    let mut blocks = allocated(most, layout);
    under(FRAMES, 0, &mut || blocks.resize(WARM + count, size));
}

/// Makes each event the first of its stack. Depths take turns: how many frame layouts share a slot with those of one depth
/// depends on the addresses of all code.
fn new_stacks(count: usize, most: usize, frames: Range<u32>) {
    let mut blocks = Blocks::with_room(most, SMALL);
    for stack in 0..(WARM + count) as u64 {
        let depth = frames.start + stack as u32 % frames.len() as u32;
        under(depth, stack, &mut || blocks.allocate(1));
    }
}

// ── Scopes ──────────────────────────────────────────────────────────────────────────────────────

fn in_a_scope(count: usize, most: usize) {
    let mut blocks = Blocks::with_room(most, SMALL);
    let tenant = Scope::new("tenant", "acme");
    let _entered = tenant.enter();
    under(FRAMES, 0, &mut || blocks.allocate(WARM + count));
}

/// Allocates in one scope after the other on one stack, or always in the first.
fn two_scopes(count: usize, most: usize, in_turn: bool) {
    let mut blocks = Blocks::with_room(most, SMALL);
    let scopes = [Scope::new("tenant", "acme"), Scope::new("tenant", "globex")];
    under(FRAMES, 0, &mut || {
        for number in 0..WARM + count {
            let _entered = scopes[if in_turn { number % 2 } else { 0 }].enter();
            blocks.allocate(1);
        }
    });
}

/// Enters and leaves scopes of so many tenants in turn.
fn enter(count: usize, outer: Option<Scope>, tenants: usize) {
    inner::begin();
    let tenants: Vec<Scope> = (0..tenants).map(|number| Scope::new("tenant", number.to_string())).collect();
    let _outer = outer.as_ref().map(Scope::enter);
    // A remainder by a variable would be a division in each event.
    let mask = tenants.len().next_power_of_two() - 1;
    for number in 0..WARM + count {
        drop(black_box(&tenants[number & mask]).enter());
    }
}

fn poll(count: usize, outer: Option<Scope>) {
    inner::begin();
    let mut future = pin!(pending::<()>().in_scope(Scope::new("tenant", "acme")));
    let _outer = outer.as_ref().map(Scope::enter);
    for _ in 0..WARM + count {
        let polled = black_box(future.as_mut()).poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending());
    }
}

fn make_again(count: usize) {
    inner::begin();
    let tenant = Scope::new("tenant", "acme");
    for _ in 0..WARM + count {
        drop(Scope::new("tenant", black_box("acme")));
    }
    drop(tenant);
}

/// Makes each event the first of its stack in another scope.
fn new_scopes(count: usize, most: usize) {
    // Blocks of the mapping hardly grow.
    inner::begin();
    inner::end();
    let scopes: Vec<Scope> =
        (0..WARM + most).map(|number| Scope::new("tenant", number.to_string())).collect();
    let mut blocks = Blocks::with_room(most, SMALL);
    under(FRAMES, 0, &mut || {
        for scope in &scopes[..WARM + count] {
            let _entered = scope.enter();
            blocks.allocate(1);
        }
    });
}

// ── States of tracking ──────────────────────────────────────────────────────────────────────────────────

fn paused(path: impl FnOnce()) {
    let _paused = heapgauge::pause();
    path();
}

fn off(path: impl FnOnce()) {
    heapgauge::stop();
    path();
}

fn sampling(interval: usize, path: impl FnOnce()) {
    heapgauge::set_sample_interval(interval).expect("an interval that is allowed");
    heapgauge::seed_samples(1);
    path();
}

// ── Threads ─────────────────────────────────────────────────────────────────────────────────────

/// Calls `work` in a thread and waits for its end. The standard library's threads allocate for themselves.
fn in_thread(work: &mut dyn FnMut()) {
    end(begin(&mut { work }));
}

/// Starts a thread that calls `work` and remains until its [`end`].
fn begin(work: &mut &mut dyn FnMut()) -> libc::pthread_t {
    extern "C" fn run(work: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: the pointer that `begin` returned, which no other code uses meanwhile.
        unsafe { (*work.cast::<&mut dyn FnMut()>())() };
        null_mut()
    }
    let mut thread = 0;
    // SAFETY: a place to write to; what is given is there until the thread's end.
    let code =
        unsafe { libc::pthread_create(&raw mut thread, std::ptr::null(), run, (&raw mut *work).cast()) };
    assert_eq!(code, 0, "no thread");
    thread
}

fn end(thread: libc::pthread_t) {
    // SAFETY: begun by `begin`, and waited for once.
    assert_eq!(unsafe { libc::pthread_join(thread, null_mut()) }, 0);
}

/// Runs one counted event of paths with many threads: the C library's part of a thread's start and end depends on other threads.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn first_event() {
    // SAFETY: the layout is of some bytes.
    black_box(unsafe { alloc(SMALL) });
}

/// Runs threads one after the other: each adopts the state of the one before.
fn first_of_threads_in_turn(count: usize, most: usize) {
    inner::begin();
    for number in 0..WARM + most {
        in_thread(&mut || {
            if number < WARM + count {
                first_event();
            }
        });
    }
}

/// Runs threads that live until the last one has started, so that a state is made for each.
fn first_of_living_threads(count: usize, most: usize) {
    inner::begin();
    let first = move |number| {
        if number < 1 + count {
            first_event();
        }
    };
    beside_threads(1 + most, first, || ());
}

/// Acts while so many threads live. Each has done this first.
fn beside_threads(threads: usize, first: impl Fn(usize) + Copy + 'static, act: impl FnOnce()) {
    let [told, heard] = pipe();
    let [over, waiting] = pipe();
    let mut living = Vec::with_capacity(threads);
    // Boxes, because a thread keeps a reference to its closure.
    for number in 0..threads {
        let work: &'static mut dyn FnMut() = Box::leak(Box::new(move || {
            first(number);
            tell(told);
            listen(waiting);
        }));
        living.push(begin(Box::leak(Box::new(work))));
        listen(heard);
    }
    act();
    for _ in &living {
        tell(over);
    }
    living.into_iter().for_each(end);
}

/// Opens a file that is written and read.
fn pipe() -> [libc::c_int; 2] {
    let mut ends = [0; 2];
    // SAFETY: room for two numbers.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    let [read, write] = ends;
    [write, read]
}

fn tell(write: libc::c_int) {
    // SAFETY: one byte to read from.
    assert_eq!(unsafe { libc::write(write, [1u8].as_ptr().cast(), 1) }, 1);
}

fn listen(read: libc::c_int) {
    let mut byte = [0u8];
    // SAFETY: one byte to write to.
    assert_eq!(unsafe { libc::read(read, byte.as_mut_ptr().cast(), 1) }, 1);
}

// ── Reads ───────────────────────────────────────────────────────────────────────────────────────

const STACKS: usize = 1_000;

fn thousand_stacks() -> Blocks {
    let mut blocks = Blocks::with_room(STACKS, SMALL);
    for stack in 0..STACKS as u64 {
        under(FRAMES, stack, &mut || blocks.allocate(1));
    }
    inner::end();
    blocks
}

fn snapshots(count: usize, _most: usize) {
    let _blocks = thousand_stacks();
    for _ in 0..1 + count {
        let snapshot = Snapshot::take().expect("tracking is on");
        assert!(black_box(snapshot).traces().len() >= STACKS);
    }
}

fn collections(count: usize, _most: usize) {
    let _blocks = thousand_stacks();
    let collector = Collector::new();
    let mut last = 0;
    for number in 0..2 + count {
        // A younger collection would be given out again. All together are less than the ten seconds after which another thread
        // reads the parts of memory, which takes another number of instructions each time.
        reproducible::sleep(1);
        // The first ones read names.
        let next = if number < 2 { collector.collect().number } else { next_collection(&collector) };
        assert!(next > last, "collection {last} again");
        last = next;
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
fn next_collection(collector: &Collector) -> u64 {
    collector.collect().number
}
