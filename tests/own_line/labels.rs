//! One label value a user, in three libraries of metrics; and a span that collects events.

use crate::{Heap, traceback_at};
use std::sync::Mutex;

const FILE: &str = "tests/own_line/labels.rs";

/// Counts 2,000 users. Checks that what it takes is at the line.
fn users(line: u32, count: impl Fn(String)) {
    count("first".to_owned());
    let before = Heap::now();
    for user in 0..2_000 {
        count(format!("user {user}"));
    }
    let now = Heap::now();
    let (bytes, blocks) = now.all_at(&before, FILE, line..=line);
    assert!(bytes > 2_000 * 20 && blocks >= 2_000, "{bytes} {blocks}");
}

#[test]
fn of_prometheus_client() {
    own_process!();
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family;
    let logins = Family::<Vec<(String, String)>, Counter>::default();
    let count = |user| assert_eq!(logins.get_or_create(&vec![("user".to_owned(), user)]).inc(), 0);
    users(line!() - 1, count);
}

#[test]
fn of_metrics() {
    own_process!();
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        let count = |user| metrics::counter!("logins", "user" => user).increment(1);
        users(line!() - 1, count);
    });
}

#[test]
fn of_opentelemetry() {
    own_process!();
    use opentelemetry::metrics::MeterProvider;
    let reader = opentelemetry_sdk::metrics::ManualReader::builder().build();
    let provider = opentelemetry_sdk::metrics::SdkMeterProvider::builder().with_reader(reader).build();
    let logins = provider.meter("test").u64_counter("logins").build();
    let count = |user| logins.add(1, &[opentelemetry::KeyValue::new("user", user)]);
    users(line!() - 1, count);
}

/// Layer of the program that keeps the names of events.
struct Events(Mutex<Vec<Box<str>>>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Events {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        let name = event.metadata().target().into();
        self.0.lock().unwrap().push(name);
    }
}

#[inline(never)]
fn emit() -> u32 {
    tracing::info!("something happened");
    line!() - 1
}

#[test]
fn events_that_a_layer_collects() {
    own_process!();
    use tracing_subscriber::layer::SubscriberExt;
    let subscriber = tracing_subscriber::registry().with(Events(Mutex::default()));
    let layer = line!() - 15;
    tracing::subscriber::with_default(subscriber, || {
        let before = Heap::now();
        let mut line = 0;
        for _ in 0..1_000 {
            line = emit();
        }
        let now = Heap::now();
        let (bytes, _) = now.all_at(&before, FILE, layer - 10..=layer);
        assert!(bytes > 10_000, "{bytes}");
        let at = (layer - 10..=layer).max_by_key(|line| now.at(FILE, *line..=*line).1).unwrap();
        // The way to the line that emitted them.
        let traceback = traceback_at(FILE, at);
        let emitted = |frame: &heapgauge::Frame| (frame.file(), frame.line()) == (FILE, line);
        assert!(traceback.frames().any(emitted), "{:?}", traceback.format(None, true));
    });
}
