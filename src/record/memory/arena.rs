//! Small zeroed pieces out of large mappings, cut and given back by any thread at any time, in signal handlers too.
//!
//! Not the C library's allocator, because that has locks: a signal handler that interrupted it, and allocates through
//! a tracked allocator that has none, would wait for its own thread. Nothing here is ever locked, so there is nothing
//! that a fork could leave locked either; its child does without the pieces that another thread was looking through.
//!
//! ```text
//! allocate ─▶ a list of what came back, this size class or a larger one ─▶ one piece, what is left of it goes back
//!     └─▶ else the chunk, cut from below ─▶ else another chunk, and the end of this one goes to the lists
//! ```
//!
//! A thread takes the *whole* list and gives back what it does not need. So no thread compares a list's
//! head with what it was a moment ago, which could be the same piece with another one behind it (the trouble with
//! taking only the first). Meanwhile others find that list empty, and cut from the chunk.

use super::{UNIT, mapping};
use crate::base::atomics::{AtomicPtr, AtomicUsize, Ordering};
use std::alloc::Layout;
use std::ptr::null_mut;

/// Only pages that were touched are memory.
const CHUNK: usize = 256 << 10;

/// Alignments are up to a page, so that any piece fits into an empty chunk.
pub(super) const MOST_ALIGNED: usize = 4096;

/// Header of a chunk.
struct Chunk {
    /// Bytes from the chunk's beginning that are cut off already. Relaxed: pieces do not overlap whatever the order,
    /// and what is in them is zero since the chunk was made.
    used: AtomicUsize,
}

/// Header of a piece that came back. It belongs to one thread alone, or is in a list.
struct Free {
    next: *mut Free,
    /// Bytes of the whole piece.
    size: usize,
}

// The rest of a piece is empty, or large enough for a `Free`.
const _: () = assert!(size_of::<Free>() == UNIT && size_of::<Chunk>() <= UNIT);

/// The arena of small tables.
pub(super) static CHUNKS: Chunks = Chunks::new();

/// A chunk and the lists.
pub(super) struct Chunks {
    /// The chunk that is cut from. Replaced with Release, read with Acquire: its mapping is there, with `used` in it.
    current: AtomicPtr<Chunk>,
    /// Pieces that came back. The list of class `n` has those of 2ⁿ bytes up to, not including, 2ⁿ⁺¹; the largest is
    /// what is left of a chunk. Pushed with Release, taken with Acquire.
    lists: [AtomicPtr<Free>; class(CHUNK) + 1],
}

/// Number of pieces that are looked at in the class of the wanted size: some are smaller, some not aligned.
const LOOKS: usize = 16;

/// Rounds a size up to whole units.
fn units(size: usize) -> usize {
    size.next_multiple_of(UNIT)
}

/// Returns the size class: the logarithm of the size.
const fn class(size: usize) -> usize {
    size.ilog2() as usize
}

impl Chunks {
    const fn new() -> Chunks {
        Chunks {
            current: AtomicPtr::new(null_mut()),
            lists: [const { AtomicPtr::new(null_mut()) }; class(CHUNK) + 1],
        }
    }

    /// Returns zeroed memory, or null. The size is below [`super::MAPPED`] and not 0, the alignment at most
    /// [`MOST_ALIGNED`].
    pub(super) fn allocate(&self, layout: Layout) -> *mut u8 {
        let layout = match Layout::from_size_align(units(layout.size()), layout.align().max(UNIT)) {
            Ok(layout) if layout.size() < super::MAPPED + UNIT && layout.align() <= MOST_ALIGNED => layout,
            _ => return null_mut(),
        };
        let used = self.reuse(layout);
        if used.is_null() { self.cut(layout) } else { used }
    }

    /// Gives back what `allocate` gave.
    ///
    /// # Safety
    ///
    /// * `piece` came from `allocate` with a layout of this size, and it is not read any more.
    pub(super) unsafe fn free(&self, piece: *mut u8, size: usize) {
        // SAFETY: the caller's duties; as many bytes were taken, and every piece is aligned to a unit.
        unsafe { self.push(piece, units(size)) };
    }

    // ── From the chunk ──────────────────────────────────────────────────────────────────────────

    /// Cuts a piece from the current chunk, or from a fresh one; null without memory.
    fn cut(&self, layout: Layout) -> *mut u8 {
        // Acquire: pairs with the Release of `replace_chunk`.
        let mut current = self.current.load(Ordering::Acquire);
        loop {
            let piece = cut_from(current, layout);
            if !piece.is_null() {
                return piece;
            }
            current = match self.replace_chunk(current, layout) {
                Ok(piece) => return piece,
                Err(now) => now,
            };
        }
    }

