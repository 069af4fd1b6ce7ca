//! Systems whose executables are not read: no file has names.
#![forbid(unsafe_code)]

use crate::analyze::frame::{Frame, Traceback};
use crate::base::error::Error;
use std::collections::HashMap;
use std::path::Path;

pub(crate) struct FileNames;

impl FileNames {
    pub(crate) fn open(path: &Path) -> Result<FileNames, Error> {
        Err(Error::new(format_args!("{}: names are read from files on Linux only", path.display())))
    }

    pub(crate) fn build_id(&self) -> Option<&str> {
        None
    }

    pub(crate) fn has_names(&self) -> bool {
        false
    }

    pub(crate) fn knows(&mut self, _offset: u64) -> bool {
        false
    }

    pub(crate) fn traceback(&mut self, _of: &Traceback, _module: &str, _limit: usize) -> Option<Traceback> {
        None
    }
}

pub(crate) fn offset_in(_frame: &Frame, _module: &str) -> Option<u64> {
    None
}

pub(crate) fn module_of<'a>(_file: &Path, _frames: &HashMap<&'a str, usize>) -> Option<&'a str> {
    None
}
