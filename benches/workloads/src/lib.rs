//! A side and a workload's name → one JSON line with what was measured.
//!
//! Each side's `main` hands over a [`Side`] and nothing else; the code that runs is the same for all. One
//! process measures one workload. Timed workloads repeat their work until the given time is over, if asked to in turns
//! with another process, and tell the mean of all repetitions after a first part that is not counted. The checksum of a repetition depends only
//! on the workload, so that the harness sees whether all sides did the same work, and nothing can be left out
//! by the optimiser.

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

/// What one side offers beyond being the global allocator.
pub struct Side {
    /// As the harness calls it.
    pub name: &'static str,
    /// How many allocations the side has recorded so far, where it can tell: shows that it was on.
    pub recorded: Option<fn() -> u64>,
    /// Bytes of the side's own tables.
    pub tracker_memory: Option<fn() -> u64>,
    /// Records at least 64 frames of a stack from now on.
    pub whole_stacks: Option<fn()>,
    /// Makes a collector: each call of it is a collection.
    pub collector: Option<fn() -> Collect>,
}

/// One collector: a call collects, and gives its latest collection out again for a second.
pub type Collect = Box<dyn FnMut() -> Collected>;

/// What one collection says about itself.
pub struct Collected {
    /// Counts the collections of this collector: a number seen before is the same collection.
    pub number: u64,
    /// Live blocks of the sites that are shown.
    pub named_blocks: u64,
}

impl Side {
    /// A side that can only allocate.
    pub const fn new(name: &'static str) -> Side {
        Side { name, recorded: None, tracker_memory: None, whole_stacks: None, collector: None }
    }
}

/// Runs the workload the command line names: `SIDE WORKLOAD MILLISECONDS [turns]`. Ends the process.
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
