//! Ids of the present epoch whose stacks have died: no block of theirs is live, and they were not met for an hour, or the
//! tables are nearly full, or the scopes that they were met in are over, or they were renewed (see `renew`). `reclaim` gives their
//! memory back.
//!
//! ```text
//! open ── all 64 ids were given out, nothing is live ──▶ closed ── every thread was seen outside, nothing is live ──▶ over
//! ```
//!
//! # Closed
//!
//! A thread that begins an event after the barrier of the round that closes a chunk does not allocate at its ids:
//!
//! * by a frame layout or its stack cache, because a generation has begun. It forgets closed ids when it refreshes, before it looks
//!   one up;
//! * by the map of stacks, which takes an id that is closed, or over, for stale.
//!
//! The bits of renewed ids decide nothing here but that a chunk is closed early, and that only once each of its stacks was met
//! at a new id: so no stack is forgotten earlier than others, and its counts are carried on to the new id. An id that opens again just then (see
//! `table`) does so in an event that began before the barrier, or finds the chunk closed.
//!
//! One exception: a resize in a suspended thread counts an allocation at the block's own id. The block is live until the free of its
//! old size is counted, which comes later, so the chunk is not drained meanwhile.
//!
//! So once each thread was seen outside after that barrier, no new block is counted there; blocks may still be freed.
//!
//! # Over
//!
//! Freed is read first. Where it equals allocated, in blocks and bytes, over all threads and those that share counters, nothing was
//! live when the last free had been read; and as nothing is allocated any more, nothing will be. No tag holds the id,
//! no event looks for its counts, and the order of a free of a sampled block, its own id last, makes this hold for the ids of its
//! weights. The sums stay in the totals of the epoch.
//!
//! A reader takes a chunk without shared counters for nothing, looks whether they are still there after it has read, and finds by
//! [`changes`] whether sums went to the totals meanwhile.

use crate::base::atomics::{AtomicU64, AtomicUsize, Ordering};
use crate::record::count::chunk_table::PAGE;
use crate::record::count::counters::{Shared, number};
use crate::record::epoch;
use crate::record::memory;
use crate::record::stack_id::sums::{Counts, read_chunk};
use crate::record::stack_id::table;
use crate::record::stack_id::unlinked::Unlinked;
use crate::record::thread::SHARED;
use std::time::Instant;

/// Milliseconds after which a stack that was not met is taken for dead. Relaxed: a setting.
static IDLE: AtomicU64 = AtomicU64::new(60 * 60 * 1000);

/// Times that sums of ids that are over were about to go to the totals, or have gone.
static CHANGES: AtomicUsize = AtomicUsize::new(0);

/// Sets after how many milliseconds without being met a stack is taken for dead, for tests.
pub(crate) fn set_idle(milliseconds: u64) {
    IDLE.store(milliseconds, Ordering::Relaxed);
}

/// Returns a number that differs after sums have gone to the totals; `None` while they are on the way.
pub(crate) fn changes() -> Option<usize> {
    // Acquire: pairs with the Releases of `retire`. Counts that are read before the second of two calls are loaded with Acquire, too.
    let changes = CHANGES.load(Ordering::Acquire);
    changes.is_multiple_of(2).then_some(changes)
}

/// Numbers without a chunk that cost as much as a look at one. Where ids are renewed, most chunks of a page are soon given back.
const STEPS: usize = 32;

/// Result of a look at a chunk.
enum Found {
    /// Nothing to do.
    Nothing,
    /// It was closed.
    Closed,
    /// Its ids are over, with these sums.
    Over(u64, u64),
}

/// The looks at the chunks of the present epoch, in turn.
pub(super) struct Looks {
    /// Number of the chunk that is next.
    next: usize,
    begun: Option<Instant>,
    /// Number of a chunk that is unlinked from the shared table, and not yet from that of each thread.
    rest: Option<usize>,
}

impl Looks {
    pub(super) const fn new() -> Looks {
        Looks { next: 0, begun: None, rest: None }
    }

