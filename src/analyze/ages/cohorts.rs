//! Chooses the ids that are renewed: those whose blocks cannot be told apart by age, and hold much.
//!
//! From the counts of a stack alone it is not known which of its blocks were freed, the old or the young. So a stack that allocates and frees
//! gets a new id from time to time: the blocks under an id that was renewed, a *cohort*, are from the time between two renewals. An id is
//! renewed where it holds half a percent of all live bytes and its stack turns over. A boundary between ages is within one cohort of
//! each stack, so that no stack is uncertain by more than half a percent of the heap, or by the bytes of one round.
//!
//! A stack turns over once an id of it has freed half a percent of the heap and holds as much. It counts as one as long as its blocks
//! are freed, and for an hour more at most: the next cohort is renewed before any of it has been freed, or cohorts of a cache would be as
//! wide as the time for which it holds its entries.
//!
//! A cohort whose blocks leak is never empty, and neighbours of it are not given back, see `stack_id::life`. So rounds become rarer by the number of
//! cohorts that are held, empty or not: their number grows with the
//! logarithm of time, and ends at a fixed one.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

use crate::record::raw_snapshot::{RawSnapshot, RawStack};

/// Most ids renewed in one round.
const MOST: usize = 256;
/// Most cohorts held at a time, by the limit of heapgauge's memory too: a cohort takes a few hundred bytes.
const MOST_HELD: u64 = 16_384;
const BYTES_OF_ONE: u64 = 4_096;
/// One in so many live bytes is much.
const MUCH: u64 = 200;
/// Number of looks without a free after which a stack does not turn over any more.
const FORGOTTEN_AFTER: u32 = 240;
/// Rounds are rarer by this power of *e* where as many cohorts are held as may be.
const RARER: f64 = 8.0;

/// Stack that turns over.
#[derive(Clone, Copy, Debug)]
struct Turning {
    /// Freed bytes of its cohorts, and the time of the look at which these were last others.
    freed: u64,
    changed: Instant,
    /// Allocated bytes of its open id.
    allocated: (u32, u64),
}

/// Stacks that turn over, by a hash, and the time of the last round.
#[derive(Debug)]
pub(crate) struct Cohorts {
    turning: BTreeMap<u64, Turning>,
    last_round: Option<Instant>,
}

/// Open id that holds much.
struct Candidate<'a> {
    stack: &'a RawStack,
    key: u64,
}

impl Cohorts {
    pub(crate) const fn new() -> Cohorts {
        Cohorts { turning: BTreeMap::new(), last_round: None }
    }

    /// Forgets all stacks.
    pub(crate) fn clear(&mut self) {
        self.turning.clear();
    }

    /// Returns the ids to renew at a look. `limit`: how many bytes heapgauge may hold.
    pub(crate) fn choose(&mut self, raw: &RawSnapshot, spacing: Duration, limit: u64) -> Vec<u32> {
        let live: u64 = raw.stacks.iter().map(|stack| stack.counts.live_bytes()).sum();
        let much = (live / MUCH).max(1);
        let mut freed: BTreeMap<u64, u64> = BTreeMap::new();
        let (mut held, mut candidates) = (0, Vec::new());
        for stack in &raw.stacks {
            let counts = stack.counts;
            let holds_much = stack.is_open && counts.live_bytes() >= much;
            if stack.is_open && !holds_much {
                continue;
            }
            let key = key(raw, stack);
            *freed.entry(key).or_default() += counts.freed_bytes;
            if holds_much {
                candidates.push(Candidate { stack, key });
            } else {
                held += 1;
            }
        }
        candidates.retain(|candidate| self.is_turning(candidate, much, raw.taken));
        self.look_at_frees(&freed, raw.taken, spacing);
        let is_due = self.last_round.is_none_or(|last| {
            raw.taken.saturating_duration_since(last) >= rarer(spacing, held, most_held(limit))
        });
        if !is_due || held >= most_held(limit) || candidates.is_empty() {
            return Vec::new();
        }
        self.last_round = Some(raw.taken);
        candidates
            .sort_by_key(|candidate| (Reverse(candidate.stack.counts.live_bytes()), candidate.stack.id));
        candidates.iter().take(MOST).map(|candidate| candidate.stack.id).collect()
    }

    /// Returns whether the stack of an id turns over and has allocated since the last look.
    fn is_turning(&mut self, candidate: &Candidate<'_>, much: u64, now: Instant) -> bool {
        let Candidate { stack, key } = *candidate;
        let allocated = (stack.id, stack.counts.allocated_bytes);
        match self.turning.get_mut(&key) {
            Some(turning) => std::mem::replace(&mut turning.allocated, allocated) != allocated,
            None => {
                let freed = stack.counts.freed_bytes;
                if freed >= much {
                    self.turning.insert(key, Turning { freed, changed: now, allocated });
                }
                freed >= much
            }
        }
    }

    /// Forgets the stacks that have no cohort any more, or whose blocks have not been freed for long.
    fn look_at_frees(&mut self, freed: &BTreeMap<u64, u64>, now: Instant, spacing: Duration) {
        self.turning.retain(|key, turning| {
            if let Some(&freed) = freed.get(key)
                && std::mem::replace(&mut turning.freed, freed) != freed
            {
                turning.changed = now;
            }
            now.saturating_duration_since(turning.changed) < spacing * FORGOTTEN_AFTER
        });
    }
}

/// Returns the most cohorts that may be held.
fn most_held(limit: u64) -> u64 {
    (limit / BYTES_OF_ONE).min(MOST_HELD)
}

/// Returns the time between two rounds where so many cohorts are held, of at most `most`.
fn rarer(spacing: Duration, held: u64, most: u64) -> Duration {
    // A look is never left out for being a little early.
    let early = spacing / 4;
    spacing.mul_f64((RARER * held as f64 / most.max(1) as f64).min(RARER).exp()).saturating_sub(early)
}

/// Returns a hash of a stack in its scope: the same for all its ids.
fn key(raw: &RawSnapshot, stack: &RawStack) -> u64 {
    let mut hasher = DefaultHasher::new();
    raw.addresses.of(stack.addresses).for_each(|address| address.hash(&mut hasher));
    (stack.truncated, stack.scope).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
