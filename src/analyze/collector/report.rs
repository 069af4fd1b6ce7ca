//! Report that every outlet reads: one moment of the heap, already grouped, compared and chosen.
//!
//! Plain values, shared between threads; nothing here is computed again or changes later.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::allocated::AllocatedBySite;
use super::leak::Leak;
use super::scopes::ScopeRow;
use super::site_ages::SiteAges;
use crate::analyze::ages::{AGES, AgeBounds};
use crate::analyze::dump_counts::{DumpCounts, PreviousRun};
use crate::analyze::live::LiveChange;
use crate::analyze::memory_parts::MemoryParts;
#[cfg(any(feature = "http", test))]
use crate::analyze::snapshot::statistic::Totals;
use crate::analyze::symbols::{LineTables, Site};
use crate::record::raw_snapshot::Counts;

/// One collection: totals, the chosen sites and the remainder, all from the same snapshot.
///
/// Bytes are requested bytes, blocks are live allocations, deltas are live now minus live in the
/// baseline. At most 41 sites. A report never changes; [`taken_at`](Report::taken_at) gives its time.
///
/// # Examples
///
/// ```
/// let report = heapgauge::Collector::new().collect();
/// let shown: u64 = report.sites.iter().map(|site| site.live.now.bytes).sum();
/// assert_eq!(report.live.now.bytes, shown + report.other.now.bytes);
/// assert_eq!(report.live.now.bytes, report.allocated_bytes - report.deallocated_bytes);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// Number of the collection, from 1 for each collector; equal numbers are the same snapshot.
    pub number: u64,
    /// Time at which the counts were read.
    pub taken_at: SystemTime,
    /// Time that reading and grouping them took, without naming new stacks.
    pub duration: Duration,
    /// Age from which blocks count as old, in [`SiteRow::old`].
    pub old_age: Duration,
    /// The site whose old blocks grow fastest, of those that very likely leak; `None` where no site does.
    pub leak: Option<Leak>,
    /// Time at which heapgauge began in this program image: an `exec` begins anew, a forked child keeps it.
    pub started_at: SystemTime,
    /// True while new allocations are recorded; false while stopped, switched off or paused by configuration.
    pub tracking: bool,

    /// All live blocks, now and in the baseline.
    pub live: LiveChange,
    /// The highest number of live bytes seen, within 64 KiB a thread.
    pub peak_bytes: u64,
    /// Bytes ever allocated.
    pub allocated_bytes: u64,
    /// Blocks ever allocated.
    pub allocations: u64,
    /// Bytes ever freed.
    pub deallocated_bytes: u64,
    /// Blocks ever freed.
    pub deallocations: u64,

    /// The chosen sites, most live bytes first; empty while tracking is off.
    pub sites: Vec<SiteRow>,
    /// Live blocks by key and value of their scope: at most 25 rows, by key, most live bytes first. The row `[other]` of a key holds
    /// the rest of that key. A block whose scope has several keys is in a row of each: rows of different keys do not add up.
    pub scopes: Vec<ScopeRow>,
    /// Remainder beside the chosen sites, stacks without a name yet among it.
    pub other: LiveChange,
    /// Named sites that have live blocks, chosen or not.
    pub sites_with_blocks: u64,
    /// Age of the baseline; zero for the first collection.
    pub delta_window: Duration,

    /// Bytes of live blocks that were allocated while tracking was paused or off.
    pub untracked_bytes: u64,
    /// heapgauge's own memory in bytes.
    pub overhead_bytes: u64,
    /// Live bytes that belong to no site here because it has no name; they are in [`other`](Report::other).
    pub unnamed: UnnamedBytes,
    /// Events whose attribution was lost; their bytes are in the totals.
    pub dropped: DroppedEvents,
    /// Stacks cut short.
    pub truncated_stacks: u64,
    /// Stacks that were walked the slow way.
    pub fallback_walks: u64,
    /// Average bytes between samples; 0: every allocation is recorded. While it is not 0, or as long as blocks
    /// from such a time are live, the values of sites are [estimates](crate::docs::sampling); all others are exact.
    pub sample_interval_bytes: u64,

    /// Resident bytes of the process, as the operating system counts them.
    pub resident_bytes: Option<u64>,
    /// The tightest memory limit in bytes, of a cgroup or given to the collector; `None` when there is none.
    pub memory_limit_bytes: Option<u64>,
    /// Bytes that count against the limit and that the kernel cannot take back: anonymous and shared memory, and its own for
    /// the cgroup. Where no cgroup sets the limit, those of this process.
    pub memory_limit_usage_bytes: Option<u64>,
    /// Parts that resident memory is the sum of; `None` until they were read for the first time, some milliseconds after the
    /// first collector was made.
    pub memory_parts: Option<MemoryParts>,
    /// Numbers of dumps; `None` where no directory was chosen for them.
    pub dumps: Option<DumpCounts>,
    /// Last dump of an earlier run that ended without a word, in the directory of dumps.
    pub previous_run: Option<PreviousRun>,
    /// Description of this binary, and how well it can be named.
    pub build: BuildInfo,

    /// Name of the inner allocator and the state of its figures, once they are known.
    #[allow(dead_code, reason = "read by outlets that are features")]
    pub(crate) allocator: Option<(Arc<str>, &'static str)>,
    /// Every site that was followed so far, chosen now or not, for outlets that cannot drop a series.
    #[allow(dead_code, reason = "read by outlets that are features")]
    pub(crate) followed: Vec<SiteRow>,
    /// Every pair of scopes that was followed so far, for outlets that cannot drop a series.
    #[allow(dead_code, reason = "read by outlets that are features")]
    pub(crate) followed_scopes: Vec<ScopeRow>,
    /// Counts before traces were last forgotten, as far as they were seen.
    #[allow(dead_code, reason = "read by outlets that are features")]
    pub(crate) forgotten: Counts,
}

