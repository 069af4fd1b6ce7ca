//! Finds the functions at an address as linked, the most recently inlined first, each with file and line.
//!
//! Read side only. It is a reader of heapgauge's own: the cache of the crate `backtrace` belongs to the program,
//! is shared with it, and can only be emptied whole. Here each module has one that is dropped by itself, and that a
//! library loaded later has like those before it. Compressed sections are inflated, which
//! [`ElfImage::lines_cost`](super::elf::ElfImage::lines_cost) counts.
#![forbid(unsafe_code)]

use super::debug_sections::{self, SplitUnits};
use super::module_symbols::SymbolFrame;
use super::section_bytes::SectionBytes;
use addr2line::{Context, FrameIter, LookupContinuation, LookupResult};
use gimli::{AttributeValue, DebugInfoOffset, Reader, UnitOffset, UnitRef, constants as dw};
use std::cell::RefCell;
use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Rows of a line table that are looked at for a line that the compiler left out.
const NEIGHBOURS: usize = 64;

/// Rows of a function that are looked at for the line of an inlined one of its name.
const ROWS_OF_COPY: usize = 256;

/// Bytes on each side of an address that a function of unknown size is assumed to cover.
const AROUND: u64 = 256;

/// Debug information of one module.
pub(super) struct Lines {
    context: Context<SectionBytes>,
    split: SplitUnits,
    /// Place and [`functions`] of the unit that was asked for last: addresses of one unit come together.
    functions: RefCell<Option<(DebugInfoOffset, Functions)>>,
}

/// Functions of a unit: the hash of the name, the beginning as linked and the length of each, sorted.
type Functions = Vec<(u64, u64, u64)>;

impl Lines {
    /// Opens a file. `supplement`: the file that several debug files share, as `dwz` makes it. `package`: the `.dwp`
    /// file.
    pub(super) fn open(path: &Path, supplement: Option<&Path>, package: Option<&Path>) -> Option<Lines> {
        let context = Context::from_dwarf(debug_sections::read(path, supplement)?).ok()?;
        Some(Lines { context, split: SplitUnits::open(package), functions: RefCell::default() })
    }

    /// Returns the frames at an address. `function` is called where a line is missing, for the range of the function
    /// there.
    pub(super) fn frames(
        &self,
        address: u64,
        function: &mut dyn FnMut() -> Option<Range<u64>>,
    ) -> Vec<SymbolFrame> {
        let mut entries = self.entries(address);
        if entries.iter().any(lacks_line) {
            let near = address.saturating_sub(AROUND)..address.saturating_add(AROUND);
            let around = function().unwrap_or(near);
            self.find_lines(&mut entries, address, around);
            self.find_declarations(&mut entries, address);
        }
        entries
    }

    fn entries(&self, address: u64) -> Vec<SymbolFrame> {
        let mut entries = Vec::new();
        let Some(mut frames) = self.inlined(address) else { return entries };
        while let Ok(Some(frame)) = frames.next() {
            let name = frame.function.as_ref().and_then(|function| function.raw_name().ok());
            let location = frame.location.as_ref();
            entries.push(SymbolFrame {
                name: name.map(|name| name.into_owned()),
                file: location.and_then(|location| location.file).map(String::from),
                line: location.and_then(|location| location.line).unwrap_or(0),
                entry: frame.dw_die_offset,
            });
        }
        entries
    }

