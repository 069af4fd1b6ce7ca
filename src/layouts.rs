//! Where the return addresses of a stack stood the last time, in the thread that walked it.
//!
//! Walking is a chain: each frame's place follows from the one below it. But at one stack pointer the
//! frames nearly always lie as they lay before, so the words at the remembered places can be read
//! all at once, and what they add up to looked up. Whether the guess was right is decided there:
//!
//! * What is looked up is the sum over the words (the stack's fingerprint) *and* the layout: the sum
//!   over the places, and over the frame pointers that places were computed from, relative to the
//!   stack pointer. An entry of the stack cache with both is a stack that was walked with this very
//!   layout.
//! * The place of the first return address follows from where we are. If the word there is the one
//!   of that stack, then the place of the second follows from the same rule as then, and so on: a
//!   place depends only on the addresses before it and on those frame pointers. So equal sums mean
//!   that walking would find the same, by induction; only equal *words* could be old words in a dead
//!   part of the stack, which is why the layout is compared too.
//!
//! One layout serves all stacks that pass the same frames by different calls, so branching recursion
//! needs few. Debug builds walk as well and compare.

use crate::memory;
use crate::tracker::MAX_ADDRESSES;

/// Addresses are summed in groups of this many, the last filled up with its last address: a loop whose
/// end the processor predicts, most stacks being of one to four groups.
pub(crate) const GROUP: usize = 8;
const _: () = assert!(MAX_ADDRESSES.is_multiple_of(GROUP) && PLACES.is_multiple_of(GROUP));

/// Places an entry can hold: return addresses, then frame pointers.
const PLACES: usize = 112;

/// Where the words of a stack stand, in words from the stack pointer.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Layout {
    /// Sum over the places of the return addresses.
    pub sum: u64,
    /// Return addresses; and the same, rounded up to a whole group.
    len: u8,
    padded: u8,
    /// Frame pointers that places depend on, kept from the end of `places` on.
    frame_pointers: u8,
    /// A place depends on the frame pointer that the walk began with.
    pub from_first: bool,
    places: [u16; PLACES],
}

const _: () = assert!(size_of::<Layout>() == 240 && PLACES > MAX_ADDRESSES);

impl Layout {
    pub(crate) const EMPTY: Layout =
        Layout { sum: 0, len: 0, padded: 0, frame_pointers: 0, from_first: false, places: [0; PLACES] };

    /// Adds the place of a return address; false if it cannot be held. Rounded up to a whole group,
    /// they never meet those of frame pointers.
    #[inline(always)]
    pub(crate) fn push(&mut self, place: usize) -> bool {
        let index = usize::from(self.len);
        let rounded = (index + 1).next_multiple_of(GROUP);
        let fits = rounded + usize::from(self.frame_pointers) <= PLACES && place <= usize::from(u16::MAX);
        if fits {
            self.places[index] = place as u16;
            self.len += 1;
        }
        fits
    }

    /// Adds the place of a frame pointer; false if it cannot be held.
    #[inline(always)]
    pub(crate) fn push_frame_pointer(&mut self, place: usize) -> bool {
        let used = usize::from(self.frame_pointers);
        let rounded = usize::from(self.len).next_multiple_of(GROUP);
        let fits = used + rounded < PLACES && place <= usize::from(u16::MAX);
        if fits {
            self.places[PLACES - 1 - used] = place as u16;
            self.frame_pointers += 1;
        }
        fits
    }

    /// Places of the return addresses, rising; at least one in a layout that was learnt.
    pub(crate) fn return_addresses(&self) -> &[u16] {
        &self.places[..usize::from(self.len)]
    }

    /// The same, filled up to a whole number of groups with the last one.
    #[inline(always)]
    pub(crate) fn groups(&self) -> &[u16] {
        // SAFETY: `push` keeps the number, rounded up, within PLACES, which is a multiple of GROUP.
        unsafe { self.places.get_unchecked(..usize::from(self.padded)) }
    }

    /// Fills the last group up, after the last address.
    fn fill(&mut self) {
        let len = usize::from(self.len);
        let padded = len.next_multiple_of(GROUP);
        if len > 0 {
            let last = self.places[len - 1];
            self.places[len..padded].fill(last);
        }
        self.padded = padded as u8;
    }

    /// Whether a place depends on anything but the rules of the addresses before it.
    #[inline(always)]
    pub(crate) fn has_frame_pointers(&self) -> bool {
        (self.frame_pointers != 0) | self.from_first
    }

    /// Places of the frame pointers, in any order.
    pub(crate) fn frame_pointers(&self) -> &[u16] {
        &self.places[PLACES - usize::from(self.frame_pointers)..]
    }
}

