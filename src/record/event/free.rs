//! Records frees.

use super::{change_live_bytes, interval_of, sampled_amounts, traced_bytes, unsampled};
use crate::record::count::counters::{Direction, MOST};
use crate::record::dropped::{self, Reason};
use crate::record::epoch;
use crate::record::tag::{FIRST, SAMPLED};
use crate::record::thread::{self, BUSY, SHARED};
use crate::record::watermark;

/// Records the free of a block with this tag. The tag has 64 bits here, as the thread's unsampled id has, which it is compared
/// with: a conversion would cost each free an instruction.
#[inline(never)]
pub(crate) fn record_free(tag: u64, size: usize) {
    let id = tag as u32;
    match unsampled(tag) {
        Some(unsampled) if unsampled.free(size) => publish(),
        None if !try_fast_free(id, size) => record_free_other(id, size),
        _ => {}
    }
}

/// Counts the free of a block of a stack in an idle thread; else false, and nothing is changed.
///
/// Part of the program's own code, and calls nothing.
#[inline(always)]
pub(crate) fn try_fast_free(id: u32, size: usize) -> bool {
    // Ids at or above the base are of traced blocks.
    if id >= epoch::base()
        && let Some(state) = thread::idle()
        && state.fits((size as i64).wrapping_neg())
    {
        let _busy = state.enter_idle();
        if state.counters.add(id, Direction::Freed, size) {
            state.add_change((size as i64).wrapping_neg());
            return true;
        }
    }
    false
}

/// Records the free of a block that is not traced (any more), or that the fast path has not counted.
#[inline(never)]
fn record_free_other(id: u32, size: usize) {
    if id < FIRST {
        if let Some(state) = thread::idle()
            && size as u64 <= MOST
        {
            let _busy = state.enter_idle();
            if state.counters.add(id, Direction::Freed, size) {
                return;
            }
        }
    } else if id & SAMPLED != 0 {
        return record_free_sampled(id, size);
    } else if id < epoch::base() {
        // From before a `clear`, or while off: its epoch is over.
        return;
    }
    record_free_and_publish(id, size);
}

/// Counts the free of a block of a stack in an idle thread, and publishes the thread's live bytes with it.
#[inline(never)]
fn record_free_and_publish(id: u32, size: usize) {
    if id >= FIRST
        && size as u64 <= MOST
        && let Some(state) = thread::idle()
    {
        let _busy = state.enter_idle();
        if state.counters.add(id, Direction::Freed, size) {
            return state.change(id, (size as i64).wrapping_neg(), 0);
        }
    }
    record_free_slow(id, size);
}

/// Publishes this thread's unpublished bytes to the peak.
#[cold]
#[inline(never)]
pub(crate) fn publish() {
    // In a signal handler it is left to the next event.
    if let Some(state) = thread::idle() {
        let busy = state.enter_idle();
        state.publish();
        drop(busy);
        watermark::notify();
    }
}

/// Records a free in a thread of any state.
#[cold]
#[inline(never)]
fn record_free_slow(id: u32, size: usize) {
    change_live_bytes(id, -traced_bytes(id, size));
    count_free(id, size);
}

/// Counts a free whose bytes have been published to the peak.
#[inline(never)]
pub(super) fn count_free(id: u32, size: usize) {
    if id & SAMPLED != 0 {
        count_free_sampled(id & !SAMPLED, size);
        return;
    }
    if let Some(unsampled) = unsampled(id.into()) {
        return unsampled.free_published(size);
    }
    let state = thread::current_or_make().filter(|state| state.flags() & BUSY == 0);
    thread::in_event(|| {
        if (id >= FIRST && id < epoch::base()) || id >= epoch::end_id() {
            // Stale, or never given out: the program has written past the end of a block.
            return;
        }
        if let Some(state) = state
            && (size as u64 <= MOST && state.counters.add(id, Direction::Freed, size)
                || state.counters.add_slow(id, Direction::Freed, size))
        {
            return;
        }
        // Every id that is in a tag has a place here, made before the id was given out.
        if !SHARED.add(id, Direction::Freed, size as u64) {
            dropped::count(Reason::Memory);
        }
    });
}

/// Records the free of a sampled block with this tag.
#[cold]
#[inline(never)]
fn record_free_sampled(tag: u32, size: usize) {
    let (id, change) = (tag & !SAMPLED, (size as i64).wrapping_neg());
    if let Some(state) = thread::idle() {
        let _busy = state.enter_idle();
        if count_amounts(id, size) {
            state.change(id, change, 0);
        }
    } else if count_free_sampled(id, size) {
        change_live_bytes(tag, change);
    }
}

/// Counts the free of a sampled block of this id; false where the id is stale. The caller publishes its bytes to the peak.
#[cold]
fn count_free_sampled(id: u32, size: usize) -> bool {
    thread::in_event(|| count_amounts(id, size))
}

/// Counts the free of a sampled block, by the amounts it was allocated with; false where the id is stale. In an event.
fn count_amounts(id: u32, size: usize) -> bool {
    let Some(interval) = interval_of(id) else { return false };
    // Its own id last: where that has no live block, the ids of weights have none, see `life`.
    for (id, amount) in sampled_amounts(id, size, interval).into_iter().rev() {
        SHARED.add(id, Direction::Freed, amount);
    }
    true
}
