//! Reads from `.debug_info` the directory of each Rust compilation unit, and the root file of its crate.
//!
//! Read side only. Reads the head of each unit and the data its root entry refers to, by parts: a unit of `gimli` has all of its
//! abbreviations in memory. All of it is foreign: every sum and product is checked, and each step of the walk ends behind
//! the one before.
#![forbid(unsafe_code)]

use super::section_bytes::inflate;
use gimli::{Reader, constants as dw};
use object::{CompressedFileRange, CompressionFormat};
use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

/// Section, in the file or inflated.
#[derive(Clone, Debug)]
pub(super) enum Section {
    InFile { offset: u64, size: u64 },
    Compressed(CompressedFileRange),
    Inflated(Rc<Vec<u8>>),
}

impl Section {
    pub(super) fn of(range: CompressedFileRange) -> Section {
        match range.format {
            CompressionFormat::None => {
                Section::InFile { offset: range.offset, size: range.uncompressed_size }
            }
            _ => Section::Compressed(range),
        }
    }

    /// Returns the bytes that it takes in memory to be read, and those that it takes beside them to get there.
    fn cost(&self) -> (u64, u64) {
        match self {
            Section::Compressed(range) => (range.uncompressed_size, range.compressed_size),
            _ => (0, 0),
        }
    }

    fn inflate(&self, file: &File) -> Option<Section> {
        let Section::Compressed(range) = self else { return Some(self.clone()) };
        // Memory is not reserved for a length that a file gives and does not hold.
        range
            .offset
            .checked_add(range.compressed_size)
            .filter(|end| file.metadata().is_ok_and(|file| *end <= file.len()))?;
        let stored = read(file, range.offset, usize::try_from(range.compressed_size).ok()?)?;
        let bytes = inflate(range.format, &stored, range.uncompressed_size)?;
        // Not a slice: the bytes would be there twice while they are copied.
        Some(Section::Inflated(Rc::new(bytes)))
    }

    fn size(&self) -> u64 {
        match self {
            Section::InFile { size, .. } => *size,
            Section::Compressed(_) => 0,
            Section::Inflated(bytes) => bytes.len() as u64,
        }
    }
}

/// Compilation units of Rust code.
#[derive(Default)]
pub(super) struct Units {
    /// `DW_AT_comp_dir` and `DW_AT_name` without the number of the unit, each pair once, sorted.
    pub found: Vec<(String, String)>,
    /// True if the rest of some units, their names and functions above all, is in other files: `-C split-debuginfo`.
    pub is_split: bool,
    /// True if some of those files cannot be read, or are of another build.
    pub lacks_parts: bool,
    /// True if there was no room to read them.
    pub lacks_room: bool,
}

/// Attributes of the first entry of a unit.
enum Root {
    Unit(String, String),
    /// The directory; the name is in another file.
    Split(String),
}

/// Sections that the roots of compilation units refer to.
pub(super) struct UnitSections {
    pub file: Rc<File>,
    pub endian: gimli::RunTimeEndian,
    pub info: Option<Section>,
    pub abbreviations: Option<Section>,
    pub strings: Option<Section>,
    pub line_strings: Option<Section>,
    pub string_offsets: Option<Section>,
}

impl UnitSections {
    /// Returns `DW_AT_comp_dir` and `DW_AT_name` of every Rust compilation unit, each pair once; none where sections
    /// are compressed and take more than `room`.
    pub(super) fn units(&self, room: u64) -> Units {
        if self.cost() > room {
            return Units { lacks_room: true, ..Units::default() };
        }
        let Some(sections) = self.inflate() else { return Units::default() };
        let Some(info) = &sections.info else { return Units::default() };
        let (mut found, mut is_split) = (HashSet::new(), false);
        let mut at = 0;
        while at < info.size() {
            let Some((next, unit)) = sections.unit(info, at) else { break };
            match unit {
                Some(Root::Unit(directory, mut name)) => {
                    drop_number(&mut name);
                    found.insert((directory, name));
                }
                Some(Root::Split(directory)) => {
                    found.insert((directory, String::new()));
                    is_split = true;
                }
                None => {}
            }
            at = next;
        }
        let mut found: Vec<_> = found.into_iter().collect();
        found.sort();
        Units { found, is_split, ..Units::default() }
    }

    fn all(&self) -> [&Option<Section>; 5] {
        [&self.info, &self.abbreviations, &self.strings, &self.line_strings, &self.string_offsets]
    }

    /// Returns the bytes that [`units`](UnitSections::units) takes for compressed sections, at most.
    pub(super) fn cost(&self) -> u64 {
        let costs = self.all().into_iter().flatten().map(Section::cost);
        let (inflated, stored) = costs.fold((0u64, 0), |(inflated, stored), (size, beside)| {
            (inflated.saturating_add(size), beside.max(stored))
        });
        inflated.saturating_add(stored)
    }

