//! The calling thread → its [`ThreadState`]: what it is doing, its stack, its caches, its counters.
//!
//! A state outlives its thread and is adopted whole by a later one, counters and caches included, so
//! nothing is ever lost or merged when a thread ends. The list of all states only grows; it is as
//! long as the most threads that ever lived at once.
//!
//! ```text
//! first allocation ─▶ adopt a released state, else make one ─▶ … ─▶ last pthread key destructor
//!                                  ▲                                        │ LOCAL = gone
//!                                  └──────────── released ◀─────────────────┘
//! ```
//!
//! A thread without a state (it is starting, ending, or there was no memory) books at [`SHARED`].

pub(crate) mod stack_bounds;

use crate::base::atomics::{
    AtomicPtr, AtomicU8, AtomicU32, AtomicUsize, Ordering, change_own_bits, compiler_fence,
};
use crate::record::append_list::{Linked, List};
use crate::record::count::counters::{Owned, Shared, Table};
use crate::record::count::sampling::{Plan, STEP, Sampler};
use crate::record::count::unpublished::Unpublished;
use crate::record::count::unsampled::Unsampled;
use crate::record::epoch::{self, MAX_ADDRESSES};
use crate::record::memory;
use crate::record::stack_id::cache::StackCache;
use crate::record::stack_id::frame_layout_cache::Layouts;
use crate::record::thread::stack_bounds::StackBounds;
use crate::record::unwind::rule_cache::Rules;
use std::cell::{Cell, UnsafeCell};
use std::hint::assert_unchecked;
use std::marker::PhantomData;

thread_local! {
    /// The front of this thread's state, [`NOT_YET`] before its first allocation, [`GONE`] near its end. Constant
    /// initialisation and no `Drop`: reading it is one instruction and never registers anything.
    static LOCAL: Cell<*const Front> = const { Cell::new(&raw const NOT_YET) };
}

/// Of a thread that has no state yet.
static NOT_YET: Front = Front::of_nobody();
/// Of a thread that has no state and shall not get one now.
static GONE: Front = Front::of_nobody();

/// Counters for all threads that have no state of their own; written by atomic adds.
pub(crate) static SHARED: Table<Shared> = Table::with_first_ids();

/// All states there are, of living and ended threads.
static ALL: List<ThreadState> = List::new();

impl Linked for ThreadState {
    fn next(&self) -> &AtomicPtr<ThreadState> {
        &self.next
    }
}

/// States that wait to be adopted, so that a new thread need not search in vain. A hint: Relaxed.
static RELEASED: AtomicUsize = AtomicUsize::new(0);

/// Return addresses of one walk, laid out as a recorded stack is: see `stacks`.
#[repr(C)]
pub(crate) struct StackBuffer {
    pub header: StackHeader,
    pub addresses: [usize; MAX_ADDRESSES],
}

/// What stands in front of the addresses of a stack.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct StackHeader {
    pub hash: u64,
    /// Average bytes between samples when its blocks were sampled; 0 where all are recorded.
    pub interval: u32,
    pub len: u16,
    /// The walk ended at its limit or at an unknown address, not at the thread's first frame.
    pub truncated: bool,
}

/// What the parts of a state that only its thread touches look like.
pub(crate) struct Tools {
    pub rules: Rules,
    pub layouts: Layouts,
    pub cache: StackCache,
    pub buffer: StackBuffer,
    pub bounds: StackBounds,
    /// Working memory of the unwind-rule parser, see `unwind::cfi`; null until first needed.
    pub parser: *mut u8,
}

/// What the program's own code looks at, at each event.
#[repr(C)]
pub(crate) struct Front {
    pub unsampled: Unsampled,
    /// Why the next event is not recorded in the usual way: [`BUSY`], [`INTERNING`], [`PAUSED`],
    /// [`OWN`]; and, in the bits above those, the tracker's generation that `tools` belong to, so that one comparison
    /// tells whether the next event that is recorded is an ordinary one. Written by its
    /// thread only; atomic because a signal handler of that thread reads it.
    gate: AtomicU32,
}

