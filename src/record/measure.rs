//! Events of one thread between two moments → their sums, and the most that was live among them.
//!
//! A thread's counters are its own, so what other threads do meanwhile changes nothing. While a thread is measured, each
//! of its events takes the slow path, which follows its live bytes.

use crate::record::control;
use crate::record::count::counters::{CHUNK, Chunk, Direction, Table};
use crate::record::count::sampling::SamplingConfig;
use crate::record::epoch;
use crate::record::raw_snapshot::{self, AllStacks, Carried, Counts, Dropped, RawStack};
use crate::record::stack_id::table::{self, Recorded};
use crate::record::thread::{self, BUSY, PAUSED, Reading, SHARED, SpanBytes, ThreadState};
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Work of one call, or of the polls of one future: what its thread allocated and freed meanwhile.
///
/// A resize is an allocation of the new size and a deallocation of the old one.
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// let (text, work) = heapgauge::measure(|| "abc".repeat(100));
/// assert_eq!((work.allocations, work.allocated_bytes, work.live_bytes), (1, 300, 300));
/// # drop(text);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Measurement {
    /// Requested bytes allocated.
    pub allocated_bytes: u64,
    /// Blocks allocated.
    pub allocations: u64,
    /// Requested bytes freed, of blocks that were allocated before the call too.
    pub deallocated_bytes: u64,
    /// Blocks freed.
    pub deallocations: u64,
    /// Bytes allocated less bytes freed.
    pub live_bytes: i64,
    /// Blocks allocated less blocks freed.
    pub live_blocks: i64,
    /// The most that `live_bytes` was during the call; 0 where it was never above 0. A resize counts once, at its new size.
    pub peak_bytes: u64,
    is_inexact: bool,
}

impl Measurement {
    /// Returns whether every event is in the figures. Not so where heapgauge is not the program's allocator, tracking was off
    /// or sampled, that, a pause of this thread or `clear_traces` came in between, the program had no memory left to record an
    /// event in its thread, or any thread allocated a block of 2 GiB or more meanwhile: those are counted for all threads together.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// let (_, work) = heapgauge::measure(|| drop(vec![0u8; 10]));
    /// assert!(work.is_exact());
    /// heapgauge::stop();
    /// let (_, work) = heapgauge::measure(|| drop(vec![0u8; 10]));
    /// assert!(!work.is_exact());
    /// ```
    pub fn is_exact(&self) -> bool {
        !self.is_inexact
    }

    /// Adds what came after it.
    fn then(&mut self, later: Measurement) {
        self.peak_bytes =
            self.peak_bytes.max(self.live_bytes.saturating_add_unsigned(later.peak_bytes).max(0) as u64);
        self.allocated_bytes += later.allocated_bytes;
        self.allocations += later.allocations;
        self.deallocated_bytes += later.deallocated_bytes;
        self.deallocations += later.deallocations;
        self.live_bytes += later.live_bytes;
        self.live_blocks += later.live_blocks;
        self.is_inexact |= later.is_inexact;
    }
}

/// Calls a function and measures its work on this thread, however many threads work beside it.
///
/// Each allocation and free costs some hundred nanoseconds more meanwhile. Measurements nest.
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// let (kept, work) = heapgauge::measure(|| {
///     drop(vec![0u8; 1_000]);
///     vec![0u8; 64]
/// });
/// assert!(work.is_exact());
/// assert_eq!((work.allocations, work.deallocations), (2, 1));
/// assert_eq!((work.live_bytes, work.live_blocks, work.peak_bytes), (64, 1, 1_000));
/// # drop(kept);
/// ```
pub fn measure<R>(f: impl FnOnce() -> R) -> (R, Measurement) {
    let span = Span::begin();
    let result = f();
    (result, span.end())
}

/// Measures the polls of a future: its own work, on whatever threads it is polled, and not that of others in between.
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// use std::future::Future;
/// use std::pin::pin;
/// use std::task::{Context, Poll, Waker};
///
/// let answer = heapgauge::measure_future(async { vec![0u8; 64].len() });
/// let Poll::Ready((64, work)) = pin!(answer).poll(&mut Context::from_waker(Waker::noop())) else { panic!() };
/// assert_eq!((work.allocated_bytes, work.live_bytes), (64, 0));
/// ```
pub fn measure_future<F: Future>(future: F) -> MeasureFuture<F> {
    MeasureFuture { future, work: Measurement::default() }
}

