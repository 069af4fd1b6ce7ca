//! [`Report`](crate::Report) → the recorder that the program installed for the crate `metrics`.
//!
//! Any thread; a collection, and well below a millisecond with 40 sites. A recorder never forgets a
//! series, so each one made here keeps its true value from then on.
#![forbid(unsafe_code)]

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::families::{self, Unit};
use super::prometheus::{record, set};
use super::{Value, labels};
use crate::analyze::collector::Collector;
use crate::base::error::Error;
use crate::export::short_life::say_if_short;
use crate::record::control;
use crate::record::fork::{self, mutex, mutex::ForkMutex};

/// Default number of sites, of seven series each; more than a process shows in a day of ordinary work.
const MAX_SITES: usize = 200;
/// Shortest interval of reports. A collection is given out again for a second, so a shorter interval would show nothing new.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// Pause between two slices of naming, so that the thread leaves most of a core to others.
const NAMING_REST: Duration = Duration::from_millis(10);
/// Number of reporters that live.
static LIVE: AtomicUsize = AtomicUsize::new(0);

/// Outlet into the recorder that the program installed for the crate `metrics`, whichever it is. Cheap to clone.
///
/// A recorder cannot take a series back. So a site that was shown once is shown from then on, with its present bytes and blocks,
/// 0 if it has none. The number of such sites has a limit. The same holds for pairs of a scope's key and value: the first hundred
/// have series, and the rest of a key is `[other]`. Where the recorder is `metrics-exporter-prometheus` and the program serves its text, [`Prometheus`](super::Prometheus)
/// does without both.
///
/// # Examples
///
/// ```
/// use heapgauge::emit;
///
/// let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder().unwrap();
///
/// let outlet = emit::Metrics::new(&heapgauge::Collector::new());
/// outlet.describe();
/// outlet.collect(); // before each scrape, or once for all: `outlet.report_every(interval)?`
/// assert!(recorder.render().contains("\nheap_tracking "));
/// ```
#[derive(Clone, Debug)]
#[must_use = "an outlet shows nothing before `collect` or `report_every`"]
pub struct Metrics {
    collector: Collector,
    max_sites: usize,
    /// Held while values are set, so that those of an earlier snapshot never come last.
    turn: Arc<ForkMutex<Turn>>,
}

/// Series that a recorder keeps for ever.
#[derive(Debug, Default)]
struct Turn {
    /// True once standard errors were among them.
    has_errors: bool,
    /// Allocator and state of the last turn.
    allocator: Option<(Arc<str>, &'static str)>,
}

impl Metrics {
    /// Makes an outlet of this collector's reports.
    ///
    /// # Examples
    ///
    /// ```
    /// let outlet = heapgauge::emit::Metrics::new(&heapgauge::Collector::new()).max_sites(100);
    /// outlet.collect(); // does nothing before a recorder is installed
    /// ```
    pub fn new(collector: &Collector) -> Metrics {
        let _own = control::internal();
        Metrics { collector: collector.clone(), max_sites: MAX_SITES, turn: Arc::default() }
    }

    /// Limits the sites that are shown in the life of the process, seven series each; default: 200.
    ///
    /// Sites that come when there is no room count in `heap_dropped_events_total{reason="series"}`, each
    /// once; their bytes are in *other*. Among several outlets of one collector the highest limit
    /// counts.
    ///
    /// # Examples
    ///
    /// ```
    /// let outlet = heapgauge::emit::Metrics::new(&heapgauge::Collector::new()).max_sites(50);
    /// # drop(outlet);
    /// ```
    pub fn max_sites(mut self, sites: usize) -> Metrics {
        self.max_sites = sites;
        self
    }

    /// Tells the recorder type, unit and meaning of every metric. Once is enough.
    ///
    /// # Examples
    ///
    /// ```
    /// let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    /// let outlet = heapgauge::emit::Metrics::new(&heapgauge::Collector::new());
    /// metrics::with_local_recorder(&recorder, || {
    ///     outlet.describe();
    ///     outlet.collect();
    /// });
    /// assert!(recorder.handle().render().contains("# HELP heap_tracking "));
    /// ```
    pub fn describe(&self) {
        let _own = control::internal();
        for family in families::ALL {
            let unit = match family.unit {
                Unit::Bytes => Some(metrics::Unit::Bytes),
                Unit::Seconds => Some(metrics::Unit::Seconds),
                Unit::Blocks | Unit::Sites | Unit::Events | Unit::Threads => Some(metrics::Unit::Count),
                Unit::Flag => None,
            };
            metrics::with_recorder(|recorder| {
                let (name, help) = (family.name.into(), family.help.into());
                if family.kind.is_counter() {
                    recorder.describe_counter(name, unit, help);
                } else {
                    recorder.describe_gauge(name, unit, help);
                }
            });
        }
    }

