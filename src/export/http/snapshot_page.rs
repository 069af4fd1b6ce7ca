//! Snapshot of a file → the page and its JSON.
//!
//! Any thread; pure functions on values that are made once. For programs that read files, such as `heapgauge page`: a file has
//! no process behind it, so whatever only a process can tell is absent from `summary.json`, and the page shows the rest.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use serde::Serialize;

use super::heap_query::HeapQuery;
use super::response::{JSON, Response, TEXT, answer, refuse};
use super::routes::Endpoint;
use super::{debug_heap, routes};
use crate::analyze::call_tree::{self, StackTotals};
use crate::analyze::collector::{PairTotals, Scopes, SiteTotals, Sites, Times};
use crate::analyze::scope::{Pair, ScopeFilter, ScopeLabels};
use crate::analyze::snapshot::group::GroupBy;
use crate::analyze::snapshot::statistic::{StatisticDiff, Totals};
use crate::analyze::snapshot::{Snapshot, Trace};
use crate::analyze::symbols::Site;
use crate::export::emit::json;
use crate::export::input::Quoted;

/// Endpoints that a file has, beside the root.
const ENDPOINTS: [Endpoint; 7] = [
    Endpoint::Health,
    Endpoint::Page,
    Endpoint::Summary,
    Endpoint::Sites,
    Endpoint::Scopes,
    Endpoint::Stacks,
    Endpoint::Tree,
];

/// Page of a snapshot file, and the JSON it is made from: that of [`http`](crate::http), for one moment.
#[doc(hidden)]
#[derive(Debug)]
pub struct SnapshotPage {
    file: String,
    reason: Option<String>,
    older_than: Option<Duration>,
    build_id: Option<String>,
    sample_interval: u64,
    times: Times,
    is_compared: bool,
    /// By traceback and scope.
    stacks: Vec<Stack>,
    /// Number of tracebacks, and of scopes.
    tracebacks: usize,
    scopes: usize,
    total: Totals,
}

/// Totals of one traceback in one scope, and the sites it belongs to.
#[derive(Debug)]
struct Stack {
    held: StackTotals,
    stderr: u64,
    diff_stderr: u64,
    site: Arc<Site>,
    nearest: Arc<Site>,
    scope: ScopeLabels,
}

impl SnapshotPage {
    /// Makes the page of a snapshot that was read from `file`, with its growth since an `old` one. Memory that does not come from
    /// the allocator is left out, as everywhere on the page.
    pub fn new(snapshot: &Snapshot, file: &str, old: Option<&Snapshot>) -> SnapshotPage {
        let [snapshot, then] =
            [snapshot, old.unwrap_or(snapshot)].map(|one| one.filtered(|trace| trace.domain == 0));
        let mut sites = HashMap::new();
        let mut shared = |site: Site| sites.entry(site.id).or_insert_with(|| Arc::new(site)).clone();
        let mut stack = |row: StatisticDiff, scope: &ScopeLabels| Stack {
            scope: scope.clone(),
            site: shared(Site::of_traceback(&row.traceback)),
            nearest: shared(Site::of(row.traceback.most_recent(), "")),
            stderr: row.stderr,
            diff_stderr: if old.is_some() { row.diff_stderr } else { 0 },
            held: StackTotals { totals: totals(&row), traceback: Some(row.traceback) },
        };
        let mut by_scope: BTreeMap<ScopeLabels, [Vec<Trace>; 2]> = BTreeMap::new();
        for (at, snapshot) in [&snapshot, &then].into_iter().enumerate() {
            for trace in snapshot.traces() {
                by_scope.entry(trace.scope.clone()).or_default()[at].push(trace.clone());
            }
        }
        let mut stacks: Vec<Stack> = Vec::new();
        let part = |traces| Snapshot::of(snapshot.taken_at(), snapshot.traceback_limit(), traces);
        let scopes = by_scope.keys().filter(|scope| !scope.is_empty()).count();
        for (scope, traces) in by_scope {
            let [now, then] = traces.map(part);
            stacks
                .extend(now.compare_to(&then, GroupBy::Traceback).into_iter().map(|row| stack(row, &scope)));
        }
        SnapshotPage {
            file: file.to_owned(),
            reason: snapshot.reason().map(String::from),
            older_than: snapshot.older_than(),
            build_id: snapshot.build_id().map(String::from),
            sample_interval: snapshot.sample_interval(),
            times: Times { number: 1, taken_at: snapshot.taken_at(), since: then.taken_at() },
            is_compared: old.is_some(),
            total: sum(stacks.iter().map(|stack| &stack.held)),
            tracebacks: match scopes {
                0 => stacks.len(),
                _ => snapshot.compare_to(&then, GroupBy::Traceback).len(),
            },
            scopes,
            stacks,
        }
    }

