//! Computes the parts of anonymous memory from figures of the kernel, of heapgauge and of the allocators.
//!
//! Pure arithmetic, from the top: the resident bytes of each class of mappings are exact. Blocks are subtracted
//! from them, so that free memory that was given back to the system is in no part, though the allocator counts it free.
#![forbid(unsafe_code)]

use super::classes::{Class, Piece, anonymous_of};
use super::glibc::Glibc;
use super::usage::AllocatorUsage;

/// The parts of resident memory, in bytes, all of one reading; it is at most ten seconds old where a
/// [`Server`](crate::Server) runs, else as old as the collection before.
///
/// Together they are the anonymous memory: `anonymous` = `live` − `live_untouched` + `untracked` + `overhead` +
/// `internal_fragmentation` + `allocator_free_resident` + `foreign` + `thread_stack` + `unaccounted`. A part that is `None`
/// is not known, and counts as 0: its bytes are then in `unaccounted`.
///
/// # Examples
///
/// ```
/// let report = heapgauge::Collector::new().collect();
/// if let Some(parts) = &report.memory_parts {
///     println!("{:?} of {:?} bytes are stacks of threads", parts.thread_stack, parts.anonymous);
/// }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryParts {
    /// Memory with no file behind it.
    pub anonymous: Option<u64>,
    /// Pages of files, which the kernel can drop.
    pub file: Option<u64>,
    /// Shared memory.
    pub shared: Option<u64>,
    /// Number of threads.
    pub threads: Option<u64>,
    /// Live bytes at the moment of the reading.
    pub live: u64,
    /// Live and untracked bytes whose pages were never touched, or are not in memory: of blocks of at least 64 KiB.
    pub live_untouched: Option<u64>,
    /// Bytes of untracked blocks.
    pub untracked: u64,
    /// heapgauge's own memory, as far as it was touched.
    pub overhead: u64,
    /// Bytes that blocks take beyond those asked for.
    pub internal_fragmentation: Option<u64>,
    /// Memory that the allocators have from the system: of the inner one and of C's `malloc`.
    pub allocator_resident: Option<u64>,
    /// Memory of the allocators that is in no block.
    pub allocator_free_resident: Option<u64>,
    /// Blocks that did not come through heapgauge: of C and C++ libraries.
    pub foreign: Option<u64>,
    /// Stacks of threads.
    pub thread_stack: Option<u64>,
    /// Anonymous memory that is in no other part.
    pub unaccounted: Option<i64>,
}

#[cfg(test)]
impl MemoryParts {
    /// Returns parts that are all known, and add up to 9,000 bytes.
    pub(crate) fn sample() -> MemoryParts {
        MemoryParts {
            anonymous: Some(9_000),
            file: Some(3_000),
            shared: Some(500),
            threads: Some(3),
            live: 4_000,
            live_untouched: Some(1_000),
            untracked: 64,
            overhead: 4_096,
            internal_fragmentation: Some(300),
            allocator_resident: Some(6_000),
            allocator_free_resident: Some(800),
            foreign: Some(100),
            thread_stack: Some(700),
            unaccounted: Some(-60),
        }
    }
}

/// heapgauge's figures.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HeapFigures {
    pub live: u64,
    pub untracked: u64,
    /// heapgauge's own blocks.
    pub own: u64,
    /// heapgauge's tables, which are in no block.
    pub own_mapped: u64,
    /// Bytes that glibc adds to all these blocks, where it is the inner allocator.
    pub added: u64,
}

impl HeapFigures {
    /// Returns the mean of two readings, for figures that were read between them.
    pub(super) fn mean(self, other: HeapFigures) -> HeapFigures {
        HeapFigures {
            live: self.live.midpoint(other.live),
            untracked: self.untracked.midpoint(other.untracked),
            own: self.own.midpoint(other.own),
            own_mapped: self.own_mapped.midpoint(other.own_mapped),
            added: self.added.midpoint(other.added),
        }
    }

    /// Returns the bytes of all blocks that came through heapgauge, as they were asked for.
    fn asked(&self) -> u64 {
        self.live + self.untracked + self.own
    }
}

