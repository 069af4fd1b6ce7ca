//! A child forked while its parent looks names up can take snapshots of its own.
#![cfg(unix)]

use heapgauge::{GroupBy, Snapshot};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

#[inline(never)]
fn kept() -> (Vec<u8>, u32) {
    (black_box(vec![7; 4_321]), line!())
}

#[inline(never)]
#[allow(clippy::vec_box, reason = "each box is a block of its own")]
fn deep(depth: usize) -> Vec<Box<usize>> {
    let mut blocks = if depth == 0 { Vec::new() } else { deep(depth - 1) };
    blocks.push(black_box(Box::new(depth)));
    blocks
}

/// What the child does; its exit status says which part went wrong.
fn child(line: u32) -> i32 {
    // A child that hangs ends by the signal.
    // SAFETY: no handler is involved.
    unsafe { libc::alarm(60) };
    let Ok(snapshot) = Snapshot::take() else { return 2 };
    let rows = snapshot.statistics(GroupBy::Line);
    match rows.iter().find(|row| row.name() == format!("tests/fork_names.rs:{line}")) {
        Some(row) if (row.size, row.count) == (4_321, 1) => 0,
        Some(_) => 3,
        None => 4,
    }
}

#[test]
fn case_43_names_after_a_fork() {
    let (bytes, line) = kept();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                // Each round allocates from stacks that are new, so that there is something to name.
                let blocks = deep(round % 200);
                black_box(Snapshot::take().unwrap());
                drop(blocks);
                round += 1;
            }
        });
        for round in 0..20 {
            // SAFETY: the child calls only what this test is about, and then leaves at once.
            let process = unsafe { libc::fork() };
            assert!(process >= 0, "fork");
            if process == 0 {
                let status = child(line);
                // SAFETY: ends the child without the parent's exit handlers.
                unsafe { libc::_exit(status) };
            }
            let mut status = 0;
            // SAFETY: waits for the child just made.
            assert_eq!(unsafe { libc::waitpid(process, &mut status, 0) }, process);
            assert_eq!(status, 0, "round {round}");
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(bytes);
}
