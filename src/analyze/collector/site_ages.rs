//! Bounds of the old blocks of each site, from those of its stacks.
//!
//! Used under the collector's lock; costs one pass over the stacks and the marks.
#![forbid(unsafe_code)]

use super::budget;
use super::leak::Leak;
use super::site_index::SiteIndex;
use super::state::State;
use crate::analyze::ages::leak_score::{Judged, OLD_LOOKS, SiteLook};
use crate::analyze::ages::{AGES, AgeBounds, AgeTotals, StackNow};
use crate::analyze::live::Live;
use crate::analyze::memory_limit::MemoryLimit;
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

/// Ages of the live bytes of a row, and the likelihood that it leaks.
#[cfg(any(feature = "http", test))]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct RowAges {
    /// Live bytes of all ages.
    pub live_bytes: u64,
    pub old: AgeBounds,
    pub ages: [AgeBounds; AGES.len()],
    pub leak_score: Option<f64>,
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
        let (is_look_due, renewed) = {
            let mut ages = self.source.ages().lock();
            ages.begin(raw, began);
            let mut renewed = Vec::new();
            if raw.tracking && ages.due_in(raw.taken).is_zero() {
                let (read, limit) = (self.source.now(), budget::limit());
                renewed = ages.look(raw, read, budget::of_marks(limit), limit);
            }
            (ages.scores.due_in(raw.taken, ages.settings.spacing()).is_zero(), renewed)
        };
        if !renewed.is_empty() {
            self.source.renew(&renewed);
        }
        if raw.tracking && is_look_due {
            self.look_at_sites(raw);
        }
    }

    /// Adds the old bytes of each site to those known before, where blocks are known to be old.
    fn look_at_sites(&mut self, raw: &RawSnapshot) {
        self.adopt_names(raw, None);
        self.allocated.look(&self.names, &raw.stacks);
        let (stacks, names) = (stacks_now(raw), &self.names);
        let mut sums = vec![(AgeTotals::default(), 0); names.sites.len()];
        let mut ages = self.source.ages().lock();
        let Some(age) = ages.age_of_mark(OLD_LOOKS, raw.taken) else {
            return ages.scores.leave_out(raw.taken);
        };
        ages.bounds(raw.taken, &stacks, &[age], |_, at, bounds| {
            if let Some(index) = names.get(stacks[at].id) {
                sums[index].0 += bounds;
                sums[index].1 += stacks[at].live.bytes;
            }
        });
        let sites = names.sites.iter().zip(sums).filter(|(site, _)| site.is_final());
        let sites =
            sites.map(|(site, (old, live_bytes))| SiteLook { id: site.id, old: old.into(), live_bytes });
        ages.scores.look(raw.taken, sites, budget::scored_sites(budget::limit()));
    }

    /// Returns the time until the next look.
    pub(super) fn look_due_in(&self, now: Instant) -> Duration {
        let ages = self.source.ages().lock();
        ages.due_in(now).min(ages.scores.due_in(now, ages.settings.spacing()))
    }

    /// Returns the site whose old blocks grow fastest, of those that very likely leak.
    pub(super) fn leak(&self, limit: &MemoryLimit) -> Option<Leak> {
        let likely: Vec<(u64, Judged)> = self.source.ages().lock().scores.likely().collect();
        let (id, fastest) =
            likely.iter().max_by(|(_, a), (_, b)| a.bytes_per_second.total_cmp(&b.bytes_per_second))?;
        let &index = self.names.index.get(&(*id, true))?;
        let all: f64 = likely.iter().map(|(_, judged)| judged.bytes_per_second).sum();
        let left =
            limit.limit.zip(limit.usage).map(|(limit, usage)| limit.saturating_sub(usage) as f64 / all);
        let until_limit = left.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        Some(Leak::new(self.names.sites[index as usize].clone(), fastest.bytes_per_second, until_limit))
    }

    pub(super) fn old_age(&self) -> Duration {
        self.source.ages().lock().settings.old_age
    }

    /// Returns the bounds of the sites of stacks, in the order of `names`. The stacks ascend by id.
    pub(super) fn site_ages(&self, names: &SiteIndex, now: Instant, stacks: &[StackNow]) -> Vec<SiteAges> {
        let index: Vec<Option<usize>> = stacks.iter().map(|stack| names.get(stack.id)).collect();
        self.summed_ages(now, stacks, names.sites.len(), |at| index[at])
    }

    /// Adds the bounds of stacks up: those of the stack at a place go to the sum that `sum_of` chooses. The stacks ascend by id.
    fn summed_ages(
        &self,
        now: Instant,
        stacks: &[StackNow],
        count: usize,
        sum_of: impl Fn(usize) -> Option<usize>,
    ) -> Vec<SiteAges> {
        let ages = self.source.ages().lock();
        let old_age = ages.settings.old_age;
        let at_old = AGES.partition_point(|&age| age < old_age);
        let mut sought = [old_age; COUNT];
        for (at, &age) in AGES.iter().enumerate() {
            sought[at + usize::from(at >= at_old)] = age;
        }
        let mut sums = vec![[AgeTotals::default(); COUNT]; count];
        ages.bounds(now, stacks, &sought, |age, at, bounds| {
            if let Some(sum) = sum_of(at) {
                sums[sum][age] += bounds;
            }
        });
        let bounds = |sums: [AgeTotals; COUNT]| SiteAges {
            old: AgeBounds::from(sums[at_old]),
            ages: std::array::from_fn(|at| AgeBounds::from(sums[at + usize::from(at >= at_old)])),
        };
        sums.into_iter().map(bounds).collect()
    }

    /// Returns the ages of each stack. The stacks ascend by id.
    #[cfg(any(feature = "http", test))]
    pub(super) fn ages_of_stacks(&self, now: Instant, stacks: &[StackNow]) -> Vec<RowAges> {
        let ages = self.summed_ages(now, stacks, stacks.len(), Some);
        let row = |(stack, SiteAges { old, ages }): (&StackNow, SiteAges)| RowAges {
            live_bytes: stack.live.bytes,
            old,
            ages,
            leak_score: self.names.get(stack.id).and_then(|at| self.leak_score(self.names.sites[at].id)),
        };
        stacks.iter().zip(ages).map(row).collect()
    }

    /// Returns the likelihood that a site leaks, once there were enough looks.
    #[cfg(any(feature = "http", test))]
    pub(super) fn leak_score(&self, site: u64) -> Option<f64> {
        self.source.ages().lock().scores.score(site)
    }

    /// Returns the bounds of each stack at one age. The stacks ascend by id.
    #[cfg(any(feature = "http", test))]
    pub(super) fn stack_ages(&self, now: Instant, stacks: &[StackNow], age: Duration) -> Vec<AgeTotals> {
        let mut all = vec![AgeTotals::default(); stacks.len()];
        self.source.ages().lock().bounds(now, stacks, &[age], |_, at, bounds| all[at] = bounds);
        all
    }
}
