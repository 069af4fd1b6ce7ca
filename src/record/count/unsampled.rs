//! Blocks of one thread that were not sampled → exact counts of them, at two instructions each way.
//!
//! A thread writes its own, inside the allocator; any thread may read. Most allocations only take bytes of the thread's
//! budget until the next sample. A budget is at most [`PEAK_STEP`] bytes.
//!
//! A block is added by one instruction for its bytes and one for itself, so a signal handler that allocates comes
//! before or behind each, never between its load and its store, and a thread need not say that it is busy. Whether the
//! end of the budget is reached is a question of level, not of passing a mark: what a handler adds is seen the next
//! time.
//!
//! A block within the budget does not look at the state of tracking (off, suspended, another epoch or sampling): a
//! change of that revokes the budgets of all threads.
//!
//! ```text
//! granted ◀── grant ── sealed ◀── seal ── revoked        its thread seals, reads base and sampling, grants
//!    └────────────────────┴────── revoke ────▲           any thread, after base or sampling have changed
//! ```
//!
//! All of it is one word, [`Unsampled::budget_end`]: a budget that is revoked while its thread reads base and
//! sampling is not granted.

use crate::base::atomics::{AtomicI64, AtomicPtr, AtomicU64, Ordering, add_block_to_own};
use crate::base::hint::unlikely;
use crate::record::append_list::{Linked, List};
use crate::record::count::sampling::PEAK_STEP;
use std::cell::Cell;
use std::ptr::null_mut;

/// Counts and budget of one thread's blocks that were not sampled, in one epoch.
#[repr(C)]
pub(crate) struct Unsampled {
    allocated_bytes: AtomicU64,
    allocated_blocks: AtomicU64,
    freed_bytes: AtomicU64,
    freed_blocks: AtomicU64,
    /// End of the budget, a value of `allocated_bytes`; or [`SEALED`], or [`REVOKED`].
    budget_end: AtomicI64,
    /// Publication to the peak is due when `freed_bytes` reaches it.
    publish_at: AtomicU64,
    /// The id in the tags of these blocks; [`NO_ID`] before there is one. In one cache line with the fields above,
    /// which the fast path reads.
    id: AtomicU64,
    /// Bytes allocated less bytes freed that have been published to the peak.
    published: AtomicI64,
    /// Bytes freed between two publications; 0 in a fresh one.
    publish_step: Cell<u32>,
    /// End of the budget that was granted last, revoked or not: nothing of a revoked budget is lost.
    granted_end: Cell<u64>,
    next: AtomicPtr<Unsampled>,
}

const _: () = assert!(std::mem::offset_of!(Unsampled, id) < 64);

/// An id that is in no tag, not even in one that the program has written over: a tag has 32 bits.
const NO_ID: u64 = 1 << 32;
/// Below any number of bytes: no budget before [`Unsampled::grant`].
const SEALED: i64 = -1;
/// No budget before [`Unsampled::seal`] and then [`Unsampled::grant`].
const REVOKED: i64 = -2;

/// Counts of all threads, living and exited.
static ALL: List<Unsampled> = List::new();

impl Linked for Unsampled {
    fn next(&self) -> &AtomicPtr<Unsampled> {
        &self.next
    }
}

impl Unsampled {
    /// Makes counts without a budget and without blocks.
    pub(crate) const fn placeholder() -> Unsampled {
        Unsampled {
            allocated_bytes: AtomicU64::new(0),
            allocated_blocks: AtomicU64::new(0),
            freed_bytes: AtomicU64::new(0),
            freed_blocks: AtomicU64::new(0),
            budget_end: AtomicI64::new(REVOKED),
            publish_at: AtomicU64::new(u64::MAX),
            id: AtomicU64::new(NO_ID),
            published: AtomicI64::new(0),
            publish_step: Cell::new(0),
            granted_end: Cell::new(0),
            next: AtomicPtr::new(null_mut()),
        }
    }