/// Future of [`measure_future`]: its output is that of the measured future, and the work of all its polls.
///
/// # Examples
///
/// ```
/// // A service that measures each of its requests.
/// struct Request<F> {
///     work: heapgauge::MeasureFuture<F>,
/// }
///
/// let request = Request { work: heapgauge::measure_future(async { "answer" }) };
/// # drop(request.work);
/// ```
#[derive(Debug)]
#[must_use = "a future does nothing unless it is polled"]
pub struct MeasureFuture<F> {
    future: F,
    work: Measurement,
}

impl<F: Future> Future for MeasureFuture<F> {
    type Output = (F::Output, Measurement);

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: `future` is never moved out of a pinned value, which has no `Drop` of its own and is `Unpin` only where
        // `future` is.
        let this = unsafe { self.get_unchecked_mut() };
        // SAFETY: as above; it is pinned as long as `self` is.
        let future = unsafe { Pin::new_unchecked(&mut this.future) };
        let span = Span::begin();
        let polled = future.poll(context);
        this.work.then(span.end());
        polled.map(|output| (output, this.work))
    }
}

/// Returns the reason why figures of this thread would not be exact, with its remedy.
pub(crate) fn obstacle() -> Option<&'static str> {
    if !control::has_allocator() || !epoch::is_on() {
        Some(control::off_reason())
    } else if epoch::sampling() != SamplingConfig::EXACT {
        Some("blocks are sampled, heapgauge::set_sample_interval(0) records each")
    } else if thread::current_or_make().is_none_or(|state| state.flags() & PAUSED != 0) {
        Some("this thread is paused, drop the guard of heapgauge::pause first")
    } else {
        None
    }
}

/// A measurement that is under way. Dropping it ends it.
struct Span {
    state: Option<&'static ThreadState>,
    /// Bytes of the measurement around this one, until this one has ended.
    outer: Option<SpanBytes>,
    before: SpanState,
    /// It belongs to the thread that made it.
    not_send: PhantomData<*const ()>,
}

/// State that is compared between the beginning and the end.
#[derive(Clone, Copy, PartialEq)]
struct SpanState {
    base: u32,
    dropped: Dropped,
    /// Counts that no thread of its own has, such as those of blocks of 2 GiB and more.
    shared: Counts,
    own: Counts,
    /// Number of pauses that this thread has begun, whether there is one now, and number of sample intervals that were set.
    changes: ((u32, bool), u32),
    is_exact: bool,
}

impl SpanState {
    /// Reads the state of the calling thread.
    fn now(state: Option<&'static ThreadState>, base: u32) -> SpanState {
        let mut own = Counts::default();
        let mut shared = Counts::default();
        if let Some(state) = state {
            each(&state.counters, base, |_, counts| own += counts);
            let (allocated, freed) = (state.hot.unsampled.read_allocated(), state.hot.unsampled.read_freed());
            own += Counts {
                allocated_bytes: allocated.0,
                allocated_blocks: allocated.1,
                freed_bytes: freed.0,
                freed_blocks: freed.1,
            };
        }
        each(&thread::SHARED, base, |_, counts| shared += counts);
        let is_exact = state.is_some() && epoch::is_on() && epoch::sampling() == SamplingConfig::EXACT;
        let changes = (state.map_or((0, false), ThreadState::pauses), epoch::samplings());
        SpanState { base: epoch::base(), dropped: raw_snapshot::dropped(), shared, own, changes, is_exact }
    }
}

impl Span {
    /// Begins a measurement of the calling thread.
    fn begin() -> Span {
        let state = control::has_allocator().then(thread::current_or_make).flatten();
        let state = state.filter(|state| state.flags() & BUSY == 0);
        let base = epoch::base();
        let before = SpanState::now(state, base);
        Span { state, outer: state.map(ThreadState::begin_span), before, not_send: PhantomData }
    }

