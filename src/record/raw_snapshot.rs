//! Counters of all threads → [`RawSnapshot`]: the border between the write side and the read side.
//!
//! The data that crosses is owned by the reader: counts by stack id, and copies of the addresses of stacks. No thread is
//! stopped.

mod passing;
#[cfg(test)]
mod sample;

use crate::record::count::counters::{CHUNK, Chunk, Direction, number};
use crate::record::count::sampling;
use crate::record::count::unsampled::{self, Unsampled};
use crate::record::dropped::{self, Reason};
use crate::record::epoch;
use crate::record::memory;
pub(crate) use crate::record::scope::id::ScopeId;
pub(crate) use crate::record::scope::names::{ScopeNames, shown_value};
use crate::record::scope::table as scopes;
pub(crate) use crate::record::stack_id::addresses::{Addresses, AddressesAt};
use crate::record::stack_id::life;
pub(crate) use crate::record::stack_id::packed::Unpacked;
use crate::record::stack_id::reclaim;
pub(crate) use crate::record::stack_id::record::Carried;
pub(crate) use crate::record::stack_id::renew::{can_renew, renew};
pub(crate) use crate::record::stack_id::sums::Counts;
use crate::record::stack_id::sums::{allocated, read_chunk};
use crate::record::stack_id::table;
use crate::record::stack_id::table::{IDS_PER_SAMPLED_STACK, Recorded};
use crate::record::startup;
use crate::record::tag::large;
use crate::record::tag::{self, OVERHEAD, UNTRACKED};
use crate::record::thread::{self, Reading, SHARED, Suspension};
use crate::record::unwind;
pub(crate) use passing::end_scopes;
use passing::read_epoch_and_pass;
use std::time::{Instant, SystemTime};

/// Blocks of one stack that has been allocated from since the last `clear`. A stack may be several of these: where its blocks were
/// recorded in several ways (exactly, sampled at this interval, at that one), and where its id was [renewed](renew).
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawStack {
    /// Never reused, so equal ids of two snapshots are the same blocks of the same stack.
    pub id: u32,
    /// Blocks are still allocated at the id. False once it was renewed, or its stack was taken for dead: then its allocated counts
    /// change no more, but for blocks that a paused thread resizes. A renewed id may open again where memory is scarce.
    pub is_open: bool,
    /// Place of its return addresses in the [`Addresses`] beside it.
    pub addresses: AddressesAt,
    /// Scopes that its blocks were allocated in. A stack that was met in several is several, too.
    pub scope: ScopeId,
    /// The walk ended at its limit, not at the thread's first frame.
    pub truncated: bool,
    pub counts: Counts,
    /// Counts of earlier ids of the stack that are not among the others any more. Not part of `counts`.
    pub carried: Carried,
    /// Squared standard error of the live bytes where they are an estimate, else 0.
    pub variance: f64,
}

/// Events whose attribution was lost, by reason; their bytes are in the totals.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub stacks: u64,
    pub memory: u64,
    pub threads: u64,
    pub reentrant: u64,
    pub scopes: u64,
}

/// State of the write side at one moment.
#[derive(Clone, Debug)]
pub(crate) struct RawSnapshot {
    pub taken_at: SystemTime,
    pub taken: Instant,
    /// New allocations are recorded (false: stopped, switched off or paused by configuration).
    pub tracking: bool,
    /// The configured `.frames(n)`.
    pub traceback_limit: usize,
    /// Base of the epoch; differs after each `clear`, `stop` and `start`: counts of different epochs do not compare.
    pub epoch: u32,
    /// Ascending by id. The sum of their live counts is the total where every block is recorded, and right on average where they
    /// are sampled. Stacks that have died may be missing, see `stack_id::life`.
    pub stacks: Vec<RawStack>,
    /// Return addresses of the stacks, most recent first; none for `[unrecorded]`.
    pub addresses: Addresses,
    /// Keys and values of the scopes of the stacks; none for a combination that is over, without a live block.
    pub scopes: ScopeNames,
    /// Exact, of all traced blocks.
    pub totals: Counts,
    /// Live bytes allocated while paused or off, without heapgauge's own.
    pub untracked_bytes: u64,
    /// Bytes of heapgauge's own tables and of its read side.
    pub overhead_bytes: u64,
    pub peak_bytes: u64,
    pub dropped: Dropped,
    pub truncated_stacks: u64,
    pub fallback_walks: u64,
    /// Average bytes between samples; 0 = exact.
    pub sample_interval_bytes: u64,
    /// Name of the walker in use: `cfi`, `backtrace`.
    pub capture: &'static str,
}

