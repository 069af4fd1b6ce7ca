//! A [`Report`] as series, on the meter, recorder or registry that the program already has.
//!
//! [`outlets`](crate::docs::outlets) says which to take and how much each costs, with a complete snippet. Every outlet
//! walks one list of series; no arithmetic and no choice happens here.
#![forbid(unsafe_code)]
// Profiles are no series: with `pprof` alone the list is not used.
#![cfg_attr(not(feature = "prometheus"), allow(dead_code))]

#[cfg(feature = "http")]
pub(crate) mod ages_json;
#[cfg(feature = "http")]
pub(crate) mod allocator_json;
#[cfg(feature = "http")]
pub(crate) mod diff;
#[cfg(feature = "prometheus")]
mod exposition_text;
pub(crate) mod families;
pub(crate) mod folded;
#[cfg(feature = "http")]
pub(crate) mod json;
#[cfg(feature = "prometheus")]
mod metrics_recorder;
#[cfg(feature = "opentelemetry")]
mod opentelemetry;
#[cfg(feature = "pprof")]
pub(crate) mod pprof;
#[cfg(feature = "prometheus")]
pub(crate) mod prometheus;
#[cfg(feature = "prometheus-client")]
mod prometheus_client;

use std::time::SystemTime;

use crate::analyze::collector::{Report, ScopeRow, SiteRow};
use crate::analyze::dump_counts::DumpReason;
use crate::analyze::memory_parts::MemoryParts;
use families::Family;
#[cfg(feature = "prometheus")]
pub use metrics_recorder::{Metrics, Reporter};
#[cfg(feature = "opentelemetry")]
pub use opentelemetry::OpenTelemetry;
#[cfg(feature = "prometheus")]
pub use prometheus::Prometheus;
#[cfg(feature = "prometheus-client")]
pub use prometheus_client::PrometheusClient;

/// Value of a series, in the kind of its family.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value {
    /// Value of a counter: exact.
    Count(u64),
    /// Value of a gauge: exact up to 2^53 (8 PiB), then the nearest number a Prometheus sample can hold.
    Level(u64),
    /// Value of a signed gauge: exact up to ±2^53.
    Change(i64),
    Seconds(f64),
}

