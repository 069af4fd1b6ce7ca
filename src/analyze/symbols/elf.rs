//! Reads from executables and shared libraries the data that names are made from: the directories their crates were
//! compiled in, line tables, the symbols of whole functions, the build id.
//!
//! Read side only. Files are mapped for a moment, and never read whole: of a 35 MB executable this touches
//! the section headers, the head of each compilation unit and, while a batch lasts, the symbol table. Whatever
//! is missing or malformed gives `None` or less, never an error: names are then poorer, not wrong.
#![forbid(unsafe_code)]

pub(super) mod file_bytes;

use super::debug_files;
use super::debug_sections;
use super::dwarf_units::{Section, UnitSections, Units, read_some};
use super::lines::Lines;
use super::loaded_modules::Module;
use super::mini_debug_info::MiniDebugInfo;
use super::module_file;
use file_bytes::FileBytes;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, SectionTable, Sym};
use object::{Endianness, Object, ObjectSection, ReadRef, elf};
use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

#[cfg(target_pointer_width = "64")]
pub(super) type Header = elf::FileHeader64<Endianness>;
#[cfg(target_pointer_width = "32")]
pub(super) type Header = elf::FileHeader32<Endianness>;
pub(super) type Elf<'a> = object::read::elf::ElfFile<'a, Header, &'a FileBytes>;

/// File that holds a module's names: the module's own or its separate debug file.
pub(super) struct ElfImage {
    file: Rc<File>,
    path: PathBuf,
    /// File that it shares names with.
    supplement: Option<PathBuf>,
    /// The `.dwp` file, which has the name of the executable or of its separate debug file.
    package: Option<PathBuf>,
    linked_low: u64,
    sections: UnitSections,
    /// See [`ElfImage::lines_cost`].
    cost: u64,
    /// Bytes of the table of symbols.
    symbols: u64,
    /// Symbols that a file without such a table keeps compressed.
    mini: Option<MiniDebugInfo>,
    /// Bytes of the file.
    length: u64,
}

impl ElfImage {
    pub(super) fn open(module: &Module) -> Option<ElfImage> {
        let mut path = module_file::of(module)?;
        let mut file = File::open(&path).ok()?;
        let (linked_low, debug) = {
            let bytes = FileBytes::of(&file)?;
            let elf = Elf::parse(&bytes).ok()?;
            (linked_low(&elf)?, debug_files::separate(&elf, &module.path))
        };
        if let Some(debug) = debug
            && let Ok(opened) = File::open(&debug)
        {
            (path, file) = (debug, opened);
        }
        let file = Rc::new(file);
        let bytes = FileBytes::of(&file)?;
        let elf = Elf::parse(&bytes).ok()?;
        let section = |name: &str| {
            let mut sections = elf.sections();
            let section = sections.find(|section| section.name().is_ok_and(|own| standard(own) == name))?;
            Some(Section::of(section.compressed_file_range().ok()?))
        };
        let size = |name: &str| elf.section_by_name(name).map_or(0, |section| section.size());
        let sections = UnitSections {
            file: Rc::clone(&file),
            endian: match elf.endian() {
                Endianness::Little => gimli::RunTimeEndian::Little,
                Endianness::Big => gimli::RunTimeEndian::Big,
            },
            info: section(".debug_info"),
            abbreviations: section(".debug_abbrev"),
            strings: section(".debug_str"),
            line_strings: section(".debug_line_str"),
            string_offsets: section(".debug_str_offsets"),
        };
        let mini = elf.section_by_name(".gnu_debugdata").filter(|_| size(".symtab") == 0);
        let mini = mini.and_then(|section| section.file_range());
        Some(ElfImage {
            linked_low,
            mini: mini.and_then(|(at, size)| MiniDebugInfo::open(&file, at, size)),
            supplement: debug_files::supplement(&elf, &path),
            package: debug_files::package(&path).or_else(|| debug_files::package(&module.path)),
            path,
            // Lines are of no use without the directories of the units.
            cost: cost(&elf).max(sections.cost()),
            sections,
            length: file.metadata().ok()?.len(),
            symbols: size(".symtab").max(size(".dynsym")),
            file,
        })
    }

