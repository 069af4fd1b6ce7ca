//! An allocation or a free → counters: the decision whether, where and under which id.
//!
//! Runs inside the allocator, on any thread at any time. The common case, a thread with a state, on,
//! not silenced, and a stack met before, touches nothing that is shared.

use crate::counters::Direction;
use crate::stack::{self, Entrance, Registers};
use crate::stack_cache::Fingerprint;
use crate::stacks;
use crate::tag::{FIRST, OVERHEAD, UNTRACKED};
use crate::thread::{self, BUSY, INTERNING, OWN, SHARED, ThreadState, Tools};
use crate::tracker::{self, Reason};

/// What the first instance that allocates decides for all.
#[derive(Clone, Copy)]
pub(crate) struct Config {
    pub frames: u8,
    pub paused: bool,
}

/// Books an allocation of the calling code and returns the id for its tag.
#[inline(never)]
pub(crate) fn allocation(size: usize, config: Config, entrance: Entrance) -> u32 {
    let Some(state) = thread::current() else { return first_slow(size, config) };
    let base = tracker::base();
    if state.quiet() != 0 || base == u32::MAX {
        return quiet_slow(state, size, config);
    }
    let busy = state.enter(BUSY);
    let registers = Registers::here();
    // SAFETY: `current` gave this thread's own state, and it has just been marked.
    let tools = unsafe { state.tools() };
    let id = match stack::recognise(tools, registers, entrance, base) {
        Some(id) => {
            debug_assert!(is_right(id, tools, registers, entrance), "a guess differs from the walk");
            allocate(state, id, size)
        }
        None => walk_slow(state, tools, registers, size, entrance),
    };
    state.change(size as i64);
    drop(busy);
    id
}

/// The stack lies otherwise than it did before, or is new.
#[inline(never)]
fn walk_slow(
    state: &'static ThreadState,
    tools: &mut Tools,
    registers: Registers,
    size: usize,
    entrance: Entrance,
) -> u32 {
    let stack = stack::walk(tools, registers, entrance);
    match tools.cache.get(stack) {
        // An id below the base was met before a `clear`.
        Some(id) if id >= tracker::base() => {
            debug_assert!(is_same(id, tools), "two stacks with one fingerprint");
            allocate(state, id, size)
        }
        _ => miss_slow(state, tools, stack, size),
    }
}

/// Whether a walk finds the stack of this id too. For debug builds.
fn is_right(id: u32, tools: &mut Tools, registers: Registers, entrance: Entrance) -> bool {
    stack::walk(tools, registers, entrance);
    is_same(id, tools)
}

/// Whether the id is the one of the stack in the buffer.
fn is_same(id: u32, tools: &Tools) -> bool {
    let found = &tools.buffer.addresses[..tools.buffer.header.len as usize];
    stacks::recorded(id).is_none_or(|recorded| recorded.addresses == found)
}

/// The first allocation of a thread, or one of a thread that has no state.
#[cold]
#[inline(never)]
fn first_slow(size: usize, config: Config) -> u32 {
    tracker::configure(u32::from(config.frames), config.paused);
    match thread::current_or_make() {
        // This function's frame is one more on the stack.
        Some(_) => allocation(size, config, Entrance::Other),
        None => {
            tracker::drop_event(Reason::Threads);
            unrecorded(None, size)
        }
    }
}

/// An allocation while off, silenced, or from inside heapgauge's own code.
#[cold]
#[inline(never)]
fn quiet_slow(state: &'static ThreadState, size: usize, config: Config) -> u32 {
    let quiet = state.quiet();
    if tracker::configure(u32::from(config.frames), config.paused) && quiet == 0 {
        return allocation(size, config, Entrance::Other);
    }
    if quiet & INTERNING != 0 {
        // The map of stacks. A counter of this thread may be in the middle of a change only if a
        // signal handler is what allocates; the shared ones are right either way.
        return allocate_shared(OVERHEAD, size);
    }
    if quiet & BUSY != 0 {
        tracker::drop_event(Reason::Reentrant);
        return unrecorded(None, size);
    }
    let _busy = state.enter(BUSY);
    allocate(state, if quiet & OWN != 0 { OVERHEAD } else { UNTRACKED }, size)
}

/// A stack that this thread's cache does not hold.
#[cold]
#[inline(never)]
fn miss_slow(state: &'static ThreadState, tools: &mut Tools, stack: Fingerprint, size: usize) -> u32 {
    let interned = {
        let _interning = state.enter(INTERNING);
        stacks::intern(&mut tools.buffer, stack.hash())
    };
    match interned {
        Ok(id) => {
            tools.cache.insert(stack, id);
            allocate(state, id, size)
        }
        Err(reason) => {
            tracker::drop_event(reason);
            unrecorded(Some(state), size)
        }
    }
}