    /// Returns the JSON of a path such as `/debug/heap/sites.json?top=3`, or one line that names what is wrong with it.
    pub fn json(&self, path_and_query: &str) -> Result<String, String> {
        let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
        match routes::endpoint(path) {
            Some(Endpoint::Summary) => HeapQuery::parse(query, &[]).map(|_| self.summary()),
            Some(Endpoint::Sites) => self.sites(query),
            Some(Endpoint::Scopes) => self.scopes(query),
            Some(Endpoint::Stacks) => self.stacks(query),
            Some(Endpoint::Tree) => self.tree(query),
            _ => Err(format!("path {} is unknown, allowed are {}", Quoted(path), paths().join(", "))),
        }
    }

    /// Answers a request for one of the paths.
    pub(super) fn answer(&self, endpoint: Endpoint, request: &Parts) -> Response {
        if endpoint != Endpoint::Root && !ENDPOINTS.contains(&endpoint) {
            return refuse(
                StatusCode::NOT_FOUND,
                format_args!(
                    "path {} is of a running program, and this is a file, allowed are {}",
                    Quoted(request.uri.path()),
                    paths().join(", ")
                ),
            );
        }
        if !matches!(request.method, Method::GET | Method::HEAD) {
            return endpoint.wrong_method(request);
        }
        match endpoint {
            Endpoint::Root => routes::to_the_page(),
            Endpoint::Page => debug_heap::page(),
            Endpoint::Health => answer(StatusCode::OK, TEXT, "ok\n"),
            _ => match self.json(request.uri.path_and_query().map_or("", |path| path.as_str())) {
                Ok(text) => debug_heap::not_stored(answer(StatusCode::OK, JSON, text)),
                Err(line) => refuse(StatusCode::BAD_REQUEST, format_args!("{line}")),
            },
        }
    }

    fn summary(&self) -> String {
        let Totals { size, count, size_diff, count_diff } = self.total;
        json::text(&Summary {
            version: json::VERSION,
            number: self.times.number,
            taken_at: json::unix_seconds(self.times.taken_at),
            since: self.is_compared.then(|| json::unix_seconds(self.times.since)),
            size,
            count,
            size_diff,
            count_diff,
            stacks: self.tracebacks,
            scopes: Some(self.scopes).filter(|scopes| *scopes > 0),
            sample_interval_bytes: self.sample_interval,
            file: &self.file,
            reason: self.reason.as_deref(),
            older_than_seconds: self.older_than.map(|age| age.as_secs_f64()),
            build: Build { version: env!("CARGO_PKG_VERSION"), build_id: self.build_id.as_deref() },
            paths: paths(),
        })
    }

    fn sites(&self, query: &str) -> Result<String, String> {
        let HeapQuery { asked, order, top, .. } =
            HeapQuery::parse(query, &["top", "since", "sort", "at", "history", "by", "scope"])?;
        let mut rows: Vec<(SiteTotals, [f64; 2])> = Vec::new();
        let mut index = HashMap::new();
        for stack in self.stacks_in(asked.scope.as_ref()) {
            let site = if asked.nearest { &stack.nearest } else { &stack.site };
            let at = *index.entry(site.id).or_insert_with(|| {
                let site = site.clone();
                let none = Totals::default();
                rows.push((SiteTotals::new(site, none, Vec::new()), [0.0; 2]));
                rows.len() - 1
            });
            let (row, variances) = &mut rows[at];
            row.totals = row.totals.plus(stack.held.totals);
            variances[0] += (stack.stderr as f64).powi(2);
            variances[1] += (stack.diff_stderr as f64).powi(2);
        }
        let mut rows: Vec<SiteTotals> = rows
            .into_iter()
            .map(|(row, variances)| {
                let [stderr, diff_stderr] = variances.map(|variance| variance.sqrt().round() as u64);
                SiteTotals { stderr, diff_stderr, ..row }
            })
            .collect();
        let sites = rows.len();
        rows.sort_by_key(|row| (Reverse(order.rank(&row.totals)), row.site.id));
        rows.truncate(top);
        let shown = rows.iter().fold(Totals::default(), |sum, row| sum.plus(row.totals));
        let (other, total) = shown.beside(self.total_in(asked.scope.as_ref()));
        Ok(json::sites(&Sites { times: self.times, rows, sites, other, total, history_at: Vec::new() }))
    }

