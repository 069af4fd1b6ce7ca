//! An allocation or a free → counters: the decision whether, where and under which id.
//!
//! Runs inside the allocator, on any thread at any time. The common case, a thread with a state, on,
//! not silenced, and a stack met before, touches nothing that is shared.
//!
//! Where blocks are sampled, most are not: they are booked, as they are, at one id for all of them. A
//! block that is sampled is booked as it is too, at the first id of its stack, so that the totals are
//! exact; and by what it weighs at the three ids after it: bytes, blocks, variance. That is rare, so it
//! is booked in the counters that threads share, whose words are wide enough.

use crate::base::hint::is_seldom;
use crate::record::count::counters::{Direction, MOST};
use crate::record::count::sampling::{self, Plan, Weight};
use crate::record::count::unsampled::Unsampled;
use crate::record::epoch::{self, Config, Reason};
use crate::record::own_frames;
use crate::record::stack_id::fingerprint::Fingerprint;
use crate::record::stack_id::table::{self, SUMS};
use crate::record::tag::{self, FIRST, OVERHEAD, SAMPLED, SMALL, UNTRACKED};
use crate::record::thread::{self, BUSY, INTERNING, OWN, SHARED, ThreadState, Tools};
use crate::record::unwind::{self, Entrance, Registers};

/// Books a block of the calling code if it is one of the many that are not sampled, and returns what its tag is to
/// hold. Of fewer than [`SMALL`] bytes, and at least one.
///
/// Part of the program's own code, where one instruction finds the state.
#[inline(always)]
pub(crate) fn pass(size: usize) -> Option<u32> {
    debug_assert!((1..SMALL).contains(&size), "not a small block: {size}");
    thread::front().unsampled.passes(size)
}

/// Books a block of the calling code that does not [`pass`], tags it and returns it.
///
/// What is all in the usual way goes straight through, and nothing is changed before that is certain.
///
/// # Safety
///
/// * `block` is what the inner allocator has made for this size, and not yet the program's.
#[inline(never)]
pub(crate) unsafe fn allocation(block: *mut u8, size: usize, config: &Config, entrance: Entrance) -> *mut u8 {
    if epoch::plan().leaves_to_chance(size) {
        // SAFETY: the caller's duty.
        return unsafe { allocation_by_chance(block, size, config, entrance) };
    }
    let registers = Registers::here();
    if let Some(state) = thread::tuned_to(epoch::generation())
        && state.is_small(size as i64)
    {
        let busy = state.enter_idle();
        // SAFETY: this thread's own state, and it has just been marked.
        let tools = unsafe { state.tools() };
        let id = unwind::recognise(tools, registers, entrance);
        // An id below the base was met before a `clear`, or is none.
        if id >= epoch::base() && state.counters.add(id, Direction::Allocated, size) {
            state.small_change(size as i64);
            debug_assert!(is_right(id, tools, registers, entrance), "a guess differs from the walk");
            drop(busy);
            // SAFETY: the caller's duty.
            return unsafe { keep(block, size, id) };
        }
        drop(busy);
    }
    let id = allocation_slow(&registers, size, config, Some(entrance), resized_bytes(entrance));
    // SAFETY: the caller's duty.
    unsafe { keep(block, size, id) }
}

/// The same of one that chance decides about.
///
/// # Safety
///
/// * As for [`allocation`].
#[cold]
#[inline(never)]
unsafe fn allocation_by_chance(block: *mut u8, size: usize, config: &Config, entrance: Entrance) -> *mut u8 {
    // Large blocks and those of unusual alignment have not been asked yet.
    let passed = thread::front().unsampled.passes(size);
    let id = passed
        .unwrap_or_else(|| allocation_slow(&Registers::here(), size, config, None, resized_bytes(entrance)));
    // SAFETY: the caller's duty.
    unsafe { keep(block, size, id) }
}

/// Keeps the id of a block that has been booked, and returns the block.
///
/// # Safety
///
/// * As for [`tag::write`].
#[inline(always)]
unsafe fn keep(block: *mut u8, size: usize, id: u32) -> *mut u8 {
    if is_seldom(!tag::is_behind(size)) {
        // SAFETY: the caller's duty.
        return unsafe { keep_any(block, size, id) };
    }
    // SAFETY: the caller's duty; it is of a size that has its tag behind it.
    unsafe { tag::write_behind(block, size, id) };
    block
}

