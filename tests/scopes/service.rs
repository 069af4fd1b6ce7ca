//! A server of fifty routes under load: the scope of each route has the blocks that its handlers keep, to the byte.

use crate::{NO_SCOPE, client, current};
use axum::Router;
use axum::extract::{MatchedPath, Path, Request};
use axum::routing::get;
use heapgauge::scope::ScopeLayer;
use heapgauge::{Collector, Scope, Snapshot};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tower::{Layer, ServiceExt, service_fn};

const ROUTES: usize = 50;
const CONNECTIONS: usize = 8;
const REQUESTS: usize = 500;

/// Blocks that handlers have kept, by route. Their lists have room from the beginning.
type Kept = Arc<Vec<Mutex<Vec<Vec<u8>>>>>;

/// Keeps a block, and frees one of another route for every other request.
async fn keep(kept: Kept, route: usize, size: usize) -> String {
    let block = vec![7; size];
    kept[route].lock().unwrap().push(block);
    if size.is_multiple_of(2) {
        drop(kept[(route + 1) % ROUTES].lock().unwrap().pop());
    }
    format!("{size} bytes are kept")
}

fn path(route: usize) -> String {
    format!("/route{route}/{{size}}")
}

fn of_route(request: &Request) -> Scope {
    let path = request.extensions().get::<MatchedPath>();
    Scope::new("route", path.map_or("[unmatched]", MatchedPath::as_str))
}

fn router(kept: &Kept) -> Router {
    let mut router = Router::new();
    for route in 0..ROUTES {
        let kept = kept.clone();
        let handler = move |Path(size): Path<usize>| keep(kept.clone(), route, size);
        router = router.route(&path(route), get(handler));
    }
    router.layer(ScopeLayer::new(of_route))
}

/// Sends requests on connections that stay open.
fn load(addr: SocketAddr) {
    std::thread::scope(|threads| {
        for connection in 0..CONNECTIONS {
            threads.spawn(move || {
                let mut stream = client::connect(addr);
                for request in 0..REQUESTS {
                    let (route, size) = ((connection * 7 + request) % ROUTES, 100 + request * 3 + connection);
                    write!(stream, "GET /route{route}/{size} HTTP/1.1\r\nHost: {addr}\r\n\r\n").unwrap();
                    assert_eq!(client::read_answer(&mut stream).text(), format!("{size} bytes are kept"));
                }
            });
        }
    });
}

/// Serves until the load has ended, on two workers.
fn serve(router: Router) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let loaded = tokio::task::spawn_blocking(move || load(addr));
        let (end, ended) = tokio::sync::oneshot::channel();
        let served = axum::serve(listener, router).with_graceful_shutdown(async {
            let _ = ended.await;
        });
        let served = tokio::spawn(served.into_future());
        loaded.await.unwrap();
        end.send(()).unwrap();
        served.await.unwrap().unwrap();
    });
}

/// Returns live bytes by route.
fn by_route() -> BTreeMap<String, u64> {
    let mut routes = BTreeMap::new();
    for trace in Snapshot::take().unwrap().traces() {
        if let Some(route) = trace.scope.get("route") {
            *routes.entry(route.to_owned()).or_default() += trace.size;
        }
    }
    routes.retain(|_, bytes| *bytes > 0);
    routes
}

/// Returns the values of a family for the key `route` by value.
fn exported(family: &str) -> BTreeMap<String, u64> {
    let text = Collector::new().collect().to_prometheus();
    let lines = text
        .lines()
        .filter(|line| line.starts_with(&format!("{family}{{")) && line.contains(r#"scope_key="route""#));
    lines
        .map(|line| {
            let (_, value) = line.split_once(r#"scope_value=""#).unwrap();
            let (labels, number) = line.rsplit_once(' ').unwrap();
            assert!(labels.ends_with('}'), "{line}");
            (value.split_once('"').unwrap().0.to_owned(), number.parse::<f64>().unwrap() as u64)
        })
        .collect()
}

#[test]
fn the_call_of_a_service_and_its_polls_are_in_the_scope() {
    let seen = service_fn(|_: &'static str| {
        let at_call = current();
        async {
            let at_first_poll = current();
            tokio::task::yield_now().await;
            Ok::<_, Infallible>([at_call, at_first_poll, current()])
        }
    });
    let service = ScopeLayer::new(|name: &&'static str| Scope::new("request", name)).layer(seen);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        for name in ["first", "second"] {
            let seen = service.oneshot(name).await.unwrap();
            assert_eq!(seen, [(); 3].map(|()| format!("Scope {{ request: {name:?} }}")));
            assert_eq!(current(), NO_SCOPE);
        }
    });
}

#[test]
fn routes_of_a_server_under_load() {
    let kept: Kept = Arc::new((0..ROUTES).map(|_| Mutex::new(Vec::with_capacity(REQUESTS))).collect());
    serve(router(&kept));
    let expected: BTreeMap<String, u64> = (0..ROUTES)
        .map(|route| {
            let blocks = kept[route].lock().unwrap();
            (path(route), blocks.iter().map(|block| block.capacity() as u64).sum())
        })
        .filter(|(_, bytes)| *bytes > 0)
        .collect();
    assert!(expected.len() > 40, "{} routes keep something", expected.len());
    assert_eq!(by_route(), expected);

    let families = exported("heap_scope_live_bytes");
    assert_eq!(families.values().sum::<u64>(), expected.values().sum::<u64>(), "{families:#?}");
    assert!(families.len() <= 25 && families.contains_key("[other]"), "{families:#?}");
    let blocks: u64 = exported("heap_scope_live_blocks").values().sum();
    assert_eq!(blocks, kept.iter().map(|blocks| blocks.lock().unwrap().len() as u64).sum::<u64>());
}
