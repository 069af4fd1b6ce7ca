//! Names the frames of a snapshot that go by module and offset, from the executable or its separate debug file.
//!
//! A dump has such frames where the process had no memory left to read its line tables, or no line tables beside it.
#![forbid(unsafe_code)]

use crate::analyze::snapshot::{Snapshot, Trace};
use crate::analyze::symbols::{FileNames, module_of, offset_in};
use crate::base::error::Error;
use crate::record::control;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Snapshot with names from a file, and how many it gave.
#[doc(hidden)]
#[derive(Debug)]
pub struct NamedFrom {
    /// Snapshot with those names.
    pub snapshot: Snapshot,
    /// Linker's id of the file, hex.
    pub build_id: Option<String>,
    /// False if the file has neither line tables nor symbols of all functions, as a stripped one.
    pub has_names: bool,
    /// Module whose addresses were looked for; `None` where the snapshot has none without a name.
    pub module: Option<String>,
    /// Addresses of that module that had no name.
    pub addresses: usize,
    /// Addresses that have one now.
    pub named: usize,
}

impl Snapshot {
    /// Returns the snapshot with names from `file` for the frames of the module that it is, and sites chosen anew where there
    /// were such frames. Build ids are not compared.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or is no executable, library or debug file.
    #[doc(hidden)]
    pub fn named_from(&self, file: impl AsRef<Path>) -> Result<NamedFrom, Error> {
        let _own = control::internal();
        let file = file.as_ref();
        let mut names = FileNames::open(file)?;
        let mut modules: HashMap<&str, usize> = HashMap::new();
        let frames = || self.traces.iter().flat_map(|trace| trace.traceback.shared_frames());
        for frame in frames().filter(|frame| frame.function.is_none() && frame.offset.is_some()) {
            if let Some(module) = &frame.module {
                *modules.entry(module).or_default() += 1;
            }
        }
        let module = module_of(file, &modules).map(String::from);
        let mut named_from = NamedFrom {
            snapshot: self.clone(),
            build_id: names.build_id().map(String::from),
            has_names: names.has_names(),
            module: module.clone(),
            addresses: 0,
            named: 0,
        };
        let Some(module) = module else { return Ok(named_from) };
        let offsets: HashSet<u64> = frames().filter_map(|frame| offset_in(frame, &module)).collect();
        named_from.addresses = offsets.len();
        named_from.named = offsets.into_iter().filter(|offset| names.knows(*offset)).count();
        for Trace { traceback, .. } in &mut named_from.snapshot.traces {
            if let Some(named) = names.traceback(traceback, &module, self.traceback_limit) {
                *traceback = named;
            }
        }
        Ok(named_from)
    }
}
