//! Adds heapgauge's paths to a service that already has an axum server.
//!
//! `axum_router [HOST:PORT]` serves both, by default on 127.0.0.1 and a free port. Each GET of `/` keeps 1,000 bytes; `/metrics`
//! and, on a loopback address, `/memory/snapshots` show the line.

use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::{Router, routing::get};

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

type Visits = Arc<Mutex<Vec<Vec<u8>>>>;

async fn visit(State(visits): State<Visits>) -> String {
    let mut visits = visits.lock().unwrap();
    keep(&mut visits);
    format!("{} visits\n", visits.len())
}

#[inline(never)]
fn keep(visits: &mut Vec<Vec<u8>>) {
    visits.push(vec![b'.'; 1_000]); // the planted leak
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let collector = heapgauge::Collector::new();
    let mut routes = Router::new()
        .route("/", get(visit))
        .with_state(Visits::default())
        .merge(heapgauge::http::router(&collector));
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:0".to_owned());
    let listener = tokio::net::TcpListener::bind(&address)
        .await
        .map_err(|error| format!("cannot serve on {address}, an address is HOST:PORT: {error}"))?;
    if listener.local_addr()?.ip().is_loopback() {
        // These show every stack of the program; see `heapgauge::http::debug_router`.
        routes = routes.merge(heapgauge::http::debug_router(&collector));
    }
    println!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, routes).await?)
}
