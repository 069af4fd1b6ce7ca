//! Views of the collector → the JSON of `/debug/heap/…`.
//!
//! Pure functions on values; linear in the length of their text. `size` and `count` are live bytes and live blocks, as in
//! the snapshot file; times are seconds since 1970.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;

use super::ages_json::AgesOfRow;
use super::allocator_json::Parts;
use super::diff::{Figures, Row};
pub(crate) use super::unix_seconds;
use crate::analyze::call_tree::{Node, NodeKind, StackTotals, Value};
use crate::analyze::collector::{Overview, PairTotals, PastTotals, Scopes, SiteTotals, Sites, Times};
use crate::analyze::frame::{Frame, Traceback, UNKNOWN};
use crate::analyze::snapshot::statistic::Totals;
use crate::analyze::symbols::LineTables;

pub(crate) const VERSION: u32 = 1;

/// Dump in the directory of dumps.
#[derive(Debug, Serialize)]
pub(crate) struct Dump {
    pub name: String,
    pub reason: &'static str,
    pub bytes: u64,
    pub modified: f64,
}

/// Renders `summary.json`. `paths` are those that this server has, `dumps` those of its directory, if it has one.
pub(crate) fn summary(
    overview: &Overview,
    paths: &[&str],
    source_url: Option<&str>,
    dumps: Option<&[Dump]>,
) -> String {
    let Overview { report, naming, history, snapshots, scopes } = overview;
    let kept_totals = |id: Option<u64>, past: &PastTotals| KeptTotals {
        id,
        taken_at: unix_seconds(past.taken_at),
        size: past.live.bytes,
        count: past.live.blocks,
    };
    text(&Summary {
        version: VERSION,
        number: report.number,
        taken_at: unix_seconds(report.taken_at),
        started_at: unix_seconds(report.started_at),
        tracking: report.tracking,
        size: report.live.now.bytes,
        count: report.live.now.blocks,
        size_diff: report.live.delta_bytes(),
        count_diff: report.live.delta_blocks(),
        delta_window_seconds: report.delta_window.as_secs_f64(),
        old_age_seconds: report.old_age.as_secs_f64(),
        leak: report.leak.as_ref().map(|leak| LeakingSite {
            site: leak.site(),
            function: leak.function(),
            file: leak.file(),
            line: leak.line(),
            bytes_per_second: leak.bytes_per_second,
            until_limit_seconds: leak.until_limit.map(|left| left.as_secs_f64()),
            text: leak.to_string(),
        }),
        peak_bytes: report.peak_bytes,
        allocated_bytes: report.allocated_bytes,
        allocations: report.allocations,
        deallocated_bytes: report.deallocated_bytes,
        deallocations: report.deallocations,
        untracked_bytes: report.untracked_bytes,
        overhead_bytes: report.overhead_bytes,
        unnamed_bytes: Unnamed { pending: report.unnamed.pending, lost: report.unnamed.lost },
        resident_bytes: report.resident_bytes,
        parts: report.memory_parts.as_ref().map(Parts::from),
        memory_limit_bytes: report.memory_limit_bytes,
        memory_limit_usage_bytes: report.memory_limit_usage_bytes,
        sample_interval_bytes: report.sample_interval_bytes,
        dropped_events: Dropped {
            memory: report.dropped.memory,
            reentrant: report.dropped.reentrant,
            scopes: report.dropped.scopes,
            stacks: report.dropped.stacks,
            threads: report.dropped.threads,
        },
        naming: Naming { named: naming.named, total: naming.total },
        scopes: Some(*scopes).filter(|scopes| *scopes > 0),
        history: history.iter().map(|past| kept_totals(None, past)).collect(),
        snapshots: snapshots.iter().map(|(id, past)| kept_totals(Some(*id), past)).collect(),
        build: Build {
            version: report.build.version,
            build_id: &report.build.build_id,
            release: &report.build.release,
            site_scheme: report.build.site_scheme,
            capture: report.build.capture,
            symbols: report.build.symbols,
            lines: lines_label(report.build.lines),
        },
        paths,
        source_url,
        previous_run: report.previous_run.as_ref().map(|run| EarlierRun {
            reason: &run.reason,
            function: &run.function,
            site: &run.site,
            dump: &run.dump,
        }),
        dumps,
    })
}