#[cfg(any(feature = "opentelemetry", feature = "prometheus"))]
impl Report {
    /// Returns the report with totals that continue where traces were forgotten, for outlets whose counters must not
    /// fall.
    pub(crate) fn going_on(&self) -> Report {
        let mut report = self.clone();
        report.allocated_bytes += self.forgotten.allocated_bytes;
        report.allocations += self.forgotten.allocated_blocks;
        report.deallocated_bytes += self.forgotten.freed_bytes;
        report.deallocations += self.forgotten.freed_blocks;
        report
    }

    /// Returns [`going_on`](Report::going_on) with the followed sites and scopes in place of the chosen ones, for outlets
    /// that cannot drop a series either.
    #[cfg(feature = "prometheus")]
    pub(crate) fn sticky(&self) -> Report {
        Report { sites: self.followed.clone(), scopes: self.followed_scopes.clone(), ..self.going_on() }
    }
}

#[cfg(any(feature = "http", test))]
impl From<LiveChange> for Totals {
    fn from(live: LiveChange) -> Totals {
        Totals {
            size: live.now.bytes,
            size_diff: live.delta_bytes(),
            count: live.now.blocks,
            count_diff: live.delta_blocks(),
        }
    }
}

/// One chosen site: a line of code and its live counts.
///
/// # Examples
///
/// ```
/// let report = heapgauge::Collector::new().collect();
/// let most = report.sites.iter().max_by_key(|site| site.live.delta_bytes());
/// if let Some(site) = most {
///     println!("{} grew by {} bytes", site.function(), site.live.delta_bytes());
/// }
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct SiteRow {
    named: Arc<Site>,
    /// Live blocks allocated there, now and in the baseline.
    pub live: LiveChange,
    /// Standard error of the live bytes where they are an [estimate](crate::docs::sampling), 0 where they are
    /// exact.
    pub live_stderr_bytes: u64,
    /// Live bytes in blocks older than [`Report::old_age`].
    pub old: AgeBounds,
    /// Live bytes in blocks older than a minute, ten minutes, an hour, six hours and a day. Looks at the counts, every 15 seconds at
    /// most, tell ages apart: an age is known to the time between two looks or a tenth of itself, whichever is more. Nothing is
    /// surely older than the first look.
    pub ages: [AgeBounds; AGES.len()],
    /// Bytes ever allocated there, as far as its stacks had names; it never falls while the process lives. Allocations that a
    /// [`clear_traces`](crate::clear_traces) forgot before they were seen are missing.
    pub allocated_bytes: u64,
    /// Likelihood that the site leaks, from 0 to 1; `None` until there are enough looks, or where it holds little that is old.
    pub leak_score: Option<f64>,
}

