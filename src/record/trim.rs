//! Returns memory that was freed in bulk to the system, and asks how much more the system would give.
//!
//! Part of the border, because it calls into the C library; the read side uses it. glibc keeps what was freed for
//! the next allocation: after the debug information of a large program has been read, 60 MB and more, for good.

use crate::record::statm::Statm;
#[cfg(target_os = "linux")]
use crate::record::tag::large;

/// Above this a walk through the C library's free lists may take long: of a 256 MiB heap in two million
/// pieces, every other one free, 0.1 s, during which other threads wait for that heap.
const LARGEST: usize = 256 << 20;

/// Returns free memory of the heap that this thread allocates from to the system, until it is enough. `malloc_trim` leaves the free
/// end of each heap but the first, and most memory that a thread has freed in bulk is there.
///
/// It asks C's `malloc` for blocks, together at most so many bytes and at most [`LARGEST`], tells the system to forget the whole
/// pages in them, and frees them. They are not counted. Where the inner allocator is another one, its memory is left alone.
#[cfg(target_os = "linux")]
pub(crate) fn trim_thread_heap(most: usize, is_enough: &dyn Fn() -> bool) {
    // Size of a block: less than glibc maps by itself (`M_MMAP_THRESHOLD`, at least 128 KiB).
    const PIECE: usize = 120 << 10;
    // Blocks between two questions.
    const ROUND: usize = 16;
    let page = large::page_bytes();
    let mut pieces: Vec<*mut libc::c_void> = Vec::with_capacity(most.min(LARGEST) / PIECE);
    while pieces.len() < pieces.capacity() && !(pieces.len().is_multiple_of(ROUND) && is_enough()) {
        // SAFETY: a block of this function's own.
        let block = unsafe { libc::malloc(PIECE) };
        if block.is_null() {
            break;
        }
        pieces.push(block);
        let skipped = block.addr().next_multiple_of(page) - block.addr();
        let length = PIECE.saturating_sub(skipped) / page * page;
        // SAFETY: the pages lie inside that block. Nothing was written to it, so nothing is lost.
        if unsafe { libc::madvise(block.byte_add(skipped), length, libc::MADV_DONTNEED) } != 0 {
            break;
        }
    }
    for block in pieces {
        // SAFETY: a block from above, freed once.
        unsafe { libc::free(block) };
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn trim_thread_heap(_most: usize, _is_enough: &dyn Fn() -> bool) {}

/// Calls [`malloc_trim`], unless this process is so large that this could be felt. Returns whether it did.
pub(crate) fn malloc_trim_if_small() -> bool {
    let is_small = private_bytes() < LARGEST;
    if is_small {
        malloc_trim();
    }
    is_small
}

/// Returns the resident memory that has no file behind it, in bytes; 0 where the system does not tell.
pub(crate) fn private_bytes() -> usize {
    Statm::read().map_or(0, |statm| usize::try_from(statm.private()).unwrap_or(usize::MAX))
}

/// Returns the bytes that the limits of this process still allow: of address space, and of private memory. The
/// process ends where an allocation fails, so it is better asked before.
#[cfg(target_os = "linux")]
pub(crate) fn memory_headroom() -> [u64; 2] {
    let (size, data) = Statm::read().map_or((0, 0), |statm| (statm.size, statm.data));
    [(libc::RLIMIT_AS, size), (libc::RLIMIT_DATA, data)].map(|(resource, used)| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a place to write to.
        if unsafe { libc::getrlimit(resource, &raw mut limit) } != 0 || limit.rlim_cur == libc::RLIM_INFINITY
        {
            return u64::MAX;
        }
        limit.rlim_cur.saturating_sub(used)
    })
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn memory_headroom() -> [u64; 2] {
    [u64::MAX; 2]
}

/// Gives the C library's free pages back to the system. Locks one arena after the other, each for as long as it takes to look
/// through its free chunks.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn malloc_trim() {
    // SAFETY: takes the heap's own locks and touches free memory only; any thread may call it at any time.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn malloc_trim() {}
