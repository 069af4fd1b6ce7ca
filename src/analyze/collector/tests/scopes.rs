//! Rows by key and value of scopes, in reports and in views.
#![forbid(unsafe_code)]

use super::*;
use crate::analyze::live::Live;
use crate::analyze::snapshot::group::GroupBy;
use crate::analyze::snapshot::order::Order;

/// Returns key, value, live bytes, live blocks, and the change of bytes.
fn rows(rows: &[ScopeRow]) -> Vec<(&str, &str, u64, u64, i64)> {
    let row = |row: &'_ ScopeRow| (row.live.now.bytes, row.live.now.blocks, row.live.delta_bytes());
    rows.iter().map(|one| (one.key(), one.value(), row(one).0, row(one).1, row(one).2)).collect()
}

#[test]
fn blocks_with_two_keys_are_in_a_row_of_each() {
    let fake = Fake::new();
    fake.holds(2, 10, 1_000, 1);
    fake.holds_in(3, &[("tenant", "acme")], 100, 1);
    fake.holds_in(4, &[("route", "/a"), ("tenant", "acme")], 20, 2);
    fake.holds_in(5, &[("route", "/a"), ("tenant", "b")], 3, 3);
    let collector = fake.collector(25, 300);
    fake.at(10);
    fake.holds_in(4, &[("route", "/a"), ("tenant", "acme")], 50, 5);
    let report = collector.collect();
    check(&report);
    assert_eq!(
        rows(&report.scopes),
        [("route", "/a", 53, 8, 30), ("tenant", "acme", 150, 6, 30), ("tenant", "b", 3, 3, 0)]
    );
    assert!(report.followed_scopes.is_empty());
    assert!(Fake::new().collector(25, 300).collect().scopes.is_empty());
}

/// Its stack is no longer among those of now, but was live in the baseline.
#[test]
fn a_scope_that_is_over_counts_in_the_change_of_its_keys() {
    let fake = Fake::new();
    fake.holds_in(3, &[("job", "one"), ("tenant", "acme")], 100, 1);
    fake.holds_in(4, &[("tenant", "acme")], 7, 1);
    let collector = fake.collector(25, 300);
    fake.at(10);
    fake.heap().stacks.remove(&3);
    fake.heap().scopes[0] = vec![("job", "another".to_owned())];
    assert_eq!(rows(&collector.collect().scopes), [("tenant", "acme", 7, 1, -100)]);
}

#[test]
fn at_most_25_pairs_have_rows_and_the_rest_of_each_key_is_one() {
    let fake = Fake::new();
    for id in 0..40_u32 {
        fake.holds_in(2 + id, &[("tenant", &format!("t{id:02}"))], 1_000 - u64::from(id), 1);
    }
    fake.holds_in(100, &[("route", "/a")], 5, 1);
    fake.holds_in(101, &[("tenant", "[other]")], 60_000, 1);
    let collector = fake.collector(25, 300);
    let report = collector.collect();
    check(&report);
    // A key with one value needs no rest; the other one has 23 of 40, and the blocks that the table of scopes had no room for.
    let rest: u64 = (23..40).map(|id| 1_000 - id).sum();
    let shown = rows(&report.scopes);
    assert_eq!(shown.len(), 25);
    assert_eq!((shown[0], shown[1]), (("route", "/a", 5, 1, 0), ("tenant", "t00", 1_000, 1, 0)));
    assert_eq!(shown[23..], [("tenant", "t22", 978, 1, 0), ("tenant", "[other]", rest + 60_000, 18, 0)]);
}

/// More keys than there are rows: the twelve of most bytes have rows, and room for values.
#[test]
fn of_thirty_keys_the_largest_have_rows() {
    let fake = Fake::new();
    let keys: Vec<&'static str> = (0..30).map(|key| &*format!("k{key:02}").leak()).collect();
    for (at, key) in (0..).zip(&keys) {
        fake.holds_in(2 + 2 * at, &[(key, "a")], 100 + u64::from(at), 1);
        fake.holds_in(3 + 2 * at, &[(key, "b")], 50, 1);
    }
    let report = fake.collector(25, 300).collect();
    let shown = rows(&report.scopes);
    assert_eq!(shown.len(), 24);
    assert_eq!(shown[..2], [("k18", "a", 118, 1, 0), ("k18", "b", 50, 1, 0)]);
    assert_eq!(shown[22..], [("k29", "a", 129, 1, 0), ("k29", "b", 50, 1, 0)]);
}