/// Reads the counters of all threads.
///
/// Costs a few nanoseconds for each stack and thread; no thread is stopped. Values are never negative;
/// a block that is allocated and freed by other threads meanwhile may show.
pub(crate) fn take() -> RawSnapshot {
    startup::ensure();
    let _internal = Suspension::new(thread::INTERNAL);
    reclaim::give_back(reclaim::READER);
    let (taken_at, taken) = (SystemTime::now(), Instant::now());
    let names = scopes::Kept::new();
    let mut all = AllStacks::default();
    let (epoch, totals, ended) = read_epoch_and_pass(&mut all);
    let scopes = names.names_of(all.stacks.iter().map(|stack| stack.scope));
    drop(names);
    if ended > 0 {
        reclaim::give_back(reclaim::SCOPES);
    }
    RawSnapshot {
        taken_at,
        taken,
        tracking: epoch != u32::MAX,
        traceback_limit: epoch::frames(),
        epoch,
        stacks: all.stacks,
        addresses: all.addresses,
        scopes,
        totals,
        untracked_bytes: read_one(UNTRACKED).live_bytes(),
        overhead_bytes: overhead_bytes(),
        peak_bytes: peak_bytes(totals.live_bytes()),
        dropped: dropped(),
        truncated_stacks: dropped::truncated(),
        fallback_walks: dropped::fallbacks(),
        sample_interval_bytes: epoch::sampling().interval().into(),
        capture: unwind::walker(),
    }
}

/// Returns the events dropped since the process began.
pub(crate) fn dropped() -> Dropped {
    Dropped {
        stacks: dropped::events(Reason::Stacks),
        memory: dropped::events(Reason::Memory),
        threads: dropped::events(Reason::Threads),
        reentrant: dropped::events(Reason::Reentrant),
        scopes: dropped::events(Reason::Scopes),
    }
}

/// Returns the live bytes of all stacks.
pub(crate) fn live_bytes() -> u64 {
    let _internal = Suspension::new(thread::INTERNAL);
    read_epoch(&mut ()).1.live_bytes()
}

/// Receiver of the stacks of an epoch, one after the other.
pub(crate) trait StackSink {
    /// Begins anew: stacks passed before are of an epoch that has just ended. There are at most `most` of them.
    fn begin(&mut self, most: usize);
    /// Takes a stack and its packed addresses, whose place is not set yet.
    fn add(&mut self, stack: RawStack, packed: &[u8]);
    /// Ends the reading, before the addresses of its stacks may be freed.
    fn end(&mut self) {}
}

/// All stacks of an epoch with their addresses.
#[derive(Debug, Default)]
pub(crate) struct AllStacks {
    pub stacks: Vec<RawStack>,
    pub addresses: Addresses,
}

impl StackSink for AllStacks {
    fn begin(&mut self, most: usize) {
        self.stacks.clear();
        self.stacks.reserve(most);
        self.addresses.clear();
    }

    fn add(&mut self, stack: RawStack, packed: &[u8]) {
        self.stacks.push(RawStack { addresses: self.addresses.push(packed), ..stack });
    }
}

/// Hands over the packed addresses of a stack within [`StackSink::end`].
pub(crate) fn with_addresses<T>(id: u32, take: impl FnOnce(&[u8]) -> T) -> T {
    take(table::recorded(id).map_or(&[], |recorded| recorded.packed))
}

/// Hands over the keys and values of the scopes of a stack, ascending by key; none where they are over. Allocates nothing, for a
/// [`StackSink`], which gets no [`ScopeNames`]. `take` must not wait.
pub(crate) fn with_scope<T>(
    id: ScopeId,
    take: impl FnOnce(&mut dyn Iterator<Item = (&str, &str)>) -> T,
) -> T {
    scopes::with_names(id, |names| {
        take(&mut names.into_iter().flat_map(|names| names.iter()).map(|(key, value)| (*key, &**value)))
    })
}

/// Drops the stacks, for a caller that needs the totals alone.
impl StackSink for () {
    fn begin(&mut self, _most: usize) {}
    fn add(&mut self, _stack: RawStack, _packed: &[u8]) {}
}

/// Passes all stacks of the present epoch to `sink`, and returns the epoch and its totals. Allocates nothing itself, for
/// readers that run where memory is scarce; otherwise as [`take`].
pub(crate) fn visit(sink: &mut impl StackSink) -> (u32, Counts) {
    startup::ensure();
    let _internal = Suspension::new(thread::INTERNAL);
    read_epoch(sink)
}

