//! Tests a block from its allocation to its free, while tracking is paused, stopped, cleared or restarted: the acceptance
//! cases D.

use crate::block::{Block, FILE, layout};
use crate::inner::{REFUSES, ROOM, ZEROED};
use crate::random::Random;
use heapgauge::{Collector, GroupBy, Snapshot, TracedMemory, traced_memory};
use std::alloc::realloc;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

const MIB: usize = 1 << 20;
/// Both kinds of tag: behind the block, and beside it from a KiB on.
const SIZES: [usize; 4] = [24, 1_000, 5_000, MIB];

/// Returns live bytes and blocks of the program, the sum of all tracebacks.
fn live() -> (u64, u64) {
    let snapshot = Snapshot::take().unwrap();
    let sum = |of: fn(&heapgauge::Trace) -> u64| snapshot.traces().iter().map(of).sum();
    (sum(|trace| trace.size), sum(|trace| trace.count))
}

/// Returns live bytes and blocks of a line of the file of [`Block`].
fn at_line(line: u32) -> (u64, u64) {
    let rows = Snapshot::take().unwrap().statistics(GroupBy::Line);
    let row = rows.iter().find(|row| {
        let frame = row.traceback.most_recent();
        (frame.file(), frame.line()) == (FILE, line)
    });
    row.map_or((0, 0), |row| (row.size, row.count))
}

pub fn case_34_an_allocation_and_its_free() {
    for size in SIZES {
        let (bytes, blocks) = live();
        assert_eq!(traced_memory().current, bytes);
        let block = Block::new(size);
        assert_eq!(live(), (bytes + size as u64, blocks + 1));
        assert_eq!(at_line(Block::LINE), (size as u64, 1));
        let TracedMemory { current, peak } = traced_memory();
        assert_eq!(current, bytes + size as u64);
        assert!(peak >= current);
        drop(block);
        assert_eq!(live(), (bytes, blocks));
        assert_eq!(at_line(Block::LINE), (0, 0));
        assert_eq!(traced_memory(), TracedMemory { current: bytes, peak });
    }
}

pub fn case_35_reset_peak_and_clear() {
    drop(Block::new(8 * MIB));
    let before = traced_memory();
    assert!(before.peak >= before.current + 8 * MIB as u64);
    heapgauge::reset_peak();
    let TracedMemory { current, peak } = traced_memory();
    assert_eq!((current, peak), (before.current, before.current));
    let block = Block::new(MIB);
    assert!(traced_memory().peak >= peak + MIB as u64);
    drop(block);
    let after = traced_memory();
    assert_eq!(after.current, current);
    assert!(after.peak >= peak + MIB as u64);

    let from_before: Vec<Block> = SIZES.map(Block::new).into();
    let collector = Collector::new();
    heapgauge::clear_traces();
    assert!(heapgauge::is_tracing());
    assert_eq!(traced_memory(), TracedMemory { current: 0, peak: 0 });
    drop(from_before);
    assert_eq!(traced_memory(), TracedMemory { current: 0, peak: 0 });
    assert_eq!(live(), (0, 0));
    let report = collector.collect();
    assert_eq!((report.live.now.bytes, report.live.now.blocks, report.peak_bytes), (0, 0, 0));
    assert_eq!((report.allocated_bytes, report.allocations), (0, 0));
    assert_eq!((report.deallocated_bytes, report.deallocations), (0, 0));
    // It goes on: the next block is the only one there is.
    let block = Block::new(100);
    assert_eq!(live(), (100, 1));
    assert_eq!(traced_memory(), TracedMemory { current: 100, peak: 100 });
    drop(block);
    assert_eq!(live(), (0, 0));
}