/// The same, of a block of any size.
///
/// # Safety
///
/// * As for [`tag::write`].
#[inline(never)]
unsafe fn keep_any(block: *mut u8, size: usize, id: u32) -> *mut u8 {
    // SAFETY: the caller's duty.
    if !unsafe { tag::write(block, size, id) } {
        misplaced(id, size);
    }
    block
}

/// Books an allocation, whatever is not as usual, and returns what its tag is to hold: an id, with [`SAMPLED`] where
/// the block was sampled. The peak is told of the size less `resized`, the bytes of the block that it was before.
#[inline(never)]
fn allocation_slow(
    registers: &Registers,
    size: usize,
    config: &Config,
    entrance: Option<Entrance>,
    resized: i64,
) -> u32 {
    epoch::configure(config);
    let Some(state) = thread::current_or_make() else {
        epoch::drop_event(Reason::Threads);
        return unrecorded_shared(size, resized);
    };
    if state.quiet() != 0 || !epoch::is_on() {
        own_frames::note(state, registers);
        return quiet_slow(state, size, resized);
    }
    record(state, registers, size, resized, entrance)
}

/// Takes the bytes of the block that this thread is resizing, if it has entered for that: the peak is told of one change.
#[inline(never)]
fn resized_bytes(entrance: Entrance) -> i64 {
    match (entrance, thread::unsilenced()) {
        (Entrance::Reallocate, Some(state)) => state.unpublished.set_resizing(0),
        _ => 0,
    }
}

/// The same in a thread that is not busy, whether silenced or not.
#[inline(never)]
fn record(
    state: &'static ThreadState,
    registers: &Registers,
    size: usize,
    resized: i64,
    entrance: Option<Entrance>,
) -> u32 {
    let busy = state.enter(BUSY);
    // What is read from here on belongs to this generation or a later one, and what changes later is noticed next time: by
    // the generation for the tools, and for what is not sampled by the recall.
    let generation = epoch::generation_slow();
    state.front.unsampled.close();
    let (base, plan) = (epoch::base(), epoch::plan());
    if base == u32::MAX {
        // Just now.
        return allocate(state, UNTRACKED, size);
    }
    state.enter_epoch();
    // SAFETY: this thread's own state, just marked.
    let tools = unsafe { state.tools() };
    unwind::refresh(tools);
    let id = if plan.leaves_to_chance(size) {
        by_chance(state, tools, registers, size, resized, base, plan)
    } else {
        whatever_chance_says(state, tools, registers, size, resized, base, entrance)
    };
    state.divide_steps();
    state.tune(generation);
    drop(busy);
    id
}

/// Books a block that chance decides about.
fn by_chance(
    state: &'static ThreadState,
    tools: &mut Tools,
    registers: &Registers,
    size: usize,
    resized: i64,
    base: u32,
    plan: Plan,
) -> u32 {
    let unsampled = &state.front.unsampled;
    let left = unsampled.left();
    if unsampled.id() != u64::from(epoch::unsampled_id(base)) {
        let id = epoch::unsampled_id(base);
        // Frees of such blocks by other threads must find a place.
        if !SHARED.make(id) {
            epoch::drop_event(Reason::Memory);
            let id = unrecorded(Some(state), size);
            state.change(live_bytes(id, size) - resized);
            return id;
        }
        state.unpublished.set_known(0);
        unsampled.begin(id);
    }
    let id = if state.sampler.decide(plan, size, left) {
        let stack = unwind::walk(tools, *registers, None);
        let id = sampled(state, tools, stack.sampled_every(plan.interval()), plan.interval(), size);
        state.change(live_bytes(id, size) - resized);
        id
    } else {
        let id = unsampled.allocate(size);
        // Published below, together with the block.
        state.small_change(-resized);
        id
    };
    // Nothing passes in a silenced thread. (One that a signal handler silences behind this is recalled by it.)
    unsampled.open(if state.quiet() == BUSY { state.sampler.stretch() } else { 0 });
    state.publish();
    id
}

