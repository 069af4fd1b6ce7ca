//! Reads the instruments back from an exporter of the SDK.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use opentelemetry::Value as AttributeValue;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Temporality};

use super::*;
use crate::analyze::collector::Fake;

/// One instrument as it was exported.
#[derive(Clone, Debug, PartialEq)]
struct Exported {
    unit: String,
    kind: &'static str,
    /// In the order of their attributes.
    points: Vec<(BTreeMap<String, AttributeValue>, f64)>,
}

impl Exported {
    fn values(&self) -> Vec<f64> {
        self.points.iter().map(|(_, value)| *value).collect()
    }
}

/// Keeps what the latest collection exported.
#[derive(Clone)]
struct Keep {
    temporality: Temporality,
    latest: Arc<Mutex<BTreeMap<String, Exported>>>,
}

fn exported<T: Copy>(data: &MetricData<T>, number: impl Fn(T) -> f64) -> Exported {
    let attributes = |set: &mut dyn Iterator<Item = &KeyValue>| {
        set.map(|one| (one.key.to_string(), one.value.clone())).collect::<BTreeMap<_, _>>()
    };
    let (kind, mut points): (_, Vec<_>) = match data {
        MetricData::Gauge(gauge) => (
            "gauge",
            gauge.data_points().map(|p| (attributes(&mut p.attributes()), number(p.value()))).collect(),
        ),
        MetricData::Sum(sum) => (
            match (sum.is_monotonic(), sum.temporality()) {
                (true, Temporality::Cumulative) => "counter",
                (true, _) => "counter, delta",
                (false, Temporality::Cumulative) => "up-down counter",
                (false, _) => "up-down counter, delta",
            },
            sum.data_points().map(|p| (attributes(&mut p.attributes()), number(p.value()))).collect(),
        ),
        _ => panic!("a histogram"),
    };
    points.sort_by_key(|(attributes, _)| format!("{attributes:?}"));
    Exported { unit: String::new(), kind, points }
}

impl PushMetricExporter for Keep {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let mut latest = BTreeMap::new();
        for metric in metrics.scope_metrics().flat_map(|scope| scope.metrics()) {
            let mut exported = match metric.data() {
                AggregatedMetrics::U64(data) => exported(data, |value| value as f64),
                AggregatedMetrics::I64(data) => exported(data, |value| value as f64),
                AggregatedMetrics::F64(data) => exported(data, |value| value),
            };
            exported.unit = metric.unit().to_owned();
            assert_eq!(latest.insert(metric.name().to_owned(), exported), None, "{} twice", metric.name());
        }
        *self.latest.lock().unwrap() = latest;
        Ok(())
    }
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }
    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
    fn temporality(&self) -> Temporality {
        self.temporality
    }
}

/// An SDK with our instruments and one of the application's.
struct Sdk {
    provider: SdkMeterProvider,
    keep: Keep,
}

impl Sdk {
    fn new(collector: &Collector, temporality: Temporality) -> Sdk {
        let keep = Keep { temporality, latest: Arc::default() };
        let reader = PeriodicReader::builder(keep.clone()).with_interval(Duration::from_secs(3_600)).build();
        let provider = SdkMeterProvider::builder().with_reader(reader).build();
        OpenTelemetry::new(collector).register(&provider.meter("heapgauge"));
        let theirs = |instrument: &dyn AsyncInstrument<u64>| instrument.observe(1, &[]);
        provider.meter("app").u64_observable_gauge("app.works").with_callback(theirs).build();
        Sdk { provider, keep }
    }

    fn collect(&self) -> BTreeMap<String, Exported> {
        self.provider.force_flush().unwrap();
        std::mem::take(&mut *self.keep.latest.lock().unwrap())
    }
}

