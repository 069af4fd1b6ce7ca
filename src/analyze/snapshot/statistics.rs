//! Snapshots → rows: grouped, compared, ordered and cut, with `tracemalloc`'s numbers and order.
//!
//! Pure functions on values, for any thread. Grouping 10,000 tracebacks takes a few milliseconds.
//!
//! Differences from `tracemalloc`: cumulative statistics count a frame that recurs in a traceback once; there is
//! an order by signed growth beside the one by absolute change; groups by function and by crate; a group of
//! several blocks comes from one trace with a count.
#![forbid(unsafe_code)]

use crate::analyze::frame::{Frame, Traceback, UNKNOWN, format_size};
use crate::analyze::snapshot::{Snapshot, Trace};
use crate::base::error::Error;
use crate::record::control;
use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// What the traces of one row have in common.
///
/// The cumulative ones count a trace for each of its frames, not only for the most recent; a frame that occurs
/// several times in a traceback counts once.
///
/// # Examples
///
/// ```
/// use heapgauge::GroupBy;
///
/// assert_eq!("line".parse::<GroupBy>()?, GroupBy::Line);
/// assert_eq!(GroupBy::Line.cumulative()?, GroupBy::CumulativeLine);
/// let error = GroupBy::Traceback.cumulative().unwrap_err();
/// assert_eq!(error.to_string(), "cumulative: not for traceback, allowed are file, line, function, crate");
/// # Ok::<(), heapgauge::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GroupBy {
    /// The file of the most recent frame; rows show line 0.
    File,
    /// File and line of the most recent frame. Without line tables these are the same everywhere: group by
    /// function then.
    Line,
    /// The function of the most recent frame.
    Function,
    /// The crate of the most recent frame's function.
    Crate,
    /// All frames.
    Traceback,
    /// The file of any frame.
    CumulativeFile,
    /// File and line of any frame.
    CumulativeLine,
    /// The function of any frame.
    CumulativeFunction,
    /// The crate of any frame's function.
    CumulativeCrate,
}

impl GroupBy {
    /// The same grouping over all frames of a traceback.
    ///
    /// # Examples
    ///
    /// ```
    /// use heapgauge::GroupBy;
    ///
    /// assert_eq!(GroupBy::File.cumulative()?, GroupBy::CumulativeFile);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// For [`GroupBy::Traceback`], which is all frames already.
    pub fn cumulative(self) -> Result<GroupBy, Error> {
        match self {
            GroupBy::File | GroupBy::CumulativeFile => Ok(GroupBy::CumulativeFile),
            GroupBy::Line | GroupBy::CumulativeLine => Ok(GroupBy::CumulativeLine),
            GroupBy::Function | GroupBy::CumulativeFunction => Ok(GroupBy::CumulativeFunction),
            GroupBy::Crate | GroupBy::CumulativeCrate => Ok(GroupBy::CumulativeCrate),
            GroupBy::Traceback => {
                Err(Error::new("cumulative: not for traceback, allowed are file, line, function, crate"))
            }
        }
    }

    fn is_cumulative(self) -> bool {
        use GroupBy::{CumulativeCrate, CumulativeFile, CumulativeFunction, CumulativeLine};
        matches!(self, CumulativeFile | CumulativeLine | CumulativeFunction | CumulativeCrate)
    }
}

impl FromStr for GroupBy {
    type Err = Error;

    fn from_str(text: &str) -> Result<GroupBy, Error> {
        match text {
            "file" => Ok(GroupBy::File),
            "line" => Ok(GroupBy::Line),
            "function" => Ok(GroupBy::Function),
            "crate" => Ok(GroupBy::Crate),
            "traceback" => Ok(GroupBy::Traceback),
            _ => Err(Error::new(format_args!(
                "group by: {text:?} is not known, allowed are file, line, function, crate, traceback"
            ))),
        }
    }
}

/// What a row is about; orders as `tracemalloc` orders the tracebacks of its rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Key {
    File(Arc<str>),
    Line(Arc<str>, u32),
    Name(Arc<str>),
    Traceback(Traceback),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::File(file) => write!(f, "{file}:0"),
            Key::Line(file, line) => write!(f, "{file}:{line}"),
            Key::Name(name) => f.write_str(name),
            Key::Traceback(traceback) => traceback.fmt(f),
        }
    }
}

