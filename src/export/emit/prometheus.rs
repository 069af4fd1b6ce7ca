//! [`Report`] → Prometheus text exposition format 0.0.4.
//!
//! Any thread; well below a millisecond with 40 sites. The text depends on the report alone: two
//! expositions of one snapshot are byte-identical.
#![forbid(unsafe_code)]

#[cfg(any(feature = "http", test))]
use std::sync::Arc;

use metrics::{Label, Recorder as _};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use super::families::Family;
use super::{Labels, Value, each_series, exposition_text, families};
use crate::analyze::collector::{Collector, Report};
use crate::record::control;
#[cfg(any(feature = "http", test))]
use crate::record::fork::{self, mutex::ForkMutex};

/// Content type of [`Report::to_prometheus`].
#[cfg(feature = "http")]
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Content type of [`open_metrics`].
#[cfg(feature = "http")]
pub(crate) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl Report {
    /// Renders this report as Prometheus text, for a program that serves it itself; the content type is
    /// `text/plain; version=0.0.4; charset=utf-8`.
    ///
    /// Families and lines are in a fixed order. Gauges are 64-bit floats in Prometheus, so bytes are
    /// exact up to 2^53 (8 PiB); counters are written whole.
    ///
    /// # Examples
    ///
    /// ```
    /// let report = heapgauge::Collector::new().collect();
    /// let text = report.to_prometheus();
    /// assert!(text.contains(&format!("\nheap_live_blocks {}\n", report.live.now.blocks)));
    /// assert_eq!(text, report.to_prometheus());
    /// ```
    pub fn to_prometheus(&self) -> String {
        let _own = control::internal();
        render(self)
    }
}

/// Renders with a recorder of its own for each exposition: the exporter cannot unregister a series, and a series that is
/// not in this report must not be in the text.
fn render(report: &Report) -> String {
    render_with_labels(report, &[])
}

/// Renders with labels that the exporter itself puts on each series, so that they are checked and escaped as those of
/// the program's recorder.
fn render_with_labels(report: &Report, global_labels: &[(String, String)]) -> String {
    let mut builder = PrometheusBuilder::new();
    for (key, value) in global_labels {
        builder = builder.add_global_label(key, value);
    }
    let recorder = builder.build_recorder();
    // No unit is handed over: the exporter would add it to names that end in something else.
    for family in families::ALL {
        if family.kind.is_counter() {
            recorder.describe_counter(family.name.into(), None, family.help.into());
        } else {
            recorder.describe_gauge(family.name.into(), None, family.help.into());
        }
    }
    metrics::with_local_recorder(&recorder, || record(report));
    exposition_text::in_order(&recorder.handle().render())
}

/// Returns the text of a report in the format OpenMetrics 1.0.
#[cfg(feature = "http")]
pub(crate) fn open_metrics(text: &str) -> String {
    exposition_text::open_metrics(text)
}

/// Hands every series of `report` to the recorder of the calling thread.
pub(super) fn record(report: &Report) {
    each_series(report, &mut set);
}

/// Hands one series to the recorder of the calling thread.
pub(super) fn set(family: &'static Family, labels: Labels, value: Value) {
    let labels: Vec<Label> = labels.into_iter().map(|(key, value)| Label::new(key, value)).collect();
    match value {
        Value::Count(count) => metrics::counter!(family.name, labels).absolute(count),
        Value::Level(level) => metrics::gauge!(family.name, labels).set(level as f64),
        Value::Change(change) => metrics::gauge!(family.name, labels).set(change as f64),
        Value::Seconds(seconds) => metrics::gauge!(family.name, labels).set(seconds),
    }
}

/// Outlet beside the crate `metrics-exporter-prometheus`: the program's own metrics and heapgauge's as one text.
///
/// It fits a program that serves the text of a [`PrometheusHandle`] itself: nothing of heapgauge goes through
/// its recorder, so no series stays behind, and the text is that of two scrapes, joined. Families
/// of heapgauge's that the recorder holds all the same, by [`Metrics`](super::Metrics), are left out of
/// its part, or they would be there twice.
///
/// # Examples
///
/// ```
/// use heapgauge::emit;
/// use metrics_exporter_prometheus::PrometheusBuilder;
///
/// let recorder = PrometheusBuilder::new().add_global_label("region", "eu").build_recorder();
/// metrics::with_local_recorder(&recorder, || metrics::counter!("requests_total").increment(3));
///
/// let outlet = emit::Prometheus::new(&heapgauge::Collector::new()).with_global_label("region", "eu");
/// let text = outlet.render(&recorder.handle());
/// assert!(text.contains("\nrequests_total{region=\"eu\"} 3\n"));
/// assert!(text.contains("\nheap_tracking{region=\"eu\"} "));
/// ```
#[derive(Clone, Debug)]
#[must_use = "an outlet shows nothing before `render`"]
pub struct Prometheus {
    collector: Collector,
    /// Keys and values, in the order they were added.
    global_labels: Vec<(String, String)>,
}

