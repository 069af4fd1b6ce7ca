//! Keys and values → the number of their combination, and back. One lock, which no allocation of the program ever takes.
//!
//! A combination is known by a hash of its keys and values. Where two have one hash, the later one takes the place of the earlier,
//! which stays until it is over; the program would get a second slot for it.
//!
//! Readers keep the names of combinations that end meanwhile, see [`Kept`].

use crate::base::atomics::{AtomicUsize, Ordering};
use crate::base::ready_hasher::ReadyHasher;
use crate::base::splitmix::{self, INCREMENT};
use crate::record::dropped::{self, Reason};
use crate::record::fork::Once;
use crate::record::fork::mutex::ForkMutex;
use crate::record::scope::id::ScopeId;
use crate::record::scope::names::{Names, Pair, Pairs, ScopeNames, are, to_names};
use crate::record::scope::slot::Candidate;
use crate::record::scope::slots::{self, COMBINATIONS, OTHERS};
use crate::record::thread::{INTERNAL, Suspension};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, RandomState};

/// A combination that has a slot.
struct Named {
    id: ScopeId,
    hash: u64,
    names: Names,
}

/// The combinations.
struct Table {
    /// Place of the slot, by hash.
    by_hash: HashMap<u64, usize, BuildHasherDefault<ReadyHasher>>,
    /// By place of the slot.
    named: Vec<Option<Named>>,
    /// Those with `[other]` as values, by the place of the slot behind all others.
    others: Vec<Named>,
    /// Free slots that were taken before, in the order in which they became free.
    free: VecDeque<usize>,
    /// Combinations that were new or found no slot since the last pass in vain.
    since_pass: usize,
    /// Combinations without a holder that this pass has left.
    left: usize,
    /// Names of combinations that ended while there were readers.
    ended: BTreeMap<ScopeId, Names>,
}

static TABLE: ForkMutex<Table> = ForkMutex::new(Table {
    by_hash: HashMap::with_hasher(BuildHasherDefault::new()),
    named: Vec::new(),
    others: Vec::new(),
    free: VecDeque::new(),
    since_pass: LEAST_BETWEEN,
    left: 0,
    ended: BTreeMap::new(),
});

/// Readings that are under way.
static READINGS: AtomicUsize = AtomicUsize::new(0);

/// Names of this many combinations are kept for readers. Beyond them, blocks that a reader has met before they were freed are shown
/// without a scope.
const MOST_ENDED: usize = 4 * COMBINATIONS;

/// A pass that frees fewer slots is in vain. The next one for want of a slot comes after so many new combinations, or once so many
/// more have no holder, since it reads the counts of all stacks.
const LEAST_BETWEEN: usize = 64;

/// Result of [`intern`] where there is no slot.
pub(crate) struct Full {
    /// A pass may free some.
    pub is_pass_due: bool,
}

/// Returns whether the calling thread is in the middle of a change of the table, which a signal handler has interrupted.
pub(crate) fn is_changing() -> bool {
    TABLE.is_held()
}

