//! State of a collector, and the steps of a collection.
#![forbid(unsafe_code)]

use super::allocated::AllocatedBySite;
use super::baselines::{Baselines, KeptCounts};
use super::budget;
use super::followed_sites::Followed;
#[cfg(any(feature = "http", test))]
use super::kept_snapshots::KeptSnapshots;
use super::naming::NAMING_SLICE;
use super::report::Report;
use super::scopes::ScopeChoice;
use super::settings::Options;
use super::site_index::SiteIndex;
use super::source::HeapSource;
#[cfg(any(feature = "http", test))]
use super::views;
use crate::analyze::scope::LabelsByScope;
use crate::analyze::symbols::{self, Unnamed};
use crate::record::control;
use crate::record::raw_snapshot::{Counts, RawSnapshot};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Age up to which a collection is reused.
pub(super) const REUSE_FOR: Duration = Duration::from_secs(1);
/// Time that one collection may spend naming stacks it has not met; the rest is named later.
pub(super) const NAMING_TIME: Duration = Duration::from_secs(1);
/// Time without a caller after which a pending collection is thrown away.
pub(super) const PENDING_FOR: Duration = Duration::from_secs(5);

/// Snapshot whose stacks are still being named.
pub(super) struct PendingCollection {
    raw: RawSnapshot,
    /// Time spent taking it, so far.
    spent: Duration,
    begun: Instant,
    /// Time of the last slice of naming; `None` before the first.
    named_at: Option<Instant>,
}

pub(super) struct State {
    pub(super) source: Box<dyn HeapSource>,
    pub(super) options: Options,
    pub(super) started_at: SystemTime,
    pub(super) build_id: Arc<str>,
    pub(super) epoch: Option<u32>,
    pub(super) names_epoch: u64,
    pub(super) names: SiteIndex,
    /// Nearest frame of each stack, where somebody asked for that view.
    #[cfg(any(feature = "http", test))]
    pub(super) nearest: SiteIndex,
    /// Stacks with live blocks and without a name, coldest first: the hottest is popped next.
    pub(super) unnamed: Vec<Unnamed>,
    /// Time that the next go of naming may take.
    pub(super) slice: Duration,
    pub(super) baselines: Baselines,
    #[cfg(any(feature = "http", test))]
    pub(super) kept_snapshots: KeptSnapshots,
    #[cfg(any(feature = "http", test))]
    pub(super) views: views::Views,
    /// Counts of the previous collection, where `delta_window` is zero.
    pub(super) previous: Option<Arc<KeptCounts>>,
    /// Time at which each site was last chosen by live bytes or delta.
    pub(super) tops: HashMap<u64, Instant>,
    /// Sites followed. They survive a clear of the traces: series made once are there for ever.
    pub(super) followed: Followed,
    /// Labels of the scopes that kept counts have.
    pub(super) labels: LabelsByScope,
    /// Pairs of scopes that were chosen, and those that are followed.
    pub(super) scopes: ScopeChoice,
    /// Totals last seen, and those last seen of all epochs before.
    pub(super) seen: Counts,
    pub(super) forgotten: Counts,
    /// Bytes ever allocated by each site; they survive a clear of the traces.
    pub(super) allocated: AllocatedBySite,
    pub(super) pending: Option<PendingCollection>,
    pub(super) report: Option<(Instant, Arc<Report>)>,
    pub(super) number: u64,
}

impl State {
    pub(super) fn new(options: Options, source: Box<dyn HeapSource>) -> State {
        options.set_ages(&mut source.ages().lock().settings);
        let kept_bytes = budget::of_baselines(budget::limit());
        State {
            baselines: Baselines::new(options.delta_window, kept_bytes),
            #[cfg(any(feature = "http", test))]
            kept_snapshots: KeptSnapshots::new(options.snapshots, options.snapshots_for, kept_bytes),
            names_epoch: source.names_epoch(),
            source,
            options,
            started_at: control::began_at(),
            build_id: symbols::build_id().unwrap_or_default().into(),
            epoch: None,
            names: SiteIndex::default(),
            #[cfg(any(feature = "http", test))]
            nearest: SiteIndex::default(),
            unnamed: Vec::new(),
            #[cfg(any(feature = "http", test))]
            views: views::Views::default(),
            slice: NAMING_SLICE,
            previous: None,
            tops: HashMap::new(),
            followed: Followed::default(),
            labels: LabelsByScope::default(),
            scopes: ScopeChoice::default(),
            seen: Counts::default(),
            forgotten: Counts::default(),
            allocated: AllocatedBySite::default(),
            pending: None,
            report: None,
            number: 0,
        }
    }

    /// Forgets everything kept, which belongs to counts that no longer continue.
    pub(super) fn forget(&mut self) {
        self.baselines.clear();
        #[cfg(any(feature = "http", test))]
        self.kept_snapshots.clear();
        #[cfg(any(feature = "http", test))]
        self.views.clear();
        self.forget_names();
        self.unnamed.clear();
        self.previous = None;
        self.tops.clear();
        self.pending = None;
        self.report = None;
    }

