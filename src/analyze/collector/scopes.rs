//! Sums live counts by key and value of their scopes, and chooses the pairs that are exported.
//!
//! Used under the collector's lock; costs a pass over the stacks, and nothing more where no scope was entered.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::baselines::KeptCounts;
use super::estimate::{Estimate, fit};
use super::grouping::Rows;
use super::state::State;
use crate::analyze::live::{Live, LiveChange};
use crate::analyze::scope::{OTHER, Pair, ScopeLabels};
use crate::record::raw_snapshot::{RawSnapshot, ScopeId};

/// Most pairs of one report, those of value `[other]` among them.
const MOST_PAIRS: usize = 25;
/// Most keys of one report: half of the rows are left for values, where each key has a rest.
const MOST_KEYS: usize = 12;
/// Most pairs that are followed; those that come later are in `[other]`.
const MOST_FOLLOWED: usize = 100;

/// Live blocks whose scope has this key with this value.
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// use heapgauge::{Collector, Scope};
///
/// let kept = Scope::new("tenant", "acme").in_scope(|| vec![1u8; 5_000]);
/// let report = Collector::new().collect();
/// let row = &report.scopes[0];
/// assert_eq!((row.key(), row.value(), row.live.now.bytes), ("tenant", "acme", 5_000));
/// # drop(kept);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ScopeRow {
    pair: Pair,
    /// Live blocks allocated there, now and in the baseline.
    pub live: LiveChange,
    /// Standard error of the live bytes where they are an [estimate](crate::docs::sampling), 0 where they are exact.
    pub live_stderr_bytes: u64,
}

impl ScopeRow {
    #[cfg(all(test, any(feature = "prometheus", feature = "prometheus-client")))]
    pub(crate) fn new(key: &str, value: &str, live: LiveChange) -> ScopeRow {
        ScopeRow { pair: (key.into(), value.into()), live, live_stderr_bytes: 0 }
    }

    /// Returns the key, such as `tenant`.
    ///
    /// # Examples
    ///
    /// ```
    /// for row in &heapgauge::Collector::new().collect().scopes {
    ///     println!("{}", row.key());
    /// }
    /// ```
    pub fn key(&self) -> &str {
        &self.pair.0
    }

    /// Returns the value, such as `acme`; `[other]` for the rest of the key.
    ///
    /// # Examples
    ///
    /// ```
    /// for row in &heapgauge::Collector::new().collect().scopes {
    ///     println!("{} = {} holds {} bytes", row.key(), row.value(), row.live.now.bytes);
    /// }
    /// ```
    pub fn value(&self) -> &str {
        &self.pair.1
    }
}

/// Sums by scope, each scope once.
type ByScope = Vec<(ScopeLabels, Estimate)>;

impl KeptCounts {
    /// Adds the stacks up by scope, those in none left out. `add` says at which moment they were live.
    fn by_scope(&self, add: fn(&mut Estimate, Live, f64)) -> ByScope {
        let mut sums: ByScope =
            self.scopes.iter().map(|labels| (labels.clone(), Estimate::default())).collect();
        if sums.is_empty() {
            return sums;
        }
        for stack in self.stacks() {
            if let Some((_, sum)) = stack.scope.and_then(|at| sums.get_mut(at)) {
                add(sum, stack.live, (stack.stderr as f64).powi(2));
            }
        }
        sums
    }
}

/// Sums by key and value, now and in the baseline.
#[derive(Default)]
pub(super) struct PairSums(BTreeMap<Pair, Estimate>);

impl PairSums {
    fn new(by_scope: impl Iterator<Item = (ScopeLabels, Estimate)>) -> PairSums {
        let mut sums: BTreeMap<Pair, Estimate> = BTreeMap::new();
        for (labels, sum) in by_scope {
            for pair in labels.pairs() {
                *sums.entry(pair.clone()).or_default() += sum;
            }
        }
        PairSums(sums)
    }

