//! Runtime controls: start, stop, clear, pause, totals.
//!
//! Any thread may call these at any time; none of them stops another thread.

use crate::base::error::Error;
pub(crate) use crate::record::count::sampling::MAX_INTERVAL;
use crate::record::dropped;
use crate::record::epoch::{self, MAX_FRAMES};
use crate::record::event;
use crate::record::own_frames;
use crate::record::raw_snapshot;
use crate::record::stack_id::life;
use crate::record::stack_id::reclaim;
use crate::record::startup;
use crate::record::thread::{self, Suspension};
use crate::record::unwind;

/// Starts tracking, with tracebacks of `frames` frames. Does nothing when it is on already.
///
/// Blocks that exist are not traced; they count as untracked, or were forgotten by [`stop`].
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// heapgauge::stop();
/// heapgauge::start(16)?;
/// assert!(heapgauge::is_tracing());
/// assert_eq!(heapgauge::traceback_limit(), 16);
/// # Ok::<(), heapgauge::Error>(())
/// ```
///
/// # Errors
///
/// If `frames` is not within 1..=64, or if no [`TrackingAllocator`](crate::TrackingAllocator) is in use; nothing is
/// changed then.
pub fn start(frames: usize) -> Result<(), Error> {
    let frames = checked("start", frames)?;
    startup::ensure();
    if !has_allocator() {
        return Err(Error::tracking_off(format_args!("start: {NO_ALLOCATOR}")));
    }
    if !epoch::is_on() {
        epoch::set_frames(frames);
        epoch::start();
        thread::revoke_unpublished();
        reclaim::give_back(reclaim::ENDER);
    }
    Ok(())
}

/// Message for a program that has no allocator of heapgauge's, with the two lines that it lacks.
pub(crate) const NO_ALLOCATOR: &str = "heapgauge is not the global allocator of this program, add `#[global_allocator]` \
     and `static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();`";

/// Returns the reason why nothing is recorded while tracking is off, with its remedy.
pub(crate) fn off_reason() -> &'static str {
    if has_allocator() { "tracking is off, heapgauge::start turns it on" } else { NO_ALLOCATOR }
}

/// Returns whether a `TrackingAllocator` was ever asked for a block. Asks the global allocator for one first.
pub(crate) fn has_allocator() -> bool {
    let _internal = internal();
    drop(std::hint::black_box(Box::new(std::hint::black_box(0u64))));
    epoch::is_configured()
}

/// Returns the time heapgauge began at in this program image: a child of `fork` has its parent's answer, an `exec`
/// begins anew.
pub(crate) fn began_at() -> std::time::SystemTime {
    startup::ensure();
    startup::began_at()
}

/// Checks a number of frames; the error begins with the attempt.
fn checked(attempt: &str, frames: usize) -> Result<u32, Error> {
    match u32::try_from(frames) {
        Ok(frames @ 1..=MAX_FRAMES) => Ok(frames),
        _ => Err(Error::new(format_args!(
            "{attempt}: {frames} frames is out of range, allowed are 1 to {MAX_FRAMES}"
        ))),
    }
}

/// Sets how many frames a traceback shows from now on, whether tracking is on or off. Stacks recorded
/// before keep the addresses they have.
#[cfg(feature = "http")]
pub(crate) fn set_traceback_limit(frames: usize) -> Result<(), Error> {
    epoch::set_frames(checked("traceback limit", frames)?);
    Ok(())
}

/// Forgets all traces and stops tracking. Blocks that exist are ignored when they are freed.
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// heapgauge::stop();
/// assert!(!heapgauge::is_tracing());
/// assert_eq!(heapgauge::traced_memory().current, 0);
/// ```
pub fn stop() {
    epoch::stop();
    thread::revoke_unpublished();
    reclaim::give_back(reclaim::ENDER);
}

/// Returns whether allocations are being recorded.
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// assert!(heapgauge::is_tracing());
/// ```
pub fn is_tracing() -> bool {
    epoch::is_on()
}

/// Returns the largest number of frames that a traceback shows, counted from the site's frame.
///
/// # Examples
///
/// ```
/// assert_eq!(heapgauge::traceback_limit(), 32);
/// ```
pub fn traceback_limit() -> usize {
    epoch::frames()
}

/// Returns the average bytes between two sampled allocations; 0: the stack of every allocation is recorded.
///
/// # Examples
///
/// ```
/// assert_eq!(heapgauge::sample_interval(), 0);
/// ```
pub fn sample_interval() -> usize {
    epoch::sampling().interval() as usize
}

