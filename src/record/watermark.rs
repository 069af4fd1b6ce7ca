//! A mark of live bytes that wakes a thread of the read side when they pass it.
//!
//! The write side compares the mark each time that a thread publishes live bytes, which is once in 64 KiB of them, and
//! wakes the reader by one system call after the event. The thread that waits sets the next mark.

use crate::base::atomics::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use crate::base::hint::unlikely;
use std::time::Duration;

/// Live bytes above which the reader is woken; `i64::MAX` while no mark is set. Relaxed: a mark that is seen late is late by
/// one publication.
static MARK: AtomicI64 = AtomicI64::new(i64::MAX);
/// True if the mark was passed and the reader is still to be woken. Relaxed: as the mark.
static PASSED: AtomicBool = AtomicBool::new(false);
/// 1 while the reader has a reason to look that it has not seen.
static WOKEN: AtomicU32 = AtomicU32::new(0);

/// Sets the mark: [`wait`] returns when live bytes pass it after this. Each mark wakes once. The caller compares the live
/// bytes itself afterwards.
pub(crate) fn set(live_bytes: i64) {
    // SeqCst: before the caller's read of the live bytes. A publication that this read misses sees the mark, where its own
    // compare-exchange is a full barrier, as on x86-64; elsewhere it may be missed until the reader's time is up.
    MARK.store(live_bytes, Ordering::SeqCst);
}

/// Takes the mark away: in a forked child, which does not have the thread that waits, and when that thread ends.
pub(crate) fn remove() {
    set(i64::MAX);
    PASSED.store(false, Ordering::Relaxed);
}

/// Notes that so many bytes are live. Within an event.
#[inline(always)]
pub(crate) fn compare(live_bytes: i64) {
    if unlikely(live_bytes > MARK.load(Ordering::Relaxed)) {
        pass(live_bytes);
    }
}

#[cold]
#[inline(never)]
fn pass(live_bytes: i64) {
    let mark = MARK.load(Ordering::Relaxed);
    // Of all threads that find it passed, one wakes the reader.
    if live_bytes > mark
        && MARK.compare_exchange(mark, i64::MAX, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    {
        PASSED.store(true, Ordering::Relaxed);
    }
}

/// Wakes the reader if the mark was passed. After an event, because a system call may take its time.
#[inline(always)]
pub(crate) fn notify() {
    if unlikely(PASSED.load(Ordering::Relaxed)) {
        notify_slow();
    }
}

#[cold]
#[inline(never)]
fn notify_slow() {
    // Of all threads that come by, one wakes the reader.
    if PASSED.swap(false, Ordering::Relaxed) {
        wake();
    }
}

/// Wakes the reader, or keeps it from its next wait. Any thread, in a signal handler too; leaves `errno` as it was.
#[cold]
#[inline(never)]
pub(crate) fn wake() {
    // Release: pairs with the Acquire of `take`; the reader sees what was noted before.
    WOKEN.store(1, Ordering::Release);
    futex::wake(&WOKEN);
}

/// Waits until it is [woken](wake) or the time is up. True if it was woken. One thread at a time.
pub(crate) fn wait(longest: Duration) -> bool {
    if !take() {
        futex::wait(&WOKEN, longest);
        return take();
    }
    true
}

fn take() -> bool {
    // Acquire: pairs with the Release of `wake`.
    WOKEN.swap(0, Ordering::Acquire) != 0
}

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
mod futex {
    use super::{AtomicU32, Duration};

    /// Wakes one thread that waits for the word.
    pub(super) fn wake(word: &AtomicU32) {
        call(word, libc::FUTEX_WAKE, 1, std::ptr::null());
    }

    /// Sleeps while the word is 0. It may return early.
    pub(super) fn wait(word: &AtomicU32, longest: Duration) {
        let time = libc::timespec {
            tv_sec: longest.as_secs().min(u32::MAX.into()) as libc::time_t,
            tv_nsec: longest.subsec_nanos().into(),
        };
        call(word, libc::FUTEX_WAIT, 0, &raw const time);
    }

    /// Calls the kernel without the C library, which would leave an error in `errno`: a program may read that after an
    /// allocation. The result does not matter: a thread that waits looks at the word.
    fn call(word: &AtomicU32, operation: i32, value: usize, time: *const libc::timespec) {
        let operation = (operation | libc::FUTEX_PRIVATE_FLAG) as usize;
        // SAFETY: the word is alive, and this system call reads it and the time and writes neither.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::asm!(
                "syscall", inlateout("rax") libc::SYS_futex as isize => _,
                in("rdi") word.as_ptr(), in("rsi") operation, in("rdx") value, in("r10") time,
                lateout("rcx") _, lateout("r11") _, options(nostack)
            );
        }
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            std::arch::asm!(
                "svc 0", inlateout("x0") word.as_ptr() => _,
                in("x1") operation, in("x2") value, in("x3") time, in("x8") libc::SYS_futex,
                options(nostack)
            );
        }
    }
}

/// Without a futex the reader looks when its own time is up.
#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), not(miri))))]
mod futex {
    use super::{AtomicU32, Duration};

    pub(super) fn wake(_word: &AtomicU32) {}

    pub(super) fn wait(_word: &AtomicU32, longest: Duration) {
        std::thread::sleep(longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// The mark is one for the process, so this is one test.
    #[test]
    fn a_mark_wakes_once_when_it_is_passed() {
        set(1 << 50);
        compare(1 << 50);
        notify();
        assert!(!wait(Duration::ZERO));
        let waiting = std::thread::spawn(|| {
            let begun = Instant::now();
            (wait(Duration::from_secs(60)), begun.elapsed())
        });
        std::thread::sleep(Duration::from_millis(20));
        compare((1 << 50) + 1);
        notify();
        let (woken, waited) = waiting.join().unwrap();
        assert!(woken && waited < Duration::from_secs(30), "{waited:?}");
        compare(i64::MAX);
        notify();
        assert!(!wait(Duration::from_millis(1)), "a mark wakes once");
        set(1 << 50);
        compare(1 << 51);
        remove();
        notify();
        assert!(!wait(Duration::ZERO), "it was removed");
        wake();
        assert!(wait(Duration::from_secs(60)));
    }
}
