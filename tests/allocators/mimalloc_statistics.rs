//! mimalloc's statistics for heapgauge.

use heapgauge::{AllocatorStatistics, AllocatorUsage};

/// Names mimalloc. Its release builds do not count the bytes in use, so free memory and fragmentation are one sum.
pub struct MimallocStatistics;

impl AllocatorStatistics for MimallocStatistics {
    fn read(&self) -> Option<AllocatorUsage> {
        Some(AllocatorUsage::new("mimalloc"))
    }

    fn trim(&self) {
        // SAFETY: may be called at any time, from any thread; the feature `extended` of `libmimalloc-sys` declares it.
        unsafe { libmimalloc_sys::mi_collect(true) };
    }
}
