//! Tests the exact counts of one line whose boxes are allocated and freed by threads that have ended.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use heapgauge::{Collector, Report, SiteRow};

const FILE: &str = "tests/counts/exact_numbers.rs";
const THREADS: usize = 5;
const ALLOCATED: usize = 4_000;
const FREED_BY_ITSELF: usize = 1_031;
const FREED_BY_ANOTHER: usize = 500;

type Block = Box<[u8; 48]>;

fn keep(fill: usize) -> Block {
    Box::new([fill as u8; 48])
}
/// The line of the allocation in `keep`.
const LINE: u32 = line!() - 3;

/// Allocates, frees some itself, gives some away to be freed elsewhere, and leaves the rest behind.
fn work(give: mpsc::Sender<Block>) -> Vec<Block> {
    let mut kept = Vec::with_capacity(ALLOCATED);
    for number in 0..ALLOCATED {
        kept.push(keep(number));
    }
    for _ in 0..FREED_BY_ITSELF {
        kept.swap_remove(kept.len() / 2);
    }
    for block in kept.drain(..FREED_BY_ANOTHER) {
        give.send(block).unwrap();
    }
    kept
}

fn row(report: &Report) -> Option<&SiteRow> {
    report.sites.iter().find(|site| (site.file(), site.line()) == (FILE, LINE))
}

/// Collects until the line has its name: a collection spends at most a quarter of a second on names, and the first one
/// reads the debug information.
fn collect(collector: &Collector) -> Arc<Report> {
    for _ in 0..60 {
        thread::sleep(Duration::from_millis(1_100)); // a younger collection would be given out again
        let report = collector.collect();
        if row(&report).is_some() {
            return report;
        }
    }
    panic!("no site at {FILE}:{LINE} after a minute: {:#?}", collector.collect().sites);
}

#[test]
fn twelve_thousand_boxes_are_twelve_thousand_boxes() {
    own_process!();
    let collector = Collector::new();
    let (give, take) = mpsc::channel::<Block>();
    let freer = thread::spawn(move || take.iter().count());
    let workers: Vec<_> = (0..THREADS)
        .map(|_| {
            let give = give.clone();
            thread::spawn(move || work(give))
        })
        .collect();
    drop(give);
    let mut kept: Vec<Vec<Block>> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
    assert_eq!(freer.join().unwrap(), THREADS * FREED_BY_ANOTHER);
    assert_eq!(kept.iter().map(Vec::len).sum::<usize>(), 12_345);

    let report = collect(&collector);
    let site = row(&report).unwrap();
    assert_eq!(site.live.now.blocks, 12_345);
    assert_eq!(site.live.now.bytes, 592_560);
    // It was not there when the collector began, so all of it is growth.
    assert_eq!((site.live.delta_blocks(), site.live.delta_bytes()), (12_345, 592_560));
    assert_eq!(site.function(), "counts::exact_numbers::keep");
    assert_eq!(site.crate_name(), "counts");
    assert_eq!(report.live.now.bytes, report.allocated_bytes - report.deallocated_bytes);
    assert_eq!(report.live.now.blocks, report.allocations - report.deallocations);
    let shown: u64 = report.sites.iter().map(|site| site.live.now.bytes).sum();
    assert_eq!(report.live.now.bytes, shown + report.other.now.bytes);
    assert_eq!(report.untracked_bytes, 0);

    // The allocator is an ordinary static here, so `traceback_of` does not look for tags.
    assert_eq!(heapgauge::traceback_of(&kept[0][0]), None);

    // A later thread frees all but one.
    let last = kept[0].pop().unwrap();
    thread::spawn(move || drop(kept)).join().unwrap();
    let report = collect(&collector);
    let site = row(&report).unwrap();
    assert_eq!((site.live.now.blocks, site.live.now.bytes), (1, 48));
    drop(last);
}
