//! A block's stack id ⇄ the few bytes that remember it: behind the block, or in the tag map.
//!
//! Small blocks are asked for with [`TAG_BYTES`] more, and the id is stored right behind what the
//! program asked for: one load finds it, no table, no lock. A block of [`large::GRANULE`] bytes or
//! more keeps its own size and its id goes to the tag map ([`large`]): four bytes more would push a power of
//! two into the next size class (measured around jemalloc: +22 % at 4,096 bytes), and would dirty the
//! last page of a block that the system hands out untouched. Which of the two holds is a function of
//! the layout alone, and a block is always freed with the layout it was allocated with.

pub(crate) mod large;

use crate::base::hint::unlikely;
use std::alloc::Layout;
use std::hint::assert_unchecked;

/// A block that is not traced: allocated while off or paused.
pub(crate) const UNTRACKED: u32 = 0;
/// A block of heapgauge's own.
pub(crate) const OVERHEAD: u32 = 1;
/// First id of a stack. Above it, an id below `epoch::base` is stale.
pub(crate) const FIRST: u32 = 2;
/// Set in the tag of a sampled block; the rest is its stack id. No id has it, so no counters belong to a
/// tag that has it, and a look for them finds that out: blocks that are not sampled pay nothing.
pub(crate) const SAMPLED: u32 = 1 << 31;

/// Blocks of fewer bytes have their id behind them.
pub(crate) const SMALL: usize = 1 << 10;
const _: () = assert!(SMALL == large::GRANULE);

const TAG_BYTES: usize = size_of::<u32>();

/// Returns the layout to ask the inner allocator for; `None` where the size would exceed the limit of a layout.
#[inline(always)]
pub(crate) fn inner_layout(layout: Layout) -> Option<Layout> {
    if is_in_map(layout.size()) {
        return Some(layout);
    }
    if large::AVAILABLE && !unlikely(layout.align() > LARGE_ALIGN) {
        // SAFETY: a layout's alignment is one, and less than 2 KiB rounded up to this one overflow nothing.
        return Some(unsafe { Layout::from_size_align_unchecked(layout.size() + TAG_BYTES, layout.align()) });
    }
    // A small size and any alignment: only an alignment near the limit can fail here.
    Layout::from_size_align(layout.size() + TAG_BYTES, layout.align()).ok()
}

/// Beyond this alignment sums are checked.
const LARGE_ALIGN: usize = 1 << 20;

/// Returns the layout that [`inner_layout`] gave when this block was allocated.
///
/// # Safety
///
/// * `inner_layout(layout)` was `Some`, as it was for every block that exists.
#[inline(always)]
pub(crate) unsafe fn inner_layout_unchecked(layout: Layout) -> Layout {
    debug_assert!(inner_layout(layout).is_some(), "no block has this layout: {layout:?}");
    if is_in_map(layout.size()) {
        return layout;
    }
    // SAFETY: the same arguments passed the check of `from_size_align` when the block was made.
    unsafe { Layout::from_size_align_unchecked(layout.size() + TAG_BYTES, layout.align()) }
}

/// Stores `id` for the block. False when there was no memory to keep it in: the block then counts as
/// [`UNTRACKED`], now and when it is freed.
///
/// # Safety
///
/// * `block` is a live block that the inner allocator made for `inner_layout(layout)`.
/// * No other thread reads or writes its tag meanwhile.
#[inline(always)]
pub(crate) unsafe fn write(block: *mut u8, size: usize, id: u32) -> bool {
    if is_in_map(size) {
        if size >= large::MARKED {
            large::mark(block.addr(), size);
        }
        return large::set(block.addr(), id);
    }
    // SAFETY: it is not in the map, and the caller's duties.
    unsafe { write_behind(block, size, id) };
    true
}

/// Removes the mark that [`write()`] set beside the id, before a block of this size is freed or resized.
#[inline(always)]
pub(crate) fn unmark(block: *const u8, size: usize) {
    if large::AVAILABLE && unlikely(size >= large::MARKED) {
        large::unmark(block.addr());
    }
}

/// Sets the mark again that [`unmark`] has removed, where the block stays as it was.
#[cold]
pub(crate) fn mark_again(block: *const u8, size: usize) {
    if large::AVAILABLE && size >= large::MARKED {
        large::mark(block.addr(), size);
    }
}

/// Returns the id that [`write()`] kept for the block.
///
/// # Safety
///
/// * As for [`write()`]; and `write` was called for this block with this size.
#[inline(always)]
pub(crate) unsafe fn read(block: *const u8, size: usize) -> u32 {
    if is_in_map(size) {
        return large::get(block.addr());
    }
    // SAFETY: it is not in the map, and the caller's duties.
    unsafe { read_behind(block, size) }
}

/// Returns whether the id of a block of this size is in the tag map: both sides ask here.
#[inline(always)]
fn is_in_map(size: usize) -> bool {
    large::AVAILABLE && unlikely(size >= large::GRANULE)
}

