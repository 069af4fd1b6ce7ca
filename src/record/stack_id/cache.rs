//! Per-thread cache from the fingerprint of a stack to its id.
//!
//! Five entries to a bucket of one cache line, owned by one thread, so a hit touches no shared memory. The
//! fingerprint decides a hit, without a comparison of addresses; debug builds compare those too (see
//! `event::check`). The cache starts small and, from 1 KiB on, grows by a quarter when it is three quarters full, so that nearly
//! all stacks are in the first of their two buckets: 17 to 21 bytes a stack, a thread that allocates little costs
//! little, and branching recursion, which has many stacks, slows down only gradually.

use crate::record::cache_counts::count_cache;
use crate::record::memory;
use crate::record::stack_id::fingerprint::Fingerprint;
use std::hint::select_unpredictable;
use std::ptr::NonNull;

/// Entries in a bucket.
const WAYS: usize = 5;

/// Stacks that hash to the same bucket, with their ids.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Bucket {
    /// [`Fingerprint::check`] of each stack; 0 marks an empty entry.
    checks: [u64; WAYS],
    /// Id of each stack. Callers compare it with `epoch::base`: it may be stale.
    ids: [u32; WAYS],
    /// Next victim: the way that is evicted when all are taken.
    next_victim: u32,
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    /// Returns the id, 0 on a miss. Selects the way without a branch, which would be mispredicted wherever a program
    /// has many stacks.
    #[inline(always)]
    fn get(&self, check: u64) -> u32 {
        (0..WAYS).fold(0, |id, way| select_unpredictable(self.checks[way] == check, self.ids[way], id))
    }

    /// Stores a stack in a way.
    fn set(&mut self, way: usize, check: u64, id: u32) {
        (self.checks[way], self.ids[way]) = (check, id);
    }

    /// Finds the way of this stack, else an empty one.
    fn way(&self, check: u64) -> Option<usize> {
        let is = |check: u64| self.checks.iter().position(|other| *other == check);
        is(check).or_else(|| is(0))
    }
}

/// Buckets of the smallest table: 1 KiB.
const SMALLEST: usize = 4;
/// Buckets of the table that a thread may have under any limit: 1 KiB, reserved with its state.
const GRANTED: usize = 16;
/// Buckets of the largest table: 1 MiB, 80,000 stacks.
const LARGEST: usize = 1 << 14;

/// Shared empty bucket that a cache points to before it is allocated: it matches no stack.
static NOWHERE: Bucket = Bucket { checks: [0; WAYS], ids: [0; WAYS], next_victim: 0 };

/// Stack cache of one thread. Zeroed memory is an empty cache after [`StackCache::prepare`].
pub(crate) struct StackCache {
    buckets: *mut Bucket,
    /// Number of buckets.
    len: usize,
    /// Number of occupied entries.
    used: usize,
}

impl StackCache {
    #[cfg(test)]
    fn new() -> StackCache {
        let mut empty = StackCache { buckets: std::ptr::null_mut(), len: 0, used: 0 };
        empty.prepare();
        empty
    }

    /// Points a zeroed cache to the shared empty bucket.
    pub(crate) fn prepare(&mut self) {
        if self.len == 0 {
            self.buckets = (&raw const NOWHERE).cast_mut();
        }
    }

    /// Returns the id of the stack with this [`Fingerprint::check`]; on a miss 0, which is no stack's id.
    #[inline(always)]
    pub(crate) fn get(&self, check: u64) -> u32 {
        debug_assert!(
            !self.buckets.is_null() && first_place(check, self.len) < self.len.max(1),
            "not prepared"
        );
        // SAFETY: there are `len` buckets, and the index is below it; or there is one, and the index is 0. Zeroed
        // buckets are valid.
        let id = unsafe { &*self.buckets.add(first_place(check, self.len)) }.get(check);
        if id != 0 {
            count_cache!(stack_first);
            return id;
        }
        debug_assert!(second_place(check, self.len) < self.len.max(1));
        // SAFETY: as above.
        let id = unsafe { &*self.buckets.add(second_place(check, self.len)) }.get(check);
        if id != 0 {
            count_cache!(stack_second);
        } else {
            count_cache!(stack_missed);
        }
        id
    }

