//! Inflates the symbols that distributions leave in a stripped file: an ELF file of its own, compressed by xz, in the section
//! `.gnu_debugdata`.
//!
//! Read side only. The container is read here and its checksums are passed over: a damaged file gives fewer names.
#![forbid(unsafe_code)]

use super::dwarf_units::read;
use lzma_rust2::Lzma2Reader;
use std::fs::File;
use std::io::Read;

/// Bytes of the header and of the footer of a stream.
const HEAD: u64 = 12;

/// Largest index that is read, which is of some thousand blocks; usually there is one.
const LARGEST_INDEX: u64 = 64 << 10;

/// Bytes beyond which it is not read: a table of symbols takes no more.
const LARGEST: u64 = 256 << 20;

/// Number of the filter of LZMA2, the only one that programs for this purpose use.
const LZMA2: u8 = 0x21;

/// Compressed file inside another one.
#[derive(Clone, Debug)]
pub(super) struct MiniDebugInfo {
    /// Position of the section in the file.
    at: u64,
    blocks: Vec<Block>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Block {
    /// Bytes in the file, without those that fill up to four.
    stored: u64,
    inflated: u64,
}

impl MiniDebugInfo {
    /// Reads the index of a section of `size` bytes at `at`; `None` if there is none.
    pub(super) fn open(file: &File, at: u64, size: u64) -> Option<MiniDebugInfo> {
        let end = size.checked_sub(HEAD)?;
        let footer = read(file, at.checked_add(end)?, HEAD as usize)?;
        if !footer.ends_with(b"YZ") {
            return None;
        }
        let length = (u64::from(u32::from_le_bytes(*footer[4..].first_chunk()?)) + 1) * 4;
        let begin = end.checked_sub(length).filter(|_| length <= LARGEST_INDEX)?;
        let index = read(file, at.checked_add(begin)?, usize::try_from(length).ok()?)?;
        let blocks = blocks(&index)?;
        let stored = blocks.iter().try_fold(HEAD, |sum, block| sum.checked_add(block.length()?))?;
        let mini = MiniDebugInfo { at, blocks };
        (stored == begin && mini.cost() <= LARGEST).then_some(mini)
    }

    /// Returns the bytes that [`inflate`](MiniDebugInfo::inflate) takes, at most.
    pub(super) fn cost(&self) -> u64 {
        let sizes =
            self.blocks.iter().map(|block| block.inflated.saturating_mul(2).saturating_add(block.stored));
        sizes.fold(0, u64::saturating_add)
    }

    /// Inflates the file; `None` if it is damaged, or compressed in another way.
    pub(super) fn inflate(&self, file: &File) -> Option<Vec<u8>> {
        let size = self.blocks.iter().try_fold(0u64, |sum, block| sum.checked_add(block.inflated))?;
        let mut inflated = Vec::new();
        inflated.try_reserve_exact(usize::try_from(size).ok()?).ok()?;
        let mut at = self.at.checked_add(HEAD)?;
        for block in &self.blocks {
            // The file had room for it when its index was read.
            let stored = read(file, at, usize::try_from(block.stored).ok()?)?;
            let head = (usize::from(*stored.first()?) + 1) * 4;
            // A window beyond the block would hold nothing.
            let window = u64::from(window(stored.get(..head)?)?).min(block.inflated).max(4096);
            let data = stored.get(head..)?;
            let reader = Lzma2Reader::new(data, u32::try_from(window).ok()?, None);
            let end = inflated.len() + usize::try_from(block.inflated).ok()?;
            reader.take(block.inflated).read_to_end(&mut inflated).ok()?;
            if inflated.len() != end {
                return None;
            }
            at = at.checked_add(block.length()?)?;
        }
        Some(inflated)
    }
}

impl Block {
    /// Returns its length in the file.
    fn length(&self) -> Option<u64> {
        self.stored.checked_next_multiple_of(4)
    }
}

/// Parses the index of a stream.
fn blocks(index: &[u8]) -> Option<Vec<Block>> {
    let mut rest = index.strip_prefix(&[0])?;
    let count = number(&mut rest)?;
    // Each takes two bytes at least.
    if count > index.len() as u64 / 2 {
        return None;
    }
    (0..count).map(|_| Some(Block { stored: number(&mut rest)?, inflated: number(&mut rest)? })).collect()
}

/// Parses the head of a block, and returns the size of its window.
fn window(head: &[u8]) -> Option<u32> {
    let [_, flags, rest @ ..] = head else { return None };
    let mut rest = rest;
    // Its sizes, which the index has, too.
    for flag in [0x40, 0x80] {
        if flags & flag != 0 {
            number(&mut rest)?;
        }
    }
    match (flags & 3, rest) {
        (0, [LZMA2, 1, bits @ 0..=39, ..]) => Some((2 | u32::from(bits & 1)) << (bits / 2 + 11)),
        (0, [LZMA2, 1, 40, ..]) => Some(u32::MAX),
        _ => None,
    }
}

/// Reads a number of seven bits a byte, the lowest first.
fn number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for place in 0..9 {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(all(test, target_pointer_width = "64", target_endian = "little"))]
mod tests {
    use super::*;
    use crate::analyze::symbols::fuzz::Temporary;
    use crate::base::random_input::{Random, inputs};

