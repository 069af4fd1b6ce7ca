//! Readers of sections of a file, for `gimli`.
//!
//! A reader shares its bytes by a count of references: `gimli`'s own readers either borrow, and so cannot be kept beside
//! the bytes, or need another crate.
#![forbid(unsafe_code)]

use crate::record::file_map::FileMap;
use gimli::{Error, Reader, ReaderOffsetId, RunTimeEndian};
use object::{CompressedFileRange, CompressionFormat};
use std::borrow::Cow;
use std::ffi::CStr;
use std::rc::Rc;

/// Bytes that sections are part of.
#[derive(Debug)]
pub(super) enum Bytes {
    Mapped(FileMap),
    Inflated(Vec<u8>),
}

impl Bytes {
    fn all(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Inflated(bytes) => bytes,
        }
    }
}

/// Reader of a part of some bytes.
#[derive(Clone, Debug)]
pub(super) struct SectionBytes {
    bytes: Rc<Bytes>,
    /// Position; at most `end`, which is at most the number of bytes.
    at: usize,
    end: usize,
    endian: RunTimeEndian,
}

impl SectionBytes {
    pub(super) fn empty(endian: RunTimeEndian) -> SectionBytes {
        SectionBytes { bytes: Rc::new(Bytes::Inflated(Vec::new())), at: 0, end: 0, endian }
    }

    /// Reads a section of a mapped file, inflated where it is compressed. `None` if it is not in the file, or damaged.
    pub(super) fn of(
        file: &Rc<Bytes>,
        range: CompressedFileRange,
        endian: RunTimeEndian,
    ) -> Option<SectionBytes> {
        let at = usize::try_from(range.offset).ok()?;
        let end = at.checked_add(usize::try_from(range.compressed_size).ok()?)?;
        let stored = file.all().get(at..end)?;
        if range.format == CompressionFormat::None {
            return Some(SectionBytes { bytes: Rc::clone(file), at, end, endian });
        }
        let inflated = inflate(range.format, stored, range.uncompressed_size)?;
        let end = inflated.len();
        Some(SectionBytes { bytes: Rc::new(Bytes::Inflated(inflated)), at: 0, end, endian })
    }

    fn rest(&self) -> &[u8] {
        self.bytes.all().get(self.at..self.end).unwrap_or_default()
    }

    fn end_of_bytes(&self) -> Error {
        Error::UnexpectedEof(self.offset_id())
    }
}

impl Reader for SectionBytes {
    type Endian = RunTimeEndian;
    type Offset = usize;

    fn endian(&self) -> RunTimeEndian {
        self.endian
    }

    fn len(&self) -> usize {
        self.end - self.at
    }

    fn empty(&mut self) {
        self.end = self.at;
    }

    fn truncate(&mut self, length: usize) -> gimli::Result<()> {
        if length > self.len() {
            return Err(self.end_of_bytes());
        }
        self.end = self.at + length;
        Ok(())
    }

    fn offset_from(&self, base: &Self) -> usize {
        self.at.saturating_sub(base.at)
    }

    fn offset_id(&self) -> ReaderOffsetId {
        ReaderOffsetId(self.rest().as_ptr().addr() as u64)
    }

    fn lookup_offset_id(&self, id: ReaderOffsetId) -> Option<usize> {
        let offset = usize::try_from(id.0).ok()?.checked_sub(self.rest().as_ptr().addr())?;
        (offset <= self.len()).then_some(offset)
    }

    fn find(&self, byte: u8) -> gimli::Result<usize> {
        // Texts end with a zero byte; std finds it quickly even in a build without optimisation.
        let found = match byte {
            0 => CStr::from_bytes_until_nul(self.rest()).ok().map(CStr::count_bytes),
            _ => self.rest().iter().position(|other| *other == byte),
        };
        found.ok_or_else(|| self.end_of_bytes())
    }

    fn skip(&mut self, length: usize) -> gimli::Result<()> {
        if length > self.len() {
            return Err(self.end_of_bytes());
        }
        self.at += length;
        Ok(())
    }

    fn split(&mut self, length: usize) -> gimli::Result<Self> {
        let mut first = self.clone();
        first.truncate(length)?;
        self.skip(length)?;
        Ok(first)
    }

    fn to_slice(&self) -> gimli::Result<Cow<'_, [u8]>> {
        Ok(self.rest().into())
    }

    fn to_string(&self) -> gimli::Result<Cow<'_, str>> {
        std::str::from_utf8(self.rest()).map(Cow::Borrowed).map_err(|_| Error::BadUtf8)
    }

    fn to_string_lossy(&self) -> gimli::Result<Cow<'_, str>> {
        Ok(String::from_utf8_lossy(self.rest()))
    }

    fn read_slice(&mut self, to: &mut [u8]) -> gimli::Result<()> {
        let Some(from) = self.rest().get(..to.len()) else { return Err(self.end_of_bytes()) };
        to.copy_from_slice(from);
        self.at += to.len();
        Ok(())
    }

    // Numbers of variable length are read by this, and most values read are such. The default goes a long way round
    // in a build without optimisation.
    fn read_u8(&mut self) -> gimli::Result<u8> {
        match self.bytes.all().get(self.at) {
            Some(byte) if self.at < self.end => {
                self.at += 1;
                Ok(*byte)
            }
            _ => Err(self.end_of_bytes()),
        }
    }
}

/// Inflates a section; `None` unless exactly `size` bytes come out.
pub(super) fn inflate(format: CompressionFormat, stored: &[u8], size: u64) -> Option<Vec<u8>> {
    let size = usize::try_from(size).ok()?;
    // Foreign: it may say any size. Only asked, because zeros that come from the system need not be written.
    Vec::<u8>::new().try_reserve_exact(size).ok()?;
    let mut inflated = vec![0; size];
    let came_out = match format {
        CompressionFormat::Zlib => miniz_oxide::inflate::decompress_slice_iter_to_slice(
            &mut inflated,
            std::iter::once(stored),
            true,
            true,
        )
        .ok()?,
        CompressionFormat::Zstandard => {
            ruzstd::decoding::FrameDecoder::new().decode_all(stored, &mut inflated).ok()?
        }
        _ => return None,
    };
    (came_out == size).then_some(inflated)
}
