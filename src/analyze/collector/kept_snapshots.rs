//! Snapshots kept on request, by number.
//!
//! Used under the collector's lock; keeping one costs as much as a [`Kept`].
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::baselines::Kept;

/// Kept snapshots, oldest first. If they are too many, too large together or too old, the oldest is dropped.
#[derive(Debug)]
pub(crate) struct Shelf {
    kept: VecDeque<(u64, Arc<Kept>)>,
    next: u64,
    capacity: usize,
    longest: Duration,
    max_bytes: usize,
}

impl Shelf {
    pub(crate) fn new(capacity: usize, longest: Duration, max_bytes: usize) -> Shelf {
        Shelf { kept: VecDeque::new(), next: 1, capacity, longest, max_bytes }
    }

    /// Keeps a snapshot and returns its number, which is never given again.
    pub(crate) fn put(&mut self, kept: Arc<Kept>) -> u64 {
        self.forget_old(kept.taken);
        let is_too_much = |others: &VecDeque<(u64, Arc<Kept>)>| {
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
    pub(crate) fn get(&mut self, number: u64, now: Instant) -> Option<Arc<Kept>> {
        self.forget_old(now);
        self.kept.iter().find(|(kept, _)| *kept == number).map(|(_, kept)| kept.clone())
    }

    /// Iterates over the snapshots kept at `now`, oldest first.
    pub(crate) fn all(&mut self, now: Instant) -> impl Iterator<Item = &(u64, Arc<Kept>)> {
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
        let is_old = |kept: &Kept| now.saturating_duration_since(kept.taken) > self.longest;
        while self.kept.front().is_some_and(|(_, oldest)| is_old(oldest)) {
            self.kept.pop_front();
        }
    }
}