    /// Sets every metric to its value of now; nothing happens before a recorder is installed.
    ///
    /// Costs as much as [`Collector::collect`], and some microseconds for each series. Totals do not begin
    /// again after [`clear_traces`](crate::clear_traces) or [`stop`](crate::stop): a counter here cannot
    /// fall. Allocations meanwhile, the recorder's too, are heapgauge's own.
    ///
    /// # Examples
    ///
    /// ```
    /// let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    /// let outlet = heapgauge::emit::Metrics::new(&heapgauge::Collector::new());
    /// metrics::with_local_recorder(&recorder, || outlet.collect()); // before each time that the recorder is read
    /// assert!(recorder.handle().render().contains("\nheap_tracking "));
    /// ```
    pub fn collect(&self) {
        let _own = control::internal();
        let mut turn = self.turn.lock();
        let report = self.collector.collect_following(self.max_sites).sticky();
        turn.has_errors |= report.is_estimated();
        let falls_to_zero = turn.has_errors && !report.is_estimated();
        let former = std::mem::replace(&mut turn.allocator, report.allocator.clone());
        let former = former.filter(|former| report.allocator.as_ref() != Some(former));
        // The recorder is the program's, and may take its time.
        fork::outside(|| {
            record(&report);
            if let Some((name, state)) = &former {
                let family = &families::ALLOCATOR_INFO;
                set(family, labels(family, &[name, state]), Value::Level(0));
            }
            if falls_to_zero {
                let family = &families::SITE_LIVE_STDERR_BYTES;
                for site in &report.sites {
                    set(family, labels(family, &[&site.site(), &site.function_label()]), Value::Level(0));
                }
            }
        });
    }

    /// Starts a thread that [describes](Metrics::describe) the metrics, [collects](Metrics::collect) now and
    /// in this interval from then on, and keeps the collector's baselines in time. Dropping the
    /// [`Reporter`] stops it; `let _ = …` drops it at once, and the compiler does not warn. A reporter that was dropped within a
    /// second is a line on stderr, if the program still runs a second later and has no other one.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let outlet = heapgauge::emit::Metrics::new(&heapgauge::Collector::new());
    /// let reporter = outlet.report_every(Duration::from_secs(15))?;
    /// drop(reporter);
    ///
    /// let refused = outlet.report_every(Duration::from_millis(20)).unwrap_err();
    /// assert_eq!(refused.to_string(), "reporter: interval 20ms is out of range, allowed are 1s to 24h");
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// An interval out of its range, or a thread that cannot be started.
    pub fn report_every(&self, interval: Duration) -> Result<Reporter, Error> {
        let _own = control::internal();
        if !(SHORTEST..=LONGEST).contains(&interval) {
            return Err(Error::new(format_args!(
                "reporter: interval {interval:?} is out of range, allowed are 1s to 24h"
            )));
        }
        let (stop, stopped) = mpsc::channel();
        let outlet = self.clone();
        let thread = std::thread::Builder::new()
            .name("heapgauge-report".into())
            .spawn(move || outlet.run(interval, &stopped))
            .map_err(|error| Error::with_source("reporter: cannot start its thread", error))?;
        LIVE.fetch_add(1, Ordering::Relaxed);
        Ok(Reporter { started: Instant::now(), running: Some((mutex::process(), stop, thread)) })
    }

    fn run(&self, interval: Duration, stopped: &Receiver<()>) {
        control::internal_for_life();
        // A fault of ours, or of the recorder, costs this turn only.
        let turn = |act: &dyn Fn() -> Duration| catch_unwind(AssertUnwindSafe(act)).unwrap_or(interval);
        let waits = |rest: Duration| stopped.recv_timeout(rest) == Err(RecvTimeoutError::Timeout);
        self.describe();
        let mut next = Instant::now();
        loop {
            if next <= Instant::now() {
                next = Instant::now() + interval;
                turn(&|| {
                    self.collect();
                    interval
                });
                while turn(&|| if self.collector.name_slice() { NAMING_REST } else { interval })
                    == NAMING_REST
                {
                    if !waits(NAMING_REST) {
                        return;
                    }
                }
            }
            let due = turn(&|| self.collector.tick());
            let rest = due.min(next.saturating_duration_since(Instant::now()));
            if !waits(rest.max(NAMING_REST)) {
                return;
            }
        }
    }
}

/// Guard of the thread of [`Metrics::report_every`]. Dropping it ends the thread and waits for it; in a child of
/// `fork`, where the thread does not exist, dropping it does nothing.
///
/// # Examples
///
/// ```
/// use heapgauge::emit::{Metrics, Reporter};
/// use std::time::Duration;
///
/// struct Telemetry {
///     _heap: Reporter, // ends with the program's other telemetry
/// }
///
/// let outlet = Metrics::new(&heapgauge::Collector::new());
/// let telemetry = Telemetry { _heap: outlet.report_every(Duration::from_secs(15))? };
/// # drop(telemetry);
/// # Ok::<(), heapgauge::Error>(())
/// ```
#[must_use = "dropping it ends the reports: `let _reporter = …` keeps it"]
pub struct Reporter {
    started: Instant,
    /// Process that has the thread; dropping the sender ends the thread.
    running: Option<(u32, Sender<()>, JoinHandle<()>)>,
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reporter")
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        let Some((pid, stop, thread)) = self.running.take() else { return };
        let _own = control::internal();
        if pid != mutex::process() {
            // Neither end of these is in this process: joining would wait for ever.
            std::mem::forget((stop, thread));
            return;
        }
        let lived = self.started.elapsed();
        drop(stop);
        let _ = thread.join();
        LIVE.fetch_sub(1, Ordering::Relaxed);
        let is_replaced = || LIVE.load(Ordering::Relaxed) > 0;
        say_if_short(lived, "the reporter of metrics".into(), "let _reporter = …", is_replaced);
    }
}

#[cfg(test)]
mod tests;
