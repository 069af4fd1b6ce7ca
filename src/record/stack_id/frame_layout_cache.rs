//! Per-thread cache of frame layouts, keyed by stack depth and one return address.

use crate::base::hint::unlikely;
use crate::record::cache_counts::count_cache;
use crate::record::memory;
use crate::record::stack_id::frame_layout::FrameLayout;

/// Entries of the smallest table: 1 KiB.
const SMALLEST: usize = 4;
/// Entries of the table that a thread may have under any limit: 4 KiB, reserved with its state.
const GRANTED: usize = 16;
/// Entries of the largest table: 256 KiB.
const LARGEST: usize = 1024;
/// Layouts evicted in a row without a hit before their keys go into cooldown.
const PATIENCE: u8 = 12;

/// Hit statistics of the keys that hash to this slot.
#[derive(Clone, Copy)]
struct History {
    /// Misses: layouts evicted in a row by others of the same key without a hit.
    misses: u8,
    /// Cooldown: walks left before a layout is stored again.
    cooldown: u8,
}

/// Lookup key of layouts: a depth and a discriminator, the lower half of each. Never 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Key(u64);

impl Key {
    /// Makes the key of a depth, in bytes from the stack's end, and a discriminator.
    ///
    /// The depth counts from the end, so that layouts learnt by one thread serve the next one that adopts its state.
    #[inline(always)]
    pub(crate) fn new(depth: usize, word: usize) -> Key {
        debug_assert!(
            depth.is_multiple_of(align_of::<usize>()),
            "no stack pointer is {depth} bytes below the end"
        );
        // Words of a stack are aligned, so the lowest bit of a depth carries no information; set, it keeps the key
        // from 0. A depth of more than 32 bits may change the upper half, never the lower one.
        Key(((word as u64) << 32).wrapping_add(depth as u64).wrapping_add(1))
    }

    /// Returns the hash that selects the first slot.
    fn first_slot(self) -> usize {
        first_slot(self.0 as u32, (self.0 >> 32) as u32)
    }

    /// Returns the hash that selects the second slot.
    #[inline(always)]
    fn second_slot(self) -> usize {
        (self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize
    }
}

/// Returns the hash that selects the first slot, from the lower halves of depth and discriminator.
#[inline(always)]
fn first_slot(depth: u32, word: u32) -> usize {
    // Stack pointers are a multiple of sixteen bytes apart. No more mixing than this: every later load waits for
    // the address of the entry.
    (depth >> 4).wrapping_add(word) as usize
}

/// Statistics of the walks from one entry point of the allocator, by which the discriminator is chosen.
#[derive(Clone, Copy, Default)]
struct Walks {
    /// Mismatches: walks in a row that found the discriminator at another offset.
    mismatches: u32,
    /// First return address of all walks so far: 0 before the first walk, 1 once two walks differed. As long as all
    /// agree, it is in the allocator's own code, which was called and not inlined, and does not tell callers apart.
    first: usize,
}

/// Shared empty entry that a table points to before it is allocated: it matches no key, and is never written.
static NOWHERE: FrameLayout = FrameLayout::EMPTY;

/// Frame layouts of one thread. Zeroed memory is an empty table after [`FrameLayoutCache::prepare`].
pub(crate) struct FrameLayoutCache {
    entries: *mut FrameLayout,
    /// Number of entries, a power of two, or 0.
    len: usize,
    /// Offset of the last entry in bytes.
    mask: usize,
    /// End of the stack that the layouts are of.
    end: usize,
    /// Number of occupied entries.
    used: usize,
    /// Layouts evicted by other keys since the last growth.
    evicted: usize,
    /// Bytes from the stack pointer to the discriminator, for each entry point of the allocator. A wrong offset costs hits,
    /// never correctness.
    pub discriminators: [u32; 3],
    walks: [Walks; 3],
    histories: [History; 64],
}

impl FrameLayoutCache {
    /// Points a zeroed table to the shared empty entry.
    pub(crate) fn prepare(&mut self) {
        if self.len == 0 {
            self.entries = (&raw const NOWHERE).cast_mut();
        }
    }

