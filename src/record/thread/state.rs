//! State of one thread, and the flags of its current activity.

use crate::base::atomics::{
    AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, change_own_bits, compiler_fence,
};
use crate::record::append_list::Linked;
use crate::record::count::counters::{OwnerCounters, Table};
use crate::record::count::sampling::{PEAK_STEP, Sampler, SamplingConfig};
use crate::record::count::unpublished::Unpublished;
use crate::record::count::unsampled::Unsampled;
use crate::record::epoch;
use crate::record::scope::entered::Entered;
use crate::record::stack_id::cache::StackCache;
use crate::record::tag::SAMPLED;
use crate::record::thread::busy::{Busy, Idle};
use crate::record::thread::registry::SHARED;
use crate::record::thread::section::Readings;
use crate::record::thread::stack_buffer::StackBuffer;
use crate::record::thread::walk_state::WalkState;
use std::cell::{Cell, UnsafeCell};

/// The part of a state that only its thread reads and writes.
pub(crate) struct OwnerState {
    pub walk: WalkState,
    pub cache: StackCache,
    pub buffer: StackBuffer,
    /// The scopes that the thread is in.
    pub entered: Entered,
    /// The [`epoch::closings`] that the caches know of.
    closings: u32,
}

impl OwnerState {
    /// Forgets the ids that were closed since the last call: before one is looked up, in each new generation.
    #[inline(always)]
    pub(crate) fn forget_closed(&mut self) {
        let closings = epoch::closings();
        if self.closings != closings {
            self.cache.retain(|id| SHARED.is_open(id));
            self.walk.retain(|id| SHARED.is_open(id));
            self.closings = closings;
        }
    }
}

/// The part of a state that inlined code reads at each event.
#[repr(C)]
pub(crate) struct HotState {
    pub unsampled: Unsampled,
    /// Reasons why the next event cannot take the fast path: [`BUSY`], [`INTERNING`], [`PAUSED`],
    /// [`INTERNAL`]; and, in the bits above those, the generation that the owner's caches belong to, so that one
    /// comparison tells whether the next event can. Written by its thread only; atomic because a signal handler of
    /// that thread reads it.
    pub(super) flags: AtomicU32,
    /// Term of the scopes that the thread is in, see `scope`. Written by its thread only, while it is busy.
    pub(super) scope_term: AtomicU64,
}

// SAFETY: as for `ThreadState`; in a placeholder no bit is ever changed.
unsafe impl Sync for HotState {}

impl HotState {
    /// Makes a placeholder for the state of a thread that has none: busy, of no generation, without blocks.
    pub(super) const fn placeholder() -> HotState {
        HotState {
            unsampled: Unsampled::placeholder(),
            flags: AtomicU32::new(BUSY as u32),
            scope_term: AtomicU64::new(0),
        }
    }
}

/// Live bytes since a measurement began, and the most that they were.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SpanBytes {
    pub live: i64,
    pub peak: i64,
}

impl SpanBytes {
    /// Adds a change, or what a measurement inside this one has found.
    fn then(self, later: SpanBytes) -> SpanBytes {
        let live = self.live.wrapping_add(later.live);
        SpanBytes { live, peak: self.peak.max(self.live.wrapping_add(later.peak)) }
    }
}

