//! Makes one reading: asks the kernel, heapgauge's counts and the allocators, one after the other.
//!
//! A reading costs milliseconds, most of them in the kernel. Nothing here holds a lock that the program needs for longer than one
//! call does, and each of these is timed.
#![forbid(unsafe_code)]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::classes::{self, ARENA, Class, Memory, Piece};
use super::glibc::{self, Glibc};
use super::large_blocks::{self, Block};
use super::parts::{self, Figures, HeapFigures, Inner, MemoryParts};
use super::rounding::AddedSum;
use super::smaps::{self, CallTime};
use super::usage::{AllocatorStatistics, AllocatorUsage};
use crate::analyze::memory_limit::kilobytes;
use crate::record::c_malloc;
use crate::record::control;
use crate::record::raw_snapshot;
use crate::record::residency;
use crate::record::unlisted;

/// Longest time for which a call may hold a lock that the program needs.
pub(super) const LONGEST_LOCK: Duration = Duration::from_millis(5);

/// State of the inner allocator's figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Read,
    /// A call took longer than [`LONGEST_LOCK`]: the next reading is later.
    Rare,
    /// The allocator was not asked, because a call would take longer.
    Skipped,
    /// The allocator tells nothing.
    Unknown,
}

impl State {
    /// Returns its name in JSON and as a label.
    pub(crate) fn word(self) -> &'static str {
        match self {
            State::Read => "read",
            State::Rare => "rare",
            State::Skipped => "skipped",
            State::Unknown => "unknown",
        }
    }
}

/// Memory of all mappings of a class.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClassSum {
    pub class: Class,
    pub count: u64,
    pub size: u64,
    pub resident: u64,
    pub anonymous: u64,
}

/// Figures of one moment.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub taken_at: SystemTime,
    pub parts: MemoryParts,
    /// Name of the inner allocator.
    pub allocator: Arc<str>,
    pub state: State,
    pub classes: Vec<ClassSum>,
    pub glibc: Option<Glibc>,
    /// Memory of each of glibc's arenas, where it could be told.
    pub arenas_resident: Vec<Option<u64>>,
    pub usage: Option<AllocatorUsage>,
    /// Time of each call, by its name.
    pub calls: Calls,
    /// Foreign bytes when glibc was last asked.
    pub(super) last_foreign: Option<u64>,
    pub(super) cost: Option<WalkCost>,
    /// Number of readings with a call that took too long, up to this one, without another between them.
    pub slow_in_a_row: u32,
}

/// Measured cost of glibc's walk through its free chunks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct WalkCost {
    pub nanoseconds_a_chunk: f64,
}

impl WalkCost {
    /// Forgets a tenth.
    fn after_a_reading(self) -> WalkCost {
        WalkCost { nanoseconds_a_chunk: self.nanoseconds_a_chunk * 0.9 }
    }
}

/// Cost that is expected before it was measured: a chunk that is in no cache of the processor.
const UNMEASURED: WalkCost = WalkCost { nanoseconds_a_chunk: 60.0 };
/// Chunks from which on the cost of one is worth measuring.
const MEASURED_FROM: u64 = 5_000;
/// Least size of a free chunk, with the block beside it that keeps it from growing.
const LEAST_CHUNK: u64 = 64;

#[cfg(test)]
impl Reading {
    /// Returns a reading with these parts.
    pub(crate) fn of(parts: MemoryParts) -> Reading {
        Reading { allocator: "glibc".into(), parts, ..take(Path::new("/nowhere"), None, None) }
    }
}

