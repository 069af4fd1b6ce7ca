//! Comparisons, snapshots on request and views of one moment.
#![forbid(unsafe_code)]

use super::*;
use crate::analyze::ages::AgeBounds;
use crate::analyze::live::Live;
use crate::analyze::snapshot::order::Order;
use crate::analyze::snapshot::statistic::Totals;

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
    let Compared { new, old, total, .. } = collector.compare(Since::First).unwrap();
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

/// Returns by line: live bytes, their change, live blocks, their change; as `compare_to` orders them.
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

/// Its addresses are gone, and its site is known.
#[test]
fn a_stack_that_died_is_compared_by_its_site() {
    let fake = Fake::new();
    fake.holds(2, 10, 100, 1);
    fake.holds(3, 20, 50, 5);
    let collector = fake.collector(25, 300);
    collector.tick();
    fake.at(60);
    fake.heap().stacks.remove(&3);
    assert_eq!(compared(&collector, Since::First), [(20, 0, -50, 0, -5), (10, 100, 0, 1, 0)]);
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
        assert_eq!((posted.number, posted.live.bytes, posted.live.blocks), (number, 1_000 * number, 1));
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

fn now(since: Since) -> ViewQuery {
    ViewQuery { at: None, since, nearest: false, scope: None, older_than: None }
}

fn totals(size: u64, size_diff: i64, count: u64, count_diff: i64) -> Totals {
    let mut totals = Totals::default();
    (totals.size, totals.size_diff, totals.count, totals.count_diff) = (size, size_diff, count, count_diff);
    totals
}

/// Reads the stacks to the end.
fn stacks(collector: &Collector, query: ViewQuery, is_wanted: impl Fn(Option<&Site>) -> bool) -> Stacks {
    let mut stacks = collector.stacks(query).unwrap();
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
    assert_eq!(
        (seen.report.live.now.bytes, seen.report.live.now.blocks, seen.report.live.delta_bytes()),
        (4_500, 5, 3_450)
    );
    assert_eq!(seen.naming, Progress { named: 2, total: 2, more: false });
    let past = |seconds: u64, live_bytes, live_blocks| PastTotals {
        taken_at: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
        live: Live { bytes: live_bytes, blocks: live_blocks },
    };
    assert_eq!(seen.history, [past(0, 1_050, 6), past(100, 4_500, 5)]);
    assert_eq!(seen.snapshots, []);
    collector.post().unwrap();
    assert_eq!(collector.overview().snapshots, [(1, past(100, 4_500, 5))]);

    // The heap goes on, the moment does not.
    fake.at(101);
    fake.holds(2, 10, 9_000, 9);
    fake.holds(5, 30, 7, 7);
    let then =
        ViewQuery { at: Some(number), since: Since::First, nearest: false, scope: None, older_than: None };
    for _ in 0..2 {
        let sites = collector.sites(then.clone(), Order::Growth, 10, 3).unwrap();
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
        let all = stacks(&collector, then.clone(), |_| true);
        for times in [sites.times, all.times] {
            assert_eq!((times.number, times.taken_at, times.since), (number, second(100), second(0)));
        }
        let held: Vec<Totals> = all.held.iter().map(|held| held.totals).collect();
        assert_eq!(held, [totals(4_000, 3_000, 4, 3), totals(0, -50, 0, -5), totals(500, 500, 1, 1)]);
        let of_ten = stacks(&collector, then.clone(), |site| site.is_some_and(|site| site.line == 10));
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
        let query = ViewQuery {
            at: Some(number),
            since: Since::First,
            nearest: false,
            scope: None,
            older_than: None,
        };
        collector
            .sites(query, Order::Size, 10, 1)
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
    assert_eq!((off.report.tracking, off.report.live.now.bytes, off.history.len()), (false, 0, 0));
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
        let query = ViewQuery {
            at: Some(overview.report.number),
            since: Since::First,
            nearest: false,
            scope: None,
            older_than: None,
        };
        let sites = collector.sites(query.clone(), Order::Size, 10, 1).unwrap();
        assert_eq!(sites.total.size, 2_701);
        seen.push((overview.naming.named, overview.naming.total, sites.other.size, sites.rows.len(), 0));
        let nameless = stacks(&collector, query, |site| site.is_none()).held;
        assert!(nameless.iter().all(|held| held.traceback.is_none()));
        seen.last_mut().unwrap().4 = nameless.len();
    }
    // Each of the three answers names one more, the hottest first.
    assert_eq!(seen, [(2, 7, 1_400, 3, 3), (5, 7, 200, 6, 0), (7, 7, 0, 7, 0)]);
}

/// Ten blocks of a line, of two ids, are older than the first look; three of another line are not.
#[test]
fn a_comparison_of_old_blocks_leaves_out_the_young_and_has_all_ages() {
    let fake = Fake::new();
    fake.holds(2, 10, 700, 7);
    fake.holds(5, 10, 300, 3);
    let collector = fake.collector(25, 300);
    fake.at(70);
    fake.holds(3, 20, 90, 3);
    let asked =
        CompareQuery { since: Since::First, older_than: Some(Duration::from_secs(60)), with_ages: true };
    collector.name_all_slice(Since::First);
    let Compared { new, old, total, ages } = collector.compare(asked).unwrap();
    assert_eq!(
        new.traces().iter().map(|trace| (trace.size, trace.count)).collect::<Vec<_>>(),
        [(700, 7), (300, 3)]
    );
    assert_eq!((new.traces(), total), (old.traces(), totals(1_000, 0, 10, 0)));
    let older_than_a_minute = |ages: &RowAges| {
        let AgeBounds { lower_bytes, upper_bytes } = ages.ages[0];
        (ages.live_bytes, lower_bytes, upper_bytes)
    };
    assert_eq!(ages.iter().map(older_than_a_minute).collect::<Vec<_>>(), [(700, 700, 700), (300, 300, 300)]);

    // Without `older_than` each trace has its ages, if they are asked for. The young blocks came between two looks, so their bounds differ.
    let Compared { new, ages, .. } = collector.compare(CompareQuery { older_than: None, ..asked }).unwrap();
    assert_eq!(new.traces().iter().map(|trace| trace.size).collect::<Vec<_>>(), [700, 90, 300]);
    assert_eq!(
        ages.iter().map(older_than_a_minute).collect::<Vec<_>>(),
        [(700, 700, 700), (90, 0, 90), (300, 300, 300)]
    );
    assert_eq!(collector.compare(Since::First).unwrap().ages, []);

    // The blocks behind profiles and files: as if there had never been others.
    let raw = collector.old_blocks(Duration::from_secs(60)).unwrap();
    let counts: Vec<_> = raw.stacks.iter().map(|stack| (stack.id, stack.counts.allocated_bytes)).collect();
    assert_eq!((counts, raw.totals.live_bytes()), (vec![(2, 700), (5, 300)], 1_000));

    // A row of old blocks says the bytes of all beside its own.
    let query = ViewQuery { older_than: Some(Duration::from_secs(60)), ..now(Since::First) };
    fake.holds(2, 10, 950, 9);
    fake.at(75);
    let Sites { rows, .. } = collector.sites(query, Order::Size, 10, 1).unwrap();
    assert_eq!(rows.iter().map(|row| (row.site.line, row.totals.size)).collect::<Vec<_>>(), [(10, 1_000)]);
    assert_eq!(rows[0].ages.map(|ages| ages.live_bytes), Some(1_250));
}
