//! The program's allocations → the inner allocator, and an event for each.
//!
//! Each method does three things: asks the inner allocator, records the event, writes the id to the
//! block's tag. Nothing here or below panics, blocks on anything the program can hold, or allocates
//! through itself when a stack was met before.

use crate::base::hint::unlikely;
use crate::record::count::sampling::MAX_INTERVAL;
use crate::record::epoch::{Config, DEFAULT_FRAMES, MAX_FRAMES};
use crate::record::event;
use crate::record::failure;
use crate::record::tag;
use crate::record::thread;
use crate::record::unwind::Entrance;
use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;

/// A global allocator that knows which line of code holds the heap.
///
/// It hands every request to the allocator inside it and counts bytes and blocks by call stack. Works
/// around any allocator; all instances share one tracker, and the configuration comes from the first
/// one that allocates.
///
/// Costs: 4 bytes a block below 1 KiB, 4 bytes per KiB of address space for larger ones, and a stack walk
/// an allocation, or with [`sample_every`](TrackingAllocator::sample_every) for one now and then (see the
/// README for measurements).
///
/// # Examples
///
/// ```standalone_crate
/// #[global_allocator]
/// static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
///
/// let before = heapgauge::traced_memory().current;
/// let kept = vec![0u8; 100_000];
/// assert!(heapgauge::traced_memory().current >= before + 100_000);
/// drop(kept);
/// ```
///
/// Around another allocator, with longer tracebacks, and off until [`start`](crate::start):
///
/// ```
/// use heapgauge::TrackingAllocator;
/// use std::alloc::System;
///
/// static ALLOC: TrackingAllocator<System> = TrackingAllocator::new(System).frames(48).start_disabled();
/// # let _ = &ALLOC;
/// ```
#[derive(Debug)]
pub struct TrackingAllocator<A = System> {
    inner: A,
    config: Config,
}

impl TrackingAllocator<System> {
    /// Wraps the system's allocator.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// #[global_allocator]
    /// static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
    ///
    /// assert!(heapgauge::is_tracing());
    /// ```
    pub const fn system() -> TrackingAllocator<System> {
        TrackingAllocator::new(System)
    }
}

impl Default for TrackingAllocator<System> {
    /// Wraps the system's allocator, as [`system`](TrackingAllocator::system) does in constants.
    ///
    /// # Examples
    ///
    /// ```
    /// use heapgauge::TrackingAllocator;
    ///
    /// let allocator = TrackingAllocator::default();
    /// assert_eq!(format!("{allocator:?}"), format!("{:?}", TrackingAllocator::system()));
    /// ```
    fn default() -> TrackingAllocator<System> {
        TrackingAllocator::system()
    }
}

impl<A> TrackingAllocator<A> {
    /// Wraps any allocator.
    ///
    /// Below 1 KiB it is asked for 4 bytes more than the program asked for.
    ///
    /// # Examples
    ///
    /// ```
    /// use heapgauge::TrackingAllocator;
    /// use std::alloc::System; // or `tikv_jemallocator::Jemalloc`, or `mimalloc::MiMalloc`
    ///
    /// static ALLOC: TrackingAllocator<System> = TrackingAllocator::new(System);
    /// # let _ = &ALLOC;
    /// ```
    pub const fn new(inner: A) -> TrackingAllocator<A> {
        let config = Config {
            frames: DEFAULT_FRAMES as u8,
            start_disabled: false,
            sample_every: 0,
            exact_from: 0,
            reclaims: true,
            is_global: false,
        };
        TrackingAllocator { inner, config }
    }

    /// Sets the number of frames that a traceback shows, counted from the site's frame: 1 to 64, 32 by default.
    /// More cost more: a few nanoseconds a frame and allocation, 8 bytes a frame and distinct stack.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// use heapgauge::TrackingAllocator;
    ///
    /// #[global_allocator]
    /// static ALLOC: TrackingAllocator = TrackingAllocator::system().frames(64);
    ///
    /// drop(vec![0u8; 100]); // the first allocation applies the settings
    /// assert_eq!(heapgauge::traceback_limit(), 64);
    /// ```
    ///
    /// # Panics
    ///
    /// At compile time where the allocator is a `static`: if `frames` is not within 1..=64.
    pub const fn frames(mut self, frames: usize) -> TrackingAllocator<A> {
        assert!(frames >= 1 && frames <= MAX_FRAMES as usize, "frames: allowed are 1 to 64");
        self.config.frames = frames as u8;
        self
    }

