//! Reports over time: baselines, reuse, chosen and followed sites.
#![forbid(unsafe_code)]

use super::*;
use crate::analyze::collector::grouping::STICKY_FOR;
use crate::analyze::live::{Live, LiveChange};

#[test]
fn stacks_of_one_line_are_one_site() {
    let fake = Fake::new();
    fake.holds(2, 10, 100, 1);
    fake.holds(3, 20, 500, 5);
    fake.holds(9_000, 10, 30, 2);
    let report = fake.collector(25, 300).collect();
    check(&report);
    assert_eq!(rows(&report), [(20, 500, 5, 0, 0), (10, 130, 3, 0, 0)]);
    assert_eq!((report.live.now.bytes, report.live.now.blocks), (630, 8));
    assert_eq!((report.sites_with_blocks, report.other), (2, LiveChange::default()));
    let dropped = DroppedEvents { stacks: 1, memory: 2, threads: 3, series: 0, reentrant: 4, scopes: 5 };
    assert_eq!(report.dropped, dropped);
    assert_eq!((report.untracked_bytes, report.overhead_bytes), (11, 22));
    assert_eq!((report.truncated_stacks, report.fallback_walks), (5, 6));
    assert_eq!((report.resident_bytes, report.memory_limit_bytes), (Some(4096), None));
    assert_eq!((report.memory_limit_usage_bytes, report.build.release()), (Some(2048), "2.4"));
}

#[test]
fn the_delta_is_against_the_newest_baseline_old_enough() {
    let fake = Fake::new();
    fake.holds(2, 10, 1_000, 10);
    let collector = fake.collector(25, 300);
    // The server's clock: one snapshot each minute, 100 bytes more each time.
    for minute in 1..=10 {
        fake.at(60 * minute);
        fake.holds(2, 10, 1_000 + 100 * minute, 10 + minute);
        // The next look at ages comes before the next baseline.
        assert_eq!(collector.tick(), Duration::from_secs(15));
    }
    fake.at(630);
    fake.holds(2, 10, 5_000, 50);
    fake.holds(3, 30, 7, 1);
    let report = collector.collect();
    check(&report);
    // 330 seconds back, at minute 5: 1,500 bytes in 15 blocks. A site absent there counts from 0.
    assert_eq!(report.delta_window, Duration::from_secs(330));
    assert_eq!(rows(&report), [(10, 5_000, 50, 3_500, 35), (30, 7, 1, 7, 1)]);
    assert_eq!((report.live.delta_bytes(), report.live.delta_blocks()), (3_507, 36));
}

#[test]
fn while_young_the_oldest_is_the_baseline() {
    let fake = Fake::new();
    let collector = fake.collector(25, 300);
    fake.at(30);
    fake.holds(2, 10, 48, 1);
    let report = collector.collect();
    assert_eq!(rows(&report), [(10, 48, 1, 48, 1)]);
    assert_eq!(report.delta_window, Duration::from_secs(30));
}

#[test]
fn a_collection_younger_than_a_second_is_reused() {
    let fake = Fake::new();
    fake.holds(2, 10, 48, 1);
    let collector = fake.collector(25, 300);
    let first = collector.collect();
    fake.holds(2, 10, 96, 2);
    let millis = |millis| {
        let mut heap = fake.heap();
        heap.now = heap.start + Duration::from_millis(millis);
    };
    millis(999);
    assert!(Arc::ptr_eq(&first, &collector.clone().collect()));
    millis(1_000);
    let second = collector.collect();
    assert_eq!((first.number, second.number), (1, 2));
    assert_eq!(rows(&second), [(10, 96, 2, 48, 1)]);
}

/// Two scrapers at different periods, with the server's clock between them: equal times give equal
/// values, and each sample's delta is its live value minus the live value at the baseline it names.
#[test]
fn case_59_two_scrapers_do_not_disturb_each_other() {
    let live_at = |second: u64| 1_000 + 7 * second + (second * second) % 97;
    let scrape = |with_other: bool| {
        let fake = Fake::new();
        fake.holds(2, 10, live_at(0), 1);
        let collector = fake.collector(25, 50);
        let mut seen = BTreeMap::new();
        for second in 1..=400 {
            fake.at(second);
            fake.holds(2, 10, live_at(second), 1);
            if second % 10 == 0 {
                collector.tick();
            }
            if with_other && second % 7 == 3 {
                let report = collector.collect();
                check(&report);
                let age = report.delta_window.as_secs();
                assert_eq!(
                    report.sites[0].live.delta_bytes(),
                    live_at(second) as i64 - live_at(second - age) as i64
                );
            }
            if second % 15 == 4 {
                let report = collector.collect();
                let age = report.delta_window.as_secs();
                assert_eq!(age, if second < 50 { second } else { second - (second - 50) / 10 * 10 });
                assert_eq!(
                    report.sites[0].live.delta_bytes(),
                    live_at(second) as i64 - live_at(second - age) as i64
                );
                seen.insert(second, (rows(&report), report.delta_window));
            }
        }
        assert_eq!(seen.len(), 27);
        seen
    };
    assert_eq!(scrape(false), scrape(true));
}