    /// Returns the entry of a slot, by its hash; it may be the shared empty one.
    #[inline(always)]
    fn slot(&self, hash: usize) -> *mut FrameLayout {
        debug_assert!(
            self.mask == self.len.saturating_sub(1) * size_of::<FrameLayout>() && !self.entries.is_null()
        );
        // SAFETY: the mask keeps the offset within the entries, at a multiple of their size.
        unsafe { self.entries.byte_add(hash.wrapping_mul(size_of::<FrameLayout>()) & self.mask) }
    }

    /// Returns the two slots of a key, which may be the same one.
    fn slots(&self, key: Key) -> [*mut FrameLayout; 2] {
        [self.slot(key.first_slot()), self.slot(key.second_slot())]
    }

    /// Borrows the layout in a slot if it has this key.
    #[inline(always)]
    fn layout(&mut self, slot: *mut FrameLayout, key: Key) -> Option<&mut FrameLayout> {
        // SAFETY: a valid layout, zeroed or written by `put`. Only this thread writes to its own table, and no thread to the
        // shared entry, which has no key; so a match is in this thread's own table, and `&mut self` makes it the only access.
        unsafe { ((*slot).key == key.0).then(|| &mut *slot) }
    }

    /// Borrows the layout in a slot of a table that is not empty.
    fn entry(&mut self, slot: *mut FrameLayout) -> &mut FrameLayout {
        debug_assert!(self.len != 0 && slot >= self.entries && slot < self.entries.wrapping_add(self.len));
        // SAFETY: as in `layout`, of this thread's own table.
        unsafe { &mut *slot }
    }

    /// Looks up the first layout of this key, of the depth and the discriminator that it was made of: in the first slot, else in
    /// the second.
    #[inline(always)]
    pub(crate) fn likely(&mut self, key: Key, depth: usize, word: usize) -> Option<*mut FrameLayout> {
        let hash = first_slot(depth as u32, word as u32);
        debug_assert!(depth > u32::MAX as usize || hash == key.first_slot());
        let mut slot = self.slot(hash);
        // Most layouts are in their first slot: a table is at most half full.
        // SAFETY: as in `layout`.
        if unlikely(unsafe { (*slot).key } != key.0) {
            slot = self.slot(key.second_slot());
            // SAFETY: as in `layout`.
            if unsafe { (*slot).key } != key.0 {
                count_cache!(layout_missed);
                return None;
            }
        }
        Some(slot)
    }

    /// Looks up the layout of this key in its first slot (0) or its second (1).
    pub(crate) fn at(&mut self, number: usize, key: Key) -> Option<&mut FrameLayout> {
        self.layout(self.slots(key)[number], key)
    }

    /// Makes them layouts of a stack that ends here.
    pub(crate) fn move_to(&mut self, end: usize) {
        let higher = end.wrapping_sub(std::mem::replace(&mut self.end, end));
        if higher != 0 {
            self.all().iter_mut().for_each(|layout| layout.move_end(higher));
        }
    }

    /// Borrows all entries; none before the table is allocated.
    fn all(&mut self) -> &mut [FrameLayout] {
        if self.len == 0 {
            return &mut [];
        }
        // SAFETY: the table has so many valid layouts, of this thread alone, and `&mut self` makes it the only access.
        unsafe { std::slice::from_raw_parts_mut(self.entries, self.len) }
    }

    /// Stores the layout of a walk under its key, unless the key is in cooldown.
    pub(crate) fn learn(&mut self, key: Key, found: &FrameLayout) {
        // A small table grows sooner, so that layouts are in their first slots and find an empty one.
        let is_small = self.len < GRANTED;
        let part = if is_small { 4 } else { 2 };
        let is_full = self.used * part >= self.len || self.evicted > self.len / 4;
        let is_cramped =
            is_small && self.len != 0 && self.slots(key).iter().all(|slot| self.entry(*slot).key != 0);
        if self.len == 0 || ((is_full || is_cramped) && self.len < LARGEST) {
            self.grow();
        }
        let history = self.history(key);
        if history.cooldown > 0 {
            history.cooldown -= 1;
        } else if self.len != 0 {
            self.put(key, found);
        }
    }

