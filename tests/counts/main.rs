//! Tests exact counts of whole processes: each test has a process of its own, around an ordinary tracked allocator.

#[cfg(unix)]
#[path = "../support/at_end.rs"]
mod at_end;
#[macro_use]
#[path = "../support/process.rs"]
mod process;

mod container_lines;
mod exact_numbers;
#[cfg(unix)]
mod fork_names;
mod many_threads;
#[cfg(all(feature = "prometheus", feature = "_opentelemetry-sdk", feature = "prometheus-client"))]
mod outlets;

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