/// Everything heapgauge keeps for one thread. All zero bytes are a fresh one.
#[repr(C, align(128))]
pub(crate) struct ThreadState {
    /// The first: `LOCAL` points to it.
    pub hot: HotState,
    /// Bytes allocated less bytes freed that have not been published.
    pub unpublished: Unpublished,
    /// 1 while a thread has this state.
    pub(super) taken: AtomicU8,
    paused_depth: Cell<u32>,
    /// Number of times that a pause has begun.
    pauses: Cell<u32>,
    internal_depth: Cell<u32>,
    /// Number of times that the thread is inside the fork lock, see `fork`.
    pub inside: AtomicUsize,
    /// Readings of counters by this thread, see `section`.
    pub(super) readings: Readings,
    /// Number of the last round of `reclaim` that has seen the thread outside of all sections.
    passed: AtomicUsize,
    /// Times the key destructor has re-armed itself.
    pub(super) exit_rounds: Cell<u32>,
    /// Number of measurements that this thread is inside, see `measure`; while there is one, no change of live bytes fits.
    span_depth: Cell<u32>,
    /// Bytes of the innermost of them.
    span: Cell<SpanBytes>,
    /// The next change is a resized block, whose old bytes are freed right after: the peak is that after both.
    expects_free: Cell<bool>,
    pub sampler: Sampler,
    pub counters: Table<OwnerCounters>,
    owner: UnsafeCell<OwnerState>,
    next: AtomicPtr<ThreadState>,
}

/// Inside heapgauge's own code: whatever allocates now is not the program (but for signal handlers).
pub(crate) const BUSY: u8 = 1;

/// Inside the map of stacks: allocations now are that map's.
pub(crate) const INTERNING: u8 = 2;

/// The program has paused this thread, see `control::pause`.
pub(crate) const PAUSED: u8 = 4;

/// heapgauge's read side runs on this thread, see `control::internal`.
pub(crate) const INTERNAL: u8 = 8;

/// Mask of these flags; the generation is in the bits above.
pub(super) const FLAGS: u32 = epoch::GENERATION - 1;

// SAFETY: other threads reach `flags`, `taken`, `inside`, `readings`, `passed`, `unpublished`, `unsampled`, `counters` and `next`,
// which are atomic; the
// cells and the owner's part are used by the one thread that has taken the state, and change hands by `taken`
// (Release in `release`, Acquire in `adopt`).
unsafe impl Sync for ThreadState {}

impl Linked for ThreadState {
    fn next(&self) -> &AtomicPtr<ThreadState> {
        &self.next
    }
}

/// Asserts that a thread is busy where it changes its own part.
#[inline(always)]
pub(super) fn assert_busy(state: &ThreadState) {
    debug_assert!(state.flags() & BUSY != 0, "a thread's own part is changed while it is not busy");
}

impl ThreadState {
    /// Returns the flags that are set.
    #[inline(always)]
    pub(crate) fn flags(&self) -> u8 {
        (self.hot.flags.load(Ordering::Relaxed) & FLAGS) as u8
    }

    /// Notes that the owner's caches are of this generation, in which tracking is on, from the end of [`Busy`] on, and
    /// divides the bytes that may stay unpublished by it. The thread's own, while it is busy.
    pub(crate) fn set_generation(&self, generation: u32) {
        assert_busy(self);
        debug_assert!(generation & FLAGS == 0, "generation {generation} sets flags");
        // A signal handler changes flags, and never the generation of a state that is busy.
        let change = (self.hot.flags.load(Ordering::Relaxed) & !FLAGS) ^ generation;
        if change != 0 {
            self.divide_steps();
            change_own_bits!(HotState, &self.hot, flags, "xor", fetch_xor, change);
        }
    }

