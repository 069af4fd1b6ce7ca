//! Starts, stops, clears, resets and pauses from several threads while others allocate, free and read.

use crate::at_end::SetAtEnd;
use crate::{nothing_is_lost, of_function, say, trap};
use heapgauge::{Collector, Snapshot};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::{Duration, Instant};

type Block = Box<[u64; 8]>;

#[inline(never)]
fn keep(number: usize) -> Block {
    black_box(Box::new([number as u64; 8]))
}
const KEEP: &str = "traps::life_cycle::keep";

/// Allocates on one of two hundred stacks.
#[inline(never)]
fn deeper(number: usize, depth: usize) -> Block {
    let block = if depth == 0 { keep(number) } else { deeper(number, depth - 1) };
    black_box(block)
}

/// More than workers and harness can hold at once: a negative number that wrapped around is far above.
const MOST: u64 = 64 << 20;

/// Allocates, sends some blocks to a neighbour and frees the rest, until the test is over.
fn work(
    worker: usize,
    inbox: &Receiver<Block>,
    post: &SyncSender<Block>,
    over: &AtomicBool,
    operations: &AtomicU64,
) {
    let mut kept: Vec<Block> = Vec::with_capacity(512);
    let mut number = worker;
    while !over.load(Ordering::Relaxed) {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_041);
        let _silent = (number >> 60 == 0).then(heapgauge::pause);
        kept.push(deeper(number, (number >> 33) % 200));
        if kept.len() == 512 {
            // Half goes to a neighbour, who frees it.
            kept.drain(256..).for_each(|block| drop(post.try_send(block)));
            kept.truncate(64);
        }
        inbox.try_iter().take(20).for_each(drop);
        operations.fetch_add(1, Ordering::Relaxed);
    }
    drop(kept);
    inbox.try_iter().for_each(drop);
}

/// Calls that other threads make meanwhile, and the milliseconds between two of each.
const CALLS: [(fn(), u64); 4] = [
    (heapgauge::clear_traces, 1),
    (restart, 3),
    (heapgauge::reset_peak, 2),
    (|| heapgauge::start(20).unwrap(), 5),
];

fn restart() {
    static TIMES: AtomicUsize = AtomicUsize::new(0);
    heapgauge::stop();
    // The stacks are deeper than each of these limits.
    heapgauge::start(1 + TIMES.fetch_add(7, Ordering::Relaxed) % 64).unwrap();
}

/// Checks that no figure is negative.
fn read() {
    let memory = heapgauge::traced_memory();
    assert!(memory.current <= MOST, "{memory:?}");
    assert!(memory.peak <= MOST, "{memory:?}");
    if let Ok(snapshot) = Snapshot::take() {
        let live: u64 = snapshot.traces().iter().map(|trace| trace.size).sum();
        assert!(live <= MOST && snapshot.traces().iter().all(|trace| trace.count <= MOST));
    }
    let report = Collector::new().collect();
    assert!(report.allocated_bytes >= report.deallocated_bytes, "{report:#?}");
    assert!(report.allocations >= report.deallocations, "{report:#?}");
    assert!(report.live.now.bytes <= MOST && report.untracked_bytes <= MOST);
}

#[test]
fn case_44_start_stop_clear_reset_and_pause_under_load() {
    trap("life_cycle::case_44_start_stop_clear_reset_and_pause_under_load", || {
        let over = AtomicBool::new(false);
        let (operations, calls) = (AtomicU64::new(0), AtomicU64::new(0));
        let mut reads = 0;
        std::thread::scope(|scope| {
            let _end = SetAtEnd(&over);
            let (posts, boxes): (Vec<_>, Vec<_>) = (0..3).map(|_| mpsc::sync_channel::<Block>(64)).unzip();
            for (worker, inbox) in boxes.into_iter().enumerate() {
                let post = posts[(worker + 1) % 3].clone();
                let (over, operations) = (&over, &operations);
                scope.spawn(move || work(worker, &inbox, &post, over, operations));
            }
            drop(posts);
            for (call, pause) in CALLS {
                let (over, calls) = (&over, &calls);
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        call();
                        calls.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(pause));
                    }
                });
            }
            let end = Instant::now() + Duration::from_secs(4);
            while Instant::now() < end {
                read();
                reads += 1;
            }
        });
        heapgauge::start(20).unwrap();
        // All blocks of the workers are freed, with or without a clear in between.
        assert_eq!(of_function(KEEP), (0, 0));
        let kept: Vec<_> = (0..300).map(|number| deeper(number, number % 200)).collect();
        assert_eq!(of_function(KEEP), (64 * 300, 300));
        drop(kept);
        assert_eq!(of_function(KEEP), (0, 0));
        nothing_is_lost();
        let [operations, calls] = [operations, calls].map(AtomicU64::into_inner);
        say(format_args!("{operations} allocations, {calls} calls, {reads} reads"));
    });
}
