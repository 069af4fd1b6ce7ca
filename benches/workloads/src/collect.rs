//! What reading the counts costs: processor time of a collection, and what a thread that allocates loses
//! meanwhile.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::deep::{self, grow};
use crate::{Collect, Collected};

/// A collector gives its latest collection out again for a second; with several of them, as many collections
/// follow each other without a pause.
const COLLECTORS: usize = 8;
/// Turns of all collectors that count.
const TURNS: usize = 4;

/// `stacks` live stacks, each booked in two threads.
pub fn run(begin: fn() -> Collect, stacks: usize) -> Value {
    let stop = Arc::new(AtomicBool::new(false));
    let operations = Arc::new(AtomicU64::new(0));
    let (ready, wait_ready) = mpsc::channel();
    // The first goes on allocating. The second only keeps its counts, because on two cores a third busy thread
    // would measure the scheduler.
    let threads: Vec<_> = [true, false]
        .into_iter()
        .map(|busy| {
            let (stop, operations, ready) = (stop.clone(), operations.clone(), ready.clone());
            std::thread::spawn(move || {
                let mut blocks = Vec::with_capacity(stacks);
                grow(stacks, deep::addresses() + 8, &mut blocks);
                ready.send(()).expect("the measuring thread waits");
                while !stop.load(Relaxed) {
                    if busy {
                        allocate(&operations);
                    } else {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
                black_box(&blocks);
            })
        })
        .collect();
    for _ in &threads {
        wait_ready.recv().expect("the threads live");
    }

    // In a collector's first collections stacks get their names.
    let mut collectors: Vec<Collect> = (0..COLLECTORS).map(|_| begin()).collect();
    let mut numbers = [0; COLLECTORS];
    let mut once = |collectors: &mut [Collect]| {
        let mut unnamed = 0;
        let each: Vec<f64> = collectors
            .iter_mut()
            .zip(&mut numbers)
            .map(|(collect, number)| {
                let (milliseconds, Collected { number: now, named_blocks }) = processor_time(collect);
                assert!(now > *number, "a collection was given out twice");
                *number = now;
                unnamed += usize::from(named_blocks < 2 * stacks as u64);
                milliseconds
            })
            .collect();
        (each, unnamed)
    };
    let (first, mut unnamed) = once(&mut collectors);
    let mut turns_to_name = 1;
    while unnamed > 0 && turns_to_name < 40 {
        std::thread::sleep(Duration::from_millis(1_020));
        unnamed = once(&mut collectors).1;
        turns_to_name += 1;
    }
    assert_eq!(unnamed, 0, "after {turns_to_name} collections not all stacks have a name");

    // This thread collects for some milliseconds, then computes as long: what the other loses is due to the
    // collections and not to this thread's being busy.
    let mut all = vec![];
    let (mut collecting, mut computing) = (Rate::default(), Rate::default());
    for _ in 0..TURNS {
        std::thread::sleep(Duration::from_millis(1_020));
        let took = collecting.during(&operations, || all.extend(once(&mut collectors).0));
        computing.during(&operations, || {
            let begin = Instant::now();
            while begin.elapsed() < took {
                black_box((0..1_000_u64).fold(1, |sum, number| sum ^ black_box(number)));
            }
        });
    }
    stop.store(true, Relaxed);
    for thread in threads {
        thread.join().expect("a thread that allocates");
    }
    all.sort_by(f64::total_cmp);
    json!({
        "first_ms": first[0],
        "turns_to_name": turns_to_name,
        "ms": all[all.len() / 2],
        "loss": 1.0 - collecting.per_second() / computing.per_second(),
        "checksum": stacks,
    })
}

#[inline(never)]
fn allocate(operations: &AtomicU64) {
    for number in 0..64_u64 {
        black_box(Box::new([number; 8]));
    }
    // Only one thread writes.
    operations.store(operations.load(Relaxed) + 64, Relaxed);
}

/// Operations of another thread, counted while this one does something.
#[derive(Default)]
struct Rate {
    operations: u64,
    time: Duration,
}

impl Rate {
    fn during(&mut self, operations: &AtomicU64, work: impl FnOnce()) -> Duration {
        let (from, begin) = (operations.load(Relaxed), Instant::now());
        work();
        let took = begin.elapsed();
        self.operations += operations.load(Relaxed) - from;
        self.time += took;
        took
    }

    fn per_second(&self) -> f64 {
        self.operations as f64 / self.time.as_secs_f64()
    }
}

/// Milliseconds of processor time the calling thread needs, so that other processes do not count.
fn processor_time<R>(mut work: impl FnMut() -> R) -> (f64, R) {
    let now = || {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the clock is a constant and the struct is ours.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
        time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
    };
    let begin = now();
    let result = work();
    (now() - begin, result)
}
