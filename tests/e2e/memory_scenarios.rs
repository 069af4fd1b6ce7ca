//! Ways in which a process runs out of memory, or nearly: `memory_scenarios SCENARIO [NUMBER…]`, for `evidence.py`.
//!
//! Every scenario is bounded, and ends by itself within two minutes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Refuses one request in so many, at least of [`LARGE`] bytes; 0: none.
static REFUSES: AtomicU32 = AtomicU32::new(0);
static REQUESTS: AtomicU32 = AtomicU32::new(0);
/// Size from which on requests are refused, so that the program itself goes on.
const LARGE: usize = 1 << 16;

/// The system's allocator, which may refuse.
struct Refusing;

impl Refusing {
    fn refuses(&self, size: usize) -> bool {
        let one_in = REFUSES.load(Ordering::Relaxed);
        one_in != 0 && size >= LARGE && REQUESTS.fetch_add(1, Ordering::Relaxed).is_multiple_of(one_in)
    }
}

/// Allocations of heapgauge's threads while they are counted, which is from the moment that this is not negative.
static OWN: AtomicI32 = AtomicI32::new(-1);

/// Counts an allocation of a thread that is called `heapgauge`.
fn count_own() {
    if OWN.load(Ordering::Relaxed) >= 0 {
        let mut name = [0u8; 16];
        // SAFETY: a place for the name of the calling thread.
        unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
        if name.starts_with(b"heapgauge\0") {
            OWN.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// SAFETY: the system's allocator, or null, which is allowed at any time.
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_own();
        // SAFETY: the caller's duties.
        if self.refuses(layout.size()) { std::ptr::null_mut() } else { unsafe { System.alloc(layout) } }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's duties.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator<Refusing> = heapgauge::TrackingAllocator::new(Refusing);

const MIB: usize = 1 << 20;
const LONGEST: Duration = Duration::from_secs(110);

/// Leaks one touched block; the line that dumps have to name.
#[inline(never)]
fn leak(size: usize) {
    let block = vec![1u8; size]; // the planted leak
    std::mem::forget(black_box(block));
}

/// Leaks under one of many stacks.
#[inline(never)]
fn leak_under(path: u64, depth: u32, size: usize) {
    match (depth, path & 1) {
        (0, _) => leak(size),
        (_, 0) => left(path >> 1, depth - 1, size),
        (_, _) => right(path >> 1, depth - 1, size),
    }
    black_box(());
}

#[inline(never)]
fn left(path: u64, depth: u32, size: usize) {
    leak_under(path, depth, size);
    black_box(());
}

// Not the same code as `left`: the compiler would make one function of both.
#[inline(never)]
fn right(path: u64, depth: u32, size: usize) {
    leak_under(path, depth, size);
    black_box(1);
}

/// Leaks so many MiB a second until the time is up, under `1 << depth` stacks.
fn leak_for_ever(rate: usize, depth: u32) {
    // Blocks as a cache has them, small ones too; a hundred slices a second.
    let begun = Instant::now();
    let (mut leaked, mut number) = (0_usize, 0_u64);
    while begun.elapsed() < LONGEST {
        let due = (begun.elapsed().as_secs_f64() * (rate * MIB) as f64) as usize;
        while leaked < due {
            let size = if number.is_multiple_of(4) { 64 << 10 } else { 1 << 10 };
            leak_under(number, depth, size);
            leaked += size;
            number += 1;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Holds so many MiB for a moment, in blocks of 1 MiB.
#[inline(never)]
fn spike(mib: usize, held: Duration) {
    let blocks: Vec<Vec<u8>> = (0..mib).map(|_| vec![1u8; MIB]).collect(); // the planted spike
    std::thread::sleep(held);
    drop(black_box(blocks));
}

/// Holds nine MiB of one tenant and one of another, on one line.
fn hold_of_tenants(held: Duration) {
    for (tenant, blocks) in [("acme", 9), ("b", 1)] {
        heapgauge::Scope::new("tenant", tenant).in_scope(|| (0..blocks).for_each(|_| leak(MIB)));
    }
    println!("held");
    std::thread::sleep(held);
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let scenario = arguments.next().unwrap_or_default();
    let numbers: Vec<usize> = arguments.filter_map(|number| number.parse().ok()).collect();
    let number = |at: usize| numbers.get(at).copied().unwrap_or(0);
    let dumps = heapgauge::Dumps::from_env();
    let server = std::env::var_os("SERVE").map(|_| heapgauge::serve_from_env());
    println!("ready");
    match scenario.as_str() {
        // leak MIB-A-SECOND THREADS DEPTH
        "leak" => {
            let threads = number(1).max(1);
            let (rate, depth) = ((number(0) / threads).max(1), number(2) as u32);
            let threads = (0..threads).map(|_| std::thread::spawn(move || leak_for_ever(rate, depth)));
            threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
        }
        // spike MIB MILLISECONDS, and some time after it
        "spike" => {
            std::thread::sleep(Duration::from_millis(300));
            spike(number(0), Duration::from_millis(number(1) as u64));
            std::thread::sleep(Duration::from_millis(2_500));
        }
        // grow: until an allocation fails, which ends the process
        "grow" => loop {
            leak(256 << 10);
            std::thread::sleep(Duration::from_millis(1));
        },
        // huge: a request that no machine can fulfil
        "huge" => {
            let mut vector: Vec<u8> = Vec::new();
            assert!(vector.try_reserve(1 << 45).is_err());
        }
        // refuse ONE-IN: requests that fail, and a program that goes on
        "refuse" => {
            REFUSES.store(number(0) as u32, Ordering::Relaxed);
            let mut refused = 0;
            for _ in 0..1_000 {
                let mut vector: Vec<u8> = Vec::new();
                refused += u32::from(vector.try_reserve(LARGE + 1).is_err());
            }
            REFUSES.store(0, Ordering::Relaxed);
            println!("{refused} refused");
            std::thread::sleep(Duration::from_millis(500));
        }
        // read FILE-MIB SECONDS: fills the page cache
        "read" => {
            let path = std::env::var("READ").unwrap();
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(number(0) as u64) {
                let mut file = std::fs::File::open(&path).unwrap();
                std::io::copy(&mut file, &mut std::io::sink()).unwrap();
            }
        }
        // near MIB MIB: counts what heapgauge allocates while memory rises from the one to the other
        "near" => {
            (0..number(0)).for_each(|_| leak(MIB));
            std::thread::sleep(Duration::from_secs(4));
            OWN.store(0, Ordering::Relaxed);
            (number(0)..number(1)).for_each(|_| {
                leak(MIB);
                std::thread::sleep(Duration::from_millis(5));
            });
            std::thread::sleep(Duration::from_millis(300));
            println!("{} allocations", OWN.swap(-1, Ordering::Relaxed));
        }
        // hold MIB SECONDS
        "hold" => {
            (0..number(0)).for_each(|_| leak(MIB));
            println!("held");
            std::thread::sleep(Duration::from_secs(number(1) as u64));
        }
        // tenants SECONDS: nine MiB of one tenant and one of another, on one line
        "tenants" => hold_of_tenants(Duration::from_secs(number(0) as u64)),
        other => panic!("scenario {other:?} is unknown"),
    }
    drop((dumps, server));
}