    /// Leaves tracking off until [`start`](crate::start). Blocks allocated before that are untracked.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// use heapgauge::TrackingAllocator;
    ///
    /// #[global_allocator]
    /// static ALLOC: TrackingAllocator = TrackingAllocator::system().start_disabled();
    ///
    /// assert!(!heapgauge::is_tracing());
    /// heapgauge::start(32)?;
    /// assert!(heapgauge::is_tracing());
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub const fn start_disabled(mut self) -> TrackingAllocator<A> {
        self.config.start_disabled = true;
        self
    }

    /// Records the stack of one allocation every `bytes` bytes on average; 0, the default, and 1 mean every
    /// allocation. Up to 1 GiB; 512 KiB is a good choice for a service that is left alone.
    ///
    /// Totals stay exact, sites become estimates with an error: see [`sampling`](crate::docs::sampling).
    /// [`set_sample_interval`](crate::set_sample_interval) and `HEAPGAUGE_SAMPLE` change it at run time.
    ///
    /// # Examples
    ///
    /// ```standalone_crate
    /// use heapgauge::TrackingAllocator;
    ///
    /// #[global_allocator]
    /// static ALLOC: TrackingAllocator = TrackingAllocator::system().sample_every(512 << 10);
    ///
    /// let kept: Vec<Box<u64>> = (0..10_000).map(Box::new).collect();
    /// assert_eq!(heapgauge::sample_interval(), 512 << 10);
    /// assert!(heapgauge::traced_memory().current >= 2 * 80_000);
    /// # drop(kept);
    /// ```
    ///
    /// # Panics
    ///
    /// At compile time where the allocator is a `static`: if `bytes` is more than 1 GiB.
    pub const fn sample_every(mut self, bytes: usize) -> TrackingAllocator<A> {
        assert!(bytes <= MAX_INTERVAL, "sample_every: allowed are 0 to 1073741824 bytes");
        self.config.sample_every = bytes as u32;
        self
    }

    /// Sets the size from which on blocks are recorded without exception while others are sampled: up to 1 GiB.
    /// 0, the default, means from the sample interval on.
    ///
    /// Below 1 KiB sampling costs more: whether a block is sampled is then looked at whenever about so many bytes were
    /// allocated, otherwise every 60 KiB.
    ///
    /// # Examples
    ///
    /// ```
    /// use heapgauge::TrackingAllocator;
    ///
    /// // One stack per 512 KiB, and that of every block of at least 64 KiB.
    /// static ALLOC: TrackingAllocator = TrackingAllocator::system().sample_every(512 << 10).exact_from(64 << 10);
    /// # let _ = &ALLOC;
    /// ```
    ///
    /// # Panics
    ///
    /// At compile time where the allocator is a `static`: if `bytes` is more than 1 GiB.
    pub const fn exact_from(mut self, bytes: usize) -> TrackingAllocator<A> {
        assert!(bytes <= MAX_INTERVAL, "exact_from: allowed are 0 to 1073741824 bytes");
        self.config.exact_from = bytes as u32;
        self
    }

    /// Sets whether the memory of stacks that have died, or that [`clear_traces`](crate::clear_traces) or [`stop`](crate::stop) has
    /// forgotten, is used again, as it is by default. `HEAPGAUGE_RECLAIM` changes it at run time.
    ///
    /// # Examples
    ///
    /// ```
    /// use heapgauge::TrackingAllocator;
    ///
    /// static ALLOC: TrackingAllocator = TrackingAllocator::system().reclaim(false);
    /// # let _ = &ALLOC;
    /// ```
    pub const fn reclaim(mut self, on: bool) -> TrackingAllocator<A> {
        self.config.reclaims = on;
        self
    }

    /// Marks it as the program's global allocator, for [`global_allocator!`](crate::global_allocator).
    ///
    /// # Safety
    ///
    /// * The value initialises the static that has the attribute `#[global_allocator]`.
    #[doc(hidden)]
    pub const unsafe fn declared_global(mut self) -> TrackingAllocator<A> {
        self.config.is_global = true;
        self
    }
}