impl Prometheus {
    /// Makes an outlet of this collector's reports.
    ///
    /// # Examples
    ///
    /// ```
    /// let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    /// let outlet = heapgauge::emit::Prometheus::new(&heapgauge::Collector::new());
    /// assert!(outlet.render(&recorder.handle()).contains("\nheap_tracking "));
    /// ```
    pub fn new(collector: &Collector) -> Prometheus {
        let _own = control::internal();
        Prometheus { collector: collector.clone(), global_labels: Vec::new() }
    }

    /// Puts a label on every series of heapgauge's, as
    /// [`add_global_label`](metrics_exporter_prometheus::PrometheusBuilder::add_global_label) does on those of the
    /// program's recorder.
    ///
    /// A [`PrometheusHandle`] does not tell the global labels of its recorder, so each is named here again. A key that
    /// is added twice has the later value, and a label that a series has already, such as `site`, keeps the value of the
    /// series.
    ///
    /// # Examples
    ///
    /// ```
    /// let outlet = heapgauge::emit::Prometheus::new(&heapgauge::Collector::new()).with_global_label("region", "eu");
    /// # drop(outlet);
    /// ```
    pub fn with_global_label(mut self, key: impl Into<String>, value: impl Into<String>) -> Prometheus {
        let _own = control::internal();
        self.global_labels.push((key.into(), value.into()));
        self
    }

    /// Returns the text of the program's recorder and heapgauge's after it, as one exposition.
    ///
    /// Costs as much as [`Collector::collect`] and about a millisecond. Allocations of rendering the handle are the
    /// program's.
    ///
    /// # Examples
    ///
    /// ```
    /// let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    /// let outlet = heapgauge::emit::Prometheus::new(&heapgauge::Collector::new());
    /// assert!(outlet.render(&recorder.handle()).contains("\nheap_live_bytes "));
    /// ```
    pub fn render(&self, handle: &PrometheusHandle) -> String {
        let theirs = handle.render();
        let _own = control::internal();
        let mut text = exposition_text::without_ours(&theirs);
        text.push_str(&render_with_labels(&self.collector.collect(), &self.global_labels));
        text
    }
}

/// Caches the text of the latest report asked for, so that scrapes within a second render once.
#[cfg(any(feature = "http", test))]
#[derive(Default)]
pub(crate) struct Cached {
    latest: ForkMutex<Option<(u64, Arc<str>)>>,
}