pub fn case_36_stop_start_and_what_is_no_depth() {
    let blocks = SIZES.map(Block::new);
    heapgauge::stop();
    assert!(!heapgauge::is_tracing());
    assert_eq!(traced_memory(), TracedMemory { current: 0, peak: 0 });
    let report = Collector::new().collect();
    assert!(!report.tracking && report.sites.is_empty());
    assert_eq!((report.live.now.bytes, report.live.now.blocks, report.peak_bytes), (0, 0, 0));
    assert_eq!((report.allocated_bytes, report.allocations), (0, 0));
    assert_eq!((report.deallocated_bytes, report.deallocations), (0, 0));
    assert_eq!((report.live.delta_bytes(), report.live.delta_blocks(), report.sites_with_blocks), (0, 0, 0));
    Snapshot::take().unwrap_err();

    // -1 as an unsigned number is the largest there is.
    for (frames, name) in [(0, "0"), (65, "65"), (-1_isize as usize, "18446744073709551615")] {
        let error = heapgauge::start(frames).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("start: {name} frames is out of range, allowed are 1 to 64"),
            "{frames}"
        );
        assert!(!heapgauge::is_tracing());
    }
    for frames in [1, 64] {
        heapgauge::start(frames).unwrap();
        assert!(heapgauge::is_tracing());
        assert_eq!(heapgauge::traceback_limit(), frames);
        heapgauge::stop();
    }

    heapgauge::start(32).unwrap();
    let kept = Block::new(100);
    heapgauge::start(7).unwrap();
    assert_eq!(heapgauge::traceback_limit(), 32);
    assert_eq!((live(), at_line(Block::LINE)), ((100, 1), (100, 1)));
    heapgauge::start(65).unwrap_err();
    assert_eq!(live(), (100, 1));
    drop((kept, blocks));
    assert_eq!(live(), (0, 0));
}

pub fn case_37_resized_in_place_and_moved() {
    let (bytes, blocks) = live();
    // From, to, and whether it stays where it is: within and beyond its room, across the border between the
    // two kinds of tag, and to the same size.
    for (from, to, stays) in [
        (24, 900, true),
        (900, 24, true),
        (24, 2_000, true),
        (2_000, 24, true),
        (1_023, 1_024, true),
        (2_000, 4_000, true),
        (4_000, 2_000, true),
        (500, 500, true),
        (5_000, 5_000, true),
        (24, ROOM * 2, false),
        (ROOM * 2, 24, false),
        (MIB, 3 * MIB, false),
        (3 * MIB, MIB, false),
    ] {
        let mut block = Block::new(from);
        let start = block.start;
        for byte in 0..from.min(to) {
            // SAFETY: within the block.
            unsafe { start.add(byte).write(byte as u8) };
        }
        assert_eq!(at_line(Block::LINE), (from as u64, 1));
        assert!(block.resize(to));
        assert_eq!(block.start == start, stays, "{from} to {to}");
        for byte in 0..from.min(to) {
            // SAFETY: within the block, and written above.
            assert_eq!(unsafe { block.start.add(byte).read() }, byte as u8, "{from} to {to}");
        }
        assert_eq!(at_line(Block::LINE), (0, 0), "{from} to {to}");
        assert_eq!(at_line(Block::RESIZE_LINE), (to as u64, 1), "{from} to {to}");
        assert_eq!(live(), (bytes + to as u64, blocks + 1), "{from} to {to}");
        drop(block);
        assert_eq!(at_line(Block::RESIZE_LINE), (0, 0), "{from} to {to}");
        assert_eq!(live(), (bytes, blocks), "{from} to {to}");
    }
}

pub fn case_37_a_resize_that_fails_changes_nothing() {
    for (from, to) in [(24, 900), (24, MIB), (5_000, 24), (MIB, 2 * MIB)] {
        let mut block = Block::new(from);
        // SAFETY: within the block.
        unsafe { block.start.add(from - 1).write(37) };
        let (start, before) = (block.start, live());
        REFUSES.store(true, Relaxed);
        let done = block.resize(to);
        REFUSES.store(false, Relaxed);
        assert!(!done);
        // Sizes beyond any layout are refused before the allocator is called.
        // SAFETY: the block is made with this layout, and the sizes are not zero.
        assert!(unsafe { realloc(block.start, layout(from), isize::MAX as usize + 1) }.is_null());
        assert_eq!((block.start, live()), (start, before));
        assert_eq!(at_line(Block::LINE), (from as u64, 1));
        // SAFETY: within the block.
        assert_eq!(unsafe { block.start.add(from - 1).read() }, 37);
        drop(block);
        assert_eq!(at_line(Block::LINE), (0, 0));
    }
}

