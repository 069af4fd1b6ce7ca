//! The collector with a heap and a clock of its own.
#![forbid(unsafe_code)]

use super::*;
use crate::analyze::snapshot::order::Order;
use crate::analyze::snapshot::statistic::Totals;
use crate::analyze::symbols::Lost;
use crate::record::raw_snapshot::{Counts, Dropped, RawStack};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

/// Heap and clock of the collector under test; tests change it between collections.
pub(crate) struct Heap {
    start: Instant,
    pub(crate) now: Instant,
    epoch: u32,
    tracking: bool,
    stacks: BTreeMap<u32, RawStack>,
    /// Sites by first address; a stack without an entry here has no name yet.
    sites: HashMap<usize, Arc<Site>>,
    /// Stacks that get their name in the next `resolve`, whose budget holds one each.
    nameable: HashMap<usize, Arc<Site>>,
    names_epoch: u64,
    resolved: Vec<usize>,
    pub(crate) taken: u32,
    /// Time that the clock advances with each look at it.
    pub(crate) hurries: Duration,
    /// The next snapshot panics.
    pub(crate) fails: bool,
    /// Average bytes between samples, and the true live counts; `None`: the sums of the stacks.
    pub(crate) sample_interval: u64,
    totals: Option<Counts>,
    /// Duration of a `resolve`, and the budgets it was given.
    naming_takes: Duration,
    budgets: Vec<Duration>,
}

#[derive(Clone)]
pub(crate) struct Fake(Arc<Mutex<Heap>>);

impl Fake {
    pub(crate) fn new() -> Fake {
        let start = Instant::now();
        Fake(Arc::new(Mutex::new(Heap {
            start,
            now: start,
            epoch: 0,
            tracking: true,
            stacks: BTreeMap::new(),
            sites: HashMap::new(),
            nameable: HashMap::new(),
            names_epoch: 0,
            resolved: Vec::new(),
            taken: 0,
            hurries: Duration::ZERO,
            fails: false,
            sample_interval: 0,
            totals: None,
            naming_takes: Duration::ZERO,
            budgets: Vec::new(),
        })))
    }

    pub(crate) fn heap(&self) -> MutexGuard<'_, Heap> {
        self.0.lock().unwrap()
    }

    pub(crate) fn collector(&self, top_n: usize, window: u64) -> Collector {
        let options = Options {
            top_n,
            delta_window: Duration::from_secs(window),
            max_overhead: Some(DEFAULT_MAX_OVERHEAD),
            snapshots: 3,
            snapshots_for: Duration::from_secs(600),
        };
        Collector::with_world(options, Box::new(self.clone()))
    }

    pub(crate) fn at(&self, seconds: u64) {
        let mut heap = self.heap();
        heap.now = heap.start + Duration::from_secs(seconds);
    }

    /// Gives stack `id` the line `line` and these live counts.
    pub(crate) fn holds(&self, id: u32, line: u32, bytes: u64, blocks: u64) {
        self.holds_unnamed(id, bytes, blocks);
        self.heap().sites.insert(id as usize, site(line));
    }

    fn holds_unnamed(&self, id: u32, bytes: u64, blocks: u64) {
        let mut heap = self.heap();
        let stack = heap.stacks.entry(id).or_insert_with(|| RawStack {
            id,
            addresses: Box::leak(Box::new([id as usize])),
            truncated: false,
            counts: Counts::default(),
            variance: 0.0,
        });
        let counts = &mut stack.counts;
        if bytes > counts.live_bytes() {
            counts.allocated_bytes += bytes - counts.live_bytes();
        } else {
            counts.freed_bytes += counts.live_bytes() - bytes;
        }
        if blocks > counts.live_blocks() {
            counts.allocated_blocks += blocks - counts.live_blocks();
        } else {
            counts.freed_blocks += counts.live_blocks() - blocks;
        }
    }

    /// Makes the bytes of a stack an estimate with this standard error, every 1,000 bytes.
    pub(crate) fn is_sampled(&self, id: u32, stderr: f64) {
        let mut heap = self.heap();
        heap.sample_interval = 1_000;
        heap.stacks.get_mut(&id).unwrap().variance = stderr * stderr;
    }

    /// Sets the true live counts.
    fn truly_holds(&self, allocated_bytes: u64, allocated_blocks: u64) {
        let counts = Counts { allocated_bytes, allocated_blocks, ..Counts::default() };
        self.heap().totals = Some(counts);
    }

    pub(crate) fn clear(&self) {
        let mut heap = self.heap();
        heap.epoch += 1;
        heap.stacks.clear();
    }
}

fn site(line: u32) -> Arc<Site> {
    Arc::new(Site {
        id: u64::from(line),
        function: format!("app::line_{line}").into(),
        file: "src/app.rs".into(),
        line,
        krate: "app".into(),
        lost: None,
    })
}

