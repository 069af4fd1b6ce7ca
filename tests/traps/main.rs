//! What broke other trackers, one program each → exact counts afterwards, and no crash or hang on the way.
//!
//! Every test here starts this very binary again, with its own name as the only test, and runs there: a process,
//! a global allocator and a tracker of its own for each trap. The table of all of them is `tests/README.md`.
#![cfg(target_os = "linux")]

#[path = "../support/process.rs"]
mod process;
#[path = "../support/random.rs"]
mod random;

mod differential;
mod ends;
mod fork;
mod inner;
mod life_cycle;
mod limit;
mod peak;
mod shortage;
mod signals;
mod sizes;
mod stacks;
mod threads;

use heapgauge::{GroupBy, Snapshot};
use std::hint::black_box;
use std::time::Duration;

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator<inner::Inner> = heapgauge::TrackingAllocator::new(inner::Inner);

/// A trap is a hang after this; the slowest takes some seconds, in a debug build on a busy machine ten times that.
/// More where more is asked for than the test does by itself.
fn patience() -> Duration {
    let asked = std::env::var_os("DIFFERENTIAL_OPERATIONS").is_some();
    Duration::from_secs(if asked { 6 * 60 * 60 } else { 240 })
}

/// Runs `body` in a process of its own and fails unless that says that it came to its end.
///
/// `name` is the path of the calling test, from which the other process knows which one it is.
#[track_caller]
fn trap(name: &str, body: impl FnOnce()) {
    if process::is_started_for_one_test() {
        body();
        done();
        return;
    }
    let text = process::run_alone(name, &["--test-threads=1"], patience());
    assert!(text.contains(DONE), "{name} ended without coming to its end\n{text}");
    let said: Vec<_> = text.lines().filter(|line| line.contains(SAID)).collect();
    println!("{}", said.join("\n"));
}

const DONE: &str = "the trap was survived";
const SAID: &str = "trap:";

/// What the process of a trap says when everything it checks has been checked.
fn done() {
    println!("{DONE}");
}

/// A figure for the table in the README.
fn say(figure: std::fmt::Arguments<'_>) {
    println!("{SAID} {figure}");
}

/// Calls `act` on one of as many stacks as there are paths: each bit says which of two calls to take.
#[inline(never)]
fn on_path<T>(path: usize, depth: usize, act: &mut dyn FnMut() -> T) -> T {
    // What stands around the two calls differs, or the optimizer makes one of them.
    let result = match (depth, path & 1) {
        (0, _) => act(),
        (_, 0) => {
            black_box("left");
            let result = on_path(path >> 1, depth - 1, act);
            black_box(1u8);
            result
        }
        _ => {
            black_box(2u64);
            let result = on_path(path >> 1, depth - 1, act);
            black_box("right");
            result
        }
    };
    black_box(result)
}

/// Live bytes and blocks of the site in the function of this path.
fn of_function(path: &str) -> (u64, u64) {
    let rows = Snapshot::take().unwrap().statistics(GroupBy::Function);
    let row = rows.iter().find(|row| row.name() == path);
    row.map_or((0, 0), |row| (row.size, row.count))
}

/// Nothing was dropped, and what the sites hold is what is live in all.
#[track_caller]
fn nothing_is_lost() {
    let report = heapgauge::Collector::new().collect();
    assert_eq!(report.dropped, heapgauge::DroppedEvents::default());
    assert_eq!(report.live_bytes, report.allocated_bytes - report.deallocated_bytes);
    assert_eq!(report.live_blocks, report.allocations - report.deallocations);
}
