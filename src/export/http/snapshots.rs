//! `/memory/snapshots` → the heap beside an earlier one, as text or JSON; and a snapshot that is kept.
//!
//! Any thread of any tokio runtime. The collector's lock is held for slices of about 0.1 s at most.

use std::time::SystemTime;

use hyper::{StatusCode, Uri};

use super::query::{self, Format, Query, SINCE_OR_DUMP};
use super::response::{JSON, Response, TEXT, answer, catch_panic, refuse};
use super::{Outlet, dumps, name_all};
use crate::analyze::ages::{AGES, AgeBounds};
use crate::analyze::collector::{Collector, CompareError, CompareQuery, Compared, RowAges, SavedSnapshot};
use crate::analyze::memory_parts;
use crate::analyze::snapshot::group::GroupBy;
use crate::analyze::snapshot::statistic::{StatisticDiff, Top, Totals};
use crate::analyze::snapshot::{Snapshot, Trace};
use crate::export::emit::{allocator_json, diff};
use crate::record::control;

/// Answers `GET /memory/snapshots`: the heap of now beside an earlier one.
pub(super) async fn compare(outlet: &Outlet, uri: &Uri) -> Response {
    let query = match catch_panic(|| Query::parse(uri.query().unwrap_or(""))) {
        Ok(Ok(query)) => query,
        Ok(Err(line)) => return refuse(StatusCode::BAD_REQUEST, format_args!("{line}")),
        Err(failed) => return *failed,
    };
    if let Err(failed) = name_all(&outlet.collector, query.since).await {
        return *failed;
    }
    let made = catch_panic(|| {
        let _own = control::internal();
        show(&outlet.collector, &query)
    });
    made.unwrap_or_else(|failed| *failed)
}

/// Answers with the rows asked for, or with the reason why there are none.
fn show(collector: &Collector, query: &Query) -> Response {
    let with_ages = query.format == Format::Json && query.dump.is_none();
    let asked = CompareQuery { since: query.since, older_than: query.older_than, with_ages };
    let Compared { new, old, total, ages } = match collector.compare(asked) {
        Ok(compared) => compared,
        Err(CompareError::TrackingOff(off)) => {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, format_args!("{off}"));
        }
        Err(unknown) => {
            let line = format_args!("parameter since: {unknown}, allowed are {SINCE_OR_DUMP}");
            return refuse(StatusCode::BAD_REQUEST, line);
        }
    };
    if let Some(name) = &query.dump {
        return dumps::since_dump(query, name, &new);
    }
    let shown = Shown { new: &new, old: &old, ages: &ages, resident: None, total: None };
    if query.scope.is_some() {
        // No exact total is known of a part.
        return rows(query, shown);
    }
    let reading = memory_parts::latest().filter(|_| query.older_than.is_none());
    let resident = reading.and_then(|reading| allocator_json::line(&reading.parts));
    rows(query, Shown { resident, total: Some(total), ..shown })
}

/// Two snapshots that are compared, and figures that are known beside them.
pub(super) struct Shown<'a> {
    pub new: &'a Snapshot,
    pub old: &'a Snapshot,
    /// Ages of the traces of `new`, in their order; none where they are not known.
    pub ages: &'a [RowAges],
    /// Line about resident memory, if the answer is about now.
    pub resident: Option<String>,
    /// Exact total, where it is known.
    pub total: Option<Totals>,
}

/// Answers with the rows of a snapshot beside another one.
pub(super) fn rows(query: &Query, shown: Shown<'_>) -> Response {
    let Shown { new, old, ages, resident, total } = shown;
    let filtered = query.scope.as_ref().map(|scope| {
        let is_in = |trace: &Trace| scope.admits(&trace.scope);
        let ages = new.traces().iter().zip(ages).filter(|(trace, _)| is_in(trace));
        let ages: Vec<RowAges> = ages.map(|(_, ages)| *ages).collect();
        (new.filtered(is_in), old.filtered(is_in), ages)
    });
    let (new, old, ages) =
        filtered.as_ref().map_or((new, old, ages), |(new, old, ages)| (new, old, &ages[..]));
    let mut rows = new.compare_to(old, query.group_by);
    query.order.sort(&mut rows);
    let top = match query.group_by {
        GroupBy::Scope => new.top_scopes(old, rows, query.top, total),
        _ => total.into_iter().fold(Top::of(rows, query.top), Top::of_total),
    };
    match query.format {
        Format::Text => {
            let mut text = diff::text(&top, query.group_by);
            text.extend(resident.into_iter().flat_map(|line| [line, "\n".into()]));
            answer(StatusCode::OK, TEXT, text)
        }
        Format::Json => {
            let ages = ages_of_rows(new, &top.rows, query.group_by, ages);
            let text = diff::json(&top, &ages, new.taken_at(), old.taken_at(), new.sample_interval());
            answer(StatusCode::OK, JSON, text)
        }
    }
}

/// Adds the ages of the traces of a snapshot up by row; none where they are not known.
fn ages_of_rows(new: &Snapshot, rows: &[StatisticDiff], group_by: GroupBy, ages: &[RowAges]) -> Vec<RowAges> {
    if ages.is_empty() {
        return Vec::new();
    }
    let sums = |of: &dyn Fn(&RowAges) -> AgeBounds| -> Vec<AgeBounds> {
        let values = ages.iter().map(of).map(|of| (of.lower_bytes, of.upper_bytes));
        let sums = new.sums_of_rows(rows, group_by, values).into_iter();
        sums.map(|(lower_bytes, upper_bytes)| AgeBounds { lower_bytes, upper_bytes }).collect()
    };
    let live = new.sums_of_rows(rows, group_by, ages.iter().map(|ages| (ages.live_bytes, 0)));
    let old = sums(&|ages| ages.old);
    let by_age: [Vec<AgeBounds>; AGES.len()] = std::array::from_fn(|age| sums(&|ages| ages.ages[age]));
    let scores = new.largest_of_rows(rows, group_by, ages.iter().map(|ages| ages.leak_score));
    let row = |at: usize| RowAges {
        live_bytes: live[at].0,
        old: old[at],
        ages: std::array::from_fn(|age| by_age[age][at]),
        leak_score: scores[at],
    };
    (0..rows.len()).map(row).collect()
}

/// Answers `POST /memory/snapshots`: keeps a snapshot of now.
pub(super) fn keep(outlet: &Outlet, uri: &Uri) -> Response {
    let made = catch_panic(|| {
        let _own = control::internal();
        if let Err(line) = query::no_params(uri.query().unwrap_or("")) {
            return refuse(StatusCode::BAD_REQUEST, format_args!("{line}"));
        }
        match outlet.collector.post() {
            Ok(SavedSnapshot { number, taken_at, live }) => {
                let taken_at = taken_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                let text = serde_json::json!({
                    "id": number,
                    "taken_at": taken_at.as_secs_f64(),
                    "size": live.bytes,
                    "count": live.blocks,
                });
                answer(StatusCode::OK, JSON, format!("{text}\n"))
            }
            Err(nothing) => refuse(StatusCode::SERVICE_UNAVAILABLE, format_args!("{nothing}")),
        }
    });
    made.unwrap_or_else(|failed| *failed)
}
