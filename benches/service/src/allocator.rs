//! The global allocator, which a feature chooses.

#[cfg(any(feature = "heapgauge", feature = "heapgauge-off"))]
#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = {
    let allocator = heapgauge::TrackingAllocator::system();
    if cfg!(feature = "heapgauge-off") { allocator.start_disabled() } else { allocator }
};

#[cfg(feature = "heapgauge-sampled")]
#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system().sample_every(512 << 10);

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOC: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[cfg(feature = "heapgauge-jemalloc")]
#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator<tikv_jemallocator::Jemalloc> =
    heapgauge::TrackingAllocator::new(tikv_jemallocator::Jemalloc);

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOC: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(feature = "heapgauge-mimalloc")]
#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator<mimalloc::MiMalloc> =
    heapgauge::TrackingAllocator::new(mimalloc::MiMalloc);

/// Returns the number of allocations and resizes so far. `None` where they are not counted.
pub fn allocations() -> Option<u64> {
    #[cfg(feature = "counting")]
    return Some(counting::COUNT.load(std::sync::atomic::Ordering::Relaxed));
    #[cfg(not(feature = "counting"))]
    None
}

#[cfg(feature = "counting")]
mod counting {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    pub static COUNT: AtomicU64 = AtomicU64::new(0);

    struct Counting;

    #[global_allocator]
    static ALLOC: Counting = Counting;

    // SAFETY: each method hands its request to the system's allocator.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            COUNT.fetch_add(1, Relaxed);
            // SAFETY: the caller's duties.
            unsafe { System.alloc(layout) }
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            COUNT.fetch_add(1, Relaxed);
            // SAFETY: as above.
            unsafe { System.alloc_zeroed(layout) }
        }

        unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
            COUNT.fetch_add(1, Relaxed);
            // SAFETY: as above.
            unsafe { System.realloc(block, layout, new_size) }
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            // SAFETY: as above.
            unsafe { System.dealloc(block, layout) }
        }
    }
}
