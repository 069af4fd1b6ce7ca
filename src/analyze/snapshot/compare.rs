//! Computes rows from snapshots: statistics of one and differences of two.
//!
//! Pure functions on values, for any thread, with `tracemalloc`'s numbers and order.

use crate::analyze::snapshot::group::{GroupBy, Key, groups};
use crate::analyze::snapshot::order::Order;
use crate::analyze::snapshot::statistic::{Statistic, StatisticDiff, Top, Totals};
use crate::analyze::snapshot::{Snapshot, Trace};
use crate::record::control;
#[cfg(any(feature = "http", test))]
use std::collections::HashMap;
use std::collections::HashSet;

impl Snapshot {
    /// Adds traces up by group: most bytes first, then most blocks, then by name from the end.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// use heapgauge::{GroupBy, Snapshot};
    ///
    /// let kept = vec![1u8; 100_000];
    /// let first = &Snapshot::take()?.statistics(GroupBy::Line)[0];
    /// assert_eq!((first.size, first.count), (100_000, 1));
    /// # drop(kept);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn statistics(&self, group_by: GroupBy) -> Vec<Statistic> {
        let _own = control::internal();
        let mut rows: Vec<Statistic> = groups(self, group_by)
            .into_iter()
            .map(|(key, group)| Statistic {
                stderr: group.stderr(),
                traceback: group.traceback,
                size: group.size,
                count: group.count,
                key,
            })
            .collect();
        rows.sort_by(|a, b| (b.size, b.count, &b.key).cmp(&(a.size, a.count, &a.key)));
        rows
    }

    /// Compares each group with an `old` snapshot: the largest change first, in either direction. Groups that
    /// are gone have rows too.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// use heapgauge::{GroupBy, Snapshot};
    ///
    /// let kept = vec![1u8; 100_000];
    /// let old = Snapshot::take()?;
    /// drop(kept);
    /// let first = &Snapshot::take()?.compare_to(&old, GroupBy::Line)[0];
    /// assert_eq!((first.size_diff, first.count_diff), (-100_000, -1));
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn compare_to(&self, old: &Snapshot, group_by: GroupBy) -> Vec<StatisticDiff> {
        let _own = control::internal();
        let mut before = groups(old, group_by);
        let mut rows: Vec<StatisticDiff> = Vec::new();
        for (key, group) in groups(self, group_by) {
            let old = before.remove(&key);
            let (old_size, old_count, old_variance) =
                old.map_or((0, 0, 0.0), |old| (old.size, old.count, old.variance));
            rows.push(StatisticDiff {
                stderr: group.stderr(),
                diff_stderr: (group.variance + old_variance).sqrt().round() as u64,
                traceback: group.traceback,
                size: group.size,
                size_diff: difference(group.size, old_size),
                count: group.count,
                count_diff: difference(group.count, old_count),
                key,
            });
        }
        rows.extend(before.into_iter().map(|(key, group)| StatisticDiff {
            stderr: 0,
            diff_stderr: group.stderr(),
            traceback: group.traceback,
            size: 0,
            size_diff: difference(0, group.size),
            count: 0,
            count_diff: difference(0, group.count),
            key,
        }));
        Order::Diff.sort(&mut rows);
        rows
    }

    /// Returns the live blocks of the traces that `is_counted` accepts, and their change since `old`.
    #[cfg_attr(not(feature = "http"), allow(dead_code))]
    fn totals_since(&self, old: &Snapshot, is_counted: impl Fn(&Trace) -> bool) -> Totals {
        let [now, then] = [self, old].map(|snapshot| {
            let counted = snapshot.traces().iter().filter(|trace| is_counted(trace));
            counted.fold((0_u64, 0_u64), |(size, count), trace| {
                (size.saturating_add(trace.size), count.saturating_add(trace.count))
            })
        });
        Totals {
            size: now.0,
            size_diff: difference(now.0, then.0),
            count: now.1,
            count_diff: difference(now.1, then.1),
        }
    }

    /// Keeps the first `n` rows of a comparison by scope, which may overlap: *other* are the blocks that are in none of them.
    /// `total` is the exact total of all blocks, where it is known.
    #[cfg_attr(not(feature = "http"), allow(dead_code))]
    pub(crate) fn top_scopes(
        &self,
        old: &Snapshot,
        rows: Vec<StatisticDiff>,
        n: usize,
        total: Option<Totals>,
    ) -> Top {
        let rows = Top::of(rows, n).rows;
        let shown: HashSet<&Key> = rows.iter().map(|row| &row.key).collect();
        let is_shown = |trace: &Trace| {
            let mut pairs = trace.scope.pairs().iter().cloned();
            pairs.any(|(key, value)| shown.contains(&Key::Scope(key, value)))
        };
        let covered = self.totals_since(old, is_shown);
        let (other, total) = covered.beside(total.unwrap_or_else(|| self.totals_since(old, |_| true)));
        Top { rows, other, total }
    }
}

