//! Builds the sides, runs their processes in turns, and prints the tables of `benches/README.md`.
//!
//! The same workload, compiled from the same source, runs under each allocator side as a process of its own.
//! A side and its base take turns of some milliseconds, so that a machine that becomes slower slows both; their order is
//! swapped from round to round. The tables have the median of the rounds' ratios and, in brackets, their first and third
//! quartile. A side that does not build or run stays in the tables with the reason.

#![forbid(unsafe_code)]

mod build;
mod load;
mod process;
mod processor;
#[path = "../../service/src/requests.rs"]
mod requests;
mod service;
mod sides;
mod stats;
mod tables;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::Value;

use process::Outcome;
use processor::Bound;
use sides::{COLLECTOR, Role, SIDES, Side};

/// Workloads that are timed under each side and divided by the side's base.
const TIMED: [&str; 8] = ["json-1", "json-2", "html", "script", "deep-5", "deep-25", "deep-60", "branch"];
/// The timed workload with more than one thread.
const MORE_THREADS: &str = "json-2";
/// `deep` with up to 64 frames recorded: the cost of one more frame. heapgauge only.
const FRAMES: [&str; 3] = ["frames-5", "frames-25", "frames-45"];
/// Workloads that measure the resident memory of live blocks.
const RESIDENT: [&str; 7] = ["rss-0", "rss-64", "rss-256", "rss-1024", "rss-4096", "rss-1", "rss-65536"];
/// Workloads that measure a collection of so many stacks. heapgauge only.
const COLLECT: [&str; 3] = ["collect-1000", "collect-10000", "collect-100000"];

/// The workload that is a web service.
const SERVICE: &str = "service";

/// Runs heapgauge and its peers against the bare allocators and prints the tables of benches/README.md as Markdown.
///
/// Workloads: json-1 and json-2 (parse 100 kB of JSON into values, in one and two threads; nearly nothing but
/// allocations), html (parse a page), script (a script interpreter), deep-5, deep-25, deep-60 (one Box allocated
/// and freed under so many frames), branch (recursion that allocates from 20,000 distinct stacks), frames (deep
/// with 64 frames recorded), rss (resident bytes a live block, by size), tables (bytes a stack, a thread, a
/// stack in one more thread), collect (milliseconds a collection, and the loss of a thread that allocates meanwhile),
/// service (an axum service: CPU a request).
/// benches/README.md explains the method.
///
/// Peers run as their documentation shows them, with every block recorded; heapscope and pprof-alloc are built
/// with frame pointers, all others as a stock release build. heapgauge-sampled and jemalloc-prof sample, at the same
/// interval; all others record every block.
#[derive(Parser)]
#[command(version = None)]
struct Options {
    /// Rounds of heapgauge's sides; a round is one process of the side and one of its base.
    #[arg(long, default_value_t = 18, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Rounds of the peers.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    peer_rounds: u32,
    /// Measured time of one process in milliseconds, after a warm-up of a fifth of it.
    #[arg(long, default_value_t = 300)]
    milliseconds: u64,
    /// Gives a first impression in about three minutes: 3 rounds, 1 of the peers, 150 ms.
    #[arg(long, conflicts_with_all = ["rounds", "peer_rounds", "milliseconds"])]
    quick: bool,
    /// Only these sides (comma-separated), with their bases.
    #[arg(long, value_delimiter = ',', value_parser = sides::names())]
    sides: Vec<String>,
    /// Only workloads whose name is or begins with one of these (comma-separated): `json`, `deep-25`, `rss`.
    #[arg(long, value_delimiter = ',')]
    workloads: Vec<String>,
    /// Requests that a process of the service is measured for.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1000..))]
    requests: u64,
    /// Requests a second that the service gets; else as many as it answers.
    #[arg(long)]
    rate: Option<f64>,
    /// Writes the result of each process to this file, a line a process.
    #[arg(long, value_name = "FILE")]
    raw: Option<PathBuf>,
}

/// Maximum time of a process.
const LIMIT: Duration = Duration::from_secs(120);

