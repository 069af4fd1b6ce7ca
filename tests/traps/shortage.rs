//! Tests a lack of memory for the tracker's tables: stacks are lost, bytes are not, and the loss ends with the shortage.
//! (`sizes::case_37_sizes_up_to_failure` tests a lack of memory for the program's blocks.)

use crate::inner::{self, Refuse};
use crate::{of_function, on_path, say, trap};
use heapgauge::Collector;
use std::hint::black_box;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

type Block = Box<[u64; 3]>;

/// Allocates a block. Its number differs from that of other leaves, which a release build would make one function of.
#[inline(never)]
fn leaf(number: usize) -> Block {
    black_box(Box::new([number as u64 ^ 4; 3]))
}
const LEAF: &str = "traps::shortage::leaf";

/// Allocates on the stack of a path.
fn branch(path: usize) -> Block {
    on_path(path, DEPTH, &mut || leaf(path))
}
const DEPTH: usize = 13;

/// Allocates on a shorter stack of a path: these take less memory. Its number differs, as that of `leaf`.
#[inline(never)]
fn short_leaf(number: usize) -> Block {
    black_box(Box::new([number as u64 ^ 2; 3]))
}
const SHORT_LEAF: &str = "traps::shortage::short_leaf";

const UNRECORDED: &str = "[unrecorded]";

fn dropped() -> heapgauge::DroppedEvents {
    Collector::new().collect().dropped
}

/// Only the map of stacks is allocated by the program's own allocator.
#[test]
fn no_memory_for_the_map_of_stacks() {
    trap("shortage::no_memory_for_the_map_of_stacks", || {
        let mut kept: Vec<Block> = Vec::with_capacity(2 << DEPTH);
        kept.extend((0..100).map(branch));
        let refuse = Refuse::sizes(40, usize::MAX);
        kept.extend((0..1 << DEPTH).map(branch));
        drop(refuse);
        assert!(Refuse::times() > 0);
        let (known, lost) = (of_function(LEAF), of_function(UNRECORDED));
        let blocks = 100 + (1 << DEPTH);
        assert_eq!((known.0 + lost.0, known.1 + lost.1), (24 * blocks, blocks));
        assert!(known.1 > 100 && lost.1 > 1_000, "{known:?} {lost:?}");
        assert_eq!(dropped().memory, lost.1);
        // After the shortage: lost stacks remain lost, new ones are known.
        kept.extend((0..1 << DEPTH).map(branch));
        assert_eq!(of_function(LEAF).1, known.1 + (1 << DEPTH));
        assert_eq!((of_function(UNRECORDED), dropped().memory), (lost, lost.1));
        drop(kept);
        assert_eq!((of_function(LEAF), of_function(UNRECORDED)), ((0, 0), (0, 0)));
        say(format_args!("{} of {blocks} blocks without a known place", lost.1));
    });
}

/// The remaining memory of the system's allocator, as a list through the first word of each piece.
struct Exhausted(*mut *mut libc::c_void);

impl Exhausted {
    /// Takes all memory of the system: its address space and the free lists of its allocator.
    fn now() -> Exhausted {
        let mut chain: *mut *mut libc::c_void = std::ptr::null_mut();
        limit_address_space(1 << 20);
        let mut size = 64 << 20;
        while size >= 16 {
            // SAFETY: pieces of at least a word, which no other code uses.
            unsafe {
                let piece = libc::malloc(size).cast::<*mut libc::c_void>();
                if piece.is_null() {
                    size = if size > 64 { size / 2 } else { size - 8 };
                } else {
                    piece.write(chain.cast());
                    chain = piece;
                }
            }
        }
        Exhausted(chain)
    }
}

impl Drop for Exhausted {
    fn drop(&mut self) {
        limit_address_space(libc::RLIM_INFINITY);
        while !self.0.is_null() {
            // SAFETY: a piece of the chain.
            unsafe {
                let next = self.0.read().cast();
                libc::free(self.0.cast());
                self.0 = next;
            }
        }
    }
}

/// Sets the soft limit; below the present size the system refuses every request.
fn limit_address_space(bytes: u64) {
    // SAFETY: a limit that is written and read.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        assert_eq!(libc::getrlimit(libc::RLIMIT_AS, &raw mut limit), 0);
        limit.rlim_cur = bytes.min(limit.rlim_max);
        assert_eq!(libc::setrlimit(libc::RLIMIT_AS, &raw const limit), 0);
    }
}

/// The work of a thread that has not allocated yet.
static GO: AtomicU32 = AtomicU32::new(0);
static MADE: AtomicPtr<[u64; 3]> = AtomicPtr::new(std::ptr::null_mut());

extern "C" fn first_allocation(_: *mut libc::c_void) -> *mut libc::c_void {
    let until = |word: u32| {
        while GO.load(Ordering::Acquire) < word {
            // SAFETY: waits for ten microseconds at most.
            unsafe { libc::usleep(10) };
        }
    };
    until(1);
    MADE.store(Box::into_raw(leaf(1)), Ordering::Release);
    // Its second one, when it may have a state of its own.
    until(2);
    drop(leaf(2));
    std::ptr::null_mut()
}

