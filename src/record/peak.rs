//! A sum of bytes that begins at 0 in each epoch, though any thread may change it while another ends the epoch.
//!
//! A change belongs to an epoch, and a `clear` may come between the event and its publication. The sum therefore
//! holds the mark of its epoch in the same word: a change of an epoch that is over is dropped, and the first change
//! of a new one begins at 0, whether the thread that clears has come so far or not.

use crate::base::atomics::{AtomicU64, Ordering};

/// Bytes of one epoch: signed bytes above, its mark below. Has its cache lines to itself.
#[repr(align(128))]
struct Sum(AtomicU64);

/// Width of the mark, in the lower bits. The 48 above hold any number of bytes that x86-64 and aarch64 address.
const MARK_BITS: u32 = u16::BITS;

/// Tells neighbouring epochs apart. Two that are further apart may have the same mark, but would have to come and go
/// within one call of [`Sum::update`].
pub(crate) fn mark(base: u32) -> u16 {
    base as u16
}

#[inline(always)]
fn join(mark: u16, bytes: i64) -> u64 {
    (bytes as u64) << MARK_BITS | u64::from(mark)
}

/// Returns the bytes of a word, 0 where they are of another epoch.
#[inline(always)]
fn bytes_of(word: u64, mark: u16) -> i64 {
    if word as u16 == mark { word as i64 >> MARK_BITS } else { 0 }
}

impl Sum {
    const fn new() -> Sum {
        Sum(AtomicU64::new(0))
    }

    /// Replaces the bytes of the epoch that has this base; `None` where it is not the `present` one any more.
    #[inline(always)]
    fn update(&self, base: u32, present: impl Fn() -> u32, replaced: impl Fn(i64) -> i64) -> Option<i64> {
        let mark = mark(base);
        // Acquire, here and below: pairs with the Release below. A thread that finds a later epoch's word here
        // finds that epoch's base below, and gives up.
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            if present() != base {
                return None;
            }
            let bytes = replaced(bytes_of(word, mark));
            // If a `clear` comes right here, either this fails, or the word is replaced with the next epoch's.
            match self.0.compare_exchange(word, join(mark, bytes), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(bytes),
                Err(now) => word = now,
            }
        }
    }

    /// Returns the bytes of the epoch that has this base.
    #[inline(always)]
    fn bytes(&self, base: u32) -> i64 {
        // Acquire: as in `update`.
        bytes_of(self.0.load(Ordering::Acquire), mark(base))
    }

    /// Raises the bytes of the epoch that has this base to at least so many, and returns them; `None` as above.
    #[inline(always)]
    fn raise(&self, base: u32, present: impl Fn() -> u32, bytes: i64) -> Option<i64> {
        let before = self.bytes(base);
        // A line that no thread writes is one that no thread waits for.
        if before >= bytes { Some(before) } else { self.update(base, present, |before| before.max(bytes)) }
    }
}

/// Live bytes as far as threads have published them, and the most of them since the epoch began.
///
/// `base` is the base of the epoch that a change belongs to, `present` reads the one that is current.
pub(crate) struct Peak {
    published: Sum,
    highest: Sum,
}

impl Peak {
    pub(crate) const fn new() -> Peak {
        Peak { published: Sum::new(), highest: Sum::new() }
    }

    /// Adds a net change of the epoch of this base and raises the peak.
    pub(crate) fn publish(&self, base: u32, present: impl Fn() -> u32 + Copy, net: i64) {
        let live = self.published.update(base, present, |published| published.wrapping_add(net));
        // A fall raises no peak.
        if net > 0
            && let Some(live) = live
        {
            self.raise_to(base, present, live);
        }
    }

    fn raise_to(&self, base: u32, present: impl Fn() -> u32, live: i64) -> i64 {
        self.highest.raise(base, present, live).unwrap_or(live)
    }

    /// Raises the peak to the present live bytes and returns it. `unpublished` are those that threads have not
    /// published.
    ///
    /// Not to the sum over all counters: that holds blocks which came and went while it was read, and a peak would
    /// keep them.
    pub(crate) fn raise(
        &self,
        base: u32,
        present: impl Fn() -> u32,
        unpublished: impl FnOnce() -> i64,
    ) -> u64 {
        // Published bytes first: a thread that publishes in between is missing in the sum, and has raised the peak
        // itself.
        let published = self.published.bytes(base);
        self.raise_to(base, present, published.wrapping_add(unpublished())).max(0) as u64
    }

    /// Sets the peak to the present live bytes.
    pub(crate) fn reset(&self, base: u32, present: impl Fn() -> u32, unpublished: impl FnOnce() -> i64) {
        let published = self.published.bytes(base);
        let live = published.wrapping_add(unpublished()).max(0);
        self.highest.update(base, present, |_| live);
    }

    /// Begins the sums of an epoch that has just become the present one.
    pub(crate) fn begin(&self, base: u32, present: impl Fn() -> u32 + Copy) {
        for sum in [&self.published, &self.highest] {
            sum.update(base, present, |bytes| bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_holds_a_mark_and_signed_bytes() {
        for mark in [0, 1, 0x7fff, u16::MAX] {
            for bytes in [0, 1, -1, 1 << 16, -(1 << 16), (1 << 47) - 1, -(1 << 47) + 1] {
                assert_eq!(bytes_of(join(mark, bytes), mark), bytes);
                assert_eq!(bytes_of(join(mark, bytes), mark ^ 1), 0);
            }
        }
    }
}
