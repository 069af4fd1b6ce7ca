//! Writes the tags of blocks that have been counted.

use super::alloc::count_alloc_shared;
use super::free;
use crate::base::hint::unlikely;
use crate::record::dropped::{self, Reason};
use crate::record::epoch;
use crate::record::tag::{self, UNTRACKED};

/// Writes the tag of a block that has been counted, and returns the block.
///
/// # Safety
///
/// * As for [`tag::write`].
#[inline(always)]
pub(crate) unsafe fn write_tag(block: *mut u8, size: usize, id: u32) -> *mut u8 {
    if unlikely(!tag::is_behind(size)) {
        // SAFETY: the caller's duty.
        return unsafe { write_tag_slow(block, size, id) };
    }
    // SAFETY: the caller's duty; it is of a size that has its tag behind it.
    unsafe { tag::write_behind(block, size, id) };
    block
}

/// Writes the tag of a block of any size.
///
/// # Safety
///
/// * As for [`tag::write`].
#[inline(never)]
unsafe fn write_tag_slow(block: *mut u8, size: usize, id: u32) -> *mut u8 {
    // SAFETY: the caller's duty.
    if !unsafe { tag::write(block, size, id) } {
        tag_lost(id, size);
    }
    // The compiler, which does not know that it is the same, need not keep the block in `record_alloc`, here and above.
    opaque(block)
}

/// Counts a block as untracked instead of at `id`, because there is no memory for its tag.
#[cold]
fn tag_lost(id: u32, size: usize) {
    free::record_free(id.into(), size);
    // Where its stack was lost already, it has been counted.
    if id != epoch::base() {
        dropped::count(Reason::Memory);
    }
    count_alloc_shared(UNTRACKED, size);
}

/// Returns a pointer that the compiler does not know to be the same.
#[inline(always)]
pub(super) fn opaque<T>(pointer: *mut T) -> *mut T {
    #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
    {
        let same;
        // SAFETY: no instruction at all.
        unsafe {
            std::arch::asm!(
                "/* {same} */",
                same = inlateout(reg) pointer => same,
                options(pure, readonly, nostack, preserves_flags)
            );
        }
        same
    }
    #[cfg(not(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri))))]
    pointer
}