/// Records, from now on, the stack of one allocation every `bytes` bytes on average; of every allocation
/// if that is 0 or 1. See [`sampling`](crate::docs::sampling).
///
/// Blocks that exist keep the weight they were recorded with, and totals stay exact, so it may be changed
/// under load. Takes effect at each thread's next allocation.
///
/// # Examples
///
/// ```
/// heapgauge::set_sample_interval(512 << 10)?;
/// assert_eq!(heapgauge::sample_interval(), 512 << 10);
/// heapgauge::set_sample_interval(0)?;
///
/// let error = heapgauge::set_sample_interval(2 << 30).unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "sample interval: 2147483648 bytes is out of range, allowed are 0 to 1073741824"
/// );
/// # Ok::<(), heapgauge::Error>(())
/// ```
///
/// # Errors
///
/// If `bytes` is more than 1 GiB; nothing is changed then.
pub fn set_sample_interval(bytes: usize) -> Result<(), Error> {
    if bytes > MAX_INTERVAL {
        return Err(Error::new(format_args!(
            "sample interval: {bytes} bytes is out of range, allowed are 0 to {MAX_INTERVAL}"
        )));
    }
    epoch::set_sample_interval(bytes as u32);
    Ok(())
}

/// Reseeds the calling thread's choice of samples: for tests that want the same one each time.
#[doc(hidden)]
pub fn seed_samples(seed: u64) {
    if let Some(state) = thread::current_or_make() {
        state.sampler.seed(seed);
        // The next block is decided anew.
        state.hot.unsampled.revoke();
    }
}

/// Sets whether the memory of stacks that are forgotten is given back from now on.
#[doc(hidden)]
pub fn set_reclaims(reclaims: bool) {
    epoch::set_reclaims(reclaims);
}

/// Looks for stacks that have died, as each reading of all stacks does, which takes longer: for tests.
#[doc(hidden)]
pub fn look_for_dead_stacks() {
    reclaim::give_back(reclaim::READER);
}

/// Renews the chosen ids of stacks, as ages do with some of them now and then: for tests. Returns how many were renewed; 0 where that
/// is not possible now.
#[doc(hidden)]
pub fn renew_stacks(mut is_chosen: impl FnMut(u32) -> bool) -> usize {
    let _internal = internal();
    if !raw_snapshot::can_renew() {
        return 0;
    }
    let open = raw_snapshot::take().stacks.into_iter().filter(|stack| stack.is_open);
    let ids: Vec<u32> = open.map(|stack| stack.id).filter(|id| is_chosen(*id)).collect();
    raw_snapshot::renew(&ids)
}

/// Sets after how many milliseconds without being met a stack is taken for dead, instead of an hour: for tests.
#[doc(hidden)]
pub fn set_idle_time(milliseconds: u64) {
    life::set_idle(milliseconds);
}

/// Ends the process, in a debug build, at an allocation in the middle of an event, for tests whose handlers do not allocate.
#[doc(hidden)]
pub fn end_at_reentrance() {
    dropped::end_at_reentrance();
}

/// Simulates a C library that cannot be asked for the module of an address (glibc before 2.35), for tests of that.
#[doc(hidden)]
pub fn list_modules() {
    startup::ensure();
    unwind::forget_find_object();
}

/// Live bytes of the program, and their peak: the result of [`traced_memory`].
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// let heapgauge::TracedMemory { current, peak } = heapgauge::traced_memory();
/// println!("{current} bytes now, {peak} at most");
/// assert!(peak >= current);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TracedMemory {
    /// Live bytes: requested by blocks that were allocated while tracking was on and not freed since.
    pub current: u64,
    /// The most [`current`](TracedMemory::current) has been since the process began, or since
    /// [`reset_peak`], [`clear_traces`] or [`start`], within 64 KiB a thread: threads publish what they
    /// allocate and free in steps.
    pub peak: u64,
}

/// Returns the live bytes now, and the most there have been.
///
/// Exact where nothing allocates meanwhile. Costs a pass over all counters: with 10,000 stacks and
/// two threads about 0.2 ms.
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// let before = heapgauge::traced_memory();
/// let kept = vec![1u8; 1 << 20];
/// let after = heapgauge::traced_memory();
/// assert_eq!(after.current - before.current, 1 << 20);
/// assert!(after.peak >= after.current);
/// # drop(kept);
/// ```
pub fn traced_memory() -> TracedMemory {
    let current = raw_snapshot::live_bytes();
    TracedMemory { current, peak: raw_snapshot::peak_bytes(current) }
}

/// Sets the peak to the present live bytes.
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// drop(vec![0u8; 10 << 20]);
/// heapgauge::reset_peak();
/// assert!(heapgauge::traced_memory().peak < 10 << 20);
/// ```
pub fn reset_peak() {
    raw_snapshot::reset_peak();
}