/// The live blocks of one group.
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
    /// Grouped by traceback all frames, else one frame that holds what the group has in common.
    pub traceback: Traceback,
    /// Live bytes.
    pub size: u64,
    /// Live blocks.
    pub count: u64,
    /// Standard error of `size` in bytes where it is an [estimate](crate::sampling), 0 where it is exact.
    pub stderr: u64,
    key: Key,
}

impl Statistic {
    /// What the group is called: `src/cache.rs:42`, a function, or a crate.
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
        name(&self.key)
    }
}

impl fmt::Display for Statistic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (size, give) = (format_size(self.size as f64, false), Give(self.stderr));
        write!(f, "{}: size={size}{give}, count={}", self.key, self.count)?;
        write_average(f, self.size, self.count)
    }
}

/// The live blocks of one group, and how they differ from an earlier snapshot.
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
    /// As in [`Statistic::traceback`].
    pub traceback: Traceback,
    /// Live bytes in the later snapshot.
    pub size: u64,
    /// Live bytes gained or lost.
    pub size_diff: i64,
    /// Live blocks in the later snapshot.
    pub count: u64,
    /// Live blocks gained or lost.
    pub count_diff: i64,
    /// Standard error of `size` in bytes where it is an [estimate](crate::sampling), 0 where it is exact.
    pub stderr: u64,
    /// At most how large the standard error of `size_diff` is: blocks that are in both snapshots add nothing
    /// to it in truth, and are counted here because they cannot be told from those that are not.
    pub diff_stderr: u64,
    key: Key,
}

impl StatisticDiff {
    /// As [`Statistic::name`].
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
        name(&self.key)
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

/// A standard error in bytes, behind what it is the error of; nothing where that is exact.
struct Give(u64);

impl fmt::Display for Give {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            error => write!(f, " ± {}", format_size(error as f64, false)),
        }
    }
}

fn name(key: &Key) -> Cow<'_, str> {
    match key {
        Key::Name(name) => Cow::Borrowed(name),
        key => Cow::Owned(key.to_string()),
    }
}

fn write_average(f: &mut fmt::Formatter<'_>, size: u64, count: u64) -> fmt::Result {
    match count {
        0 => Ok(()),
        _ => write!(f, ", average={}", format_size(size as f64 / count as f64, false)),
    }
}

/// By what rows are ordered, largest first; ties as in `tracemalloc`, down to the group's name.
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
    /// Signed change of bytes: what grew comes first and what shrank last.
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
    /// What rows with these figures are ordered by.
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

/// The four figures of several rows together.
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

    /// What rows that add up to this leave of an exact total, and that total. Where rows are estimates and hold
    /// more than all there is, nothing is left and the total is theirs.
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

/// The first rows, and what they leave out.
///
/// # Examples
///
/// See [`top`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Top {
    /// In the order they were given.
    pub rows: Vec<StatisticDiff>,
    /// All rows that are not in `rows`.
    pub other: Totals,
    /// All rows; what `rows` and `other` add up to.
    pub total: Totals,
}

/// Keeps the first `n` rows and adds up the others.
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// use heapgauge::{GroupBy, Snapshot, Totals, top};
///
/// let snapshot = Snapshot::take()?;
/// let top = top(snapshot.compare_to(&snapshot, GroupBy::Line), 1);
/// assert_eq!(top.rows[0].size + top.other.size, top.total.size);
/// # Ok::<(), heapgauge::Error>(())
/// ```
pub fn top(mut rows: Vec<StatisticDiff>, n: usize) -> Top {
    let _own = control::own();
    let total = Totals::of(&rows);
    let rest = rows.split_off(n.min(rows.len()));
    Top { rows, other: Totals::of(&rest), total }
}

impl Top {
    /// The same, where rows are estimates and this is the exact total. What rows leave of it is *other*; where
    /// they are estimated to hold more than all there is, *other* is nothing and the total is theirs.
    #[cfg_attr(not(feature = "http"), allow(dead_code))]
    pub(crate) fn of_total(mut self, total: Totals) -> Top {
        (self.other, self.total) = Totals::of(&self.rows).beside(total);
        self
    }
}

/// A group while it is being added up.
struct Group {
    traceback: Traceback,
    size: u64,
    count: u64,
    /// Of the size, bytes squared.
    variance: f64,
}

