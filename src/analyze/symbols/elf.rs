//! Reads from executables and shared libraries the data for names that `backtrace` does not give: the module of an
//! address, the directories its crates were compiled in, the symbols of whole functions, the build id.
//!
//! Read side only. Files are read by parts, never mapped and never whole: of a 35 MB executable this touches
//! the section headers, the head of each compilation unit and, while a batch lasts, the symbol table. Whatever
//! is missing or malformed gives `None` or less, never an error: names are then poorer, not wrong.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::sync::Arc;

/// One loaded executable or library.
#[derive(Clone, Debug)]
pub(super) struct Module {
    /// The file's name, without directories.
    pub name: Arc<str>,
    pub path: PathBuf,
    /// The address that it was loaded at: of the mappings that begin with the file, the last below its code. A program
    /// may have mapped the same file elsewhere too, as the standard library does to print a backtrace.
    pub low: usize,
    /// Inode number of the file; another file at the same path has another.
    pub inode: u64,
    /// Mapped ranges, ascending.
    pub ranges: Vec<(usize, usize)>,
    /// Ranges of code, each with its place in the file.
    pub code: Vec<(usize, usize, u64)>,
    /// True if the file was deleted or replaced since; another may be at `path` now.
    pub deleted: bool,
}

/// Returns everything `/proc/self/maps` shows that has a file behind it. Empty where there is no such file.
pub(super) fn modules() -> Vec<Module> {
    std::fs::read_to_string("/proc/self/maps").map(|maps| parse_maps(&maps)).unwrap_or_default()
}

/// Parses the list of mappings. A file is a module for each time its first byte is mapped and code follows: a program
/// may map a library twice, or as a file to read, as readers of symbols do.
fn parse_maps(maps: &str) -> Vec<Module> {
    let mut modules: Vec<Module> = Vec::new();
    let mut has_code = Vec::new();
    for line in maps.lines() {
        // 55d96c4bf000-55d96c4c5000 r-xp 00001000 fe:00 1234   /path/with blanks
        let Some(at) = line.find('/') else { continue };
        let path = line[at..].trim_end_matches(" (deleted)");
        let deleted = line.ends_with(" (deleted)");
        let columns: Vec<&str> = line[..at].split_ascii_whitespace().collect();
        let [range, permissions, offset, _, inode] = columns[..] else { continue };
        let hex = |text: &str| usize::from_str_radix(text, 16).ok();
        let Some((Some(low), Some(high))) = range.split_once('-').map(|(low, high)| (hex(low), hex(high)))
        else {
            continue;
        };
        let (offset, inode) = (u64::from_str_radix(offset, 16).unwrap_or(0), inode.parse().unwrap_or(0));
        let known = modules.iter().rposition(|module| {
            module.inode == inode && module.deleted == deleted && module.path.as_os_str() == path
        });
        let at = match known {
            Some(at) if offset > 0 => at,
            _ => {
                let name = path.rsplit('/').next().unwrap_or(path).replace('\\', "/");
                modules.push(Module {
                    name: name.into(),
                    path: path.into(),
                    low,
                    inode,
                    ranges: Vec::new(),
                    code: Vec::new(),
                    deleted,
                });
                has_code.push(false);
                modules.len() - 1
            }
        };
        let module = &mut modules[at];
        module.ranges.push((low, high));
        if permissions.contains('x') {
            has_code[at] = true;
            module.code.push((low, high, offset));
        }
    }
    let mut has_code = has_code.into_iter();
    modules.retain(|_| has_code.next().unwrap_or(false));
    modules
}

/// Returns a module of this file at these addresses.
#[cfg(all(test, target_os = "linux", target_pointer_width = "64", target_endian = "little"))]
pub(super) fn at_path(path: &std::path::Path, addresses: std::ops::Range<usize>) -> Module {
    let name = path.to_string_lossy().into_owned();
    let (low, high) = (addresses.start, addresses.end);
    let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    let mut modules = parse_maps(&format!("{low:x}-{high:x} r-xp 00000000 fe:00 {inode}   {name}\n"));
    modules.remove(0)
}

