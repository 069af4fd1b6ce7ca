//! Where the words of one stack stand → what that stack is recognised by.
//!
//! Walking is a chain: each frame's place follows from the one below it. But at one stack pointer the
//! frames nearly always lie as they lay before, so the words at the remembered places can be read
//! all at once, and what they add up to compared. Whether the guess was right is decided there:
//!
//! * What is compared is the sum over the words *and* over the layout: over the places, and over the frame
//!   pointers that places were computed from, relative to the stack pointer. What it is equal to was computed
//!   of a stack that was walked with this very layout.
//! * The place of the first return address follows from where we are, always in `event::alloc::record_alloc`: what other walks
//!   find is not learnt. If the word there is the one of that stack, then the place of the second follows
//!   from the same rule as then, and so on: a place depends only on the addresses before it and on those
//!   frame pointers. So equal sums mean that walking would find the same, by induction; only equal *words*
//!   could be old words in a dead part of the stack, which is why the layout is compared too.
//!
//! One layout serves all stacks that pass the same frames by different calls, so branching recursion
//! needs few. Debug builds walk as well and compare.

use crate::record::epoch::MAX_ADDRESSES;
use crate::record::stack_id::fingerprint::{self, GROUP, MOST};
use std::hint::assert_unchecked;

/// Places of return addresses and frame pointers together.
const PLACES: usize = MOST;
const _: () = assert!(PLACES > MAX_ADDRESSES && PLACES.is_multiple_of(GROUP));

/// What the frame pointer counts that the walk began with; of no pattern, and odd.
const FIRST: u32 = 0x6ea2_eb2d;

/// The places of a walk's words as they are gathered, in words from the stack pointer.
pub(crate) struct Places {
    /// Return addresses.
    len: usize,
    /// Frame pointers that places depend on, kept from the end of `places` on.
    frame_pointers: usize,
    /// A place depends on the frame pointer that the walk began with.
    is_from_first: bool,
    /// There was one that could not be held.
    is_cut: bool,
    places: [u16; PLACES],
}

impl Places {
    pub(crate) fn new() -> Places {
        Places { len: 0, frame_pointers: 0, is_from_first: false, is_cut: false, places: [0; PLACES] }
    }

    /// Adds that of a return address.
    #[inline(always)]
    pub(crate) fn push(&mut self, place: usize) {
        if self.fits(place) {
            self.places[self.len] = place as u16;
            self.len += 1;
        }
    }

    /// Adds that of a frame pointer which the next place depends on.
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

    /// Notes that the next place depends on the frame pointer that the walk began with.
    #[inline(always)]
    pub(crate) fn depends_on_first(&mut self) {
        self.is_from_first = true;
    }

    /// Those of the return addresses, rising.
    pub(crate) fn return_addresses(&self) -> &[u16] {
        &self.places[..self.len]
    }

    /// What they are together. `None` if one could not be held, or there is none.
    pub(crate) fn finish(mut self) -> Option<Layout> {
        let last = *self.return_addresses().last()?;
        if self.is_cut {
            return None;
        }
        let used = self.len + self.frame_pointers;
        let padded = used.next_multiple_of(GROUP);
        // Behind the return addresses; both may overlap.
        self.places.copy_within(PLACES - self.frame_pointers.., self.len);
        self.places[used..padded].fill(last);
        // A position counts what the sum makes of a one there.
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

/// Where the words of a stack stand, and which stack of that kind was met last.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Layout {
    /// [`Layout::check`] of the stack that was met last, 0 before there is one; and its id.
    check: u64,
    id: u32,
    /// Bytes from the stack pointer to the end of the highest word.
    reach: u32,
    /// What the words that are frame pointers count, added up.
    frame_pointer_factors: u64,
    /// Of the places, and of how many there are of each kind.
    sum: u64,
    /// What the frame pointer counts that the walk began with: 0 if no place depends on it.
    first_factor: u32,
    /// Return addresses and frame pointers, rounded up to a whole group; at least one.
    padded: u8,
    /// It was right since it was learnt, or since somebody asked.
    used: bool,
    places: [u16; PLACES],
}

const _: () = assert!(size_of::<Layout>() == 248);

impl Layout {
    /// Holds the place of one that is not there yet.
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

    /// Whether both are the same places.
    pub(crate) fn is_same(&self, other: &Layout) -> bool {
        (self.sum, self.first_factor) == (other.sum, other.first_factor)
    }

    /// The id of the stack that was met last, if it is the one of this [`Layout::check`]; else 0.
    ///
    /// The processor guesses that it is, and goes on with the id while the sum is still being made: half of
    /// the time that an allocation takes would else be spent waiting for it. It is right for 94 to 99 in
    /// a hundred allocations of the programs under `benches/`, but for branching recursion, where it never is.
    #[inline(always)]
    pub(crate) fn id_of(&mut self, check: u64) -> u32 {
        if self.check != check {
            return 0;
        }
        self.used = true;
        self.id
    }

    /// Notes which stack was met.
    pub(crate) fn met(&mut self, check: u64, id: u32) {
        (self.check, self.id, self.used) = (check, id, true);
    }

    /// Whether it was right since somebody asked.
    pub(crate) fn take_used(&mut self) -> bool {
        std::mem::take(&mut self.used)
    }

    /// Bytes from the stack pointer to the end of the highest word.
    #[inline(always)]
    pub(crate) fn reach(&self) -> usize {
        self.reach as usize
    }

    /// What the stack is recognised by, if it is of this layout; never 0. `word` reads the word at a place; all of
    /// them are below [`Layout::reach`].
    ///
    /// Frame pointers count relative to the stack pointer, so that it is the same in all threads.
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

    /// On a stack that is moved as a whole, frame pointers with it, and on no other.
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
