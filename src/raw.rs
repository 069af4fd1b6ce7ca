//! Counters of all threads → [`RawSnapshot`]: the border between the write side and the read side.
//!
//! What crosses is owned or never changes: counts by stack id, and the addresses of a stack, which
//! stay where they are for the life of the process. Nobody is stopped.

use std::time::{Instant, SystemTime};

/// Bytes and blocks of one stack id since the last `clear`; both directions only ever grow.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub allocated_bytes: u64,
    pub allocated_blocks: u64,
    pub freed_bytes: u64,
    pub freed_blocks: u64,
}

impl Counts {
    pub(crate) fn live_bytes(&self) -> u64 {
        self.allocated_bytes.saturating_sub(self.freed_bytes)
    }

    pub(crate) fn live_blocks(&self) -> u64 {
        self.allocated_blocks.saturating_sub(self.freed_blocks)
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.allocated_bytes += other.allocated_bytes;
        self.allocated_blocks += other.allocated_blocks;
        self.freed_bytes += other.freed_bytes;
        self.freed_blocks += other.freed_blocks;
    }
}

/// One distinct stack that has been allocated from since the last `clear`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawStack {
    /// Never reused, so equal ids of two snapshots are the same stack.
    pub id: u32,
    /// Return addresses, most recent first; empty for `[unrecorded]`.
    pub addresses: &'static [usize],
    /// The walk ended at its limit, not at the thread's first frame.
    pub truncated: bool,
    pub counts: Counts,
}

/// Events whose attribution was lost, by reason; their bytes are in the totals.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub stacks: u64,
    pub memory: u64,
    pub threads: u64,
    pub reentrant: u64,
}

/// Everything the write side knows at one moment.
#[derive(Clone, Debug)]
pub(crate) struct RawSnapshot {
    pub taken_at: SystemTime,
    pub taken: Instant,
    /// New allocations are recorded (false: stopped, switched off or paused by configuration).
    pub tracking: bool,
    /// The configured `.frames(n)`.
    pub traceback_limit: usize,
    /// Changes with each `clear`, `stop` and `start`: counts of different epochs do not compare.
    pub epoch: u32,
    /// Ascending by id. The sum of their counts is the total.
    pub stacks: Vec<RawStack>,
    /// Live bytes allocated while paused or off, without heapgauge's own.
    pub untracked_bytes: u64,
    /// heapgauge's own tables and what its read side holds, bytes.
    pub overhead_bytes: u64,
    pub peak_bytes: u64,
    pub dropped: Dropped,
    pub truncated_stacks: u64,
    pub fallback_walks: u64,
    /// Average bytes between samples; 0 = exact.
    pub sample_interval_bytes: u64,
    /// How stacks are walked: `cfi`, `backtrace`.
    pub capture: &'static str,
}

impl RawSnapshot {
    /// Sum over all stacks.
    pub(crate) fn totals(&self) -> Counts {
        let mut totals = Counts::default();
        for stack in &self.stacks {
            totals += stack.counts;
        }
        totals
    }
}
