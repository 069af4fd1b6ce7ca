//! The fork lock, which `fork` closes: while the process is copied no other thread is inside, that is, in the middle
//! of a change of what all threads share. So a child finds the map of stacks and the read side's tables whole.
//!
//! Each thread notes in its own state whether it is inside; entering is two atomic operations, on paths that already
//! take a lock. Threads stay inside for moments: longer work, such as reading debug information, is done [`outside`].
//! Waiting happens only between `pthread_atfork`'s prepare and parent handlers. Neither allocates, but the C library
//! takes its own locks in between, which a thread that allocates may hold: so the write side waits for a
//! [bounded](BoundedWait) time.

pub(crate) mod closed_in_child;
pub(crate) mod mutex;

use crate::base::atomics::{AtomicUsize, Ordering};
use crate::base::hint::unlikely;
use crate::record::bounded_wait::{self, BoundedWait};
use crate::record::thread::{self, INTERNING, ThreadState};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

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
    /// Returns the calling thread's counter.
    fn of_this_thread() -> Counter {
        Counter(thread::current())
    }

    /// Returns how often the thread is inside, in this way of counting.
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
            if self.attempt(times) {
                return;
            }
        }
    }

    /// Tries to enter once, for a bounded time; returns whether the thread is inside.
    #[inline(always)]
    fn try_enter(self) -> bool {
        /// A fork that is under way.
        static FORK: BoundedWait = BoundedWait::new();
        if self.is_inside() {
            self.add(1);
            return true;
        }
        FORK.until(|| (!is_closed() && self.attempt(1)).then_some(())).is_some()
    }

    /// Enters so many times unless a fork has begun.
    fn attempt(self, times: usize) -> bool {
        // SeqCst here, in `is_closed` and in `close`: of "I am inside" and "it is closed", each side writes one and
        // then reads the other, and at least one of them must see the other's write.
        self.add(times);
        let is_inside = !is_closed();
        if !is_inside {
            #[cfg(test)]
            tests::IN_VAIN.set(tests::IN_VAIN.get() + 1);
            self.leave(times);
        }
        is_inside
    }

    /// Counts the thread as inside so many times more.
    fn add(self, times: usize) {
        match self.0 {
            Some(state) => state.inside.fetch_add(times, Ordering::SeqCst),
            None => {
                set_of_stateless(of_stateless() + times);
                STATELESS.fetch_add(times, Ordering::SeqCst)
            }
        };
    }

    /// Leaves so many times.
    fn leave(self, times: usize) {
        debug_assert!(self.0.is_none() || self.own() >= times, "left more often than entered");
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

/// Enters the lock in the thread of this state. `None` if a fork is under way and does not end within the [bound](bounded_wait::LONGEST): it may wait
/// for a lock that the calling thread holds, as where a signal handler has interrupted the C library's `malloc`.
#[inline(always)]
pub(crate) fn try_enter(state: &'static ThreadState) -> Option<Inside> {
    let counter = Counter(Some(state));
    counter.try_enter().then(|| Inside { counter, not_send: PhantomData })
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

/// A value made by the first thread that asks for it; a forked child can ask, too, whatever its parent's threads were
/// doing.
///
/// Not a bare `OnceLock`, nor `LazyLock`: a thread that is making the value when the process forks is not in the child,
/// which waits for it for ever.
pub(crate) struct Once<T>(OnceLock<T>);

impl<T> Once<T> {
    pub(crate) const fn new() -> Once<T> {
        Once(OnceLock::new())
    }

    /// Returns the value, if there is one.
    pub(crate) fn get(&self) -> Option<&T> {
        self.0.get()
    }

    /// Returns the value. `make` may take long, and be called by several threads.
    pub(crate) fn get_or_make(&self, make: impl FnOnce() -> T) -> &T {
        if let Some(value) = self.0.get() {
            return value;
        }
        let value = make();
        let _inside = enter();
        self.0.get_or_init(|| value)
    }
}

/// Returns whether another thread forks.
#[inline(always)]
pub(crate) fn is_closed() -> bool {
    let closed_by = CLOSED_BY.load(Ordering::SeqCst);
    unlikely(closed_by != 0) && is_another(closed_by)
}

/// Returns whether this is the number of another thread.
#[cold]
#[inline(never)]
fn is_another(thread: usize) -> bool {
    thread != this_thread()
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
    let begin = Instant::now();
    loop {
        match others_inside() {
            Others::None => return,
            // A thread that still interns has left by a jump out of a signal handler, and does not come back. The child
            // finds what is in the middle of a change behind a lock of the map of stacks, which stays locked there, too.
            Others::Interning if begin.elapsed() >= 2 * bounded_wait::LONGEST => return,
            _ => wait(&mut tries),
        }
    }
}

/// Other threads that are inside.
enum Others {
    None,
    /// All of them are in the map of stacks.
    Interning,
    Any,
}

/// Determines which other threads are inside.
fn others_inside() -> Others {
    let own = thread::current().map_or(std::ptr::null(), |state| &raw const *state);
    if STATELESS.load(Ordering::SeqCst) > of_stateless() {
        return Others::Any;
    }
    let is_inside =
        |state: &&ThreadState| !std::ptr::eq(*state, own) && state.inside.load(Ordering::SeqCst) != 0;
    thread::all().filter(is_inside).fold(Others::None, |others, state| match others {
        Others::None | Others::Interning if state.flags() & INTERNING != 0 => Others::Interning,
        _ => Others::Any,
    })
}

/// Returns this thread's share of [`STATELESS`].
fn of_stateless() -> usize {
    OF_STATELESS.try_with(Cell::get).unwrap_or(0)
}

/// Sets this thread's share of [`STATELESS`].
fn set_of_stateless(times: usize) {
    let _ = OF_STATELESS.try_with(|own| own.set(times));
}

/// Opens it again, in the parent and in the child.
#[cfg_attr(not(unix), allow(dead_code))]
pub(crate) fn open() {
    debug_assert!(CLOSED_BY.load(Ordering::Relaxed) == this_thread(), "opened by another thread");
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

    thread_local! {
        /// Number of times that this thread has entered and left because a fork had begun.
        pub(super) static IN_VAIN: Cell<usize> = const { Cell::new(0) };
    }

    /// They would keep it waiting, the longer the more they are.
    #[test]
    fn a_thread_that_waits_for_a_fork_is_not_inside() {
        let enters: [fn(&'static ThreadState); 2] =
            [|_| drop(enter()), |state| drop(try_enter(state).expect("the fork ends soon"))];
        for enters in enters {
            close();
            let (tell, begun) = mpsc::channel();
            let waiting = std::thread::spawn(move || {
                let state = thread::current_or_make().unwrap();
                tell.send(()).unwrap();
                enters(state);
                (IN_VAIN.get(), state.inside.load(Ordering::SeqCst))
            });
            begun.recv().unwrap();
            std::thread::sleep(Duration::from_millis(50));
            open();
            assert_eq!(waiting.join().unwrap(), (0, 0), "times that it was inside, and that it is");
        }
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
