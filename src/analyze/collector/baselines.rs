//! Keeps live counts by stack id over time, from raw snapshots: the source of baselines.
//!
//! Used under the collector's lock. Keeping one costs one pass over the stacks; about six bytes a
//! stack with live blocks are kept, so 64 snapshots of 10,000 stacks take about 4 MB.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
#[cfg(any(feature = "http", test))]
use std::time::SystemTime;
use std::time::{Duration, Instant};

use crate::analyze::leb128::{pack, unpack};
use crate::analyze::live::Live;
#[cfg(any(feature = "http", test))]
use crate::analyze::scope::ScopeFilter;
use crate::analyze::scope::{LabelsByScope, ScopeLabels};
use crate::record::raw_snapshot::{RawSnapshot, ScopeId};

/// Maximum number of snapshots kept.
pub(crate) const CAPACITY: usize = 64;
/// Number of steps in one `delta_window`: the ring moves at each, so no baseline is further than one from its due age.
const STEPS: u32 = 5;
/// Bytes that a scope of kept counts is taken for: its labels are shared, with the other counts that have it too.
const SCOPE_BYTES: usize = 64;
/// Pace of the ring while `delta_window` is zero, when no baseline comes from it.
const IDLE_PACE: Duration = Duration::from_secs(60);

/// Live totals of an earlier moment.
#[cfg(any(feature = "http", test))]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PastTotals {
    pub taken_at: SystemTime,
    pub live: Live,
}

/// Live counts by stack id at one moment.
#[derive(Clone, Debug)]
pub(crate) struct KeptCounts {
    pub taken: Instant,
    #[cfg(any(feature = "http", test))]
    pub taken_at: SystemTime,
    /// Live counts of all blocks, exact.
    pub live: Live,
    /// Counts per stack with live blocks, ascending: four times the id minus the id before, plus 1 where its bytes are
    /// an estimate, plus 2 where it has a scope; live bytes; live blocks; the standard error of an estimate; the place of the
    /// scope. Each in LEB128: ids are dense and most counts are small, so this is a quarter of three plain words.
    packed: Box<[u8]>,
    /// Scopes that the stacks have, each once.
    pub scopes: Box<[ScopeLabels]>,
}

/// Live counts of one stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeptStack {
    pub id: u32,
    pub live: Live,
    /// Standard error of the bytes, 0 where they are exact.
    pub stderr: u64,
    /// Place of its scope among those of the counts; `None`: it has none.
    pub scope: Option<usize>,
}

impl KeptStack {
    /// Appends it to packed counts, behind the id `before`.
    fn pack(&self, before: &mut u32, packed: &mut Vec<u8>) {
        let flags = u64::from(self.scope.is_some()) << 1 | u64::from(self.stderr != 0);
        pack(packed, u64::from(self.id - *before) << 2 | flags);
        pack(packed, self.live.bytes);
        pack(packed, self.live.blocks);
        if self.stderr != 0 {
            pack(packed, self.stderr);
        }
        if let Some(place) = self.scope {
            pack(packed, place as u64);
        }
        *before = self.id;
    }
}

impl KeptCounts {
    pub(crate) fn new(raw: &RawSnapshot, labels: &mut LabelsByScope) -> KeptCounts {
        let (mut scopes, mut places) = (Vec::new(), HashMap::new());
        let mut packed = Vec::with_capacity(raw.stacks.len() * 4);
        let mut before = 0;
        for stack in &raw.stacks {
            let live = Live::from(stack.counts);
            if live.is_nothing() {
                continue;
            }
            let stderr = stack.variance.sqrt().round() as u64;
            let scope = (stack.scope != ScopeId::NONE).then(|| {
                *places.entry(stack.scope).or_insert_with(|| {
                    scopes.push(labels.labels(&raw.scopes, stack.scope));
                    scopes.len() - 1
                })
            });
            KeptStack { id: stack.id, live, stderr, scope }.pack(&mut before, &mut packed);
        }
        KeptCounts {
            taken: raw.taken,
            #[cfg(any(feature = "http", test))]
            taken_at: raw.taken_at,
            live: raw.totals.into(),
            packed: packed.into(),
            scopes: scopes.into(),
        }
    }