#[test]
fn many_small_keys_do_not_hide_the_values_of_a_large_one() {
    let fake = Fake::new();
    for (id, tenant, bytes) in [(2, "a", 50_000), (3, "b", 40_000), (4, "[other]", 30_000)] {
        fake.holds_in(id, &[("tenant", tenant)], bytes, 1);
    }
    for key in 0..99_u32 {
        let name: &'static str = format!("k{key:02}").leak();
        (0..4).for_each(|value| fake.holds_in(10 + 4 * key + value, &[(name, &value.to_string())], 10, 1));
    }
    let collector = fake.collector(25, 300);
    let report = collector.collect_following(200);
    let shown = rows(&report.scopes);
    assert_eq!(shown.len(), 25);
    let of_tenants =
        [("tenant", "a", 50_000, 1, 0), ("tenant", "b", 40_000, 1, 0), ("tenant", "[other]", 30_000, 1, 0)];
    assert_eq!(shown[22..], of_tenants);
    assert_eq!(rows(&report.followed_scopes)[22..], of_tenants);
}

/// A pair of hardly more bytes does not take the place of one that has series.
#[test]
fn a_pair_that_was_chosen_stays_until_another_has_a_tenth_more() {
    let fake = Fake::new();
    for id in 0..30_u32 {
        fake.holds_in(2 + id, &[("tenant", &format!("t{id:02}"))], 1_000 - u64::from(id), 1);
    }
    let collector = fake.collector(25, 300);
    let has_last = || rows(&collector.collect().scopes).iter().any(|row| row.1 == "t29");
    assert!(!has_last());
    fake.at(10);
    fake.holds_in(31, &[("tenant", "t29")], 1_050, 1);
    assert!(!has_last());
    fake.at(20);
    fake.holds_in(31, &[("tenant", "t29")], 1_200, 1);
    assert!(has_last());
}

/// A recorder cannot take a series back, so each pair that was shown once is there from then on; later ones are in the rest.
#[test]
fn pairs_that_are_followed_stay_and_add_up() {
    let fake = Fake::new();
    let collector = fake.collector(25, 300);
    let mut holds = BTreeMap::new();
    let mut most = 0;
    for cycle in 0..240_u64 {
        fake.at(60 * cycle);
        for step in 0..5 {
            let id = ((cycle * 37 + step * 11) % 160) as u32;
            let bytes = if step == 4 { 0 } else { (cycle * 7_919 + step * 104_729) % 100_000 };
            fake.holds_in(2 + id, &[("tenant", &format!("t{id}"))], bytes, u64::from(bytes > 0));
            holds.insert(format!("t{id}"), bytes);
        }
        let report = collector.collect_following(200);
        check(&report);
        let followed = rows(&report.followed_scopes);
        assert_eq!(followed.iter().map(|row| row.2).sum::<u64>(), holds.values().sum::<u64>());
        for (_, value, bytes, ..) in followed.iter().filter(|row| row.1 != "[other]") {
            assert_eq!(holds[*value], *bytes, "{value} in cycle {cycle}");
        }
        assert!((most..=101).contains(&followed.len()), "a pair was lost or the limit passed");
        most = followed.len();
        for row in rows(&report.scopes).iter().filter(|row| row.1 != "[other]" && most < 100) {
            assert!(followed.contains(row), "{row:?}");
        }
    }
    assert!(most >= 99, "{most}");
}

