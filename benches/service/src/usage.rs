//! Answers `/usage` with the processor time, resident bytes and allocations of this process.

use serde::Serialize;

#[derive(Serialize)]
pub struct Usage {
    user_us: u64,
    kernel_us: u64,
    resident_bytes: u64,
    allocations: Option<u64>,
}

pub fn now() -> Usage {
    // SAFETY: zero bytes are a valid `rusage`, which the call fills.
    let used = unsafe {
        let mut used = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut used);
        used
    };
    let microseconds = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split(' ').nth(1)?.parse::<u64>().ok());
    Usage {
        user_us: microseconds(used.ru_utime),
        kernel_us: microseconds(used.ru_stime),
        // Benchmarks run where pages have this size.
        resident_bytes: pages.unwrap_or(0) * 4096,
        allocations: crate::allocator::allocations(),
    }
}