// SAFETY: as for `ThreadState`; of those of nobody, nothing is written.
unsafe impl Sync for Front {}

impl Front {
    /// One that is busy and never tuned, and that no block belongs to.
    const fn of_nobody() -> Front {
        Front { unsampled: Unsampled::of_nobody(), gate: AtomicU32::new(BUSY as u32) }
    }

    /// Whether nothing is out of the usual, tracking is on, and `tools` are of this generation. Then it is the front of
    /// a state.
    #[inline(always)]
    pub(crate) fn is_tuned_to(&self, generation: u32) -> bool {
        self.gate.load(Ordering::Relaxed) == generation
    }
}

/// Everything heapgauge keeps for one thread. All zero bytes are a fresh one.
#[repr(C, align(128))]
pub(crate) struct ThreadState {
    /// The first: `LOCAL` points to it.
    pub front: Front,
    /// Bytes allocated less bytes freed that have not been published.
    pub unpublished: Unpublished,
    /// 1 while a thread has this state.
    taken: AtomicU8,
    paused_depth: Cell<u32>,
    own_depth: Cell<u32>,
    /// How many times the thread is inside the gate that a fork waits at, see `fork`.
    pub inside: AtomicUsize,
    /// Times the key destructor has re-armed itself.
    farewells: Cell<u32>,
    pub sampler: Sampler,
    pub counters: Table<Owned>,
    tools: UnsafeCell<Tools>,
    next: AtomicPtr<ThreadState>,
}

/// Inside heapgauge's own code: whatever allocates now is not the program (but for signal handlers).
pub(crate) const BUSY: u8 = 1;
/// Inside the map of stacks: what allocates now is that map.
pub(crate) const INTERNING: u8 = 2;
/// The program asked for silence, see `control::pause`.
pub(crate) const PAUSED: u8 = 4;
/// heapgauge's read side runs on this thread, see `control::own`.
pub(crate) const OWN: u8 = 8;
/// The bits of a gate that these take.
const FLAGS: u32 = epoch::GENERATION - 1;

// SAFETY: other threads reach `gate`, `taken`, `inside`, `unsampled`, `counters` and `next`, which are atomic; the cells
// and the tools are used by the one thread that has taken the state, and change hands by `taken`
// (Release in `release`, Acquire in `adopt`).
unsafe impl Sync for ThreadState {}

impl ThreadState {
    #[inline(always)]
    pub(crate) fn quiet(&self) -> u8 {
        (self.front.gate.load(Ordering::Relaxed) & FLAGS) as u8
    }

    /// Notes that `tools` are of this generation, in which tracking is on, from the end of [`Busy`] on.
    pub(crate) fn tune(&self, generation: u32) {
        // A signal handler changes flags, and never the generation of a state that is busy.
        let change = (self.front.gate.load(Ordering::Relaxed) & !FLAGS) ^ generation;
        change_own_bits!(Front, &self.front, gate, "xor", fetch_xor, change);
    }

