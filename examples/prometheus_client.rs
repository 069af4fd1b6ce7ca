//! Adds heapgauge's metrics to the registry of a program that already uses `prometheus-client`.
//!
//! `prometheus_client [HOST:PORT]` serves them at `/metrics`, by default on 127.0.0.1 and a free port.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{StatusCode, header::CONTENT_TYPE};
use axum::{Router, response::IntoResponse, routing::get};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::{encoding::text::encode, registry::Registry};

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

/// Leaks every answer.
#[inline(never)]
fn keep(answers: &mut Vec<Vec<u8>>) {
    answers.push(vec![b'.'; 400]); // the planted leak
}

/// Runs the program's work, and counts it.
fn work(requests: &Counter) {
    let mut answers = Vec::new();
    loop {
        keep(&mut answers);
        requests.inc();
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn text(registry: &Registry) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    encode(&mut text, registry)?;
    Ok(text)
}

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The program's own metrics.
    let mut registry = Registry::default();
    let requests = Counter::default();
    registry.register("requests", "Requests answered", requests.clone());
    std::thread::spawn(move || work(&requests));

    // heapgauge needs one line.
    let collector = heapgauge::Collector::new();
    registry.register_collector(Box::new(heapgauge::emit::PrometheusClient::new(&collector)));

    let registry = Arc::new(registry);
    let metrics = async move || {
        let encoded = tokio::task::spawn_blocking(move || text(&registry)); // naming may take a second
        match encoded.await {
            Ok(Ok(text)) => ([(CONTENT_TYPE, OPENMETRICS)], text).into_response(),
            _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    };
    let routes = Router::new().route("/metrics", get(metrics));
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:0".to_owned());
    let listener = tokio::net::TcpListener::bind(&address)
        .await
        .map_err(|error| format!("cannot serve on {address}, an address is HOST:PORT: {error}"))?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, routes).await?)
}
