//! Fingerprint of a stack → its id and counters, in the thread that has met it before.
//!
//! Direct-mapped, owned by one thread, so a hit touches no shared memory. A hit is decided by the
//! fingerprint, not by comparing addresses; debug builds compare those too (see `book`). It starts
//! with [`SMALLEST`] entries and doubles while stacks push each other out, so a thread that allocates
//! little costs little and branching recursion does not fall off a cliff.

use crate::counters::Slot;
use crate::memory;
use std::ptr::{NonNull, null_mut};

/// What a stack is recognised by within a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Fingerprint {
    /// Sum over the addresses, see `stack::fingerprint`: two stacks share it with probability 2^-60.
    pub sum: u64,
    /// Where on the stack the addresses stand, and how many: see `layouts`. 0 where nobody looked.
    pub layout: u64,
}

impl Fingerprint {
    /// The hash of the stack, the same in all threads.
    #[inline(always)]
    pub(crate) fn hash(self) -> u64 {
        let product = u128::from(self.sum) * 0x9e37_79b9_7f4a_7c15;
        (product as u64) ^ ((product >> 64) as u64)
    }
}

/// What a thread remembers of a stack.
#[derive(Clone, Copy)]
pub(crate) struct Known {
    stack: Fingerprint,
    /// Whether it is still valid is the caller's to check, against the tracker's base; 0 is empty.
    pub id: u32,
    /// The counters of `id` in this thread; null in an empty entry.
    slot: *const Slot,
}

const _: () = assert!(size_of::<Known>() == 32);

impl Known {
    /// The counters of the stack.
    #[inline(always)]
    pub(crate) fn slot(&self) -> &Slot {
        // SAFETY: only `StackCache::get` gives out a `Known`, and only one that `insert` filled with
        // a reference into `Counters`, whose chunks live as long as the process.
        unsafe { &*self.slot }
    }
}

/// 2 KiB.
const SMALLEST: usize = 64;
/// 2 MiB.
const LARGEST: usize = 1 << 16;

/// The cache of one thread. All zero bytes are an empty one.
pub(crate) struct StackCache {
    entries: *mut Known,
    /// Number of entries, a power of two, or 0.
    len: usize,
    /// Stacks pushed out since the last growth.
    pushed_out: usize,
}

impl StackCache {
    pub(crate) const fn new() -> StackCache {
        StackCache { entries: null_mut(), len: 0, pushed_out: 0 }
    }

    /// What is known of the stack, if anything.
    #[inline(always)]
    pub(crate) fn get(&self, stack: Fingerprint) -> Option<&Known> {
        if self.len == 0 {
            return None;
        }
        let index = index(stack, self.len);
        // SAFETY: `entries` has `len` entries, a power of two, and the index is masked to below it;
        // zeroed entries are valid.
        let known = unsafe { &*self.entries.add(index) };
        (known.stack == stack && known.id != 0).then_some(known)
    }

    /// Remembers the stack, in the place of another if need be.
    pub(crate) fn insert(&mut self, stack: Fingerprint, id: u32, slot: &'static Slot) {
        if self.len == 0 || (self.pushed_out > self.len / 4 && self.len < LARGEST) {
            self.grow();
        }
        let known = Known { stack, id, slot };
        if self.put(known) {
            self.pushed_out += 1;
        }
    }

    /// Whether another stack was pushed out.
    fn put(&mut self, known: Known) -> bool {
        if self.len == 0 {
            return false;
        }
        let index = index(known.stack, self.len);
        // SAFETY: as in `get`; `&mut self` makes it the only access.
        let entry = unsafe { &mut *self.entries.add(index) };
        let other = entry.id != 0 && entry.stack != known.stack;
        *entry = known;
        other
    }

    #[cold]
    fn grow(&mut self) {
        self.pushed_out = 0;
        let len = (self.len * 2).max(SMALLEST);
        if self.len != 0 && !memory::may_grow() {
            return;
        }
        let Some(entries) = NonNull::new(memory::zeroed_array::<Known>(len)) else { return };
        let old = std::mem::replace(self, StackCache { entries: entries.as_ptr(), len, pushed_out: 0 });
        for index in 0..old.len {
            // SAFETY: within the old table, which is still whole.
            let known = unsafe { *old.entries.add(index) };
            if known.id != 0 {
                self.put(known);
            }
        }
        if !old.entries.is_null() {
            // SAFETY: made by `grow` with `old.len`, and nothing refers to it any more: `get` lends
            // out of `&self`, and this is `&mut self`.
            unsafe { memory::free_array(old.entries, old.len) };
        }
    }
}

/// The sum is well mixed in its upper bits, where every factor of it has worked.
#[inline(always)]
fn index(stack: Fingerprint, len: usize) -> usize {
    (stack.sum >> 40) as usize & (len - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn fingerprint(n: u64) -> Fingerprint {
        Fingerprint { sum: n.wrapping_mul(0x2545_f491_4f6c_dd1d), layout: n % 4 }
    }

    /// Its naive twin: a map that never forgets. The cache may forget, but never answers otherwise.
    #[test]
    fn agrees_with_a_map_that_never_forgets() {
        let slots: &'static [Slot] = Box::leak((0..4).map(|_| Slot::default()).collect());
        let mut cache = StackCache::new();
        let mut naive = HashMap::new();
        let mut hits = 0;
        for step in 0..200_000u64 {
            let n = (step * step) % 20_011;
            let stack = fingerprint(n);
            match (cache.get(stack), naive.get(&n)) {
                (Some(known), Some(&id)) => {
                    assert_eq!(known.id, id);
                    assert!(std::ptr::eq(known.slot(), &slots[id as usize % 4]));
                    hits += 1;
                }
                (Some(_), None) => panic!("a stack that was never inserted was found"),
                (None, _) => {
                    let id = 2 + n as u32;
                    cache.insert(stack, id, &slots[id as usize % 4]);
                    naive.insert(n, id);
                }
            }
        }
        assert!(hits > 150_000, "{hits} hits: the cache did not grow");
        assert!(cache.len > 8192);
    }
}
