//! Python's `tracemalloc` for Rust services, as Prometheus and OpenTelemetry metrics: which line of
//! code holds the heap, and which line is growing.
//!
//! A global allocator around the one you have counts every live block by the call stack that allocated
//! it. A collector names the stacks when somebody asks, and says which lines hold most and which have
//! grown since a baseline. All of it on an ordinary `cargo build --release`: nothing is sampled unless you
//! [say so](sampling), and no compiler flag is needed.
//!
//! # Ten lines to the first answer
//!
//! ```no_run,standalone_crate
//! # #[cfg(feature = "http")]
//! # mod program {
//! #[global_allocator]
//! static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
//!
//! # pub
//! fn main() {
//!     let _server = heapgauge::serve_from_env(); // http://127.0.0.1:9898/metrics unless told otherwise
//!     // the rest of the program
//! }
//! # }
//! ```
//!
//! File and line need line tables in the profile: `debug = "line-tables-only"`, and `strip = "none"` or a separate debug file. Without them a site is
//! named by its function, in a stripped binary by module and offset.
//!
//! Without a server, from inside:
//!
//! ```standalone_crate
//! use heapgauge::{GroupBy, Snapshot};
//!
//! #[global_allocator]
//! static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
//!
//! fn main() -> Result<(), heapgauge::Error> {
//!     let first = Snapshot::take()?;
//!     let kept: Vec<u64> = Vec::with_capacity(1000);
//!     let last = Snapshot::take()?;
//!     let rows = last.compare_to(&first, GroupBy::Line);
//!     assert_eq!((rows[0].size_diff, rows[0].count_diff), (8000, 1));
//! #   drop(kept);
//!     Ok(())
//! }
//! ```
//!
//! # How to read the numbers
//!
//! * A *block* is one live allocation; its *bytes* are what the program asked for, not what the
//!   allocator rounds that up to.
//! * A *site* is a function, a file and a line: the most recent frame that is not part of the standard
//!   library, the allocator or a known container ([`LOOK_THROUGH`]). So a map that grows is charged to
//!   your line that inserts.
//! * A block belongs to the site that allocated it, whoever frees it; one that is resized belongs to the
//!   site that resized it.
//! * *live* is allocated minus freed. *delta* is live now minus live in the *baseline*, a snapshot that
//!   the [`Collector`] keeps by its own clock: who scrapes, and how often, changes nothing.
//! * *other* is what the exported sites leave out, *untracked* what was allocated while tracking was
//!   paused or off, *overhead* what heapgauge itself holds.
//! * A child of `fork` goes on by itself, beginning with its parent's counts, and can use everything here, whatever the
//!   parent's other threads were doing; a server stays with the parent, and its sockets are closed in the child.
//!
//! # Profiles
//!
//! The server has the heap as a pprof profile at `/debug/pprof/heap`, what was ever allocated at
//! `/debug/pprof/allocs`, and folded stacks for flame graphs at `/debug/heap/folded`. A program without it takes a
//! `Profile` (feature `pprof` or `http`), which also subtracts: what was allocated, and what stayed, during some work.
//!
//! # What it costs
//!
//! Four bytes a block; a look at the stack for each allocation, some nanoseconds; about 260 bytes for a
//! distinct stack, and about 40 more for each thread that allocates from it. The README has the table,
//! measured. Names are read when a collection or a snapshot asks for them.
//!
//! # Where it goes
//!
//! To a server of its own, into an axum server, a registry of `prometheus-client`, the recorder of `metrics`
//! or a meter of OpenTelemetry: [`outlets`] says which to take, with a complete snippet each.
//!
//! # What it cannot see
//!
//! Memory that does not come from the global allocator: `mmap`, C libraries, thread stacks ([`track`]
//! takes what you report yourself). Who keeps a block alive: it names the line that allocated it.
//!
//! # Coming from `tracemalloc`
//!
//! The words are the same: [`start`], [`stop`], [`is_tracing`], [`clear_traces`], [`traced_memory`],
//! [`Snapshot`]. See [`coming_from_tracemalloc`] for the table and the differences.

#![warn(missing_docs)]

mod base;

mod record;

mod analyze;

#[cfg(any(
    feature = "http",
    feature = "opentelemetry",
    feature = "pprof",
    feature = "prometheus",
    feature = "prometheus-client"
))]
mod export;

#[path = "docs/outlets.rs"]
pub mod outlets;

