//! Replaces the parts of `memory/mod.rs` that `counters.rs` uses: zeroed memory that is not reused while a model runs, so that
//! an address identifies one value. loom's atomics are stored elsewhere, so nearly all of it remains zero.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};

thread_local! {
    // loom's threads take turns on one thread.
    static MADE: RefCell<Vec<(*mut u8, Layout)>> = RefCell::default();
    static FREED: RefCell<Vec<std::ops::Range<usize>>> = RefCell::default();
}

pub(crate) fn zeroed_array<T>(len: usize) -> *mut T {
    let layout = Layout::array::<T>(len).unwrap();
    // SAFETY: no type here is without size.
    let made = unsafe { alloc_zeroed(layout) };
    MADE.with_borrow_mut(|all| all.push((made, layout)));
    made.cast()
}

pub(crate) unsafe fn free_array<T>(pointer: *mut T, len: usize) {
    let begin = pointer.addr();
    FREED.with_borrow_mut(|freed| freed.push(begin..begin + len * size_of::<T>()));
}

/// Returns whether this address is in memory that was freed: it stays, so that a thread that still follows a pointer to it is
/// noticed.
pub(crate) fn is_freed(address: usize) -> bool {
    FREED.with_borrow(|freed| freed.iter().any(|range| range.contains(&address)))
}

/// Returns how many times memory was freed in this run.
pub(crate) fn frees() -> usize {
    FREED.with_borrow(Vec::len)
}

/// Returns memory, which is never short here.
pub(crate) fn zeroed_array_of_thread<T>(len: usize, _may: fn(usize) -> bool) -> *mut T {
    zeroed_array(len)
}

pub(crate) unsafe fn free_array_of_thread<T>(pointer: *mut T, len: usize) {
    unsafe { free_array(pointer, len) }
}

pub(crate) fn thread_may_grow(_bytes: usize) -> bool {
    true
}

/// Tables are nearly full, so that stacks die without an hour.
static IS_SHORT: AtomicBool = AtomicBool::new(true);

pub(crate) fn is_short() -> bool {
    IS_SHORT.load(Ordering::Relaxed)
}

/// Sets whether they are, before a run.
pub(crate) fn set_short(is_short: bool) {
    IS_SHORT.store(is_short, Ordering::Relaxed);
}

pub(crate) fn always(_bytes: usize) -> bool {
    true
}

/// Frees everything. Called between two runs of a model, when all threads have ended.
pub(crate) fn free_all() {
    FREED.take();
    for (made, layout) in MADE.take() {
        // SAFETY: made above with this layout, and no longer in the list.
        unsafe { dealloc(made, layout) };
    }
}