    /// Replaces a chunk without room by a fresh one, and cuts the piece from it: null without memory. `Err` has the chunk of
    /// a thread that was faster.
    #[cold]
    fn replace_chunk(&self, full: *mut Chunk, layout: Layout) -> Result<*mut u8, *mut Chunk> {
        // Acquire: as in `cut`.
        let now = self.current.load(Ordering::Acquire);
        if now != full {
            return Err(now);
        }
        let fresh = mapping::make(CHUNK).cast::<Chunk>();
        if fresh.is_null() {
            return Ok(null_mut());
        }
        // SAFETY: a fresh mapping, which is longer and aligned to a page.
        unsafe { fresh.write(Chunk { used: AtomicUsize::new(UNIT) }) };
        let piece = cut_from(fresh, layout);
        // Release: publishes `used`. Acquire: takes over that of a faster thread.
        match self.current.compare_exchange(full, fresh, Ordering::Release, Ordering::Acquire) {
            Ok(_) => {
                // SAFETY: as in `cut_from`.
                if let Some(Chunk { used }) = unsafe { full.as_ref() } {
                    // From here on no thread cuts from it. The end is for smaller pieces.
                    let rest = used.swap(CHUNK, Ordering::Relaxed);
                    debug_assert!(
                        (UNIT..=CHUNK).contains(&rest) && rest.is_multiple_of(UNIT),
                        "cut up to {rest}"
                    );
                    if rest < CHUNK {
                        // SAFETY: it is not cut and never will be; sizes and the chunk are multiples of a unit.
                        unsafe { self.push(full.cast::<u8>().wrapping_add(rest), CHUNK - rest) };
                    }
                }
                Ok(piece)
            }
            Err(now) => {
                // SAFETY: made above and not published.
                unsafe { mapping::end(fresh.cast(), CHUNK) };
                Err(now)
            }
        }
    }

    // ── Lists of what came back ─────────────────────────────────────────────────────────────────

    /// Returns a piece that came back, zeroed again; null where no list has one.
    fn reuse(&self, layout: Layout) -> *mut u8 {
        // The class that the size lies in has pieces that are too small; from the next one on any size does.
        for list in self.lists.get(class(layout.size())..).unwrap_or_default() {
            // Relaxed: only whether it is worth while.
            if list.load(Ordering::Relaxed).is_null() {
                continue;
            }
            // Acquire: pairs with the Release of `push` and `put_back`; the pieces are this thread's now.
            let all = list.swap(null_mut(), Ordering::Acquire);
            // SAFETY: a list that this thread has taken.
            let (found, rest) = unsafe { find(all, layout) };
            if !rest.is_null() {
                // SAFETY: what was taken of this list, but for the piece.
                unsafe { put_back(list, rest) };
            }
            if !found.is_null() {
                // SAFETY: no longer in the list, and at least as large.
                return unsafe { self.shorten(found, layout.size()) };
            }
        }
        null_mut()
    }

    /// Zeroes as much of a piece as is wanted; what is left of it goes back.
    ///
    /// # Safety
    ///
    /// * The piece is the calling thread's, of at least this size, which is a multiple of a unit.
    unsafe fn shorten(&self, piece: *mut Free, size: usize) -> *mut u8 {
        let memory = piece.cast::<u8>();
        debug_assert!(!piece.is_null() && size.is_multiple_of(UNIT));
        // SAFETY: the caller's duties: the first is within the piece, and what is behind it is a piece too.
        unsafe {
            let rest = (*piece).size - size;
            debug_assert!(rest.is_multiple_of(UNIT), "{rest} bytes are left of a piece");
            if rest > 0 {
                self.push(memory.add(size), rest);
            }
            memory.write_bytes(0, size);
        }
        memory
    }

