//! Tracks jemalloc instead of the system's allocator.

use heapgauge::{GroupBy, Snapshot, TrackingAllocator};
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOC: TrackingAllocator<Jemalloc> = TrackingAllocator::new(Jemalloc);

#[inline(never)]
fn load(documents: usize) -> Vec<String> {
    let mut library = Vec::with_capacity(documents);
    for _ in 0..documents {
        library.push("a line of text. ".repeat(30)); // kept
    }
    library
}

fn main() -> Result<(), heapgauge::Error> {
    let before = Snapshot::take()?;
    let documents = load(1_000);
    let after = Snapshot::take()?;
    // The line that changed most, as Python's `tracemalloc` prints it.
    println!("{}", after.compare_to(&before, GroupBy::Line)[0]);
    println!("{} documents, {} bytes live", documents.len(), heapgauge::traced_memory().current);
    Ok(())
}
