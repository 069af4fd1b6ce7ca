//! Orders the rows of a comparison, with the ties of `tracemalloc`.

use crate::analyze::snapshot::statistic::StatisticDiff;
#[cfg(any(feature = "http", test))]
use crate::analyze::snapshot::statistic::Totals;
use crate::base::error::Error;
use std::str::FromStr;

/// Figure by which rows are ordered, largest first; ties as in `tracemalloc`, down to the group's name.
///
/// # Examples
///
/// ```
/// assert_eq!("growth".parse::<heapgauge::Order>()?, heapgauge::Order::Growth);
/// # Ok::<(), heapgauge::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Order {
    /// Absolute change of bytes, as `compare_to` returns them.
    Diff,
    /// Signed change of bytes: the largest growth comes first, the largest decrease last.
    Growth,
    /// Live bytes.
    Size,
    /// Live blocks.
    Count,
}

impl FromStr for Order {
    type Err = Error;

    fn from_str(text: &str) -> Result<Order, Error> {
        match text {
            "diff" => Ok(Order::Diff),
            "growth" => Ok(Order::Growth),
            "size" => Ok(Order::Size),
            "count" => Ok(Order::Count),
            _ => Err(Error::new(format_args!(
                "sort: {text:?} is not known, allowed are diff, growth, size, count"
            ))),
        }
    }
}

impl Order {
    /// Sorts rows.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// # #[global_allocator]
    /// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    /// use heapgauge::{GroupBy, Order, Snapshot};
    ///
    /// let before = Snapshot::take()?;
    /// let kept = vec![1u8; 5000];
    /// let mut rows = Snapshot::take()?.compare_to(&before, GroupBy::Line);
    /// Order::Growth.sort(&mut rows);
    /// assert_eq!(rows[0].size_diff, 5000);
    /// assert!(rows.is_sorted_by_key(|row| -row.size_diff));
    /// # drop(kept);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn sort(self, rows: &mut [StatisticDiff]) {
        let absolute = |row: &StatisticDiff| {
            (row.size_diff.unsigned_abs(), row.size, row.count_diff.unsigned_abs(), row.count)
        };
        match self {
            Order::Diff => rows.sort_by(|a, b| (absolute(b), &b.key).cmp(&(absolute(a), &a.key))),
            Order::Growth => {
                let signed = |row: &StatisticDiff| (row.size_diff, row.size, row.count_diff, row.count);
                rows.sort_by(|a, b| (signed(b), &b.key).cmp(&(signed(a), &a.key)));
            }
            Order::Size => {
                rows.sort_by(|a, b| (b.size, absolute(b), &b.key).cmp(&(a.size, absolute(a), &a.key)));
            }
            Order::Count => {
                rows.sort_by(|a, b| (b.count, absolute(b), &b.key).cmp(&(a.count, absolute(a), &a.key)));
            }
        }
    }
}

#[cfg(any(feature = "http", test))]
impl Order {
    /// Returns the sort key of rows with these figures.
    pub(crate) fn rank(self, totals: &Totals) -> (i128, u64, u64, i64) {
        let Totals { size, size_diff, count, count_diff } = *totals;
        let first = match self {
            Order::Diff => size_diff.unsigned_abs().into(),
            Order::Growth => i128::from(size_diff),
            Order::Size => size.into(),
            Order::Count => count.into(),
        };
        (first, size, count, count_diff)
    }
}
