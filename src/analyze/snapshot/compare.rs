//! Computes rows from snapshots: statistics of one and differences of two.
//!
//! Pure functions on values, for any thread, with `tracemalloc`'s numbers and order.

use crate::analyze::snapshot::Snapshot;
use crate::analyze::snapshot::group::{GroupBy, groups};
use crate::analyze::snapshot::order::Order;
use crate::analyze::snapshot::statistic::{Statistic, StatisticDiff};
use crate::record::control;

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
}

/// Returns the difference of two 64-bit numbers. Files may hold any, and the difference may need a 65th bit.
fn difference(new: u64, old: u64) -> i64 {
    let difference = i128::from(new) - i128::from(old);
    difference.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}
