//! A mutex that a forked child can lock whatever its parent's threads were doing, and the number of the process in a
//! line of forks.
//!
//! A forked child has the memory of its parent but only the thread that forked. A mutex of the standard library that
//! another thread held at that moment stays locked in the child for ever. This one knows in which process and by which
//! thread it was locked, so the child takes it over, with its value: that changes only inside the [fork lock](fork),
//! where a fork waits, or lies between two changes in [`fork::outside`], where the fork does not.
//!
//! The read side uses it, and the making of scopes: a waiting thread sleeps up to a millisecond at a time.

use crate::base::atomics::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::record::fork::{self, Inside};
use std::cell::UnsafeCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
#[cfg(feature = "http")]
use std::sync::Arc;
use std::thread::panicking;
use std::time::{Duration, Instant};

/// Counts the forks between the first process and this one. Relaxed throughout, as the two below: changed only by the
/// fork handler of a child, which has one thread.
static GENERATION: AtomicU32 = AtomicU32::new(1);
/// The thread that made the latest fork, and every fork from [`SURVIVES_SINCE`] on.
static SURVIVOR: AtomicUsize = AtomicUsize::new(0);
static SURVIVES_SINCE: AtomicU32 = AtomicU32::new(0);

/// Returns the number of this process in a line of forks: a child has another one than its parent.
///
/// A process id would not do: a child in another PID namespace may have its parent's.
pub(crate) fn process() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// Notes in a forked child that this is another process.
#[cfg_attr(not(unix), allow(dead_code))]
pub(crate) fn begin_process() {
    let (before, thread) = (process(), fork::this_thread());
    if SURVIVOR.swap(thread, Ordering::Relaxed) != thread {
        SURVIVES_SINCE.store(before, Ordering::Relaxed);
    }
    GENERATION.store(before.wrapping_add(1), Ordering::Relaxed);
}

/// See the module.
pub(crate) struct ForkMutex<T> {
    /// [`FREE`], or the [holder](here).
    holder: AtomicU64,
    /// A holder panicked. Relaxed: read by those who hold the lock.
    panicked: AtomicBool,
    value: UnsafeCell<T>,
}

const FREE: u64 = 0;

/// A holder is 16 bits of the number of its process and 48 of its thread's, which is an address.
const THREAD_BITS: u32 = 48;
const THREAD: u64 = (1 << THREAD_BITS) - 1;

/// Returns the calling thread as a holder. Not [`FREE`], because no thread's number is 0.
fn here() -> u64 {
    u64::from(process()) << THREAD_BITS | fork::this_thread() as u64 & THREAD
}

/// Returns whether a holder is no thread of this process.
fn is_gone(holder: u64) -> bool {
    // Modulo 2^16: of 65,536 forks in one line, one may take a missing thread for a living one.
    let age = (process() as u16).wrapping_sub((holder >> THREAD_BITS) as u16);
    if age == 0 {
        return false;
    }
    let survives = process().wrapping_sub(SURVIVES_SINCE.load(Ordering::Relaxed));
    holder & THREAD != SURVIVOR.load(Ordering::Relaxed) as u64 & THREAD || u32::from(age) > survives
}

// SAFETY: the value is reached only by the thread that has set `holder`, one at a time, which may send it anywhere.
unsafe impl<T: Send> Sync for ForkMutex<T> {}

impl<T> ForkMutex<T> {
    pub(crate) const fn new(value: T) -> ForkMutex<T> {
        ForkMutex {
            holder: AtomicU64::new(FREE),
            panicked: AtomicBool::new(false),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the lock. Waits for other threads of this process, outside the fork lock.
    pub(crate) fn lock(&self) -> ForkGuard<'_, T> {
        let mut tries = 0;
        loop {
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            fork::outside(|| wait(&mut tries));
        }
    }

    /// Takes the lock unless another thread keeps it for longer than `longest`.
    pub(crate) fn try_lock_for(&self, longest: Duration) -> Option<ForkGuard<'_, T>> {
        let (mut tries, begun) = (0, Instant::now());
        loop {
            let guard = self.try_lock();
            if guard.is_some() || begun.elapsed() >= longest {
                return guard;
            }
            fork::outside(|| wait(&mut tries));
        }
    }

