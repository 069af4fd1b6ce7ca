//! The collector with a heap and a clock of its own.
#![forbid(unsafe_code)]

mod ages;
mod estimates;
mod naming;
mod reports;
#[cfg(any(feature = "prometheus", feature = "prometheus-client"))]
pub(crate) mod sample;
mod scopes;
mod views;

use super::*;
use crate::analyze::ages::Ages;
use crate::analyze::frame::Traceback;
use crate::analyze::memory_limit::MemoryLimit;
use crate::analyze::memory_parts::{MemoryParts, Reading, State};
use crate::analyze::symbols::{LineTables, Progress, Quality, Site};
use crate::record::raw_snapshot::{Addresses, Counts, Dropped, RawSnapshot, RawStack, ScopeId, ScopeNames};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::{Instant, SystemTime};

/// Heap and clock of the collector under test; tests change it between collections.
pub(crate) struct Heap {
    pub(crate) start: Instant,
    pub(crate) now: Instant,
    pub(crate) epoch: u32,
    pub(crate) tracking: bool,
    pub(crate) stacks: BTreeMap<u32, RawStack>,
    pub(crate) addresses: Addresses,
    /// Keys and values of the scopes, in the order of their numbers, which begin at 1.
    pub(crate) scopes: Vec<Vec<(&'static str, String)>>,
    /// Sites by first address; a stack without an entry here has no name yet.
    pub(crate) sites: HashMap<usize, Arc<Site>>,
    /// Stacks that get their name in the next `resolve`, whose budget holds one each.
    pub(crate) nameable: HashMap<usize, Arc<Site>>,
    pub(crate) names_epoch: u64,
    pub(crate) resolved: Vec<usize>,
    pub(crate) taken: u32,
    /// Time that the clock advances with each look at it.
    pub(crate) hurries: Duration,
    /// The next snapshot panics.
    pub(crate) fails: bool,
    /// Average bytes between samples, and the true live counts; `None`: the sums of the stacks.
    pub(crate) sample_interval: u64,
    pub(crate) totals: Option<Counts>,
    /// Duration of a `resolve`, and the budgets it was given.
    pub(crate) naming_takes: Duration,
    pub(crate) budgets: Vec<Duration>,
    pub(crate) allocator_state: State,
    /// Number of ids that were renewed.
    pub(crate) renewed: usize,
}

#[derive(Clone)]
pub(crate) struct Fake(Arc<Mutex<Heap>>, Arc<ForkMutex<Ages>>);

impl Fake {
    pub(crate) fn new() -> Fake {
        let start = Instant::now();
        Fake(
            Arc::new(Mutex::new(Heap {
                start,
                now: start,
                epoch: 0,
                tracking: true,
                stacks: BTreeMap::new(),
                addresses: Addresses::default(),
                scopes: Vec::new(),
                sites: HashMap::new(),
                nameable: HashMap::new(),
                names_epoch: 0,
                resolved: Vec::new(),
                taken: 0,
                hurries: Duration::ZERO,
                fails: false,
                sample_interval: 0,
                totals: None,
                naming_takes: Duration::ZERO,
                budgets: Vec::new(),
                allocator_state: State::Read,
                renewed: 0,
            })),
            Arc::new(ForkMutex::new(Ages::new())),
        )
    }

    pub(crate) fn heap(&self) -> MutexGuard<'_, Heap> {
        self.0.lock().unwrap()
    }

    pub(crate) fn collector(&self, top_n: usize, window: u64) -> Collector {
        let options = Options {
            top_n,
            delta_window: Duration::from_secs(window),
            memory_limit: None,
            release: "2.4".into(),
            statistics: None,
            old_age: None,
            cohorts: None,
            snapshots: 3,
            snapshots_for: Duration::from_secs(600),
        };
        Collector::with_source(options, Box::new(self.clone()))
    }

    pub(crate) fn at(&self, seconds: u64) {
        let mut heap = self.heap();
        heap.now = heap.start + Duration::from_secs(seconds);
    }

    /// Gives stack `id` the line `line` and these live counts.
    pub(crate) fn holds(&self, id: u32, line: u32, bytes: u64, blocks: u64) {
        self.holds_unnamed(id, bytes, blocks);
        self.heap().sites.insert(id as usize, site(line));
    }

