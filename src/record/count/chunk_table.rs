//! Number of a chunk → the chunk: counts of 64 neighbouring ids, allocated when they are first needed.
//!
//! ```text
//! Table ─ 192 chunk pointers
//!       └ 64 directories ─ 1,024 pages ─ 512 chunk pointers, each allocated when first needed
//! ```
//!
//! Ids only rise, so chunks and pages whose ids are over are unlinked and freed, see `reclaim`. Directories stay: one is
//! 8 KiB for 33 million ids.

use crate::base::atomics::{AtomicPtr, Ordering};
use crate::record::memory;
use std::ops::Range;
use std::ptr::{NonNull, null_mut};

/// Chunk pointers that every table has: enough for 12,288 ids.
const FIRST: usize = 192;
/// Chunk pointers in a page.
pub(crate) const PAGE: usize = 1 << PAGE_BITS;
const PAGE_BITS: u32 = 9;
/// Pages in a directory.
const DIRECTORY: usize = 1 << DIRECTORY_BITS;
const DIRECTORY_BITS: u32 = 10;
/// Enough directories for the chunks of every 31-bit id. A number beyond them, of a tag that is no id, has no chunk.
const DIRECTORIES: usize = 64;

/// Pointers to the chunks of neighbouring numbers.
pub(crate) type Page<C> = [AtomicPtr<C>; PAGE];
type Directory<C> = [AtomicPtr<Page<C>>; DIRECTORY];

/// Chunks by their number. All zero bytes are an empty one.
pub(crate) struct Table<C> {
    pub(super) first: [AtomicPtr<C>; FIRST],
    directories: [AtomicPtr<Directory<C>>; DIRECTORIES],
}

impl<C> Table<C> {
    pub(crate) const fn new() -> Table<C> {
        Table {
            first: [const { AtomicPtr::new(null_mut()) }; FIRST],
            directories: [const { AtomicPtr::new(null_mut()) }; DIRECTORIES],
        }
    }

    /// Returns the chunk of this number, if one of its ids was used. It may be followed until the calling thread's event, or its
    /// reading, ends.
    #[inline(always)]
    pub(crate) fn chunk(&self, number: usize) -> Option<&C> {
        // Acquire, here and below: pairs with the Release of `publish`, so that the zeroes are visible.
        self.chunk_by(number, Ordering::Acquire)
    }

    /// Returns that chunk, loading the pointer to it by this order.
    #[inline(always)]
    pub(super) fn chunk_by(&self, number: usize, order: Ordering) -> Option<&C> {
        let chunk = match self.first.get(number) {
            Some(chunk) => chunk.load(order),
            None => self.later(number)?.load(order),
        };
        // SAFETY: a published chunk; zero is a valid one. It is freed only after each event and each reading that may have
        // found it has ended, see `reclaim`.
        unsafe { chunk.as_ref() }
    }

    /// Returns the pointer to a chunk that is not among the first.
    #[inline(always)]
    fn later(&self, number: usize) -> Option<&AtomicPtr<C>> {
        let number = opaque(number);
        let page = self.page(number)?.load(Ordering::Acquire);
        // SAFETY: null, or a published page, which is freed as a chunk is.
        Some(unsafe { &page.as_ref()?[number % PAGE] })
    }

    /// Returns the pointer to the page of a chunk that is not among the first.
    #[inline(always)]
    fn page(&self, number: usize) -> Option<&AtomicPtr<Page<C>>> {
        debug_assert!(number >= FIRST, "chunk {number} is among the first");
        let (directory, page) = place(number);
        let directory = self.directories.get(directory)?.load(Ordering::Acquire);
        // SAFETY: null, or a published directory, which is never freed.
        Some(unsafe { &directory.as_ref()?[page] })
    }

    /// Returns the chunk of this number, made if need be; `None` when there is no memory for it. In the table of one
    /// thread: also where `may` says that there is no room for so many bytes.
    #[cold]
    #[inline(never)]
    pub(super) fn chunk_or_make(&self, number: usize, may: Option<fn(usize) -> bool>) -> Option<&C> {
        let chunk = match self.first.get(number) {
            Some(chunk) => chunk,
            None => {
                publish(self.directories.get(place(number).0)?, may)?;
                publish(self.page(number)?, may)?;
                self.later(number)?
            }
        };
        // SAFETY: `publish` gives zeroed memory, freed as in `chunk_by`.
        publish(chunk, may).map(|chunk| unsafe { &*chunk })
    }

    /// Unlinks the chunk of this number. It is to be freed once nothing can have found it.
    pub(crate) fn unlink(&self, number: usize) -> Option<NonNull<C>> {
        let chunk = match self.first.get(number) {
            Some(chunk) => chunk,
            None => self.later(number)?,
        };
        take(chunk)
    }

