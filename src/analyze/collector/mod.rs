//! Builds a [`Report`] from raw snapshots: groups counts by site, compares them with a baseline, chooses the sites that
//! are exported.
//!
//! Any thread may call it; callers wait for each other, at most about a second. A thread that
//! allocates is never stopped. A collection younger than a second is given out again.
#![forbid(unsafe_code)]

mod baselines;
mod budget;
#[cfg(any(feature = "http", test))]
mod compare;
mod followed_sites;
#[cfg(any(feature = "http", test))]
mod kept_snapshots;
mod report;
mod top_sites;
#[cfg(any(feature = "http", test))]
mod views;

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

#[cfg(any(feature = "http", test))]
use crate::analyze::frame::Traceback;
use crate::analyze::process;
use crate::analyze::symbols::{self, Progress, Site};
use crate::base::error::Error;
use crate::record::control;
use crate::record::fork;
use crate::record::fork::mutex::{ForkGuard, ForkMutex};
use crate::record::raw_snapshot;
use crate::record::raw_snapshot::{Counts, RawSnapshot, RawStack};
#[cfg(any(feature = "http", test))]
pub(crate) use baselines::Past;
use baselines::{Kept, Ring};
pub(crate) use budget::MIN_MAX_OVERHEAD;
#[cfg(any(feature = "http", test))]
#[cfg_attr(not(feature = "http"), allow(unused_imports))]
pub(crate) use compare::{Compared, Nothing, Posted, Since};
use followed_sites::Followed;
#[cfg(any(feature = "http", test))]
use kept_snapshots::Shelf;
pub use report::{BuildInfo, DroppedEvents, Report, SiteRow, Sum, UnnamedBytes};
use top_sites::{Candidate, Limits, choose};
#[cfg(any(feature = "http", test))]
#[cfg_attr(not(feature = "http"), allow(unused_imports))]
pub(crate) use views::{Asked, Overview, SiteTotals, Sites, Stacks, Times};

/// Maximum number of sites chosen by live bytes, and the default.
pub(crate) const MAX_TOP_N: usize = 25;
const TOP_DELTA: usize = 7;
const STICKY: usize = 8;
/// An estimated site has one more series, its error: fewer sites keep within 240 series.
const STICKY_ESTIMATES: usize = 3;
const STICKY_FOR: Duration = Duration::from_secs(30 * 60);
pub(crate) const DEFAULT_DELTA_WINDOW: Duration = Duration::from_secs(5 * 60);
/// Longest `delta_window`: with a longer one a program would run too long before its first full delta.
pub(crate) const MAX_DELTA_WINDOW: Duration = Duration::from_secs(7 * 24 * 60 * 60);
pub(crate) const DEFAULT_MAX_OVERHEAD: u64 = 64 << 20;
/// Age up to which a collection is reused.
const REUSE_FOR: Duration = Duration::from_secs(1);
/// Snapshots kept on request, and their age at most.
#[cfg(any(feature = "http", test))]
const SNAPSHOTS: usize = 16;
#[cfg(any(feature = "http", test))]
const SNAPSHOTS_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// Time that one collection may spend naming stacks it has not met; the rest is named later.
const NAMING_TIME: Duration = Duration::from_secs(1);
/// Age from which a draft is thrown away.
const DRAFT_FOR: Duration = Duration::from_secs(5);
/// Time that naming may take in one go, for callers with other things to do in between. Shorter would not
/// be quicker: each go opens the line tables anew, which takes some 50 ms in a large binary.
const NAMING_SLICE: Duration = Duration::from_millis(100);
/// Longest slice where opening them takes longer than that: a go may take twice as long as opening, up to this.
const LONGEST_SLICE: Duration = Duration::from_secs(1);

