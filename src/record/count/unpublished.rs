//! Live bytes of one thread that have not been published to the peak.
//!
//! A thread adds each change of its live bytes here and publishes the sum when it has left the range of ±`limit`.
//! Written by the thread it belongs to, inside the allocator; others read it, and revoke the range when an epoch
//! ends.
//!
//! A resize is one change, the new size less the old one. Added one after the other, the two halves would publish a
//! heap with both blocks in it, or with neither.

use crate::base::atomics::{AtomicI64, AtomicU32, AtomicU64, Ordering};

/// Net bytes of one thread. All zero bytes are an empty one whose range is revoked.
pub(crate) struct Unpublished {
    /// Bytes allocated less bytes freed, plus `limit`: one comparison tells whether a change leaves the range.
    net: AtomicI64,
    /// Twice the limit while `net` may change without a look at the epoch; else [`REVOKED`] or [`SEALED`].
    range: AtomicU64,
    limit: AtomicI64,
    /// The base of the epoch that `net` counts in.
    base: AtomicU32,
    /// Bytes of the block that is being resized, until they are taken off.
    resizing: AtomicI64,
    /// The base of the epoch in which the bytes of the last resized block were taken off.
    resized_in: AtomicU32,
}

/// No change fits before [`Unpublished::seal`] and [`Unpublished::grant`].
const REVOKED: u64 = 0;
/// Its thread looks at the epoch. No change fits, as `net` is at least 1 in an open range of any use.
const SEALED: u64 = 1;

// Relaxed throughout but for the revocation: sums that order nothing else.
impl Unpublished {
    /// Returns whether a change keeps the net in its range; then its bytes are few.
    #[inline(always)]
    pub(crate) fn fits(&self, change: i64) -> bool {
        let net = self.net.load(Ordering::Relaxed).wrapping_add(change);
        (net as u64) < self.range.load(Ordering::Relaxed)
    }

    /// Adds a change, whether it fits or not.
    #[inline(always)]
    pub(crate) fn add(&self, change: i64) {
        self.net.store(self.net.load(Ordering::Relaxed).wrapping_add(change), Ordering::Relaxed);
    }

    /// Empties it and returns the net bytes.
    pub(crate) fn take(&self) -> i64 {
        let limit = self.limit.load(Ordering::Relaxed);
        let net = self.net.load(Ordering::Relaxed).wrapping_sub(limit);
        self.net.store(limit, Ordering::Relaxed);
        net
    }

    // ── The epoch ───────────────────────────────────────────────────────────────────────────────

    /// Revokes the range, so that its owner looks at the epoch before its next change fits. Any thread, after the
    /// base has changed.
    ///
    /// Between the two the owner may free a block of the new epoch that another thread has made already. The free fits in
    /// the range of the old epoch and is dropped with its net. So the new epoch's peak may be off by what fits in a range,
    /// as it may be without a `clear`. A comparison of bases at each free would cost a thirtieth of it.
    pub(crate) fn revoke(&self) {
        // Release: pairs with the Acquire of `seal`, which then sees the base that was changed before.
        self.range.swap(REVOKED, Ordering::Release);
    }

    /// Seals a range that was revoked, before the base is read; false where it was not.
    pub(crate) fn seal(&self) -> bool {
        let was_revoked = self.range.load(Ordering::Relaxed) == REVOKED;
        if was_revoked {
            // Acquire: pairs with the Release of `revoke`.
            self.range.swap(SEALED, Ordering::Acquire);
        }
        was_revoked
    }

    /// Drops the net bytes of an epoch that is over.
    pub(crate) fn enter_epoch(&self, base: u32) {
        if self.base.load(Ordering::Relaxed) != base {
            self.base.store(base, Ordering::Relaxed);
            self.net.store(self.limit.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Grants the range again, unless it was revoked since [`Unpublished::seal`].
    pub(crate) fn grant(&self) {
        let limit = self.limit.load(Ordering::Relaxed);
        debug_assert!(limit >= 0, "a range of {limit} bytes");
        let range = limit as u64 * 2;
        let _ = self.range.compare_exchange(SEALED, range, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Returns the base of the epoch that the net bytes are of.
    #[inline(always)]
    pub(crate) fn base(&self) -> u32 {
        self.base.load(Ordering::Relaxed)
    }

    /// Returns how many bytes either way stay unpublished.
    pub(crate) fn limit(&self) -> i64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Sets how many bytes either way stay unpublished. While it is empty.
    pub(crate) fn set_limit(&self, limit: i64) {
        let before = self.limit.load(Ordering::Relaxed);
        self.limit.store(limit, Ordering::Relaxed);
        self.net.store(limit, Ordering::Relaxed);
        // Not where it was revoked.
        let (before, range) = (before as u64 * 2, limit as u64 * 2);
        if before != REVOKED {
            let _ = self.range.compare_exchange(before, range, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    // ── Resizes ─────────────────────────────────────────────────────────────────────────────────

    /// Notes a block of so many bytes that is about to change its size, and returns what was noted before: the block of
    /// a resize that a signal handler has interrupted.
    #[inline(always)]
    pub(crate) fn set_resizing(&self, bytes: i64) -> i64 {
        let before = self.resizing.load(Ordering::Relaxed);
        self.resizing.store(bytes, Ordering::Relaxed);
        before
    }

    /// Returns the bytes of the block that is being resized, if they were not taken off yet.
    #[inline(always)]
    pub(crate) fn resizing(&self) -> i64 {
        self.resizing.load(Ordering::Relaxed)
    }

    /// Notes the base of the epoch in which the bytes of the resized block were taken off; 0: in none so far.
    pub(crate) fn set_resized_in(&self, base: u32) {
        self.resized_in.store(base, Ordering::Relaxed);
    }

    /// Returns the base that [`Unpublished::set_resized_in`] noted last.
    pub(crate) fn resized_in(&self) -> u32 {
        self.resized_in.load(Ordering::Relaxed)
    }

    // ── Readers ─────────────────────────────────────────────────────────────────────────────────

    /// Returns the live bytes that were not published in the epoch of this base. A block that is being resized counts
    /// at its new size, never at both.
    pub(crate) fn read(&self, base: u32) -> i64 {
        if self.base.load(Ordering::Relaxed) != base {
            return 0;
        }
        let net = self.net.load(Ordering::Relaxed).wrapping_sub(self.limit.load(Ordering::Relaxed));
        net.wrapping_sub(self.resizing())
    }
}
