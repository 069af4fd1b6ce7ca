//! A fragmented heap of many arenas, and how long an allocation waits for the lock of its arena.
//!
//!     glibc latency ARENAS MIB SECONDS
//!
//! Each thread fills an arena with so many MiB, of which three quarters are freed again, and allocates every two
//! milliseconds. Prints `listening on ADDRESS`, `filled`, and for each second the number and the longest of the
//! allocations that waited, in microseconds. An allocation has waited if the kernel counts a switch of its own
//! accord during it: one that was interrupted on a busy machine has not.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

/// Size of the blocks: threads keep only smaller ones for themselves (up to 1,032 bytes), so each allocation takes the lock.
const BLOCK: usize = 2_000;

static WAITS: AtomicU64 = AtomicU64::new(0);
static LONGEST: AtomicU64 = AtomicU64::new(0);

pub fn run(arguments: &[usize]) {
    let &[arenas, mib, seconds] = arguments else { panic!("ARENAS MIB SECONDS") };
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    println!("listening on {}", server.local_addr());
    let filled = Arc::new(Barrier::new(arenas + 1));
    for _ in 0..arenas {
        let filled = Arc::clone(&filled);
        thread::spawn(move || {
            let blocks = fill(mib << 20);
            filled.wait();
            measure();
            black_box(blocks);
        });
    }
    filled.wait();
    println!("filled");
    for _ in 0..seconds {
        thread::sleep(Duration::from_secs(1));
        println!("{} {}", WAITS.swap(0, Relaxed), LONGEST.swap(0, Relaxed));
    }
}

fn fill(bytes: usize) -> Vec<Vec<u8>> {
    let mut blocks: Vec<Vec<u8>> = (0..bytes / BLOCK).map(|_| vec![1; BLOCK]).collect();
    let mut number = 0;
    blocks.retain(|_| {
        number += 1;
        number % 4 == 0
    });
    blocks
}

fn measure() {
    loop {
        thread::sleep(Duration::from_millis(2));
        let (switches, begun) = (own_switches(), Instant::now());
        drop(black_box(Vec::<u8>::with_capacity(BLOCK)));
        let took = begun.elapsed();
        if own_switches() > switches {
            WAITS.fetch_add(1, Relaxed);
            LONGEST.fetch_max(took.as_micros() as u64, Relaxed);
        }
    }
}

/// Returns how often this thread has given up the processor by itself.
fn own_switches() -> i64 {
    // SAFETY: numbers, of which zeros are as good as any.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: a place to write to.
    assert_eq!(unsafe { libc::getrusage(libc::RUSAGE_THREAD, &mut usage) }, 0);
    usage.ru_nvcsw
}
