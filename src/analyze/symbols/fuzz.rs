//! Tests the readers with debug information that no compiler would write: they give fewer names, and end.
//!
//! Seeds are sections of this executable, each cut to its first kilobytes, in a small ELF file of their own.

use super::dwarf_units::drop_number;
use super::elf::ElfImage;
use super::loaded_modules::{Module, at_path};
use crate::base::random_input::{Random, inputs};
use object::{Object, ObjectSection, ObjectSymbol, ReadCache};
use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Bytes of compilation units that a seed keeps, and of each of them.
const KEPT: usize = 4 << 10;
const UNIT: usize = 128;

/// Section of a file that is put together here.
pub(super) struct Section {
    pub name: &'static str,
    pub kind: u32,
    /// Number of the section with its strings.
    pub link: u32,
    pub bytes: Vec<u8>,
}

/// Builds a 64-bit ELF file of these sections and one segment, which begins at address 0.
pub(super) fn elf(sections: &[Section]) -> Vec<u8> {
    const HEADER: usize = 64;
    const SEGMENT: usize = 56;
    let mut names = vec![0];
    let mut bytes = vec![0; HEADER + SEGMENT];
    let mut headers = vec![0; 64];
    let mut table = |name: &str, kind: u32, link: u32, content: Option<&[u8]>, bytes: &mut Vec<u8>| {
        let at_name = names.len() as u32;
        names.extend(name.bytes().chain([0]));
        let content = content.map_or_else(|| names.clone(), <[u8]>::to_vec);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let entry = if kind == object::elf::SHT_SYMTAB.0 { 24u64 } else { 0 };
        headers.extend(at_name.to_le_bytes().iter().chain(&kind.to_le_bytes()));
        headers
            .extend([0u64, 0, bytes.len() as u64, content.len() as u64].iter().flat_map(|n| n.to_le_bytes()));
        headers.extend([link, 0].iter().flat_map(|n| n.to_le_bytes()));
        headers.extend([1u64, entry].iter().flat_map(|n| n.to_le_bytes()));
        bytes.extend(content);
    };
    for section in sections {
        table(section.name, section.kind, section.link, Some(&section.bytes), &mut bytes);
    }
    table(".shstrtab", object::elf::SHT_STRTAB.0, 0, None, &mut bytes);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let at_headers = bytes.len() as u64;
    let count = sections.len() as u16 + 2;
    bytes.extend(headers);
    let whole = bytes.len() as u64;
    let mut put = |at: usize, number: &[u8]| bytes[at..at + number.len()].copy_from_slice(number);
    put(0, &[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    put(16, &[3, 0, 62, 0, 1, 0, 0, 0]);
    put(32, &(HEADER as u64).to_le_bytes());
    put(40, &at_headers.to_le_bytes());
    put(52, &[64, 0, SEGMENT as u8, 0, 1, 0, 64, 0]);
    put(60, &count.to_le_bytes());
    put(62, &(count - 1).to_le_bytes());
    put(HEADER, &[1, 0, 0, 0, 5, 0, 0, 0]);
    put(HEADER + 32, &whole.to_le_bytes());
    put(HEADER + 40, &whole.to_le_bytes());
    bytes
}

/// Builds a file of the heads of this executable's compilation units, the data they refer to, and some symbols.
fn seed() -> Vec<u8> {
    let cache = ReadCache::new(File::open("/proc/self/exe").unwrap());
    let whole = object::read::elf::ElfFile64::<object::Endianness, _>::parse(&cache).unwrap();
    let section = |name: &str| whole.section_by_name(name).unwrap().data().unwrap();
    let (info, abbreviations, texts) =
        (section(".debug_info"), section(".debug_abbrev"), section(".debug_str"));
    let known: HashSet<String> = ElfImage::open(&at_path(Path::new("/proc/self/exe"), 0x1000..0x2000))
        .unwrap()
        .units(1 << 20)
        .found
        .into_iter()
        .flat_map(|(directory, name)| [directory, name])
        .collect();
    let number = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let (mut heads, mut kept_abbreviations, mut kept_texts) = (Vec::new(), Vec::new(), vec![0]);
    let mut at = 0;
    while heads.len() < KEPT && at < info.len() {
        let length = number(info, at);
        let mut unit = info[at..at + 4 + length.min(UNIT - 4)].to_vec();
        let at_abbreviations = if unit[4] >= 5 { 8 } else { 6 };
        let declared = &abbreviations[number(&unit, at_abbreviations)..];
        let place = (kept_abbreviations.len() as u32).to_le_bytes();
        unit[at_abbreviations..at_abbreviations + 4].copy_from_slice(&place);
        kept_abbreviations.extend(&declared[..declared.len().min(64)]);
        // A number that leads to a directory, a name or the compiler's is the offset of that text.
        let mut from = at_abbreviations + 5;
        while from + 4 <= unit.len() {
            let text = texts.get(number(&unit, from)..).unwrap_or_default();
            let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
            let refers = |text: &str| {
                let mut name = text.to_owned();
                drop_number(&mut name);
                known.contains(&name) || text.contains("rustc version")
            };
            if text.len() > 1 && std::str::from_utf8(text).is_ok_and(refers) {
                let place = (kept_texts.len() as u32).to_le_bytes();
                unit[from..from + 4].copy_from_slice(&place);
                kept_texts.extend(text.iter().chain(&[0]));
                from += 3;
            }
            from += 1;
        }
        let length = (unit.len() as u32 - 4).to_le_bytes();
        unit[..4].copy_from_slice(&length);
        heads.extend(unit);
        at += 4 + number(info, at);
    }
    let (mut symbols, mut names) = (vec![0; 24], vec![0]);
    for symbol in whole.symbols().filter(|symbol| symbol.kind() == object::SymbolKind::Text).take(100) {
        symbols.extend((names.len() as u32).to_le_bytes());
        symbols.extend([2, 0, 1, 0]);
        symbols.extend(symbol.address().to_le_bytes().iter().chain(&symbol.size().to_le_bytes()));
        names.extend(symbol.name().unwrap().bytes().chain([0]));
    }
    let kind = object::elf::SHT_PROGBITS.0;
    elf(&[
        Section { name: ".debug_info", kind, link: 0, bytes: heads },
        Section { name: ".debug_abbrev", kind, link: 0, bytes: kept_abbreviations },
        Section { name: ".debug_str", kind, link: 0, bytes: kept_texts },
        Section { name: ".symtab", kind: object::elf::SHT_SYMTAB.0, link: 5, bytes: symbols },
        Section { name: ".strtab", kind: object::elf::SHT_STRTAB.0, link: 0, bytes: names },
    ])
}

/// File of this test, removed when it is dropped.
pub(super) struct Temporary(pub PathBuf);

impl Temporary {
    pub(super) fn new(test: &str) -> Temporary {
        Temporary(std::env::temp_dir().join(format!("heapgauge-{}-{test}", std::process::id())))
    }

    fn module(&self, bytes: &[u8]) -> Module {
        fs::write(&self.0, bytes).unwrap();
        at_path(&self.0, 0x1000..0x100_0000)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Reads everything of a module, and returns the numbers of its units and functions.
fn read(module: &Module) -> (usize, usize) {
    let Some(image) = ElfImage::open(module) else { return (0, 0) };
    let units = image.units(1 << 20);
    let functions = image.functions();
    let known = (0..200u64).filter(|step| !functions.names_at(step * 4096).is_empty()).count();
    let _ = (image.lines_cost(), image.functions_cost(), image.bias(module), image.length());
    (units.found.len(), if image.has_functions() { known.max(1) } else { 0 })
}

#[test]
fn a_unit_whose_length_leads_back_to_the_first_is_the_last() {
    let file = Temporary::new("length");
    // 0xffffffff says that eight bytes of length follow; 12 more and it is 2^64 again.
    let mut info = vec![0xff; 4];
    info.extend((u64::MAX - 11).to_le_bytes());
    info.extend([0; 64]);
    let kind = object::elf::SHT_PROGBITS.0;
    let sections = [
        Section { name: ".debug_info", kind, link: 0, bytes: info },
        Section { name: ".debug_abbrev", kind, link: 0, bytes: vec![0; 8] },
    ];
    assert_eq!(read(&file.module(&elf(&sections))), (0, 0));
}

/// Lines without the crates' directories would be other names than with them.
#[test]
fn compressed_units_that_find_no_room_are_said_to_be_unread() {
    let file = Temporary::new("compressed");
    let kind = object::elf::SHT_PROGBITS.0;
    // GNU's older form: the size before compression, behind four letters.
    let section = |name, bytes: &[u8]| {
        let stored = miniz_oxide::deflate::compress_to_vec_zlib(bytes, 6);
        Section {
            name,
            kind,
            link: 0,
            bytes: [b"ZLIB", &(bytes.len() as u64).to_be_bytes()[..], &stored].concat(),
        }
    };
    let module =
        file.module(&elf(&[section(".zdebug_info", &[0; 4 << 10]), section(".zdebug_loc", &[0; 1 << 20])]));
    let image = ElfImage::open(&module).unwrap();
    assert!(image.units_cost() > 4 << 10);
    assert!(image.units(4 << 10).lacks_room && !image.units(8 << 10).lacks_room);
    // Nothing is counted that is not read.
    assert!(image.lines_cost() < 9 << 20, "{}", image.lines_cost());
}

#[test]
fn broken_debug_information_gives_fewer_names_and_an_end() {
    let whole = seed();
    let file = Temporary::new("broken");
    let (units, functions) = read(&file.module(&whole));
    assert!(units > 0 && functions > 0, "{units} units, {functions} functions");
    let mut random = Random::new();
    let mut changed = 0;
    // Lengths and offsets at which a sum goes past the end of the number.
    let words: [&[u8]; 4] = [
        &[0xff, 0xff, 0xff, 0xff, 0xf4, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[0xff; 16],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        &[0; 8],
    ];
    let headers = u64::from_le_bytes(whole[40..48].try_into().unwrap()) as usize;
    for _ in 0..inputs(1_000) {
        let mut bytes = whole.clone();
        match random.below(3) {
            // Any place, where the rest may move.
            0 => random.mutate(&mut bytes, &words),
            // In place: a number in a header, or in the data a header leads to.
            part => {
                for _ in 0..=random.below(4) {
                    let at = match part {
                        1 if random.below(4) == 0 => random.below(120),
                        1 => headers + random.below(bytes.len() - headers),
                        _ => 120 + random.below(KEPT),
                    };
                    let new = random.edge().to_le_bytes();
                    let count = random.one(&[1usize, 2, 4, 8]).min(bytes.len() - at);
                    bytes[at..at + count].copy_from_slice(&new[..count]);
                }
            }
        }
        let found = read(&file.module(&bytes));
        changed += usize::from(found != (units, functions));
    }
    assert!(changed > 100, "{changed}");
}
