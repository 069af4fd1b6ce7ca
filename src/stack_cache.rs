//! Fingerprint of a stack → its id, in the thread that has met it before.
//!
//! Four entries to a bucket of one cache line, owned by one thread, so a hit touches no shared memory. A hit is decided by the
//! fingerprint, not by comparing addresses; debug builds compare those too (see `book`). It starts
//! with [`SMALLEST`] entries and doubles while stacks push each other out, so a thread that allocates
//! little costs little and branching recursion does not fall off a cliff.

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

/// What a thread remembers of a stack.
#[derive(Clone, Copy)]
struct Known {
    /// [`Fingerprint::check`] of it, 0 in an empty entry.
    check: u64,
    /// Which entry it belongs to: the upper bits of the sum, from which a larger table's index comes.
    place: u32,
    /// Whether it is still valid is the caller's to check, against the tracker's base.
    id: u32,
}

const _: () = assert!(size_of::<Known>() == 16);

/// Entries that are tried for a stack.
const WAYS: usize = 4;

/// The entries that stacks of one place share.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Bucket([Known; WAYS]);

const _: () = assert!(size_of::<Bucket>() == 64);

/// Buckets: 1 KiB.
const SMALLEST: usize = 16;
/// 1 MiB.
const LARGEST: usize = 1 << 14;

/// The cache of one thread. All zero bytes are an empty one.
pub(crate) struct StackCache {
    buckets: *mut Bucket,
    /// Number of buckets, a power of two, or 0.
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
        // SAFETY: there are `len` buckets, a power of two, and the index is masked to below it; zeroed
        // ones are valid.
        let bucket = unsafe { &*self.buckets.add(place(stack) as usize & (self.len - 1)) };
        let check = stack.check();
        bucket.0.iter().find(|known| known.check == check).map(|known| known.id)
    }

    /// Remembers the stack, in the place of another if need be.
    pub(crate) fn insert(&mut self, stack: Fingerprint, id: u32) {
        if self.len == 0 || (self.pushed_out > self.len / 2 && self.len < LARGEST) {
            self.grow();
        }
        let known = Known { check: stack.check(), place: place(stack), id };
        self.pushed_out += usize::from(self.put(known));
    }

    /// Whether another stack was pushed out.
    fn put(&mut self, known: Known) -> bool {
        if self.len == 0 {
            return false;
        }
        // SAFETY: as in `get`; `&mut self` makes it the only access.
        let bucket = unsafe { &mut *self.buckets.add(known.place as usize & (self.len - 1)) };
        let way = bucket.0.iter().position(|other| other.check == known.check || other.check == 0);
        // Full: the others move up and the oldest goes.
        let pushed_out = way.is_none();
        let way = way.unwrap_or(WAYS - 1);
        bucket.0[..=way].rotate_right(1);
        bucket.0[0] = known;
        pushed_out
    }

    #[cold]
    fn grow(&mut self) {
        self.pushed_out = 0;
        let len = (self.len * 2).max(SMALLEST);
        if self.len != 0 && !memory::may_grow() {
            return;
        }
        let Some(buckets) = NonNull::new(memory::zeroed_array::<Bucket>(len)) else { return };
        let old = std::mem::replace(self, StackCache { buckets: buckets.as_ptr(), len, pushed_out: 0 });
        for index in 0..old.len {
            // SAFETY: within the old table, which is still whole.
            let bucket = unsafe { *old.buckets.add(index) };
            for known in bucket.0.into_iter().rev().filter(|known| known.check != 0) {
                self.put(known);
            }
        }
        if !old.buckets.is_null() {
            // SAFETY: made by `grow` with `old.len`, and nothing refers to it any more.
            unsafe { memory::free_array(old.buckets, old.len) };
        }
    }
}

/// The sum is well mixed in its upper bits, where every factor of it has worked.
#[inline(always)]
fn place(stack: Fingerprint) -> u32 {
    (stack.sum >> 40) as u32
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
        assert!(cache.len * WAYS > 8192);
    }
}