/// All measurements: pairs (side, base) by round where there is a base.
#[derive(Default)]
pub struct Results {
    /// Pairs by side and workload.
    pub pairs: BTreeMap<(&'static str, &'static str), Vec<(Value, Value)>>,
    /// Results of processes that need no base, and of all bases.
    pub alone: BTreeMap<(&'static str, &'static str), Vec<Value>>,
    /// Reasons of missing numbers, by side and workload; the empty workload means all of them.
    pub failures: BTreeMap<(&'static str, &'static str), String>,
    /// Notes on the builds.
    pub notes: BTreeMap<&'static str, String>,
}

/// Runs one process after another, with progress on standard error.
struct Runner {
    milliseconds: u64,
    raw: Option<std::fs::File>,
    begin: Instant,
    results: Results,
}

fn main() {
    let mut options = Options::parse();
    if options.quick {
        (options.rounds, options.peer_rounds, options.milliseconds) = (3, 1, 150);
    }
    let wanted = |workload: &str| {
        options.workloads.is_empty()
            || options.workloads.iter().any(|name| {
                workload == name
                    || workload.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('-'))
            })
    };
    let all = TIMED.iter().chain(&FRAMES).chain(&RESIDENT).chain(&["tables", SERVICE]).chain(&COLLECT);
    for name in &options.workloads {
        let known = all.clone().any(|workload| workload.split('-').next() == Some(name) || workload == name);
        if !known {
            eprintln!("error: no workload is called {name:?}");
            std::process::exit(2);
        }
    }
    if wanted(SERVICE) {
        match service::run(&options.sides, options.rounds, options.requests, options.rate) {
            Ok(table) => println!("{table}"),
            Err(reason) => eprintln!("error: the service: {reason}"),
        }
    }
    if options.workloads.iter().all(|name| name == SERVICE) && !options.workloads.is_empty() {
        return;
    }
    let chosen: Vec<&Side> = SIDES
        .iter()
        .chain([&COLLECTOR])
        .filter(|side| match options.sides.as_slice() {
            [] => true,
            names => {
                names.iter().any(|name| {
                    side.name == name || sides::named(name).is_some_and(|named| named.base == Some(side.name))
                }) || (side.name == COLLECTOR.name && names.iter().any(|name| name == "heapgauge"))
            }
        })
        .filter(|side| side.name != COLLECTOR.name || COLLECT.iter().any(|workload| wanted(workload)))
        .collect();

    let raw = options.raw.as_ref().map(|path| match std::fs::File::create(path) {
        Ok(file) => file,
        Err(error) => {
            eprintln!("error: {}: {error}", path.display());
            std::process::exit(2);
        }
    });
    let mut runner = Runner {
        milliseconds: options.milliseconds,
        raw,
        begin: Instant::now(),
        results: Results::default(),
    };
    build::all(&chosen, &mut runner.results);

    runner.all(&chosen, &options, wanted);
    eprintln!("all done after {} s", runner.begin.elapsed().as_secs());
    print!(
        "{}",
        tables::all(&runner.results, &chosen, options.rounds, options.peer_rounds, options.milliseconds)
    );
}

