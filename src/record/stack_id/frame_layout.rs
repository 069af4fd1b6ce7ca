//! Frame layout: offsets of a stack's return addresses and frame pointers, and the check of a stack that has it.
//!
//! A walk is a dependent chain: the offset of each frame follows from the frame below it. But at one stack pointer
//! the frames nearly always have a layout that was seen before, so the words at the remembered offsets can be read
//! all at once, and their sum compared. The comparison decides whether the guess was right:
//!
//! * The sum covers the words *and* the layout: the offsets, and the frame pointers that offsets were computed from,
//!   relative to the stack's end. The check it is compared with was computed for a stack that was walked and had
//!   this very layout.
//! * The offset of the first return address follows from the program counter, which is always in
//!   `event::alloc::record_alloc`: layouts of other walks are not learnt. If the word there equals that of the walked
//!   stack, then the offset of the second follows from the same rule as then, and so on: an offset depends only on
//!   the addresses before it and on those frame pointers. So equal sums mean, by induction, that a walk would find
//!   the same stack. Equal *words* alone could be stale ones in a dead part of the stack, which is why the sum covers
//!   the layout too.
//!
//! One layout serves all stacks that have the same frames with different calls, so branching recursion needs few.
//! Debug builds walk as well and compare.

use crate::base::hint::unlikely;
use crate::record::count::counters::Count;
use crate::record::epoch::MAX_ADDRESSES;
use crate::record::stack_id::fingerprint::{self, MOST};
use std::mem::offset_of;

/// Largest number of offsets, of return addresses and frame pointers together.
const MOST_OFFSETS: usize = MOST;
const _: () = assert!(MOST_OFFSETS > MAX_ADDRESSES);

/// Factor of the frame pointer that the walk began with; random, and odd.
const FIRST: u64 = 0x6ea2_eb2d;

/// Offsets of a walk's words as they are gathered, in words from the stack pointer.
pub(crate) struct SlotOffsets {
    /// Number of return addresses.
    len: usize,
    /// Number of frame pointers that offsets depend on; stored backwards from the end of `offsets`.
    frame_pointers: usize,
    /// Set if an offset depends on the frame pointer that the walk began with.
    is_from_first: bool,
    /// Set if an offset did not fit.
    is_too_large: bool,
    offsets: [u16; MOST_OFFSETS],
}

impl SlotOffsets {
    pub(crate) fn new() -> SlotOffsets {
        SlotOffsets {
            len: 0,
            frame_pointers: 0,
            is_from_first: false,
            is_too_large: false,
            offsets: [0; MOST_OFFSETS],
        }
    }

    /// Adds the offset of a return address.
    #[inline(always)]
    pub(crate) fn push(&mut self, offset: usize) {
        if self.fits(offset) {
            self.offsets[self.len] = offset as u16;
            self.len += 1;
        }
    }

    /// Adds the offset of a frame pointer that the next offset depends on.
    #[inline(always)]
    pub(crate) fn push_frame_pointer(&mut self, offset: usize) {
        if self.fits(offset) {
            self.frame_pointers += 1;
            self.offsets[MOST_OFFSETS - self.frame_pointers] = offset as u16;
        }
    }

    /// Returns whether there is room for one more offset and it has 16 bits; notes where it has not.
    #[inline(always)]
    fn fits(&mut self, offset: usize) -> bool {
        let fits = self.len + self.frame_pointers < MOST_OFFSETS && offset <= usize::from(u16::MAX);
        self.is_too_large |= !fits;
        fits
    }

    /// Records that the next offset depends on the frame pointer that the walk began with.
    #[inline(always)]
    pub(crate) fn depends_on_first(&mut self) {
        self.is_from_first = true;
    }

    /// Returns the offsets of the return addresses, ascending.
    pub(crate) fn return_addresses(&self) -> &[u16] {
        &self.offsets[..self.len]
    }

    /// Builds the layout, on a stack that ends at `end`. `None` if an offset did not fit, or there is no return address.
    pub(crate) fn finish(mut self, end: usize) -> Option<FrameLayout> {
        if self.is_too_large || self.len == 0 {
            return None;
        }
        debug_assert!(self.return_addresses().is_sorted(), "a walk ascends");
        let used = self.len + self.frame_pointers;
        // Moves the frame pointers behind the return addresses; the two ranges may overlap.
        self.offsets.copy_within(MOST_OFFSETS - self.frame_pointers.., self.len);
        // The sum over ones at their positions is the sum of their factors.
        let mut is_frame_pointer = [0u8; MOST_OFFSETS];
        is_frame_pointer[self.len..used].fill(1);
        let kinds = usize::from(self.is_from_first) << 16 | self.len << 8 | self.frame_pointers;
        let mut layout = FrameLayout {
            sum: fingerprint::sum(&self.offsets[..used], usize::from)
                .rotate_left(32)
                .wrapping_add(kinds as u64),
            code: fingerprint::code_of(used),
            is_from_first: self.is_from_first,
            offsets: self.offsets,
            frame_pointer_factors: fingerprint::sum(&is_frame_pointer[..used], usize::from),
            ..FrameLayout::EMPTY
        };
        layout.move_end(end);
        Some(layout)
    }
}

