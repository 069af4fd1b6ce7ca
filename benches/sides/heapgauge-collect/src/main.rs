//! Runs heapgauge with its read side, to measure collections. A package of its own, so that the timed side does not contain the
//! dependencies of the outlets.

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

fn main() {
    workloads::main(workloads::Side {
        tracker_memory: Some(heapgauge::tracker_memory),
        collector: Some(|| {
            let collector = heapgauge::Collector::new();
            Box::new(move || {
                let report = collector.collect();
                workloads::Collected {
                    number: report.number,
                    named_blocks: report.sites.iter().map(|site| site.live.now.blocks).sum(),
                }
            })
        }),
        ..workloads::Side::new("heapgauge-collect")
    });
}
