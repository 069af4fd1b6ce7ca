//! Names addresses of another process from the file that they were linked in, or from its separate debug file.
//!
//! Read side only, for dumps whose addresses go by module and offset. Nothing is dropped while it lives: it is for a
//! program that reads dumps, not for the one that writes them.
#![forbid(unsafe_code)]

use super::elf::{ElfImage, build_id_in};
use super::loaded_modules::{Module, hex};
use super::module_symbols::{ModuleSymbols, NameDetail};
use super::site_rules::{CodeOwner, owner_of_module};
use crate::analyze::frame::{Frame, Traceback};
use crate::base::error::Error;
use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

/// Frames of one address, most recently inlined first, with the owner of each one's code.
type Named = Vec<(Arc<Frame>, CodeOwner)>;

/// Names of the code of one file.
pub(crate) struct FileNames {
    symbols: ModuleSymbols,
    /// Difference between the addresses that `symbols` takes and those as linked.
    bias: usize,
    build_id: Option<String>,
    has_names: bool,
    known: HashMap<u64, Named>,
}

impl FileNames {
    /// Opens an executable, a library, or a separate debug file; for one of the first two its debug file is found as in a
    /// running process.
    pub(crate) fn open(path: &Path) -> Result<FileNames, Error> {
        let failed =
            |reason: &dyn std::fmt::Display| Error::new(format_args!("{}: {reason}", path.display()));
        let about = std::fs::metadata(path).map_err(|error| failed(&error))?;
        if about.is_dir() {
            return Err(failed(&"is a directory, allowed are an executable and its debug file"));
        }
        let mut magic = [0; 4];
        match File::open(path).and_then(|mut file| file.read_exact(&mut magic)) {
            Ok(()) if magic == *b"\x7fELF" => {}
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => return Err(failed(&error)),
            _ => return Err(failed(&"is no ELF file, allowed are an executable and its debug file")),
        }
        let module = Module {
            name: path.file_name().unwrap_or_default().to_string_lossy().into(),
            path: path.to_owned(),
            low: 0,
            inode: about.ino(),
            ranges: vec![(0, usize::MAX)],
            code: Vec::new(),
            deleted: false,
        };
        let image = ElfImage::open(&module).ok_or_else(|| {
            failed(&"cannot be read: it is malformed, or of another word size than this program")
        })?;
        let has_names = image.lines().is_some() || image.has_functions();
        Ok(FileNames {
            bias: image.bias(&module),
            symbols: ModuleSymbols::of(Some((&module, image)), u64::MAX),
            build_id: build_id_in(path).map(|id| hex(&id)),
            has_names,
            known: HashMap::new(),
        })
    }

    /// Returns the linker's id of the file, hex; `None` where the linker wrote none.
    pub(crate) fn build_id(&self) -> Option<&str> {
        self.build_id.as_deref()
    }

    /// Returns whether it has line tables, or symbols of all functions.
    pub(crate) fn has_names(&self) -> bool {
        self.has_names
    }

    /// Returns whether an address as linked has a name.
    pub(crate) fn knows(&mut self, offset: u64) -> bool {
        !self.at(offset).is_empty()
    }

    /// Returns the traceback with the frames of `module` named, and its nearest frame and its site chosen anew; `None` where it
    /// has no frame to be named.
    pub(crate) fn traceback(&mut self, of: &Traceback, module: &str, limit: usize) -> Option<Traceback> {
        let mut is_named = false;
        let mut frames: Named = Vec::with_capacity(of.shared_frames().len());
        for frame in of.shared_frames() {
            match offset_in(frame, module).map(|offset| self.at(offset)) {
                Some(named) if !named.is_empty() => {
                    frames.extend_from_slice(named);
                    is_named = true;
                }
                _ => {
                    let owner = match &frame.module {
                        Some(module) if frame.function.is_none() => owner_of_module(module),
                        _ => self.symbols.owner_of_named(frame),
                    };
                    frames.push((frame.clone(), owner));
                }
            }
        }
        if !is_named {
            return None;
        }
        let choice = super::global().names().choose(&frames);
        let (frames, site) = (&frames[choice.nearest..], choice.site - choice.nearest);
        let kept = &frames[..frames.len().min(limit.max(site + 1))];
        let cut = of.is_truncated() || kept.len() < frames.len();
        let kept: Arc<[Arc<Frame>]> = kept.iter().map(|(frame, _)| frame.clone()).collect();
        let total = kept.len() + usize::from(cut);
        Some(Traceback::shared(kept, total).with_site(site))
    }

    fn at(&mut self, offset: u64) -> &Named {
        let FileNames { symbols, bias, known, .. } = self;
        known.entry(offset).or_insert_with(|| {
            // Without its unwind table a process counts from the lowest address as linked, which is 0 but in an executable at a
            // fixed address.
            let lowest = bias.wrapping_neg();
            let linked = offset as usize;
            let linked = if linked < lowest { linked + lowest } else { linked };
            let address = linked.wrapping_add(*bias);
            let found = symbols.look_up(address, NameDetail::Lines);
            if found.iter().all(|frame| frame.name.is_none()) {
                return Vec::new();
            }
            let named = symbols.name(&found, address);
            named.into_iter().map(|(frame, owner)| (Arc::new(frame), owner)).collect()
        })
    }
}

/// Returns the offset of a frame that only goes by that, in this module.
pub(crate) fn offset_in(frame: &Frame, module: &str) -> Option<u64> {
    let is_unnamed = frame.function.is_none() && frame.module.as_deref() == Some(module);
    frame.offset.filter(|_| is_unnamed)
}

/// Returns the module of unnamed frames that a file most likely is: the one of its name; else the one with most frames that is
/// not the C library or the like.
pub(crate) fn module_of<'a>(file: &Path, frames: &HashMap<&'a str, usize>) -> Option<&'a str> {
    let is_file = |module: &str| {
        [file.file_name(), file.file_stem()].into_iter().flatten().any(|name| name.to_str() == Some(module))
    };
    let named = frames.keys().copied().find(|module| is_file(module));
    let others = frames.iter().filter(|(module, _)| owner_of_module(module) != CodeOwner::Standard);
    named.or_else(|| others.max_by_key(|&(module, count)| (*count, *module)).map(|(module, _)| *module))
}
