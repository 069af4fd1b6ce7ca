//! Counters of all threads → [`RawSnapshot`]: the border between the write side and the read side.
//!
//! What crosses is owned or never changes: counts by stack id, and the addresses of a stack, which
//! stay where they are for the life of the process. Nobody is stopped.

use crate::counters::{CHUNK, Counters};
use crate::tag::{self, OVERHEAD, UNTRACKED};
use crate::thread::{self, Silence};
use crate::tracker::{self, Reason};
use crate::{init, memory, stack, stacks, tag_map};
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

/// Reads the counters of all threads.
///
/// Costs a few nanoseconds for each stack and thread; nobody is stopped. Values are never negative;
/// a block that is allocated and freed by other threads meanwhile may show.
pub(crate) fn take() -> RawSnapshot {
    init::ensure();
    let _own = Silence::new(thread::OWN);
    let (taken_at, taken) = (SystemTime::now(), Instant::now());
    let (epoch, stacks) = read_epoch();
    let live = stacks.iter().map(|stack| stack.counts.live_bytes()).sum();
    RawSnapshot {
        taken_at,
        taken,
        tracking: epoch != u32::MAX,
        traceback_limit: tracker::frames(),
        epoch,
        stacks,
        untracked_bytes: read_one(UNTRACKED).live_bytes(),
        overhead_bytes: overhead_bytes(),
        peak_bytes: tracker::peak(live),
        dropped: dropped(),
        truncated_stacks: tracker::truncated(),
        fallback_walks: tracker::fallbacks(),
        sample_interval_bytes: 0,
        capture: stack::walker(),
    }
}

/// Events dropped since the process began.
pub(crate) fn dropped() -> Dropped {
    Dropped {
        stacks: tracker::dropped(Reason::Stacks),
        memory: tracker::dropped(Reason::Memory),
        threads: tracker::dropped(Reason::Threads),
        reentrant: tracker::dropped(Reason::Reentrant),
    }
}

/// Live bytes of all stacks.
pub(crate) fn live_bytes() -> u64 {
    let _own = Silence::new(thread::OWN);
    read_epoch().1.iter().map(|stack| stack.counts.live_bytes()).sum()
}

/// Bytes of heapgauge's own tables, and of what its read side holds.
pub(crate) fn overhead_bytes() -> u64 {
    held_bytes() + tag_map::resident_bytes()
}

/// The same without the tag map, which takes a call of the system.
pub(crate) fn held_bytes() -> u64 {
    memory::bytes() + read_one(OVERHEAD).live_bytes()
}

/// Sets how much heapgauge may hold, in bytes: three quarters of it for the tables of the write side,
/// so that the names of what they hold find room too.
pub(crate) fn set_max_overhead(bytes: u64) {
    memory::set_limit(bytes / 4 * 3);
}

/// All stacks of the present epoch, whole: read again if a `clear` came between.
fn read_epoch() -> (u32, Vec<RawStack>) {
    let mut tries = 0;
    loop {
        let base = tracker::base();
        let stacks = if base == u32::MAX { Vec::new() } else { read_from(base) };
        tries += 1;
        // Who clears all the time gets the rest of an epoch that has just ended.
        if tracker::base() == base || tries == 4 {
            return (base, stacks);
        }
    }
}

fn read_from(base: u32) -> Vec<RawStack> {
    let end = tracker::end_id();
    let mut stacks = Vec::with_capacity(end.saturating_sub(base) as usize);
    for number in base as usize / CHUNK..(end as usize).div_ceil(CHUNK) {
        let counts = read_chunk(number);
        for (id, counts) in (number * CHUNK..).map(|id| id as u32).zip(counts) {
            if id < base || id >= end || counts == Counts::default() {
                continue;
            }
            let recorded = stacks::recorded(id);
            stacks.push(RawStack {
                id,
                addresses: recorded.map_or(&[], |recorded| recorded.addresses),
                truncated: recorded.is_some_and(|recorded| recorded.truncated),
                counts,
            });
        }
    }
    stacks
}

/// The counts of 64 neighbouring ids, summed over all threads.
///
/// First what was freed, by all threads; then the list of threads and their chunks again, and what
/// was allocated. A free that was seen was preceded by its allocation, which is therefore seen too:
/// live is never negative. In between blocks may come and go, which is why this is done chunk by
/// chunk: over the whole table it would be hundreds.
fn read_chunk(number: usize) -> [Counts; CHUNK] {
    let mut counts = [Counts::default(); CHUNK];
    let chunks = || thread::all_counters().filter_map(|counters: &Counters| counters.chunk(number));
    for chunk in chunks() {
        for (counts, slot) in counts.iter_mut().zip(chunk) {
            let (bytes, blocks) = slot.read_freed();
            counts.freed_bytes += bytes;
            counts.freed_blocks += blocks;
        }
    }
    for chunk in chunks() {
        for (counts, slot) in counts.iter_mut().zip(chunk) {
            let (bytes, blocks) = slot.read_allocated();
            counts.allocated_bytes += bytes;
            counts.allocated_blocks += blocks;
        }
    }
    counts
}

/// The counts of one of the ids that no epoch ends.
fn read_one(id: u32) -> Counts {
    debug_assert!(id < tag::FIRST);
    read_chunk(0)[id as usize]
}

/// The interned addresses of the calling code's stack, for memory that the program reports itself.
pub(crate) fn capture() -> &'static [usize] {
    init::ensure();
    crate::book::stack_of_caller().map_or(&[], |recorded| recorded.addresses)
}