fn sum(stacks: &[RawStack]) -> Counts {
    let mut sum = Counts::default();
    for stack in stacks {
        sum += stack.counts;
    }
    sum
}

impl World for Fake {
    fn now(&self) -> Instant {
        let mut heap = self.heap();
        let hurries = heap.hurries;
        heap.now += hurries;
        heap.now
    }
    fn take(&self) -> RawSnapshot {
        let mut heap = self.heap();
        heap.taken += 1;
        let fails = std::mem::take(&mut heap.fails);
        if fails {
            drop(heap); // not poisoned
            panic!("planted by a test");
        }
        let stacks: Vec<RawStack> =
            if heap.tracking { heap.stacks.values().copied().collect() } else { Vec::new() };
        RawSnapshot {
            taken_at: SystemTime::UNIX_EPOCH + (heap.now - heap.start),
            taken: heap.now,
            tracking: heap.tracking,
            traceback_limit: 32,
            epoch: heap.epoch,
            peak_bytes: stacks.iter().map(|stack| stack.counts.live_bytes()).sum(),
            totals: heap.totals.unwrap_or_else(|| sum(&stacks)),
            stacks,
            untracked_bytes: 11,
            overhead_bytes: 22,
            dropped: Dropped { stacks: 1, memory: 2, threads: 3, reentrant: 4 },
            truncated_stacks: 5,
            fallback_walks: 6,
            sample_interval_bytes: heap.sample_interval,
            capture: "cfi",
        }
    }
    fn names_epoch(&self) -> u64 {
        self.heap().names_epoch
    }
    fn site(&self, addresses: &'static [usize]) -> Option<Arc<Site>> {
        self.heap().sites.get(&addresses[0]).cloned()
    }
    fn resolve(&self, stacks: &mut dyn Iterator<Item = &'static [usize]>, budget: Duration) -> Progress {
        let mut heap = self.heap();
        let takes = heap.naming_takes;
        heap.now += takes;
        heap.budgets.push(budget);
        let Some(first) = stacks.next().map(|addresses| addresses[0]) else {
            return Progress::default();
        };
        heap.resolved.push(first);
        let found = heap.nameable.remove(&first);
        let named = usize::from(found.is_some());
        if let Some(site) = found {
            heap.sites.insert(first, site);
        }
        let total = 1 + stacks.count();
        Progress { named, total, more: named == 1 && total > 1 }
    }
    fn traceback(&self, stack: &RawStack, _: usize) -> Option<Traceback> {
        let site = self.site(stack.addresses)?;
        Some(Traceback::new([crate::Frame::new(Some(&site.function), &site.file, site.line)]))
    }
    fn symbols(&self) -> &'static str {
        "lines"
    }
    fn resident_bytes(&self) -> Option<u64> {
        Some(4096)
    }
    fn memory_limit_bytes(&self) -> Option<u64> {
        None
    }
}

/// Returns line, live bytes, live blocks, delta bytes, delta blocks.
fn rows(report: &Report) -> Vec<(u32, u64, u64, i64, i64)> {
    report
        .sites
        .iter()
        .map(|row| (row.line(), row.live_bytes, row.live_blocks, row.delta_bytes, row.delta_blocks))
        .collect()
}

/// Checks the invariants of every report.
fn check(report: &Report) {
    assert_eq!(report.live_bytes, report.allocated_bytes - report.deallocated_bytes);
    assert_eq!(report.live_blocks, report.allocations - report.deallocations);
    let sum = |of: &dyn Fn(&SiteRow) -> i64| report.sites.iter().map(of).sum::<i64>();
    assert_eq!(report.live_bytes as i64, sum(&|row| row.live_bytes as i64) + report.other.live_bytes as i64);
    assert_eq!(
        report.live_blocks as i64,
        sum(&|row| row.live_blocks as i64) + report.other.live_blocks as i64
    );
    assert_eq!(report.delta_bytes, sum(&|row| row.delta_bytes) + report.other.delta_bytes);
    assert_eq!(report.delta_blocks, sum(&|row| row.delta_blocks) + report.other.delta_blocks);
    assert!(report.sites.len() <= 40);
    assert!(report.sites.len() as u64 <= report.sites_with_blocks);
}

