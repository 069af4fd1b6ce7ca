//! Provides an inner allocator that takes nearly no instructions while a path is measured.
//!
//! The C library's `malloc` would be most of many counts, and differ by its version.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Returns consecutive addresses and never reuses one, between [`begin`] and [`end`]; the system's allocator otherwise.
pub struct Inner;

/// Size of the mapping; only touched pages use memory.
const ROOM: usize = 256 << 20;
/// A block grows in place up to so many bytes, or by half.
const GROWTH: usize = 256;

static IS_USED: AtomicBool = AtomicBool::new(false);
static FIRST: AtomicUsize = AtomicUsize::new(0);
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Takes blocks from a mapping from now on. Relaxed throughout: paths with several threads run one after the other.
pub fn begin() {
    if FIRST.load(Ordering::Relaxed) == 0 {
        let (access, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        );
        // SAFETY: a fresh anonymous mapping; it touches no memory that exists.
        let mapping = unsafe { libc::mmap(null_mut(), ROOM, access, kind, -1, 0) };
        assert_ne!(mapping, libc::MAP_FAILED);
        FIRST.store(mapping.expose_provenance(), Ordering::Relaxed);
        NEXT.store(mapping.addr(), Ordering::Relaxed);
    }
    IS_USED.store(true, Ordering::Relaxed);
}

pub fn end() {
    IS_USED.store(false, Ordering::Relaxed);
}

fn is_inside(block: *mut u8) -> bool {
    block.addr().wrapping_sub(FIRST.load(Ordering::Relaxed)) < ROOM
}

fn room(size: usize) -> usize {
    (size + size / 2).max(GROWTH)
}

fn cut(layout: Layout) -> *mut u8 {
    let from = NEXT.load(Ordering::Relaxed).next_multiple_of(layout.align().max(16));
    let to = from + room(layout.size());
    assert!(to <= FIRST.load(Ordering::Relaxed) + ROOM, "no room left");
    NEXT.store(to, Ordering::Relaxed);
    std::ptr::with_exposed_provenance_mut(from)
}

// SAFETY: blocks are the system's, or lie side by side in a mapping that is never unmapped; threads take turns.
unsafe impl GlobalAlloc for Inner {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if IS_USED.load(Ordering::Relaxed) {
            return cut(layout);
        }
        // SAFETY: the caller's duties.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if IS_USED.load(Ordering::Relaxed) {
            // Zero since the mapping was made.
            return cut(layout);
        }
        // SAFETY: the caller's duties.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if is_inside(block) {
            // Paths resize a block once, and not by more.
            assert!(new_size <= room(layout.size()), "{new_size} bytes instead of {}", layout.size());
            return block;
        }
        // SAFETY: the caller's duties; not cut from the mapping.
        unsafe { System.realloc(block, layout, new_size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if !is_inside(block) {
            // SAFETY: the caller's duties; not cut from the mapping.
            unsafe { System.dealloc(block, layout) }
        }
    }
}
