//! `/debug/heap` → the page, and the JSON it is made from.
//!
//! Any thread of any tokio runtime. An answer costs some milliseconds for 10,000 stacks, in which the
//! collector's lock is held while the figures asked for are copied.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::SystemTime;

use http_body_util::BodyExt as _;
use hyper::body::Bytes;
use hyper::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue,
    REFERRER_POLICY,
};
use hyper::{StatusCode, Uri};

use super::heap_query::HeapQuery;
use super::query::{self, SINCE};
use super::response::{JSON, Refusal, Response, answer, catch_panic, refuse};
use super::{NAMED_LATE, Outlet, name_all};
use crate::analyze::call_tree;
use crate::analyze::collector::{Collector, CompareError, Since, Stacks};
use crate::analyze::snapshot::statistic::Totals;
use crate::analyze::snapshot::{self, Snapshot};
use crate::export::emit::json;
use crate::record::control;

/// Markup, style and script of the page; `{nonce}` is replaced by a random value in each answer.
const PAGE: &str = include_str!("page.html");
const AT: &str = "one of the last four numbers of summary.json, for a minute";

pub(super) fn page() -> Response {
    catch_panic(page_with_nonce).unwrap_or_else(|failed| *failed)
}

fn page_with_nonce() -> Response {
    let _own = control::internal();
    // Secret keys from the operating system: their hash of no input cannot be guessed.
    let random = || RandomState::new().build_hasher().finish();
    let nonce = format!("{:016x}{:016x}", random(), random());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let response = answer(StatusCode::OK, "text/html; charset=utf-8", PAGE.replace("{nonce}", &nonce));
    with(response, CONTENT_SECURITY_POLICY, &policy)
}

pub(super) async fn summary(outlet: &Outlet, uri: &Uri) -> Response {
    match asked(&outlet.collector, uri, &[]).await {
        Ok(_) => json(|| {
            Ok(json::summary(
                &outlet.collector.overview(),
                &super::routes::paths(),
                outlet.source_url.as_deref(),
                super::dumps::listed().and_then(Result::ok).as_deref(),
            ))
        }),
        Err(refusal) => *refusal,
    }
}

pub(super) async fn sites(outlet: &Outlet, uri: &Uri) -> Response {
    let keys = ["top", "since", "sort", "at", "history", "by", "scope", "older_than"];
    match asked(&outlet.collector, uri, &keys).await {
        Ok(HeapQuery { asked, order, top, history, .. }) => {
            json(|| Ok(json::sites(&outlet.collector.sites(asked, order, top, history).map_err(refusal)?)))
        }
        Err(refusal) => *refusal,
    }
}

pub(super) async fn scopes(outlet: &Outlet, uri: &Uri) -> Response {
    match asked(&outlet.collector, uri, &["top", "since", "sort", "at", "older_than"]).await {
        Ok(HeapQuery { asked, order, top, .. }) => {
            json(|| Ok(json::scopes(&outlet.collector.scopes(asked, order, top).map_err(refusal)?)))
        }
        Err(refusal) => *refusal,
    }
}

pub(super) async fn stacks(outlet: &Outlet, uri: &Uri) -> Response {
    let keys = [
        "site",
        "function",
        "file",
        "line",
        "crate",
        "via",
        "by",
        "scope",
        "older_than",
        "top",
        "since",
        "sort",
        "at",
    ];
    let (query, Stacks { times, held, .. }) = match read(&outlet.collector, uri, &keys, false).await {
        Ok(read) => read,
        Err(refusal) => return *refusal,
    };
    json(|| {
        let mut held = call_tree::merge_equal_stacks(held);
        held.sort_by_key(|held| Reverse(query.order.rank(&held.totals)));
        let stacks = held.len();
        let sum = |held: &[call_tree::StackTotals]| {
            held.iter().fold(Totals::default(), |sum, held| sum.plus(held.totals))
        };
        let total = sum(&held);
        let rest = held.split_off(query.top.min(stacks));
        Ok(json::stacks(&times, &held, stacks, sum(&rest), total))
    })
}

pub(super) async fn tree(outlet: &Outlet, uri: &Uri) -> Response {
    let keys = ["value", "since", "at", "nodes", "scope", "older_than"];
    match read(&outlet.collector, uri, &keys, true).await {
        Ok((query, Stacks { times, held, total, .. })) => json(|| {
            let held = call_tree::merge_equal_stacks(held);
            let root = call_tree::tree(&held, query.value, query.nodes).of_total(total, query.value);
            Ok(json::tree(&times, query.value, &root))
        }),
        Err(refusal) => *refusal,
    }
}

