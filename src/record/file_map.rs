//! A file's bytes, mapped to be read.
//!
//! Serves the readers of debug information in `analyze/`, which have no `unsafe` of their own. Pages come from the
//! file and go back to it: however large the file, hardly anything is added to the process's private memory.

use std::fs::File;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// A whole file, read only.
#[derive(Debug)]
pub(crate) struct FileMap {
    bytes: NonNull<[u8]>,
}

impl FileMap {
    /// Maps a file. `None` where the system refuses, and for an empty file.
    pub(crate) fn of(file: &File) -> Option<FileMap> {
        let length = usize::try_from(file.metadata().ok()?.len()).ok().filter(|length| *length > 0)?;
        let (access, kind) = (libc::PROT_READ, libc::MAP_PRIVATE);
        // SAFETY: the system chooses the place, so nothing else is mapped there; the descriptor is open.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, access, kind, file.as_raw_fd(), 0) };
        let start = NonNull::new(start.cast()).filter(|_| start != libc::MAP_FAILED)?;
        Some(FileMap { bytes: NonNull::slice_from_raw_parts(start, length) })
    }
}

impl Deref for FileMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: so many bytes are mapped until `self` is dropped, and this process never writes to them. As with
        // every reader of debug information that maps files, among them that of the standard library's backtraces, a
        // program whose executable is written over in place, instead of replaced, is lost.
        unsafe { self.bytes.as_ref() }
    }
}

impl Drop for FileMap {
    fn drop(&mut self) {
        // SAFETY: mapped by `of`, and no slice of it outlives `self`.
        unsafe { libc::munmap(self.bytes.as_ptr().cast(), self.bytes.len()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_and_an_empty_one_is_none() {
        let path = std::env::temp_dir().join(format!("heapgauge-file-map-{}", std::process::id()));
        for text in ["", "some bytes"] {
            std::fs::write(&path, text).unwrap();
            let map = FileMap::of(&File::open(&path).unwrap());
            let mapped = map.as_deref().unwrap_or_default();
            assert_eq!((map.is_some(), mapped), (!text.is_empty(), text.as_bytes()));
        }
        std::fs::remove_file(path).unwrap();
    }
}