impl<A: GlobalAlloc> TrackingAllocator<A> {
    /// Records a small block that the inner allocator has just made, and tags it.
    ///
    /// # Safety
    ///
    /// * `block` is null or was made for `tag::inner_layout_of_small` of a layout of this size, and is not yet the
    ///   program's.
    #[inline(always)]
    unsafe fn record(&self, block: *mut u8, size: usize, entrance: Entrance) -> *mut u8 {
        if block.is_null() {
            failure::note(size);
            return block;
        }
        match event::alloc::try_fast(size) {
            Some(id) => {
                // SAFETY: the caller's duty.
                unsafe { tag::write_behind(block, size, id) };
                block
            }
            // SAFETY: the caller's duty.
            None => unsafe {
                event::alloc::record_alloc(block, size, thread::hot_state(), &self.config, entrance)
            },
        }
    }

    /// Records a block of any size that the inner allocator has just made, and tags it.
    ///
    /// # Safety
    ///
    /// * `block` is null or was made for `tag::inner_layout` of a layout of this size, and is not yet the program's.
    #[inline(always)]
    unsafe fn record_slow(&self, block: *mut u8, size: usize, entrance: Entrance) -> *mut u8 {
        if block.is_null() {
            failure::note(size);
            return block;
        }
        match event::alloc::try_fast_of_any_size(size) {
            // SAFETY: the caller's duty; it has just been counted.
            Some(id) => unsafe { event::write_tag::write_tag(block, size, id) },
            // SAFETY: the caller's duty.
            None => unsafe {
                event::alloc::record_alloc(block, size, thread::hot_state(), &self.config, entrance)
            },
        }
    }

    // ── Slow paths of `GlobalAlloc` ─────────────────────────────────────────────────────────────
    //
    // Functions of their own, the last that is called, so that the path of small blocks has next to nothing to save.

    /// Allocates a block of any size and alignment, as [`GlobalAlloc::alloc`] does a small one.
    #[inline(never)]
    unsafe fn alloc_slow(&self, layout: Layout) -> *mut u8 {
        let Some(inner) = tag::inner_layout(layout) else { return null_mut() };
        // SAFETY: the inner size is not zero: with the tag it is at least 4, without at least 1 KiB.
        let block = unsafe { self.inner.alloc(inner) };
        // SAFETY: just made for this layout.
        unsafe { self.record_slow(block, layout.size(), Entrance::Allocate) }
    }

    /// Allocates a zeroed block of any size and alignment.
    #[inline(never)]
    unsafe fn alloc_zeroed_slow(&self, layout: Layout) -> *mut u8 {
        let Some(inner) = tag::inner_layout(layout) else { return null_mut() };
        // SAFETY: as in `alloc_slow`.
        let block = unsafe { self.inner.alloc_zeroed(inner) };
        // SAFETY: just made for this layout.
        unsafe { self.record_slow(block, layout.size(), Entrance::AllocateZeroed) }
    }

    /// Resizes a block from any size to any other.
    #[inline(never)]
    unsafe fn realloc_slow(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let inner = Layout::from_size_align(new_size, layout.align()).ok().and_then(tag::inner_layout);
        let Some(inner) = inner else { return null_mut() };
        // Before the inner allocator may overwrite it.
        // SAFETY: the block was made by one of these methods with this layout, so it has a tag.
        let old = unsafe { tag::read(block, layout.size()) };
        tag::unmark(block, layout.size());
        // SAFETY: the same layout it was made with; the new inner size is not zero.
        let moved = unsafe { self.inner.realloc(block, tag::inner_layout_unchecked(layout), inner.size()) };
        if moved.is_null() {
            // Nothing has changed: block, tag and counters are as they were.
            tag::mark_again(block, layout.size());
            failure::note(new_size);
            return moved;
        }
        // SAFETY: the block now has the new inner layout.
        unsafe { event::realloc::record_realloc(moved, old, layout.size(), new_size, &self.config) }
    }

    /// Frees a block of any size.
    #[inline(never)]
    unsafe fn dealloc_slow(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as in `realloc_slow`.
        let id = unsafe { tag::read(block, layout.size()) };
        event::free::record_free(id.into(), layout.size());
        tag::unmark(block, layout.size());
        // SAFETY: the same layout it was made with.
        unsafe { self.inner.dealloc(block, tag::inner_layout_unchecked(layout)) }
    }