/// Large blocks that came through heapgauge. Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LargeBlocks {
    /// Bytes that are not in memory, of blocks in heap and arenas, and of others.
    pub untouched_in_arenas: u64,
    pub untouched_elsewhere: u64,
    /// Share of the program's blocks, and of heapgauge's own, in both; the rest was forgotten by `clear`.
    pub live_untouched: u64,
    pub own_untouched: u64,
    /// Bytes of glibc's blocks that are a mapping each, and the bytes that these add beyond the rounding in arenas.
    pub mapped: u64,
    pub mapped_added: u64,
}

impl LargeBlocks {
    fn untouched(&self) -> u64 {
        self.untouched_in_arenas + self.untouched_elsewhere
    }

    /// Returns the share of forgotten blocks, which are foreign ones.
    fn forgotten_untouched(&self) -> u64 {
        self.untouched().saturating_sub(self.live_untouched + self.own_untouched)
    }
}

/// The allocator inside `TrackingAllocator`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Inner {
    Glibc,
    /// Its figures, and the memory of the mappings that hold blocks.
    Told(AllocatorUsage, u64),
    Unknown,
}

/// All that parts are made from.
#[derive(Debug)]
pub(super) struct Figures<'a> {
    pub pieces: &'a [Piece],
    pub threads: Option<u64>,
    /// Shared memory, as `status` says.
    pub shared: u64,
    pub heap: HeapFigures,
    pub large: LargeBlocks,
    /// `None` where C's `malloc` is not glibc's, and where it was not asked.
    pub glibc: Option<&'a Glibc>,
    /// Foreign bytes of the last reading in which glibc was asked.
    pub last_foreign: Option<u64>,
    pub inner: Inner,
}

/// Blocks, free memory and size of the allocators.
#[derive(Debug, Default)]
struct Allocators {
    resident: Option<u64>,
    free: Option<u64>,
    internal: Option<u64>,
    foreign: Option<u64>,
}

/// Computes the parts.
pub(super) fn parts(figures: &Figures<'_>) -> MemoryParts {
    let Figures { pieces, heap, large, .. } = figures;
    let allocators = match &figures.inner {
        Inner::Glibc => of_glibc(figures),
        Inner::Told(usage, found) => of_another(figures, usage, *found),
        Inner::Unknown => Allocators {
            foreign: figures.glibc.map(|glibc| glibc.in_use() + glibc.mapped_bytes),
            ..Allocators::default()
        },
    };
    let resident: u64 = pieces.iter().map(|piece| piece.resident).sum();
    let anonymous: u64 = pieces.iter().map(|piece| piece.anonymous).sum();
    let stack = anonymous_of(pieces, Class::Stack);
    let overhead = (heap.own + heap.own_mapped).saturating_sub(large.own_untouched);
    let Allocators { resident: allocator_resident, free, internal, foreign } = allocators;
    let or_none = |part: Option<u64>| part.unwrap_or(0);
    let named =
        heap.live + heap.untracked + overhead + or_none(internal) + or_none(free) + or_none(foreign) + stack;
    let unaccounted = (anonymous + large.live_untouched) as i64 - named as i64;
    MemoryParts {
        anonymous: Some(anonymous),
        file: Some(resident.saturating_sub(anonymous + figures.shared)),
        shared: Some(figures.shared),
        threads: figures.threads,
        live: heap.live,
        live_untouched: Some(large.live_untouched),
        untracked: heap.untracked,
        overhead,
        internal_fragmentation: internal,
        allocator_resident,
        allocator_free_resident: free,
        foreign,
        thread_stack: Some(stack),
        unaccounted: Some(unaccounted),
    }
}

/// Returns the memory of heap and arenas.
fn in_arenas(pieces: &[Piece]) -> u64 {
    anonymous_of(pieces, Class::Heap) + anonymous_of(pieces, Class::Arena)
}

/// Returns anonymous memory that may belong to allocators, beside heap and arenas.
fn elsewhere(pieces: &[Piece]) -> u64 {
    anonymous_of(pieces, Class::Anonymous) + anonymous_of(pieces, Class::Allocator)
}