/// Frame layout, with the last stack seen that has it.
///
/// The fields that a hit reads come first: with up to 44 offsets they are in two cache lines.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct FrameLayout {
    /// Key in [`FrameLayoutCache`](super::frame_layout_cache::FrameLayoutCache); 0 in an empty slot.
    pub(super) key: u64,
    /// [`FrameLayout::words`] of the last stack.
    last: u64,
    /// This thread's count of what the last stack has allocated; null before there is one.
    count: *const Count,
    /// Sum over the offsets and over the number of each kind, less the end of the stack times `frame_pointer_factors`.
    sum: u64,
    /// Id of the last stack, 0 before there is one.
    id: u32,
    /// Code for the return addresses and frame pointers, at least one: see [`fingerprint::code_of`].
    code: u16,
    /// Set if an offset depends on the frame pointer that the walk began with.
    is_from_first: bool,
    /// Set by a hit, cleared by [`FrameLayout::take_referenced`].
    referenced: bool,
    offsets: [u16; MOST_OFFSETS],
    /// Sum of the factors of the words that are frame pointers.
    frame_pointer_factors: u64,
}

const _: () = assert!(size_of::<FrameLayout>() == 256);

// SAFETY: the pointer leads to a count, which any thread may read. Only the static empty layout is shared.
unsafe impl Sync for FrameLayout {}

impl FrameLayout {
    /// Placeholder in an empty slot.
    pub(crate) const EMPTY: FrameLayout = FrameLayout {
        key: 0,
        last: 0,
        count: std::ptr::null(),
        sum: 0,
        id: 0,
        code: 0,
        is_from_first: false,
        referenced: false,
        offsets: [0; MOST_OFFSETS],
        frame_pointer_factors: 0,
    };

    /// Returns whether both have the same offsets, on the same stack.
    pub(crate) fn is_same(&self, other: &FrameLayout) -> bool {
        (self.sum, self.is_from_first) == (other.sum, other.is_from_first)
    }

    /// Returns whether these are the [`FrameLayout::words`] of the last stack, and marks the layout as used if so. Then there is
    /// one unless its id is 0.
    ///
    /// The processor predicts that it is, and continues with the id while the sum is still being computed: without
    /// that, half of an allocation's time would be spent waiting for the sum. The prediction is right for 94 to 99 in
    /// a hundred allocations of the programs under `benches/`, except in branching recursion, where it never is.
    #[inline(always)]
    pub(crate) fn is_last(&mut self, words: u64) -> bool {
        let is_last = self.last == words;
        if is_last {
            self.referenced = true;
        }
        is_last
    }

    /// Returns the id of the last stack; 0 before there is one.
    #[inline(always)]
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Returns this thread's count of what the last stack has allocated.
    ///
    /// # Safety
    ///
    /// * The id of the last stack is not 0, nor below the base that the thread has read in the present generation.
    /// * The thread is busy, and has loaded that generation since it is.
    #[inline(always)]
    pub(crate) unsafe fn count(&self) -> &'static Count {
        debug_assert!(!self.count.is_null());
        // SAFETY: set together with the id, which was 0 before. It is freed only after the id has ended, a generation has begun, and
        // this thread was seen outside of an event since: see `reclaim`.
        unsafe { &*self.count }
    }

    /// Sets the last stack, by its [`FrameLayout::words`].
    pub(crate) fn set_last(&mut self, words: u64, id: u32, count: &'static Count) {
        debug_assert!(id != 0, "no stack");
        (self.last, self.id, self.count, self.referenced) = (words, id, count, true);
    }

    /// Forgets the last stack.
    pub(crate) fn forget_last(&mut self) {
        (self.last, self.id, self.count) = (0, 0, std::ptr::null());
    }

    /// Returns whether there was a hit since the last call, and clears the mark.
    pub(crate) fn take_referenced(&mut self) -> bool {
        std::mem::take(&mut self.referenced)
    }

    /// Makes it a layout of a stack that ends so many bytes higher, modulo 2^64.
    pub(crate) fn move_end(&mut self, bytes: usize) {
        let change = (bytes as u64).wrapping_mul(self.frame_pointer_factors);
        (self.sum, self.last) = (self.sum.wrapping_sub(change), self.last.wrapping_add(change));
    }

    /// Returns the bytes from the stack pointer to the end of the highest word.
    pub(crate) fn extent(&self) -> usize {
        let highest = self.places().iter().max().copied().unwrap_or(0);
        (usize::from(highest) + 1) * size_of::<usize>()
    }

    /// Returns the offsets of the words that count.
    fn places(&self) -> &[u16] {
        &self.offsets[..fingerprint::words_of(self.code).min(MOST_OFFSETS)]
    }

    /// Computes the sum of a stack's words under this layout, each times the factor of its place.
    ///
    /// # Safety
    ///
    /// * It comes from [`SlotOffsets::finish`], and the words at its offsets from this stack pointer can be read.
    pub(crate) unsafe fn words(&self, stack_pointer: usize, frame_pointer: usize) -> u64 {
        debug_assert!(self.code != 0, "an empty layout");
        // SAFETY: `finish` has made it at most MOST_OFFSETS; the words are the caller's duty.
        let words = unsafe { fingerprint::sum_of_stack(self.places(), stack_pointer) };
        if self.is_from_first { words.wrapping_add(first(stack_pointer, frame_pointer)) } else { words }
    }

    /// Computes [`FrameLayout::words`] of the stack of the function that this is inlined into, whose stack pointer this is, plus the
    /// term that lies `TERM` bytes behind `base`. Returns the layout too: the compiler keeps the one that is returned, and has a register more.
    ///
    /// # Safety
    ///
    /// * As for [`FrameLayout::words`], and no other reference to the layout is in use. The term can be read, and no other thread
    ///   writes it.
    #[inline(always)]
    pub(crate) unsafe fn words_here<'a, const TERM: usize>(
        layout: *mut FrameLayout,
        stack_pointer: usize,
        base: *const u8,
        frame_pointer: impl FnOnce() -> usize,
    ) -> (u64, &'a mut FrameLayout) {
        // SAFETY: the layout is one that `finish` has made, and its words can be read: the caller's duties. `places` comes back as it
        // went in, so the layout is found again around it.
        unsafe {
            debug_assert!((*layout).code != 0, "an empty layout");
            let places = (&raw const (*layout).offsets).cast::<u16>();
            let (words, places) =
                fingerprint::sum_of_this_stack::<TERM>(places, (*layout).code, stack_pointer, base);
            let layout =
                &mut *places.byte_sub(offset_of!(FrameLayout, offsets)).cast::<FrameLayout>().cast_mut();
            if unlikely(layout.is_from_first) {
                return (words.wrapping_add(first(stack_pointer, frame_pointer())), layout);
            }
            (words, layout)
        }
    }

    /// Computes the check of a stack from its words under this layout; never 0.
    ///
    /// Frame pointers count relative to the stack's end, and the first one to the stack pointer, so that the check is the
    /// same in all threads.
    pub(crate) fn check(&self, words: u64) -> u64 {
        words.wrapping_add(self.sum) | 1
    }
}

