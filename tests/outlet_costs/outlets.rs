//! Measures the cost of each outlet: a table of microseconds and allocations a series.
//!
//! `cargo bench -p outlet-costs`. With `-- --write DIRECTORY` it writes the output of each outlet for one snapshot instead,
//! which `tests/e2e/outlets.py` parses.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::{Router, body::Bytes, routing::post};
use heapgauge::{Collector, Report, Scope, TrackingAllocator, emit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Temporality};
use prometheus_client::{encoding::text::encode, registry::Registry};

/// Counts the requests to the allocator under heapgauge, heapgauge's own included.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to `System` as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's duties are those of this very method.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOC: TrackingAllocator<Counting> = TrackingAllocator::new(Counting);

macro_rules! sites {
    ($($name:ident)*) => {
        /// Functions that allocate, each a site of its own.
        const SITES: &[fn(usize) -> Vec<u8>] = &[$($name),*];
        $(
            #[inline(never)]
            fn $name(bytes: usize) -> Vec<u8> {
                // Without it the compiler would merge the functions.
                std::hint::black_box(stringify!($name));
                Vec::with_capacity(bytes)
            }
        )*
    };
}

sites! {
    s00 s01 s02 s03 s04 s05 s06 s07 s08 s09 s10 s11 s12 s13 s14 s15 s16 s17 s18 s19 s20 s21 s22 s23 s24
    s25 s26 s27 s28 s29 s30 s31 s32 s33 s34 s35 s36
}

/// A collection is reused for a second.
const RENEWED: Duration = Duration::from_millis(1_050);

/// Makes a heap whose reports have the maximum number of sites: 25 by bytes, 4 by growth, 8 of earlier reports.
fn most_sites() -> (Collector, Vec<Vec<u8>>) {
    let mut held: Vec<Vec<u8>> = SITES[..25].iter().map(|site| site(100_000)).collect();
    let collector = Collector::builder().top_n(25).build().expect("25 sites are allowed");
    held.extend(SITES[25..29].iter().map(|site| site(50_000)));
    let before: Vec<Vec<u8>> = SITES[29..].iter().map(|site| site(200_000)).collect();
    wait_for_sites(&collector, 25);
    drop(before);
    held.extend(SITES[29..].iter().map(|site| site(1)));
    wait_for_sites(&collector, SITES.len());
    (collector, held)
}

/// Holds blocks of thirty tenants on one route, more keys with values than have series.
fn hold_in_scopes() -> Vec<Vec<u8>> {
    let tenant = |number: usize| {
        let scope = Scope::new("tenant", format!("t{number} \"\u{e9}\"")).with("route", "/search");
        scope.in_scope(|| SITES[0](1_000 + number))
    };
    (0..30).map(tenant).collect()
}

/// Waits until every line has its name and is exported.
fn wait_for_sites(collector: &Collector, sites: usize) {
    let begun = Instant::now();
    while collector.collect().sites.len() < sites {
        assert!(begun.elapsed() < Duration::from_secs(60), "not {sites} sites in a minute");
        std::thread::sleep(RENEWED);
    }
}

/// Discards its input.
struct Discard;

impl PushMetricExporter for Discard {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        std::hint::black_box(metrics);
        Ok(())
    }
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }
    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
    fn temporality(&self) -> Temporality {
        Temporality::Cumulative
    }
}

fn provider(collector: &Collector, exporter: impl PushMetricExporter) -> SdkMeterProvider {
    let reader = PeriodicReader::builder(exporter).with_interval(Duration::from_secs(3_600)).build();
    let provider = SdkMeterProvider::builder().with_reader(reader).build();
    emit::OpenTelemetry::new(collector).register(&provider.meter("heapgauge"));
    provider
}

fn registry(collector: &Collector) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(emit::PrometheusClient::new(collector)));
    registry
}

fn openmetrics(registry: &Registry) -> String {
    let mut text = String::new();
    encode(&mut text, registry).expect("a String takes everything");
    text
}