#[derive(Serialize)]
struct Summary<'a> {
    version: u32,
    number: u64,
    taken_at: f64,
    started_at: f64,
    tracking: bool,
    size: u64,
    count: u64,
    size_diff: i64,
    count_diff: i64,
    delta_window_seconds: f64,
    old_age_seconds: f64,
    leak: Option<LeakingSite<'a>>,
    peak_bytes: u64,
    allocated_bytes: u64,
    allocations: u64,
    deallocated_bytes: u64,
    deallocations: u64,
    untracked_bytes: u64,
    overhead_bytes: u64,
    unnamed_bytes: Unnamed,
    resident_bytes: Option<u64>,
    parts: Option<Parts>,
    memory_limit_bytes: Option<u64>,
    memory_limit_usage_bytes: Option<u64>,
    sample_interval_bytes: u64,
    dropped_events: Dropped,
    naming: Naming,
    /// Number of scopes that hold memory; absent without any.
    #[serde(skip_serializing_if = "Option::is_none")]
    scopes: Option<usize>,
    history: Vec<KeptTotals>,
    snapshots: Vec<KeptTotals>,
    build: Build<'a>,
    paths: &'a [&'a str],
    source_url: Option<&'a str>,
    previous_run: Option<EarlierRun<'a>>,
    dumps: Option<&'a [Dump]>,
}

#[derive(Serialize)]
struct LeakingSite<'a> {
    site: String,
    function: &'a str,
    file: &'a str,
    line: u32,
    bytes_per_second: f64,
    until_limit_seconds: Option<f64>,
    /// Place, function, rate and time left in one line.
    text: String,
}

#[derive(Serialize)]
struct EarlierRun<'a> {
    reason: &'a str,
    function: &'a str,
    site: &'a str,
    dump: &'a str,
}

#[derive(Serialize)]
struct Unnamed {
    pending: u64,
    lost: u64,
}

#[derive(Serialize)]
struct Dropped {
    memory: u64,
    reentrant: u64,
    /// Those alone lost a scope and no line; absent where there were none.
    #[serde(skip_serializing_if = "is_zero")]
    scopes: u64,
    stacks: u64,
    threads: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[derive(Serialize)]
struct Naming {
    named: usize,
    total: usize,
}

#[derive(Serialize)]
struct KeptTotals {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    taken_at: f64,
    size: u64,
    count: u64,
}

#[derive(Serialize)]
struct Build<'a> {
    version: &'a str,
    build_id: &'a str,
    release: &'a str,
    site_scheme: &'a str,
    capture: &'a str,
    symbols: &'a str,
    /// Reason why there are no lines, which the page says.
    lines: &'static str,
}

fn lines_label(lines: LineTables) -> &'static str {
    match lines {
        LineTables::Available => "found",
        LineTables::Absent => "absent",
        LineTables::TooLarge => "too large",
        LineTables::PartsMissing => "parts missing",
    }
}

/// Renders `sites.json`.
pub(crate) fn sites(sites: &Sites) -> String {
    text(&SitesDocument {
        head: Head::of(&sites.times),
        sites: sites.sites,
        history_at: sites.history_at.iter().map(|&at| unix_seconds(at)).collect(),
        rows: sites
            .rows
            .iter()
            .map(|row @ SiteTotals { site, totals, stderr, diff_stderr, history, .. }| SiteRow {
                site: site.label(),
                function: &site.function,
                file: &site.file,
                line: site.line,
                krate: &site.krate,
                via: &site.via,
                figures: Figures::estimated(totals, *stderr, *diff_stderr),
                ages: row.ages.as_ref().map(|ages| AgesOfRow::of(ages, totals.size)),
                history,
            })
            .collect(),
        other: (&sites.other).into(),
        total: (&sites.total).into(),
    })
}

/// Members at the beginning of every answer about a moment.
#[derive(Serialize)]
struct Head {
    version: u32,
    number: u64,
    taken_at: f64,
    since: f64,
}

impl Head {
    fn of(times: &Times) -> Head {
        let &Times { number, taken_at, since } = times;
        Head { version: VERSION, number, taken_at: unix_seconds(taken_at), since: unix_seconds(since) }
    }
}

#[derive(Serialize)]
struct SitesDocument<'a> {
    #[serde(flatten)]
    head: Head,
    sites: usize,
    history_at: Vec<f64>,
    rows: Vec<SiteRow<'a>>,
    other: Figures,
    total: Figures,
}

#[derive(Serialize)]
struct SiteRow<'a> {
    site: String,
    function: &'a str,
    file: &'a str,
    line: u32,
    #[serde(rename = "crate")]
    krate: &'a str,
    via: &'a str,
    #[serde(flatten)]
    figures: Figures,
    #[serde(flatten)]
    ages: Option<AgesOfRow>,
    history: &'a [u64],
}

