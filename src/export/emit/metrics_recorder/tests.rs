//! Series that a recorder keeps, over time.

use std::collections::BTreeMap;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use super::*;
use crate::analyze::collector::Fake;

/// Parses a text into its series, with labels, and their values.
fn series(text: &str) -> BTreeMap<&str, f64> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(series, value)| (series, value.parse().unwrap()))
        .collect()
}

/// Five times as many lines as may be chosen take turns at the top, and every series that was made
/// once shows what its line holds, in each cycle; so do the counts that are not of a line.
#[test]
fn a_series_once_made_stays_true() {
    let fake = Fake::new();
    let collector = fake.collector(2, 300);
    let outlet = Metrics::new(&collector).max_sites(30);
    let recorder = PrometheusBuilder::new().build_recorder();
    let mut holds = [0_u64; 100];
    let mut most = 0;
    for cycle in 0..40 {
        fake.at(60 * cycle);
        for step in 0..7 {
            let line = (cycle * 37 + step * 11) % 100;
            holds[line as usize] = if step == 6 { 0 } else { (cycle * 7_919 + step * 104_729) % 100_000 };
            fake.holds(2 + line as u32, line as u32, holds[line as usize], 1);
        }
        metrics::with_local_recorder(&recorder, || outlet.collect());
        let text = recorder.handle().render();
        let shown = series(&text);
        let live: Vec<(usize, f64)> = shown
            .iter()
            .filter_map(|(name, value)| {
                let id = name.strip_prefix("heap_site_live_bytes{site=\"")?.get(..16)?;
                Some((usize::from_str_radix(id, 16).unwrap(), *value))
            })
            .collect();
        for (line, value) in &live {
            assert_eq!(*value, holds[*line] as f64, "line {line} in cycle {cycle}");
        }
        assert_eq!(shown["heap_live_bytes"], holds.iter().sum::<u64>() as f64);
        assert_eq!(shown["heap_sites_exported"], live.len() as f64);
        assert!((most..=30).contains(&live.len()), "a series was lost or the limit passed");
        most = live.len();
        let refused = shown["heap_dropped_events_total{reason=\"series\"}"];
        assert!(refused == 0.0 || most == 30);
    }
    assert_eq!(most, 30);
    let text = recorder.handle().render();
    assert!(series(&text)["heap_dropped_events_total{reason=\"series\"}"] >= 1.0);
}

#[test]
fn counters_go_on_and_gauges_fall_when_traces_are_forgotten() {
    let fake = Fake::new();
    let outlet = Metrics::new(&fake.collector(25, 300));
    let recorder = PrometheusBuilder::new().build_recorder();
    let collect = || {
        metrics::with_local_recorder(&recorder, || outlet.collect());
        recorder.handle().render()
    };
    fake.holds(2, 10, 1_000, 10);
    collect();
    fake.clear();
    fake.at(10);
    fake.holds(3, 20, 7, 1);
    let text = collect();
    let shown = series(&text);
    assert_eq!((shown["heap_allocated_bytes_total"], shown["heap_live_bytes"]), (1_007.0, 7.0));
    let site = |id: &str| {
        let line = u32::from_str_radix(id, 16).unwrap();
        shown[&*format!("heap_site_live_bytes{{site=\"{id}\",function=\"app::line_{line}\"}}")]
    };
    assert_eq!((site("000000000000000a"), site("0000000000000014")), (0.0, 7.0));
}

#[test]
fn an_error_falls_to_zero_when_no_block_is_sampled_any_more() {
    let fake = Fake::new();
    let outlet = Metrics::new(&fake.collector(25, 300));
    let recorder = PrometheusBuilder::new().build_recorder();
    let error = || {
        metrics::with_local_recorder(&recorder, || outlet.collect());
        let text = recorder.handle().render();
        let mut errors = series(&text).into_iter().filter(|(name, _)| name.contains("stderr"));
        errors.next().map(|(_, error)| error)
    };
    fake.holds(2, 10, 1_000, 10);
    assert_eq!(error(), None);
    fake.at(10);
    fake.is_sampled(2, 70.0);
    assert_eq!(error(), Some(70.0));
    fake.at(20);
    fake.is_sampled(2, 0.0);
    fake.heap().sample_interval = 0;
    assert_eq!(error(), Some(0.0));
}

/// A scope that holds nothing any more has a series still, and the rest of its key takes those that come too late.
#[test]
fn a_pair_of_a_scope_stays_true_when_it_is_over() {
    let fake = Fake::new();
    let outlet = Metrics::new(&fake.collector(25, 300));
    let recorder = PrometheusBuilder::new().build_recorder();
    let shown = |seconds: u64| -> Vec<(String, f64)> {
        fake.at(seconds);
        metrics::with_local_recorder(&recorder, || outlet.collect());
        let text = recorder.handle().render();
        let rows = series(&text).into_iter().filter(|(name, _)| name.starts_with("heap_scope_live_bytes{"));
        rows.map(|(name, value)| (name.split('"').nth(3).unwrap().to_owned(), value)).collect()
    };
    fake.holds_in(2, &[("tenant", "acme")], 100, 1);
    assert_eq!(shown(10), [("acme".to_owned(), 100.0)]);
    fake.holds_in(2, &[("tenant", "acme")], 0, 0);
    assert_eq!(shown(20), [("acme".to_owned(), 0.0)]);
    for id in 3..203_u32 {
        fake.holds_in(id, &[("tenant", &format!("t{id}"))], 10, 1);
    }
    for turn in 3..20 {
        let rows = shown(10 * turn);
        assert_eq!(rows.iter().map(|(_, bytes)| bytes).sum::<f64>(), 2_000.0);
        assert!(rows.len() <= 101);
    }
}