/// Answers with the file that `Snapshot::save` writes.
pub(super) async fn snapshot(outlet: &Outlet, uri: &Uri) -> Response {
    let parsed = catch_panic(|| {
        let _own = control::internal();
        query::snapshot_file(uri.query().unwrap_or(""))
    });
    let older_than = match parsed {
        Ok(Ok(older_than)) => older_than,
        Ok(Err(line)) => return refuse(StatusCode::BAD_REQUEST, format_args!("{line}")),
        Err(failed) => return *failed,
    };
    match name_all(&outlet.collector, Since::Previous).await {
        Ok(true) => {}
        Ok(false) => return refuse(StatusCode::SERVICE_UNAVAILABLE, format_args!("{NAMED_LATE}")),
        Err(failed) => return *failed,
    }
    let made = catch_panic(|| {
        let _own = control::internal();
        let taken = match older_than {
            None => Snapshot::take().map_err(CompareError::TrackingOff),
            Some(age) => {
                let old = outlet.collector.old_blocks(age);
                old.map(|raw| Snapshot::of_raw(raw, Vec::new()).of_older_than(age))
            }
        };
        let snapshot = match taken {
            Ok(snapshot) => snapshot,
            Err(off) => return refuse(StatusCode::SERVICE_UNAVAILABLE, format_args!("{off}")),
        };
        let seconds =
            snapshot.taken_at().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut response = Response::new(Pieces(Box::new(snapshot::pieces(snapshot).map(Ok))).boxed_unsync());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        let age = older_than.map_or("", |_| "-old");
        with(response, CONTENT_DISPOSITION, &format!("attachment; filename=\"heap{age}-{seconds}.json\""))
    });
    made.unwrap_or_else(|failed| *failed)
}

/// Parses the query. An answer about now shows names only, so they are waited for. A client that sends the number of a
/// moment asks again soon, and is answered at once.
async fn asked(collector: &Collector, uri: &Uri, keys: &[&str]) -> Result<HeapQuery, Refusal> {
    let parsed = catch_panic(|| {
        let _own = control::internal();
        HeapQuery::parse(uri.query().unwrap_or(""), keys)
    })?;
    let query = parsed.map_err(|line| Box::new(refuse(StatusCode::BAD_REQUEST, format_args!("{line}"))))?;
    if query.asked.at.is_none() && !keys.is_empty() {
        name_all(collector, query.asked.since).await?;
    }
    Ok(query)
}

/// Parses the query, and reads the stacks it asks for in slices.
async fn read(
    collector: &Collector,
    uri: &Uri,
    keys: &[&str],
    whole: bool,
) -> Result<(HeapQuery, Stacks), Refusal> {
    let query = asked(collector, uri, keys).await?;
    let mut stacks = catch_panic(|| collector.stacks(query.asked.clone()))?.map_err(refusal)?;
    while !catch_panic(|| collector.stacks_slice(&mut stacks, whole, |site| query.filter.admits(site)))? {
        tokio::task::yield_now().await;
    }
    Ok((query, stacks))
}

/// Answers with the JSON, or with the reason why there is none.
fn json(make: impl FnOnce() -> Result<String, Refusal>) -> Response {
    let made = catch_panic(|| {
        let _own = control::internal();
        match make() {
            Ok(text) => not_stored(answer(StatusCode::OK, JSON, text)),
            Err(refusal) => *refusal,
        }
    });
    made.unwrap_or_else(|failed| *failed)
}

fn refusal(error: CompareError) -> Refusal {
    let bad = StatusCode::BAD_REQUEST;
    Box::new(match error {
        CompareError::TrackingOff(off) => refuse(StatusCode::SERVICE_UNAVAILABLE, format_args!("{off}")),
        unknown @ CompareError::Unknown { .. } => {
            refuse(bad, format_args!("parameter since: {unknown}, allowed are {SINCE}"))
        }
        gone @ CompareError::Gone { .. } => {
            refuse(bad, format_args!("parameter at: {gone}, allowed is {AT}"))
        }
    })
}

/// Adds the headers that forbid caches and referrers.
pub(super) fn not_stored(response: Response) -> Response {
    with(response, CACHE_CONTROL, "no-store")
}

/// Adds a header, and those that forbid caches and referrers.
fn with(mut response: Response, name: HeaderName, value: &str) -> Response {
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
    response
}

/// Body of pieces, each made when the client has read those before.
pub(super) struct Pieces(pub(super) Box<dyn Iterator<Item = io::Result<Vec<u8>>> + Send>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, io::Error>>> {
        let _own = control::internal();
        Poll::Ready(self.0.next().map(|piece| piece.map(|piece| hyper::body::Frame::data(piece.into()))))
    }
}
