//! Sites, stacks and their history at one moment, for the page.
//!
//! A page is made of several answers, which have to add up. So a moment keeps its number for a while,
//! and every answer can be of the same one. It holds counts alone, about six bytes a stack. An answer costs
//! a few milliseconds for 10,000 stacks; names are read in slices, and stacks without one yet count in *other*.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::baselines::{KeptCounts, KeptStack};
use super::estimate::{LiveStack, total};
use super::grouping::sums;
use super::scopes::PairSums;
use super::site_ages::RowAges;
use super::state::{REUSE_FOR, State};
use super::view::View;
use super::{Collector, CompareError, PastTotals, Report, Since};
use crate::analyze::call_tree::StackTotals;
use crate::analyze::live::{Live, LiveChange};
use crate::analyze::scope::{Pair, ScopeFilter};
use crate::analyze::snapshot::order::Order;
use crate::analyze::snapshot::statistic::Totals;
use crate::analyze::symbols::{Progress, Site};
use crate::record::control;
use crate::record::raw_snapshot::RawSnapshot;

/// Number of moments kept, and their age at most: two people may look at the same time.
const VIEWS: usize = 4;
const VIEWS_FOR: Duration = Duration::from_secs(60);
/// Number of stacks read in one go, for callers with other things to do in between: some 30 ms.
const STACKS_PER_SLICE: usize = 8_192;

/// Totals, naming progress, history and kept snapshots of one moment.
#[derive(Debug)]
pub(crate) struct Overview {
    /// Report without sites; its number is that of the moment.
    pub report: Arc<Report>,
    /// Progress of naming: stacks that hold memory and have names, of all that hold memory.
    pub naming: Progress,
    /// Baselines of the collector, oldest first.
    pub history: Vec<PastTotals>,
    /// Snapshots kept on request, with their numbers, oldest first.
    pub snapshots: Vec<(u64, PastTotals)>,
    /// Number of scopes that hold memory.
    pub scopes: usize,
}

/// Query: a moment, and the earlier one it is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ViewQuery {
    /// Number of the moment; `None`: now.
    pub at: Option<u64>,
    pub since: Since,
    /// True if the figures are grouped by the nearest frame of each stack, not by its site.
    pub nearest: bool,
    /// Scope whose blocks alone the figures are of; `None`: all blocks.
    pub scope: Option<ScopeFilter>,
    /// Age of the blocks that the figures are of: those that are surely older. `None`: all blocks. The figures of the earlier moment
    /// are not known then, so nothing changes.
    pub older_than: Option<Duration>,
}

/// Moments that an answer is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub number: u64,
    pub taken_at: SystemTime,
    pub since: SystemTime,
}

/// Sites, and their remainder.
#[derive(Debug)]
pub(crate) struct Sites {
    pub times: Times,
    pub rows: Vec<SiteTotals>,
    /// Number of sites that have a name and held memory then or now, in `rows` or not.
    pub sites: usize,
    /// Remainder, stacks without names among it.
    pub other: Totals,
    pub total: Totals,
    /// Time of each figure of a row's history; the last is the moment.
    pub history_at: Vec<SystemTime>,
}

/// Totals and history of one site.
#[derive(Debug)]
pub(crate) struct SiteTotals {
    pub site: Arc<Site>,
    pub totals: Totals,
    /// Standard errors of its bytes and of their change; 0 where they are exact.
    pub stderr: u64,
    pub diff_stderr: u64,
    /// Live bytes over time, oldest first. Of blocks older than an age only the last figure is known.
    pub history: Vec<u64>,
    /// Ages of its live bytes; `None` where they are not known, as in a file.
    pub ages: Option<RowAges>,
}

impl SiteTotals {
    /// Creates a row of exact figures without ages.
    pub(crate) fn new(site: Arc<Site>, totals: Totals, history: Vec<u64>) -> SiteTotals {
        SiteTotals { site, totals, stderr: 0, diff_stderr: 0, history, ages: None }
    }
}

/// Keys and values of scopes, and the blocks that are in none of the rows.
#[derive(Debug)]
pub(crate) struct Scopes {
    pub times: Times,
    pub rows: Vec<PairTotals>,
    /// Number of pairs that held memory then or now, in `rows` or not.
    pub pairs: usize,
    pub total: Totals,
}

/// Totals of the blocks whose scope has this key with this value.
#[derive(Debug)]
pub(crate) struct PairTotals {
    pub pair: Pair,
    pub totals: Totals,
    /// Standard errors of its bytes and of their change; 0 where they are exact.
    pub stderr: u64,
    pub diff_stderr: u64,
}

