//! Runs heapgauge around jemalloc.

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator<tikv_jemallocator::Jemalloc> =
    heapgauge::TrackingAllocator::new(tikv_jemallocator::Jemalloc);

fn main() {
    workloads::main(workloads::Side {
        whole_stacks: Some(|| {
            heapgauge::stop();
            heapgauge::start(64).expect("64 frames are allowed");
        }),
        tracker_memory: Some(heapgauge::tracker_memory),
        ..workloads::Side::new("heapgauge-jemalloc")
    });
}