/// Computes the figures where glibc is the inner allocator as well as that of C libraries, in the same arenas.
fn of_glibc(figures: &Figures<'_>) -> Allocators {
    let Figures { pieces, heap, large, .. } = figures;
    let internal = heap.added + large.mapped_added;
    let known = heap.asked() + internal;
    let in_arenas = in_arenas(pieces);
    let (in_use, mapped, foreign) = match figures.glibc {
        Some(glibc) => {
            let (in_use, mapped) = (glibc.in_use(), glibc.mapped_bytes);
            (in_use, mapped, Some((in_use + mapped).saturating_sub(known)))
        }
        // glibc was not asked: foreign blocks are taken to be as they were.
        None => {
            let foreign = figures.last_foreign;
            (known.saturating_sub(large.mapped) + foreign.unwrap_or(0), large.mapped, foreign)
        }
    };
    // Blocks of C libraries may not have been touched, either: then there is less memory than they would have.
    let used = in_use.saturating_sub(large.untouched_in_arenas);
    let free = in_arenas.saturating_sub(used);
    let expected = mapped.saturating_sub(large.untouched_elsewhere);
    let mapped = expected.min(elsewhere(pieces));
    let missing = used.saturating_sub(in_arenas) + expected - mapped;
    Allocators {
        resident: Some(in_arenas + mapped),
        free: Some(free),
        internal: Some(internal),
        foreign: foreign.map(|foreign| foreign.saturating_sub(missing + large.forgotten_untouched())),
    }
}

