//! Failures of the program, each one line.

use std::fmt::Display;
use std::io;

/// Reason why the program ends without having done its work.
#[derive(Debug)]
pub enum Failure {
    /// The command line is wrong.
    Usage(String),
    Other(String),
    /// The reader of the output has gone.
    BrokenPipe,
}

impl Failure {
    pub fn usage(line: impl Display) -> Failure {
        Failure::Usage(line.to_string())
    }

    pub fn other(line: impl Display) -> Failure {
        Failure::Other(line.to_string())
    }

    /// Describes an error of writing the output.
    pub fn of_output(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::BrokenPipe,
            _ => Failure::Other(format!("write to stdout: {error}")),
        }
    }
}

impl From<heapgauge::Error> for Failure {
    fn from(error: heapgauge::Error) -> Failure {
        Failure::Other(error.to_string())
    }
}

impl From<lexopt::Error> for Failure {
    fn from(error: lexopt::Error) -> Failure {
        Failure::Usage(format!("{error}; see heapgauge --help"))
    }
}

/// Prints a line to stderr.
pub fn say(line: &str) {
    eprintln!("heapgauge: {}", crate::text::one_line(line));
}
