//! Names the stacks of a snapshot in slices of time, those that hold most first.
#![forbid(unsafe_code)]

use super::baselines::KeptCounts;
use super::state::State;
use crate::analyze::symbols::Unnamed;
use crate::record::raw_snapshot::RawSnapshot;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// Time that naming may take in one go, for callers with other things to do in between. Shorter would not
/// be quicker: each go opens the line tables anew, which takes some 50 ms in a large binary.
pub(super) const NAMING_SLICE: Duration = Duration::from_millis(100);
/// Longest slice where opening them takes longer than that: a go may take twice as long as opening, up to this.
const LONGEST_SLICE: Duration = Duration::from_secs(1);

/// Returns the most recent calls of a stack: about as many as lie between the allocator and the line that asked for
/// the block.
fn recent(addresses: &[usize]) -> [usize; CALLS] {
    std::array::from_fn(|at| addresses.get(at).copied().unwrap_or(0))
}
const CALLS: usize = 8;
/// One in so many bytes ever allocated is much: no more stacks than this can have so many.
const MUCH: u64 = 1_000;

impl State {
    #[cfg(any(feature = "prometheus", test))]
    pub(super) fn name_slice(&mut self) -> bool {
        !self.unnamed.is_empty() && self.name_for(self.slice) && !self.unnamed.is_empty()
    }

    /// Names stacks for `budget`. False: no more can be named.
    pub(super) fn name_for(&mut self, budget: Duration) -> bool {
        let mut unnamed = std::mem::take(&mut self.unnamed);
        let more = self.name(&mut unnamed, budget);
        self.unnamed = unnamed;
        more
    }

    pub(super) fn name(&mut self, unnamed: &mut Vec<Unnamed>, budget: Duration) -> bool {
        let begun = self.source.now();
        let progress = self.source.resolve(&mut unnamed.iter().rev().map(AsRef::as_ref), budget);
        let spent = self.source.now().saturating_duration_since(begun);
        if spent > budget.saturating_mul(2) {
            self.slice = self.slice.max(spent.saturating_mul(2).min(LONGEST_SLICE));
        }
        if progress.named == progress.total {
            unnamed.clear();
        } else {
            // Those named are not only the first: later ones may share all their addresses.
            let source = &self.source;
            unnamed.retain(|stack| source.site(stack.id, stack.as_ref()).is_none());
        }
        progress.more
    }

    /// Looks up the names of stacks that have none here yet, and lists those that have none at all. A
    /// stack needs one that holds memory now, or did `then`: else its site's delta would lack it. So does one that has allocated much and
    /// holds nothing, for the bytes that its site has ever allocated.
    pub(super) fn adopt_names(&mut self, raw: &RawSnapshot, then: Option<&KeptCounts>) {
        let mut then = then.into_iter().flat_map(KeptCounts::stacks).map(|stack| stack.id).peekable();
        let mut unnamed = Vec::new();
        // A leak may come from very many stacks, none of them large: those that share their most recent calls are named
        // together, one of each group first.
        let mut groups: HashMap<[usize; CALLS], u64> = HashMap::new();
        let much = (raw.totals.allocated_bytes / MUCH).max(1);
        for stack in &raw.stacks {
            // Both ascend.
            while then.next_if(|id| *id < stack.id).is_some() {}
            let is_live = stack.counts.live_blocks() > 0 || stack.counts.live_bytes() > 0;
            let is_wanted = is_live || stack.counts.allocated_bytes >= much || then.peek() == Some(&stack.id);
            if !is_wanted || self.names.get(stack.id).is_some() {
                continue;
            }
            let addresses = raw.addresses.to_vec(stack.addresses);
            match self.source.site(stack.id, &addresses) {
                Some(site) => self.names.insert(stack.id, site),
                None => {
                    *groups.entry(recent(&addresses)).or_default() += stack.counts.live_bytes();
                    let addresses = addresses.into_boxed_slice();
                    unnamed.push((stack.counts.live_bytes(), Unnamed { id: stack.id, addresses }));
                }
            }
        }
        unnamed.sort_by_key(|(live_bytes, stack)| (groups[&recent(&stack.addresses)], *live_bytes));
        // The largest of each group, in the same order, comes before all others.
        let mut met = HashSet::new();
        let (mut first, mut others) = (Vec::new(), Vec::new());
        for (_, stack) in unnamed.into_iter().rev() {
            if met.insert(recent(&stack.addresses)) { first.push(stack) } else { others.push(stack) }
        }
        self.unnamed = others.into_iter().rev().chain(first.into_iter().rev()).collect();
    }
}