/// Computes the figures where the inner allocator has its own, and C libraries have those of glibc.
fn of_another(figures: &Figures<'_>, usage: &AllocatorUsage, found: u64) -> Allocators {
    let Figures { pieces, heap, large, .. } = figures;
    let untouched = large.untouched();
    let (foreign, free_of_glibc, of_glibc) = match figures.glibc {
        Some(glibc) => {
            let in_arenas = in_arenas(pieces);
            let foreign = glibc.in_use() + glibc.mapped_bytes;
            (Some(foreign), in_arenas.saturating_sub(glibc.in_use()), in_arenas + glibc.mapped_bytes)
        }
        None => (None, 0, 0),
    };
    // Pages that were never touched are resident for an allocator that does not ask the kernel. Those of blocks are known. If
    // the allocator still tells more than the kernel has, the rest is taken for tables, which are reserved ahead, and then for
    // free memory.
    let of_kernel = elsewhere(pieces)
        .saturating_sub(heap.own_mapped)
        .saturating_sub(figures.glibc.map_or(0, |glibc| glibc.mapped_bytes));
    let told = usage.resident_bytes().map(|resident| resident.saturating_sub(untouched));
    let resident = told.map_or(found, |told| told.min(of_kernel));
    let missing = told.map_or(0, |told| told - resident);
    let (internal, free) = match usage.allocated_bytes() {
        Some(allocated) => {
            let used = allocated.saturating_sub(usage.cached_bytes().unwrap_or(0));
            let tables = usage.metadata_bytes().unwrap_or(0).saturating_sub(missing);
            // Whatever it tells, blocks are no larger than all memory that may be theirs.
            let internal =
                used.saturating_sub(heap.asked()).min(elsewhere(pieces) + in_arenas(pieces) + untouched);
            (Some(internal), (resident + untouched).saturating_sub(tables.saturating_add(used)))
        }
        // A sum: free memory and rounding.
        None => (None, (resident + untouched).saturating_sub(heap.asked())),
    };
    Allocators { resident: Some(resident + of_glibc), free: Some(free + free_of_glibc), internal, foreign }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::memory_parts::glibc::Arena;

    const MIB: u64 = 1 << 20;

    fn piece(class: Class, anonymous: u64) -> Piece {
        Piece { class, start: 0, end: 1, resident: anonymous, anonymous }
    }

    /// Makes figures: live 10 MiB in arenas and 20 MiB in mappings, of which 4 MiB were never touched; C libraries have 3 MiB.
    fn figures<'a>(pieces: &'a [Piece], glibc: Option<&'a Glibc>, inner: Inner) -> Figures<'a> {
        let heap =
            HeapFigures { live: 30 * MIB, untracked: MIB, own: MIB, own_mapped: 2 * MIB, added: MIB / 2 };
        let large = LargeBlocks {
            untouched_in_arenas: 0,
            untouched_elsewhere: 4 * MIB,
            live_untouched: 4 * MIB,
            own_untouched: 0,
            mapped: 20 * MIB + 4096,
            mapped_added: 4096,
        };
        Figures { pieces, threads: Some(7), shared: 5 * MIB, heap, large, glibc, last_foreign: None, inner }
    }

    /// Makes a state: 12.5 MiB of blocks through heapgauge, 3 MiB of others, and 40 MiB free of which 10 MiB are in memory.
    fn glibc() -> Glibc {
        let in_use = 12 * MIB + MIB / 2 + 3 * MIB;
        let arena = Arena { size: in_use + 40 * MIB, free: 40 * MIB, ..Arena::default() };
        Glibc { arenas: vec![arena], mapped_count: 2, mapped_bytes: 20 * MIB + 4096 }
    }

    fn pieces() -> Vec<Piece> {
        vec![
            piece(Class::Heap, 20 * MIB + MIB / 2),
            piece(Class::Arena, 5 * MIB),
            piece(Class::Anonymous, 16 * MIB + 4096 + 2 * MIB),
            piece(Class::Stack, MIB),
            piece(Class::Image, 300 << 10),
            Piece { class: Class::Shared, start: 0, end: 1, resident: 5 * MIB, anonymous: 0 },
            Piece { class: Class::File, start: 0, end: 1, resident: 9 * MIB, anonymous: 0 },
        ]
    }

    fn sum(parts: &MemoryParts) -> i64 {
        let of = |part: Option<u64>| part.unwrap_or(0) as i64;
        (parts.live + parts.untracked + parts.overhead) as i64 - of(parts.live_untouched)
            + of(parts.internal_fragmentation)
            + of(parts.allocator_free_resident)
            + of(parts.foreign)
            + of(parts.thread_stack)
            + parts.unaccounted.unwrap()
    }

    #[test]
    fn parts_of_glibc_are_what_was_planted() {
        let (pieces, glibc) = (pieces(), glibc());
        let parts = parts(&figures(&pieces, Some(&glibc), Inner::Glibc));
        assert_eq!(parts.allocator_free_resident, Some(10 * MIB));
        assert_eq!((parts.foreign, parts.thread_stack), (Some(3 * MIB), Some(MIB)));
        assert_eq!(parts.internal_fragmentation, Some(MIB / 2 + 4096));
        assert_eq!(parts.allocator_resident, Some(25 * MIB + MIB / 2 + 16 * MIB + 4096));
        assert_eq!((parts.file, parts.shared, parts.threads), (Some(9 * MIB), Some(5 * MIB), Some(7)));
        assert_eq!(parts.unaccounted, Some(300 << 10));
        assert_eq!(sum(&parts), parts.anonymous.unwrap() as i64);
    }

    #[test]
    fn blocks_of_c_that_were_never_touched_are_not_in_memory() {
        let (pieces, mut glibc) = (pieces(), glibc());
        glibc.mapped_bytes += 100 * MIB;
        let parts = parts(&figures(&pieces, Some(&glibc), Inner::Glibc));
        // The 2 MiB of heapgauge's tables cannot be told from them.
        assert_eq!((parts.foreign, parts.unaccounted), (Some(5 * MIB), Some((300 << 10) - 2 * MIB as i64)));
        assert_eq!(sum(&parts), parts.anonymous.unwrap() as i64);
    }

    #[test]
    fn blocks_of_c_in_arenas_that_were_never_touched_are_not_in_memory() {
        let (pieces, mut glibc) = (pieces(), glibc());
        // 2 MiB more than the 25.5 MiB that heap and arenas have in memory.
        (glibc.arenas[0].size, glibc.arenas[0].free) = (27 * MIB + MIB / 2, 0);
        let parts = parts(&figures(&pieces, Some(&glibc), Inner::Glibc));
        assert_eq!((parts.foreign, parts.allocator_free_resident), (Some(13 * MIB), Some(0)));
        assert_eq!(parts.unaccounted, Some(300 << 10));
    }

    #[test]
    fn figures_that_no_allocator_can_have_do_no_harm() {
        let (pieces, glibc) = (pieces(), glibc());
        let usage = || AllocatorUsage::new("absurd");
        for usage in [
            usage().allocated(u64::MAX),
            usage().allocated(u64::MAX).resident(u64::MAX),
            usage().allocated(MIB).metadata(u64::MAX),
            usage().allocated(u64::MAX).resident(u64::MAX).metadata(u64::MAX).cached(u64::MAX),
            usage().allocated(0).resident(0).metadata(0).cached(u64::MAX),
        ] {
            let parts = parts(&figures(&pieces, Some(&glibc), Inner::Told(usage.clone(), MIB)));
            assert_eq!(sum(&parts), parts.anonymous.unwrap() as i64, "{usage:?}");
            assert!(parts.internal_fragmentation.unwrap() < 100 * MIB, "{usage:?}");
        }
    }

    #[test]
    fn without_glibcs_answer_foreign_blocks_are_as_before_or_among_the_free_memory() {
        let pieces = pieces();
        let mut figures = figures(&pieces, None, Inner::Glibc);
        let unasked = parts(&figures);
        assert_eq!((unasked.foreign, unasked.allocator_free_resident), (None, Some(13 * MIB)));
        figures.last_foreign = Some(3 * MIB);
        let unasked = parts(&figures);
        assert_eq!((unasked.foreign, unasked.allocator_free_resident), (Some(3 * MIB), Some(10 * MIB)));
        assert_eq!(sum(&unasked), unasked.anonymous.unwrap() as i64);
    }

    /// jemalloc's resident memory counts pages that were never touched.
    #[test]
    fn another_allocator_tells_its_own_and_glibc_that_of_c() {
        let glibc = Glibc {
            arenas: vec![Arena { size: 5 * MIB, free: MIB, ..Arena::default() }],
            ..Glibc::default()
        };
        let mut pieces = vec![piece(Class::Heap, 4 * MIB + MIB / 2), piece(Class::Stack, MIB)];
        // Blocks 28 of 32 MiB, tables of heapgauge's 2, caches 1, fragmentation 3, dirty pages 6, metadata 1.
        pieces.push(piece(Class::Anonymous, (28 + 2 + 1 + 3 + 6 + 1) * MIB));
        let usage =
            AllocatorUsage::new("jemalloc").resident(43 * MIB).allocated(36 * MIB).cached(MIB).metadata(MIB);
        let told = parts(&figures(&pieces, Some(&glibc), Inner::Told(usage, 0)));
        assert_eq!(told.internal_fragmentation, Some(3 * MIB));
        // Caches, dirty pages, and the free memory of glibc.
        assert_eq!(told.allocator_free_resident, Some(7 * MIB + MIB / 2));
        assert_eq!(told.foreign, Some(4 * MIB));
        assert_eq!(told.allocator_resident, Some(39 * MIB + 4 * MIB + MIB / 2));
        // Its metadata.
        assert_eq!(told.unaccounted, Some(MIB as i64));
        assert_eq!(sum(&told), told.anonymous.unwrap() as i64);

        // Tables and free memory that were never touched.
        let usage =
            AllocatorUsage::new("jemalloc").resident(63 * MIB).allocated(36 * MIB).cached(MIB).metadata(MIB);
        let with_untouched = parts(&figures(&pieces, Some(&glibc), Inner::Told(usage, 0)));
        assert_eq!(with_untouched.allocator_free_resident, Some(8 * MIB + MIB / 2));
        assert_eq!(with_untouched.unaccounted, Some(0));
    }

    #[test]
    fn an_allocator_without_a_count_of_blocks_has_a_sum() {
        let pieces = vec![piece(Class::Anonymous, 42 * MIB)];
        let inner = Inner::Told(AllocatorUsage::new("mimalloc"), 40 * MIB);
        let told = parts(&figures(&pieces, None, inner));
        assert_eq!((told.internal_fragmentation, told.foreign), (None, None));
        assert_eq!(told.allocator_free_resident, Some((40 + 4 - 32) * MIB));
        assert_eq!(told.unaccounted, Some(0));
    }

    #[test]
    fn an_unknown_allocator_leaves_its_parts_out() {
        let (pieces, glibc) = (pieces(), glibc());
        let parts = parts(&figures(&pieces, Some(&glibc), Inner::Unknown));
        let absent = [parts.allocator_resident, parts.allocator_free_resident, parts.internal_fragmentation];
        assert_eq!(absent, [None; 3]);
        assert_eq!(parts.foreign, Some(glibc.in_use() + glibc.mapped_bytes));
        assert_eq!(sum(&parts), parts.anonymous.unwrap() as i64);
    }
}