impl SiteRow {
    pub(crate) fn new(named: Arc<Site>, live: LiveChange, live_stderr_bytes: u64) -> SiteRow {
        SiteRow {
            named,
            live,
            live_stderr_bytes,
            old: AgeBounds::default(),
            ages: Default::default(),
            allocated_bytes: 0,
            leak_score: None,
        }
    }

    /// Returns the row with these bounds, none of them above its live bytes.
    pub(super) fn with_ages(self, ages: SiteAges) -> SiteRow {
        let SiteAges { old, ages } = ages.at_most(self.live.now.bytes);
        SiteRow { old, ages, ..self }
    }

    /// Returns the row with what is known of its site over time.
    pub(super) fn with_past(self, allocated: &AllocatedBySite, leak_score: Option<f64>) -> SiteRow {
        SiteRow { allocated_bytes: allocated.of(self.named.id), leak_score, ..self }
    }

    pub(crate) fn named(&self) -> &Arc<Site> {
        &self.named
    }

    /// Returns FNV-1a 64 over function, file and line: the same in every process of the same binary.
    ///
    /// # Examples
    ///
    /// ```
    /// for site in &heapgauge::Collector::new().collect().sites {
    ///     println!("{}", site.id());
    /// }
    /// ```
    pub fn id(&self) -> u64 {
        self.named.id
    }

    /// Returns the value of the label `site`: [`id`](SiteRow::id) as 16 lower-case hex digits.
    ///
    /// # Examples
    ///
    /// ```
    /// for site in &heapgauge::Collector::new().collect().sites {
    ///     println!("{}", site.site());
    /// }
    /// ```
    pub fn site(&self) -> String {
        self.named.label()
    }

    /// Returns the whole demangled path of the function.
    ///
    /// # Examples
    ///
    /// ```
    /// for site in &heapgauge::Collector::new().collect().sites {
    ///     println!("{}", site.function());
    /// }
    /// ```
    pub fn function(&self) -> &str {
        &self.named.function
    }

    /// Returns the value of the label `function`: the last 120 characters of the path, without backslashes.
    ///
    /// # Examples
    ///
    /// ```
    /// for site in &heapgauge::Collector::new().collect().sites {
    ///     println!("{}", site.function_label());
    /// }
    /// ```
    pub fn function_label(&self) -> Cow<'_, str> {
        self.named.function_label()
    }

    /// Returns the file, relative to the workspace, registry or library; `<unknown>` without line tables.
    ///
    /// # Examples
    ///
    /// ```
    /// for site in &heapgauge::Collector::new().collect().sites {
    ///     println!("{}", site.file());
    /// }
    /// ```
    pub fn file(&self) -> &str {
        &self.named.file
    }

    /// Returns the line, 0 when it is not known.
    ///
    /// # Examples
    ///
    /// ```
    /// for site in &heapgauge::Collector::new().collect().sites {
    ///     println!("{}", site.line());
    /// }
    /// ```
    pub fn line(&self) -> u32 {
        self.named.line
    }

    /// Returns the crate the function belongs to.
    ///
    /// # Examples
    ///
    /// ```
    /// for site in &heapgauge::Collector::new().collect().sites {
    ///     println!("{}", site.crate_name());
    /// }
    /// ```
    pub fn crate_name(&self) -> &str {
        &self.named.krate
    }

    /// Returns the crate through which the line holds its blocks, where that is another one; else the empty text.
    ///
    /// # Examples
    ///
    /// ```
    /// for site in &heapgauge::Collector::new().collect().sites {
    ///     let via = if site.via().is_empty() { String::new() } else { format!(" via {}", site.via()) };
    ///     println!("{}:{}{via}", site.file(), site.line());
    /// }
    /// ```
    pub fn via(&self) -> &str {
        &self.named.via
    }
}

impl Report {
    /// Returns whether sites are estimates.
    #[cfg_attr(not(feature = "prometheus"), allow(dead_code))]
    pub(crate) fn is_estimated(&self) -> bool {
        self.sample_interval_bytes != 0 || self.sites.iter().any(|site| site.live_stderr_bytes != 0)
    }
}

impl fmt::Debug for SiteRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SiteRow")
            .field("site", &self.site())
            .field("function", &self.function())
            .field("file", &self.file())
            .field("line", &self.line())
            .field("live", &self.live)
            .field("live_stderr_bytes", &self.live_stderr_bytes)
            .field("old", &self.old)
            .field("ages", &self.ages)
            .field("allocated_bytes", &self.allocated_bytes)
            .field("leak_score", &self.leak_score)
            .finish()
    }
}

