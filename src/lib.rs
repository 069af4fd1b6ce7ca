//! Python's `tracemalloc` for Rust services, as Prometheus and OpenTelemetry metrics: which line of
//! code holds the heap, and which line is growing.
//!
//! A global allocator around the one you have counts every live block by the call stack that allocated
//! it. A collector names the stacks on request, and reports the lines that hold most and those that have
//! grown since a baseline. All of it on an ordinary `cargo build --release`: nothing is sampled unless you
//! [say so](docs::sampling), and no compiler flag is needed.
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
//! File and line need line tables in the profile: `debug = "line-tables-only"`, and `strip = "none"` or a separate debug
//! file. Without them a site is named by its function, in a stripped binary by module and offset.
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
//! * A *block* is one live allocation; its *bytes* are the size the program asked for, not the
//!   size the allocator rounds that up to.
//! * A *site* is a function, a file and a line of your workspace, the most recent on the stack, and *via*, the crate that
//!   allocated there if it is another one. A stack without a line of yours goes by its *nearest* frame: the most recent that
//!   is not part of the standard library, the allocator or a known container ([`LOOK_THROUGH`]).
//! * A block belongs to the site that allocated it, no matter which thread frees it; one that is resized belongs to
//!   the site that resized it.
//! * *live* is allocated minus freed. *delta* is live now minus live in the *baseline*, a snapshot that
//!   the [`Collector`] keeps by its own clock: scrapes, however many, change nothing.
//! * *other* is the remainder beside the exported sites, *untracked* the memory allocated while tracking was
//!   paused or off, *overhead* the memory of heapgauge itself.
//! * A child of `fork` goes on by itself, beginning with its parent's counts, and can use everything here, whatever the
//!   parent's other threads were doing; a server stays with the parent, and its sockets are closed in the child.
//!
//! # Profiles
//!
//! The server has the heap as a pprof profile at `/debug/pprof/heap`, all allocations so far at
//! `/debug/pprof/allocs`, and folded stacks for flame graphs at `/debug/heap/folded`. A program without it takes a
//! [`Profile`], which also subtracts: the allocations, and the growth of live memory, during some work.
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
//! or a meter of OpenTelemetry: [`outlets`](docs::outlets) says which to take, with a complete snippet each.
//!
//! # What it cannot see
//!
//! Memory that does not come from the global allocator: `mmap`, C libraries, thread stacks ([`track`]
//! takes the blocks you report yourself). The owner that keeps a block alive: it names the line that allocated it.
//!
//! # Pages
//!
//! 1. [`production`](docs::production): from a laptop to production, in eight steps
//! 2. [`metrics`](docs::metrics): the meaning of each figure
//! 3. [`outlets`](docs::outlets): the ways to serve them, with a snippet each
//! 4. [`sampling`](docs::sampling): less cost, and the error of estimates
//! 5. [`scopes`](docs::scopes): live bytes by tenant, route or task
//! 6. [`leak_tests`](docs::leak_tests): tests of your program that fail on a leak
//! 7. [`limits`](docs::limits): blind spots, and the effect of each limit
//! 8. [`after_a_kill`](docs::after_a_kill): the dumps of a process that was killed for its memory
//! 9. [`platforms`](docs::platforms): the systems and processors it was tried on
//! 10. [`coming_from_tracemalloc`](docs::coming_from_tracemalloc): the names of Python's module
//!
//! # Coming from `tracemalloc`
//!
//! The words are the same: [`start`], [`stop`], [`is_tracing`], [`clear_traces`], [`traced_memory`],
//! [`Snapshot`]. See [`coming_from_tracemalloc`](docs::coming_from_tracemalloc) for the table and the differences.

#![warn(missing_docs)]
// On docs.rs each item shows the feature that it needs.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(target_family = "wasm")]
compile_error!(
    "heapgauge does not support WebAssembly, where no call stack can be read: declare the allocator, and depend on this \
     crate, for `cfg(not(target_family = \"wasm\"))` only"
);

mod base;

mod record;

mod analyze;

mod export;

pub mod docs;