    /// Returns the frames of an address with the parts of units in other files, as far as they are there.
    fn inlined(&self, address: u64) -> Option<FrameIter<'_, SectionBytes>> {
        self.with_parts(self.context.find_frames(address)).ok()
    }

    /// Returns the beginnings of the copies of an inlined function that were not inlined: functions in the same unit with its name
    /// and with code at its line.
    ///
    /// Where units are split it returns none, because those files have whole names.
    pub(super) fn copies_of(&self, inlined: &SymbolFrame, address: u64) -> Option<Vec<u64>> {
        let unit = self.with_parts(self.context.find_dwarf_and_unit(address))?;
        let place = unit.header.debug_info_offset().filter(|_| unit.dwo_id.is_none())?;
        let mut last = self.functions.borrow_mut();
        let (_, functions) = match last.take().filter(|(of, _)| *of == place) {
            Some(known) => last.insert(known),
            None => last.insert((place, functions(unit).unwrap_or_default())),
        };
        let name = hash(inlined.name.as_ref()?.as_bytes());
        let begin = functions.partition_point(|function| function.0 < name);
        let same_name = functions[begin..].iter().take_while(|function| function.0 == name);
        let ranges = same_name.filter_map(|&(_, begin, length)| Some(begin..begin.checked_add(length)?));
        Some(ranges.filter(|range| self.has_code_at(range, inlined)).map(|range| range.start).collect())
    }

    /// Returns whether a function has code at the line of a frame, or calls a function there that was inlined.
    fn has_code_at(&self, function: &Range<u64>, frame: &SymbolFrame) -> bool {
        let Ok(rows) = self.context.find_location_range(function.start, function.end) else { return false };
        rows.take(ROWS_OF_COPY).any(|(begin, ..)| {
            let entries = self.entries(begin);
            entries.last().is_some_and(|own| own.line == frame.line && own.file == frame.file)
        })
    }

    fn with_parts<L: LookupContinuation<Buf = SectionBytes>>(
        &self,
        mut result: LookupResult<L>,
    ) -> L::Output {
        loop {
            match result {
                LookupResult::Output(output) => return output,
                LookupResult::Load { load, continuation } => {
                    result = continuation.resume(self.split.load(&load));
                }
            }
        }
    }

    /// Gives frames that still lack a line the one that their function is declared at.
    fn find_declarations(&self, entries: &mut [SymbolFrame], address: u64) {
        for entry in entries.iter_mut().filter(|entry| lacks_line(entry)) {
            let unit = self.with_parts(self.context.find_dwarf_and_unit(address));
            let Some((file, line)) = unit.zip(entry.entry).and_then(|(unit, at)| declaration(unit, at))
            else {
                continue;
            };
            entry.file = file.or(entry.file.take());
            entry.line = line;
        }
    }

    /// Gives frames whose line is 0, which marks code that the compiler made, the line of the nearest address at
    /// which the same function has one.
    fn find_lines(&self, entries: &mut [SymbolFrame], address: u64, around: Range<u64>) {
        let Ok(rows) = self.context.find_location_range(around.start, around.end) else { return };
        let mut places: Vec<u64> =
            rows.map(|(begin, ..)| begin).filter(|begin| around.contains(begin)).collect();
        places.sort_by_key(|place| place.abs_diff(address));
        places.dedup();
        for place in places.into_iter().take(NEIGHBOURS) {
            if !entries.iter().any(lacks_line) {
                return;
            }
            let near = self.entries(place);
            for entry in entries.iter_mut().filter(|entry| lacks_line(entry)) {
                let same = |other: &&SymbolFrame| other.entry == entry.entry && other.line > 0;
                if let Some(other) = near.iter().find(same) {
                    entry.file.clone_from(&other.file);
                    entry.line = other.line;
                }
            }
        }
    }
}

fn lacks_line(frame: &SymbolFrame) -> bool {
    frame.line == 0 && frame.entry.is_some()
}

fn hash(name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(name);
    hasher.finish()
}