    /// Iterates over the numbers of this range that have a chunk. Pages without chunks are passed by.
    pub(crate) fn numbers(&self, range: Range<usize>) -> impl Iterator<Item = usize> {
        let mut next = range.start;
        std::iter::from_fn(move || {
            while next < range.end {
                if next >= FIRST && next.is_multiple_of(PAGE) && self.is_empty_page(next) {
                    next += PAGE;
                    continue;
                }
                next += 1;
                if self.chunk(next - 1).is_some() {
                    return Some(next - 1);
                }
            }
            None
        })
    }

    /// Returns whether the page that begins with this number has no chunk, or is not there.
    pub(crate) fn is_empty_page(&self, number: usize) -> bool {
        debug_assert!(number.is_multiple_of(PAGE) && number >= FIRST, "chunk {number} begins no page");
        let page = self.page(number).map_or(null_mut(), |page| page.load(Ordering::Acquire));
        // SAFETY: as in `later`.
        unsafe { page.as_ref() }
            .is_none_or(|page| page.iter().all(|chunk| chunk.load(Ordering::Acquire).is_null()))
    }

    /// Unlinks the page of this number, whose chunks are all unlinked already.
    pub(crate) fn unlink_page(&self, number: usize) -> Option<NonNull<Page<C>>> {
        if number < FIRST { None } else { take(self.page(number)?) }
    }
}

/// Takes a pointer out of its place, if it is not null.
fn take<T>(place: &AtomicPtr<T>) -> Option<NonNull<T>> {
    // Relaxed, and most places are empty: the swap decides.
    if place.load(Ordering::Relaxed).is_null() {
        return None;
    }
    // AcqRel: the Acquire pairs with the Release of `publish`, for the value itself is freed.
    NonNull::new(place.swap(null_mut(), Ordering::AcqRel))
}

/// Returns a number that the compiler does not know to be the same, so that its later use does not change how the number
/// itself was computed.
#[inline(always)]
fn opaque(number: usize) -> usize {
    #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
    {
        let same;
        // SAFETY: no instruction at all.
        unsafe {
            std::arch::asm!(
                "/* {same} */",
                same = inlateout(reg) number => same,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        same
    }
    #[cfg(not(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri))))]
    number
}

/// Returns the directory of a chunk number, and the page therein.
#[inline(always)]
fn place(number: usize) -> (usize, usize) {
    (number >> (PAGE_BITS + DIRECTORY_BITS), number >> PAGE_BITS & (DIRECTORY - 1))
}

/// Sets a null pointer to a zeroed value, or takes what another thread has set meanwhile. With `may`: a value of
/// one thread, where that says that there is room for so many bytes.
pub(super) fn publish<T>(place: &AtomicPtr<T>, may: Option<fn(usize) -> bool>) -> Option<*mut T> {
    let present = place.load(Ordering::Acquire);
    if !present.is_null() {
        return Some(present);
    }
    let fresh = match may {
        Some(may) => memory::zeroed_array_of_thread::<T>(1, may),
        None => memory::zeroed_array::<T>(1),
    };
    if fresh.is_null() {
        return None;
    }
    debug_assert!(fresh.is_aligned());
    // Release: publishes the zeroes; Acquire: takes over those of a faster thread (only shared counters have one).
    match place.compare_exchange(null_mut(), fresh, Ordering::Release, Ordering::Acquire) {
        Ok(_) => Some(fresh),
        Err(earlier) => {
            // SAFETY: made above and not published; as memory that threads share, since a thread's own
            // has no other thread that could be faster.
            unsafe { memory::free_array(fresh, 1) };
            Some(earlier)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_has_a_place_of_its_own() {
        let table = Table::<u64>::new();
        let numbers = [0, 191, 192, 511, 512, 1 << 19, (1 << 25) - 1];
        for number in numbers {
            assert!(table.chunk(number).is_none());
            table.chunk_or_make(number, None).unwrap();
        }
        let places: Vec<_> = numbers.iter().map(|number| &raw const *table.chunk(*number).unwrap()).collect();
        assert!((1..places.len()).all(|at| !places[..at].contains(&places[at])));
        // A tag that is no id.
        assert!(table.chunk(1 << 25).is_none() && table.chunk_or_make(u32::MAX as usize, None).is_none());
    }

    #[test]
    fn what_is_unlinked_is_made_anew() {
        let table = Table::<u64>::new();
        for number in [7, 700] {
            assert!(table.unlink(number).is_none() && table.unlink_page(number).is_none());
            let first = &raw const *table.chunk_or_make(number, None).unwrap();
            assert_eq!(table.unlink(number).unwrap().as_ptr().cast_const(), first);
            assert!(table.chunk(number).is_none());
            assert_eq!(table.unlink_page(number).is_some(), number >= FIRST);
            table.chunk_or_make(number, None).unwrap();
        }
    }
}