#[test]
fn stacks_of_one_line_are_one_site() {
    let fake = Fake::new();
    fake.holds(2, 10, 100, 1);
    fake.holds(3, 20, 500, 5);
    fake.holds(9_000, 10, 30, 2);
    let report = fake.collector(25, 300).collect();
    check(&report);
    assert_eq!(rows(&report), [(20, 500, 5, 0, 0), (10, 130, 3, 0, 0)]);
    assert_eq!((report.live_bytes, report.live_blocks), (630, 8));
    assert_eq!((report.sites_with_blocks, report.other), (2, Sum::default()));
    let dropped = DroppedEvents { stacks: 1, memory: 2, threads: 3, series: 0, reentrant: 4 };
    assert_eq!(report.dropped, dropped);
    assert_eq!((report.untracked_bytes, report.overhead_bytes), (11, 22));
    assert_eq!((report.truncated_stacks, report.fallback_walks), (5, 6));
    assert_eq!((report.resident_bytes, report.memory_limit_bytes), (Some(4096), None));
}

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
    assert_eq!((report.live_bytes, report.live_blocks), (70_000, 600));
    assert_eq!((report.delta_bytes, report.delta_blocks), (20_000, 100));
    let other = Sum { live_bytes: 8_000, live_blocks: 97, delta_bytes: -42_000, delta_blocks: -403 };
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
    assert_eq!((report.other.live_bytes, report.other.live_blocks), (0, 88));
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

#[test]
fn estimated_sites_are_thirty_five_at_most() {
    let fake = Fake::new();
    for line in 1..=60 {
        fake.holds(4 * line, line, if line <= 25 { 1_000_000 } else { 10 }, 1);
    }
    fake.is_sampled(4, 10.0);
    let collector = fake.collector(25, 300);
    for round in 0..5_u32 {
        fake.at(2 * u64::from(round + 1));
        for line in 26 + 7 * round..33 + 7 * round {
            fake.holds(4 * line, line, 1_000 * u64::from(round + 1), 1);
        }
        assert!(collector.collect().sites.len() <= 35);
    }
    assert_eq!(collector.collect().sites.len(), 35);
}

