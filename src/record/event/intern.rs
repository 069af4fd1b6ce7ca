//! Interns stacks that are new to a thread.

use super::alloc::{count_alloc, record_unattributed};
use crate::record::dropped::{self, Reason};
use crate::record::scope::id::ScopeId;
use crate::record::scope::slots;
use crate::record::stack_id::fingerprint::Fingerprint;
use crate::record::stack_id::reclaim;
use crate::record::stack_id::table;
use crate::record::thread::{INTERNING, OwnerState, ThreadState};

/// Interns a stack that this thread's cache does not hold, and counts the block at its id.
#[cold]
#[inline(never)]
pub(super) fn intern_and_count(
    state: &'static ThreadState,
    owner: &mut OwnerState,
    stack: Fingerprint,
    size: usize,
) -> u32 {
    match intern_slow(state, owner, stack, 0) {
        Some(id) => count_alloc(state, id, size),
        None => record_unattributed(Some(state), size),
    }
}

/// Interns the stack in the buffer, whose blocks are sampled every `interval` bytes or, at 0, all recorded. `None`,
/// counted, where there is no room for it. The budget is sealed meanwhile: a block of the map of stacks is not the
/// program's.
#[cold]
#[inline(never)]
pub(super) fn intern_slow(
    state: &'static ThreadState,
    owner: &mut OwnerState,
    stack: Fingerprint,
    interval: u32,
) -> Option<u32> {
    let interned = {
        let _interning = state.enter(INTERNING);
        match table::intern(state, &mut owner.buffer, stack.hash(), interval) {
            Err(Reason::Scopes | Reason::Memory) if !owner.buffer.header.scope.is_none() => {
                intern_elsewhere(state, owner, stack, interval)
            }
            interned => interned,
        }
    };
    match interned {
        Ok(id) => {
            owner.cache.insert(stack, id);
            reclaim::note_interned(Some(id));
            Some(id)
        }
        Err(reason) => {
            dropped::count(reason);
            reclaim::note_interned(None);
            None
        }
    }
}

/// Interns a stack for which there is no room in its scopes: with `[other]` as the value of each of their keys, else without a scope.
/// Counts a dropped scope where one of the two succeeds. The caller counts the failure of both.
#[cold]
#[inline(never)]
fn intern_elsewhere(
    state: &'static ThreadState,
    owner: &mut OwnerState,
    stack: Fingerprint,
    interval: u32,
) -> Result<u32, Reason> {
    let scope = owner.buffer.header.scope;
    let mut intern_in = |instead: ScopeId| {
        owner.buffer.header.scope = instead;
        let stack = stack.in_scope(instead.term().wrapping_sub(scope.term()));
        table::intern(state, &mut owner.buffer, stack.hash(), interval)
    };
    let id = intern_in(slots::other_of(scope)).or_else(|_| intern_in(ScopeId::NONE))?;
    dropped::count(Reason::Scopes);
    Ok(id)
}
