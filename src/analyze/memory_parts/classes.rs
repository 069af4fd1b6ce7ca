//! Sorts mappings by use: heap, arenas, stacks, data of modules, files.
//!
//! The kernel joins mappings side by side, so one may hold several things: a thread's stack and a block above it.
#![forbid(unsafe_code)]

use super::smaps::{Mapping, Name};

/// Use of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// The main arena of glibc, or other memory that grows by `brk`.
    Heap,
    /// An arena of glibc.
    Arena,
    /// Named by another allocator.
    Allocator,
    /// The stack of a thread, or of one that has ended, which the C library keeps for the next one.
    Stack,
    /// Anonymous memory of another use: large blocks, heapgauge's tables, and mappings of the program.
    Anonymous,
    /// Variables of the executable and of libraries.
    Image,
    File,
    Shared,
    /// Reserved addresses and pages of the kernel's.
    Other,
}

impl Class {
    pub(crate) const ALL: [Class; 9] = [
        Class::Heap,
        Class::Arena,
        Class::Allocator,
        Class::Stack,
        Class::Anonymous,
        Class::Image,
        Class::File,
        Class::Shared,
        Class::Other,
    ];

    /// Returns its name in JSON.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Class::Heap => "heap",
            Class::Arena => "arena",
            Class::Allocator => "allocator",
            Class::Stack => "stack",
            Class::Anonymous => "anonymous",
            Class::Image => "image",
            Class::File => "file",
            Class::Shared => "shared",
            Class::Other => "other",
        }
    }
}

/// A mapping, or a part of one, of one use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub class: Class,
    pub start: usize,
    pub end: usize,
    pub resident: u64,
    pub anonymous: u64,
}

/// Memory of the process, as far as mappings do not tell it.
pub(crate) trait Memory {
    /// Returns whether an arena of glibc's begins at this address.
    fn is_arena(&self, address: usize) -> bool;
    /// Returns the bytes from `start` to `end` that are in memory.
    fn resident(&self, start: usize, end: usize) -> Option<u64>;
    /// Returns the lowest address from `start` to `end` at which a known large block begins.
    fn first_block(&self, start: usize, end: usize) -> Option<usize>;
}

/// Arenas of glibc begin at multiples of it and are no larger.
pub(crate) const ARENA: usize = 64 << 20;
/// Largest guard below a stack: one page, of any size there is, unless a program asks for more. Larger ones are reserved for
/// something else, such as code that is made at run time.
const GUARD: u64 = 64 << 10;
/// Largest stack of a thread. A larger mapping above a guard page is taken for other memory.
const STACK: usize = 64 << 20;

/// Sorts mappings by their use. They are in the order of their addresses.
pub(crate) fn classify(mappings: &[Mapping], memory: &impl Memory) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::with_capacity(mappings.len());
    for (index, mapping) in mappings.iter().enumerate() {
        let class = match mapping.name {
            Name::SharedMemory if mapping.is_shared || mapping.anonymous == 0 => Class::Shared,
            Name::Heap => Class::Heap,
            Name::Stack => Class::Stack,
            Name::GlibcArena => Class::Arena,
            Name::Allocator => Class::Allocator,
            Name::File | Name::SharedMemory if mapping.anonymous == 0 => Class::File,
            Name::File | Name::SharedMemory => Class::Image,
            Name::Kernel => Class::Other,
            Name::Nothing if !mapping.is_writable && mapping.resident == 0 => Class::Other,
            Name::Nothing => {
                split(mapping, &mappings[..index], &mut pieces, memory);
                continue;
            }
        };
        pieces.push(Piece::of(class, mapping));
    }
    pieces
}