    /// Updates the discriminator of an entry point after a walk, by its first return address and the offsets of its first two,
    /// in words.
    pub(crate) fn learn_discriminator(&mut self, entrance: usize, first: usize, offsets: [u16; 2]) {
        let (walks, discriminator) = (&mut self.walks[entrance], &mut self.discriminators[entrance]);
        match walks.first {
            0 => walks.first = first,
            before if before != first && before != 1 => (walks.first, *discriminator) = (1, 0),
            _ => {}
        }
        // The first return address that tells callers apart.
        let offset = offsets[usize::from(walks.first != 1)];
        let bytes = u32::from(offset) * size_of::<usize>() as u32;
        if *discriminator == bytes {
            walks.mismatches = 0;
        } else {
            walks.mismatches += 1;
            // Some stacks have other frames on their way into the allocator: only many mismatches in a row move the
            // offset.
            if *discriminator == 0 || walks.mismatches > 64 {
                (*discriminator, walks.mismatches) = (bytes, 0);
            }
        }
    }

    /// Borrows the hit statistics of a key.
    fn history(&mut self, key: Key) -> &mut History {
        // By the bits above those that select a slot.
        let number = key.second_slot() / LARGEST % self.histories.len();
        &mut self.histories[number]
    }

    /// Stores a layout that is not cached yet, in a table that is not empty. Evicts one if both slots are taken.
    fn put(&mut self, key: Key, found: &FrameLayout) {
        let slots = self.slots(key);
        let is_known = |entry: &FrameLayout| entry.key == key.0 && entry.is_same(found);
        if slots.iter().any(|slot| is_known(self.entry(*slot))) {
            // The layout is cached already: only the stack is new to the stack cache.
            return;
        }
        let slot = match self.make_room(slots) {
            Some(slot) => {
                self.used += 1;
                slot
            }
            None => self.evict(slots, key),
        };
        debug_assert!(self.used <= self.len, "{} of {} entries", self.used, self.len);
        *self.entry(slot) = *found;
        self.entry(slot).key = key.0;
    }

    /// Returns an empty one of the two slots, if need be by moving a layout to its other slot.
    fn make_room(&mut self, slots: [*mut FrameLayout; 2]) -> Option<*mut FrameLayout> {
        if let Some(empty) = slots.into_iter().find(|slot| self.entry(*slot).key == 0) {
            return Some(empty);
        }
        slots.into_iter().find(|slot| {
            let moving = *self.entry(*slot);
            let [first, second] = self.slots(Key(moving.key));
            let other = self.entry(if first == *slot { second } else { first });
            let is_empty = other.key == 0;
            if is_empty {
                *other = moving;
            }
            is_empty
        })
    }

    /// Chooses the slot, of the two, whose layout is evicted by one of this key.
    fn evict(&mut self, slots: [*mut FrameLayout; 2], key: Key) -> *mut FrameLayout {
        // The first layout without a hit since it was last considered for eviction.
        let mut number = self.evicted % 2;
        while self.entry(slots[number]).take_referenced() {
            number = 1 - number;
        }
        // A layout evicted by the same key shows that layouts of this key do not recur; by another key, that the
        // table is too small.
        let slot = slots[number];
        let is_same = self.entry(slot).key == key.0;
        self.evicted += usize::from(!is_same);
        let history = self.history(key);
        history.misses = if is_same { history.misses + 1 } else { 0 };
        if history.misses >= PATIENCE {
            *history = History { misses: PATIENCE / 2, cooldown: u8::MAX };
        }
        slot
    }

    /// Moves the layouts to a table twice as large; leaves them where they are without room for it.
    #[cold]
    fn grow(&mut self) {
        self.evicted = 0;
        let len = (self.len * 2).max(SMALLEST);
        let may = if len <= SMALLEST {
            memory::always
        } else if len <= GRANTED {
            memory::always_doubled
        } else {
            memory::thread_may_grow
        };
        let entries = memory::zeroed_array_of_thread::<FrameLayout>(len, may);
        if entries.is_null() {
            return;
        }
        let (old, old_len) = (self.entries, self.len);
        (self.entries, self.len, self.mask, self.used) =
            (entries, len, (len - 1) * size_of::<FrameLayout>(), 0);
        for index in 0..old_len {
            debug_assert!(index < self.len, "a table that shrinks");
            // SAFETY: within the old table, which is still whole.
            let layout = unsafe { &*old.add(index) };
            if layout.key != 0 {
                self.put(Key(layout.key), layout);
            }
        }
        if old_len != 0 {
            // SAFETY: made here with this length, and nothing refers to it any more.
            unsafe { memory::free_array_of_thread(old, old_len) };
        }
    }