#[test]
fn a_comparison_shows_both_errors_and_the_exact_total() {
    let fake = Fake::new();
    fake.holds(2, 10, 30_000, 300);
    fake.is_sampled(2, 3_000.0);
    fake.truly_holds(40_000, 400);
    let collector = fake.collector(25, 300);
    fake.at(10);
    fake.holds(2, 10, 50_000, 500);
    fake.is_sampled(2, 4_000.0);
    fake.truly_holds(45_000, 401);
    collector.name_all_slice(Since::First);
    let Compared { new, old, total } = collector.compare(Since::First).unwrap();
    let row = &new.compare_to(&old, crate::analyze::snapshot::group::GroupBy::Line)[0];
    assert_eq!((row.size, row.stderr, row.size_diff, row.diff_stderr), (50_000, 4_000, 20_000, 5_000));
    assert_eq!((total.size, total.size_diff, total.count, total.count_diff), (45_000, 5_000, 401, 1));
    assert_eq!(new.sample_interval(), 1_000);
    #[cfg(feature = "http")]
    {
        let site = &collector.sites(now(Since::First), Order::Size, 1, 0).unwrap().rows[0];
        assert_eq!((site.totals.size, site.stderr, site.diff_stderr), (50_000, 4_000, 5_000));
    }
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
        assert_eq!(collector.tick(), Duration::from_secs(60));
    }
    fake.at(630);
    fake.holds(2, 10, 5_000, 50);
    fake.holds(3, 30, 7, 1);
    let report = collector.collect();
    check(&report);
    // 330 seconds back, at minute 5: 1,500 bytes in 15 blocks. A site absent there counts from 0.
    assert_eq!(report.delta_window, Duration::from_secs(330));
    assert_eq!(rows(&report), [(10, 5_000, 50, 3_500, 35), (30, 7, 1, 7, 1)]);
    assert_eq!((report.delta_bytes, report.delta_blocks), (3_507, 36));
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
                    report.sites[0].delta_bytes,
                    live_at(second) as i64 - live_at(second - age) as i64
                );
            }
            if second % 15 == 4 {
                let report = collector.collect();
                let age = report.delta_window.as_secs();
                assert_eq!(age, if second < 50 { second } else { second - (second - 50) / 10 * 10 });
                assert_eq!(
                    report.sites[0].delta_bytes,
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
    assert_eq!((first.other.live_bytes, first.sites_with_blocks), (90, 2));

    // It is overtaken, and stays for half an hour because it has just been there.
    fake.at(10);
    fake.holds(3, 2, 200, 2);
    let second = collector.collect();
    check(&second);
    assert_eq!(rows(&second), [(2, 200, 2, 110, 1), (1, 100, 1, 0, 0)]);
    fake.at(1_800);
    assert_eq!(rows(&collector.collect()).len(), 2);
    fake.at(1_801);
    let later = collector.collect();
    check(&later);
    assert_eq!(rows(&later), [(2, 200, 2, 110, 1)]);
    assert_eq!((later.live_bytes, later.other.live_bytes, later.sites_with_blocks), (300, 100, 2));
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
    let left = Sum { live_bytes: 0, live_blocks: 0, delta_bytes: -100, delta_blocks: -1 };
    assert_eq!((report.other, report.sites_with_blocks), (left, 1));
    // It comes back as itself.
    fake.at(10);
    fake.holds(2, 1, 30, 1);
    assert_eq!(rows(&collector.collect()), [(2, 90, 1, 0, 0), (1, 30, 1, -70, 0)]);
}

#[test]
fn at_most_forty_sites_whatever_happens() {
    let fake = Fake::new();
    for line in 1..=200 {
        fake.holds(line + 1, line, if line <= 25 { 1_000_000 } else { 10 }, 1);
    }
    let collector = fake.collector(25, 300);
    let mut seen = Vec::new();
    // Each round seven other lines grow most, and those before drop out.
    for round in 1..=25_u32 {
        fake.at(2 * u64::from(round));
        for line in 19 + 7 * round..26 + 7 * round {
            fake.holds(line + 1, line, 10 + 100 * u64::from(round), 1);
        }
        let report = collector.collect();
        check(&report);
        seen.push(report.sites.len());
    }
    assert_eq!(seen[..2], [32, 39]);
    assert!(seen[2..].iter().all(|&sites| sites == 40), "{seen:?}");
}

#[test]
fn a_stack_without_a_name_counts_in_other() {
    let fake = Fake::new();
    fake.holds(2, 1, 100, 1);
    fake.holds_unnamed(3, 5_000, 50);
    let collector = fake.collector(25, 300);
    fake.at(10);
    let report = collector.collect();
    check(&report);
    assert_eq!(rows(&report), [(1, 100, 1, 0, 0)]);
    assert_eq!((report.live_bytes, report.other.live_bytes), (5_100, 5_000));
    // Once it has one, its delta is against its live bytes before it had one.
    fake.heap().sites.insert(3, site(7));
    fake.at(20);
    fake.holds_unnamed(3, 5_048, 51);
    assert_eq!(rows(&collector.collect()), [(7, 5_048, 51, 48, 1), (1, 100, 1, 0, 0)]);
}

/// A site's delta is its live value minus its live value then, names or none then.
#[test]
fn a_stack_that_was_freed_before_it_had_a_name_counts_in_its_delta() {
    let fake = Fake::new();
    fake.holds_unnamed(2, 100, 1);
    fake.holds_unnamed(3, 30, 3);
    for id in [2, 3] {
        fake.heap().nameable.insert(id, site(7));
    }
    let collector = fake.collector(25, 300);
    let posted = collector.post().unwrap().number;
    fake.at(10);
    fake.holds_unnamed(2, 0, 0);
    let report = collector.collect();
    check(&report);
    assert_eq!(rows(&report), [(7, 30, 3, -100, -1)]);
    assert_eq!(report.other, Sum::default());

    fake.holds_unnamed(4, 9, 1);
    fake.heap().nameable.insert(4, site(8));
    assert!(collector.name_all_slice(Since::Number(posted)));
    assert_eq!(compared(&collector, Since::Number(posted)), [(7, 30, -100, 3, -1), (8, 9, 9, 1, 1)]);
}

#[test]
fn the_hottest_stacks_are_named_first() {
    let fake = Fake::new();
    for (id, bytes) in [(2, 10), (3, 30), (4, 20), (5, 0)] {
        fake.holds_unnamed(id, bytes, u64::from(bytes > 0));
        fake.heap().nameable.insert(id as usize, site(id));
    }
    let collector = fake.collector(25, 300);
    assert!(collector.collect_slice().is_none());
    assert!(collector.collect_slice().is_none());
    let report = collector.collect_slice().unwrap();
    assert_eq!(rows(&report), [(3, 30, 1, 0, 0), (4, 20, 1, 0, 0), (2, 10, 1, 0, 0)]);
    // A stack that holds nothing needs no name.
    assert_eq!(fake.heap().resolved, [3, 4, 2]);
    assert!(!collector.name_slice());
    // One to notice the first baseline, one to count.
    assert_eq!(fake.heap().taken, 2);
}

#[test]
fn what_cannot_be_named_ends_the_naming() {
    let fake = Fake::new();
    fake.holds_unnamed(2, 10, 1);
    fake.holds_unnamed(3, 20, 1);
    fake.heap().nameable.insert(2, site(2));
    let collector = fake.collector(25, 300);
    let report = collector.collect();
    assert_eq!((rows(&report).len(), report.other.live_bytes), (0, 30));
    assert!(!collector.name_slice());
}

#[test]
fn naming_that_takes_too_long_is_continued_between_collections() {
    let fake = Fake::new();
    for id in 2..10 {
        fake.holds_unnamed(id, 10, 1);
        fake.heap().nameable.insert(id as usize, site(id));
    }
    let collector = fake.collector(25, 300);
    assert!(collector.collect_slice().is_none());
    {
        let mut heap = fake.heap();
        heap.now += NAMING_TIME;
    }
    let report = collector.collect_slice().unwrap();
    assert_eq!((report.sites.len(), report.other.live_bytes), (1, 70));
    let mut slices = 0;
    while collector.name_slice() {
        slices += 1;
    }
    assert_eq!(slices, 6);
    fake.at(5);
    assert_eq!(collector.collect().sites.len(), 8);
}

#[test]
fn where_a_go_of_naming_is_slow_to_begin_it_may_take_longer() {
    let fake = Fake::new();
    for id in 2..12 {
        fake.holds_unnamed(id, 10, 1);
        fake.heap().nameable.insert(id as usize, site(id));
    }
    let collector = fake.collector(25, 300);
    let millis = Duration::from_millis;
    fake.heap().naming_takes = millis(150);
    assert!(collector.collect_slice().is_none());
    fake.heap().naming_takes = millis(300);
    // One collection waits no longer than the rest of a second.
    assert!(collector.collect_slice().is_none());
    assert!(collector.collect_slice().is_none());
    assert!(collector.collect_slice().is_none());
    assert_eq!(collector.collect_slice().map(|report| report.sites.len()), Some(4));
    assert!(collector.name_slice());
    fake.heap().naming_takes = millis(2_000);
    assert!(collector.name_slice());
    assert!(collector.name_slice());
    assert_eq!(fake.heap().budgets, [100, 100, 550, 250, 600, 600, 1_000].map(millis));
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
    assert_eq!((report.sites.len(), report.live_bytes, report.delta_bytes), (0, 0, 0));
    assert_eq!(collector.tick(), Duration::from_secs(60));
}

#[test]
fn names_that_may_be_wrong_are_asked_for_again() {
    let fake = Fake::new();
    fake.holds(2, 1, 100, 1);
    let collector = fake.collector(25, 300);
    assert_eq!(rows(&collector.collect()), [(1, 100, 1, 0, 0)]);
    fake.at(10);
    fake.heap().names_epoch = 1;
    fake.heap().sites.insert(2, site(5));
    assert_eq!(rows(&collector.collect()), [(5, 100, 1, 0, 0)]);
}

/// A reader of the metrics alone could not tell a heap without sites from one whose names were still being read.
#[test]
fn bytes_without_a_name_are_said() {
    let fake = Fake::new();
    fake.holds(2, 1, 100, 1);
    fake.holds_unnamed(3, 40, 1);
    fake.holds_unnamed(4, 2, 1);
    let collector = fake.collector(25, 300);
    let report = collector.collect();
    check(&report);
    assert_eq!(report.unnamed, UnnamedBytes { pending: 42, lost: 0 });
    assert_eq!((rows(&report), report.other.live_bytes), (vec![(1, 100, 1, 0, 0)], 42));
    fake.at(10);
    fake.heap().sites.insert(3, site(3));
    fake.heap().sites.insert(4, site(4));
    assert_eq!(collector.collect().unnamed, UnnamedBytes::default());
}

/// It went by function, or by module and offset, under an id that it has only where memory is short.
#[test]
fn a_site_whose_line_was_lost_is_not_exported_under_another_id() {
    let fake = Fake::new();
    fake.holds(2, 1, 100, 1);
    fake.holds(3, 9, 1_000, 1);
    fake.holds(4, 8, 10, 1);
    let lost = |line, lost| Arc::new(Site { line: 0, lost: Some(lost), ..(*site(line)).clone() });
    fake.heap().sites.insert(3, lost(9, Lost::ForNow));
    // Its lines do not fit whatever else there is, so this is its name.
    fake.heap().sites.insert(4, lost(8, Lost::ForGood));
    let collector = fake.collector(25, 300);
    let report = collector.collect();
    check(&report);
    assert_eq!(report.unnamed, UnnamedBytes { pending: 0, lost: 1_010 });
    assert_eq!(rows(&report), [(1, 100, 1, 0, 0), (0, 10, 1, 0, 0)]);
    assert_eq!((report.sites_with_blocks, report.other.live_bytes), (2, 1_000));
    let sites = collector.sites(Asked { at: None, since: Since::Previous }, Order::Size, 10, 1).unwrap();
    assert_eq!(sites.rows.iter().map(|row| row.site.line).collect::<Vec<_>>(), [1, 0]);
    // There is more room: it comes under the id that it always has.
    fake.at(10);
    fake.heap().names_epoch = 1;
    fake.heap().sites.insert(3, site(9));
    let report = collector.collect();
    check(&report);
    assert_eq!(report.unnamed.lost, 10);
    assert_eq!(rows(&report)[0], (9, 1_000, 1, 0, 0));
}

/// A leak of very many stacks, each with little, was named last.
#[test]
fn stacks_of_one_cause_are_named_by_what_they_hold_together() {
    let fake = Fake::new();
    let recent: [usize; 8] = [1; 8];
    for id in 2..20 {
        fake.holds_unnamed(id, 10, 1);
        let addresses: Vec<usize> = [&[1_000 + id as usize][..]].concat();
        let addresses = if id < 15 { [&recent[..], &addresses].concat() } else { addresses };
        fake.heap().stacks.get_mut(&id).unwrap().addresses = addresses.leak();
    }
    // Larger than any of them, and smaller than all.
    fake.holds_unnamed(20, 100, 1);
    let collector = fake.collector(25, 300);
    let _ = collector.collect();
    let state = collector.lock();
    let order: Vec<usize> = state.unnamed.iter().rev().map(|addresses| addresses[0]).collect();
    assert_eq!((order[0], order[1]), (1, 20), "{order:?}");
    assert_eq!(order.iter().filter(|first| **first == 1).count(), 13);
}

/// Somebody may ask only when there is no more memory to read names with.
#[test]
fn names_are_read_by_the_clock_before_anybody_asks() {
    let fake = Fake::new();
    fake.holds_unnamed(2, 100, 1);
    let collector = fake.collector(25, 300);
    fake.heap().nameable.insert(2, site(7));
    fake.at(60);
    collector.tick();
    assert!(!collector.name_slice());
    assert_eq!(fake.heap().resolved, [2]);
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
        error(Collector::builder().max_overhead(12)),
        "collector: max_overhead 12 is out of range, allowed are 1048576 bytes (1 MiB) and more"
    );
}

