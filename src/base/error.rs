//! Error type of the read side: the attempted operation, its object and the cause, in one line.
//!
//! The write side has no errors; it counts the events it cannot record (see `heap_dropped_events_total`).

use std::fmt;

/// An error of one line that names what was attempted, what was wrong and what is allowed.
///
/// The line ends with the cause, such as the operating system's, so [`source`](std::error::Error::source) is the cause of that
/// one: a chain of errors prints each once.
///
/// [`kind`](Error::kind) tells the cases apart that a caller may treat differently. Nothing was changed when an error comes
/// back.
///
/// # Examples
///
/// ```
/// let error = heapgauge::start(0).unwrap_err();
/// assert_eq!(error.to_string(), "start: 0 frames is out of range, allowed are 1 to 64");
/// ```
pub struct Error {
    kind: ErrorKind,
    message: Box<str>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Cases of an [`Error`] that a caller may treat differently.
///
/// # Examples
///
/// ```
/// use heapgauge::{ErrorKind, Snapshot};
///
/// let error = Snapshot::load("no/such/file.json").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Io);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Tracking is off, or heapgauge is not the global allocator of the program, so there are no traces.
    TrackingOff,
    /// The operating system refused a file, an address or a thread.
    Io,
    /// A file is not a snapshot of the version that is read.
    Format,
    /// A value is out of its range, or a call came at a time when it is not allowed.
    Usage,
}

impl Error {
    /// Returns the case that this error belongs to.
    ///
    /// # Examples
    ///
    /// ```
    /// use heapgauge::{ErrorKind, Snapshot};
    ///
    /// assert_eq!(heapgauge::start(0).unwrap_err().kind(), ErrorKind::Usage);
    /// assert_eq!(Snapshot::load("no/such/file.json").unwrap_err().kind(), ErrorKind::Io);
    /// // This example has no `#[global_allocator]` of heapgauge's.
    /// assert_eq!(Snapshot::take().unwrap_err().kind(), ErrorKind::TrackingOff);
    /// ```
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    #[cold]
    pub(crate) fn tracking_off(message: impl fmt::Display) -> Error {
        Error { kind: ErrorKind::TrackingOff, ..Error::new(message) }
    }

    #[cold]
    pub(crate) fn new(message: impl fmt::Display) -> Error {
        // One line, whatever a path or a value from outside holds.
        let message: String =
            message.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        Error { kind: ErrorKind::Usage, message: message.into(), source: None }
    }

    #[cold]
    pub(crate) fn with_source(
        message: impl fmt::Display,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        let source = source.into();
        let kind = match source.downcast_ref::<Error>() {
            Some(cause) => cause.kind,
            None if source.is::<std::io::Error>() => ErrorKind::Io,
            None => ErrorKind::Format,
        };
        Error { kind, source: Some(source), ..Error::new(message) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.source {
            Some(source) => write!(f, ": {}", source.to_string().replace(['\n', '\r'], " ")),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({self})")
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // The message ends with the text of the cause itself.
        self.source.as_ref()?.source()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report of a chain printed the cause twice.
    #[test]
    fn a_chain_prints_each_cause_once() {
        let error = Error::with_source("load snapshot from x.json", std::io::Error::other("disk on fire"));
        let mut chain = error.to_string();
        let mut next = std::error::Error::source(&error);
        while let Some(cause) = next {
            chain.push_str(&cause.to_string());
            next = cause.source();
        }
        assert_eq!(chain, "load snapshot from x.json: disk on fire");
        assert_eq!(error.kind(), ErrorKind::Io);
        assert_eq!(
            Error::with_source("HEAPGAUGE_ADDR=x", Error::tracking_off("off")).kind(),
            ErrorKind::TrackingOff
        );
        assert_eq!(Error::with_source("load", "no traces").kind(), ErrorKind::Format);
        assert_eq!(format!("{error:?}"), "Error(load snapshot from x.json: disk on fire)");
    }
}
