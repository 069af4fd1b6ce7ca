//! [`Report`](crate::Report) → the registry of the crate `prometheus-client`, and so OpenMetrics text.
//!
//! Any thread; a collection, and well below a millisecond with 40 sites.
#![forbid(unsafe_code)]

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use prometheus_client::collector::Collector as Registered;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::families::{self, Family};
use super::{Series, Value, by_family};
use crate::analyze::collector::Collector;
use crate::record::control;

/// Outlet into a registry of the crate `prometheus-client`, as a collector that the program registers.
///
/// Each encoding of the registry shows one collection, fresh: a site that is no longer chosen is absent
/// from it. Names, types, labels and values are those of `/metrics`, and `# UNIT` says bytes or seconds.
/// Allocations of the collection, and of the text it adds to the buffer, are heapgauge's own.
///
/// The prefix and the labels of the registry, or of the sub-registry, are on these families too. The shipped dashboards
/// and alerts know the names without a prefix: register the outlet in a registry without one for them.
///
/// # Examples
///
/// ```
/// use heapgauge::emit;
/// use prometheus_client::{encoding::text::encode, registry::Registry};
///
/// let collector = heapgauge::Collector::new();
/// let mut registry = Registry::default();
/// registry.register_collector(Box::new(emit::PrometheusClient::new(&collector)));
///
/// let mut text = String::new();
/// encode(&mut text, &registry)?;
/// assert!(text.contains("# UNIT heap_live_bytes bytes\n"));
/// assert!(text.ends_with("# EOF\n"));
/// # Ok::<(), std::fmt::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "an outlet shows nothing before it is registered"]
pub struct PrometheusClient {
    collector: Collector,
}

impl PrometheusClient {
    /// Makes an outlet of this collector's reports.
    ///
    /// # Examples
    ///
    /// ```
    /// use heapgauge::{emit::PrometheusClient, prometheus_client::registry::Registry};
    ///
    /// let outlet = PrometheusClient::new(&heapgauge::Collector::new());
    /// Registry::with_prefix("shop").register_collector(Box::new(outlet)); // shop_heap_live_bytes and so on
    /// ```
    pub fn new(collector: &Collector) -> PrometheusClient {
        let _own = control::internal();
        PrometheusClient { collector: collector.clone() }
    }
}

impl Registered for PrometheusClient {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let _own = control::internal();
        // An error would take the program's own metrics with it, so a fault of ours leaves only ours out.
        let families = catch_unwind(AssertUnwindSafe(|| by_family(&self.collector.collect())));
        families.unwrap_or_default().iter().try_for_each(|(family, series)| add(&mut encoder, family, series))
    }
}

fn add(encoder: &mut DescriptorEncoder<'_>, family: &Family, series: &Series) -> fmt::Result {
    // The encoder appends the unit and the ending of a counter.
    let name = family.name.trim_end_matches("_total");
    let (name, unit) = match family.unit {
        families::Unit::Bytes => (name.trim_end_matches("_bytes"), Some(Unit::Bytes)),
        families::Unit::Seconds => (name.trim_end_matches("_seconds"), Some(Unit::Seconds)),
        _ => (name, None),
    };
    let kind = if family.kind.is_counter() { MetricType::Counter } else { MetricType::Gauge };
    let mut metric = encoder.encode_descriptor(name, family.help, unit.as_ref(), kind)?;
    for (labels, value) in series {
        if labels.is_empty() {
            set(&mut metric, value)?;
        } else {
            set(&mut metric.encode_family(labels)?, value)?;
        }
    }
    Ok(())
}

fn set(metric: &mut MetricEncoder<'_>, value: &Value) -> fmt::Result {
    match value {
        Value::Count(count) => metric.encode_counter::<NoLabelSet, _, u64>(count, None),
        Value::Level(level) => metric.encode_gauge(level),
        Value::Change(change) => metric.encode_gauge(change),
        Value::Seconds(seconds) => metric.encode_gauge(seconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::collector::{Fake, sample_report};
    use prometheus_client::encoding::text::encode;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::registry::Registry;

    #[derive(Debug)]
    struct Sample;

    impl Registered for Sample {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            by_family(&sample_report())
                .iter()
                .try_for_each(|(family, series)| add(&mut encoder, family, series))
        }
    }

    fn text_of(registry: &Registry) -> String {
        let mut text = String::new();
        encode(&mut text, registry).unwrap();
        text
    }

    /// Every family, value and label, line by line.
    #[test]
    fn the_text_of_a_report() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Sample));
        let text = text_of(&registry);
        let expected = include_str!("golden.openmetrics");
        for (line, expected) in text.lines().zip(expected.lines()) {
            assert_eq!(line, expected);
        }
        assert_eq!(text.len(), expected.len());
    }

    #[test]
    fn a_fault_of_ours_leaves_only_ours_out() {
        let fake = Fake::new();
        fake.holds(2, 10, 1_000, 10);
        let mut registry = Registry::default();
        registry.register("requests", "Answered", Counter::<u64>::default());
        registry.register_collector(Box::new(PrometheusClient::new(&fake.collector(25, 300))));
        fake.heap().fails = true;
        fake.at(10);
        let theirs = "# HELP requests Answered.\n# TYPE requests counter\nrequests_total 0\n";
        assert_eq!(text_of(&registry), format!("{theirs}# EOF\n"));
        let text = text_of(&registry);
        assert!(text.starts_with(theirs) && text.contains("\nheap_live_bytes 1000\n"), "{text}");
    }

    /// Parses a sample: name, labels in order, value as text.
    fn sample(line: &str) -> (&str, Vec<(&str, &str)>, &str) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let Some((name, labels)) = series.split_once('{') else { return (series, vec![], value) };
        let labels = labels.strip_suffix("\"}").unwrap().split("\",");
        (name, labels.map(|label| label.split_once("=\"").unwrap()).collect(), value)
    }

    /// Prefix and labels of a registry and of the registries in it are on each series, before the series' own labels,
    /// and on nothing twice.
    #[test]
    fn prefix_and_labels_of_a_registry_are_on_every_series() {
        let mut plain = Registry::default();
        plain.register_collector(Box::new(Sample));
        let label = |key: &'static str, value: &'static str| (key.into(), value.into());
        let mut outer = Registry::with_prefix_and_labels("shop", [label("region", "eu")].into_iter());
        let inner = outer.sub_registry_with_prefix("web").sub_registry_with_label(label("shard", "7"));
        inner.register_collector(Box::new(Sample));

        let (plain, prefixed) = (text_of(&plain), text_of(&outer));
        assert_eq!(plain.lines().count(), prefixed.lines().count());
        for (plain, prefixed) in plain.lines().zip(prefixed.lines()) {
            if let Some(rest) = plain.strip_prefix("# ") {
                let expected = match rest.split_once(' ') {
                    Some((word, rest)) => format!("# {word} shop_web_{rest}"),
                    None => plain.to_owned(),
                };
                assert_eq!(prefixed, expected);
                continue;
            }
            let (name, labels, value) = sample(plain);
            let (prefixed_name, prefixed_labels, prefixed_value) = sample(prefixed);
            assert_eq!((prefixed_name, prefixed_value), (&*format!("shop_web_{name}"), value));
            let mut expected = vec![("region", "eu"), ("shard", "7")];
            expected.extend(labels);
            let sorted = |mut labels: Vec<_>| {
                labels.sort_unstable();
                labels
            };
            assert_eq!(sorted(prefixed_labels), sorted(expected), "{prefixed}");
        }
    }
}
