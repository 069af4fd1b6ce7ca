//! Waiting that ends, for code inside the program's `malloc`.
//!
//! A lock of heapgauge's is free within microseconds, unless its holder cannot go on: a signal handler has interrupted it
//! and waits here itself, a fork waits for a lock of the C library that this thread holds, or the holder has left by
//! `siglongjmp` and never comes back. The event is recorded without its stack then.

use crate::base::atomics::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Time after which a lock is taken for one that stays locked. A thread that holds it may wait for a processor meanwhile.
pub(crate) const LONGEST: Duration = Duration::from_millis(250);

/// Time between two attempts.
const PAUSE: Duration = Duration::from_micros(100);

/// State of a lock that threads wait for.
pub(crate) struct BoundedWait {
    /// A thread has waited for [`LONGEST`], and no attempt has succeeded since. Relaxed: a hint.
    given_up: AtomicBool,
}

impl BoundedWait {
    pub(crate) const fn new() -> BoundedWait {
        BoundedWait { given_up: AtomicBool::new(false) }
    }

    /// Returns whether the last wait was in vain: the lock is one that stays locked.
    pub(crate) fn has_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    /// Repeats an attempt until it succeeds, for [`LONGEST`] at most. After a wait in vain each call makes one attempt,
    /// until one succeeds: a lock that stays locked costs the program that time once, and not at each event.
    #[inline(always)]
    pub(crate) fn until<T>(&self, attempt: impl Fn() -> Option<T>) -> Option<T> {
        match attempt() {
            outcome @ Some(_) if !self.given_up.load(Ordering::Relaxed) => outcome,
            // Written only where it changes: threads share it.
            Some(outcome) => {
                self.given_up.store(false, Ordering::Relaxed);
                Some(outcome)
            }
            None => self.until_slow(attempt),
        }
    }

    /// Goes on after an attempt in vain.
    #[cold]
    #[inline(never)]
    fn until_slow<T>(&self, attempt: impl Fn() -> Option<T>) -> Option<T> {
        let mut begin = None;
        for tries in 0u32.. {
            if self.given_up.load(Ordering::Relaxed) {
                break;
            }
            match tries {
                0..20 => std::hint::spin_loop(),
                20..40 => std::thread::yield_now(),
                // The holder may run only while this thread sleeps, if this thread has a higher priority.
                _ if begin.get_or_insert_with(Instant::now).elapsed() < LONGEST => std::thread::sleep(PAUSE),
                _ => self.given_up.store(true, Ordering::Relaxed),
            }
            if let outcome @ Some(_) = attempt() {
                self.given_up.store(false, Ordering::Relaxed);
                return outcome;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_lock_that_stays_locked_costs_its_time_once() {
        let (wait, attempts) = (BoundedWait::new(), Cell::new(0u32));
        let fails = || -> Option<()> {
            attempts.set(attempts.get() + 1);
            None
        };
        let begin = Instant::now();
        assert_eq!(wait.until(fails), None);
        assert!(begin.elapsed() >= LONGEST);
        let before = attempts.get();
        assert_eq!((wait.until(fails), wait.until(fails)), (None, None));
        assert_eq!(attempts.get(), before + 2);
        // It was slow, and not lost: from here on threads wait for it again.
        assert_eq!(wait.until(|| Some(7)), Some(7));
        let late = Cell::new(100u32);
        assert_eq!(
            wait.until(|| late.replace(late.get() - 1).checked_sub(51).is_none().then_some(8)),
            Some(8)
        );
    }
}
