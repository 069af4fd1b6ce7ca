//! Builds two [`Snapshot`]s that can be compared, from kept counts and the heap of now.
//!
//! Costs a few milliseconds for 10,000 stacks once they are named, as [`Collector::name_all_slice`] does
//! before. Holds the allocator's memory alone: blocks given to `track` are in no baseline.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::Collector;
use super::baselines::{KeptCounts, KeptStack};
use super::estimate::total;
use super::site_ages::{RowAges, stacks_now};
use super::state::State;
use crate::analyze::ages::{AgeTotals, StackNow};
use crate::analyze::frame::{Frame, Traceback, UNKNOWN};
use crate::analyze::live::Live;
use crate::analyze::scope::ScopeLabels;
use crate::analyze::snapshot::statistic::Totals;
use crate::analyze::snapshot::{Snapshot, Trace};
use crate::base::error::Error;
use crate::record::control;
use crate::record::raw_snapshot::{Carried, Counts, RawSnapshot, RawStack};

/// Earlier snapshot that the heap of now is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    /// The collector's first snapshot.
    First,
    /// The baseline of the deltas.
    Previous,
    /// The newest baseline at least that old, or the oldest while all are younger.
    Ago(Duration),
    /// A snapshot that was kept on request.
    Number(u64),
}

/// Query: the earlier snapshot, and the blocks that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CompareQuery {
    pub since: Since,
    /// Only blocks that are certain to be older count. Those of then are not known, so that nothing changes.
    pub older_than: Option<Duration>,
    /// The ages of all blocks are asked for, too.
    pub with_ages: bool,
}

impl From<Since> for CompareQuery {
    fn from(since: Since) -> CompareQuery {
        CompareQuery { since, older_than: None, with_ages: false }
    }
}

/// Heap of now, and the snapshot it is compared with.
#[derive(Debug)]
pub(crate) struct Compared {
    pub new: Snapshot,
    pub old: Snapshot,
    /// Totals of all blocks, exact.
    pub total: Totals,
    /// Ages of the traces of `new`, in their order; empty where they were not asked for.
    pub ages: Vec<RowAges>,
}

/// Snapshot that is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SavedSnapshot {
    pub number: u64,
    pub taken_at: SystemTime,
    pub live: Live,
}

/// Reason for an answer without contents.
#[derive(Debug)]
pub(crate) enum CompareError {
    /// Nothing is recorded.
    TrackingOff(Error),
    /// No snapshot has that number, or no longer.
    Unknown { number: u64, kept: Vec<u64> },
    /// No moment has that number, or no longer.
    Gone { number: u64, kept: Vec<u64> },
}

impl CompareError {
    pub(super) fn tracking_off() -> CompareError {
        CompareError::TrackingOff(Error::tracking_off(control::off_reason()))
    }
}

impl fmt::Display for CompareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, number, kept) = match self {
            CompareError::TrackingOff(error) => return error.fmt(f),
            CompareError::Unknown { number, kept } => ("snapshot", number, kept),
            CompareError::Gone { number, kept } => ("moment", number, kept),
        };
        if kept.is_empty() {
            return write!(f, "{what} {number} is not kept, and no other");
        }
        let kept: Vec<String> = kept.iter().map(u64::to_string).collect();
        write!(f, "{what} {number} is not kept, kept are {}", kept.join(", "))
    }
}

impl Collector {
    /// Names some of the stacks that hold memory now or did then. True: all have names, or no more can
    /// be had.
    pub(crate) fn name_all_slice(&self, since: Since) -> bool {
        let _own = control::internal();
        let mut state = self.lock();
        let raw = state.take();
        let then = state.then(since, raw.taken);
        state.adopt_names(&raw, then.as_deref());
        let slice = state.slice;
        state.unnamed.is_empty() || !state.name_for(slice) || state.unnamed.is_empty()
    }

    /// Compares the heap of now with that of then.
    pub(crate) fn compare(&self, query: impl Into<CompareQuery>) -> Result<Compared, CompareError> {
        let _own = control::internal();
        self.lock().compare(query.into())
    }

    /// Returns the counts of now of the blocks that are certain to be older than `age`, as if there had never been others.
    pub(crate) fn old_blocks(&self, age: Duration) -> Result<RawSnapshot, CompareError> {
        let _own = control::internal();
        let mut state = self.lock();
        let mut raw = state.take_tracked()?;
        let stacks: Vec<StackNow> = raw.stacks.iter().map(StackNow::from).collect();
        let bounds = state.stack_ages(raw.taken, &stacks, age);
        raw.totals = Counts::default();
        for (stack, AgeTotals { lower, .. }) in raw.stacks.iter_mut().zip(bounds) {
            // Bytes are in a block at least, also where each of the blocks may be a young one.
            let (allocated_bytes, allocated_blocks) =
                (lower.bytes, lower.blocks.max(u64::from(lower.bytes > 0)));
            stack.counts = Counts { allocated_bytes, allocated_blocks, ..Counts::default() };
            stack.carried = Carried::default();
            raw.totals += stack.counts;
        }
        raw.stacks.retain(|stack| stack.counts != Counts::default());
        Ok(raw)
    }

    /// Takes a snapshot and keeps it for [`Since::Number`].
    pub(crate) fn post(&self) -> Result<SavedSnapshot, CompareError> {
        let _own = control::internal();
        let mut state = self.lock();
        let raw = state.take_tracked()?;
        Ok(SavedSnapshot { number: state.keep(&raw), taken_at: raw.taken_at, live: raw.totals.into() })
    }
}