/// Adds the pieces of an anonymous mapping without a name.
fn split(mapping: &Mapping, below: &[Mapping], pieces: &mut Vec<Piece>, memory: &impl Memory) {
    let whole = |class| Piece::of(class, mapping);
    let neighbour = below.last().filter(|below| below.end == mapping.start);
    // Variables that begin as zeroes lie behind those of the file.
    if neighbour.is_some_and(|below| below.name == Name::File && below.is_writable) {
        return pieces.push(whole(Class::Image));
    }
    let first = mapping.start.next_multiple_of(ARENA);
    if first < mapping.end && memory.is_arena(first) {
        // An arena that is full has no reserved addresses behind it, and the next one may follow.
        let arenas = (first..mapping.end).step_by(ARENA).take_while(|start| memory.is_arena(*start)).count();
        let end = mapping.end.min(first + arenas * ARENA);
        let [low, rest] = cut(whole(Class::Anonymous), first, memory);
        let [arena, high] = cut(rest, end, memory);
        let arena = Piece { class: Class::Arena, ..arena };
        return pieces.extend([low, arena, high].into_iter().filter(|piece| piece.start < piece.end));
    }
    let is_guarded = neighbour.is_some_and(|guard| {
        let is_guard = guard.name == Name::Nothing && !guard.is_readable && !guard.is_writable;
        let is_end_of_arena = (pieces.iter().rev().nth(1)).is_some_and(|piece| {
            piece.class == Class::Arena && piece.end == guard.start && guard.end.is_multiple_of(ARENA)
        });
        is_guard && guard.size() <= GUARD && !is_end_of_arena
    });
    if !is_guarded || mapping.end - mapping.start > 2 * STACK {
        return pieces.push(whole(Class::Anonymous));
    }
    match memory.first_block(mapping.start, mapping.end) {
        // Its page begins with the C library's header.
        Some(block) if block & !0xfff > mapping.start => {
            let [stack, rest] = cut(whole(Class::Stack), block & !0xfff, memory);
            pieces.extend([stack, Piece { class: Class::Anonymous, ..rest }]);
        }
        Some(_) => pieces.push(whole(Class::Anonymous)),
        None if mapping.end - mapping.start <= STACK => pieces.push(whole(Class::Stack)),
        None => pieces.push(whole(Class::Anonymous)),
    }
}

/// Cuts a piece in two, with the memory of each.
fn cut(piece: Piece, at: usize, memory: &impl Memory) -> [Piece; 2] {
    let Piece { start, end, resident, anonymous, .. } = piece;
    let at = at.clamp(start, end);
    let below = match at {
        at if at == start => 0,
        at if at == end => resident,
        at => memory.resident(start, at).map_or(resident, |below| below.min(resident)),
    };
    let of_below = below.min(anonymous);
    [
        Piece { end: at, resident: below, anonymous: of_below, ..piece },
        Piece { start: at, resident: resident - below, anonymous: anonymous - of_below, ..piece },
    ]
}

impl Piece {
    fn of(class: Class, mapping: &Mapping) -> Piece {
        let Mapping { start, end, resident, anonymous, .. } = *mapping;
        Piece { class, start, end, resident, anonymous }
    }
}