    /// Marks the state busy until the guard goes: a signal handler that allocates meanwhile sees it
    /// and keeps its hands off the caches and counters.
    #[inline(always)]
    pub(crate) fn enter(&self, with: u8) -> Busy<'_> {
        let set = u32::from(with) & !self.front.gate.load(Ordering::Relaxed);
        change_own_bits!(Front, &self.front, gate, "or", fetch_or, set);
        // Against the same thread's signal handler only the compiler can reorder.
        compiler_fence(Ordering::SeqCst);
        Busy { state: self, set }
    }

    /// The same as [`enter`](ThreadState::enter) with [`BUSY`], in a state that is not.
    #[inline(always)]
    pub(crate) fn enter_idle(&self) -> Idle<'_> {
        change_own_bits!(Front, &self.front, gate, "or", fetch_or, const BUSY as u32);
        compiler_fence(Ordering::SeqCst);
        Idle(self)
    }

    /// The parts that only the owner touches.
    ///
    /// # Safety
    ///
    /// * The calling thread has taken this state.
    /// * It is marked [`BUSY`], so that nothing below or in a signal handler asks again.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "the duties make it exclusive")]
    pub(crate) unsafe fn tools(&self) -> &mut Tools {
        // SAFETY: exclusive by the caller's duties.
        unsafe { &mut *self.tools.get() }
    }

    /// Whether a change of live bytes need not be published for the peak; then bytes are few.
    #[inline(always)]
    pub(crate) fn is_small(&self, bytes: i64) -> bool {
        self.unpublished.fits(bytes)
    }

    /// Books a change of live bytes for the peak that is [small](ThreadState::is_small).
    #[inline(always)]
    pub(crate) fn small_change(&self, bytes: i64) {
        self.unpublished.add(bytes);
    }

    /// Books a change of live bytes for the peak.
    pub(crate) fn change(&self, bytes: i64) {
        if self.is_small(bytes) {
            self.small_change(bytes);
        } else {
            self.change_slow(bytes);
        }
    }

    #[cold]
    #[inline(never)]
    fn change_slow(&self, bytes: i64) {
        self.enter_epoch();
        if self.is_small(bytes) {
            self.small_change(bytes);
        } else {
            self.publish_slow(bytes);
        }
    }

    /// Publishes the thread's net bytes to the peak, those of blocks that were not sampled too.
    #[cold]
    pub(crate) fn publish(&self) {
        let news = self.front.unsampled.news(self.steps().1);
        // After a `clear` its blocks are of no more concern.
        let is_present = self.front.unsampled.id() == u64::from(epoch::unsampled_id(epoch::base()));
        self.unpublished.set_known(self.front.unsampled.known());
        self.enter_epoch();
        self.publish_slow(if is_present { news } else { 0 });
    }

    /// Publishes the net bytes together with a change.
    fn publish_slow(&self, change: i64) {
        epoch::publish(self.unpublished.base(), self.unpublished.take().wrapping_add(change));
    }

    /// Drops net bytes of an epoch that is over. The thread's own, while it is busy.
    pub(crate) fn enter_epoch(&self) {
        let is_recalled = self.unpublished.close();
        self.unpublished.enter_epoch(epoch::base());
        if is_recalled {
            self.unpublished.open();
        }
    }

    /// How many bytes stay unpublished at most, either way: of blocks that are recorded, and of blocks that were not
    /// sampled. Together [`epoch::PUBLISH_BYTES`], with most of it for the blocks of the present plan.
    fn steps(&self) -> (i64, u32) {
        let rest = epoch::PUBLISH_BYTES - i64::from(STEP);
        if epoch::plan() != Plan::EXACT {
            (rest, STEP)
        } else if self.front.unsampled.id() == u64::from(epoch::unsampled_id(epoch::base())) {
            (STEP.into(), rest as u32)
        } else {
            (epoch::PUBLISH_BYTES, rest as u32)
        }
    }

    /// Divides the bytes that may stay unpublished anew, after plan or epoch have changed. The thread's own, while it is
    /// busy.
    pub(crate) fn divide_steps(&self) {
        let (limit, _) = self.steps();
        if self.unpublished.limit() != limit {
            self.publish();
            self.unpublished.set_limit(limit);
        }
    }

    /// Adds one level of silence of this kind ([`PAUSED`] or [`OWN`]).
    pub(crate) fn silence(&self, kind: u8) {
        let depth = self.depth(kind);
        depth.set(depth.get() + 1);
        self.front.gate.fetch_or(u32::from(kind), Ordering::Relaxed);
        self.front.unsampled.recall();
    }

    /// Takes one level of silence away.
    pub(crate) fn unsilence(&self, kind: u8) {
        let depth = self.depth(kind);
        depth.set(depth.get().saturating_sub(1));
        if depth.get() == 0 {
            self.front.gate.fetch_and(!u32::from(kind), Ordering::Relaxed);
        }
    }

    /// Completes or forgets the event that its thread was in the middle of when it ended. In the child of a fork no
    /// thread but one goes on.
    fn mend(&self) {
        if self.quiet() & BUSY == 0 {
            return;
        }
        self.counters.settle(epoch::end_id());
        // SAFETY: nobody uses them but that thread; zero bytes are fresh ones, made ready by whoever adopts them.
        // What the tables hold is given up, because it may have been being freed.
        unsafe { self.tools.get().write_bytes(0, 1) };
        self.front.gate.fetch_and(!FLAGS, Ordering::Relaxed);
    }

    /// Lets forks no longer wait for a thread that ends. It may have jumped out of a signal handler that interrupted it
    /// inside.
    fn leave_gate(&self) {
        // SeqCst: as in `fork`.
        self.inside.store(0, Ordering::SeqCst);
    }

    /// Prepares a state for the thread that has just taken it.
    ///
    /// The last thread may have left it busy: it never came back from a signal handler that interrupted an event
    /// (`siglongjmp`, `pthread_exit`), or it does not exist in this process.
    fn begin_anew(&self) {
        self.mend();
        self.front.gate.fetch_and(!FLAGS, Ordering::Relaxed);
        self.paused_depth.set(0);
        self.own_depth.set(0);
        self.farewells.set(0);
    }

    fn depth(&self, kind: u8) -> &Cell<u32> {
        if kind == PAUSED { &self.paused_depth } else { &self.own_depth }
    }
}

