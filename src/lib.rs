//! Python's `tracemalloc` for Rust services, as Prometheus and OpenTelemetry metrics: which line of
//! code holds the heap, and which line is growing.
//!
//! A global allocator around the one you have counts every live block by the call stack that allocated
//! it. A collector names the stacks when somebody asks, and says which lines hold most and which have
//! grown since a baseline. All of it on an ordinary `cargo build --release`: nothing is sampled, and no
//! compiler flag is needed.
//!
//! # Ten lines to the first answer
//!
//! ```no_run
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
//! File and line need line tables in the profile: `debug = "line-tables-only"`. Without them a site is
//! named by its function, in a stripped binary by module and offset.
//!
//! Without a server, from inside:
//!
//! ```
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
//! * A child of `fork` goes on by itself, beginning with its parent's counts; a server stays with the parent.
//!
//! # Profiles
//!
//! The server has the heap as a pprof profile at `/debug/pprof/heap`, what was ever allocated at
//! `/debug/pprof/allocs`, and folded stacks for flame graphs at `/debug/heap/folded`. A program without it takes a
//! `Profile` (feature `pprof` or `http`), which also subtracts: what was allocated, and what stayed, during some work.
//!
//! # What it costs
//!
//! Four bytes a block; a look at the stack for each allocation, some nanoseconds; about 300 bytes for a
//! distinct stack, and about 60 more for each thread that allocates from it. The README has the table,
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

// The write side: runs inside the allocator.
mod alloc;
mod book;
mod counters;
mod gate;
mod init;
mod layouts;
mod memory;
mod rules;
mod sample;
mod stack;
mod stack_cache;
mod stacks;
mod sync;
mod tag;
mod tag_map;
mod thread;
mod tracker;

#[cfg(test)]
mod fuzz;

// The border.
mod control;
mod error;
mod raw;
mod trim;

// The read side.
mod collector;
mod domains;
mod filter;
mod frame;
mod process;
#[cfg(any(feature = "http", feature = "pprof"))]
// Each of the two reads its part of it.
#[cfg_attr(not(all(feature = "http", feature = "pprof")), allow(dead_code))]
mod profile;
mod snapshot;
mod statistics;
mod symbols;
mod traced;
#[cfg(any(feature = "http", test))]
mod tree;

// The outlets.
#[cfg(feature = "http")]
mod config;
#[cfg(any(
    feature = "opentelemetry",
    feature = "pprof",
    feature = "prometheus",
    feature = "prometheus-client"
))]
pub mod emit;
#[cfg(feature = "http")]
pub mod http;
pub mod outlets;
#[cfg(feature = "http")]
mod serve;

pub use alloc::TrackingAllocator;
pub use collector::{BuildInfo, Collector, CollectorBuilder, DroppedEvents, Report, SiteRow, Sum};
#[doc(hidden)]
pub use control::seed_samples;
pub use control::{
    PauseGuard, TracedMemory, clear_traces, is_tracing, pause, reset_peak, sample_interval,
    set_sample_interval, start, stop, traceback_limit, traced_memory, tracker_memory,
};
pub use domains::{track, untrack};
pub use error::Error;
pub use filter::{DomainFilter, Filter};
pub use frame::{Frame, Traceback};
#[cfg(any(feature = "http", feature = "pprof"))]
pub use profile::{Profile, ProfileValue};
#[cfg(feature = "http")]
pub use serve::{Server, ServerBuilder, serve, serve_from_env};
pub use snapshot::{Snapshot, Trace};
pub use statistics::{GroupBy, Order, Statistic, StatisticDiff, Top, Totals, top};
pub use symbols::LOOK_THROUGH;
pub use traced::{Traced, traceback_of};

/// What each name of Python's `tracemalloc` is called here, and what differs.
///
/// | `tracemalloc` | heapgauge |
/// |---|---|
/// | `start(nframe)` | [`start`]`(frames)`, usually not needed: tracking is on from the first allocation |
/// | `stop()`, `is_tracing()`, `clear_traces()` | [`stop`], [`is_tracing`], [`clear_traces`] |
/// | `get_traceback_limit()` | [`traceback_limit`] |
/// | `get_traced_memory()`, `reset_peak()` | [`traced_memory`], [`reset_peak`] |
/// | `get_tracemalloc_memory()` | [`tracker_memory`] |
/// | `get_object_traceback(obj)` | [`traceback_of`]`(&value)`, for `Box`, `Vec` and `String` |
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
