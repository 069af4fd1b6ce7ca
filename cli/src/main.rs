//! The program `heapgauge`: the heap of a running program in a terminal, and reports of its snapshots and dumps.
#![forbid(unsafe_code)]

mod arguments;
mod diff;
mod failure;
mod file;
mod heap;
mod page;
mod progress;
mod report;
mod screen;
mod table;
mod text;
mod top;
mod url;

use std::process::ExitCode;

use arguments::Command;
use failure::Failure;

fn main() -> ExitCode {
    let done = arguments::parse(lexopt::Parser::from_env()).and_then(|command| match command {
        Command::Print(text) => text::print(&text),
        Command::Top(options) => top::run(&options),
        Command::Diff(options) => diff::run(&options),
        Command::Report(options) => report::run(&options),
        Command::Page(options) => page::run(&options),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has closed the pipe, as `head` does.
        Err(Failure::BrokenPipe) => ExitCode::SUCCESS,
        Err(Failure::Usage(line)) => {
            failure::say(&line);
            ExitCode::from(2)
        }
        Err(Failure::Other(line)) => {
            failure::say(&line);
            ExitCode::FAILURE
        }
    }
}