#[test]
fn without_a_server_collections_keep_the_baselines() {
    let fake = Fake::new();
    fake.holds(2, 10, 100, 1);
    let collector = fake.collector(25, 300);
    for (second, live, delta, age) in
        [(100, 200, 100, 100), (250, 300, 200, 250), (500, 400, 200, 400), (900, 500, 100, 400)]
    {
        fake.at(second);
        fake.holds(2, 10, live, 1);
        let report = collector.collect();
        assert_eq!(rows(&report), [(10, live, 1, delta, 0)], "at {second}");
        assert_eq!(report.delta_window, Duration::from_secs(age), "at {second}");
    }
}

#[test]
fn a_window_of_zero_compares_with_the_previous_collection() {
    let fake = Fake::new();
    fake.holds(2, 10, 100, 1);
    let collector = fake.collector(25, 0);
    assert_eq!(rows(&collector.collect()), [(10, 100, 1, 0, 0)]);
    for (second, live, delta) in [(2, 150, 50), (4, 120, -30), (90, 120, 0)] {
        fake.at(second);
        fake.holds(2, 10, live, 1);
        let report = collector.collect();
        check(&report);
        assert_eq!(rows(&report), [(10, live, 1, delta, 0)], "at {second}");
    }
}

#[test]
fn case_61_a_site_that_leaves_the_top_moves_into_other() {
    let fake = Fake::new();
    fake.holds(2, 1, 100, 1);
    fake.holds(3, 2, 90, 1);
    let collector = fake.collector(1, 300);
    let first = collector.collect();
    assert_eq!(rows(&first), [(1, 100, 1, 0, 0)]);
    assert_eq!((first.other.now.bytes, first.sites_with_blocks), (90, 2));

    // It is overtaken, and stays for a day because it has just been there.
    fake.at(10);
    fake.holds(3, 2, 200, 2);
    let second = collector.collect();
    check(&second);
    assert_eq!(rows(&second), [(2, 200, 2, 110, 1), (1, 100, 1, 0, 0)]);
    fake.at(86_400);
    assert_eq!(rows(&collector.collect()).len(), 2);
    fake.at(86_401);
    let later = collector.collect();
    check(&later);
    assert_eq!(rows(&later), [(2, 200, 2, 110, 1)]);
    assert_eq!((later.live.now.bytes, later.other.now.bytes, later.sites_with_blocks), (300, 100, 2));
}

#[test]
fn case_61_a_vanished_site_is_absent_at_once() {
    let fake = Fake::new();
    fake.holds(2, 1, 100, 1);
    fake.holds(3, 2, 90, 1);
    let collector = fake.collector(25, 300);
    assert_eq!(rows(&collector.collect()).len(), 2);
    fake.at(5);
    fake.holds(2, 1, 0, 0);
    let report = collector.collect();
    check(&report);
    assert_eq!(rows(&report), [(2, 90, 1, 0, 0)]);
    // Its loss since the baseline is part of the remainder.
    let left = LiveChange { now: Live::default(), since: Live { bytes: 100, blocks: 1 } };
    assert_eq!((report.other, report.sites_with_blocks), (left, 1));
    // It comes back as itself.
    fake.at(10);
    fake.holds(2, 1, 30, 1);
    assert_eq!(rows(&collector.collect()), [(2, 90, 1, 0, 0), (1, 30, 1, -70, 0)]);
}

#[test]
fn at_most_thirty_seven_sites_whatever_happens() {
    let fake = Fake::new();
    for line in 1..=200 {
        fake.holds(line + 1, line, if line <= 25 { 1_000_000 } else { 10 }, 1);
    }
    let collector = fake.collector(25, 300);
    let mut seen = Vec::new();
    // Each round seven other lines grow most, of which four are chosen, and those before drop out.
    for round in 1..=25_u32 {
        fake.at(2 * u64::from(round));
        for line in 19 + 7 * round..26 + 7 * round {
            fake.holds(line + 1, line, 10 + 100 * u64::from(round), 1);
        }
        let report = collector.collect();
        check(&report);
        seen.push(report.sites.len());
    }
    assert_eq!(seen[..2], [29, 33]);
    assert!(seen[2..].iter().all(|&sites| sites == 37), "{seen:?}");
}

#[test]
fn clearing_forgets_the_baselines() {
    let fake = Fake::new();
    fake.holds(2, 1, 100, 1);
    let collector = fake.collector(25, 300);
    collector.collect();
    fake.at(100);
    fake.clear();
    fake.holds(900, 1, 40, 2);
    let report = collector.collect();
    check(&report);
    assert_eq!(rows(&report), [(1, 40, 2, 0, 0)]);
    assert_eq!(report.delta_window, Duration::ZERO);
    fake.at(130);
    fake.holds(900, 1, 50, 3);
    let report = collector.collect();
    assert_eq!(rows(&report), [(1, 50, 3, 10, 1)]);
    assert_eq!(report.delta_window, Duration::from_secs(30));
}

