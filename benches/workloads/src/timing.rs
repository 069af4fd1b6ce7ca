//! Measures the nanoseconds of a call.
//!
//! The wall time of the whole run counts, not the best part: occasional costs of a tracker (growing a table, waiting for a
//! lock) are included.

use std::hash::{BuildHasher, RandomState};
use std::hint::black_box;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::turns::Turns;

/// The calls of one measurement and their time.
pub struct Measured {
    pub calls: u64,
    pub elapsed: Duration,
    /// The checksum that every call returned.
    pub checksum: u64,
}

/// Number of turns of a measurement, fewer if a call takes longer than a turn.
const TURNS: u32 = 20;

/// Calls `work` for a fifth of `time` without counting, then for `time`, in [turns](Turns) with another process.
///
/// # Panics
///
/// If two calls return different checksums: then they did not do the same work.
pub fn measure(time: Duration, turns: &Turns, mut work: impl FnMut() -> u64) -> Measured {
    keep_the_heap();
    let _fragments = fragment_the_heap();
    let checksum = work();
    let mut calls_for = |time: Duration| {
        let begin = Instant::now();
        let mut calls = 0;
        loop {
            assert_eq!(black_box(work()), checksum, "two repetitions of one workload differ");
            calls += 1;
            let elapsed = begin.elapsed();
            if elapsed >= time {
                return (calls, elapsed);
            }
        }
    };
    calls_for(time / 5);
    let mut measured = Measured { calls: 0, elapsed: Duration::ZERO, checksum };
    while turns.next(measured.elapsed < time) {
        // Not counted: the caches contain the other process's data.
        calls_for(Duration::ZERO);
        let (calls, elapsed) = calls_for(time / TURNS);
        measured.calls += calls;
        measured.elapsed += elapsed;
    }
    measured
}

/// Makes glibc keep freed memory, as in a program that has run for a while.
///
/// At first glibc returns the top of its heap as soon as 128 KiB of it are free, and gets it again with a page fault a page: a
/// quarter of the time of the JSON workload. This depends on the address of a single block, so one side may pay it and the
/// other not. After the free of a mapped block, glibc keeps twice its size; 32 MiB is the largest size it regards.
fn keep_the_heap() {
    drop(black_box(Vec::<u8>::with_capacity((32 << 20) - (64 << 10))));
}

/// Fragments the heap: makes blocks of random sizes with holes between them, different in each process.
///
/// The addresses of the workload's blocks, relative to each other and to the cache, change a result by several percent. Without
/// this they would be the same in each process of a side. With it the median is over many heaps.
fn fragment_the_heap() -> Vec<Vec<u8>> {
    let mut numbers = Numbers::new(RandomState::new().hash_one(0));
    let mut blocks: Vec<Vec<u8>> = (0..400).map(|_| vec![1; 1 + numbers.below(2_000) as usize]).collect();
    blocks.retain(|_| numbers.next() & 1 == 0);
    blocks
}

impl Measured {
    /// Returns the JSON for the harness; a call is `operations` operations.
    pub fn report(&self, operations: u64) -> Value {
        let operations = self.calls * operations;
        json!({
            "ns": self.elapsed.as_nanos() as f64 / operations as f64,
            "operations": operations,
            "seconds": self.elapsed.as_secs_f64(),
            "checksum": self.checksum,
        })
    }
}

/// A fixed sequence of numbers (splitmix64), so that all sides get the same documents, sizes and orders.
pub struct Numbers(u64);

impl Numbers {
    pub const fn new(seed: u64) -> Numbers {
        Numbers(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `end`, not quite uniform: good enough for test data.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
