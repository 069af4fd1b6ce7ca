//! Zeroed memory for heapgauge's own tables, and how much of it there is.
//!
//! It comes straight from the system, never from the program's global allocator: a table may grow while that
//! allocator is running, and an inner allocator belongs to an instance that need not outlive the
//! tables. A failure is a null pointer; the caller counts what it could not record. There is no lock, so that a signal
//! handler may allocate whatever it has interrupted.
//!
//! Large tables are mappings of their own: they grow by being made anew, and what a C library keeps of the smaller
//! ones before them came to as much again. Small ones are cut from [`chunks`]. Where neither is known to work, all
//! come from `System`.

#[cfg(target_os = "linux")]
mod arena;

use crate::base::atomics::{AtomicU64, Ordering};
use std::alloc::Layout;
#[cfg(not(target_os = "linux"))]
use std::alloc::{GlobalAlloc, System};

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
    // SAFETY: the size is not zero, checked above.
    let pointer = unsafe { make(layout) };
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
        // SAFETY: the caller's duties: made with the same layout.
        unsafe { end(pointer.cast(), layout) };
        BYTES.fetch_sub(layout.size() as u64, Ordering::Relaxed);
    }
}

/// Tables of at least so many bytes are mappings of their own.
#[cfg(target_os = "linux")]
const MAPPED: usize = 64 << 10;

/// # Safety
///
/// * The layout is of some bytes.
#[cfg(target_os = "linux")]
unsafe fn make(layout: Layout) -> *mut u8 {
    if layout.align() > arena::MOST_ALIGNED {
        // No table is. A page is aligned to as much, whatever its size.
        return std::ptr::null_mut();
    }
    if layout.size() >= MAPPED { mapping::make(layout.size()) } else { arena::CHUNKS.take(layout) }
}

/// # Safety
///
/// * `pointer` came from `make(layout)`, was not freed, and nobody reads it any more.
#[cfg(target_os = "linux")]
unsafe fn end(pointer: *mut u8, layout: Layout) {
    if layout.size() >= MAPPED {
        // SAFETY: the caller's duties; the same layout was a mapping when it was made.
        unsafe { mapping::end(pointer, layout.size()) };
    } else {
        // SAFETY: the caller's duties; the same layout was a piece when it was made.
        unsafe { arena::CHUNKS.give_back(pointer, layout.size()) };
    }
}

/// # Safety
///
/// * The layout is of some bytes.
#[cfg(not(target_os = "linux"))]
unsafe fn make(layout: Layout) -> *mut u8 {
    // SAFETY: the caller's duty.
    unsafe { System.alloc_zeroed(layout) }
}

/// # Safety
///
/// * `pointer` came from `make(layout)`, was not freed, and nobody reads it any more.
#[cfg(not(target_os = "linux"))]
unsafe fn end(pointer: *mut u8, layout: Layout) {
    // SAFETY: the caller's duties: same allocator, same layout.
    unsafe { System.dealloc(pointer, layout) };
}

#[cfg(target_os = "linux")]
mod mapping {
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
