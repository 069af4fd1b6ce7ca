//! Provides the same random numbers and the same time in every run. The linker finds these functions before the C library's.
//!
//! Maps of the standard library are ordered by the system's random numbers, and a collection younger than a second is
//! reused.

use std::sync::atomic::{AtomicU64, Ordering};

/// Nanoseconds since 1970, and since the start of the machine.
static NOW: AtomicU64 = AtomicU64::new(1_800_000_000 * SECOND);
const SECOND: u64 = 1_000_000_000;

/// Advances the clock, which otherwise advances a microsecond at each read.
pub fn sleep(seconds: u64) {
    NOW.fetch_add(seconds * SECOND, Ordering::Relaxed);
}

/// Returns a time that advances by the same step each time.
///
/// # Safety
///
/// * As for the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(_clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    let now = NOW.fetch_add(1_000, Ordering::Relaxed);
    let parts =
        libc::timespec { tv_sec: (now / SECOND) as libc::time_t, tv_nsec: (now % SECOND) as libc::c_long };
    // SAFETY: a place to write to, the caller's duty.
    unsafe { time.write(parts) };
    0
}

/// Gives the same random bytes each time.
///
/// # Safety
///
/// * As for the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(bytes: *mut u8, length: usize, _flags: libc::c_uint) -> isize {
    for at in 0..length {
        // SAFETY: `length` bytes to write to, the caller's duty.
        unsafe { bytes.add(at).write(at as u8 ^ 0x5a) };
    }
    length as isize
}