/// Returns the base of the present epoch; `u32::MAX` while tracking is off.
pub(crate) fn epoch() -> u32 {
    epoch::base()
}

/// Returns the live bytes as far as threads have published them: within 64 KiB a thread, at the cost of one read.
pub(crate) fn published_bytes() -> i64 {
    epoch::published()
}

/// Returns the peak, where this many bytes are live by the counters.
pub(crate) fn peak_bytes(live: u64) -> u64 {
    epoch::peak(unpublished_bytes).max(live)
}

/// Sets the peak to the present live bytes.
pub(crate) fn reset_peak() {
    epoch::reset_peak(unpublished_bytes);
}

/// Returns the live bytes of the present epoch that threads have not published.
fn unpublished_bytes() -> i64 {
    let base = epoch::base();
    if base == u32::MAX { 0 } else { thread::unpublished_bytes(base) }
}

/// Returns the bytes of heapgauge's own tables and of its read side.
pub(crate) fn overhead_bytes() -> u64 {
    held_bytes() + large::resident_bytes()
}

/// Returns the bytes of heapgauge's own tables without the tag map, which takes a system call.
pub(crate) fn held_bytes() -> u64 {
    memory::bytes() + read_one(OVERHEAD).live_bytes()
}

/// Estimates the bytes that the read side holds: the map of stacks is not counted, the map of large blocks is, since it
/// takes room as they do.
pub(crate) fn read_side_bytes() -> u64 {
    (read_one(OVERHEAD).live_bytes() + large::resident_bytes()).saturating_sub(memory::map_bytes())
}

/// Sets how much the tables of the write side may hold, in bytes.
pub(crate) fn set_table_limit(bytes: u64) {
    memory::set_limit(bytes);
}

/// Reads all stacks of the present epoch and its totals, whole: read again if a `clear` came between.
fn read_epoch(sink: &mut impl StackSink) -> (u32, Counts) {
    let _reading = Reading::new();
    let mut tries = 0;
    loop {
        let (base, changes) = (epoch::base(), life::changes());
        let totals = match base {
            u32::MAX => {
                sink.begin(0);
                Counts::default()
            }
            base => read_from(base, sink),
        };
        tries += 1;
        let is_whole = epoch::base() == base && changes.is_some() && changes == life::changes();
        // A program that clears all the time gets the rest of an epoch that has just ended. Where stacks that died go to the
        // totals all the time, the allocations and frees of one of them may be missing in those, or be in them twice.
        if is_whole || tries == 8 {
            sink.end();
            return (base, totals);
        }
    }
}

/// Reads the stacks and totals of the epoch of this base.
fn read_from(base: u32, sink: &mut impl StackSink) -> Counts {
    let end = epoch::end_id();
    let numbers = || SHARED.numbers(number(base)..(end as usize).div_ceil(CHUNK));
    sink.begin((numbers().count() * CHUNK).min(end.saturating_sub(base) as usize));
    let mut totals = read_unsampled(epoch::unsampled_id(base));
    for number in numbers() {
        // Before the counts, which do not change after an id has been renewed.
        let open = SHARED.chunk(number).map_or(0, |chunk| chunk.life.open());
        let Some(counts) = read_chunk(number) else { continue };
        for (place, &exact) in counts.iter().enumerate() {
            let id = (number * CHUNK + place) as u32;
            if id < base || id >= end || exact == Counts::default() {
                continue;
            }
            let recorded = match table::recorded(id) {
                Some(recorded) => recorded,
                None if id == base => Recorded::default(),
                // Blocks that were not sampled, read already; or weights of sampled blocks, which are read with the
                // id they are counted at.
                None => continue,
            };
            totals += exact;
            let Recorded { packed, truncated, interval, scope, carried, is_carried } = recorded;
            if is_carried {
                continue;
            }
            let (counts, variance) = match interval {
                0 => (exact, 0.0),
                _ => estimate(&counts[place..], interval),
            };
            let addresses = AddressesAt::default();
            let is_open = open >> place & 1 != 0;
            let stack = RawStack { id, is_open, addresses, scope, truncated, counts, carried, variance };
            sink.add(stack, packed);
        }
    }
    let (bytes, blocks) =
        SHARED.chunk(number(epoch::unsampled_id(base))).map_or((0, 0), |chunk| chunk.life.read_over());
    totals.add(Direction::Freed, bytes, blocks);
    totals.add(Direction::Allocated, bytes, blocks);
    totals
}

