//! Names of real allocations, around an allocator that `global_allocator!` declares: only then does `traceback_of`
//! read the tags of blocks.

#[macro_use]
#[path = "../support/process.rs"]
mod process;

mod lines;
#[cfg(target_os = "linux")]
mod loaded_code;

heapgauge::global_allocator! {
    static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
}
