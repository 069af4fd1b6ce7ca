//! The one error of the read side: what was attempted on what, in one line.
//!
//! The write side has no errors; what it cannot record it counts (see `heap_dropped_events_total`).

use std::fmt;

/// What went wrong, as one line that names what was attempted, what was wrong and what is allowed.
///
/// The line ends with the cause, such as the operating system's, so [`source`](std::error::Error::source) is the cause of that
/// one: a chain of errors prints each once.
///
/// The kinds are private: a caller prints it or gives up, and nothing was changed when one comes back.
///
/// # Examples
///
/// ```
/// let error = heapgauge::start(0).unwrap_err();
/// assert_eq!(error.to_string(), "start: 0 frames is out of range, allowed are 1 to 64");
/// ```
pub struct Error {
    message: Box<str>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    #[cold]
    pub(crate) fn new(message: impl fmt::Display) -> Error {
        // One line, whatever a path or a value from outside holds.
        let message: String =
            message.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        Error { message: message.into(), source: None }
    }

    #[cold]
    pub(crate) fn with_source(
        message: impl fmt::Display,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        Error { source: Some(source.into()), ..Error::new(message) }
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
        assert_eq!(format!("{error:?}"), "Error(load snapshot from x.json: disk on fire)");
    }
}