    /// Forgets the last stack of each layout, but those whose ids are to be kept.
    #[cold]
    #[inline(never)]
    pub(crate) fn retain_last(&mut self, keep: impl Fn(u32) -> bool) {
        let forgotten = |layout: &&mut FrameLayout| layout.key != 0 && layout.id() != 0 && !keep(layout.id());
        self.all().iter_mut().filter(forgotten).for_each(|layout| layout.forget_last());
    }

    /// Forgets all layouts: the rules they come from may have changed, or the number of addresses.
    pub(crate) fn forget(&mut self) {
        self.all().iter_mut().for_each(|layout| layout.key = 0);
        self.used = 0;
        (self.discriminators, self.walks) = ([0; 3], [Walks::default(); 3]);
    }

    #[cfg(test)]
    fn new() -> FrameLayoutCache {
        let mut none = FrameLayoutCache {
            entries: std::ptr::null_mut(),
            len: 0,
            mask: 0,
            end: 0,
            used: 0,
            evicted: 0,
            discriminators: [0; 3],
            walks: [Walks::default(); 3],
            histories: [History { misses: 0, cooldown: 0 }; 64],
        };
        none.prepare();
        none
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::count::counters::Count;
    use crate::record::stack_id::frame_layout::SlotOffsets;

    fn layout(offset: usize) -> FrameLayout {
        let mut offsets = SlotOffsets::new();
        offsets.push(offset);
        offsets.finish(0).unwrap()
    }

    /// Returns the last offset of each layout of this key.
    fn get(layouts: &mut FrameLayoutCache, key: Key) -> Vec<usize> {
        let likely = layouts.likely(key, key.0 as u32 as usize, (key.0 >> 32) as usize);
        // SAFETY: a valid layout, of this thread alone.
        let likely = likely.map(|layout| unsafe { (*layout).extent() });
        let mut at = |number| layouts.at(number, key).map(|layout| layout.extent());
        let found: Vec<usize> = [at(0), at(1)].into_iter().flatten().collect();
        assert_eq!(likely, found.first().copied());
        let mut offsets: Vec<usize> =
            found.into_iter().map(|extent| extent / size_of::<usize>() - 1).collect();
        offsets.sort_unstable();
        offsets.dedup();
        offsets
    }

    #[test]
    fn a_layout_comes_back_under_its_key() {
        let mut layouts = FrameLayoutCache::new();
        let key = |i: usize| Key::new(0x40 * i, 0x5555_5555_1234 + i % 7 * 0x23);
        assert!(get(&mut layouts, key(5)).is_empty());
        for i in 1..400 {
            layouts.learn(key(i), &layout(i));
            assert_eq!(get(&mut layouts, key(i)), [i]);
        }
        assert!((512..=1024).contains(&layouts.len), "{}", layouts.len);
        let found = (1..400).filter(|i| get(&mut layouts, key(*i)) == [*i]).count();
        let first = (1..400).filter(|i| layouts.at(0, key(*i)).is_some()).count();
        assert!(found > 380 && first > 300, "{found} of 399, {first} in their first slot");
        layouts.forget();
        assert!((1..400).all(|i| get(&mut layouts, key(i)).is_empty()));
    }

    #[test]
    fn two_layouts_share_a_key() {
        let mut layouts = FrameLayoutCache::new();
        let key = Key::new(64, 1);
        for offset in [1, 2, 1, 2] {
            layouts.learn(key, &layout(offset));
        }
        assert_ne!(layouts.slots(key)[0], layouts.slots(key)[1]);
        assert_eq!(get(&mut layouts, key), [1, 2]);
        static COUNT: Count = Count::new();
        let of_use = layouts.at(0, key).unwrap();
        let offset = of_use.extent() / size_of::<usize>() - 1;
        of_use.set_last(7, 7, &COUNT);
        layouts.learn(key, &layout(3));
        assert_eq!(get(&mut layouts, key), [offset, 3], "the one of use stays");
    }

    #[test]
    fn a_key_that_never_keeps_its_layout_is_left_alone() {
        let mut layouts = FrameLayoutCache::new();
        let mut learnt = 0;
        for offset in 0..10_000 {
            layouts.learn(Key::new(64, 1), &layout(offset));
            learnt += usize::from(get(&mut layouts, Key::new(64, 1)).contains(&offset));
        }
        assert!(learnt < 1000, "{learnt} layouts");
    }
}
