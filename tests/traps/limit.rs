//! Tests the limit of heapgauge's own memory, for all of its parts together and any number of threads.

use crate::{inner, of_function, on_path, say, trap};
use heapgauge::{Collector, Report};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

type Block = Box<[u64; 3]>;

#[inline(never)]
fn leaf(number: usize) -> Block {
    black_box(Box::new([number as u64 ^ 1; 3]))
}
/// The line of the allocating call.
const LEAF_LINE: u32 = line!() - 3;
const LEAF: &str = "traps::limit::leaf";

/// Returns the private memory of the process in bytes, from the system: heapgauge's own figures are not used.
fn private_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    let kilobytes: u64 = line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes << 10
}

/// Collects until every site has its name.
fn named(collector: &Collector) -> Arc<Report> {
    loop {
        let report = collector.collect();
        if report.unnamed.pending == 0 {
            return report;
        }
        // A younger collection would be reused.
        std::thread::sleep(Duration::from_millis(1_001));
    }
}

/// Raises the limit, so that there is memory for names and answers.
fn without_limit() -> Arc<Report> {
    heapgauge::set_max_overhead(4 << 30).unwrap();
    named(&Collector::new())
}

/// Counters of each thread for each stack were once made without regard for the limit.
#[test]
fn many_threads_on_many_stacks() {
    trap("limit::many_threads_on_many_stacks", || {
        const THREADS: usize = 48;
        const DEPTH: usize = 14;
        // Counters come for many stacks at once, so that it does not take every stack to have them all.
        const STEP: usize = 16;
        const LIMIT: u64 = 20 << 20;
        heapgauge::set_max_overhead(LIMIT).unwrap();
        let _collector = heapgauge::Collector::new();
        // Short stacks, so that all fit.
        heapgauge::stop();
        heapgauge::start(1).unwrap();
        let paths = |step: usize| -> Vec<Block> {
            let each = |path| on_path(path, DEPTH, &mut || leaf(path));
            (0..1 << DEPTH).step_by(step).map(each).collect()
        };
        // All stacks are recorded once before.
        let mut kept = std::thread::spawn(move || paths(1)).join().unwrap();
        let (before, own_before) = (private_bytes(), heapgauge::tracker_memory());
        let barrier = Arc::new(Barrier::new(THREADS));
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let barrier = barrier.clone();
                std::thread::spawn(move || {
                    barrier.wait();
                    let blocks = paths(STEP);
                    // No thread adopts a state before every thread has filled its own.
                    barrier.wait();
                    blocks
                })
            })
            .collect();
        for thread in threads {
            kept.extend(thread.join().unwrap());
        }
        let (own, grown) = (heapgauge::tracker_memory(), private_bytes().saturating_sub(before));
        assert!(own <= LIMIT, "{own} bytes of {LIMIT}, {own_before} before");
        // Memory of the program: blocks, their lists and copies, and the touched pages of the threads' stacks.
        let blocks = (kept.len() * (64 + 3 * size_of::<Block>()) + THREADS * (256 << 10)) as u64;
        assert!(grown <= LIMIT + blocks, "{grown} bytes more, {blocks} are the program's");

        // Counted by the shared counters: exact, and nothing dropped.
        let (blocks, report) = (kept.len() as u64, without_limit());
        assert_eq!(blocks, (1 << DEPTH) + THREADS as u64 * (1 << DEPTH) / STEP as u64);
        assert_eq!(of_function(LEAF), (24 * blocks, blocks));
        assert_eq!(report.dropped.threads, 0);
        // Freed on a thread that has no counters for them either.
        std::thread::spawn(move || drop(kept)).join().unwrap();
        assert_eq!(of_function(LEAF), (0, 0));
        say(format_args!("{THREADS} threads on {} stacks: {} of {} KiB", 1 << DEPTH, own >> 10, LIMIT >> 10));
    });
}

