//! Records allocations.

use super::check::{is_stack_of_id, walk_agrees};
use super::intern::intern_and_count;
use super::sampled::{record_alloc_sampled, record_sampled};
use super::write_tag::{opaque, write_tag};
use super::{Resized, live_bytes};
use crate::record::count::counters::{Direction, MOST};
use crate::record::count::sampling::SamplingConfig;
use crate::record::dropped::{self, Reason};
use crate::record::epoch::{self, Config};
use crate::record::own_frames;
use crate::record::stack_id::reclaim;
use crate::record::tag::{OVERHEAD, SAMPLED, SMALL, UNTRACKED};
use crate::record::thread::{
    self, BUSY, HotState, INTERNAL, INTERNING, Idle, OwnerState, SHARED, ThreadState,
};
use crate::record::unwind::{self, Entrance, FrameLayout, Missed, Registers};
use crate::record::watermark;
use std::mem::MaybeUninit;

/// Counts a small block (1 to [`SMALL`] - 1 bytes) within the thread's budget, and returns the id for its tag.
///
/// Part of the program's own code, where one instruction finds the state.
#[inline(always)]
pub(crate) fn try_fast(size: usize) -> Option<u32> {
    debug_assert!((1..SMALL).contains(&size), "not a small block: {size}");
    thread::hot_state().unsampled.try_spend(size)
}

/// Counts a block of any size within the thread's budget, as [`try_fast`] does a small one. Sizes that are never sampled are left
/// out.
#[inline(always)]
pub(crate) fn try_fast_of_any_size(size: usize) -> Option<u32> {
    if epoch::sampling().is_sampled_size(size) { thread::hot_state().unsampled.try_spend(size) } else { None }
}

/// Holds the arguments of [`record_alloc`] that its slow paths alone need, in its frame.
struct SlowArguments<'a> {
    config: &'a Config,
    entrance: Entrance,
    /// Registers of [`record_alloc`].
    registers: Registers,
}

/// Records a block that [`try_fast`] has not counted, tags it and returns it.
///
/// The path of a known stack is straight: nothing is written until every precondition has been checked. It calls nothing, and the
/// values it needs after the sum of the stack's words fit into registers that need not be saved.
///
/// # Safety
///
/// * `block` was made by the inner allocator for this size, and is not yet the program's.
#[inline(never)]
pub(crate) unsafe fn record_alloc(
    block: *mut u8,
    size: usize,
    hot: &'static HotState,
    config: &Config,
    entrance: Entrance,
) -> *mut u8 {
    debug_assert!(!block.is_null(), "no block to record");
    let mut arguments = MaybeUninit::<SlowArguments>::uninit();
    let arguments = arguments.as_mut_ptr();
    // Volatile, so that the two leave their registers, and that the whole function has one frame and one stack pointer.
    // SAFETY: a variable of this function.
    unsafe {
        (&raw mut (*arguments).config).write_volatile(config);
        (&raw mut (*arguments).entrance).write_volatile(entrance);
    }
    if let Some(busy) = thread::enter_at_generation(hot)
        && busy.state().fits(size as i64)
    {
        let state = busy.state();
        // SAFETY: this thread's own state, and it has just been marked.
        let owner = unsafe { state.owner() };
        match unwind::lookup_last(hot, owner, entrance) {
            // SAFETY: its last stack is the one that was looked up.
            Ok(layout) if unsafe { count_last(state, layout, size) } => {
                let id = layout.id();
                debug_assert!(
                    walk_agrees(id, owner, Registers::here(), entrance),
                    "a guess differs from the walk"
                );
                drop(busy);
                // SAFETY: the caller's duty.
                return unsafe { write_tag(block, size, id) };
            }
            Ok(_) => drop(busy),
            // SAFETY: a variable of this function, complete now; the caller's duty.
            Err(missed) => unsafe {
                (&raw mut (*arguments).registers).write(Registers::here());
                return record_missed(busy, block, size, missed, &*arguments);
            },
        }
    }
    // SAFETY: as above.
    unsafe {
        (&raw mut (*arguments).registers).write(Registers::here());
        record_unknown(block, size, &*arguments)
    }
}

