//! Choice of an outlet: the cost of each, and the lines that make it work.
//!
//! An outlet shows the reports of a [`Collector`](crate::Collector): names, values and sites are the same in
//! all of them, and two outlets that ask within a second show the same snapshot. Scopes are in all of them too: in metrics the 25 pairs of key and
//! value that hold most, with the rest of a key as `[other]`; as labels of pprof's samples (`go tool pprof -tagfocus tenant=acme`); in
//! `/debug/heap/scopes.json`, and as `group_by=scope` and `scope=tenant:acme` of `/memory/snapshots`.
//!
//! | your program has | take | feature | a site that is gone |
//! |---|---|---|---|
//! | nothing yet | [`serve_from_env`], its own server | `http` | is absent |
//! | an axum server | [`http::router`] and [`http::debug_router`], merged into it | `axum` | is absent |
//! | another server | [`Report::to_prometheus`], served by it | `prometheus` | is absent |
//! | `metrics` with `metrics-exporter-prometheus`, and serves the text | [`emit::Prometheus`] | `prometheus` | is absent |
//! | `metrics` with any recorder | [`emit::Metrics`] | `prometheus` | shows what it holds now |
//! | `prometheus-client` | [`emit::PrometheusClient`] | `prometheus-client` | is absent |
//! | OpenTelemetry | [`emit::OpenTelemetry`] | `opentelemetry` | is absent |
//! | a question that totals do not answer | `GET /memory/snapshots` of the first two, or [`Snapshot`] | `http` | |
//! | `go tool pprof`, a continuous profiler | `GET /debug/pprof/heap` and `/debug/pprof/allocs` of the first two | `pprof` | |
//! | a flame graph | `GET /debug/heap/folded` of the first two, by scope with `?scopes=on`, of old blocks with `?older_than=1h` | `pprof` | |
//!
//! Features `prometheus`, `http` and `pprof` are on by default.
//!
//! # Versions
//!
//! The features of outlets follow the versions of `axum`, `metrics`, `metrics-exporter-prometheus`, `prometheus-client` and
//! `opentelemetry`, which are below 1.0: a new minor version of one of them is a breaking change of heapgauge, too. Each is
//! re-exported behind its feature, such as `heapgauge::prometheus_client`, so that a program can name the version that is
//! meant. A recorder that is installed by another version of `metrics` gets nothing.
//!
//! ```
//! # #[cfg(feature = "prometheus")] {
//! use heapgauge::metrics_exporter_prometheus::PrometheusBuilder;
//!
//! let recorder = PrometheusBuilder::new().build_recorder();
//! let text = heapgauge::emit::Prometheus::new(&heapgauge::Collector::new()).render(&recorder.handle());
//! assert!(text.contains("\nheap_tracking "));
//! # }
//! ```
//!
//! # What each costs
//!
//! A collection comes first in each: 0.2 ms with 1,000 stacks, 8 ms with 100,000, once a second at most
//! however many ask; while new lines are named it may take up to a second. Then, for 40 sites:
//!
//! | outlet | µs | µs a series | allocations a series |
//! |---|---:|---:|---:|
//! | [`Report::to_prometheus`], `/metrics`, [`emit::Prometheus`] | 740 | 3.3 | 37 |
//! | [`emit::PrometheusClient`], its encoding included | 136 | 0.60 | 6.8 |
//! | [`emit::Metrics`], set in `metrics-exporter-prometheus` | 133 | 0.59 | 11.7 |
//! | the same, and rendered by it | 650 | 2.9 | 34 |
//! | [`emit::OpenTelemetry`], aggregated by the SDK, not yet sent | 360–450 | 1.6–2.0 | 16.6 |
//!
//! Medians of 200 with 226 series (a process has up to 268, or 331 with the largest N), printed by `cargo bench -p outlet-costs` on an Intel Xeon
//! (model 207) with two busy cores, rustc 1.95.
//!
//! A server of heapgauge's own renders a snapshot once, however many scrape it. Memory that heapgauge allocates in
//! any of these is its own (`heap_overhead_bytes`) and never in the numbers; memory that another server, an SDK or
//! a recorder allocates on its own is the program's.
//!
//! # A server of its own
//!
//! ```no_run
//! # #[cfg(feature = "http")] {
//! let _server = heapgauge::serve_from_env(); // http://127.0.0.1:9898/metrics unless told otherwise
//! # }
//! ```
//!
//! # In an axum server
//!
//! As in `examples/axum_router.rs`:
//!
//! ```
//! # #[cfg(feature = "axum")] {
//! use axum::{Router, routing::get};
//!
//! let collector = heapgauge::Collector::new();
//! let routes: Router = Router::new()
//!     .route("/", get(|| async { "the program's own page" }))
//!     .merge(heapgauge::http::router(&collector)); // `/metrics` and `/health`
//! // The page, snapshots and profiles: for a port or a path that only you reach.
//! let private: Router = heapgauge::http::debug_router(&collector);
//! # drop((routes, private));
//! # }
//! ```
//!
//! The work is done on a thread of heapgauge's; the program's async workers only wait for it.
//!
//! # In any other server
//!
//! ```
//! # #[cfg(feature = "prometheus")] {
//! let collector = heapgauge::Collector::new(); // once
//!
//! let body = collector.collect().to_prometheus(); // for each scrape
//! let content_type = "text/plain; version=0.0.4; charset=utf-8";
//! # assert!(body.contains("\nheap_tracking ") && content_type.len() > 0);
//! # }
//! ```
//!
//! # Beside the text of `metrics-exporter-prometheus`
//!
//! ```
//! # #[cfg(feature = "prometheus")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use heapgauge::emit;
//! use metrics_exporter_prometheus::PrometheusBuilder;
//!
//! let recorder = PrometheusBuilder::new().install_recorder()?; // the program's, as before
//! let outlet = emit::Prometheus::new(&heapgauge::Collector::new());
//!
//! metrics::counter!("requests_total").increment(1);
//! let body = outlet.render(&recorder); // in place of `recorder.render()`
//! assert!(body.contains("\nrequests_total 1\n") && body.contains("\nheap_tracking "));
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "prometheus"))] fn main() {}
//! ```
//!
//! Global labels of the recorder are put on heapgauge's series by
//! [`Prometheus::with_global_label`](crate::emit::Prometheus::with_global_label).
//!
//! # Through the recorder of `metrics`
//!
//! As in `examples/metrics_facade.rs`. A recorder never forgets a series, so these are kept true for ever,
//! and their number has a limit ([`Metrics::max_sites`]):
//!
//! ```
//! # #[cfg(feature = "prometheus")]
//! # fn main() -> Result<(), heapgauge::Error> {
//! use std::time::Duration;
//!
//! let collector = heapgauge::Collector::new();
//! let _reporter = heapgauge::emit::Metrics::new(&collector).report_every(Duration::from_secs(15))?;
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "prometheus"))] fn main() {}
//! ```
//!
//! # In a registry of `prometheus-client`
//!
//! As in `examples/prometheus_client.rs`:
//!
//! ```
//! # #[cfg(feature = "prometheus-client")]
//! # fn main() -> Result<(), std::fmt::Error> {
//! use prometheus_client::{encoding::text::encode, registry::Registry};
//!
//! let mut registry = Registry::default(); // the program's, as before
//! let collector = heapgauge::Collector::new();
//! registry.register_collector(Box::new(heapgauge::emit::PrometheusClient::new(&collector)));
//!
//! let mut body = String::new();
//! encode(&mut body, &registry)?;
//! assert!(body.contains("\nheap_tracking ") && body.ends_with("# EOF\n"));
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "prometheus-client"))] fn main() {}
//! ```
//!
//! The registry's prefix and labels, and those of a sub-registry, are on heapgauge's families too; the shipped
//! dashboards and alerts expect the names without a prefix.
//!
//! # On a meter of OpenTelemetry
//!
//! `examples/opentelemetry/` sets up a provider of its own, which sends OTLP over HTTP. Where the program has one:
//!
//! ```no_run
//! # #[cfg(feature = "opentelemetry")]
//! # fn main() {
//! let meter = opentelemetry::global::meter("heapgauge");
//! let collector = heapgauge::Collector::new();
//! heapgauge::emit::OpenTelemetry::new(&collector).register(&meter);
//! # }
//! # #[cfg(not(feature = "opentelemetry"))] fn main() {}
//! ```
//!
//! # Where there is no server
//!
//! Baselines are kept by the server's thread, or by the [`Reporter`]'s. Without either they are kept when a
//! collection is asked for: an outlet that is read at least every minute has them in time.
//!
//! [`emit::Metrics`]: crate::emit::Metrics
//! [`emit::OpenTelemetry`]: crate::emit::OpenTelemetry
//! [`emit::PrometheusClient`]: crate::emit::PrometheusClient
//! [`emit::Prometheus`]: crate::emit::Prometheus
//! [`Metrics::max_sites`]: crate::emit::Metrics::max_sites
//! [`Reporter`]: crate::emit::Reporter
//! [`Report::to_prometheus`]: crate::Report::to_prometheus
//! [`Snapshot`]: crate::Snapshot
//! [`serve_from_env`]: crate::serve_from_env
//! [`http::debug_router`]: crate::http::debug_router
//! [`http::router`]: crate::http::router
#![forbid(unsafe_code)]