    /// Opens its line tables; `None` where it has none.
    pub(super) fn lines(&self) -> Option<Lines> {
        self.sections.info.as_ref()?;
        Lines::open(&self.path, self.supplement.as_deref(), self.package.as_deref())
    }

    /// Returns the bytes that opening the line tables takes, before the first address is looked up: an estimate.
    pub(super) fn lines_cost(&self) -> u64 {
        self.cost
    }

    /// Returns the bytes of address space that it takes to map the file.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Returns the bytes that [`functions`](ElfImage::functions) takes, at most.
    pub(super) fn functions_cost(&self) -> u64 {
        let compressed = self.mini.as_ref().map_or(0, MiniDebugInfo::cost);
        let symbols = self.symbols / size_of::<<Header as FileHeader>::Sym>() as u64;
        (symbols * size_of::<(u64, u32, u32)>() as u64).saturating_add(compressed)
    }

    /// Returns the difference between an address of the running process and the address as linked.
    pub(super) fn bias(&self, module: &Module) -> usize {
        module.low.wrapping_sub(self.linked_low as usize)
    }

    /// Returns `DW_AT_comp_dir` and `DW_AT_name` of every Rust compilation unit, each pair once.
    ///
    /// Reads about a kilobyte a unit: 2,000 units take some milliseconds. Compressed sections are inflated for it, and the
    /// files of split units opened, where `room` is enough.
    pub(super) fn units(&self, room: u64) -> Units {
        let units = self.sections.units(room);
        if !units.is_split {
            return units;
        }
        if self.cost > room {
            return Units { lacks_room: true, ..units };
        }
        match debug_sections::split_units(&self.path, self.package.as_deref()) {
            Some((parts, lacks_parts)) => {
                let found = units.found.into_iter().chain(parts).collect();
                Units { found, lacks_parts, ..units }
            }
            None => Units { lacks_parts: true, ..units },
        }
    }

    /// Returns the bytes that [`units`](ElfImage::units) takes for compressed sections, at most.
    pub(super) fn units_cost(&self) -> u64 {
        self.sections.cost()
    }

    /// Returns whether functions have names, not only those that the file exports. Stores none of them.
    pub(super) fn has_functions(&self) -> bool {
        match self.mini {
            Some(_) => self.functions().are_known(),
            None => self.count_functions().is_some_and(|count| count > 0),
        }
    }

    /// Counts the functions in the whole table of symbols; `None` where there is none.
    fn count_functions(&self) -> Option<usize> {
        let bytes = FileBytes::of(&self.file)?;
        let header = Header::parse(&bytes).ok()?;
        let endian = header.endian().ok()?;
        let sections = header.sections(endian, &bytes).ok()?;
        let range = table(&sections, endian, elf::SHT_SYMTAB)?.file_range(endian)?;
        let mut count = 0;
        each_function(&Names::InFile(self.file.try_clone().ok()?), range, endian, |_| count += 1)?;
        Some(count)
    }

    /// Reads the symbols of all functions, from `.symtab`; in a stripped file those that it exports, or keeps compressed.
    pub(super) fn functions(&self) -> FunctionTable {
        let Ok(file) = self.file.try_clone() else { return FunctionTable::default() };
        let table = FileBytes::of(&file).and_then(|bytes| FunctionTable::of(&bytes, Names::InFile(file)));
        let Some(bytes) = self.mini.as_ref().and_then(|mini| mini.inflate(&self.file)) else {
            return table.unwrap_or_default();
        };
        let bytes = Rc::new(bytes);
        match FunctionTable::of(&**bytes, Names::Inflated(Rc::clone(&bytes))) {
            // Without those that the file exports.
            Some(compressed) => FunctionTable { exported: table.map(Box::new), ..compressed },
            None => table.unwrap_or_default(),
        }
    }
}

