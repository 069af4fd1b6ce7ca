//! Tests an allocator that forwards only some layouts to a `TrackingAllocator`: those are counted, and nothing is read behind
//! other blocks.
#![cfg(target_os = "linux")]

use heapgauge::{TrackingAllocator, traceback_of};
use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;

static TRACKED: TrackingAllocator = TrackingAllocator::system();

/// Blocks of this size end at the end of a page, and the next page cannot be read.
const GUARDED: usize = 777;

struct Guarded;

/// A multiple of the system's page size: both ends of a mapping are aligned to it.
const PAGE: usize = 64 << 10;

// SAFETY: blocks of one size are each at the end of a mapping of their own; all others are the tracked allocator's. Which
// of the two a block is depends on its layout alone.
unsafe impl GlobalAlloc for Guarded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() != GUARDED || layout.align() != 1 {
            // SAFETY: the caller's duties.
            return unsafe { TRACKED.alloc(layout) };
        }
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh mapping of two pages, the second of which becomes unreadable.
        unsafe {
            let pages =
                libc::mmap(std::ptr::null_mut(), 2 * PAGE, libc::PROT_READ | libc::PROT_WRITE, kind, -1, 0);
            if pages == libc::MAP_FAILED {
                return std::ptr::null_mut();
            }
            libc::mprotect(pages.byte_add(PAGE), PAGE, libc::PROT_NONE);
            pages.cast::<u8>().add(PAGE - GUARDED)
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if layout.size() != GUARDED || layout.align() != 1 {
            // SAFETY: the caller's duties.
            return unsafe { TRACKED.dealloc(block, layout) };
        }
        // SAFETY: the mapping that `alloc` made.
        unsafe { libc::munmap(block.sub(PAGE - GUARDED).cast(), 2 * PAGE) };
    }
}

#[global_allocator]
static ALLOC: Guarded = Guarded;

/// A probe with another layout must not say that this block has a tag: reading it is a segmentation fault.
#[test]
fn nothing_is_read_behind_a_block_of_another_allocator() {
    let before = heapgauge::traced_memory().current;
    let tracked = black_box(vec![1u8; 100_000]);
    assert!(heapgauge::traced_memory().current >= before + 100_000);
    let guarded = black_box(vec![2u8; GUARDED]);
    assert_eq!(traceback_of(&guarded), None);
    assert_eq!(traceback_of(&guarded.into_boxed_slice()), None);
    // This block has a tag, but heapgauge cannot know that.
    assert_eq!(traceback_of(&tracked), None);
}
