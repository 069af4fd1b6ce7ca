//! Tests that totals stay exact and sites end at zero, while the interval changes and threads allocate, free, resize and
//! exchange blocks.

use crate::random::Random;
use heapgauge::{Collector, GroupBy, Snapshot};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

const FILE: &str = "tests/sampling/interval_changes.rs";

#[inline(never)]
fn make(size: usize) -> Vec<u8> {
    Vec::with_capacity(black_box(size))
}

/// Returns a size of at most 16 KiB, rarely of up to 1 MiB.
fn size(random: u64) -> usize {
    if random.is_multiple_of(500) {
        1 + (random >> 20) as usize % (1 << 20)
    } else {
        1 + (random >> 20) as usize % 16_384
    }
}

/// Works until `end`; gives every seventh block to the next thread, which frees it.
fn work(
    seed: u64,
    end: &AtomicBool,
    give: mpsc::Sender<Vec<u8>>,
    take: mpsc::Receiver<Vec<u8>>,
) -> Vec<Vec<u8>> {
    let mut kept: Vec<Vec<u8>> = Vec::with_capacity(2_000);
    let mut numbers = Random(seed);
    let mut number = 0u64;
    while !end.load(Ordering::Relaxed) {
        number += 1;
        let random = numbers.next();
        let block = make(size(random));
        match random % 7 {
            0 => give.send(block).unwrap_or_default(),
            1 => drop(block),
            _ if kept.len() < 2_000 => kept.push(block),
            _ => kept[random as usize % 2_000] = block,
        }
        if let Some(block) = kept.get_mut(random as usize % 1_999) {
            match random % 11 {
                0 => block.reserve_exact(size(random >> 3)),
                1 => *block = Vec::new(),
                // A block made while paused would be untracked.
                2 if block.capacity() > 0 => {
                    let _paused = heapgauge::pause();
                    block.reserve_exact(size(random >> 5));
                }
                _ => {}
            }
        }
        if number.is_multiple_of(4) {
            drop(take.try_recv());
        }
    }
    drop(give);
    kept.extend(take.iter());
    kept
}

/// Returns live bytes, blocks and standard error by line of this file.
fn lines() -> Vec<(String, u64, u64, u64)> {
    let rows = Snapshot::take().unwrap().statistics(GroupBy::Line);
    let ours = rows.into_iter().filter(|row| row.name().starts_with(FILE));
    ours.map(|row| (row.name().into_owned(), row.size, row.count, row.stderr)).collect()
}

#[test]
fn case_51_switching_under_load() {
    own_process!();
    heapgauge::set_sample_interval(64 << 10).unwrap();
    heapgauge::seed_samples(51);
    let collector = Collector::new();
    // Sites of earlier blocks, such as the test harness's own.
    let earlier = lines();
    collector.collect();
    let intervals = [0, 64 << 10, 4 << 10, 512 << 10, 0, 1 << 20, 100, 16 << 10];
    let end: &AtomicBool = Box::leak(Box::default());
    let before = heapgauge::traced_memory().current;
    let (give_a, take_a) = mpsc::channel();
    let (give_b, take_b) = mpsc::channel();
    let (give_c, take_c) = mpsc::channel();
    let links = [(give_b, take_a), (give_c, take_b), (give_a, take_c)];
    let threads: Vec<_> = links
        .into_iter()
        .enumerate()
        .map(|(number, (give, take))| thread::spawn(move || work(number as u64 + 1, end, give, take)))
        .collect();

    for interval in intervals.into_iter().chain(intervals) {
        heapgauge::set_sample_interval(interval).unwrap();
        thread::sleep(Duration::from_millis(40));
        let total = heapgauge::traced_memory().current;
        // 3 × 2,000 blocks of 8 KiB on average, resized, and those under way.
        assert!(total < 4 << 30, "{total} bytes");
        for (name, bytes, blocks, stderr) in lines() {
            assert!(
                bytes < 4 << 30 && blocks < 10_000_000 && stderr < 4 << 30,
                "{name}: {bytes}, {blocks}, {stderr}"
            );
        }
        let report = collector.collect();
        let shown: u64 = report.sites.iter().map(|site| site.live.now.bytes).sum();
        assert_eq!(shown + report.other.now.bytes, report.live.now.bytes);
        let deltas: i64 = report.sites.iter().map(|site| site.live.delta_bytes()).sum();
        assert_eq!(deltas + report.other.delta_bytes(), report.live.delta_bytes());
    }
    end.store(true, Ordering::Relaxed);
    let kept: Vec<Vec<Vec<u8>>> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();

    // With all threads ended, the counted bytes are exact.
    heapgauge::set_sample_interval(0).unwrap();
    let held = |kept: &[Vec<Vec<u8>>]| -> u64 {
        let blocks: usize = kept.iter().flatten().map(Vec::capacity).sum();
        let lists: usize = kept.iter().map(|blocks| blocks.capacity() * size_of::<Vec<u8>>()).sum();
        (blocks + lists + size_of_val(kept)) as u64
    };
    let counted = heapgauge::traced_memory().current - before;
    assert_eq!(counted, held(&kept));
    drop(kept);
    assert_eq!(heapgauge::traced_memory().current, before);
    assert_eq!(lines(), earlier);
}