impl State {
    fn take_tracked(&mut self) -> Result<RawSnapshot, CompareError> {
        let raw = self.take();
        if raw.tracking {
            return Ok(raw);
        }
        Err(CompareError::tracking_off())
    }

    /// Keeps a snapshot on request, and returns its number.
    fn keep(&mut self, raw: &RawSnapshot) -> u64 {
        self.kept_snapshots.put(Arc::new(KeptCounts::new(raw, &mut self.labels)))
    }

    fn then(&mut self, since: Since, now: Instant) -> Option<Arc<KeptCounts>> {
        match since {
            Since::First => self.baselines.first().cloned(),
            Since::Previous => self.baseline(now),
            Since::Ago(age) => self.baselines.at_least(age, now).cloned(),
            Since::Number(number) => self.kept_snapshots.get(number, now),
        }
    }

    /// Returns [`State::then`], with an error where no snapshot has that number.
    pub(super) fn kept_then(
        &mut self,
        since: Since,
        now: Instant,
    ) -> Result<Option<Arc<KeptCounts>>, CompareError> {
        match (self.then(since, now), since) {
            (None, Since::Number(number)) => {
                Err(CompareError::Unknown { number, kept: self.kept_snapshots.numbers().collect() })
            }
            (kept, _) => Ok(kept),
        }
    }

    fn compare(&mut self, query: CompareQuery) -> Result<Compared, CompareError> {
        let CompareQuery { since, older_than, with_ages } = query;
        let raw = self.take_tracked()?;
        let mut now = KeptCounts::new(&raw, &mut self.labels);
        let old = self.kept_then(since, raw.taken)?;
        // Taking one has kept one, so there always is a first; if not, then is now.
        let mut old = old.unwrap_or_else(|| Arc::new(KeptCounts::new(&raw, &mut self.labels)));
        if let Some(age) = older_than {
            let bounds = self.stack_ages(raw.taken, &stacks_now(&raw), age);
            now = now.with_live(bounds.into_iter().map(|bounds| bounds.lower));
            old = Arc::new(now.clone());
        }
        // In a busy program stacks have appeared since all were named.
        self.adopt_names(&raw, Some(&old));
        if !self.unnamed.is_empty() {
            self.name_for(self.slice);
        }
        let mut tracebacks = Tracebacks { state: self, raw: &raw, made: vec![None; raw.stacks.len()] };
        let mut at = 0;
        let new: Vec<Trace> = now
            .stacks()
            .map(|kept| {
                while raw.stacks[at].id < kept.id {
                    at += 1;
                }
                kept.trace(now.scope(&kept), tracebacks.of(at))
            })
            .collect();
        // Both ascend by id. A stack that was live then has died where it is not among those of now.
        let mut at = 0;
        let then = old.stacks().map(|then| {
            while raw.stacks.get(at).is_some_and(|stack| stack.id < then.id) {
                at += 1;
            }
            let is_here = raw.stacks.get(at).is_some_and(|stack| stack.id == then.id);
            let traceback = if is_here { tracebacks.of(at) } else { tracebacks.of_dead(then.id) };
            then.trace(old.scope(&then), traceback)
        });
        let limit = raw.traceback_limit;
        let then = Snapshot::of(old.taken_at, limit, then.collect());
        let ages = if with_ages { self.ages_of(&now, &raw) } else { Vec::new() };
        Ok(Compared {
            new: Snapshot::of(raw.taken_at, limit, new).sampled_every(raw.sample_interval_bytes),
            old: then,
            total: total(now.live, Some(&old)).into(),
            ages,
        })
    }

    /// Returns the ages of the stacks that counts have, in their order.
    fn ages_of(&self, counts: &KeptCounts, raw: &RawSnapshot) -> Vec<RowAges> {
        let stacks = stacks_now(raw);
        let mut ages = stacks.iter().zip(self.ages_of_stacks(raw.taken, &stacks));
        // Both ascend by id, and each stack of the counts is among the others.
        let of = |kept: KeptStack| ages.find(|(stack, _)| stack.id == kept.id).map(|(_, ages)| ages);
        counts.stacks().map(of).map(Option::unwrap_or_default).collect()
    }
}

impl KeptStack {
    fn trace(&self, scope: ScopeLabels, traceback: Traceback) -> Trace {
        let KeptStack { live: Live { bytes: size, blocks: count }, stderr, .. } = *self;
        Trace { size, count, stderr, domain: 0, traceback, scope }
    }
}

/// Tracebacks of a raw snapshot's stacks, each made once.
struct Tracebacks<'a> {
    state: &'a State,
    raw: &'a RawSnapshot,
    made: Vec<Option<Traceback>>,
}

impl Tracebacks<'_> {
    fn of(&mut self, at: usize) -> Traceback {
        let (state, stack): (_, &RawStack) = (self.state, &self.raw.stacks[at]);
        let limit = self.raw.traceback_limit;
        let make = || {
            let addresses = self.raw.addresses.to_vec(stack.addresses);
            state.source.traceback(&addresses, stack.truncated, limit).unwrap_or_else(unknown)
        };
        self.made[at].get_or_insert_with(make).clone()
    }
}

impl Tracebacks<'_> {
    /// Returns the traceback of a stack that has died, whose addresses are gone: its site, as far as that is known.
    fn of_dead(&self, id: u32) -> Traceback {
        let names = &self.state.names;
        names.get(id).map_or_else(unknown, |index| {
            let site = &names.sites[index];
            Traceback::new([Frame::new(Some(&site.function), &site.file, site.line)])
        })
    }
}

/// Returns the traceback of a stack whose name could not be had in time.
fn unknown() -> Traceback {
    Traceback::new([Frame::new(None, UNKNOWN, 0)])
}