/// Surroundings of a collection, so that tests can bring their own heap and their own clock.
pub(crate) trait World: Send {
    fn now(&self) -> Instant;
    fn take(&self) -> RawSnapshot;
    /// Returns a number that changes when names given before may be wrong.
    fn names_epoch(&self) -> u64;
    fn site(&self, addresses: &'static [usize]) -> Option<Arc<Site>>;
    fn resolve(&self, stacks: &mut dyn Iterator<Item = &'static [usize]>, budget: Duration) -> Progress;
    #[cfg(any(feature = "http", test))]
    fn traceback(&self, stack: &RawStack, limit: usize) -> Option<Traceback>;
    fn symbols(&self) -> &'static str;
    fn resident_bytes(&self) -> Option<u64>;
    fn memory_limit_bytes(&self) -> Option<u64>;
}

/// The heap and the clock of this process. A fork need not wait for slow operations here: between two calls nothing of
/// a collector is half changed that a child could not go on with.
struct ThisProcess;

impl World for ThisProcess {
    fn now(&self) -> Instant {
        Instant::now()
    }
    fn take(&self) -> RawSnapshot {
        let mut raw = fork::outside(raw_snapshot::take);
        // An address that no memory was left to name is attribution lost for want of memory, too.
        raw.dropped.memory += symbols::global().over_limit();
        budget::follow(raw.stacks.capacity() * size_of::<RawStack>());
        raw
    }
    fn names_epoch(&self) -> u64 {
        // Asks the loader, whose lock a thread that forks may hold. Either changes the names of stacks.
        fork::outside(control::modules_epoch).wrapping_add(symbols::global().lost_epoch() << 48)
    }
    fn site(&self, addresses: &'static [usize]) -> Option<Arc<Site>> {
        symbols::global().site(addresses)
    }
    fn resolve(&self, stacks: &mut dyn Iterator<Item = &'static [usize]>, budget: Duration) -> Progress {
        fork::outside(|| symbols::global().resolve(stacks, budget))
    }
    #[cfg(any(feature = "http", test))]
    fn traceback(&self, stack: &RawStack, limit: usize) -> Option<Traceback> {
        symbols::global().traceback(stack.addresses, limit, stack.truncated)
    }
    fn symbols(&self) -> &'static str {
        fork::outside(|| symbols::global().quality())
    }
    fn resident_bytes(&self) -> Option<u64> {
        fork::outside(process::resident_bytes)
    }
    fn memory_limit_bytes(&self) -> Option<u64> {
        fork::outside(process::memory_limit_bytes)
    }
}

/// Turns the heap into [`Report`]s: which lines hold it, and which grow.
///
/// Cheap to clone; clones share everything, so two outlets of one collector show the same numbers.
/// It keeps its own baselines every fifth of the `delta_window`: on the server's thread while a
/// [`Server`](crate::Server) runs, otherwise whenever [`collect`](Collector::collect) is called.
///
/// With 10,000 stacks a collection costs a few milliseconds once they are named, plus up to a second
/// while new ones are. Its own allocations are booked as heapgauge's.
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
    /// assert!(collector.collect().sites.len() <= 25);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn builder() -> CollectorBuilder {
        CollectorBuilder::default()
    }

    /// Returns the heap now, or as it was up to a second ago when another caller has just asked.
    ///
    /// New stacks are named first, those with most live bytes before the others, for at most a second.
    /// Stacks without a name yet count in [`Report::other`], and [`Report::unnamed`] has their bytes.
    pub fn collect(&self) -> Arc<Report> {
        let _own = control::internal();
        let mut state = self.lock();
        loop {
            if let Some(report) = state.advance() {
                return report;
            }
        }
    }

    /// Does the work of [`collect`](Collector::collect), with up to `sites` sites followed from now on: the report has
    /// their figures even when they are no longer chosen.
    #[cfg(any(feature = "prometheus", test))]
    pub(crate) fn collect_following(&self, sites: usize) -> Arc<Report> {
        let _own = control::internal();
        let mut state = self.lock();
        if state.followed.raise(sites) {
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
    pub(crate) fn name_stacks_slice(&self, unnamed: &mut Vec<&'static [usize]>) -> bool {
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

    fn with_world(options: Options, world: Box<dyn World>) -> Collector {
        let _own = control::internal();
        let mut state = State::new(options, world);
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

/// Settings of a [`Collector`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing before `build`"]
pub struct CollectorBuilder {
    options: Options,
    look_through: Option<Vec<String>>,
}

#[derive(Clone, Debug)]
struct Options {
    top_n: usize,
    delta_window: Duration,
    /// `None` leaves the limit of the process as it is.
    max_overhead: Option<u64>,
    #[cfg(any(feature = "http", test))]
    snapshots: usize,
    #[cfg(any(feature = "http", test))]
    snapshots_for: Duration,
}

impl Default for CollectorBuilder {
    fn default() -> CollectorBuilder {
        CollectorBuilder {
            options: Options {
                top_n: MAX_TOP_N,
                delta_window: DEFAULT_DELTA_WINDOW,
                max_overhead: None,
                #[cfg(any(feature = "http", test))]
                snapshots: SNAPSHOTS,
                #[cfg(any(feature = "http", test))]
                snapshots_for: SNAPSHOTS_FOR,
            },
            look_through: None,
        }
    }
}

impl CollectorBuilder {
    /// Sets the number of sites that are chosen by live bytes: 1 to 25, default 25.
    ///
    /// On top come up to 7 by growth and up to 8 that were chosen within the last half hour.
    pub fn top_n(mut self, sites: usize) -> CollectorBuilder {
        self.options.top_n = sites;
        self
    }

    /// Sets the time that deltas reach back: up to 7 days, default 5 minutes.
    ///
    /// Zero compares with the previous collection. Then two readers see each other's collections.
    pub fn delta_window(mut self, window: Duration) -> CollectorBuilder {
        self.options.delta_window = window;
        self
    }

    /// Sets the bytes heapgauge may hold: default 64 MiB.
    ///
    /// Three to five eighths of it are for the tables of the write side; beyond them new stacks are booked at
    /// `[unrecorded]`, which counts as dropped for want of memory. A quarter to half is for names, which may also use
    /// space that tables leave. A site whose line finds no room is not exported: it counts in [`Report::other`] and in
    /// [`UnnamedBytes::lost`], and is looked for again when there is more room. The budget is one for
    /// the process: the latest collector that was given one decides, and a collector without one leaves it as it is.
    ///
    /// At least 1 MiB: [`build`](CollectorBuilder::build) refuses less, because a number such as 12 was meant to be
    /// 12 MiB.
    pub fn max_overhead(mut self, bytes: u64) -> CollectorBuilder {
        self.options.max_overhead = Some(bytes);
        self
    }

    /// Sets the number of snapshots taken by `POST /memory/snapshots` that are kept, and their age at most: default
    /// 16 and 24 hours. When there is one too many, the oldest goes; one is always kept.
    ///
    /// Each holds counts alone, about six bytes a stack.
    #[cfg(any(feature = "http", test))]
    pub fn snapshots(mut self, most: usize, longest: Duration) -> CollectorBuilder {
        self.options.snapshots = most;
        self.options.snapshots_for = longest;
        self
    }

    /// Replaces the list of crates whose frames are passed over while a later frame exists.
    ///
    /// The list is one for the process: the latest collector's counts.
    pub fn look_through<S: Into<String>>(mut self, crates: impl IntoIterator<Item = S>) -> CollectorBuilder {
        self.look_through = Some(crates.into_iter().map(Into::into).collect());
        self
    }

    /// Starts the collector: its first baseline is taken here.
    ///
    /// # Errors
    ///
    /// A setting out of its range; the message names the setting and the range.
    pub fn build(self) -> Result<Collector, Error> {
        self.check()?;
        Ok(self.build_unchecked())
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let Options { top_n, delta_window, max_overhead, .. } = self.options;
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
        if let Some(max_overhead) = max_overhead
            && max_overhead < MIN_MAX_OVERHEAD
        {
            return Err(Error::new(format_args!(
                "collector: max_overhead {max_overhead} is out of range, allowed are {MIN_MAX_OVERHEAD} bytes (1 MiB) \
                 and more"
            )));
        }
        Ok(())
    }

    fn build_unchecked(self) -> Collector {
        let _own = control::internal();
        budget::set(self.options.max_overhead);
        if let Some(crates) = &self.look_through {
            symbols::global().set_look_through(crates);
        }
        Collector::with_world(self.options, Box::new(ThisProcess))
    }
}

/// Number of stack ids in one page of [`Names`].
const PAGE: usize = 4096;

/// Site of each stack id. Ids of one epoch are dense, so pages answer without hashing;
/// ids far apart leave only the pages between them out.
#[derive(Default)]
struct Names {
    /// Index into `sites` plus one; 0: not named yet.
    pages: Vec<Option<Box<[u32; PAGE]>>>,
    sites: Vec<Arc<Site>>,
    /// Site id, and whether it is final → index into `sites`.
    index: HashMap<(u64, bool), u32>,
}

impl Names {
    fn get(&self, id: u32) -> Option<usize> {
        let id = id as usize;
        let slot = self.pages.get(id / PAGE)?.as_ref()?[id % PAGE];
        (slot as usize).checked_sub(1)
    }

    /// Stores the site of a stack; two stacks of one site share its index.
    fn insert(&mut self, id: u32, site: Arc<Site>) {
        let id = id as usize;
        if self.pages.len() <= id / PAGE {
            self.pages.resize_with(id / PAGE + 1, || None);
        }
        let page = self.pages[id / PAGE].get_or_insert_with(|| Box::new([0; PAGE]));
        let index = *self.index.entry((site.id, site.is_final())).or_insert_with(|| {
            self.sites.push(site);
            self.sites.len() as u32 - 1
        });
        page[id % PAGE] = index + 1;
    }
}

/// Returns the most recent calls of a stack: about as many as lie between the allocator and the line that asked for
/// the block.
fn recent(addresses: &'static [usize]) -> &'static [usize] {
    const CALLS: usize = 8;
    &addresses[..addresses.len().min(CALLS)]
}

/// Snapshot whose stacks are still being named.
struct Draft {
    raw: RawSnapshot,
    /// Time spent taking it, so far.
    spent: Duration,
    begun: Instant,
}

struct State {
    world: Box<dyn World>,
    options: Options,
    started_at: SystemTime,
    build_id: Arc<str>,
    epoch: Option<u32>,
    names_epoch: u64,
    names: Names,
    /// Stacks with live blocks and without a name, coldest first: the hottest is popped next.
    unnamed: Vec<&'static [usize]>,
    /// Time that the next go of naming may take.
    slice: Duration,
    ring: Ring,
    #[cfg(any(feature = "http", test))]
    shelf: Shelf,
    #[cfg(any(feature = "http", test))]
    moments: views::Moments,
    /// Counts of the previous collection, where `delta_window` is zero.
    previous: Option<Arc<Kept>>,
    /// Time at which each site was last chosen by live bytes or delta.
    tops: HashMap<u64, Instant>,
    /// Sites followed. They survive a clear of the traces: series made once are there for ever.
    followed: Followed,
    /// Totals last seen, and those last seen of all epochs before.
    seen: Counts,
    forgotten: Counts,
    draft: Option<Draft>,
    report: Option<(Instant, Arc<Report>)>,
    number: u64,
}

impl State {
    fn new(options: Options, world: Box<dyn World>) -> State {
        let kept_bytes = budget::of_baselines(options.max_overhead.unwrap_or_else(budget::limit));
        State {
            ring: Ring::new(options.delta_window, kept_bytes),
            #[cfg(any(feature = "http", test))]
            shelf: Shelf::new(options.snapshots, options.snapshots_for, kept_bytes),
            names_epoch: world.names_epoch(),
            world,
            options,
            started_at: control::began_at(),
            build_id: symbols::build_id().unwrap_or_default().into(),
            epoch: None,
            names: Names::default(),
            unnamed: Vec::new(),
            #[cfg(any(feature = "http", test))]
            moments: views::Moments::default(),
            slice: NAMING_SLICE,
            previous: None,
            tops: HashMap::new(),
            followed: Followed::default(),
            seen: Counts::default(),
            forgotten: Counts::default(),
            draft: None,
            report: None,
            number: 0,
        }
    }

    /// Forgets everything kept, which belongs to counts that no longer continue.
    fn forget(&mut self) {
        self.ring.clear();
        #[cfg(any(feature = "http", test))]
        self.shelf.clear();
        #[cfg(any(feature = "http", test))]
        self.moments.clear();
        self.names = Names::default();
        self.unnamed.clear();
        self.previous = None;
        self.tops.clear();
        self.draft = None;
        self.report = None;
    }

    /// Takes a raw snapshot, forgets everything that no longer fits it, and keeps a baseline if due.
    fn take(&mut self) -> RawSnapshot {
        let raw = self.world.take();
        if self.epoch.replace(raw.epoch) != Some(raw.epoch) {
            self.forget();
            self.forgotten += std::mem::take(&mut self.seen);
        }
        self.seen = raw.totals;
        let names_epoch = self.world.names_epoch();
        if self.names_epoch != names_epoch {
            self.names_epoch = names_epoch;
            self.names = Names::default();
        }
        if !raw.tracking {
            self.ring.clear();
        } else if self.ring.due_in(raw.taken).is_zero() {
            self.ring.push(Arc::new(Kept::new(&raw)));
        }
        raw
    }

    fn tick(&mut self) -> Duration {
        #[cfg(any(feature = "http", test))]
        self.forget_old_moments(self.world.now());
        if self.ring.due_in(self.world.now()).is_zero() {
            let raw = self.take();
            if self.draft.is_none() {
                // Names are read early, while there is memory for that: they may be asked for only when
                // the memory of the process has become scarce.
                let baseline = self.baseline(raw.taken);
                self.adopt_names(&raw, baseline.as_deref());
            }
        }
        // While tracking is off nothing is kept, so it is always due; look again after a pace.
        match self.ring.due_in(self.world.now()) {
            Duration::ZERO => self.ring.pace(),
            wait => wait,
        }
    }

    #[cfg(any(feature = "prometheus", test))]
    fn name_slice(&mut self) -> bool {
        !self.unnamed.is_empty() && self.name_for(self.slice) && !self.unnamed.is_empty()
    }

    /// Names stacks for `budget`. False: no more can be named.
    fn name_for(&mut self, budget: Duration) -> bool {
        let mut unnamed = std::mem::take(&mut self.unnamed);
        let more = self.name(&mut unnamed, budget);
        self.unnamed = unnamed;
        more
    }

    fn name(&mut self, unnamed: &mut Vec<&'static [usize]>, budget: Duration) -> bool {
        let begun = self.world.now();
        let progress = self.world.resolve(&mut unnamed.iter().rev().copied(), budget);
        let spent = self.world.now().saturating_duration_since(begun);
        if spent > budget.saturating_mul(2) {
            self.slice = self.slice.max(spent.saturating_mul(2).min(LONGEST_SLICE));
        }
        if progress.named == progress.total {
            unnamed.clear();
        } else {
            // Those named are not only the first: later ones may share all their addresses.
            let world = &self.world;
            unnamed.retain(|addresses| world.site(addresses).is_none());
        }
        progress.more
    }

    /// Does the next slice of a collection; `None` while stacks are still being named.
    fn advance(&mut self) -> Option<Arc<Report>> {
        let now = self.world.now();
        if let Some((done, report)) = &self.report
            && now.saturating_duration_since(*done) < REUSE_FOR
        {
            return Some(report.clone());
        }
        // A draft whose caller did not come back is not the heap of now.
        let fresh = |draft: &Draft| now.saturating_duration_since(draft.begun) < DRAFT_FOR;
        let draft = match self.draft.take().filter(fresh) {
            Some(draft) => draft,
            None => {
                let raw = self.take();
                let baseline = self.baseline(raw.taken);
                self.adopt_names(&raw, baseline.as_deref());
                // Where reading and grouping took long, on a busy machine, there is as much time for names as ever: else
                // no collection there would come to them.
                let begun = self.world.now();
                Draft { raw, spent: begun.saturating_duration_since(now), begun }
            }
        };
        if !self.unnamed.is_empty() {
            let left = NAMING_TIME.saturating_sub(self.world.now().saturating_duration_since(draft.begun));
            if !left.is_zero() && self.name_for(left.min(self.slice)) && !self.unnamed.is_empty() {
                self.draft = Some(draft);
                return None;
            }
        }
        Some(self.finish(draft))
    }

    /// Looks up the names of stacks that have none here yet, and lists those that have none at all. A
    /// stack needs one that holds memory now, or did `then`: else its site's delta would lack it.
    fn adopt_names(&mut self, raw: &RawSnapshot, then: Option<&Kept>) {
        let mut then = then.into_iter().flat_map(Kept::stacks).map(|stack| stack.id).peekable();
        let mut unnamed = Vec::new();
        // A leak may come from very many stacks, none of them large: those that share their most recent calls are named
        // together, one of each group first.
        let mut groups: HashMap<&[usize], u64> = HashMap::new();
        for stack in &raw.stacks {
            // Both ascend.
            while then.next_if(|id| *id < stack.id).is_some() {}
            let is_live = stack.counts.live_blocks() > 0 || stack.counts.live_bytes() > 0;
            let is_wanted = is_live || then.peek() == Some(&stack.id);
            if !is_wanted || self.names.get(stack.id).is_some() {
                continue;
            }
            match self.world.site(stack.addresses) {
                Some(site) => self.names.insert(stack.id, site),
                None => {
                    *groups.entry(recent(stack.addresses)).or_default() += stack.counts.live_bytes();
                    unnamed.push((stack.counts.live_bytes(), stack.addresses));
                }
            }
        }
        unnamed.sort_by_key(|&(live_bytes, addresses)| (groups[recent(addresses)], live_bytes));
        self.unnamed = unnamed.into_iter().map(|(_, addresses)| addresses).collect();
        // The largest of each group, in the same order, comes before all others.
        let mut met = HashSet::new();
        let (mut first, mut others) = (Vec::new(), Vec::new());
        for addresses in std::mem::take(&mut self.unnamed).into_iter().rev() {
            if met.insert(recent(addresses)) { first.push(addresses) } else { others.push(addresses) }
        }
        self.unnamed = others.into_iter().rev().chain(first.into_iter().rev()).collect();
    }

    /// Returns the baseline of deltas at `now`.
    fn baseline(&self, now: Instant) -> Option<Arc<Kept>> {
        self.previous.clone().or_else(|| self.ring.baseline(now).cloned())
    }

    fn finish(&mut self, draft: Draft) -> Arc<Report> {
        let Draft { raw, spent, .. } = draft;
        let report = Arc::new(self.report(&raw, self.world.now(), spent, raw.tracking));
        if self.options.delta_window.is_zero() {
            self.previous = Some(Arc::new(Kept::new(&raw)));
        }
        // From now, not from when it began: on a busy machine a slow one would be repeated at once.
        self.report = Some((self.world.now(), report.clone()));
        report
    }

    /// Builds the report of a snapshot, with the names there are. `begun`, `spent`: the time at which this step began,
    /// and the time spent before it.
    fn report(&mut self, raw: &RawSnapshot, begun: Instant, spent: Duration, with_sites: bool) -> Report {
        let totals = raw.totals;
        let baseline = self.baseline(raw.taken);
        self.adopt_names(raw, baseline.as_deref());
        let sums = self.sums(raw.stacks.iter().map(Living::from), baseline.as_deref());
        let all = total((totals.live_bytes(), totals.live_blocks()), baseline.as_deref());
        let (sites, followed) = if with_sites {
            let sites = self.choose(raw, &sums, all);
            let followed = self.followed.rows(&sites, |id| {
                let sum = self.names.index.get(&(id, true)).and_then(|&index| sums.get(index as usize));
                sum.map_or((Sum::default(), 0), |sum| (sum.sum(), sum.stderr()))
            });
            (sites, followed)
        } else {
            (Vec::new(), Vec::new())
        };

        let mut other = all;
        for row in &sites {
            // Each stack is counted at one site at most, so the bytes taken away were there; `fit` has seen to it
            // for estimates, but for blocks of no bytes.
            other.live_bytes = other.live_bytes.saturating_sub(row.live_bytes);
            other.live_blocks = other.live_blocks.saturating_sub(row.live_blocks);
            other.delta_bytes -= row.delta_bytes;
            other.delta_blocks -= row.delta_blocks;
        }
        let unnamed = self.unnamed_bytes(&raw.stacks);
        self.number += 1;
        let (resident_bytes, memory_limit_bytes) =
            (self.world.resident_bytes(), self.world.memory_limit_bytes());
        Report {
            number: self.number,
            taken_at: raw.taken_at,
            duration: spent + self.world.now().saturating_duration_since(begun),
            started_at: self.started_at,
            tracking: raw.tracking,
            live_bytes: all.live_bytes,
            live_blocks: all.live_blocks,
            peak_bytes: raw.peak_bytes,
            allocated_bytes: totals.allocated_bytes,
            allocations: totals.allocated_blocks,
            deallocated_bytes: totals.freed_bytes,
            deallocations: totals.freed_blocks,
            sites,
            other,
            delta_bytes: all.delta_bytes,
            delta_blocks: all.delta_blocks,
            sites_with_blocks: (self.names.sites.iter().zip(&sums))
                .filter(|(site, sum)| site.is_final() && sum.now.blocks > 0)
                .count() as u64,
            delta_window: baseline
                .as_deref()
                .map_or(Duration::ZERO, |kept| raw.taken.saturating_duration_since(kept.taken)),
            untracked_bytes: raw.untracked_bytes,
            overhead_bytes: raw.overhead_bytes,
            unnamed,
            dropped: DroppedEvents {
                stacks: raw.dropped.stacks,
                memory: raw.dropped.memory,
                threads: raw.dropped.threads,
                // The collector leaves sites in *other*, which loses nothing; only an outlet that
                // cannot remove a series has to turn one away.
                series: self.followed.refused(),
                reentrant: raw.dropped.reentrant,
            },
            truncated_stacks: raw.truncated_stacks,
            fallback_walks: raw.fallback_walks,
            sample_interval_bytes: raw.sample_interval_bytes,
            resident_bytes,
            memory_limit_bytes,
            build: BuildInfo {
                version: env!("CARGO_PKG_VERSION"),
                build_id: self.build_id.clone(),
                capture: symbols::capture(raw.capture),
                symbols: self.world.symbols(),
            },
            followed,
            forgotten: self.forgotten,
        }
    }

    /// Returns the live bytes of stacks that have no final name yet, and of those whose line was lost.
    fn unnamed_bytes(&self, stacks: &[RawStack]) -> UnnamedBytes {
        let mut unnamed = UnnamedBytes::default();
        for stack in stacks {
            match self.names.get(stack.id).map(|index| &self.names.sites[index]) {
                None => unnamed.pending += stack.counts.live_bytes(),
                Some(site) if site.lost.is_some() => unnamed.lost += stack.counts.live_bytes(),
                Some(_) => {}
            }
        }
        unnamed
    }

    /// Sums counts by site, in the order of `names.sites`.
    fn sums(&self, living: impl Iterator<Item = Living>, baseline: Option<&Kept>) -> Vec<Estimate> {
        let mut sums = vec![Estimate::default(); self.names.sites.len()];
        for Living { id, bytes, blocks, variance } in living {
            let Some(index) = self.names.get(id).filter(|_| blocks != 0 || bytes != 0) else {
                continue;
            };
            sums[index].now.add(bytes, blocks, variance != 0.0);
            sums[index].variance += variance;
        }
        for stack in baseline.into_iter().flat_map(Kept::stacks) {
            if let Some(index) = self.names.get(stack.id) {
                sums[index].then.add(stack.live_bytes, stack.live_blocks, stack.stderr != 0);
                sums[index].then_variance += (stack.stderr as f64).powi(2);
            }
        }
        sums
    }

    fn choose(&mut self, raw: &RawSnapshot, sums: &[Estimate], total: Sum) -> Vec<SiteRow> {
        let now = raw.taken;
        let ago = |id: &u64| self.tops.get(id).map(|&at| now.saturating_duration_since(at));
        let candidates: Vec<Candidate> = self
            .names
            .sites
            .iter()
            .zip(sums)
            .map(|(site, estimate)| {
                // One that would have another id with more memory is never chosen.
                let sum = if site.is_final() { estimate.sum() } else { Sum::default() };
                let Sum { live_bytes, live_blocks, delta_bytes, .. } = sum;
                Candidate { id: site.id, live_bytes, live_blocks, delta_bytes, top_ago: ago(&site.id) }
            })
            .collect();
        let is_estimated = raw.sample_interval_bytes != 0 || sums.iter().any(|sum| sum.variance > 0.0);
        let chosen = choose(
            &candidates,
            Limits {
                by_live: self.options.top_n,
                by_delta: TOP_DELTA,
                sticky: if is_estimated { STICKY_ESTIMATES } else { STICKY },
                sticky_for: STICKY_FOR,
            },
        );
        for site in chosen.iter().filter(|chosen| !chosen.sticky) {
            self.tops.insert(candidates[site.index].id, now);
        }
        self.tops.retain(|_, &mut at| now.saturating_duration_since(at) <= STICKY_FOR);
        let mut rows: Vec<Estimate> = chosen.iter().map(|site| sums[site.index]).collect();
        fit(&mut rows, total);
        let mut rows: Vec<SiteRow> = chosen
            .iter()
            .zip(rows)
            .map(|(site, sum)| SiteRow::new(self.names.sites[site.index].clone(), sum.sum(), sum.stderr()))
            .collect();
        // Estimates may have changed places.
        rows.sort_by_key(|row| (Reverse(row.live_bytes), row.id()));
        rows
    }
}

/// Live counts of a site, now and in the baseline, with their variances.
#[derive(Clone, Copy, Default)]
struct Estimate {
    now: Holding,
    then: Holding,
    /// Variance of the bytes it holds now.
    variance: f64,
    /// Variance of the bytes it held then.
    then_variance: f64,
}

impl Estimate {
    fn sum(&self) -> Sum {
        Sum {
            live_bytes: self.now.bytes,
            live_blocks: self.now.blocks,
            delta_bytes: self.now.bytes as i64 - self.then.bytes as i64,
            delta_blocks: self.now.blocks as i64 - self.then.blocks as i64,
        }
    }

    /// Returns the standard error of the bytes.
    fn stderr(&self) -> u64 {
        self.variance.sqrt().round() as u64
    }

    /// Returns the standard error of the change of the bytes, at most: blocks that lived then and now are off alike.
    #[cfg(any(test, feature = "http"))]
    fn diff_stderr(&self) -> u64 {
        (self.variance + self.then_variance).sqrt().round() as u64
    }
}

/// Live counts of one stack.
struct Living {
    id: u32,
    bytes: u64,
    blocks: u64,
    /// Variance of the bytes, where they are an estimate; else 0.
    variance: f64,
}

impl From<&RawStack> for Living {
    fn from(stack: &RawStack) -> Living {
        let &RawStack { id, counts, variance, .. } = stack;
        Living { id, bytes: counts.live_bytes(), blocks: counts.live_blocks(), variance }
    }
}

/// Bytes and blocks at one moment, and the estimated part of them.
#[derive(Clone, Copy, Default)]
struct Holding {
    bytes: u64,
    blocks: u64,
    sampled_bytes: u64,
    sampled_blocks: u64,
}

impl Holding {
    fn add(&mut self, bytes: u64, blocks: u64, is_sampled: bool) {
        self.bytes += bytes;
        self.blocks += blocks;
        if is_sampled {
            self.sampled_bytes += bytes;
            self.sampled_blocks += blocks;
        }
    }
}

/// Returns the exact total: live bytes and blocks, and their change since the baseline.
fn total((live_bytes, live_blocks): (u64, u64), baseline: Option<&Kept>) -> Sum {
    let (then_bytes, then_blocks) = baseline.map_or((0, 0), |kept| (kept.live_bytes, kept.live_blocks));
    Sum {
        live_bytes,
        live_blocks,
        delta_bytes: live_bytes as i64 - then_bytes as i64,
        delta_blocks: live_blocks as i64 - then_blocks as i64,
    }
}

/// Scales the estimates down where rows would hold more than all there is: the total is known, so the part
/// above it is error, and rows and *other* have to add up. Now and then alike, so that an unchanged site stays so.
fn fit(rows: &mut [Estimate], total: Sum) {
    let then = |now: u64, delta: i64| now.wrapping_sub_signed(delta);
    fit_one(rows, |row| &mut row.now, total.live_bytes, total.live_blocks);
    fit_one(
        rows,
        |row| &mut row.then,
        then(total.live_bytes, total.delta_bytes),
        then(total.live_blocks, total.delta_blocks),
    );
}

fn fit_one(rows: &mut [Estimate], of: fn(&mut Estimate) -> &mut Holding, bytes: u64, blocks: u64) {
    let mut all = Holding::default();
    for row in &mut *rows {
        let Holding { bytes, blocks, sampled_bytes, sampled_blocks } = *of(row);
        all.bytes += bytes;
        all.blocks += blocks;
        all.sampled_bytes += sampled_bytes;
        all.sampled_blocks += sampled_blocks;
    }
    let (bytes, blocks) =
        (excess(all.bytes, bytes, all.sampled_bytes), excess(all.blocks, blocks, all.sampled_blocks));
    for row in rows.iter_mut().map(of) {
        row.bytes -= share(row.sampled_bytes, bytes);
        row.blocks -= share(row.sampled_blocks, blocks);
    }
}

/// Returns the excess of the rows over the total, and the estimated bytes that it can be taken from.
fn excess(rows: u64, total: u64, estimated: u64) -> (u64, u64) {
    (rows.saturating_sub(total).min(estimated), estimated)
}

/// Returns the part of the excess that a row has to give, rounded up.
fn share(estimated: u64, (excess, of): (u64, u64)) -> u64 {
    let share = (u128::from(estimated) * u128::from(excess)).div_ceil(u128::from(of.max(1)));
    share as u64
}

#[cfg(test)]
mod tests;
#[cfg(all(
    test,
    any(feature = "prometheus", feature = "_opentelemetry-sdk", feature = "prometheus-client")
))]
pub(crate) use tests::Fake;

/// Builds a report with every field in use, for the tests of the outlets.
#[cfg(all(test, any(feature = "prometheus", feature = "prometheus-client")))]
pub(crate) fn sample_report() -> Report {
    let at = |seconds: f64| SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds);
    Report {
        number: 1,
        taken_at: at(1_793_000_300.25),
        duration: Duration::from_micros(1_500),
        started_at: at(1_793_000_000.0),
        tracking: true,
        live_bytes: 600_000,
        live_blocks: 12_500,
        peak_bytes: 700_000,
        allocated_bytes: 1_000_000,
        allocations: 20_000,
        deallocated_bytes: 400_000,
        deallocations: 7_500,
        sites: vec![
            sample_row(42, "app::cache::Cache::insert", 592_560, 12_345, 48, 1),
            sample_row(7, "app::load\\it", 5_000, 50, -1_000, -10),
        ],
        other: Sum { live_bytes: 2_440, live_blocks: 105, delta_bytes: 0, delta_blocks: 0 },
        delta_bytes: -952,
        delta_blocks: -9,
        sites_with_blocks: 17,
        delta_window: Duration::from_millis(300_500),
        untracked_bytes: 64,
        overhead_bytes: 4_096,
        unnamed: UnnamedBytes { pending: 128, lost: 256 },
        dropped: DroppedEvents { stacks: 1, memory: 2, threads: 3, series: 4, reentrant: 5 },
        truncated_stacks: 6,
        fallback_walks: 7,
        sample_interval_bytes: 0,
        resident_bytes: Some(8_192),
        memory_limit_bytes: Some(134_217_728),
        build: BuildInfo { version: "0.1.0", build_id: "ab12".into(), capture: "cfi", symbols: "lines" },
        followed: Vec::new(),
        forgotten: Counts::default(),
    }
}

#[cfg(all(test, any(feature = "prometheus", feature = "prometheus-client")))]
pub(crate) fn sample_row(
    line: u32,
    function: &str,
    live_bytes: u64,
    live_blocks: u64,
    delta_bytes: i64,
    delta_blocks: i64,
) -> SiteRow {
    let site = Site {
        id: 0xfeed_0000_0000_0000 + u64::from(line),
        function: function.into(),
        file: "src\\app\\cache.rs".into(),
        line,
        krate: "app".into(),
        lost: None,
    };
    SiteRow::new(Arc::new(site), Sum { live_bytes, live_blocks, delta_bytes, delta_blocks }, 0)
}
