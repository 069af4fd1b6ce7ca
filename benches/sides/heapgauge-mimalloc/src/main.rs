//! Runs heapgauge around mimalloc.

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator<mimalloc::MiMalloc> =
    heapgauge::TrackingAllocator::new(mimalloc::MiMalloc);

fn main() {
    workloads::main(workloads::Side {
        whole_stacks: Some(|| {
            heapgauge::stop();
            heapgauge::start(64).expect("64 frames are allowed");
        }),
        tracker_memory: Some(heapgauge::tracker_memory),
        ..workloads::Side::new("heapgauge-mimalloc")
    });
}