/// Reads everything below a root: `/`, or a test's own.
pub(super) fn take(
    root: &Path,
    statistics: Option<&dyn AllocatorStatistics>,
    before: Option<&Reading>,
) -> Reading {
    let mut calls = Vec::new();
    let status = fs::read_to_string(root.join("proc/self/status")).unwrap_or_default();
    let field = |name: &str| kilobytes(&status, name);
    let threads = status.lines().find_map(|line| line.strip_prefix("Threads:")?.trim().parse().ok());
    // Older than the list of mappings, so that its own is in it however fast the heap grows.
    let block = block();
    let smaps = smaps::read(root);
    let has_mappings = smaps.is_some();
    let blocks = large_blocks::list();
    let pieces = smaps.map_or_else(Vec::new, |(mappings, time)| {
        calls.push(("smaps", time));
        classes::classify(&mappings, &ThisProcess { blocks: &blocks })
    });
    let begun = Instant::now();
    let large = large_blocks::look_at(&blocks, &pieces, &residency::resident_bytes);
    calls.push(("mincore", CallTime { total: begun.elapsed(), longest: Duration::ZERO }));
    let (heap, count) = heap_figures();
    let arenas = Arenas::find(&pieces);
    let mut cost = before.and_then(|before| before.cost);
    let chunks = arenas.free_chunks_at_most(count, heap, large.mapped);
    let may_ask = has_mappings && is_cheap(chunks, cost);
    let glibc = if may_ask { ask_glibc(chunks, &mut cost, &mut calls) } else { None };
    let heap = if glibc.is_some() { heap.mean(heap_figures().0) } else { heap };
    if !may_ask {
        // A call may have been slow by chance: after a while it is tried again.
        cost = cost.map(WalkCost::after_a_reading);
    }
    let usage = statistics.and_then(|statistics| ask(statistics, &mut calls));
    let inner = match &usage {
        Some(usage) => Inner::Told(usage.clone(), memory_with_blocks(&pieces)),
        None if is_in_arenas(&pieces, (&raw const *block).addr()) => Inner::Glibc,
        None => Inner::Unknown,
    };
    let (allocator, state) = described(&inner, statistics.is_some(), may_ask, &calls);
    let last_foreign = before.and_then(|before| before.last_foreign);
    let shared = field("RssShmem");
    let parts = if has_mappings {
        let (pieces, glibc, shared) = (&*pieces, glibc.as_ref(), shared.unwrap_or(0));
        parts::parts(&Figures { pieces, threads, shared, heap, large, glibc, last_foreign, inner })
    } else {
        MemoryParts {
            anonymous: field("RssAnon"),
            file: field("RssFile"),
            shared,
            threads,
            live: heap.live,
            untracked: heap.untracked,
            overhead: heap.own + heap.own_mapped,
            ..MemoryParts::default()
        }
    };
    Reading {
        taken_at: SystemTime::now(),
        allocator,
        state,
        classes: sums(&pieces),
        arenas_resident: glibc.as_ref().map(|glibc| arenas.resident_of(glibc)).unwrap_or_default(),
        last_foreign: glibc.as_ref().and(parts.foreign).or(last_foreign),
        parts,
        glibc,
        usage,
        slow_in_a_row: if is_slow(&calls) { 1 + before.map_or(0, |before| before.slow_in_a_row) } else { 0 },
        calls,
        cost,
    }
}

/// Returns whether a call may have held a lock for too long.
fn is_slow(calls: &Calls) -> bool {
    calls.iter().any(|(_, time)| time.longest > LONGEST_LOCK)
}

