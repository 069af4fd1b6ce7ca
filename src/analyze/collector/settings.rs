//! Settings of a collector, their defaults and ranges.
#![forbid(unsafe_code)]

use super::Collector;
use super::budget;
use super::source::ThisProcess;
use crate::analyze::ages::{AgeSettings, HORIZON, MIN_OLD_AGE};
use crate::analyze::memory_parts::{self, AllocatorStatistics, SharedStatistics};
use crate::base::error::Error;
use crate::record::control;
use std::sync::Arc;
use std::time::Duration;

/// Maximum number of sites chosen by live bytes.
pub(crate) const MAX_TOP_N: usize = 25;
pub(crate) const DEFAULT_TOP_N: usize = 16;
pub(crate) const DEFAULT_DELTA_WINDOW: Duration = Duration::from_secs(5 * 60);
/// Longest `delta_window`: with a longer one a program would run too long before its first full delta.
pub(crate) const MAX_DELTA_WINDOW: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Snapshots kept on request, and their age at most.
#[cfg(any(feature = "http", test))]
const SNAPSHOTS: usize = 16;
#[cfg(any(feature = "http", test))]
const SNAPSHOTS_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// Settings of a [`Collector`].
///
/// # Examples
///
/// ```
/// let collector = heapgauge::Collector::builder().top_n(10).build()?;
/// # drop(collector);
/// # Ok::<(), heapgauge::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing before `build`"]
pub struct CollectorBuilder {
    pub(super) options: Options,
}

#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) top_n: usize,
    pub(super) delta_window: Duration,
    pub(super) memory_limit: Option<u64>,
    pub(super) release: Arc<str>,
    pub(super) statistics: Option<SharedStatistics>,
    /// `None` keeps what another collector has set.
    pub(super) old_age: Option<Duration>,
    pub(super) cohorts: Option<bool>,
    #[cfg(any(feature = "http", test))]
    pub(super) snapshots: usize,
    #[cfg(any(feature = "http", test))]
    pub(super) snapshots_for: Duration,
}

impl Options {
    pub(super) fn set_ages(&self, settings: &mut AgeSettings) {
        settings.old_age = self.old_age.unwrap_or(settings.old_age);
        settings.cohorts = self.cohorts.unwrap_or(settings.cohorts);
    }
}

impl Default for CollectorBuilder {
    fn default() -> CollectorBuilder {
        CollectorBuilder {
            options: Options {
                top_n: DEFAULT_TOP_N,
                delta_window: DEFAULT_DELTA_WINDOW,
                memory_limit: None,
                release: Arc::default(),
                statistics: None,
                old_age: None,
                cohorts: None,
                #[cfg(any(feature = "http", test))]
                snapshots: SNAPSHOTS,
                #[cfg(any(feature = "http", test))]
                snapshots_for: SNAPSHOTS_FOR,
            },
        }
    }
}