/// Values of traces, by the rows that these are added up to.
#[cfg(any(feature = "http", test))]
impl Snapshot {
    /// Returns the sums of two values of each trace, by row. `values` are in the order of the traces.
    pub(crate) fn sums_of_rows(
        &self,
        rows: &[StatisticDiff],
        group_by: GroupBy,
        values: impl Iterator<Item = (u64, u64)>,
    ) -> Vec<(u64, u64)> {
        let traces = self.traces().iter().zip(values).filter(|(_, values)| *values != (0, 0));
        let traces = traces.map(|(trace, (size, count))| Trace { size, count, ..trace.clone() }).collect();
        let sums = groups(&Snapshot::of(self.taken_at(), self.traceback_limit(), traces), group_by);
        let sum = |row: &StatisticDiff| sums.get(&row.key).map_or((0, 0), |group| (group.size, group.count));
        rows.iter().map(sum).collect()
    }

    /// Returns the largest value of the traces of each row. `values` are in the order of the traces.
    pub(crate) fn largest_of_rows(
        &self,
        rows: &[StatisticDiff],
        group_by: GroupBy,
        values: impl Iterator<Item = Option<f64>>,
    ) -> Vec<Option<f64>> {
        let mut largest: HashMap<Key, f64> = HashMap::new();
        for (trace, value) in self.traces().iter().zip(values) {
            let Some(value) = value else { continue };
            let one = Snapshot::of(self.taken_at(), self.traceback_limit(), vec![trace.clone()]);
            for key in groups(&one, group_by).into_keys() {
                let most = largest.entry(key).or_insert(value);
                *most = most.max(value);
            }
        }
        rows.iter().map(|row| largest.get(&row.key).copied()).collect()
    }
}

/// Returns the difference of two 64-bit numbers. Files may hold any, and the difference may need a 65th bit.
fn difference(new: u64, old: u64) -> i64 {
    let difference = i128::from(new) - i128::from(old);
    difference.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::frame::{Frame, Traceback};
    use std::time::SystemTime;

    #[test]
    fn values_of_traces_are_added_up_by_row() {
        let trace = |line, size| Trace {
            domain: 0,
            size,
            count: 1,
            stderr: 0,
            traceback: Traceback::new([Frame::new(Some("app::load"), "a.rs", line)]),
            scope: Default::default(),
        };
        let snapshot =
            Snapshot::of(SystemTime::UNIX_EPOCH, 32, vec![trace(1, 10), trace(2, 20), trace(1, 40)]);
        let rows = snapshot.compare_to(&Snapshot::of(SystemTime::UNIX_EPOCH, 32, Vec::new()), GroupBy::Line);
        assert_eq!(rows.iter().map(|row| row.name().into_owned()).collect::<Vec<_>>(), ["a.rs:1", "a.rs:2"]);
        let values = [(1, 2), (0, 0), (4, 8)];
        assert_eq!(snapshot.sums_of_rows(&rows, GroupBy::Line, values.into_iter()), [(5, 10), (0, 0)]);
        let scores = [Some(0.5), None, Some(0.75)];
        assert_eq!(snapshot.largest_of_rows(&rows, GroupBy::Line, scores.into_iter()), [Some(0.75), None]);
    }
}
