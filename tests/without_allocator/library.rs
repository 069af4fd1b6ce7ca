//! Tracks an allocator of its own in a library, which `unloaded_library.rs` loads, uses and closes.

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

/// Allocates on the calling thread, and returns how many bytes are live meanwhile.
#[unsafe(no_mangle)]
pub extern "C" fn live_bytes() -> u64 {
    let kept = std::hint::black_box(vec![7_u8; 1_000]);
    let live = heapgauge::traced_memory().current;
    drop(kept);
    live
}
