//! Python's `tracemalloc` for Rust services, as Prometheus and OpenTelemetry metrics: which line of
//! code holds the heap, and which line is growing.

mod error;
mod raw;

pub use error::Error;
