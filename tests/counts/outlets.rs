//! Tests one line through every outlet at once: most forget an empty site, the sticky one never does, and none exports its
//! own allocations.
#![cfg(all(feature = "prometheus", feature = "_opentelemetry-sdk", feature = "prometheus-client"))]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use heapgauge::{Collector, Snapshot, emit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Temporality};
use prometheus_client::{encoding::text::encode, registry::Registry};

#[allow(clippy::vec_box, reason = "blocks of their own are the point")]
#[inline(never)]
fn keep(kept: &mut Vec<Box<[u8; 48]>>, blocks: usize) {
    for _ in 0..blocks {
        kept.push(Box::new([7; 48]));
    }
}

/// Keeps the live blocks of each function of the latest export.
#[derive(Clone, Default)]
struct LiveBlocks(Arc<Mutex<BTreeMap<String, i64>>>);

impl PushMetricExporter for LiveBlocks {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let mut latest = self.0.lock().unwrap();
        latest.clear();
        for metric in metrics.scope_metrics().flat_map(|scope| scope.metrics()) {
            if let ("heap.site.live_blocks", AggregatedMetrics::I64(MetricData::Sum(sum))) =
                (metric.name(), metric.data())
            {
                for point in sum.data_points() {
                    let function = point.attributes().find(|one| one.key.as_str() == "function").unwrap();
                    *latest.entry(function.value.to_string()).or_default() += point.value();
                }
            }
        }
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

/// All outlets of one collector.
struct Outlets {
    collector: Collector,
    recorder: PrometheusHandle,
    facade: emit::Metrics,
    registry: Registry,
    provider: SdkMeterProvider,
    exported: LiveBlocks,
}

/// Returns the live blocks of a function by outlet, `None` where it is absent.
#[derive(Debug, PartialEq)]
struct Shown {
    prometheus: Option<i64>,
    joined: Option<i64>,
    prometheus_client: Option<i64>,
    opentelemetry: Option<i64>,
    facade: Option<i64>,
}

/// Returns live blocks of a function in a text of either format.
fn blocks(text: &str, function: &str) -> Option<i64> {
    let label = format!(",function=\"{function}\"}}");
    let line =
        text.lines().find(|line| line.starts_with("heap_site_live_blocks{") && line.contains(&label))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

impl Outlets {
    fn new() -> Outlets {
        let collector = Collector::new();
        let recorder = PrometheusBuilder::new().install_recorder().unwrap();
        let facade = emit::Metrics::new(&collector);
        facade.describe();
        let mut registry = Registry::default();
        registry.register_collector(Box::new(emit::PrometheusClient::new(&collector)));
        let exported = LiveBlocks::default();
        let reader =
            PeriodicReader::builder(exported.clone()).with_interval(Duration::from_secs(3_600)).build();
        let provider = SdkMeterProvider::builder().with_reader(reader).build();
        emit::OpenTelemetry::new(&collector).register(&provider.meter("heapgauge"));
        Outlets { collector, recorder, facade, registry, provider, exported }
    }

    fn openmetrics(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        text
    }

    /// Waits until the latest snapshot is older than a second, and exports a new one.
    fn show(&self, function: &str) -> Shown {
        // Names every line to the end, however busy the machine is.
        drop(Snapshot::take().unwrap());
        std::thread::sleep(Duration::from_millis(1_010));
        self.facade.collect();
        self.provider.force_flush().unwrap();
        Shown {
            prometheus: blocks(&self.collector.collect().to_prometheus(), function),
            joined: blocks(&emit::Prometheus::new(&self.collector).render(&self.recorder), function),
            prometheus_client: blocks(&self.openmetrics(), function),
            opentelemetry: self.exported.0.lock().unwrap().get(function).copied(),
            facade: blocks(&self.recorder.render(), function),
        }
    }
}

#[test]
fn fresh_outlets_forget_the_sticky_one_stays_true_and_none_shows_itself() {
    own_process!();
    let outlets = Outlets::new();
    let everywhere = |blocks| Shown {
        prometheus: blocks,
        joined: blocks,
        prometheus_client: blocks,
        opentelemetry: blocks,
        facade: blocks,
    };
    let function = "counts::outlets::keep";
    assert_eq!(outlets.show(function), everywhere(None));
    let mut kept = Vec::with_capacity(12_345);
    keep(&mut kept, 12_345);
    assert_eq!(outlets.show(function), everywhere(Some(12_345)));
    kept.truncate(345);
    assert_eq!(outlets.show(function), everywhere(Some(345)));
    kept.clear();
    assert_eq!(outlets.show(function), Shown { facade: Some(0), ..everywhere(None) });
    keep(&mut kept, 9);
    assert_eq!(outlets.show(function), everywhere(Some(9)));

    // A hundred turns of each outlet, on an idle program. Those without code of others between leave
    // no trace at all.
    let totals = || {
        std::thread::sleep(Duration::from_millis(1_010));
        let report = outlets.collector.collect();
        (report.allocations, report.deallocations, report.live.now.bytes, report.untracked_bytes)
    };
    totals();
    let before = totals();
    for _ in 0..100 {
        drop(outlets.collector.collect().to_prometheus());
        outlets.facade.collect();
        outlets.facade.describe();
        drop(outlets.openmetrics());
    }
    assert_eq!(totals(), before);

    // The code of the SDK and of the recorder belongs to the program; heapgauge's does not.
    for _ in 0..20 {
        outlets.provider.force_flush().unwrap();
        drop(emit::Prometheus::new(&outlets.collector).render(&outlets.recorder));
    }
    let snapshot = Snapshot::take().unwrap();
    let ours: Vec<_> = snapshot
        .traces()
        .iter()
        .filter(|trace| {
            trace.traceback.frames().any(|frame| {
                let name = frame.name();
                let renders_theirs = name == "heapgauge::export::emit::prometheus::Prometheus::render";
                name.starts_with("heapgauge::") && !renders_theirs
            })
        })
        .collect();
    assert!(ours.is_empty(), "{ours:#?}");
    drop(kept);
}
