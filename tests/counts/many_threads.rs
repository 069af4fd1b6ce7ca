//! Tests exact counts with five hundred threads at once and with a small stack, and that memory does not grow with the
//! number of past threads.

use heapgauge::{GroupBy, Snapshot};
use std::hint::black_box;
use std::sync::Barrier;
use std::thread;

const FILE: &str = "tests/counts/many_threads.rs";
const THREADS: usize = 500;
const BLOCKS: usize = 20;

type Block = Box<[u64; 9]>;

#[inline(never)]
fn keep(count: usize) -> Vec<Block> {
    let mut kept = Vec::with_capacity(count);
    for number in 0..count {
        kept.push(black_box(Box::new([number as u64; 9])));
    }
    kept
}
/// The line of the allocation in `keep`.
const LINE: u32 = line!() - 5;

/// Returns live bytes and blocks of that line.
fn at_line() -> (u64, u64) {
    let rows = Snapshot::take().unwrap().statistics(GroupBy::Line);
    let row = rows.iter().find(|row| row.name() == format!("{FILE}:{LINE}"));
    row.map_or((0, 0), |row| (row.size, row.count))
}

fn expected(blocks: usize) -> (u64, u64) {
    (72 * blocks as u64, blocks as u64)
}

/// Runs all threads at once. Their blocks are counted while they live and after their end.
#[inline(never)]
fn round() {
    let (allocated, counted) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
    let kept: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let body = || {
                    let mut kept = keep(BLOCKS);
                    allocated.wait();
                    counted.wait();
                    kept.truncate(BLOCKS / 2);
                    kept
                };
                thread::Builder::new().stack_size(128 << 10).spawn_scoped(scope, body).unwrap()
            })
            .collect();
        allocated.wait();
        assert_eq!(at_line(), expected(THREADS * BLOCKS));
        counted.wait();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(at_line(), expected(THREADS * BLOCKS / 2));
    drop(kept);
    assert_eq!(at_line(), (0, 0));
}

#[test]
fn five_hundred_threads_and_five_hundred_more() {
    own_process!();
    // One call for all rounds: from another line there would be other stacks, and counts for them.
    let after: Vec<u64> = (0..6)
        .map(|_| {
            round();
            heapgauge::tracker_memory()
        })
        .collect();
    // Threads with tables of their own would need as much in each of the five later rounds as in the
    // first. Those that take over tables add to them where the threads before them freed other stacks'
    // blocks: at most one chunk of counters, 2 of 17 KiB.
    let grown = after[5].saturating_sub(after[0]);
    assert!(grown <= after[0] / 4, "{grown} bytes more after 2,500 threads more: {after:?}");
}

#[test]
fn a_thread_with_a_small_stack() {
    own_process!();
    let kept = thread::Builder::new().stack_size(64 << 10).spawn(|| keep(1_000)).unwrap().join().unwrap();
    assert_eq!(at_line(), expected(1_000));
    thread::Builder::new().stack_size(64 << 10).spawn(|| drop(kept)).unwrap().join().unwrap();
    assert_eq!(at_line(), (0, 0));
}