    /// Adds up the counts of two moments.
    #[cfg(any(feature = "http", test))]
    pub(super) fn between(now: &KeptCounts, then: &KeptCounts) -> PairSums {
        let then = then.by_scope(Estimate::add_then);
        PairSums::new(now.by_scope(Estimate::add_now).into_iter().chain(then))
    }

    /// Iterates over keys, values and sums, ascending.
    #[cfg(any(feature = "http", test))]
    pub(super) fn into_iter(self) -> impl Iterator<Item = (Pair, Estimate)> {
        self.0.into_iter()
    }

    /// Chooses the keys of most live bytes, and of those the pairs that have rows of their own: those of most bytes, as many as leave
    /// room for a row of the rest of each key. One that was chosen the last time is preferred by a tenth, as each pair that comes and goes
    /// costs series.
    fn choose(&self, last: &Chosen) -> Chosen {
        let preferred =
            |bytes: u64, is_known: bool| bytes.saturating_add(if is_known { bytes / 10 } else { 0 });
        let living = || self.0.iter().filter(|(_, sum)| sum.now.all.blocks > 0);
        let mut bytes: BTreeMap<&Arc<str>, u64> = BTreeMap::new();
        for ((key, _), sum) in living() {
            *bytes.entry(key).or_default() += sum.now.all.bytes;
        }
        let mut keys: Vec<(&Arc<str>, u64)> = bytes.into_iter().collect();
        keys.sort_by_key(|&(key, bytes)| (Reverse(preferred(bytes, last.keys.contains(key))), key));
        let keys: BTreeSet<Arc<str>> = keys.into_iter().take(MOST_KEYS).map(|(key, _)| key.clone()).collect();
        let mut pairs = Vec::new();
        // Number of pairs without a row of their own, by key.
        let mut rest: HashMap<&str, usize> = HashMap::new();
        for (pair, sum) in living().filter(|((key, _), _)| keys.contains(key)) {
            match *pair.1 == *OTHER {
                true => *rest.entry(&pair.0).or_default() += 1,
                false => pairs.push((preferred(sum.now.all.bytes, last.pairs.contains(pair)), pair)),
            }
        }
        pairs.sort_by_key(|&(weight, pair)| (Reverse(weight), pair));
        let mut chosen = pairs.len().min(MOST_PAIRS);
        for (_, (key, _)) in &pairs[chosen..] {
            *rest.entry(key).or_default() += 1;
        }
        while chosen > 0 && chosen + rest.len() > MOST_PAIRS {
            chosen -= 1;
            *rest.entry(&pairs[chosen].1.0).or_default() += 1;
        }
        // A rest of one pair has its name, in the same row.
        let is_alone = |pair: &Pair| rest.get(&*pair.0) == Some(&1);
        let chosen = (0..).zip(&pairs).filter(|(at, (_, pair))| *at < chosen || is_alone(pair));
        let pairs = chosen.map(|(_, &(_, pair))| pair.clone()).collect();
        Chosen { pairs, keys }
    }

    /// Returns the rows of these pairs, and of the rest of each key where `has_rest` says so; by key, most bytes first.
    fn rows(
        &self,
        own: &HashSet<Pair>,
        total: LiveChange,
        mut has_rest: impl FnMut(&Arc<str>, &Estimate) -> bool,
    ) -> Vec<ScopeRow> {
        let mut keys: BTreeMap<&Arc<str>, OfKey<'_>> = BTreeMap::new();
        for pair in own.iter().filter(|pair| !self.0.contains_key(*pair)) {
            keys.entry(&pair.0).or_default().rows.push((pair, Estimate::default()));
        }
        for (pair, sum) in &self.0 {
            let of_key = keys.entry(&pair.0).or_default();
            match own.contains(pair) {
                true => of_key.rows.push((pair, *sum)),
                false => of_key.rest += *sum,
            }
        }
        let mut all = Vec::new();
        for (key, OfKey { mut rows, rest }) in keys {
            rows.sort_by_key(|(pair, sum)| (Reverse(sum.now.all.bytes), *pair));
            let pairs = rows.iter().map(|(pair, _)| (*pair).clone());
            let pairs: Vec<Pair> = pairs.chain([(key.clone(), OTHER.into())]).collect();
            let mut sums: Vec<Estimate> = rows.into_iter().map(|(_, sum)| sum).chain([rest]).collect();
            // No more than all there is, as where sites are estimates.
            fit(&mut sums, total);
            if !has_rest(key, &rest) {
                sums.pop();
            }
            all.extend(pairs.into_iter().zip(sums).map(|(pair, sum)| ScopeRow {
                pair,
                live: sum.change(),
                live_stderr_bytes: sum.stderr(),
            }));
        }
        all
    }
}