/// Estimates the counts of a stack from the sums of its sampled blocks (see `event`), and the variance
/// of their live bytes.
fn estimate(sums: &[Counts], interval: u32) -> (Counts, f64) {
    debug_assert!(
        sums.len() >= IDS_PER_SAMPLED_STACK as usize,
        "the ids of a sampled stack are in one chunk"
    );
    let [_, bytes, blocks, variance, ..] = sums else { return Default::default() };
    let (allocated_bytes, allocated_blocks) = allocated(sums, interval);
    let counts = Counts {
        allocated_bytes,
        allocated_blocks,
        freed_bytes: sampling::whole_bytes(bytes.freed_bytes),
        freed_blocks: sampling::whole_blocks(blocks.freed_bytes),
    };
    (counts, sampling::square_bytes(variance.live_bytes(), interval))
}

/// Reads the counts of the blocks of this id, which were not sampled. They are allocated in states alone; a thread
/// that met none of its own frees them in its counters.
fn read_unsampled(id: u32) -> Counts {
    let threads = || unsampled::all().filter(|unsampled| unsampled.id() == u64::from(id));
    let mut freed = Counts::default();
    // In this order, as in `read_chunk`.
    for (bytes, blocks) in threads().map(Unsampled::read_freed) {
        freed.add(Direction::Freed, bytes, blocks);
    }
    let mut counts = read_at(id);
    counts += freed;
    for (bytes, blocks) in threads().map(Unsampled::read_allocated) {
        counts.add(Direction::Allocated, bytes, blocks);
    }
    counts
}

/// Reads the counts of this id.
fn read_at(id: u32) -> Counts {
    read_chunk(number(id)).map_or(Counts::default(), |counts| counts[id as usize % CHUNK])
}

/// Reads the counts of one of the ids that no epoch ends.
///
/// Between the reads of frees and of allocations blocks come and go, and look live: a thread may have allocated and freed
/// megabytes. So it reads again if there were frees meanwhile, and of several reads takes the one with the least.
pub(super) fn read_one(id: u32) -> Counts {
    debug_assert!(id < tag::FIRST, "{id} belongs to an epoch");
    let mut least = read_at(id);
    let mut last = least;
    for _ in 0..READS_AGAIN {
        if last.freed_blocks == freed_blocks(id) {
            break;
        }
        last = read_at(id);
        if last.live_bytes() < least.live_bytes() {
            least = last;
        }
    }
    least
}

/// Most times that counts are read again which change all the time.
const READS_AGAIN: usize = 8;

/// Returns how many blocks of one of these ids have been freed.
fn freed_blocks(id: u32) -> u64 {
    let own = thread::all().filter_map(|state| state.counters.chunk(0));
    let own: u64 = own.map(|chunk| chunk.read(id as usize, Direction::Freed).1).sum();
    own + thread::SHARED.chunk(0).map_or(0, |chunk| chunk.read(id as usize, Direction::Freed).1)
}

/// Returns the addresses of the calling code's stack, for memory that the program reports itself.
pub(crate) fn capture() -> Vec<usize> {
    startup::ensure();
    let _internal = Suspension::new(thread::INTERNAL);
    crate::record::event::capture::stack_of_caller()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::test_blocks::{Block, allocate, free};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// `live_bytes` would hide it, so it is the two sides that are compared.
    #[test]
    fn case_40_no_read_finds_more_freed_than_allocated() {
        const THREADS: usize = 4;
        let (between, done) = (Mutex::new(None::<Block>), AtomicBool::new(false));
        let reads = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..THREADS)
                .map(|number| {
                    let between = &between;
                    scope.spawn(move || {
                        for round in 0..20_000 {
                            let block = allocate(1 + (round * 7 + number) % 3_000);
                            // Every second block is freed by the thread that comes next.
                            let other = match round % 2 {
                                0 => Some(block),
                                _ => between.lock().unwrap().replace(block),
                            };
                            other.into_iter().for_each(free);
                        }
                    })
                })
                .collect();
            let reader = scope.spawn(|| {
                let mut reads = 0_u32;
                while !done.load(Ordering::Relaxed) || reads == 0 {
                    for stack in take().stacks {
                        let counts = stack.counts;
                        assert!(counts.freed_bytes <= counts.allocated_bytes, "{stack:?}");
                        assert!(counts.freed_blocks <= counts.allocated_blocks, "{stack:?}");
                    }
                    reads += 1;
                }
                reads
            });
            let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            done.store(true, Ordering::Relaxed);
            ended.into_iter().for_each(|ended| ended.unwrap());
            reader.join().unwrap()
        });
        assert!(reads > 0);
        between.into_inner().unwrap().into_iter().for_each(free);
    }
}