    fn inflate(&self) -> Option<UnitSections> {
        let [info, abbreviations, strings, line_strings, string_offsets] =
            self.all().map(|section| section.as_ref()?.inflate(&self.file));
        let file = Rc::clone(&self.file);
        Some(UnitSections {
            file,
            endian: self.endian,
            info,
            abbreviations,
            strings,
            line_strings,
            string_offsets,
        })
    }

    /// Reads the unit at `at` if it is Rust's, and returns the start of the next one.
    fn unit(&self, info: &Section, at: u64) -> Option<(u64, Option<Root>)> {
        let head = self.part(info, at, 512)?;
        let mut bytes = gimli::EndianSlice::new(&head, self.endian);
        let (length, format) = bytes.read_initial_length().ok()?;
        let length = u64::try_from(length).ok()?;
        // A unit that ends beyond every file has none after it.
        let next = at.checked_add(u64::from(format.initial_length_size()))?.checked_add(length)?;
        Some((next, self.root(&mut bytes, format)))
    }

    fn root(
        &self,
        bytes: &mut gimli::EndianSlice<'_, gimli::RunTimeEndian>,
        format: gimli::Format,
    ) -> Option<Root> {
        let version = bytes.read_u16().ok()?;
        let mut address_size = 0;
        if version >= 5 {
            let kind = gimli::DwUt(bytes.read_u8().ok()?);
            address_size = bytes.read_u8().ok()?;
            let abbreviations = bytes.read_offset(format).ok()?;
            match kind {
                dw::DW_UT_compile | dw::DW_UT_partial => {}
                dw::DW_UT_skeleton | dw::DW_UT_split_compile => {
                    bytes.read_u64().ok()?;
                }
                _ => return None,
            }
            return self.attributes(bytes, abbreviations as u64, format, address_size);
        }
        let abbreviations = bytes.read_offset(format).ok()?;
        address_size += bytes.read_u8().ok()?;
        self.attributes(bytes, abbreviations as u64, format, address_size)
    }

    fn attributes(
        &self,
        bytes: &mut gimli::EndianSlice<'_, gimli::RunTimeEndian>,
        abbreviations: u64,
        format: gimli::Format,
        address_size: u8,
    ) -> Option<Root> {
        let code = bytes.read_uleb128().ok()?;
        let declarations = self.part(self.abbreviations.as_ref()?, abbreviations, 1024)?;
        let mut declarations = gimli::EndianSlice::new(&declarations, self.endian);
        // The root's declaration comes first, with every compiler.
        if declarations.read_uleb128().ok()? != code {
            return None;
        }
        declarations.read_uleb128().ok()?;
        declarations.read_u8().ok()?;
        let (mut language, mut directory, mut name, mut split) = (None, None, None, None);
        let mut base = None;
        loop {
            let attribute = declarations.read_uleb128_u16().ok()?;
            let form = gimli::DwForm(declarations.read_uleb128_u16().ok()?);
            if attribute == 0 {
                break;
            }
            if form == dw::DW_FORM_implicit_const {
                declarations.read_sleb128().ok()?;
                continue;
            }
            let value = self.value(bytes, form, format, address_size)?;
            match gimli::DwAt(attribute) {
                dw::DW_AT_language => language = value.number(),
                dw::DW_AT_comp_dir => directory = Some(value),
                dw::DW_AT_name => name = Some(value),
                dw::DW_AT_dwo_name | dw::DW_AT_GNU_dwo_name => split = Some(value),
                dw::DW_AT_str_offsets_base => base = value.number(),
                _ => {}
            }
            let is_whole = [&directory, &name].into_iter().all(|text| match text {
                // The base of numbers may come behind them.
                Some(Value::Indexed(_)) => base.is_some(),
                text => text.is_some(),
            });
            if language.is_some() && is_whole {
                break;
            }
        }
        let text = |value: Option<Value>| self.resolved(value?, base, format);
        let (directory, name, split) = (text(directory), text(name), text(split));
        // The rest of a unit has its language.
        if language.is_none() && split.is_some_and(|file| is_rustc_part(&file)) {
            return Some(Root::Split(directory?));
        }
        if language != Some(u64::from(dw::DW_LANG_Rust.0)) {
            return None;
        }
        Some(Root::Unit(directory?, name.unwrap_or_default()))
    }

