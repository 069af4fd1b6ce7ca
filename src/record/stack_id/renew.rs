//! Renewal of ids: from now on the stack of a renewed id is met at a new one, so that the blocks of the old one are older than
//! the renewal.
//!
//! ```text
//! open ── renewed ──▶ its blocks are only freed ── nothing is live in the whole chunk ──▶ closed, see `life`
//!   ▲        │
//!   └────────┘ the stack is met, and there is no room for a new id
//! ```
//!
//! A thread that begins an event after the barrier of a renewal allocates no block at the id: it finds a new generation, and
//! forgets the id when it refreshes, as it does one that is closed; and the map of stacks takes the id for stale. An event that
//! began before may still allocate one block there. So may a resize in a suspended thread, at the block's own id.
//!
//! A renewal loses no bytes. Where there is no room for a new id when the stack is met, the old one opens again. That is decided under the
//! lock of the stack's part of the map. Should that lock stay locked, because a thread has left it by a jump, and the tables be full
//! as well, the blocks of the stack go to `[unrecorded]`, as those of a new one do.

use crate::base::atomics::Ordering;
use crate::record::count::counters::number;
use crate::record::epoch;
use crate::record::fork;
use crate::record::memory;
use crate::record::tag::SAMPLED;
use crate::record::thread::{self, BUSY, Reading, SHARED, process_barrier};

/// Ids are renewed below it: half of all, so that years of renewals leave ids to new stacks.
const LAST: u32 = SAMPLED / 2;

/// Returns whether ids can be renewed: tracking is on, the memory of ids that are over is given back, and at least a quarter of
/// the tables' limit is free.
pub(crate) fn can_renew() -> bool {
    epoch::is_on()
        && epoch::reclaims()
        && process_barrier::is_available()
        && !memory::is_short()
        && epoch::end_id() < LAST
}

/// Renews ids: those of the present epoch that a stack has and that are open. Of a stack whose blocks are sampled, the first id
/// stands for all. Returns how many were renewed: none where that is [not possible](can_renew) now. Never waits.
///
/// Costs a few nanoseconds an id; then each thread looks through its caches once, at its next event.
pub(crate) fn renew(ids: &[u32]) -> usize {
    let Some(state) = thread::current_or_make() else { return 0 };
    // A signal handler has interrupted an event, or the call would wait for a fork.
    if state.flags() & BUSY != 0 || !can_renew() || fork::is_closed() {
        return 0;
    }
    let Some(_inside) = fork::try_enter(state) else { return 0 };
    let _reading = Reading::new();
    let renewed = ids.iter().filter(|id| renew_one(**id)).count();
    if renewed > 0 {
        epoch::ids_closed();
        // Where it fails, threads find the new generation a moment later.
        process_barrier::in_all_threads();
    }
    renewed
}

/// Renews one id, in a reading; false where it is not open, or no stack has it.
fn renew_one(id: u32) -> bool {
    let is_present = id >= epoch::base() && id < epoch::end_id();
    let Some(chunk) = SHARED.chunk(number(id)).filter(|_| is_present) else { return false };
    // Acquire: as in `table::recorded`.
    !chunk.stack(id as usize).load(Ordering::Acquire).is_null() && chunk.life.renew(id as usize)
}
