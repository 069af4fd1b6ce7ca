//! Reads and writes the JSON file of a [`Snapshot`](super::Snapshot).
//!
//! Any thread may use it. A file that was written can be read again. A file may come from anywhere: memory stays in
//! proportion to its length, and an error is one line of bounded length.

pub(crate) mod dump;
mod read;
mod read_parts;
mod shared;
#[cfg(test)]
mod tests;
mod write;

pub(super) use read::read;
#[cfg(feature = "http")]
pub(crate) use shared::pieces;
#[cfg(feature = "http")]
pub(crate) use write::FileFrames;
pub(super) use write::write;

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};

/// Version of the file; there is no other.
const VERSION: u64 = 1;

/// Longest file that is read or written.
const MAX_BYTES: u64 = 1 << 30;

/// Longest file that is read in one piece, which takes less than half the time: 134 MB, 100,000 tracebacks of twelve
/// frames, took 0.55 s, and from a stream 1.3 s. A reader of windows of the file took 0.49 s, for 200 lines more.
const IN_ONE_PIECE: u64 = 256 << 20;

/// Most frames of one traceback, as many as `tracemalloc` ever stores.
const MAX_FRAMES: usize = 65_535;

/// Most text of frames that is kept for comparison: some 40,000 of them.
const MOST_TEXT: usize = 4 << 20;

/// Longest description of a fault in a file; parts of the file may be repeated there.
const MAX_PROBLEM: usize = 200;

/// Stream that tells another thread how many bytes were read.
struct Watched<'a, T> {
    inner: T,
    read: &'a AtomicU64,
}

impl<T: Read> Read for Watched<'_, T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        // Relaxed: the number is displayed, and orders nothing else.
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Stream that fails beyond a number of bytes.
struct Bounded<T> {
    inner: T,
    left: u64,
}

impl<T> Bounded<T> {
    fn take(&mut self, bytes: usize) -> io::Result<()> {
        let left = self.left.checked_sub(bytes as u64);
        self.left = left
            .ok_or_else(|| io::Error::other(format!("more than the {MAX_BYTES} bytes that are allowed")))?;
        Ok(())
    }
}

impl<T: Write> Write for Bounded<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.take(bytes.len())?;
        self.inner.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Bounded<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.take(read)?;
        Ok(read)
    }
}
