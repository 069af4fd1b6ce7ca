//! An event of the inner allocator → counters: whether, in which counters and under which id it is counted.
//!
//! Runs inside the allocator, on any thread at any time. In the common case (a thread with a state, tracking on, not
//! suspended, a stack seen before) it touches nothing that threads share.
//!
//! ```text
//! allocation: state of the thread      size        stack          → function                     id in the tag     counter
//! budget left                          below 1 KiB –              try_fast                       unsampled id      thread's Unsampled
//! budget left                          sampled     –              try_fast_of_any_size, record_alloc_sampled (a resize) unsampled id thread's Unsampled
//! up to date                           exact       last of layout record_alloc → count_last      stack id          thread's Table
//! up to date                           exact       known layout   record_missed, record_by_second_layout → count_last stack id thread's Table
//! up to date, publication is due       exact       known layout   record_unknown → record_and_publish stack id      thread's Table
//! any other that records               any         –              record_unknown → record_alloc_slow → refresh_and_record, then:
//!                                      exact       known layout   record_exact → count_alloc     stack id          thread's Table
//!                                      exact       in the cache   walk_and_count → count_alloc   stack id          thread's Table
//!                                      exact       new            intern_and_count → intern_slow stack id          thread's Table
//!                                      sampled     not sampled    record_sampled                 unsampled id      thread's Unsampled
//!                                      sampled     sampled        record_sampled → count_sampled id | SAMPLED      SHARED, sampled_amounts
//!                                      any         no room for it record_unattributed            [unrecorded]      thread's Table
//! paused, or tracking off              any         –              record_unknown, record_suspended suspended_id: UNTRACKED  thread's Table
//! in heapgauge's own code              any         –              record_unknown, record_suspended suspended_id: OVERHEAD   thread's Table
//! in the map of stacks                 any         –              record_busy                    OVERHEAD          SHARED
//! busy (a signal handler)              any         –              record_busy → record_unattributed_shared [unrecorded] SHARED
//! no state (begins, ends, no memory)   any         –              record_unattributed_shared     [unrecorded]      SHARED
//!
//! A count without a place in the thread's Table: count_alloc → count_alloc_slow → count_alloc_shared (SHARED).
//! The tag: write_tag, write_tag_slow; without memory for it, tag_lost counts the block as UNTRACKED instead.
//!
//! free: state of the thread            tag                        → function                     counter
//! any                                  thread's unsampled id      record_free, publish when due  thread's Unsampled
//! idle, change fits below the limit    stack id, this epoch       try_fast_free                  thread's Table
//! idle                                 UNTRACKED, OVERHEAD        record_free_other              thread's Table
//! idle                                 stack id, this epoch       record_free_other → record_free_and_publish thread's Table
//! any                                  stale                      record_free_other              none
//! any                                  id | SAMPLED               record_free_sampled → count_amounts SHARED, sampled_amounts
//! any, of a resize                     id | SAMPLED               count_free → count_free_sampled → count_amounts SHARED, sampled_amounts
//! any other                            any other                  record_free_slow → count_free  thread's Table, else SHARED
//!
//! resize: state of the thread          old → new                  → function                     counters
//! budget left                          unsampled → unsampled      try_fast_realloc               thread's Unsampled, both
//! records                              any                        record_realloc → take_resizing, record_alloc; then record_free or count_free
//! paused, or in heapgauge's own code   any                        record_realloc_slow → resize_suspended: same id, or sampled anew in record_resized
//! busy or no state                     any                        record_realloc_slow → record_busy or record_unattributed_shared, count_free
//! ```
//!
//! Where blocks are sampled, most are not: they are counted at one id for all of them. A sampled block is counted
//! twice: at its size at the first id of its stack, so that totals are exact, and by its weight at the three ids
//! after that: bytes, blocks, variance. That is rare, so it goes to the counters that threads share, whose words are
//! wide enough.

pub(crate) mod alloc;
pub(crate) mod capture;
mod check;
pub(crate) mod free;
mod intern;
pub(crate) mod realloc;
mod sampled;
#[cfg(test)]
mod tests;
pub(crate) mod write_tag;