/// Books at `[unrecorded]`, or as untracked while off.
#[cold]
fn unrecorded(state: Option<&'static ThreadState>, size: usize) -> u32 {
    let base = tracker::base();
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

/// Books an allocation under a given id, in the counters of the thread.
#[inline(always)]
fn allocate(state: &'static ThreadState, id: u32, size: usize) -> u32 {
    if state.counters.add(id, Direction::Allocated, size) {
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
    if SHARED.add(id, Direction::Allocated, size) { id } else { allocate_shared(UNTRACKED, size) }
}

/// Books the free of a block of this id.
#[inline]
pub(crate) fn free(id: u32, size: usize) {
    // From before a `clear`, or while off: nothing is known of it any more.
    let is_traced = id >= FIRST;
    if is_traced && id < tracker::base() {
        return;
    }
    if let Some(state) = thread::current()
        && state.quiet() & BUSY == 0
    {
        let busy = state.enter(BUSY);
        if state.counters.add(id, Direction::Freed, size) {
            if is_traced {
                state.change((size as i64).wrapping_neg());
            }
        } else {
            free_slow(Some(state), id, size);
        }
        drop(busy);
    } else {
        free_slow(None, id, size);
    }
}

#[cold]
#[inline(never)]
fn free_slow(state: Option<&'static ThreadState>, id: u32, size: usize) {
    if id >= tracker::end_id() {
        // No id that was ever given out: the program has written past the end of a block.
        return;
    }
    let change = (size as i64).wrapping_neg();
    // A thread that only frees gets a state here.
    let state = state.or_else(|| thread::current_or_make().filter(|state| state.quiet() & BUSY == 0));
    if let Some(state) = state {
        let _busy = state.enter(BUSY);
        if id >= FIRST {
            state.change(change);
        }
        if state.counters.add_slow(id, Direction::Freed, size) {
            return;
        }
    } else if id >= FIRST {
        tracker::publish(change);
    }
    // Every id that is in a tag has a place here, made before the id was given out.
    SHARED.add(id, Direction::Freed, size);
}

/// A block that was booked under `id` has no place for its tag: it counts as untracked instead.
#[cold]
pub(crate) fn misplaced(id: u32, size: usize) {
    free(id, size);
    // Where its stack was lost already, it has been counted.
    if id != tracker::base() {
        tracker::drop_event(Reason::Memory);
    }
    allocate_shared(UNTRACKED, size);
}

/// Books a block that changes its size: the id for its new tag.
#[inline]
pub(crate) fn reallocation(old: u32, old_size: usize, new_size: usize, config: Config) -> u32 {
    if is_silenced() {
        return resized_slow(old, old_size, new_size);
    }
    let id = allocation(new_size, config, Entrance::Reallocate);
    free(old, old_size);
    id
}

/// Whether the program or heapgauge itself has silenced this thread.
#[inline]
fn is_silenced() -> bool {
    thread::current().is_some_and(|state| state.quiet() & (thread::PAUSED | OWN) != 0)
}

/// In a silenced thread a block keeps the id it has.
#[cold]
#[inline(never)]
fn resized_slow(id: u32, old_size: usize, new_size: usize) -> u32 {
    match thread::current() {
        Some(state) if state.quiet() & BUSY == 0 => {
            let busy = state.enter(BUSY);
            let booked = allocate(state, id, new_size);
            if id >= FIRST {
                state.change(new_size as i64);
            }
            drop(busy);
            free(id, old_size);
            booked
        }
        _ => {
            let booked = allocate_shared(id, new_size);
            free(id, old_size);
            booked
        }
    }
}

/// The calling code's stack, recorded as an allocation's would be; `None` if it could not be.
#[inline(never)]
pub(crate) fn stack_of_caller() -> Option<stacks::Recorded> {
    let state = thread::current_or_make()?;
    if state.quiet() & BUSY != 0 {
        return None;
    }
    let _busy = state.enter(BUSY);
    // SAFETY: this thread's own state, just marked.
    let tools = unsafe { state.tools() };
    let stack = stack::walk(tools, Registers::here(), Entrance::Other);
    let _interning = state.enter(INTERNING);
    stacks::recorded(stacks::intern(&mut tools.buffer, stack.hash()).ok()?)
}
