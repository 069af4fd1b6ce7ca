//! What tracking costs in memory, and what reading it costs in time.

use std::alloc::Layout;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Barrier, mpsc};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::deep::{self, grow};
use crate::timing::Numbers;

/// Resident bytes of this process.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc/self/statm");
    let pages: u64 = statm.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a number of pages");
    // SAFETY: sysconf has no preconditions.
    pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64
}

/// Huge pages make resident memory jump by 2 MiB, in different places for different sides.
fn without_huge_pages() {
    // SAFETY: this option takes plain numbers.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

/// Resident bytes a live block: `shape` is a size, `1` stands for 4,096 aligned to 4,096 and `0` for sizes 8 to
/// 128 mixed. Blocks are written in full.
pub fn resident(shape: usize) -> Option<Value> {
    without_huge_pages();
    let mut numbers = Numbers::new(3);
    let (blocks, align) = match shape {
        0 => (600_000, 8),
        1 => (16_000, 4_096),
        64..=65_536 => ((64 << 20) / shape.max(128), 8),
        _ => return None,
    };
    let mut layout = || {
        let size = match shape {
            0 => 8 + numbers.below(121) as usize,
            1 => 4_096,
            size => size,
        };
        Layout::from_size_align(size, align).expect("a small size and a power of two")
    };
    let mut live: Vec<(*mut u8, Layout)> = vec![(std::ptr::null_mut(), Layout::new::<u8>()); blocks];
    let mut bytes = 0;
    // The first allocation of a kind sets up tables that are not the price of a block.
    drop(black_box(vec![1_u8; 100]));
    let before = resident_bytes();
    for slot in &mut live {
        let layout = layout();
        // SAFETY: no size is zero.
        let block = unsafe { std::alloc::alloc(layout) };
        assert!(!block.is_null(), "no memory");
        // SAFETY: the block has that size.
        unsafe { block.write_bytes(0xa5, layout.size()) };
        bytes += layout.size();
        *slot = (block, layout);
    }
    let after = resident_bytes();
    black_box(&live);
    for (block, layout) in live {
        // SAFETY: allocated above with this layout, freed once.
        unsafe { std::alloc::dealloc(block, layout) };
    }
    Some(json!({
        "bytes_per_block": (after - before) as f64 / blocks as f64,
        "blocks": blocks,
        "checksum": bytes,
    }))
}

/// What a stack, a thread and a stack in one more thread cost, by the tracker's own account and in resident
/// bytes (where the threads and blocks themselves count too: compare with the bare side).
pub fn tables(tracker_memory: Option<fn() -> u64>) -> Value {
    without_huge_pages();
    const STACKS: usize = 20_000;
    const FRAMES: usize = 16;
    const IDLE: usize = 64;
    const MORE: usize = 4;
    let memory = move || (tracker_memory.map_or(0, |own| own()), resident_bytes());
    let minus = |after: (u64, u64), before: (u64, u64), by: usize| {
        let one = |after: u64, before: u64| (after as f64 - before as f64) / by as f64;
        json!([one(after.0, before.0), one(after.1, before.1)])
    };

    // All from threads with one body: the same stacks in each of them.
    let begin = memory();
    let idle = Held::new(IDLE, |_| drop(black_box(Box::new(1_u64))));
    let with_idle = memory();
    idle.end();
    // Threads that end leave their tables to later ones; those below take them over.
    let before_stacks = memory();
    let stacks = Held::new(1, |blocks| grow(STACKS, FRAMES, blocks));
    let with_stacks = memory();
    let more = Held::new(MORE, |blocks| grow(STACKS, FRAMES, blocks));
    let with_more = memory();
    more.end();
    stacks.end();
    json!({
        "thread": minus(with_idle, begin, IDLE),
        "stack": minus(with_stacks, before_stacks, STACKS),
        "thread_stack": minus(with_more, with_stacks, MORE * STACKS),
        "all": [memory().0, memory().1],
        "checksum": STACKS,
    })
}

/// Threads that did something and now wait, with what they allocated still live.
struct Held {
    threads: Vec<std::thread::JoinHandle<()>>,
    go_on: Arc<Barrier>,
}

impl Held {
    fn new(count: usize, work: fn(&mut Vec<Box<[u64; 2]>>)) -> Held {
        let (done, all_done) = (Arc::new(Barrier::new(count + 1)), Arc::new(Barrier::new(count + 1)));
        let threads = (0..count)
            .map(|_| {
                let (done, go_on) = (done.clone(), all_done.clone());
                std::thread::spawn(move || {
                    body(work, || {
                        done.wait();
                        go_on.wait();
                    })
                })
            })
            .collect();
        done.wait();
        Held { threads, go_on: all_done }
    }

    fn end(self) {
        self.go_on.wait();
        for thread in self.threads {
            thread.join().expect("a held thread");
        }
    }
}

#[inline(never)]
fn body(work: fn(&mut Vec<Box<[u64; 2]>>), hold: impl Fn()) {
    // Room that is reserved and not resident until used, in every thread alike.
    let mut blocks = Vec::with_capacity(20_000);
    work(&mut blocks);
    hold();
    black_box(&blocks);
}

/// How long one collection takes with `stacks` live stacks counted in two threads, and how much an allocating
/// thread loses while collections follow each other without a pause.
pub fn collect(begin: fn() -> Box<dyn FnMut() -> usize + Send>, stacks: usize, time: Duration) -> Value {
    let mut collect = begin();
    let stop = Arc::new(AtomicBool::new(false));
    let turns = Arc::new(AtomicU64::new(0));
    let (ready, wait_ready) = mpsc::channel();
    // Both have booked all stacks. The first goes on allocating; the second only keeps its counts, because with
    // two cores a third busy thread would measure the scheduler.
    let threads: Vec<_> = [true, false]
        .into_iter()
        .map(|busy| {
            let (stop, turns, ready) = (stop.clone(), turns.clone(), ready.clone());
            std::thread::spawn(move || {
                let mut blocks = Vec::with_capacity(stacks);
                grow(stacks, deep::addresses() + 8, &mut blocks);
                ready.send(()).expect("the measuring thread waits");
                while !stop.load(Relaxed) {
                    if busy {
                        for turn in 0..64_u64 {
                            black_box(Box::new([turn; 8]));
                        }
                        // Only this thread writes.
                        turns.store(turns.load(Relaxed) + 64, Relaxed);
                    } else {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
                black_box(&blocks);
            })
        })
        .collect();
    for _ in &threads {
        wait_ready.recv().expect("the threads are alive");
    }

    // Names are cached once a collection is no longer much slower than the next; some more to be sure.
    let first = cpu_milliseconds(&mut collect);
    let naming = Instant::now();
    let mut before = first;
    while naming.elapsed() < Duration::from_secs(20) {
        let now = cpu_milliseconds(&mut collect);
        if now > before * 0.9 && now < before * 1.1 {
            break;
        }
        before = now;
    }
    let mut seen = 0;
    let mut collections: Vec<f64> = (0..9).map(|_| cpu_milliseconds(|| seen = collect())).collect();
    collections.sort_by(f64::total_cmp);

    // The same thread, busy with collections or with arithmetic, in turns.
    let rate = |work: &mut dyn FnMut()| {
        let (from, begin) = (turns.load(Relaxed), Instant::now());
        while begin.elapsed() < time / 4 {
            work();
        }
        (turns.load(Relaxed) - from) as f64 / begin.elapsed().as_secs_f64()
    };
    let (mut collecting, mut computing) = (0.0, 0.0);
    for _ in 0..4 {
        computing += rate(&mut || {
            black_box((0..10_000_u64).fold(1, |sum, turn| sum ^ black_box(turn)));
        });
        collecting += rate(&mut || {
            black_box(collect());
        });
    }
    stop.store(true, Relaxed);
    for thread in threads {
        thread.join().expect("an allocating thread");
    }
    json!({
        "first_ms": first,
        "ms": collections[collections.len() / 2],
        "loss": 1.0 - collecting / computing,
        "seen": seen,
        "checksum": stacks,
    })
}

/// Processor time of the calling thread, so that other processes do not count.
fn cpu_milliseconds<R>(mut work: impl FnMut() -> R) -> f64 {
    let now = || {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the clock is a constant and the struct is ours.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
        time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
    };
    let begin = now();
    black_box(work());
    now() - begin
}