/// A series that stays must not show the bytes of before.
#[test]
fn lines_and_scopes_fall_to_zero_while_tracking_is_off() {
    let fake = Fake::new();
    let outlet = Metrics::new(&fake.collector(25, 300));
    let recorder = PrometheusBuilder::new().build_recorder();
    let values = |seconds: u64| -> Vec<f64> {
        fake.at(seconds);
        metrics::with_local_recorder(&recorder, || outlet.collect());
        let text = recorder.handle().render();
        let names = [
            "heap_site_live_bytes{",
            "heap_site_live_blocks{",
            "heap_scope_live_bytes{",
            "heap_scope_live_delta_bytes{",
        ];
        let rows = series(&text).into_iter();
        rows.filter(|(name, _)| names.iter().any(|begin| name.starts_with(begin)))
            .map(|(_, value)| value)
            .collect()
    };
    fake.holds_in(2, &[("tenant", "acme")], 100, 3);
    assert_eq!(values(10), [100.0, 100.0, 3.0, 100.0]);
    fake.heap().tracking = false;
    assert_eq!(values(20), [0.0; 4]);
}

/// A recorder that appends units to names finds them there already.
#[test]
fn names_stay_as_they_are_with_units() {
    let describe_and_collect = |builder: PrometheusBuilder| -> PrometheusHandle {
        let fake = Fake::new();
        fake.holds(2, 10, 1_000, 10);
        let outlet = Metrics::new(&fake.collector(25, 300));
        let recorder = builder.build_recorder();
        metrics::with_local_recorder(&recorder, || {
            outlet.describe();
            outlet.collect();
        });
        recorder.handle()
    };
    let sorted = |handle: PrometheusHandle| {
        let mut lines: Vec<String> = handle.render().lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    let plain = sorted(describe_and_collect(PrometheusBuilder::new()));
    let with_units = sorted(describe_and_collect(PrometheusBuilder::new().with_recommended_naming(true)));
    assert_eq!(with_units, plain);
    for family in families::ALL {
        let has_series = ![
            "heap_memory_limit_bytes",
            "heap_site_live_stderr_bytes",
            "heap_scope_live_bytes",
            "heap_scope_live_blocks",
            "heap_scope_live_delta_bytes",
            "heap_dumps_total",
            "heap_dump_failures_total",
            "heap_previous_run_info",
        ]
        .contains(&family.name);
        let help = format!("# HELP {} {}", family.name, family.help);
        assert_eq!(plain.contains(&help), has_series, "{help}");
    }
}

#[test]
fn joined_texts_hold_each_family_once() {
    let fake = Fake::new();
    fake.holds(2, 10, 1_000, 10);
    let collector = fake.collector(25, 300);
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        metrics::counter!("requests_total", "path" => "/").increment(7);
        // As if the program used both.
        Metrics::new(&collector).collect();
    });
    fake.at(10);
    fake.holds(2, 10, 3_000, 30);
    let text = crate::export::emit::Prometheus::new(&collector).render(&recorder.handle());
    let own = collector.collect().to_prometheus();
    let theirs = text.strip_suffix(&*own).expect("ours comes last, whole");
    assert_eq!(theirs.trim(), "# TYPE requests_total counter\nrequests_total{path=\"/\"} 7");
}

#[test]
fn the_reporter_reports_until_it_is_dropped() {
    let fake = Fake::new();
    let outlet = Metrics::new(&fake.collector(25, 300));
    let before = fake.heap().taken;
    let reporter = outlet.report_every(Duration::from_secs(1)).unwrap();
    let begun = Instant::now();
    // Its interval is by the real clock, baselines are by the fake one.
    for collections in 1..=2 {
        while fake.heap().taken < before + collections {
            assert!(begun.elapsed() < Duration::from_secs(30), "collection {collections} did not come");
            std::thread::sleep(Duration::from_millis(5));
        }
        fake.at(10 * u64::from(collections));
    }
    drop(reporter);
    let ended = fake.heap().taken;
    fake.at(1_000);
    std::thread::sleep(Duration::from_millis(1_100));
    assert_eq!(fake.heap().taken, ended);
}

#[test]
fn a_fault_costs_the_reporter_one_turn() {
    let fake = Fake::new();
    let outlet = Metrics::new(&fake.collector(25, 300));
    fake.heap().fails = true;
    fake.at(10);
    let _reporter = outlet.report_every(Duration::from_secs(1)).unwrap();
    let begun = Instant::now();
    let failed = fake.heap().taken;
    while fake.heap().taken < failed + 2 {
        assert!(begun.elapsed() < Duration::from_secs(30), "it ended");
        fake.heap().now += Duration::from_secs(2);
        std::thread::sleep(Duration::from_millis(20));
    }
}
