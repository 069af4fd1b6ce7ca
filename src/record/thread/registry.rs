//! The list of all thread states, and the one of the calling thread.

use crate::base::atomics::{AtomicUsize, Ordering};
use crate::record::append_list::List;
use crate::record::count::counters::{Shared, Table};
use crate::record::epoch;
use crate::record::memory;
use crate::record::thread::busy::Idle;
use crate::record::thread::exit;
use crate::record::thread::state::{BUSY, FLAGS, HotState, ThreadState};
use std::cell::Cell;
use std::hint::assert_unchecked;

thread_local! {
    /// Points to the hot part of this thread's state: [`NOT_YET`] before its first allocation, [`GONE`] near its end.
    /// Constant initialisation and no `Drop`: reading it is one instruction and never registers anything.
    pub(super) static LOCAL: Cell<*const HotState> = const { Cell::new(&raw const NOT_YET) };
}

/// Placeholder of a thread that has no state yet.
pub(super) static NOT_YET: HotState = HotState::placeholder();

/// Placeholder of a thread that has no state and must not get one now.
pub(super) static GONE: HotState = HotState::placeholder();

/// Counters for all threads that have no state of their own; written by atomic adds.
pub(crate) static SHARED: Table<Shared> = Table::with_first_ids();

/// All states there are, of living and ended threads.
static ALL: List<ThreadState> = List::new();

/// States that wait to be adopted, so that a new thread need not search in vain. A hint: Relaxed.
static RELEASED: AtomicUsize = AtomicUsize::new(0);

/// Asserts that a thread has this state.
fn assert_taken(state: &ThreadState) {
    debug_assert!(state.taken.load(Ordering::Relaxed) == 1, "a state that no thread has");
}

/// Returns the hot part of the calling thread's state, or a placeholder.
#[inline(always)]
pub(crate) fn hot_state() -> &'static HotState {
    let hot = local();
    // SAFETY: a static, or of a state, and states are never freed.
    unsafe {
        // The compiler forgets it in an `Option` of what comes first there.
        assert_unchecked(!hot.is_null());
        &*hot
    }
}

/// Returns the thread's [`LOCAL`]; [`GONE`] where that is destroyed.
#[inline(always)]
fn local() -> *const HotState {
    LOCAL.try_with(Cell::get).unwrap_or(&raw const GONE)
}

/// Returns the state of the calling thread, if it has one.
#[inline(always)]
pub(crate) fn current() -> Option<&'static ThreadState> {
    let hot = local();
    // SAFETY: then it points to a state, whose hot part is its first field.
    is_of_state(hot).then(|| unsafe { &*hot.cast::<ThreadState>() })
}

/// Returns whether this is the hot part of a state, and not a placeholder.
#[inline(always)]
fn is_of_state(hot: *const HotState) -> bool {
    !std::ptr::eq(hot, &raw const NOT_YET) && !std::ptr::eq(hot, &raw const GONE)
}

/// Returns the state of the calling thread, if it has one that is not busy.
#[inline(always)]
pub(crate) fn idle() -> Option<&'static ThreadState> {
    idle_with_flags().map(|(state, _)| state)
}

/// Returns the state of the calling thread and its flags, if it has one that is not busy.
#[inline(always)]
pub(crate) fn idle_with_flags() -> Option<(&'static ThreadState, u8)> {
    let hot = hot_state();
    let flags = (hot.flags.load(Ordering::Relaxed) & FLAGS) as u8;
    let is_busy = flags & BUSY != 0;
    debug_assert!(is_busy || is_of_state(hot), "a placeholder that is idle");
    // SAFETY: placeholders are busy, so it is the hot part of a state, which is its first field.
    (!is_busy).then(|| (unsafe { &*(&raw const *hot).cast::<ThreadState>() }, flags))
}

/// Returns the state of the calling thread, if it has one that is neither busy nor suspended.
#[inline(always)]
pub(crate) fn unsuspended() -> Option<&'static ThreadState> {
    let hot = hot_state();
    let is_suspended = hot.flags.load(Ordering::Relaxed) & FLAGS != 0;
    debug_assert!(is_suspended || is_of_state(hot), "a placeholder that is idle");
    // SAFETY: as in `idle`.
    (!is_suspended).then(|| unsafe { &*(&raw const *hot).cast::<ThreadState>() })
}