/// Reads the functions of a unit that were not inlined.
fn functions(unit: UnitRef<'_, SectionBytes>) -> Option<Functions> {
    let mut found = Functions::new();
    let mut entries = unit.entries_raw(None).ok()?;
    while !entries.is_empty() {
        let Some(abbreviation) = entries.read_abbreviation().ok()? else { continue };
        if abbreviation.tag() != dw::DW_TAG_subprogram {
            entries.skip_attributes(abbreviation.attributes()).ok()?;
            continue;
        }
        let (mut name, mut begin, mut length) = (None, None, None);
        for attribute in abbreviation.attributes() {
            let attribute = entries.read_attribute(*attribute).ok()?;
            match (attribute.name(), attribute.value()) {
                (dw::DW_AT_name, value) => name = unit.attr_string(value).ok(),
                // It was inlined elsewhere, and both refer to one entry.
                (dw::DW_AT_abstract_origin, AttributeValue::UnitRef(of)) => {
                    let of = unit.entry(of).ok().and_then(|of| of.attr_value(dw::DW_AT_name));
                    name = of.and_then(|name| unit.attr_string(name).ok());
                }
                (dw::DW_AT_low_pc, value) => begin = unit.attr_address(value).ok()?,
                (dw::DW_AT_high_pc, value) => length = value.udata_value(),
                _ => {}
            }
        }
        if let (Some(name), Some(begin), Some(length)) = (name, begin, length) {
            found.push((hash(&name.to_slice().ok()?), begin, length));
        }
    }
    found.sort_unstable();
    Some(found)
}

/// Returns file and line of a function's declaration; debug information of lines alone has none.
fn declaration(unit: UnitRef<'_, SectionBytes>, at: UnitOffset) -> Option<(Option<String>, u32)> {
    let mut at = at;
    // Inlined code refers to its function, and that to its declaration.
    for _ in 0..4 {
        let entry = unit.entry(at).ok()?;
        if let Some(line) = entry.attr_value(dw::DW_AT_decl_line).and_then(|line| line.udata_value())
            && line > 0
        {
            let file = match entry.attr_value(dw::DW_AT_decl_file) {
                Some(AttributeValue::FileIndex(file)) => declared_in(unit, file),
                _ => None,
            };
            return Some((file, u32::try_from(line).ok()?));
        }
        let of = [dw::DW_AT_abstract_origin, dw::DW_AT_specification];
        match of.into_iter().find_map(|name| entry.attr_value(name))? {
            AttributeValue::UnitRef(of) => at = of,
            _ => return None,
        }
    }
    None
}

/// Returns the path of a file by its number, as the rows of the line table have it.
fn declared_in(unit: UnitRef<'_, SectionBytes>, file: u64) -> Option<String> {
    let header = unit.line_program.as_ref()?.header();
    let file = header.file(file)?;
    let mut path = PathBuf::new();
    if let Some(directory) = &unit.comp_dir {
        path.push(&*directory.to_string_lossy().ok()?);
    }
    if file.directory_index() != 0
        && let Some(directory) = file.directory(header)
    {
        path.push(&*unit.attr_string(directory).ok()?.to_string_lossy().ok()?);
    }
    path.push(&*unit.attr_string(file.path_name()).ok()?.to_string_lossy().ok()?);
    Some(path.to_str()?.to_owned())
}

#[cfg(all(test, target_pointer_width = "64", target_endian = "little"))]
mod tests {
    use super::*;
    use crate::analyze::symbols::fuzz::{Section, Temporary, elf};
    use gimli::constants as dw;