/// Lets go of the mark that [`ThreadState::enter`] set.
pub(crate) struct Busy<'a> {
    state: &'a ThreadState,
    /// What was not set before.
    set: u32,
}

impl Drop for Busy<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        change_own_bits!(Front, &self.state.front, gate, "and", fetch_and, !self.set);
    }
}

/// Lets go of the mark that [`ThreadState::enter_idle`] set, with nothing to be remembered.
pub(crate) struct Idle<'a>(&'a ThreadState);

impl Drop for Idle<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        change_own_bits!(Front, &self.0.front, gate, "and", fetch_and, const !(BUSY as u32));
    }
}

/// One level of silence of the calling thread, for as long as it lives.
pub(crate) struct Silence {
    kind: u8,
    /// The state that counts it: none where the thread had none when it began, though it may have one when it ends.
    state: Option<&'static ThreadState>,
    /// It belongs to the thread that made it.
    not_send: PhantomData<*const ()>,
}

impl Silence {
    /// Of the given kind, [`PAUSED`] or [`OWN`].
    pub(crate) fn new(kind: u8) -> Silence {
        let state = current_or_make();
        if let Some(state) = state {
            state.silence(kind);
        }
        Silence { kind, state, not_send: PhantomData }
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        // Near its end the thread has given its state away, and the levels with it.
        if let (Some(counted), Some(state)) = (self.state, current())
            && std::ptr::eq(counted, state)
        {
            state.unsilence(self.kind);
        }
    }
}

/// The front of the calling thread's state, or one of nobody.
#[inline(always)]
pub(crate) fn front() -> &'static Front {
    let front = local();
    // SAFETY: a static, or of a state, and states are never freed.
    unsafe {
        // The compiler forgets it in an `Option` of what comes first there.
        assert_unchecked(!front.is_null());
        &*front
    }
}

#[inline(always)]
fn local() -> *const Front {
    LOCAL.try_with(Cell::get).unwrap_or(&raw const GONE)
}

/// The state of the calling thread, if it has one.
#[inline(always)]
pub(crate) fn current() -> Option<&'static ThreadState> {
    let front = local();
    let has_none = std::ptr::eq(front, &raw const NOT_YET) || std::ptr::eq(front, &raw const GONE);
    // SAFETY: then it points to a state, whose front is its first field.
    (!has_none).then(|| unsafe { &*front.cast::<ThreadState>() })
}