/// Records a block whose stack is not the last one of its layout, tags it and returns it.
///
/// # Safety
///
/// * As for [`record_alloc`], which has marked the thread busy and missed the stack.
#[inline(never)]
unsafe fn record_missed(
    busy: Idle<'static>,
    block: *mut u8,
    size: usize,
    missed: Missed,
    arguments: &SlowArguments<'_>,
) -> *mut u8 {
    let state = busy.state();
    // SAFETY: this thread's own state, and it is marked; `record_alloc` does not use it any more.
    let owner = unsafe { state.owner() };
    match unwind::lookup_missed(owner, &state.counters, missed) {
        // SAFETY: its last stack is the one that was looked up.
        Some(layout) if unsafe { count_last(state, layout, size) } => {
            let id = layout.id();
            debug_assert!(
                walk_agrees(id, owner, arguments.registers, arguments.entrance),
                "a guess differs from the walk"
            );
            drop(busy);
            // SAFETY: the caller's duty.
            unsafe { write_tag(block, size, id) }
        }
        // SAFETY: the caller's duty.
        _ => unsafe { record_by_second_layout(busy, block, size, missed, arguments) },
    }
}

/// Records a block whose stack may have the second layout of its key, tags it and returns it.
///
/// # Safety
///
/// * As for [`record_missed`].
#[inline(never)]
unsafe fn record_by_second_layout(
    busy: Idle<'static>,
    block: *mut u8,
    size: usize,
    missed: Missed,
    arguments: &SlowArguments<'_>,
) -> *mut u8 {
    let (state, registers) = (busy.state(), arguments.registers);
    // SAFETY: as in `record_missed`.
    let owner = unsafe { state.owner() };
    let found = unwind::lookup_by_second_layout(
        &state.hot,
        owner,
        &state.counters,
        missed,
        registers,
        arguments.entrance,
    );
    // SAFETY: as above.
    let id = found.filter(|layout| unsafe { count_last(state, layout, size) }).map(|layout| layout.id());
    debug_assert!(
        id.is_none_or(|id| walk_agrees(id, owner, registers, arguments.entrance)),
        "a guess differs from the walk"
    );
    drop(busy);
    // SAFETY: the caller's duty.
    unsafe {
        match id {
            Some(id) => write_tag(block, size, id),
            None => record_unknown(block, size, arguments),
        }
    }
}

/// Counts a block at the last stack of a layout; false, and nothing is changed, where that was met before a `clear`, or there is
/// none.
///
/// # Safety
///
/// * The layout's last stack, if it has one, is the block's.
/// * The thread is busy, and has compared its generation since it is.
#[inline(always)]
unsafe fn count_last(state: &ThreadState, layout: &FrameLayout, size: usize) -> bool {
    // SAFETY: an id at or above a base is not 0; and the caller's duty.
    let is_counted = layout.id() >= state.base() && unsafe { layout.count() }.add(size as u64);
    if is_counted {
        state.add_change(size as i64);
    }
    is_counted
}

/// Records a block whose stack is not known by its layout, or is not recorded at all, tags it and returns it.
///
/// # Safety
///
/// * As for [`record_alloc`].
#[inline(never)]
unsafe fn record_unknown(block: *mut u8, size: usize, arguments: &SlowArguments<'_>) -> *mut u8 {
    let SlowArguments { config, entrance, ref registers } = *arguments;
    let id = 'id: {
        if size as u64 <= MOST
            && let Some((state, flags)) = thread::idle_with_flags()
        {
            if flags != 0 || !epoch::is_on() {
                if epoch::is_configured_by(config) {
                    own_frames::note(state, registers);
                    let id = suspended_id(flags);
                    let _busy = state.enter_idle();
                    if state.counters.add(id, Direction::Allocated, size) {
                        break 'id id;
                    }
                }
            } else if epoch::sampling().is_sampled_size(size) {
                break 'id record_alloc_sampled(registers, size, config, entrance);
            } else if !state.fits(size as i64)
                && let Some(id) = record_and_publish(state, registers, size, entrance)
            {
                break 'id id;
            }
        }
        record_alloc_slow(registers, size, config, Some(entrance))
    };
    // SAFETY: the caller's duty.
    opaque(unsafe { write_tag(block, size, id) })
}