    /// Iterates over the stacks, ascending by id, those without live blocks left out.
    pub(crate) fn stacks(&self) -> impl Iterator<Item = KeptStack> + '_ {
        let mut rest = &self.packed[..];
        let mut id = 0_u32;
        std::iter::from_fn(move || {
            let step = unpack(&mut rest)?;
            let live = Live { bytes: unpack(&mut rest)?, blocks: unpack(&mut rest)? };
            let stderr = if step & 1 == 0 { 0 } else { unpack(&mut rest)? };
            let scope = if step & 2 == 0 { None } else { Some(unpack(&mut rest)? as usize) };
            id = id.wrapping_add((step >> 2) as u32);
            Some(KeptStack { id, live, stderr, scope })
        })
    }

    /// Returns counts with other figures for its stacks, in their order. The total is the sum of those.
    #[cfg(any(feature = "http", test))]
    pub(crate) fn with_live(&self, live: impl Iterator<Item = Live>) -> KeptCounts {
        let (mut packed, mut before, mut total) = (Vec::new(), 0, Live::default());
        for (stack, live) in self.stacks().zip(live) {
            if !live.is_nothing() {
                KeptStack { live, ..stack }.pack(&mut before, &mut packed);
                total += live;
            }
        }
        KeptCounts { packed: packed.into(), live: total, scopes: self.scopes.clone(), ..*self }
    }

    /// Returns the scope of one of its stacks.
    #[cfg(any(feature = "http", test))]
    pub(crate) fn scope(&self, stack: &KeptStack) -> ScopeLabels {
        stack.scope.and_then(|at| self.scopes.get(at)).cloned().unwrap_or_default()
    }

    /// Iterates over the stacks whose scope the filter admits; without a filter over all.
    #[cfg(any(feature = "http", test))]
    pub(crate) fn stacks_in(&self, filter: Option<&ScopeFilter>) -> impl Iterator<Item = KeptStack> + '_ {
        let is_admitted: Option<Vec<bool>> =
            filter.map(|filter| self.scopes.iter().map(|labels| filter.admits(labels)).collect());
        self.stacks().filter(move |stack| match &is_admitted {
            Some(is_admitted) => stack.scope.is_some_and(|at| is_admitted.get(at) == Some(&true)),
            None => true,
        })
    }

    /// Returns the bytes of its counts.
    pub(crate) fn bytes(&self) -> usize {
        self.packed.len() + self.scopes.len() * SCOPE_BYTES
    }

    #[cfg(any(feature = "http", test))]
    pub(crate) fn past(&self) -> PastTotals {
        PastTotals { taken_at: self.taken_at, live: self.live }
    }

    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.taken)
    }
}

/// Snapshots kept for baselines, oldest first, all of one epoch.
#[derive(Debug)]
pub(crate) struct Baselines {
    kept: VecDeque<Arc<KeptCounts>>,
    /// First snapshot of the epoch, which stays when the ring has gone round.
    first: Option<Arc<KeptCounts>>,
    window: Duration,
    max_bytes: usize,
}

impl Baselines {
    pub(crate) fn new(window: Duration, max_bytes: usize) -> Baselines {
        Baselines { kept: VecDeque::new(), first: None, window, max_bytes }
    }

    /// Returns the time between two kept snapshots.
    pub(crate) fn pace(&self) -> Duration {
        if self.window.is_zero() { IDLE_PACE } else { self.window / STEPS }
    }

    /// Returns the time until the next snapshot should be kept; zero: now.
    pub(crate) fn due_in(&self, now: Instant) -> Duration {
        self.kept.back().map_or(Duration::ZERO, |newest| self.pace().saturating_sub(newest.age(now)))
    }

    pub(crate) fn push(&mut self, kept: Arc<KeptCounts>) {
        self.first.get_or_insert_with(|| kept.clone());
        self.kept.push_back(kept);
        while self.kept.len() > CAPACITY || (self.packed_bytes() > self.max_bytes && self.has_spare()) {
            self.kept.pop_front();
        }
    }