#[test]
fn estimates_have_errors_and_no_key_holds_more_than_there_is() {
    let fake = Fake::new();
    fake.holds_in(2, &[("tenant", "acme")], 30_000, 300);
    fake.is_sampled(2, 3_000.0);
    fake.holds_in(3, &[("tenant", "acme"), ("route", "/a")], 40_000, 400);
    fake.is_sampled(3, 4_000.0);
    fake.truly_holds(60_000, 600);
    let report = fake.collector(25, 300).collect();
    let shown: Vec<_> =
        report.scopes.iter().map(|row| (row.key(), row.live.now.bytes, row.live_stderr_bytes)).collect();
    assert_eq!(shown, [("route", 40_000, 4_000), ("tenant", 60_000, 5_000)]);
}

#[test]
fn comparisons_and_views_can_be_of_one_scope() {
    let fake = Fake::new();
    fake.holds(2, 10, 1_000, 1);
    fake.holds_in(3, &[("tenant", "acme")], 100, 1);
    fake.holds_in(4, &[("tenant", "acme")], 500, 1);
    let collector = fake.collector(25, 300);
    fake.at(10);
    fake.heap().stacks.remove(&4);
    fake.holds_in(3, &[("tenant", "acme")], 300, 3);
    fake.holds_in(5, &[("tenant", "b")], 20, 2);

    let Compared { new, old, total, .. } = collector.compare(Since::First).unwrap();
    let by_scope = new.compare_to(&old, GroupBy::Scope);
    let shown: Vec<_> = by_scope.iter().map(|row| (row.name(), row.size, row.size_diff, row.count)).collect();
    assert_eq!(shown, [("tenant=acme".into(), 300, -300, 3), ("tenant=b".into(), 20, 20, 2)]);
    let top = new.top_scopes(&old, by_scope, 1, Some(total));
    assert_eq!((top.total.size, top.other.size, top.other.size_diff), (1_320, 1_020, 20));

    let query = |scope: &str| ViewQuery {
        at: None,
        since: Since::First,
        nearest: false,
        scope: Some(scope.parse().unwrap()),
        older_than: None,
    };
    let of_acme = collector.sites(query("tenant:acme"), Order::Size, 10, 2).unwrap();
    let shown: Vec<_> =
        of_acme.rows.iter().map(|row| (row.site.line, row.totals.size, row.totals.size_diff)).collect();
    assert_eq!(shown, [(3, 300, 200), (4, 0, -500)]);
    assert_eq!(of_acme.rows[0].history, [100, 300]);
    assert_eq!((of_acme.total.size, of_acme.total.size_diff, of_acme.other.size), (300, -300, 0));
    let mut stacks = collector.stacks(query("tenant:b")).unwrap();
    assert!(collector.stacks_slice(&mut stacks, false, |_| true));
    let held: Vec<u64> = stacks.held.iter().map(|held| held.totals.size).collect();
    assert_eq!((held, stacks.total.size), (vec![20], 20));

    let all = collector.scopes(ViewQuery { scope: None, ..query("a:b") }, Order::Size, 1).unwrap();
    let first = &all.rows[0];
    assert_eq!((&*first.pair.0, &*first.pair.1, first.totals.size_diff), ("tenant", "acme", -300));
    assert_eq!((all.rows.len(), all.pairs, all.total.size), (1, 2, 1_320));
    let second = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert_eq!((second(all.times.since), second(all.times.taken_at)), (0, 10));
    assert_eq!((first.stderr, first.diff_stderr), (0, 0));
    assert_eq!(collector.overview().scopes, 2);
}

/// A million tenants over a week: the labels of those that are gone go with the baselines that had them.
#[test]
fn labels_go_with_the_last_baseline() {
    let fake = Fake::new();
    let collector = fake.collector(25, 300);
    for minute in 0..2_000_u64 {
        fake.at(60 * minute);
        fake.heap().stacks.clear();
        let number = minute as u32;
        fake.holds_in(2 + number, &[("tenant", &format!("t{number}"))], 100, 1);
        collector.tick();
    }
    let live = Live { bytes: 100, blocks: 1 };
    let report = collector.collect();
    assert_eq!((report.scopes.len(), report.scopes[0].live.now), (1, live));
    assert!(collector.lock().labels.len() < 300, "{}", collector.lock().labels.len());
}