/// Sums the anonymous memory of a class.
pub(crate) fn anonymous_of(pieces: &[Piece], class: Class) -> u64 {
    pieces.iter().filter(|piece| piece.class == class).map(|piece| piece.anonymous).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::memory_parts::smaps;

    /// Memory in which everything is resident.
    #[derive(Default)]
    struct Told {
        arenas: Vec<usize>,
        blocks: Vec<usize>,
    }

    impl Memory for Told {
        fn is_arena(&self, address: usize) -> bool {
            self.arenas.contains(&address)
        }
        fn resident(&self, start: usize, end: usize) -> Option<u64> {
            Some((end - start) as u64)
        }
        fn first_block(&self, start: usize, end: usize) -> Option<usize> {
            self.blocks.iter().copied().find(|block| (start..end).contains(block))
        }
    }

    fn kept() -> Vec<Mapping> {
        smaps::parse(include_str!("smaps.txt"))
    }

    // The text is of a C program with two threads in arenas of their own and two large blocks.
    #[test]
    fn a_kept_text_is_sorted() {
        let told = Told { arenas: vec![0x7fff_e800_0000, 0x7fff_f000_0000], blocks: Vec::new() };
        let (mappings, pieces) = (kept(), classify(&kept(), &told));
        let starts = |class| {
            let of_class = pieces.iter().filter(|piece| piece.class == class);
            of_class.map(|piece| piece.start).collect::<Vec<_>>()
        };
        assert_eq!(starts(Class::Arena), told.arenas);
        assert_eq!(starts(Class::Stack), [0x7fff_f6dd_1000, 0x7fff_f75d_2000, 0x7fff_fffd_e000]);
        assert_eq!(starts(Class::Heap), [0x5555_5555_9000]);
        // The large blocks; memory of the loader's.
        assert_eq!(starts(Class::Anonymous), [0x7fff_f6ca_a000, 0x7fff_f7dd_2000, 0x7fff_f7fc_0000]);
        assert!(starts(Class::Image).contains(&0x7fff_f7fa_a000));
        let sum = |of: fn(&Mapping) -> u64| mappings.iter().map(of).sum::<u64>();
        let sum_of = |of: fn(&Piece) -> u64| pieces.iter().map(of).sum::<u64>();
        assert_eq!(sum(|mapping| mapping.anonymous), sum_of(|piece| piece.anonymous));
        assert_eq!(sum(|mapping| mapping.resident), sum_of(|piece| piece.resident));
        // Each thread has touched 200,000 bytes.
        assert!(anonymous_of(&pieces, Class::Stack) > 400_000);
    }

    fn anonymous(start: usize, end: usize, is_writable: bool) -> Mapping {
        let bytes = if is_writable { (end - start) as u64 } else { 0 };
        let name = Name::Nothing;
        Mapping {
            start,
            end,
            is_readable: is_writable,
            is_writable,
            is_shared: false,
            name,
            resident: bytes,
            anonymous: bytes,
        }
    }

    fn classes(pieces: &[Piece]) -> Vec<(Class, usize, u64)> {
        pieces.iter().map(|piece| (piece.class, piece.start, piece.anonymous)).collect()
    }

    #[test]
    fn a_block_that_was_joined_with_a_stack_is_no_stack() {
        let mappings = [anonymous(0x1000, 0x2000, false), anonymous(0x2000, 0x9000, true)];
        let mut told = Told::default();
        assert_eq!(classes(&classify(&mappings, &told))[1], (Class::Stack, 0x2000, 0x7000));
        told.blocks = vec![0x5010];
        let expected = [(Class::Stack, 0x2000, 0x3000), (Class::Anonymous, 0x5000, 0x4000)];
        assert_eq!(classes(&classify(&mappings, &told))[1..], expected);
        told.blocks = vec![0x2010];
        assert_eq!(classes(&classify(&mappings, &told))[1..], [(Class::Anonymous, 0x2000, 0x7000)]);
    }

    #[test]
    fn memory_between_large_reserved_parts_is_no_stack() {
        let (guard, end) = (1 << 20, 9 << 20);
        let mappings = [anonymous(0x1000, guard, false), anonymous(guard, end, true)];
        assert_eq!(classify(&mappings, &Told::default())[1].class, Class::Anonymous);
        let mappings = [anonymous(guard - 0x10_000, guard, false), anonymous(guard, end, true)];
        assert_eq!(classify(&mappings, &Told::default())[1].class, Class::Stack);
    }

    #[test]
    fn joined_arenas_and_what_lies_around_them_are_told_apart() {
        let told = Told { arenas: vec![ARENA, 2 * ARENA], blocks: Vec::new() };
        let mappings = [anonymous(ARENA - 0x3000, 3 * ARENA + 0x5000, true)];
        let expected = [
            (Class::Anonymous, ARENA - 0x3000, 0x3000),
            (Class::Arena, ARENA, 2 * ARENA as u64),
            (Class::Anonymous, 3 * ARENA, 0x5000),
        ];
        assert_eq!(classes(&classify(&mappings, &told)), expected);
        // Reserved addresses behind an arena that is nearly full are no guard page.
        let end = 2 * ARENA - 0x1000;
        let mappings = [
            anonymous(ARENA, end, true),
            anonymous(end, 2 * ARENA, false),
            anonymous(2 * ARENA, 2 * ARENA + 0x1000, true),
        ];
        let told = Told { arenas: vec![ARENA], blocks: Vec::new() };
        assert_eq!(classify(&mappings, &told)[2].class, Class::Anonymous);
    }
}
