//! Compares two snapshot files, or shows one, with a row for each group in the format of `tracemalloc`.
//!
//! `cargo run --example compare -- OLD.json NEW.json [--group-by file|line|traceback|function|crate]
//! [--cumulative] [--top N]`

use heapgauge::{GroupBy, Snapshot};
use std::error::Error;
use std::ffi::OsString;
use std::io::{ErrorKind, Write};

const USAGE: &str = "usage: compare OLD.json [NEW.json] [--group-by file|line|traceback|function|crate] \
                     [--cumulative] [--top N]";

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    use lexopt::prelude::*;

    let mut files: Vec<OsString> = Vec::new();
    let mut group_by = GroupBy::Line;
    let mut cumulative = false;
    let mut top = usize::MAX;
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("group-by") => group_by = arguments.value()?.string()?.parse()?,
            Long("cumulative") => cumulative = true,
            Long("top") => {
                let value = arguments.value()?;
                let number = value.to_str().and_then(|value| value.parse().ok()).filter(|number| *number > 0);
                top = number.ok_or_else(|| {
                    format!("--top {}: allowed are numbers from 1 on", value.to_string_lossy().escape_debug())
                })?;
            }
            Long("help") | Short('h') => {
                println!("{USAGE}");
                return Ok(());
            }
            Value(file) => files.push(file),
            other => return Err(format!("{}; {USAGE}", other.unexpected()).into()),
        }
    }
    if cumulative {
        group_by = group_by.cumulative()?;
    }
    let rows: Vec<String> = match files.as_slice() {
        [one] => Snapshot::load(one)?.statistics(group_by).iter().map(ToString::to_string).collect(),
        [old, new] => {
            let (old, new) = (Snapshot::load(old)?, Snapshot::load(new)?);
            new.compare_to(&old, group_by).iter().map(ToString::to_string).collect()
        }
        _ => return Err(USAGE.into()),
    };
    let mut out = std::io::stdout().lock();
    for row in rows.iter().take(top) {
        match writeln!(out, "{row}") {
            // The reader has closed the pipe.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
    }
    Ok(())
}
