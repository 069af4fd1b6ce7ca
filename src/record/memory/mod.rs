//! Zeroed memory for heapgauge's own tables, and how much of it there is.
//!
//! It comes straight from the system, never from the program's global allocator: a table may grow while that
//! allocator is running, and an inner allocator belongs to an instance that need not outlive the
//! tables. A failure is a null pointer; the caller counts what it could not record. There is no lock, so that a signal
//! handler may allocate whatever it has interrupted.
//!
//! Large tables are mappings of their own: they grow by being made anew, and what a C library keeps of the smaller
//! ones before them came to as much again. Small ones are cut from `arena`. Where neither is known to work, all
//! come from `System`.

#[cfg(target_os = "linux")]
mod arena;
#[cfg(target_os = "linux")]
mod mapping;

use crate::base::atomics::{AtomicU64, Ordering};
use std::alloc::Layout;
#[cfg(not(target_os = "linux"))]
use std::alloc::{GlobalAlloc, System};

/// Sizes of small pieces are rounded up to a multiple of it.
pub(crate) const UNIT: usize = 16;

/// Bytes handed out and not returned. Relaxed: a figure for people, orders nothing.
static BYTES: AtomicU64 = AtomicU64::new(0);

/// Bytes of the tables that single threads write: their counters and caches. Relaxed, as above.
static OF_THREADS: AtomicU64 = AtomicU64::new(0);

/// Bytes of the map of stacks, which come through the global allocator and not from here. Relaxed, as above.
static OF_MAP: AtomicU64 = AtomicU64::new(0);

/// Bytes that threads are about to take: of many threads that ask at the same time, each sees what the others take.
/// Relaxed, as above.
static RESERVED: AtomicU64 = AtomicU64::new(0);

/// Bytes of the first caches of threads that have a state and no caches yet. Relaxed, as above.
static FIRST_CACHES: AtomicU64 = AtomicU64::new(0);

/// The most that all of these may hold. Relaxed: late by an event at most.
static LIMIT: AtomicU64 = AtomicU64::new(DEFAULT_LIMIT);

/// 40 MiB, five eighths of the default overhead limit: about 170,000 distinct stacks of 16 frames
/// with two threads.
const DEFAULT_LIMIT: u64 = 40 << 20;

/// A table has so many bytes to itself, aligned to as many. Most tables are written by one thread, and processors of
/// x86-64 fetch cache lines of 64 bytes in pairs, aarch64 has lines of 128: two threads wait for each other where their
/// tables meet within one.
const APART: usize = 128;

/// Returns the layout of `len` values of `T` that share no [`APART`] bytes with anything else.
fn table_layout<T>(len: usize) -> Option<Layout> {
    Some(Layout::array::<T>(len).ok()?.align_to(APART).ok()?.pad_to_align())
}

/// Returns zeroed memory for one `T`, or null. Freed only by [`free_array`].
pub(crate) fn zeroed<T>() -> *mut T {
    zeroed_array(1)
}

/// Returns zeroed memory for a table of `len` values of `T`, or null.
pub(crate) fn zeroed_array<T>(len: usize) -> *mut T {
    table_layout::<T>(len).map_or(std::ptr::null_mut(), zeroed_bytes).cast()
}

/// Returns zeroed memory of this layout, or null; a layout of no bytes gets null.
pub(crate) fn zeroed_bytes(layout: Layout) -> *mut u8 {
    if layout.size() == 0 {
        return std::ptr::null_mut();
    }
    // SAFETY: the size is not zero, checked above.
    let pointer = unsafe { make(layout) };
    debug_assert!(pointer.addr().is_multiple_of(layout.align()), "{pointer:?} for {layout:?}");
    if !pointer.is_null() {
        BYTES.fetch_add(layout.size() as u64, Ordering::Relaxed);
    }
    pointer
}

/// Returns zeroed memory for `len` values of `T` that the calling thread alone writes, or null: without memory, and
/// where `may` says that there is no room. Its bytes are reserved when `may` is called. Freed only by [`free_array_of_thread`].
pub(crate) fn zeroed_array_of_thread<T>(len: usize, may: fn(usize) -> bool) -> *mut T {
    let bytes = len.saturating_mul(size_of::<T>());
    OF_THREADS.fetch_add(bytes as u64, Ordering::Relaxed);
    RESERVED.fetch_add(bytes as u64, Ordering::Relaxed);
    let pointer: *mut T = if may(bytes) { zeroed_array(len) } else { std::ptr::null_mut() };
    RESERVED.fetch_sub(bytes as u64, Ordering::Relaxed);
    if pointer.is_null() {
        OF_THREADS.fetch_sub(bytes as u64, Ordering::Relaxed);
    }
    pointer
}

