//! Runs a workload under a side, and prints the measurements as one JSON line.
//!
//! Each side's `main` only makes a [`Side`]; the rest of the code is the same for all. One process measures one workload. Timed
//! workloads repeat their work until the given time is over, on request in turns with another process, and print the mean of all
//! repetitions after a warm-up. The checksum of a repetition depends only on the workload, so that the harness can check that all
//! sides did the same work, and the optimiser can leave nothing out.

mod collect;
mod deep;
mod json;
mod memory;
mod page;
mod script;
mod timing;
mod turns;

use std::time::Duration;

use serde_json::{Value, json};

use turns::Turns;

/// The functions of one side beyond its global allocator.
pub struct Side {
    /// Its name in the harness.
    pub name: &'static str,
    /// Number of allocations recorded so far, which proves that the side was on. `None` if it cannot count them.
    pub recorded: Option<fn() -> u64>,
    /// Bytes of the side's own tables.
    pub tracker_memory: Option<fn() -> u64>,
    /// Records at least 64 frames of a stack from now on.
    pub whole_stacks: Option<fn()>,
    /// Makes a collector: each call of it is a collection.
    pub collector: Option<fn() -> Collect>,
}

/// One collector: a call collects, or reuses the latest collection for a second.
pub type Collect = Box<dyn FnMut() -> Collected>;

/// The result of one collection.
pub struct Collected {
    /// Number of the collection: an equal number is the same collection.
    pub number: u64,
    /// Live blocks of the exported sites.
    pub named_blocks: u64,
}

impl Side {
    /// Makes a side that can only allocate.
    pub const fn new(name: &'static str) -> Side {
        Side { name, recorded: None, tracker_memory: None, whole_stacks: None, collector: None }
    }
}

/// Runs the workload of the command line `SIDE WORKLOAD MILLISECONDS [turns]`. Ends the process.
pub fn main(side: Side) -> ! {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (workload, milliseconds, in_turns) = match arguments.as_slice() {
        [workload, milliseconds] => (*workload, milliseconds.parse().ok(), false),
        [workload, milliseconds, "turns"] => (*workload, milliseconds.parse().ok(), true),
        _ => ("", None, false),
    };
    let Some(milliseconds) = milliseconds else {
        eprintln!("usage: {} WORKLOAD MILLISECONDS [turns]", side.name);
        std::process::exit(2);
    };
    let Some(Value::Object(mut line)) = run(&side, workload, Duration::from_millis(milliseconds), in_turns)
    else {
        eprintln!("{}: no workload {workload:?}", side.name);
        std::process::exit(2);
    };
    line.insert("side".into(), json!(side.name));
    line.insert("workload".into(), json!(workload));
    if let Some(recorded) = side.recorded {
        line.insert("recorded".into(), json!(recorded()));
    }
    println!("{}", Value::Object(line));
    // Not by returning: profilers that write a file at exit would.
    std::process::exit(0)
}

fn run(side: &Side, workload: &str, time: Duration, in_turns: bool) -> Option<Value> {
    let turns = |threads| Turns::new(threads, in_turns);
    let (name, argument) = match workload.rsplit_once('-') {
        Some((name, argument)) => (name, argument.parse().ok()),
        None => (workload, None),
    };
    Some(match (name, argument) {
        ("json", Some(threads @ 1..=64)) => json::run(threads, time, &turns(threads)),
        ("html", None) => page::run(time, &turns(1)),
        ("script", None) => script::run(time, &turns(1)),
        ("deep", Some(frames)) => deep::deep(frames as u32, time, &turns(1))?,
        ("frames", Some(frames)) => {
            if let Some(whole_stacks) = side.whole_stacks {
                whole_stacks();
            }
            deep::deep(frames as u32, time, &turns(1))?
        }
        ("branch", None) => deep::branch(time, &turns(1)),
        ("rss", Some(shape)) => memory::resident(shape)?,
        ("tables", None) => memory::tables(side.tracker_memory),
        ("collect", Some(stacks)) => collect::run(side.collector?, stacks),
        _ => return None,
    })
}
