//! Runs the program `heapgauge`: each command on a running program and on files, and each failure.

mod failures;
mod files;
mod running;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use serde_json::{Value, json};

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

const PROGRAM: &str = env!("CARGO_BIN_EXE_heapgauge");

fn heapgauge(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn stdout(arguments: &[&str]) -> String {
    let output = heapgauge(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    assert_eq!(said, "", "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Checks that the program ends with this status and one line on stderr, and returns the line after `heapgauge: `.
#[track_caller]
fn failure(arguments: &[&str], status: i32) -> String {
    let output = heapgauge(arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
    assert_eq!(output.stdout, b"", "{arguments:?}");
    assert_eq!(said.lines().count(), 1, "{said}");
    said.trim_end().strip_prefix("heapgauge: ").unwrap_or_else(|| panic!("{said}")).to_owned()
}

/// Directory of one test, removed at its end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Directory {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("heapgauge-cli-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn snapshot(&self, name: &str, reason: &str, sizes: [u64; 2]) -> String {
        self.file(name, &snapshot(reason, sizes).to_string())
    }

    /// Writes a snapshot and a later one with these sizes.
    fn old_and_new(&self, sizes: [u64; 2]) -> (String, String) {
        (self.snapshot("old.json", "peak", [1_000, 50]), self.snapshot("new.json", "limit", sizes))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Makes a snapshot file of two lines.
fn snapshot(reason: &str, [first, second]: [u64; 2]) -> Value {
    let frame =
        |function: &str, file: &str, line: u32| json!({"function": function, "file": file, "line": line});
    let trace = |size: u64, count: u64, frames: &[Value]| json!({"domain": 0, "size": size, "count": count, "total_frames": frames.len() + 1, "frames": frames});
    json!({"version": 1, "taken_at": 1793000000.0 + first as f64, "traceback_limit": 32, "build_id": "c0ffee",
    "reason": reason, "traces": [
        trace(first, 3, &[frame("shop::cart::add", "src/cart.rs", 7), frame("shop::main", "src/main.rs", 2)]),
        trace(second, 1, &[frame("shop::load\u{1b}[2J", "src/load.rs", 9)]),
    ]})
}

/// Serves this process's heap, and calls `run` with the address.
fn with_server(run: impl FnOnce(&str)) {
    // One server a process.
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    run(&format!("http://{}", server.local_addr()));
}

#[inline(never)]
fn planted() -> Vec<u8> {
    vec![1; 50_000_000]
}
const PLANTED: u32 = line!() - 2;

fn site() -> String {
    format!("cli/tests/program/main.rs:{PLANTED} program::planted")
}

/// Serves the same answer to each of some connections, and calls `run` with the address.
fn with_answers(answer: &str, run: impl FnOnce(&str)) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let answer = answer.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            lines.find(String::is_empty);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    run(&format!("http://{addr}"));
}
