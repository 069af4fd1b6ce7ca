//! Finds the start of a function in the sorted table in front of a module's unwind rules.
//!
//! Read side only; a look-up reads some 15 times 8 bytes of the file. `gimli` searches a section that is in memory as a whole, and adds
//! without a check for overflow.
#![forbid(unsafe_code)]

use super::dwarf_units::read;
use super::elf::file_bytes::FileBytes;
use super::elf::{Elf, linked_low};
use super::loaded_modules::Module;
use super::module_file;
use object::elf;
use object::read::elf::ProgramHeader;
use std::fs::File;

/// Sorted table of functions in a module's `.eh_frame_hdr`. Every module with unwind rules has it, and no tool that
/// strips takes it away.
pub(super) struct UnwindTable {
    file: File,
    bias: usize,
    /// Address as linked from which the table counts, offset of its first pair in the file, number of pairs.
    header: u64,
    pairs: u64,
    count: u64,
    /// Segments: address as linked, bytes in the file, offset in the file.
    segments: Vec<(u64, u64, u64)>,
}

impl UnwindTable {
    pub(super) fn open(module: &Module) -> Option<UnwindTable> {
        let file = File::open(module_file::of(module)?).ok()?;
        let bytes = FileBytes::of(&file)?;
        let elf = Elf::parse(&bytes).ok()?;
        let endian = elf.endian();
        let bias = module.low.wrapping_sub(linked_low(&elf)? as usize);
        let segments = elf.elf_program_headers();
        let header = segments.iter().find(|segment| segment.p_type(endian) == elf::PT_GNU_EH_FRAME)?;
        let loaded = segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_LOAD);
        let loaded = loaded
            .map(|segment| (segment.p_vaddr(endian), segment.p_filesz(endian), segment.p_offset(endian)));
        // Version; addresses from here, a count, and a sorted table of pairs from the header on, of 4 bytes each.
        let head = read(&file, header.p_offset(endian), 12)?;
        let (form, count) = (head.get(..4)?, head.get(8..)?.first_chunk::<4>()?);
        (form == [1, 0x1b, 0x03, 0x3b]).then(|| UnwindTable {
            bias,
            header: header.p_vaddr(endian),
            pairs: header.p_offset(endian).saturating_add(12),
            count: u64::from(u32::from_ne_bytes(*count)),
            segments: loaded.collect(),
            file,
        })
    }

    pub(super) fn linked(&self, address: usize) -> u64 {
        address.wrapping_sub(self.bias) as u64
    }

    /// Returns the start, as linked, of the function that holds an address of the running process.
    pub(super) fn start(&self, address: usize) -> Option<u64> {
        let address = self.linked(address);
        let from_header =
            |bytes: [u8; 4]| self.header.wrapping_add_signed(i64::from(i32::from_ne_bytes(bytes)));
        let pair = |number: u64| -> Option<(u64, u64)> {
            let pair = read(&self.file, self.pairs.checked_add(number.checked_mul(8)?)?, 8)?;
            let (start, description) = (pair.first_chunk::<4>()?, pair.last_chunk::<4>()?);
            Some((from_header(*start), from_header(*description)))
        };
        let (mut first, mut end) = (0, self.count);
        while first < end {
            let middle = first + (end - first) / 2;
            if pair(middle)?.0 <= address { first = middle + 1 } else { end = middle }
        }
        let (start, description) = pair(first.checked_sub(1)?)?;
        // Length, distance to the part shared with others, start of the function relative to here, and its length.
        let &(segment, size, place) = self
            .segments
            .iter()
            .find(|(segment, size, _)| description.checked_sub(*segment).is_some_and(|at| at < *size))?;
        debug_assert!(description - segment < size);
        let bytes = read(&self.file, place.checked_add(description - segment)?, 16)?;
        let word = |at: usize| bytes.get(at..)?.first_chunk::<4>().copied();
        let begins = description.wrapping_add(8).wrapping_add_signed(i64::from(i32::from_ne_bytes(word(8)?)));
        let length = u64::from(u32::from_ne_bytes(word(12)?));
        (begins == start && address - start < length).then_some(start)
    }
}
