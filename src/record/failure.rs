//! Text that is written where the inner allocator has no memory left: the program usually ends there.
//!
//! The read side prepares the text while there is memory. Where an allocation fails it is written from memory that is
//! ready: no allocation, no lock, no file is opened, and the allocating thread does not wait. The caller gets its null,
//! and `errno` is as it was.

use crate::base::atomics::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
#[cfg(target_os = "linux")]
use crate::record::watermark;

/// Longest text with its first line. A pipe takes so many bytes whole or not at all.
pub(crate) const MOST_TEXT: usize = 4096;
/// Longest first line.
pub(crate) const MOST_LINE: usize = 128;
/// Least time between two texts, in seconds.
#[cfg(target_os = "linux")]
const REST: u64 = 60;
/// Texts there are: one that may be written out, one that is prepared, and one between the two.
const TEXTS: usize = 3;

struct Text {
    bytes: [AtomicU8; MOST_TEXT - MOST_LINE],
    len: AtomicUsize,
}

static PREPARED: [Text; TEXTS] =
    [const { Text { bytes: [const { AtomicU8::new(0) }; MOST_TEXT - MOST_LINE], len: AtomicUsize::new(0) } };
        TEXTS];
/// Index of the text that is whole, plus one; 0 while there is none.
static WHOLE: AtomicUsize = AtomicUsize::new(0);
/// Descriptor of the file that gets the text too; -1 without one. Relaxed: the process that has opened the file never closes it, so
/// a descriptor that is read late is still that of the file.
static FILE: AtomicI32 = AtomicI32::new(-1);
/// Largest request that is worth a text. A larger one is no sign of a heap that is full.
static LARGEST: AtomicU64 = AtomicU64::new(0);
/// Time of the last text, in seconds of the monotonic clock, plus one; 0 before the first.
#[cfg(target_os = "linux")]
static LAST: AtomicU64 = AtomicU64::new(0);
/// Number of texts so far. Relaxed: a count.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// Prepares the text, cut at its longest. One thread.
pub(crate) fn prepare(text: &[u8]) {
    let at = WHOLE.load(Ordering::Relaxed) % TEXTS;
    let Text { bytes, len } = &PREPARED[at];
    let text = &text[..text.len().min(bytes.len())];
    for (byte, value) in bytes.iter().zip(text) {
        byte.store(*value, Ordering::Relaxed);
    }
    len.store(text.len(), Ordering::Relaxed);
    // Release: pairs with the Acquire of `note`.
    WHOLE.store(at + 1, Ordering::Release);
}

/// Sets the largest request that is worth a text.
pub(crate) fn set_largest(bytes: u64) {
    LARGEST.store(bytes, Ordering::Relaxed);
}

/// Sets the open file that gets the text beside stderr; `None`: none does.
#[cfg(unix)]
pub(crate) fn set_file(file: Option<&std::fs::File>) {
    use std::os::fd::AsRawFd;
    FILE.store(file.map_or(-1, AsRawFd::as_raw_fd), Ordering::Relaxed);
}

/// Does nothing: no text is written here.
#[cfg(not(unix))]
pub(crate) fn set_file(_file: Option<&std::fs::File>) {}

/// Forgets the text and the file: in a forked child, and when the thread that prepares them ends.
pub(crate) fn forget() {
    WHOLE.store(0, Ordering::Relaxed);
    FILE.store(-1, Ordering::Relaxed);
}

/// Returns how many texts were written.
pub(crate) fn count() -> u32 {
    COUNT.load(Ordering::Relaxed)
}

