//! Rows of statistics: one group of live blocks, its difference from an earlier snapshot, and sums of rows.

use crate::analyze::frame::{Traceback, format_size};
use crate::analyze::snapshot::group::Key;
use crate::record::control;
use std::borrow::Cow;
use std::fmt;

/// Live blocks of one group.
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// use heapgauge::{GroupBy, Snapshot};
///
/// for statistic in Snapshot::take()?.statistics(GroupBy::Line).iter().take(10) {
///     println!("{statistic}");
/// }
/// # Ok::<(), heapgauge::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistic {
    /// All frames if grouped by traceback, else one frame with the common part of the group; of a scope an unknown one.
    pub traceback: Traceback,
    /// Live bytes.
    pub size: u64,
    /// Live blocks.
    pub count: u64,
    /// Standard error of `size` in bytes where it is an [estimate](crate::docs::sampling), 0 where it is exact.
    pub stderr: u64,
    pub(super) key: Key,
}

impl Statistic {
    /// Returns the name of the group: `src/cache.rs:42`, a function, a crate, or a scope as `tenant=acme`.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// use heapgauge::{GroupBy, Snapshot};
    ///
    /// for statistic in Snapshot::take()?.statistics(GroupBy::File) {
    ///     assert_eq!(statistic.name(), statistic.traceback.to_string());
    /// }
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn name(&self) -> Cow<'_, str> {
        self.key.name()
    }
}

impl fmt::Display for Statistic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (size, give) = (format_size(self.size as f64, false), Give(self.stderr));
        write!(f, "{}: size={size}{give}, count={}", self.key, self.count)?;
        write_average(f, self.size, self.count)
    }
}

/// Live blocks of one group, and their difference from an earlier snapshot.
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// use heapgauge::{GroupBy, Snapshot};
///
/// let before = Snapshot::take()?;
/// let kept: Vec<u8> = Vec::with_capacity(5000);
/// let after = Snapshot::take()?;
/// let first = &after.compare_to(&before, GroupBy::Line)[0];
/// assert!(first.to_string().contains("size=5000 B (+5000 B), count=1 (+1), average=5000 B"));
/// # drop(kept);
/// # Ok::<(), heapgauge::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StatisticDiff {
    /// Traceback as in [`Statistic::traceback`].
    pub traceback: Traceback,
    /// Live bytes in the later snapshot.
    pub size: u64,
    /// Live bytes gained or lost.
    pub size_diff: i64,
    /// Live blocks in the later snapshot.
    pub count: u64,
    /// Live blocks gained or lost.
    pub count_diff: i64,
    /// Standard error of `size` in bytes where it is an [estimate](crate::docs::sampling), 0 where it is exact.
    pub stderr: u64,
    /// Upper bound of the standard error of `size_diff`: blocks that are in both snapshots add nothing
    /// to it in truth, and are counted here because they cannot be told from those that are not.
    pub diff_stderr: u64,
    pub(super) key: Key,
}

impl StatisticDiff {
    /// Returns the name of the group, as [`Statistic::name`] does.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// use heapgauge::{GroupBy, Snapshot};
    ///
    /// let snapshot = Snapshot::take()?;
    /// for row in snapshot.compare_to(&snapshot, GroupBy::File) {
    ///     assert_eq!(row.name(), row.traceback.to_string());
    /// }
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn name(&self) -> Cow<'_, str> {
        self.key.name()
    }
}

impl fmt::Display for StatisticDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: size={}{} ({}{}), count={} ({:+})",
            self.key,
            format_size(self.size as f64, false),
            Give(self.stderr),
            format_size(self.size_diff as f64, true),
            Give(self.diff_stderr),
            self.count,
            self.count_diff
        )?;
        write_average(f, self.size, self.count)
    }
}

/// Prints a standard error in bytes behind its value; nothing where that is exact.
struct Give(u64);

impl fmt::Display for Give {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            error => write!(f, " ± {}", format_size(error as f64, false)),
        }
    }
}