    // `heapgauge ` forty times, by `xz -9`; `xz --check=sha256 --block-size=150`; `xz -T2 --check=none`; `xz --x86 --lzma2`.
    const ONE_BLOCK: &[u8] = &[
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x04, 0xe6, 0xd6, 0xb4, 0x46, 0x02, 0x00, 0x21, 0x01, 0x1c,
        0x00, 0x00, 0x00, 0x10, 0xcf, 0x58, 0xcc, 0xe0, 0x01, 0x8f, 0x00, 0x12, 0x5d, 0x00, 0x34, 0x19, 0x48,
        0x49, 0x77, 0x61, 0xd7, 0xe6, 0x85, 0xec, 0xb0, 0x96, 0x4f, 0x14, 0xfc, 0x15, 0x78, 0x00, 0x00, 0x00,
        0x00, 0x32, 0x49, 0x62, 0xb8, 0xde, 0xd7, 0x1c, 0x00, 0x00, 0x01, 0x2e, 0x90, 0x03, 0x00, 0x00, 0x00,
        0x65, 0x38, 0x40, 0x3d, 0xb1, 0xc4, 0x67, 0xfb, 0x02, 0x00, 0x00, 0x00, 0x00, 0x04, 0x59, 0x5a,
    ];
    const THREE_BLOCKS: &[u8] = &[
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x0a, 0xe1, 0xfb, 0x0c, 0xa1, 0x02, 0x00, 0x21, 0x01, 0x16,
        0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0xe0, 0x00, 0x95, 0x00, 0x11, 0x5d, 0x00, 0x34, 0x19, 0x48,
        0x49, 0x77, 0x61, 0xd7, 0xe6, 0x85, 0xec, 0xb0, 0x6d, 0x81, 0x1f, 0x04, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x00, 0x0d, 0xaa, 0xfa, 0x7d, 0x27, 0xae, 0xb4, 0x30, 0x4f, 0xd3, 0x50, 0x1f, 0x27, 0xdf, 0x19, 0xec,
        0x01, 0x7b, 0xb8, 0x7f, 0xcb, 0xc9, 0xa4, 0x58, 0x49, 0x2e, 0xcf, 0x6b, 0x21, 0x36, 0xd6, 0xf0, 0x02,
        0x00, 0x21, 0x01, 0x16, 0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0xe0, 0x00, 0x95, 0x00, 0x11, 0x5d,
        0x00, 0x34, 0x19, 0x48, 0x49, 0x77, 0x61, 0xd7, 0xe6, 0x85, 0xec, 0xb0, 0x6d, 0x81, 0x1f, 0x04, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x0d, 0xaa, 0xfa, 0x7d, 0x27, 0xae, 0xb4, 0x30, 0x4f, 0xd3, 0x50, 0x1f,
        0x27, 0xdf, 0x19, 0xec, 0x01, 0x7b, 0xb8, 0x7f, 0xcb, 0xc9, 0xa4, 0x58, 0x49, 0x2e, 0xcf, 0x6b, 0x21,
        0x36, 0xd6, 0xf0, 0x02, 0x00, 0x21, 0x01, 0x16, 0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0xe0, 0x00,
        0x63, 0x00, 0x11, 0x5d, 0x00, 0x34, 0x19, 0x48, 0x49, 0x77, 0x61, 0xd7, 0xe6, 0x85, 0xec, 0xb0, 0x5e,
        0x2a, 0x2b, 0x04, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x83, 0x3d, 0x8c, 0xc8, 0x70, 0x14, 0xc0, 0xa3,
        0x9c, 0x2f, 0xb9, 0xaa, 0x78, 0x6c, 0x61, 0x40, 0x81, 0xd4, 0xd2, 0x64, 0xd5, 0xbe, 0x15, 0xfa, 0xa1,
        0xca, 0x79, 0x94, 0x2f, 0x1e, 0xac, 0xe2, 0x00, 0x03, 0x45, 0x96, 0x01, 0x45, 0x96, 0x01, 0x45, 0x64,
        0x00, 0x00, 0x63, 0x1a, 0xf9, 0xec, 0x13, 0x3a, 0x83, 0xd7, 0x03, 0x00, 0x00, 0x00, 0x00, 0x0a, 0x59,
        0x5a,
    ];
    const WITH_SIZES: &[u8] = &[
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x00, 0xff, 0x12, 0xd9, 0x41, 0x04, 0xc0, 0x1a, 0x90, 0x03,
        0x21, 0x01, 0x16, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x0c, 0x3b, 0x8a, 0x1c, 0xe0, 0x01,
        0x8f, 0x00, 0x12, 0x5d, 0x00, 0x34, 0x19, 0x48, 0x49, 0x77, 0x61, 0xd7, 0xe6, 0x85, 0xec, 0xb0, 0x96,
        0x4f, 0x14, 0xfc, 0x15, 0x78, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x2e, 0x90, 0x03, 0x00, 0x00, 0x00,
        0x65, 0x38, 0x40, 0x3d, 0xa8, 0x00, 0x0a, 0xfc, 0x02, 0x00, 0x00, 0x00, 0x00, 0x00, 0x59, 0x5a,
    ];
    const OTHER_FILTER: &[u8] = &[
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x04, 0xe6, 0xd6, 0xb4, 0x46, 0x02, 0x01, 0x04, 0x00, 0x21,
        0x01, 0x16, 0x00, 0x0d, 0x86, 0x35, 0x1f, 0xe0, 0x01, 0x8f, 0x00, 0x12, 0x5d, 0x00, 0x34, 0x19, 0x48,
        0x49, 0x77, 0x61, 0xd7, 0xe6, 0x85, 0xec, 0xb0, 0x96, 0x4f, 0x14, 0xfc, 0x15, 0x78, 0x00, 0x00, 0x00,
        0x00, 0x32, 0x49, 0x62, 0xb8, 0xde, 0xd7, 0x1c, 0x00, 0x00, 0x01, 0x2e, 0x90, 0x03, 0x00, 0x00, 0x00,
        0x65, 0x38, 0x40, 0x3d, 0xb1, 0xc4, 0x67, 0xfb, 0x02, 0x00, 0x00, 0x00, 0x00, 0x04, 0x59, 0x5a,
    ];

