//! Runs heapgauge around the system's allocator: every block, up to 32 frames of each stack.

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

fn main() {
    workloads::main(workloads::Side {
        whole_stacks: Some(|| {
            heapgauge::stop();
            heapgauge::start(64).expect("64 frames are allowed");
        }),
        tracker_memory: Some(heapgauge::tracker_memory),
        ..workloads::Side::new("heapgauge")
    });
}
