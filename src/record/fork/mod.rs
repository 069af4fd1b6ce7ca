//! The fork lock, which `fork` closes: while the process is copied no other thread is inside, that is, in the middle
//! of a change of what all threads share. So a child finds the map of stacks and the read side's tables whole.
//!
//! Each thread notes in its own state whether it is inside; entering is two atomic operations, on paths that already
//! take a lock. Threads stay inside for moments: longer work, such as reading debug information, is done [`outside`].
//! Waiting happens only between `pthread_atfork`'s prepare and parent handlers, which neither allocate nor wait for
//! anything but those inside.

pub(crate) mod mutex;
#[cfg(feature = "http")]
pub(crate) mod sockets;

use crate::base::atomics::{AtomicUsize, Ordering};
use crate::record::thread::{self, ThreadState};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;
use std::time::Duration;

/// The thread that forks, 0 while none does.
static CLOSED_BY: AtomicUsize = AtomicUsize::new(0);

/// Times that threads without a state are inside.
static STATELESS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Share of this thread in [`STATELESS`].
    static OF_STATELESS: Cell<usize> = const { Cell::new(0) };
}

/// Count of the times that a thread is inside: kept in its state, or in [`STATELESS`] where it has none.
#[derive(Clone, Copy)]
struct Counter(Option<&'static ThreadState>);

impl Counter {
    fn of_this_thread() -> Counter {
        Counter(thread::current())
    }

    fn own(self) -> usize {
        self.0.map_or_else(of_stateless, |state| state.inside.load(Ordering::Relaxed))
    }

    /// Tells whether the thread is inside, in either way of counting.
    fn is_inside(self) -> bool {
        self.own() != 0 || of_stateless() != 0
    }

    /// Enters so many times, after waiting for a fork that is under way.
    fn enter(self, times: usize) {
        // A fork that is under way waits for a thread that is inside, so this thread must not wait for the fork: it may
        // hold one lock and take a second.
        if self.is_inside() {
            return self.add(times);
        }
        let mut tries = 0;
        loop {
            // Before anything is added: threads that wait here must not keep the fork waiting.
            while is_closed() {
                wait(&mut tries);
            }
            // SeqCst here, in `is_closed` and in `close`: of "I am inside" and "it is closed", each side writes one and
            // then reads the other, and at least one of them must see the other's write.
            self.add(times);
            if !is_closed() {
                return;
            }
            self.leave(times);
        }
    }

    fn add(self, times: usize) {
        match self.0 {
            Some(state) => state.inside.fetch_add(times, Ordering::SeqCst),
            None => {
                set_of_stateless(of_stateless() + times);
                STATELESS.fetch_add(times, Ordering::SeqCst)
            }
        };
    }

    fn leave(self, times: usize) {
        // SeqCst: as above. As a Release it also pairs with the load of `close`: the child sees what was changed.
        match self.0 {
            Some(state) => state.inside.fetch_sub(times, Ordering::SeqCst),
            None => {
                set_of_stateless(of_stateless().saturating_sub(times));
                STATELESS.fetch_sub(times, Ordering::SeqCst)
            }
        };
    }
}

/// Keeps a fork of another thread waiting until it is dropped.
pub(crate) struct Inside {
    counter: Counter,
    /// It belongs to the thread that made it.
    not_send: PhantomData<*const ()>,
}

/// Enters the lock, after waiting for a fork that is under way.
pub(crate) fn enter() -> Inside {
    let counter = Counter::of_this_thread();
    counter.enter(1);
    Inside { counter, not_send: PhantomData }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.counter.leave(1);
    }
}

/// Leaves the lock for an action that may take long, during which a fork need not wait.
///
/// Values that the calling thread has locked inside must be consistent, as for a panic here: the child takes them
/// over as they are.
pub(crate) fn outside<T>(act: impl FnOnce() -> T) -> T {
    struct Back(Counter, usize);
    impl Drop for Back {
        fn drop(&mut self) {
            self.0.enter(self.1);
        }
    }
    let counter = Counter::of_this_thread();
    let times = counter.own();
    if times == 0 {
        return act();
    }
    counter.leave(times);
    let _back = Back(counter, times);
    act()
}

/// Returns the value of a cell, made by the first thread that asks. `make` may take long, and be called by several
/// threads.
pub(crate) fn get_or_make<T>(cell: &OnceLock<T>, make: impl FnOnce() -> T) -> &T {
    if let Some(value) = cell.get() {
        return value;
    }
    let value = make();
    let _inside = enter();
    cell.get_or_init(|| value)
}

