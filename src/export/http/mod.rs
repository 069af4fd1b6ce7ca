//! Path and query → outlet, as an [`axum::Router`].
//!
//! | path | answer |
//! |---|---|
//! | `GET /` | on loopback: to the page |
//! | `GET /metrics` | Prometheus text |
//! | `GET /health` | `ok` |
//! | `GET /memory/snapshots` | how the heap differs from an earlier one, as text or JSON |
//! | `POST /memory/snapshots` | keeps a snapshot of now; JSON: `id`, `taken_at`, `size`, `count` |
//! | `GET /debug/heap` | a page for people, made from the JSON below and nothing else |
//! | `GET /debug/heap/summary.json` | totals, history, kept snapshots, progress of naming |
//! | `GET /debug/heap/sites.json` | lines of code and what they hold: `top`, `since`, `sort`, `at`, `history` |
//! | `GET /debug/heap/stacks.json` | stacks: `site`, `function`, `file`, `line`, `crate`, `top`, `since`, `sort`, `at` |
//! | `GET /debug/heap/tree.json` | the call tree of a flame graph: `value`, `nodes`, `since`, `at` |
//! | `GET /debug/heap/snapshot.json` | the file that [`Snapshot::save`](crate::Snapshot::save) writes |
//! | `GET /debug/heap/folded` | folded stacks for flame graphs, `?value=bytes` or `blocks` |
//! | `GET /debug/pprof/heap`, `/debug/pprof/allocs` | profiles (feature `pprof`), `?seconds=1` to 59 or `?debug=1` |
//!
//! # The JSON of `/debug/heap`
//!
//! `size` and `count` are live bytes and live blocks, `size_diff` and `count_diff` their change since an
//! earlier moment, times seconds since 1970. `version` is 1; members may be added.
//!
//! * **summary.json**: `number` and `taken_at` of the moment it is about; `tracking`; `size`, `count`,
//!   `size_diff`, `count_diff` (since the baseline, `delta_window_seconds` ago); `started_at`; what the metrics
//!   of the same name say (`peak_bytes`, `allocated_bytes`, `allocations`, `deallocated_bytes`,
//!   `deallocations`, `untracked_bytes`, `overhead_bytes`, `unnamed_bytes` (`pending` and `lost`), `resident_bytes`, `memory_limit_bytes`,
//!   `sample_interval_bytes`, `dropped_events`, `build`); `naming`: stacks that are `named`, of the `total`
//!   that hold memory; `history` and `snapshots`: `taken_at`, `size` and `count` of what is kept for baselines
//!   and on request, oldest first, the latter with the `id` that `since` takes; `paths`: what is served here.
//! * **sites.json**: `rows`, each `site`, `function`, `file`, `line`, `crate`, the four figures and `history`
//!   (live bytes at the moments `history_at`, of which there are at most `history`, 0 to 64, default 16), and
//!   where they are [estimates](crate::docs::sampling) `stderr` and `diff_stderr`, the standard errors of `size` and
//!   `size_diff`;
//!   `other` is what the `top` rows (1 to 10000, default 100) leave out, so that they add up to `total`;
//!   `sites` says how many there are. Stacks without a name count in `other`.
//! * **stacks.json**: `rows` as `/memory/snapshots?format=json` has them, of the sites that have all that is
//!   asked for; `stacks` says how many there are, `other` what the `top` rows leave out.
//! * **tree.json**: `nodes`, a list in which each comes after its `parent` (an index; `null` for the root).
//!   `kind` is `root`; `frame`, with an index into `frames`; `cut`, stacks whose oldest frames were not
//!   recorded; `unnamed`; `rest`, what a node holds beside those that found room (`nodes`, 1 to 20000,
//!   default 2000); or `other`, below the root, what no sample stands for. `value` is its width: bytes, blocks, or
//!   growth, the sum of what grew, as asked for by `value`; `stacks` says how many pass through it. The root has
//!   the four figures of the total, and each node at least the `size` and `count` of its children together. The
//!   oldest frame comes first, and frames beyond the traceback limit are there, too.
//!
//! `since` and `sort` are those of `/memory/snapshots`; here the defaults are `previous` and `size`. `at` is one of
//! the last four `number`s of `summary.json`, for a minute: answers with the same `at` are about the same moment
//! and add up, and do not wait for names. Without it they are of now, and wait up to 20 s until every stack has one.
//!
//! # Who may ask, and what it costs
//!
//! On a loopback address of a server of heapgauge's everything but `/metrics` and `/health` is there too; elsewhere only
//! where somebody asked for it. [`router`] has these two, and [`debug_router`] the others. Answers take what they need in slices of about 0.1 s and let
//! others run in between; nothing here waits for a lock longer than such a slice. With 10,000 stacks an answer
//! takes some 50 ms at most; with 100,000 the tree takes a second, half of it in one go.
#![forbid(unsafe_code)]

