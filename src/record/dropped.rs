//! Counts of events whose attribution was lost, of stacks that were cut and of walks by the slow unwinder.

#[cfg(debug_assertions)]
use crate::base::atomics::AtomicBool;
use crate::base::atomics::{AtomicU64, Ordering};

/// Reason for lost attribution; the bytes of such an event are counted at `[unrecorded]`, but for the last.
#[derive(Clone, Copy)]
pub(crate) enum Reason {
    /// Stack ids are used up.
    Stacks,
    /// No memory for heapgauge's own tables, or their limit is reached.
    Memory,
    /// The thread has no state of its own: it is ending, or none could be made.
    Threads,
    /// The allocation came from inside heapgauge's own hook, as from a signal handler, or needed a lock that stayed
    /// locked: see `bounded_wait`.
    Reentrant,
    /// A combination of scopes, or a stack in one, found no room: it counts as `[other]`, and at its stack as always.
    Scopes,
}

/// Relaxed: counts for people.
static DROPPED: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

static TRUNCATED: AtomicU64 = AtomicU64::new(0);

static FALLBACKS: AtomicU64 = AtomicU64::new(0);

/// Guard of debug builds: an allocation in the middle of an event ends the process. Off until a test asks for it, because
/// a program's signal handler may allocate there.
#[cfg(debug_assertions)]
static ENDS_AT_REENTRANCE: AtomicBool = AtomicBool::new(false);

/// Turns the guard on, in debug builds.
pub(crate) fn end_at_reentrance() {
    #[cfg(debug_assertions)]
    ENDS_AT_REENTRANCE.store(true, Ordering::Relaxed);
}

/// Counts one event whose attribution was lost.
#[cold]
pub(crate) fn count(reason: Reason) {
    #[cfg(debug_assertions)]
    if matches!(reason, Reason::Reentrant) && ENDS_AT_REENTRANCE.load(Ordering::Relaxed) {
        // A panic would allocate.
        std::process::abort();
    }
    DROPPED[reason as usize].fetch_add(1, Ordering::Relaxed);
}

/// Returns the number of events dropped for this reason since the process began.
pub(crate) fn events(reason: Reason) -> u64 {
    DROPPED[reason as usize].load(Ordering::Relaxed)
}

/// Counts one distinct stack that was cut at the address limit.
pub(crate) fn count_truncated() {
    TRUNCATED.fetch_add(1, Ordering::Relaxed);
}

/// Returns the number of distinct stacks cut at the address limit.
pub(crate) fn truncated() -> u64 {
    TRUNCATED.load(Ordering::Relaxed)
}

/// Counts one walk by the slow unwinder.
pub(crate) fn count_fallback() {
    FALLBACKS.fetch_add(1, Ordering::Relaxed);
}

/// Returns the number of walks by the slow unwinder.
pub(crate) fn fallbacks() -> u64 {
    FALLBACKS.load(Ordering::Relaxed)
}