pub fn case_37_zeroed_blocks_count_once() {
    let (bytes, blocks) = live();
    let report = || Collector::new().collect();
    for size in SIZES {
        let (before, asked) = (report(), ZEROED.load(Relaxed));
        let block = Block::zeroed(size);
        let asked = ZEROED.load(Relaxed) - asked;
        let after = report();
        // One request for zeroed memory, handed on as one, and one block.
        assert_eq!(asked, 1);
        assert_eq!(after.allocations - before.allocations, 1);
        assert_eq!(after.allocated_bytes - before.allocated_bytes, size as u64);
        assert_eq!(after.deallocations, before.deallocations);
        assert_eq!(at_line(Block::ZEROED_LINE), (size as u64, 1));
        assert_eq!(live(), (bytes + size as u64, blocks + 1));
        for byte in [0, size / 2, size - 1] {
            // SAFETY: within the block, zeroed by the allocator.
            assert_eq!(unsafe { block.start.add(byte).read() }, 0);
        }
    }
    assert_eq!(live(), (bytes, blocks));
}

pub fn case_40_freed_by_another_thread() {
    thread::spawn(|| ()).join().unwrap(); // what a first thread leaves behind is there now
    let before = live();
    // The allocating thread ends before the other begins.
    let blocks = thread::spawn(|| SIZES.map(Block::new)).join().unwrap();
    let size: usize = SIZES.iter().sum();
    assert_eq!(at_line(Block::LINE), (size as u64, SIZES.len() as u64));
    assert_eq!(live(), (before.0 + size as u64, before.1 + SIZES.len() as u64));
    thread::spawn(|| drop(blocks)).join().unwrap();
    assert_eq!((at_line(Block::LINE), live()), ((0, 0), before));

    // Both live at once, and the blocks go from one to the other as they are made.
    let (give, take) = mpsc::sync_channel::<Block>(8);
    let freeing = thread::spawn(move || take.iter().count());
    let allocating = thread::spawn(move || {
        for number in 0..10_000 {
            give.send(Block::new(SIZES[number % 3])).unwrap();
        }
    });
    allocating.join().unwrap();
    assert_eq!(freeing.join().unwrap(), 10_000);
    assert_eq!((at_line(Block::LINE), live()), ((0, 0), before));

    // A resize in another thread also debits the line that allocated.
    let mut block = thread::spawn(|| Block::new(24)).join().unwrap();
    assert!(block.resize(9_000));
    assert_eq!((at_line(Block::LINE), at_line(Block::RESIZE_LINE)), ((0, 0), (9_000, 1)));
    drop(block);
    assert_eq!(live(), before);
}

const THREADS: usize = 4;
const OPERATIONS: usize = 20_000;
/// Maximum number of blocks of one thread, and of those between threads.
const HELD: usize = 64;
const LARGEST: usize = 3_000;

/// Number of operations begun by all threads.
static BEGUN: AtomicU64 = AtomicU64::new(0);

/// Allocates, frees, resizes and exchanges blocks at random. Returns the remaining ones.
fn at_random(seed: u64, between: &Mutex<Vec<Block>>) -> Vec<Block> {
    let mut random = Random(seed);
    let mut held: Vec<Block> = Vec::with_capacity(HELD);
    for _ in 0..OPERATIONS {
        BEGUN.fetch_add(1, SeqCst);
        let size = 1 + random.below(LARGEST);
        match random.below(7) {
            0 | 1 if held.len() < HELD => held.push(Block::new(size)),
            2 if held.len() < HELD => held.push(Block::zeroed(size)),
            3 if !held.is_empty() => drop(held.swap_remove(random.below(held.len()))),
            4 if !held.is_empty() => {
                let at = random.below(held.len());
                assert!(held[at].resize(size));
            }
            5 if !held.is_empty() => {
                let mut between = between.lock().unwrap();
                if between.len() < HELD {
                    between.push(held.swap_remove(0));
                }
            }
            6 if held.len() < HELD => held.extend(between.lock().unwrap().pop()),
            _ => {}
        }
    }
    held
}