    pub(crate) fn holds_unnamed(&self, id: u32, bytes: u64, blocks: u64) {
        let mut heap = self.heap();
        let Heap { stacks, addresses, .. } = &mut *heap;
        let stack = stacks.entry(id).or_insert_with(|| RawStack {
            addresses: addresses.push_stack(&[id as usize]),
            ..RawStack::sample(id, Counts::default())
        });
        let counts = &mut stack.counts;
        if bytes > counts.live_bytes() {
            counts.allocated_bytes += bytes - counts.live_bytes();
        } else {
            counts.freed_bytes += counts.live_bytes() - bytes;
        }
        if blocks > counts.live_blocks() {
            counts.allocated_blocks += blocks - counts.live_blocks();
        } else {
            counts.freed_blocks += counts.live_blocks() - blocks;
        }
    }

    /// Gives stack `id` these live counts, and a scope of its own with these keys and values.
    pub(crate) fn holds_in(&self, id: u32, pairs: &[(&'static str, &str)], bytes: u64, blocks: u64) {
        self.holds(id, id, bytes, blocks);
        let mut heap = self.heap();
        let pairs: Vec<_> = pairs.iter().map(|&(key, value)| (key, value.to_owned())).collect();
        let number = heap.scopes.iter().position(|known| *known == pairs).unwrap_or_else(|| {
            heap.scopes.push(pairs);
            heap.scopes.len() - 1
        });
        heap.stacks.get_mut(&id).unwrap().scope = ScopeId::sample(number as u64 + 1);
    }

    /// Makes the bytes of a stack an estimate with this standard error, every 1,000 bytes.
    pub(crate) fn is_sampled(&self, id: u32, stderr: f64) {
        let mut heap = self.heap();
        heap.sample_interval = 1_000;
        heap.stacks.get_mut(&id).unwrap().variance = stderr * stderr;
    }

    /// Sets the true live counts.
    pub(crate) fn truly_holds(&self, allocated_bytes: u64, allocated_blocks: u64) {
        let counts = Counts { allocated_bytes, allocated_blocks, ..Counts::default() };
        self.heap().totals = Some(counts);
    }

    pub(crate) fn clear(&self) {
        let mut heap = self.heap();
        heap.epoch += 1;
        heap.stacks.clear();
    }
}

impl Heap {
    fn scopes(&self) -> ScopeNames {
        let scopes: Vec<Vec<(&'static str, &str)>> = self
            .scopes
            .iter()
            .map(|pairs| pairs.iter().map(|(key, value)| (*key, &**value)).collect())
            .collect();
        let numbered: Vec<(ScopeId, &[(&'static str, &str)])> =
            (1..).zip(&scopes).map(|(number, pairs)| (ScopeId::sample(number), &**pairs)).collect();
        ScopeNames::sample(&numbered)
    }
}

fn site(line: u32) -> Arc<Site> {
    Arc::new(Site {
        id: u64::from(line),
        function: format!("app::line_{line}").into(),
        file: "src/app.rs".into(),
        line,
        krate: "app".into(),
        via: "".into(),
        lost: None,
    })
}

fn sum(stacks: &[RawStack]) -> Counts {
    let mut sum = Counts::default();
    for stack in stacks {
        sum += stack.counts;
    }
    sum
}

impl HeapSource for Fake {
    fn now(&self) -> Instant {
        let mut heap = self.heap();
        let hurries = heap.hurries;
        heap.now += hurries;
        heap.now
    }
    fn take(&self) -> RawSnapshot {
        let mut heap = self.heap();
        heap.taken += 1;
        let fails = std::mem::take(&mut heap.fails);
        if fails {
            drop(heap); // not poisoned
            panic!("planted by a test");
        }
        let stacks: Vec<RawStack> =
            if heap.tracking { heap.stacks.values().copied().collect() } else { Vec::new() };
        RawSnapshot {
            taken_at: SystemTime::UNIX_EPOCH + (heap.now - heap.start),
            taken: heap.now,
            tracking: heap.tracking,
            traceback_limit: 32,
            epoch: heap.epoch,
            peak_bytes: stacks.iter().map(|stack| stack.counts.live_bytes()).sum(),
            totals: heap.totals.unwrap_or_else(|| sum(&stacks)),
            stacks,
            addresses: heap.addresses.clone(),
            scopes: heap.scopes(),
            untracked_bytes: 11,
            overhead_bytes: 22,
            dropped: Dropped { stacks: 1, memory: 2, threads: 3, reentrant: 4, scopes: 5 },
            truncated_stacks: 5,
            fallback_walks: 6,
            sample_interval_bytes: heap.sample_interval,
            capture: "cfi",
        }
    }
    fn names_epoch(&self) -> u64 {
        self.heap().names_epoch
    }
    fn site(&self, _: u32, addresses: &[usize]) -> Option<Arc<Site>> {
        self.heap().sites.get(&addresses[0]).cloned()
    }
    fn nearest(&self, addresses: &[usize]) -> Option<Arc<Site>> {
        self.site(0, addresses)
    }
    fn resolve(&self, stacks: &mut dyn Iterator<Item = &[usize]>, budget: Duration) -> Progress {
        let mut heap = self.heap();
        let takes = heap.naming_takes;
        heap.now += takes;
        heap.budgets.push(budget);
        let Some(first) = stacks.next().map(|addresses| addresses[0]) else {
            return Progress::default();
        };
        heap.resolved.push(first);
        let found = heap.nameable.remove(&first);
        let named = usize::from(found.is_some());
        if let Some(site) = found {
            heap.sites.insert(first, site);
        }
        let total = 1 + stacks.count();
        Progress { named, total, more: named == 1 && total > 1 }
    }
    fn traceback(&self, addresses: &[usize], _: bool, _: usize) -> Option<Traceback> {
        let site = self.site(0, addresses)?;
        Some(Traceback::new([crate::Frame::new(Some(&site.function), &site.file, site.line)]))
    }
    fn symbols(&self) -> Quality {
        Quality { names: "lines", lines: LineTables::Available }
    }
    fn memory_parts(&self) -> Option<Arc<Reading>> {
        let mut reading = Reading::of(MemoryParts::sample());
        reading.state = self.heap().allocator_state;
        Some(Arc::new(reading))
    }
    fn resident_bytes(&self) -> Option<u64> {
        Some(4096)
    }
    fn memory_limit(&self, own: Option<u64>) -> MemoryLimit {
        MemoryLimit { limit: own, usage: Some(2048) }
    }
    fn ages(&self) -> &ForkMutex<Ages> {
        &self.1
    }
    fn renew(&self, ids: &[u32]) {
        let mut heap = self.heap();
        for id in ids {
            heap.stacks.get_mut(id).unwrap().is_open = false;
        }
        heap.renewed += ids.len();
    }
}

/// Returns line, live bytes, live blocks, delta bytes, delta blocks.
fn rows(report: &Report) -> Vec<(u32, u64, u64, i64, i64)> {
    report
        .sites
        .iter()
        .map(|row| {
            (
                row.line(),
                row.live.now.bytes,
                row.live.now.blocks,
                row.live.delta_bytes(),
                row.live.delta_blocks(),
            )
        })
        .collect()
}

/// Checks the invariants of every report.
fn check(report: &Report) {
    assert_eq!(report.live.now.bytes, report.allocated_bytes - report.deallocated_bytes);
    assert_eq!(report.live.now.blocks, report.allocations - report.deallocations);
    let sum = |of: &dyn Fn(&SiteRow) -> i64| report.sites.iter().map(of).sum::<i64>();
    assert_eq!(
        report.live.now.bytes as i64,
        sum(&|row| row.live.now.bytes as i64) + report.other.now.bytes as i64
    );
    assert_eq!(
        report.live.now.blocks as i64,
        sum(&|row| row.live.now.blocks as i64) + report.other.now.blocks as i64
    );
    assert_eq!(report.live.delta_bytes(), sum(&|row| row.live.delta_bytes()) + report.other.delta_bytes());
    assert_eq!(report.live.delta_blocks(), sum(&|row| row.live.delta_blocks()) + report.other.delta_blocks());
    assert!(report.sites.len() <= 41);
    assert!(report.sites.len() as u64 <= report.sites_with_blocks);
}

/// Returns line, bytes and blocks with their changes, by line.
fn compared(collector: &Collector, since: Since) -> Vec<(u32, u64, i64, u64, i64)> {
    let Compared { new, old, .. } = collector.compare(since).unwrap();
    let rows = new.compare_to(&old, crate::analyze::snapshot::group::GroupBy::Line);
    rows.iter()
        .map(|row| (row.traceback.most_recent().line, row.size, row.size_diff, row.count, row.count_diff))
        .collect()
}