/// The state of the calling thread, if it has one that is not busy.
#[inline(always)]
pub(crate) fn idle() -> Option<&'static ThreadState> {
    let front = local();
    // SAFETY: as in `front`.
    let is_busy = unsafe { &*front }.gate.load(Ordering::Relaxed) & u32::from(BUSY) != 0;
    // SAFETY: nobody is busy, so it is the front of a state, and its first field.
    (!is_busy).then(|| unsafe { &*front.cast::<ThreadState>() })
}

/// The state of the calling thread, if it has one that is neither busy nor silenced.
#[inline(always)]
pub(crate) fn unsilenced() -> Option<&'static ThreadState> {
    let front = local();
    // SAFETY: as in `front`.
    let is_quiet = unsafe { &*front }.gate.load(Ordering::Relaxed) & FLAGS != 0;
    // SAFETY: as in `idle`.
    (!is_quiet).then(|| unsafe { &*front.cast::<ThreadState>() })
}

/// The state of the calling thread, if it has one that [is tuned](Front::is_tuned_to).
#[inline(always)]
pub(crate) fn tuned_to(generation: u32) -> Option<&'static ThreadState> {
    let front = local();
    // SAFETY: as in `front`.
    let is_tuned = unsafe { &*front }.is_tuned_to(generation);
    // SAFETY: what is tuned is the front of a state, and its first field.
    is_tuned.then(|| unsafe { &*front.cast::<ThreadState>() })
}

/// The state of the calling thread, made if it may have one; `None` near the thread's end.
#[cold]
#[inline(never)]
pub(crate) fn current_or_make() -> Option<&'static ThreadState> {
    if let Some(state) = current() {
        return Some(state);
    }
    if std::ptr::eq(local(), &raw const GONE) || LOCAL.try_with(|local| local.set(&raw const GONE)).is_err() {
        return None;
    }
    // From here on an allocation by what is called below finds `GONE`, and is booked at SHARED.
    let state = adopt().or_else(make);
    if let Some(state) = state {
        // SAFETY: this thread has just taken it; `GONE` in LOCAL keeps everybody else out.
        let tools = unsafe { state.tools() };
        tools.bounds = stack_bounds::of_this_thread();
        tools.layouts.prepare();
        tools.cache.prepare();
        state.divide_steps();
        platform::at_thread_end(state);
    }
    let local = state.map_or(&raw const NOT_YET, |state| (&raw const *state).cast());
    let _ = LOCAL.try_with(|cell| cell.set(local));
    state
}

fn adopt() -> Option<&'static ThreadState> {
    if RELEASED.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let state = all().find(|state| {
        // Acquire: pairs with the Release of `release`; what the earlier thread left is complete.
        state.taken.load(Ordering::Relaxed) == 0
            && state.taken.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
    })?;
    RELEASED.fetch_sub(1, Ordering::Relaxed);
    state.begin_anew();
    state.unpublished.set_resizing(0);
    Some(state)
}

/// Bytes that an idle thread takes beside its state: the smallest of its caches.
const IDLE_CACHES: usize = 8 << 10;

fn make() -> Option<&'static ThreadState> {
    if !memory::has_room_for_thread(size_of::<ThreadState>() + IDLE_CACHES) {
        return None;
    }
    let state = memory::zeroed::<ThreadState>();
    // SAFETY: null, or memory of the right size and alignment whose zero bytes are a valid state:
    // integers, null pointers, empty tables.
    let state = unsafe { state.as_ref() }?;
    state.taken.store(1, Ordering::Relaxed);
    state.front.unsampled.enlist();
    ALL.push(state);
    Some(state)
}

/// All states there are, of living and ended threads.
pub(crate) fn all() -> impl Iterator<Item = &'static ThreadState> {
    ALL.iter()
}

/// Has every thread look at the epoch before its next change of live bytes stays unpublished, after the base has changed.
pub(crate) fn recall_unpublished() {
    ALL.iter_after().for_each(|state| state.unpublished.recall());
}