use crate::base::hint::unlikely;
use crate::record::count::sampling::{self, Weight};
use crate::record::count::unsampled::Unsampled;
use crate::record::epoch;
use crate::record::stack_id::table::{self, IDS_PER_SAMPLED_STACK};
use crate::record::tag::{SAMPLED, UNTRACKED};
use crate::record::thread::{self, BUSY};

/// Returns the calling thread's counts of blocks that were not sampled, if a block with this tag belongs to them. Its
/// free is to be counted there, and [`publish`](free::publish) to be called where that says so.
///
/// Part of the program's own code, where one instruction finds the state.
#[inline(always)]
pub(crate) fn unsampled(tag: u64) -> Option<&'static Unsampled> {
    let unsampled = &thread::hot_state().unsampled;
    (unsampled.own_id() == tag).then_some(unsampled)
}

/// Returns the ids of a sampled block of this size, each with the amount that is counted there.
fn sampled_amounts(id: u32, size: usize, interval: u32) -> [(u32, u64); IDS_PER_SAMPLED_STACK as usize] {
    debug_assert!(id.is_multiple_of(IDS_PER_SAMPLED_STACK), "{id} is no first id of a sampled stack");
    let Weight { bytes, blocks, variance } = sampling::weight(size as u64, interval);
    [(id, size as u64), (id + 1, bytes), (id + 2, blocks), (id + 3, variance)]
}

/// Returns the sample interval of blocks of this id. `None` if it is stale, or no id of a sampled block. In an event.
fn interval_of(id: u32) -> Option<u32> {
    let recorded = (id >= epoch::base() && id < epoch::end_id()).then(|| table::recorded(id)).flatten();
    recorded.map(|recorded| recorded.interval).filter(|interval| *interval != 0)
}

/// Returns the bytes of a block with this tag in the live bytes of the present epoch.
#[inline(always)]
fn traced_bytes(tag: u32, size: usize) -> i64 {
    let is_traced = if unlikely(tag & SAMPLED != 0) {
        thread::in_event(|| interval_of(tag & !SAMPLED)).is_some()
    } else {
        tag >= epoch::base() && tag < epoch::end_id()
    };
    if is_traced { size as i64 } else { 0 }
}

/// A block that is about to change its size, for the peak: its old bytes are taken off in the same step as its new ones
/// are added.
#[derive(Clone, Copy)]
struct Resized {
    /// Its live bytes when they were looked up.
    bytes: i64,
    /// The id in its tag.
    id: u32,
}

impl Resized {
    /// No block: an allocation.
    const NONE: Resized = Resized { bytes: 0, id: 0 };

    fn new(tag: u32, size: usize) -> Resized {
        Resized { bytes: traced_bytes(tag, size), id: tag & !SAMPLED }
    }

    /// Returns its bytes in the sum of the epoch of this base: none where a `clear` has come after they were looked up.
    fn bytes_in(self, base: u32) -> i64 {
        if self.id >= base { self.bytes } else { 0 }
    }
}

/// Returns the bytes that a block counted at this id adds to the peak: none if it had to be counted as untracked.
fn live_bytes(id: u32, size: usize) -> i64 {
    if id == UNTRACKED { 0 } else { size as i64 }
}

/// Publishes a change of live bytes by a block with this tag, where no thread's state takes it.
fn publish_shared(tag: u32, change: i64) {
    let base = epoch::base();
    // Below the base, the block's epoch ended after its id was looked up.
    if tag & !SAMPLED >= base {
        epoch::publish(base, change);
    }
}

/// Adds a change of live bytes for the peak, by a block with this tag. The thread's state is made if it has none
/// because it has only freed so far; one that is busy is left alone.
fn change_live_bytes(tag: u32, change: i64) {
    if change == 0 {
        return;
    }
    let made = || thread::current_or_make().filter(|state| state.flags() & BUSY == 0);
    match thread::idle().or_else(made) {
        Some(state) => {
            let _busy = state.enter_idle();
            state.change(tag & !SAMPLED, change, 0);
        }
        None => publish_shared(tag, change),
    }
}