pub use analyze::collector::{
    BuildInfo, Collector, CollectorBuilder, DroppedEvents, Report, SiteRow, Sum, UnnamedBytes,
};
pub use analyze::frame::{Frame, Traceback};
#[cfg(any(feature = "http", feature = "pprof"))]
pub use analyze::profile::{Profile, ProfileValue};
pub use analyze::snapshot::compare::top;
pub use analyze::snapshot::domains::{track, untrack};
pub use analyze::snapshot::filter::{DomainFilter, Filter};
pub use analyze::snapshot::group::GroupBy;
pub use analyze::snapshot::order::Order;
pub use analyze::snapshot::statistic::{Statistic, StatisticDiff, Top, Totals};
pub use analyze::snapshot::{Snapshot, Trace};
pub use analyze::symbols::LOOK_THROUGH;
pub use analyze::traceback_of::traceback_of;
pub use base::error::Error;
#[cfg(any(
    feature = "opentelemetry",
    feature = "pprof",
    feature = "prometheus",
    feature = "prometheus-client"
))]
pub use export::emit;
#[cfg(feature = "http")]
pub use export::env::Expose;
#[cfg(feature = "http")]
pub use export::http;
#[cfg(feature = "http")]
pub use export::server::{Server, ServerBuilder, serve, serve_from_env};
pub use record::allocator::TrackingAllocator;
pub use record::control::{
    PauseGuard, TracedMemory, clear_traces, is_tracing, pause, reset_peak, sample_interval,
    set_sample_interval, start, stop, traceback_limit, traced_memory, tracker_memory,
};
#[doc(hidden)]
pub use record::control::{list_modules, seed_samples};
pub use record::global_allocator::Traced;

/// What each name of Python's `tracemalloc` is called here, and what differs.
///
/// | `tracemalloc` | heapgauge |
/// |---|---|
/// | `start(nframe)` | [`start`]`(frames)`, usually not needed: tracking is on from the first allocation |
/// | `stop()`, `is_tracing()`, `clear_traces()` | [`stop`], [`is_tracing`], [`clear_traces`] |
/// | `get_traceback_limit()` | [`traceback_limit`] |
/// | `get_traced_memory()`, `reset_peak()` | [`traced_memory`], [`reset_peak`] |
/// | `get_tracemalloc_memory()` | [`tracker_memory`] |
/// | `get_object_traceback(obj)` | [`traceback_of`]`(&value)`, for `Box`, `Vec` and `String`, with [`global_allocator!`] |
/// | `take_snapshot()` | [`Snapshot::take`] |
/// | `snapshot.statistics('lineno')` | [`Snapshot::statistics`]`(`[`GroupBy::Line`]`)` |
/// | `snapshot.compare_to(old, 'lineno')` | [`Snapshot::compare_to`]`(&old, `[`GroupBy::Line`]`)` |
/// | `cumulative=True` | [`GroupBy::cumulative`] |
/// | `snapshot.filter_traces((…))` | [`Snapshot::filter_traces`]`(&[…])` |
/// | `snapshot.dump(path)`, `Snapshot.load(path)` | [`Snapshot::save`], [`Snapshot::load`]; JSON |
/// | `'filename'`, `'lineno'`, `'traceback'` | [`GroupBy::File`], [`GroupBy::Line`], [`GroupBy::Traceback`]; also by function and crate |
/// | `Filter`, `DomainFilter`, `Frame`, `Traceback`, `Trace`, `Statistic`, `StatisticDiff` | the same names |
/// | `PyTraceMalloc_Track`, `PyTraceMalloc_Untrack` | [`track`], [`untrack`] |
/// | – | [`pause`]: leaves the calling thread's allocations untracked for a while |
///
/// # What differs
///
/// * Tracking is on from the first allocation of the process; `.paused()` of the allocator changes that.
/// * Cumulative statistics count a frame that occurs several times in a traceback once, not once for
///   each occurrence: a recursion does not multiply its bytes.
/// * Rows of a comparison come in `tracemalloc`'s order, by absolute change; [`Order::Growth`] puts what
///   grew before what shrank.
/// * Frames carry functions, and inlined functions are frames.
/// * A snapshot holds counts by traceback, not one trace a block. Its size depends on how many distinct
///   stacks there are, not on how many blocks.
/// * A traceback begins with the site's frame; the frames of the standard library and of containers
///   before it are left out. It keeps 32 frames by default, where `tracemalloc` keeps one.
/// * Blocks from before [`stop`] or [`clear_traces`] are ignored when they are freed, as there.
pub mod coming_from_tracemalloc {}