impl Runner {
    /// Runs the wanted workloads under these sides.
    fn all(&mut self, chosen: &[&'static Side], options: &Options, wanted: impl Fn(&str) -> bool) {
        let timed: Vec<&'static str> = TIMED.into_iter().filter(|workload| wanted(workload)).collect();
        for side in chosen.iter().filter(|side| side.base.is_some()) {
            let rounds = if side.role == Role::Heapgauge { options.rounds } else { options.peer_rounds };
            for workload in &timed {
                self.compare(side, workload, rounds);
            }
        }
        for workload in FRAMES.into_iter().filter(|workload| wanted(workload)) {
            for side in chosen.iter().filter(|side| side.name == "heapgauge" || side.name == "system") {
                self.alone(side, workload, options.rounds);
            }
        }
        for workload in RESIDENT.into_iter().filter(|workload| wanted(workload)) {
            for side in chosen.iter().filter(|side| side.role != Role::Collector) {
                // The peers are measured with blocks of mixed sizes only.
                if side.role != Role::Peer || workload == "rss-0" {
                    self.alone(
                        side,
                        workload,
                        if side.role == Role::Peer { 1 } else { options.rounds.min(3) },
                    );
                }
            }
        }
        if wanted("tables") {
            for side in chosen.iter().filter(|side| side.name == "heapgauge" || side.name == "system") {
                self.alone(side, "tables", options.rounds.min(3));
            }
        }
        for workload in COLLECT.into_iter().filter(|workload| wanted(workload)) {
            for side in chosen.iter().filter(|side| side.role == Role::Collector) {
                self.alone(side, workload, options.rounds.min(3));
            }
        }
    }

    /// Runs a side and its base in turns.
    fn compare(&mut self, side: &Side, workload: &'static str, rounds: u32) {
        let Some(base) = side.base.and_then(sides::named) else { return };
        for round in 0..rounds {
            if self.failed(side, workload) || self.failed(base, workload) {
                return;
            }
            if round == 0 {
                self.progress(side, workload, rounds);
            }
            // Independent of the order of the two.
            let bound = (workload != MORE_THREADS).then(|| Bound::to(round / 2)).transpose();
            if let Err(error) = &bound {
                eprintln!("error: binding it to a processor: {error}");
                std::process::exit(1);
            }
            let binaries = [build::binary(side, round), build::binary(base, round)];
            let [of_side, of_base] = if round % 2 == 1 {
                process::run_in_turns([&binaries[0], &binaries[1]], workload, self.milliseconds, LIMIT)
            } else {
                let [of_base, of_side] =
                    process::run_in_turns([&binaries[1], &binaries[0]], workload, self.milliseconds, LIMIT);
                [of_side, of_base]
            };
            let (of_side, of_base) =
                (self.noted(side, workload, of_side), self.noted(base, workload, of_base));
            let (Some(of_side), Some(of_base)) = (of_side, of_base) else { return };
            if of_side["checksum"] != of_base["checksum"] {
                self.results.failures.insert(
                    (side.name, workload),
                    format!("did other work than {}: {} against {}", base.name, of_side, of_base),
                );
                return;
            }
            self.results.alone.entry((base.name, workload)).or_default().push(of_base.clone());
            self.results.pairs.entry((side.name, workload)).or_default().push((of_side, of_base));
        }
    }

    fn alone(&mut self, side: &Side, workload: &'static str, rounds: u32) {
        for round in 0..rounds {
            if self.failed(side, workload) {
                return;
            }
            if round == 0 {
                self.progress(side, workload, rounds);
            }
            if let Some(said) = self.run(side, workload, round) {
                self.results.alone.entry((side.name, workload)).or_default().push(said);
            }
        }
    }

    fn failed(&self, side: &Side, workload: &'static str) -> bool {
        ["", workload].iter().any(|workload| self.results.failures.contains_key(&(side.name, *workload)))
    }

    fn progress(&self, side: &Side, workload: &str, rounds: u32) {
        let seconds = self.begin.elapsed().as_secs();
        eprintln!("{seconds:>4} s  {} {workload}, {rounds} rounds", side.name);
    }

    fn run(&mut self, side: &Side, workload: &'static str, round: u32) -> Option<Value> {
        let outcome = process::run(&build::binary(side, round), workload, self.milliseconds, LIMIT);
        self.noted(side, workload, outcome)
    }

    /// Returns the result of a process. If it failed, or recorded nothing, that is a failure of the side.
    fn noted(&mut self, side: &Side, workload: &'static str, outcome: Outcome) -> Option<Value> {
        let reason = match outcome {
            Ok(said) => {
                if let Some(file) = &mut self.raw
                    && let Err(error) = writeln!(file, "{said}")
                {
                    eprintln!("error: the raw file: {error}");
                    std::process::exit(1);
                }
                if said["recorded"] != 0 {
                    return Some(said);
                }
                "it recorded nothing".to_string()
            }
            Err(reason) => reason,
        };
        eprintln!("        {} {workload}: {reason}", side.name);
        self.results.failures.insert((side.name, workload), format!("does not run: {reason}"));
        None
    }
}
