//! A block of the program, whose lines of allocation are known.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::hint::black_box;

pub const FILE: &str = file!();

pub fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

/// A block of the program, made without another allocation.
#[derive(Debug)]
pub struct Block {
    pub start: *mut u8,
    pub size: usize,
}

// SAFETY: only its owner reaches the memory.
unsafe impl Send for Block {}

impl Block {
    #[inline(never)]
    pub fn new(size: usize) -> Block {
        // SAFETY: the size is not zero.
        let start = unsafe { alloc(layout(size)) };
        assert!(!start.is_null());
        Block { start: black_box(start), size }
    }
    pub const LINE: u32 = line!() - 4;

    #[inline(never)]
    pub fn zeroed(size: usize) -> Block {
        // SAFETY: the size is not zero.
        let start = unsafe { alloc_zeroed(layout(size)) };
        assert!(!start.is_null());
        Block { start: black_box(start), size }
    }
    pub const ZEROED_LINE: u32 = line!() - 4;

    /// Resizes the block. Returns false if the allocator refuses.
    #[inline(never)]
    pub fn resize(&mut self, size: usize) -> bool {
        // SAFETY: made with this layout; the new size is not zero.
        let moved = unsafe { realloc(self.start, layout(self.size), size) };
        if !moved.is_null() {
            (self.start, self.size) = (black_box(moved), size);
        }
        !moved.is_null()
    }
    pub const RESIZE_LINE: u32 = line!() - 6;
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: made with this layout, and dropped once.
        unsafe { dealloc(self.start, layout(self.size)) }
    }
}