#[test]
fn the_instruments_of_a_snapshot() {
    let fake = Fake::new();
    let collector = fake.collector(25, 300);
    fake.holds(2, 10, 1_000, 10);
    fake.holds(3, 20, 500, 5);
    fake.at(30);
    let metrics = Sdk::new(&collector, Temporality::Cumulative).collect();

    let one = |name: &str| {
        let Exported { unit, kind, points } = &metrics[name];
        assert_eq!((points.len(), points[0].0.len()), (1, 0), "{name}");
        (unit.clone(), *kind, points[0].1)
    };
    let is = |unit: &str, kind, value| (unit.to_owned(), kind, value);
    assert_eq!(one("heap.tracking"), is("", "gauge", 1.0));
    assert_eq!(one("heap.live"), is("By", "up-down counter", 1_500.0));
    assert_eq!(one("heap.live_blocks"), is("{block}", "up-down counter", 15.0));
    assert_eq!(one("heap.peak"), is("By", "gauge", 1_500.0));
    assert_eq!(one("heap.allocated"), is("By", "counter", 1_500.0));
    assert_eq!(one("heap.allocations"), is("{block}", "counter", 15.0));
    assert_eq!(one("heap.delta_window"), is("s", "gauge", 30.0));
    assert_eq!(one("heap.untracked"), is("By", "up-down counter", 11.0));
    assert_eq!(one("heap.sites"), is("{site}", "up-down counter", 2.0));
    assert!(!metrics.contains_key("heap.memory_limit"));

    let text = |value: &'static str| AttributeValue::from(value);
    let attributes = |site, function: &'static str| {
        BTreeMap::from([("function".to_owned(), text(function)), ("site".to_owned(), text(site))])
    };
    let sites =
        [attributes("000000000000000a", "app::line_10"), attributes("0000000000000014", "app::line_20")];
    for (name, unit, kind, values) in [
        ("heap.site.live", "By", "up-down counter", [1_000.0, 500.0]),
        ("heap.site.live_blocks", "{block}", "up-down counter", [10.0, 5.0]),
        ("heap.site.live.delta", "By", "gauge", [1_000.0, 500.0]),
        ("heap.site.live.delta_blocks", "{block}", "gauge", [10.0, 5.0]),
    ] {
        let points = sites.iter().cloned().zip(values).collect();
        assert_eq!(metrics[name], Exported { unit: unit.to_owned(), kind, points }, "{name}");
    }
    let info = &metrics["heap.site.info"];
    assert_eq!((info.kind, info.values()), ("up-down counter", vec![1.0, 1.0]));
    let expected = [
        ("code.file.path", text("src/app.rs")),
        ("code.function.name", text("app::line_10")),
        ("code.line.number", AttributeValue::I64(10)),
        ("crate", text("app")),
        ("file", text("src/app.rs")),
        ("function", text("app::line_10")),
        ("line", text("10")),
        ("site", text("000000000000000a")),
        ("via", text("")),
    ];
    assert_eq!(info.points[0].0, expected.map(|(key, value)| (key.to_owned(), value)).into());

    // Every family that has series, and nothing else.
    let mut names: Vec<&str> = families::ALL.iter().map(|family| family.otel).collect();
    let absent = [
        "heap.memory_limit",
        "heap.site.live.stderr",
        "heap.scope.live",
        "heap.scope.live_blocks",
        "heap.scope.live.delta",
        "heap.dumps",
        "heap.dump_failures",
        "heap.previous_run.info",
    ];
    names.retain(|name| !absent.contains(name));
    names.push("app.works");
    names.sort_unstable();
    assert_eq!(metrics.keys().map(String::as_str).collect::<Vec<_>>(), names);
}

