//! Numbers of dumps that this process has written, and what an earlier run left behind, for reports.
//!
//! Written by the thread that dumps, read by any thread. Relaxed throughout: counts that order nothing else.
#![forbid(unsafe_code)]

use crate::record::fork::mutex::{self, ForkMutex};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Event that makes a process write a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DumpReason {
    /// Memory has come close to its limit.
    Limit,
    /// Live bytes have a new peak.
    Peak,
    /// The signal that was chosen for it has come.
    Signal,
    /// The inner allocator has returned null.
    Failure,
    /// A request over HTTP.
    Request,
}

impl DumpReason {
    pub(crate) const ALL: [DumpReason; 5] =
        [DumpReason::Limit, DumpReason::Peak, DumpReason::Signal, DumpReason::Failure, DumpReason::Request];

    /// Returns the word that labels, file names and files have.
    pub(crate) fn word(self) -> &'static str {
        match self {
            DumpReason::Limit => "limit",
            DumpReason::Peak => "peak",
            DumpReason::Signal => "signal",
            DumpReason::Failure => "failure",
            DumpReason::Request => "request",
        }
    }
}

/// Numbers of dumps since the process began.
///
/// # Examples
///
/// ```
/// let report = heapgauge::Collector::new().collect();
/// assert_eq!(report.dumps, None); // no directory was chosen
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DumpCounts {
    /// Dumps because memory came close to its limit.
    pub limit: u64,
    /// Dumps of a new peak.
    pub peak: u64,
    /// Dumps on a signal.
    pub signal: u64,
    /// Dumps because an allocation failed.
    pub failure: u64,
    /// Dumps on a request over HTTP.
    pub request: u64,
    /// Dumps that could not be written: no space, no directory, no permission.
    pub failures: u64,
}

impl DumpCounts {
    /// Returns the number for a reason.
    pub(crate) fn of(&self, reason: DumpReason) -> u64 {
        match reason {
            DumpReason::Limit => self.limit,
            DumpReason::Peak => self.peak,
            DumpReason::Signal => self.signal,
            DumpReason::Failure => self.failure,
            DumpReason::Request => self.request,
        }
    }
}

/// Last dump of an earlier run of the program that ended without a word: killed, or by a crash.
///
/// # Examples
///
/// ```
/// let report = heapgauge::Collector::new().collect();
/// if let Some(run) = &report.previous_run {
///     println!("killed? {} held most, see {}", run.function, run.dump);
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PreviousRun {
    /// Reason of the dump: `limit`, `peak`, `signal`, `failure` or `request`.
    pub reason: String,
    /// Function of the site that held most, at most 120 characters.
    pub function: String,
    /// Id of that site, 16 hex digits.
    pub site: String,
    /// Name of the dump in the directory.
    pub dump: String,
}

/// Number of the process that has a directory, 0 for none: a forked child has none before it chooses one.
static PROCESS: AtomicU32 = AtomicU32::new(0);
static WRITTEN: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];
static FAILURES: AtomicU64 = AtomicU64::new(0);
static PREVIOUS_RUN: ForkMutex<Option<PreviousRun>> = ForkMutex::new(None);

/// Notes that this process has a directory for dumps.
pub(crate) fn begin(previous_run: Option<PreviousRun>) {
    PROCESS.store(mutex::process(), Ordering::Relaxed);
    if previous_run.is_some() {
        *PREVIOUS_RUN.lock() = previous_run;
    }
}

/// Counts a dump that was written.
pub(crate) fn count(reason: DumpReason) {
    WRITTEN[reason as usize].fetch_add(1, Ordering::Relaxed);
}

/// Counts a dump that could not be written.
pub(crate) fn count_failure() {
    FAILURES.fetch_add(1, Ordering::Relaxed);
}

/// Returns the numbers; `None` where no directory was chosen.
pub(crate) fn counts() -> Option<DumpCounts> {
    let of = |reason: DumpReason| WRITTEN[reason as usize].load(Ordering::Relaxed);
    is_on().then(|| DumpCounts {
        limit: of(DumpReason::Limit),
        peak: of(DumpReason::Peak),
        signal: of(DumpReason::Signal),
        failure: of(DumpReason::Failure),
        request: of(DumpReason::Request),
        failures: FAILURES.load(Ordering::Relaxed),
    })
}

/// Returns what an earlier run left behind.
pub(crate) fn previous_run() -> Option<PreviousRun> {
    if is_on() { PREVIOUS_RUN.lock().clone() } else { None }
}

fn is_on() -> bool {
    PROCESS.load(Ordering::Relaxed) == mutex::process()
}
