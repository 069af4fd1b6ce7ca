//! Assertions about the heap, for tests of a program: what one call allocates, and that a call that is repeated keeps
//! nothing.
//!
//! The figures are those of the calling thread, exactly, however many tests run beside it. Each assertion panics where they
//! would not be exact, so that no test passes because nothing was measured. [`leak_tests`](crate::docs::leak_tests) has a
//! complete example.
#![forbid(unsafe_code)]

use crate::analyze::scope::ScopeLabels;
use crate::analyze::snapshot::group::GroupBy;
use crate::analyze::snapshot::{Snapshot, Trace, named};
use crate::analyze::symbols;
use crate::record::control;
use crate::record::measure::{Measurement, OwnStacks, measure, obstacle};
use crate::record::raw_snapshot::{AllStacks, Counts, RawStack};
use std::fmt::Write as _;
use std::ops::{Bound, RangeBounds};
use std::time::{Duration, SystemTime};

/// Calls of a window. A container that doubles its room grows in few of them.
const CALLS: u32 = 8;
/// Lines that a message names at most.
const LINES: usize = 10;

/// Asserts that `f` keeps no memory, however often it is called.
///
/// It is called once to fill what is filled once, and then eight times twice. It fails if more was live on this thread after each
/// eight than before: in bytes or in blocks. A leak that is only in the first call is not seen, and memory that is handed to
/// another thread counts as kept.
///
/// # Panics
///
/// With the lines that hold the rest. Also where heapgauge is not the global allocator of the program, is off, samples, or is
/// [paused](crate::pause) on this thread.
///
/// # Examples
///
/// ```standalone_crate
/// #[global_allocator]
/// static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
///
/// heapgauge::testing::assert_no_growth(|| {
///     let words: Vec<String> = "no word is kept".split(' ').map(str::to_owned).collect();
///     assert_eq!(words.len(), 4);
/// });
/// ```
#[track_caller]
pub fn assert_no_growth(mut f: impl FnMut()) {
    check("assert_no_growth");
    f();
    if growth(&mut f).is_none() {
        return;
    }
    let Some((work, stacks)) = growth(&mut f) else { return };
    let live = |counts: &Counts| (counts.live_bytes(), counts.live_blocks());
    panic!(
        "assert_no_growth: {CALLS} calls kept {} bytes in {} blocks, as the {CALLS} before did; they were allocated at\n{}",
        work.live_bytes,
        work.live_blocks,
        lines(stacks, live)
    );
}

/// Calls it eight times, and returns the work and its stacks if memory was kept.
#[track_caller]
fn growth(f: &mut impl FnMut()) -> Option<(Measurement, AllStacks)> {
    let before = OwnStacks::now();
    let ((), work) = measure(|| (0..CALLS).for_each(|_| f()));
    demand_exact("assert_no_growth", &work);
    let is_grown = work.live_bytes > 0 || work.live_blocks > 0;
    is_grown.then(|| (work, before.since()))
}

/// Asserts that one call of `f` allocates as many blocks as the range allows, and returns its result. A resize is an
/// allocation, too.
///
/// # Panics
///
/// With the lines that allocated. Also where [`assert_no_growth`] cannot know either.
///
/// # Examples
///
/// ```standalone_crate
/// #[global_allocator]
/// static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
///
/// use heapgauge::testing::assert_allocates;
///
/// let text = assert_allocates(1..=1, || "hot path".to_owned());
/// assert_eq!(assert_allocates(..1, || text.len()), 8);
/// ```
#[track_caller]
pub fn assert_allocates<R>(range: impl RangeBounds<u64>, f: impl FnOnce() -> R) -> R {
    check("assert_allocates");
    let before = OwnStacks::now();
    let (result, work) = measure(f);
    let stacks = before.since();
    demand_exact("assert_allocates", &work);
    if range.contains(&work.allocations) {
        return result;
    }
    let allocated = |counts: &Counts| (counts.allocated_bytes, counts.allocated_blocks);
    panic!(
        "assert_allocates: the call allocated {} blocks of {} bytes, allowed are {}; they were allocated at\n{}",
        work.allocations,
        work.allocated_bytes,
        shown(&range),
        lines(stacks, allocated)
    );
}

#[track_caller]
fn check(assertion: &str) {
    if let Some(obstacle) = obstacle() {
        panic!("{assertion}: nothing can be said here: {obstacle}");
    }
}

#[track_caller]
fn demand_exact(assertion: &str, work: &Measurement) {
    assert!(
        work.is_exact(),
        "{assertion}: nothing can be said here: tracking was changed meanwhile, or events could not be recorded"
    );
}

/// Formats a range as it is written: `1..=3`.
fn shown(range: &impl RangeBounds<u64>) -> String {
    let begin = match range.start_bound() {
        Bound::Included(begin) => begin.to_string(),
        Bound::Excluded(begin) => begin.saturating_add(1).to_string(),
        Bound::Unbounded => String::new(),
    };
    match range.end_bound() {
        Bound::Included(end) => format!("{begin}..={end}"),
        Bound::Excluded(end) => format!("{begin}..{end}"),
        Bound::Unbounded => format!("{begin}.."),
    }
}

/// Lists the lines of code of these stacks with bytes and blocks, those of most bytes first.
fn lines(stacks: AllStacks, figures: impl Fn(&Counts) -> (u64, u64)) -> String {
    let _own = control::internal();
    let symbols = symbols::global();
    let AllStacks { stacks, addresses } = stacks;
    symbols.resolve(&mut stacks.iter().map(|stack| addresses.to_vec(stack.addresses)), Duration::MAX);
    let limit = control::traceback_limit();
    let trace = |stack: RawStack| {
        let (size, count) = figures(&stack.counts);
        let traceback = named(symbols, &addresses.to_vec(stack.addresses), limit, stack.truncated);
        (count > 0).then_some(Trace {
            domain: 0,
            size,
            count,
            stderr: 0,
            traceback,
            scope: ScopeLabels::default(),
        })
    };
    let traces = stacks.into_iter().filter_map(trace).collect();
    let rows = Snapshot::of(SystemTime::now(), limit, traces).statistics(GroupBy::Line);
    let mut text = String::new();
    for row in rows.iter().take(LINES) {
        let _ = writeln!(text, "  {}: {} bytes in {} blocks", row.name(), row.size, row.count);
    }
    if rows.len() > LINES {
        let _ = writeln!(text, "  and {} more lines", rows.len() - LINES);
    }
    text
}