/// Returns the median microseconds and allocations of `act`, without the collection, which is reused.
fn cost(collector: &Collector, mut act: impl FnMut()) -> (f64, f64) {
    let mut micros = Vec::new();
    let mut allocations = Vec::new();
    for _ in 0..200 {
        collector.collect();
        let (began, before) = (Instant::now(), ALLOCATIONS.load(Ordering::Relaxed));
        act();
        micros.push(began.elapsed().as_secs_f64() * 1e6);
        allocations.push((ALLOCATIONS.load(Ordering::Relaxed) - before) as f64);
    }
    let median = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    (median(&mut micros), median(&mut allocations))
}

fn table(recorder: &PrometheusHandle) {
    let (collector, _held) = most_sites();
    let report = collector.collect();
    let series = report.to_prometheus().lines().filter(|line| !line.starts_with('#')).count();
    let facade = emit::Metrics::new(&collector);
    let registry = registry(&collector);
    let provider = provider(&collector, Discard);
    println!("{} sites, {series} series, a collection of {:?}\n", report.sites.len(), report.duration);
    println!("| outlet | µs | µs a series | allocations a series |");
    println!("|---|---:|---:|---:|");
    let row = |name: &str, (micros, allocations): (f64, f64)| {
        let series = series as f64;
        println!("| {name} | {micros:.0} | {:.2} | {:.1} |", micros / series, allocations / series);
    };
    row("Prometheus text, `Report::to_prometheus`", cost(&collector, || drop(report.to_prometheus())));
    row("`prometheus-client`, its encoding included", cost(&collector, || drop(openmetrics(&registry))));
    row("`metrics` facade, without rendering", cost(&collector, || facade.collect()));
    row(
        "`metrics` facade, rendered by the recorder",
        cost(&collector, || {
            facade.collect();
            drop(recorder.render());
        }),
    );
    row(
        "OpenTelemetry, aggregated by the SDK, not sent",
        cost(&collector, || {
            provider.force_flush().expect("nothing is sent");
        }),
    );
}

/// Writes the output of every outlet for one snapshot.
fn write(directory: &Path, recorder: &PrometheusHandle) -> Result<(), Box<dyn std::error::Error>> {
    let (collector, _held) = most_sites();
    let _held_in_scopes = hold_in_scopes();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let sent: Arc<Mutex<Bytes>> = Arc::default();
    let receiver = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
    let endpoint = format!("http://{}/v1/metrics", receiver.local_addr()?);
    let keep = sent.clone();
    let routes =
        Router::new().route("/v1/metrics", post(async move |body: Bytes| *keep.lock().unwrap() = body));
    runtime.spawn(async { axum::serve(receiver, routes).await });

    let exporter =
        opentelemetry_otlp::MetricExporter::builder().with_http().with_endpoint(endpoint).build()?;
    let provider = provider(&collector, exporter);
    let registry = registry(&collector);
    let facade = emit::Metrics::new(&collector);
    facade.describe();
    facade.collect();

    let all_of_one = || -> Result<Option<Arc<Report>>, Box<dyn std::error::Error>> {
        std::thread::sleep(RENEWED);
        let report = collector.collect();
        facade.collect();
        std::fs::write(directory.join("facade.txt"), recorder.render())?;
        std::fs::write(directory.join("prometheus.txt"), report.to_prometheus())?;
        std::fs::write(directory.join("joined.txt"), emit::Prometheus::new(&collector).render(recorder))?;
        std::fs::write(directory.join("openmetrics.txt"), openmetrics(&registry))?;
        provider.force_flush()?;
        std::fs::write(directory.join("otlp.bin"), &*sent.lock().unwrap())?;
        Ok((collector.collect().number == report.number).then_some(report))
    };
    for _ in 0..20 {
        if let Some(report) = all_of_one()? {
            println!("{} sites of snapshot {}", report.sites.len(), report.number);
            return Ok(());
        }
    }
    Err("no twenty-first try: all outlets of one snapshot take longer than a second here".into())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    use lexopt::prelude::*;

    let mut directory = None;
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("write") => directory = Some(arguments.value()?),
            Long("bench") => {} // said by `cargo bench`
            other => return Err(other.unexpected().into()),
        }
    }
    let recorder = PrometheusBuilder::new().install_recorder()?;
    match directory {
        Some(directory) => write(Path::new(&directory), &recorder),
        None => {
            table(&recorder);
            Ok(())
        }
    }
}
