//! Fingerprint of a stack → its id, in the thread that has met it before.
//!
//! Five entries to a bucket of one cache line, owned by one thread, so a hit touches no shared memory.
//! A hit is decided by the fingerprint, not by comparing addresses; debug builds compare those too (see
//! `book`). It starts small and grows by a quarter while stacks push each other out. A stack may lie in
//! two buckets, so that happens only when the table is nearly full: 15 to 20 bytes a stack, a thread
//! that allocates little costs little, and branching recursion does not fall off a cliff.

use crate::memory;
use std::ptr::NonNull;

/// What a stack is recognised by within a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Fingerprint {
    /// Sum over the addresses, see `stack::fingerprint`: two stacks share it with probability 2^-60.
    pub sum: u64,
    /// Where on the stack the addresses stand, and how many: see `layouts`. 0 where nobody looked.
    pub layout: u64,
}

impl Fingerprint {
    /// The same stack, as one whose blocks are sampled every `interval` bytes.
    pub(crate) fn sampled_every(self, interval: u32) -> Fingerprint {
        let sum = self.sum.wrapping_add(u64::from(interval).wrapping_mul(0xd6e8_feb8_6659_fd93));
        Fingerprint { sum, ..self }
    }

    /// The hash of the stack, the same in all threads.
    #[inline(always)]
    pub(crate) fn hash(self) -> u64 {
        let product = u128::from(self.sum) * 0x9e37_79b9_7f4a_7c15;
        (product as u64) ^ ((product >> 64) as u64)
    }

    /// 64 bits of both, never 0. Each is a sum of products of its own, so neither hides the other.
    #[inline(always)]
    fn check(self) -> u64 {
        (self.sum ^ self.layout) | 1
    }
}

/// Entries in a bucket.
const WAYS: usize = 5;

/// What a thread remembers of the stacks that share a place.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Bucket {
    /// [`Fingerprint::check`] of each, 0 in an empty entry.
    checks: [u64; WAYS],
    /// Whether an id is still valid is the caller's to check, against the tracker's base.
    ids: [u32; WAYS],
    /// The way that the next stack takes when all are taken.
    hand: u32,
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    #[inline(always)]
    fn get(&self, check: u64) -> Option<u32> {
        // One branch after the other: a program's few hot stacks make them predictable.
        self.checks.iter().zip(&self.ids).find(|(other, _)| **other == check).map(|(_, id)| *id)
    }

    fn set(&mut self, way: usize, check: u64, id: u32) {
        (self.checks[way], self.ids[way]) = (check, id);
    }

    /// The way of this stack, or an empty one.
    fn way(&self, check: u64) -> Option<usize> {
        let is = |check: u64| self.checks.iter().position(|other| *other == check);
        is(check).or_else(|| is(0))
    }
}

/// Buckets: 1 KiB.
const SMALLEST: usize = 16;
/// 1 MiB: 80,000 stacks.
const LARGEST: usize = 1 << 14;

/// The cache of one thread. All zero bytes are an empty one.
pub(crate) struct StackCache {
    buckets: *mut Bucket,
    /// Number of buckets.
    len: usize,
    /// Stacks pushed out since the last growth.
    pushed_out: usize,
}

impl StackCache {
    #[cfg(test)]
    const fn new() -> StackCache {
        StackCache { buckets: std::ptr::null_mut(), len: 0, pushed_out: 0 }
    }

    /// The id of the stack, if it is remembered.
    #[inline(always)]
    pub(crate) fn get(&self, stack: Fingerprint) -> Option<u32> {
        if self.len == 0 {
            return None;
        }
        let check = stack.check();
        // SAFETY: there are `len` buckets, and a place is below it; zeroed ones are valid.
        let bucket = unsafe { &*self.buckets.add(first_place(check, self.len)) };
        bucket.get(check).or_else(|| self.get_second(check))
    }