mod answers;
mod debug_heap;
mod own_thread;
mod profiles;
mod query;

use std::net::{IpAddr, Ipv6Addr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, Version};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use axum::{Router, body};

use crate::analyze::collector::{Collector, Compared, Nothing, Posted, Since};
use crate::analyze::snapshot::compare;
use crate::export::emit::diff;
use crate::export::emit::prometheus::{self, Cached};
use crate::export::env::{Expose, Shown};
use crate::record::control;
use crate::record::fork::mutex::PerProcess;
use own_thread::on_own_thread;
use profiles::Turns;
use query::{Format, Query, SINCE};

/// No path takes a body worth more than this.
const MAX_BODY_BYTES: u64 = 64 << 10;
const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// From a request's head (at first: from the connection) until its answer begins, and from there until the next
/// request's head. A client that does not read its answer ends here too.
pub(crate) const REQUEST_TIME: Duration = Duration::from_secs(60);
/// The longest a request waits for names; what has none by then shows as unknown.
const NAMING_TIME: Duration = Duration::from_secs(20);
/// What there is to say when that was not enough.
const NAMED_LATE: &str =
    "names are still being read, try again in a moment; /debug/heap/summary.json says how far";
/// The paths of a loopback address.
const PATHS: &[&str] = &[
    "/metrics",
    "/health",
    "/memory/snapshots",
    "/debug/heap",
    "/debug/heap/summary.json",
    "/debug/heap/sites.json",
    "/debug/heap/stacks.json",
    "/debug/heap/tree.json",
    "/debug/heap/snapshot.json",
    "/debug/heap/folded",
    #[cfg(feature = "pprof")]
    "/debug/pprof/heap",
    #[cfg(feature = "pprof")]
    "/debug/pprof/allocs",
];

/// The clients a listener is for, and the paths they get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// On a loopback address: every path, but not for a browser that was led here by a foreign name.
    Loopback,
    /// On the loopback address beside another one: as above, and not for requests that a proxy or mesh forwards.
    Debug,
    /// On any other address: the paths that the program exposes.
    Foreign(Expose),
}

impl Access {
    fn is_local(self) -> bool {
        matches!(self, Access::Loopback | Access::Debug)
    }

    /// Paths that are served, for the line about another one.
    fn paths(self) -> String {
        match self {
            Access::Loopback | Access::Debug | Access::Foreign(Expose::All) => PATHS.join(", "),
            Access::Foreign(Expose::Metrics) => {
                "/metrics, /health; others on a loopback address or where HEAPGAUGE_EXPOSE says so".into()
            }
            Access::Foreign(Expose::Pprof) => {
                "/metrics, /health, /debug/pprof/heap, /debug/pprof/allocs; others on a loopback address or where \
                 HEAPGAUGE_EXPOSE=all"
                    .into()
            }
        }
    }
}

/// `/metrics` and `/health` as a router, for a program that already has a server.
///
/// These two show no more than metrics do: lines of code, and how much they hold. Everything else is
/// [`debug_router`]. It brings no fallback, so it can be merged or nested.
///
/// Collections run on a thread of heapgauge's, which the first request starts; the program's async workers only wait
/// for the answer, on any executor. Only heapgauge's own code is paused: what the surrounding server allocates for a
/// request is the program's.
///
/// # Examples
///
/// ```
/// let collector = heapgauge::Collector::new();
/// let app: axum::Router = axum::Router::new()
///     .route("/", axum::routing::get(|| async { "the program's own page" }))
///     .merge(heapgauge::http::router(&collector));
/// # drop(app);
/// ```
pub fn router(collector: &Collector) -> Router {
    let _own = control::own();
    let metrics = metrics_routes().route_layer(middleware::from_fn(on_own_thread));
    finish(metrics.merge(health_route()), &outlet(collector)).layer(middleware::map_response(nosniff))
}

