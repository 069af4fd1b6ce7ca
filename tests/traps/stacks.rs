//! Tests very many stacks, and very deep ones.

use crate::{nothing_is_lost, of_function, on_path, say, trap};
use heapgauge::{Collector, GroupBy, Snapshot};
use std::hint::black_box;

type Block = Box<[u64; 3]>;

#[inline(never)]
fn leaf(number: usize) -> Block {
    black_box(Box::new([number as u64 ^ 3; 3]))
}
const LEAF: &str = "traps::stacks::leaf";

fn stacks_of_leaf() -> u64 {
    let snapshot = Snapshot::take().unwrap();
    let leaves = snapshot.traces().iter().filter(|trace| trace.traceback.most_recent().name() == LEAF);
    leaves.count() as u64
}

#[test]
fn a_hundred_thousand_stacks() {
    trap("stacks::a_hundred_thousand_stacks", || {
        // A debug build compares each known stack with a walk, so there are fewer.
        const DEPTH: usize = if cfg!(debug_assertions) { 14 } else { 17 };
        // Enough memory for all stacks.
        heapgauge::set_max_overhead(512 << 20).unwrap();
        let collector = Collector::new();
        let mut kept: Vec<Block> = Vec::with_capacity(2 << DEPTH);
        for _ in 0..black_box(2) {
            kept.extend((0..1 << DEPTH).map(|path| on_path(path, DEPTH, &mut || leaf(path))));
        }
        // The stacks of another thread have other ends, so these are different.
        let more = std::thread::spawn(|| {
            (0..1000).map(|path| on_path(path, DEPTH, &mut || leaf(path))).collect::<Vec<_>>()
        });
        let more = more.join().unwrap();
        let blocks = (2 << DEPTH) + 1000;
        assert_eq!(of_function(LEAF), (24 * blocks, blocks));
        assert_eq!(stacks_of_leaf(), (1 << DEPTH) + 1000);
        assert_eq!(collector.collect().dropped, heapgauge::DroppedEvents::default());
        let overhead = heapgauge::tracker_memory();
        std::thread::spawn(move || drop(kept)).join().unwrap();
        assert_eq!(of_function(LEAF), (24_000, 1000));
        drop(more);
        assert_eq!((of_function(LEAF), stacks_of_leaf()), ((0, 0), 0));
        nothing_is_lost();
        say(format_args!("{} stacks, {} MiB of tables", (1 << DEPTH) + 1000, overhead >> 20));
    });
}

/// When the tables are full, new stacks are not known, and all bytes are still counted.
#[test]
fn more_stacks_than_there_may_be() {
    trap("stacks::more_stacks_than_there_may_be", || {
        const DEPTH: usize = 15;
        const LIMIT: u64 = 8 << 20;
        heapgauge::set_max_overhead(LIMIT).unwrap();
        let collector = Collector::new();
        let before = heapgauge::traced_memory().current;
        let mut kept: Vec<Block> = Vec::with_capacity(1 << DEPTH);
        kept.extend((0..1 << DEPTH).map(|path| on_path(path, DEPTH, &mut || leaf(path))));
        let lost = of_function("[unrecorded]");
        let blocks = 1 << DEPTH;
        // Known stacks may be named by module and offset: names are inside the limit, too.
        let known = (24 * blocks - lost.0, blocks - lost.1);
        let all = size_of::<Block>() as u64 * blocks + 24 * blocks;
        let live = heapgauge::traced_memory().current - before;
        assert!(live.abs_diff(all) < 4096, "{live} of {all}");
        assert!(known.1 > 1000 && lost.1 > 1000, "{known:?} {lost:?}");
        let report = collector.collect();
        // Names beyond the budget are events of this kind, too.
        assert!(report.dropped.memory >= lost.1, "{:?}", report.dropped);
        let overhead = heapgauge::tracker_memory();
        assert!(overhead <= LIMIT, "{overhead} bytes of tables, {LIMIT} allowed");
        drop(kept);
        assert_eq!((of_function(LEAF), of_function("[unrecorded]")), ((0, 0), (0, 0)));
        let grown = heapgauge::traced_memory().current.saturating_sub(before);
        assert!(grown < 4096, "{grown}");
        say(format_args!("{} of {blocks} stacks known within {} KiB", known.1, overhead >> 10));
    });
}

/// Each `clear` gives stacks new ids, and the memory of old ones is given back: all stacks stay known within the limit.
#[test]
fn clearing_without_end() {
    trap("stacks::clearing_without_end", || {
        const DEPTH: usize = 10;
        const LIMIT: u64 = 6 << 20;
        heapgauge::set_max_overhead(LIMIT).unwrap();
        let mut kept: Vec<Block> = Vec::with_capacity(1 << DEPTH);
        let mut most = 0;
        for round in 1..=100 {
            heapgauge::clear_traces();
            kept.extend((0..1 << DEPTH).map(|path| on_path(path, DEPTH, &mut || leaf(path))));
            if round % 10 == 0 {
                assert_eq!(of_function(LEAF), (24 << DEPTH, 1 << DEPTH), "round {round}");
                most = heapgauge::tracker_memory().max(most);
                assert!(most <= LIMIT, "round {round}: {most} bytes of tables, {LIMIT} allowed");
            }
            kept.clear();
        }
        say(format_args!("100 times 1024 stacks known within {} KiB", most >> 10));
    });
}

#[inline(never)]
fn deep(depth: usize, kept: &mut Vec<Block>) {
    kept.push(at_depth(depth));
    if depth > 0 {
        deep(depth - 1, kept);
    }
    black_box(depth);
}

#[inline(never)]
fn at_depth(depth: usize) -> Block {
    black_box(Box::new([depth as u64; 3]))
}
const AT_DEPTH: &str = "traps::stacks::at_depth";

#[test]
fn ten_thousand_calls_deep() {
    trap("stacks::ten_thousand_calls_deep", || {
        const DEPTH: usize = 10_000;
        let run = || {
            let mut kept = Vec::with_capacity(DEPTH * 2);
            deep(DEPTH - 1, &mut kept);
            deep(DEPTH - 1, &mut kept);
            kept
        };
        let thread = std::thread::Builder::new().stack_size(64 << 20).spawn(run).unwrap();
        let kept = thread.join().unwrap();
        let blocks = DEPTH as u64 * 2;
        assert_eq!(of_function(AT_DEPTH), (24 * blocks, blocks));
        // Frames beyond the limit of a walk do not make a new stack.
        let snapshot = Snapshot::take().unwrap();
        let traces: Vec<_> = snapshot
            .traces()
            .iter()
            .filter(|trace| trace.traceback.most_recent().name() == AT_DEPTH)
            .collect();
        assert!(traces.len() < DEPTH / 10, "{} stacks", traces.len());
        assert!(traces.iter().all(|trace| trace.traceback.frames().len() <= 32));
        let cumulative = snapshot.statistics(GroupBy::Function.cumulative().unwrap());
        let row = cumulative.iter().find(|row| row.name() == "traps::stacks::deep").unwrap();
        assert_eq!((row.size, row.count), (24 * blocks, blocks));
        drop(kept);
        assert_eq!(of_function(AT_DEPTH), (0, 0));
        nothing_is_lost();
        say(format_args!("{} calls deep, {} stacks", DEPTH, traces.len()));
    });
}
