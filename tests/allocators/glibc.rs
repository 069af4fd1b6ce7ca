//! The causes around the allocator of the C library, and the latency of its allocations.

mod causes;
mod latency;

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((first, rest)) if first == "latency" => {
            latency::run(&rest.iter().map(|number| number.parse().unwrap()).collect::<Vec<_>>());
        }
        _ => causes::run(),
    }
}
