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

/// Packs a mark and signed bytes in a word.
#[inline(always)]
fn join(mark: u16, bytes: i64) -> u64 {
    debug_assert!(bytes << MARK_BITS >> MARK_BITS == bytes, "{bytes} bytes do not fit beside a mark");
    (bytes as u64) << MARK_BITS | u64::from(mark)
}

/// Returns a word of the epoch of this mark: the word itself, or 0 bytes where it is of another epoch.
#[inline(always)]
fn of_epoch(word: u64, mark: u16) -> u64 {
    if word as u16 == mark { word } else { u64::from(mark) }
}

/// Returns the bytes of a word. Those of one epoch compare as their words do.
#[inline(always)]
fn bytes_of(word: u64) -> i64 {
    word as i64 >> MARK_BITS
}

impl Sum {
    const fn new() -> Sum {
        Sum(AtomicU64::new(0))
    }

    /// Replaces the word of the epoch that has this base, and returns the new one; `None` where that epoch is not the
    /// `present` one any more. `word` was just [read](Sum::word).
    #[inline(always)]
    fn update(
        &self,
        mut word: u64,
        base: u32,
        present: impl Fn() -> u32,
        replaced: impl Fn(u64) -> u64,
    ) -> Option<u64> {
        loop {
            if present() != base {
                return None;
            }
            let new = replaced(of_epoch(word, mark(base)));
            // If a `clear` comes right here, either this fails, or the word is replaced with the next epoch's.
            match self.0.compare_exchange(word, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(new),
                Err(now) => word = now,
            }
        }
    }

    /// Returns the word, of whatever epoch it is.
    #[inline(always)]
    fn word(&self) -> u64 {
        // Acquire: pairs with the Release of `update`. A thread that finds a later epoch's word here finds that epoch's
        // base there, and gives up.
        self.0.load(Ordering::Acquire)
    }

    /// Raises the word of the epoch that has this base to at least this one of its own, and returns it; `None` as above.
    #[inline(always)]
    fn raise(&self, base: u32, present: impl Fn() -> u32, least: u64) -> Option<u64> {
        let mut word = self.word();
        loop {
            let before = of_epoch(word, mark(base));
            // A line that no thread writes is one that no thread waits for.
            if before as i64 >= least as i64 {
                return Some(before);
            }
            if present() != base {
                return None;
            }
            // As in `update`.
            match self.0.compare_exchange(word, least, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(least),
                Err(now) => word = now,
            }
        }
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

    /// Adds a net change of the epoch of this base and raises the peak. Returns the live bytes after a rise.
    pub(crate) fn publish(&self, base: u32, present: impl Fn() -> u32 + Copy, net: i64) -> Option<i64> {
        let change = join(0, net);
        let live =
            self.published.update(self.published.word(), base, present, |live| live.wrapping_add(change))?;
        // A fall raises no peak.
        if net <= 0 {
            return None;
        }
        self.highest.raise(base, present, live);
        Some(bytes_of(live))
    }

    /// Returns the live bytes that were published in the epoch of this base.
    pub(crate) fn published(&self, base: u32) -> i64 {
        bytes_of(of_epoch(self.published.word(), mark(base)))
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
        let published = of_epoch(self.published.word(), mark(base));
        let live = published.wrapping_add(join(0, unpublished()));
        bytes_of(self.highest.raise(base, present, live).unwrap_or(live)).max(0) as u64
    }

    /// Sets the peak to the present live bytes.
    pub(crate) fn reset(&self, base: u32, present: impl Fn() -> u32, unpublished: impl FnOnce() -> i64) {
        let published = bytes_of(of_epoch(self.published.word(), mark(base)));
        let live = join(mark(base), published.wrapping_add(unpublished()).max(0));
        self.highest.update(self.highest.word(), base, present, |_| live);
    }

    /// Begins the sums of an epoch that has just become the present one.
    pub(crate) fn begin(&self, base: u32, present: impl Fn() -> u32 + Copy) {
        for sum in [&self.published, &self.highest] {
            sum.update(sum.word(), base, present, |word| word);
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
                assert_eq!(bytes_of(of_epoch(join(mark, bytes), mark)), bytes);
                assert_eq!(of_epoch(join(mark, bytes), mark ^ 1), join(mark ^ 1, 0));
            }
        }
    }
}