/// Estimates [`ElfImage::lines_cost`]. `addr2line` keeps 32 bytes a symbol, 32 for 16 in `.debug_aranges`, both in
/// vectors that grow; of each unit the abbreviations, some 110 bytes for 10, and the names of its files; and
/// compressed sections as they were before. An executable of 307 MB took 28 MB, here 31; the C library's debug
/// file, of compressed sections, 31 MB. The standard library's units are always among the first to be looked
/// at, and take some megabytes. Sections that are never read count nothing.
fn cost(elf: &Elf<'_>) -> u64 {
    let sections = elf.sections().filter_map(|section| {
        let name = standard(section.name().ok()?);
        let range = section.compressed_file_range().ok()?;
        let size = range.uncompressed_size;
        let parsed = match &*name {
            ".symtab" => size.saturating_mul(2),
            ".debug_aranges" => size.saturating_mul(3),
            ".debug_abbrev" => size.saturating_mul(20),
            ".debug_line" => size / 8,
            _ => 0,
        };
        let is_compressed = range.format != object::CompressionFormat::None;
        let inflated = if is_compressed && debug_sections::is_read(&name) { size } else { 0 };
        Some(parsed.saturating_add(inflated))
    });
    const FIRST_UNITS: u64 = 8 << 20;
    match sections.fold(0, u64::saturating_add) {
        0 => 0,
        cost => cost.saturating_add(FIRST_UNITS),
    }
}

/// Returns the standard name of a section: GNU's older form of compression has a name of its own.
pub(super) fn standard(name: &str) -> Cow<'_, str> {
    match name.strip_prefix(".zdebug_") {
        Some(rest) => format!(".debug_{rest}").into(),
        None => name.into(),
    }
}

/// Bytes that names of functions are part of.
enum Names {
    InFile(File),
    Inflated(Rc<Vec<u8>>),
}

impl Names {
    fn read_exact(&self, at: u64, to: &mut [u8]) -> Option<()> {
        match self {
            Names::InFile(file) => file.read_exact_at(to, at).ok(),
            Names::Inflated(bytes) => {
                let from = bytes.get(usize::try_from(at).ok()?..)?.get(..to.len())?;
                to.copy_from_slice(from);
                Some(())
            }
        }
    }

    /// Reads up to `length` bytes, fewer at the end.
    fn read_some(&self, at: u64, length: usize) -> Option<Cow<'_, [u8]>> {
        match self {
            Names::InFile(file) => read_some(file, at, length).map(Cow::Owned),
            Names::Inflated(bytes) => {
                let rest = bytes.get(usize::try_from(at).ok()?..)?;
                Some(Cow::Borrowed(&rest[..rest.len().min(length)]))
            }
        }
    }
}

/// Symbols of one module's functions, sorted; 16 bytes each and no names until one is asked for.
#[derive(Default)]
pub(super) struct FunctionTable {
    /// Address as linked, size, and offset of the name.
    entries: Vec<(u64, u32, u32)>,
    /// Names, and where they begin.
    names: Option<(Names, u64)>,
    /// True if they are from the table that the loader uses, which a stripped file keeps.
    exported_only: bool,
    /// Symbols of that table, beside those that the file keeps compressed.
    exported: Option<Box<FunctionTable>>,
}