/// Returns what [`zeroed_array_of_thread`] gave.
///
/// # Safety
///
/// * As for [`free_array`].
pub(crate) unsafe fn free_array_of_thread<T>(pointer: *mut T, len: usize) {
    // SAFETY: the caller's duties.
    unsafe { free_array(pointer, len) };
    OF_THREADS.fetch_sub((len * size_of::<T>()) as u64, Ordering::Relaxed);
}

/// Returns what [`zeroed_array`] gave.
///
/// # Safety
///
/// * `pointer` came from `zeroed_array::<T>(len)` with the same `T` and `len`, and was not freed.
/// * It is not read any more.
pub(crate) unsafe fn free_array<T>(pointer: *mut T, len: usize) {
    if let Some(layout) = table_layout::<T>(len) {
        // SAFETY: the caller's duties: made with the same layout.
        unsafe { free_bytes(pointer.cast(), layout) };
    }
}

/// Returns what [`zeroed_bytes`] gave.
///
/// # Safety
///
/// * `pointer` came from `zeroed_bytes(layout)`, and was not freed.
/// * It is not read any more.
pub(crate) unsafe fn free_bytes(pointer: *mut u8, layout: Layout) {
    debug_assert!(
        !pointer.is_null() && pointer.addr().is_multiple_of(layout.align()),
        "{pointer:?} for {layout:?}"
    );
    // SAFETY: the caller's duties.
    unsafe { end(pointer, layout) };
    BYTES.fetch_sub(layout.size() as u64, Ordering::Relaxed);
}

/// Tables of at least so many bytes are mappings of their own.
#[cfg(target_os = "linux")]
const MAPPED: usize = 64 << 10;

/// Returns zeroed memory of this layout, or null.
///
/// # Safety
///
/// * The layout is of some bytes.
#[cfg(target_os = "linux")]
unsafe fn make(layout: Layout) -> *mut u8 {
    if layout.align() > arena::MOST_ALIGNED {
        // No table is. A page is aligned to as much, whatever its size.
        return std::ptr::null_mut();
    }
    if layout.size() >= MAPPED { mapping::make(layout.size()) } else { arena::CHUNKS.allocate(layout) }
}

/// Returns what [`make`] gave.
///
/// # Safety
///
/// * `pointer` came from `make(layout)`, was not freed, and it is not read any more.
#[cfg(target_os = "linux")]
unsafe fn end(pointer: *mut u8, layout: Layout) {
    if layout.size() >= MAPPED {
        // SAFETY: the caller's duties; the same layout was a mapping when it was made.
        unsafe { mapping::end(pointer, layout.size()) };
    } else {
        // SAFETY: the caller's duties; the same layout was a piece when it was made.
        unsafe { arena::CHUNKS.free(pointer, layout.size()) };
    }
}

/// Returns zeroed memory of this layout, or null.
///
/// # Safety
///
/// * The layout is of some bytes.
#[cfg(not(target_os = "linux"))]
unsafe fn make(layout: Layout) -> *mut u8 {
    // SAFETY: the caller's duty.
    unsafe { System.alloc_zeroed(layout) }
}

/// Returns what [`make`] gave.
///
/// # Safety
///
/// * `pointer` came from `make(layout)`, was not freed, and it is not read any more.
#[cfg(not(target_os = "linux"))]
unsafe fn end(pointer: *mut u8, layout: Layout) {
    // SAFETY: the caller's duties: same allocator, same layout.
    unsafe { System.dealloc(pointer, layout) };
}

/// Returns the bytes of heapgauge's own tables that came from here.
pub(crate) fn bytes() -> u64 {
    BYTES.load(Ordering::Relaxed)
}

/// Returns the bytes that count against the limit.
fn counted() -> u64 {
    let of = |bytes: &AtomicU64| bytes.load(Ordering::Relaxed);
    bytes() + of(&OF_MAP) + of(&RESERVED) + of(&FIRST_CACHES)
}

