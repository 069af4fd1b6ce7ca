//! Frame layout: offsets of a stack's return addresses and frame pointers, and the check of a stack that has it.
//!
//! A walk is a dependent chain: the offset of each frame follows from the frame below it. But at one stack pointer
//! the frames nearly always have a layout that was seen before, so the words at the remembered offsets can be read
//! all at once, and their sum compared. The comparison decides whether the guess was right:
//!
//! * The sum covers the words *and* the layout: the offsets, and the frame pointers that offsets were computed from,
//!   relative to the stack pointer. The check it is compared with was computed for a stack that was walked and had
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

use crate::record::epoch::MAX_ADDRESSES;
use crate::record::stack_id::fingerprint::{self, GROUP, MOST};
use std::hint::assert_unchecked;

/// Largest number of offsets, of return addresses and frame pointers together.
const PLACES: usize = MOST;
const _: () = assert!(PLACES > MAX_ADDRESSES && PLACES.is_multiple_of(GROUP));

/// Factor of the frame pointer that the walk began with; random, and odd.
const FIRST: u32 = 0x6ea2_eb2d;

/// Offsets of a walk's words as they are gathered, in words from the stack pointer.
pub(crate) struct Places {
    /// Number of return addresses.
    len: usize,
    /// Number of frame pointers that offsets depend on; stored backwards from the end of `places`.
    frame_pointers: usize,
    /// Set if an offset depends on the frame pointer that the walk began with.
    is_from_first: bool,
    /// Set if an offset did not fit.
    is_cut: bool,
    places: [u16; PLACES],
}

impl Places {
    pub(crate) fn new() -> Places {
        Places { len: 0, frame_pointers: 0, is_from_first: false, is_cut: false, places: [0; PLACES] }
    }

    /// Adds the offset of a return address.
    #[inline(always)]
    pub(crate) fn push(&mut self, place: usize) {
        if self.fits(place) {
            self.places[self.len] = place as u16;
            self.len += 1;
        }
    }

    /// Adds the offset of a frame pointer that the next offset depends on.
    #[inline(always)]
    pub(crate) fn push_frame_pointer(&mut self, place: usize) {
        if self.fits(place) {
            self.frame_pointers += 1;
            self.places[PLACES - self.frame_pointers] = place as u16;
        }
    }

    #[inline(always)]
    fn fits(&mut self, place: usize) -> bool {
        let fits = self.len + self.frame_pointers < PLACES && place <= usize::from(u16::MAX);
        self.is_cut |= !fits;
        fits
    }

    /// Records that the next offset depends on the frame pointer that the walk began with.
    #[inline(always)]
    pub(crate) fn depends_on_first(&mut self) {
        self.is_from_first = true;
    }

    /// Returns the offsets of the return addresses, ascending.
    pub(crate) fn return_addresses(&self) -> &[u16] {
        &self.places[..self.len]
    }

    /// Builds the layout. `None` if an offset did not fit, or there is no return address.
    pub(crate) fn finish(mut self) -> Option<Layout> {
        let last = *self.return_addresses().last()?;
        if self.is_cut {
            return None;
        }
        let used = self.len + self.frame_pointers;
        let padded = used.next_multiple_of(GROUP);
        // Moves the frame pointers behind the return addresses; the two ranges may overlap.
        self.places.copy_within(PLACES - self.frame_pointers.., self.len);
        self.places[used..padded].fill(last);
        // The sum over ones at their positions is the sum of their factors.
        let mut is_frame_pointer = [0u8; PLACES];
        is_frame_pointer[self.len..used].fill(1);
        let kinds = usize::from(self.is_from_first) << 16 | self.len << 8 | self.frame_pointers;
        Some(Layout {
            check: 0,
            id: 0,
            sum: fingerprint::sum(&self.places[..padded], usize::from)
                .rotate_left(32)
                .wrapping_add(kinds as u64),
            frame_pointer_factors: fingerprint::sum(&is_frame_pointer[..padded], usize::from),
            first_factor: if self.is_from_first { FIRST } else { 0 },
            // A frame pointer is saved below the return address of its frame.
            reach: (u32::from(last) + 1) * size_of::<usize>() as u32,
            padded: padded as u8,
            used: false,
            places: self.places,
        })
    }
}

/// Frame layout, with the last stack seen that has it.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Layout {
    /// [`Layout::check`] of the last stack, 0 before there is one; and its id.
    check: u64,
    id: u32,
    /// Bytes from the stack pointer to the end of the highest word.
    reach: u32,
    /// Sum of the factors of the words that are frame pointers.
    frame_pointer_factors: u64,
    /// Sum over the offsets and over the number of each kind.
    sum: u64,
    /// Factor of the frame pointer that the walk began with: 0 if no offset depends on it.
    first_factor: u32,
    /// Number of return addresses and frame pointers, rounded up to a whole group; at least one.
    padded: u8,
    /// Set by a hit, cleared by [`Layout::take_used`].
    used: bool,
    places: [u16; PLACES],
}

const _: () = assert!(size_of::<Layout>() == 248);

