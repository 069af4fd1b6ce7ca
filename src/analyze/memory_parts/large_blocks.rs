//! Counts the pages of large blocks of heapgauge's that are not in memory.
//!
//! The kernel is asked page by page, some 15 ns each. Beyond [`LOOKED_AT`] only some of the pages are looked at, evenly, and
//! stand for the others. The result is bounded by the memory of each mapping, which is exact. So pages that were only read
//! are no memory, though `mincore` counts them: the kernel has one page of zeros for all of them.
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
    // By piece; the last one is for blocks that are in none.
    let mut looked = vec![Looked::default(); pieces.len() + 1];
    for &(address, size, owner) in blocks {
        let is_mapping =
            !is_in_arena(pieces.get(piece_of(pieces, address))) && address % page == 2 * size_of::<usize>();
        if is_mapping {
            found.mapped += rounding::mapped_chunk(size as u64, page as u64);
            found.mapped_added += rounding::added_by_mapping(size as u64, page as u64);
        }
        let end = address.saturating_add(size);
        let mut at = address;
        while at < end {
            // Advice for a part of a block cuts its mapping in two.
            let piece = piece_of(pieces, at);
            let next = (at + SPAN).min(end).min(pieces.get(piece).map_or(end, |piece| piece.end));
            let of_owner = &mut looked[piece].0[owner as usize];
            of_owner.size += (next - at) as u64;
            number += 1;
            if number % every == 0 {
                // Whole pages: the first and the last one belong to the block in part.
                let (low, high) = (at & !(page - 1), next.next_multiple_of(page));
                let missing = resident(low, high).map_or(0, |bytes| (high - low) as u64 - bytes);
                of_owner.untouched += missing.min((next - at) as u64) * every as u64;
            }
            at = next;
        }
    }
    for (index, mut looked) in looked.into_iter().enumerate() {
        let piece = pieces.get(index);
        if let Some(piece) = piece {
            looked.bound(piece);
        }
        match is_in_arena(piece) {
            true => found.untouched_in_arenas += looked.untouched(),
            false => found.untouched_elsewhere += looked.untouched(),
        }
        found.live_untouched += looked.0[Owner::Program as usize].untouched;
        found.own_untouched += looked.0[Owner::Heapgauge as usize].untouched;
    }
    found
}

/// Bytes of one owner's blocks in a mapping, and those that are not in memory.
#[derive(Clone, Copy, Default)]
struct OfOwner {
    size: u64,
    untouched: u64,
}

/// Blocks in a mapping, by [`Owner`].
#[derive(Clone, Copy, Default)]
struct Looked([OfOwner; 3]);

impl Looked {
    fn untouched(&self) -> u64 {
        self.0.iter().map(|owner| owner.untouched).sum()
    }

    /// Bounds the memory of the blocks: they have no more than their mapping, and no less than it has beyond the size of all that
    /// lies beside them. Each owner has its share.
    fn bound(&mut self, piece: &Piece) {
        let size: u64 = self.0.iter().map(|owner| owner.size).sum();
        let beside = ((piece.end - piece.start) as u64).saturating_sub(size);
        let found = size.saturating_sub(self.untouched());
        let bounded = found.max(piece.resident.saturating_sub(beside)).min(piece.resident.min(size));
        let share = |of: u64, part: u64, whole: u64| (of as f64 * part as f64 / whole.max(1) as f64) as u64;
        let untouched = self.untouched();
        for owner in &mut self.0 {
            owner.untouched = match size - bounded {
                more if more > untouched => {
                    owner.size - share(owner.size.saturating_sub(owner.untouched), bounded, found)
                }
                less => share(owner.untouched, less, untouched),
            };
        }
    }
}

fn is_in_arena(piece: Option<&Piece>) -> bool {
    piece.is_some_and(|piece| matches!(piece.class, Class::Heap | Class::Arena))
}

/// Returns the index of the piece in which an address lies; the number of pieces if it is in none.
fn piece_of(pieces: &[Piece], address: usize) -> usize {
    let after = pieces.partition_point(|piece| piece.start <= address);
    match after.checked_sub(1) {
        Some(index) if address < pieces[index].end => index,
        _ => pieces.len(),
    }
}

/// Finds the first block from `start` to `end`.
pub(super) fn first(blocks: &[Block], start: usize, end: usize) -> Option<usize> {
    let at = blocks.partition_point(|(address, ..)| *address < start);
    blocks.get(at).map(|(address, ..)| *address).filter(|address| *address < end)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a piece of which half is in memory.
    fn piece(class: Class, start: usize, end: usize) -> Piece {
        let resident = (end - start) as u64 / 2;
        Piece { class, start, end, resident, anonymous: resident }
    }

    /// Answers as if the first half of each MiB of addresses were in memory.
    fn half(low: usize, high: usize) -> Option<u64> {
        Some((low..high).step_by(4096).filter(|page| page & (1 << 19) == 0).count() as u64 * 4096)
    }

    #[test]
    fn missing_pages_are_counted_where_the_block_lies() {
        let pieces = [piece(Class::Arena, 0x1000_0000, 0x2000_0000)];
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

    /// Pages of zeros that were only read are no memory, and all blocks of a size may look alike where some are looked at.
    #[test]
    fn blocks_have_no_more_and_no_less_memory_than_their_mapping() {
        let (start, end) = (0x10_0000_0000, 0x10_0000_0000 + (8 << 30));
        let blocks: Vec<Block> = (start..end).step_by(SPAN).map(|at| (at, SPAN, Owner::Program)).collect();
        let pieces = [piece(Class::Anonymous, start, end)];
        let every_second = |low: usize, high: usize| {
            Some(if (low / SPAN).is_multiple_of(2) { (high - low) as u64 } else { 0 })
        };
        for resident in [&|low, high| Some((high - low) as u64), &every_second] as [&dyn Fn(_, _) -> _; 2] {
            let found = look_at(&blocks, &pieces, resident);
            assert_eq!((found.live_untouched, found.untouched_elsewhere), (4 << 30, 4 << 30));
        }
        // Each owner has its share, and a block that lies in two mappings a part in each.
        let pieces =
            [piece(Class::Anonymous, 0x10_0000, 0x20_0000), piece(Class::Anonymous, 0x20_0000, 0x60_0000)];
        let blocks = [(0x10_0000, 2 << 20, Owner::Program), (0x30_0000, 3 << 20, Owner::Heapgauge)];
        let found = look_at(&blocks, &pieces, &|low, high| Some((high - low) as u64));
        assert_eq!((found.live_untouched, found.own_untouched), (1 << 20, 3 << 19));
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