/// Counts what the map of stacks has grown by.
pub(crate) fn map_grew(bytes: usize) {
    OF_MAP.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// Returns the bytes of the map of stacks.
pub(crate) fn map_bytes() -> u64 {
    OF_MAP.load(Ordering::Relaxed)
}

/// Returns whether there is room for a new stack.
pub(crate) fn may_grow() -> bool {
    counted() < LIMIT.load(Ordering::Relaxed)
}

/// Returns whether there is room for a stack in one more scope. A sixteenth is left to new stacks.
pub(crate) fn may_grow_in_scope() -> bool {
    let limit = LIMIT.load(Ordering::Relaxed);
    counted() < limit - limit / 16
}

/// Returns whether three quarters of the room are taken.
pub(crate) fn is_short() -> bool {
    counted() >= LIMIT.load(Ordering::Relaxed) / 4 * 3
}

/// Returns whether there is room for a table of so many bytes that no thread can do without.
pub(crate) fn has_room(bytes: usize) -> bool {
    counted() + bytes as u64 <= LIMIT.load(Ordering::Relaxed)
}

/// Returns whether what is reserved fits.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) fn fits(_bytes: usize) -> bool {
    has_room(0)
}

/// Returns whether there is room for the bytes reserved for a thread's own counters or caches. The thread can do without,
/// more slowly and as exactly, but a stack that finds no room is lost: so together they leave half of the limit to
/// stacks, and beyond that take no more than a quarter of it.
pub(crate) fn thread_may_grow(_bytes: usize) -> bool {
    let (after, limit) = (counted(), LIMIT.load(Ordering::Relaxed));
    after <= limit / 2 || after <= limit && OF_THREADS.load(Ordering::Relaxed) <= limit / 4
}

/// Allows a table beyond the limit: it is one of the first caches, which were reserved with the thread's state.
pub(crate) fn always(bytes: usize) -> bool {
    // A state that was used before may have made its caches already: no less than nothing is reserved.
    let rest = |reserved: u64| Some(reserved.saturating_sub(bytes as u64));
    let _ = FIRST_CACHES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest);
    true
}

/// Allows a table beyond the limit that takes the place of one of half its size, for which [`always`] has taken as much already.
pub(crate) fn always_doubled(bytes: usize) -> bool {
    always(bytes / 2)
}

/// Returns zeroed memory for the state of one more thread, and reserves bytes for the caches that it cannot do without;
/// null where there is no room. A sixteenth beyond the limit of all other tables is for states alone: where stacks have
/// taken the rest, a new thread still counts where it belongs.
pub(crate) fn zeroed_for_thread<T>(caches: usize) -> *mut T {
    let (bytes, limit) = ((size_of::<T>() + caches) as u64, LIMIT.load(Ordering::Relaxed));
    RESERVED.fetch_add(bytes, Ordering::Relaxed);
    let pointer: *mut T = if counted() <= limit + limit / 16 { zeroed() } else { std::ptr::null_mut() };
    if !pointer.is_null() {
        FIRST_CACHES.fetch_add(caches as u64, Ordering::Relaxed);
    }
    RESERVED.fetch_sub(bytes, Ordering::Relaxed);
    pointer
}

/// Sets the limit of the tables, in bytes.
pub(crate) fn set_limit(bytes: u64) {
    LIMIT.store(bytes, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table next to another one may be another thread's.
    #[test]
    fn tables_share_no_pair_of_cache_lines() {
        let mut taken = Vec::new();
        for number in 0..100 {
            let len = 1 + number * 7 % 40;
            let table = zeroed_array::<u64>(len);
            let beside = zeroed_bytes(Layout::from_size_align(24 + 8 * number, 8).unwrap());
            assert!(!table.is_null() && !beside.is_null());
            taken.push((table.addr(), len * 8));
            taken.push((beside.addr(), 24 + 8 * number));
        }
        let pairs = |&(address, size): &(usize, usize)| address / 128..(address + size - 1) / 128 + 1;
        for (at, table) in taken.iter().enumerate().step_by(2) {
            for (other, beside) in taken.iter().enumerate().filter(|(other, _)| *other != at) {
                let (table, beside) = (pairs(table), pairs(beside));
                assert!(
                    table.end <= beside.start || beside.end <= table.start,
                    "{at} and {other}: {table:?} {beside:?}"
                );
            }
        }
    }
}
