//! Models of live bytes for the peak, published and not, while another thread begins an epoch.

use crate::models;
use crate::record::count::unpublished::Unpublished;
use crate::record::epoch;
use loom::thread;

/// Functions that are repeated from `record/thread/state.rs`, and the beginnings of the words in them that are compared.
pub(crate) const AS_IN_THE_SOURCES: [&str; 6] =
    ["fits", "add_change", "change", "change_slow", "publish_slow", "enter_epoch"];
pub(crate) const WORDS: &[&str] = &["self.", "unpublished.", "epoch::", "bytes", "resized"];

/// The part of a `ThreadState` that holds live bytes for the peak.
struct LiveBytes {
    unpublished: Unpublished,
}

/// Those of a thread that has published nothing.
// SAFETY: atomics, for which zero is a value.
static LIVE_BYTES: LiveBytes = unsafe { std::mem::zeroed() };

impl LiveBytes {
    /// As `ThreadState::fits`.
    fn fits(&self, bytes: i64) -> bool {
        self.unpublished.fits(bytes)
    }

    /// As `ThreadState::add_change`.
    fn add_change(&self, bytes: i64) {
        self.unpublished.add(bytes);
    }

    /// As `ThreadState::change`.
    fn change(&self, id: u32, bytes: i64, resized: i64) {
        if self.fits(bytes.wrapping_sub(resized)) {
            self.add_change(bytes.wrapping_sub(resized));
        } else {
            self.change_slow(id, bytes, resized);
        }
        if resized != 0 {
            self.unpublished.set_resized_in(self.unpublished.base());
        }
    }

    /// As `ThreadState::change_slow`.
    fn change_slow(&self, id: u32, bytes: i64, resized: i64) {
        self.enter_epoch();
        let is_present = id >= self.unpublished.base();
        let bytes = if is_present { bytes.wrapping_sub(resized) } else { resized.wrapping_neg() };
        self.measure_change(bytes);
        if self.fits(bytes) {
            self.add_change(bytes);
        } else {
            self.publish_slow(bytes);
        }
    }

    /// No other thread sees a measurement, so that there is none here.
    fn measure_change(&self, _bytes: i64) {}

    /// As `ThreadState::publish_slow`.
    fn publish_slow(&self, change: i64) {
        epoch::publish(self.unpublished.base(), self.unpublished.take().wrapping_add(change));
    }

    /// As `ThreadState::enter_epoch`.
    fn enter_epoch(&self) -> u32 {
        let is_recalled = self.unpublished.seal();
        let base = epoch::base();
        self.unpublished.enter_epoch(base);
        if is_recalled {
            self.unpublished.grant();
        }
        base
    }

    /// Records a block at the `[unrecorded]` id of the epoch that it finds, as `refresh_and_record` does.
    fn record(&self, size: i64) -> u32 {
        let base = self.enter_epoch();
        self.change(base, size, 0);
        base
    }
}

pub(crate) fn begin() {
    models::begin();
    // One block fits, a second one is published with it.
    LIVE_BYTES.unpublished.set_limit(64);
    LIVE_BYTES.unpublished.revoke();
    LIVE_BYTES.record(0);
}

/// A thread allocates while another clears: the next epoch's peak is of all the blocks in it, and of no others.
pub(crate) fn unpublished_while_cleared() {
    let clearing = thread::spawn(|| {
        epoch::clear();
        LIVE_BYTES.unpublished.revoke();
    });
    let ids = [(); 3].map(|()| LIVE_BYTES.record(48));
    clearing.join().unwrap();
    let peak = || epoch::peak(|| LIVE_BYTES.unpublished.read(epoch::base()));
    let present: Vec<u32> = ids.into_iter().filter(|id| *id >= epoch::base()).collect();
    assert_eq!(peak(), 48 * present.len() as u64);
    // Frees are subtracted.
    present.into_iter().for_each(|id| LIVE_BYTES.change(id, -48, 0));
    LIVE_BYTES.change(epoch::base(), 1_000, 0);
    assert_eq!(peak(), 1_000);
}

/// One thread publishes for the epoch that ends, one ends it and publishes for the next, and one publishes for the epoch
/// that it finds: the next epoch's sum is of all its own changes and of no others.
pub(crate) fn published_while_cleared() {
    let begun = epoch::base();
    let late = thread::spawn(move || epoch::publish(begun, 1 << 30));
    let clearing = thread::spawn(|| {
        epoch::clear();
        epoch::publish(epoch::base(), 1_000);
    });
    let found = epoch::base();
    epoch::publish(found, 100);
    late.join().unwrap();
    clearing.join().unwrap();
    let expected = if found == begun { 1_000 } else { 1_100 };
    assert_eq!(epoch::peak(|| 0), expected);
    // The peak follows the sum.
    epoch::publish(epoch::base(), 10);
    assert_eq!(epoch::peak(|| 0), expected + 10);
}