/// Returns by line: live bytes, their change, live blocks, their change; as `compare_to` orders them.
fn compared(collector: &Collector, since: Since) -> Vec<(u32, u64, i64, u64, i64)> {
    let Compared { new, old, .. } = collector.compare(since).unwrap();
    let rows = new.compare_to(&old, crate::analyze::snapshot::group::GroupBy::Line);
    rows.iter()
        .map(|row| (row.traceback.most_recent().line, row.size, row.size_diff, row.count, row.count_diff))
        .collect()
}

#[test]
fn two_readers_compare_with_different_pasts() {
    let fake = Fake::new();
    fake.holds(2, 10, 100, 1);
    fake.holds(3, 20, 50, 5);
    let collector = fake.collector(25, 300);
    for minute in 1..=10_u64 {
        fake.at(60 * minute);
        fake.holds(2, 10, 100 + minute, 1 + minute);
        collector.tick();
    }
    fake.holds(3, 20, 0, 0);
    fake.holds_unnamed(4, 7, 1);
    fake.at(601);
    let rest = [(20, 0, -50, 0, -5), (0, 7, 7, 1, 1)];
    assert_eq!(compared(&collector, Since::First), [rest[0], (10, 110, 10, 11, 10), rest[1]]);
    assert_eq!(compared(&collector, Since::Previous), [rest[0], rest[1], (10, 110, 5, 11, 5)]);
    let ago = |seconds| compared(&collector, Since::Ago(Duration::from_secs(seconds)));
    assert_eq!(ago(61), [rest[0], rest[1], (10, 110, 1, 11, 1)]);
    assert_eq!(ago(62), [rest[0], rest[1], (10, 110, 2, 11, 2)]);
    assert_eq!(ago(99_999), compared(&collector, Since::First));
}

