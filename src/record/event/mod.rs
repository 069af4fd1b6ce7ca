//! An allocation or a free → counters: the decision whether, where and under which id.
//!
//! Runs inside the allocator, on any thread at any time. The common case, a thread with a state, on,
//! not silenced, and a stack met before, touches nothing that is shared.
//!
//! Where blocks are sampled, most are not: they are booked, as they are, at one id for all of them. A
//! block that is sampled is booked as it is too, at the first id of its stack, so that the totals are
//! exact; and by what it weighs at the three ids after it: bytes, blocks, variance. That is rare, so it
//! is booked in the counters that threads share, whose words are wide enough.

pub(crate) mod alloc;
pub(crate) mod capture;
pub(crate) mod free;
pub(crate) mod realloc;
#[cfg(test)]
mod tests;

use crate::base::hint::is_seldom;
use crate::record::count::sampling::{self, Weight};
use crate::record::count::unsampled::Unsampled;
use crate::record::epoch;
use crate::record::stack_id::table::{self, SUMS};
use crate::record::tag::{SAMPLED, UNTRACKED};
use crate::record::thread::{self, BUSY};

/// The calling thread's count of blocks that were not sampled, if one with this in its tag belongs to it. A free of
/// it is to be booked there, and [`publish`] to be called where that says so.
///
/// Part of the program's own code, where one instruction finds the state.
#[inline(always)]
pub(crate) fn unsampled(id: u32) -> Option<&'static Unsampled> {
    let unsampled = &thread::front().unsampled;
    (unsampled.id() == u64::from(id)).then_some(unsampled)
}

/// The ids of a sampled block of this size, each with what is booked there.
fn sums(id: u32, size: usize, interval: u32) -> [(u32, u64); SUMS as usize] {
    let Weight { bytes, blocks, variance } = sampling::weight(size as u64, interval);
    [(id, size as u64), (id + 1, bytes), (id + 2, blocks), (id + 3, variance)]
}

/// How often blocks of this id are sampled. `None` if it is stale, or no id of a sampled block.
fn interval_of(id: u32) -> Option<u32> {
    let recorded = (id >= epoch::base() && id < epoch::end_id()).then(|| table::recorded(id)).flatten();
    recorded.map(|recorded| recorded.interval).filter(|interval| *interval != 0)
}

/// The bytes that a block with this in its tag has in the live bytes of the present epoch.
#[inline(always)]
fn traced_bytes(tag: u32, size: usize) -> i64 {
    let is_traced = if is_seldom(tag & SAMPLED != 0) {
        interval_of(tag & !SAMPLED).is_some()
    } else {
        tag >= epoch::base() && tag < epoch::end_id()
    };
    if is_traced { size as i64 } else { 0 }
}

/// Bytes that a block booked as this counts for the peak: none if there was no place to book it but as untracked.
fn live_bytes(id: u32, size: usize) -> i64 {
    if id == UNTRACKED { 0 } else { size as i64 }
}

/// Books a change of live bytes for the peak. The thread's state is made if it has none because it has only freed so
/// far; one that is busy is left alone.
fn change_slow(change: i64) {
    if change == 0 {
        return;
    }
    match thread::current_or_make().filter(|state| state.quiet() & BUSY == 0) {
        Some(state) => {
            let _busy = state.enter(BUSY);
            state.change(change);
        }
        None => epoch::publish(epoch::base(), change),
    }
}