    /// Looks at so many chunks at most, passing numbers without one by, and unlinks those whose ids are over, so many at most. Returns
    /// whether a chunk was closed.
    pub(super) fn look(&mut self, most: usize, mut most_over: usize, unlinked: &mut Unlinked) -> bool {
        if let Some(at) = self.rest {
            if !unlinked.unlink_own(at) {
                return false;
            }
            self.rest = None;
        }
        let base = epoch::base();
        if base == u32::MAX {
            return false;
        }
        // Neither the ids that every epoch has nor those that are yet to be given out.
        let (begin, end) = (number(epoch::unsampled_id(base)) + 1, number(epoch::end_id()));
        let now = self.begun.get_or_insert_with(Instant::now).elapsed().as_millis() as u64;
        let before = self.next;
        let mut has_closed = false;
        // Once around at most: a chunk that is closed is looked at again in another round, after a barrier.
        let mut rest = end.saturating_sub(begin);
        let mut steps = most * STEPS;
        while steps > 0 && rest > 0 {
            if !(begin..end).contains(&self.next) {
                self.next = begin;
            }
            let at = self.next;
            if at.is_multiple_of(PAGE) && at + PAGE <= end && SHARED.is_empty_page(at) {
                if !unlinked.unlink_page(at) {
                    break;
                }
                self.next += PAGE;
                rest = rest.saturating_sub(PAGE);
                steps = steps.saturating_sub(STEPS);
                continue;
            }
            let is_there = SHARED.chunk(at).is_some();
            steps = steps.saturating_sub(if is_there { STEPS } else { 1 });
            match self.look_at(at, now) {
                Found::Nothing => {}
                Found::Closed => has_closed = true,
                Found::Over(bytes, blocks) => {
                    if most_over == 0 {
                        break;
                    }
                    most_over -= 1;
                    if !retire(base, bytes, blocks, || unlinked.unlink_shared(at, true)) {
                        break;
                    }
                    if !unlinked.unlink_own(at) {
                        self.rest = Some(at);
                        break;
                    }
                }
            }
            self.next += 1;
            rest -= 1;
        }
        if has_closed {
            epoch::ids_closed();
            // They are looked at again in the next round.
            self.next = before;
        }
        has_closed
    }

    /// Looks at one chunk.
    fn look_at(&self, at: usize, now: u64) -> Found {
        let Some((shared, counts)) = SHARED.chunk(at).zip(read_chunk(at)) else { return Found::Nothing };
        let life = &shared.life;
        let is_drained = counts.iter().all(Counts::is_drained);
        let is_idle = self.is_idle(shared, &counts, now);
        if life.is_closed() {
            // The round that closed it has ended.
            if is_drained {
                let (bytes, blocks) = sums_of_stacks(shared, &counts);
                return Found::Over(bytes, blocks);
            }
        } else if is_drained
            && (is_idle || table::are_of_ended_scopes(shared) || table::are_renewed(shared, at))
        {
            life.close();
            return Found::Closed;
        }
        Found::Nothing
    }

    /// Returns whether the stacks of a chunk were not met for as long as they may, and notes when they were.
    fn is_idle(&self, shared: &Shared, counts: &[Counts], now: u64) -> bool {
        let life = &shared.life;
        let blocks = counts.iter().fold(0u64, |sum, counts| sum.wrapping_add(counts.allocated_blocks));
        // Ids that are not yet counted at look idle, too: so 0, which a fresh chunk has, is never noted.
        if life.met.load(Ordering::Relaxed) != blocks.wrapping_add(1) {
            life.met.store(blocks.wrapping_add(1), Ordering::Relaxed);
            life.since.store(now, Ordering::Relaxed);
            return false;
        }
        let time = now.wrapping_sub(life.since.load(Ordering::Relaxed));
        time >= IDLE.load(Ordering::Relaxed) || memory::is_short()
    }
}

/// Sums bytes and blocks, allocated and freed, of the ids that stacks have.
fn sums_of_stacks(shared: &Shared, counts: &[Counts]) -> (u64, u64) {
    let of_stacks = counts
        .iter()
        .enumerate()
        .filter(|(place, _)| !shared.stack(*place).load(Ordering::Acquire).is_null());
    of_stacks
        .fold((0, 0), |sum, (_, counts)| (sum.0 + counts.allocated_bytes, sum.1 + counts.allocated_blocks))
}

/// Adds sums of ids to the totals of the epoch of this base, and unlinks them. False, and the totals are as before, where there
/// is no memory, or where `unlink` says so.
fn retire(base: u32, bytes: u64, blocks: u64, unlink: impl FnOnce() -> bool) -> bool {
    let id = epoch::unsampled_id(base);
    if !SHARED.make(id) {
        return false;
    }
    let Some(totals) = SHARED.chunk(number(id)) else { return false };
    // AcqRel: comes before the changes that it announces. A reader that finds one of them finds this, too.
    CHANGES.fetch_add(1, Ordering::AcqRel);
    let is_unlinked = unlink();
    if is_unlinked {
        totals.life.add_over(bytes, blocks);
    }
    // Release: pairs with the Acquire of `changes`.
    CHANGES.fetch_add(1, Ordering::Release);
    is_unlinked
}