    fn try_lock(&self) -> Option<ForkGuard<'_, T>> {
        let inside = fork::enter();
        let here = here();
        // Acquire: pairs with the Release of the guard's end; what the last holder changed is seen.
        let mut before = FREE;
        if let Err(holder) = self.holder.compare_exchange(FREE, here, Ordering::Acquire, Ordering::Relaxed) {
            before = holder;
        }
        // Acquire: as above. Of the threads of this process that try, one succeeds.
        let is_free = before == FREE
            || is_gone(before)
                && self.holder.compare_exchange(before, here, Ordering::Acquire, Ordering::Relaxed).is_ok();
        is_free.then(|| ForkGuard { mutex: self, was_panicking: panicking(), _inside: inside })
    }

    /// Returns whether the calling thread is the holder; in a child that it has forked, too.
    pub(crate) fn is_held(&self) -> bool {
        self.holder.load(Ordering::Relaxed) & THREAD == here() & THREAD
    }

    /// Returns whether a holder has panicked since the last call.
    pub(crate) fn take_panicked(&self) -> bool {
        self.panicked.swap(false, Ordering::Relaxed)
    }
}

impl<T: Default> Default for ForkMutex<T> {
    fn default() -> ForkMutex<T> {
        ForkMutex::new(T::default())
    }
}

impl<T> fmt::Debug for ForkMutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ForkMutex")
    }
}

/// Waits before another try.
fn wait(tries: &mut u32) {
    match *tries {
        0..20 => std::hint::spin_loop(),
        20..40 => std::thread::yield_now(),
        tries => std::thread::sleep(Duration::from_micros(u64::from((tries - 39) * 50).min(1_000))),
    }
    *tries = tries.saturating_add(1).min(1_000);
}

/// Unlocks when it is dropped. Until then a fork waits, but for calls of [`fork::outside`].
pub(crate) struct ForkGuard<'a, T> {
    mutex: &'a ForkMutex<T>,
    was_panicking: bool,
    // Dropped after the lock is free.
    _inside: Inside,
}

impl<T> Deref for ForkGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        debug_assert!(self.mutex.is_held(), "another thread holds the lock");
        // SAFETY: this guard's thread is the holder, so nothing else reaches the value.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T> DerefMut for ForkGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        debug_assert!(self.mutex.is_held(), "another thread holds the lock");
        // SAFETY: as above, and this guard is borrowed alone.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T> Drop for ForkGuard<'_, T> {
    fn drop(&mut self) {
        if panicking() && !self.was_panicking {
            self.mutex.panicked.store(true, Ordering::Relaxed);
        }
        debug_assert!(self.mutex.is_held(), "another thread holds the lock");
        // Release: pairs with the Acquire of `lock`.
        self.mutex.holder.store(FREE, Ordering::Release);
    }
}

/// A value that every process has anew, such as permits that only tasks of the same process give back.
#[cfg(feature = "http")]
#[derive(Debug, Default)]
pub(crate) struct PerProcess<T>(ForkMutex<Option<(u32, Arc<T>)>>);

#[cfg(feature = "http")]
impl<T> PerProcess<T> {
    pub(crate) const fn new() -> PerProcess<T> {
        PerProcess(ForkMutex::new(None))
    }
}

#[cfg(feature = "http")]
impl<T: Default> PerProcess<T> {
    /// Returns this process's value, made by the first call.
    pub(crate) fn get(&self) -> Arc<T> {
        let mut held = self.0.lock();
        match &*held {
            Some((process, value)) if *process == self::process() => value.clone(),
            _ => {
                let value = Arc::<T>::default();
                // The old value is leaked: tasks of the parent's hold parts of it that are never given back.
                std::mem::forget(held.replace((process(), value.clone())));
                value
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A child sees a lock of its parent's so: the process is another, and the thread is missing.
    #[test]
    fn a_lock_of_a_missing_thread_is_taken_over_with_its_value() {
        let mutex = ForkMutex::new(vec![1, 2, 3]);
        let gone = u64::from(process().wrapping_sub(1)) << THREAD_BITS | (here() & THREAD) ^ 64;
        mutex.holder.store(gone, Ordering::Relaxed);
        assert!(is_gone(gone) && !is_gone(here()));
        mutex.lock().push(4);
        assert_eq!(*mutex.lock(), [1, 2, 3, 4]);
        assert_eq!(mutex.holder.load(Ordering::Relaxed), FREE);
    }

    #[test]
    fn threads_change_it_one_at_a_time() {
        let mutex = ForkMutex::new((0_u64, 0_u64));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let mut both = mutex.lock();
                        both.0 += 1;
                        std::hint::black_box(&mut *both);
                        both.1 += 1;
                        assert_eq!(both.0, both.1);
                    }
                });
            }
        });
        assert_eq!(*mutex.lock(), (16_000, 16_000));
    }

    #[test]
    fn a_panic_is_told_once() {
        let mutex = ForkMutex::new(7);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _held = mutex.lock();
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(caught.is_err());
        assert_eq!(*mutex.lock(), 7);
        assert_eq!((mutex.take_panicked(), mutex.take_panicked()), (true, false));
    }
}
