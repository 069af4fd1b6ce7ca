//! Parses the text of `malloc_info`: the arenas of glibc's allocator, their size, and their free chunks by size.
//!
//! Read while it is printed: an arena is locked between the line that begins it and the next piece, and the longest of
//! these times is measured.
#![forbid(unsafe_code)]

use super::smaps::CallTime;
use crate::record::c_malloc;
use std::time::{Duration, Instant};

/// Free chunks of some sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SizeClass {
    pub from: u64,
    pub to: u64,
    pub count: u64,
    pub bytes: u64,
}

/// An arena; the first one is the main arena.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arena {
    /// Bytes it has from the system, resident or not.
    pub size: u64,
    /// Bytes of its free chunks, resident or not.
    pub free: u64,
    pub free_chunks: u64,
    pub size_classes: Vec<SizeClass>,
}

impl Arena {
    /// Returns the bytes of blocks, headers and caches of threads included.
    pub(crate) fn in_use(&self) -> u64 {
        self.size.saturating_sub(self.free)
    }
}

/// State of glibc's allocator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Glibc {
    pub arenas: Vec<Arena>,
    /// Blocks that are mappings of their own.
    pub mapped_count: u64,
    pub mapped_bytes: u64,
}

impl Glibc {
    /// Returns the bytes of blocks in arenas.
    pub(crate) fn in_use(&self) -> u64 {
        self.arenas.iter().map(Arena::in_use).sum()
    }
}

/// Asks glibc; `None` where `malloc` is another one's.
pub(crate) fn read() -> Option<(Glibc, CallTime)> {
    if !c_malloc::is_glibc() {
        return None;
    }
    let mut parser = Parser::default();
    let begun = Instant::now();
    let mut locked = None;
    let mut longest = Duration::ZERO;
    let is_read = c_malloc::malloc_info(&mut |piece| {
        if let Some(since) = locked.take() {
            longest = longest.max(Instant::elapsed(&since));
        }
        let was_in_heap = parser.is_in_heap;
        parser.push(piece);
        if parser.is_in_heap && !was_in_heap {
            // The next arena is not locked yet. With a whole slice of the processor's time ahead, this thread is hardly
            // interrupted while it is.
            std::thread::yield_now();
        }
        if parser.is_in_heap {
            locked = Some(Instant::now());
        }
    });
    is_read.then_some((parser.found, CallTime { total: begun.elapsed(), longest }))
}

/// Reads the lines as their pieces come.
#[derive(Debug, Default)]
struct Parser {
    found: Glibc,
    line: Vec<u8>,
    /// True between `<heap` and `</heap>`: the lines outside are sums of all arenas.
    is_in_heap: bool,
    /// Flags among the printed sizes of an arena that are not yet taken off its sum.
    excess: u64,
}

impl Parser {
    fn push(&mut self, piece: &[u8]) {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.end_line(str::from_utf8(&line).unwrap_or("").trim());
                self.line = line;
                self.line.clear();
            }
        }
    }

    fn end_line(&mut self, line: &str) {
        let value = |name: &str| -> u64 {
            let Some((_, rest)) = line.split_once(name) else { return 0 };
            rest.trim_start_matches("=\"").split('"').next().and_then(|text| text.parse().ok()).unwrap_or(0)
        };
        let is = |begin: &str| line.starts_with(begin);
        if is("<heap ") {
            self.is_in_heap = true;
            return self.found.arenas.push(Arena::default());
        }
        if is("</heap>") {
            self.is_in_heap = false;
        }
        if !self.is_in_heap {
            if is("<total type=\"mmap\"") {
                (self.found.mapped_count, self.found.mapped_bytes) = (value(" count"), value(" size"));
            }
            return;
        }
        let Some(arena) = self.found.arenas.last_mut() else { return };
        if is("<size ") || is("<unsorted ") {
            let (count, to) = (value(" count"), value(" to"));
            // Sizes of bins are printed with the flags in their lowest bits, which are in the sums as well.
            let flags = to & 7;
            let excess = count.saturating_mul(flags);
            self.excess += excess;
            if count > 0 {
                let bytes = value(" total").saturating_sub(excess);
                arena.size_classes.push(SizeClass { from: value(" from") & !7, to: to & !7, count, bytes });
            }
        } else if is("<total type=\"fast\"") {
            arena.free += value(" size");
            arena.free_chunks += value(" count");
        } else if is("<total type=\"rest\"") {
            arena.free += value(" size").saturating_sub(std::mem::take(&mut self.excess));
            arena.free_chunks += value(" count");
        } else if is("<system type=\"current\"") {
            arena.size = value(" size");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str, piece: usize) -> Glibc {
        let mut parser = Parser::default();
        text.as_bytes().chunks(piece).for_each(|piece| parser.push(piece));
        assert!(!parser.is_in_heap);
        parser.found
    }

    #[test]
    fn a_kept_text_gives_its_arenas() {
        let text = include_str!("malloc_info.xml");
        let found = parsed(text, usize::MAX >> 1);
        for piece in [1, 7, 64] {
            assert_eq!(parsed(text, piece), found);
        }
        assert_eq!(found.arenas.len(), 3);
        let main = &found.arenas[0];
        // From the lines `<total … size=` and `<system … size=` of the text. Each of 818 printed sizes has a flag in it, which is 1.
        assert_eq!((main.size, main.free, main.free_chunks), (811_008, 307_666 - 818, 819));
        let listed = |arena: &Arena| arena.size_classes.iter().map(|class| class.bytes).sum::<u64>();
        assert_eq!(listed(main), 186_176);
        let fast = SizeClass { from: 96, to: 112, count: 5, bytes: 560 };
        assert_eq!(found.arenas[1].size_classes[0], fast);
        assert_eq!((found.arenas[1].free, listed(&found.arenas[1])), (3_760 + 280_666 - 746, 283_328));
        assert!(found.arenas.iter().flat_map(|arena| &arena.size_classes).all(|class| class.bytes % 16 == 0));
        assert_eq!((found.mapped_count, found.mapped_bytes), (2, 1_204_224));
        assert_eq!(found.in_use(), found.arenas.iter().map(|arena| arena.size - arena.free).sum::<u64>());
    }

    #[test]
    fn a_text_that_is_none_gives_nothing() {
        assert_eq!(parsed("", 1), Glibc::default());
        assert_eq!(
            parsed("<total type=\"mmap\" count=\"x\" size=\"\"/>\n</heap>\n<size from\n", 3),
            Glibc::default()
        );
    }

    #[cfg(all(target_os = "linux", target_env = "gnu", not(miri)))]
    #[test]
    fn this_process_has_a_main_arena() {
        let (found, time) = read().unwrap();
        assert!(found.arenas[0].size > 0 && found.arenas[0].free <= found.arenas[0].size);
        assert!(time.longest <= time.total);
    }
}
