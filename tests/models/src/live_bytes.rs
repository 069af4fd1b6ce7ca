//! Models of live bytes for the peak, published and not, while another thread begins an epoch.

use crate::models;
use crate::record::count::unpublished::Unpublished;
use crate::record::epoch;
use loom::sync::atomic::AtomicU32;
use loom::thread;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Functions that are repeated from `record/thread/state.rs`, and the beginnings of the words in them that are compared.
pub(crate) const AS_IN_THE_SOURCES: [&str; 6] =
    ["fits", "add_change", "change", "change_slow", "publish_slow", "enter_epoch"];
pub(crate) const SOURCE: &str = include_str!("live_bytes.rs");
pub(crate) const WORDS: &[&str] = &["self.", "unpublished.", "epoch::", "bytes", "resized"];

/// The part of a `ThreadState` that holds live bytes for the peak.
struct LiveBytes {
    unpublished: Unpublished,
}

/// Those of a thread that has published nothing.
// SAFETY: atomics, for which zero is a value.
static LIVE_BYTES: LiveBytes = unsafe { std::mem::zeroed() };

impl LiveBytes {
    /// Repeats `ThreadState::fits`.
    fn fits(&self, bytes: i64) -> bool {
        self.unpublished.fits(bytes)
    }

    /// Repeats `ThreadState::add_change`.
    fn add_change(&self, bytes: i64) {
        self.unpublished.add(bytes);
    }

    /// Repeats `ThreadState::change`.
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

    /// Repeats `ThreadState::change_slow`.
    fn change_slow(&self, id: u32, bytes: i64, resized: i64) {
        let base = self.enter_epoch();
        let is_present = id >= base;
        let bytes = if is_present { bytes.wrapping_sub(resized) } else { resized.wrapping_neg() };
        self.measure_change(bytes);
        if self.fits(bytes) {
            self.add_change(bytes);
        } else {
            self.publish_slow(base, bytes);
        }
    }

    /// Does nothing: no other thread sees a measurement, so that there is none here.
    fn measure_change(&self, _bytes: i64) {}

    /// Repeats `ThreadState::publish_slow`.
    fn publish_slow(&self, base: u32, change: i64) {
        epoch::publish(base, self.unpublished.take().wrapping_add(change));
    }

    /// Repeats `ThreadState::enter_epoch`.
    fn enter_epoch(&self) -> u32 {
        let was_revoked = self.unpublished.seal();
        let base = epoch::base();
        self.unpublished.enter_epoch(base);
        if was_revoked {
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

/// Allocates in a thread while another clears: the next epoch's peak is of all the blocks in it, and of no others.
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

/// Publishes in three threads: one for the epoch that ends, one ends it and publishes for the next, and one for the epoch
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

/// Most bytes that a free before the revocation has left in the next epoch's sum, in any order.
static MOST_DROPPED: AtomicU64 = AtomicU64::new(0);

pub(crate) fn free_before_revocation() -> String {
    let orders = models::orders_from(begin, freed_before_revocation);
    let most = MOST_DROPPED.load(Ordering::Relaxed);
    // Else no order has a free between the two.
    assert_eq!(most, 40);
    format!("{orders}, at most {most} of 80 bytes stay")
}

/// Frees blocks of the new epoch, which another has made, before its own range is revoked: what fits in the
/// range is dropped with the old epoch, no more, and nothing after the revocation is.
fn freed_before_revocation() {
    let give = Arc::new(AtomicU32::new(0));
    let given = give.clone();
    let clearing = thread::spawn(move || {
        epoch::clear();
        epoch::publish(epoch::base(), 80);
        // Release: pairs with the Acquire below, as where a program hands a block to another thread.
        give.store(epoch::base(), Ordering::Release);
        LIVE_BYTES.unpublished.revoke();
    });
    let id = given.load(Ordering::Acquire);
    if id != 0 {
        // One fits, and the second does not.
        LIVE_BYTES.change(id, -40, 0);
        LIVE_BYTES.change(id, -40, 0);
    }
    clearing.join().unwrap();
    let live = || {
        let unpublished = || LIVE_BYTES.unpublished.read(epoch::base());
        epoch::reset_peak(unpublished);
        epoch::peak(unpublished)
    };
    let before = live();
    if id == 0 {
        assert_eq!(before, 80);
    } else {
        assert!(before <= 64, "{before} bytes stay");
        MOST_DROPPED.fetch_max(before, Ordering::Relaxed);
    }
    let id = epoch::base();
    for change in [30, 1_000, -1_000, -30] {
        LIVE_BYTES.change(id, change, 0);
    }
    assert_eq!(live(), before, "changes after the revocation are dropped");
}