/// Times of the calls so far, by their names.
type Calls = Vec<(&'static str, CallTime)>;

/// Returns whether a walk through so many free chunks keeps within [`LONGEST_LOCK`].
fn is_cheap(chunks: u64, cost: Option<WalkCost>) -> bool {
    let cost = cost.unwrap_or(UNMEASURED);
    chunks as f64 * cost.nanoseconds_a_chunk <= LONGEST_LOCK.as_nanos() as f64
}

/// Asks glibc, and measures the time of a chunk.
fn ask_glibc(chunks: u64, cost: &mut Option<WalkCost>, calls: &mut Calls) -> Option<Glibc> {
    let (glibc, time) = glibc::read()?;
    calls.push(("malloc_info", time));
    if chunks >= MEASURED_FROM {
        // Half as much again: a reading that came from the processor's caches is no promise for the next one.
        let nanoseconds_a_chunk = time.longest.as_nanos() as f64 * 1.5 / chunks as f64;
        *cost = Some(WalkCost { nanoseconds_a_chunk });
    }
    Some(glibc)
}

/// Asks the program's statistics. If they panic they tell nothing.
fn ask(statistics: &dyn AllocatorStatistics, calls: &mut Calls) -> Option<AllocatorUsage> {
    let begun = Instant::now();
    let usage = catch_unwind(AssertUnwindSafe(|| statistics.read())).ok().flatten();
    let total = begun.elapsed();
    calls.push(("statistics", CallTime { total, longest: total }));
    usage
}

/// Returns the name of the inner allocator, and the state of its figures.
fn described(inner: &Inner, has_statistics: bool, may_ask: bool, calls: &Calls) -> (Arc<str>, State) {
    let state = match inner {
        Inner::Unknown => State::Unknown,
        Inner::Glibc if !may_ask => State::Skipped,
        _ if is_slow(calls) => State::Rare,
        _ => State::Read,
    };
    let name = match inner {
        Inner::Told(usage, _) => usage.name().into(),
        Inner::Glibc => "glibc".into(),
        Inner::Unknown if cfg!(target_env = "musl") && !has_statistics => "musl".into(),
        Inner::Unknown => "unknown".into(),
    };
    (name, state)
}

/// Reads heapgauge's counts; the second figure is the number of all live blocks.
fn heap_figures() -> (HeapFigures, u64) {
    let mut added = AddedSum::default();
    let (_, totals) = raw_snapshot::visit(&mut added);
    let unlisted = unlisted::read();
    added.add(unlisted.untracked);
    added.add(unlisted.own);
    let figures = HeapFigures {
        live: totals.live_bytes(),
        untracked: unlisted.untracked.live_bytes(),
        own: unlisted.own.live_bytes(),
        own_mapped: unlisted.own_mapped_bytes,
        added: added.bytes,
    };
    let blocks = [totals, unlisted.untracked, unlisted.own].iter().map(|counts| counts.live_blocks()).sum();
    (figures, blocks)
}

/// Makes a block of the global allocator's.
fn block() -> Box<[u8; 48]> {
    let _own = control::internal();
    std::hint::black_box(Box::new([0; 48]))
}

/// Returns whether an address, of a block of the global allocator's, lies in heap or arenas of glibc.
fn is_in_arenas(pieces: &[Piece], address: usize) -> bool {
    c_malloc::is_glibc()
        && pieces.iter().any(|piece| {
            matches!(piece.class, Class::Heap | Class::Arena) && (piece.start..piece.end).contains(&address)
        })
}

/// Sums the memory of those anonymous mappings in which blocks of at least 1 KiB lie.
fn memory_with_blocks(pieces: &[Piece]) -> u64 {
    let of_allocator = |piece: &&Piece| match piece.class {
        Class::Allocator => true,
        Class::Anonymous => unlisted::holds_blocks(piece.start, piece.end),
        _ => false,
    };
    pieces.iter().filter(of_allocator).map(|piece| piece.anonymous).sum()
}

fn sums(pieces: &[Piece]) -> Vec<ClassSum> {
    let of_class = |class: Class| {
        let mut sum = ClassSum { class, count: 0, size: 0, resident: 0, anonymous: 0 };
        for piece in pieces.iter().filter(|piece| piece.class == class) {
            sum.count += 1;
            sum.size += (piece.end - piece.start) as u64;
            sum.resident += piece.resident;
            sum.anonymous += piece.anonymous;
        }
        sum
    };
    Class::ALL.map(of_class).into_iter().filter(|sum| sum.count > 0).collect()
}

/// Memory of this process.
struct ThisProcess<'a> {
    blocks: &'a [Block],
}

