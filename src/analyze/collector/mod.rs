//! Builds a [`Report`] from raw snapshots: groups counts by site, compares them with a baseline, chooses the sites that
//! are exported.
//!
//! Any thread may call it; callers wait for each other, at most about a second. A thread that
//! allocates is never stopped. A collection younger than a second is given out again.
#![forbid(unsafe_code)]

mod allocated;
mod baselines;
pub(crate) mod budget;
#[cfg(any(feature = "http", test))]
mod compare;
mod estimate;
mod followed_sites;
mod grouping;
#[cfg(any(feature = "http", test))]
mod kept_snapshots;
mod leak;
mod naming;
mod report;
mod scopes;
pub(crate) mod settings;
mod site_ages;
mod site_index;
mod source;
mod state;
mod top_sites;
#[cfg(any(feature = "http", test))]
mod view;
#[cfg(any(feature = "http", test))]
mod views;

use std::fmt;
use std::sync::Arc;
#[cfg(any(feature = "prometheus", test))]
use std::time::Duration;

use crate::record::control;
use crate::record::fork::mutex::{ForkGuard, ForkMutex};
#[cfg(any(feature = "http", test))]
pub(crate) use baselines::PastTotals;
#[cfg(any(feature = "http", test))]
#[cfg_attr(not(feature = "http"), allow(unused_imports))]
pub(crate) use compare::{CompareError, CompareQuery, Compared, SavedSnapshot, Since};
pub use leak::Leak;
pub use report::{BuildInfo, DroppedEvents, Report, SiteRow, UnnamedBytes};
pub use scopes::ScopeRow;
pub use settings::CollectorBuilder;
use settings::Options;
#[cfg(any(feature = "http", test))]
#[cfg_attr(not(feature = "http"), allow(unused_imports))]
pub(crate) use site_ages::RowAges;
use source::HeapSource;
use state::State;
#[cfg(any(feature = "http", test))]
#[cfg_attr(not(feature = "http"), allow(unused_imports))]
pub(crate) use views::{Overview, PairTotals, Scopes, SiteTotals, Sites, Stacks, Times, ViewQuery};

/// Turns the heap into [`Report`]s: which lines hold it, and which grow.
///
/// Cheap to clone; clones share everything, so two outlets of one collector show the same numbers.
/// It keeps its own baselines every fifth of the `delta_window`: on the server's thread while a
/// [`Server`](crate::Server) runs, otherwise whenever [`collect`](Collector::collect) is called.
///
/// With 10,000 stacks a collection costs a few milliseconds once they are named, plus up to a second
/// while new ones are. Its own allocations are counted as heapgauge's.
///
/// # Examples
///
/// ```
/// let collector = heapgauge::Collector::new();
/// let first = collector.collect();
/// let again = collector.collect(); // less than a second later: the same snapshot
/// assert_eq!(first.number, again.number);
/// ```
#[derive(Clone)]
pub struct Collector {
    state: Arc<ForkMutex<State>>,
}

impl Collector {
    /// Creates a collector with the defaults of [`CollectorBuilder`].
    ///
    /// # Examples
    ///
    /// ```
    /// let collector = heapgauge::Collector::new();
    /// assert!(collector.collect().sites.len() <= 32);
    /// ```
    pub fn new() -> Collector {
        CollectorBuilder::default().build_unchecked()
    }

    /// Returns a builder for a collector with other settings.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// let collector =
    ///     heapgauge::Collector::builder().top_n(10).delta_window(Duration::from_secs(60)).build()?;
    /// assert!(collector.collect().sites.len() <= 26);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn builder() -> CollectorBuilder {
        CollectorBuilder::default()
    }

    /// Returns the heap now, or as it was up to a second ago when another caller has just asked.
    ///
    /// New stacks are named first, those with most live bytes before the others, for at most a second.
    /// Stacks without a name yet count in [`Report::other`], and [`Report::unnamed`] has their bytes.
    ///
    /// # Examples
    ///
    /// ```
    /// let report = heapgauge::Collector::new().collect();
    /// for site in report.sites.iter().take(3) {
    ///     println!("{}:{} holds {} bytes", site.file(), site.line(), site.live.now.bytes);
    /// }
    /// ```
    pub fn collect(&self) -> Arc<Report> {
        let _own = control::internal();
        let mut state = self.lock();
        loop {
            if let Some(report) = state.advance() {
                return report;
            }
        }
    }

    /// Does the work of [`collect`](Collector::collect), with up to `sites` sites followed from now on, and as many pairs of scopes as
    /// a recorder may have: the report has their figures even when they are no longer chosen.
    #[cfg(any(feature = "prometheus", test))]
    pub(crate) fn collect_following(&self, sites: usize) -> Arc<Report> {
        let _own = control::internal();
        let mut state = self.lock();
        if state.followed.raise(sites) | state.scopes.follow() {
            // The previous report does not have them.
            state.report = None;
        }
        loop {
            if let Some(report) = state.advance() {
                return report;
            }
        }
    }

    /// Does one slice of [`collect`](Collector::collect), for callers that have others to answer in between:
    /// `None` means call again.
    #[cfg(any(feature = "http", test))]
    pub(crate) fn collect_slice(&self) -> Option<Arc<Report>> {
        let _own = control::internal();
        self.lock().advance()
    }

    /// Keeps a baseline if one is due. Returns the time until the next call.
    #[cfg(any(feature = "prometheus", test))]
    pub(crate) fn tick(&self) -> Duration {
        let _own = control::internal();
        self.lock().tick()
    }

    /// Names some of the stacks the last collection had to leave unnamed. False: none are left.
    #[cfg(any(feature = "prometheus", test))]
    pub(crate) fn name_slice(&self) -> bool {
        let _own = control::internal();
        self.lock().name_slice()
    }

    /// Names some of these stacks, the last first, and takes those away. False: no more can be named.
    #[cfg(feature = "http")]
    pub(crate) fn name_stacks_slice(&self, unnamed: &mut Vec<crate::analyze::symbols::Unnamed>) -> bool {
        let _own = control::internal();
        let mut state = self.lock();
        let slice = state.slice;
        state.name(unnamed, slice)
    }

    fn lock(&self) -> ForkGuard<'_, State> {
        let mut state = self.state.lock();
        if self.state.take_panicked() {
            // The kept state may be inconsistent, so it begins anew.
            state.forget();
        }
        state
    }

    fn with_source(options: Options, source: Box<dyn HeapSource>) -> Collector {
        let _own = control::internal();
        let mut state = State::new(options, source);
        // The first baseline is the beginning, not the first time somebody asks.
        state.tick();
        Collector { state: Arc::new(ForkMutex::new(state)) }
    }
}

impl Default for Collector {
    fn default() -> Collector {
        Collector::new()
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
#[cfg(all(
    test,
    any(feature = "prometheus", feature = "_opentelemetry-sdk", feature = "prometheus-client")
))]
pub(crate) use tests::Fake;
#[cfg(all(test, any(feature = "prometheus", feature = "prometheus-client")))]
pub(crate) use tests::sample::{sample_report, sample_row};