/// Every path but those of [`router`], for a program that already has a server.
///
/// They show every stack of the program to each client that reaches them, and can take snapshots: serve them on a
/// port of their own on loopback, or behind the program's own login.
///
/// As with [`router`], the work is done on a thread of heapgauge's. An answer that its client does not read is given up
/// after a minute.
///
/// # Examples
///
/// ```
/// let collector = heapgauge::Collector::new();
/// // On the port that everybody reaches:
/// let public: axum::Router = heapgauge::http::router(&collector);
/// // On a port of 127.0.0.1:
/// let private: axum::Router = axum::Router::new().merge(heapgauge::http::debug_router(&collector));
/// # drop((public, private));
/// ```
pub fn debug_router(collector: &Collector) -> Router {
    let _own = control::own();
    let debug = debug_routes().route_layer(middleware::from_fn(on_own_thread));
    finish(debug, &outlet(collector)).layer(middleware::map_response(nosniff))
}

/// Makes what the answers of one server come from.
pub(crate) fn outlet(collector: &Collector) -> Arc<Outlet> {
    Arc::new(Outlet {
        collector: collector.clone(),
        metrics: Cached::default(),
        turns: PerProcess::default(),
    })
}

/// The whole of one of heapgauge's own listeners.
pub(crate) fn app(outlet: &Arc<Outlet>, access: Access) -> Router {
    let mut routes = metrics_routes().merge(health_route());
    match access {
        Access::Foreign(Expose::Metrics) => {}
        Access::Foreign(Expose::Pprof) => routes = routes.merge(profile_routes()),
        Access::Foreign(Expose::All) => routes = routes.merge(debug_routes()),
        Access::Loopback | Access::Debug => {
            routes = routes.merge(debug_routes()).route("/", get(async || to_the_page()));
        }
    }
    finish(routes, outlet)
        .fallback(async move |uri: Uri| unknown_path(&uri, access))
        .layer(middleware::from_fn_with_state(access, guard))
        .layer(middleware::map_response(nosniff))
}

/// A person who opens the address the program printed wants the page.
fn to_the_page() -> Response {
    let mut response = answer(StatusCode::TEMPORARY_REDIRECT, TEXT, "see /debug/heap\n");
    response.headers_mut().insert(LOCATION, HeaderValue::from_static("/debug/heap"));
    response
}

/// An answer that says no. Boxed, because it is large and the other case is the common one.
type Refusal = Box<Response>;

/// What answers are made from.
pub(crate) struct Outlet {
    collector: Collector,
    metrics: Cached,
    turns: PerProcess<Turns>,
}

fn health_route() -> Router<Arc<Outlet>> {
    Router::new().route("/health", get(async || answer(StatusCode::OK, TEXT, "ok\n")))
}

fn metrics_routes() -> Router<Arc<Outlet>> {
    Router::new().route("/metrics", get(metrics))
}

fn debug_routes() -> Router<Arc<Outlet>> {
    Router::new()
        .route("/memory/snapshots", get(compare).post(keep))
        .route("/debug/heap/folded", get(profiles::folded))
        .merge(debug_heap::routes())
        .route_layer(middleware::from_fn(answers::bounded))
        .merge(profile_routes())
}

fn profile_routes() -> Router<Arc<Outlet>> {
    let routes = Router::new();
    #[cfg(feature = "pprof")]
    let routes = routes
        .route("/debug/pprof/heap", get(profiles::heap))
        .route("/debug/pprof/allocs", get(profiles::allocs))
        .route_layer(middleware::from_fn(answers::bounded));
    routes
}

fn finish(routes: Router<Arc<Outlet>>, outlet: &Arc<Outlet>) -> Router {
    routes.method_not_allowed_fallback(wrong_method).with_state(outlet.clone())
}

async fn metrics(State(outlet): State<Arc<Outlet>>) -> Response {
    let report = loop {
        match caught(|| outlet.collector.collect_slice()) {
            Ok(Some(report)) => break report,
            Ok(None) => tokio::task::yield_now().await,
            Err(failed) => return *failed,
        }
    };
    caught(|| {
        let _own = control::own();
        answer(StatusCode::OK, prometheus::CONTENT_TYPE, outlet.metrics.text(&report).to_string())
    })
    .unwrap_or_else(|failed| *failed)
}

