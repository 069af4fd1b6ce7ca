//! Counts of stacks by id, with the function of each: for tests of renewed ids.

use crate::analyze::snapshot::named;
use crate::analyze::symbols;
use crate::record::control;
use crate::record::raw_snapshot::{self, Counts, RawStack};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Blocks of one stack at one of its ids.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StackById {
    /// Id, never used again.
    pub id: u32,
    /// Blocks are still allocated at the id.
    pub is_open: bool,
    /// Function of its site.
    pub function: Arc<str>,
    /// Bytes allocated at the id.
    pub allocated_bytes: u64,
    /// Blocks allocated at it.
    pub allocated_blocks: u64,
    /// Bytes of these that were freed.
    pub freed_bytes: u64,
    /// Blocks of these that were freed.
    pub freed_blocks: u64,
    /// Bytes that were allocated at earlier ids of the stack that are over, and freed.
    pub carried_bytes: u64,
    /// Blocks of these.
    pub carried_blocks: u64,
}

/// Returns the counts of all stacks now, ascending by id. Functions that are known by id are taken from `functions`, and others added.
#[must_use]
pub fn stacks_by_id(functions: &mut HashMap<u32, Arc<str>>) -> Vec<StackById> {
    let _own = control::internal();
    let raw = raw_snapshot::take();
    let unknown = raw.stacks.iter().filter(|stack| !functions.contains_key(&stack.id));
    let unknown: Vec<(&RawStack, Vec<usize>)> =
        unknown.map(|stack| (stack, raw.addresses.to_vec(stack.addresses))).collect();
    let symbols = symbols::global();
    symbols.resolve(&mut unknown.iter().map(|(_, addresses)| addresses), Duration::MAX);
    for (stack, addresses) in unknown {
        let traceback = named(symbols, &addresses, raw.traceback_limit, stack.truncated);
        let function = traceback.frames().next().and_then(|frame| frame.function());
        functions.insert(stack.id, function.unwrap_or_default().into());
    }
    let by_id = raw.stacks.iter().map(|stack| {
        let Counts { allocated_bytes, allocated_blocks, freed_bytes, freed_blocks } = stack.counts;
        StackById {
            id: stack.id,
            is_open: stack.is_open,
            function: functions[&stack.id].clone(),
            allocated_bytes,
            allocated_blocks,
            freed_bytes,
            freed_blocks,
            carried_bytes: stack.carried.bytes,
            carried_blocks: stack.carried.blocks,
        }
    });
    by_id.collect()
}
