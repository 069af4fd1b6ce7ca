//! Counts the pages of large blocks of heapgauge's that are not in memory.
//!
//! The kernel is asked page by page, some 15 ns each. Beyond [`LOOKED_AT`] only some of the pages are looked at, evenly, and
//! stand for the others.
#![forbid(unsafe_code)]

use super::classes::{Class, Piece};
use super::parts::LargeBlocks;
use super::rounding;
use crate::record::residency;
use crate::record::unlisted::{self, Owner};

/// Bytes that are looked at in one reading.
const LOOKED_AT: usize = 4 << 30;
/// Bytes that are looked at, or not, together.
const SPAN: usize = 4 << 20;

/// Address and size of a block, and whose it is.
pub(super) type Block = (usize, usize, Owner);

/// Lists the blocks by address.
pub(super) fn list() -> Vec<Block> {
    let mut blocks = Vec::new();
    unlisted::visit_large_blocks(&mut |address, size, owner| blocks.push((address, size, owner)));
    blocks.sort_unstable();
    blocks
}

/// Asks for the pages of blocks in the order of their addresses. `resident` returns the bytes in memory between two addresses;
/// `None` where a block is gone.
pub(super) fn look_at(
    blocks: &[Block],
    pieces: &[Piece],
    resident: &dyn Fn(usize, usize) -> Option<u64>,
) -> LargeBlocks {
    let page = residency::page_bytes();
    let all: usize = blocks.iter().map(|(_, size, _)| *size).sum();
    let every = all.div_ceil(LOOKED_AT).max(1);
    let (mut found, mut number) = (LargeBlocks::default(), 0);
    for &(address, size, owner) in blocks {
        let is_in_arena =
            piece_of(pieces, address).is_some_and(|piece| matches!(piece.class, Class::Heap | Class::Arena));
        let is_mapping = !is_in_arena && address % page == 2 * size_of::<usize>();
        if is_mapping {
            found.mapped += rounding::mapped_chunk(size as u64, page as u64);
            found.mapped_added += rounding::added_by_mapping(size as u64, page as u64);
        }
        let end = address.saturating_add(size);
        let mut untouched = 0;
        let mut at = address;
        while at < end {
            let next = (at + SPAN).min(end);
            number += 1;
            if number % every == 0 {
                // Whole pages: the first and the last one belong to the block in part.
                let (low, high) = (at & !(page - 1), next.next_multiple_of(page));
                let missing = resident(low, high).map_or(0, |bytes| (high - low) as u64 - bytes);
                untouched += missing.min((next - at) as u64) * every as u64;
            }
            at = next;
        }
        match is_in_arena {
            true => found.untouched_in_arenas += untouched,
            false => found.untouched_elsewhere += untouched,
        }
        match owner {
            Owner::Program => found.live_untouched += untouched,
            Owner::Heapgauge => found.own_untouched += untouched,
            Owner::Forgotten => {}
        }
    }
    found
}

/// Finds the piece in which an address lies.
fn piece_of(pieces: &[Piece], address: usize) -> Option<&Piece> {
    let after = pieces.partition_point(|piece| piece.start <= address);
    pieces[..after].last().filter(|piece| address < piece.end)
}

/// Finds the first block from `start` to `end`.
pub(super) fn first(blocks: &[Block], start: usize, end: usize) -> Option<usize> {
    let at = blocks.partition_point(|(address, ..)| *address < start);
    blocks.get(at).map(|(address, ..)| *address).filter(|address| *address < end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(start: usize, end: usize) -> Piece {
        Piece { class: Class::Arena, start, end, resident: 0, anonymous: 0 }
    }

    /// Answers as if the first half of each MiB of addresses were in memory.
    fn half(low: usize, high: usize) -> Option<u64> {
        Some((low..high).step_by(4096).filter(|page| page & (1 << 19) == 0).count() as u64 * 4096)
    }

    #[test]
    fn missing_pages_are_counted_where_the_block_lies() {
        let pieces = [arena(0x1000_0000, 0x2000_0000)];
        let blocks = [
            (0x1000_0010, 1 << 20, Owner::Program),
            (0x3000_0010, 2 << 20, Owner::Forgotten),
            (0x4000_0018, 4 << 20, Owner::Heapgauge),
        ];
        let found = look_at(&blocks, &pieces, &half);
        assert_eq!((found.untouched_in_arenas, found.untouched_elsewhere), (1 << 19, 3 << 20));
        assert_eq!((found.live_untouched, found.own_untouched), (1 << 19, 2 << 20));
        assert_eq!((found.mapped, found.mapped_added), ((2 << 20) + 4096, 4096 - 16));
        assert_eq!(look_at(&blocks, &pieces, &|_, _| None).live_untouched, 0);
    }

    #[test]
    fn of_very_much_memory_some_pages_stand_for_the_others() {
        let blocks = [(0x10_0000_0010, 40 << 30, Owner::Program), (0x80_0000_0010, 3 << 30, Owner::Program)];
        let asked = std::cell::Cell::new(0);
        let found = look_at(&blocks, &[], &|low, high| {
            asked.set(asked.get() + high - low);
            half(low, high)
        });
        assert!(asked.get() < LOOKED_AT + (LOOKED_AT >> 4), "{} bytes were looked at", asked.get());
        let expected = (43_u64 << 30) / 2;
        assert!(found.untouched_elsewhere.abs_diff(expected) < expected / 100, "{found:?}");
    }

    #[test]
    fn the_first_block_of_a_range_is_found() {
        let blocks = [(100, 1, Owner::Program), (200, 1, Owner::Program)];
        assert_eq!(
            [first(&blocks, 0, 100), first(&blocks, 0, 101), first(&blocks, 101, 300)],
            [None, Some(100), Some(200)]
        );
    }
}