/// Layouts that are tried for one key.
pub(crate) const WAYS: usize = 4;
/// 4 KiB.
const SMALLEST: usize = 4;
/// 256 KiB.
const LARGEST: usize = 256;
/// After so many layouts in a row that were of no use, the set is left alone for a while.
const PATIENCE: u8 = 12;

/// The layouts of the keys that share an index.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Set {
    /// What each way is looked up by; 0 is empty.
    keys: [u64; WAYS],
    /// Whether each way was right since it was learnt, or since the clock hand came by.
    used: [bool; WAYS],
    /// The way that is looked at first when one has to go.
    hand: u8,
    /// Ways replaced in a row by others of the same key without having been of use.
    useless: u8,
    /// Walks to go before the next guess.
    mute: u8,
    ways: [Layout; WAYS],
}

const _: () = assert!(size_of::<Set>() == 1024);

impl Set {
    /// The layout of a way, if it is of this key.
    #[inline(always)]
    pub(crate) fn way(&self, way: usize, key: u64) -> Option<&Layout> {
        (self.keys[way] == key).then_some(&self.ways[way])
    }

    /// Notes that a way was right.
    #[inline(always)]
    pub(crate) fn was_right(&mut self, way: usize) {
        self.used[way] = true;
    }

    /// Keeps a layout. Whether one of another key had to go for it.
    fn put(&mut self, key: u64, found: &Layout) -> bool {
        if self.mute > 0 {
            self.mute -= 1;
            return false;
        }
        let is_known = |way: usize| {
            self.keys[way] == key && self.ways[way].sum == found.sum && self.ways[way].len == found.len
        };
        if (0..WAYS).any(is_known) {
            // The guess was right: it is the stack that was new to the cache.
            return false;
        }
        // Second chance: the first from the hand on that has not been of use since it last came by.
        let mut way = usize::from(self.hand) % WAYS;
        while self.keys[way] != 0 && self.used[way] {
            self.used[way] = false;
            way = (way + 1) % WAYS;
        }
        // A useless layout of the same key says that this key keeps no layout; one of another key says
        // that the table is too small.
        let pushed_out = self.keys[way] != 0 && self.keys[way] != key;
        self.useless = if self.keys[way] == key { self.useless + 1 } else { 0 };
        if self.useless >= PATIENCE {
            (self.useless, self.mute) = (PATIENCE / 2, u8::MAX);
        }
        self.keys[way] = key;
        self.ways[way] = *found;
        self.ways[way].fill();
        self.hand = ((way + 1) % WAYS) as u8;
        pushed_out
    }
}

/// Where the word stands that is part of the key. It only has to be telling, not right.
#[derive(Clone, Copy, Default)]
pub(crate) struct Hint {
    /// In words from the stack pointer.
    pub place: u16,
    /// Walks in a row that found it elsewhere.
    doubts: u16,
}

impl Hint {
    /// Learns where a walk found the return address that tells one caller from another.
    pub(crate) fn learn(&mut self, place: u16) {
        if self.place == place {
            self.doubts = 0;
        } else {
            self.doubts += 1;
            // Some stacks pass other frames on their way into the allocator; follow the many.
            if self.place == 0 || self.doubts > 64 {
                *self = Hint { place, doubts: 0 };
            }
        }
    }
}

/// The layouts of one thread. All zero bytes are none.
pub(crate) struct Layouts {
    sets: *mut Set,
    /// Number of sets, a power of two, or 0.
    len: usize,
    /// Layouts pushed out since the last growth.
    pushed_out: usize,
    /// For each way into the allocator: where a word stands that tells callers apart.
    pub hints: [Hint; 4],
}

impl Layouts {
    /// The set that a key belongs to, if it is worth trying; and how many of its ways are.
    #[inline(always)]
    pub(crate) fn set(&mut self, key: u64) -> Option<&mut Set> {
        if self.len == 0 {
            return None;
        }
        // SAFETY: `sets` has `len` of them, a power of two; the index is below it. `&mut self` makes
        // it the only access.
        let set = unsafe { &mut *self.sets.add(index(key, self.len)) };
        (set.mute == 0).then_some(set)
    }

    /// Learns what a walk has found under a key.
    pub(crate) fn learn(&mut self, key: u64, found: &Layout) {
        if self.len == 0 || (self.pushed_out > self.len && self.len < LARGEST) {
            self.grow();
        }
        if self.len == 0 {
            return;
        }
        // SAFETY: as in `set`.
        let set = unsafe { &mut *self.sets.add(index(key, self.len)) };
        self.pushed_out += usize::from(set.put(key, found));
    }