    /// Turns zero bytes into counts without blocks, and pushes them to the list.
    pub(crate) fn enlist(&'static self) {
        self.revoke();
        // Release: pairs with the Acquire of `id`; a thread that sees that an epoch is gone sees the base that ended
        // it.
        self.id.store(NO_ID, Ordering::Release);
        ALL.push(self);
    }

    /// Returns the id in the tags of these blocks, in 64 bits because [`NO_ID`] is none.
    #[inline(always)]
    pub(crate) fn id(&self) -> u64 {
        // Acquire: pairs with the Release of `begin`, whose zeroes a reader has to see.
        self.id.load(Ordering::Acquire)
    }

    /// Returns that id, in the thread that the counts belong to.
    #[inline(always)]
    pub(crate) fn own_id(&self) -> u64 {
        // Relaxed: seen at the latest when the thread took the state. On aarch64 an Acquire waits for earlier Releases.
        self.id.load(Ordering::Relaxed)
    }

    /// Forgets everything and counts blocks of this id from now on. While it is sealed.
    pub(crate) fn begin(&self, id: u32) {
        self.id.store(NO_ID, Ordering::Release);
        for count in [&self.allocated_bytes, &self.allocated_blocks, &self.freed_bytes, &self.freed_blocks] {
            // Release: pairs with the Acquire of `read_freed` and `read_allocated`; a thread that sees a zero sees
            // the base that ended the old epoch.
            count.store(0, Ordering::Release);
        }
        self.publish_at.store(PEAK_STEP.into(), Ordering::Relaxed);
        // Relaxed: as for all of it; a reader that finds the id below finds this or a later value.
        self.set_published(0);
        self.id.store(id.into(), Ordering::Release);
    }

    // ── Blocks ──────────────────────────────────────────────────────────────────────────────────

    /// Counts a block if it fits in what remains of the budget, and returns its tag. The size is below 2^30.
    #[inline(always)]
    pub(crate) fn try_spend(&self, size: usize) -> Option<u32> {
        // Before the block is counted: should a signal handler begin a new epoch in between, and allocate in it, this
        // block is counted there and its free is not. Events of handlers in the middle of another event are not exact.
        debug_assert!(size < 1 << 30, "blocks of {size} bytes are not sampled");
        let id = self.own_id();
        // Relaxed: a budget that has just been revoked may be spent once more; see `seal` for what is ordered.
        let left = self.budget_end.load(Ordering::Relaxed).wrapping_sub(self.allocated() as i64);
        if unlikely(size as i64 > left) {
            return None;
        }
        debug_assert!(id != NO_ID, "a budget without an id");
        self.add_allocated(size);
        Some(id as u32)
    }

    /// Counts a block, and returns its tag.
    pub(crate) fn allocate(&self, size: usize) -> u32 {
        let id = self.own_id();
        debug_assert!(id != NO_ID, "a block before the first epoch that samples");
        self.add_allocated(size);
        id as u32
    }

    /// Adds a block to what was allocated.
    #[inline(always)]
    fn add_allocated(&self, size: usize) {
        // Releases: pair with the Acquires of `read_allocated`.
        add_block_to_own!(Unsampled, self, allocated_bytes, allocated_blocks, size);
    }

    /// Counts the free of a block of this id. True: publication is due, see [`Unsampled::take_unpublished`].
    #[inline(always)]
    pub(crate) fn free(&self, size: usize) -> bool {
        // Releases: pair with the Acquires of `read_freed`, see `counters`.
        add_block_to_own!(Unsampled, self, freed_bytes, freed_blocks, size);
        self.has_unpublished()
    }

    /// Returns whether publication to the peak is due.
    #[inline(always)]
    pub(crate) fn has_unpublished(&self) -> bool {
        self.freed_bytes.load(Ordering::Relaxed) >= self.publish_at.load(Ordering::Relaxed)
    }

    /// Counts the free of a block of this id whose bytes have been published.
    pub(crate) fn free_published(&self, size: usize) {
        add_block_to_own!(Unsampled, self, freed_bytes, freed_blocks, size);
        self.set_published(self.published().wrapping_sub(size as i64));
    }

