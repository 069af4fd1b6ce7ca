//! A closure → nanoseconds a call.
//!
//! Wall time of the whole run, not the best slice: what a tracker does now and then (growing a table, waiting
//! for a lock) counts.

use std::hash::{BuildHasher, RandomState};
use std::hint::black_box;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::turns::Turns;

/// Mean of the calls made in one measurement.
pub struct Measured {
    pub calls: u64,
    pub elapsed: Duration,
    /// What every call returned.
    pub checksum: u64,
}

/// Into how many turns the time is divided, unless a call takes longer.
const TURNS: u32 = 20;

/// Calls `work` for a fifth of `time` without counting, then for `time`, in [turns](Turns) with another process.
///
/// # Panics
///
/// If two calls return different checksums: then they did not do the same work.
pub fn measure(time: Duration, turns: &Turns, mut work: impl FnMut() -> u64) -> Measured {
    keep_the_heap();
    let _lived_in = lived_in();
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
        // Not counted: the caches hold what the other process left in them.
        calls_for(Duration::ZERO);
        let (calls, elapsed) = calls_for(time / TURNS);
        measured.calls += calls;
        measured.elapsed += elapsed;
    }
    measured
}

/// Makes glibc keep what is freed, as it does in a program that has run for a while.
///
/// At first it gives the top of its heap back as soon as 128 KiB of it are free, and fetches it again with a
/// page fault a page: a quarter of the time of the JSON workload. Whether it does depends on where a single
/// block lies, so one side may pay that and the other not. Once a block that was mapped has been freed, it
/// keeps twice that size; 32 MiB is the largest it takes notice of.
fn keep_the_heap() {
    drop(black_box(Vec::<u8>::with_capacity((32 << 20) - (64 << 10))));
}

/// A heap that has been lived in: blocks of random sizes with holes between them, others in each process.
///
/// Where the work's own blocks come to lie, relative to each other and to what the caches hold, moves a result by
/// several percent, either way, by chance, and without this by the same chance in each process of a side. So the
/// median is one over many heaps.
fn lived_in() -> Vec<Vec<u8>> {
    let mut numbers = Numbers::new(RandomState::new().hash_one(0));
    let mut blocks: Vec<Vec<u8>> = (0..400).map(|_| vec![1; 1 + numbers.below(2_000) as usize]).collect();
    blocks.retain(|_| numbers.next() & 1 == 0);
    blocks
}

impl Measured {
    /// As the harness reads it; a call is `operations` operations.
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

/// A fixed sequence of numbers (SplitMix64): all sides get the same documents, sizes and orders.
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

    /// A number below `end`, and not evenly: good enough for test data.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
