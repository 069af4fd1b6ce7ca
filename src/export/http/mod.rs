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
//! | `GET /debug/heap/sites.json` | lines of code, and the memory they hold: `top`, `since`, `sort`, `at`, `history` |
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
//!   `size_diff`, `count_diff` (since the baseline, `delta_window_seconds` ago); `started_at`; the values of the metrics
//!   of the same name (`peak_bytes`, `allocated_bytes`, `allocations`, `deallocated_bytes`,
//!   `deallocations`, `untracked_bytes`, `overhead_bytes`, `unnamed_bytes` (`pending` and `lost`), `resident_bytes`, `memory_limit_bytes`,
//!   `sample_interval_bytes`, `dropped_events`, `build`); `naming`: stacks that are `named`, of the `total`
//!   that hold memory; `history` and `snapshots`: `taken_at`, `size` and `count` of the snapshots kept for baselines
//!   and on request, oldest first, the latter with the `id` that `since` takes; `paths`: the paths that are served here.
//! * **sites.json**: `rows`, each `site`, `function`, `file`, `line`, `crate`, the four figures and `history`
//!   (live bytes at the moments `history_at`, of which there are at most `history`, 0 to 64, default 16), and
//!   where they are [estimates](crate::docs::sampling) `stderr` and `diff_stderr`, the standard errors of `size` and
//!   `size_diff`;
//!   `other` is the rest beside the `top` rows (1 to 10000, default 100), so that they add up to `total`;
//!   `sites` says how many there are. Stacks without a name count in `other`.
//! * **stacks.json**: `rows` as `/memory/snapshots?format=json` has them, of the sites that have all that is
//!   asked for; `stacks` says how many there are, `other` is the rest beside the `top` rows.
//! * **tree.json**: `nodes`, a list in which each comes after its `parent` (an index; `null` for the root).
//!   `kind` is `root`; `frame`, with an index into `frames`; `cut`, stacks whose oldest frames were not
//!   recorded; `unnamed`; `rest`, the part of a node beside the children that found room (`nodes`, 1 to 20000,
//!   default 2000); or `other`, below the root, the bytes that no sample represents. `value` is its width: bytes, blocks, or
//!   growth, the sum over the stacks that grew, as asked for by `value`; `stacks` says how many pass through it. The root has
//!   the four figures of the total, and each node at least the `size` and `count` of its children together. The
//!   oldest frame comes first, and frames beyond the traceback limit are there, too.
//!
//! `since` and `sort` are those of `/memory/snapshots`; here the defaults are `previous` and `size`. `at` is one of
//! the last four `number`s of `summary.json`, for a minute: answers with the same `at` are about the same moment
//! and add up, and do not wait for names. Without it they are of now, and wait up to 20 s until every stack has one.
//!
//! # Access and costs
//!
//! On a loopback address of a server of heapgauge's everything but `/metrics` and `/health` is there too; elsewhere only
//! where the program exposes it. [`router`] has these two, and [`debug_router`] the others. Answers take what they need in slices of about 0.1 s and let
//! others run in between; nothing here waits for a lock longer than such a slice. With 10,000 stacks an answer
//! takes some 50 ms at most; with 100,000 the tree takes a second, half of it in one go.
#![forbid(unsafe_code)]

mod debug_heap;
mod guard;
mod heap_query;
mod profiles;
mod query;
mod response;
mod response_budget;
mod snapshots;
mod worker_thread;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderValue, StatusCode, Uri};
use axum::middleware;
use axum::response::Response;
use axum::routing::get;

use crate::analyze::collector::{Collector, Since};
use crate::export::emit::prometheus::{self, Cached};
use crate::export::input::Quoted;
use crate::record::control;
use crate::record::fork::mutex::PerProcess;
pub(crate) use guard::Access;
pub use guard::Expose;
use guard::{guard, nosniff};
use profiles::ProfileSlots;
use response::{Refusal, TEXT, answer, catch_panic, refuse};
use worker_thread::on_worker_thread;

/// Time limit from a request's head (at first: from the connection) until its answer begins, and from there until the next
/// request's head. A client that does not read its answer ends here too.
pub(crate) const REQUEST_TIME: Duration = Duration::from_secs(60);
/// Longest wait of a request for names; stacks without one by then show as unknown.
const NAMING_TIME: Duration = Duration::from_secs(20);
/// Line for a request whose wait for names was not long enough.
const NAMED_LATE: &str =
    "names are still being read, try again in a moment; /debug/heap/summary.json says how far";
/// Paths of a loopback address.
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

