//! Names of one module's code, from its line tables and its table of symbols.
//!
//! Line tables (`debug = "line-tables-only"`) name an inlined function by its last segment alone: `insert`. The
//! path in front is then made from the file (`src/cache.rs` of crate `shop` → `shop::cache::insert`), and a
//! closure's from the generic arguments of its caller. Functions that were not inlined have their full path from
//! the symbol table, as have the program's own that were not inlined everywhere, and `debug = "limited"` gives every path in
//! full.
#![forbid(unsafe_code)]

use super::batch::fits_never;
use super::demangle;
use super::derived;
use super::elf::{ElfImage, FunctionTable};
use super::function_starts::FunctionStarts;
#[cfg(target_os = "linux")]
use super::lines::Lines;
use super::loaded_modules::Module;
use super::site::Lost;
use super::site_rules::{self, CodeOwner};
use super::source_path::{DebugRoots, SourcePath};
use crate::analyze::frame::{Frame, UNKNOWN};
#[cfg(target_os = "linux")]
use gimli::UnitOffset;
use std::collections::HashMap;

/// Data of one module's file beside its line tables.
#[derive(Default)]
pub(super) struct ModuleSymbols {
    pub starts: Option<Option<FunctionStarts>>,
    roots: DebugRoots,
    bias: usize,
    pub image: Option<ElfImage>,
    functions: Option<FunctionTable>,
    #[cfg(target_os = "linux")]
    lines: Option<Lines>,
    /// True if there are no line tables, or they cannot be read.
    without_lines: bool,
    paths: HashMap<(String, Option<String>), SourcePath>,
    /// True if the data that names are made from is in memory.
    pub parsed: bool,
    pub detail: NameDetail,
    /// Reason why `detail` is less than lines, where it is for want of memory; and the room that lines would need.
    pub lost: Option<Lost>,
    pub lost_room: u64,
    /// True if there was no room to read which crates it has: they are compressed.
    pub lacks_roots: bool,
    /// True if files with functions are missing: lines are then known without the functions that were inlined there.
    lacks_parts: bool,
}

/// Detail of a module's names that the overhead limit has room for.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) enum NameDetail {
    #[default]
    Lines,
    /// Whole functions, from the table of symbols, which takes less.
    Functions,
    Offsets,
}

impl NameDetail {
    pub(super) fn less(self) -> NameDetail {
        if self == NameDetail::Lines { NameDetail::Functions } else { NameDetail::Offsets }
    }
}

/// Frame as debug information gives it.
pub(super) struct SymbolFrame {
    pub name: Option<String>,
    pub file: Option<String>,
    pub line: u32,
    /// Entry of the function in its unit.
    #[cfg(target_os = "linux")]
    pub entry: Option<UnitOffset>,
}

impl ModuleSymbols {
    /// Begins with a module and its file, where there is one. `room`: bytes that may be used meanwhile.
    pub(super) fn of(file: Option<(&Module, ElfImage)>, room: u64) -> ModuleSymbols {
        let Some((module, image)) = file else { return ModuleSymbols::default() };
        let units = image.units(room);
        ModuleSymbols {
            lacks_roots: units.lacks_room,
            lacks_parts: units.lacks_parts,
            roots: DebugRoots::of(units.found),
            bias: image.bias(module),
            image: Some(image),
            ..ModuleSymbols::default()
        }
    }

    /// Notes that there is no room for `cost` bytes of detail, within a limit that was set to `nominal`. Lines may be looked for
    /// again when as many bytes are free as `room` says.
    pub(super) fn lose(&mut self, cost: u64, nominal: u64, room: u64) {
        let lost = if fits_never(cost, nominal) { Lost::ForGood } else { Lost::ForNow };
        self.lost = self.lost.max(Some(lost));
        self.lost_room = room;
    }

    pub(super) fn drop_parsed(&mut self) {
        self.functions = None;
        #[cfg(target_os = "linux")]
        {
            self.lines = None;
        }
        self.parsed = false;
    }

    /// Returns the frames of an address from line tables, else the function from the table of symbols.
    pub(super) fn look_up(&mut self, address: usize, detail: NameDetail) -> Vec<SymbolFrame> {
        let mut found = if detail == NameDetail::Lines { self.lines_at(address) } else { Vec::new() };
        match found.last_mut() {
            None => found.extend(self.symbol(address)),
            // Line tables without functions: assembly, or split debug information whose files are not there.
            Some(outermost) if outermost.name.is_none() => {
                outermost.name = self.symbol(address).and_then(|symbol| symbol.name);
                self.without_inlined(outermost);
            }
            Some(_) => {}
        }
        found
    }