pub use analyze::ages::AgeBounds;
pub use analyze::collector::budget::set_max_overhead;
pub use analyze::collector::{
    BuildInfo, Collector, CollectorBuilder, DroppedEvents, Leak, Report, ScopeRow, SiteRow, UnnamedBytes,
};
pub use analyze::dump_counts::{DumpCounts, PreviousRun};
pub use analyze::frame::{Frame, Traceback};
pub use analyze::live::{Live, LiveChange};
pub use analyze::memory_parts::{
    AllocatorStatistics, AllocatorUsage, MemoryParts, set_allocator_statistics, trim,
};
pub use analyze::profile::{Profile, ProfileValue};
pub use analyze::scope::ScopeLabels;
pub use analyze::snapshot::domains::{track, untrack};
#[doc(hidden)]
pub use analyze::snapshot::file_names::NamedFrom;
pub use analyze::snapshot::filter::{DomainFilter, Filter};
pub use analyze::snapshot::group::GroupBy;
pub use analyze::snapshot::order::Order;
pub use analyze::snapshot::statistic::{Statistic, StatisticDiff, Top, Totals};
pub use analyze::snapshot::{Snapshot, Trace};
#[doc(hidden)]
pub use analyze::stacks_by_id::{StackById, stacks_by_id};
pub use analyze::symbols::{LOOK_THROUGH, SiteFrame, set_look_through, set_own_crates, set_site_frame};
pub use analyze::testing;
pub use analyze::traceback_of::traceback_of;
#[cfg(feature = "axum")]
#[doc(no_inline)]
pub use axum;
pub use base::error::{Error, ErrorKind};
pub use export::dump::{Dumps, DumpsBuilder};
#[cfg(any(
    feature = "opentelemetry",
    feature = "pprof",
    feature = "prometheus",
    feature = "prometheus-client"
))]
pub use export::emit;
#[cfg(feature = "http")]
pub use export::http;
#[cfg(feature = "http")]
pub use export::http::Expose;
#[cfg(feature = "http")]
pub use export::server::{Server, ServerBuilder, serve, serve_from_env};
#[cfg(feature = "opentelemetry")]
#[doc(no_inline)]
pub use opentelemetry;
#[cfg(feature = "prometheus-client")]
#[doc(no_inline)]
pub use prometheus_client;
pub use record::allocator::TrackingAllocator;
pub use record::control::{
    PauseGuard, TracedMemory, clear_traces, is_tracing, pause, reset_peak, sample_interval,
    set_sample_interval, start, stop, traceback_limit, traced_memory, tracker_memory,
};
#[doc(hidden)]
pub use record::control::{
    end_at_reentrance, list_modules, look_for_dead_stacks, renew_stacks, seed_samples, set_idle_time,
    set_reclaims,
};
pub use record::global_allocator::Traced;
pub use record::measure::{MeasureFuture, Measurement, measure, measure_future};
pub use record::scope::future::{InScope, ScopeFutureExt};
#[cfg(feature = "tower")]
pub use record::scope::layer as scope;
pub use record::scope::{Scope, ScopeGuard};
#[cfg(feature = "prometheus")]
#[doc(no_inline)]
pub use {metrics, metrics_exporter_prometheus};

/// Types that a program may move between threads and share.
#[cfg(test)]
const _: () = {
    const fn is_shared<T: Send + Sync>() {}
    is_shared::<(BuildInfo, Collector, CollectorBuilder, DroppedEvents, Report, SiteRow, UnnamedBytes)>();
    is_shared::<(ScopeLabels, ScopeRow)>();
    is_shared::<(Frame, Traceback, Live, LiveChange, Profile, ProfileValue, Snapshot, Trace)>();
    is_shared::<(Statistic, StatisticDiff, Top, Totals, Filter, DomainFilter, GroupBy, Order)>();
    is_shared::<(Error, ErrorKind, Scope, TracedMemory, TrackingAllocator, MemoryParts, AllocatorUsage)>();
    #[cfg(feature = "http")]
    is_shared::<(Server, ServerBuilder, Expose)>();
    #[cfg(feature = "prometheus")]
    is_shared::<(emit::Prometheus, emit::Metrics, emit::Reporter)>();
    #[cfg(feature = "opentelemetry")]
    is_shared::<emit::OpenTelemetry>();
    #[cfg(feature = "prometheus-client")]
    is_shared::<emit::PrometheusClient>();
};