/// Returns the index of the module that holds `address`.
pub(super) fn module_of(modules: &[Module], address: usize) -> Option<usize> {
    modules.iter().position(|module| module.ranges.iter().any(|&(low, high)| (low..high).contains(&address)))
}

/// Symbols of one module's functions, sorted; 16 bytes each and no names until one is asked for.
#[derive(Default)]
pub(super) struct Functions {
    /// Address as linked, size, and offset of the name in the file.
    entries: Vec<(u64, u32, u32)>,
    #[cfg(target_os = "linux")]
    names: Option<(std::fs::File, u64)>,
    /// True if they are from the table that the loader uses, which a stripped file keeps.
    #[cfg(target_os = "linux")]
    exported_only: bool,
}

impl Functions {
    /// Returns whether functions have names, not only those that the file exports.
    pub(super) fn are_known(&self) -> bool {
        #[cfg(target_os = "linux")]
        if self.exported_only {
            return false;
        }
        !self.entries.is_empty()
    }
}

#[cfg(target_os = "linux")]
pub(super) use linux::{Header, Image, UnwindTable, build_id, standard};

#[cfg(not(target_os = "linux"))]
pub(super) struct Image;

#[cfg(not(target_os = "linux"))]
impl Image {
    pub(super) fn open(_module: &Module) -> Option<Image> {
        None
    }

    pub(super) fn bias(&self, module: &Module) -> usize {
        module.low
    }

    pub(super) fn units(&self, _room: u64) -> Vec<(String, String)> {
        Vec::new()
    }

    pub(super) fn lacks_split_units(&self, _room: u64) -> bool {
        false
    }

    pub(super) fn functions(&self) -> Functions {
        Functions::default()
    }

    pub(super) fn lines_cost(&self) -> u64 {
        0
    }

    pub(super) fn length(&self) -> u64 {
        0
    }

    pub(super) fn functions_cost(&self) -> u64 {
        0
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) struct UnwindTable;

#[cfg(not(target_os = "linux"))]
impl UnwindTable {
    pub(super) fn open(_module: &Module) -> Option<UnwindTable> {
        None
    }

    pub(super) fn linked(&self, address: usize) -> u64 {
        address as u64
    }