pub fn case_40_threads_at_random_add_up() {
    thread::spawn(|| ()).join().unwrap();
    let lines = [Block::LINE, Block::ZEROED_LINE, Block::RESIZE_LINE];
    let before = live();
    let between = Mutex::new(Vec::with_capacity(HELD));
    // No more than these can live at once: what the threads hold, and what they need besides.
    let most_blocks = before.1 + ((THREADS + 1) * HELD) as u64 + 1_000;
    let most_bytes = before.0 + most_blocks * LARGEST as u64 + MIB as u64;
    let (done, began) = (AtomicBool::new(false), Barrier::new(THREADS + 1));
    let left: Vec<Vec<Block>> = thread::scope(|scope| {
        let workers: Vec<_> = (1..=THREADS as u64)
            .map(|seed| {
                let (between, began) = (&between, &began);
                scope.spawn(move || {
                    began.wait();
                    at_random(seed * 0x9e37_79b9, between)
                })
            })
            .collect();
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !done.load(Relaxed) || reads == 0 {
                let begun = BEGUN.load(SeqCst);
                let (bytes, blocks) = live();
                let current = traced_memory().current;
                // Frees are read first, so what was allocated and freed while this thread was reading, or had to wait
                // in the midst of it, may still be in. One below zero would be near the largest number there is.
                let meanwhile = BEGUN.load(SeqCst) - begun;
                let most_bytes = most_bytes + meanwhile * LARGEST as u64;
                assert!(
                    blocks <= most_blocks + meanwhile,
                    "{blocks} blocks, {meanwhile} operations meanwhile"
                );
                assert!(bytes <= most_bytes && current <= most_bytes, "{bytes} bytes, then {current}");
                reads += 1;
            }
            reads
        });
        began.wait();
        let left: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, Relaxed);
        assert!(reader.join().unwrap() > 0);
        left.into_iter().map(|left| left.unwrap()).collect()
    });
    let kept: Vec<usize> = {
        let between = between.lock().unwrap();
        left.iter().flatten().chain(between.iter()).map(|block| block.size).collect()
    };
    let expected = (kept.iter().sum::<usize>() as u64, kept.len() as u64);
    assert!(expected.1 > 0);
    let found = lines.map(at_line);
    let sum = found.iter().fold((0, 0), |sum, line| (sum.0 + line.0, sum.1 + line.1));
    assert_eq!(sum, expected, "{found:?}");
    drop((kept, left, between));
    assert_eq!(lines.map(at_line), [(0, 0); 3]);
    assert_eq!(live(), before);
}

pub fn case_41_whoever_reads_a_snapshot_may_allocate() {
    // Keeps a block for each traceback, frees another, and calls all other functions meanwhile.
    let is_here = |frame: &heapgauge::Frame| (frame.file(), frame.line()) == (FILE, Block::LINE);
    let work = move || {
        let mut kept = Vec::with_capacity(1_000);
        let snapshot = Snapshot::take().unwrap();
        let shown = snapshot.clone();
        for trace in snapshot.traces() {
            kept.push(Block::new(41));
            drop(Block::new(4_141));
            assert!(trace.size > 0);
        }
        for row in snapshot.statistics(GroupBy::Traceback) {
            kept.push(Block::new(41));
            drop(black_box(row.to_string()));
        }
        // Names the lines of these blocks to the end, however busy the machine is; a collection stops after its time.
        drop(Snapshot::take().unwrap());
        let (at_report, report) = (kept.len() as u64, Collector::new().collect());
        for site in &report.sites {
            kept.push(Block::new(41));
            drop(black_box(format!("{} {}", site.site(), site.function())));
            let again = Snapshot::take().unwrap();
            let differences = again.compare_to(&snapshot, GroupBy::Line);
            let kept_blocks = differences.iter().find(|row| is_here(row.traceback.most_recent()));
            assert_eq!(kept_blocks.map(|row| row.count_diff), Some(kept.len() as i64));
        }
        assert_eq!(snapshot, shown);
        // They are not in the snapshot or in its statistics.
        assert!(!snapshot.traces().iter().any(|trace| is_here(trace.traceback.most_recent())));
        assert!(!snapshot.statistics(GroupBy::Line).iter().any(|row| is_here(row.traceback.most_recent())));
        let site = report.sites.iter().find(|site| (site.file(), site.line()) == (FILE, Block::LINE));
        assert_eq!(site.map(|site| site.live.now.blocks), Some(at_report));
        // The next snapshot has all kept blocks, and none of the freed ones.
        assert_eq!(at_line(Block::LINE), (41 * kept.len() as u64, kept.len() as u64));
        kept.len()
    };
    // On a thread of its own, so that a deadlock is a failure and not the end of all checks.
    let (tell, told) = mpsc::channel();
    let reader = thread::spawn(move || tell.send(work()).unwrap());
    let kept = told.recv_timeout(Duration::from_secs(120)).expect("no deadlock");
    reader.join().unwrap();
    assert!(kept > 3, "{kept}");
    assert_eq!(at_line(Block::LINE), (0, 0));
}