    /// Drops a line that is of another crate than the function, or may be: it is that of a function inlined there, which has
    /// no name.
    fn without_inlined(&mut self, frame: &mut SymbolFrame) {
        if self.lacks_parts {
            (frame.file, frame.line) = (None, 0);
            return;
        }
        let Some(function) = frame.name.as_deref().and_then(demangle) else { return };
        let function = demangle::normalise(&function, None);
        let krate = demangle::first_segment(&function);
        let home = frame.file.as_deref().and_then(|file| self.source_path(file, krate).krate);
        if home.as_deref() != krate {
            (frame.file, frame.line) = (None, 0);
        }
    }

    #[cfg(target_os = "linux")]
    fn lines_at(&mut self, address: usize) -> Vec<SymbolFrame> {
        let address = address.wrapping_sub(self.bias) as u64;
        if self.lines.is_none() && !self.without_lines {
            self.lines = self.image.as_ref().and_then(ElfImage::lines);
            self.without_lines = self.lines.is_none();
        }
        let Some(lines) = &self.lines else { return Vec::new() };
        let image = self.image.as_ref();
        let functions = &mut self.functions;
        let mut function =
            || image.and_then(|image| functions.get_or_insert_with(|| image.functions()).range_at(address));
        lines.frames(address, &mut function)
    }

    #[cfg(not(target_os = "linux"))]
    fn lines_at(&mut self, _address: usize) -> Vec<SymbolFrame> {
        self.without_lines = true;
        Vec::new()
    }

    /// Returns the final names of the frames of one address; the last is the function the address is in, the others
    /// were inlined into it.
    pub(super) fn name(&mut self, found: &[SymbolFrame], address: usize) -> Vec<(Frame, CodeOwner)> {
        let has_lines = self.detail == NameDetail::Lines && !self.without_lines;
        let outermost = found.last().and_then(|frame| self.compiled(frame.name.as_deref()?, address));
        let fallback_crate = outermost.as_deref().map(|path| demangle::normalise(path, None));
        let fallback_crate = fallback_crate.as_deref().and_then(demangle::first_segment);
        let mut named = Vec::with_capacity(found.len());
        for (at, frame) in found.iter().enumerate() {
            let path = frame.file.as_deref().map(|path| self.source_path(path, fallback_crate));
            let Some(name) = &frame.name else { continue };
            let home = path.as_ref().and_then(|path| path.krate.as_deref());
            let symbol = match &outermost {
                Some(path) if at + 1 == found.len() => Some(path.clone()),
                _ => demangle(name),
            };
            let symbol = match (symbol, &path) {
                (None, Some(SourcePath { own: true, .. })) => self.copy_of(frame, address),
                (symbol, _) => symbol,
            };
            let neighbour = |at: Option<usize>| found.get(at?)?.name.as_deref();
            let (caller, callee) = (neighbour(Some(at + 1)), neighbour(at.checked_sub(1)));
            let is_derived = match &symbol {
                Some(path) => derived::is_derived(path),
                None => derived::is_derived_inline(name, [caller, callee]),
            };
            let function = match symbol {
                Some(path) => demangle::normalise(&path, home),
                None => qualify(name, path.as_ref(), caller),
            };
            let mut owner = site_rules::owner_of(&function, path.as_ref());
            if owner == CodeOwner::Program
                && path.is_none()
                && self.roots.is_copy_of_standard(&function, has_lines)
            {
                owner = CodeOwner::Standard;
            }
            let is_own = || match &path {
                Some(path) => path.own,
                None => {
                    demangle::first_segment(&function).is_some_and(|krate| self.roots.holds_own_crate(krate))
                }
            };
            if owner == CodeOwner::Program && is_own() {
                owner = if is_derived { CodeOwner::Derived } else { CodeOwner::Own };
            }
            let file = path.as_ref().map_or(UNKNOWN, |path| &path.file);
            let line = if path.is_some() { frame.line } else { 0 };
            named.push((Frame::new(Some(&function), file, line), owner));
        }
        named
    }

