//! Bytes of a file for the parser of ELF files.
//!
//! Read side only. The parser asks for whole tables of symbols, of which hardly anything is looked at: several megabytes in a
//! large executable. A mapping takes no memory for them.
#![forbid(unsafe_code)]

use crate::record::file_map::FileMap;
use crate::record::trim;
use object::{ReadCache, ReadRef};
use std::fs::File;
use std::ops::Range;

/// A file, mapped where there is address space for it, else read by parts and kept.
pub(in crate::analyze::symbols) enum FileBytes {
    Mapped(FileMap),
    ByParts(ReadCache<File>),
}

impl FileBytes {
    /// Opens a file that stays as it is.
    pub(in crate::analyze::symbols) fn of(file: &File) -> Option<FileBytes> {
        let length = file.metadata().ok()?.len();
        let [address_space, _] = trim::memory_headroom();
        // The other half is for the tables made of it, and for allocations of the program meanwhile.
        let map = if length <= address_space / 2 { FileMap::of(file) } else { None };
        match map {
            Some(map) => Some(FileBytes::Mapped(map)),
            None => Some(FileBytes::ByParts(ReadCache::new(file.try_clone().ok()?))),
        }
    }
}

impl<'a> ReadRef<'a> for &'a FileBytes {
    fn len(self) -> Result<u64, ()> {
        match self {
            FileBytes::Mapped(map) => ReadRef::len(&**map),
            FileBytes::ByParts(parts) => ReadRef::len(parts),
        }
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        match self {
            FileBytes::Mapped(map) => (&**map).read_bytes_at(offset, size),
            FileBytes::ByParts(parts) => parts.read_bytes_at(offset, size),
        }
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'a [u8], ()> {
        match self {
            FileBytes::Mapped(map) => (&**map).read_bytes_at_until(range, delimiter),
            FileBytes::ByParts(parts) => parts.read_bytes_at_until(range, delimiter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_give_the_same_bytes() {
        let file = File::open("/proc/self/exe").unwrap();
        let mapped = FileBytes::of(&file).unwrap();
        let by_parts = FileBytes::ByParts(ReadCache::new(file));
        assert!(matches!(mapped, FileBytes::Mapped(_)));
        let read = |bytes: &FileBytes| {
            let len = ReadRef::len(bytes).unwrap();
            assert!(bytes.read_bytes_at(len - 1, 2).is_err() && bytes.read_bytes_at(u64::MAX, 1).is_err());
            let head = bytes.read_bytes_at(0, 64).unwrap().to_vec();
            (len, head, bytes.read_bytes_at_until(1..4096, 0).map(<[u8]>::to_vec))
        };
        assert_eq!(read(&mapped), read(&by_parts));
        assert!(read(&mapped).1.starts_with(b"\x7fELF"));
    }
}
