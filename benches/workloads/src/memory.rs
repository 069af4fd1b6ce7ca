//! Measures the memory of tracking.

use std::alloc::Layout;
use std::hint::black_box;
use std::sync::{Arc, Barrier};

use serde_json::{Value, json};

use crate::deep::{Blocks, grow};
use crate::timing::Numbers;

/// Returns the resident bytes of this process.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc/self/statm");
    let pages: u64 = statm.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a number of pages");
    // SAFETY: sysconf has no preconditions.
    pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64
}

/// Disables huge pages, which make resident memory jump by 2 MiB, at different times for different sides.
fn without_huge_pages() {
    // SAFETY: this option takes plain numbers.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

/// Measures resident bytes a live block: `shape` is a size, `1` means 4,096 aligned to 4,096 and `0` mixed sizes of 8 to 128.
/// Blocks are written in full.
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

/// Measures the bytes of a stack, a thread and a stack in one more thread, by the tracker's own count and by resident bytes
/// (which include the threads and blocks themselves: compare with the bare side).
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

/// Threads that wait after their work, with their blocks still live.
struct Held {
    threads: Vec<std::thread::JoinHandle<()>>,
    go_on: Arc<Barrier>,
}

impl Held {
    fn new(count: usize, work: fn(&mut Blocks)) -> Held {
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
fn body(work: fn(&mut Blocks), hold: impl Fn()) {
    // Room that is reserved and not resident until used, in every thread alike.
    let mut blocks = Vec::with_capacity(20_000);
    work(&mut blocks);
    hold();
    black_box(&blocks);
}