    /// Returns the owner of the code of a frame that was named in another process of this module.
    #[cfg(target_os = "linux")]
    pub(super) fn owner_of_named(&self, frame: &Frame) -> CodeOwner {
        let function = frame.function.as_deref().unwrap_or_default();
        let krate = frame.crate_name();
        let path = (&*frame.file != UNKNOWN).then(|| SourcePath {
            file: frame.file.to_string(),
            standard: frame.file.starts_with("library/"),
            own: self.roots.holds_own_crate(krate),
            krate: Some(krate.to_owned()),
            module: String::new(),
        });
        match site_rules::owner_of(function, path.as_ref()) {
            CodeOwner::Program if self.roots.holds_own_crate(krate) => CodeOwner::Own,
            owner => owner,
        }
    }

    /// Returns the function from the table of symbols, without its inlined ones and without lines.
    fn symbol(&mut self, address: usize) -> Option<SymbolFrame> {
        let bias = self.bias;
        let name = self.functions()?.names_at(address.wrapping_sub(bias) as u64).into_iter().next()?;
        Some(SymbolFrame {
            name: Some(name),
            file: None,
            line: 0,
            #[cfg(target_os = "linux")]
            entry: None,
        })
    }

    fn functions(&mut self) -> Option<&FunctionTable> {
        let image = self.image.as_ref()?;
        Some(self.functions.get_or_insert_with(|| image.functions()))
    }

    /// Returns the demangled symbol of the function that holds the address.
    fn compiled(&mut self, name: &str, address: usize) -> Option<String> {
        if let Some(path) = demangle(name) {
            return Some(path);
        }
        let bare = demangle::normalise(name, None);
        let bias = self.bias;
        let symbols = self.functions()?.names_at(address.wrapping_sub(bias) as u64);
        symbols.iter().filter_map(|symbol| demangle(symbol)).find(|path| demangle::same_function(path, &bare))
    }

    /// Returns the demangled symbol of an inlined function, where copies of it that were not inlined have one.
    fn copy_of(&mut self, inlined: &SymbolFrame, address: usize) -> Option<String> {
        let copies = self.copies_of(inlined, address)?;
        let name = inlined.name.as_deref()?;
        let bias = self.bias;
        let mut symbols =
            copies.into_iter().map(|begin| self.compiled(name, (begin as usize).wrapping_add(bias)));
        let first = symbols.next()??;
        let path = demangle::normalise(&first, None);
        // A macro can make functions of one name for several types at one line.
        let same =
            |symbol: Option<String>| symbol.is_some_and(|symbol| demangle::normalise(&symbol, None) == path);
        symbols.all(same).then_some(first)
    }

    #[cfg(target_os = "linux")]
    fn copies_of(&self, inlined: &SymbolFrame, address: usize) -> Option<Vec<u64>> {
        self.lines.as_ref()?.copies_of(inlined, address.wrapping_sub(self.bias) as u64)
    }

    #[cfg(not(target_os = "linux"))]
    fn copies_of(&self, _inlined: &SymbolFrame, _address: usize) -> Option<Vec<u64>> {
        None
    }

    fn source_path(&mut self, path: &str, fallback_crate: Option<&str>) -> SourcePath {
        let key = (path.to_owned(), fallback_crate.map(String::from));
        self.paths.entry(key).or_insert_with(|| self.roots.source_path(path, fallback_crate)).clone()
    }
}

/// Demangles a Rust name; `None` for any other: a C function, or the bare name that line tables give.
fn demangle(name: &str) -> Option<String> {
    if !["_ZN", "_R", "ZN", "__ZN", "__R"].iter().any(|prefix| name.starts_with(prefix)) {
        return None;
    }
    let path = format!("{:#}", backtrace::SymbolName::new(name.as_bytes()));
    (path != name).then_some(path)
}

/// Makes a path of a bare name, from its file or, for a closure, from its caller's generic arguments.
fn qualify(name: &str, path: Option<&SourcePath>, caller: Option<&str>) -> String {
    let bare = demangle::normalise(name, None);
    let Some(path) = path.filter(|path| path.file.ends_with(".rs")) else { return bare };
    caller
        .and_then(|caller| demangle::closure_path(&bare, caller, path.krate.as_deref()))
        .unwrap_or_else(|| demangle::within(&path.module, &bare))
}