/// Renders `scopes.json`.
pub(crate) fn scopes(scopes: &Scopes) -> String {
    let row = |row: &'_ PairTotals| Figures::estimated(&row.totals, row.stderr, row.diff_stderr);
    text(&ScopesDocument {
        head: Head::of(&scopes.times),
        pairs: scopes.pairs,
        rows: scopes
            .rows
            .iter()
            .map(|one| ScopeRow { key: &one.pair.0, value: &one.pair.1, figures: row(one) })
            .collect(),
        total: (&scopes.total).into(),
    })
}

#[derive(Serialize)]
struct ScopesDocument<'a> {
    #[serde(flatten)]
    head: Head,
    pairs: usize,
    rows: Vec<ScopeRow<'a>>,
    total: Figures,
}

#[derive(Serialize)]
struct ScopeRow<'a> {
    key: &'a str,
    value: &'a str,
    #[serde(flatten)]
    figures: Figures,
}

/// Renders `stacks.json`: the stacks shown, and the rest of the total.
pub(crate) fn stacks(
    times: &Times,
    shown: &[StackTotals],
    stacks: usize,
    other: Totals,
    total: Totals,
) -> String {
    let unknown = Traceback::new([Frame::new(None, UNKNOWN, 0)]);
    let row = |held: &'_ StackTotals| held.traceback.clone().unwrap_or_else(|| unknown.clone());
    let tracebacks: Vec<Traceback> = shown.iter().map(row).collect();
    text(&StacksDocument {
        head: Head::of(times),
        stacks,
        rows: shown
            .iter()
            .zip(&tracebacks)
            .map(|(held, traceback)| Row::new(traceback.to_string(), (&held.totals).into(), traceback))
            .collect(),
        other: (&other).into(),
        total: (&total).into(),
    })
}

#[derive(Serialize)]
struct StacksDocument<'a> {
    #[serde(flatten)]
    head: Head,
    stacks: usize,
    rows: Vec<Row<'a>>,
    other: Figures,
    total: Figures,
}

/// Renders `tree.json`.
pub(crate) fn tree(times: &Times, value: Value, root: &Node) -> String {
    let mut frames = Frames::default();
    let mut nodes = Vec::new();
    TreeNode::list(root, None, &mut frames, &mut nodes);
    text(&TreeDocument { head: Head::of(times), value: value.name(), frames: frames.frames, nodes })
}

#[derive(Serialize)]
struct TreeDocument<'a> {
    #[serde(flatten)]
    head: Head,
    value: &'a str,
    frames: Vec<TreeFrame<'a>>,
    nodes: Vec<TreeNode>,
}

/// Frames of a tree, each once, however often the tree shows it.
#[derive(Default)]
struct Frames<'a> {
    frames: Vec<TreeFrame<'a>>,
    index: HashMap<*const Frame, usize>,
}

#[derive(Serialize)]
struct TreeFrame<'a> {
    function: std::borrow::Cow<'a, str>,
    file: &'a str,
    line: u32,
    #[serde(rename = "crate")]
    krate: &'a str,
}

/// Node of a list, not nested: parsers of JSON give up at a depth that stacks reach.
#[derive(Serialize)]
struct TreeNode {
    parent: Option<usize>,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    frame: Option<usize>,
    value: u64,
    #[serde(flatten)]
    figures: Figures,
    stacks: usize,
}

impl TreeNode {
    fn list<'a>(node: &'a Node, parent: Option<usize>, frames: &mut Frames<'a>, nodes: &mut Vec<TreeNode>) {
        let (kind, frame) = match &node.kind {
            NodeKind::Root => ("root", None),
            NodeKind::Cut => ("cut", None),
            NodeKind::Unnamed => ("unnamed", None),
            NodeKind::Remainder => ("rest", None),
            NodeKind::Other => ("other", None),
            NodeKind::Frame(frame) => ("frame", Some(frames.at(frame))),
        };
        let (value, figures, stacks) = (node.value, (&node.totals).into(), node.stacks);
        let at = nodes.len();
        nodes.push(TreeNode { parent, kind, frame, value, figures, stacks });
        node.children.iter().for_each(|child| TreeNode::list(child, Some(at), frames, nodes));
    }
}

impl<'a> Frames<'a> {
    fn at(&mut self, frame: &'a Arc<Frame>) -> usize {
        *self.index.entry(Arc::as_ptr(frame)).or_insert_with(|| {
            self.frames.push(TreeFrame {
                function: frame.name(),
                file: &frame.file,
                line: frame.line,
                krate: frame.crate_name(),
            });
            self.frames.len() - 1
        })
    }
}

/// Renders a document.
pub(crate) fn text(document: &impl Serialize) -> String {
    // Strings and numbers alone: there is nothing it could refuse.
    serde_json::to_string(document).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests;
