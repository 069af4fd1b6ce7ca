//! Adds up the ids of each stack: it has several where its id was renewed, or its blocks were recorded in several ways.

use crate::record::raw_snapshot::{Addresses, Carried, Counts, RawStack, ScopeId};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Packed addresses and scopes of a stack, and whether its walk was cut short: equal for all its ids.
pub(crate) type StackKey<'a> = (&'a [u8], ScopeId, bool);

/// Returns the key of a stack.
pub(crate) fn key<'a>(stack: &RawStack, addresses: &'a Addresses) -> StackKey<'a> {
    (addresses.of(stack.addresses).packed(), stack.scope, stack.truncated)
}

/// Adds up the stacks with the same addresses and scopes, and what was allocated at earlier ids of theirs. Each stays where its first
/// id was, under the latest one.
pub(crate) fn merge_ids(stacks: Vec<RawStack>, addresses: &Addresses) -> Vec<RawStack> {
    let mut merged: Vec<RawStack> = Vec::with_capacity(stacks.len());
    let mut at: HashMap<StackKey<'_>, usize> = HashMap::with_capacity(stacks.len());
    for mut stack in stacks {
        let Carried { bytes, blocks } = std::mem::take(&mut stack.carried);
        stack.counts += Counts {
            allocated_bytes: bytes,
            allocated_blocks: blocks,
            freed_bytes: bytes,
            freed_blocks: blocks,
        };
        match at.entry(key(&stack, addresses)) {
            Entry::Vacant(place) => {
                place.insert(merged.len());
                merged.push(stack);
            }
            Entry::Occupied(place) => {
                let sum = &mut merged[*place.get()];
                sum.counts += stack.counts;
                sum.variance += stack.variance;
                (sum.id, sum.is_open) = (stack.id, sum.is_open || stack.is_open);
            }
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_one_stack_are_one() {
        let mut addresses = Addresses::default();
        let mut stack =
            |id, calls: &[usize], scope, [allocated_bytes, freed_bytes, carried]: [u64; 3]| RawStack {
                is_open: id > 9,
                addresses: addresses.push_stack(calls),
                scope,
                carried: Carried { bytes: carried, blocks: 0 },
                variance: 2.0,
                ..RawStack::sample(id, Counts { allocated_bytes, freed_bytes, ..Counts::default() })
            };
        let (none, some) = (ScopeId::NONE, ScopeId::sample(1));
        let stacks = vec![
            stack(5, &[1, 2], none, [100, 40, 7]),
            stack(6, &[1], none, [10, 0, 0]),
            stack(7, &[1, 2], some, [1, 0, 0]),
            stack(8, &[1, 2], none, [30, 30, 0]),
            stack(12, &[1, 2], none, [5, 1, 20]),
        ];
        let merged = merge_ids(stacks, &addresses);
        let sums: Vec<_> = merged
            .iter()
            .map(|one| {
                (one.id, one.is_open, one.counts.allocated_bytes, one.counts.freed_bytes, one.variance)
            })
            .collect();
        assert_eq!(sums, [(12, true, 162, 98, 6.0), (6, false, 10, 0, 2.0), (7, false, 1, 0, 2.0)]);
        assert!(merged.iter().all(|one| one.carried == Carried::default()));
    }
}