/// Thread states were once made without regard for the limit.
#[test]
fn more_threads_than_there_is_room_for() {
    trap("limit::more_threads_than_there_is_room_for", || {
        const THREADS: usize = 150;
        const LIMIT: u64 = 1 << 20;
        heapgauge::set_max_overhead(LIMIT).unwrap();
        let _collector = heapgauge::Collector::new();
        let before = heapgauge::traced_memory().current;
        let barrier = Arc::new(Barrier::new(THREADS + 1));
        let threads: Vec<_> = (0..THREADS)
            .map(|number| {
                let barrier = barrier.clone();
                std::thread::Builder::new()
                    .stack_size(256 << 10)
                    .spawn(move || {
                        let block = black_box(vec![0u8; 100_000 + number]);
                        barrier.wait();
                        barrier.wait();
                        block.len()
                    })
                    .unwrap()
            })
            .collect();
        barrier.wait();
        let (own, live) = (heapgauge::tracker_memory(), heapgauge::traced_memory().current - before);
        assert!(own <= LIMIT, "{own} bytes of {LIMIT}");
        let blocks: u64 = (0..THREADS as u64).map(|number| 100_000 + number).sum();
        assert!((blocks..blocks + (THREADS as u64) * 4_096).contains(&live), "{live} of {blocks}");
        barrier.wait();
        let sum: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert_eq!(sum as u64, blocks);
        let left = heapgauge::traced_memory().current.saturating_sub(before);
        assert!(left < 64 << 10, "{left} bytes are left");
        assert!(without_limit().dropped.threads > 0);
        say(format_args!("{THREADS} threads at once: {} of {} KiB", own >> 10, LIMIT >> 10));
    });
}

/// Finds the first names, within a limit. Tables of symbols and the names of all compilation units were once in memory for
/// moments, whatever the limit.
fn first_names_within(limit: u64) -> Arc<Report> {
    heapgauge::set_max_overhead(limit).unwrap();
    let sampled = Arc::new([const { AtomicU64::new(0) }; 2]);
    let (watched, private_before) = (sampled.clone(), private_bytes());
    std::thread::spawn(move || {
        loop {
            watched[0].fetch_max(heapgauge::tracker_memory(), Ordering::Relaxed);
            watched[1].fetch_max(private_bytes(), Ordering::Relaxed);
        }
    });
    let kept: Vec<Block> = (0..64).map(|path| on_path(path, 6, &mut || leaf(path))).collect();
    let own_before = heapgauge::tracker_memory();
    // What a sample misses, the allocator counts.
    let (report, held) = inner::most_held(|| named(&Collector::new()));
    let [sampled, private] = [0, 1].map(|at| sampled[at].load(Ordering::Relaxed));
    let own = sampled.max(own_before + held as u64);
    let grown = private - private_before;
    say(format_args!("first names: {} of {} KiB, {} private", own >> 10, limit >> 10, grown >> 10));
    assert!(own <= limit, "{own} bytes of {limit}, {sampled} were seen");
    // The C library keeps pages of its own, and those of stacks are touched.
    assert!(grown <= limit + (1 << 20), "{grown} bytes of private memory, {limit} are allowed");
    assert!(report.live.now.bytes >= 24 * kept.len() as u64);
    report
}

#[test]
fn first_names_in_one_mebibyte() {
    trap("limit::first_names_in_one_mebibyte", || drop(first_names_within(1 << 20)));
}

#[test]
fn first_names_in_two_mebibytes() {
    trap("limit::first_names_in_two_mebibytes", || drop(first_names_within(2 << 20)));
}

/// Memory that was freed between two modules once stayed in memory beside the line tables: 26 MiB in all.
#[test]
fn first_names_in_many_mebibytes() {
    trap("limit::first_names_in_many_mebibytes", || {
        let report = first_names_within(24 << 20);
        assert_eq!(report.build.symbols(), "lines", "a larger limit is wanted, in which lines are read");
    });
}

#[inline(never)]
fn leaf_of<const NUMBER: u64>() -> Block {
    black_box(Box::new([NUMBER; 3]))
}