/// Records a block of a stack that is known by its layout, and publishes the thread's live bytes with it. `None`, and
/// nothing is changed, where it is not known.
fn record_and_publish(
    state: &'static ThreadState,
    registers: &Registers,
    size: usize,
    entrance: Entrance,
) -> Option<u32> {
    let busy = thread::enter_at_generation(&state.hot)?;
    // SAFETY: this thread's own state, and it has just been marked.
    let owner = unsafe { state.owner() };
    let id = unwind::lookup_by_every_layout(&state.hot, owner, &state.counters, *registers, entrance);
    if id < epoch::base() || !state.counters.add(id, Direction::Allocated, size) {
        return None;
    }
    debug_assert!(walk_agrees(id, owner, *registers, entrance), "a guess differs from the walk");
    let resized = match entrance {
        Entrance::Reallocate => state.take_resizing(),
        _ => 0,
    };
    state.change(id, size as i64, resized);
    drop(busy);
    watermark::notify();
    Some(id)
}

/// Records an allocation in a thread of any state, and returns its tag: an id, with [`SAMPLED`] where the block was
/// sampled. The peak gets the size less the bytes of the block that the thread is resizing.
#[inline(never)]
pub(super) fn record_alloc_slow(
    registers: &Registers,
    size: usize,
    config: &Config,
    entrance: Option<Entrance>,
) -> u32 {
    epoch::configure(config);
    if let Some(state) = thread::unsuspended()
        && epoch::is_on()
    {
        return refresh_and_record(state, registers, size, state.take_resizing(), entrance);
    }
    let Some(state) = thread::current_or_make() else {
        dropped::count(Reason::Threads);
        return record_unattributed_shared(size, Resized::NONE);
    };
    let flags = state.flags();
    if flags & BUSY != 0 {
        return record_busy(flags, size, Resized::NONE);
    }
    if flags != 0 || !epoch::is_on() {
        own_frames::note(state, registers);
        return record_suspended(state, size, state.take_resizing());
    }
    refresh_and_record(state, registers, size, state.take_resizing(), entrance)
}

/// Brings the thread's caches up to date and records the block. The thread is not busy, but may be suspended.
#[inline(never)]
pub(super) fn refresh_and_record(
    state: &'static ThreadState,
    registers: &Registers,
    size: usize,
    resized: i64,
    entrance: Option<Entrance>,
) -> u32 {
    let busy = state.enter_idle();
    // Values read from here on belong to this generation or a later one. Later changes are noticed next time: by the
    // generation for the owner's caches, and by the revoked budget for blocks that are not sampled.
    let generation = epoch::generation_slow();
    state.hot.unsampled.seal();
    // The epoch that the thread's live bytes are counted in. Another base than that, of an epoch that ends just now, would
    // put the bytes of a block into a sum that its free does not change.
    let base = state.enter_epoch();
    debug_assert!(base == u32::MAX || base < epoch::end_id(), "the base {base} was not given out");
    let sampling = epoch::sampling();
    if base == u32::MAX {
        // Just now.
        return count_alloc(state, UNTRACKED, size);
    }
    // SAFETY: this thread's own state, just marked.
    let owner = unsafe { state.owner() };
    unwind::refresh(owner);
    owner.forget_closed();
    let id = if sampling.is_sampled_size(size) {
        record_sampled(state, owner, registers, size, resized, base, sampling)
    } else {
        record_exact(state, owner, registers, size, resized, base, entrance)
    };
    let is_exact = sampling == SamplingConfig::EXACT;
    state.set_generation(if is_exact { generation } else { epoch::generation_of_samples(generation) });
    drop(busy);
    watermark::notify();
    reclaim::give_back_if_wanted();
    id
}

/// Records a block whose stack is always recorded.
fn record_exact(
    state: &'static ThreadState,
    owner: &mut OwnerState,
    registers: &Registers,
    size: usize,
    resized: i64,
    base: u32,
    entrance: Option<Entrance>,
) -> u32 {
    debug_assert!(base != u32::MAX, "tracking is off");
    let known = entrance.map_or(0, |entrance| {
        unwind::lookup_by_every_layout(&state.hot, owner, &state.counters, *registers, entrance)
    });
    let id = if known >= base {
        debug_assert!(
            entrance.is_some_and(|entrance| walk_agrees(known, owner, *registers, entrance)),
            "a guess differs from the walk"
        );
        count_alloc(state, known, size)
    } else {
        walk_and_count(state, owner, *registers, size, entrance)
    };
    if resized == 0 && matches!(entrance, Some(Entrance::Reallocate)) {
        state.expect_free();
    }
    state.change(id, live_bytes(id, size), resized);
    id
}

