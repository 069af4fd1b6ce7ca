//! The causes around mimalloc.

mod causes;
mod mimalloc_statistics;

use heapgauge::TrackingAllocator;
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOC: TrackingAllocator<MiMalloc> = TrackingAllocator::new(MiMalloc);

fn main() {
    heapgauge::set_allocator_statistics(mimalloc_statistics::MimallocStatistics);
    causes::run();
}