/// Marks the calling thread busy, whose [`hot_state`] this is, if it has a state without flags whose caches are of the present
/// generation.
///
/// The generation is read when the thread is marked: a round of `reclaim` that sees it idle has begun a generation that it
/// finds here, however long it has slept before.
#[inline(always)]
pub(crate) fn enter_at_generation(hot: &'static HotState) -> Option<Idle<'static>> {
    let before = hot.mark_busy();
    if before != epoch::generation() {
        hot.unmark_busy_unless(before);
        return None;
    }
    debug_assert!(is_of_state(hot), "a placeholder at generation {before}");
    // SAFETY: no placeholder is at a generation, so it is the hot part of a state, which is its first field.
    Some(Idle::of_marked(unsafe { &*(&raw const *hot).cast::<ThreadState>() }))
}

/// Returns the state of the calling thread, made if it may have one; `None` near the thread's end.
#[cold]
#[inline(never)]
pub(crate) fn current_or_make() -> Option<&'static ThreadState> {
    if let Some(state) = current() {
        return Some(state);
    }
    if std::ptr::eq(local(), &raw const GONE) || LOCAL.try_with(|local| local.set(&raw const GONE)).is_err() {
        return None;
    }
    // From here on an allocation by what is called below finds `GONE`, and is counted at SHARED.
    let state = adopt().or_else(make);
    if let Some(state) = state {
        // SAFETY: this thread has just taken it; `GONE` in LOCAL keeps all other code out.
        let owner = unsafe { state.owner() };
        owner.walk.prepare();
        owner.cache.prepare();
        exit::at_thread_end(state);
    }
    let local = state.map_or(&raw const NOT_YET, |state| (&raw const *state).cast());
    let _ = LOCAL.try_with(|cell| cell.set(local));
    state
}

/// Takes over the state of an ended thread, if one waits.
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
    assert_taken(state);
    state.reset_for_new_thread();
    state.unpublished.set_resizing(0);
    Some(state)
}

/// Bytes of the caches that a thread may have under any limit. An idle one takes less.
const IDLE_CACHES: usize = 8 << 10;

/// Makes a state, and pushes it to the list; `None` without memory.
pub(super) fn make() -> Option<&'static ThreadState> {
    let state = memory::zeroed_for_thread::<ThreadState>(IDLE_CACHES);
    debug_assert!(state.is_aligned(), "no state is at {state:?}");
    // SAFETY: null, or memory of the right size and alignment whose zero bytes are a valid state:
    // integers, null pointers, empty tables.
    let state = unsafe { state.as_ref() }?;
    state.taken.store(1, Ordering::Relaxed);
    state.hot.unsampled.enlist();
    ALL.push(state);
    Some(state)
}

/// Iterates over all states there are, of living and ended threads.
pub(crate) fn all() -> impl Iterator<Item = &'static ThreadState> {
    ALL.iter()
}

/// Makes every thread look at the epoch before its next change of live bytes stays unpublished, after the base has
/// changed.
pub(crate) fn revoke_unpublished() {
    ALL.iter_after().for_each(|state| state.unpublished.revoke());
}

/// Returns the live bytes of the epoch of this base that threads have not published.
pub(crate) fn unpublished_bytes(base: u32) -> i64 {
    let of_one = |state: &ThreadState| {
        let unsampled = &state.hot.unsampled;
        let is_present = unsampled.id() == u64::from(epoch::unsampled_id(base));
        let of_unsampled = if is_present { unsampled.read_unpublished() } else { 0 };
        state.unpublished.read(base).wrapping_add(of_unsampled)
    };
    all().map(of_one).fold(0, i64::wrapping_add)
}

/// Gives the state of an ended thread to the next one.
pub(super) fn release(state: &ThreadState) {
    assert_taken(state);
    state.leave_scopes();
    state.leave_fork_lock();
    // Release: pairs with the Acquire of `adopt`.
    state.taken.store(0, Ordering::Release);
    RELEASED.fetch_add(1, Ordering::Relaxed);
}

/// Releases all states but the calling thread's, in a forked child, which has no other thread.
#[cfg(unix)]
pub(crate) fn forget_other_threads() {
    let own = current().map_or(std::ptr::null(), |state| &raw const *state);
    for state in all() {
        if !std::ptr::eq(state, own) && state.taken.load(Ordering::Relaxed) != 0 {
            state.repair_after_fork();
            state.unpublished.set_resizing(0);
            release(state);
        }
    }
}

/// Makes the preparations for a thread's first allocation; called before `main` where that is possible.
pub(crate) fn prepare() {
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    super::stack_bounds::prepare();
    exit::prepare();
}