    /// From the bucket that takes what finds no room in the first.
    #[inline(never)]
    fn get_second(&self, check: u64) -> Option<u32> {
        // SAFETY: as in `get`.
        let bucket = unsafe { &*self.buckets.add(second_place(check, self.len)) };
        bucket.get(check)
    }

    /// Remembers the stack, in the place of another if need be.
    pub(crate) fn insert(&mut self, stack: Fingerprint, id: u32) {
        if self.len == 0 || (self.pushed_out > self.len / 8 && self.len < LARGEST) {
            self.grow();
        }
        if self.len != 0 {
            self.pushed_out += usize::from(self.put(stack.check(), id));
        }
    }

    /// Whether another stack was pushed out. The table is not empty.
    fn put(&mut self, check: u64, id: u32) -> bool {
        let places = [first_place(check, self.len), second_place(check, self.len)];
        let known = |way: &usize, bucket: &Bucket| bucket.checks[*way] == check;
        let mut room = None;
        for place in places {
            // SAFETY: as in `get`; `&mut self` makes it the only access.
            let bucket = unsafe { &mut *self.buckets.add(place) };
            match bucket.way(check) {
                Some(way) if known(&way, bucket) => {
                    bucket.ids[way] = id;
                    return false;
                }
                Some(way) => room = room.or(Some((place, way))),
                None => {}
            }
        }
        if let Some((place, way)) = room {
            // SAFETY: as above.
            unsafe { &mut *self.buckets.add(place) }.set(way, check, id);
            return false;
        }
        // SAFETY: as above.
        let bucket = unsafe { &mut *self.buckets.add(places[0]) };
        let way = bucket.hand as usize % WAYS;
        bucket.hand = way as u32 + 1;
        bucket.set(way, check, id);
        true
    }

    #[cold]
    fn grow(&mut self) {
        self.pushed_out = 0;
        let len = (self.len + self.len / 4).clamp(SMALLEST, LARGEST);
        if self.len != 0 && !memory::may_grow() {
            return;
        }
        let Some(buckets) = NonNull::new(memory::zeroed_array::<Bucket>(len)) else { return };
        let old = std::mem::replace(self, StackCache { buckets: buckets.as_ptr(), len, pushed_out: 0 });
        for index in 0..old.len {
            // SAFETY: within the old table, which is still whole.
            let bucket = unsafe { *old.buckets.add(index) };
            for (check, id) in bucket.checks.into_iter().zip(bucket.ids).filter(|(check, _)| *check != 0) {
                self.put(check, id);
            }
        }
        if !old.buckets.is_null() {
            // SAFETY: made by `grow` with `old.len`, and nothing refers to it any more.
            unsafe { memory::free_array(old.buckets, old.len) };
        }
    }
}

/// A check is well mixed in its upper bits, where every factor of its sums has worked; so they say in
/// which of `len` buckets it belongs.
#[inline(always)]
fn first_place(check: u64, len: usize) -> usize {
    ((check >> 40) as usize * len) >> 24
}

fn second_place(check: u64, len: usize) -> usize {
    first_place(check.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32), len)
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
        let mut cache = StackCache::new();
        let mut naive = HashMap::new();
        let mut hits = 0;
        for step in 0..200_000u64 {
            let n = (step * step) % 20_011;
            let stack = fingerprint(n);
            match (cache.get(stack), naive.get(&n)) {
                (Some(known), Some(&id)) => {
                    assert_eq!(known, id);
                    hits += 1;
                }
                (Some(_), None) => panic!("a stack that was never inserted was found"),
                (None, _) => {
                    let id = 2 + n as u32;
                    cache.insert(stack, id);
                    naive.insert(n, id);
                }
            }
        }
        assert!(hits > 150_000, "{hits} hits: the cache did not grow");
        let bytes = cache.len * size_of::<Bucket>() / naive.len();
        assert!((12..=20).contains(&bytes), "{bytes} bytes a stack");
    }
}