impl Memory for ThisProcess<'_> {
    fn is_arena(&self, address: usize) -> bool {
        header(address).is_some()
    }
    fn resident(&self, start: usize, end: usize) -> Option<u64> {
        residency::resident_bytes(start, end)
    }
    fn first_block(&self, start: usize, end: usize) -> Option<usize> {
        large_blocks::first(self.blocks, start, end)
    }
}

/// Reads the header of a part of an arena, as glibc 2.3 and later have it: its arena, the part before, its size, and how much of
/// it is not only reserved.
fn header(address: usize) -> Option<(usize, u64)> {
    let [arena, _before, size, usable] = residency::words::<4>(address)?;
    let is_page = |bytes: usize| bytes.is_multiple_of(residency::page_bytes()) && bytes <= ARENA;
    // The state of an arena lies right behind the header of its first part.
    let is_header = size > 0 && is_page(size) && is_page(usable) && size <= usable;
    (is_header && (16..512).contains(&(arena % ARENA))).then_some((arena, size as u64))
}

/// Memory of glibc's arenas, as the kernel has it.
struct Arenas {
    main: u64,
    /// Address, size and memory of each of the others.
    others: Vec<(usize, u64, u64)>,
}

impl Arenas {
    fn find(pieces: &[Piece]) -> Arenas {
        let mut others: Vec<(usize, u64, u64)> = Vec::new();
        for piece in pieces.iter().filter(|piece| piece.class == Class::Arena) {
            let parts = (piece.start.next_multiple_of(ARENA)..piece.end).step_by(ARENA);
            let count = parts.len().max(1) as u64;
            for (arena, size) in parts.filter_map(header) {
                let memory = piece.anonymous / count;
                match others.iter_mut().find(|other| other.0 == arena) {
                    Some(other) => (other.1, other.2) = (other.1 + size, other.2 + memory),
                    None => others.push((arena, size, memory)),
                }
            }
        }
        Arenas { main: classes::anonymous_of(pieces, Class::Heap), others }
    }

    /// Bounds the free chunks of the largest arena: there are no two without a block between them, and no more than the
    /// memory beside the blocks has room for.
    fn free_chunks_at_most(&self, blocks: u64, heap: HeapFigures, mapped: u64) -> u64 {
        let largest = self.others.iter().map(|other| other.2).fold(self.main, u64::max);
        let all = self.others.iter().map(|other| other.2).sum::<u64>() + self.main;
        let used = (heap.live + heap.untracked + heap.own + heap.added).saturating_sub(mapped);
        let share = |count: u64| (count as f64 * largest as f64 / all.max(1) as f64) as u64;
        share(blocks).min(share(all.saturating_sub(used) / LEAST_CHUNK))
    }

