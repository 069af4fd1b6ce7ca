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
/// Multiples of [`ARENA`] that are looked at in one mapping.
const LOOKED_AT: usize = 4096;
/// Memory at the beginning of an arena: a page, of any size there is.
const HEADER: usize = 64 << 10;
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
    let arenas = arenas(mapping, memory);
    if !arenas.is_empty() {
        let mut rest = whole(Class::Anonymous);
        for (start, end) in arenas {
            let [low, high] = cut(rest, start, memory);
            let [arena, high] = cut(high, end, memory);
            pieces.extend([low, Piece { class: Class::Arena, ..arena }].into_iter().filter(Piece::has_size));
            rest = high;
        }
        return pieces.extend(Some(rest).filter(Piece::has_size));
    }
    if neighbour.is_some_and(|below_it| is_data_of_module(below_it, below)) {
        return pieces.push(whole(Class::Image));
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

/// Finds the arenas in a mapping: the kernel joins them with others, and with memory that a program has mapped beside them.
fn arenas(mapping: &Mapping, memory: &impl Memory) -> Vec<(usize, usize)> {
    let mut arenas: Vec<(usize, usize)> = Vec::new();
    let first = mapping.start.next_multiple_of(ARENA);
    for start in (first..mapping.end).step_by(ARENA).take(LOOKED_AT) {
        // To look at a page that is not there would have the kernel make one.
        let follows = start == first || arenas.last().is_some_and(|arena| arena.1 == start);
        if (!follows && memory.resident(start, start + HEADER) == Some(0)) || !memory.is_arena(start) {
            continue;
        }
        let end = mapping.end.min(start + ARENA);
        // An arena that is full has no reserved addresses behind it, and the next one may follow.
        match arenas.last_mut() {
            Some(before) if before.1 == start => before.1 = end,
            _ => arenas.push((start, end)),
        }
    }
    arenas
}

/// Returns whether a mapping holds variables of the executable or a library. Those that begin as zeroes lie behind it, in memory
/// without a name.
fn is_data_of_module(mapping: &Mapping, below: &[Mapping]) -> bool {
    let mut start = mapping.end;
    let module = below.iter().rev().take_while(|part| {
        let joins = part.end == start && part.name == Name::File;
        start = part.start;
        joins
    });
    mapping.name == Name::File
        && mapping.is_writable
        && !mapping.is_shared
        && module.into_iter().any(|part| part.is_executable)
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
    fn has_size(&self) -> bool {
        self.start < self.end
    }

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
            is_executable: false,
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
    fn arenas_are_found_anywhere_in_a_mapping_of_the_program() {
        let told = Told { arenas: vec![5 * ARENA, 9 * ARENA], blocks: Vec::new() };
        let mapping = anonymous(ARENA + 0x3000, 9 * ARENA + 0x5000, true);
        let expected = [
            (Class::Anonymous, ARENA + 0x3000, 4 * ARENA as u64 - 0x3000),
            (Class::Arena, 5 * ARENA, ARENA as u64),
            (Class::Anonymous, 6 * ARENA, 3 * ARENA as u64),
            (Class::Arena, 9 * ARENA, 0x5000),
        ];
        assert_eq!(classes(&classify(&[mapping], &told)), expected);
        // Right behind a file that the program has mapped, too.
        let file = Mapping { name: Name::File, anonymous: 0, ..anonymous(ARENA, 5 * ARENA, true) };
        let mappings = [file, anonymous(5 * ARENA, 5 * ARENA + 0x5000, true)];
        assert_eq!(classify(&mappings, &told)[1].class, Class::Arena);
    }

    #[test]
    fn memory_behind_a_file_is_that_of_a_module_only_where_the_file_has_code() {
        let file = Mapping { name: Name::File, ..anonymous(0x3000, 0x5000, true) };
        let class = |mappings: &[Mapping]| classify(mappings, &Told::default()).last().unwrap().class;
        let memory = anonymous(0x5000, 0x9000, true);
        assert_eq!(class(&[file, memory]), Class::Anonymous);
        let code = Mapping { is_executable: true, is_writable: false, start: 0x1000, end: 0x3000, ..file };
        assert_eq!(class(&[code, file, memory]), Class::Image);
        let elsewhere = Mapping { end: 0x2000, ..code };
        assert_eq!(class(&[elsewhere, file, memory]), Class::Anonymous);
        let shared = Mapping { is_shared: true, ..file };
        assert_eq!(class(&[code, shared, memory]), Class::Anonymous);
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
