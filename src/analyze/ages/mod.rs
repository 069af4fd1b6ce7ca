//! Bounds of the live bytes that are older than an age, from looks at the counts of each id.
//!
//! Used under a lock. A look costs one pass over the stacks; see [`Marks`] for the memory.
#![forbid(unsafe_code)]

mod cohorts;
pub(crate) mod leak_score;
mod marks;

use std::ops::AddAssign;
use std::time::{Duration, Instant};

use crate::analyze::live::Live;
use crate::record::raw_snapshot::{RawSnapshot, RawStack};
use cohorts::Cohorts;
use leak_score::LeakScores;
pub(crate) use marks::HORIZON;
use marks::{Marks, Pace};

/// Ages by which the live bytes of a site are told apart.
pub(crate) const AGES: [Duration; 5] = [
    Duration::from_secs(60),
    Duration::from_secs(600),
    Duration::from_secs(3_600),
    Duration::from_secs(21_600),
    Duration::from_secs(86_400),
];
/// Age from which blocks count as old, by default, and the lowest one allowed.
pub(crate) const DEFAULT_OLD_AGE: Duration = Duration::from_secs(3_600);
pub(crate) const MIN_OLD_AGE: Duration = Duration::from_secs(1);
/// Longest time between two looks.
const LONGEST_SPACING: Duration = Duration::from_secs(15);

/// Live bytes in blocks that are older than an age, between two bounds. Both are the same where it is known exactly.
///
/// # Examples
///
/// ```
/// let report = heapgauge::Collector::new().collect();
/// for site in &report.sites {
///     assert!(site.old.lower_bytes <= site.old.upper_bytes);
///     assert!(site.old.upper_bytes <= site.live.now.bytes);
/// }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AgeBounds {
    /// Bytes that are surely older.
    pub lower_bytes: u64,
    /// Bytes that may be older; all others are surely younger.
    pub upper_bytes: u64,
}

impl From<AgeTotals> for AgeBounds {
    fn from(totals: AgeTotals) -> AgeBounds {
        AgeBounds { lower_bytes: totals.lower.bytes, upper_bytes: totals.upper.bytes }
    }
}

impl AgeBounds {
    /// Returns the bounds with neither above `most`: estimates that are shown were made to fit a total.
    pub(crate) fn at_most(self, most: u64) -> AgeBounds {
        AgeBounds { lower_bytes: self.lower_bytes.min(most), upper_bytes: self.upper_bytes.min(most) }
    }
}

/// Bounds of the live blocks that are older than an age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AgeTotals {
    pub lower: Live,
    pub upper: Live,
}

impl AddAssign for AgeTotals {
    fn add_assign(&mut self, other: AgeTotals) {
        self.lower += other.lower;
        self.upper += other.upper;
    }
}

/// Counts of a stack at the time of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StackNow {
    pub id: u32,
    pub live: Live,
    pub freed: Live,
}

impl StackNow {
    fn allocated(&self) -> Live {
        let mut allocated = self.freed;
        allocated += self.live;
        allocated
    }
}

impl From<&RawStack> for StackNow {
    fn from(stack: &RawStack) -> StackNow {
        let counts = stack.counts;
        let freed = Live { bytes: counts.freed_bytes, blocks: counts.freed_blocks };
        StackNow { id: stack.id, live: counts.into(), freed }
    }
}

/// Settings of ages, one for the process: the latest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AgeSettings {
    /// Age from which blocks count as old.
    pub old_age: Duration,
    /// Stacks get new ids where bounds are far apart.
    pub cohorts: bool,
}

impl AgeSettings {
    /// Returns the time between two looks.
    pub(crate) fn spacing(&self) -> Duration {
        (self.old_age / 10).clamp(MIN_OLD_AGE, LONGEST_SPACING)
    }
}

/// Looks at the counts of a heap, for the ages of its blocks; one for all collectors of the heap.
#[derive(Debug)]
pub(crate) struct Ages {
    pub settings: AgeSettings,
    /// Scores of the sites, by the looks of all collectors.
    pub scores: LeakScores,
    marks: Marks,
    cohorts: Cohorts,
    epoch: Option<u32>,
    /// Time of the latest snapshot.
    seen: Option<Instant>,
}

impl Ages {
    pub(crate) const fn new() -> Ages {
        let settings = AgeSettings { old_age: DEFAULT_OLD_AGE, cohorts: true };
        Ages {
            settings,
            scores: LeakScores::new(),
            marks: Marks::new(),
            cohorts: Cohorts::new(),
            epoch: None,
            seen: None,
        }
    }

    /// Returns the time until the next look; zero: now.
    pub(crate) fn due_in(&self, now: Instant) -> Duration {
        let since = |newest| now.saturating_duration_since(newest);
        self.marks
            .newest()
            .map_or(Duration::ZERO, |newest| self.settings.spacing().saturating_sub(since(newest)))
    }

    /// Forgets what belongs to another epoch than that of this snapshot. `began`: time before which nothing was allocated, where
    /// this is the first epoch.
    pub(crate) fn begin(&mut self, raw: &RawSnapshot, began: Option<Instant>) {
        let (before, seen) = (self.epoch.replace(raw.epoch), self.seen.replace(raw.taken));
        if before != Some(raw.epoch) {
            self.marks.clear(if before.is_none() { began } else { seen });
            self.cohorts.clear();
            self.scores.clear();
        }
    }

    /// Keeps a look of the present epoch, which was read until `read`, and returns the ids to renew. Marks hold up to `max_bytes`, of the
    /// `limit` of heapgauge.
    #[must_use]
    pub(crate) fn look(
        &mut self,
        raw: &RawSnapshot,
        read: Instant,
        max_bytes: usize,
        limit: u64,
    ) -> Vec<u32> {
        let stacks: Vec<StackNow> = raw.stacks.iter().map(StackNow::from).collect();
        let spacing = self.settings.spacing();
        let pace = Pace { spacing, old_age: self.settings.old_age };
        self.marks.push((raw.taken, read), &stacks, pace, max_bytes);
        if self.settings.cohorts { self.cohorts.choose(raw, spacing, limit) } else { Vec::new() }
    }

    /// Returns the age of the mark so many marks before the newest; `None`: there are fewer.
    ///
    /// Looks are early or late. From one look to the next this goes on by one mark, where a fixed age may be that of the same mark again.
    pub(crate) fn age_of_mark(&self, before: usize, now: Instant) -> Option<Duration> {
        now.checked_duration_since(self.marks.read_before(before)?)
    }

    /// Passes the bounds of each stack at each age to `each`, by the places of the age and of the stack. Both ascend. Costs one pass over
    /// the stacks and over the marks up to the last age.
    pub(crate) fn bounds(
        &self,
        now: Instant,
        stacks: &[StackNow],
        ages: &[Duration],
        each: impl FnMut(usize, usize, AgeTotals),
    ) {
        self.marks.bounds(now, stacks, ages, each);
    }
}
