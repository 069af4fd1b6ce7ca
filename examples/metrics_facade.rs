//! Adds heapgauge's metrics to a program that already uses `metrics` and `metrics-exporter-prometheus`.
//!
//! `metrics_facade [HOST:PORT]` serves them at `/metrics`, by default on 127.0.0.1 and a free port.

use std::time::Duration;

use axum::{Router, routing::get};
use metrics_exporter_prometheus::PrometheusBuilder;

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

/// Leaks every answer.
#[inline(never)]
fn keep(answers: &mut Vec<Vec<u8>>) {
    answers.push(vec![b'.'; 400]); // the planted leak
}

/// Runs the program's work, and counts it.
fn work() {
    let mut answers = Vec::new();
    loop {
        keep(&mut answers);
        metrics::counter!("requests_total", "path" => "/search").increment(1);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The program's own exporter.
    let recorder = PrometheusBuilder::new().install_recorder()?;
    metrics::describe_counter!("requests_total", "Requests answered.");
    std::thread::spawn(work);

    // Through its recorder: each series stays registered, and its value stays current.
    let collector = heapgauge::Collector::new();
    let _reporter = heapgauge::emit::Metrics::new(&collector).report_every(Duration::from_secs(5))?;
    let sticky = recorder.clone();

    // Or beside it, where the program serves the text: no old series remains.
    let fresh = async move || {
        let both = move || heapgauge::emit::Prometheus::new(&collector).render(&recorder);
        tokio::task::spawn_blocking(both).await.unwrap_or_default() // naming new lines may take a second
    };

    let routes =
        Router::new().route("/metrics", get(fresh)).route("/sticky", get(async move || sticky.render()));
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:0".to_owned());
    let listener = tokio::net::TcpListener::bind(&address)
        .await
        .map_err(|error| format!("cannot serve on {address}, an address is HOST:PORT: {error}"))?;
    println!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, routes).await?)
}
