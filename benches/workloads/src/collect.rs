//! Measures the processor time of a collection, and the loss of a thread that allocates meanwhile.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::deep::{self, grow};
use crate::{Collect, Collected};

/// A collector reuses its latest collection for a second; several collectors make as many collections without a pause.
const COLLECTORS: usize = 8;
/// Number of measured turns of all collectors.
const TURNS: usize = 4;

/// Measures collections of `stacks` live stacks, each with counters of two threads.
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

    // The first collections read the names of the stacks.
    let mut collectors: Vec<Collector> =
        (0..COLLECTORS).map(|_| Collector { collect: begin(), number: 0 }).collect();
    let (first, turns_to_name) = name_all(&mut collectors, stacks);

    // This thread collects, then computes as long: what the other loses is due to the collection and not to this
    // thread's being busy.
    let (mut times, mut losses) = (vec![], vec![]);
    for _ in 0..TURNS {
        std::thread::sleep(Duration::from_millis(1_020));
        for collector in &mut collectors {
            let (took, collecting) = rate(&operations, || times.push(collector.once().0));
            let (_, computing) = rate(&operations, || {
                let begin = Instant::now();
                while begin.elapsed() < took {
                    black_box((0..200_u64).fold(1, |sum, number| sum ^ black_box(number)));
                }
            });
            // On a busy machine the other thread may not have run at all.
            if computing > 0.0 {
                losses.push(1.0 - collecting / computing);
            }
        }
    }
    stop.store(true, Relaxed);
    for thread in threads {
        thread.join().expect("a thread that allocates");
    }
    json!({
        "first_ms": first,
        "turns_to_name": turns_to_name,
        "ms": median(times),
        "loss": median(losses),
        "checksum": stacks,
    })
}

/// Collects until every stack has its name. Returns the milliseconds of the first collection, and the number of turns.
fn name_all(collectors: &mut [Collector], stacks: usize) -> (Option<f64>, u32) {
    let all_named = 2 * stacks as u64;
    let mut first = None;
    let mut turns_to_name = 0;
    loop {
        let mut unnamed = 0;
        for collector in &mut *collectors {
            let (milliseconds, named_blocks) = collector.once();
            first.get_or_insert(milliseconds);
            unnamed += usize::from(named_blocks < all_named);
        }
        turns_to_name += 1;
        if unnamed == 0 {
            return (first, turns_to_name);
        }
        assert!(turns_to_name < 40, "after {turns_to_name} collections not all stacks have a name");
        std::thread::sleep(Duration::from_millis(1_020));
    }
}

#[inline(never)]
fn allocate(operations: &AtomicU64) {
    for number in 0..64_u64 {
        black_box(Box::new([number; 8]));
    }
    // Only one thread writes.
    operations.store(operations.load(Relaxed) + 64, Relaxed);
}

/// Returns the time of `work`, and the operations of the other thread a second meanwhile.
fn rate(operations: &AtomicU64, work: impl FnOnce()) -> (Duration, f64) {
    let (from, begin) = (operations.load(Relaxed), Instant::now());
    work();
    let took = begin.elapsed();
    (took, (operations.load(Relaxed) - from) as f64 / took.as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A collector and the number of its latest collection.
struct Collector {
    collect: Collect,
    number: u64,
}

impl Collector {
    /// Returns the milliseconds of processor time of a new collection, and its named blocks.
    fn once(&mut self) -> (f64, u64) {
        let (milliseconds, Collected { number, named_blocks }) = processor_time(&mut self.collect);
        assert!(number > self.number, "a collection was given out twice");
        self.number = number;
        (milliseconds, named_blocks)
    }
}

/// Returns the milliseconds of processor time of the calling thread, which exclude other processes.
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
