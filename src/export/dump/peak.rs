//! The heap at its highest point so far, kept in memory by stack.
//!
//! The thread that dumps is woken when live bytes pass the last kept peak by a tenth, so what is kept is within a tenth of
//! the peak, whenever there is a processor for that thread.

#[cfg(feature = "http")]
use std::time::Duration;
use std::time::SystemTime;

use super::largest::Largest;
#[cfg(feature = "http")]
use crate::analyze::snapshot::{Snapshot, Trace, named};
#[cfg(feature = "http")]
use crate::analyze::symbols;
#[cfg(feature = "http")]
use crate::record::control;
use crate::record::fork::mutex::ForkMutex;
use crate::record::raw_snapshot;

/// Least rise that is a new peak: a thread may have as much that it has not published.
const LEAST_RISE: u64 = 64 << 10;

/// Kept peak.
#[derive(Debug)]
struct Kept {
    taken_at: SystemTime,
    largest: Largest,
}

static KEPT: ForkMutex<Option<Kept>> = ForkMutex::new(None);

/// Keeper of the peak, in the thread that dumps.
#[derive(Debug)]
pub(super) struct PeakKeeper {
    /// Memory for the next peak.
    spare: Largest,
    /// Live bytes of the last kept peak, and its epoch.
    bytes: u64,
    epoch: u32,
    /// Live bytes that the next mark is above: those of the kept peak, or what threads had published when it was looked for.
    /// The two differ by what threads have not published, and a mark below the latter would be passed at once, for ever.
    floor: u64,
    /// True if the kept peak has not been written to a dump.
    pub(super) is_new: bool,
}

impl PeakKeeper {
    /// Keeps at most so many stacks.
    pub(super) fn new(most: usize) -> PeakKeeper {
        *KEPT.lock() = Some(Kept { taken_at: SystemTime::now(), largest: Largest::growing_to(most) });
        PeakKeeper { spare: Largest::growing_to(most), bytes: 0, epoch: 0, floor: 0, is_new: false }
    }

    /// Returns the live bytes above which there is a new peak.
    pub(super) fn mark(&self) -> i64 {
        self.floor.saturating_add((self.floor / 10).max(LEAST_RISE)).min(i64::MAX as u64) as i64
    }

    /// Keeps the heap if it is higher than the last kept peak by a tenth, or if that is of another epoch or was reset.
    pub(super) fn look(&mut self) {
        let published = raw_snapshot::published_bytes();
        let is_reset =
            raw_snapshot::epoch() != self.epoch || raw_snapshot::peak_bytes(0) + LEAST_RISE < self.bytes;
        if !is_reset && published < self.mark() {
            return;
        }
        let taken_at = SystemTime::now();
        self.spare.read();
        let bytes = self.spare.totals.live_bytes();
        self.floor = bytes.max(if is_reset { 0 } else { self.bytes }).max(published.max(0) as u64);
        // It may have fallen since it was published.
        if is_reset || bytes > self.bytes {
            (self.bytes, self.epoch) = (bytes, self.spare.epoch);
            if let Some(kept) = &mut *KEPT.lock() {
                std::mem::swap(&mut kept.largest, &mut self.spare);
                kept.taken_at = taken_at;
            }
            self.is_new = !is_reset;
        }
    }

    /// Copies the stacks of the kept peak, and returns its time.
    pub(super) fn copy_to(&self, largest: &mut Largest) -> SystemTime {
        KEPT.lock().as_ref().map_or(SystemTime::now(), |kept| {
            largest.copy_from(&kept.largest);
            kept.taken_at
        })
    }
}

impl Drop for PeakKeeper {
    fn drop(&mut self) {
        *KEPT.lock() = None;
    }
}

/// Stacks of the kept peak, to be named.
#[cfg(feature = "http")]
pub(crate) struct PeakStacks {
    taken_at: SystemTime,
    largest: Largest,
}

/// Returns the stacks of the kept peak. `None` where no thread keeps one.
#[cfg(feature = "http")]
pub(crate) fn stacks() -> Option<PeakStacks> {
    let _own = control::internal();
    let kept = KEPT.lock();
    let kept = kept.as_ref()?;
    Some(PeakStacks { taken_at: kept.taken_at, largest: kept.largest.clone() })
}

#[cfg(feature = "http")]
impl PeakStacks {
    /// Names stacks for a moment. False: no more are left.
    pub(crate) fn name_slice(&self, slice: Duration) -> bool {
        let largest = &self.largest;
        symbols::global()
            .resolve(&mut largest.iter().map(|stack| largest.addresses(stack).to_vec()), slice)
            .more
    }

    /// Makes the snapshot. What has no name yet is looked up.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let limit = control::traceback_limit();
        let traces = self.largest.iter().map(|stack| Trace {
            domain: 0,
            size: stack.counts.live_bytes(),
            count: stack.counts.live_blocks(),
            stderr: stack.variance.sqrt().round() as u64,
            traceback: named(
                symbols::global(),
                &self.largest.addresses(stack).to_vec(),
                limit,
                stack.truncated,
            ),
            scope: self.largest.scope_labels(stack),
        });
        Snapshot::of(self.taken_at, limit, traces.collect())
            .sampled_every(control::sample_interval() as u64)
            .with_reason("peak")
    }
}