/// Sums of one key: of the pairs that have rows of their own, and of the rest.
#[derive(Default)]
struct OfKey<'a> {
    rows: Vec<(&'a Pair, Estimate)>,
    rest: Estimate,
}

/// Pairs that have rows of their own, and keys that have a row for their rest.
#[derive(Debug, Default)]
struct Chosen {
    pairs: HashSet<Pair>,
    keys: BTreeSet<Arc<str>>,
}

/// Pairs that were chosen the last time, and those that are followed because a recorder keeps every series.
#[derive(Debug, Default)]
pub(super) struct ScopeChoice {
    chosen: Chosen,
    is_following: bool,
    followed: HashSet<Pair>,
    /// Keys whose rest had a row once.
    followed_rests: BTreeSet<Arc<str>>,
}

impl ScopeChoice {
    /// Follows pairs from now on. True if it did not before.
    #[cfg(any(feature = "prometheus", test))]
    pub(super) fn follow(&mut self) -> bool {
        !std::mem::replace(&mut self.is_following, true)
    }

    /// Returns the chosen rows, and those of all pairs that are followed.
    fn rows(&mut self, sums: &PairSums, total: LiveChange) -> Rows<ScopeRow> {
        self.chosen = sums.choose(&self.chosen);
        let Chosen { pairs, keys } = &self.chosen;
        let chosen = sums.rows(pairs, total, |key, rest| keys.contains(key) && rest.now.all.blocks > 0);
        let followed = self.followed_rows(sums, total);
        (chosen, followed)
    }

    /// Returns the rows of all pairs that are followed, the chosen ones among them.
    pub(super) fn followed_rows(&mut self, sums: &PairSums, total: LiveChange) -> Vec<ScopeRow> {
        if !self.is_following {
            return Vec::new();
        }
        let mut new: Vec<&Pair> = self.chosen.pairs.difference(&self.followed).collect();
        new.sort_unstable();
        new.truncate(MOST_FOLLOWED.saturating_sub(self.followed.len()));
        let new: Vec<Pair> = new.into_iter().cloned().collect();
        self.followed.extend(new);
        let (rests, keys) = (&mut self.followed_rests, &self.chosen.keys);
        sums.rows(&self.followed, total, |key, rest| {
            if keys.contains(key) && rest.now.all.blocks > 0 && !rests.contains(key) {
                rests.insert(key.clone());
            }
            rests.contains(key)
        })
    }
}

impl State {
    /// Returns the rows of the chosen pairs, and those of all followed pairs.
    pub(super) fn scope_rows(
        &mut self,
        raw: &RawSnapshot,
        baseline: Option<&KeptCounts>,
        total: LiveChange,
    ) -> Rows<ScopeRow> {
        let mut now: HashMap<ScopeId, Estimate> = HashMap::new();
        for stack in raw.stacks.iter().filter(|stack| stack.scope != ScopeId::NONE) {
            let live = Live::from(stack.counts);
            // A scope that holds nothing may have lost its names.
            if !live.is_nothing() {
                now.entry(stack.scope).or_default().add_now(live, stack.variance);
            }
        }
        let labels = &mut self.labels;
        let now = now.into_iter().map(|(scope, sum)| (labels.labels(&raw.scopes, scope), sum));
        let then = baseline.map(|kept| kept.by_scope(Estimate::add_then)).unwrap_or_default();
        let sums = PairSums::new(now.chain(then));
        self.scopes.rows(&sums, total)
    }
}