/// Live bytes whose line of code is not known. Both are 0 once every stack has its final name; a report costs one pass
/// over the stacks for them.
///
/// # Examples
///
/// ```
/// let unnamed = heapgauge::Collector::new().collect().unnamed;
/// assert_eq!(unnamed.lost, 0, "raise the limit");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnnamedBytes {
    /// Bytes whose site has no final name yet: names are still being read.
    pub pending: u64,
    /// Bytes whose line was lost for want of memory: raise the limit
    /// ([`set_max_overhead`](crate::set_max_overhead)). Sites whose lines may still be found are not exported;
    /// those of a module whose lines would not fit into the limit at all go by their function.
    pub lost: u64,
}

/// Events whose attribution was lost, by reason.
///
/// # Examples
///
/// ```
/// let dropped = heapgauge::Collector::new().collect().dropped;
/// assert_eq!((dropped.stacks, dropped.memory), (0, 0));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DroppedEvents {
    /// Events lost because the table of stacks was full.
    pub stacks: u64,
    /// Events lost because memory for the tracker's tables could not be had.
    pub memory: u64,
    /// Events lost because a thread could not be given counters of its own.
    pub threads: u64,
    /// Sites left out by an outlet that cannot take more series, each counted once.
    pub series: u64,
    /// Events inside the tracker, as in a signal handler, and those that met a lock that stayed locked.
    pub reentrant: u64,
    /// Scopes, and pairs of a stack and a scope, that found no room and are counted at `[other]`.
    pub scopes: u64,
}

/// Description of this binary.
///
/// # Examples
///
/// ```
/// let report = heapgauge::Collector::new().collect();
/// assert!(["lines", "functions", "none"].contains(&report.build.symbols()));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BuildInfo {
    pub(crate) version: &'static str,
    pub(crate) build_id: Arc<str>,
    pub(crate) release: Arc<str>,
    pub(crate) site_scheme: &'static str,
    pub(crate) capture: &'static str,
    pub(crate) symbols: &'static str,
    pub(crate) lines: LineTables,
}

impl BuildInfo {
    /// Returns heapgauge's version.
    ///
    /// # Examples
    ///
    /// ```
    /// let report = heapgauge::Collector::new().collect();
    /// println!("{}", report.build.version());
    /// ```
    pub fn version(&self) -> &str {
        self.version
    }

    /// Returns the build id of the module that holds heapgauge, in hex, empty when it has none: of the executable, or of
    /// a library in another program.
    ///
    /// # Examples
    ///
    /// ```
    /// let report = heapgauge::Collector::new().collect();
    /// println!("{}", report.build.build_id());
    /// ```
    pub fn build_id(&self) -> &str {
        &self.build_id
    }

    /// Returns the program's release, as it was given to the collector; empty otherwise.
    ///
    /// # Examples
    ///
    /// ```
    /// let collector = heapgauge::Collector::builder().release("2.4").build()?;
    /// assert_eq!(collector.collect().build.release(), "2.4");
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Returns the version of the way in which sites are chosen and named: ids of another version are of other sites.
    ///
    /// # Examples
    ///
    /// ```
    /// let report = heapgauge::Collector::new().collect();
    /// println!("ids of sites are of version {}", report.build.site_scheme());
    /// ```
    pub fn site_scheme(&self) -> &str {
        self.site_scheme
    }

    /// Returns the method by which stacks are walked: `cfi` or `backtrace`; `partial` where a part of the program's
    /// blocks is not seen, because it is linked against the shared standard library (`-C prefer-dynamic`).
    ///
    /// # Examples
    ///
    /// ```
    /// let report = heapgauge::Collector::new().collect();
    /// println!("{}", report.build.capture());
    /// ```
    pub fn capture(&self) -> &str {
        self.capture
    }

    /// Returns the kind of names that could be read: `lines`, `functions` or `none`.
    ///
    /// # Examples
    ///
    /// ```
    /// let report = heapgauge::Collector::new().collect();
    /// println!("{}", report.build.symbols());
    /// ```
    pub fn symbols(&self) -> &str {
        self.symbols
    }
}