#[test]
fn while_off_there_are_no_sites() {
    let fake = Fake::new();
    fake.holds(2, 1, 100, 1);
    let collector = fake.collector(25, 300);
    assert_eq!(collector.collect().sites.len(), 1);
    fake.at(10);
    fake.heap().tracking = false;
    let report = collector.collect();
    check(&report);
    assert!(!report.tracking);
    assert_eq!((report.sites.len(), report.live.now.bytes, report.live.delta_bytes()), (0, 0, 0));
    assert_eq!(collector.tick(), Duration::from_secs(60));
}

#[test]
fn settings_out_of_range_name_the_range() {
    let error = |builder: CollectorBuilder| builder.build().unwrap_err().to_string();
    assert_eq!(
        error(Collector::builder().top_n(26)),
        "collector: top_n 26 is out of range, allowed are 1 to 25"
    );
    assert_eq!(
        error(Collector::builder().top_n(0)),
        "collector: top_n 0 is out of range, allowed are 1 to 25"
    );
    assert_eq!(
        error(Collector::builder().delta_window(Duration::from_secs(604_801))),
        "collector: delta_window 604801s is out of range, allowed are 0s to 7d"
    );
    assert_eq!(
        crate::set_max_overhead(12).unwrap_err().to_string(),
        "set_max_overhead: 12 is out of range, allowed are 1048576 bytes (1 MiB) and more"
    );
}

#[test]
fn a_site_once_followed_is_told_of_for_ever() {
    let fake = Fake::new();
    (1..=4).for_each(|line| fake.holds(line + 1, line, 100 * u64::from(line), 1));
    let collector = fake.collector(2, 300);
    assert!(collector.collect().followed.is_empty());

    let followed = |report: &Report| -> Vec<(u32, u64, i64)> {
        report.followed.iter().map(|row| (row.line(), row.live.now.bytes, row.live.delta_bytes())).collect()
    };
    // The report of a moment ago does not have them, so it is collected anew.
    let report = collector.collect_following(3);
    assert_eq!((rows(&report).len(), followed(&report)), (2, vec![(4, 400, 0), (3, 300, 0)]));

    // Line 4 is no longer among the first two, and not for want of growth: it shrank.
    fake.at(10);
    fake.holds(5, 4, 50, 1);
    fake.holds(3, 2, 1_000, 1);
    fake.heap().now += STICKY_FOR;
    let report = collector.collect_following(3);
    assert_eq!(rows(&report).iter().map(|row| row.0).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(followed(&report), [(4, 50, -350), (3, 300, 0), (2, 1_000, 800)]);
    assert_eq!(report.dropped.series, 0);

    // There is no room for a fourth one; it counts once, and a lower limit changes nothing.
    for second in [20, 30] {
        fake.heap().now += Duration::from_secs(second);
        fake.holds(2, 1, 5_000, 1);
        let report = collector.collect_following(1);
        assert_eq!(report.followed.len(), 3);
        assert_eq!(report.dropped.series, 1);
        assert_eq!(rows(&report)[0].0, 1);
    }

    // Forgotten traces: the sites are still told of, and hold nothing.
    fake.clear();
    fake.heap().now += Duration::from_secs(30);
    let report = collector.collect_following(3);
    assert_eq!((rows(&report).len(), followed(&report)), (0, vec![(4, 0, 0), (3, 0, 0), (2, 0, 0)]));
}

#[test]
#[cfg(any(feature = "opentelemetry", feature = "prometheus"))]
fn totals_go_on_where_they_must() {
    let fake = Fake::new();
    fake.holds(2, 10, 100, 1);
    fake.holds(2, 10, 40, 1);
    let collector = fake.collector(25, 300);
    let totals = |report: &Report| {
        (report.allocated_bytes, report.deallocated_bytes, report.allocations, report.live.now.bytes)
    };
    let report = collector.collect();
    assert_eq!((totals(&report), totals(&report.going_on())), ((100, 60, 1, 40), (100, 60, 1, 40)));
    for round in 1..=2 {
        fake.clear();
        fake.holds(3, 10, 7, 1);
        fake.at(10 * round);
        let report = collector.collect();
        assert_eq!(totals(&report), (7, 0, 1, 7));
        assert_eq!(totals(&report.going_on()), (100 + 7 * round, 60, 1 + round, 7));
    }
    // With tracking off there is nothing, and the totals before are not forgotten.
    fake.clear();
    fake.heap().tracking = false;
    fake.at(100);
    let report = collector.collect();
    assert_eq!((totals(&report), totals(&report.going_on())), ((0, 0, 0, 0), (114, 60, 3, 0)));
}