    fn value(
        &self,
        bytes: &mut gimli::EndianSlice<'_, gimli::RunTimeEndian>,
        form: gimli::DwForm,
        format: gimli::Format,
        address_size: u8,
    ) -> Option<Value> {
        let word = format.word_size();
        let mut number = |size: u8| bytes.read_uint(usize::from(size)).ok();
        Some(match form {
            dw::DW_FORM_string => {
                let text = bytes.read_null_terminated_slice().ok()?;
                Value::Text(String::from_utf8_lossy(text.slice()).into_owned())
            }
            dw::DW_FORM_strp => Value::Text(self.text(self.strings.as_ref()?, number(word)?)?),
            dw::DW_FORM_line_strp => Value::Text(self.text(self.line_strings.as_ref()?, number(word)?)?),
            dw::DW_FORM_strx1 => Value::Indexed(number(1)?),
            dw::DW_FORM_strx2 => Value::Indexed(number(2)?),
            dw::DW_FORM_strx3 => Value::Indexed(number(3)?),
            dw::DW_FORM_strx4 => Value::Indexed(number(4)?),
            dw::DW_FORM_strx | dw::DW_FORM_GNU_str_index => Value::Indexed(bytes.read_uleb128().ok()?),
            dw::DW_FORM_data1 | dw::DW_FORM_flag | dw::DW_FORM_addrx1 => Value::Number(number(1)?),
            dw::DW_FORM_data2 | dw::DW_FORM_addrx2 => Value::Number(number(2)?),
            dw::DW_FORM_addrx3 => Value::Number(number(3)?),
            dw::DW_FORM_data4 | dw::DW_FORM_addrx4 => Value::Number(number(4)?),
            dw::DW_FORM_data8 => Value::Number(number(8)?),
            dw::DW_FORM_addr => Value::Number(number(address_size)?),
            dw::DW_FORM_sec_offset => Value::Number(number(word)?),
            // DWARF 2 and 3 wrote section offsets as plain data, which the arms above cover.
            dw::DW_FORM_udata
            | dw::DW_FORM_addrx
            | dw::DW_FORM_rnglistx
            | dw::DW_FORM_loclistx
            | dw::DW_FORM_GNU_addr_index => Value::Number(bytes.read_uleb128().ok()?),
            dw::DW_FORM_sdata => Value::Number(bytes.read_sleb128().ok()? as u64),
            dw::DW_FORM_flag_present => Value::Number(1),
            _ => return None,
        })
    }

    /// Returns the text of a value; one with a number is in this unit's share of `.debug_str_offsets`, which begins at `base`,
    /// by default behind the head of the section.
    fn resolved(&self, value: Value, base: Option<u64>, format: gimli::Format) -> Option<String> {
        let index = match value {
            Value::Text(text) => return Some(text),
            Value::Indexed(index) => index,
            Value::Number(_) => return None,
        };
        let word = u64::from(format.word_size());
        let at = index.checked_mul(word)?.checked_add(base.unwrap_or(word * 2))?;
        let entry = self.part(self.string_offsets.as_ref()?, at, word)?;
        let mut entry = gimli::EndianSlice::new(&entry, self.endian);
        let offset = entry.read_uint(usize::from(format.word_size())).ok()?;
        self.text(self.strings.as_ref()?, offset)
    }

    fn text(&self, section: &Section, at: u64) -> Option<String> {
        let bytes = self.part(section, at, 4096)?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    /// Reads up to `length` bytes of a section, fewer at its end.
    fn part(&self, section: &Section, at: u64, length: u64) -> Option<Vec<u8>> {
        let length = usize::try_from(length.min(section.size().checked_sub(at)?)).ok()?;
        match section {
            Section::InFile { offset, .. } => read(&self.file, offset.checked_add(at)?, length),
            Section::Inflated(bytes) => {
                let at = usize::try_from(at).ok()?;
                Some(bytes.get(at..at.checked_add(length)?)?.to_vec())
            }
            Section::Compressed(_) => None,
        }
    }
}

/// Drops the number of a unit of rustc's, so that a crate has one name and not hundreds: `src/lib.rs/@/shop.90932d36a0c74be8-cgu.7`
/// → `src/lib.rs/@/shop`.
pub(super) fn drop_number(name: &mut String) {
    if let Some(at) = name.find("/@/")
        && let Some(end) = name[at..].find('.')
    {
        name.truncate(at + end);
    }
}

/// Returns whether a file is the rest of a unit of rustc's: `app-0a1b.app.0c2d-cgu.0.rcgu.dwo`.
pub(super) fn is_rustc_part(file: &str) -> bool {
    file.contains(".rcgu.")
}

enum Value {
    Number(u64),
    Text(String),
    /// Number of a text.
    Indexed(u64),
}

impl Value {
    fn number(self) -> Option<u64> {
        match self {
            Value::Number(number) => Some(number),
            _ => None,
        }
    }
}

pub(super) fn read(file: &File, offset: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

/// Reads like `read`, but a file may end earlier.
pub(super) fn read_some(file: &File, offset: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut bytes[filled..], offset.checked_add(filled as u64)?).ok()? {
            0 => break,
            read => filled += read,
        }
    }
    bytes.truncate(filled);
    Some(bytes)
}
