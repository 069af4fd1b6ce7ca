//! Bounds of the old blocks of each site, from those of its stacks.
//!
//! Used under the collector's lock; costs one pass over the stacks and the marks.
#![forbid(unsafe_code)]

use super::site_index::SiteIndex;
use super::state::State;
use crate::analyze::ages::{AGES, AgeBounds, AgeTotals, StackNow};
use crate::analyze::live::Live;
use crate::record::raw_snapshot::RawSnapshot;
use std::time::{Duration, Instant};

/// Ages that a site is shown with: those of [`AGES`], and the one from which blocks count as old.
const COUNT: usize = AGES.len() + 1;

/// Bounds of one site.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SiteAges {
    pub old: AgeBounds,
    pub ages: [AgeBounds; AGES.len()],
}

impl SiteAges {
    /// Returns the bounds with none above `most` bytes.
    pub(super) fn at_most(self, most: u64) -> SiteAges {
        SiteAges { old: self.old.at_most(most), ages: self.ages.map(|age| age.at_most(most)) }
    }
}

/// Returns the counts of the stacks that have live blocks.
pub(super) fn stacks_now(raw: &RawSnapshot) -> Vec<StackNow> {
    let live = |stack: &StackNow| stack.live != Live::default();
    raw.stacks.iter().map(StackNow::from).filter(live).collect()
}

impl State {
    /// Looks at the counts where that is due, for the ages of blocks.
    pub(super) fn look(&mut self, raw: &RawSnapshot) {
        let began = raw.taken_at.duration_since(self.started_at).ok();
        let began = began.and_then(|ago| raw.taken.checked_sub(ago));
        let mut ages = self.source.ages().lock();
        ages.begin(raw, began);
        if raw.tracking && ages.due_in(raw.taken).is_zero() {
            let read = self.source.now();
            ages.look(raw, read, super::budget::of_marks(super::budget::limit()));
        }
    }

    /// Returns the time until the next look.
    pub(super) fn look_due_in(&self, now: Instant) -> Duration {
        self.source.ages().lock().due_in(now)
    }

    pub(super) fn old_age(&self) -> Duration {
        self.source.ages().lock().settings.old_age
    }

    /// Returns the bounds of the sites of stacks, in the order of `names`. The stacks ascend by id.
    pub(super) fn site_ages(&self, names: &SiteIndex, now: Instant, stacks: &[StackNow]) -> Vec<SiteAges> {
        let ages = self.source.ages().lock();
        let old_age = ages.settings.old_age;
        let at_old = AGES.partition_point(|&age| age < old_age);
        let mut sought = [old_age; COUNT];
        for (at, &age) in AGES.iter().enumerate() {
            sought[at + usize::from(at >= at_old)] = age;
        }
        let index: Vec<Option<usize>> = stacks.iter().map(|stack| names.get(stack.id)).collect();
        let mut sums = vec![[AgeTotals::default(); COUNT]; names.sites.len()];
        ages.bounds(now, stacks, &sought, |age, at, bounds| {
            if let Some(index) = index[at] {
                sums[index][age] += bounds;
            }
        });
        let bounds = |sums: [AgeTotals; COUNT]| SiteAges {
            old: AgeBounds::from(sums[at_old]),
            ages: std::array::from_fn(|at| AgeBounds::from(sums[at + usize::from(at >= at_old)])),
        };
        sums.into_iter().map(bounds).collect()
    }

    /// Returns the bounds of each stack at one age. The stacks ascend by id.
    pub(super) fn stack_ages(&self, now: Instant, stacks: &[StackNow], age: Duration) -> Vec<AgeTotals> {
        let mut all = vec![AgeTotals::default(); stacks.len()];
        self.source.ages().lock().bounds(now, stacks, &[age], |_, at, bounds| all[at] = bounds);
        all
    }
}