    /// Writes an ELF file in DWARF 4: functions by address and line of declaration, each 256 bytes long, and rows of a line table.
    fn file(functions: &[(&str, u64, u8)], rows: &[(u64, u8)]) -> Vec<u8> {
        let attribute = |name: gimli::DwAt, form: gimli::DwForm| [name.0 as u8, form.0 as u8];
        let place =
            [attribute(dw::DW_AT_low_pc, dw::DW_FORM_addr), attribute(dw::DW_AT_high_pc, dw::DW_FORM_data4)];
        let name = attribute(dw::DW_AT_name, dw::DW_FORM_string);
        let lines = attribute(dw::DW_AT_stmt_list, dw::DW_FORM_sec_offset);
        let mut abbreviations = vec![1, dw::DW_TAG_compile_unit.0 as u8, 1];
        abbreviations.extend([name, lines, place[0], place[1], [0, 0]].as_flattened());
        abbreviations.extend([2, dw::DW_TAG_subprogram.0 as u8, 0]);
        let declared = [
            attribute(dw::DW_AT_decl_file, dw::DW_FORM_data1),
            attribute(dw::DW_AT_decl_line, dw::DW_FORM_data1),
        ];
        let function = [name, place[0], place[1], declared[0], declared[1], [0, 0], [0, 0]];
        abbreviations.extend(function.as_flattened());

        let mut info = vec![4, 0, 0, 0, 0, 0, 8, 1];
        info.extend(b"src/a.rs\0\0\0\0\0");
        info.extend(functions[0].1.to_le_bytes());
        info.extend((256 * functions.len() as u32).to_le_bytes());
        for (name, low, declared) in functions {
            info.push(2);
            info.extend(name.bytes().chain([0]));
            info.extend(low.to_le_bytes().iter().chain(&256u32.to_le_bytes()).chain(&[1, *declared]));
        }
        info.push(0);

        // Length of an instruction, a statement by default, and the lengths of the standard operations.
        let mut head = vec![1, 1, 1, 0xfb, 14, 13, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1];
        // No directory, one file.
        head.extend(b"\0a.rs\0\0\0\0\0");
        let mut table = vec![4, 0];
        table.extend((head.len() as u32).to_le_bytes());
        table.extend(head);
        let mut before = 1;
        for (address, line) in rows {
            table.extend([0, 9, dw::DW_LNE_set_address.0]);
            table.extend(address.to_le_bytes());
            table.push(dw::DW_LNS_advance_line.0);
            // A signed number of seven bits.
            table.push(((*line as i8 - before) & 0x7f) as u8);
            table.push(dw::DW_LNS_copy.0);
            before = *line as i8;
        }
        table.extend([dw::DW_LNS_advance_pc.0, 16, 0, 1, dw::DW_LNE_end_sequence.0]);

        let section = |name, bytes: Vec<u8>, has_length: bool| {
            let length = (bytes.len() as u32).to_le_bytes();
            let bytes = if has_length { [&length[..], &bytes].concat() } else { bytes };
            Section { name, kind: object::elf::SHT_PROGBITS.0, link: 0, bytes }
        };
        elf(&[
            section(".debug_abbrev", abbreviations, false),
            section(".debug_info", info, true),
            section(".debug_line", table, true),
        ])
    }

    /// The compiler gives line 0 to code of its own making.
    #[test]
    fn a_row_of_line_0_has_the_nearest_line_of_its_function() {
        let functions =
            [("first", 0x1000, 8), ("second", 0x1100, 38), ("third", 0x1200, 51), ("fourth", 0x1300, 0)];
        let rows = [
            (0x1000, 10),
            (0x1010, 0),
            (0x1018, 12),
            (0x1060, 0),
            (0x10f0, 14),
            (0x1100, 0),
            (0x1180, 40),
            (0x1200, 0),
            (0x1300, 0),
        ];
        let path = Temporary::new("line-0");
        std::fs::write(&path.0, file(&functions, &rows)).unwrap();
        let lines = Lines::open(&path.0, None, None).unwrap();
        let at = |address: u64| {
            let begin = address & !0xff;
            let found = lines.frames(address, &mut || Some(begin..begin + 0x100));
            assert_eq!(found.len(), 1, "{address:#x}");
            assert_eq!(found[0].file.as_deref(), Some("a.rs"));
            (found[0].name.clone().unwrap(), found[0].line)
        };
        let named = |name: &str, line| (name.to_owned(), line);
        assert_eq!(at(0x1004), named("first", 10));
        assert_eq!(at(0x1012), named("first", 12), "behind it, and nearer than line 10");
        assert_eq!(at(0x1062), named("first", 12), "before it");
        // The nearest row is that of another function.
        assert_eq!(at(0x1104), named("second", 40));
        assert_eq!(at(0x1204), named("third", 51), "no row of it has a line: that of its declaration");
        assert_eq!(at(0x1304), named("fourth", 0), "not even that");
    }
}
