//! Finds the functions at an address as linked, the most recently inlined first, each with file and line.
//!
//! Read side only. It is a reader of heapgauge's own: the cache of the crate `backtrace` belongs to the program,
//! is shared with it, and can only be emptied whole. Here each module has one that is dropped by itself, and that a
//! library loaded later has like those before it. Compressed sections are inflated, which
//! [`ElfImage::lines_cost`](super::elf::ElfImage::lines_cost) counts.
#![forbid(unsafe_code)]

use super::debug_sections::{self, SplitUnits};
use super::module_symbols::Found;
use super::section_bytes::SectionBytes;
use addr2line::{Context, FrameIter, LookupContinuation, LookupResult};
use gimli::ReaderOffset;
use std::ops::Range;
use std::path::Path;

/// Rows of a line table that are looked at for a line that the compiler left out.
const NEIGHBOURS: usize = 64;

/// Bytes on each side of an address that a function of unknown size is assumed to cover.
const AROUND: u64 = 256;

/// Debug information of one module.
pub(super) struct Lines {
    context: Context<SectionBytes>,
    split: SplitUnits,
}

/// Frame, and its function's place in the debug information of its unit.
struct Entry {
    found: Found,
    function: Option<u64>,
}

impl Lines {
    /// Opens a file. `supplement`: the file that several debug files share, as `dwz` makes it. `package`: the `.dwp`
    /// file.
    pub(super) fn open(path: &Path, supplement: Option<&Path>, package: Option<&Path>) -> Option<Lines> {
        let context = Context::from_dwarf(debug_sections::read(path, supplement)?).ok()?;
        Some(Lines { context, split: SplitUnits::open(package) })
    }

    /// Returns the frames at an address. `function` is called where a line is missing, for the range of the function
    /// there.
    pub(super) fn frames(
        &self,
        address: u64,
        function: &mut dyn FnMut() -> Option<Range<u64>>,
    ) -> Vec<Found> {
        let mut entries = self.entries(address);
        if entries.iter().any(Entry::lacks_line) {
            let near = address.saturating_sub(AROUND)..address.saturating_add(AROUND);
            let around = function().unwrap_or(near);
            self.find_lines(&mut entries, address, around);
        }
        entries.into_iter().map(|entry| entry.found).collect()
    }

    fn entries(&self, address: u64) -> Vec<Entry> {
        let mut entries = Vec::new();
        let Some(mut frames) = self.inlined(address) else { return entries };
        while let Ok(Some(frame)) = frames.next() {
            let name = frame.function.as_ref().and_then(|function| function.raw_name().ok());
            let location = frame.location.as_ref();
            entries.push(Entry {
                found: Found {
                    name: name.map(|name| name.into_owned()),
                    file: location.and_then(|location| location.file).map(String::from),
                    line: location.and_then(|location| location.line).unwrap_or(0),
                },
                function: frame.dw_die_offset.map(|offset| offset.0.into_u64()),
            });
        }
        entries
    }

    /// Returns the frames of an address with the parts of units in other files, as far as they are there.
    fn inlined(&self, address: u64) -> Option<FrameIter<'_, SectionBytes>> {
        let mut frames = self.context.find_frames(address);
        loop {
            match frames {
                LookupResult::Output(frames) => return frames.ok(),
                LookupResult::Load { load, continuation } => {
                    frames = continuation.resume(self.split.load(&load));
                }
            }
        }
    }

    /// Gives frames whose line is 0, which marks code that the compiler made, the line of the nearest address at
    /// which the same function has one.
    fn find_lines(&self, entries: &mut [Entry], address: u64, around: Range<u64>) {
        let Ok(rows) = self.context.find_location_range(around.start, around.end) else { return };
        let mut places: Vec<u64> =
            rows.map(|(begin, ..)| begin).filter(|begin| around.contains(begin)).collect();
        places.sort_by_key(|place| place.abs_diff(address));
        places.dedup();
        for place in places.into_iter().take(NEIGHBOURS) {
            if !entries.iter().any(Entry::lacks_line) {
                return;
            }
            let near = self.entries(place);
            for entry in entries.iter_mut().filter(|entry| entry.lacks_line()) {
                let same = |other: &&Entry| other.function == entry.function && other.found.line > 0;
                if let Some(other) = near.iter().find(same) {
                    entry.found.file.clone_from(&other.found.file);
                    entry.found.line = other.found.line;
                }
            }
        }
    }
}

impl Entry {
    fn lacks_line(&self) -> bool {
        self.found.line == 0 && self.function.is_some()
    }
}