    #[cold]
    fn grow(&mut self) {
        self.pushed_out = 0;
        let len = (self.len * 2).max(SMALLEST);
        if self.len != 0 && !memory::may_grow() {
            return;
        }
        let sets = memory::zeroed_array::<Set>(len);
        if sets.is_null() {
            return;
        }
        let old = std::mem::replace(self, Layouts { sets, len, pushed_out: 0, hints: self.hints });
        for place in 0..old.len {
            // SAFETY: within the old table, which is still whole.
            let set = unsafe { &*old.sets.add(place) };
            for (key, layout) in set.keys.iter().zip(&set.ways).filter(|(key, _)| **key != 0) {
                // SAFETY: as in `learn`. A set's layouts go to two sets at most, so all find room.
                unsafe { &mut *self.sets.add(index(*key, len)) }.put(*key, layout);
            }
        }
        old.free();
    }

    /// Forgets all layouts: the rules they come from may have changed, or the number of addresses.
    pub(crate) fn forget(&mut self) {
        for place in 0..self.len {
            // SAFETY: within the table.
            unsafe { (*self.sets.add(place)).keys = [0; WAYS] };
        }
        self.hints = [Hint::default(); 4];
    }

    /// Gives the table's memory back.
    fn free(self) {
        if !self.sets.is_null() {
            // SAFETY: made by `grow` with this length; `self` ends here.
            unsafe { memory::free_array(self.sets, self.len) };
        }
    }

    #[cfg(test)]
    fn new() -> Layouts {
        Layouts { sets: std::ptr::null_mut(), len: 0, pushed_out: 0, hints: [Hint::default(); 4] }
    }
}

/// The key of a depth, in bytes from the stack's end, and a telling word; never 0.
///
/// From the end, so that what one thread has learnt serves the next one that adopts its state.
#[inline(always)]
pub(crate) fn key(depth: usize, word: usize) -> u64 {
    ((depth as u64) ^ (word as u64).rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

#[inline(always)]
fn index(key: u64, len: usize) -> usize {
    (key >> 48) as usize & (len - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(places: &[usize]) -> Layout {
        let mut layout = Layout::EMPTY;
        for &place in places {
            assert!(layout.push(place));
        }
        layout.sum = places.iter().sum::<usize>() as u64;
        layout
    }

    #[test]
    fn places_and_frame_pointers_do_not_meet() {
        let mut layout = Layout::EMPTY;
        for place in 0..56 {
            assert!(layout.push(place) && layout.push_frame_pointer(1000 + place));
        }
        assert!(!layout.push(1) && !layout.push_frame_pointer(1));
        assert!(layout.return_addresses().iter().copied().eq(0..56));
        assert!(layout.frame_pointers().iter().rev().copied().eq(1000..1056));
        assert!(!Layout::EMPTY.clone().push(1 << 16));
    }

    fn get(layouts: &mut Layouts, key: u64) -> Vec<Layout> {
        let set = layouts.set(key);
        set.map_or(vec![], |set| (0..WAYS).filter_map(|way| set.way(way, key).copied()).collect())
    }

    #[test]
    fn a_layout_comes_back_under_its_key() {
        let mut layouts = Layouts::new();
        assert!(get(&mut layouts, key(0x1000, 5)).is_empty());
        for i in 1..400 {
            layouts.learn(key(0x1000 * i, i), &layout(&[i, i + 3]));
            let found = get(&mut layouts, key(0x1000 * i, i));
            assert_eq!(found[0].return_addresses(), [i as u16, i as u16 + 3]);
        }
        layouts.forget();
        assert!((1..400).all(|i| get(&mut layouts, key(0x1000 * i, i)).is_empty()));
    }

    #[test]
    fn four_layouts_share_a_key() {
        let mut layouts = Layouts::new();
        for i in 1..=4 {
            layouts.learn(key(64, 1), &layout(&[i]));
            layouts.learn(key(64, 1), &layout(&[i]));
        }
        let found = get(&mut layouts, key(64, 1));
        assert!(found.iter().map(|layout| layout.sum).eq([1, 2, 3, 4]));
        layouts.set(key(64, 1)).unwrap().was_right(0);
        layouts.learn(key(64, 1), &layout(&[5]));
        let found = get(&mut layouts, key(64, 1));
        assert!(found.iter().map(|layout| layout.sum).eq([1, 5, 3, 4]), "the one of use stays");
    }

    #[test]
    fn a_key_that_never_keeps_its_layout_is_left_alone() {
        let mut layouts = Layouts::new();
        let mut tried = 0;
        for i in 0..10_000 {
            tried += get(&mut layouts, key(64, 1)).len();
            layouts.learn(key(64, 1), &layout(&[i]));
        }
        assert!(tried < 2000, "{tried} guesses");
    }
}
