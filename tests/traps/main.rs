//! Tests situations that broke other trackers: counts are exact afterwards, and nothing crashes or hangs.
//!
//! Each test starts this program again, with its own name as the only test, and runs there: each trap has a process, a global
//! allocator and a tracker of its own. `tests/README.md` has a table of them.
#![cfg(target_os = "linux")]

#[path = "../support/at_end.rs"]
mod at_end;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/random.rs"]
mod random;

mod ages;
mod bytes;
mod differential;
mod ends;
mod fork;
mod inner;
mod leaks;
mod life;
mod life_cycle;
mod limit;
mod peak;
mod reclaim;
mod scope_life;
mod scopes;
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

/// Returns the time after which a trap counts as a hang; the slowest takes some seconds, in a debug build on a busy machine
/// ten times that. Longer when `DIFFERENTIAL_OPERATIONS` asks for more.
fn patience() -> Duration {
    let asked = std::env::var_os("DIFFERENTIAL_OPERATIONS").is_some();
    Duration::from_secs(if asked { 6 * 60 * 60 } else { 240 })
}

/// Runs `body` in a process of its own. Fails unless that process prints that it reached its end.
///
/// `name` is the path of the calling test, which the other process runs.
#[track_caller]
fn trap(name: &str, body: impl FnOnce()) {
    if process::is_started_for_one_test() {
        // Elsewhere nothing may allocate in the middle of an event: no hit does, and there is no handler.
        if !name.starts_with("signals::") && !name.ends_with("while_everything_goes_on") {
            heapgauge::end_at_reentrance();
        }
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

/// Prints that all checks of a trap are done.
fn done() {
    println!("{DONE}");
}

/// Prints a figure for the table in `tests/README.md`.
fn say(figure: std::fmt::Arguments<'_>) {
    println!("{SAID} {figure}");
}

/// Calls `act` on the stack of a path: each bit selects one of two calls.
#[inline(never)]
fn on_path<T>(path: usize, depth: usize, act: &mut dyn FnMut() -> T) -> T {
    // The code around the two calls differs, or the optimizer would merge them.
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

/// Returns live bytes and blocks of the site in the function of this path.
fn of_function(path: &str) -> (u64, u64) {
    let rows = Snapshot::take().unwrap().statistics(GroupBy::Function);
    let row = rows.iter().find(|row| row.name() == path);
    row.map_or((0, 0), |row| (row.size, row.count))
}

/// Checks that blocks of many stacks are counted, and their frees. `keep` returns a block of three words, from the function of this path.
fn are_counted<T>(path: &str, keep: fn(usize) -> T) {
    let kept: Vec<T> = (0..300).map(|number| on_path(number, 4, &mut || keep(number))).collect();
    assert_eq!(of_function(path), (24 * 300, 300));
    drop(kept);
    assert_eq!(of_function(path), (0, 0));
}

/// Checks that nothing was dropped, and that live totals are allocations minus frees.
#[track_caller]
fn nothing_is_lost() {
    let report = heapgauge::Collector::new().collect();
    assert_eq!(report.dropped, heapgauge::DroppedEvents::default());
    assert_eq!(report.live.now.bytes, report.allocated_bytes - report.deallocated_bytes);
    assert_eq!(report.live.now.blocks, report.allocations - report.deallocations);
}
