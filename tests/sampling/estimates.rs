//! Tests estimates of the size of a line from sampled blocks: right on average and within their errors.
//!
//! The samples are the same in every run: each test seeds the choice of its thread.

use heapgauge::{Collector, GroupBy, Snapshot};
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::thread;
use std::time::{Duration, Instant};

const FILE: &str = "tests/sampling/estimates.rs";

/// Sets the interval of the process, and the random numbers of this thread.
fn sample(interval: usize, seed: u64) {
    heapgauge::set_sample_interval(interval).unwrap();
    heapgauge::seed_samples(seed);
}

/// The estimate of a line in a new snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Held {
    bytes: f64,
    blocks: f64,
    stderr: f64,
}

fn at_line(line: u32) -> Held {
    let rows = Snapshot::take().unwrap().statistics(GroupBy::Line);
    let row = rows.iter().find(|row| row.name() == format!("{FILE}:{line}"));
    row.map_or(Held::default(), |row| Held {
        bytes: row.size as f64,
        blocks: row.count as f64,
        stderr: row.stderr as f64,
    })
}

/// Returns the probability that a block of `size` bytes is sampled.
fn probability(size: usize, interval: usize) -> f64 {
    1.0 - (-(size as f64) / interval as f64).exp()
}

/// Returns the standard error of the number of blocks when `count` of `size` bytes are sampled.
fn error_of_blocks(count: usize, size: usize, interval: usize) -> f64 {
    let p = probability(size, interval);
    (count as f64 * (1.0 - p) / p).sqrt()
}

fn assert_within(found: f64, truth: f64, error: f64, what: &str) {
    assert!((found - truth).abs() <= 3.0 * error, "{what}: {found} for {truth}, error {error}");
}

/// Never touched: 32 MiB take no memory.
type Untouched = Box<[MaybeUninit<u8>]>;

/// Allocates all sizes on one stack.
#[inline(never)]
fn mixed(size: usize) -> Untouched {
    black_box(Box::new_uninit_slice(black_box(size)))
}
const MIXED: u32 = line!() - 2;

/// jemalloc's `prof_bias`: weights given to sums instead of blocks answer 0.80 of the bytes and 0.00005 of the
/// blocks (see the twin of this test beside the estimator).
#[test]
fn case_48_small_and_large_blocks_of_one_stack() {
    const INTERVAL: usize = 512 << 10;
    // Full size where it takes seconds.
    const SMALL: usize = if cfg!(debug_assertions) { 1 << 20 } else { 32 << 20 };
    const LARGE: usize = 16;
    own_process!();
    sample(INTERVAL, 48);
    let mut blocks: Vec<Untouched> = Vec::with_capacity(SMALL + LARGE);
    let before = heapgauge::traced_memory().current;
    for number in 0..SMALL + LARGE {
        let is_large = number % (SMALL / LARGE + 1) == 7;
        blocks.push(mixed(if is_large { 32 << 20 } else { 16 }));
    }
    assert_eq!(blocks.iter().filter(|block| block.len() == 16).count(), SMALL);
    let truth = (16 * SMALL + (LARGE << 25)) as f64;
    // The total is exact, but contains allocations of the harness.
    let total = heapgauge::traced_memory().current - before;
    assert!((total as f64 - truth).abs() < 1e6, "{total} for {truth}");
    let found = at_line(MIXED);
    let error = error_of_blocks(SMALL, 16, INTERVAL);
    assert_within(found.blocks, (SMALL + LARGE) as f64, error, "blocks");
    assert_within(found.bytes, truth, 16.0 * error, "bytes");
    // The exported error is the actual one, within the precision that the number of samples allows.
    let samples = (16 * SMALL) as f64 / INTERVAL as f64;
    assert_within(found.stderr / (16.0 * error), 1.0, 0.5 / samples.sqrt(), "stderr");
    drop(blocks);
    assert_eq!(at_line(MIXED), Held::default());
}

#[inline(never)]
fn small() -> Box<[u8; 96]> {
    black_box(Box::new([1; 96]))
}
const SMALL: u32 = line!() - 2;

#[inline(never)]
fn large() -> Box<[u8; 6_000]> {
    black_box(Box::new([1; 6_000]))
}
const LARGE: u32 = line!() - 2;