/// Walks the stack, whose layout is not known, and counts the block at its id.
#[inline(never)]
fn walk_and_count(
    state: &'static ThreadState,
    owner: &mut OwnerState,
    registers: Registers,
    size: usize,
    entrance: Option<Entrance>,
) -> u32 {
    let stack = unwind::walk(owner, registers, entrance);
    match owner.cache.get(stack.check) {
        // An id below the base was met before a `clear`, or is none.
        id if id >= epoch::base() => {
            debug_assert!(is_stack_of_id(id, owner), "two stacks with one fingerprint");
            count_alloc(state, id, size)
        }
        _ => intern_and_count(state, owner, stack, size),
    }
}

/// Records an allocation or a resize in the middle of an event of this thread: by the map of stacks, or by a signal
/// handler. A counter of the thread may be in the middle of a change; the shared ones are right either way.
#[cold]
#[inline(never)]
pub(super) fn record_busy(flags: u8, size: usize, resized: Resized) -> u32 {
    if flags & INTERNING != 0 {
        let base = epoch::base();
        epoch::publish(base, -resized.bytes_in(base));
        return count_alloc_shared(OVERHEAD, size);
    }
    dropped::count(Reason::Reentrant);
    record_unattributed_shared(size, resized)
}

/// Records an allocation while tracking is off, or in a suspended thread that is not busy.
#[cold]
#[inline(never)]
fn record_suspended(state: &'static ThreadState, size: usize, resized: i64) -> u32 {
    let _busy = state.enter(BUSY);
    if resized != 0 {
        state.change(UNTRACKED, 0, resized);
    }
    count_alloc(state, suspended_id(state.flags()), size)
}

/// Returns the id of a block that a thread with these flags allocates while it is suspended, or any while tracking is off.
#[inline(always)]
fn suspended_id(flags: u8) -> u32 {
    if flags & INTERNAL != 0 { OVERHEAD } else { UNTRACKED }
}

/// Counts a block at `[unrecorded]`, or as untracked while off. The caller changes the peak.
#[cold]
pub(super) fn record_unattributed(state: Option<&'static ThreadState>, size: usize) -> u32 {
    let base = epoch::base();
    if base == u32::MAX {
        return count_alloc_shared(UNTRACKED, size);
    }
    // Frees of it must find a place too.
    if !SHARED.make(base) {
        return count_alloc_shared(UNTRACKED, size);
    }
    match state {
        Some(state) => count_alloc(state, base, size),
        None => count_alloc_shared(base, size),
    }
}

/// Counts a block at `[unrecorded]` in the counters that threads share, and publishes the size less the bytes of a
/// block that is being resized.
#[cold]
pub(super) fn record_unattributed_shared(size: usize, resized: Resized) -> u32 {
    let id = thread::in_event(|| record_unattributed(None, size));
    // Published for the epoch that the block is counted in, whose base is its id. A base that is read before or after
    // may be another one: its sum would have the block and not its free, or the reverse.
    let base = if id == UNTRACKED { epoch::base() } else { id };
    epoch::publish(base, live_bytes(id, size) - resized.bytes_in(base));
    watermark::notify();
    id
}

/// Counts an allocation at an id, in the counters of the thread.
#[inline]
pub(super) fn count_alloc(state: &'static ThreadState, id: u32, size: usize) -> u32 {
    debug_assert!(id & SAMPLED == 0, "{id:#x} is a tag, not an id");
    if size as u64 <= MOST && state.counters.add(id, Direction::Allocated, size) {
        return id;
    }
    count_alloc_slow(state, id, size)
}

/// Makes a place in the counters of the thread, and counts an allocation there or in those that threads share.
#[cold]
#[inline(never)]
fn count_alloc_slow(state: &'static ThreadState, id: u32, size: usize) -> u32 {
    if state.counters.add_slow(id, Direction::Allocated, size) { id } else { count_alloc_shared(id, size) }
}

/// Counts an allocation at an id, in the counters that threads share.
pub(super) fn count_alloc_shared(id: u32, size: usize) -> u32 {
    if SHARED.add(id, Direction::Allocated, size as u64) {
        return id;
    }
    // Every id that is given out has a place there. 0 has a static one, so this ends.
    debug_assert!(id != UNTRACKED, "no place for untracked blocks");
    count_alloc_shared(UNTRACKED, size)
}