/// Books a block that is recorded.
fn whatever_chance_says(
    state: &'static ThreadState,
    tools: &mut Tools,
    registers: &Registers,
    size: usize,
    resized: i64,
    base: u32,
    entrance: Option<Entrance>,
) -> u32 {
    let known = entrance.map_or(0, |entrance| unwind::recognise_slow(tools, *registers, entrance));
    let id = if known >= base {
        debug_assert!(
            entrance.is_some_and(|entrance| is_right(known, tools, *registers, entrance)),
            "a guess differs from the walk"
        );
        allocate(state, known, size)
    } else {
        walk_slow(state, tools, *registers, size, entrance)
    };
    state.change(live_bytes(id, size) - resized);
    id
}

/// Bytes that a block booked as this counts for the peak: none if there was no place to book it but as untracked.
fn live_bytes(id: u32, size: usize) -> i64 {
    if id == UNTRACKED { 0 } else { size as i64 }
}

/// Books a sampled block of the stack in the buffer.
fn sampled(
    state: &'static ThreadState,
    tools: &mut Tools,
    stack: Fingerprint,
    interval: u32,
    size: usize,
) -> u32 {
    let known = tools.cache.get(stack.check);
    let known = (known >= epoch::base()).then_some(known);
    match known.or_else(|| intern_slow(state, tools, stack, interval)) {
        Some(id) => {
            for (id, amount) in sums(id, size, interval) {
                SHARED.add(id, Direction::Allocated, amount);
            }
            id | SAMPLED
        }
        None => unrecorded(Some(state), size),
    }
}

/// The ids of a sampled block of this size, each with what is booked there.
fn sums(id: u32, size: usize, interval: u32) -> [(u32, u64); SUMS as usize] {
    let Weight { bytes, blocks, variance } = sampling::weight(size as u64, interval);
    [(id, size as u64), (id + 1, bytes), (id + 2, blocks), (id + 3, variance)]
}

/// The stack lies otherwise than it did before, or is new.
#[inline(never)]
fn walk_slow(
    state: &'static ThreadState,
    tools: &mut Tools,
    registers: Registers,
    size: usize,
    entrance: Option<Entrance>,
) -> u32 {
    let stack = unwind::walk(tools, registers, entrance);
    match tools.cache.get(stack.check) {
        // An id below the base was met before a `clear`, or is none.
        id if id >= epoch::base() => {
            debug_assert!(is_same(id, tools), "two stacks with one fingerprint");
            allocate(state, id, size)
        }
        _ => miss_slow(state, tools, stack, size),
    }
}

/// Whether a walk finds the stack of this id too. For debug builds.
fn is_right(id: u32, tools: &mut Tools, registers: Registers, entrance: Entrance) -> bool {
    unwind::walk(tools, registers, Some(entrance));
    is_same(id, tools)
}

/// Whether the id is the one of the stack in the buffer. One of the two may be longer where another thread has just
/// changed how many addresses are stored.
fn is_same(id: u32, tools: &Tools) -> bool {
    let header = &tools.buffer.header;
    let found = &tools.buffer.addresses[..header.len as usize];
    table::recorded(id).is_none_or(|recorded| {
        let is_cut = recorded.truncated || header.truncated;
        (is_cut || recorded.addresses.len() == found.len())
            && recorded.addresses.iter().zip(found).all(|(recorded, found)| recorded == found)
    })
}

/// An allocation while off, silenced, or from inside heapgauge's own code.
#[cold]
#[inline(never)]
fn quiet_slow(state: &'static ThreadState, size: usize, resized: i64) -> u32 {
    let quiet = state.quiet();
    if quiet & INTERNING != 0 {
        epoch::publish(epoch::base(), -resized);
        // The map of stacks. A counter of this thread may be in the middle of a change only if a
        // signal handler is what allocates; the shared ones are right either way.
        return allocate_shared(OVERHEAD, size);
    }
    if quiet & BUSY != 0 {
        epoch::drop_event(Reason::Reentrant);
        return unrecorded_shared(size, resized);
    }
    let _busy = state.enter(BUSY);
    if resized != 0 {
        state.change(-resized);
    }
    allocate(state, if quiet & OWN != 0 { OVERHEAD } else { UNTRACKED }, size)
}