    /// Stores the id of a stack; evicts another stack if both buckets are full.
    pub(crate) fn insert(&mut self, stack: Fingerprint, id: u32) {
        debug_assert!(stack.check != 0 && id != 0, "no stack: {stack:?}, id {id}");
        if self.used * 4 >= self.len * WAYS * 3 && self.len < LARGEST {
            self.grow();
        }
        if self.len != 0 {
            self.used += usize::from(self.put(stack.check, id));
        }
    }

    /// Stores an id and returns whether it took an empty entry. The table is not empty.
    fn put(&mut self, check: u64, id: u32) -> bool {
        let places = [first_place(check, self.len), second_place(check, self.len)];
        debug_assert!(places.into_iter().all(|place| place < self.len), "{places:?} of {} buckets", self.len);
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
            return true;
        }
        // SAFETY: as above.
        let bucket = unsafe { &mut *self.buckets.add(places[0]) };
        let way = bucket.next_victim as usize % WAYS;
        bucket.next_victim = way as u32 + 1;
        bucket.set(way, check, id);
        false
    }

    /// Forgets all stacks but those whose ids are to be kept.
    #[cold]
    #[inline(never)]
    pub(crate) fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        for index in 0..self.len {
            // SAFETY: within the table; `&mut self` makes it the only access.
            let bucket = unsafe { &mut *self.buckets.add(index) };
            for way in 0..WAYS {
                if bucket.checks[way] != 0 && !keep(bucket.ids[way]) {
                    bucket.set(way, 0, 0);
                    self.used -= 1;
                }
            }
        }
    }

    /// Moves the stacks to a larger table; leaves them where they are without room for it.
    #[cold]
    fn grow(&mut self) {
        let (len, may): (usize, fn(usize) -> bool) = match self.len {
            0 => (SMALLEST, memory::always),
            1..GRANTED => (self.len * 2, memory::always_doubled),
            _ => ((self.len + self.len / 4).min(LARGEST), memory::thread_may_grow),
        };
        let Some(buckets) = NonNull::new(memory::zeroed_array_of_thread::<Bucket>(len, may)) else { return };
        let old = std::mem::replace(self, StackCache { buckets: buckets.as_ptr(), len, used: 0 });
        for index in 0..old.len {
            // SAFETY: within the old table, which is still whole.
            let bucket = unsafe { *old.buckets.add(index) };
            for (check, id) in bucket.checks.into_iter().zip(bucket.ids).filter(|(check, _)| *check != 0) {
                self.used += usize::from(self.put(check, id));
            }
        }
        debug_assert!(self.used <= self.len * WAYS, "{} stacks in {} buckets", self.used, self.len);
        if old.len != 0 {
            // SAFETY: made by `grow` with `old.len`, and nothing refers to it any more.
            unsafe { memory::free_array_of_thread(old.buckets, old.len) };
        }
    }
}

/// Maps a check to the first of its two buckets, by its upper bits: all factors of the sum contribute to those.
#[inline(always)]
fn first_place(check: u64, len: usize) -> usize {
    ((check >> 40) as usize * len) >> 24
}

/// Maps a check to the second of its two buckets.
fn second_place(check: u64, len: usize) -> usize {
    first_place(check.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32), len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn fingerprint(n: u64) -> Fingerprint {
        Fingerprint::of_addresses(n.wrapping_mul(0x2545_f491_4f6c_dd1d).rotate_left(32))
    }

    /// Compares the cache with a map that never evicts: the cache may miss, but never returns another id.
    #[test]
    fn agrees_with_a_map_that_never_forgets() {
        let mut cache = StackCache::new();
        let mut naive = HashMap::new();
        let mut hits = 0;
        for step in 0..200_000u64 {
            let n = (step * step) % 20_011;
            let stack = fingerprint(n);
            match (cache.get(stack.check), naive.get(&n)) {
                (0, _) => {
                    let id = 2 + n as u32;
                    cache.insert(stack, id);
                    naive.insert(n, id);
                }
                (known, Some(&id)) => {
                    assert_eq!(known, id);
                    hits += 1;
                }
                (_, None) => panic!("a stack that was never inserted was found"),
            }
        }
        assert!(hits > 150_000, "{hits} hits: the cache did not grow");
        let bytes = cache.len * size_of::<Bucket>() / naive.len();
        assert!((15..=22).contains(&bytes), "{bytes} bytes a stack");
    }
}