    /// Records the free of a block with the tag behind it that has a stack, and frees it.
    #[inline(never)]
    unsafe fn dealloc_recorded(&self, block: *mut u8, layout: Layout, id: u32) {
        if unlikely(!event::free::try_fast_free(id, layout.size())) {
            // SAFETY: the caller's duties.
            return unsafe { self.dealloc_slow(block, layout) };
        }
        // SAFETY: the same layout it was made with.
        unsafe { self.inner.dealloc(block, tag::inner_layout_unchecked(layout)) }
    }

    /// Publishes to the peak, and frees a block whose free is recorded.
    #[cold]
    #[inline(never)]
    unsafe fn dealloc_and_publish(&self, block: *mut u8, layout: Layout) {
        event::free::publish();
        // SAFETY: the same layout it was made with.
        unsafe { self.inner.dealloc(block, tag::inner_layout_unchecked(layout)) }
    }
}

// SAFETY: blocks come from the inner allocator, whose promises are handed on: it is asked for the same
// alignment and at least as many bytes, and gets back the layout it was asked with, because
// `tag::inner_layout` depends on the layout alone. Nothing here unwinds.
unsafe impl<A: GlobalAlloc> GlobalAlloc for TrackingAllocator<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !tag::is_small(layout.size(), layout.align()) {
            // SAFETY: the caller's duties.
            return unsafe { self.alloc_slow(layout) };
        }
        // SAFETY: a small block; with the tag, the inner size is not zero.
        let block = unsafe { self.inner.alloc(tag::inner_layout_of_small(layout)) };
        // SAFETY: just made for this layout.
        unsafe { self.record(block, layout.size(), Entrance::Allocate) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !tag::is_small(layout.size(), layout.align()) {
            // SAFETY: the caller's duties.
            return unsafe { self.alloc_zeroed_slow(layout) };
        }
        // SAFETY: as in `alloc`.
        let block = unsafe { self.inner.alloc_zeroed(tag::inner_layout_of_small(layout)) };
        // SAFETY: just made for this layout.
        unsafe { self.record(block, layout.size(), Entrance::AllocateZeroed) }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if !tag::is_behind(layout.size()) {
            // SAFETY: the caller's duties.
            return unsafe { self.dealloc_slow(block, layout) };
        }
        // SAFETY: the block was made by one of these methods with this layout, so its tag is behind it.
        let id = unsafe { tag::read_behind(block, layout.size()) };
        // The counters come before the inner allocator may give the block to another thread.
        let Some(unsampled) = event::unsampled(id.into()) else {
            // SAFETY: the caller's duties; the tag is behind the block.
            return unsafe { self.dealloc_recorded(block, layout, id) };
        };
        if unsampled.free(layout.size()) {
            // SAFETY: as above; its free is counted.
            return unsafe { self.dealloc_and_publish(block, layout) };
        }
        // SAFETY: the same layout it was made with.
        unsafe { self.inner.dealloc(block, tag::inner_layout_unchecked(layout)) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        if !tag::is_small(size, align) || !tag::is_small(new_size, align) {
            // SAFETY: the caller's duties.
            return unsafe { self.realloc_slow(block, layout, new_size) };
        }
        // Before the inner allocator may overwrite it.
        // SAFETY: as in `dealloc`.
        let old = unsafe { tag::read_behind(block, size) };
        // SAFETY: the same layout it was made with; the new inner size is not zero.
        let moved = unsafe {
            self.inner.realloc(block, tag::inner_layout_of_small(layout), tag::inner_size_of_small(new_size))
        };
        if moved.is_null() {
            // Nothing has changed: block, tag and counters are as they were.
            failure::note(new_size);
            return moved;
        }
        match event::realloc::try_fast_realloc(old, size, new_size) {
            Some(id) => {
                // SAFETY: the block now has the new inner layout, a small one.
                unsafe { tag::write_behind(moved, new_size, id) };
                moved
            }
            // SAFETY: as above.
            None => unsafe { event::realloc::record_realloc(moved, old, size, new_size, &self.config) },
        }
    }
}
