//! Computes rows from snapshots: statistics of one and differences of two.
//!
//! Pure functions on values, for any thread, with `tracemalloc`'s numbers and order.

use crate::analyze::snapshot::group::{GroupBy, Key, groups};
use crate::analyze::snapshot::order::Order;
use crate::analyze::snapshot::statistic::{Statistic, StatisticDiff, Top, Totals};
use crate::analyze::snapshot::{Snapshot, Trace};
use crate::record::control;
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

/// Returns the difference of two 64-bit numbers. Files may hold any, and the difference may need a 65th bit.
fn difference(new: u64, old: u64) -> i64 {
    let difference = i128::from(new) - i128::from(old);
    difference.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}