/// Left on for good: stacks of few allocations, totals of all.
///
/// Looking at the stack of every allocation costs some percent in a program that does little but allocate. With a
/// sample interval heapgauge looks at one allocation every so many bytes, and estimates from it what each line holds:
///
/// ```standalone_crate
/// #[global_allocator]
/// static ALLOC: heapgauge::TrackingAllocator =
///     heapgauge::TrackingAllocator::system().sample_every(512 << 10);
///
/// let report = heapgauge::Collector::new().collect();
/// assert_eq!(report.sample_interval_bytes, 524_288);
/// // Exact, as ever.
/// assert_eq!(report.live_bytes, report.allocated_bytes - report.deallocated_bytes);
/// // Estimates, each with its standard error.
/// for site in &report.sites {
///     println!("{}:{} {} ± {} bytes", site.file(), site.line(), site.live_bytes, site.live_stderr_bytes);
/// }
/// ```
///
/// `HEAPGAUGE_SAMPLE=512KiB` sets the interval of a program that calls `serve_from_env`, and
/// [`set_sample_interval`] that of any, while it runs. 0 means every allocation, and so does 1.
///
/// # When
///
/// Stay exact while you can afford it: exact numbers are there at once, small leaks included. Sample where the
/// difference shows in the latency or the processor time of a service (compare one process with its neighbours), or
/// where thousands of processes run for good and only leaks of many megabytes matter. An interval of 512 KiB is
/// what other heap profilers take. A sampled service may be switched to exact for a quarter of an hour when something
/// is to be looked at closely.
///
/// # What is exact
///
/// * Totals: live bytes and blocks, allocated and freed ones, the peak as in exact mode, untracked and overhead.
/// * Blocks of at least the interval ([`exact_from`](TrackingAllocator::exact_from) sets another size): the stack of
///   each is recorded, and it counts as what it is. So a line that allocates large buffers has no error.
/// * Blocks of lines from times when every allocation was recorded. A block keeps the weight it was recorded with
///   until it is freed, whatever the interval is then.
///
/// # What is estimated
///
/// Bytes and blocks of sites, tracebacks, profiles. A block of `s` bytes is sampled with probability
/// `p = 1 − exp(−s / interval)`: sample points are a Poisson process over the bytes that a thread allocates. If it is,
/// it counts as `s / p` bytes in `1 / p` blocks, about one interval of bytes where it is small. That is right on
/// average for blocks of any sizes in any order (the weight is each block's, never that of a sum), and the standard
/// error is known: the root of the sum of `s² (1 − p) / p²` over the sampled blocks that are live. For blocks well
/// below the interval that is
///
/// ```text
/// error = √(live bytes × interval)
/// ```
///
/// | a site holds | at 512 KiB: samples, error | at 64 KiB |
/// |---|---|---|
/// | 1 MiB | 2, ± 71 % | 16, ± 25 % |
/// | 10 MiB | 20, ± 22 % | 160, ± 7.9 % |
/// | 100 MiB | 200, ± 7.1 % | 1,600, ± 2.5 % |
/// | 1 GiB | 2,048, ± 2.2 % | 16,384, ± 0.8 % |
///
/// Two times of three an estimate is off by less than its error, and by less than three times that practically always.
/// [`SiteRow::live_stderr_bytes`], `heap_site_live_stderr_bytes{site,function}`, [`Trace::stderr`] and
/// [`StatisticDiff::diff_stderr`] tell it; a printed row, `/memory/snapshots` and the page `/debug/heap` put `±` behind or
/// below their figures. The shipped alerts want a growth above three standard errors. An error of 0 means exact.
///
/// # What it cannot see
///
/// * A site without a sample. One that holds `L` bytes in small blocks has none with probability `exp(−L / interval)`:
///   1 MiB at 512 KiB in one case of seven, 4 MiB in one of 3,000. What no sample stands for is in *other*.
/// * A growth of less than about three errors: at 512 KiB 4.5 MiB on a line that held nothing (9 for the alert that
///   looks at five minutes), 45 MiB on one that held 200.
/// * The stack of a block that was not sampled: [`traceback_of`] is `None`.
///
/// # How it adds up
///
/// Sums of estimates are estimates, and the total is known. [`Report::other`] is what the exported sites leave of the
/// exact total; where they are estimated to hold more than there is, which happens where the whole heap is some
/// intervals, their estimates are scaled down to the total, so that `sum(heap_site_live_bytes) <= heap_live_bytes`
/// holds in each exposition. Snapshots keep their estimates as they are; under `/memory/snapshots` and `/debug/heap/` the
/// total is then that of the rows.
///
/// An estimated site has one more series, so 35 are exported at most instead of 40.
///
/// `realloc` is a free and an allocation: chance decides anew, by the new size. In a thread that is
/// [`pause`]d other blocks keep their site when they are resized, but one that chance has decided about belongs to the
/// line that resizes it.
///
/// # What it costs
///
/// A block that is not sampled costs its tag, four bytes, and two additions for the allocation and two for the free:
/// 2 to 4 ns together. A sample costs a stack walk and some atomic additions, about a microsecond. The README compares.
pub mod sampling {}
