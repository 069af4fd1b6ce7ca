//! Records allocations of a size that is sampled.

use super::alloc::{record_alloc_slow, record_unattributed, try_fast_of_any_size};
use super::intern::intern_slow;
use super::{live_bytes, sampled_amounts};
use crate::record::count::counters::Direction;
use crate::record::count::sampling::SamplingConfig;
use crate::record::dropped::{self, Reason};
use crate::record::epoch::{self, Config};
use crate::record::stack_id::fingerprint::Fingerprint;
use crate::record::tag::SAMPLED;
use crate::record::thread::{BUSY, OwnerState, SHARED, ThreadState};
use crate::record::unwind::{self, Entrance, Registers};

/// Records a block of a size that is sampled, and returns its tag: counts it within the thread's budget, else decides
/// whether to sample it.
#[cold]
#[inline(never)]
pub(super) fn record_alloc_sampled(
    registers: &Registers,
    size: usize,
    config: &Config,
    entrance: Entrance,
) -> u32 {
    // A resized block may not have tried the budget yet.
    let passed = match entrance {
        Entrance::Reallocate => try_fast_of_any_size(size),
        _ => None,
    };
    passed.unwrap_or_else(|| record_alloc_slow(registers, size, config, None))
}

/// Decides whether a block is sampled, counts it and grants the next budget.
pub(super) fn record_sampled(
    state: &'static ThreadState,
    owner: &mut OwnerState,
    registers: &Registers,
    size: usize,
    resized: i64,
    base: u32,
    sampling: SamplingConfig,
) -> u32 {
    let unsampled = &state.hot.unsampled;
    let left = unsampled.remaining();
    if unsampled.id() != u64::from(epoch::unsampled_id(base)) {
        let id = epoch::unsampled_id(base);
        // Frees of such blocks by other threads must find a place.
        if !SHARED.make(id) {
            dropped::count(Reason::Memory);
            let id = record_unattributed(Some(state), size);
            state.change(id, live_bytes(id, size), resized);
            return id;
        }
        unsampled.begin(id);
    }
    let id = if state.sampler.decide(sampling, size, left) {
        let stack = unwind::walk(owner, *registers, None);
        let id =
            count_sampled(state, owner, stack.sampled_every(sampling.interval()), sampling.interval(), size);
        state.change(id & !SAMPLED, live_bytes(id, size), resized);
        id
    } else {
        let id = unsampled.allocate(size);
        if resized != 0 {
            // Published below, together with the block.
            state.add_change(-resized);
            state.unpublished.set_resized_in(base);
        }
        id
    };
    // A suspended thread has no budget. (A signal handler that suspends it after this revokes the budget.)
    unsampled.grant(if state.flags() == BUSY { state.sampler.next_budget() } else { 0 });
    state.publish_in(base);
    id
}

/// Counts a sampled block of the stack in the buffer.
fn count_sampled(
    state: &'static ThreadState,
    owner: &mut OwnerState,
    stack: Fingerprint,
    interval: u32,
    size: usize,
) -> u32 {
    let known = owner.cache.get(stack.check);
    let known = (known >= epoch::base()).then_some(known);
    match known.or_else(|| intern_slow(state, owner, stack, interval)) {
        Some(id) => {
            for (id, amount) in sampled_amounts(id, size, interval) {
                SHARED.add(id, Direction::Allocated, amount);
            }
            id | SAMPLED
        }
        None => record_unattributed(Some(state), size),
    }
}