    /// Iterates over the stacks whose scope the filter admits.
    fn stacks_in(&self, filter: Option<&ScopeFilter>) -> impl Iterator<Item = &Stack> {
        self.stacks.iter().filter(move |stack| filter.is_none_or(|filter| filter.admits(&stack.scope)))
    }

    fn total_in(&self, filter: Option<&ScopeFilter>) -> Totals {
        match filter {
            Some(_) => sum(self.stacks_in(filter).map(|stack| &stack.held)),
            None => self.total,
        }
    }

    fn scopes(&self, query: &str) -> Result<String, String> {
        let HeapQuery { order, top, .. } = HeapQuery::parse(query, &["top", "since", "sort", "at"])?;
        let mut sums: BTreeMap<&Pair, (Totals, [f64; 2])> = BTreeMap::new();
        for stack in &self.stacks {
            for pair in stack.scope.pairs() {
                let (totals, variances) = sums.entry(pair).or_default();
                *totals = totals.plus(stack.held.totals);
                variances[0] += (stack.stderr as f64).powi(2);
                variances[1] += (stack.diff_stderr as f64).powi(2);
            }
        }
        let row = |(pair, (totals, variances)): (&Pair, (Totals, [f64; 2]))| {
            let [stderr, diff_stderr] = variances.map(|variance| variance.sqrt().round() as u64);
            PairTotals { pair: pair.clone(), totals, stderr, diff_stderr }
        };
        let mut rows: Vec<PairTotals> = sums.into_iter().map(row).collect();
        let pairs = rows.len();
        rows.sort_by_key(|row| Reverse(order.rank(&row.totals)));
        rows.truncate(top);
        Ok(json::scopes(&Scopes { times: self.times, rows, pairs, total: self.total }))
    }

    fn stacks(&self, query: &str) -> Result<String, String> {
        let keys =
            ["site", "function", "file", "line", "crate", "via", "by", "scope", "top", "since", "sort", "at"];
        let query = HeapQuery::parse(query, &keys)?;
        let wanted = self.stacks_in(query.asked.scope.as_ref()).filter(|stack| {
            query.filter.admits(Some(if query.asked.nearest { &stack.nearest } else { &stack.site }))
        });
        let held: Vec<StackTotals> = wanted.map(|stack| stack.held.clone()).collect();
        let mut held = if self.scopes > 0 { call_tree::merge_equal_stacks(held) } else { held };
        held.sort_by_key(|held| Reverse(query.order.rank(&held.totals)));
        let (stacks, total) = (held.len(), sum(&held));
        let rest = held.split_off(query.top.min(stacks));
        Ok(json::stacks(&self.times, &held, stacks, sum(&rest), total))
    }

    fn tree(&self, query: &str) -> Result<String, String> {
        let query = HeapQuery::parse(query, &["value", "since", "at", "nodes", "scope"])?;
        let scope = query.asked.scope.as_ref();
        let held: Vec<StackTotals> = self.stacks_in(scope).map(|stack| stack.held.clone()).collect();
        let root =
            call_tree::tree(&held, query.value, query.nodes).of_total(self.total_in(scope), query.value);
        Ok(json::tree(&self.times, query.value, &root))
    }
}

fn totals(row: &StatisticDiff) -> Totals {
    let mut totals = Totals::default();
    (totals.size, totals.count) = (row.size, row.count);
    (totals.size_diff, totals.count_diff) = (row.size_diff, row.count_diff);
    totals
}

fn sum<'a>(held: impl IntoIterator<Item = &'a StackTotals>) -> Totals {
    held.into_iter().fold(Totals::default(), |sum, held| sum.plus(held.totals))
}

/// Lists the paths that a file has.
fn paths() -> Vec<&'static str> {
    ENDPOINTS.iter().filter_map(|endpoint| routes::path(*endpoint)).collect()
}

/// Members of `summary.json` that a file can tell.
#[derive(Serialize)]
struct Summary<'a> {
    version: u32,
    number: u64,
    taken_at: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<f64>,
    size: u64,
    count: u64,
    size_diff: i64,
    count_diff: i64,
    stacks: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    scopes: Option<usize>,
    sample_interval_bytes: u64,
    file: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// Least age of the blocks in the file, where it has no others.
    #[serde(skip_serializing_if = "Option::is_none")]
    older_than_seconds: Option<f64>,
    build: Build<'a>,
    paths: Vec<&'static str>,
}

#[derive(Serialize)]
struct Build<'a> {
    version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    build_id: Option<&'a str>,
}