    /// Puts a piece into its list.
    ///
    /// # Safety
    ///
    /// * It belongs to the caller alone, aligned to a unit, and so many bytes long, a multiple of a unit that is not 0.
    unsafe fn push(&self, piece: *mut u8, size: usize) {
        // All pieces have the mapping's provenance, because a list goes through all of them.
        let piece = piece.cast::<Free>();
        debug_assert!(!piece.is_null() && piece.addr().is_multiple_of(UNIT), "no piece is at {piece:?}");
        debug_assert!((UNIT..CHUNK).contains(&size) && size.is_multiple_of(UNIT), "no piece of {size} bytes");
        // SAFETY: the caller's duty: room for it.
        unsafe { piece.write(Free { next: null_mut(), size }) };
        let list = &self.lists[class(size)];
        let mut head = list.load(Ordering::Relaxed);
        loop {
            // SAFETY: as above; no other thread sees it yet. Whatever else the head has been meanwhile, if it is that
            // now, then this is what follows the piece.
            unsafe { (*piece).next = head };
            // Release: pairs with the Acquire of `reuse`, which then sees what is in it.
            match list.compare_exchange_weak(head, piece, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }
}

/// Cuts a piece from this chunk; null if there is no chunk or no room in it.
fn cut_from(chunk: *mut Chunk, layout: Layout) -> *mut u8 {
    // SAFETY: null, or a chunk that was made ready before it was published and is never unmapped.
    let Some(Chunk { used }) = (unsafe { chunk.as_ref() }) else { return null_mut() };
    let mut before = used.load(Ordering::Relaxed);
    loop {
        // Bytes skipped for the alignment are lost: fewer than the alignment, once a table.
        let from = before.next_multiple_of(layout.align());
        let to = from + layout.size();
        if to > CHUNK {
            return null_mut();
        }
        match used.compare_exchange_weak(before, to, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => {
                debug_assert!(
                    from >= UNIT && chunk.addr().is_multiple_of(MOST_ALIGNED),
                    "{from} of {chunk:?}"
                );
                // A chunk begins at a page, so an aligned distance is an aligned address.
                return chunk.cast::<u8>().wrapping_add(from);
            }
            Err(now) => before = now,
        }
    }
}

/// Takes the first piece that fits out of a list, null if there is none, and gives what the list then begins with.
///
/// # Safety
///
/// * The calling thread has taken the list.
unsafe fn find(first: *mut Free, layout: Layout) -> (*mut Free, *mut Free) {
    let mut at = first;
    let mut before = null_mut::<Free>();
    for _ in 0..LOOKS {
        // SAFETY: null, or a piece of the list, which is this thread's.
        let Some(piece) = (unsafe { at.as_ref() }) else { break };
        debug_assert!((UNIT..CHUNK).contains(&piece.size), "no piece of {} bytes", piece.size);
        if piece.size >= layout.size() && at.addr().is_multiple_of(layout.align()) {
            // SAFETY: as above.
            let Some(before) = (unsafe { before.as_mut() }) else { return (at, piece.next) };
            before.next = piece.next;
            return (at, first);
        }
        (before, at) = (at, piece.next);
    }
    (null_mut(), first)
}

/// Puts back what is left of a list that was taken.
///
/// # Safety
///
/// * `rest` is the calling thread's, and not empty.
unsafe fn put_back(list: &AtomicPtr<Free>, mut rest: *mut Free) {
    // Nearly always the list is still empty, and its end need not be looked for.
    // Release: as in `push`.
    while list.compare_exchange(null_mut(), rest, Ordering::Release, Ordering::Relaxed).is_err() {
        // Few pieces came meanwhile, nearly always. They go in front, because their end is soon found.
        // Acquire: as in `reuse`.
        let newer = list.swap(null_mut(), Ordering::Acquire);
        let mut last = newer;
        // SAFETY: null, or pieces of the list that this thread has taken.
        while let Some(piece) = unsafe { last.as_mut() } {
            if piece.next.is_null() {
                piece.next = rest;
                rest = newer;
                break;
            }
            last = piece.next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    /// Borrows the bytes of a piece, which is this test's alone.
    fn bytes<'a>(piece: *mut u8, size: usize) -> &'a mut [u8] {
        assert!(!piece.is_null());
        // SAFETY: a piece that `allocate` gave for this size, and that is not given back while this is used.
        unsafe { std::slice::from_raw_parts_mut(piece, size) }
    }

    fn free(chunks: &Chunks, piece: *mut u8, size: usize) {
        // SAFETY: taken with this size, and not used any more.
        unsafe { chunks.free(piece, size) };
    }

    #[test]
    fn pieces_are_aligned_zero_and_apart() {
        let chunks = Chunks::new();
        let mut taken = Vec::new();
        for number in 0..200 {
            let layout = layout(1 + number * 37 % 5_000, 1 << (number % 13));
            let piece = chunks.allocate(layout);
            assert!(piece.addr().is_multiple_of(layout.align()));
            assert!(bytes(piece, layout.size()).iter().all(|byte| *byte == 0));
            bytes(piece, layout.size()).fill(number as u8);
            taken.push((piece, layout.size(), number as u8));
        }
        for (piece, size, number) in taken {
            assert!(bytes(piece, size).iter().all(|byte| *byte == number));
        }
        assert!(chunks.allocate(layout(1, 8192)).is_null() && chunks.allocate(layout(CHUNK, 1)).is_null());
        assert!(!chunks.allocate(layout(super::super::MAPPED - 1, MOST_ALIGNED)).is_null());
    }

    #[test]
    fn what_came_back_is_used_again_and_zero() {
        let chunks = Chunks::new();
        let first = chunks.allocate(layout(4096, 128));
        // Not the end of the chunk, which would go on growing from where it is.
        let other = chunks.allocate(layout(100, 8));
        bytes(first, 4096).fill(7);
        free(&chunks, first, 4096);
        let again = chunks.allocate(layout(4096, 128));
        assert_eq!(again, first);
        assert!(bytes(again, 4096).iter().all(|byte| *byte == 0));
        // In parts, then, to the last unit.
        bytes(again, 4096).fill(7);
        free(&chunks, again, 4096);
        let mut parts = Vec::new();
        for size in [1_000, 24, 2_000, 1_008, 48] {
            let part = chunks.allocate(layout(size, 8));
            assert!(bytes(part, size).iter().all(|byte| *byte == 0));
            parts.push(part.addr() - first.addr());
        }
        assert_eq!(parts, [0, 1_008, 1_040, 3_040, 4_048]);
        assert!(chunks.allocate(layout(16, 8)).addr() > other.addr());
    }

    #[test]
    fn what_does_not_fit_stays_for_others() {
        let chunks = Chunks::new();
        let small: Vec<_> = (0..40).map(|_| chunks.allocate(layout(1_040, 16))).collect();
        for piece in &small {
            free(&chunks, *piece, 1_040);
        }
        // The same class, but each is too small for it.
        let large = chunks.allocate(layout(2_000, 16));
        assert!(!small.contains(&large));
        let again: Vec<_> = (0..40).map(|_| chunks.allocate(layout(1_040, 16))).collect();
        assert!(again.iter().all(|piece| small.contains(piece)));
    }

    #[test]
    fn the_end_of_a_full_chunk_is_used() {
        let chunks = Chunks::new();
        let size = super::super::MAPPED - UNIT;
        let large: Vec<_> = (0..5).map(|_| chunks.allocate(layout(size, 16))).collect();
        let first = large[0].addr();
        // Four of them are in the first chunk; nearly all of the rest of it is 64 bytes less what it begins with.
        let rest = chunks.allocate(layout(48, 16)).addr();
        assert_eq!(rest, first + 4 * size);
        assert_ne!(large[4].addr(), first + 4 * size);
    }

    /// No thread gets a piece of another, nothing is lost, and all of it is zero: with many threads at once.
    #[test]
    fn threads_that_take_and_give_back_at_once() {
        let (threads, rounds) = if cfg!(miri) { (3, 60) } else { (8, 20_000) };
        let chunks = Chunks::new();
        std::thread::scope(|scope| {
            for thread in 1..=threads {
                let chunks = &chunks;
                scope.spawn(move || {
                    let mut kept = [(null_mut::<u8>(), 0); 8];
                    let mut state = thread as u64;
                    for round in 0..rounds {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let size = 1 + (state >> 33) as usize % 3_000;
                        let piece = chunks.allocate(layout(size, 8));
                        assert!(bytes(piece, size).iter().all(|byte| *byte == 0));
                        bytes(piece, size).fill(thread);
                        let (old, old_size) = std::mem::replace(&mut kept[round % 8], (piece, size));
                        if !old.is_null() {
                            assert!(bytes(old, old_size).iter().all(|byte| *byte == thread));
                            free(chunks, old, old_size);
                        }
                    }
                    for (piece, size) in kept.into_iter().filter(|(piece, _)| !piece.is_null()) {
                        free(chunks, piece, size);
                    }
                });
            }
        });
        // Chunks without what they begin with are what is in the lists and what is left of the last one.
        let free: usize = chunks.lists.iter().map(|list| total(list.load(Ordering::Acquire))).sum();
        // SAFETY: there is one, and it is never unmapped.
        let used = unsafe { &*chunks.current.load(Ordering::Acquire) }.used.load(Ordering::Relaxed);
        assert!((free + CHUNK - used).is_multiple_of(CHUNK - UNIT), "{free} {used}");
    }

    fn total(mut piece: *mut Free) -> usize {
        let mut sum = 0;
        // SAFETY: null, or a piece of a list that no thread changes any more.
        while let Some(Free { next, size }) = unsafe { piece.as_ref() } {
            (piece, sum) = (*next, sum + size);
        }
        sum
    }
}
