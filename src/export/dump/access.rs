//! The directory of dumps, for those who serve it.

use std::fs::File;
use std::io;

pub(crate) use super::directory::DumpFile;
use super::directory::{self, Directory};
pub(crate) use super::requests::ask;
use crate::analyze::snapshot::Snapshot;
use crate::base::error::Error;
use crate::export::input::Quoted;
use crate::record::control;

/// Returns whether dumps are written somewhere.
pub(crate) fn has_directory() -> bool {
    super::directory().is_some()
}

/// Lists the dumps, oldest first. `None` without a directory.
pub(crate) fn list() -> Option<io::Result<Vec<DumpFile>>> {
    super::directory().map(|path| Directory::list(&path))
}

/// Returns whether a text is a name that a dump may have.
pub(crate) fn is_name(name: &str) -> bool {
    directory::reason_of(name).is_some()
}

/// Opens a dump by its name.
pub(crate) fn open(name: &str) -> io::Result<File> {
    super::directory().ok_or(io::ErrorKind::NotFound.into()).and_then(|path| directory::open(&path, name))
}

/// Reads a dump by its name.
pub(crate) fn load(name: &str) -> Result<Snapshot, Error> {
    let _own = control::internal();
    let unknown =
        || Error::new(format_args!("there is no dump {}, /debug/heap/dumps lists them", Quoted(name)));
    let path = super::directory().ok_or_else(unknown)?.join(name);
    // Never through a link, and no other file.
    open(name).map_err(|_| unknown())?;
    Snapshot::load(path)
}