    /// Inflates a section that begins at the third byte of a file.
    fn inflated(file: &Temporary, section: &[u8]) -> Option<Vec<u8>> {
        std::fs::write(&file.0, [b"..", section].concat()).unwrap();
        let opened = File::open(&file.0).unwrap();
        let mini = MiniDebugInfo::open(&opened, 2, section.len() as u64)?;
        assert!(mini.blocks.len() < 4000);
        (mini.cost() < 1 << 20).then(|| mini.inflate(&opened)).flatten()
    }

    #[test]
    fn what_xz_has_compressed_is_there_again() {
        let file = Temporary::new("xz");
        for section in [ONE_BLOCK, THREE_BLOCKS, WITH_SIZES] {
            assert_eq!(inflated(&file, section).as_deref(), Some(&*b"heapgauge ".repeat(40)));
        }
        // A filter for code, which none of these files has.
        assert_eq!(inflated(&file, OTHER_FILTER), None);
        for length in 0..THREE_BLOCKS.len() {
            assert_eq!(inflated(&file, &THREE_BLOCKS[..length]), None, "{length}");
        }
    }

    #[test]
    fn what_is_damaged_comes_to_an_end() {
        let file = Temporary::new("damaged-xz");
        let mut random = Random::new();
        let mut changed = 0;
        for _ in 0..inputs(1_000) {
            let mut section = random.one(&[ONE_BLOCK, THREE_BLOCKS, WITH_SIZES]).to_vec();
            for _ in 0..=random.below(3) {
                let at = random.below(section.len());
                section[at] = random.edge() as u8;
            }
            changed += usize::from(inflated(&file, &section).is_none());
        }
        assert!(changed > 100, "{changed}");
    }
}
