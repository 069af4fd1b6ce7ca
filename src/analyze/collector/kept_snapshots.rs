//! Snapshots kept on request, by number.
//!
//! Used under the collector's lock; keeping one costs as much as a [`KeptCounts`].
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::baselines::KeptCounts;

/// Kept snapshots, oldest first. If they are too many, too large together or too old, the oldest is dropped.
#[derive(Debug)]
pub(crate) struct KeptSnapshots {
    kept: VecDeque<(u64, Arc<KeptCounts>)>,
    next: u64,
    capacity: usize,
    longest: Duration,
    max_bytes: usize,
}

impl KeptSnapshots {
    pub(crate) fn new(capacity: usize, longest: Duration, max_bytes: usize) -> KeptSnapshots {
        KeptSnapshots { kept: VecDeque::new(), next: 1, capacity, longest, max_bytes }
    }

    /// Keeps a snapshot and returns its number, which is never given again.
    pub(crate) fn put(&mut self, kept: Arc<KeptCounts>) -> u64 {
        self.forget_old(kept.taken);
        let is_too_much = |others: &VecDeque<(u64, Arc<KeptCounts>)>| {
            let bytes: usize = others.iter().map(|(_, kept)| kept.bytes()).sum();
            others.len() >= self.capacity.max(1) || bytes.saturating_add(kept.bytes()) > self.max_bytes
        };
        while !self.kept.is_empty() && is_too_much(&self.kept) {
            self.kept.pop_front();
        }
        let number = self.next;
        self.next += 1;
        self.kept.push_back((number, kept));
        number
    }

    #[cfg(any(feature = "http", test))]
    pub(crate) fn get(&mut self, number: u64, now: Instant) -> Option<Arc<KeptCounts>> {
        self.forget_old(now);
        self.kept.iter().find(|(kept, _)| *kept == number).map(|(_, kept)| kept.clone())
    }

    /// Iterates over the snapshots kept at `now`, oldest first.
    pub(crate) fn all(&mut self, now: Instant) -> impl Iterator<Item = &(u64, Arc<KeptCounts>)> {
        self.forget_old(now);
        self.kept.iter()
    }

    /// Iterates over the numbers of the snapshots kept.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u64> + '_ {
        self.kept.iter().map(|(number, _)| *number)
    }

    pub(crate) fn clear(&mut self) {
        self.kept.clear();
    }

    #[cfg(any(feature = "http", test))]
    fn forget_old(&mut self, now: Instant) {
        let is_old = |kept: &KeptCounts| now.saturating_duration_since(kept.taken) > self.longest;
        while self.kept.front().is_some_and(|(_, oldest)| is_old(oldest)) {
            self.kept.pop_front();
        }
    }
}