    /// Ends the measurement and returns its figures.
    fn end(mut self) -> Measurement {
        let bytes = self.leave();
        let SpanState { base, dropped, shared, own: before, changes, is_exact } = self.before;
        let after = SpanState::now(self.state, base);
        let own = after.own;
        let is_exact = is_exact
            && after.is_exact
            && (after.base, after.dropped, after.shared, after.changes) == (base, dropped, shared, changes)
            && bytes.is_some();
        // Values only rise within an epoch; in a later one they are of no use.
        let between = |after: u64, before: u64| after.saturating_sub(before);
        let allocated_bytes = between(own.allocated_bytes, before.allocated_bytes);
        let allocations = between(own.allocated_blocks, before.allocated_blocks);
        let deallocated_bytes = between(own.freed_bytes, before.freed_bytes);
        let deallocations = between(own.freed_blocks, before.freed_blocks);
        Measurement {
            allocated_bytes,
            allocations,
            deallocated_bytes,
            deallocations,
            live_bytes: allocated_bytes.wrapping_sub(deallocated_bytes) as i64,
            live_blocks: allocations.wrapping_sub(deallocations) as i64,
            peak_bytes: bytes.map_or(0, |bytes| bytes.peak.max(0) as u64),
            is_inexact: !is_exact,
        }
    }

    /// Ends the measurement in the thread's state, and returns its bytes; `None` after the first call.
    fn leave(&mut self) -> Option<SpanBytes> {
        let (state, outer) = (self.state?, self.outer.take()?);
        // Near its end the thread has given its state away.
        let is_own = thread::current().is_some_and(|current| std::ptr::eq(current, state));
        is_own.then(|| state.end_span(outer))
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Hands over the counts of each id of this epoch in a table.
fn each<C: Chunk>(table: &Table<C>, base: u32, mut take: impl FnMut(u32, Counts)) {
    let _reading = Reading::new();
    let end = if base == u32::MAX { 0 } else { epoch::end_id() };
    for number in base as usize / CHUNK..(end as usize).div_ceil(CHUNK) {
        let Some(chunk) = table.chunk(number) else { continue };
        for place in 0..CHUNK {
            let id = (number * CHUNK + place) as u32;
            if id >= base && id < end {
                let (freed_bytes, freed_blocks) = chunk.read(place, Direction::Freed);
                let (allocated_bytes, allocated_blocks) = chunk.read(place, Direction::Allocated);
                take(id, Counts { allocated_bytes, allocated_blocks, freed_bytes, freed_blocks });
            }
        }
    }
}

/// Counts of the calling thread by stack, at one moment.
pub(crate) struct OwnStacks {
    base: u32,
    /// Ascending by id.
    counts: Vec<(u32, Counts)>,
}

impl OwnStacks {
    /// Reads the calling thread's counts.
    pub(crate) fn now() -> OwnStacks {
        let _internal = control::internal();
        let base = epoch::base();
        let mut counts = Vec::new();
        if let Some(state) = thread::current_or_make() {
            each(&state.counters, base, |id, count| {
                if count != Counts::default() {
                    counts.push((id, count));
                }
            });
        }
        OwnStacks { base, counts }
    }

    /// Returns what this thread allocated and freed since then, by stack.
    pub(crate) fn since(&self) -> AllStacks {
        let _internal = control::internal();
        let _reading = Reading::new();
        let now = OwnStacks::now();
        if now.base != self.base {
            return AllStacks::default();
        }
        let mut all = AllStacks::default();
        let before = |id| match self.counts.binary_search_by_key(&id, |(id, _)| *id) {
            Ok(at) => self.counts[at].1,
            Err(_) => Counts::default(),
        };
        for (id, now) in now.counts {
            let before = before(id);
            let counts = Counts {
                allocated_bytes: now.allocated_bytes - before.allocated_bytes,
                allocated_blocks: now.allocated_blocks - before.allocated_blocks,
                freed_bytes: now.freed_bytes - before.freed_bytes,
                freed_blocks: now.freed_blocks - before.freed_blocks,
            };
            if let Some(recorded) = table::recorded(id).filter(|_| counts != Counts::default()) {
                let Recorded { packed, truncated, scope, .. } = recorded;
                let addresses = all.addresses.push(packed);
                let (is_open, carried) = (SHARED.is_open(id), Carried::default());
                all.stacks.push(RawStack {
                    id,
                    is_open,
                    addresses,
                    scope,
                    truncated,
                    counts,
                    carried,
                    variance: 0.0,
                });
            }
        }
        all
    }
}
