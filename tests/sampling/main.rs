//! Tests sampling: estimates, and changes of the interval. Each test has a process of its own.

#[macro_use]
#[path = "../support/process.rs"]
mod process;
#[path = "../support/random.rs"]
mod random;

mod estimates;
mod interval_changes;
mod scopes;

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system().sample_every(512 << 10);