    /// Finds the memory of each arena that glibc lists, by their sizes: it tells no addresses.
    fn resident_of(&self, glibc: &Glibc) -> Vec<Option<u64>> {
        let mut left = self.others.clone();
        let find = |(number, arena): (usize, &glibc::Arena)| match number {
            0 => Some(self.main),
            _ => {
                let at = left.iter().position(|other| other.1 == arena.size)?;
                Some(left.swap_remove(at).2)
            }
        };
        glibc.arenas.iter().enumerate().map(find).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a root with some files of `/proc/self`.
    fn root(name: &str, files: &[(&str, &str)]) -> std::path::PathBuf {
        let root = std::env::temp_dir().join(format!("heapgauge-parts-{name}-{}", std::process::id()));
        fs::create_dir_all(root.join("proc/self")).unwrap();
        for (file, text) in files {
            fs::write(root.join("proc/self").join(file), text).unwrap();
        }
        root
    }

    const STATUS: &str =
        "Name:\tx\nRssAnon:\t   200 kB\nRssFile:\t   40 kB\nRssShmem:\t   8 kB\nThreads:\t3\n";

    #[test]
    fn without_proc_there_is_no_part() {
        let root = root("none", &[]);
        let MemoryParts { anonymous, threads, unaccounted, thread_stack, .. } = take(&root, None, None).parts;
        assert_eq!((anonymous, threads, unaccounted, thread_stack), (None, None, None, None));
        fs::remove_dir_all(root).unwrap();
    }

    /// gVisor's `smaps` has no figures, and `/proc` may be restricted.
    #[test]
    fn without_figures_of_mappings_the_kernels_split_is_left() {
        let heads = "5000-6000 rw-p 00000000 00:00 0 [heap]\nSize: 4 kB\nRss: 0 kB\n";
        for files in [&[("status", STATUS)][..], &[("status", STATUS), ("smaps", heads)]] {
            let root = root(&format!("status-{}", files.len()), files);
            let reading = take(&root, None, None);
            let MemoryParts { anonymous, file, shared, threads, unaccounted, foreign, .. } = reading.parts;
            assert_eq!((anonymous, file, shared), (Some(200 << 10), Some(40 << 10), Some(8 << 10)));
            assert_eq!((threads, unaccounted, foreign), (Some(3), None, None));
            assert_eq!(
                (&*reading.allocator == "unknown", reading.classes.len()),
                (!cfg!(target_env = "musl"), 0)
            );
            fs::remove_dir_all(root).unwrap();
        }
    }

    #[test]
    fn chunks_are_bounded_by_blocks_and_by_memory() {
        let arenas = Arenas { main: 10 << 20, others: vec![(0, 0, 30 << 20), (0, 0, 10 << 20)] };
        let heap = HeapFigures { live: 40 << 20, ..HeapFigures::default() };
        // The largest arena has three fifths of the memory; 10 MiB are free.
        assert_eq!(arenas.free_chunks_at_most(1_000, heap, 0), 600);
        assert_eq!(arenas.free_chunks_at_most(u64::MAX >> 20, heap, 0), (10 << 20) / 64 * 3 / 5);
        assert_eq!(arenas.free_chunks_at_most(u64::MAX >> 20, heap, 10 << 20), (20 << 20) / 64 * 3 / 5);
    }

    /// A hundred times as slow as expected, by a busy machine: it takes minutes, but not for ever.
    #[test]
    fn a_slow_walk_is_tried_again_after_a_while() {
        let mut cost = WalkCost { nanoseconds_a_chunk: UNMEASURED.nanoseconds_a_chunk * 100.0 };
        let readings = (0..1_000).take_while(|_| {
            let is_cheap = is_cheap(50_000, Some(cost));
            cost = cost.after_a_reading();
            !is_cheap
        });
        assert!((30..60).contains(&readings.count()));
        assert!(is_cheap(50_000, None) && !is_cheap(100_000, None));
    }

    #[cfg(all(target_os = "linux", not(miri)))]
    #[test]
    fn statistics_that_panic_cost_their_own_figures_only() {
        struct Broken;
        impl AllocatorStatistics for Broken {
            fn read(&self) -> Option<AllocatorUsage> {
                panic!("the program's statistics")
            }
        }
        let reading = take(Path::new("/"), Some(&Broken), None);
        assert!(reading.usage.is_none() && reading.parts.thread_stack.unwrap() > 0);
        // Those of another allocator, which has no blocks here.
        let name = if cfg!(target_env = "gnu") { "glibc" } else { "unknown" };
        assert_eq!(&*reading.allocator, name);
    }

    #[cfg(all(target_os = "linux", target_env = "gnu", not(miri)))]
    #[test]
    fn this_process_is_read() {
        let reading = take(Path::new("/"), None, None);
        assert_eq!((&*reading.allocator, reading.parts.foreign.is_some()), ("glibc", true), "{reading:?}");
        assert!(reading.parts.allocator_resident.unwrap() > 0 && reading.parts.threads.unwrap() > 0);
        let arenas = &reading.glibc.as_ref().unwrap().arenas;
        assert_eq!(arenas.len(), reading.arenas_resident.len());
        let resident: u64 = reading.classes.iter().map(|class| class.resident).sum();
        assert!(resident >= reading.parts.anonymous.unwrap());
    }
}
