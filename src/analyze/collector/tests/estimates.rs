//! Sums of sites, exact and estimated.
#![forbid(unsafe_code)]

use super::*;
use crate::analyze::live::{Live, LiveChange};

#[test]
fn estimates_have_an_error_and_other_is_what_they_leave_of_the_exact_total() {
    let fake = Fake::new();
    fake.truly_holds(50_000, 500);
    let collector = fake.collector(25, 300);
    fake.at(10);
    fake.holds(2, 10, 30_000, 300);
    fake.is_sampled(2, 3_000.0);
    // Another stack of the line, and an exact one.
    fake.holds(6, 10, 16_000, 200);
    fake.is_sampled(6, 4_000.0);
    fake.holds(10, 10, 7_000, 1);
    fake.holds(11, 20, 9_000, 2);
    fake.truly_holds(70_000, 600);
    let report = collector.collect();
    check(&report);
    assert_eq!(rows(&report), [(10, 53_000, 501, 53_000, 501), (20, 9_000, 2, 9_000, 2)]);
    let errors: Vec<u64> = report.sites.iter().map(|site| site.live_stderr_bytes).collect();
    assert_eq!(errors, [5_000, 0]);
    assert_eq!((report.live.now.bytes, report.live.now.blocks), (70_000, 600));
    assert_eq!((report.live.delta_bytes(), report.live.delta_blocks()), (20_000, 100));
    let other = LiveChange {
        now: Live { bytes: 8_000, blocks: 97 },
        since: Live { bytes: 8_000 + 42_000, blocks: 97 + 403 },
    };
    assert_eq!((report.other, report.sample_interval_bytes), (other, 1_000));
}

#[test]
fn estimates_above_the_exact_total_are_scaled_down_to_it() {
    let fake = Fake::new();
    let collector = fake.collector(25, 300);
    fake.at(10);
    fake.holds(2, 10, 30_000, 300);
    fake.is_sampled(2, 3_000.0);
    fake.holds(6, 20, 10_000, 10);
    fake.is_sampled(6, 2_000.0);
    fake.holds(10, 30, 22_000, 2);
    fake.truly_holds(52_000, 400);
    let report = collector.collect();
    check(&report);
    // 10,000 bytes too many among 40,000 estimated ones: a quarter of each. 22,000 are certain.
    assert_eq!(
        rows(&report),
        [(10, 22_500, 300, 22_500, 300), (30, 22_000, 2, 22_000, 2), (20, 7_500, 10, 7_500, 10)]
    );
    assert_eq!((report.other.now.bytes, report.other.now.blocks), (0, 88));
    // Blocks likewise, and nothing is ever negative.
    fake.at(20);
    fake.truly_holds(22_000, 2);
    let report = collector.collect();
    check(&report);
    assert_eq!(rows(&report), [(30, 22_000, 2, 22_000, 2), (10, 0, 0, 0, 0), (20, 0, 0, 0, 0)]);
}

#[test]
fn what_is_level_stays_level_when_it_is_scaled_down() {
    let fake = Fake::new();
    fake.holds(2, 10, 30_000, 300);
    fake.is_sampled(2, 3_000.0);
    fake.holds(6, 20, 10_000, 10);
    fake.is_sampled(6, 2_000.0);
    fake.truly_holds(36_000, 200);
    let collector = fake.collector(25, 300);
    fake.at(10);
    let report = collector.collect();
    check(&report);
    assert_eq!(rows(&report), [(10, 27_000, 193, 0, 0), (20, 9_000, 6, 0, 0)]);
    // One gains 5,000 bytes, and so does the total.
    fake.at(20);
    fake.holds(6, 20, 15_000, 15);
    fake.truly_holds(41_000, 205);
    let report = collector.collect();
    check(&report);
    assert_eq!(rows(&report), [(10, 27_333, 195, 333, 2), (20, 13_666, 9, 4_666, 3)]);
}

/// Sums by site against a plain map, over random histories.
#[test]
fn the_same_sums_as_a_plain_map() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for _ in 0..50 {
        let fake = Fake::new();
        let collector = fake.collector(25, 0);
        collector.collect();
        let mut before: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        for step in 1..20 {
            for _ in 0..next(40) {
                let line = 1 + next(20) as u32;
                let id = line + 20 * next(400) as u32;
                fake.holds(id, (id - 1) % 20 + 1, next(5_000), next(9));
            }
            let mut expected: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
            for (id, stack) in &fake.heap().stacks {
                let sum = expected.entry((id - 1) % 20 + 1).or_default();
                sum.0 += stack.counts.live_bytes();
                sum.1 += stack.counts.live_blocks();
            }
            fake.at(2 * step);
            let report = collector.collect();
            check(&report);
            for row in rows(&report) {
                let (bytes, blocks) = expected[&row.0];
                let old = before.get(&row.0).copied().unwrap_or_default();
                let delta = (bytes as i64 - old.0 as i64, blocks as i64 - old.1 as i64);
                assert_eq!(row, (row.0, bytes, blocks, delta.0, delta.1));
            }
            let living = expected.values().filter(|sum| sum.1 > 0).count();
            assert_eq!((report.sites.len(), report.sites_with_blocks), (living, living as u64));
            before = expected;
        }
    }
}