impl CollectorBuilder {
    /// Sets the number of sites that are chosen by live bytes: 1 to 25, default 16.
    ///
    /// On top come up to 4 by growth, up to 4 by growth of their old blocks, and up to 8 that were chosen within the last day. A site that was not has to beat one
    /// that was by a tenth.
    ///
    /// # Examples
    ///
    /// ```
    /// let collector = heapgauge::Collector::builder().top_n(5).build()?;
    /// # drop(collector);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn top_n(mut self, sites: usize) -> CollectorBuilder {
        self.options.top_n = sites;
        self
    }

    /// Sets the time that deltas reach back: up to 7 days, default 5 minutes.
    ///
    /// Zero compares with the previous collection. Then two readers see each other's collections.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// let collector = heapgauge::Collector::builder().delta_window(Duration::from_secs(3600)).build()?;
    /// # drop(collector);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn delta_window(mut self, window: Duration) -> CollectorBuilder {
        self.options.delta_window = window;
        self
    }

    /// Names the program's release, for `heap_build_info{release}`: `env!("CARGO_PKG_VERSION")`, a tag or a commit. Alerts
    /// then say which release leaks.
    ///
    /// # Examples
    ///
    /// ```
    /// let collector = heapgauge::Collector::builder().release(env!("CARGO_PKG_VERSION")).build()?;
    /// assert_eq!(collector.collect().build.release(), env!("CARGO_PKG_VERSION"));
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn release(mut self, release: impl Into<Arc<str>>) -> CollectorBuilder {
        self.options.release = release.into();
        self
    }

    /// Sets a memory limit of this process, in bytes, for where its cgroup has none or a wider one. Without it the
    /// tightest cgroup's limit is taken.
    ///
    /// # Examples
    ///
    /// ```
    /// let collector = heapgauge::Collector::builder().memory_limit(1).build()?;
    /// assert_eq!(collector.collect().memory_limit_bytes, Some(1));
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn memory_limit(mut self, bytes: u64) -> CollectorBuilder {
        self.options.memory_limit = Some(bytes);
        self
    }

    /// Sets the age from which blocks count as old, in [`SiteRow::old`](crate::SiteRow::old): 1 second to 7 days, default one hour. One for the
    /// process, the latest counts.
    ///
    /// Counts are looked at every tenth of it, every second at most and every 15 seconds at least.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// let collector = heapgauge::Collector::builder().old_age(Duration::from_secs(600)).build()?;
    /// assert_eq!(collector.collect().old_age, Duration::from_secs(600));
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn old_age(mut self, age: Duration) -> CollectorBuilder {
        self.options.old_age = Some(age);
        self
    }

    /// Sets whether stacks get new ids from time to time, so that their old blocks are told from their young ones: true by default. One for the
    /// process, the latest counts.
    ///
    /// Without it only bounds are known for stacks that allocate and free all the time: [`AgeBounds`](crate::AgeBounds).
    ///
    /// # Examples
    ///
    /// ```
    /// let collector = heapgauge::Collector::builder().cohorts(false).build()?;
    /// # drop(collector);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn cohorts(mut self, cohorts: bool) -> CollectorBuilder {
        self.options.cohorts = Some(cohorts);
        self
    }

    /// Sets the statistics of the program's inner allocator when the collector is built, as
    /// [`set_allocator_statistics`](crate::set_allocator_statistics) does: one for the process, the latest counts.
    ///
    /// # Examples
    ///
    /// ```
    /// use heapgauge::{AllocatorStatistics, AllocatorUsage};
    ///
    /// struct Pool;
    ///
    /// impl AllocatorStatistics for Pool {
    ///     fn read(&self) -> Option<AllocatorUsage> {
    ///         Some(AllocatorUsage::new("pool").resident(1 << 20))
    ///     }
    /// }
    ///
    /// let collector = heapgauge::Collector::builder().allocator_statistics(Pool).build()?;
    /// # drop(collector);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn allocator_statistics(
        mut self,
        statistics: impl AllocatorStatistics + 'static,
    ) -> CollectorBuilder {
        let _own = control::internal();
        self.options.statistics = Some(SharedStatistics(Arc::new(statistics)));
        self
    }

    /// Sets the number of snapshots taken by `POST /memory/snapshots` that are kept, and their age at most: default
    /// 16 and 24 hours. When there is one too many, the oldest goes; one is always kept.
    ///
    /// Each holds counts alone, about six bytes a stack.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// let collector = heapgauge::Collector::builder().snapshots(4, Duration::from_secs(3600)).build()?;
    /// # drop(collector);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    #[cfg(any(feature = "http", test))]
    pub fn snapshots(mut self, most: usize, longest: Duration) -> CollectorBuilder {
        self.options.snapshots = most;
        self.options.snapshots_for = longest;
        self
    }

    /// Starts the collector: its first baseline is taken here.
    ///
    /// # Examples
    ///
    /// ```
    /// let error = heapgauge::Collector::builder().top_n(26).build().unwrap_err();
    /// assert_eq!(error.to_string(), "collector: top_n 26 is out of range, allowed are 1 to 25");
    /// ```
    ///
    /// # Errors
    ///
    /// A setting out of its range; the message names the setting and the range.
    pub fn build(self) -> Result<Collector, Error> {
        self.check()?;
        Ok(self.build_unchecked())
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let Options { top_n, delta_window, old_age, .. } = self.options;
        if !(1..=MAX_TOP_N).contains(&top_n) {
            return Err(Error::new(format_args!(
                "collector: top_n {top_n} is out of range, allowed are 1 to {MAX_TOP_N}"
            )));
        }
        if delta_window > MAX_DELTA_WINDOW {
            return Err(Error::new(format_args!(
                "collector: delta_window {}s is out of range, allowed are 0s to 7d",
                delta_window.as_secs()
            )));
        }
        if let Some(age) = old_age.filter(|age| !(MIN_OLD_AGE..=HORIZON).contains(age)) {
            return Err(Error::new(format_args!(
                "collector: old_age {}ms is out of range, allowed are 1s to 7d",
                age.as_millis()
            )));
        }
        Ok(())
    }

    pub(super) fn build_unchecked(self) -> Collector {
        let _own = control::internal();
        budget::divide_default();
        if let Some(statistics) = self.options.statistics.clone() {
            memory_parts::set_shared_statistics(statistics);
        }
        Collector::with_source(self.options, Box::new(ThisProcess))
    }
}
