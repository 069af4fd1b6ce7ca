//! Naming in slices: order, budgets, and stacks that keep no name.
#![forbid(unsafe_code)]

use super::*;
use crate::analyze::collector::state::{NAMING_TIME, PENDING_FOR};
use crate::analyze::live::LiveChange;
use crate::analyze::snapshot::order::Order;
use crate::analyze::symbols::Lost;

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
    assert_eq!((report.live.now.bytes, report.other.now.bytes), (5_100, 5_000));
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
    assert_eq!(report.other, LiveChange::default());

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
    assert_eq!((rows(&report).len(), report.other.now.bytes), (0, 30));
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
    assert_eq!((report.sites.len(), report.other.now.bytes), (1, 70));
    let mut slices = 0;
    while collector.name_slice() {
        slices += 1;
    }
    assert_eq!(slices, 6);
    fake.at(5);
    assert_eq!(collector.collect().sites.len(), 8);
}

/// On a busy machine the time for names may be up before the first is looked for.
#[test]
fn a_collection_names_something_however_slow_the_machine_is() {
    let fake = Fake::new();
    for id in 2..6 {
        fake.holds_unnamed(id, 10 * u64::from(id), 1);
        fake.heap().nameable.insert(id as usize, site(id));
    }
    let collector = fake.collector(25, 300);
    fake.heap().hurries = 2 * NAMING_TIME;
    assert_eq!(rows(&collector.collect()), [(5, 50, 1, 0, 0)]);
    // Nor does one take longer than a look-up that is under way then.
    fake.heap().hurries = Duration::ZERO;
    fake.heap().naming_takes = 2 * PENDING_FOR;
    let resolved = fake.heap().resolved.len();
    fake.at(1_000);
    assert_eq!(rows(&collector.collect()).len(), 2);
    assert_eq!(fake.heap().resolved.len(), resolved + 1);
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
    assert_eq!((rows(&report), report.other.now.bytes), (vec![(1, 100, 1, 0, 0)], 42));
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
    assert_eq!((report.sites_with_blocks, report.other.now.bytes), (2, 1_000));
    let sites = collector
        .sites(
            ViewQuery { at: None, since: Since::Previous, nearest: false, scope: None, older_than: None },
            Order::Size,
            10,
            1,
        )
        .unwrap();
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
        let mut heap = fake.heap();
        let at = heap.addresses.push_stack(&addresses);
        heap.stacks.get_mut(&id).unwrap().addresses = at;
    }
    // Larger than any of them, and smaller than all.
    fake.holds_unnamed(20, 100, 1);
    let collector = fake.collector(25, 300);
    let _ = collector.collect();
    let state = collector.lock();
    let order: Vec<usize> = state.unnamed.iter().rev().map(|stack| stack.addresses[0]).collect();
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