pub fn case_42_totals_hold_nothing_of_heapgauge() {
    let (current, overhead) = (traced_memory().current, heapgauge::tracker_memory());
    let collector = Collector::new();
    let (snapshot, report) = (Snapshot::take().unwrap(), collector.collect());
    let rows = snapshot.statistics(GroupBy::CumulativeLine);
    let differences = snapshot.compare_to(&snapshot, GroupBy::Traceback);
    let (copy, top) = (snapshot.filter_traces(&[]), heapgauge::Top::of(differences, 3));
    heapgauge::track(42, 0x1000, 4_242).unwrap();
    assert_eq!(traced_memory().current, current);
    assert!(heapgauge::tracker_memory() > overhead);
    heapgauge::untrack(42, 0x1000);
    drop((collector, snapshot, report, rows, copy, top));
    assert_eq!(traced_memory().current, current);
}

pub fn case_44_a_pause_silences_allocations_alone() {
    let before = live();
    let tracked = SIZES.map(Block::new);
    let mut resized = Block::new(24);
    let with_tracked = live();
    let guard = heapgauge::pause();
    let inner = heapgauge::pause();
    let ignored = SIZES.map(Block::new);
    let mut adopted = Block::new(24);
    drop(inner);
    // Guards nest: one still lives.
    let ignored_too = Block::new(100);
    assert_eq!(live(), with_tracked);
    // Another thread is not paused.
    let elsewhere = thread::scope(|scope| scope.spawn(|| Block::new(4_444)).join().unwrap());
    assert_eq!(at_line(Block::LINE).1, with_tracked.1 - before.1 + 1);
    drop(elsewhere);
    // A free of a tracked block is always debited …
    drop(tracked);
    assert_eq!(at_line(Block::LINE), (24, 1));
    // … and a block resized meanwhile keeps its line, with the new size.
    assert!(resized.resize(7_000));
    assert_eq!((at_line(Block::LINE), at_line(Block::RESIZE_LINE)), ((7_000, 1), (0, 0)));
    assert_eq!(live(), (before.0 + 7_000, before.1 + 1));
    drop(guard);

    // Allocated while paused and freed later: ignored. Resized later: tracked from then on.
    drop((ignored, ignored_too));
    assert_eq!(live(), (before.0 + 7_000, before.1 + 1));
    assert!(adopted.resize(48));
    assert_eq!(at_line(Block::RESIZE_LINE), (48, 1));
    drop((resized, adopted));
    assert_eq!(live(), before);
}

pub fn case_44_stop_and_clear_forget() {
    let from_before = SIZES.map(Block::new);
    let mut resized = Block::new(24);
    let (snapshot, at_line_then) = (Snapshot::take().unwrap(), at_line(Block::LINE));
    heapgauge::stop();
    // A snapshot is a value: it does not change with tracking.
    assert_eq!(snapshot.compare_to(&snapshot.filter_traces(&[]), GroupBy::Line)[0].size_diff, 0);
    let while_off = SIZES.map(Block::new);
    heapgauge::start(32).unwrap();
    assert_eq!(live(), (0, 0));
    let first = Block::new(10);
    drop((from_before, while_off));
    assert_eq!((live(), at_line(Block::LINE)), ((10, 1), (10, 1)));
    let rows = Snapshot::take().unwrap().compare_to(&snapshot, GroupBy::Line);
    let row = rows.iter().find(|row| row.traceback.most_recent().line() == Block::LINE).unwrap();
    assert_eq!((row.size_diff, row.count_diff), (10 - at_line_then.0 as i64, 1 - at_line_then.1 as i64));
    drop((rows, snapshot));
    heapgauge::clear_traces();
    let second = Block::new(20);
    drop(first);
    assert_eq!((live(), at_line(Block::LINE)), ((20, 1), (20, 1)));
    // A forgotten block that is resized is a new one.
    assert!(resized.resize(30));
    assert_eq!((live(), at_line(Block::RESIZE_LINE)), ((50, 2), (30, 1)));
    let untracked = Collector::new().collect().untracked_bytes;
    heapgauge::stop();
    drop((second, resized));
    let while_off = Block::new(1_000);
    assert_eq!(Collector::new().collect().untracked_bytes, untracked + 1_000);
    drop(while_off);
    assert_eq!(Collector::new().collect().untracked_bytes, untracked);
    heapgauge::start(32).unwrap();
    assert_eq!(live(), (0, 0));
    assert_eq!(traced_memory(), TracedMemory { current: 0, peak: 0 });
}