#[test]
fn stacks_that_appeared_meanwhile_are_named_too() {
    let fake = Fake::new();
    fake.holds(2, 10, 100, 1);
    let collector = fake.collector(25, 300);
    assert!(collector.name_all_slice(Since::First));
    fake.holds_unnamed(3, 30, 3);
    fake.heap().nameable.insert(3, site(7));
    assert_eq!(compared(&collector, Since::First), [(7, 30, 30, 3, 3), (10, 100, 0, 1, 0)]);
}

#[test]
fn snapshots_on_request_are_kept_by_number_and_age() {
    let fake = Fake::new();
    let collector = fake.collector(25, 300);
    for number in 1..=4 {
        fake.at(100 * number);
        fake.holds(2, 10, 1_000 * number, 1);
        let posted = collector.post().unwrap();
        assert_eq!((posted.number, posted.live_bytes, posted.live_blocks), (number, 1_000 * number, 1));
    }
    // Three are kept, so the first is gone.
    let gone = |number| collector.compare(Since::Number(number)).unwrap_err().to_string();
    assert_eq!(gone(1), "snapshot 1 is not kept, kept are 2, 3, 4");
    assert_eq!(compared(&collector, Since::Number(2)), [(10, 4_000, 2_000, 1, 0)]);
    // Ten minutes are over for the second at 801.
    fake.at(800);
    assert_eq!(compared(&collector, Since::Number(2)), [(10, 4_000, 2_000, 1, 0)]);
    fake.at(801);
    assert_eq!(gone(2), "snapshot 2 is not kept, kept are 3, 4");
    assert_eq!(compared(&collector, Since::Number(4)), [(10, 4_000, 0, 1, 0)]);
    fake.clear();
    assert_eq!(gone(4), "snapshot 4 is not kept, and no other");
    fake.heap().tracking = false;
    // The fake heap is one of a program without the allocator.
    assert_eq!(collector.post().unwrap_err().to_string(), control::NO_ALLOCATOR);
}

