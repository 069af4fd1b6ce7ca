//! Groups the counts of a snapshot by site, chooses the sites that are exported and builds the report.
#![forbid(unsafe_code)]

use super::baselines::{KeptCounts, KeptStack};
use super::estimate::{Estimate, LiveStack, fit, total};
use super::report::{BuildInfo, DroppedEvents, Report, SiteRow, UnnamedBytes};
use super::scopes::{PairSums, ScopeRow};
use super::site_ages::{SiteAges, stacks_now};
use super::site_index::SiteIndex;
use super::state::State;
use super::top_sites::{Candidate, Limits, choose};
use crate::analyze::dump_counts;
use crate::analyze::live::LiveChange;
use crate::analyze::symbols::{self, Site};
use crate::record::raw_snapshot::{Dropped, RawSnapshot, RawStack};
use std::cmp::Reverse;
use std::sync::Arc;
use std::time::{Duration, Instant};

const TOP_DELTA: usize = 4;
const TOP_OLD_GROWTH: usize = 4;
const STICKY: usize = 8;
pub(super) const STICKY_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// Chosen rows, and those that are followed.
pub(super) type Rows<T> = (Vec<T>, Vec<T>);

impl State {
    /// Builds the report of a snapshot, with the names there are. `begun`, `spent`: the time at which this step began,
    /// and the time spent before it.
    pub(super) fn report(
        &mut self,
        raw: &RawSnapshot,
        begun: Instant,
        spent: Duration,
        with_sites: bool,
    ) -> Report {
        let totals = raw.totals;
        let old_age = self.old_age();
        let baseline = self.baseline(raw.taken);
        self.adopt_names(raw, baseline.as_deref());
        let then = baseline.as_deref().into_iter().flat_map(KeptCounts::stacks);
        let sums = sums(&self.names, raw.stacks.iter().map(LiveStack::from), then);
        let all = total(totals.into(), baseline.as_deref());
        let ((sites, followed), (scopes, followed_scopes)) = match with_sites {
            true => (self.rows(raw, &sums, all), self.scope_rows(raw, baseline.as_deref(), all)),
            false => self.no_rows(),
        };
        // Each stack is counted at one site at most, so the bytes taken away were there; `fit` has seen to it for
        // estimates, but for blocks of no bytes.
        let other = sites.iter().fold(all, |other, row| other.minus(row.live));
        let unnamed = self.unnamed_bytes(&raw.stacks);
        self.number += 1;
        let resident_bytes = self.source.resident_bytes();
        let memory_limit = self.source.memory_limit(self.options.memory_limit);
        let reading = self.source.memory_parts();
        Report {
            number: self.number,
            taken_at: raw.taken_at,
            duration: spent + self.source.now().saturating_duration_since(begun),
            old_age,
            leak: self.leak(&memory_limit),
            started_at: self.started_at,
            tracking: raw.tracking,
            live: all,
            peak_bytes: raw.peak_bytes,
            allocated_bytes: totals.allocated_bytes,
            allocations: totals.allocated_blocks,
            deallocated_bytes: totals.freed_bytes,
            deallocations: totals.freed_blocks,
            sites,
            other,
            scopes,
            sites_with_blocks: (self.names.sites.iter().zip(&sums))
                .filter(|(site, sum)| site.is_final() && sum.now.all.blocks > 0)
                .count() as u64,
            delta_window: baseline
                .as_deref()
                .map_or(Duration::ZERO, |kept| raw.taken.saturating_duration_since(kept.taken)),
            untracked_bytes: raw.untracked_bytes,
            overhead_bytes: raw.overhead_bytes,
            unnamed,
            dropped: self.dropped(raw.dropped),
            truncated_stacks: raw.truncated_stacks,
            fallback_walks: raw.fallback_walks,
            sample_interval_bytes: raw.sample_interval_bytes,
            resident_bytes,
            memory_limit_bytes: memory_limit.limit,
            memory_limit_usage_bytes: memory_limit.usage,
            memory_parts: reading.as_ref().map(|reading| reading.parts.clone()),
            allocator: reading.map(|reading| (reading.allocator.clone(), reading.state.word())),
            dumps: dump_counts::counts(),
            previous_run: dump_counts::previous_run(),
            build: self.build_info(raw.capture),
            followed,
            followed_scopes,
            forgotten: self.forgotten,
        }
    }

    /// Returns no chosen rows, and those of everything that is followed, with nothing in them: a recorder would keep the figures of
    /// before.
    fn no_rows(&mut self) -> (Rows<SiteRow>, Rows<ScopeRow>) {
        let none = LiveChange::default();
        let ages = self.source.ages().lock();
        let row = |site: &Arc<Site>| {
            SiteRow::new(site.clone(), none, 0).with_past(&self.allocated, ages.scores.score(site.id))
        };
        let followed = self.followed.rows(&[], row);
        ((Vec::new(), followed), (Vec::new(), self.scopes.followed_rows(&PairSums::default(), none)))
    }

