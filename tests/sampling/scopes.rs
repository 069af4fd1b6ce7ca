//! Tests that scopes are estimated as lines are: right on average, with their errors, and so that they add up to the line.
//!
//! The samples are the same in every run: the test seeds the choice of its thread.

use heapgauge::{Collector, GroupBy, Scope, Snapshot, Statistic};
use std::hint::black_box;

const INTERVAL: usize = 16 << 10;
const SIZE: usize = 256;
const COUNT: usize = 40_000;

#[inline(never)]
fn block() -> Box<[u8; SIZE]> {
    black_box(Box::new([1; SIZE]))
}

/// Returns the row of this name.
fn row(snapshot: &Snapshot, group_by: GroupBy, name: &str) -> Option<Statistic> {
    snapshot.statistics(group_by).into_iter().find(|row| row.name() == name)
}

#[test]
fn two_tenants_on_one_line_are_estimated_with_their_errors() {
    own_process!();
    heapgauge::set_sample_interval(INTERVAL).unwrap();
    heapgauge::seed_samples(24);
    let [acme, other] = ["acme", "other"].map(|name| Scope::new("tenant", name));
    let mut blocks = Vec::with_capacity(COUNT);
    for number in 0..COUNT {
        let tenant = if number % 10 == 0 { &other } else { &acme };
        blocks.push(tenant.in_scope(block));
    }
    let snapshot = Snapshot::take().unwrap();
    let probability = 1.0 - (-(SIZE as f64) / INTERVAL as f64).exp();
    let rows = [("acme", 9 * COUNT / 10), ("other", COUNT / 10)].map(|(tenant, count)| {
        let row = row(&snapshot, GroupBy::Scope, &format!("tenant={tenant}")).unwrap();
        let error = SIZE as f64 * (count as f64 * (1.0 - probability) / probability).sqrt();
        let off = row.size as f64 - (count * SIZE) as f64;
        assert!(off.abs() <= 3.0 * error, "{tenant}: {} for {}, error {error}", row.size, count * SIZE);
        // The error that is told is the actual one, as far as so many samples tell it.
        let samples = count as f64 * probability;
        let told = row.stderr as f64 / error;
        assert!((told - 1.0).abs() <= 2.0 / samples.sqrt(), "{tenant}: {} for {error}", row.stderr);
        row
    });
    let line = row(&snapshot, GroupBy::Function, "sampling::scopes::block").unwrap();
    // Each is rounded by itself.
    assert!(line.size.abs_diff(rows[0].size + rows[1].size) <= 2, "{line} {rows:?}");
    let report = Collector::new().collect();
    let shown: Vec<_> = report.scopes.iter().map(|row| (row.value(), row.live_stderr_bytes)).collect();
    assert_eq!(shown, [("acme", rows[0].stderr), ("other", rows[1].stderr)]);
    drop(blocks);
    assert!(Snapshot::take().unwrap().statistics(GroupBy::Scope).is_empty());
}