/// Returns the term of the words for the frame pointer that a walk began with.
#[inline(always)]
fn first(stack_pointer: usize, frame_pointer: usize) -> u64 {
    (frame_pointer.wrapping_sub(stack_pointer) as u64).wrapping_mul(FIRST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_and_frame_pointers_do_not_meet() {
        for both in 1..=52 {
            let mut offsets = SlotOffsets::new();
            for offset in 0..both {
                offsets.push(offset);
                offsets.push_frame_pointer(1000 + offset);
            }
            assert!(offsets.return_addresses().iter().copied().eq(0..both as u16));
            let layout = offsets.finish(0).unwrap();
            let expected = (0..both).chain((1000..1000 + both).rev());
            assert!(layout.offsets.iter().map(|offset| usize::from(*offset)).take(2 * both).eq(expected));
            assert_eq!(layout.places().len(), 2 * both);
        }
    }

    #[test]
    fn what_cannot_be_held_is_no_layout() {
        assert!(SlotOffsets::new().finish(0).is_none(), "nothing");
        let many = |offsets: usize, highest: usize| {
            let mut gathered = SlotOffsets::new();
            (1..offsets).for_each(|offset| gathered.push(offset));
            gathered.push_frame_pointer(highest);
            gathered.finish(0).is_some()
        };
        assert!(many(MOST_OFFSETS, 65_535) && !many(MOST_OFFSETS + 1, 65_535) && !many(MOST_OFFSETS, 65_536));
    }

    /// Moves a stack as a whole, frame pointers included, which keeps its check; any other change alters it.
    #[test]
    fn a_moved_stack_is_the_same_one() {
        let mut offsets = SlotOffsets::new();
        [2, 5, 9].into_iter().for_each(|offset| offsets.push(offset));
        [4, 8].into_iter().for_each(|offset| offsets.push_frame_pointer(offset));
        offsets.depends_on_first();
        let layout = offsets.finish(0x7100).unwrap();
        assert_eq!(layout.extent(), 80);
        let check = |moved: usize, shifted: [usize; 3], first: usize| {
            let mut stack = [usize::MAX; 10];
            stack[2] = 0x5555_1234 + shifted[0];
            stack[4] = 0x7040 + moved + shifted[1];
            stack[5] = 0x5555_2345;
            stack[8] = 0x7080 + moved;
            stack[9] = 0x5555_3456 + shifted[2];
            let mut layout = layout;
            layout.move_end(moved);
            let stack_pointer = stack.as_ptr().expose_provenance();
            // SAFETY: finished above, and its words are those of `stack`.
            layout.check(unsafe { layout.words(stack_pointer, stack_pointer + 0x18 + first) })
        };
        let same = check(0, [0; 3], 0);
        assert_eq!(check(0x1_0000, [0; 3], 0), same);
        for (shifted, first) in [([5, 0, 0], 0), ([0, 8, 0], 0), ([0, 0, 5], 0), ([0; 3], 8)] {
            assert_ne!(check(0, shifted, first), same);
        }
    }
}