/// A stack that this thread's cache does not hold.
#[cold]
#[inline(never)]
fn miss_slow(state: &'static ThreadState, tools: &mut Tools, stack: Fingerprint, size: usize) -> u32 {
    match intern_slow(state, tools, stack, 0) {
        Some(id) => allocate(state, id, size),
        None => unrecorded(Some(state), size),
    }
}

/// The id of the stack in the buffer, whose blocks are sampled every `interval` bytes or, at 0, all
/// recorded. `None`, counted, where there is no room for it. What is not sampled is closed: what the map of stacks
/// allocates is no block of the program.
#[cold]
#[inline(never)]
fn intern_slow(
    state: &'static ThreadState,
    tools: &mut Tools,
    stack: Fingerprint,
    interval: u32,
) -> Option<u32> {
    let interned = {
        let _interning = state.enter(INTERNING);
        table::intern(&mut tools.buffer, stack.hash(), interval)
    };
    match interned {
        Ok(id) => {
            tools.cache.insert(stack, id);
            Some(id)
        }
        Err(reason) => {
            epoch::drop_event(reason);
            None
        }
    }
}

/// Books at `[unrecorded]`, or as untracked while off. The caller tells the peak.
#[cold]
fn unrecorded(state: Option<&'static ThreadState>, size: usize) -> u32 {
    let base = epoch::base();
    if base == u32::MAX {
        return allocate_shared(UNTRACKED, size);
    }
    // Frees of it must find a place too.
    if !SHARED.make(base) {
        return allocate_shared(UNTRACKED, size);
    }
    match state {
        Some(state) => allocate(state, base, size),
        None => allocate_shared(base, size),
    }
}

/// The same in the counters that threads share. The peak is told of the size less the bytes of a block that is being
/// resized.
#[cold]
fn unrecorded_shared(size: usize, resized: i64) -> u32 {
    let base = epoch::base();
    let id = unrecorded(None, size);
    // Its free is told to the peak too.
    epoch::publish(base, live_bytes(id, size) - resized);
    id
}

/// Books an allocation under a given id, in the counters of the thread.
#[inline]
fn allocate(state: &'static ThreadState, id: u32, size: usize) -> u32 {
    if size as u64 <= MOST && state.counters.add(id, Direction::Allocated, size) {
        return id;
    }
    allocate_slow(state, id, size)
}

/// The same where the counters of the thread have no place for it yet, or never.
#[cold]
#[inline(never)]
fn allocate_slow(state: &'static ThreadState, id: u32, size: usize) -> u32 {
    if state.counters.add_slow(id, Direction::Allocated, size) { id } else { allocate_shared(id, size) }
}

/// Books an allocation under a given id, in the counters that threads share.
fn allocate_shared(id: u32, size: usize) -> u32 {
    // Every id that is given out has a place there. 0 has a static one, so this ends.
    if SHARED.add(id, Direction::Allocated, size as u64) { id } else { allocate_shared(UNTRACKED, size) }
}

/// The calling thread's count of blocks that were not sampled, if one with this in its tag belongs to it. A free of
/// it is to be booked there, and [`publish`] to be called where that says so.
///
/// Part of the program's own code, where one instruction finds the state.
#[inline(always)]
pub(crate) fn unsampled(id: u32) -> Option<&'static Unsampled> {
    let unsampled = &thread::front().unsampled;
    (unsampled.id() == u64::from(id)).then_some(unsampled)
}

/// Books the free of a block with this in its tag.
#[inline(never)]
pub(crate) fn free(id: u32, size: usize) {
    match unsampled(id) {
        Some(unsampled) if unsampled.free(size) => publish(),
        None if !free_usual(id, size) => free_quiet(id, size),
        _ => {}
    }
}

/// Books the free of a block of a stack if all is as usual; else false, and nothing is changed.
///
/// Part of the program's own code, and calls nothing.
#[inline(always)]
pub(crate) fn free_usual(id: u32, size: usize) -> bool {
    // What is at or above the base is traced.
    if id >= epoch::base()
        && let Some(state) = thread::idle()
        && state.is_small((size as i64).wrapping_neg())
    {
        let _busy = state.enter_idle();
        if state.counters.add(id, Direction::Freed, size) {
            state.small_change((size as i64).wrapping_neg());
            return true;
        }
    }
    false
}

