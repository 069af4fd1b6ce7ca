//! Counts of the heap at one moment, kept for the answers of a page.
//!
//! Plain values for any thread; about ten bytes a stack.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use super::Report;
use super::baselines::{KeptCounts, KeptStack};
use crate::analyze::ages::StackNow;
use crate::analyze::leb128::{pack, unpack};
use crate::analyze::live::Live;
use crate::analyze::scope::ScopeFilter;
use crate::record::raw_snapshot::RawSnapshot;

/// Heap at one moment.
#[derive(Debug)]
pub(super) struct View {
    /// Report without sites.
    pub report: Arc<Report>,
    pub taken: Instant,
    pub kept: Arc<KeptCounts>,
    /// Freed bytes and blocks of each of its stacks, in their order, in LEB128.
    freed: Box<[u8]>,
}

impl View {
    /// Creates the view of a snapshot, from its report and its live counts.
    pub(super) fn new(report: Arc<Report>, raw: &RawSnapshot, kept: Arc<KeptCounts>) -> View {
        let mut freed = Vec::with_capacity(kept.bytes() / 2);
        for stack in &raw.stacks {
            if !Live::from(stack.counts).is_nothing() {
                pack(&mut freed, stack.counts.freed_bytes);
                pack(&mut freed, stack.counts.freed_blocks);
            }
        }
        View { report, taken: raw.taken, kept, freed: freed.into() }
    }

    /// Returns the counts of its stacks whose scope the filter admits; without a filter of all.
    pub(super) fn stacks_now(&self, filter: Option<&ScopeFilter>) -> Vec<StackNow> {
        let mut freed = &self.freed[..];
        let mut next = || unpack(&mut freed).unwrap_or(0);
        let mut admitted = self.kept.stacks_in(filter).map(|stack| stack.id).peekable();
        let stacks = self.kept.stacks().map(|KeptStack { id, live, .. }| {
            let freed = Live { bytes: next(), blocks: next() };
            StackNow { id, live, freed }
        });
        stacks.filter(|stack| admitted.next_if_eq(&stack.id).is_some()).collect()
    }
}
