//! Another allocator inside: jemalloc gives the memory, heapgauge says which line holds it.

use heapgauge::{GroupBy, Snapshot, TrackingAllocator};
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOC: TrackingAllocator<Jemalloc> = TrackingAllocator::new(Jemalloc);

#[inline(never)]
fn load(documents: usize) -> Vec<String> {
    (0..documents).map(|number| format!("document {number:04} of the library")).collect() // kept
}

fn main() -> Result<(), heapgauge::Error> {
    let before = Snapshot::take()?;
    let documents = load(1_000);
    let after = Snapshot::take()?;
    // One row a line, as Python's `tracemalloc` prints it.
    for row in after.compare_to(&before, GroupBy::Line).iter().take(2) {
        println!("{row}");
    }
    println!("{} documents, {} bytes live", documents.len(), heapgauge::traced_memory().current);
    Ok(())
}