/// Writes the text for a request of so many bytes that has failed, at most once a minute.
#[cold]
#[inline(never)]
pub(crate) fn note(size: usize) {
    // Acquire: pairs with the Release of `prepare`.
    let whole = WHOLE.load(Ordering::Acquire);
    if whole == 0 || size as u64 > LARGEST.load(Ordering::Relaxed) {
        return;
    }
    #[cfg(target_os = "linux")]
    {
        let errno = sys::errno();
        let now = sys::seconds() + 1;
        let last = LAST.load(Ordering::Relaxed);
        let is_time = last == 0 || now.saturating_sub(last) >= REST;
        if is_time && LAST.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            COUNT.fetch_add(1, Ordering::Relaxed);
            let mut line = [0u8; MOST_LINE];
            let line = first_line(&mut line, size);
            sys::write(line, &PREPARED[whole - 1], FILE.load(Ordering::Relaxed));
            watermark::wake();
        }
        sys::set_errno(errno);
    }
}

/// Composes the first line without the machinery of formatting, some of which may panic.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
fn first_line(line: &mut [u8; MOST_LINE], size: usize) -> &[u8] {
    let mut digits = [0u8; 20];
    let (mut rest, mut at) = (size, digits.len());
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    let parts: [&[u8]; 3] = [b"heapgauge: an allocation of ", &digits[at..], b" bytes failed\n"];
    let mut len = 0;
    for part in parts {
        line[len..len + part.len()].copy_from_slice(part);
        len += part.len();
    }
    &line[..len]
}

#[cfg(target_os = "linux")]
mod sys {
    use super::{Ordering, Text};

    pub(super) fn errno() -> i32 {
        // SAFETY: the calling thread's own variable.
        unsafe { *libc::__errno_location() }
    }

    pub(super) fn set_errno(value: i32) {
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = value };
    }

    /// Returns the seconds of the monotonic clock.
    pub(super) fn seconds() -> u64 {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: a place to write to.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
        time.tv_sec as u64
    }

    /// Writes line and text to stderr, if that takes them at once, and to the file, whose writes do not wait for a reader.
    pub(super) fn write(line: &[u8], text: &Text, file: i32) {
        let parts = [
            libc::iovec { iov_base: line.as_ptr().cast_mut().cast(), iov_len: line.len() },
            libc::iovec {
                iov_base: text.bytes.as_ptr().cast_mut().cast(),
                iov_len: text.len.load(Ordering::Relaxed).min(text.bytes.len()),
            },
        ];
        without_sigpipe(|| {
            let mut stderr = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
            // SAFETY: one description, which is written to; no time to wait.
            let ready = unsafe { libc::poll(&raw mut stderr, 1, 0) };
            if ready == 1 && stderr.revents == libc::POLLOUT {
                // SAFETY: two parts of memory that stays; the kernel reads them.
                unsafe { libc::writev(libc::STDERR_FILENO, parts.as_ptr(), 2) };
            }
        });
        if file >= 0 {
            // SAFETY: as above.
            unsafe { libc::writev(file, parts.as_ptr(), 2) };
        }
    }

    /// Calls `act` with SIGPIPE blocked in this thread, and takes one away that came of it.
    fn without_sigpipe(act: impl FnOnce()) {
        // SAFETY: sets of signals, for which zero is a value, and places to write to; the mask is put back below.
        unsafe {
            let (mut pipe, mut before, mut pending): (libc::sigset_t, libc::sigset_t, libc::sigset_t) =
                std::mem::zeroed();
            libc::sigemptyset(&raw mut pipe);
            libc::sigaddset(&raw mut pipe, libc::SIGPIPE);
            libc::sigpending(&raw mut pending);
            let was_pending = libc::sigismember(&raw const pending, libc::SIGPIPE) == 1;
            if libc::pthread_sigmask(libc::SIG_BLOCK, &raw const pipe, &raw mut before) != 0 {
                return;
            }
            act();
            if !was_pending {
                let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
                libc::sigtimedwait(&raw const pipe, std::ptr::null_mut(), &raw const none);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_names_the_size() {
        let mut line = [0; MOST_LINE];
        for (size, text) in [(0, "0"), (7, "7"), (1 << 20, "1048576"), (usize::MAX, "18446744073709551615")] {
            let line = String::from_utf8(first_line(&mut line, size).to_vec()).unwrap();
            assert_eq!(line, format!("heapgauge: an allocation of {text} bytes failed\n"));
        }
    }
}
