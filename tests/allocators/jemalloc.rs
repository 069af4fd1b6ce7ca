//! The causes around jemalloc.

mod causes;
mod jemalloc_statistics;

use heapgauge::TrackingAllocator;
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOC: TrackingAllocator<Jemalloc> = TrackingAllocator::new(Jemalloc);

fn main() {
    heapgauge::set_allocator_statistics(jemalloc_statistics::JemallocStatistics);
    causes::run();
}
