//! jemalloc's statistics for heapgauge.

use heapgauge::{AllocatorStatistics, AllocatorUsage};
use tikv_jemalloc_ctl::{epoch, raw, stats};

/// Reads jemalloc's own figures. They need the feature `stats` of `tikv-jemallocator`.
pub struct JemallocStatistics;

impl AllocatorStatistics for JemallocStatistics {
    fn read(&self) -> Option<AllocatorUsage> {
        epoch::advance().ok()?; // the figures are of the last epoch
        // SAFETY: this name has a `size_t`. 4096 is the number of all arenas together.
        let cached = unsafe { raw::read::<usize>(b"stats.arenas.4096.tcache_bytes\0") };
        Some(
            AllocatorUsage::new("jemalloc")
                .resident(stats::resident::read().ok()? as u64)
                .allocated(stats::allocated::read().ok()? as u64)
                .cached(cached.ok()? as u64)
                .metadata(stats::metadata::read().ok()? as u64),
        )
    }

    fn trim(&self) {
        let (none, purge) = (std::ptr::null_mut(), c"arena.4096.purge");
        // SAFETY: this name has no value, so there is nothing to read or write.
        unsafe { tikv_jemalloc_sys::mallctl(purge.as_ptr(), none, none.cast(), none, 0) };
    }
}