    fn forget_names(&mut self) {
        self.names = SiteIndex::default();
        #[cfg(any(feature = "http", test))]
        {
            self.nearest = SiteIndex::default();
        }
    }

    /// Takes a raw snapshot, forgets everything that no longer fits it, and keeps a baseline if due.
    pub(super) fn take(&mut self) -> RawSnapshot {
        let raw = self.source.take();
        if self.epoch.replace(raw.epoch) != Some(raw.epoch) {
            self.forget();
            self.forgotten += std::mem::take(&mut self.seen);
        }
        self.seen = raw.totals;
        let names_epoch = self.source.names_epoch();
        if self.names_epoch != names_epoch {
            self.names_epoch = names_epoch;
            self.forget_names();
        }
        if !raw.tracking {
            self.baselines.clear();
        } else if self.baselines.due_in(raw.taken).is_zero() {
            self.baselines.push(Arc::new(KeptCounts::new(&raw, &mut self.labels)));
        }
        self.look(&raw);
        self.forget_dead(&raw);
        raw
    }

    /// Forgets the sites of stacks that are neither alive nor in a snapshot kept.
    fn forget_dead(&mut self, raw: &RawSnapshot) {
        let kept = || self.baselines.all().chain(&self.previous).flat_map(|kept| kept.stacks());
        let ids = || raw.stacks.iter().map(|stack| stack.id).chain(kept().map(|stack| stack.id));
        self.names.forget_dead(raw.stacks.len(), ids);
        #[cfg(any(feature = "http", test))]
        self.nearest.forget_dead(raw.stacks.len(), ids);
        self.labels.forget_unused();
    }

    pub(super) fn tick(&mut self) -> Duration {
        let _ = self.source.memory_parts();
        #[cfg(any(feature = "http", test))]
        self.forget_old_views(self.source.now());
        let now = self.source.now();
        if self.baselines.due_in(now).is_zero() || self.look_due_in(now).is_zero() {
            let raw = self.take();
            if self.pending.is_none() {
                // Names are read early, while there is memory for that: they may be asked for only when
                // the memory of the process has become scarce.
                let baseline = self.baseline(raw.taken);
                self.adopt_names(&raw, baseline.as_deref());
            }
        }
        // While tracking is off nothing is kept, so it is always due; look again after a pace.
        let now = self.source.now();
        match self.baselines.due_in(now).min(self.look_due_in(now)) {
            Duration::ZERO => self.baselines.pace(),
            wait => wait,
        }
    }

    /// Does the next slice of a collection; `None` while stacks are still being named.
    pub(super) fn advance(&mut self) -> Option<Arc<Report>> {
        let now = self.source.now();
        if let Some((done, report)) = &self.report
            && now.saturating_duration_since(*done) < REUSE_FOR
        {
            return Some(report.clone());
        }
        // A draft whose caller did not come back is not the heap of now.
        let fresh = |pending: &PendingCollection| {
            now.saturating_duration_since(pending.named_at.unwrap_or(pending.begun)) < PENDING_FOR
        };
        let mut pending = match self.pending.take().filter(fresh) {
            Some(pending) => pending,
            None => {
                let raw = self.take();
                let baseline = self.baseline(raw.taken);
                self.adopt_names(&raw, baseline.as_deref());
                // Where reading and grouping took long, on a busy machine, there is as much time for names as ever: else
                // no collection there would come to them.
                let begun = self.source.now();
                let spent = begun.saturating_duration_since(now);
                PendingCollection { raw, spent, begun, named_at: None }
            }
        };
        if !self.unnamed.is_empty() {
            let left = NAMING_TIME.saturating_sub(self.source.now().saturating_duration_since(pending.begun));
            // However busy the machine is, each collection names something: the stack that holds most.
            let is_time = pending.named_at.is_none() || !left.is_zero();
            if is_time && self.name_for(left.min(self.slice)) && !self.unnamed.is_empty() {
                pending.named_at = Some(self.source.now());
                self.pending = Some(pending);
                return None;
            }
        }
        Some(self.finish(pending))
    }

    /// Returns the baseline of deltas at `now`.
    pub(super) fn baseline(&self, now: Instant) -> Option<Arc<KeptCounts>> {
        self.previous.clone().or_else(|| self.baselines.baseline(now).cloned())
    }

    fn finish(&mut self, pending: PendingCollection) -> Arc<Report> {
        let PendingCollection { raw, spent, .. } = pending;
        let report = Arc::new(self.report(&raw, self.source.now(), spent, raw.tracking));
        if self.options.delta_window.is_zero() {
            self.previous = Some(Arc::new(KeptCounts::new(&raw, &mut self.labels)));
        }
        // From now, not from when it began: on a busy machine a slow one would be repeated at once.
        self.report = Some((self.source.now(), report.clone()));
        report
    }
}