    /// Returns the newest snapshot at least `age` old at `now`, or the oldest while all are younger.
    pub(crate) fn at_least(&self, age: Duration, now: Instant) -> Option<&Arc<KeptCounts>> {
        self.kept.iter().rev().find(|kept| kept.age(now) >= age).or(self.kept.front())
    }

    /// Returns the first snapshot of the epoch.
    #[cfg(any(feature = "http", test))]
    pub(crate) fn first(&self) -> Option<&Arc<KeptCounts>> {
        self.first.as_ref()
    }

    /// Iterates over all snapshots kept, oldest first; the first of the epoch is one of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<KeptCounts>> {
        let front = self.kept.front();
        let gone =
            self.first.iter().filter(move |first| !front.is_some_and(|front| Arc::ptr_eq(front, first)));
        gone.chain(&self.kept)
    }

    /// Returns the baseline of deltas at `now`; `None` before the first snapshot.
    pub(crate) fn baseline(&self, now: Instant) -> Option<&Arc<KeptCounts>> {
        self.at_least(self.window, now)
    }

    pub(crate) fn clear(&mut self) {
        self.kept.clear();
        self.first = None;
    }

    fn packed_bytes(&self) -> usize {
        self.kept.iter().map(|kept| kept.bytes()).sum()
    }

    /// Returns whether the oldest is not the baseline, now or before the next push: the second is old enough.
    fn has_spare(&self) -> bool {
        match (self.kept.get(1), self.kept.back()) {
            (Some(second), Some(newest)) => second.age(newest.taken) >= self.window,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::raw_snapshot::{Counts, RawStack, ScopeNames};

    fn raw(taken: Instant, stacks: &[(u32, u64, u64)]) -> RawSnapshot {
        let counts = |bytes, blocks| Counts {
            allocated_bytes: bytes + 7,
            allocated_blocks: blocks + 1,
            freed_bytes: 7,
            freed_blocks: 1,
        };
        let stacks = stacks.iter().map(|&(id, bytes, blocks)| RawStack::sample(id, counts(bytes, blocks)));
        RawSnapshot::sample(taken, stacks.collect())
    }

    fn kept(raw: &RawSnapshot) -> KeptCounts {
        KeptCounts::new(raw, &mut LabelsByScope::default())
    }

    #[test]
    fn packing_gives_back_every_live_stack() {
        let stacks = [(2, 0, 1), (3, 127, 127), (4, 128, 300), (900, u64::MAX - 7, 1 << 40)];
        let mut with_a_dead_one = stacks.to_vec();
        with_a_dead_one.insert(3, (77, 0, 0));
        let mut raw = raw(Instant::now(), &with_a_dead_one);
        raw.stacks[2].variance = 300.0 * 300.0;
        let stderr = |id| if id == 4 { 300 } else { 0 };
        let expected = stacks.map(|(id, bytes, blocks)| KeptStack {
            id,
            live: Live { bytes, blocks },
            stderr: stderr(id),
            scope: None,
        });
        let kept = kept(&raw);
        assert_eq!(kept.stacks().collect::<Vec<_>>(), expected);
        assert_eq!(kept.live, raw.totals.into());
    }

    #[test]
    fn the_scopes_of_stacks_are_kept_with_them() {
        let mut raw = raw(Instant::now(), &[(2, 10, 1), (3, 20, 2), (4, 30, 3), (5, 40, 4)]);
        let [acme, other] = [1, 2].map(ScopeId::sample);
        raw.scopes = ScopeNames::sample(&[(acme, &[("tenant", "acme")]), (other, &[("tenant", "b")])]);
        (raw.stacks[0].scope, raw.stacks[1].scope, raw.stacks[3].scope) = (other, acme, other);
        raw.stacks[1].variance = 49.0;
        let kept = kept(&raw);
        let scopes: Vec<String> = kept.stacks().map(|stack| kept.scope(&stack).to_string()).collect();
        assert_eq!(scopes, ["tenant=b", "tenant=acme", "", "tenant=b"]);
        assert_eq!(kept.stacks().map(|stack| stack.stderr).collect::<Vec<_>>(), [0, 7, 0, 0]);
        let ids = |filter: &str| -> Vec<u32> {
            let filter = filter.parse().ok();
            kept.stacks_in(filter.as_ref()).map(|stack| stack.id).collect()
        };
        assert_eq!([ids("tenant:b"), ids("tenant:acme"), ids("job:b")], [vec![2, 5], vec![3], vec![]]);
        assert_eq!((kept.stacks_in(None).count(), kept.scopes.len()), (4, 2));
    }

    #[test]
    fn ten_thousand_small_stacks_take_six_bytes_each_at_most() {
        let stacks: Vec<_> = (2..10_002).map(|id| (id, 48 * u64::from(id), u64::from(id))).collect();
        assert!(kept(&raw(Instant::now(), &stacks)).packed.len() <= 60_000);
    }

    fn baselines_of_ages(window: u64, ages: &[u64]) -> (Baselines, Instant) {
        let start = Instant::now();
        let now = start + Duration::from_secs(100_000);
        let mut baselines = Baselines::new(Duration::from_secs(window), usize::MAX);
        for &age in ages {
            baselines.push(Arc::new(kept(&raw(now - Duration::from_secs(age), &[]))));
        }
        (baselines, now)
    }

    fn baseline_age(baselines: &Baselines, now: Instant) -> u64 {
        baselines.baseline(now).unwrap().age(now).as_secs()
    }

    #[test]
    fn the_baseline_is_the_newest_old_enough_or_the_oldest() {
        let (baselines, now) = baselines_of_ages(300, &[]);
        assert!(baselines.baseline(now).is_none());
        let (baselines, now) = baselines_of_ages(300, &[10]);
        assert_eq!(baseline_age(&baselines, now), 10);
        let (baselines, now) = baselines_of_ages(300, &[299, 200, 100]);
        assert_eq!(baseline_age(&baselines, now), 299);
        let (baselines, now) = baselines_of_ages(300, &[420, 360, 300, 240, 180]);
        assert_eq!(baseline_age(&baselines, now), 300);
        assert_eq!(baselines.at_least(Duration::from_secs(301), now).unwrap().age(now).as_secs(), 360);
        assert_eq!(baselines.at_least(Duration::from_secs(9_999), now).unwrap().age(now).as_secs(), 420);
    }

    #[test]
    fn it_holds_64_and_the_first_stays() {
        let ages: Vec<u64> = (0..200).map(|step| (200 - step) * 60).collect();
        let (baselines, now) = baselines_of_ages(300, &ages);
        assert_eq!(baselines.kept.len(), CAPACITY);
        assert_eq!(baselines.kept.front().unwrap().age(now).as_secs(), 64 * 60);
        assert_eq!(baselines.first.as_ref().unwrap().age(now).as_secs(), 200 * 60);
        let minutes: Vec<u64> = baselines.all().map(|kept| kept.age(now).as_secs() / 60).collect();
        assert_eq!((minutes.len(), &minutes[..3], minutes[64]), (CAPACITY + 1, &[200, 64, 63][..], 1));
        assert_eq!(baseline_age(&baselines, now), 300);
    }

    #[test]
    fn too_many_bytes_drop_the_oldest_but_never_the_baseline() {
        let start = Instant::now();
        let mut baselines = Baselines::new(Duration::from_secs(300), 20);
        let mut now = start;
        for step in 0..30 {
            now = start + Duration::from_secs(60 * step);
            baselines.push(Arc::new(kept(&raw(now, &[(2, 48, 1), (3, 48, 1)]))));
        }
        // Six snapshots of six bytes reach back exactly one window.
        assert_eq!(baselines.kept.len(), 6);
        assert_eq!(baseline_age(&baselines, now), 300);
    }

    #[test]
    fn due_every_fifth_of_the_window() {
        let (baselines, now) = baselines_of_ages(300, &[25]);
        assert_eq!(baselines.due_in(now), Duration::from_secs(35));
        let (baselines, now) = baselines_of_ages(300, &[61]);
        assert_eq!(baselines.due_in(now), Duration::ZERO);
        let (baselines, now) = baselines_of_ages(0, &[25]);
        assert_eq!(baselines.due_in(now), Duration::from_secs(35));
        assert_eq!(Baselines::new(Duration::ZERO, 0).due_in(now), Duration::ZERO);
    }
}
