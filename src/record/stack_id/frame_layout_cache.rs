//! Depth on the stack, and a telling word → the layouts that stacks had there, in the thread that walked them.

use crate::base::hint::unlikely;
use crate::record::memory;
use crate::record::stack_id::frame_layout::Layout;

/// One layout, and what it is looked up by.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Entry {
    /// A [`Key`], 0 where it is empty.
    key: u64,
    layout: Layout,
}

const _: () = assert!(size_of::<Entry>() == 256);

/// 4 KiB.
const SMALLEST: usize = 16;
/// 256 KiB.
const LARGEST: usize = 1024;
/// After so many layouts in a row that were of no use, a key is left alone for a while.
const PATIENCE: u8 = 12;

/// What has become of what was learnt of the keys that share it.
#[derive(Clone, Copy)]
struct History {
    /// Layouts replaced in a row by others of the same key without having been of use.
    useless: u8,
    /// Walks to go before something is learnt again.
    mute: u8,
}

/// What layouts are looked up by: a depth and a telling word, the lower half of each. Never 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Key(u64);

impl Key {
    /// Of a depth, in bytes from the stack's end, and a telling word.
    ///
    /// From the end, so that what one thread has learnt serves the next one that adopts its state.
    #[inline(always)]
    pub(crate) fn new(depth: usize, word: usize) -> Key {
        // Words of a stack are aligned, so the lowest bit of a depth says nothing.
        Key((word as u64) << 32 | u64::from(depth as u32) | 1)
    }

    /// Its low bits say where the key is looked for first.
    #[inline(always)]
    fn first_place(self) -> usize {
        // Stack pointers are a multiple of sixteen bytes apart. No more than this: where the layout stands is
        // what everything else waits for.
        (self.0 as u32 >> 4).wrapping_add((self.0 >> 32) as u32) as usize
    }

    /// The same, for where it is looked for next.
    #[inline(always)]
    fn second_place(self) -> usize {
        (self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize
    }
}

/// Where the word stands that is part of the key. It only has to be telling, not right.
#[derive(Clone, Copy, Default)]
pub(crate) struct Hint {
    /// In bytes from the stack pointer.
    bytes: u32,
    /// Walks in a row that found it elsewhere.
    doubts: u32,
    /// The first return address of all walks so far, if it was the same: then it lies in code of the allocator's own,
    /// which has been called and not only passed through. 0 before the first walk, 1 once there were two.
    first: usize,
}

impl Hint {
    /// Bytes from the stack pointer to the word.
    #[inline(always)]
    pub(crate) fn bytes(self) -> usize {
        self.bytes as usize
    }

    /// Learns from a walk: its first return address, and where the first two stand, in words.
    pub(crate) fn learn(&mut self, first: usize, places: [u16; 2]) {
        match self.first {
            0 => self.first = first,
            before if before != first && before != 1 => (self.first, self.bytes) = (1, 0),
            _ => {}
        }
        // The first that tells one caller from another.
        let place = places[usize::from(self.first != 1)];
        let bytes = u32::from(place) * size_of::<usize>() as u32;
        if self.bytes == bytes {
            self.doubts = 0;
        } else {
            self.doubts += 1;
            // Some stacks pass other frames on their way into the allocator; follow the many.
            if self.bytes == 0 || self.doubts > 64 {
                (self.bytes, self.doubts) = (bytes, 0);
            }
        }
    }
}

/// What a table points to before it is made: no key is found there, and nothing written.
static NOWHERE: Entry = Entry { key: 0, layout: Layout::EMPTY };

/// The layouts of one thread. All zero bytes are none, once they are [`Layouts::prepare`]d.
pub(crate) struct Layouts {
    entries: *mut Entry,
    /// Number of entries, a power of two, or 0.
    len: usize,
    /// One less, or 0.
    mask: usize,
    /// Entries that are taken.
    used: usize,
    /// Layouts pushed out since the last growth.
    pushed_out: usize,
    /// For each way into the allocator: where a word stands that tells callers apart.
    pub hints: [Hint; 3],
    histories: [History; 64],
}

impl Layouts {
    /// Makes zero bytes ready for use.
    pub(crate) fn prepare(&mut self) {
        if self.len == 0 {
            self.entries = (&raw const NOWHERE).cast_mut();
        }
    }

