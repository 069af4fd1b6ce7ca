//! Provides an inner allocator that moves a resized block at known sizes, and refuses on request.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// Blocks have room up to the next multiple of this. A block that grows inside its room stays in place, and moves beyond it.
pub const ROOM: usize = 4096;

/// Whether the next resize fails.
pub static REFUSES: AtomicBool = AtomicBool::new(false);
/// Number of requests for zeroed memory.
pub static ZEROED: AtomicUsize = AtomicUsize::new(0);

pub struct Inner;

fn roomy(layout: Layout) -> Layout {
    Layout::from_size_align(layout.size().next_multiple_of(ROOM), layout.align()).unwrap_or(layout)
}

// SAFETY: everything is the system's, always with the layout that `roomy` makes of the one that is given; it
// depends on that one alone, and is as large or larger.
unsafe impl GlobalAlloc for Inner {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(roomy(layout)) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ZEROED.fetch_add(1, Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(roomy(layout)) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, roomy(layout)) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if REFUSES.load(Relaxed) {
            return null_mut();
        }
        let Ok(new) = Layout::from_size_align(new_size, layout.align()) else { return null_mut() };
        if roomy(new) == roomy(layout) {
            return block;
        }
        // SAFETY: the new size is not zero, by the caller's promise.
        let moved = unsafe { System.alloc(roomy(new)) };
        if !moved.is_null() {
            // SAFETY: both are at least this long, and the old one lives until it is given back.
            unsafe {
                moved.copy_from_nonoverlapping(block, layout.size().min(new_size));
                System.dealloc(block, roomy(layout));
            }
        }
        moved
    }
}