#[cfg(any(feature = "http", test))]
impl Cached {
    /// Returns `report` as text. All reports handed in come from one collector.
    pub(crate) fn text(&self, report: &Report) -> Arc<str> {
        let _own = control::internal();
        let mut latest = self.latest.lock();
        match &*latest {
            Some((number, text)) if *number == report.number => text.clone(),
            _ => {
                let text: Arc<str> = fork::outside(|| render(report)).into();
                *latest = Some((report.number, text.clone()));
                text
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::collector::{ScopeRow, sample_report, sample_row};
    use crate::analyze::dump_counts::{DumpCounts, PreviousRun};
    use crate::analyze::live::LiveChange;
    use crate::base::random_input::{Random, inputs};

    /// Every family, value and label, line by line.
    #[test]
    fn the_text_of_a_report() {
        let expected = include_str!("golden.prom");
        let text = render(&sample_report());
        for (line, expected) in text.lines().zip(expected.lines()) {
            assert_eq!(line, expected);
        }
        assert_eq!(text.len(), expected.len());
    }

    /// Makes the sample report with its sites estimated.
    fn sampled_report() -> Report {
        let mut report = sample_report();
        report.sample_interval_bytes = 512 << 10;
        report.sites[0].live_stderr_bytes = 724_077;
        report
    }

    fn with_dumps(mut report: Report) -> Report {
        report.dumps = Some(DumpCounts { limit: 1, peak: 2, signal: 3, failure: 4, request: 5, failures: 6 });
        report.previous_run = Some(PreviousRun {
            reason: "limit".into(),
            function: "app::cache::Cache::insert".into(),
            site: "feed00000000002a".into(),
            dump: "heap-1793000000-7-limit.json".into(),
        });
        report
    }

    #[test]
    fn every_family_has_its_help_and_type_once() {
        let text = render(&with_dumps(sampled_report()));
        for family in families::ALL {
            let kind = if family.kind.is_counter() { "counter" } else { "gauge" };
            for header in [
                format!("# HELP {} {}\n", family.name, family.help),
                format!("# TYPE {} {kind}\n", family.name),
            ] {
                assert_eq!(text.matches(&header).count(), 1, "{header}");
            }
        }
        assert_eq!(text.matches("# TYPE").count(), families::ALL.len());
    }

    #[test]
    fn errors_are_shown_of_estimates_only() {
        assert!(!render(&sample_report()).contains("heap_site_live_stderr_bytes"));
        let text = render(&sampled_report());
        let errors: Vec<&str> =
            text.lines().filter(|line| line.starts_with("heap_site_live_stderr")).collect();
        assert_eq!(
            errors,
            [
                r#"heap_site_live_stderr_bytes{site="feed000000000007",function="app::load/it"} 0"#,
                r#"heap_site_live_stderr_bytes{site="feed00000000002a",function="app::cache::Cache::insert"} 724077"#,
            ]
        );
        assert!(text.contains("\nheap_sample_interval_bytes 524288\n"));
        // Exact again, while sampled blocks live.
        let mut report = sampled_report();
        report.sample_interval_bytes = 0;
        assert!(render(&report).contains("heap_site_live_stderr_bytes{"));
    }

    #[test]
    fn one_snapshot_gives_the_same_bytes_each_time() {
        let report = sample_report();
        let (cached, first) = (Cached::default(), render(&report));
        for _ in 0..20 {
            assert_eq!(render(&report), first);
        }
        assert_eq!(*cached.text(&report), *first);
        assert!(Arc::ptr_eq(&cached.text(&report), &cached.text(&report)));
    }

    #[test]
    fn what_is_absent_has_no_series() {
        let mut report = sample_report();
        report.sites.clear();
        report.scopes.clear();
        report.tracking = false;
        report.resident_bytes = None;
        report.memory_limit_bytes = None;
        let text = render(&report);
        assert!(text.contains("\nheap_tracking 0\n"));
        for absent in [
            "heap_site_live",
            "heap_site_info",
            "heap_scope_live",
            "heap_resident_bytes",
            "heap_memory_limit_bytes",
        ] {
            assert!(!text.contains(absent), "{absent}");
        }
    }

    #[test]
    fn dumps_and_what_an_earlier_run_left_have_series_where_there_is_a_directory() {
        assert!(!render(&sample_report()).contains("heap_dump"));
        let text = render(&with_dumps(sample_report()));
        for line in [
            "heap_dumps_total{reason=\"limit\"} 1",
            "heap_dumps_total{reason=\"peak\"} 2",
            "heap_dumps_total{reason=\"signal\"} 3",
            "heap_dumps_total{reason=\"failure\"} 4",
            "heap_dumps_total{reason=\"request\"} 5",
            "heap_dump_failures_total 6",
            "heap_previous_run_info{reason=\"limit\",function=\"app::cache::Cache::insert\",site=\"feed00000000002a\"} 1",
        ] {
            assert!(text.lines().any(|written| written == line), "{line}");
        }
    }

    #[test]
    fn counters_are_written_whole_and_gauges_up_to_two_to_the_53() {
        let mut report = sample_report();
        report.allocated_bytes = u64::MAX;
        report.live.now.bytes = 1 << 53;
        let text = render(&report);
        assert!(text.contains("\nheap_allocated_bytes_total 18446744073709551615\n"));
        assert!(text.contains("\nheap_live_bytes 9007199254740992\n"));
    }

    /// 32 sites of seven series each, 41 with the largest N, and what there is once; of eight where they are estimates; and 25 pairs of
    /// scopes of three each.
    #[test]
    fn at_most_300_series_and_460_with_scopes_and_sampling() {
        for (mut report, sites, scopes, expected) in [
            (sample_report(), 32, 0, 268),
            (sample_report(), 41, 0, 331),
            (sampled_report(), 41, 0, 372),
            (sample_report(), 32, 25, 343),
            (sampled_report(), 41, 25, 447),
        ] {
            let row = |line| crate::analyze::collector::sample_row(line, &format!("f{line}"), 1, 1, 0, 0);
            report.sites = (0..sites).map(row).collect();
            let scope = |value: i32| ScopeRow::new("tenant", &value.to_string(), LiveChange::default());
            report.scopes = (0..scopes).map(scope).collect();
            let series = render(&report).lines().filter(|line| !line.starts_with('#')).count();
            assert_eq!(series, expected, "{sites} sites, {scopes} scopes");
        }
    }

    /// Global labels of the program's recorder were missing on heapgauge's series.
    #[test]
    fn global_labels_are_those_of_the_recorder_on_every_series() {
        let labels = [
            ("region", "eu"),
            ("bad key-1", "a\"b"),
            ("escaped", "C:\\src\nnext"),
            ("backslash", "end\\"),
            ("region", "us"),
            ("site", "global"),
        ];
        let fake = crate::analyze::collector::Fake::new();
        fake.holds(2, 10, 1_000, 10);
        let mut builder = PrometheusBuilder::new();
        let mut outlet = Prometheus::new(&fake.collector(25, 300));
        for (key, value) in labels {
            builder = builder.add_global_label(key, value);
            outlet = outlet.with_global_label(key, value);
        }
        let recorder = builder.build_recorder();
        metrics::with_local_recorder(&recorder, || metrics::counter!("requests_total").increment(1));
        let text = outlet.render(&recorder.handle());
        let lines: Vec<&str> = text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).collect();

        let theirs = lines[0].strip_prefix("requests_total{").and_then(|l| l.strip_suffix("} 1")).unwrap();
        assert_eq!(theirs.matches("=\"").count(), 5, "{theirs}");
        let (own_site, common) = theirs.split(',').partition::<Vec<_>, _>(|label| label.starts_with("site="));
        assert_eq!(own_site, ["site=\"global\""]);
        assert!(lines.len() > 20, "{text}");
        for line in &lines[1..] {
            for label in
                common.iter().chain(if line.contains("_site_") { [].iter() } else { own_site.iter() })
            {
                assert!(line.contains(label), "{label} is not on {line}");
            }
            // Parsed: each key once, and a site of ours keeps its id.
            let (_, parsed, _) = sample(line);
            let keys: std::collections::BTreeSet<_> = parsed.iter().map(|(key, _)| key).collect();
            assert_eq!(keys.len(), parsed.len(), "{line}");
            let (_, expected, _) = sample(lines[0]);
            for (key, value) in &expected {
                let shown = parsed.iter().find(|(other, _)| other == key).map(|(_, value)| value);
                if key == "site" && line.contains("_site_") {
                    assert_eq!(shown.map(|site| site.as_str()), Some("000000000000000a"), "{line}");
                } else {
                    assert_eq!(shown, Some(value), "{line}");
                }
            }
        }
    }

    /// Parses a sample as the text format has it: name, labels, value.
    fn sample(line: &str) -> (String, Vec<(String, String)>, f64) {
        let Some((name, rest)) = line.split_once('{') else {
            let (name, value) = line.split_once(' ').unwrap();
            return (name.into(), vec![], value.parse().unwrap());
        };
        let (mut labels, mut rest) = (Vec::new(), rest);
        loop {
            let (key, after) = rest.split_once("=\"").unwrap();
            let (mut value, mut chars) = (String::new(), after.chars());
            loop {
                match chars.next().expect("a quote that closes") {
                    '\\' => value.push(match chars.next().unwrap() {
                        'n' => '\n',
                        c @ ('\\' | '"') => c,
                        other => panic!("\\{other} is no escape"),
                    }),
                    '"' => break,
                    c => value.push(c),
                }
            }
            labels.push((key.to_owned(), value));
            rest = chars.as_str();
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break,
            }
        }
        (name.into(), labels, rest.strip_prefix("} ").unwrap().parse().unwrap())
    }

    /// Names as no compiler writes them, and numbers at the edges, are each one sample with the labels they had.
    #[test]
    fn any_report_is_a_text_that_reads_back() {
        let words = ["app", "::", "<", ">", "{closure#0}", " ", "\"", "\\", "}", ",", "=", "\u{7f}", "é"];
        let mut random = Random::new();
        for _ in 0..inputs(600) {
            let mut report = sample_report();
            report.sites = (0..random.below(5) as u32)
                .map(|line| {
                    let [bytes, blocks] = [random.edge(), random.edge()];
                    sample_row(
                        line,
                        &random.text(&words),
                        bytes,
                        blocks,
                        random.edge() as i64,
                        random.edge() as i64,
                    )
                })
                .collect();
            report.live.now.bytes = random.edge();
            report.allocated_bytes = random.edge();
            let text = render(&report);
            let lines = || text.lines().filter(|line| !line.starts_with('#'));
            // Seven for each site, beside what there is once.
            assert_eq!(
                lines().count(),
                render(&Report { sites: vec![], ..report.clone() })
                    .lines()
                    .filter(|line| !line.starts_with('#'))
                    .count()
                    + 7 * report.sites.len()
            );
            let mut infos = Vec::new();
            for line in lines() {
                let (name, labels, value) = sample(line);
                assert!(families::ALL.iter().any(|family| family.name == name), "{line}");
                assert!(labels.iter().all(|(_, value)| !value.contains(['\\', '\n', '\r'])), "{line}");
                if name == "heap_live_bytes" {
                    assert_eq!(value, report.live.now.bytes as f64);
                }
                if name == "heap_site_info" {
                    infos.push(labels);
                }
            }
            assert_eq!(infos.len(), report.sites.len());
            for site in &report.sites {
                let of_site = infos.iter().filter(|labels| labels[0] == ("site".into(), site.site())).count();
                assert!(of_site >= 1, "{}", site.site());
            }
        }
    }
}
