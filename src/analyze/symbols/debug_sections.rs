//! Reads the debug sections of a file, with those of the files that it refers to.
//!
//! Read side only. A file is mapped while it is read, and its compressed sections are inflated.
#![forbid(unsafe_code)]

use super::dwarf_units::{drop_number, is_rustc_part};
use super::elf::{Header, standard};
use super::section_bytes::{Bytes, SectionBytes};
use crate::record::file_map::FileMap;
use addr2line::SplitDwarfLoad;
use gimli::{Dwarf, DwarfPackage, Reader, RunTimeEndian};
use object::read::elf::ElfFile;
use object::{CompressedFileRange, Object, ObjectSection};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

/// Debug sections that are read, by the end of their names: none of variables, types and indexes for debuggers, which
/// would only take memory where they are compressed.
const READ: &[&str] = &[
    "abbrev",
    "addr",
    "aranges",
    "cu_index",
    "info",
    "line",
    "line_str",
    "ranges",
    "rnglists",
    "str",
    "str_offsets",
];

/// Returns whether a section is read, by its standard name; `.dwo` files have the same ones with an ending.
pub(super) fn is_read(name: &str) -> bool {
    let name = name.strip_prefix(".debug_").map(|name| name.strip_suffix(".dwo").unwrap_or(name));
    name.is_some_and(|name| READ.contains(&name))
}

/// Mapped file, and its debug sections by their names.
struct Sections {
    file: Rc<Bytes>,
    ranges: Vec<(String, CompressedFileRange)>,
    endian: RunTimeEndian,
}

impl Sections {
    fn open(path: &Path) -> Option<Sections> {
        let map = FileMap::of(&File::open(path).ok()?)?;
        let elf = ElfFile::<Header>::parse(&*map).ok()?;
        let endian = if elf.is_little_endian() { RunTimeEndian::Little } else { RunTimeEndian::Big };
        let ranges = elf.sections().filter_map(|section| {
            let name = standard(section.name().ok()?).into_owned();
            is_read(&name).then(|| Some((name, section.compressed_file_range().ok()?))).flatten()
        });
        let ranges = ranges.collect();
        Some(Sections { file: Rc::new(Bytes::Mapped(map)), ranges, endian })
    }

    /// Reads a section. It is empty where there is no such section; an error where it cannot be read.
    fn read(&self, name: Option<&str>) -> gimli::Result<SectionBytes> {
        let Some((_, range)) = self.ranges.iter().find(|(other, _)| name == Some(other)) else {
            return Ok(SectionBytes::empty(self.endian));
        };
        SectionBytes::of(&self.file, *range, self.endian).ok_or(gimli::Error::Io)
    }
}

/// Reads the debug sections of a file. `supplement`: the file that several debug files share, as `dwz` makes it.
pub(super) fn read(path: &Path, supplement: Option<&Path>) -> Option<Dwarf<SectionBytes>> {
    let sections = Sections::open(path)?;
    let mut dwarf = Dwarf::load(|id| sections.read(Some(id.name()))).ok()?;
    if let Some(supplement) = supplement {
        let sections = Sections::open(supplement)?;
        dwarf.load_sup(|id| sections.read(Some(id.name()))).ok()?;
    }
    dwarf.populate_abbreviations_cache(gimli::AbbreviationsCacheStrategy::Duplicates);
    Some(dwarf)
}

/// Returns directory and name of each unit of rustc's whose rest is in another file, and whether some of those files
/// cannot be read. `package`: the `.dwp` file.
#[expect(clippy::arc_with_non_send_sync, reason = "it is what addr2line takes")]
pub(super) fn split_units(path: &Path, package: Option<&Path>) -> Option<(Vec<(String, String)>, bool)> {
    let parent = Arc::new(read(path, None)?);
    let parts = SplitUnits::open(package);
    let (mut found, mut lacks_parts) = (Vec::new(), false);
    let mut heads = parent.units();
    while let Some(head) = heads.next().ok()? {
        let Ok(unit) = parent.unit(head) else { continue };
        let file = unit.dwo_name().ok().flatten().and_then(|name| parent.attr_string(&unit, name).ok());
        let (Some(dwo_id), Some(file)) = (unit.dwo_id, file) else { continue };
        if !file.to_string_lossy().is_ok_and(|file| is_rustc_part(&file)) {
            continue;
        }
        let load = SplitDwarfLoad {
            dwo_id,
            comp_dir: unit.comp_dir.clone(),
            path: Some(file),
            parent: Arc::clone(&parent),
        };
        let name = parts.load(&load).and_then(|part| {
            let head = part.units().next().ok()??;
            Some(part.unit(head).ok()?.name?.to_string_lossy().ok()?.into_owned())
        });
        lacks_parts |= name.is_none();
        let name = name.map(|mut name| {
            drop_number(&mut name);
            name
        });
        let directory =
            unit.comp_dir.as_ref().and_then(|text| Some(text.to_string_lossy().ok()?.into_owned()));
        found.extend(directory.zip(name));
    }
    found.sort();
    found.dedup();
    Some((found, lacks_parts))
}

/// Parts of units that `-C split-debuginfo` puts into files of their own.
pub(super) struct SplitUnits {
    package: Option<DwarfPackage<SectionBytes>>,
}

impl SplitUnits {
    /// Opens `package`: the `.dwp` file that the parts of all units were packed in.
    pub(super) fn open(package: Option<&Path>) -> SplitUnits {
        let package = package.and_then(Sections::open).and_then(|sections| {
            DwarfPackage::load(|id| sections.read(id.dwo_name()), SectionBytes::empty(sections.endian)).ok()
        });
        SplitUnits { package }
    }

    /// Loads the part of a unit; `None` where the file is not there, or of another build.
    #[expect(clippy::arc_with_non_send_sync, reason = "it is what addr2line takes")]
    pub(super) fn load(&self, unit: &SplitDwarfLoad<SectionBytes>) -> Option<Arc<Dwarf<SectionBytes>>> {
        let packed =
            self.package.as_ref().and_then(|package| package.find_cu(unit.dwo_id, &unit.parent).ok()?);
        if let Some(packed) = packed {
            return Some(Arc::new(packed));
        }
        let text = |text: &SectionBytes| Some(PathBuf::from(OsStr::from_bytes(&text.to_slice().ok()?)));
        let directory = unit.comp_dir.as_ref().and_then(text).unwrap_or_default();
        let sections = Sections::open(&directory.join(unit.path.as_ref().and_then(text)?))?;
        let mut dwarf = Dwarf::load(|id| sections.read(id.dwo_name())).ok()?;
        let head = dwarf.units().next().ok()??;
        if dwarf.unit(head).ok()?.dwo_id != Some(unit.dwo_id) {
            return None;
        }
        dwarf.make_dwo(&unit.parent);
        Some(Arc::new(dwarf))
    }
}
