//! Allocates where a thread or the process ends, and in panics.

use crate::at_end::SetAtEnd;
use crate::{done, nothing_is_lost, of_function, say, trap};
use heapgauge::{Collector, Snapshot};
use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

type Block = Box<[u64; 10]>;

/// Keeps blocks of code that cannot return them.
static LEFT: Mutex<Vec<Block>> = Mutex::new(Vec::new());

fn leave(block: Block) {
    LEFT.lock().unwrap_or_else(PoisonError::into_inner).push(block);
}

fn take_left() -> Vec<Block> {
    std::mem::take(&mut LEFT.lock().unwrap_or_else(PoisonError::into_inner))
}

#[inline(never)]
fn early() -> Block {
    black_box(Box::new([1; 10]))
}
const EARLY: &str = "traps::ends::early";

#[inline(never)]
fn late() -> Block {
    black_box(Box::new([2; 10]))
}
const LATE: &str = "traps::ends::late";

/// A local whose destructor frees a block of the thread's life, keeps a new one, and lets another local do the same.
struct Parting(RefCell<Vec<Block>>);

impl Drop for Parting {
    fn drop(&mut self) {
        self.0.borrow_mut().clear();
        leave(late());
        // This may register a destructor while destructors run.
        let _ = SECOND.try_with(|second| second.0.borrow_mut().push(early()));
    }
}

thread_local! {
    static FIRST: Parting = const { Parting(RefCell::new(Vec::new())) };
    static SECOND: Parting = Parting(RefCell::new(vec![early()]));
}