/// `GET /memory/snapshots`: the heap of now beside that of then.
async fn compare(State(outlet): State<Arc<Outlet>>, uri: Uri) -> Response {
    let query = match caught(|| Query::parse(uri.query().unwrap_or(""))) {
        Ok(Ok(query)) => query,
        Ok(Err(line)) => return refuse(StatusCode::BAD_REQUEST, format_args!("{line}")),
        Err(failed) => return *failed,
    };
    if let Err(failed) = name_all(&outlet.collector, query.since).await {
        return *failed;
    }
    let made = caught(|| {
        let _own = control::own();
        show(&outlet.collector, &query)
    });
    made.unwrap_or_else(|failed| *failed)
}

/// Where every stack is shown by name all are named first, for as long as a client would wait. False:
/// there are more.
async fn name_all(collector: &Collector, since: Since) -> Result<bool, Refusal> {
    let begun = Instant::now();
    loop {
        match caught(|| collector.name_all_slice(since))? {
            false if begun.elapsed() < NAMING_TIME => tokio::task::yield_now().await,
            all => return Ok(all),
        }
    }
}

/// The rows asked for, or why there are none.
fn show(collector: &Collector, query: &Query) -> Response {
    let Compared { new, old, total } = match collector.compare(query.since) {
        Ok(compared) => compared,
        Err(Nothing::TrackingOff(off)) => {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, format_args!("{off}"));
        }
        Err(unknown) => {
            let line = format_args!("parameter since: {unknown}, allowed are {SINCE}");
            return refuse(StatusCode::BAD_REQUEST, line);
        }
    };
    let mut rows = new.compare_to(&old, query.group_by);
    query.order.sort(&mut rows);
    let top = compare::top(rows, query.top).of_total(total);
    match query.format {
        Format::Text => answer(StatusCode::OK, TEXT, diff::text(&top, query.group_by)),
        Format::Json => {
            let text = diff::json(&top, new.taken_at(), old.taken_at(), new.sample_interval());
            answer(StatusCode::OK, JSON, text)
        }
    }
}

/// `POST /memory/snapshots`: keeps the heap of now.
async fn keep(State(outlet): State<Arc<Outlet>>, uri: Uri) -> Response {
    let made = caught(|| {
        let _own = control::own();
        if let Err(line) = query::none(uri.query().unwrap_or("")) {
            return refuse(StatusCode::BAD_REQUEST, format_args!("{line}"));
        }
        match outlet.collector.post() {
            Ok(Posted { number, taken_at, live_bytes, live_blocks }) => {
                let taken_at = taken_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                let text = serde_json::json!({
                    "id": number,
                    "taken_at": taken_at.as_secs_f64(),
                    "size": live_bytes,
                    "count": live_blocks,
                });
                answer(StatusCode::OK, JSON, format!("{text}\n"))
            }
            Err(nothing) => refuse(StatusCode::SERVICE_UNAVAILABLE, format_args!("{nothing}")),
        }
    });
    made.unwrap_or_else(|failed| *failed)
}

fn unknown_path(uri: &Uri, access: Access) -> Response {
    refuse(
        StatusCode::NOT_FOUND,
        format_args!("path {} is unknown, allowed are {}", Shown(uri.path()), access.paths()),
    )
}

/// The header `allow` is added by the router.
async fn wrong_method(request: Request) -> Response {
    let path = request.uri().path();
    let allowed = if path.ends_with("/memory/snapshots") { "GET, HEAD, POST" } else { "GET, HEAD" };
    refuse(
        StatusCode::METHOD_NOT_ALLOWED,
        format_args!(
            "method {} is not allowed on {}, allowed are {allowed}",
            Shown(request.method().as_str()),
            Shown(path)
        ),
    )
}

/// What a path is asked for before it is reached at all.
async fn guard(State(access): State<Access>, request: Request, next: Next) -> Response {
    if access.is_local()
        && let Err(foreign) = from_here(request.version(), request.uri(), request.headers())
    {
        return *foreign;
    }
    if access == Access::Debug
        && let Some(header) = request.headers().keys().find(|name| is_of_a_proxy(name))
    {
        return refuse(
            StatusCode::FORBIDDEN,
            format_args!(
                "the header {header} is of a forwarded request, allowed are requests from this machine"
            ),
        );
    }
    let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > MAX_BODY_BYTES) {
        return refuse(
            StatusCode::PAYLOAD_TOO_LARGE,
            format_args!("the body is longer than the {MAX_BODY_BYTES} bytes allowed"),
        );
    }
    next.run(request).await
}