    /// Marks the state busy until the guard goes: a signal handler that allocates meanwhile sees it
    /// and keeps its hands off the caches and counters.
    #[inline(always)]
    pub(crate) fn enter(&self, with: u8) -> Busy<'_> {
        let set = u32::from(with) & !self.hot.flags.load(Ordering::Relaxed);
        change_own_bits!(HotState, &self.hot, flags, "or", fetch_or, set);
        // Against the same thread's signal handler only the compiler can reorder.
        compiler_fence(Ordering::SeqCst);
        Busy { state: self, set }
    }

    /// Marks a state busy that is not, as [`enter`](ThreadState::enter) does with [`BUSY`].
    #[inline(always)]
    pub(crate) fn enter_idle(&self) -> Idle<'_> {
        debug_assert!(self.flags() & BUSY == 0, "busy already");
        change_own_bits!(HotState, &self.hot, flags, "or", fetch_or, const BUSY as u32);
        compiler_fence(Ordering::SeqCst);
        Idle::of_marked(self)
    }

    /// Returns the parts that only the owner touches.
    ///
    /// # Safety
    ///
    /// * The calling thread has taken this state.
    /// * It is marked [`BUSY`], so that nothing below or in a signal handler asks again.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "the duties make it exclusive")]
    pub(crate) unsafe fn owner(&self) -> &mut OwnerState {
        debug_assert!(
            self.flags() & BUSY != 0 || super::registry::current().is_none(),
            "a thread's caches are used while it is not busy"
        );
        // SAFETY: exclusive by the caller's duties.
        unsafe { &mut *self.owner.get() }
    }

    /// Returns whether a change of live bytes need not be published for the peak; then bytes are few.
    #[inline(always)]
    pub(crate) fn fits(&self, bytes: i64) -> bool {
        self.unpublished.fits(bytes)
    }

    /// Returns the base of the epoch that this thread's live bytes are counted in: that of its generation, or a later one.
    #[inline(always)]
    pub(crate) fn base(&self) -> u32 {
        self.unpublished.base()
    }

    /// Adds a change of live bytes for the peak that is [small](ThreadState::fits).
    #[inline(always)]
    pub(crate) fn add_change(&self, bytes: i64) {
        self.unpublished.add(bytes);
    }

    /// Adds a change of live bytes, and publishes where it does not fit: `bytes` of a block of this id, without
    /// [`SAMPLED`](crate::record::tag::SAMPLED), less `resized` bytes of the block that it was before.
    pub(crate) fn change(&self, id: u32, bytes: i64, resized: i64) {
        assert_busy(self);
        debug_assert!(id & SAMPLED == 0, "{id:#x} is a tag, not an id");
        // Where the net is still of an epoch that is over, it is dropped with the bytes added here.
        if self.fits(bytes.wrapping_sub(resized)) {
            self.add_change(bytes.wrapping_sub(resized));
        } else {
            self.change_slow(id, bytes, resized);
        }
        if resized != 0 {
            self.unpublished.set_resized_in(self.unpublished.base());
        }
    }

    /// Takes the bytes of the block that is being resized, to be taken off together with the block's new ones.
    pub(crate) fn take_resizing(&self) -> i64 {
        let bytes = self.unpublished.resizing();
        // Where there are none, this may be a signal handler in the middle of a resize that has taken its own.
        if bytes != 0 {
            self.unpublished.set_resizing(0);
            self.unpublished.set_resized_in(0);
        }
        bytes
    }

    /// Adds the bytes of a resized block again that were taken off in a later epoch than that of the block, whose id
    /// this is: a `clear` came after they had been looked up.
    #[cold]
    pub(crate) fn give_back_resized(&self, id: u32, resized: i64) {
        let taken_in = self.unpublished.resized_in();
        if id < taken_in {
            let _busy = self.enter(BUSY);
            self.enter_epoch();
            // Else that epoch is over, too, and its net with it.
            if self.unpublished.base() == taken_in {
                self.change(taken_in, resized, 0);
            }
        }
    }

    /// Adds a change in the epoch that is present now, publishing where it does not fit.
    #[cold]
    #[inline(never)]
    fn change_slow(&self, id: u32, bytes: i64, resized: i64) {
        let base = self.enter_epoch();
        // Below the base, the block's epoch ended after its id was looked up: it is not counted any more.
        let is_present = id >= base;
        let bytes = if is_present { bytes.wrapping_sub(resized) } else { resized.wrapping_neg() };
        self.measure_change(bytes);
        if self.fits(bytes) {
            self.add_change(bytes);
        } else {
            self.publish_slow(base, bytes);
        }
    }

    /// Adds a change to the measurement that this thread is inside, if it is.
    #[inline]
    fn measure_change(&self, bytes: i64) {
        if self.span_depth.get() > 0 {
            let peak = if self.expects_free.take() { 0 } else { bytes };
            self.span.set(self.span.get().then(SpanBytes { live: bytes, peak }));
        }
    }

    /// Leaves the next change out of the peak of a measurement, up to the one after it.
    pub(crate) fn expect_free(&self) {
        self.expects_free.set(self.span_depth.get() > 0);
    }

    /// Begins a measurement of this thread, and returns the bytes of the one around it. The thread is not busy.
    pub(crate) fn begin_span(&self) -> SpanBytes {
        debug_assert!(self.flags() & BUSY == 0, "a measurement in the middle of an event");
        let _busy = self.enter(BUSY);
        self.span_depth.set(self.span_depth.get() + 1);
        self.divide_steps();
        self.span.replace(SpanBytes::default())
    }

    /// Ends a measurement and returns its bytes. The thread is not busy.
    pub(crate) fn end_span(&self, outer: SpanBytes) -> SpanBytes {
        let _busy = self.enter(BUSY);
        let inner = self.span.get().then(SpanBytes::default());
        self.span.set(outer.then(inner));
        self.span_depth.set(self.span_depth.get().saturating_sub(1));
        self.divide_steps();
        inner
    }

    /// Publishes the thread's net bytes to the peak, those of blocks that were not sampled too.
    #[cold]
    pub(crate) fn publish(&self) {
        self.publish_in(self.enter_epoch());
    }

    /// Publishes as [`publish`](ThreadState::publish) does, where the thread has just [entered](ThreadState::enter_epoch) the epoch of
    /// this base.
    #[cold]
    #[inline(never)]
    pub(crate) fn publish_in(&self, base: u32) {
        assert_busy(self);
        let unpublished = self.hot.unsampled.take_unpublished();
        // After a `clear` its blocks are of no more concern.
        let is_present = self.hot.unsampled.id() == u64::from(epoch::unsampled_id(base));
        self.publish_slow(base, if is_present { unpublished } else { 0 });
    }

    /// Publishes the net bytes together with a change, in the epoch of this base that they are counted in.
    fn publish_slow(&self, base: u32, change: i64) {
        epoch::publish(base, self.unpublished.take().wrapping_add(change));
    }

    /// Drops net bytes of an epoch that is over, and returns the base of the one that they are counted in from here on.
    /// The thread's own, while it is busy.
    pub(crate) fn enter_epoch(&self) -> u32 {
        assert_busy(self);
        let was_revoked = self.unpublished.seal();
        let base = epoch::base();
        self.unpublished.enter_epoch(base);
        if was_revoked {
            self.unpublished.grant();
        }
        base
    }

    /// Limits of unpublished bytes, either way: of blocks that are recorded, and of blocks that were not
    /// sampled. Together [`epoch::PUBLISH_BYTES`], with most of it for the blocks of the present sampling.
    fn steps(&self) -> (i64, u32) {
        let rest = epoch::PUBLISH_BYTES - i64::from(PEAK_STEP);
        if self.span_depth.get() > 0 {
            return (0, rest as u32);
        }
        if epoch::sampling() != SamplingConfig::EXACT {
            (rest, PEAK_STEP)
        } else if self.hot.unsampled.id() == u64::from(epoch::unsampled_id(epoch::base())) {
            (PEAK_STEP.into(), rest as u32)
        } else {
            (epoch::PUBLISH_BYTES, rest as u32)
        }
    }

    /// Divides the bytes that may stay unpublished anew, after sampling or epoch have changed. The thread's own,
    /// while it is busy.
    pub(crate) fn divide_steps(&self) {
        assert_busy(self);
        let (limit, step) = self.steps();
        let before = self.hot.unsampled.publish_step();
        if self.unpublished.limit() != limit || before != step {
            self.hot.unsampled.set_publish_step(step);
            // A fresh state has nothing to publish.
            if before != 0 {
                self.publish();
            }
            self.unpublished.set_limit(limit);
        }
    }

    /// Suspends recording by one more level of this kind ([`PAUSED`] or [`INTERNAL`]).
    pub(crate) fn suspend(&self, kind: u8) {
        debug_assert!(kind == PAUSED || kind == INTERNAL, "no kind of suspension: {kind}");
        let depth = self.depth(kind);
        depth.set(depth.get() + 1);
        if kind == PAUSED {
            self.pauses.set(self.pauses.get().wrapping_add(1));
        }
        self.hot.flags.fetch_or(u32::from(kind), Ordering::Relaxed);
        self.hot.unsampled.revoke();
    }

    /// Returns how often a pause has begun in this state, and whether there is one, so that a measurement knows of those that
    /// begin or end meanwhile.
    pub(crate) fn pauses(&self) -> (u32, bool) {
        (self.pauses.get(), self.flags() & PAUSED != 0)
    }

    /// Takes one level of suspension away.
    pub(crate) fn resume(&self, kind: u8) {
        let depth = self.depth(kind);
        depth.set(depth.get().saturating_sub(1));
        if depth.get() == 0 {
            self.hot.flags.fetch_and(!u32::from(kind), Ordering::Relaxed);
        }
    }

    /// Completes or forgets the event that its thread was in the middle of when it ended. In the child of a fork only
    /// one thread continues.
    #[inline(always)]
    pub(super) fn repair_after_fork(&self) {
        if self.flags() & BUSY != 0 {
            self.repair();
        }
    }

    /// Completes the counters of an interrupted event, and gives the caches up.
    #[cold]
    #[inline(never)]
    fn repair(&self) {
        let end = epoch::end_id();
        self.counters.complete_carry(epoch::base().min(end)..end);
        debug_assert!(self.flags() & BUSY != 0, "nothing to repair");
        // SAFETY: only that thread used them; zero bytes are a fresh value, prepared by the thread that adopts it.
        // The tables are given up with their contents, because they may have been in the middle of a free.
        unsafe { self.owner.get().write_bytes(0, 1) };
        self.hot.flags.fetch_and(!FLAGS, Ordering::Relaxed);
    }

    /// Lets forks no longer wait for a thread that ends. It may have jumped out of a signal handler that interrupted it
    /// inside.
    pub(super) fn leave_fork_lock(&self) {
        // SeqCst: as in `fork`.
        self.inside.store(0, Ordering::SeqCst);
    }

    /// Prepares a state for the thread that has just taken it.
    ///
    /// The last thread may have left it busy: it never came back from a signal handler that interrupted an event
    /// (`siglongjmp`, `pthread_exit`), or it does not exist in this process.
    pub(super) fn reset_for_new_thread(&self) {
        self.repair_after_fork();
        // After a measurement without a generation: the first event divides what may stay unpublished anew.
        let kept = if self.span_depth.replace(0) == 0 { !FLAGS } else { 0 };
        self.hot.flags.fetch_and(kept, Ordering::Relaxed);
        self.paused_depth.set(0);
        self.internal_depth.set(0);
        self.exit_rounds.set(0);
        self.readings.reset();
    }

    /// Notes the readings that a round has to wait for.
    pub(crate) fn note_readings(&self) {
        self.readings.note();
    }

    /// Returns whether the thread was seen outside of all sections in this round, now or before. Called in rounds only.
    pub(crate) fn has_passed(&self, round: usize) -> bool {
        if self.passed.load(Ordering::Relaxed) == round {
            return true;
        }
        // Relaxed: the barriers of the round order it. Without a thread, an interrupted event never goes on, and a thread that
        // adopts the state later loads pointers later. Acquire: pairs with the Release of `release`.
        let is_outside = self.flags() & BUSY == 0 && self.readings.have_passed();
        let has_passed = is_outside || self.taken.load(Ordering::Acquire) == 0;
        if has_passed {
            self.passed.store(round, Ordering::Relaxed);
        }
        has_passed
    }

    /// Returns the number of levels of a kind of suspension.
    fn depth(&self, kind: u8) -> &Cell<u32> {
        if kind == PAUSED { &self.paused_depth } else { &self.internal_depth }
    }
}