#[test]
fn thread_local_destructors() {
    trap("ends::thread_local_destructors", || {
        const THREADS: usize = 600;
        for round in 0..THREADS / 20 {
            let threads: Vec<_> = (0..20)
                .map(|number| {
                    thread::spawn(move || {
                        if (round + number) % 2 == 0 {
                            SECOND.with(|second| second.0.borrow_mut().push(early()));
                        }
                        FIRST.with(|first| first.0.borrow_mut().push(early()));
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        }
        let left = take_left();
        // Each of the two locals of a thread keeps one block; a destroyed local is not made again.
        assert!((THREADS..=THREADS * 2).contains(&left.len()), "{}", left.len());
        let blocks = left.len() as u64;
        assert_eq!(of_function(LATE), (80 * blocks, blocks));
        assert_eq!(of_function(EARLY), (0, 0));
        drop(left);
        assert_eq!(of_function(LATE), (0, 0));
        nothing_is_lost();
        say(format_args!("{THREADS} threads, {blocks} blocks in destructors"));
    });
}

static ROUNDS: AtomicUsize = AtomicUsize::new(0);
static KEY: AtomicUsize = AtomicUsize::new(0);

/// Sets its key again, as a key destructor, until the C library gives up.
extern "C" fn again(value: *mut libc::c_void) {
    ROUNDS.fetch_add(1, Ordering::Relaxed);
    leave(late());
    drop(early());
    // SAFETY: the key exists.
    unsafe { libc::pthread_setspecific(KEY.load(Ordering::Relaxed) as libc::pthread_key_t, value) };
}

/// The tracker releases a thread in the last of four rounds of destructors. Later allocations of that round have no thread
/// state: their bytes are counted, their stacks are not known.
#[test]
fn every_round_of_key_destructors() {
    trap("ends::every_round_of_key_destructors", || {
        const THREADS: usize = 200;
        let mut key = 0;
        // SAFETY: a place to write to and a destructor that fits.
        assert_eq!(unsafe { libc::pthread_key_create(&raw mut key, Some(again)) }, 0);
        KEY.store(key as usize, Ordering::Relaxed);
        let before = heapgauge::traced_memory().current;
        for _ in 0..THREADS {
            let body = move || {
                // SAFETY: the key exists, the value is not null.
                unsafe { libc::pthread_setspecific(key, std::ptr::dangling()) };
                drop(early());
            };
            thread::spawn(body).join().unwrap();
        }
        let rounds = ROUNDS.load(Ordering::Relaxed);
        assert_eq!(rounds, THREADS * 4);
        let report = Collector::new().collect();
        // One kept and one freed at once in each round after the tracker has released the thread: the last one, with a
        // sanitizer the one before it too.
        let lost = THREADS as u64 * if cfg!(heapgauge_sanitized) { 2 } else { 1 };
        assert_eq!(report.dropped.threads, 2 * lost);
        let known = THREADS as u64 * 4 - lost;
        assert_eq!(of_function(LATE), (80 * known, known));
        assert_eq!(of_function("[unrecorded]"), (80 * lost, lost));
        assert_eq!(of_function(EARLY), (0, 0));
        drop(take_left());
        assert_eq!((of_function(LATE), of_function("[unrecorded]")), ((0, 0), (0, 0)));
        // The blocks of the threads and the harness existed before.
        let grown = heapgauge::traced_memory().current.saturating_sub(before);
        assert!(grown < 4096, "{grown}");
        say(format_args!("{rounds} rounds of destructors"));
    });
}

/// Runs after `main`, at the exit of the process.
extern "C" fn at_exit() {
    let outcome = catch_unwind(|| {
        let kept: Vec<Block> = (0..100).map(|_| late()).collect();
        assert_eq!(of_function(LATE), (80 * 100, 100));
        drop(kept);
        assert_eq!(of_function(LATE), (0, 0));
        // A thread started now ends, too.
        thread::spawn(|| leave(late())).join().unwrap();
        assert_eq!(of_function(LATE), (80, 1));
        assert_eq!(of_function(EARLY), (80 * 7, 7));
        drop(take_left());
        assert_eq!((of_function(LATE), of_function(EARLY)), ((0, 0), (0, 0)));
        nothing_is_lost();
        done();
    });
    // SAFETY: ends the process, with the outcome as its status.
    unsafe { libc::_exit(i32::from(outcome.is_err())) };
}

#[test]
fn at_the_end_of_the_process() {
    trap("ends::at_the_end_of_the_process", || {
        // SAFETY: a function that lives as long as the process.
        assert_eq!(unsafe { libc::atexit(at_exit) }, 0);
        (0..7).for_each(|_| leave(early()));
        std::process::exit(3);
    });
}

/// The hook holds the lock of std's backtraces while it allocates, on several threads, while names are read here.
#[test]
fn panic_hook_that_prints_a_backtrace() {
    trap("ends::panic_hook_that_prints_a_backtrace", || {
        const THREADS: usize = 8;
        const PANICS: usize = 15;
        static PRINTED: AtomicUsize = AtomicUsize::new(0);
        let harness = std::panic::take_hook();
        std::panic::set_hook(Box::new(|info| {
            let text = format!("{info}\n{}", Backtrace::force_capture());
            PRINTED.fetch_add(usize::from(text.contains("traps::ends::")), Ordering::Relaxed);
            leave(late());
        }));
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let _end = SetAtEnd(&over);
            let panicking: Vec<_> = (0..THREADS)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..PANICS {
                            let kept = early();
                            let caught = catch_unwind(|| panic!("planted"));
                            assert!(caught.is_err());
                            drop(kept);
                        }
                    })
                })
                .collect();
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    black_box(Snapshot::take().unwrap());
                }
            });
            panicking.into_iter().for_each(|thread| thread.join().unwrap());
        });
        std::panic::set_hook(harness);
        let panics = (THREADS * PANICS) as u64;
        assert_eq!(PRINTED.load(Ordering::Relaxed) as u64, panics);
        assert_eq!(of_function(LATE), (80 * panics, panics));
        assert_eq!(of_function(EARLY), (0, 0));
        drop(take_left());
        assert_eq!(of_function(LATE), (0, 0));
        nothing_is_lost();
        say(format_args!("{panics} panics on {THREADS} threads"));
    });
}

struct Unwound(Option<Block>, usize);

impl Drop for Unwound {
    fn drop(&mut self) {
        self.0 = None;
        leave(late());
        if self.1 > 0 {
            // A panic inside the unwinding of another, caught here.
            let nested = self.1 - 1;
            let caught = catch_unwind(AssertUnwindSafe(|| unwind(nested)));
            assert!(caught.is_err());
        }
    }
}

#[inline(never)]
fn unwind(nested: usize) {
    let _first = Unwound(Some(early()), nested);
    let _second = Unwound(Some(early()), 0);
    resume_unwind(Box::new(early()));
}

#[test]
fn while_unwinding() {
    trap("ends::while_unwinding", || {
        const TIMES: usize = 500;
        let mut payloads = Vec::new();
        for _ in 0..TIMES {
            let payload = catch_unwind(|| unwind(3)).unwrap_err();
            payloads.push(payload.downcast::<Block>().unwrap());
        }
        // Two locals of each of four levels.
        let blocks = (TIMES * 8) as u64;
        assert_eq!(of_function(LATE), (80 * blocks, blocks));
        assert_eq!(of_function(EARLY), (80 * TIMES as u64, TIMES as u64));
        drop((payloads, take_left()));
        assert_eq!((of_function(LATE), of_function(EARLY)), ((0, 0), (0, 0)));
        nothing_is_lost();
        say(format_args!("{} unwindings", TIMES * 4));
    });
}