    /// Takes the change of live bytes since the last publication; the next is due after a
    /// [step](Unsampled::set_publish_step).
    pub(crate) fn take_unpublished(&self) -> i64 {
        let freed = self.freed_bytes.load(Ordering::Relaxed);
        self.publish_at.store(freed.wrapping_add(self.publish_step.get().into()), Ordering::Relaxed);
        let live = self.allocated().wrapping_sub(freed) as i64;
        let before = self.published();
        self.set_published(live);
        live.wrapping_sub(before)
    }

    /// Returns how many bytes are freed between two publications; 0 in a fresh one.
    pub(crate) fn publish_step(&self) -> u32 {
        self.publish_step.get()
    }

    /// Sets how many bytes are freed between two publications, from the next one on.
    pub(crate) fn set_publish_step(&self, step: u32) {
        self.publish_step.set(step);
    }

    /// Returns the live bytes that have been published to the peak.
    pub(crate) fn published(&self) -> i64 {
        self.published.load(Ordering::Relaxed)
    }

    /// Sets the live bytes that have been published to the peak.
    fn set_published(&self, bytes: i64) {
        self.published.store(bytes, Ordering::Relaxed);
    }

    /// Returns the bytes allocated, for its thread.
    #[inline(always)]
    fn allocated(&self) -> u64 {
        self.allocated_bytes.load(Ordering::Relaxed)
    }

    // ── The budget ──────────────────────────────────────────────────────────────────────────────

    /// Seals the budget before base and sampling are read. Called by its thread.
    pub(crate) fn seal(&self) {
        // Acquire: pairs with the Release of `revoke`; what was changed before is seen from here on.
        self.budget_end.swap(SEALED, Ordering::Acquire);
    }

    /// Returns what remains of the budget that was granted last, in bytes; below 0 where a signal handler has taken
    /// more. Called by its thread.
    ///
    /// Also when it was revoked: by then a block may have found that it does not fit, and its sample would be lost.
    pub(crate) fn remaining(&self) -> i64 {
        self.granted_end.get().wrapping_sub(self.allocated()) as i64
    }