    /// The two places of a key, which may be the same.
    #[inline(always)]
    fn places(&self, key: Key) -> [usize; 2] {
        [key.first_place() & self.mask, key.second_place() & self.mask]
    }

    /// The entry at a place, which may be the one that all threads share.
    #[inline(always)]
    fn pointer(&self, place: usize) -> *mut Entry {
        debug_assert!(place <= self.mask);
        // SAFETY: `places` stays within the mask, and there are as many entries, or the one.
        unsafe { self.entries.add(place) }
    }

    #[inline(always)]
    fn key(&self, place: usize) -> u64 {
        // SAFETY: a valid entry, zeroed or written by `put`. In a table that is this thread's nobody writes meanwhile,
        // and in the one that all threads share never.
        unsafe { (*self.pointer(place)).key }
    }

    /// In a table that is not empty.
    #[inline(always)]
    fn entry(&mut self, place: usize) -> &mut Entry {
        debug_assert!(self.len != 0);
        // SAFETY: valid as for `key`, of this thread's own table, and `&mut self` makes it the only access.
        unsafe { &mut *self.pointer(place) }
    }

    /// The layout at a place, if it is of this key.
    #[inline(always)]
    fn layout(&mut self, place: usize, key: Key) -> Option<&mut Layout> {
        // No key is that of the entry that all threads share, so this is a table of this thread's.
        (self.key(place) == key.0).then(|| &mut self.entry(place).layout)
    }

    /// The layout of this key that is found first, if there is one.
    #[inline(always)]
    pub(crate) fn likely(&mut self, key: Key) -> Option<&mut Layout> {
        let [first, second] = self.places(key);
        // Most are in the first: a table is at most half full.
        let place = if unlikely(self.key(first) != key.0) { second } else { first };
        self.layout(place, key)
    }

    /// The layout of this key in its first or in its second place.
    pub(crate) fn at(&mut self, number: usize, key: Key) -> Option<&mut Layout> {
        self.layout(self.places(key)[number], key)
    }

    /// Learns what a walk has found under a key.
    pub(crate) fn learn(&mut self, key: Key, found: &Layout) {
        let is_full = self.used * 2 >= self.len || self.pushed_out > self.len / 4;
        if self.len == 0 || (is_full && self.len < LARGEST) {
            self.grow();
        }
        let history = self.history(key);
        if history.mute > 0 {
            history.mute -= 1;
        } else if self.len != 0 {
            self.put(key, found);
        }
    }

    fn history(&mut self, key: Key) -> &mut History {
        // By bits that say nothing of a place.
        let number = key.second_place() / LARGEST % self.histories.len();
        &mut self.histories[number]
    }

    /// In a table that is not empty.
    fn put(&mut self, key: Key, found: &Layout) {
        let places = self.places(key);
        let is_known = |entry: &Entry| entry.key == key.0 && entry.layout.is_same(found);
        if places.iter().any(|place| is_known(self.entry(*place))) {
            // The guess was right: it is the stack that was new to the cache.
            return;
        }
        let place = match self.make_room(places) {
            Some(place) => {
                self.used += 1;
                place
            }
            None => self.push_out(places, key),
        };
        *self.entry(place) = Entry { key: key.0, layout: *found };
    }

    /// One of the two places, which is empty, perhaps because the layout there has gone to its other place.
    fn make_room(&mut self, places: [usize; 2]) -> Option<usize> {
        if let Some(empty) = places.into_iter().find(|place| self.entry(*place).key == 0) {
            return Some(empty);
        }
        places.into_iter().find(|place| {
            let moving = *self.entry(*place);
            let [first, second] = self.places(Key(moving.key));
            let other = self.entry(if first == *place { second } else { first });
            let is_empty = other.key == 0;
            if is_empty {
                *other = moving;
            }
            is_empty
        })
    }

    /// The place of the layout that has to go for one of this key.
    fn push_out(&mut self, places: [usize; 2], key: Key) -> usize {
        // The first that has not been of use since somebody had to go.
        let mut number = self.pushed_out % 2;
        while self.entry(places[number]).layout.take_used() {
            number = 1 - number;
        }
        // A useless layout of the same key says that this key keeps no layout; one of another key says that the
        // table is too small.
        let place = places[number];
        let is_same = self.entry(place).key == key.0;
        self.pushed_out += usize::from(!is_same);
        let history = self.history(key);
        history.useless = if is_same { history.useless + 1 } else { 0 };
        if history.useless >= PATIENCE {
            *history = History { useless: PATIENCE / 2, mute: u8::MAX };
        }
        place
    }