async fn nosniff(mut response: Response) -> Response {
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Headers that proxies and meshes add to requests that they pass on, from wherever these come.
fn is_of_a_proxy(header: &HeaderName) -> bool {
    let name = header.as_str();
    name == "forwarded" || ["x-forwarded-", "x-envoy-", "l5d-"].iter().any(|prefix| name.starts_with(prefix))
}

/// A web page may point a name of its own at 127.0.0.1 and read what is served here as its own. The
/// browser then sends that name, so only names that cannot be pointed anywhere are let in.
fn from_here(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(HOST).iter().peekable();
    if hosts.peek().is_none() && version > Version::HTTP_10 {
        return Err(Box::new(refuse(
            StatusCode::BAD_REQUEST,
            format_args!("the header Host is missing, allowed are localhost, 127.0.0.1 and [::1]"),
        )));
    }
    let foreign = |header: HeaderName, value: &[u8]| {
        Box::new(refuse(
            StatusCode::FORBIDDEN,
            format_args!(
                "{header} {} is foreign, allowed are localhost, 127.0.0.1 and [::1]",
                Shown(&String::from_utf8_lossy(value))
            ),
        ))
    };
    if let Some(host) = hosts.find(|host| !host.to_str().is_ok_and(is_loopback)) {
        return Err(foreign(HOST, host.as_bytes()));
    }
    if let Some(authority) = uri.authority().filter(|authority| !is_loopback(authority.as_str())) {
        return Err(foreign(HOST, authority.as_str().as_bytes()));
    }
    let is_local_page = |origin: &str| {
        origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")).is_some_and(is_loopback)
    };
    match headers.get_all(ORIGIN).iter().find(|origin| !origin.to_str().is_ok_and(is_local_page)) {
        Some(origin) => Err(foreign(ORIGIN, origin.as_bytes())),
        None => Ok(()),
    }
}

/// `localhost` or a loopback address in figures, with or without a port.
fn is_loopback(authority: &str) -> bool {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (authority, "0"),
    };
    if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return false;
    }
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok_and(|ip| ip.to_canonical().is_loopback()),
        None => {
            host.eq_ignore_ascii_case("localhost")
                || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4() && ip.is_loopback())
        }
    }
}

/// A fault of ours is one answer, not the end of the connection or of the server.
fn caught<T>(answer: impl FnOnce() -> T) -> Result<T, Refusal> {
    catch_unwind(AssertUnwindSafe(answer)).map_err(|_| {
        Box::new(refuse(
            StatusCode::INTERNAL_SERVER_ERROR,
            format_args!("heapgauge failed to answer, see stderr"),
        ))
    })
}

/// One line.
fn refuse(status: StatusCode, line: std::fmt::Arguments<'_>) -> Response {
    answer(status, TEXT, format!("{line}\n"))
}

fn answer(status: StatusCode, content_type: &'static str, text: impl Into<body::Bytes>) -> Response {
    let mut response = Response::new(Body::from(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_here_and_nowhere_else() {
        for here in [
            "localhost",
            "LocalHost:9898",
            "127.0.0.1",
            "127.0.0.1:1",
            "127.8.9.10:80",
            "[::1]",
            "[::1]:9898",
            "[::ffff:127.0.0.1]:80",
        ] {
            assert!(is_loopback(here), "{here}");
        }
        for foreign in [
            "",
            ":",
            ":80",
            "localhost:",
            "localhost:x",
            "localhost.evil.example",
            "evil.example:9898",
            "127.0.0.1.evil.example",
            "127.1",
            "10.0.0.1",
            "::1",
            "[::1",
            "[::2]:80",
            "[127.0.0.1]",
            "[::1]x:80",
            "user@localhost",
            "localhost:80:80",
        ] {
            assert!(!is_loopback(foreign), "{foreign}");
        }
    }

    #[test]
    fn a_panic_becomes_an_answer() {
        let failed = caught(|| -> u8 { panic!("planted by a test") }).unwrap_err();
        assert_eq!(failed.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