/// Each thread that looked names up once kept the memory of the line tables, in a heap of the C library's that no other
/// thread uses.
#[test]
fn names_leave_no_memory_behind() {
    trap("limit::names_leave_no_memory_behind", || {
        // An eighth of it may be left over from names.
        const LIMIT: u64 = 32 << 20;
        heapgauge::set_max_overhead(LIMIT).unwrap();
        let collector = Arc::new(Collector::new());
        let leaves = [leaf_of::<0>, leaf_of::<1>, leaf_of::<2>, leaf_of::<3>, leaf_of::<4>, leaf_of::<5>]
            as [fn() -> Block; 6];
        let all = Arc::new(Barrier::new(leaves.len() + 1));
        let (before, own_before) = (private_bytes(), heapgauge::tracker_memory());
        let (names, named_by) = std::sync::mpsc::channel();
        for leaf in leaves {
            let (collector, all, names) = (collector.clone(), all.clone(), names.clone());
            std::thread::spawn(move || {
                let block = leaf();
                // A younger collection would be reused.
                std::thread::sleep(Duration::from_millis(1_001));
                names.send(named(&collector).build.symbols().to_owned()).unwrap();
                all.wait();
                drop(block);
            });
            assert_eq!(named_by.recv().as_deref(), Ok("lines"));
        }
        let own = heapgauge::tracker_memory() - own_before;
        let grown = private_bytes().saturating_sub(before);
        all.wait();
        say(format_args!(
            "named by {} threads: {} KiB more, {} are counted",
            leaves.len(),
            grown >> 10,
            own >> 10
        ));
        // Pages of stacks are touched, and each thread's heap keeps pages that are partly used.
        let scraps = (leaves.len() as u64) << 20;
        assert!(grown <= own + LIMIT / 8 + scraps, "{grown} bytes more, {own} of them are counted");
    });
}

/// Runs `act` so many calls of the C library's `bsearch` deeper. Its code is far from the program's, so a stack takes many bytes.
fn below(calls: usize, act: &mut dyn FnMut()) {
    extern "C" fn compare(next: *const libc::c_void, _: *const libc::c_void) -> libc::c_int {
        // SAFETY: the key of the call below, which nothing else uses meanwhile.
        let (calls, act) = unsafe { &mut *next.cast_mut().cast::<(usize, &mut dyn FnMut())>() };
        below(*calls, *act);
        0
    }
    let Some(calls) = calls.checked_sub(1) else { return act() };
    let mut next = (calls, act);
    let (key, element) = ((&raw mut next).cast_const().cast(), (&raw const calls).cast());
    // SAFETY: one element of the size given, and a comparison that takes this key.
    let found = unsafe { libc::bsearch(key, element, 1, size_of::<usize>(), Some(compare)) };
    assert!(!found.is_null());
}

/// The tables of very many deep stacks once used all memory before the first name was read: every site was named by module
/// and offset, with another id.
#[test]
fn names_have_room_whatever_the_stacks_take() {
    trap("limit::names_have_room_whatever_the_stacks_take", || {
        const DEPTH: usize = 17;
        heapgauge::stop();
        heapgauge::start(64).unwrap();
        let collector = Collector::new();
        let mut kept: Vec<Block> = Vec::with_capacity(1 << DEPTH);
        let mut own = 0;
        let is_full = (0..1 << DEPTH).any(|path| {
            below(22, &mut || kept.push(on_path(path, DEPTH, &mut || leaf(path))));
            // Not by a collection, which would read names.
            let is_checked = path % 4_096 == 4_095;
            let before =
                if is_checked { std::mem::replace(&mut own, heapgauge::tracker_memory()) } else { 0 };
            is_checked && own < before + (64 << 10)
        });
        assert!(is_full, "there is room for more stacks");
        let report = named(&collector);
        assert_eq!((report.unnamed.lost, report.build.symbols()), (0, "lines"));
        let row = report.sites.iter().find(|row| row.function() == LEAF).expect("the leaf among the sites");
        assert_eq!((row.file(), row.line()), ("tests/traps/limit.rs", LEAF_LINE));
        // The id that it has in every process.
        assert_eq!(row.site(), fnv_1a(&format!("{LEAF}\0{}\0{}", row.file(), row.line())));
        let own = heapgauge::tracker_memory();
        assert!(own <= 64 << 20, "{own}");
        say(format_args!("{} deep stacks, {} MiB, and every line", kept.len(), own >> 20));
    });
}

/// Computes FNV-1a 64 as 16 hex digits.
fn fnv_1a(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}
