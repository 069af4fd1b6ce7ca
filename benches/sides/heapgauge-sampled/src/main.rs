//! Runs heapgauge around the system's allocator: one stack per 512 KiB, exact totals.

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system().sample_every(512 << 10);

fn main() {
    workloads::main(workloads::Side::new("heapgauge-sampled"));
}