fn now(since: Since) -> Asked {
    Asked { at: None, since }
}

fn totals(size: u64, size_diff: i64, count: u64, count_diff: i64) -> Totals {
    let mut totals = Totals::default();
    (totals.size, totals.size_diff, totals.count, totals.count_diff) = (size, size_diff, count, count_diff);
    totals
}

/// Reads the stacks to the end.
fn stacks(collector: &Collector, asked: Asked, is_wanted: impl Fn(Option<&Site>) -> bool) -> Stacks {
    let mut stacks = collector.stacks(asked).unwrap();
    while !collector.stacks_slice(&mut stacks, true, &is_wanted) {}
    stacks
}

/// Returns line, figures, history.
fn lines(sites: &Sites) -> Vec<(u32, Totals, Vec<u64>)> {
    sites.rows.iter().map(|row| (row.site.line, row.totals, row.history.clone())).collect()
}

#[test]
fn answers_about_one_moment_add_up_whatever_happens_meanwhile() {
    let fake = Fake::new();
    fake.holds(2, 10, 1_000, 1);
    fake.holds(3, 20, 50, 5);
    let collector = fake.collector(25, 300);
    fake.at(100);
    fake.holds(2, 10, 4_000, 4);
    fake.holds(3, 20, 0, 0);
    fake.holds(4, 10, 500, 1);
    let seen = collector.overview();
    let number = seen.report.number;
    assert_eq!((seen.report.live_bytes, seen.report.live_blocks, seen.report.delta_bytes), (4_500, 5, 3_450));
    assert_eq!(seen.naming, Progress { named: 2, total: 2, more: false });
    let past = |seconds: u64, live_bytes, live_blocks| Past {
        taken_at: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
        live_bytes,
        live_blocks,
    };
    assert_eq!(seen.history, [past(0, 1_050, 6), past(100, 4_500, 5)]);
    assert_eq!(seen.snapshots, []);
    collector.post().unwrap();
    assert_eq!(collector.overview().snapshots, [(1, past(100, 4_500, 5))]);

    // The heap goes on, the moment does not.
    fake.at(101);
    fake.holds(2, 10, 9_000, 9);
    fake.holds(5, 30, 7, 7);
    let then = Asked { at: Some(number), since: Since::First };
    for _ in 0..2 {
        let sites = collector.sites(then, Order::Growth, 10, 3).unwrap();
        assert_eq!(
            lines(&sites),
            [
                (10, totals(4_500, 3_500, 5, 4), vec![1_000, 4_500, 4_500]),
                (20, totals(0, -50, 0, -5), vec![50, 0, 0])
            ]
        );
        assert_eq!(
            (sites.sites, sites.other, sites.total),
            (2, Totals::default(), totals(4_500, 3_450, 5, -1))
        );
        let second = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        assert_eq!(sites.history_at, [second(0), second(100), second(100)]);
        let all = stacks(&collector, then, |_| true);
        for times in [sites.times, all.times] {
            assert_eq!((times.number, times.taken_at, times.since), (number, second(100), second(0)));
        }
        let held: Vec<Totals> = all.held.iter().map(|held| held.totals).collect();
        assert_eq!(held, [totals(4_000, 3_000, 4, 3), totals(0, -50, 0, -5), totals(500, 500, 1, 1)]);
        let of_ten = stacks(&collector, then, |site| site.is_some_and(|site| site.line == 10));
        assert_eq!(of_ten.held.len(), 2);
    }
    // With fewer rows, the others are in *other*.
    let one = collector.sites(then, Order::Count, 1, 0).unwrap();
    assert_eq!(lines(&one), [(10, totals(4_500, 3_500, 5, 4), vec![])]);
    assert_eq!((one.sites, one.other), (2, totals(0, -50, 0, -5)));
    // Without its number it is now.
    let sites = collector.sites(now(Since::First), Order::Size, 10, 1).unwrap();
    assert_eq!((sites.total.size, sites.times.number), (9_507, number + 1));
    // A query within a second gets the same moment.
    assert_eq!(collector.overview().report.number, number + 1);
}