/// Stacks while they are being read, each once for each of its ids.
#[derive(Debug)]
pub(crate) struct Stacks {
    pub times: Times,
    /// Stacks read so far.
    pub held: Vec<StackTotals>,
    /// Totals of all blocks, exact also where `held` are estimates.
    pub total: Totals,
    kept: Arc<KeptCounts>,
    old: Arc<KeptCounts>,
    scope: Option<ScopeFilter>,
    /// First id that has not been looked at.
    next: u32,
    nearest: bool,
}

impl Collector {
    /// Returns the totals of a moment that is at most a second old.
    pub(crate) fn overview(&self) -> Overview {
        let _own = control::internal();
        self.lock().overview()
    }

    /// Returns the first `top` sites in that order, each with `points` figures of history.
    pub(crate) fn sites(
        &self,
        query: ViewQuery,
        order: Order,
        top: usize,
        points: usize,
    ) -> Result<Sites, CompareError> {
        let _own = control::internal();
        self.lock().sites(query, order, top, points)
    }

    /// Returns the first `top` pairs of keys and values in that order.
    pub(crate) fn scopes(&self, query: ViewQuery, order: Order, top: usize) -> Result<Scopes, CompareError> {
        let _own = control::internal();
        self.lock().scopes(query, order, top)
    }

    /// Begins to read stacks; nothing is read yet.
    pub(crate) fn stacks(&self, query: ViewQuery) -> Result<Stacks, CompareError> {
        let _own = control::internal();
        let Resolved { view, kept, old, .. } = self.lock().resolve_query(&query)?;
        let ViewQuery { nearest, scope, .. } = query;
        let total = totals_in(scope.as_ref(), &kept, &old).into();
        Ok(Stacks { times: times(&view, &old), held: Vec::new(), total, kept, old, scope, next: 0, nearest })
    }

    /// Reads some of the stacks of those sites that are wanted; `None` is the site of a stack without names.
    /// `whole`: with every frame that was recorded, not only as many as a traceback shows. False: there are more.
    pub(crate) fn stacks_slice(
        &self,
        stacks: &mut Stacks,
        whole: bool,
        is_wanted: impl Fn(Option<&Site>) -> bool,
    ) -> bool {
        let _own = control::internal();
        self.lock().stacks_slice(stacks, whole, is_wanted)
    }
}

/// Answer to a query: the moment, its counts of the blocks that were asked for, those they are compared with, and the stacks there are
/// now.
struct Resolved {
    view: Arc<View>,
    kept: Arc<KeptCounts>,
    old: Arc<KeptCounts>,
    raw: RawSnapshot,
}

/// Latest moments, oldest first.
pub(super) type Views = VecDeque<Arc<View>>;

impl State {
    /// Drops moments older than `VIEWS_FOR`.
    pub(super) fn forget_old_views(&mut self, now: Instant) {
        self.views.retain(|view| now.saturating_duration_since(view.taken) < VIEWS_FOR);
    }

    /// Returns the latest moment if it is at most a second old, else that of this snapshot.
    fn fresh(&mut self, raw: &RawSnapshot, begun: Instant) -> Arc<View> {
        self.forget_old_views(raw.taken);
        let is_fresh = |view: &&Arc<View>| raw.taken.saturating_duration_since(view.taken) < REUSE_FOR;
        if let Some(view) = self.views.back().filter(is_fresh) {
            return view.clone();
        }
        let kept = Arc::new(KeptCounts::new(raw, &mut self.labels));
        let report = Arc::new(self.report(raw, begun, Duration::ZERO, false));
        let view = Arc::new(View::new(report, raw, kept));
        self.views.push_back(view.clone());
        if self.views.len() > VIEWS {
            self.views.pop_front();
        }
        view
    }

    fn numbered(&mut self, number: u64, now: Instant) -> Result<Arc<View>, CompareError> {
        self.forget_old_views(now);
        match self.views.iter().find(|view| view.report.number == number) {
            Some(view) => Ok(view.clone()),
            None => {
                let kept = self.views.iter().map(|view| view.report.number).collect();
                Err(CompareError::Gone { number, kept })
            }
        }
    }

    /// Does one slice of naming stacks that hold memory now or did then, if there is anything to name.
    fn name_some(&mut self, raw: &RawSnapshot, then: Option<&KeptCounts>) {
        self.adopt_names(raw, then);
        if !self.unnamed.is_empty() {
            self.name_for(self.slice);
            self.adopt_names(raw, then);
        }
    }

