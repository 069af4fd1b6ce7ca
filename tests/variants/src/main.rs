//! Prints the sites of seven leaks, and how they were captured, as JSON, for `tests/variants.py` and `tests/platforms.py`.
//!
//! With the argument `go on` it prints them twice more, for `tests/platforms.py`.
//!
//! Each leak allocates in one line, so that a variant with line numbers has as many sites as one with functions only.

use heapgauge::{Collector, Frame, GroupBy, Snapshot};
use serde_json::{Value, json};
use std::alloc::Layout;
use std::collections::VecDeque;
use std::hint::black_box;
use std::mem::forget;
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

/// Leaks 1,234 blocks of 48 bytes.
#[inline(never)]
fn first_leak() {
    for number in 0..black_box(1_234u64) {
        forget(black_box(Box::new([number; 6]))); // first_leak
    }
}

/// Leaks 567 blocks of 96 bytes.
#[inline(never)]
fn second_leak() {
    for number in 0..black_box(567u64) {
        forget(black_box(Box::new([number; 12]))); // second_leak
    }
}

/// Leaks 777 blocks of 320 bytes, which a container asks for.
#[inline(never)]
fn third_leak() {
    for number in 0..black_box(777u64) {
        forget(black_box((number..number + 40).collect::<VecDeque<u64>>())); // third_leak
    }
}

/// Leaks 50 blocks of 3,000 zero bytes: large ones, by another entry of the allocator.
#[inline(never)]
fn fourth_leak() {
    for _ in 0..black_box(50) {
        forget(black_box(vec![0u8; 3_000])); // fourth_leak
    }
}

/// Leaks 60 blocks that grow to 5,000 bytes: by a third entry.
#[inline(never)]
fn fifth_leak() {
    let layout = Layout::new::<[u8; 100]>();
    for _ in 0..black_box(60) {
        // SAFETY: the size is not zero, and the block is of that layout.
        unsafe {
            let block = std::alloc::alloc(layout);
            black_box(std::alloc::realloc(block, layout, black_box(5_000))); // fifth_leak
        }
    }
}

/// Leaks 40 blocks of 2,000 bytes, which a library asks for.
#[inline(never)]
fn sixth_leak() {
    let text = format!("\"{}\"", "x".repeat(2_000));
    for _ in 0..black_box(40) {
        forget(black_box(serde_json::from_str::<Value>(&text))); // sixth_leak
    }
}

struct Keeper;

impl Keeper {
    /// Keeps 30 blocks of 700 bytes, in a method that is inlined.
    #[inline(always)]
    fn keep(&self) {
        for number in 0..black_box(30u8) {
            forget(black_box(Box::new([number; 700]))); // keep
        }
    }
}

/// Calls the method, and has the address of a copy of it that is not inlined: by its symbol the method has its type.
#[inline(never)]
fn seventh_leak() {
    black_box(Keeper::keep as fn(&Keeper));
    Keeper.keep();
}

fn frame(frame: &Frame) -> Value {
    json!({
        "name": frame.name(),
        "file": frame.file(),
        "line": frame.line(),
        "module": frame.module(),
        "offset": frame.offset(),
    })
}

/// Leaks again all that `main` has leaked.
#[inline(never)]
fn leak_again() {
    first_leak();
    second_leak();
    third_leak();
    fourth_leak();
    fifth_leak();
    sixth_leak();
}

/// Prints the sites again after what has broken their names or numbers: a panic that prints a backtrace, for which the
/// standard library maps the executable once more; the end of the thread that allocates; and a fork, in the child.
fn go_on() {
    let panicked = std::panic::catch_unwind(|| panic!("this panic prints a backtrace"));
    assert!(panicked.is_err());
    std::thread::spawn(leak_again).join().expect("the thread ends without a panic");
    print_document();
    print_in_child();
}

#[cfg(unix)]
fn print_in_child() {
    unsafe extern "C" {
        fn fork() -> i32;
        fn waitpid(process: i32, status: *mut i32, options: i32) -> i32;
    }
    // SAFETY: both are functions of the C library with these types. No other thread runs, so the child may go on.
    unsafe {
        let child = fork();
        assert!(child >= 0, "no child process could be made");
        if child == 0 {
            leak_again();
            print_document();
            std::process::exit(0);
        }
        let mut status = -1;
        assert_eq!((waitpid(child, &mut status, 0), status), (child, 0), "the child has failed");
    }
}

#[cfg(not(unix))]
fn print_in_child() {}

fn main() {
    first_leak();
    second_leak();
    third_leak();
    fourth_leak();
    fifth_leak();
    // Nothing is looked through, so that the library's frame is the nearest.
    heapgauge::set_look_through(<[&str; 0]>::default()).expect("no names");
    sixth_leak();
    seventh_leak();
    print_document();
    if std::env::args().nth(1).as_deref() == Some("go on") {
        go_on();
    }
}

/// Prints one line.
fn print_document() {
    let snapshot = Snapshot::take().expect("tracking is on");
    let rows: Vec<Value> = snapshot
        .statistics(GroupBy::Traceback)
        .iter()
        .map(|row| {
            let frames: Vec<Value> = row.traceback.frames().map(frame).collect();
            json!({ "size": row.size, "count": row.count, "frames": frames })
        })
        .collect();
    // The sites as an outlet has them.
    let collector = Collector::new();
    // On a busy machine the time of one collection may be up before all stacks have names. A collection is given out
    // again for a second, so a loop without a pause would see it a thousand times.
    let begun = Instant::now();
    let report = loop {
        let report = collector.collect();
        if report.unnamed.pending == 0 || begun.elapsed() > Duration::from_secs(120) {
            break report;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    let sites: Vec<Value> = report
        .sites
        .iter()
        .map(|site| {
            json!({
                "site": site.site(),
                "name": site.function(),
                "file": site.file(),
                "line": site.line(),
                "via": site.via(),
                "size": site.live.now.bytes,
                "count": site.live.now.blocks,
            })
        })
        .collect();
    let dropped = &report.dropped;
    let document = json!({
        "capture": report.build.capture(),
        "symbols": report.build.symbols(),
        "fallback_walks": report.fallback_walks,
        "dropped": dropped.stacks + dropped.memory + dropped.threads + dropped.reentrant,
        "truncated": report.truncated_stacks,
        "build_id": report.build.build_id(),
        "tracebacks": rows,
        "sites": sites,
        // Another one in each process that is loaded elsewhere.
        "main_at": main as fn() as usize,
    });
    println!("{document}");
}