/// Stacks are read in slices while the heap goes on, and others are served in between.
#[test]
fn many_stacks_are_read_in_slices() {
    let fake = Fake::new();
    (2..20_002).for_each(|id| fake.holds(id, id % 7, 10, 1));
    let collector = fake.collector(25, 300);
    fake.at(10);
    (15_002..25_002).for_each(|id| fake.holds(id, id % 7, 30, 1));
    let mut read = collector.stacks(now(Since::First)).unwrap();
    let mut lengths = Vec::new();
    while !collector.stacks_slice(&mut read, false, |_| true) {
        lengths.push(read.held.len());
        (2..25_002).for_each(|id| fake.holds(id, id % 7, 99, 9));
        fake.at(11 + lengths.len() as u64);
        collector.collect();
    }
    assert_eq!((lengths, read.held.len()), (vec![8_192, 16_384, 24_576], 25_000));
    let sum = read.held.iter().fold(Totals::default(), |sum, held| sum.plus(held.totals));
    assert_eq!(sum, totals(450_000, 250_000, 25_000, 5_000));
}

#[test]
fn moments_are_kept_for_a_minute_and_four_at_most() {
    let fake = Fake::new();
    fake.holds(2, 10, 1_000, 1);
    let collector = fake.collector(25, 300);
    let at = |number| {
        let asked = Asked { at: Some(number), since: Since::First };
        collector
            .sites(asked, Order::Size, 10, 1)
            .map(|sites| sites.total.size)
            .map_err(|gone| gone.to_string())
    };
    for number in 1..=5 {
        fake.at(10 * number);
        fake.holds(2, 10, 1_000 * number, 1);
        assert_eq!(collector.overview().report.number, number);
    }
    assert_eq!(at(1).unwrap_err(), "moment 1 is not kept, kept are 2, 3, 4, 5");
    assert_eq!((at(2), at(5)), (Ok(2_000), Ok(5_000)));
    fake.at(80);
    assert_eq!(at(2).unwrap_err(), "moment 2 is not kept, kept are 3, 4, 5");
    // The clock of the server forgets them, too.
    fake.at(200);
    collector.tick();
    assert_eq!(at(5).unwrap_err(), "moment 5 is not kept, and no other");
    collector.overview();
    fake.clear();
    assert_eq!(at(6).unwrap_err(), "moment 6 is not kept, and no other");
    assert_eq!(
        collector.stacks(now(Since::Number(9))).unwrap_err().to_string(),
        "snapshot 9 is not kept, and no other"
    );
    fake.heap().tracking = false;
    fake.at(300);
    let off = collector.overview();
    assert_eq!((off.report.tracking, off.report.live_bytes, off.history.len()), (false, 0, 0));
    assert_eq!(
        collector.sites(now(Since::First), Order::Size, 1, 1).unwrap_err().to_string(),
        control::NO_ALLOCATOR
    );
}

#[test]
fn naming_goes_on_from_look_to_look_and_says_how_far_it_is() {
    let fake = Fake::new();
    let collector = fake.collector(25, 300);
    for id in 2..8 {
        fake.holds_unnamed(id, 100 * u64::from(id), 1);
        fake.heap().nameable.insert(id as usize, site(id));
    }
    fake.holds(20, 50, 1, 1);
    let mut seen = Vec::new();
    for look in 1..=3 {
        fake.at(2 * look);
        let overview = collector.overview();
        let asked = Asked { at: Some(overview.report.number), since: Since::First };
        let sites = collector.sites(asked, Order::Size, 10, 1).unwrap();
        assert_eq!(sites.total.size, 2_701);
        seen.push((overview.naming.named, overview.naming.total, sites.other.size, sites.rows.len(), 0));
        let nameless = stacks(&collector, asked, |site| site.is_none()).held;
        assert!(nameless.iter().all(|held| held.traceback.is_none()));
        seen.last_mut().unwrap().4 = nameless.len();
    }
    // Each of the three answers names one more, the hottest first.
    assert_eq!(seen, [(2, 7, 1_400, 3, 3), (5, 7, 200, 6, 0), (7, 7, 0, 7, 0)]);
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

#[test]
fn a_site_once_followed_is_told_of_for_ever() {
    let fake = Fake::new();
    (1..=4).for_each(|line| fake.holds(line + 1, line, 100 * u64::from(line), 1));
    let collector = fake.collector(2, 300);
    assert!(collector.collect().followed.is_empty());

    let followed = |report: &Report| -> Vec<(u32, u64, i64)> {
        report.followed.iter().map(|row| (row.line(), row.live_bytes, row.delta_bytes)).collect()
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
        (report.allocated_bytes, report.deallocated_bytes, report.allocations, report.live_bytes)
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
