//! Tests that each cause grows the part of memory that it should, by the bytes that the program counted itself, around each
//! allocator.
//!
//! `causes.rs` is the program. Of two readings, before and after it has grown, every part is compared.

#[path = "../support/client.rs"]
mod client;

use client::ask;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const MIB: f64 = (1 << 20) as f64;
const KIB: f64 = 1024.0;

const CAUSES: [&str; 9] =
    ["fragments", "foreign", "file", "shared", "anonymous", "threads", "large", "huge", "untouched"];

/// The part that a cause names → the family that has it.
const PARTS: [(&str, &str); 9] = [
    ("free", "heap_allocator_free_resident_bytes"),
    ("foreign", "heap_foreign_bytes"),
    ("file", "heap_resident_file_bytes"),
    ("shared", "heap_resident_shared_bytes"),
    ("unaccounted", "heap_unaccounted_bytes"),
    ("stacks", "heap_thread_stack_bytes"),
    ("untouched", "heap_live_untouched_bytes"),
    ("overhead", "heap_overhead_bytes"),
    ("fragmentation", "heap_allocator_internal_fragmentation_bytes"),
];

/// Bytes by part, of one exposition.
type Parts = BTreeMap<&'static str, f64>;

struct Program {
    child: Child,
    file: PathBuf,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    addr: SocketAddr,
}

impl Program {
    /// Starts the program so that the allocator keeps freed memory: memory that went back is in no part.
    fn start(program: &str, cause: &str) -> Program {
        let name = program.rsplit('/').next().unwrap();
        let file =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}-{cause}", std::process::id()));
        let mut child = Command::new(program)
            .args([cause, file.to_str().unwrap()])
            .env("_RJEM_MALLOC_CONF", "dirty_decay_ms:-1,muzzy_decay_ms:-1")
            // In the other causes it gives free pages back at once, also those from before the cause.
            .env("MIMALLOC_PURGE_DELAY", if cause == "large" { "600000" } else { "0" })
            // In huge pages a block's first byte has 2 MiB in memory. It switches them off for the whole process.
            .env("MIMALLOC_ALLOW_THP", if cause == "huge" { "1" } else { "0" })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut program = Program { child, file, input, output, addr: ([127, 0, 0, 1], 0).into() };
        let line = program.line();
        program.addr = line.strip_prefix("listening on ").unwrap().parse().unwrap();
        program
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Has it grow. Returns the bytes that it counted.
    fn grow(&mut self) -> Parts {
        self.input.write_all(b"grow\n").unwrap();
        let mut truth = Parts::new();
        loop {
            let line = self.line();
            if line == "grown" {
                return truth;
            }
            let (part, bytes) = line.split_once(' ').expect("the program ended");
            let (part, _) = PARTS.iter().chain([&("live", "")]).find(|(name, _)| *name == part).unwrap();
            truth.insert(part, bytes.parse().unwrap());
        }
    }

    /// Waits until the sites have their names.
    fn wait_for_names(&self) {
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            let answer = ask(self.addr, "GET", "/debug/heap/summary.json", "");
            let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
            let (named, total) = (json["naming"]["named"].as_u64(), json["naming"]["total"].as_u64());
            if named >= total && total > Some(0) {
                return;
            }
            assert!(Instant::now() < end, "{}", json["naming"]);
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Gives free memory back. Returns the bytes that went.
    fn trim(&self) -> f64 {
        let answer = ask(self.addr, "POST", "/debug/heap/trim", "");
        let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        json["returned"].as_f64().unwrap()
    }

    /// Returns the families of a reading that began after this moment, and the JSON of one.
    fn read(&self, after: SystemTime) -> (BTreeMap<String, f64>, serde_json::Value) {
        let after = after.duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let end = Instant::now() + Duration::from_secs(120);
        let json = loop {
            let answer = ask(self.addr, "GET", "/debug/heap/allocator.json", "");
            if answer.status == 200 {
                let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
                if json["taken_at"].as_f64().unwrap() > after {
                    break json;
                }
            } else {
                assert_eq!(answer.status, 503, "{}", answer.text());
            }
            assert!(Instant::now() < end, "no new reading");
            thread::sleep(Duration::from_millis(300));
        };
        // A collection is given out again for a second.
        thread::sleep(Duration::from_millis(1_200));
        let answer = ask(self.addr, "GET", "/metrics", "");
        let families = answer.text().lines().filter(|line| !line.starts_with('#')).map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        });
        (families.collect(), json)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.file);
    }
}

fn parts(families: &BTreeMap<String, f64>, json: &serde_json::Value) -> Parts {
    let mut parts: Parts =
        PARTS.iter().map(|(part, family)| (*part, families.get(*family).copied().unwrap_or(0.0))).collect();
    // The resident part of live bytes, of the same reading as the parts.
    let of = |name: &str| json["parts"][name].as_f64().unwrap_or(0.0);
    parts.insert("live", of("live") - of("live_untouched"));
    parts
}