    pub(super) fn start(&self, _address: usize) -> Option<u64> {
        None
    }
}

#[cfg(not(target_os = "linux"))]
impl Functions {
    pub(super) fn names_at(&self, _address: u64) -> Vec<String> {
        Vec::new()
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn build_id(_module: &Module) -> Option<Vec<u8>> {
    None
}

#[cfg(target_os = "linux")]
mod linux {
    use super::{Functions, Module};
    use crate::analyze::symbols::dwarf_units::{Section, UnitSections, read, read_some};
    use crate::analyze::symbols::lines::Lines;
    use crate::analyze::symbols::module_file;
    use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, Sym};
    use object::{Endianness, Object, ObjectSection, ReadCache, elf};
    use std::borrow::Cow;
    use std::fs::File;
    use std::ops::Range;
    use std::os::unix::fs::FileExt;
    use std::path::{Path, PathBuf};
    use std::rc::Rc;

    #[cfg(target_pointer_width = "64")]
    pub(in crate::analyze::symbols) type Header = elf::FileHeader64<Endianness>;
    #[cfg(target_pointer_width = "32")]
    pub(in crate::analyze::symbols) type Header = elf::FileHeader32<Endianness>;
    type Elf<'a> = object::read::elf::ElfFile<'a, Header, &'a ReadCache<File>>;

    /// File that holds a module's names: the module's own or its separate debug file.
    pub(in crate::analyze::symbols) struct Image {
        file: Rc<File>,
        path: PathBuf,
        /// File that it shares names with.
        supplement: Option<PathBuf>,
        /// The `.dwp` file, which has the name of the executable or of its separate debug file.
        package: Option<PathBuf>,
        linked_low: u64,
        sections: UnitSections,
        /// See [`Image::lines_cost`].
        cost: u64,
        /// Bytes of the table of symbols.
        symbols: u64,
        /// Bytes of the file.
        length: u64,
    }

    impl Image {
        pub(in crate::analyze::symbols) fn open(module: &Module) -> Option<Image> {
            let mut path = module_file::of(module)?;
            let mut file = File::open(&path).ok()?;
            let (linked_low, debug) = {
                let cache = ReadCache::new(file.try_clone().ok()?);
                let elf = Elf::parse(&cache).ok()?;
                (linked_low(&elf)?, debug_file(&elf, &module.path))
            };
            if let Some(debug) = debug
                && let Ok(opened) = File::open(&debug)
            {
                (path, file) = (debug, opened);
            }
            let file = Rc::new(file);
            let cache = ReadCache::new(file.try_clone().ok()?);
            let elf = Elf::parse(&cache).ok()?;
            let section = |name: &str| {
                let mut sections = elf.sections();
                let section =
                    sections.find(|section| section.name().is_ok_and(|own| standard(own) == name))?;
                Some(Section::of(section.compressed_file_range().ok()?))
            };
            let size = |name: &str| elf.section_by_name(name).map_or(0, |section| section.size());
            Some(Image {
                linked_low,
                supplement: supplement(&elf, &path),
                package: package(&path).or_else(|| package(&module.path)),
                path,
                sections: UnitSections {
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
                },
                cost: cost(&elf),
                length: file.metadata().ok()?.len(),
                symbols: size(".symtab").max(size(".dynsym")),
                file,
            })
        }

        /// Opens its line tables; `None` where it has none.
        pub(in crate::analyze::symbols) fn lines(&self) -> Option<Lines> {
            self.sections.info.as_ref()?;
            Lines::open(&self.path, self.supplement.as_deref(), self.package.as_deref())
        }

        /// Returns the bytes that opening the line tables takes, before the first address is looked up: an estimate.
        pub(in crate::analyze::symbols) fn lines_cost(&self) -> u64 {
            self.cost
        }

        /// Returns the bytes of address space that it takes to map the file.
        pub(in crate::analyze::symbols) fn length(&self) -> u64 {
            self.length
        }

        /// Returns the bytes that [`functions`](Image::functions) takes, at most.
        pub(in crate::analyze::symbols) fn functions_cost(&self) -> u64 {
            let symbols = self.symbols / size_of::<<Header as FileHeader>::Sym>() as u64;
            symbols * size_of::<(u64, u32, u32)>() as u64
        }

        /// Returns the difference between an address of the running process and the address as linked.
        pub(in crate::analyze::symbols) fn bias(&self, module: &Module) -> usize {
            module.low.wrapping_sub(self.linked_low as usize)
        }

        /// Returns `DW_AT_comp_dir` and `DW_AT_name` of every Rust compilation unit, each pair once.
        ///
        /// Reads about a kilobyte a unit: 2,000 units take some milliseconds. Compressed sections are inflated for it
        /// where `room` is enough.
        pub(in crate::analyze::symbols) fn units(&self, room: u64) -> Vec<(String, String)> {
            self.sections.units(room).found
        }

        /// Returns whether functions of the program are in files that are missing: `.dwo` files, or the `.dwp` of them.
        pub(in crate::analyze::symbols) fn lacks_split_units(&self, room: u64) -> bool {
            let split = self.sections.units(room).split;
            !split.is_empty() && self.package.is_none() && split.iter().any(|file| !file.is_file())
        }

        /// Reads the symbols of all functions, from `.symtab`; in a stripped file those that it exports.
        pub(in crate::analyze::symbols) fn functions(&self) -> Functions {
            self.read_functions().unwrap_or_default()
        }

        fn read_functions(&self) -> Option<Functions> {
            let cache = ReadCache::new(self.file.try_clone().ok()?);
            let header = Header::parse(&cache).ok()?;
            let endian = header.endian().ok()?;
            let sections = header.sections(endian, &cache).ok()?;
            let of_kind = |kind| {
                sections.iter().find(move |section| {
                    section.sh_type(endian) == kind
                        && section.file_range(endian).is_some_and(|(_, size)| size > 0)
                })
            };
            let whole = of_kind(elf::SHT_SYMTAB);
            let symbols = whole.or_else(|| of_kind(elf::SHT_DYNSYM))?;
            let strings = sections.section(object::SectionIndex(symbols.sh_link(endian) as usize)).ok()?;
            let (names, _) = strings.file_range(endian)?;
            // Counted first: a vector that grows would take three times the memory.
            let mut count = 0;
            self.each_function(symbols, endian, |_| count += 1)?;
            let mut entries = Vec::with_capacity(count);
            self.each_function(symbols, endian, |entry| entries.push(entry))?;
            entries.sort_unstable();
            let names = Some((self.file.try_clone().ok()?, names));
            Some(Functions { entries, names, exported_only: whole.is_none() })
        }

        /// Reads the table of symbols piece by piece.
        fn each_function(
            &self,
            table: &<Header as FileHeader>::SectionHeader,
            endian: Endianness,
            mut take: impl FnMut((u64, u32, u32)),
        ) -> Option<()> {
            type Symbol = <Header as FileHeader>::Sym;
            const PIECE: usize = 1024;
            let (mut at, size) = table.file_range(endian)?;
            let mut left = usize::try_from(size).ok()? / size_of::<Symbol>();
            // Words, so that it is aligned.
            let mut words = vec![0u64; PIECE * size_of::<Symbol>() / size_of::<u64>()];
            while left > 0 {
                let count = left.min(PIECE);
                let bytes = &mut object::pod::bytes_of_slice_mut(&mut words)[..count * size_of::<Symbol>()];
                self.file.read_exact_at(bytes, at).ok()?;
                let (symbols, _) = object::pod::slice_from_bytes::<Symbol>(bytes, count).ok()?;
                for symbol in symbols {
                    if symbol.st_type() == elf::STT_FUNC
                        && symbol.st_shndx(endian) != elf::SHN_UNDEF
                        && let Ok(size) = u32::try_from(symbol.st_size(endian))
                    {
                        take((symbol.st_value(endian), size, symbol.st_name(endian)));
                    }
                }
                at = at.checked_add(bytes.len() as u64)?;
                left -= count;
            }
            Some(())
        }
    }

    /// Estimates [`Image::lines_cost`]. `addr2line` keeps 32 bytes a symbol, 32 for 16 in `.debug_aranges`, both in
    /// vectors that grow; of each unit the abbreviations, some 110 bytes for 10, and the names of its files; and
    /// compressed sections as they were before. An executable of 307 MB took 28 MB, here 31; the C library's debug
    /// file, of compressed sections, 31 MB. The standard library's units are always among the first to be looked
    /// at, and take some megabytes.
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
            let inflated = if is_compressed && name.starts_with(".debug_") { size } else { 0 };
            Some(parsed.saturating_add(inflated))
        });
        const FIRST_UNITS: u64 = 8 << 20;
        match sections.fold(0, u64::saturating_add) {
            0 => 0,
            cost => cost.saturating_add(FIRST_UNITS),
        }
    }

    /// Returns the standard name of a section: GNU's older form of compression has a name of its own.
    pub(in crate::analyze::symbols) fn standard(name: &str) -> Cow<'_, str> {
        match name.strip_prefix(".zdebug_") {
            Some(rest) => format!(".debug_{rest}").into(),
            None => name.into(),
        }
    }

    impl Functions {
        /// Returns the function that holds an address as linked, as its range of addresses.
        pub(in crate::analyze::symbols) fn range_at(&self, address: u64) -> Option<Range<u64>> {
            let after = self.entries.partition_point(|&(begin, ..)| begin <= address);
            let &(begin, size, _) = self.entries[..after].last()?;
            let range = begin..begin.checked_add(u64::from(size))?;
            range.contains(&address).then_some(range)
        }

        /// Returns the mangled names of the functions that hold an address as linked; several where the linker folded
        /// equal functions into one.
        pub(in crate::analyze::symbols) fn names_at(&self, address: u64) -> Vec<String> {
            let Some((file, names)) = &self.names else { return Vec::new() };
            let after = self.entries.partition_point(|&(begin, ..)| begin <= address);
            let Some(&(begin, ..)) = self.entries[..after].last() else { return Vec::new() };
            self.entries[..after]
                .iter()
                .rev()
                .take_while(|entry| entry.0 == begin)
                .filter(|&&(begin, size, _)| address - begin < u64::from(size))
                .filter_map(|&(_, _, name)| {
                    let bytes = read_some(file, names.checked_add(u64::from(name))?, 4096)?;
                    let end = bytes.iter().position(|byte| *byte == 0)?;
                    String::from_utf8(bytes[..end].to_vec()).ok()
                })
                .collect()
        }
    }

    /// Sorted table of functions in a module's `.eh_frame_hdr`. Every module with unwind rules has it, and no tool that
    /// strips takes it away.
    pub(in crate::analyze::symbols) struct UnwindTable {
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
        pub(in crate::analyze::symbols) fn open(module: &Module) -> Option<UnwindTable> {
            let file = File::open(module_file::of(module)?).ok()?;
            let cache = ReadCache::new(file.try_clone().ok()?);
            let elf = Elf::parse(&cache).ok()?;
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

        pub(in crate::analyze::symbols) fn linked(&self, address: usize) -> u64 {
            address.wrapping_sub(self.bias) as u64
        }

        /// Returns the start, as linked, of the function that holds an address of the running process.
        pub(in crate::analyze::symbols) fn start(&self, address: usize) -> Option<u64> {
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
            let begins =
                description.wrapping_add(8).wrapping_add_signed(i64::from(i32::from_ne_bytes(word(8)?)));
            let length = u64::from(u32::from_ne_bytes(word(12)?));
            (begins == start && address - start < length).then_some(start)
        }
    }

    /// Reads the build id; `None` also where the file is no longer the one that was loaded.
    pub(in crate::analyze::symbols) fn build_id(module: &Module) -> Option<Vec<u8>> {
        build_id_in(&module_file::of(module)?)
    }

    fn build_id_in(path: &Path) -> Option<Vec<u8>> {
        let cache = ReadCache::new(File::open(path).ok()?);
        let elf = Elf::parse(&cache).ok()?;
        Some(elf.build_id().ok()??.to_vec())
    }

    fn linked_low(elf: &Elf<'_>) -> Option<u64> {
        let endian = elf.endian();
        elf.elf_program_headers()
            .iter()
            .filter(|segment| segment.p_type(endian) == elf::PT_LOAD)
            .map(|segment| segment.p_vaddr(endian) & !0xfff)
            .min()
    }

    /// Finds a separate debug file, by build id, then by debug link. One that was made for another build is none.
    fn debug_file(elf: &Elf<'_>, module: &Path) -> Option<PathBuf> {
        let id = elf.build_id().ok().flatten();
        if let Some(path) = id.and_then(by_build_id) {
            return Some(path);
        }
        let (name, _) = elf.gnu_debuglink().ok()??;
        let name = std::str::from_utf8(name).ok()?;
        let module = std::fs::canonicalize(module).ok()?;
        let directory = module.parent()?;
        let below = directory.strip_prefix("/").unwrap_or(directory);
        let is_right = |path: &Path| match (id, build_id_in(path)) {
            (Some(id), Some(other)) => id == other,
            _ => true,
        };
        [
            directory.join(name),
            directory.join(".debug").join(name),
            Path::new(DEBUG_FILES).join(below).join(name),
        ]
        .into_iter()
        .find(|path| path.is_file() && *path != module && is_right(path))
    }

    /// Directory in which distributions put separate debug files.
    const DEBUG_FILES: &str = "/usr/lib/debug";

    fn by_build_id(id: &[u8]) -> Option<PathBuf> {
        let (first, rest) = id.split_first()?;
        let rest: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = Path::new(DEBUG_FILES).join(format!(".build-id/{first:02x}/{rest}.debug"));
        path.is_file().then_some(path)
    }

    /// Returns the path of a file's package: `shop.dwp` for `shop`.
    fn package(path: &Path) -> Option<PathBuf> {
        let mut package = path.as_os_str().to_owned();
        package.push(".dwp");
        Some(PathBuf::from(package)).filter(|package| package.is_file())
    }

    /// Finds the file of names that `dwz` took out of several debug files, by its path and else by its build id.
    fn supplement(elf: &Elf<'_>, debug: &Path) -> Option<PathBuf> {
        let (name, id) = elf.gnu_debugaltlink().ok()??;
        let directory = std::fs::canonicalize(debug).ok()?;
        // An absolute name replaces the directory.
        let path = directory.parent()?.join(std::str::from_utf8(name).ok()?);
        let path = if path.is_file() { Some(path) } else { by_build_id(id) };
        path.filter(|path| build_id_in(path).is_none_or(|other| other == id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_become_modules() {
        let maps = "\
55d96c4b0000-55d96c4b5000 r--p 00000000 fe:00 1234   /srv/my service/shop (deleted)
55d96c4b5000-55d96c4c5000 r-xp 00005000 fe:00 1234   /srv/my service/shop (deleted)
55d96d000000-55d96d021000 rw-p 00000000 00:00 0      [heap]
7f00b3600000-7f00b3626000 r--p 00000000 fe:00 99     /lib/x86_64-linux-gnu/libc.so.6
7f00b3626000-7f00b3700000 r-xp 00026000 fe:00 99     /lib/x86_64-linux-gnu/libc.so.6
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0      [stack]
";
        let modules = parse_maps(maps);
        let names: Vec<&str> = modules.iter().map(|module| &*module.name).collect();
        assert_eq!(names, ["shop", "libc.so.6"]);
        assert_eq!(modules[0].low, 0x55d96c4b0000);
        assert_eq!(module_of(&modules, 0x55d96c4b5001), Some(0));
        assert_eq!(module_of(&modules, 0x55d96c4c5000), None);
        assert_eq!(module_of(&modules, 0x7f00b3626000), Some(1));
        assert_eq!(module_of(&modules, 0x55d96d000010), None);
        assert_eq!(modules[0].code, [(0x55d96c4b5000, 0x55d96c4c5000, 0x5000)]);
        assert_eq!(modules[1].code, [(0x7f00b3626000, 0x7f00b3700000, 0x26000)]);
        assert_eq!((modules[0].deleted, modules[1].deleted), (true, false));

        // A panic's backtrace maps the whole file once more: here below, and above.
        let mapped = format!(
            "55d900000000-55d900020000 r--p 00000000 fe:00 1234   /srv/my service/shop (deleted)\n{maps}"
        );
        let again = "7f00b4000000-7f00b4200000 r--p 00000000 fe:00 99     /lib/x86_64-linux-gnu/libc.so.6\n";
        let modules = parse_maps(&format!("{mapped}{again}"));
        assert_eq!((modules[0].low, modules[1].low), (0x55d96c4b0000, 0x7f00b3600000));
        assert_eq!((modules[0].code.len(), modules[1].code.len()), (1, 1));
    }

    #[test]
    fn a_file_mapped_to_be_read_and_one_that_replaced_another_are_not_the_module() {
        let maps = "\
500000000000-500000100000 r--p 00000000 fe:00 1234   /srv/shop
55d96c4b0000-55d96c4b5000 r--p 00000000 fe:00 1234   /srv/shop
55d96c4b5000-55d96c4c5000 r-xp 00005000 fe:00 1234   /srv/shop
7f00b3600000-7f00b3626000 r--p 00000000 fe:00 98     /srv/plug.so (deleted)
7f00b3626000-7f00b3700000 r-xp 00026000 fe:00 98     /srv/plug.so (deleted)
7f00b4600000-7f00b4626000 r--p 00000000 fe:00 99     /srv/plug.so
7f00b4626000-7f00b4700000 r-xp 00026000 fe:00 99     /srv/plug.so
";
        let modules = parse_maps(maps);
        let lows: Vec<(usize, bool)> = modules.iter().map(|module| (module.low, module.deleted)).collect();
        assert_eq!(lows, [(0x55d96c4b0000, false), (0x7f00b3600000, true), (0x7f00b4600000, false)]);
    }
}
