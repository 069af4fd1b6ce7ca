//! Settings of dumps: those of the environment and of a builder.

use std::path::PathBuf;

use crate::export::input::{number, size};

/// Most dumps of a reason that can be kept.
const MOST_KEPT: usize = 1000;
/// Least bytes for all dumps: one of a few stacks.
const LEAST_BYTES: u64 = 64 << 10;

/// Use of memory at which a dump is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DumpAt {
    /// Percent of the limit.
    Percent(u8),
    Bytes(u64),
}

/// Settings of dumps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DumpSettings {
    /// Directory of the dumps; `None`: nothing is written.
    pub(super) directory: Option<PathBuf>,
    /// Most dumps of each reason.
    pub(super) keep: usize,
    /// Most bytes of all dumps.
    pub(super) max_bytes: u64,
    pub(super) at: Vec<DumpAt>,
    /// Name and number of a signal.
    pub(super) signal: Option<(&'static str, i32)>,
    pub(super) termination_log: Option<PathBuf>,
    /// Limit of this process, in bytes; `None`: that of its cgroup alone.
    pub(crate) memory_limit: Option<u64>,
}

impl Default for DumpSettings {
    fn default() -> DumpSettings {
        DumpSettings {
            directory: None,
            keep: 5,
            max_bytes: 64 << 20,
            at: vec![DumpAt::Percent(80), DumpAt::Percent(90)],
            signal: None,
            termination_log: None,
            memory_limit: None,
        }
    }
}

/// Names of the variables about dumps, in the order of the documentation.
pub(crate) const KEYS: [&str; 6] = [
    "HEAPGAUGE_DUMP_DIR",
    "HEAPGAUGE_DUMP_AT",
    "HEAPGAUGE_DUMP_KEEP",
    "HEAPGAUGE_DUMP_MAX_BYTES",
    "HEAPGAUGE_DUMP_SIGNAL",
    "HEAPGAUGE_TERMINATION_LOG",
];

impl DumpSettings {
    /// Returns whether anything is to be written: what is kept in memory alone needs no names.
    pub(super) fn writes(&self) -> bool {
        self.directory.is_some() || self.termination_log.is_some()
    }

    /// Applies one of [`KEYS`] or `HEAPGAUGE_MEMORY_LIMIT`. Err: the line about its value, without its name.
    pub(crate) fn apply(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "HEAPGAUGE_DUMP_DIR" => {
                self.directory = Some(path(value).ok_or("allowed is a directory, taking none")?)
            }
            "HEAPGAUGE_DUMP_AT" => {
                self.at = levels(value)
                    .ok_or("allowed are percentages and sizes such as 80%,900MiB, taking 80%,90%")?;
            }
            "HEAPGAUGE_DUMP_KEEP" => {
                self.keep = number(value, 1, MOST_KEPT).ok_or("allowed are 1 to 1000, taking 5")?;
            }
            "HEAPGAUGE_DUMP_MAX_BYTES" => {
                self.max_bytes = size(value)
                    .filter(|&bytes| bytes >= LEAST_BYTES)
                    .ok_or("allowed is a size of at least 64KiB, taking 64MiB")?;
            }
            "HEAPGAUGE_DUMP_SIGNAL" => {
                self.signal = Some(signal(value).ok_or_else(|| {
                    let names: Vec<&str> = SIGNALS.iter().map(|(name, _)| *name).collect();
                    format!("allowed are {}, taking none", names.join(", "))
                })?);
            }
            "HEAPGAUGE_MEMORY_LIMIT" => self.memory_limit = Some(memory_limit(value)?),
            // HEAPGAUGE_TERMINATION_LOG
            _ => self.termination_log = Some(path(value).ok_or("allowed is a file, taking none")?),
        }
        Ok(())
    }
}

/// Reads a memory limit. Err: the line about its value, without its name.
pub(crate) fn memory_limit(value: &str) -> Result<u64, String> {
    size(value).filter(|&bytes| bytes > 0).ok_or_else(|| {
        "allowed is a number above 0 with B, KiB, MiB or GiB such as 512MiB, taking the cgroup's limit".into()
    })
}