/// The free of a block that is not traced, or not any more; or one that is not as usual.
#[inline(never)]
fn free_quiet(id: u32, size: usize) {
    if id < FIRST {
        if let Some(state) = thread::idle()
            && size as u64 <= MOST
        {
            let _busy = state.enter(BUSY);
            if state.counters.add(id, Direction::Freed, size) {
                return;
            }
        }
    } else if id < epoch::base() {
        // From before a `clear`, or while off: nothing is known of it any more.
        return;
    }
    free_slow(id, size);
}

/// Tells the peak what is not known to it.
#[cold]
#[inline(never)]
pub(crate) fn publish() {
    // In a signal handler the next one sees to it.
    if let Some(state) = thread::idle() {
        let _busy = state.enter(BUSY);
        state.publish();
    }
}

#[cold]
#[inline(never)]
fn free_slow(id: u32, size: usize) {
    change_slow(-traced_bytes(id, size));
    free_published(id, size);
}

/// Books the free of a block that the peak has been told of.
#[inline(never)]
fn free_published(id: u32, size: usize) {
    if id & SAMPLED != 0 {
        return free_sampled(id & !SAMPLED, size);
    }
    if let Some(unsampled) = unsampled(id) {
        unsampled.free_known(size);
        if let Some(state) = thread::current() {
            state.unpublished.set_known(unsampled.known());
        }
        return;
    }
    if (id >= FIRST && id < epoch::base()) || id >= epoch::end_id() {
        // Stale; or no id that was ever given out: the program has written past the end of a block.
        return;
    }
    if let Some(state) = thread::current_or_make().filter(|state| state.quiet() & BUSY == 0) {
        let _busy = state.enter(BUSY);
        if size as u64 <= MOST && state.counters.add(id, Direction::Freed, size)
            || state.counters.add_slow(id, Direction::Freed, size)
        {
            return;
        }
    }
    // Every id that is in a tag has a place here, made before the id was given out.
    if !SHARED.add(id, Direction::Freed, size as u64) {
        epoch::drop_event(Reason::Memory);
    }
}