/// Returns whether another thread forks.
fn is_closed() -> bool {
    let closed_by = CLOSED_BY.load(Ordering::SeqCst);
    closed_by != 0 && closed_by != this_thread()
}

/// Waits until no other thread is inside, and keeps others out. The calling thread may be inside: it forks in a signal
/// handler.
#[cfg_attr(not(unix), allow(dead_code))]
pub(crate) fn close() {
    let mut tries = 0;
    // Two threads that fork at once take turns.
    while CLOSED_BY.compare_exchange(0, this_thread(), Ordering::SeqCst, Ordering::SeqCst).is_err() {
        wait(&mut tries);
    }
    tries = 0;
    while others_are_inside() {
        wait(&mut tries);
    }
}

fn others_are_inside() -> bool {
    let own = thread::current().map_or(std::ptr::null(), |state| &raw const *state);
    let is_inside =
        |state: &ThreadState| !std::ptr::eq(state, own) && state.inside.load(Ordering::SeqCst) != 0;
    thread::all().any(is_inside) || STATELESS.load(Ordering::SeqCst) > of_stateless()
}

fn of_stateless() -> usize {
    OF_STATELESS.try_with(Cell::get).unwrap_or(0)
}

fn set_of_stateless(times: usize) {
    let _ = OF_STATELESS.try_with(|own| own.set(times));
}

/// Opens it again, in the parent and in the child.
#[cfg_attr(not(unix), allow(dead_code))]
pub(crate) fn open() {
    CLOSED_BY.store(0, Ordering::SeqCst);
}

/// Forgets, in a forked child, the threads that it does not have.
#[cfg_attr(not(unix), allow(dead_code))]
pub(crate) fn forget_other_threads() {
    STATELESS.store(of_stateless(), Ordering::SeqCst);
}

/// Waits before another look. Not by yielding alone: where many threads wait, the one they wait for must run.
fn wait(tries: &mut u32) {
    match *tries {
        0..20 => std::hint::spin_loop(),
        20..40 => std::thread::yield_now(),
        _ => std::thread::sleep(Duration::from_micros(100)),
    }
    *tries = tries.saturating_add(1);
}

/// Returns a number that no other living thread has and that needs no allocation; not 0.
///
/// Near a thread's exit its locals may be gone; such threads share a number.
pub(crate) fn this_thread() -> usize {
    thread_local! {
        static HERE: u8 = const { 0 };
    }
    HERE.try_with(|here| (&raw const *here).addr()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// They would keep it waiting, the longer the more they are.
    #[test]
    fn a_thread_that_waits_for_a_fork_is_not_inside() {
        close();
        let (tell, state) = mpsc::channel();
        let waiting = std::thread::spawn(move || {
            tell.send(thread::current_or_make().unwrap()).unwrap();
            drop(enter());
        });
        let state = state.recv().unwrap();
        let looks = (0..4_000_000).filter(|_| state.inside.load(Ordering::SeqCst) != 0).count();
        open();
        waiting.join().unwrap();
        assert_eq!(looks, 0, "looks at which it was inside");
        assert_eq!(state.inside.load(Ordering::SeqCst), 0);
    }

    /// A fork waited for a thread that held one lock and, to take a second, waited for the fork.
    #[test]
    fn a_thread_that_is_inside_enters_again_while_a_fork_waits_for_it() {
        let (tell, done) = mpsc::channel();
        let nested = std::thread::spawn(move || {
            let first = enter();
            let forking = std::thread::spawn(|| {
                close();
                open();
            });
            while !is_closed() && !forking.is_finished() {
                std::thread::yield_now();
            }
            let second = enter();
            drop((second, first));
            forking.join().unwrap();
            tell.send(()).unwrap();
        });
        let ended = done.recv_timeout(Duration::from_secs(60));
        if ended.is_err() {
            // Lets both go on, so that a failure ends.
            open();
        }
        nested.join().unwrap();
        assert!(ended.is_ok(), "the thread and the fork wait for each other");
    }

    #[test]
    fn a_thread_is_inside_but_for_what_it_does_outside() {
        let state = thread::current_or_make().unwrap();
        let inside = || state.inside.load(Ordering::SeqCst);
        let (first, second) = (enter(), enter());
        assert_eq!(inside(), 2);
        outside(|| {
            assert_eq!(inside(), 0);
            let third = enter();
            outside(|| assert_eq!(inside(), 0));
            assert_eq!(inside(), 1);
            drop(third);
        });
        assert_eq!(inside(), 2);
        drop((first, second));
        assert_eq!(inside(), 0);
    }
}