impl FunctionTable {
    fn of<'data>(data: impl ReadRef<'data>, names: Names) -> Option<FunctionTable> {
        let header = Header::parse(data).ok()?;
        let endian = header.endian().ok()?;
        let sections = header.sections(endian, data).ok()?;
        let whole = table(&sections, endian, elf::SHT_SYMTAB);
        let symbols = whole.or_else(|| table(&sections, endian, elf::SHT_DYNSYM))?;
        let strings = sections.section(object::SectionIndex(symbols.sh_link(endian) as usize)).ok()?;
        let (begin, _) = strings.file_range(endian)?;
        let range = symbols.file_range(endian)?;
        // Counted first: a vector that grows would take three times the memory.
        let mut count = 0;
        each_function(&names, range, endian, |_| count += 1)?;
        let mut entries = Vec::with_capacity(count);
        each_function(&names, range, endian, |entry| entries.push(entry))?;
        entries.sort_unstable();
        Some(FunctionTable {
            entries,
            names: Some((names, begin)),
            exported_only: whole.is_none(),
            exported: None,
        })
    }

    /// Returns whether functions have names, not only those that the file exports.
    pub(super) fn are_known(&self) -> bool {
        if self.exported_only {
            return false;
        }
        !self.entries.is_empty()
    }

    /// Returns the function that holds an address as linked, as its range of addresses.
    pub(super) fn range_at(&self, address: u64) -> Option<Range<u64>> {
        let after = self.entries.partition_point(|&(begin, ..)| begin <= address);
        let &(begin, size, _) = self.entries[..after].last()?;
        let range = begin..begin.checked_add(u64::from(size))?;
        range.contains(&address).then_some(range)
    }

    /// Returns the mangled names of the functions that hold an address as linked; several where the linker folded
    /// equal functions into one.
    pub(super) fn names_at(&self, address: u64) -> Vec<String> {
        let mut found = self.own_names_at(address);
        if found.is_empty()
            && let Some(exported) = &self.exported
        {
            found = exported.own_names_at(address);
        }
        found
    }

    fn own_names_at(&self, address: u64) -> Vec<String> {
        let Some((bytes, names)) = &self.names else { return Vec::new() };
        let after = self.entries.partition_point(|&(begin, ..)| begin <= address);
        let Some(&(begin, ..)) = self.entries[..after].last() else { return Vec::new() };
        self.entries[..after]
            .iter()
            .rev()
            .take_while(|entry| entry.0 == begin)
            .filter(|&&(begin, size, _)| address - begin < u64::from(size))
            .filter_map(|&(_, _, name)| {
                let bytes = bytes.read_some(names.checked_add(u64::from(name))?, 4096)?;
                let end = bytes.iter().position(|byte| *byte == 0)?;
                String::from_utf8(bytes[..end].to_vec()).ok()
            })
            .collect()
    }
}

/// Finds the table of symbols of a kind, if it has any.
fn table<'data, R: ReadRef<'data>>(
    sections: &SectionTable<'data, Header, R>,
    endian: Endianness,
    kind: elf::SectionType,
) -> Option<&'data <Header as FileHeader>::SectionHeader> {
    sections.iter().find(|section| {
        section.sh_type(endian) == kind && section.file_range(endian).is_some_and(|(_, size)| size > 0)
    })
}

/// Reads a table of symbols piece by piece.
fn each_function(
    bytes: &Names,
    (mut at, size): (u64, u64),
    endian: Endianness,
    mut take: impl FnMut((u64, u32, u32)),
) -> Option<()> {
    type Symbol = <Header as FileHeader>::Sym;
    const PIECE: usize = 1024;
    let mut left = usize::try_from(size).ok()? / size_of::<Symbol>();
    // Words, so that it is aligned.
    let mut words = vec![0u64; PIECE * size_of::<Symbol>() / size_of::<u64>()];
    while left > 0 {
        let count = left.min(PIECE);
        let piece = &mut object::pod::bytes_of_slice_mut(&mut words)[..count * size_of::<Symbol>()];
        bytes.read_exact(at, piece)?;
        let (symbols, _) = object::pod::slice_from_bytes::<Symbol>(piece, count).ok()?;
        for symbol in symbols {
            if symbol.st_type() == elf::STT_FUNC
                && symbol.st_shndx(endian) != elf::SHN_UNDEF
                && let Ok(size) = u32::try_from(symbol.st_size(endian))
            {
                take((symbol.st_value(endian), size, symbol.st_name(endian)));
            }
        }
        at = at.checked_add(piece.len() as u64)?;
        left -= count;
    }
    Some(())
}

/// Reads the build id; `None` also where the file is no longer the one that was loaded.
pub(super) fn build_id(module: &Module) -> Option<Vec<u8>> {
    build_id_in(&module_file::of(module)?)
}

pub(super) fn build_id_in(path: &Path) -> Option<Vec<u8>> {
    let bytes = FileBytes::of(&File::open(path).ok()?)?;
    let elf = Elf::parse(&bytes).ok()?;
    Some(elf.build_id().ok()??.to_vec())
}

/// Returns the lowest address that the file is linked to be loaded at.
pub(super) fn linked_low(elf: &Elf<'_>) -> Option<u64> {
    let endian = elf.endian();
    elf.elf_program_headers()
        .iter()
        .filter(|segment| segment.p_type(endian) == elf::PT_LOAD)
        .map(|segment| segment.p_vaddr(endian) & !0xfff)
        .min()
}
