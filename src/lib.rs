//! Python's `tracemalloc` for Rust services, as Prometheus and OpenTelemetry metrics: which line of
//! code holds the heap, and which line is growing.

#![warn(missing_docs)]

// The write side: runs inside the allocator.
mod alloc;
mod book;
mod counters;
mod gate;
mod init;
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

pub use alloc::TrackingAllocator;
pub use control::{
    PauseGuard, TracedMemory, clear_traces, is_tracing, pause, reset_peak, start, stop, traceback_limit,
    traced_memory, tracker_memory,
};
pub use error::Error;
