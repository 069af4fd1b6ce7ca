//! Allocates and frees on many threads at once, for `tests/no_sharing.py`.
//!
//! `no_sharing THREADS EVENTS` runs under valgrind's drd, which reports each word that two threads use at the same time, one of them to
//! write it, and prints the number of reports. Only events of the kind that is named are looked at: the threads have met their stacks before, and are ordered by a
//! barrier that drd knows.

#[path = "../../instructions/src/stacks.rs"]
mod stacks;

use stacks::under;
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, handle_alloc_error, realloc};
use std::cell::UnsafeCell;
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};

mod valgrind {
    unsafe extern "C" {
        pub(crate) safe fn disable_error_reporting();
        pub(crate) safe fn enable_error_reporting();
        pub(crate) safe fn count_errors() -> u32;
    }
}

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

const BLOCK: Layout = Layout::new::<[u64; 8]>();
const RESIZED: usize = 96;
/// Number of our frames below an allocation.
const FRAMES: u32 = 8;
const STACKS: u64 = 2;
const EVENTS: u64 = 8;
const ROUNDS: u32 = 30;

/// A barrier of the C library: drd knows the order that it makes, by its address.
struct Barrier(Box<UnsafeCell<libc::pthread_barrier_t>>);

// SAFETY: made for many threads.
unsafe impl Sync for Barrier {}

impl Barrier {
    fn new(threads: usize) -> Barrier {
        let threads = threads.try_into().expect("a number of threads");
        // SAFETY: zero bytes are a place for one, which stays where it is.
        let barrier = Barrier(Box::new(UnsafeCell::new(unsafe { std::mem::zeroed() })));
        // SAFETY: as above.
        assert_eq!(unsafe { libc::pthread_barrier_init(barrier.0.get(), std::ptr::null(), threads) }, 0);
        barrier
    }

    fn wait(&self) {
        // SAFETY: `new` has made it.
        let result = unsafe { libc::pthread_barrier_wait(self.0.get()) };
        assert!(result == 0 || result == libc::PTHREAD_BARRIER_SERIAL_THREAD, "barrier: {result}");
    }
}

fn made(block: *mut u8) -> *mut u8 {
    if block.is_null() {
        handle_alloc_error(BLOCK);
    }
    block
}

/// Allocates, resizes and frees, in each way that has a path of its own.
fn allocate_and_free() {
    for path in 0..STACKS {
        under(FRAMES, path, &mut || {
            // SAFETY: the layout is of some bytes; each block is freed once, with the size that it has.
            unsafe {
                let (one, other) = (made(alloc(black_box(BLOCK))), made(alloc_zeroed(black_box(BLOCK))));
                dealloc(one, BLOCK);
                let other = made(realloc(other, BLOCK, RESIZED));
                dealloc(
                    other,
                    Layout::array::<u8>(RESIZED).expect("a layout").align_to(8).expect("a layout"),
                );
            }
        });
    }
}

/// A word that all threads write: drd has to find it.
static SHARED: AtomicUsize = AtomicUsize::new(0);

fn write_shared() {
    SHARED.store(SHARED.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// Runs the events, and looks at them in the last round. Never inlined: the compiler would write the rounds out, and each would have
/// stacks of its own.
#[inline(never)]
fn take(events: fn(), is_last: bool, at_last: &dyn Fn()) {
    if is_last {
        valgrind::enable_error_reporting();
    }
    for _ in 0..black_box(EVENTS) {
        black_box(events)();
    }
    at_last();
    if is_last {
        valgrind::disable_error_reporting();
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let threads = arguments.next().and_then(|text| text.parse().ok()).expect("a number of threads");
    let named = arguments.next().unwrap_or_default();
    let events: fn() = match named.as_str() {
        "exact" => allocate_and_free,
        "unsampled" => {
            heapgauge::set_sample_interval(1 << 30).expect("an interval");
            allocate_and_free
        }
        "shared" => write_shared,
        _ => panic!("no events are named {named:?}: exact, unsampled, shared"),
    };
    let barrier = Barrier::new(threads);
    // The blocks that each thread allocates for the next one to free.
    let handed: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
    let work = |number: usize| {
        valgrind::disable_error_reporting();
        let hand_over = || {
            // SAFETY: the layout is of some bytes.
            let block = unsafe { made(alloc(black_box(BLOCK))) };
            handed[number].store(block.expose_provenance(), Ordering::Relaxed);
        };
        let free_of_another = || {
            let block = handed[(number + 1) % threads].load(Ordering::Relaxed);
            // SAFETY: allocated by `hand_over` before a barrier; one thread frees it.
            unsafe { dealloc(std::ptr::with_exposed_provenance_mut(block), BLOCK) };
        };
        // In the first rounds a thread meets its stacks, makes counters, and gets a budget.
        for round in 0..black_box(ROUNDS) {
            hand_over();
            barrier.wait();
            let before = valgrind::count_errors();
            barrier.wait();
            take(events, black_box(round + 1 == ROUNDS), &free_of_another);
            barrier.wait();
            if round + 1 == ROUNDS && number == 0 {
                println!("{} conflicts", valgrind::count_errors() - before);
            }
        }
    };
    std::thread::scope(|scope| {
        for number in 0..threads {
            let work = &work;
            scope.spawn(move || work(number));
        }
    });
}
