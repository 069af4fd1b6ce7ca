//! Defines the trait by which an allocator of the program's tells its figures, and the figures.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// Statistics of the allocator inside [`TrackingAllocator`](crate::TrackingAllocator), for the parts of resident memory.
///
/// glibc's allocator needs none: it is known. For another one, give an implementation to
/// [`set_allocator_statistics`](crate::set_allocator_statistics) or
/// [`CollectorBuilder::allocator_statistics`](crate::CollectorBuilder::allocator_statistics).
/// [`resident_memory`](crate::docs::resident_memory) has code for `tikv-jemallocator` and `mimalloc`.
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
///         // The figures of your allocator.
///         Some(AllocatorUsage::new("pool").resident(64 << 20).allocated(48 << 20))
///     }
/// }
///
/// heapgauge::set_allocator_statistics(Pool);
/// ```
pub trait AllocatorStatistics: Send + Sync {
    /// Reads the figures now; `None` where there are none, as in a build without statistics. A panic counts as `None`.
    ///
    /// Called at most every ten seconds, on a thread of heapgauge's, never in an allocation. A call that takes longer than
    /// 5 ms is made less often.
    fn read(&self) -> Option<AllocatorUsage>;

    /// Gives free pages back to the system, for [`trim`](crate::trim); by default it does nothing.
    fn trim(&self) {}
}

/// Memory of an allocator, in bytes, as it counts them itself.
///
/// # Examples
///
/// ```
/// let usage = heapgauge::AllocatorUsage::new("jemalloc").resident(80 << 20).allocated(60 << 20).cached(1 << 20);
/// assert_eq!((usage.name(), usage.resident_bytes()), ("jemalloc", Some(80 << 20)));
/// assert_eq!(usage.metadata_bytes(), None);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocatorUsage {
    name: Cow<'static, str>,
    resident: Option<u64>,
    allocated: Option<u64>,
    cached: Option<u64>,
    metadata: Option<u64>,
}

impl AllocatorUsage {
    /// Returns a usage without figures. The name is the label of `heap_allocator_info`: `jemalloc`, `mimalloc` or a name of
    /// your own.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(heapgauge::AllocatorUsage::new("pool").name(), "pool");
    /// ```
    pub fn new(name: impl Into<Cow<'static, str>>) -> AllocatorUsage {
        AllocatorUsage { name: name.into(), resident: None, allocated: None, cached: None, metadata: None }
    }

    /// Sets the bytes that it has from the system and that are in memory, its own tables included.
    ///
    /// Where it is not set, they are those of the anonymous mappings in which tracked blocks of at least 1 KiB lie.
    ///
    /// # Examples
    ///
    /// ```
    /// let usage = heapgauge::AllocatorUsage::new("pool").resident(4096);
    /// assert_eq!(usage.resident_bytes(), Some(4096));
    /// ```
    #[must_use]
    pub fn resident(mut self, bytes: u64) -> AllocatorUsage {
        self.resident = Some(bytes);
        self
    }

    /// Sets the bytes in blocks, with all that it adds to the size asked for.
    ///
    /// Where it is not set, free memory and internal fragmentation are known as a sum only.
    ///
    /// # Examples
    ///
    /// ```
    /// let usage = heapgauge::AllocatorUsage::new("pool").allocated(1024);
    /// assert_eq!(usage.allocated_bytes(), Some(1024));
    /// ```
    #[must_use]
    pub fn allocated(mut self, bytes: u64) -> AllocatorUsage {
        self.allocated = Some(bytes);
        self
    }

    /// Sets the bytes among those [allocated](AllocatorUsage::allocated) that threads keep for their next blocks: jemalloc's
    /// tcache.
    ///
    /// # Examples
    ///
    /// ```
    /// let usage = heapgauge::AllocatorUsage::new("pool").allocated(1024).cached(64);
    /// assert_eq!(usage.cached_bytes(), Some(64));
    /// ```
    #[must_use]
    pub fn cached(mut self, bytes: u64) -> AllocatorUsage {
        self.cached = Some(bytes);
        self
    }

    /// Sets the [resident](AllocatorUsage::resident) bytes of its own tables.
    ///
    /// # Examples
    ///
    /// ```
    /// let usage = heapgauge::AllocatorUsage::new("pool").resident(4096).metadata(128);
    /// assert_eq!(usage.metadata_bytes(), Some(128));
    /// ```
    #[must_use]
    pub fn metadata(mut self, bytes: u64) -> AllocatorUsage {
        self.metadata = Some(bytes);
        self
    }

    /// Returns the allocator's name.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(heapgauge::AllocatorUsage::new("mimalloc").name(), "mimalloc");
    /// ```
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the bytes that it has from the system and that are in memory, if set.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(heapgauge::AllocatorUsage::new("pool").resident_bytes(), None);
    /// ```
    pub fn resident_bytes(&self) -> Option<u64> {
        self.resident
    }

    /// Returns the bytes in blocks, if set.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(heapgauge::AllocatorUsage::new("pool").allocated_bytes(), None);
    /// ```
    pub fn allocated_bytes(&self) -> Option<u64> {
        self.allocated
    }

    /// Returns the bytes in caches of threads, if set.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(heapgauge::AllocatorUsage::new("pool").cached_bytes(), None);
    /// ```
    pub fn cached_bytes(&self) -> Option<u64> {
        self.cached
    }

    /// Returns the bytes of its own tables, if set.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(heapgauge::AllocatorUsage::new("pool").metadata_bytes(), None);
    /// ```
    pub fn metadata_bytes(&self) -> Option<u64> {
        self.metadata
    }
}

/// Shared statistics, for settings that are cloned and printed.
#[derive(Clone)]
pub(crate) struct SharedStatistics(pub(crate) Arc<dyn AllocatorStatistics>);

impl fmt::Debug for SharedStatistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AllocatorStatistics")
    }
}