/// Takes back what a sampled block of this id was booked as.
#[cold]
fn free_sampled(id: u32, size: usize) {
    if let Some(interval) = interval_of(id) {
        for (id, amount) in sums(id, size, interval) {
            SHARED.add(id, Direction::Freed, amount);
        }
    }
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

/// A block that was booked under `id` has no place for its tag: it counts as untracked instead.
#[cold]
fn misplaced(id: u32, size: usize) {
    free(id, size);
    // Where its stack was lost already, it has been counted.
    if id != epoch::base() {
        epoch::drop_event(Reason::Memory);
    }
    allocate_shared(UNTRACKED, size);
}

/// Books a block that changes its size if it was not sampled and is not now either, and returns what its tag is to
/// hold. Both sizes are as for [`pass`].
#[inline(always)]
pub(crate) fn pass_resized(old: u32, old_size: usize, new_size: usize) -> Option<u32> {
    // Where the peak has to be told, the free behind `reallocation` does it.
    let unsampled = unsampled(old).filter(|unsampled| !unsampled.has_news())?;
    let id = pass(new_size)?;
    unsampled.free(old_size);
    Some(id)
}

/// Books a block that changes its size and does not [pass](pass_resized), tags it and returns it. Chance decides anew.
///
/// # Safety
///
/// * `block` has its new size, and not yet its tag.
#[inline(never)]
pub(crate) unsafe fn reallocation(
    block: *mut u8,
    old: u32,
    old_size: usize,
    new_size: usize,
    config: &Config,
) -> *mut u8 {
    let Some(state) = thread::unsilenced() else {
        // SAFETY: the caller's duty.
        return unsafe { reallocation_slow(block, old, old_size, new_size, config) };
    };
    let resized = traced_bytes(old, old_size);
    let interrupted = state.unpublished.set_resizing(resized);
    // SAFETY: the caller's duty.
    let block = unsafe { allocation(block, new_size, config, Entrance::Reallocate) };
    if state.unpublished.set_resizing(interrupted) == resized {
        // The fast path: it changes the live bytes only as far as nothing has to be published.
        free(old, old_size);
    } else {
        free_published(old, old_size);
    }
    block
}

/// The same in a thread that is silenced or busy, or has no state yet.
///
/// # Safety
///
/// * As for [`reallocation`].
#[cold]
#[inline(never)]
unsafe fn reallocation_slow(
    block: *mut u8,
    old: u32,
    old_size: usize,
    new_size: usize,
    config: &Config,
) -> *mut u8 {
    let quiet = thread::current_or_make().map_or(BUSY, ThreadState::quiet);
    let id = if quiet & (thread::PAUSED | OWN) != 0 {
        if let Some(state) = thread::current() {
            own_frames::note(state, &Registers::here());
        }
        resized_slow(old, old_size, new_size)
    } else {
        allocation_slow(&Registers::here(), new_size, config, None, traced_bytes(old, old_size))
    };
    free_published(old, old_size);
    // SAFETY: the caller's duty.
    unsafe { keep(block, new_size, id) }
}

/// In a silenced thread a block keeps the id it has, but for one that chance has decided about: a block
/// that grew and kept its place would be in the sample as seldom as when it was small, and weigh as
/// little as a large one. Chance decides anew, and the stack is the present one.
///
/// The block's old size is still booked; the peak is told of both.
fn resized_slow(tag: u32, old_size: usize, new_size: usize) -> u32 {
    let base = epoch::base();
    let is_stale = tag & !SAMPLED < base;
    let by_chance = if is_stale { false } else { tag & SAMPLED != 0 || tag == epoch::unsampled_id(base) };
    if is_stale && tag & SAMPLED != 0 {
        return tag;
    }
    let resized = traced_bytes(tag, old_size);
    match thread::idle() {
        Some(state) if by_chance => record(state, &Registers::here(), new_size, resized, None),
        Some(state) => {
            let _busy = state.enter(BUSY);
            if !is_stale {
                state.change(new_size as i64 - resized);
            }
            allocate(state, tag, new_size)
        }
        None if by_chance => unrecorded_shared(new_size, resized),
        None => {
            if !is_stale {
                epoch::publish(base, new_size as i64 - resized);
            }
            allocate_shared(tag, new_size)
        }
    }
}

/// The calling code's stack, recorded as an allocation's would be; `None` if it could not be.
#[inline(never)]
pub(crate) fn stack_of_caller() -> Option<table::Recorded> {
    let state = thread::current_or_make()?;
    if state.quiet() & BUSY != 0 {
        return None;
    }
    let _busy = state.enter(BUSY);
    // SAFETY: this thread's own state, just marked.
    let tools = unsafe { state.tools() };
    let stack = unwind::walk(tools, Registers::here(), None);
    let _interning = state.enter(INTERNING);
    // What the map of stacks allocates is no block of the program.
    state.front.unsampled.recall();
    table::recorded(table::intern(&mut tools.buffer, stack.hash(), 0).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::epoch::DEFAULT_FRAMES;
    use crate::record::thread::{PAUSED, Silence};
    use std::sync::{Mutex, MutexGuard, PoisonError};

    const CONFIG: Config = Config {
        frames: DEFAULT_FRAMES as u8,
        paused: false,
        sample_every: 0,
        exact_from: 0,
        is_global: false,
    };

    /// One after the other: the tests share the tracker.
    fn started() -> MutexGuard<'static, ()> {
        static ONE: Mutex<()> = Mutex::new(());
        let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        crate::record::startup::ensure();
        epoch::start();
        guard
    }

    fn peak() -> u64 {
        epoch::peak(|| thread::unpublished_bytes(epoch::base()))
    }

    /// A tag that the program has written over may hold anything. Here it is freed by a thread without a state.
    #[test]
    fn a_tag_of_ones_is_nobodys() {
        let _one = started();
        let freed = std::thread::spawn(|| {
            free(u32::MAX, 16);
            (thread::current().is_none(), thread::front().unsampled.read_freed())
        });
        assert_eq!(freed.join().unwrap(), (true, (0, 0)));
        epoch::stop();
    }

    /// Books a small block as the allocator's own methods do: its tag.
    fn allocated(size: usize) -> u32 {
        let mut block = [0u8; SMALL + 4];
        // SAFETY: room for the block and its tag.
        unsafe {
            let block = match pass(size) {
                Some(id) => return id,
                None => allocation(block.as_mut_ptr(), size, &CONFIG, Entrance::Allocate),
            };
            tag::read(block, size)
        }
    }

    #[test]
    fn nothing_passes_that_is_out_of_the_usual() {
        let _one = started();
        let unsampled = || thread::current().unwrap().front.unsampled.id() as u32;
        epoch::set_sample_interval(1 << 30);
        allocated(16);
        assert_eq!((pass(16), pass(16)), (Some(unsampled()), Some(unsampled())));
        // Each of these is seen by the very next block; and the one after it passes again, or does not.
        let changes: [(fn(), bool); 5] = [
            (epoch::clear, true),
            (|| epoch::set_sample_interval(1 << 29), true),
            (|| drop(Silence::new(PAUSED)), true),
            (|| epoch::set_sample_interval(0), false),
            (epoch::stop, false),
        ];
        for (number, (change, passes)) in changes.into_iter().enumerate() {
            change();
            assert_eq!(pass(16), None, "{number}");
            allocated(16);
            assert_eq!(pass(16).is_some(), passes, "{number}");
        }
        epoch::start();
        epoch::set_sample_interval(1 << 30);
        let silence = Silence::new(PAUSED);
        assert_eq!((allocated(16), pass(16)), (UNTRACKED, None));
        drop(silence);
        // Where a stretch would be opened anew: a block that chance has decided about changes its size.
        let id = allocated(16);
        let silence = Silence::new(PAUSED);
        assert_eq!((resized_slow(id, 16, 32), pass(16)), (id, None));
        drop(silence);
        epoch::set_sample_interval(0);
        epoch::stop();
    }

    /// Whoever was about to take it back is not in the child.
    #[cfg(all(unix, not(miri)))]
    #[test]
    fn a_forked_child_takes_back_every_stretch() {
        let _one = started();
        epoch::set_sample_interval(1 << 30);
        allocated(16);
        assert!(pass(16).is_some());
        // SAFETY: the child makes no call that takes a lock or allocates.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let passes = pass(16).is_some();
            // SAFETY: as above.
            unsafe { libc::_exit(i32::from(passes)) };
        }
        let mut status = -1;
        // SAFETY: a place to write to.
        assert_eq!((child > 0, unsafe { libc::waitpid(child, &raw mut status, 0) }), (true, child));
        assert_eq!(status, 0, "a block passed");
        assert!(pass(16).is_some());
        epoch::set_sample_interval(0);
        epoch::stop();
    }

    #[test]
    fn the_peak_is_told_of_blocks_that_shrink() {
        let _one = started();
        epoch::set_sample_interval(1 << 30);
        let tags: Vec<u32> = (0..200).map(|_| allocated(1_000)).collect();
        let mut block = [0u8; SMALL + 4];
        let told = tags.into_iter().filter(|&id| {
            let is_due = pass_resized(id, 1_000, 1).is_none();
            if is_due {
                // SAFETY: room for a block of one byte and its tag.
                unsafe { reallocation(block.as_mut_ptr(), id, 1_000, 1, &CONFIG) };
            }
            is_due
        });
        // Every 64 KiB.
        assert!(told.count() >= 2);
        epoch::set_sample_interval(0);
        epoch::stop();
    }

    #[test]
    fn the_peak_is_told_of_what_is_lost() {
        let _one = started();
        epoch::clear();
        let id = unrecorded_shared(1 << 20, 0);
        assert!(peak() >= 1 << 20);
        free(id, 1 << 20);
        epoch::stop();
    }

    #[test]
    fn what_was_forgotten_does_not_raise_the_peak_when_it_grows() {
        let _one = started();
        let mut block = vec![0u8; 1 << 20];
        // SAFETY: a block of this size that nobody else tags.
        let id = unsafe {
            tag::read(allocation(block.as_mut_ptr(), block.len(), &CONFIG, Entrance::Allocate), block.len())
        };
        assert!(peak() >= 1 << 20);
        epoch::clear();
        let silence = Silence::new(PAUSED);
        for _ in 0..10 {
            // SAFETY: as above.
            let now = unsafe { reallocation(block.as_mut_ptr(), id, block.len(), block.len(), &CONFIG) };
            // SAFETY: as above.
            assert_eq!(unsafe { tag::read(now, block.len()) }, id);
        }
        drop(silence);
        assert_eq!(peak(), 0);
        epoch::stop();
    }
}