fn write_average(f: &mut fmt::Formatter<'_>, size: u64, count: u64) -> fmt::Result {
    match count {
        0 => Ok(()),
        _ => write!(f, ", average={}", format_size(size as f64 / count as f64, false)),
    }
}

/// Four figures of several rows together.
///
/// # Examples
///
/// ```
/// let none = heapgauge::Totals::of(&[]);
/// assert_eq!((none.size, none.size_diff, none.count, none.count_diff), (0, 0, 0, 0));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Totals {
    /// Live bytes.
    pub size: u64,
    /// Live bytes gained or lost.
    pub size_diff: i64,
    /// Live blocks.
    pub count: u64,
    /// Live blocks gained or lost.
    pub count_diff: i64,
}

impl Totals {
    /// Adds rows up.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// use heapgauge::{GroupBy, Snapshot, Totals};
    ///
    /// let snapshot = Snapshot::take()?;
    /// let rows = snapshot.compare_to(&snapshot, GroupBy::Line);
    /// let total = Totals::of(&rows);
    /// assert_eq!(total.size, snapshot.traces().iter().map(|trace| trace.size).sum::<u64>());
    /// assert_eq!((total.size_diff, total.count_diff), (0, 0));
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn of(rows: &[StatisticDiff]) -> Totals {
        rows.iter().fold(
            Totals::default(),
            |sum, &StatisticDiff { size, size_diff, count, count_diff, .. }| {
                sum.plus(Totals { size, size_diff, count, count_diff })
            },
        )
    }

    /// Returns the remainder of an exact total beside rows that add up to this, and that total. Where rows are
    /// estimates and hold more than all there is, nothing is left and the total is theirs.
    #[cfg_attr(not(feature = "http"), allow(dead_code))]
    pub(crate) fn beside(self, total: Totals) -> (Totals, Totals) {
        let other = Totals {
            size: total.size.saturating_sub(self.size),
            size_diff: total.size_diff.saturating_sub(self.size_diff),
            count: total.count.saturating_sub(self.count),
            count_diff: total.count_diff.saturating_sub(self.count_diff),
        };
        (other, Totals { size: total.size.max(self.size), count: total.count.max(self.count), ..total })
    }

    pub(crate) fn plus(self, other: Totals) -> Totals {
        Totals {
            size: self.size.saturating_add(other.size),
            size_diff: self.size_diff.saturating_add(other.size_diff),
            count: self.count.saturating_add(other.count),
            count_diff: self.count_diff.saturating_add(other.count_diff),
        }
    }
}

/// First rows, and the sums of the others.
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// use heapgauge::{GroupBy, Snapshot, Top};
///
/// let snapshot = Snapshot::take()?;
/// let top = Top::of(snapshot.compare_to(&snapshot, GroupBy::Line), 1);
/// assert_eq!(top.rows[0].size + top.other.size, top.total.size);
/// # Ok::<(), heapgauge::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Top {
    /// Rows in the order they were given.
    pub rows: Vec<StatisticDiff>,
    /// All rows that are not in `rows`.
    pub other: Totals,
    /// Sum of all rows: of `rows` and `other`.
    pub total: Totals,
}

impl Top {
    /// Keeps the first `n` rows and adds up the others.
    ///
    /// # Examples
    ///
    /// ```
    /// let top = heapgauge::Top::of(Vec::new(), 10);
    /// assert_eq!((top.rows.len(), top.total.size), (0, 0));
    /// ```
    pub fn of(mut rows: Vec<StatisticDiff>, n: usize) -> Top {
        let _own = control::internal();
        let total = Totals::of(&rows);
        let rest = rows.split_off(n.min(rows.len()));
        Top { rows, other: Totals::of(&rest), total }
    }

    /// Sets the exact total where rows are estimates. The remainder beside the rows is *other*; where
    /// they are estimated to hold more than all there is, *other* is nothing and the total is theirs.
    #[cfg_attr(not(feature = "http"), allow(dead_code))]
    pub(crate) fn of_total(mut self, total: Totals) -> Top {
        (self.other, self.total) = Totals::of(&self.rows).beside(total);
        self
    }
}