    /// Returns the rows of the chosen sites, and those of all followed sites.
    fn rows(&mut self, raw: &RawSnapshot, sums: &[Estimate], all: LiveChange) -> Rows<SiteRow> {
        self.allocated.look(&self.names, &raw.stacks);
        let ages = self.site_ages(&self.names, raw.taken, &stacks_now(raw));
        let sites = self.choose(raw, sums, &ages, all);
        let followed = self.followed.rows(&sites, |site| {
            let index = self.names.index.get(&(site.id, true)).map(|&index| index as usize);
            let sum = index.and_then(|index| sums.get(index)).copied().unwrap_or_default();
            let row = SiteRow::new(site.clone(), sum.change(), sum.stderr())
                .with_past(&self.allocated, self.source.ages().lock().scores.score(site.id));
            row.with_ages(index.and_then(|index| ages.get(index)).copied().unwrap_or_default())
        });
        (sites, followed)
    }

    fn dropped(&self, dropped: Dropped) -> DroppedEvents {
        let Dropped { stacks, memory, threads, reentrant, scopes } = dropped;
        // The collector leaves sites in *other*, which loses nothing; only an outlet that cannot remove a series has to
        // turn one away.
        DroppedEvents { stacks, memory, threads, series: self.followed.refused(), reentrant, scopes }
    }

    fn build_info(&self, walker: &'static str) -> BuildInfo {
        let symbols::Quality { names, lines } = self.source.symbols();
        BuildInfo {
            version: env!("CARGO_PKG_VERSION"),
            build_id: self.build_id.clone(),
            release: self.options.release.clone(),
            site_scheme: symbols::SITE_SCHEME,
            capture: symbols::capture(walker),
            symbols: names,
            lines,
        }
    }

    /// Returns the live bytes of stacks that have no final name yet, and of those whose line was lost.
    fn unnamed_bytes(&self, stacks: &[RawStack]) -> UnnamedBytes {
        let mut unnamed = UnnamedBytes::default();
        for stack in stacks {
            match self.names.get(stack.id).map(|index| &self.names.sites[index]) {
                None => unnamed.pending += stack.counts.live_bytes(),
                Some(site) if site.lost.is_some() => unnamed.lost += stack.counts.live_bytes(),
                Some(_) => {}
            }
        }
        unnamed
    }

    fn choose(
        &mut self,
        raw: &RawSnapshot,
        sums: &[Estimate],
        ages: &[SiteAges],
        total: LiveChange,
    ) -> Vec<SiteRow> {
        let now = raw.taken;
        let ago = |id: &u64| self.tops.get(id).map(|&at| now.saturating_duration_since(at));
        let looked = self.source.ages().lock();
        let candidates: Vec<Candidate> = self
            .names
            .sites
            .iter()
            .zip(sums)
            .map(|(site, estimate)| {
                // One that would have another id with more memory is never chosen.
                let live = if site.is_final() { estimate.change() } else { LiveChange::default() };
                let (delta_bytes, top_ago) = (live.delta_bytes(), ago(&site.id));
                let old_growth = looked.scores.growth(site.id, raw.totals.live_bytes());
                Candidate { id: site.id, live: live.now, delta_bytes, old_growth, top_ago }
            })
            .collect();
        let chosen = choose(
            &candidates,
            Limits {
                by_live: self.options.top_n,
                by_delta: TOP_DELTA,
                by_old_growth: TOP_OLD_GROWTH,
                sticky: STICKY,
                sticky_for: STICKY_FOR,
            },
        );
        for site in chosen.iter().filter(|chosen| !chosen.sticky) {
            self.tops.insert(candidates[site.index].id, now);
        }
        self.tops.retain(|_, &mut at| now.saturating_duration_since(at) <= STICKY_FOR);
        let mut rows: Vec<Estimate> = chosen.iter().map(|site| sums[site.index]).collect();
        fit(&mut rows, total);
        let mut rows: Vec<SiteRow> = chosen
            .iter()
            .zip(rows)
            .map(|(site, sum)| {
                let row = SiteRow::new(self.names.sites[site.index].clone(), sum.change(), sum.stderr());
                let score = looked.scores.score(self.names.sites[site.index].id);
                let row = row.with_past(&self.allocated, score);
                row.with_ages(ages[site.index])
            })
            .collect();
        // Estimates may have changed places.
        rows.sort_by_key(|row| (Reverse(row.live.now.bytes), row.id()));
        rows
    }
}

/// Sums counts by site, in the order of `names.sites`.
pub(super) fn sums(
    names: &SiteIndex,
    living: impl Iterator<Item = LiveStack>,
    then: impl Iterator<Item = KeptStack>,
) -> Vec<Estimate> {
    let mut sums = vec![Estimate::default(); names.sites.len()];
    for LiveStack { id, live, variance } in living {
        let Some(index) = names.get(id).filter(|_| !live.is_nothing()) else { continue };
        sums[index].add_now(live, variance);
    }
    for stack in then {
        if let Some(index) = names.get(stack.id) {
            sums[index].add_then(stack.live, (stack.stderr as f64).powi(2));
        }
    }
    sums
}
