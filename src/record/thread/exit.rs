//! The end of a thread: its state goes back to the list in the last round of pthread key destructors.

use crate::base::atomics::{AtomicU32, Ordering};
use crate::record::thread::registry::{GONE, LOCAL, release};
use crate::record::thread::state::ThreadState;

pub(super) use platform::{at_thread_end, prepare};

/// Counts a round of key destructors, and releases the state in the last one. True if it was that.
#[cfg_attr(not(unix), allow(dead_code))]
fn exit_round(state: &'static ThreadState) -> bool {
    let exit_rounds = state.exit_rounds.get() + 1;
    state.exit_rounds.set(exit_rounds);
    if exit_rounds < LAST_EXIT_ROUND.load(Ordering::Relaxed) {
        return false;
    }
    let _ = LOCAL.try_with(|local| local.set(&raw const GONE));
    release(state);
    true
}

/// Round of key destructors in which a thread releases its state: the very last one, so that the
/// destructors of others, which may allocate, have run before.
static LAST_EXIT_ROUND: AtomicU32 = AtomicU32::new(4);

#[cfg(unix)]
mod platform {
    use super::*;
    use crate::base::atomics::AtomicUsize;

    /// The pthread key, plus one; 0 before it is made.
    static KEY: AtomicUsize = AtomicUsize::new(0);

    /// Makes the key, and asks the C library how many rounds of destructors it makes.
    pub(crate) fn prepare() {
        key();
        // SAFETY: plain queries of constants.
        let rounds = unsafe { libc::sysconf(libc::_SC_THREAD_DESTRUCTOR_ITERATIONS) };
        if let Ok(rounds @ 1..) = u32::try_from(rounds) {
            // ThreadSanitizer releases the thread in the last round too, and faults in what runs after that.
            let last = if cfg!(heapgauge_sanitized) { (rounds - 1).max(1) } else { rounds };
            LAST_EXIT_ROUND.store(last, Ordering::Relaxed);
        }
    }

    /// Returns the pthread key, made by the first thread that asks; `None` where there is none left.
    fn key() -> Option<libc::pthread_key_t> {
        // Acquire/AcqRel: a thread that sees the key may use it.
        let present = KEY.load(Ordering::Acquire);
        if present != 0 {
            return Some((present - 1) as libc::pthread_key_t);
        }
        let mut fresh = 0;
        // SAFETY: a place to write to and a destructor that fits.
        if unsafe { libc::pthread_key_create(&raw mut fresh, Some(at_end)) } != 0 {
            return None;
        }
        match KEY.compare_exchange(0, fresh as usize + 1, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Some(fresh),
            Err(earlier) => {
                // SAFETY: made above and not used.
                unsafe { libc::pthread_key_delete(fresh) };
                Some((earlier - 1) as libc::pthread_key_t)
            }
        }
    }

    /// Arranges for `at_end`. If that fails the state stays with the ended thread: a leak, no error. So it does where
    /// a signal handler is the first to allocate in its thread when that has called its destructors already.
    ///
    /// Asked in signal handlers too: glibc keeps the values of the first 32 keys of a process in the thread itself, and
    /// ours is made before `main`. Behind another 32 it would take memory of the C library.
    pub(crate) fn at_thread_end(state: &'static ThreadState) {
        if let Some(key) = key() {
            // SAFETY: the key exists; the value is a pointer to something that is never freed.
            unsafe { libc::pthread_setspecific(key, (&raw const *state).cast()) };
        }
    }

    /// Counts a round of key destructors, and asks for another one unless it was the last.
    unsafe extern "C" fn at_end(state: *mut libc::c_void) {
        // SAFETY: the value that `at_thread_end` set.
        let state = unsafe { &*state.cast::<ThreadState>() };
        if !exit_round(state) {
            at_thread_end(state);
        }
    }
}

#[cfg(not(unix))]
mod platform {
    use super::*;

    pub(crate) fn prepare() {}

    /// Does nothing: a thread's end goes unnoticed, and its state stays, one for each thread that ever allocated.
    pub(crate) fn at_thread_end(_state: &'static ThreadState) {}
}
