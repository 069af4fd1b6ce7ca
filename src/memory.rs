//! Zeroed memory for heapgauge's own tables, and how much of it there is.
//!
//! It comes from `System`, never from the program's global allocator: a table may grow while that
//! allocator is running, and an inner allocator belongs to an instance that need not outlive the
//! tables. A failure is a null pointer; the caller counts what it could not record.

use crate::sync::{AtomicU64, Ordering};
use std::alloc::{GlobalAlloc, Layout, System};

/// Bytes handed out and not returned. Relaxed: a figure for people, orders nothing.
static BYTES: AtomicU64 = AtomicU64::new(0);

/// Above this many bytes no new stack is recorded. Relaxed: late by an event at most.
static LIMIT: AtomicU64 = AtomicU64::new(DEFAULT_LIMIT);

/// 48 MiB, three quarters of the default overhead limit: about 160,000 distinct stacks of 16 frames
/// with two threads.
const DEFAULT_LIMIT: u64 = 48 << 20;

/// Zeroed memory for one `T`, or null. Never returned to the system except through [`free`].
pub(crate) fn zeroed<T>() -> *mut T {
    zeroed_bytes(Layout::new::<T>()).cast()
}

/// Zeroed memory for `len` values of `T`, or null.
pub(crate) fn zeroed_array<T>(len: usize) -> *mut T {
    match Layout::array::<T>(len) {
        Ok(layout) => zeroed_bytes(layout).cast(),
        Err(_) => std::ptr::null_mut(),
    }
}

/// Zeroed memory of this layout, or null; a layout of no bytes gets null.
pub(crate) fn zeroed_bytes(layout: Layout) -> *mut u8 {
    if layout.size() == 0 {
        return std::ptr::null_mut();
    }
    // SAFETY: the size is not zero, checked above.
    let pointer = unsafe { System.alloc_zeroed(layout) };
    if !pointer.is_null() {
        BYTES.fetch_add(layout.size() as u64, Ordering::Relaxed);
    }
    pointer
}

/// Returns what [`zeroed_array`] gave.
///
/// # Safety
///
/// * `pointer` came from `zeroed_array::<T>(len)` with the same `T` and `len`, and was not freed.
/// * Nobody reads it any more.
pub(crate) unsafe fn free_array<T>(pointer: *mut T, len: usize) {
    if let Ok(layout) = Layout::array::<T>(len) {
        // SAFETY: the caller's first duty: same allocator, same layout.
        unsafe { System.dealloc(pointer.cast(), layout) };
        BYTES.fetch_sub(layout.size() as u64, Ordering::Relaxed);
    }
}

/// Bytes of heapgauge's own tables that came from here.
pub(crate) fn bytes() -> u64 {
    BYTES.load(Ordering::Relaxed)
}

/// Whether the tables may grow for something new.
pub(crate) fn may_grow() -> bool {
    bytes() < LIMIT.load(Ordering::Relaxed)
}

/// Sets the limit of [`may_grow`], in bytes.
pub(crate) fn set_limit(bytes: u64) {
    LIMIT.store(bytes, Ordering::Relaxed);
}