fn path(value: &str) -> Option<PathBuf> {
    (!value.is_empty()).then(|| PathBuf::from(value))
}

/// Reads `80%,900MiB`.
pub(super) fn levels(value: &str) -> Option<Vec<DumpAt>> {
    value.split(',').map(|level| self::level(level.trim())).collect()
}

fn level(value: &str) -> Option<DumpAt> {
    match value.strip_suffix('%') {
        Some(percent) => number(percent, 1, 100).map(|percent| DumpAt::Percent(percent as u8)),
        None => size(value).filter(|&bytes| bytes > 0).map(DumpAt::Bytes),
    }
}

/// Signals that may be chosen: those that end a process that does not handle them, and that programs leave alone.
#[cfg(unix)]
const SIGNALS: [(&str, i32); 4] = [
    ("SIGUSR1", libc::SIGUSR1),
    ("SIGUSR2", libc::SIGUSR2),
    ("SIGHUP", libc::SIGHUP),
    ("SIGQUIT", libc::SIGQUIT),
];
#[cfg(not(unix))]
const SIGNALS: [(&str, i32); 0] = [];

/// Reads the name of a signal, with or without `SIG`.
pub(super) fn signal(value: &str) -> Option<(&'static str, i32)> {
    let is_it = |(name, _): &(&str, i32)| {
        value.eq_ignore_ascii_case(name) || value.eq_ignore_ascii_case(name.trim_start_matches("SIG"))
    };
    SIGNALS.into_iter().find(is_it)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn each_variable_is_read() {
        let mut settings = DumpSettings::default();
        for (key, value) in [
            ("HEAPGAUGE_DUMP_DIR", "/dumps"),
            ("HEAPGAUGE_DUMP_AT", "75%, 900MiB"),
            ("HEAPGAUGE_DUMP_KEEP", "2"),
            ("HEAPGAUGE_DUMP_MAX_BYTES", "1MiB"),
            ("HEAPGAUGE_DUMP_SIGNAL", "usr2"),
            ("HEAPGAUGE_TERMINATION_LOG", "/dev/termination-log"),
        ] {
            settings.apply(key, value).unwrap();
        }
        let expected = DumpSettings {
            directory: Some("/dumps".into()),
            keep: 2,
            max_bytes: 1 << 20,
            at: vec![DumpAt::Percent(75), DumpAt::Bytes(900 << 20)],
            signal: Some(("SIGUSR2", libc::SIGUSR2)),
            termination_log: Some("/dev/termination-log".into()),
            memory_limit: None,
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn a_memory_limit_is_a_size_above_zero() {
        assert_eq!(memory_limit("512MiB"), Ok(512 << 20));
        for value in ["0", "much", ""] {
            assert!(memory_limit(value).unwrap_err().starts_with("allowed is a number above 0 "), "{value}");
        }
    }

    #[test]
    fn a_value_that_cannot_be_used_changes_nothing() {
        for (key, value, line) in [
            ("HEAPGAUGE_DUMP_DIR", "", "allowed is a directory, taking none"),
            (
                "HEAPGAUGE_DUMP_AT",
                "101%",
                "allowed are percentages and sizes such as 80%,900MiB, taking 80%,90%",
            ),
            (
                "HEAPGAUGE_DUMP_AT",
                "80%,",
                "allowed are percentages and sizes such as 80%,900MiB, taking 80%,90%",
            ),
            ("HEAPGAUGE_DUMP_KEEP", "0", "allowed are 1 to 1000, taking 5"),
            ("HEAPGAUGE_DUMP_MAX_BYTES", "12", "allowed is a size of at least 64KiB, taking 64MiB"),
            (
                "HEAPGAUGE_DUMP_SIGNAL",
                "SIGKILL",
                "allowed are SIGUSR1, SIGUSR2, SIGHUP, SIGQUIT, taking none",
            ),
            ("HEAPGAUGE_TERMINATION_LOG", "", "allowed is a file, taking none"),
        ] {
            let mut settings = DumpSettings::default();
            assert_eq!(settings.apply(key, value), Err(line.to_owned()), "{key}={value}");
            assert_eq!(settings, DumpSettings::default());
        }
    }
}