impl Group {
    fn stderr(&self) -> u64 {
        self.variance.sqrt().round() as u64
    }
}

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
        let _own = control::own();
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

    /// How each group differs from an `old` snapshot: the largest change first, in either direction. Groups that
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
        let _own = control::own();
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

/// Files may hold any 64-bit number; the difference of two may need a 65th bit.
fn difference(new: u64, old: u64) -> i64 {
    let difference = i128::from(new) - i128::from(old);
    difference.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

fn groups(snapshot: &Snapshot, group_by: GroupBy) -> HashMap<Key, Group> {
    let mut groups = HashMap::new();
    let mut seen_frames: HashSet<(&str, u32)> = HashSet::new();
    let mut seen_names: HashSet<Arc<str>> = HashSet::new();
    for trace in snapshot.traces() {
        let frames = trace.traceback.frames();
        if group_by == GroupBy::Traceback {
            add(&mut groups, Key::Traceback(trace.traceback.clone()), trace, &frames[0]);
            continue;
        }
        seen_frames.clear();
        seen_names.clear();
        let considered = if group_by.is_cumulative() { frames } else { &frames[..1] };
        for frame in considered {
            let key = match group_by {
                GroupBy::File | GroupBy::CumulativeFile => Key::File(frame.file.clone()),
                // Without line tables functions are what tells frames apart; without symbols, offsets.
                GroupBy::Line | GroupBy::CumulativeLine if is_named_only(frame) => {
                    Key::Name(frame.name().into())
                }
                GroupBy::Line | GroupBy::CumulativeLine => Key::Line(frame.file.clone(), frame.line),
                GroupBy::Crate | GroupBy::CumulativeCrate => Key::Name(frame.krate().into()),
                _ => Key::Name(frame.name().into()),
            };
            // `tracemalloc` adds a trace once for each frame; so do we, but for frames that recur. Functions
            // and crates, which it does not know, count once whichever of their lines occur.
            let is_new = match &key {
                Key::Name(name) => seen_names.insert(name.clone()),
                _ => seen_frames.insert((&frame.file, frame.line)),
            };
            if is_new {
                add(&mut groups, key, trace, frame);
            }
        }
    }
    groups
}

/// Whether a frame has a name, be it a module and an offset, but no line.
fn is_named_only(frame: &Frame) -> bool {
    *frame.file == *UNKNOWN && frame.line == 0 && (frame.function.is_some() || frame.module.is_some())
}

fn add(groups: &mut HashMap<Key, Group>, key: Key, trace: &Trace, frame: &Frame) {
    let &Trace { size, count, .. } = trace;
    let variance = (trace.stderr as f64).powi(2);
    match groups.entry(key) {
        Entry::Occupied(mut group) => {
            let key = group.key().clone();
            let group = group.get_mut();
            group.size = group.size.saturating_add(size);
            group.count = group.count.saturating_add(count);
            group.variance += variance;
            narrow(&key, group, frame);
        }
        Entry::Vacant(place) => {
            let traceback = shown(place.key(), frame);
            place.insert(Group { traceback, size, count, variance });
        }
    }
}

/// The one frame that shows what a group has in common, as long as that is one frame.
fn shown(key: &Key, frame: &Frame) -> Traceback {
    let frame = match key {
        Key::Traceback(traceback) => return traceback.clone(),
        Key::File(file) => Frame { file: file.clone(), ..Frame::new(None, "", 0) },
        Key::Line(..) => frame.clone(),
        Key::Name(name) if **name == *frame.name() => Frame { line: 0, ..frame.clone() },
        Key::Name(_) => Frame::new(None, UNKNOWN, 0),
    };
    Traceback::new([frame])
}

/// Forgets what one more frame of the group does not share: the function of a line, the file of a function.
fn narrow(key: &Key, group: &mut Group, frame: &Frame) {
    let shown = group.traceback.most_recent();
    let narrower = match key {
        Key::Line(..) if shown.name() != frame.name() => Frame::new(None, &shown.file, shown.line),
        Key::Name(_) if *shown.file != *UNKNOWN && shown.file != frame.file => {
            Frame { file: UNKNOWN.into(), ..shown.clone() }
        }
        _ => return,
    };
    group.traceback = Traceback::new([narrower]);
}
