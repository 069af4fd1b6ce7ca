//! Tests of thread states.

use crate::record::count::counters::{Chunk, Direction};
use crate::record::epoch;
use crate::record::thread::registry::make;
use crate::record::thread::state::{BUSY, INTERNING, PAUSED};
use std::sync::atomic::Ordering;

/// A signal handler may begin one that outlives it.
#[test]
fn a_suspension_begun_while_busy_lasts() {
    let state = make().unwrap();
    let busy = state.enter(BUSY);
    state.suspend(PAUSED);
    drop(busy);
    assert_eq!(state.flags(), PAUSED);
    let generation = epoch::generation();
    let busy = state.enter(BUSY);
    let interning = state.enter(INTERNING | BUSY);
    state.set_generation(generation);
    drop(interning);
    assert_eq!(state.flags(), PAUSED | BUSY);
    drop(busy);
    assert_eq!((state.flags(), state.hot.flags.load(Ordering::Relaxed) == generation), (PAUSED, false));
    state.resume(PAUSED);
    assert_eq!(state.hot.flags.load(Ordering::Relaxed), generation);
}

/// Its thread jumped out of a signal handler that had interrupted an event, and ended later.
#[test]
fn a_state_left_busy_is_repaired_before_another_thread_has_it() {
    let state = make().unwrap();
    assert!(state.counters.add_slow(70, Direction::Freed, 5));
    // SAFETY: made above and known to this thread alone; nothing else has the owner's part.
    unsafe { state.owner() }.buffer.header.len = 1;
    std::mem::forget(state.enter(INTERNING | BUSY));
    state.inside.store(1, Ordering::SeqCst);
    state.leave_fork_lock();
    assert_eq!(state.inside.load(Ordering::SeqCst), 0, "a fork would wait for ever");
    state.reset_for_new_thread();
    assert_eq!(state.flags(), 0);
    // SAFETY: as above.
    assert_eq!(unsafe { state.owner() }.buffer.header.len, 0);
    assert_eq!(state.counters.chunk(1).unwrap().read(70 - 64, Direction::Freed), (5, 1));
}

#[test]
fn a_fork_gives_up_half_changed_tables_and_keeps_counts() {
    for busy in [false, true] {
        let state = make().unwrap();
        assert!(state.counters.add_slow(70, Direction::Freed, 5));
        // SAFETY: made above and known to this thread alone; nothing else has the owner's part.
        unsafe { state.owner() }.buffer.header.len = 1;
        if busy {
            state.hot.flags.store(BUSY.into(), Ordering::Relaxed);
        }
        state.repair_after_fork();
        // SAFETY: as above.
        assert_eq!(unsafe { state.owner() }.buffer.header.len, u16::from(!busy));
        assert_eq!(state.counters.chunk(1).unwrap().read(70 - 64, Direction::Freed), (5, 1));
    }
}
