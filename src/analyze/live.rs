//! Live bytes and blocks, and their change between two moments.
//!
//! Plain values for any thread.
#![forbid(unsafe_code)]

use std::ops::AddAssign;

use crate::record::raw_snapshot::Counts;

/// Live bytes and live blocks.
///
/// # Examples
///
/// ```
/// let live = heapgauge::Collector::new().collect().live.now;
/// println!("{} bytes in {} blocks", live.bytes, live.blocks);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Live {
    /// Bytes of live blocks, as requested.
    pub bytes: u64,
    /// Number of live blocks.
    pub blocks: u64,
}

impl Live {
    pub(crate) fn is_nothing(self) -> bool {
        self == Live::default()
    }

    /// Returns the lesser bytes and the lesser blocks of two.
    pub(crate) fn least(self, other: Live) -> Live {
        Live { bytes: self.bytes.min(other.bytes), blocks: self.blocks.min(other.blocks) }
    }

    /// Returns what is left beside `other`, never less than nothing.
    pub(crate) fn minus(self, other: Live) -> Live {
        Live {
            bytes: self.bytes.saturating_sub(other.bytes),
            blocks: self.blocks.saturating_sub(other.blocks),
        }
    }
}

impl AddAssign for Live {
    fn add_assign(&mut self, other: Live) {
        self.bytes += other.bytes;
        self.blocks += other.blocks;
    }
}

impl From<Counts> for Live {
    fn from(counts: Counts) -> Live {
        Live { bytes: counts.live_bytes(), blocks: counts.live_blocks() }
    }
}

/// Live counts now and in the baseline.
///
/// # Examples
///
/// ```
/// let live = heapgauge::Collector::new().collect().live;
/// assert_eq!(live.delta_bytes(), live.now.bytes as i64 - live.since.bytes as i64);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LiveChange {
    /// Live counts now.
    pub now: Live,
    /// Live counts in the baseline that they are compared with.
    pub since: Live,
}

impl LiveChange {
    /// Returns the live bytes now minus those in the baseline.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(heapgauge::LiveChange::default().delta_bytes(), 0);
    /// ```
    pub fn delta_bytes(&self) -> i64 {
        self.now.bytes.wrapping_sub(self.since.bytes) as i64
    }

    /// Returns the live blocks now minus those in the baseline.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(heapgauge::LiveChange::default().delta_blocks(), 0);
    /// ```
    pub fn delta_blocks(&self) -> i64 {
        self.now.blocks.wrapping_sub(self.since.blocks) as i64
    }

    /// Returns what is left beside `other`, never less than nothing.
    pub(crate) fn minus(self, other: LiveChange) -> LiveChange {
        LiveChange { now: self.now.minus(other.now), since: self.since.minus(other.since) }
    }
}
