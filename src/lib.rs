//! Python's `tracemalloc` for Rust services, as Prometheus and OpenTelemetry metrics: which line of
//! code holds the heap, and which line is growing.

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
mod stack;
mod stack_cache;
mod stacks;
mod sync;
mod tag;
mod tag_map;
mod thread;
mod tracker;

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
mod snapshot;
mod statistics;
mod symbols;
mod traced;

// The outlets.
#[cfg(feature = "http")]
mod config;
#[cfg(feature = "prometheus")]
mod emit;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "http")]
mod serve;

pub use alloc::TrackingAllocator;
pub use collector::{BuildInfo, Collector, CollectorBuilder, DroppedEvents, Report, SiteRow, Sum};
pub use control::{
    PauseGuard, TracedMemory, clear_traces, is_tracing, pause, reset_peak, start, stop, traceback_limit,
    traced_memory, tracker_memory,
};
pub use domains::{track, untrack};
pub use error::Error;
pub use filter::{DomainFilter, Filter};
pub use frame::{Frame, Traceback};
#[cfg(feature = "http")]
pub use serve::{Server, ServerBuilder, serve, serve_from_env};
pub use snapshot::{Snapshot, Trace};
pub use statistics::{GroupBy, Order, Statistic, StatisticDiff, Top, Totals, top};
pub use symbols::LOOK_THROUGH;
pub use traced::{Traced, traceback_of};
