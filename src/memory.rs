//! Zeroed memory for heapgauge's own tables, and how much of it there is.
//!
//! It comes from `System`, never from the program's global allocator: a table may grow while that
//! allocator is running, and an inner allocator belongs to an instance that need not outlive the
//! tables. A failure is a null pointer; the caller counts what it could not record.
//!
//! Large tables are mappings of their own: they grow by being made anew, and what the C library keeps of the smaller
//! ones before them came to as much again.

use crate::sync::{AtomicU64, Ordering};
use std::alloc::{GlobalAlloc, Layout, System};

/// Bytes handed out and not returned. Relaxed: a figure for people, orders nothing.
static BYTES: AtomicU64 = AtomicU64::new(0);

/// Above this many bytes no new stack is recorded. Relaxed: late by an event at most.
static LIMIT: AtomicU64 = AtomicU64::new(DEFAULT_LIMIT);

/// 48 MiB, three quarters of the default overhead limit: about 160,000 distinct stacks of 16 frames
/// with two threads.
const DEFAULT_LIMIT: u64 = 48 << 20;

/// Zeroed memory for one `T`, or null. Returned only by [`free_array`].
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
    let pointer = if is_mapped(layout) {
        mapping::make(layout.size())
    } else {
        // SAFETY: the size is not zero, checked above.
        unsafe { System.alloc_zeroed(layout) }
    };
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
        if is_mapped(layout) {
            // SAFETY: the caller's duties; the same layout was a mapping when it was made.
            unsafe { mapping::end(pointer.cast(), layout.size()) };
        } else {
            // SAFETY: the caller's first duty: same allocator, same layout.
            unsafe { System.dealloc(pointer.cast(), layout) };
        }
        BYTES.fetch_sub(layout.size() as u64, Ordering::Relaxed);
    }
}

/// Of at least so many bytes.
const MAPPED: usize = 64 << 10;

/// Whether memory of this layout is a mapping of its own. Pages are aligned to 4 KiB at least.
fn is_mapped(layout: Layout) -> bool {
    mapping::AVAILABLE && layout.size() >= MAPPED && layout.align() <= 4096
}

#[cfg(target_os = "linux")]
mod mapping {
    pub(super) const AVAILABLE: bool = true;

    /// Zeroed, or null.
    pub(super) fn make(size: usize) -> *mut u8 {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh anonymous mapping; it touches no memory that exists.
        let pointer = unsafe { libc::mmap(std::ptr::null_mut(), size, access, kind, -1, 0) };
        if pointer == libc::MAP_FAILED { std::ptr::null_mut() } else { pointer.cast() }
    }

    /// # Safety
    ///
    /// * `pointer` came from `make(size)`, and nobody reads it any more.
    pub(super) unsafe fn end(pointer: *mut u8, size: usize) {
        // SAFETY: the caller's duties. It fails only where a mapping in the middle of others cannot be cut out, and
        // then stays.
        unsafe { libc::munmap(pointer.cast(), size) };
    }
}

#[cfg(not(target_os = "linux"))]
mod mapping {
    pub(super) const AVAILABLE: bool = false;

    pub(super) fn make(_size: usize) -> *mut u8 {
        std::ptr::null_mut()
    }

    pub(super) unsafe fn end(_pointer: *mut u8, _size: usize) {}
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
