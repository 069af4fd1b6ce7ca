//! Text in a file that explains an end by the memory limit, such as Kubernetes' `/dev/termination-log`.
//!
//! The file may be a mount: it is rewritten in place by one write of fixed length, and neither renamed nor truncated.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// Length of the text: what Kubernetes reads of it is 4,096 bytes.
pub(super) const LENGTH: usize = 4000;
/// Least time between two texts.
const REST: Duration = Duration::from_secs(1);

/// Open termination log.
#[derive(Debug)]
pub(super) struct TerminationLog {
    file: File,
    /// Time of the text that the file has; `None`: it has none of this run.
    written: Option<Instant>,
    page: Vec<u8>,
}

impl TerminationLog {
    /// Opens the file, or creates it.
    pub(super) fn open(path: &Path) -> io::Result<TerminationLog> {
        // Not emptied: what another run has left explains the end of that run.
        let file = File::options().write(true).create(true).truncate(false).open(path)?;
        Ok(TerminationLog { file, written: None, page: vec![b'\n'; LENGTH] })
    }

    /// Returns whether a text may be written again.
    pub(super) fn is_due(&self) -> bool {
        self.written.is_none_or(|written| written.elapsed() >= REST)
    }

    /// Writes the text, cut at the length.
    pub(super) fn write(&mut self, text: &str) -> io::Result<()> {
        let len = text.len().min(LENGTH);
        self.page[..len].copy_from_slice(&text.as_bytes()[..len]);
        self.page[len..].fill(b'\n');
        self.written = Some(Instant::now());
        self.write_page()
    }

    /// Takes the text away, if there is one of this run: it would explain an end that has another reason.
    pub(super) fn empty(&mut self) -> io::Result<()> {
        if self.written.take().is_none() {
            return Ok(());
        }
        self.page.fill(b'\n');
        self.write_page()
    }

    fn write_page(&self) -> io::Result<()> {
        #[cfg(unix)]
        let written = std::os::unix::fs::FileExt::write_at(&self.file, &self.page, 0)?;
        #[cfg(not(unix))]
        let written = std::io::Write::write(&mut &self.file, &self.page)?;
        if written == self.page.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn the_file_keeps_its_length_and_its_inode() {
        use std::os::unix::fs::MetadataExt as _;
        let path = std::env::temp_dir().join(format!("heapgauge-termination-{}", std::process::id()));
        std::fs::write(&path, "an earlier run").unwrap();
        let inode = std::fs::metadata(&path).unwrap().ino();
        let mut log = TerminationLog::open(&path).unwrap();
        log.empty().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "an earlier run", "it is not of this run");
        log.write("the reason\n").unwrap();
        assert!(!log.is_due());
        let read = std::fs::read_to_string(&path).unwrap();
        assert_eq!((read.trim_end(), read.len()), ("the reason", LENGTH));
        log.write(&"x".repeat(5000)).unwrap();
        log.empty().unwrap();
        let data = std::fs::metadata(&path).unwrap();
        assert_eq!((data.len(), data.ino()), (LENGTH as u64, inode));
        assert_eq!(std::fs::read_to_string(&path).unwrap().trim(), "");
        std::fs::remove_file(&path).unwrap();
    }
}