impl Layout {
    /// Placeholder in an empty entry.
    pub(crate) const EMPTY: Layout = Layout {
        check: 0,
        id: 0,
        reach: 0,
        frame_pointer_factors: 0,
        sum: 0,
        first_factor: 0,
        padded: 0,
        used: false,
        places: [0; PLACES],
    };

    /// Returns whether both have the same offsets.
    pub(crate) fn is_same(&self, other: &Layout) -> bool {
        (self.sum, self.first_factor) == (other.sum, other.first_factor)
    }

    /// Returns the id of the last stack if this is its [`Layout::check`]; else 0.
    ///
    /// The processor predicts that it is, and continues with the id while the sum is still being computed: without
    /// that, half of an allocation's time would be spent waiting for the sum. The prediction is right for 94 to 99 in
    /// a hundred allocations of the programs under `benches/`, except in branching recursion, where it never is.
    #[inline(always)]
    pub(crate) fn id_of(&mut self, check: u64) -> u32 {
        if self.check != check {
            return 0;
        }
        self.used = true;
        self.id
    }

    /// Sets the last stack.
    pub(crate) fn met(&mut self, check: u64, id: u32) {
        (self.check, self.id, self.used) = (check, id, true);
    }

    /// Returns whether there was a hit since the last call, and clears the mark.
    pub(crate) fn take_used(&mut self) -> bool {
        std::mem::take(&mut self.used)
    }

    /// Bytes from the stack pointer to the end of the highest word.
    #[inline(always)]
    pub(crate) fn reach(&self) -> usize {
        self.reach as usize
    }

    /// Computes the check of the stack under this layout; never 0. `word` reads the word at an offset; all offsets
    /// are below [`Layout::reach`].
    ///
    /// Frame pointers count relative to the stack pointer, so that the check is the same in all threads.
    ///
    /// # Safety
    ///
    /// * It comes from [`Places::finish`].
    #[inline(always)]
    pub(crate) unsafe fn check(
        &self,
        stack_pointer: usize,
        frame_pointer: usize,
        word: impl Fn(usize) -> usize,
    ) -> u64 {
        // SAFETY: `finish` has made it whole groups, at least one, within PLACES.
        let places = unsafe {
            assert_unchecked((GROUP..=PLACES).contains(&usize::from(self.padded)));
            assert_unchecked(usize::from(self.padded).is_multiple_of(GROUP));
            self.places.get_unchecked(..usize::from(self.padded))
        };
        let words = fingerprint::sum(places, |place| word(usize::from(place)));
        let relative = frame_pointer.wrapping_sub(stack_pointer) as u64;
        let sum = words
            .wrapping_sub((stack_pointer as u64).wrapping_mul(self.frame_pointer_factors))
            .wrapping_add(relative.wrapping_mul(self.first_factor.into()))
            .wrapping_add(self.sum);
        sum | 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_frame_pointers_do_not_meet() {
        for both in 1..=52 {
            let mut places = Places::new();
            for place in 0..both {
                places.push(place);
                places.push_frame_pointer(1000 + place);
            }
            assert!(places.return_addresses().iter().copied().eq(0..both as u16));
            let layout = places.finish().unwrap();
            let expected = (0..both).chain((1000..1000 + both).rev());
            assert!(layout.places.iter().map(|place| usize::from(*place)).take(2 * both).eq(expected));
            assert_eq!(usize::from(layout.padded), (2 * both).next_multiple_of(GROUP));
        }
    }

    #[test]
    fn what_cannot_be_held_is_no_layout() {
        assert!(Places::new().finish().is_none(), "nothing");
        let many = |places: usize, highest: usize| {
            let mut gathered = Places::new();
            (1..places).for_each(|place| gathered.push(place));
            gathered.push_frame_pointer(highest);
            gathered.finish().is_some()
        };
        assert!(many(PLACES, 65_535) && !many(PLACES + 1, 65_535) && !many(PLACES, 65_536));
    }

    /// Moves a stack as a whole, frame pointers included, which keeps its check; any other change alters it.
    #[test]
    fn a_moved_stack_is_the_same_one() {
        let mut places = Places::new();
        [2, 5, 9].into_iter().for_each(|place| places.push(place));
        [4, 8].into_iter().for_each(|place| places.push_frame_pointer(place));
        places.depends_on_first();
        let layout = places.finish().unwrap();
        assert_eq!(layout.reach(), 80);
        let check = |moved: usize, shifted: [usize; 3], first: usize| {
            let word = |place| match place {
                2 => 0x5555_1234 + shifted[0],
                4 => 0x7040 + moved + shifted[1],
                5 => 0x5555_2345,
                8 => 0x7080 + moved,
                9 => 0x5555_3456 + shifted[2],
                _ => unreachable!("a word that is neither"),
            };
            // SAFETY: finished above.
            unsafe { layout.check(0x7000 + moved, 0x7018 + moved + first, word) }
        };
        let same = check(0, [0; 3], 0);
        assert_eq!(check(0x1_0000, [0; 3], 0), same);
        for (shifted, first) in [([5, 0, 0], 0), ([0, 8, 0], 0), ([0, 0, 5], 0), ([0; 3], 8)] {
            assert_ne!(check(0, shifted, first), same);
        }
    }
}