/// Makes a router of `/metrics` and `/health`, for a program that already has a server.
///
/// These two show no more than metrics do: lines of code, and how much they hold. Everything else is
/// [`debug_router`]. It brings no fallback, so it can be merged or nested.
///
/// Collections run on a thread of heapgauge's, which the first request starts; the program's async workers only wait
/// for the answer, on any executor. Only heapgauge's own code is paused: allocations of the surrounding server for a
/// request are the program's.
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
    let _own = control::internal();
    let metrics = metrics_routes().route_layer(middleware::from_fn(on_worker_thread));
    finish(metrics.merge(health_route()), &outlet(collector)).layer(middleware::map_response(nosniff))
}

/// Makes a router of every path but those of [`router`], for a program that already has a server.
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
    let _own = control::internal();
    let debug = debug_routes().route_layer(middleware::from_fn(on_worker_thread));
    finish(debug, &outlet(collector)).layer(middleware::map_response(nosniff))
}

/// Makes the state behind the answers of one server.
pub(crate) fn outlet(collector: &Collector) -> Arc<Outlet> {
    Arc::new(Outlet {
        collector: collector.clone(),
        metrics: Cached::default(),
        profile_slots: PerProcess::default(),
    })
}

/// Makes the router of one of heapgauge's own listeners, with guard and fallback.
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

/// Redirects to the page: a person who opens the address the program printed wants it.
fn to_the_page() -> Response {
    let mut response = answer(StatusCode::TEMPORARY_REDIRECT, TEXT, "see /debug/heap\n");
    response.headers_mut().insert(LOCATION, HeaderValue::from_static("/debug/heap"));
    response
}

/// State behind the answers of one server or router.
pub(crate) struct Outlet {
    collector: Collector,
    metrics: Cached,
    profile_slots: PerProcess<ProfileSlots>,
}

fn health_route() -> Router<Arc<Outlet>> {
    Router::new().route("/health", get(async || answer(StatusCode::OK, TEXT, "ok\n")))
}

fn metrics_routes() -> Router<Arc<Outlet>> {
    Router::new().route("/metrics", get(metrics))
}

fn debug_routes() -> Router<Arc<Outlet>> {
    Router::new()
        .route("/memory/snapshots", get(snapshots::compare).post(snapshots::keep))
        .route("/debug/heap/folded", get(profiles::folded))
        .merge(debug_heap::routes())
        .route_layer(middleware::from_fn(response_budget::bounded))
        .merge(profile_routes())
}

fn profile_routes() -> Router<Arc<Outlet>> {
    let routes = Router::new();
    #[cfg(feature = "pprof")]
    let routes = routes
        .route("/debug/pprof/heap", get(profiles::heap))
        .route("/debug/pprof/allocs", get(profiles::allocs))
        .route_layer(middleware::from_fn(response_budget::bounded));
    routes
}

fn finish(routes: Router<Arc<Outlet>>, outlet: &Arc<Outlet>) -> Router {
    routes.method_not_allowed_fallback(wrong_method).with_state(outlet.clone())
}

async fn metrics(State(outlet): State<Arc<Outlet>>) -> Response {
    let report = loop {
        match catch_panic(|| outlet.collector.collect_slice()) {
            Ok(Some(report)) => break report,
            Ok(None) => tokio::task::yield_now().await,
            Err(failed) => return *failed,
        }
    };
    catch_panic(|| {
        let _own = control::internal();
        answer(StatusCode::OK, prometheus::CONTENT_TYPE, outlet.metrics.text(&report).to_string())
    })
    .unwrap_or_else(|failed| *failed)
}

/// Names all stacks, for as long as a client would wait. False: there are more.
async fn name_all(collector: &Collector, since: Since) -> Result<bool, Refusal> {
    let begun = Instant::now();
    loop {
        match catch_panic(|| collector.name_all_slice(since))? {
            false if begun.elapsed() < NAMING_TIME => tokio::task::yield_now().await,
            all => return Ok(all),
        }
    }
}

fn unknown_path(uri: &Uri, access: Access) -> Response {
    refuse(
        StatusCode::NOT_FOUND,
        format_args!("path {} is unknown, allowed are {}", Quoted(uri.path()), access.paths()),
    )
}

/// Answers 405 with the allowed methods; the router adds the header `allow`.
async fn wrong_method(request: Request) -> Response {
    let path = request.uri().path();
    let allowed = if path.ends_with("/memory/snapshots") { "GET, HEAD, POST" } else { "GET, HEAD" };
    refuse(
        StatusCode::METHOD_NOT_ALLOWED,
        format_args!(
            "method {} is not allowed on {}, allowed are {allowed}",
            Quoted(request.method().as_str()),
            Quoted(path)
        ),
    )
}