    #[cold]
    fn grow(&mut self) {
        self.pushed_out = 0;
        let len = (self.len * 2).max(SMALLEST);
        let may = if self.len == 0 { memory::always } else { memory::thread_may_grow };
        let entries = memory::zeroed_array_of_thread::<Entry>(len, may);
        if entries.is_null() {
            return;
        }
        let (old, old_len) = (self.entries, self.len);
        (self.entries, self.len, self.mask, self.used) = (entries, len, len - 1, 0);
        for place in 0..old_len {
            // SAFETY: within the old table, which is still whole.
            let Entry { key, layout } = unsafe { &*old.add(place) };
            if *key != 0 {
                self.put(Key(*key), layout);
            }
        }
        if old_len != 0 {
            // SAFETY: made here with this length, and nothing refers to it any more.
            unsafe { memory::free_array_of_thread(old, old_len) };
        }
    }

    /// Forgets all layouts: the rules they come from may have changed, or the number of addresses.
    pub(crate) fn forget(&mut self) {
        for place in 0..self.len {
            self.entry(place).key = 0;
        }
        self.used = 0;
        self.hints = [Hint::default(); 3];
    }

    #[cfg(test)]
    fn new() -> Layouts {
        let mut none = Layouts {
            entries: std::ptr::null_mut(),
            len: 0,
            mask: 0,
            used: 0,
            pushed_out: 0,
            hints: [Hint::default(); 3],
            histories: [History { useless: 0, mute: 0 }; 64],
        };
        none.prepare();
        none
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::stack_id::frame_layout::Places;

    fn layout(place: usize) -> Layout {
        let mut places = Places::new();
        places.push(place);
        places.finish().unwrap()
    }

    /// Last places of the layouts of this key.
    fn get(layouts: &mut Layouts, key: Key) -> Vec<usize> {
        let likely = layouts.likely(key).map(|layout| layout.reach());
        let mut at = |number| layouts.at(number, key).map(|layout| layout.reach());
        let found: Vec<usize> = [at(0), at(1)].into_iter().flatten().collect();
        assert_eq!(likely, found.first().copied());
        let mut places: Vec<usize> = found.into_iter().map(|reach| reach / size_of::<usize>() - 1).collect();
        places.sort_unstable();
        places.dedup();
        places
    }

    #[test]
    fn a_layout_comes_back_under_its_key() {
        let mut layouts = Layouts::new();
        let key = |i: usize| Key::new(0x40 * i, 0x5555_5555_1234 + i % 7 * 0x23);
        assert!(get(&mut layouts, key(5)).is_empty());
        for i in 1..400 {
            layouts.learn(key(i), &layout(i));
            assert_eq!(get(&mut layouts, key(i)), [i]);
        }
        assert!((512..=1024).contains(&layouts.len), "{}", layouts.len);
        let found = (1..400).filter(|i| get(&mut layouts, key(*i)) == [*i]).count();
        let first = (1..400).filter(|i| layouts.at(0, key(*i)).is_some()).count();
        assert!(found > 380 && first > 300, "{found} of 399, {first} in their first place");
        layouts.forget();
        assert!((1..400).all(|i| get(&mut layouts, key(i)).is_empty()));
    }

    #[test]
    fn two_layouts_share_a_key() {
        let mut layouts = Layouts::new();
        let key = Key::new(64, 1);
        for place in [1, 2, 1, 2] {
            layouts.learn(key, &layout(place));
        }
        assert_ne!(layouts.places(key)[0], layouts.places(key)[1]);
        assert_eq!(get(&mut layouts, key), [1, 2]);
        layouts.at(0, key).unwrap().met(7, 7);
        layouts.learn(key, &layout(3));
        assert_eq!(get(&mut layouts, key), [1, 3], "the one of use stays");
    }

    #[test]
    fn a_key_that_never_keeps_its_layout_is_left_alone() {
        let mut layouts = Layouts::new();
        let mut learnt = 0;
        for place in 0..10_000 {
            layouts.learn(Key::new(64, 1), &layout(place));
            learnt += usize::from(get(&mut layouts, Key::new(64, 1)).contains(&place));
        }
        assert!(learnt < 1000, "{learnt} layouts");
    }
}
