//! The gate that `fork` closes: no other thread is inside the map of stacks, or inside the symbol
//! reader, while the process is copied, so the child finds their locks free.
//!
//! Entering is two atomic operations, on paths that already take a lock. Waiting happens only while
//! another thread is between `pthread_atfork`'s prepare and parent handlers, which neither allocate
//! nor wait for anything but those inside the gate.

use crate::base::atomics::{AtomicUsize, Ordering};

/// The thread that forks, 0 while nobody does.
static CLOSED_BY: AtomicUsize = AtomicUsize::new(0);
static INSIDE: AtomicUsize = AtomicUsize::new(0);

/// Keeps a fork of another thread waiting until it goes.
pub(crate) struct Inside(());

/// Enters, after waiting for a fork that is under way.
pub(crate) fn enter() -> Inside {
    loop {
        // SeqCst here and in `close`: of "I am inside" and "it is closed", each side writes one and
        // reads the other, and at least one of them must see the other's write.
        INSIDE.fetch_add(1, Ordering::SeqCst);
        let closed_by = CLOSED_BY.load(Ordering::SeqCst);
        if closed_by == 0 || closed_by == this_thread() {
            return Inside(());
        }
        INSIDE.fetch_sub(1, Ordering::SeqCst);
        std::thread::yield_now();
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Waits until at most `own` are inside and keeps others out: `own` is 1 where the forking thread is
/// inside itself (it forks in a signal handler).
#[cfg_attr(not(unix), allow(dead_code))]
pub(crate) fn close(own: usize) {
    // Two threads that fork at once take turns.
    while CLOSED_BY.compare_exchange(0, this_thread(), Ordering::SeqCst, Ordering::SeqCst).is_err() {
        std::thread::yield_now();
    }
    while INSIDE.load(Ordering::SeqCst) > own {
        std::thread::yield_now();
    }
}

/// Opens it again, in the parent and in the child.
#[cfg_attr(not(unix), allow(dead_code))]
pub(crate) fn open() {
    CLOSED_BY.store(0, Ordering::SeqCst);
}

/// A number that no other living thread has and that needs no allocation.
fn this_thread() -> usize {
    thread_local! {
        static HERE: u8 = const { 0 };
    }
    // During a thread's very end its locals may be gone; such threads share a number, and the worst
    // that follows is that one of them does not wait.
    HERE.try_with(|here| (&raw const *here).addr()).unwrap_or(1)
}
