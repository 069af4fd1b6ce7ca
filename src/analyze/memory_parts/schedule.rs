//! Schedules readings, makes them on a thread of their own, and keeps the last one.
//!
//! The thread ends with its reading. A child of `fork` has its parent's settings and makes readings of its own.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::reading::{self, Reading};
use super::usage::{AllocatorStatistics, SharedStatistics};
use crate::record::control;
use crate::record::fork::mutex::{self, ForkMutex};
use crate::record::trim as of_c;

/// Least time between the beginnings of two readings.
const REST: Duration = Duration::from_secs(10);
/// Longest time between two, where they have taken too long.
const LONGEST_REST: Duration = Duration::from_secs(600);
/// Stack of the thread.
const STACK: usize = 256 << 10;

static STATISTICS: ForkMutex<Option<SharedStatistics>> = ForkMutex::new(None);
static READINGS: ForkMutex<Readings> = ForkMutex::new(Readings::new());

/// The last reading, and the one that is being made.
struct Readings {
    /// Number of the process they are of.
    process: u32,
    latest: Option<Arc<Reading>>,
    begun: Option<Instant>,
    is_busy: bool,
    rest: Duration,
}

impl Readings {
    const fn new() -> Readings {
        Readings { process: 0, latest: None, begun: None, is_busy: false, rest: REST }
    }

    /// Returns whether to begin a reading, and notes that it has begun.
    fn begin(&mut self, now: Instant, process: u32) -> bool {
        if self.process != process {
            *self = Readings { process, ..Readings::new() };
        }
        let is_due = self.begun.is_none_or(|begun| now.saturating_duration_since(begun) >= self.rest);
        if self.is_busy || !is_due {
            return false;
        }
        (self.is_busy, self.begun) = (true, Some(now));
        true
    }

    /// Keeps a reading. The next one is later where a call has taken too long.
    fn end(&mut self, reading: Option<Reading>) {
        self.is_busy = false;
        let Some(reading) = reading else { return };
        self.rest = match reading.slow_in_a_row {
            0 => REST,
            _ => (self.rest * 2).min(LONGEST_REST),
        };
        self.latest = Some(Arc::new(reading));
    }
}

/// Sets the statistics of the program's inner allocator, for the parts of resident memory. One for the process: the latest
/// counts.
///
/// # Examples
///
/// ```
/// use heapgauge::{AllocatorStatistics, AllocatorUsage};
///
/// struct Pool;
///
/// impl AllocatorStatistics for Pool {
///     fn read(&self) -> Option<AllocatorUsage> {
///         Some(AllocatorUsage::new("pool").resident(1 << 20))
///     }
/// }
///
/// heapgauge::set_allocator_statistics(Pool);
/// let _server = heapgauge::serve_from_env();
/// ```
pub fn set_allocator_statistics(statistics: impl AllocatorStatistics + 'static) {
    let _own = control::internal();
    set_shared_statistics(SharedStatistics(Arc::new(statistics)));
}

/// Does the work of [`set_allocator_statistics`].
pub(crate) fn set_shared_statistics(statistics: SharedStatistics) {
    let _own = control::internal();
    *STATISTICS.lock() = Some(statistics);
    // The last reading was made without it.
    READINGS.lock().begun = None;
}

fn statistics() -> Option<SharedStatistics> {
    STATISTICS.lock().clone()
}

/// Returns the last reading of this process, and begins the next one if it is due. Waits for none.
pub(crate) fn latest() -> Option<Arc<Reading>> {
    let _own = control::internal();
    let (begins, before) = {
        let mut readings = READINGS.lock();
        let begins = readings.begin(Instant::now(), mutex::process());
        (begins, readings.latest.clone())
    };
    if begins {
        let last = before.clone();
        let make = move || {
            control::internal_for_life();
            let statistics = statistics();
            let statistics = statistics.as_ref().map(|statistics| &*statistics.0);
            // A fault costs this reading only.
            let made = catch_unwind(AssertUnwindSafe(|| {
                let mut reading = reading::take(Path::new("/"), statistics, last.as_deref());
                // This thread ends now.
                reading.parts.threads = reading.parts.threads.map(|threads| threads.saturating_sub(1));
                reading
            }));
            READINGS.lock().end(made.ok());
        };
        if std::thread::Builder::new().stack_size(STACK).spawn(make).is_err() {
            READINGS.lock().end(None);
        }
    }
    before
}

/// Gives the free pages of the allocators back to the system: of C's `malloc` and, by
/// [`AllocatorStatistics::trim`], of another inner allocator. Returns the bytes by which the process's private memory fell.
///
/// glibc looks through all free chunks and locks one arena after the other meanwhile: 0.1 s for two million free chunks,
/// during which threads that need that arena wait. The next blocks have to get their pages from the system again. Use it to
/// find out whether memory is free or in use, or at the end of a phase that needed much memory, but not every minute.
///
/// # Examples
///
/// ```
/// drop(vec![1u8; 1 << 20]);
/// println!("{} bytes went back", heapgauge::trim());
/// ```
pub fn trim() -> u64 {
    let _own = control::internal();
    let before = of_c::private_bytes();
    of_c::malloc_trim();
    if let Some(statistics) = statistics() {
        statistics.0.trim();
    }
    let went = before.saturating_sub(of_c::private_bytes());
    // The last reading is out of date.
    READINGS.lock().begun = None;
    went as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(slow_in_a_row: u32) -> Reading {
        Reading { slow_in_a_row, ..reading::take(Path::new("/nowhere"), None, None) }
    }

    #[test]
    fn a_reading_is_made_every_ten_seconds_and_one_at_a_time() {
        let (mut readings, start) = (Readings::new(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(readings.begin(start, 1) && !readings.begin(at(100), 1));
        readings.end(Some(reading(0)));
        assert!(!readings.begin(at(9), 1) && readings.begin(at(10), 1));
        readings.end(None);
        assert!(readings.latest.is_some() && !readings.begin(at(19), 1) && readings.begin(at(20), 1));
        // A child has another number, and none of the parent's threads.
        assert!(readings.begin(at(21), 2) && readings.latest.is_none());
    }

    #[test]
    fn slow_calls_make_it_rarer_until_they_are_fast_again() {
        let (mut readings, mut now) = (Readings::new(), Instant::now());
        for rest in [20, 40, 80, 160, 320, 600, 600] {
            assert!(readings.begin(now, 1));
            readings.end(Some(reading(1)));
            assert!(!readings.begin(now + Duration::from_secs(rest - 1), 1), "{rest}");
            now += Duration::from_secs(rest);
        }
        assert!(readings.begin(now, 1));
        readings.end(Some(reading(0)));
        assert!(readings.begin(now + REST, 1));
    }
}