/// Forgets all traces and continues to track. Blocks that exist are ignored when they are freed.
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// let from_before = vec![0u8; 1000];
/// heapgauge::clear_traces();
/// drop(from_before);
/// assert_eq!(heapgauge::traced_memory().current, 0);
/// ```
pub fn clear_traces() {
    epoch::clear();
    thread::revoke_unpublished();
    reclaim::give_back(reclaim::ENDER);
}

/// Returns the bytes of heapgauge's own tables, names and snapshots. They are not part of the traced memory.
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// assert!(heapgauge::tracker_memory() > 0);
/// ```
pub fn tracker_memory() -> u64 {
    let _internal = internal();
    raw_snapshot::overhead_bytes()
}

/// Returns the bytes that heapgauge's own code holds now, without the tag map, for which the system would have to be asked:
/// cheap enough for each address that is named.
pub(crate) fn own_bytes() -> u64 {
    raw_snapshot::held_bytes()
}

/// Guard of [`pause`]: while it lives, blocks that the calling thread allocates are untracked.
///
/// # Examples
///
/// A program's own cache that is not to be in the figures:
///
/// ```
/// struct Setup {
///     _paused: heapgauge::PauseGuard,
/// }
///
/// let setup = Setup { _paused: heapgauge::pause() };
/// let cache = vec![0u8; 4096]; // untracked, also when it is freed
/// drop(setup); // from here on this thread is tracked again
/// # drop(cache);
/// ```
#[must_use = "tracking goes on as soon as the guard is dropped: `let _paused = heapgauge::pause();` keeps it"]
pub struct PauseGuard {
    _suspension: Suspension,
}

impl std::fmt::Debug for PauseGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PauseGuard")
    }
}

/// Leaves the calling thread's allocations untracked until the guard is dropped.
///
/// It suspends the recording of allocations only: a traced block that is freed meanwhile is debited, one that is
/// resized keeps its site with the new size. Guards nest. They do not leave their thread. `let _ = pause()` drops the guard at
/// once, and the compiler does not warn.
///
/// # Examples
///
/// ```standalone_crate
/// # #[global_allocator]
/// # static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();
/// let before = heapgauge::traced_memory().current;
/// let paused = heapgauge::pause();
/// let untracked = vec![0u8; 1 << 20];
/// drop(paused);
/// assert_eq!(heapgauge::traced_memory().current, before);
/// # drop(untracked);
/// ```
pub fn pause() -> PauseGuard {
    PauseGuard { _suspension: Suspension::new(thread::PAUSED) }
}

/// Guard of [`internal`]: while it lives, blocks of the calling thread count as heapgauge's own.
pub(crate) struct InternalGuard {
    _suspension: Suspension,
}

/// Counts the calling thread's allocations as overhead until the guard is dropped. Guards nest.
pub(crate) fn internal() -> InternalGuard {
    InternalGuard { _suspension: Suspension::new(thread::INTERNAL) }
}

/// Counts the calling thread's allocations as overhead until it exits, and names the thread `heapgauge`.
///
/// A name given to `std` would be copied on the new thread before this can be called there: a block of the
/// program's, as far as can be told from outside.
pub(crate) fn internal_for_life() {
    std::mem::forget(internal());
    #[cfg(target_os = "linux")]
    // SAFETY: a text of less than 16 bytes that ends with a zero, and a thread that lives.
    unsafe {
        libc::pthread_setname_np(libc::pthread_self(), c"heapgauge".as_ptr())
    };
}

/// Returns the base of the present epoch; it changes with each [`clear_traces`], [`stop`] and [`start`].
pub(crate) fn epoch_base() -> u32 {
    epoch::base()
}

/// Returns a number that changes when a module was loaded or unloaded. Takes the loader's lock for a moment.
pub(crate) fn modules_epoch() -> u64 {
    startup::ensure();
    unwind::modules_epoch()
}

/// Start addresses of heapgauge's own functions, and stacks of allocations made on purpose, each with the addresses of
/// other functions of heapgauge and of the standard library up to those in `asking`.
pub(crate) struct OwnFrames {
    pub functions: [usize; 3],
    pub stacks: Vec<Vec<usize>>,
    /// Start address of the function that asked for the blocks.
    pub asking: usize,
}

/// Finds the addresses that tell heapgauge's frames from the program's where there are no symbols. One thread at a
/// time.
pub(crate) fn own_frames() -> OwnFrames {
    startup::ensure();
    let (stacks, asking) = own_frames::own_allocation_stacks();
    let functions = [
        event::alloc::record_alloc as *const () as usize,
        event::realloc::record_realloc as *const () as usize,
        event::capture::stack_of_caller as *const () as usize,
    ];
    OwnFrames { functions, stacks, asking }
}