    fn overview(&mut self) -> Overview {
        let begun = self.source.now();
        let raw = self.take();
        let view = self.fresh(&raw, begun);
        let baseline = self.baseline(raw.taken);
        self.name_some(&raw, baseline.as_deref());
        let (total, named) = view.kept.stacks().fold((0, 0), |(total, named), stack| {
            (total + 1, named + usize::from(self.names.get(stack.id).is_some()))
        });
        Overview {
            report: view.report.clone(),
            naming: Progress { named, total, more: named < total },
            history: self.baselines.all().map(|kept| kept.past()).collect(),
            snapshots: self
                .kept_snapshots
                .all(raw.taken)
                .map(|(number, kept)| (*number, kept.past()))
                .collect(),
            scopes: view.kept.scopes.len(),
        }
    }

    fn resolve_query(&mut self, query: &ViewQuery) -> Result<Resolved, CompareError> {
        let begun = self.source.now();
        let raw = self.take();
        let view = match query.at {
            Some(number) => self.numbered(number, raw.taken)?,
            None => self.fresh(&raw, begun),
        };
        if !view.report.tracking {
            return Err(CompareError::tracking_off());
        }
        let old = self.kept_then(query.since, view.taken)?;
        // No baseline yet: then is now.
        let old = old.unwrap_or_else(|| view.kept.clone());
        self.name_some(&raw, Some(&old));
        let (kept, old) = match query.older_than {
            None => (view.kept.clone(), old),
            Some(age) => {
                let bounds = self.stack_ages(view.taken, &view.stacks_now(None), age);
                let kept = Arc::new(view.kept.with_live(bounds.into_iter().map(|bounds| bounds.lower)));
                (kept.clone(), kept)
            }
        };
        Ok(Resolved { view, kept, old, raw })
    }

    fn sites(
        &mut self,
        query: ViewQuery,
        order: Order,
        top: usize,
        points: usize,
    ) -> Result<Sites, CompareError> {
        let Resolved { view, kept, old, raw } = self.resolve_query(&query)?;
        if query.nearest {
            self.adopt_nearest(&raw);
        }
        let names = if query.nearest { &self.nearest } else { &self.names };
        let scope = query.scope.as_ref();
        let sums = sums(names, kept.stacks_in(scope).map(LiveStack::from), old.stacks_in(scope));
        let errors: Vec<(u64, u64)> = sums.iter().map(|sum| (sum.stderr(), sum.diff_stderr())).collect();
        let sums: Vec<Totals> = sums.into_iter().map(|sum| sum.change().into()).collect();
        let all = totals_in(scope, &kept, &old);
        let stacks = view.stacks_now(scope);
        let ages = self.site_ages(names, view.taken, &stacks);
        let mut live_bytes = vec![0; names.sites.len()];
        for stack in &stacks {
            if let Some(at) = names.get(stack.id) {
                live_bytes[at] += stack.live.bytes;
            }
        }
        let mut indices: Vec<usize> = (0..sums.len())
            .filter(|&at| sums[at] != Totals::default() && names.sites[at].is_final())
            .collect();
        let sites = indices.len();
        indices.sort_by_key(|&at| (Reverse(order.rank(&sums[at])), names.sites[at].id));
        indices.truncate(top);

        let past: Vec<&Arc<KeptCounts>> = match query.older_than {
            None => spread(self.baselines.all().collect(), points.saturating_sub(1)),
            Some(_) => Vec::new(),
        };
        let past: Vec<&Arc<KeptCounts>> = past.into_iter().chain([&kept]).take(points).collect();
        let mut rows: Vec<SiteTotals> = indices
            .iter()
            .map(|&at| SiteTotals {
                stderr: errors[at].0,
                diff_stderr: errors[at].1,
                ages: Some(RowAges {
                    live_bytes: live_bytes[at],
                    old: ages[at].old,
                    ages: ages[at].ages,
                    leak_score: self.leak_score(names.sites[at].id),
                }),
                ..SiteTotals::new(names.sites[at].clone(), sums[at], vec![0; past.len()])
            })
            .collect();
        let mut row_of = vec![None; sums.len()];
        indices.iter().enumerate().for_each(|(row, &at)| row_of[at] = Some(row));
        for (point, kept) in past.iter().enumerate() {
            for stack in kept.stacks_in(scope) {
                if let Some(row) = names.get(stack.id).and_then(|at| row_of[at]) {
                    rows[row].history[point] += stack.live.bytes;
                }
            }
        }
        let shown = rows.iter().fold(Totals::default(), |sum, row| sum.plus(row.totals));
        let (other, total) = shown.beside(all.into());
        let history_at = past.iter().map(|kept| kept.taken_at).collect();
        Ok(Sites { times: times(&view, &old), rows, sites, other, total, history_at })
    }