fn get(size: usize) -> *mut u8 {
    // SAFETY: of a size.
    black_box(unsafe { std::alloc::alloc(std::alloc::Layout::from_size_align(size, 16).unwrap()) })
}

fn free(block: *mut u8, size: usize) {
    // SAFETY: made by `get` with this size.
    unsafe { std::alloc::dealloc(block, std::alloc::Layout::from_size_align(size, 16).unwrap()) };
}

/// Waits for the end of the collector's thread that reads where memory is, and has another thread take its state, for good: else
/// the next thread would need no memory for one.
fn take_free_state() {
    while Collector::new().collect().memory_parts.is_none() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let is_reader = |task: std::io::Result<std::fs::DirEntry>| {
        let name = std::fs::read_to_string(task.unwrap().path().join("comm"));
        name.is_ok_and(|name| name.trim() == "heapgauge")
    };
    while std::fs::read_dir("/proc/self/task").unwrap().any(is_reader) {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let (taken, is_taken) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        drop(std::hint::black_box(Box::new(1_u8)));
        taken.send(()).unwrap();
        loop {
            std::thread::park();
        }
    });
    is_taken.recv().unwrap();
}

#[test]
fn no_memory_for_the_tables() {
    trap("shortage::no_memory_for_the_tables", || {
        let collector = Collector::new();
        take_free_state();
        // The program's blocks come from the arena, so that they are still available.
        let no_locks = inner::no_locks();
        let mut thread = 0;
        // SAFETY: a function that ends; the thread is joined below.
        let made = unsafe {
            libc::pthread_create(&raw mut thread, std::ptr::null(), first_allocation, std::ptr::null_mut())
        };
        assert_eq!(made, 0);
        let mut kept: Vec<Block> = Vec::with_capacity(8 << DEPTH);
        kept.extend((0..10).map(branch));
        assert_eq!(of_function(LEAF), (240, 10));
        let untracked = collector.collect().untracked_bytes;

        let exhausted = Exhausted::now();
        // The tracker still has free pieces: records stacks until no other one fits.
        let mut short = 0;
        for depth in (2..DEPTH).rev() {
            kept.extend((0..1 << depth).map(|path| on_path(path, depth, &mut || short_leaf(path))));
            short += 1 << depth;
        }
        kept.extend((0..1 << DEPTH).map(branch));
        GO.store(1, Ordering::Release);
        while MADE.load(Ordering::Acquire).is_null() {
            std::thread::yield_now();
        }
        // At an address for which the map of large blocks has no part, and gets none.
        let gap = get(1 << 30);
        let (large, small) = (get(5_000), get(500));
        drop((exhausted, no_locks));

        // SAFETY: made by `Box::into_raw`, once.
        let made = unsafe { Box::from_raw(MADE.load(Ordering::Acquire)) };
        let (known, lost) = (of_function(LEAF), of_function(UNRECORDED));
        let known_short = of_function(SHORT_LEAF);
        assert!(known_short.1 < short - 100, "{known_short:?} of {short}: there is room left");
        assert_eq!(known, (240, 10));
        let blocks = 10 + short + (1 << DEPTH) + 1;
        // Among the three of `get`, the first may be known; the last is known or counted as lost.
        let of_get = of_function("traps::shortage::get");
        let report = Collector::new().collect();
        let rows = [known, known_short, lost, of_get];
        let all = rows.iter().fold((0, 0), |sum, row| (sum.0 + row.0, sum.1 + row.1));
        assert_eq!(all, (24 * blocks + (1 << 30) + 500, blocks + 2));
        assert_eq!(report.untracked_bytes - untracked, 5_000);
        assert!(lost.1 > 4_000, "{lost:?}");
        assert_eq!(report.dropped.threads, 1);
        // Without the blocks of the thread, and with the large one, which is untracked instead.
        assert_eq!(report.dropped.memory, lost.1 - 1 + 1);

        // After the shortage.
        GO.store(2, Ordering::Release);
        // SAFETY: made above, joined once.
        assert_eq!(unsafe { libc::pthread_join(thread, std::ptr::null_mut()) }, 0);
        let before = known.1;
        kept.extend((0..1 << DEPTH).map(branch));
        assert_eq!(of_function(LEAF).1, before + (1 << DEPTH));
        assert_eq!(of_function(UNRECORDED), lost);
        let again = get(6_000);
        free(again, 6_000);
        free(large, 5_000);
        free(small, 500);
        free(gap, 1 << 30);
        drop((kept, made));
        let none = [LEAF, SHORT_LEAF, UNRECORDED, "traps::shortage::get"].map(of_function);
        assert_eq!(none, [(0, 0); 4]);
        assert_eq!(Collector::new().collect().untracked_bytes, untracked);
        say(format_args!("{} of {blocks} blocks without a known place", lost.1));
    });
}