/// Live bytes of the epoch of this base that threads have not published.
pub(crate) fn unpublished_bytes(base: u32) -> i64 {
    let of_one = |state: &ThreadState| {
        let unsampled = &state.front.unsampled;
        let is_present = unsampled.id() == u64::from(epoch::unsampled_id(base));
        let of_unsampled = if is_present { state.unpublished.read_unsampled(unsampled) } else { 0 };
        state.unpublished.read(base).wrapping_add(of_unsampled)
    };
    all().map(of_one).fold(0, i64::wrapping_add)
}

/// Gives the state of an ended thread to the next one.
fn release(state: &ThreadState) {
    state.leave_gate();
    // Release: pairs with the Acquire of `adopt`.
    state.taken.store(0, Ordering::Release);
    RELEASED.fetch_add(1, Ordering::Relaxed);
}

/// In a forked child: only the calling thread is left, every other state may be adopted.
pub(crate) fn forget_other_threads() {
    let own = current().map_or(std::ptr::null(), |state| &raw const *state);
    for state in all() {
        if !std::ptr::eq(state, own) && state.taken.load(Ordering::Relaxed) != 0 {
            state.mend();
            state.unpublished.set_resizing(0);
            release(state);
        }
    }
}

/// Prepares what a thread's first allocation needs; called before `main` where that is possible.
pub(crate) fn prepare() {
    stack_bounds::prepare();
    platform::prepare();
}

/// When a state exists but its thread is in its last key destructor.
#[cfg_attr(not(unix), allow(dead_code))]
fn farewell(state: &'static ThreadState) -> bool {
    let farewells = state.farewells.get() + 1;
    state.farewells.set(farewells);
    if farewells < LAST_FAREWELL.load(Ordering::Relaxed) {
        return false;
    }
    let _ = LOCAL.try_with(|local| local.set(&raw const GONE));
    release(state);
    true
}

/// In which round of key destructors a thread parts with its state: the last but none, so that the
/// destructors of others, which may allocate, have run before.
static LAST_FAREWELL: AtomicU32 = AtomicU32::new(4);

#[cfg(unix)]
mod platform {
    use super::*;

    /// The pthread key, plus one; 0 before it is made.
    static KEY: AtomicUsize = AtomicUsize::new(0);

    pub(super) fn prepare() {
        key();
        // SAFETY: plain queries of constants.
        let rounds = unsafe { libc::sysconf(libc::_SC_THREAD_DESTRUCTOR_ITERATIONS) };
        if let Ok(rounds @ 1..) = u32::try_from(rounds) {
            // ThreadSanitizer parts with the thread in the last round too, and faults in what runs after that.
            let last = if cfg!(heapgauge_sanitized) { (rounds - 1).max(1) } else { rounds };
            LAST_FAREWELL.store(last, Ordering::Relaxed);
        }
    }

    fn key() -> Option<libc::pthread_key_t> {
        // Acquire/AcqRel: whoever sees the key may use it.
        let present = KEY.load(Ordering::Acquire);
        if present != 0 {
            return Some((present - 1) as libc::pthread_key_t);
        }
        let mut fresh = 0;
        // SAFETY: a place to write to and a destructor that fits.
        if unsafe { libc::pthread_key_create(&raw mut fresh, Some(at_end)) } != 0 {
            return None;
        }
        match KEY.compare_exchange(0, fresh as usize + 1, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Some(fresh),
            Err(earlier) => {
                // SAFETY: made above, used by nobody.
                unsafe { libc::pthread_key_delete(fresh) };
                Some((earlier - 1) as libc::pthread_key_t)
            }
        }
    }

    /// Arranges for `at_end`. If that fails the state stays with the ended thread: a leak, no error. So it does where
    /// a signal handler is the first to allocate in its thread when that has called its destructors already.
    ///
    /// Asked in signal handlers too: glibc keeps the values of the first 32 keys of a process in the thread itself, and
    /// ours is made before `main`. Behind another 32 it would take memory of the C library.
    pub(super) fn at_thread_end(state: &'static ThreadState) {
        if let Some(key) = key() {
            // SAFETY: the key exists; the value is a pointer to something that is never freed.
            unsafe { libc::pthread_setspecific(key, (&raw const *state).cast()) };
        }
    }

