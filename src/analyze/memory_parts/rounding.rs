//! Estimates the bytes that glibc adds to the blocks, from live counts by stack: headers, tags and rounding.
//!
//! glibc does not say. Its rule is known, but of each stack only the number of live blocks and their sum are: where all
//! blocks of a stack have one size, the result is exact; where sizes differ, rounding adds 7.5 bytes a block on average, and
//! each block is off by that at most.
#![forbid(unsafe_code)]

use crate::record::raw_snapshot::{Counts, RawStack, StackSink};

/// Bytes of heapgauge's tag behind a block below [`LARGE`].
const TAG: u64 = 4;
const LARGE: u64 = 1 << 10;
/// Header of a chunk that is in use, its alignment and its least size.
const HEADER: u64 = size_of::<usize>() as u64;
const ALIGN: u64 = 2 * HEADER;
const LEAST: u64 = 4 * HEADER;

/// Returns the size of the chunk of a block of so many bytes, tag included.
fn chunk(block: u64) -> u64 {
    (block + HEADER).next_multiple_of(ALIGN).max(LEAST)
}

/// Returns the bytes that a block which is a mapping of its own takes, beyond its chunk in an arena.
pub(super) fn added_by_mapping(block: u64, page: u64) -> u64 {
    (chunk(block) + HEADER).next_multiple_of(page) - chunk(block)
}

/// Returns the size of the mapping of a block that is one.
pub(super) fn mapped_chunk(block: u64, page: u64) -> u64 {
    (chunk(block) + HEADER).next_multiple_of(page)
}

/// Estimates the bytes that are added to so many blocks of so many bytes together.
pub(super) fn added(bytes: u64, blocks: u64) -> u64 {
    if blocks == 0 {
        return 0;
    }
    let mean = bytes / blocks;
    let tag = if mean < LARGE { TAG } else { 0 };
    if bytes.is_multiple_of(blocks) {
        return (chunk(mean + tag) - mean).saturating_mul(blocks);
    }
    let mean = bytes as f64 / blocks as f64;
    let rounded = mean + (tag + HEADER) as f64 + (ALIGN - 1) as f64 / 2.0;
    ((rounded.max(LEAST as f64) - mean) * blocks as f64) as u64
}

/// Sums over the stacks of a snapshot, without keeping any.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AddedSum {
    pub bytes: u64,
}

impl AddedSum {
    pub(super) fn add(&mut self, counts: Counts) {
        self.bytes += added(counts.live_bytes(), counts.live_blocks());
    }
}

impl StackSink for AddedSum {
    fn begin(&mut self, _most: usize) {
        *self = AddedSum::default();
    }

    fn add(&mut self, stack: RawStack, _packed: &[u8]) {
        AddedSum::add(self, stack.counts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::splitmix::mix;

    /// Asks glibc for the size of the chunk of a block.
    #[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64", not(miri)))]
    #[test]
    fn the_rule_is_that_of_glibc() {
        use crate::record::c_malloc::usable_size;
        for block in (1..=3_000).chain([100_000, 131_064, 131_065, 200_000, 1_000_000]) {
            let in_arena = chunk(block) - HEADER;
            let mapped = mapped_chunk(block, 4096) - 2 * HEADER;
            let is_right =
                |usable: usize| usable as u64 == in_arena || (block > 100_000 && usable as u64 == mapped);
            let usable = usable_size(block as usize, is_right);
            assert!(is_right(usable), "{block}: {usable}");
        }
    }

    #[test]
    fn blocks_of_one_size_are_exact() {
        for (size, expected) in
            [(0, 32), (1, 31), (20, 12), (21, 27), (100, 12), (1_020, 20), (1_024, 16), (65_528, 8)]
        {
            assert_eq!(added(size * 1_000, 1_000), expected * 1_000, "{size} bytes");
        }
        assert_eq!(added(0, 0), 0);
    }

    /// The documentation says how far off the estimate may be.
    #[test]
    fn blocks_of_many_sizes_are_off_by_less_than_a_byte_on_average_and_by_twelve_at_most() {
        let (mut worst, mut sum, mut blocks_of_all) = (0.0_f64, 0.0, 0.0);
        for stack in 0..2_000_u64 {
            let (low, spread) = (24 + mix(stack) % 900, 1 + mix(stack ^ 1) % 300);
            let blocks = 2 + mix(stack ^ 2) % 500;
            let sizes = (0..blocks).map(|block| low + mix(stack << 32 | block) % spread);
            let (bytes, truth) = sizes.fold((0, 0), |(bytes, truth), size| {
                let tag = if size < LARGE { TAG } else { 0 };
                (bytes + size, truth + chunk(size + tag) - size)
            });
            let off = added(bytes, blocks) as f64 - truth as f64;
            worst = worst.max(off.abs() / blocks as f64);
            sum += off;
            blocks_of_all += blocks as f64;
        }
        assert!(worst < 12.0, "{worst} bytes a block");
        assert!((sum / blocks_of_all).abs() < 1.0, "{} bytes a block on average", sum / blocks_of_all);
    }
}