/// Tries one cause. Returns a line for each wrong figure.
fn try_cause(program: &str, cause: &str) -> Vec<String> {
    let mut running = Program::start(program, cause);
    running.wait_for_names();
    running.trim();
    let (families, json) = running.read(SystemTime::now());
    let before = parts(&families, &json);
    let truth = running.grow();
    let (families, json) = running.read(SystemTime::now());
    let after = parts(&families, &json);

    let largest = truth.values().copied().fold(0.0, f64::max);
    let tolerance = (0.03 * families["heap_resident_anonymous_bytes"])
        .max(4.0 * MIB + 256.0 * KIB * families["heap_process_threads"]);
    let mut wrong = Vec::new();
    let mut row = String::new();
    for (part, after) in &after {
        let (grown, counted) = (after - before[part], truth.get(part).copied().unwrap_or(0.0));
        if counted != 0.0 || grown.abs() > 0.5 * MIB {
            row += &format!(" {part} {:.2} of {:.2} MiB", grown / MIB, counted / MIB);
        }
        if counted != 0.0 {
            row += &format!(" ({:+.2} %)", 100.0 * (grown / counted - 1.0));
        }
        let allowed = match *part {
            "unaccounted" if counted == 0.0 => tolerance,
            // The kernel gives huge pages to the memory that mimalloc keeps free, too: it is more then, by some of them.
            "free" if cause == "huge" && program.ends_with("mimalloc") => 16.0 * MIB,
            _ if counted > 0.5 * largest => 0.05 * counted,
            _ => (0.05 * largest).max(4.0 * MIB),
        };
        if (grown - counted).abs() > allowed {
            wrong.push(format!(
                "{cause}: {part} grew by {:.2} MiB instead of {:.2}",
                grown / MIB,
                counted / MIB
            ));
        }
    }
    let unaccounted = after["unaccounted"] - truth.get("unaccounted").copied().unwrap_or(0.0);
    if unaccounted.abs() > tolerance {
        wrong.push(format!("{cause}: {:.2} MiB unaccounted, of {:.2}", unaccounted / MIB, tolerance / MIB));
    }
    if cause == "large" {
        let (returned, freed) = (running.trim(), truth["free"]);
        row += &format!(", of which {:.2} MiB went back", returned / MIB);
        // mimalloc gives back pages that no thread holds: not those of the blocks that a thread has freed last.
        if !program.ends_with("mimalloc") && (returned - freed).abs() > 0.1 * freed {
            wrong.push(format!("{:.2} MiB went back", returned / MIB));
        }
    }
    println!("{:<10}{row}; unaccounted {:.2} of {:.2} MiB", cause, unaccounted / MIB, tolerance / MIB);
    if !wrong.is_empty() {
        wrong.push(format!("before {before:?}\nafter {after:?}\n{json}"));
    }
    wrong
}

/// Makes a copy of a program without names: to read them takes memory that an allocator keeps free.
fn stripped(name: &str, program: &str) -> PathBuf {
    let copy = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    assert!(Command::new("strip").arg("-o").arg(&copy).arg(program).status().unwrap().success());
    copy
}

/// Tries all causes at the same time: they mostly wait for the next reading.
fn try_allocator(name: &str, program: &str) {
    let program = stripped(name, program);
    let program = program.to_str().unwrap();
    let chosen = std::env::var("CAUSES");
    let causes = CAUSES
        .into_iter()
        .filter(|cause| chosen.as_ref().is_ok_and(|chosen| chosen.contains(cause)) || chosen.is_err());
    let tries: Vec<_> = causes
        .map(|cause| {
            let program = program.to_owned();
            thread::spawn(move || try_cause(&program, cause))
        })
        .collect();
    let wrong: Vec<String> = tries.into_iter().flat_map(|tried| tried.join().expect("a cause")).collect();
    assert!(wrong.is_empty(), "{name}:\n{}", wrong.join("\n"));
}

#[test]
fn causes_with_glibc() {
    try_allocator("glibc", env!("CARGO_BIN_EXE_glibc"));
}

#[test]
fn causes_with_jemalloc() {
    try_allocator("jemalloc", env!("CARGO_BIN_EXE_jemalloc"));
}

#[test]
fn causes_with_mimalloc() {
    try_allocator("mimalloc", env!("CARGO_BIN_EXE_mimalloc"));
}

#[test]
fn the_documentation_has_the_tested_statistics() {
    let page = include_str!("../../src/docs/resident_memory.md");
    for statistics in [include_str!("jemalloc_statistics.rs"), include_str!("mimalloc_statistics.rs")] {
        // The first line, which describes the file, is not in the page.
        let (_, code) = statistics.split_once("\n\n").unwrap();
        assert!(page.contains(code), "src/docs/resident_memory.md has other code than this:\n{code}");
    }
}