    fn scopes(&mut self, query: ViewQuery, order: Order, top: usize) -> Result<Scopes, CompareError> {
        let Resolved { view, kept, old, .. } = self.resolve_query(&query)?;
        let sums = PairSums::between(&kept, &old).into_iter();
        let mut rows: Vec<PairTotals> = sums
            .map(|(pair, sum)| PairTotals {
                pair,
                totals: sum.change().into(),
                stderr: sum.stderr(),
                diff_stderr: sum.diff_stderr(),
            })
            .collect();
        let pairs = rows.len();
        // Stable: equal ones stay in the order of their names.
        rows.sort_by_key(|row| Reverse(order.rank(&row.totals)));
        rows.truncate(top);
        let total = total(kept.live, Some(&old)).into();
        Ok(Scopes { times: times(&view, &old), rows, pairs, total })
    }

    /// Looks up the nearest frames of the stacks whose sites are known.
    fn adopt_nearest(&mut self, raw: &RawSnapshot) {
        for stack in &raw.stacks {
            if self.names.get(stack.id).is_some()
                && self.nearest.get(stack.id).is_none()
                && let Some(site) = self.source.nearest(&raw.addresses.to_vec(stack.addresses))
            {
                self.nearest.insert(stack.id, site);
            }
        }
    }

    fn stacks_slice(
        &mut self,
        stacks: &mut Stacks,
        whole: bool,
        is_wanted: impl Fn(Option<&Site>) -> bool,
    ) -> bool {
        // Only its addresses are used, not its counts, which are newer than the view's.
        let raw = self.take();
        let limit = if whole { usize::MAX } else { raw.traceback_limit };
        if stacks.nearest {
            self.adopt_nearest(&raw);
        }
        let names = if stacks.nearest { &self.nearest } else { &self.names };
        let from = stacks.next;
        // All three ascend by id, and a stack that was live then is one of the same epoch now.
        let mut known = raw.stacks.iter().skip_while(|stack| stack.id < from).peekable();
        let (kept, old) = (stacks.kept.clone(), stacks.old.clone());
        let scope = stacks.scope.as_ref();
        let mut new = kept.stacks_in(scope).skip_while(|stack| stack.id < from).peekable();
        let mut then = old.stacks_in(scope).skip_while(|stack| stack.id < from).peekable();
        let mut looked_at = 0;
        while let Some(id) = [new.peek(), then.peek()].into_iter().flatten().map(|stack| stack.id).min() {
            if looked_at == STACKS_PER_SLICE {
                stacks.next = id;
                return false;
            }
            looked_at += 1;
            let none = KeptStack { id, live: Live::default(), stderr: 0, scope: None };
            let now = new.next_if(|stack| stack.id == id).unwrap_or(none).live;
            let since = then.next_if(|stack| stack.id == id).unwrap_or(none).live;
            let site = names.get(id).map(|at| &*names.sites[at]).filter(|site| site.is_final());
            if !is_wanted(site) {
                continue;
            }
            while known.next_if(|stack| stack.id < id).is_some() {}
            let stack = known.peek().filter(|stack| stack.id == id);
            let traceback = stack.and_then(|stack| {
                self.source.traceback(&raw.addresses.to_vec(stack.addresses), stack.truncated, limit)
            });
            stacks.held.push(StackTotals { traceback, totals: LiveChange { now, since }.into() });
        }
        true
    }
}

impl From<KeptStack> for LiveStack {
    fn from(stack: KeptStack) -> LiveStack {
        let KeptStack { id, live, stderr, .. } = stack;
        LiveStack { id, live, variance: (stderr as f64).powi(2) }
    }
}

/// Returns the total of the blocks whose scope the filter admits, now and then; without a filter the exact one of all blocks.
fn totals_in(filter: Option<&ScopeFilter>, now: &KeptCounts, then: &KeptCounts) -> LiveChange {
    if filter.is_none() {
        return total(now.live, Some(then));
    }
    let [now, since] = [now, then].map(|kept| {
        let mut sum = Live::default();
        kept.stacks_in(filter).for_each(|stack| sum += stack.live);
        sum
    });
    LiveChange { now, since }
}

fn times(view: &View, old: &KeptCounts) -> Times {
    let Report { number, taken_at, .. } = *view.report;
    Times { number, taken_at, since: old.taken_at }
}

/// Returns at most `most` of them, the first among them, at even steps.
fn spread<T: Copy>(all: Vec<T>, most: usize) -> Vec<T> {
    if all.len() <= most {
        return all;
    }
    (0..most).map(|at| all[at * all.len() / most]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_thinned_evenly_and_keeps_its_beginning() {
        assert_eq!(spread((0..64).collect(), 4), [0, 16, 32, 48]);
        assert_eq!(spread((0..5).collect(), 3), [0, 1, 3]);
        assert_eq!(spread(vec![7, 8], 2), [7, 8]);
        assert_eq!(spread(vec![7, 8], 0), [0; 0]);
    }
}