#[test]
fn pairs_of_scopes_are_there_as_long_as_they_hold_blocks() {
    let fake = Fake::new();
    let collector = fake.collector(25, 300);
    fake.holds_in(2, &[("tenant", "acme")], 1_000, 10);
    fake.holds_in(3, &[("tenant", "b")], 500, 5);
    fake.at(30);
    let sdk = Sdk::new(&collector, Temporality::Cumulative);
    let pairs = |values: [(&'static str, f64); 2]| -> Vec<(BTreeMap<String, AttributeValue>, f64)> {
        let attributes =
            |value| [("scope_key".to_owned(), "tenant".into()), ("scope_value".to_owned(), value)];
        values.into_iter().map(|(value, number)| (attributes(value.into()).into(), number)).collect()
    };
    let metrics = sdk.collect();
    for (name, unit, kind, values) in [
        ("heap.scope.live", "By", "up-down counter", [("acme", 1_000.0), ("b", 500.0)]),
        ("heap.scope.live_blocks", "{block}", "up-down counter", [("acme", 10.0), ("b", 5.0)]),
        ("heap.scope.live.delta", "By", "gauge", [("acme", 1_000.0), ("b", 500.0)]),
    ] {
        assert_eq!(metrics[name], Exported { unit: unit.to_owned(), kind, points: pairs(values) }, "{name}");
    }
    fake.at(60);
    fake.holds_in(2, &[("tenant", "acme")], 0, 0);
    assert_eq!(sdk.collect()["heap.scope.live"].points, pairs([("acme", 0.0), ("b", 500.0)])[1..]);
}

/// The clock jumps between any two looks at it, so nothing is ever reused: the instruments of one
/// collection agree only if they share one report.
#[test]
fn one_collection_shows_one_snapshot() {
    let fake = Fake::new();
    fake.holds(2, 10, 1_000, 10);
    let sdk = Sdk::new(&fake.collector(25, 300), Temporality::Cumulative);
    fake.heap().hurries = Duration::from_secs(2);
    for cycle in 1..=5 {
        let before = fake.heap().taken;
        fake.holds(2, 10, 1_000 * cycle, 10 * cycle);
        let metrics = sdk.collect();
        assert_eq!(fake.heap().taken, before + 1);
        let value = |name: &str| metrics[name].values();
        assert_eq!(value("heap.live"), [1_000.0 * cycle as f64]);
        assert_eq!(value("heap.live_blocks"), [10.0 * cycle as f64]);
        assert_eq!(value("heap.site.live"), value("heap.live"));
    }
}

/// A view may drop any instrument, the first one too, and other threads collect meanwhile.
#[test]
fn an_instrument_called_again_begins_anew() {
    let fake = Fake::new();
    let collector = fake.collector(25, 300);
    let source = Source { collector, turns: ForkMutex::default() };
    let mut taken = fake.heap().taken;
    for _ in 0..3 {
        // Two seconds later: what was collected before is not reused.
        fake.heap().now += Duration::from_secs(2);
        taken += 1;
        for family in [3, 7, 20] {
            source.take(family);
            assert_eq!(fake.heap().taken, taken);
        }
        for _ in 0..20 {
            fake.heap().now += Duration::from_secs(2);
            taken += 1;
            std::thread::scope(|scope| {
                scope.spawn(|| [5, 6].map(|family| source.take(family)));
            });
            assert_eq!(fake.heap().taken, taken);
        }
    }
    assert!(source.turns.lock().len() <= MAX_TURNS);
}

/// At most 37 of 1,500 sites are exported; were they all, up-down counters would still hold them,
/// gauges not: the SDK counts the label sets of the last cycle against their limit of 2,000.
#[test]
fn sites_replaced_each_cycle_stay_below_the_limit_of_the_sdk() {
    for top_n in [25, 1_500] {
        let fake = Fake::new();
        let sdk = Sdk::new(&fake.collector(top_n, 300), Temporality::Cumulative);
        for cycle in 0..3 {
            fake.at(u64::from(cycle) * 60);
            for number in 0..1_500 {
                let old = cycle * 1_500 + number;
                if cycle > 0 {
                    fake.holds(2 + old - 1_500, 1 + old - 1_500, 0, 0);
                }
                fake.holds(2 + old, 1 + old, 1_000 + u64::from(number), 1);
            }
            let metrics = sdk.collect();
            let live = &metrics["heap.site.live"];
            assert_eq!(metrics["heap.sites_exported"].values(), [live.points.len() as f64]);
            assert!(if top_n == 25 { live.points.len() <= 37 } else { live.points.len() == 1_500 });
            for (name, exported) in &metrics {
                let is_delta = name.starts_with("heap.site.live.delta");
                if top_n == 1_500 && is_delta {
                    continue;
                }
                let overflows = exported
                    .points
                    .iter()
                    .any(|(attributes, _)| attributes.contains_key("otel.metric.overflow"));
                assert!(!overflows, "{name} in cycle {cycle}");
                if name.starts_with("heap.site.") {
                    assert_eq!(exported.points.len(), live.points.len(), "{name}");
                }
            }
            // The largest sites of this cycle and of no other.
            let largest = live.values().into_iter().fold(0.0, f64::max);
            assert_eq!(largest, 2_499.0);
            assert!(live.values().iter().all(|bytes| *bytes >= 1_000.0));
        }
    }
}

#[test]
fn a_fault_of_ours_is_one_gap() {
    let fake = Fake::new();
    let sdk = Sdk::new(&fake.collector(25, 300), Temporality::Cumulative);
    fake.heap().fails = true;
    fake.at(10);
    let metrics = sdk.collect();
    assert_eq!(metrics["app.works"].values(), [1.0]);
    assert!(!metrics.contains_key("heap.tracking"), "{metrics:?}");
    fake.at(20);
    let metrics = sdk.collect();
    assert_eq!(metrics["heap.tracking"].values(), [1.0]);
    assert_eq!(metrics["app.works"].values(), [1.0]);
}

/// With delta temporality the SDK subtracts, and would panic in a debug build if a counter fell.
#[test]
fn counters_do_not_fall_when_traces_are_forgotten() {
    let fake = Fake::new();
    let collector = fake.collector(25, 300);
    let cumulative = Sdk::new(&collector, Temporality::Cumulative);
    let delta = Sdk::new(&collector, Temporality::Delta);
    let mut seen = Vec::new();
    for (second, bytes) in [(10, 100), (20, 150), (30, 60), (40, 70)] {
        if second == 30 {
            fake.clear();
        }
        fake.at(second);
        fake.holds(2, 10, bytes, 1);
        let deltas = delta.collect();
        assert_eq!(deltas["heap.allocated"].kind, "counter, delta");
        assert_eq!(deltas["heap.site.live"].kind, "up-down counter");
        seen.push((
            cumulative.collect()["heap.allocated"].values()[0],
            deltas["heap.allocated"].values()[0],
            deltas["heap.site.live"].values()[0],
        ));
    }
    assert_eq!(seen, [(100.0, 100.0, 100.0), (150.0, 50.0, 150.0), (210.0, 60.0, 60.0), (220.0, 10.0, 70.0)]);
}
