//! Sends the metrics of a planted leak by OTLP over HTTP to `OTEL_EXPORTER_OTLP_ENDPOINT` (default http://localhost:4318).
//!
//! `--for SECONDS` ends by itself. The SDK reads `OTEL_METRIC_EXPORT_INTERVAL` (milliseconds), `OTEL_SERVICE_NAME` and others.
//!
//! Each process sets a `service.instance.id` of its own. Receivers make the label `instance` of it; without it all processes of
//! a service write to the same series.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::resource::EnvResourceDetector;

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

/// A cache of answers. Its key should be the question; it is the number of the request, which never repeats.
#[derive(Default)]
struct Cache {
    answers: HashMap<u64, Vec<u8>>,
}

impl Cache {
    // Inlined, it would be called `insert`: line tables name an inlined function without its type.
    #[inline(never)]
    fn insert(&mut self, request: u64, answer: &[u8]) {
        self.answers.insert(request, answer.repeat(9)); // the planted leak
    }
}

fn main() {
    if let Err(error) = length().map_err(Into::into).and_then(run) {
        eprintln!("opentelemetry: {error}");
        std::process::exit(1);
    }
}

fn run(length: Option<Duration>) -> Result<(), Box<dyn std::error::Error>> {
    let exporter = opentelemetry_otlp::MetricExporter::builder().with_http().build()?;
    let provider =
        SdkMeterProvider::builder().with_resource(resource()).with_periodic_exporter(exporter).build();

    let collector = heapgauge::Collector::new();
    heapgauge::emit::OpenTelemetry::new(&collector).register(&provider.meter("heapgauge"));

    let begun = Instant::now();
    let mut cache = Cache::default();
    for request in 0.. {
        if length.is_some_and(|length| begun.elapsed() >= length) {
            break;
        }
        cache.insert(request, format!("{{\"request\": {request}, \"hits\": []}}").as_bytes());
        std::thread::sleep(Duration::from_millis(5));
    }
    // The last values are sent before the end.
    provider.shutdown()?;
    println!("{} answers were kept", cache.answers.len());
    Ok(())
}

/// Describes this process. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` have precedence.
fn resource() -> Resource {
    let began = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let instance = format!("{}-{}-{:x}", host.trim(), std::process::id(), began.as_millis());
    let own = [
        KeyValue::new("service.name", "opentelemetry-example"),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", instance),
    ];
    let asked = Resource::builder_empty().with_detector(Box::new(EnvResourceDetector::new())).build();
    let name = std::env::var("OTEL_SERVICE_NAME").ok().map(|name| KeyValue::new("service.name", name));
    let asked = asked.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    Resource::builder().with_attributes(own).with_attributes(asked).with_attributes(name).build()
}

/// Parses `--for`. Returns `None` without it: the program then runs until a signal.
fn length() -> Result<Option<Duration>, lexopt::Error> {
    use lexopt::prelude::*;

    let mut length = None;
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("for") => length = Some(arguments.value()?.parse_with(seconds)?),
            other => return Err(other.unexpected()),
        }
    }
    Ok(length)
}

fn seconds(text: &str) -> Result<Duration, &'static str> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or("--for is a number of seconds")
}
