//! Paths → an [`axum::Router`], for a program that already has a server.
#![forbid(unsafe_code)]

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::routing::any;

use super::routes::{Endpoint, Group, endpoints, finish};
use super::worker_thread::on_worker_thread;
use super::{Outlet, outlet};
use crate::analyze::collector::Collector;
use crate::record::control;

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
    routes(collector, |group| group == Group::Metrics)
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
    routes(collector, |group| matches!(group, Group::Profiles | Group::Debug))
}

/// Makes a router of the paths of some groups.
fn routes(collector: &Collector, is_served: fn(Group) -> bool) -> Router {
    let _own = control::internal();
    let outlet = outlet(collector, None);
    endpoints().filter(|(_, endpoint)| is_served(endpoint.group())).fold(
        Router::new(),
        |router, (path, endpoint)| {
            let outlet = outlet.clone();
            router.route(path, any(move |request: Request| answer(endpoint, outlet, request)))
        },
    )
}

/// Answers a request on heapgauge's thread, but for the one that needs no work.
async fn answer(endpoint: Endpoint, outlet: Arc<Outlet>, request: Request) -> axum::response::Response {
    let (request, _) = request.into_parts();
    let answered = {
        let request = request.clone();
        async move { endpoint.answer(&outlet, &request).await }
    };
    let response = match endpoint {
        Endpoint::Health => answered.await,
        _ => on_worker_thread(answered).await,
    };
    finish(&request, response).map(Body::new)
}