/// Golang #12620: a large block between two small ones must not take their samples.
#[test]
fn case_50_alternating_sizes_do_not_take_each_others_samples() {
    const INTERVAL: usize = 16 << 10;
    const COUNT: usize = 2_000;
    const ROUNDS: u64 = 30;
    own_process!();
    sample(INTERVAL, 50);
    let mut sums = [Held::default(); 2];
    for round in 0..ROUNDS {
        heapgauge::seed_samples(5_000 + round);
        let mut blocks = Vec::with_capacity(COUNT);
        for _ in 0..COUNT {
            blocks.push((small(), large()));
        }
        for (line, size, sum) in [(SMALL, 96, 0), (LARGE, 6_000, 1)] {
            let found = at_line(line);
            let error = error_of_blocks(COUNT, size, INTERVAL);
            assert_within(found.blocks, COUNT as f64, 1.3 * error, &format!("round {round}, {size} bytes"));
            sums[sum].blocks += found.blocks;
            sums[sum].bytes += found.bytes;
        }
    }
    for (size, sum) in [96, 6_000].into_iter().zip(sums) {
        let error = error_of_blocks(COUNT, size, INTERVAL) / (ROUNDS as f64).sqrt();
        assert_within(sum.blocks / ROUNDS as f64, COUNT as f64, error, "mean of the blocks");
        let bytes = (COUNT * size) as f64;
        assert_within(sum.bytes / ROUNDS as f64, bytes, size as f64 * error, "mean of the bytes");
    }
}

#[inline(never)]
fn changing(number: usize) -> Box<[usize; 32]> {
    black_box(Box::new([number; 32]))
}
const CHANGING: u32 = line!() - 2;

#[test]
fn case_51_old_blocks_keep_their_weight_when_the_interval_changes() {
    const COUNT: usize = 20_000;
    own_process!();
    sample(64 << 10, 51);
    let make = |count| (0..count).map(changing).collect::<Vec<_>>();
    let (mut truth, mut variance) = (0.0, 0.0);
    let mut kept = Vec::new();
    for interval in [64 << 10, 8 << 10, 0, 256 << 10, 1] {
        heapgauge::set_sample_interval(interval).unwrap();
        let before = at_line(CHANGING);
        kept.push(make(COUNT));
        truth += COUNT as f64;
        let found = at_line(CHANGING);
        if interval <= 1 {
            assert_eq!(found.blocks - before.blocks, COUNT as f64, "exact blocks");
            assert_eq!(found.bytes - before.bytes, (256 * COUNT) as f64, "exact bytes");
            assert_eq!(found.stderr, before.stderr);
        } else {
            variance += error_of_blocks(COUNT, 256, interval).powi(2);
        }
        assert_within(found.blocks, truth, variance.sqrt(), "blocks");
        assert_within(found.bytes, 256.0 * truth, 256.0 * variance.sqrt(), "bytes");
    }
    // Each free subtracts the weight of its block's allocation, independent of the interval now.
    heapgauge::set_sample_interval(1 << 20).unwrap();
    for blocks in kept {
        let before = at_line(CHANGING);
        drop(blocks);
        let after = at_line(CHANGING);
        assert!(after.blocks < before.blocks && after.stderr <= before.stderr, "{before:?}, {after:?}");
    }
    assert_eq!(at_line(CHANGING), Held::default());
}

#[inline(never)]
fn plain(number: usize) -> Vec<u8> {
    Vec::with_capacity(black_box(number))
}
const PLAIN: u32 = line!() - 2;

#[test]
fn case_53_an_interval_of_one_byte_is_exact() {
    own_process!();
    sample(1, 53);
    assert_eq!((heapgauge::sample_interval(), Snapshot::take().unwrap().sample_interval()), (0, 0));
    let make = || (1..=3_000).map(plain).collect::<Vec<_>>();
    let one = make();
    let by_one = at_line(PLAIN);
    drop(one);
    heapgauge::set_sample_interval(0).unwrap();
    let exact = make();
    assert_eq!(at_line(PLAIN), by_one);
    assert_eq!(by_one, Held { bytes: 3_000.0 * 3_001.0 / 2.0, blocks: 3_000.0, stderr: 0.0 });
    drop(exact);
}

#[inline(never)]
fn resized(capacity: usize) -> Vec<u8> {
    let mut block = Vec::with_capacity(1);
    block.push(7);
    block.reserve_exact(black_box(capacity));
    block
}
const RESIZED: u32 = line!() - 3;

