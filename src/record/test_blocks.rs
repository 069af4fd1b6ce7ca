//! Traced blocks for unit tests, which have no global allocator of their own.

use crate::record::allocator::TrackingAllocator;
use std::alloc::{GlobalAlloc, Layout};

static ALLOC: TrackingAllocator = TrackingAllocator::system();

/// A block, by address so that threads can hand it on.
pub(crate) type Block = (usize, Layout);

/// Allocates a traced block.
pub(crate) fn allocate(size: usize) -> Block {
    let layout = Layout::from_size_align(size, 8).unwrap();
    // SAFETY: the size is not zero.
    let block = unsafe { ALLOC.alloc(layout) };
    assert!(!block.is_null());
    (block.expose_provenance(), layout)
}

/// Frees one.
pub(crate) fn free((block, layout): Block) {
    // SAFETY: made by `allocate` with this layout, and freed once.
    unsafe { ALLOC.dealloc(std::ptr::with_exposed_provenance_mut(block), layout) };
}