    /// Grants a budget of this many bytes, [`PEAK_STEP`] at most; none while it is revoked and not
    /// [sealed](Unsampled::seal). Called by its thread.
    pub(crate) fn grant(&self, budget: u32) {
        debug_assert!(budget <= PEAK_STEP, "a budget of {budget} bytes");
        let end = self.allocated().wrapping_add(budget.into());
        self.granted_end.set(end);
        // Relaxed: only its thread relies on it. As it is one word, `revoke` comes before this, which then fails, or
        // behind it.
        let _ = self.budget_end.compare_exchange(SEALED, end as i64, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Revokes the budget. Wait-free for the owner.
    pub(crate) fn revoke(&self) {
        // Release: pairs with the Acquire of `seal`. A swap, because a store would end what an earlier one has
        // released: of two that revoke, `seal` would see what the later one has changed alone.
        self.budget_end.swap(REVOKED, Ordering::Release);
    }

    // ── Readers ─────────────────────────────────────────────────────────────────────────────────

    /// Reads bytes and blocks freed: before [`Unsampled::read_allocated`] of any thread.
    pub(crate) fn read_freed(&self) -> (u64, u64) {
        // Acquires: pair with the Releases of `free` and `begin`.
        (self.freed_bytes.load(Ordering::Acquire), self.freed_blocks.load(Ordering::Acquire))
    }

    /// Reads bytes and blocks allocated.
    pub(crate) fn read_allocated(&self) -> (u64, u64) {
        // Acquires: pair with the Releases of `add_allocated` and `begin`.
        (self.allocated_bytes.load(Ordering::Acquire), self.allocated_blocks.load(Ordering::Acquire))
    }

    /// Returns the live bytes that have not been published.
    pub(crate) fn read_unpublished(&self) -> i64 {
        // Allocated before freed: a block that comes and goes meanwhile makes the sum too small, and no peak of it.
        let (allocated, _) = self.read_allocated();
        let (freed, _) = self.read_freed();
        (allocated.wrapping_sub(freed) as i64).wrapping_sub(self.published())
    }
}

// SAFETY: what other threads reach is atomic; the cells are used by the one thread that it belongs to.
unsafe impl Sync for Unsampled {}

/// Counts of all threads, living and exited.
pub(crate) fn all() -> impl Iterator<Item = &'static Unsampled> {
    ALL.iter()
}

/// Revokes the budgets of all threads, after base or sampling have changed: when this returns, each reads them before
/// its next block passes, and finds what they are now.
pub(crate) fn revoke_all() {
    ALL.iter_after().for_each(Unsampled::revoke);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unsampled() -> Unsampled {
        let unsampled = Unsampled::placeholder();
        unsampled.seal();
        unsampled.set_publish_step(PEAK_STEP);
        unsampled.begin(77);
        unsampled
    }

    /// Its naive twin: plain sums. Beyond 2^33 bytes.
    #[test]
    fn counts_are_sums() {
        let unsampled = unsampled();
        let (mut allocated, mut freed, mut told) = (0u64, 0u64, 0i64);
        unsampled.grant(PEAK_STEP);
        for round in 0..20_000u64 {
            let size = 1 + (round * 7_919) % ((1 << 30) - 1);
            if unsampled.try_spend(size as usize).is_none() {
                unsampled.allocate(size as usize);
                unsampled.grant(PEAK_STEP);
            }
            allocated += size;
            assert_eq!(unsampled.read_allocated(), (allocated, round + 1));
            if unsampled.free(size as usize) {
                told += unsampled.take_unpublished();
            }
            freed += size;
            assert_eq!(unsampled.read_freed(), (freed, round + 1));
        }
        assert!(allocated > 1 << 40);
        assert_eq!(told + unsampled.take_unpublished(), 0);
    }

    #[test]
    fn a_budget_is_spent_to_the_byte() {
        let unsampled = unsampled();
        assert_eq!((unsampled.try_spend(1), unsampled.remaining()), (None, 0));
        unsampled.grant(100);
        assert_eq!((unsampled.try_spend(60), unsampled.remaining()), (Some(77), 40));
        assert_eq!((unsampled.try_spend(41), unsampled.remaining()), (None, 40));
        assert_eq!((unsampled.try_spend(40), unsampled.remaining()), (Some(77), 0));
        // A signal handler's.
        unsampled.allocate(5);
        assert_eq!(
            (unsampled.remaining(), unsampled.try_spend(1), unsampled.try_spend(1 << 29)),
            (-5, None, None)
        );
        assert_eq!(unsampled.read_allocated(), (105, 3));
    }

    #[test]
    fn a_revoked_budget_is_sealed_before_it_is_granted() {
        let unsampled = unsampled();
        unsampled.grant(100);
        unsampled.revoke();
        assert_eq!((unsampled.try_spend(1), unsampled.remaining()), (None, 100));
        unsampled.grant(90);
        assert_eq!((unsampled.try_spend(1), unsampled.remaining()), (None, 90));
        unsampled.seal();
        unsampled.grant(100);
        assert_eq!(unsampled.try_spend(1), Some(77));
        // In between.
        unsampled.seal();
        unsampled.revoke();
        unsampled.grant(100);
        assert_eq!(unsampled.try_spend(1), None);
    }

    #[test]
    fn publication_is_due_every_step() {
        let unsampled = unsampled();
        unsampled.allocate(200_000);
        assert_eq!((unsampled.take_unpublished(), unsampled.take_unpublished()), (200_000, 0));
        let told: Vec<u32> = (0..200)
            .filter(|_| {
                unsampled.free(1_000) && {
                    unsampled.take_unpublished();
                    true
                }
            })
            .collect();
        assert_eq!(told, [61, 123, 185]);
    }
}