/// Label values in the order of the family's labels, without backslashes and control characters.
pub(crate) type Labels = Vec<(&'static str, String)>;

/// Hands every series of `report` to `emit`, family by family in the order of [`families::ALL`]; the series
/// of a family with sites come in the order of [`Report::sites`].
pub(crate) fn each_series(report: &Report, emit: &mut dyn FnMut(&'static Family, Labels, Value)) {
    use Value::{Change, Count, Level, Seconds};
    let mut one = |family: &'static Family, value: Value| emit(family, Labels::new(), value);

    one(&families::TRACKING, Level(report.tracking.into()));
    one(&families::START, Seconds(unix_seconds(report.started_at)));
    one(&families::LIVE_BYTES, Level(report.live.now.bytes));
    one(&families::LIVE_BLOCKS, Level(report.live.now.blocks));
    one(&families::PEAK_BYTES, Level(report.peak_bytes));
    one(&families::ALLOCATED_BYTES, Count(report.allocated_bytes));
    one(&families::ALLOCATIONS, Count(report.allocations));
    one(&families::DEALLOCATED_BYTES, Count(report.deallocated_bytes));
    one(&families::DEALLOCATIONS, Count(report.deallocations));

    let mut each_site = |family: &'static Family, value: &dyn Fn(&SiteRow) -> Value| {
        for site in &report.sites {
            emit(family, labels(family, &[&site.site(), &site.function_label()]), value(site));
        }
    };
    each_site(&families::SITE_LIVE_BYTES, &|site| Level(site.live.now.bytes));
    each_site(&families::SITE_LIVE_BLOCKS, &|site| Level(site.live.now.blocks));
    each_site(&families::SITE_LIVE_DELTA_BYTES, &|site| Change(site.live.delta_bytes()));
    each_site(&families::SITE_LIVE_DELTA_BLOCKS, &|site| Change(site.live.delta_blocks()));
    if report.is_estimated() {
        each_site(&families::SITE_LIVE_STDERR_BYTES, &|site| Level(site.live_stderr_bytes));
    }
    each_site(&families::SITE_OLD_BYTES, &|site| Level(site.old.lower_bytes));
    each_site(&families::SITE_ALLOCATED_BYTES, &|site| Count(site.allocated_bytes));
    for site in &report.sites {
        let line = site.line().to_string();
        let values: [&str; 6] =
            [&site.site(), &site.function_label(), site.file(), &line, site.crate_name(), site.via()];
        emit(&families::SITE_INFO, labels(&families::SITE_INFO, &values), Level(1));
    }

    each_series_of_scopes(report, emit);

    let mut one = |family: &'static Family, value: Value| emit(family, Labels::new(), value);
    one(&families::SITES, Level(report.sites_with_blocks));
    one(&families::SITES_EXPORTED, Level(report.sites.len() as u64));
    one(&families::DELTA_WINDOW, Seconds(report.delta_window.as_secs_f64()));
    one(&families::OLD_AGE, Seconds(report.old_age.as_secs_f64()));
    one(&families::SNAPSHOT_TIMESTAMP, Seconds(unix_seconds(report.taken_at)));
    one(&families::SNAPSHOT_DURATION, Seconds(report.duration.as_secs_f64()));
    one(&families::UNTRACKED_BYTES, Level(report.untracked_bytes));
    one(&families::OVERHEAD_BYTES, Level(report.overhead_bytes));
    for (state, bytes) in [("lost", report.unnamed.lost), ("pending", report.unnamed.pending)] {
        emit(&families::UNNAMED_BYTES, labels(&families::UNNAMED_BYTES, &[state]), Level(bytes));
    }

    let dropped = &report.dropped;
    for (reason, events) in [
        ("memory", dropped.memory),
        ("reentrant", dropped.reentrant),
        ("scopes", dropped.scopes),
        ("series", dropped.series),
        ("stacks", dropped.stacks),
        ("threads", dropped.threads),
    ] {
        emit(&families::DROPPED_EVENTS, labels(&families::DROPPED_EVENTS, &[reason]), Count(events));
    }

    let mut one = |family: &'static Family, value: Value| emit(family, Labels::new(), value);
    one(&families::TRUNCATED_STACKS, Count(report.truncated_stacks));
    one(&families::FALLBACK_WALKS, Count(report.fallback_walks));
    each_series_of_memory(report, emit);
    each_series_of_dumps(report, emit);

    let mut one = |family: &'static Family, value: Value| emit(family, Labels::new(), value);
    one(&families::SAMPLE_INTERVAL_BYTES, Level(report.sample_interval_bytes));

    let build = &report.build;
    let values =
        [build.version, &build.build_id, &build.release, build.site_scheme, build.capture, build.symbols];
    emit(&families::BUILD_INFO, labels(&families::BUILD_INFO, &values), Level(1));
}

/// Hands the series of scopes to `emit`, in the order of [`Report::scopes`]; none where no scope holds blocks.
fn each_series_of_scopes(report: &Report, emit: &mut dyn FnMut(&'static Family, Labels, Value)) {
    let mut each_scope = |family: &'static Family, value: &dyn Fn(&ScopeRow) -> Value| {
        for scope in &report.scopes {
            emit(family, labels(family, &[scope.key(), scope.value()]), value(scope));
        }
    };
    each_scope(&families::SCOPE_LIVE_BYTES, &|scope| Value::Level(scope.live.now.bytes));
    each_scope(&families::SCOPE_LIVE_BLOCKS, &|scope| Value::Level(scope.live.now.blocks));
    each_scope(&families::SCOPE_LIVE_DELTA_BYTES, &|scope| Value::Change(scope.live.delta_bytes()));
}

/// Hands the series of the process's memory to `emit`, those that are known.
fn each_series_of_memory(report: &Report, emit: &mut dyn FnMut(&'static Family, Labels, Value)) {
    let of = |part: fn(&MemoryParts) -> Option<u64>| report.memory_parts.as_ref().and_then(part);
    let allocator = report.allocator.as_ref().map(|(name, state)| [&**name, *state]);
    let of_allocator = allocator.as_ref().map_or(&[][..], |both| &both[..]);
    for (family, value) in [
        (&families::RESIDENT_BYTES, report.resident_bytes),
        (&families::RESIDENT_ANONYMOUS, of(|parts| parts.anonymous)),
        (&families::RESIDENT_FILE, of(|parts| parts.file)),
        (&families::RESIDENT_SHARED, of(|parts| parts.shared)),
        (&families::ALLOCATOR_INFO, allocator.map(|_| 1)),
        (&families::ALLOCATOR_RESIDENT, of(|parts| parts.allocator_resident)),
        (&families::ALLOCATOR_FREE, of(|parts| parts.allocator_free_resident)),
        (&families::INTERNAL_FRAGMENTATION, of(|parts| parts.internal_fragmentation)),
        (&families::FOREIGN, of(|parts| parts.foreign)),
        (&families::THREADS, of(|parts| parts.threads)),
        (&families::THREAD_STACK, of(|parts| parts.thread_stack)),
        (&families::LIVE_UNTOUCHED, of(|parts| parts.live_untouched)),
    ] {
        if let Some(value) = value {
            emit(family, labels(family, of_allocator), Value::Level(value));
        }
    }
    if let Some(bytes) = report.memory_parts.as_ref().and_then(|parts| parts.unaccounted) {
        emit(&families::UNACCOUNTED, Labels::new(), Value::Change(bytes));
    }
    for (family, value) in [
        (&families::MEMORY_LIMIT_BYTES, report.memory_limit_bytes),
        (&families::MEMORY_LIMIT_USAGE_BYTES, report.memory_limit_usage_bytes),
    ] {
        if let Some(value) = value {
            emit(family, Labels::new(), Value::Level(value));
        }
    }
}

/// Hands the series of dumps to `emit`, where the report has them.
fn each_series_of_dumps(report: &Report, emit: &mut dyn FnMut(&'static Family, Labels, Value)) {
    if let Some(dumps) = &report.dumps {
        for reason in DumpReason::ALL {
            let labels = labels(&families::DUMPS, &[reason.word()]);
            emit(&families::DUMPS, labels, Value::Count(dumps.of(reason)));
        }
        emit(&families::DUMP_FAILURES, Labels::new(), Value::Count(dumps.failures));
    }
    if let Some(run) = &report.previous_run {
        let labels = labels(&families::PREVIOUS_RUN_INFO, &[&run.reason, &run.function, &run.site]);
        emit(&families::PREVIOUS_RUN_INFO, labels, Value::Level(1));
    }
}

/// Series of one family, in order.
#[cfg(any(feature = "opentelemetry", feature = "prometheus-client"))]
type Series = Vec<(Labels, Value)>;

/// Groups the series of [`each_series`] by family, in the same order, for outlets that ask for one family after the
/// other. Families without series are left out.
#[cfg(any(feature = "opentelemetry", feature = "prometheus-client"))]
fn by_family(report: &Report) -> Vec<(&'static Family, Series)> {
    let mut families: Vec<(&'static Family, Series)> = Vec::with_capacity(families::ALL.len());
    each_series(report, &mut |family, labels, value| match families.last_mut() {
        Some((last, series)) if *last == family => series.push((labels, value)),
        _ => families.push((family, vec![(labels, value)])),
    });
    families
}

fn labels(family: &'static Family, values: &[&str]) -> Labels {
    family.labels.iter().zip(values).map(|(&key, value)| (key, label_value(value))).collect()
}

/// Cleans a label's value. Some renderers escape `a\b` and `a\\b` to the same text, which would join two series.
fn label_value(value: &str) -> String {
    let clean = |c: char| match c {
        '\\' => '/',
        c if c.is_control() => ' ',
        c => c,
    };
    value.chars().map(clean).collect()
}

pub(crate) fn unix_seconds(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_backslash_and_no_line_end_in_a_label() {
        assert_eq!(label_value("C:\\src\\a.rs"), "C:/src/a.rs");
        assert_eq!(label_value("a\nb\tc\u{7f}"), "a b c ");
        assert_eq!(label_value("naïve::<\"x\">"), "naïve::<\"x\">");
    }

    /// A recorder keeps every series: two states of an allocator would both be 1.
    #[cfg(feature = "prometheus")]
    #[test]
    fn a_former_state_of_the_allocator_falls_to_zero() {
        use crate::analyze::collector::Fake;
        use crate::analyze::memory_parts::State;

        let (fake, recorder) =
            (Fake::new(), metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder());
        let outlet = Metrics::new(&fake.collector(25, 300));
        let state = |state: State, seconds: u64| {
            fake.heap().allocator_state = state;
            fake.at(seconds);
            metrics::with_local_recorder(&recorder, || outlet.collect());
            let text = recorder.handle().render();
            let mut rows: Vec<_> = text
                .lines()
                .filter(|line| line.starts_with("heap_allocator_info{"))
                .map(str::to_owned)
                .collect();
            rows.sort();
            rows
        };
        let row = |state: &str, value: u8| {
            format!("heap_allocator_info{{allocator=\"glibc\",state=\"{state}\"}} {value}")
        };
        assert_eq!(state(State::Read, 0), [row("read", 1)]);
        assert_eq!(state(State::Rare, 10), [row("rare", 1), row("read", 0)]);
        assert_eq!(state(State::Rare, 20), [row("rare", 1), row("read", 0)]);
        assert_eq!(state(State::Read, 30), [row("rare", 0), row("read", 1)]);
    }
}
