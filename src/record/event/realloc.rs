//! Records resizes.

use super::alloc::{
    count_alloc, count_alloc_shared, record_alloc, record_alloc_slow, record_busy,
    record_unattributed_shared, refresh_and_record, try_fast,
};
use super::free::{count_free, record_free};
use super::write_tag::write_tag;
use super::{Resized, publish_shared, traced_bytes, unsampled};
use crate::record::dropped::{self, Reason};
use crate::record::epoch::{self, Config};
use crate::record::own_frames;
use crate::record::tag::{FIRST, SAMPLED};
use crate::record::thread::{self, BUSY, INTERNAL, ThreadState};
use crate::record::unwind::{Entrance, Registers};

/// Records a resize if the block was not sampled and is not now either, and returns the id for its tag. Both sizes are
/// as for [`try_fast`].
#[inline(always)]
pub(crate) fn try_fast_realloc(old: u32, old_size: usize, new_size: usize) -> Option<u32> {
    // Where a publication is due, the free in `record_realloc` does it.
    let unsampled = unsampled(old.into()).filter(|unsampled| !unsampled.has_unpublished())?;
    let id = try_fast(new_size)?;
    unsampled.free(old_size);
    Some(id)
}

/// Records a resize that does not [take the fast path](try_fast_realloc), tags the block and returns it. Whether it is
/// sampled is decided anew.
///
/// # Safety
///
/// * `block` has its new size, and not yet its tag.
#[inline(never)]
pub(crate) unsafe fn record_realloc(
    block: *mut u8,
    old: u32,
    old_size: usize,
    new_size: usize,
    config: &Config,
) -> *mut u8 {
    let Some(state) = thread::unsuspended() else {
        // SAFETY: the caller's duty.
        return unsafe { record_realloc_slow(block, old, old_size, new_size, config) };
    };
    if old_size <= LARGEST_APART {
        // SAFETY: the caller's duty.
        let block =
            unsafe { record_alloc(block, new_size, thread::hot_state(), config, Entrance::Reallocate) };
        record_free(old.into(), old_size);
        return block;
    }
    let resized = traced_bytes(old, old_size);
    let interrupted = state.unpublished.set_resizing(resized);
    // SAFETY: the caller's duty.
    let block = unsafe { record_alloc(block, new_size, thread::hot_state(), config, Entrance::Reallocate) };
    if state.unpublished.set_resizing(interrupted) == resized {
        // The fast path: it changes the live bytes only as far as nothing has to be published.
        record_free(old.into(), old_size);
    } else {
        state.give_back_resized(old & !SAMPLED, resized);
        count_free(old, old_size);
    }
    block
}

/// Largest block whose resize is recorded as an allocation and then a free. Where the first of the two is published,
/// the peak counts the old block too, once: less than a thread may leave unpublished, so that the peak stays in its
/// bounds.
const LARGEST_APART: usize = 16 << 10;

/// Records a resize in a thread that is suspended or busy, or has no state yet.
///
/// # Safety
///
/// * As for [`record_realloc`].
#[cold]
#[inline(never)]
unsafe fn record_realloc_slow(
    block: *mut u8,
    old: u32,
    old_size: usize,
    new_size: usize,
    config: &Config,
) -> *mut u8 {
    let resized = Resized::new(old, old_size);
    let id = match thread::current_or_make() {
        None => {
            epoch::configure(config);
            dropped::count(Reason::Threads);
            record_unattributed_shared(new_size, resized)
        }
        Some(state) if state.flags() & (thread::PAUSED | INTERNAL) != 0 => {
            own_frames::note(state, &Registers::here());
            resize_suspended(old, old_size, new_size)
        }
        Some(state) if state.flags() & BUSY != 0 => record_busy(state.flags(), new_size, resized),
        Some(state) => record_resized(state, resized, |registers| {
            state.unpublished.set_resizing(resized.bytes);
            record_alloc_slow(registers, new_size, config, None)
        }),
    };
    count_free(old, old_size);
    // SAFETY: the caller's duty.
    unsafe { write_tag(block, new_size, id) }
}

/// Records the new size in a thread that is not busy, less the old one: taken back where a `clear` has come between the
/// two.
#[inline(always)]
pub(super) fn record_resized(
    state: &ThreadState,
    resized: Resized,
    record: impl FnOnce(&Registers) -> u32,
) -> u32 {
    state.unpublished.set_resized_in(0);
    let id = record(&Registers::here());
    state.give_back_resized(resized.id, resized.bytes);
    id
}

/// Counts the new size in a suspended thread, at the id that the block has. Not so a block that could have been
/// sampled: one that grew and kept its id would be in the sample as seldom as when it was small, and weigh as little
/// as a large one. Whether it is sampled is decided anew, and the stack is the present one.
///
/// The caller takes the old size off the counters; the peak gets both changes here.
pub(super) fn resize_suspended(tag: u32, old_size: usize, new_size: usize) -> u32 {
    let base = epoch::base();
    let is_stale = tag & !SAMPLED < base;
    let is_sampled_anew =
        if is_stale { false } else { tag & SAMPLED != 0 || tag == epoch::unsampled_id(base) };
    // Its free will not be counted either.
    let is_over = |tag: u32| tag & !SAMPLED >= FIRST && tag & !SAMPLED < epoch::base();
    if is_over(tag) {
        return tag;
    }
    let resized = Resized::new(tag, old_size);
    match thread::idle() {
        Some(state) if is_sampled_anew => record_resized(state, resized, |registers| {
            refresh_and_record(state, registers, new_size, resized.bytes, None)
        }),
        Some(state) => {
            let _busy = state.enter(BUSY);
            if is_over(tag) {
                return tag;
            }
            if !is_stale {
                state.change(tag & !SAMPLED, new_size as i64 - resized.bytes, 0);
            }
            count_alloc(state, tag, new_size)
        }
        None if is_sampled_anew => record_unattributed_shared(new_size, resized),
        None => {
            if !is_stale {
                publish_shared(tag, new_size as i64 - resized.bytes);
            }
            thread::in_event(|| if is_over(tag) { tag } else { count_alloc_shared(tag, new_size) })
        }
    }
}