/// A resize decides anew whether the block is sampled, in a paused thread too, where a recorded block keeps its stack.
#[test]
fn a_resized_block_is_sampled_by_its_new_size() {
    const INTERVAL: usize = 32 << 10;
    const COUNT: usize = 10_000;
    own_process!();
    sample(INTERVAL, 3);
    let mut kept: Vec<Vec<u8>> = (0..COUNT).map(|_| resized(199)).collect();
    let error = error_of_blocks(COUNT, 200, INTERVAL);
    assert_within(at_line(RESIZED).blocks, COUNT as f64, error, "resized");
    let before = heapgauge::traced_memory().current;
    let paused = heapgauge::pause();
    for block in &mut kept {
        block.reserve_exact(4_000);
    }
    const GROWN: u32 = line!() - 2;
    drop(paused);
    let grown: usize = kept.iter().map(|block| block.capacity() - 200).sum();
    let total = heapgauge::traced_memory().current - before;
    assert!(total.abs_diff(grown as u64) < 1_000_000, "{total} for {grown}");
    let found = at_line(GROWN);
    assert_within(found.blocks, COUNT as f64, error_of_blocks(COUNT, 4_001, INTERVAL), "grown");
    assert_eq!(at_line(RESIZED), Held::default());
    drop(kept);
    assert_eq!(at_line(GROWN), Held::default());
}

/// Defines sites of some megabytes each, whose blocks are replaced all the time.
macro_rules! noise {
    ($($name:ident $number:literal)*) => {
        $(#[inline(never)]
        fn $name(size: usize) -> Vec<u8> {
            // The numbers differ, or the compiler would merge the functions.
            vec![$number; black_box(size)]
        })*
        const NOISE: &[fn(usize) -> Vec<u8>] = &[$($name),*];
    };
}
noise! { n0 0x10 n1 0x11 n2 0x12 n3 0x13 n4 0x14 n5 0x15 n6 0x16 n7 0x17 n8 0x18 n9 0x19 n10 0x1a n11 0x1b }

#[inline(never)]
fn leak() -> Vec<u8> {
    vec![1; black_box(2_048)]
}
const LEAK: u32 = line!() - 2;

#[test]
fn a_leak_of_50_mib_is_the_top_grower_within_two_windows() {
    const WINDOW: Duration = Duration::from_secs(2);
    // A small interval at first, so that every line soon has its name.
    own_process!();
    sample(4 << 10, 77);
    let mut pools: Vec<Vec<Vec<u8>>> = NOISE.iter().map(|_| Vec::new()).collect();
    let mut random = 1u64;
    let mut churn = |pools: &mut Vec<Vec<Vec<u8>>>, rounds: usize| {
        for _ in 0..rounds {
            for (make, pool) in NOISE.iter().zip(pools.iter_mut()) {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let (place, size) = ((random >> 33) as usize % 4_000, (random >> 20) as usize % 4_096);
                if pool.len() < 4_000 {
                    pool.push(make(size));
                } else {
                    pool[place] = make(size);
                }
            }
        }
    };
    let collector = Collector::builder().delta_window(WINDOW).build().unwrap();
    churn(&mut pools, 100);
    let mut leaked: Vec<Vec<u8>> = (0..100).map(|_| leak()).collect();
    let begun = Instant::now();
    let is_named = |collector: &Collector| {
        let sites = &collector.collect().sites;
        let noise = sites.iter().filter(|site| site.function().contains("estimates::n")).count();
        noise >= NOISE.len() && sites.iter().any(|site| (site.file(), site.line()) == (FILE, LEAK))
    };
    while !is_named(&collector) {
        assert!(begun.elapsed() < Duration::from_secs(60), "{:#?}", collector.collect().sites);
        thread::sleep(Duration::from_millis(200));
    }
    heapgauge::set_sample_interval(512 << 10).unwrap();
    pools.iter_mut().for_each(Vec::clear);
    leaked.clear();
    churn(&mut pools, 4_000);
    thread::sleep(WINDOW + WINDOW / 5);
    collector.collect();
    let begun = Instant::now();
    while begun.elapsed() < 2 * WINDOW {
        // 50 MiB in two windows.
        let due = (50 << 20) as f64 / 2_048.0 * begun.elapsed().as_secs_f64() / (2 * WINDOW).as_secs_f64();
        while (leaked.len() as f64) < due {
            leaked.push(leak());
        }
        churn(&mut pools, 100);
        // A collection is reused for a second, and the last one must be of the end of the leak: half the window of a later
        // one would be without a leak.
        if begun.elapsed() + Duration::from_millis(1_100) < 2 * WINDOW {
            collector.collect();
        }
        thread::sleep(Duration::from_millis(10));
    }
    let report = collector.collect();
    let top = report.sites.iter().max_by_key(|site| site.live.delta_bytes()).unwrap();
    assert_eq!((top.file(), top.line()), (FILE, LEAK), "{:#?}", report.sites);
    assert!(top.live.delta_bytes() as u64 > 3 * top.live_stderr_bytes, "{top:#?}");
    let shown: u64 = report.sites.iter().map(|site| site.live.now.bytes).sum();
    assert!(shown <= report.live.now.bytes && shown + report.other.now.bytes == report.live.now.bytes);
    assert_eq!(report.sample_interval_bytes, 512 << 10);
}
