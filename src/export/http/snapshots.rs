//! `/memory/snapshots` → the heap beside an earlier one, as text or JSON; and a snapshot that is kept.
//!
//! Any thread of any tokio runtime. The collector's lock is held for slices of about 0.1 s at most.

use std::time::SystemTime;

use hyper::{StatusCode, Uri};

use super::query::{self, Format, Query, SINCE_OR_DUMP};
use super::response::{JSON, Response, TEXT, answer, catch_panic, refuse};
use super::{Outlet, dumps, name_all};
use crate::analyze::collector::{Collector, CompareError, Compared, SavedSnapshot};
use crate::analyze::memory_parts;
use crate::analyze::snapshot::Snapshot;
use crate::analyze::snapshot::group::GroupBy;
use crate::analyze::snapshot::statistic::{Top, Totals};
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
    let Compared { new, old, total } = match collector.compare(query.since, None) {
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
    if query.scope.is_some() {
        // No exact total is known of a part.
        return rows(query, &new, &old, None, None);
    }
    let resident = memory_parts::latest().and_then(|reading| allocator_json::line(&reading.parts));
    rows(query, &new, &old, resident, Some(total))
}

/// Answers with the rows of a snapshot beside another one, and the line about resident memory if it is about now. `total` is the
/// exact total, where it is known.
pub(super) fn rows(
    query: &Query,
    new: &Snapshot,
    old: &Snapshot,
    resident: Option<String>,
    total: Option<Totals>,
) -> Response {
    let filtered = query
        .scope
        .as_ref()
        .map(|scope| [new, old].map(|snapshot| snapshot.filtered(|trace| scope.admits(&trace.scope))));
    let [new, old] = filtered.as_ref().map_or([new, old], |[new, old]| [new, old]);
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
            let text = diff::json(&top, new.taken_at(), old.taken_at(), new.sample_interval());
            answer(StatusCode::OK, JSON, text)
        }
    }
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
