//! Tests that a child, forked while its parent looks up names, records new stacks and tracks domains, continues from its
//! parent's counts.

use crate::at_end::SetAtEnd;
use heapgauge::{GroupBy, Snapshot};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// Returns live bytes and blocks of a line of this file.
fn at_line(line: u32) -> Option<(u64, u64)> {
    let rows = Snapshot::take().ok()?.statistics(GroupBy::Line);
    let row = rows.iter().find(|row| row.name() == format!("tests/counts/fork_names.rs:{line}"));
    Some(row.map_or((0, 0), |row| (row.size, row.count)))
}

/// Runs the child's part. Returns the number of the failed check, 0 for none.
fn child(inherited: Option<Vec<u8>>, line: u32) -> i32 {
    // A child that hangs ends by the signal.
    // SAFETY: no handler is involved.
    unsafe { libc::alarm(60) };
    // It starts from its parent's counts …
    if at_line(line) != Some((4_321, 1)) || heapgauge::traced_memory().current < 4_321 {
        return 2;
    }
    // … and continues: allocations, frees, threads, other domains.
    let mut own = Vec::with_capacity(3);
    for _ in 0..3 {
        own.push(black_box(vec![7_u8; 777]));
    }
    let own_line = line!() - 2;
    if at_line(own_line) != Some((2_331, 3)) {
        return 3;
    }
    drop(inherited);
    if at_line(line) != Some((0, 0)) {
        return 4;
    }
    if std::thread::spawn(move || drop(own)).join().is_err() || at_line(own_line) != Some((0, 0)) {
        return 5;
    }
    if heapgauge::track(GPU, 0x1000, 43).is_err() {
        return 6;
    }
    heapgauge::untrack(GPU, 0x1000);
    if black_box(deep(150)).len() != 151 { 7 } else { 0 }
}

const GPU: u32 = 43;

#[test]
fn case_43_a_forked_child_goes_on_by_itself() {
    own_process!();
    let (bytes, line) = kept();
    let mut bytes = Some(bytes);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _end = SetAtEnd(&stop);
        scope.spawn(|| {
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                // Each round allocates on new stacks, which need names.
                let blocks = deep(round % 200);
                black_box(Snapshot::take().unwrap());
                heapgauge::track(GPU, round, 1).unwrap();
                drop(blocks);
                round += 1;
            }
        });
        for round in 0..8 {
            // SAFETY: the child calls only what this test is about, and then leaves at once.
            let process = unsafe { libc::fork() };
            assert!(process >= 0, "fork");
            if process == 0 {
                let status = child(bytes.take(), line);
                // SAFETY: ends the child without the parent's exit handlers.
                unsafe { libc::_exit(status) };
            }
            let mut status = 0;
            // SAFETY: waits for the child just made.
            assert_eq!(unsafe { libc::waitpid(process, &mut status, 0) }, process);
            assert_eq!(status, 0, "round {round}");
        }
    });
    // The children freed their own copies.
    assert_eq!(at_line(line), Some((4_321, 1)));
    drop(bytes);
    assert_eq!(at_line(line), Some((0, 0)));
}