/// Hashes keys and values, otherwise in each process: values may be those of a client.
fn hash(pairs: &[Pair<'_>]) -> u64 {
    static SEED: Once<u64> = Once::new();
    let seed = *SEED.get_or_make(|| RandomState::new().hash_one(0));
    let texts = |hash: u64, text: &str| {
        let (words, rest) = text.as_bytes().as_chunks::<8>();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        let words = words.iter().chain([&last]).map(|word| u64::from_le_bytes(*word));
        words.fold(hash ^ text.len() as u64, |hash, word| splitmix::mix(hash.wrapping_add(INCREMENT) ^ word))
    };
    pairs.iter().fold(seed, |hash, (key, value)| texts(texts(hash, key), value))
}

/// Returns the combination of these keys and values, ascending by key, held once more for the caller. [`ScopeId::NONE`] of none.
pub(crate) fn intern(pairs: &[Pair<'_>]) -> Result<ScopeId, Full> {
    if pairs.is_empty() {
        return Ok(ScopeId::NONE);
    }
    let hash = hash(pairs);
    let mut table = TABLE.lock();
    if let Some(id) = table.find(hash, pairs) {
        return Ok(if slots::hold(id) { id } else { ScopeId::NONE });
    }
    table.intern_new(hash, pairs)
}

/// Returns the combination of the same keys with `[other]` as values, where [`intern`] has found no slot. Counts that.
pub(crate) fn intern_other(pairs: &[Pair<'_>]) -> ScopeId {
    dropped::count(Reason::Scopes);
    let mut table = TABLE.lock();
    let _internal = Suspension::new(INTERNAL);
    let other = table.other(pairs).and_then(slots::id_at);
    other.filter(|id| slots::hold(*id)).unwrap_or_default()
}

/// Hands over the keys and values of a combination, none if it is over. `take` must not wait.
pub(crate) fn with_names<T>(id: ScopeId, take: impl FnOnce(Option<&Names>) -> T) -> T {
    if id.is_none() || is_changing() {
        return take(None);
    }
    let table = TABLE.lock();
    take(table.names(id))
}

/// Copies the keys and values of a combination; `None` for [`ScopeId::NONE`], and if it is over.
pub(crate) fn names(id: ScopeId) -> Option<Names> {
    with_names(id, |names| names.cloned())
}

/// Returns the number of slots that were ever taken, those of `[other]` apart.
pub(crate) fn taken() -> usize {
    TABLE.lock().named.len()
}

/// Notes that a pass would find nothing.
pub(crate) fn pass_in_vain() {
    TABLE.lock().note_vain_pass(0);
}

/// Frees the slots of combinations without a holder that no stack was recorded in. Returns how many.
pub(crate) fn free_unrecorded() -> usize {
    let mut table = TABLE.lock();
    let _internal = Suspension::new(INTERNAL);
    let free = (0..table.named.len()).filter(|at| slots::free_unrecorded(*at)).collect::<Vec<_>>();
    free.iter().for_each(|at| table.remove(*at));
    free.len()
}

/// Frees the slots of candidates of which nothing is live, by their places, those apart that were held meanwhile. Returns how many.
/// The pass has begun with `noted` candidates.
pub(crate) fn free(candidates: impl Iterator<Item = (usize, Candidate)>, noted: usize) -> usize {
    let mut table = TABLE.lock();
    let _internal = Suspension::new(INTERNAL);
    let mut freed = 0;
    for (at, candidate) in candidates {
        if slots::free(at, candidate) {
            table.remove(at);
            freed += 1;
        }
    }
    if freed < LEAST_BETWEEN {
        table.note_vain_pass(noted - freed);
    }
    freed
}

/// Forgets, in a forked child, readings of threads that it does not have.
#[cfg_attr(not(unix), allow(dead_code))]
pub(crate) fn forget_readings() {
    READINGS.store(0, Ordering::SeqCst);
}

/// Keeps the names of combinations that end, until it is dropped.
pub(crate) struct Kept(());

impl Kept {
    pub(crate) fn new() -> Kept {
        // SeqCst: a combination that ends after this is found among those kept.
        READINGS.fetch_add(1, Ordering::SeqCst);
        Kept(())
    }

    /// Copies the names of these combinations, of which some may be the same.
    pub(crate) fn names_of(&self, ids: impl Iterator<Item = ScopeId>) -> ScopeNames {
        let mut ids: Vec<ScopeId> = ids.filter(|id| !id.is_none()).collect();
        if ids.is_empty() {
            return ScopeNames::default();
        }
        ids.sort_unstable();
        ids.dedup();
        let table = TABLE.lock();
        ScopeNames::new(ids.into_iter().filter_map(|id| Some((id, table.names(id)?.clone()))))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let fewer = |readings: usize| Some(readings.saturating_sub(1));
        if READINGS.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer) == Ok(1) {
            let mut table = TABLE.lock();
            // Another one may have begun.
            if READINGS.load(Ordering::SeqCst) == 0 && !table.ended.is_empty() {
                let _internal = Suspension::new(INTERNAL);
                table.ended.clear();
            }
        }
    }
}

impl Table {
    /// Returns the combination in the slot at this place.
    fn at(&self, at: usize) -> Option<&Named> {
        match at.checked_sub(COMBINATIONS) {
            Some(other) => self.others.get(other),
            None => self.named.get(at)?.as_ref(),
        }
    }

    /// Finds a combination.
    fn find(&self, hash: u64, pairs: &[Pair<'_>]) -> Option<ScopeId> {
        let named = self.at(*self.by_hash.get(&hash)?)?;
        are(pairs, &named.names).then_some(named.id)
    }

    /// Returns the names of a combination.
    fn names(&self, id: ScopeId) -> Option<&Names> {
        let named = self.at(id.slot()).filter(|named| named.id == id);
        named.map(|named| &named.names).or_else(|| self.ended.get(&id))
    }

    /// Makes a combination that is not there.
    #[cold]
    #[inline(never)]
    fn intern_new(&mut self, hash: u64, pairs: &[Pair<'_>]) -> Result<ScopeId, Full> {
        let _internal = Suspension::new(INTERNAL);
        self.since_pass += 1;
        let other = self.other(pairs);
        self.insert(hash, pairs, other).ok_or_else(|| {
            let is_long_ago = self.since_pass > LEAST_BETWEEN;
            let without_holder = || slots::without_holder(self.named.len());
            Full { is_pass_due: is_long_ago || without_holder() >= self.left + LEAST_BETWEEN }
        })
    }

    /// Notes a pass that has left so many of the combinations that had no holder when it began.
    fn note_vain_pass(&mut self, left: usize) {
        (self.since_pass, self.left) = (0, left);
    }

    /// Returns the place of the combination of the same keys with `[other]` as values; makes it if there is room.
    fn other(&mut self, pairs: &[Pair<'_>]) -> Option<usize> {
        let others = Pairs::others(pairs);
        let hash = hash(others.as_slice());
        let known = self.by_hash.get(&hash).copied();
        if let Some(at) = known.filter(|at| *at >= COMBINATIONS) {
            return Some(at);
        }
        let at = COMBINATIONS + self.others.len();
        if self.others.len() == OTHERS {
            return None;
        }
        // Held for good.
        let id = slots::begin(at, at)?;
        self.by_hash.insert(hash, at);
        self.others.push(Named { id, hash, names: to_names(others.as_slice()) });
        Some(at)
    }

    /// Gives a combination a slot; `None` where there is none.
    fn insert(&mut self, hash: u64, pairs: &[Pair<'_>], other: Option<usize>) -> Option<ScopeId> {
        // It may be the one that was just made.
        if let Some(id) = self.find(hash, pairs) {
            return slots::hold(id).then_some(id);
        }
        let at = match self.free.pop_front() {
            Some(at) => at,
            None if self.named.len() < COMBINATIONS => {
                self.named.push(None);
                self.named.len() - 1
            }
            None => return None,
        };
        // A slot whose lives are used up stays away.
        let id = slots::begin(at, other.unwrap_or(0))?;
        self.by_hash.insert(hash, at);
        self.named[at] = Some(Named { id, hash, names: to_names(pairs) });
        Some(id)
    }

    /// Forgets the combination in a slot that was freed.
    fn remove(&mut self, at: usize) {
        if let Some(Named { id, hash, names }) = self.named.get_mut(at).and_then(Option::take) {
            if self.by_hash.get(&hash) == Some(&at) {
                self.by_hash.remove(&hash);
            }
            if READINGS.load(Ordering::SeqCst) != 0 && self.ended.len() < MOST_ENDED {
                self.ended.insert(id, names);
            }
            self.free.push_back(at);
        }
    }
}