// ── The small block ─────────────────────────────────────────────────────────────────────────────

/// Returns whether a block is small and aligned to at most [`LARGEST_SMALL_ALIGN`] and its own size, as nearly all are: what
/// follows is then the same as above, with less to ask.
#[inline(always)]
pub(crate) fn is_small(size: usize, align: usize) -> bool {
    // One comparison for a size that is neither too small nor too large; the few below SMALL that it leaves out have
    // nothing to gain.
    let is_small = !unlikely(size.wrapping_sub(align) >= SMALL - LARGEST_SMALL_ALIGN)
        && !unlikely(align > LARGEST_SMALL_ALIGN);
    if is_small {
        // The inner allocator need not compare them again.
        // SAFETY: as said.
        unsafe { assert_unchecked(size < SMALL && align <= LARGEST_SMALL_ALIGN && align <= size) };
    }
    is_small
}

/// Alignment that every allocator gives, and nearly all blocks ask for.
const LARGEST_SMALL_ALIGN: usize = 8;

/// Returns whether the id of a block of this size is stored behind it, whatever its alignment.
#[inline(always)]
pub(crate) fn is_behind(size: usize) -> bool {
    size < SMALL
}

/// Returns the [`inner_layout`] of a small block.
///
/// # Safety
///
/// * It is one: see [`is_small`].
#[inline(always)]
pub(crate) unsafe fn inner_layout_of_small(layout: Layout) -> Layout {
    debug_assert!(is_small(layout.size(), layout.align()), "not a small block: {layout:?}");
    // SAFETY: a layout's alignment is one, and less than 2 KiB rounded up to less than 16 overflow nothing.
    unsafe { Layout::from_size_align_unchecked(inner_size_of_small(layout.size()), layout.align()) }
}

/// Returns the size to ask the inner allocator for, for a small block.
#[inline(always)]
pub(crate) fn inner_size_of_small(size: usize) -> usize {
    size + TAG_BYTES
}

/// Stores the id behind a block below [`SMALL`] bytes, as [`write()`] does.
///
/// # Safety
///
/// * As for [`write()`].
#[inline(always)]
pub(crate) unsafe fn write_behind(block: *mut u8, size: usize, id: u32) {
    debug_assert!(!block.is_null() && is_behind(size), "no tag behind a block of {size} bytes");
    // SAFETY: the inner layout is TAG_BYTES longer than the block, so these bytes belong to it and only this module
    // touches them; the write is unaligned because sizes are arbitrary.
    unsafe { block.add(size).cast::<u32>().write_unaligned(id) }
}

/// Reads the id behind a block below [`SMALL`] bytes, as [`read()`] does.
///
/// # Safety
///
/// * As for [`read()`].
#[inline(always)]
pub(crate) unsafe fn read_behind(block: *const u8, size: usize) -> u32 {
    debug_assert!(!block.is_null() && is_behind(size), "no tag behind a block of {size} bytes");
    // SAFETY: in bounds and initialised by `write`, the caller's duties.
    unsafe { block.add(size).cast::<u32>().read_unaligned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_blocks_grow_by_the_tag_and_large_ones_do_not() {
        let small = Layout::from_size_align(64, 8).unwrap();
        assert_eq!(inner_layout(small).unwrap().size(), 68);
        let large = Layout::from_size_align(4096, 4096).unwrap();
        assert_eq!(inner_layout(large), Some(large));
    }

    #[test]
    fn small_blocks_are_aligned_to_at_most_8() {
        for align in (0..usize::BITS).map(|bit| 1 << bit) {
            for size in (0..2 * SMALL).chain([1 << 31, (1 << 62) + 8, usize::MAX]) {
                let is_small = size < SMALL - 8 + align && align < 16 && align <= size;
                assert_eq!(super::is_small(size, align), is_small, "{size} bytes aligned to {align}");
            }
        }
        assert!(super::is_small(SMALL - 1, 8));
    }

    #[test]
    fn a_layout_that_cannot_grow_is_refused() {
        let align = 1 << 62;
        let layout = Layout::from_size_align(0, align).unwrap();
        assert_eq!(inner_layout(layout).map(|inner| inner.size()), Some(4));
        // 4 bytes rounded up to 2^62 still fit; a size of 2^62 rounded up to the same does not grow.
        let empty = Layout::from_size_align(1000, 1 << 62).unwrap();
        assert_eq!(inner_layout(empty).unwrap().size(), 1004);
    }

    #[test]
    fn an_id_comes_back_from_behind_the_block() {
        let mut memory = [0u8; 16];
        // SAFETY: 16 bytes hold a block of 9 and its tag.
        unsafe {
            assert!(write(memory.as_mut_ptr(), 9, 0xdead_beef));
            assert_eq!(read(memory.as_ptr(), 9), 0xdead_beef);
        }
        assert_eq!(&memory[..9], &[0; 9]);
        assert_eq!(&memory[13..], &[0; 3]);
    }
}
