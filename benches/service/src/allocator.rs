//! The global allocator, which a feature chooses.

#[cfg(any(
    feature = "heapgauge",
    feature = "heapgauge-off",
    feature = "heapgauge-paused",
    feature = "heapgauge-scopes",
    feature = "heapgauge-scraped"
))]
#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = {
    let allocator = heapgauge::TrackingAllocator::system();
    if cfg!(feature = "heapgauge-off") { allocator.start_disabled() } else { allocator }
};

#[cfg(feature = "heapgauge-sampled")]
#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system().sample_every(512 << 10);

#[cfg(any(feature = "jemalloc", feature = "jemalloc-prof"))]
#[global_allocator]
static ALLOC: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// jemalloc reads its options through this symbol before `main`.
#[cfg(feature = "jemalloc-prof")]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static OPTIONS: &[u8; 46] = b"prof:true,prof_active:true,lg_prof_sample:19\0\0";

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

#[cfg(feature = "dhat")]
#[global_allocator]
static ALLOC: dhat::Alloc = dhat::Alloc;

#[cfg(feature = "heapscope")]
#[global_allocator]
static ALLOC: heapscope::Alloc = heapscope::Alloc::system();

/// Starts the allocator's profiler, where it does not start by itself. It runs to the end of the process: no
/// profile is written.
pub fn start() {
    #[cfg(feature = "dhat")]
    std::mem::forget(dhat::Profiler::new_heap());
    #[cfg(feature = "heapscope")]
    std::mem::forget(heapscope::Profiler::builder().no_output().build().expect("frame pointers"));
}

/// Pauses the recording of this thread, in the build that measures that.
pub fn start_thread() {
    #[cfg(feature = "heapgauge-paused")]
    std::mem::forget(heapgauge::pause());
}

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
