//! Counts are exact, whichever threads allocate and free.

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

#[test]
fn traced_memory_counts_every_byte() {
    let before = heapgauge::traced_memory();
    let boxes: Vec<Box<[u8; 48]>> = (0..12_345).map(|_| Box::new([1; 48])).collect();
    let after = heapgauge::traced_memory();
    assert_eq!(after.current - before.current, 12_345 * 48 + 12_345 * 8);
    std::thread::spawn(move || drop(boxes)).join().unwrap();
    let end = heapgauge::traced_memory();
    assert!(end.current < before.current + 4096, "{end:?} {before:?}");
}
