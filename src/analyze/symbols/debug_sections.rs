//! Reads the debug sections of a file, with those of the files that it refers to.
//!
//! Read side only. A file is mapped while it is read, and its compressed sections are inflated.
#![forbid(unsafe_code)]

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
            let is_debug = name.starts_with(".debug_");
            is_debug.then(|| Some((name, section.compressed_file_range().ok()?))).flatten()
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