    unsafe extern "C" fn at_end(state: *mut libc::c_void) {
        // SAFETY: the value that `at_thread_end` set.
        let state = unsafe { &*state.cast::<ThreadState>() };
        if !farewell(state) {
            at_thread_end(state);
        }
    }
}

#[cfg(not(unix))]
mod platform {
    use super::*;

    pub(super) fn prepare() {}

    /// No notice of a thread's end: its state stays as it is, one for each thread that ever allocated.
    pub(super) fn at_thread_end(_state: &'static ThreadState) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::count::counters::{Chunk, Direction};

    /// As a signal handler may begin one, which goes on behind it.
    #[test]
    fn a_silence_begun_while_busy_lasts() {
        let state = make().unwrap();
        let busy = state.enter(BUSY);
        state.silence(PAUSED);
        drop(busy);
        assert_eq!(state.quiet(), PAUSED);
        let generation = epoch::generation();
        let busy = state.enter(BUSY);
        let interning = state.enter(INTERNING | BUSY);
        state.tune(generation);
        drop(interning);
        assert_eq!(state.quiet(), PAUSED | BUSY);
        drop(busy);
        assert_eq!((state.quiet(), state.front.is_tuned_to(generation)), (PAUSED, false));
        state.unsilence(PAUSED);
        assert!(state.front.is_tuned_to(generation));
    }

    /// Its thread jumped out of a signal handler that had interrupted an event, and ended later.
    #[test]
    fn a_state_left_busy_is_repaired_before_another_thread_has_it() {
        let state = make().unwrap();
        assert!(state.counters.add_slow(70, Direction::Freed, 5));
        // SAFETY: made above and known to this thread alone; nothing else has the tools.
        unsafe { state.tools() }.bounds.end = 1;
        std::mem::forget(state.enter(INTERNING | BUSY));
        state.inside.store(1, Ordering::SeqCst);
        state.leave_gate();
        assert_eq!(state.inside.load(Ordering::SeqCst), 0, "a fork would wait for ever");
        state.begin_anew();
        assert_eq!(state.quiet(), 0);
        // SAFETY: as above.
        assert_eq!(unsafe { state.tools() }.bounds.end, 0);
        assert_eq!(state.counters.chunk(1).unwrap().read(70 - 64, Direction::Freed), (5, 1));
    }

    /// The first was made where its thread could have no state, near its end or without memory: it counts no level.
    #[test]
    fn silences_end_in_any_order() {
        std::thread::spawn(|| {
            LOCAL.set(&raw const GONE);
            let uncounted = Silence::new(PAUSED);
            LOCAL.set(&raw const NOT_YET);
            let counted = Silence::new(PAUSED);
            let (first, second) = (Silence::new(PAUSED), Silence::new(OWN));
            drop(uncounted);
            drop(first);
            assert_eq!(current().unwrap().quiet(), PAUSED | OWN);
            drop(counted);
            assert_eq!(current().unwrap().quiet(), OWN);
            drop(second);
            assert_eq!(current().unwrap().quiet(), 0);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_fork_gives_up_half_changed_tables_and_keeps_counts() {
        for busy in [false, true] {
            let state = make().unwrap();
            assert!(state.counters.add_slow(70, Direction::Freed, 5));
            // SAFETY: made above and known to this thread alone; nothing else has the tools.
            unsafe { state.tools() }.bounds.end = 1;
            if busy {
                state.front.gate.store(BUSY.into(), Ordering::Relaxed);
            }
            state.mend();
            // SAFETY: as above.
            assert_eq!(unsafe { state.tools() }.bounds.end, usize::from(!busy));
            assert_eq!(state.counters.chunk(1).unwrap().read(70 - 64, Direction::Freed), (5, 1));
        }
    }
}
