//! Allocates in signal handlers. It is promised that nothing hangs or faults, if the inner allocator may be used there; exact
//! counts are not promised, but are exact here.

use crate::{inner, nothing_is_lost, of_function, on_path, say, trap};
use std::hint::black_box;
use std::os::unix::thread::JoinHandleExt as _;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

type Block = Box<[u64; 12]>;

#[inline(never)]
fn in_handler() -> Block {
    black_box(Box::new([3; 12]))
}
const IN_HANDLER: &str = "traps::signals::in_handler";

#[inline(never)]
fn outside(number: usize) -> Vec<u64> {
    black_box(vec![number as u64; number % 20 + 1])
}
const OUTSIDE: &str = "traps::signals::outside";

/// The blocks of the handler: slots that are filled and emptied by exchange, without a lock.
static PLACES: [AtomicPtr<[u64; 12]>; 64] = [const { AtomicPtr::new(std::ptr::null_mut()) }; 64];
static HANDLED: AtomicUsize = AtomicUsize::new(0);

fn exchange(place: usize, block: *mut [u64; 12]) {
    let before = PLACES[place % PLACES.len()].swap(block, Ordering::AcqRel);
    if !before.is_null() {
        // SAFETY: made by `Box::into_raw` and taken out of its place by this thread alone.
        drop(unsafe { Box::from_raw(before) });
    }
}

extern "C" fn handler(_signal: libc::c_int) {
    let number = HANDLED.fetch_add(1, Ordering::Relaxed);
    for at in 0..3 {
        exchange(number * 5 + at, Box::into_raw(in_handler()));
    }
    drop(in_handler());
    // A block that moves, and whose tag moves from behind it to the map.
    let mut growing = Vec::with_capacity(10);
    growing.extend([7u8; 10]);
    growing.reserve_exact(3_000);
    assert_eq!(growing, [7; 10]);
}

fn on(signal: libc::c_int, flags: libc::c_int) {
    set_handler(handler, signal, flags);
}

pub fn set_handler(handler: extern "C" fn(libc::c_int), signal: libc::c_int, flags: libc::c_int) {
    // SAFETY: a handler of the right type; all zero is an empty mask.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = flags | libc::SA_RESTART;
        assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
    }
}

/// The guard that holds in all other traps.
#[test]
fn the_guard_notices_an_allocation_inside_an_event() {
    trap("signals::the_guard_notices_an_allocation_inside_an_event", || {
        // SAFETY: the child ends without its destructors.
        let child = unsafe { libc::fork() };
        if child == 0 {
            heapgauge::end_at_reentrance();
            let _no_locks = inner::no_locks();
            on(libc::SIGALRM, 0);
            let every = libc::timeval { tv_sec: 0, tv_usec: 50 };
            let timer = libc::itimerval { it_interval: every, it_value: every };
            // SAFETY: a timer to read from.
            unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
            let end = Instant::now() + Duration::from_secs(2);
            while Instant::now() < end {
                drop(outside(7));
            }
            // SAFETY: as above.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: a place to write to.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        let is_ended = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGABRT;
        assert_eq!(is_ended, cfg!(debug_assertions), "{status}");
    });
}

/// Signals interrupt any code, the tracker too. The inner allocator may be used in a handler, the system's may not.
#[test]
fn a_handler_that_interrupts_anything() {
    trap("signals::a_handler_that_interrupts_anything", || {
        // The arena does not reuse blocks.
        const MOST: usize = 2_000_000;
        let _no_locks = inner::no_locks();
        on(libc::SIGUSR1, 0);
        let before = heapgauge::traced_memory().current;
        let workers: Vec<_> = (0..2usize)
            .map(|worker| {
                std::thread::spawn(move || {
                    let mut kept = Vec::with_capacity(100);
                    for operation in 0..MOST {
                        // One of many stacks, so that threads look up, insert and grow tables all the time.
                        let path = operation.wrapping_mul(2_654_435_761) >> 7;
                        kept.push(on_path(path, 10, &mut || outside(operation + worker)));
                        if kept.len() == 100 {
                            kept.clear();
                        }
                        if OVER.load(Ordering::Relaxed) {
                            return operation;
                        }
                    }
                    MOST
                })
            })
            .collect();
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end && workers.iter().any(|worker| !worker.is_finished()) {
            for worker in &workers {
                // SAFETY: a thread that is not joined before this loop ends.
                assert_eq!(unsafe { libc::pthread_kill(worker.as_pthread_t(), libc::SIGUSR1) }, 0);
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        OVER.store(true, Ordering::Relaxed);
        let operations: usize = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
        say(format_args!("{} signals, {operations} operations", HANDLED.load(Ordering::Relaxed)));
        // SAFETY: from now on nothing is handled.
        unsafe { libc::signal(libc::SIGUSR1, libc::SIG_IGN) };
        assert!(HANDLED.load(Ordering::Relaxed) > 1_000);
        (0..PLACES.len()).for_each(|place| exchange(place, std::ptr::null_mut()));
        assert_eq!((of_function(IN_HANDLER), of_function(OUTSIDE)), ((0, 0), (0, 0)));
        let grown = heapgauge::traced_memory().current.abs_diff(before);
        assert!(grown < 16 << 10, "{grown}");
    });
}

/// Checks that stacks end at the handler. A signal interrupts between any two instructions, where some unwind rules are wrong:
/// following a wrong one ended a process, found by single steps.
fn stacks_end_at_the_handler() {
    let snapshot = heapgauge::Snapshot::take().unwrap();
    let functions = |trace: &heapgauge::Trace| -> Vec<String> {
        trace.traceback.frames().map(|frame| frame.name().into_owned()).collect()
    };
    let stacks: Vec<_> = snapshot.traces().iter().map(functions).filter(|all| all[0] == IN_HANDLER).collect();
    assert!(!stacks.is_empty());
    for stack in stacks {
        let last =
            stack.iter().position(|function| function.ends_with("signals::handler")).expect("the handler");
        // Behind it is the return address of the C library, which has no name here.
        assert!(stack[last + 1..].iter().all(|function| !function.contains("signals::")), "{stack:?}");
    }
}

/// The handler runs on a stack of its own, which the tracker does not know. The signal is raised outside of allocations, so
/// the counts are exact.
#[test]
fn a_handler_on_a_stack_of_its_own() {
    trap("signals::a_handler_on_a_stack_of_its_own", || {
        const TIMES: usize = 2_000;
        on(libc::SIGUSR2, libc::SA_ONSTACK);
        let run = || {
            let mut room = vec![0u8; 256 << 10];
            let stack = libc::stack_t { ss_sp: room.as_mut_ptr().cast(), ss_flags: 0, ss_size: room.len() };
            // SAFETY: the room lives until the stack is given up below.
            assert_eq!(unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) }, 0);
            for _ in 0..TIMES {
                // SAFETY: handled above.
                assert_eq!(unsafe { libc::raise(libc::SIGUSR2) }, 0);
            }
            let none = libc::stack_t { ss_flags: libc::SS_DISABLE, ..stack };
            // SAFETY: no handler is running.
            assert_eq!(unsafe { libc::sigaltstack(&raw const none, std::ptr::null_mut()) }, 0);
        };
        run();
        std::thread::spawn(run).join().unwrap();
        assert_eq!(HANDLED.load(Ordering::Relaxed), TIMES * 2);
        let blocks = PLACES.iter().filter(|place| !place.load(Ordering::Relaxed).is_null()).count() as u64;
        assert!(blocks > 50, "{blocks}");
        assert_eq!(of_function(IN_HANDLER), (96 * blocks, blocks));
        stacks_end_at_the_handler();
        (0..PLACES.len()).for_each(|place| exchange(place, std::ptr::null_mut()));
        assert_eq!(of_function(IN_HANDLER), (0, 0));
        nothing_is_lost();
        say(format_args!("{} signals", TIMES * 2));
    });
}

// ── Signals that interrupt the C library ────────────────────────────────────────────────────────

#[inline(never)]
fn in_the_midst(number: u64) -> Block {
    black_box(Box::new([number; 12]))
}
const IN_THE_MIDST: &str = "traps::signals::in_the_midst";

/// Allocates a block on one of thousands of stacks, most of them new, and checks its contents.
extern "C" fn interrupting(_signal: libc::c_int) {
    let number = HANDLED.fetch_add(1, Ordering::Relaxed);
    let path = number.wrapping_mul(2_654_435_761) >> 7;
    let block = on_path(path, 12, &mut || in_the_midst(number as u64));
    assert_eq!(*block, [number as u64; 12]);
    exchange(number, Box::into_raw(block));
    drop(on_path(!path, 3, &mut || in_the_midst(7)));
}

/// Whether the other threads must end.
static OVER: AtomicBool = AtomicBool::new(false);

/// Calls the C library's allocator nearly all the time, and checks the contents of its blocks.
fn of_the_c_library() -> usize {
    let mut kept: [(*mut u8, usize); 64] = [(std::ptr::null_mut(), 0); 64];
    let mut operations = 0usize;
    while !OVER.load(Ordering::Relaxed) {
        operations += 1;
        let place = operations % kept.len();
        // Sizes of every kind of list that glibc keeps, up to mappings of their own.
        let size = 1 << (operations % 18);
        let (block, old_size) = kept[place];
        // SAFETY: blocks of the C library, each within its size, freed or grown once.
        unsafe {
            if !block.is_null() {
                assert_eq!((*block, *block.add(old_size - 1)), (place as u8, place as u8));
            }
            let fresh = match operations % 4 {
                0 => libc::realloc(block.cast(), size),
                1 => {
                    libc::free(block.cast());
                    libc::calloc(size, 1)
                }
                _ => {
                    libc::free(block.cast());
                    libc::malloc(size)
                }
            }
            .cast::<u8>();
            assert!(!fresh.is_null());
            (*fresh, *fresh.add(size - 1)) = (place as u8, place as u8);
            kept[place] = (fresh, size);
        }
    }
    // SAFETY: as above; null is nothing.
    kept.iter().for_each(|(block, _)| unsafe { libc::free(block.cast()) });
    operations
}

/// Runs a thread that allocates in Rust only inside a signal handler.
extern "C" fn without_rust(_: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: made and freed.
    unsafe { libc::free(libc::malloc(100)) };
    std::ptr::null_mut()
}

/// Sends the signal to every other thread of this process; the calling one has it blocked.
fn to_all_others(signal: libc::c_int) {
    // SAFETY: plain queries; a thread that has ended since it was listed is an error that is ignored.
    let (process, own) = unsafe { (libc::getpid(), libc::syscall(libc::SYS_gettid)) };
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task: libc::c_long = task.unwrap().file_name().to_str().unwrap().parse().unwrap();
        if task != own {
            // SAFETY: as above.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::c_long::from(process), task, signal) };
        }
    }
}

/// Signals interrupt `malloc` and the start and end of threads, where the C library holds its locks. The inner allocator may
/// be used in a handler, so the tracked one may be, on new stacks too.
#[test]
fn a_handler_that_interrupts_the_c_library() {
    trap("signals::a_handler_that_interrupts_the_c_library", || {
        let _no_locks = inner::no_locks();
        set_handler(interrupting, libc::SIGUSR1, 0);
        let before = heapgauge::traced_memory().current;
        let c_library: Vec<_> = (0..2).map(|_| std::thread::spawn(of_the_c_library)).collect();
        let short: Vec<_> = [true, false]
            .map(|of_rust| {
                std::thread::spawn(move || {
                    let mut threads = 0usize;
                    while !OVER.load(Ordering::Relaxed) {
                        if of_rust {
                            std::thread::spawn(|| ()).join().unwrap();
                        } else {
                            let mut thread = 0;
                            // SAFETY: a function that ends, and one join.
                            unsafe {
                                let nothing = std::ptr::null_mut();
                                let made = libc::pthread_create(
                                    &raw mut thread,
                                    std::ptr::null(),
                                    without_rust,
                                    nothing,
                                );
                                assert_eq!(made, 0);
                                assert_eq!(libc::pthread_join(thread, std::ptr::null_mut()), 0);
                            }
                        }
                        threads += 1;
                    }
                    threads
                })
            })
            .into();
        let sender = std::thread::spawn(|| {
            // SAFETY: a set with one signal, blocked in this thread.
            unsafe {
                let mut signals: libc::sigset_t = std::mem::zeroed();
                libc::sigaddset(&raw mut signals, libc::SIGUSR1);
                assert_eq!(
                    libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut()),
                    0
                );
            }
            let end = Instant::now() + Duration::from_secs(3);
            while Instant::now() < end {
                to_all_others(libc::SIGUSR1);
                std::thread::sleep(Duration::from_micros(50));
            }
            OVER.store(true, Ordering::Relaxed);
        });
        sender.join().unwrap();
        let operations: usize = c_library.into_iter().map(|thread| thread.join().unwrap()).sum();
        let threads: usize = short.into_iter().map(|thread| thread.join().unwrap()).sum();
        // SAFETY: from now on nothing is handled.
        unsafe { libc::signal(libc::SIGUSR1, libc::SIG_IGN) };
        let signals = HANDLED.load(Ordering::Relaxed);
        say(format_args!("{signals} signals, {operations} operations of the C library, {threads} threads"));
        assert!(signals > 500 && threads > 100);
        (0..PLACES.len()).for_each(|place| exchange(place, std::ptr::null_mut()));
        assert_eq!(of_function(IN_THE_MIDST), (0, 0));
        assert_eq!(heapgauge::Collector::new().collect().dropped.memory, 0);
        let grown = heapgauge::traced_memory().current.abs_diff(before);
        assert!(grown < 16 << 10, "{grown}");
    });
}

/// Forks while handlers that have interrupted `malloc` meet new stacks. The C library takes the locks of its `malloc` for a
/// fork, after heapgauge has closed its own: a handler that waited for the end of the fork kept the fork waiting.
#[test]
fn forks_while_handlers_interrupt_the_c_library() {
    trap("signals::forks_while_handlers_interrupt_the_c_library", || {
        let _no_locks = inner::no_locks();
        set_handler(interrupting, libc::SIGUSR1, 0);
        // No signal comes while a thread begins: in the middle of that an event has no state to be counted in.
        let begun = Arc::new(Barrier::new(3));
        let c_library: Vec<_> = (0..2)
            .map(|_| {
                let begun = begun.clone();
                std::thread::spawn(move || {
                    begun.wait();
                    of_the_c_library()
                })
            })
            .collect();
        begun.wait();
        let begin = Instant::now();
        // A busy machine takes longer for as many signals.
        let is_over = move || {
            let enough = HANDLED.load(Ordering::Relaxed) > 500 && begin.elapsed() > Duration::from_secs(4);
            enough || begin.elapsed() > Duration::from_secs(60)
        };
        let sender = {
            let threads: Vec<_> = c_library.iter().map(|thread| thread.as_pthread_t()).collect();
            std::thread::spawn(move || {
                while !is_over() {
                    // SAFETY: threads that are not joined before this one.
                    threads.iter().for_each(|thread| unsafe {
                        libc::pthread_kill(*thread, libc::SIGUSR1);
                    });
                    std::thread::sleep(Duration::from_micros(20));
                }
            })
        };
        let mut forks = 0;
        while !is_over() {
            // SAFETY: the child does nothing.
            let process = unsafe { libc::fork() };
            if process == 0 {
                // SAFETY: ends the child without the parent's exit handlers.
                unsafe { libc::_exit(0) };
            }
            let mut status = 0;
            // SAFETY: waits for the child just made.
            assert_eq!(unsafe { libc::waitpid(process, &raw mut status, 0) }, process);
            assert_eq!(status, 0);
            forks += 1;
        }
        sender.join().unwrap();
        OVER.store(true, Ordering::Relaxed);
        let operations: usize = c_library.into_iter().map(|thread| thread.join().unwrap()).sum();
        // SAFETY: from now on nothing is handled.
        unsafe { libc::signal(libc::SIGUSR1, libc::SIG_IGN) };
        let dropped = heapgauge::Collector::new().collect().dropped;
        let signals = HANDLED.load(Ordering::Relaxed);
        say(format_args!(
            "{forks} forks, {signals} signals, {operations} operations, {} and {} lost",
            dropped.reentrant, dropped.threads
        ));
        assert!(signals > 500 && forks > 5);
        (0..PLACES.len()).for_each(|place| exchange(place, std::ptr::null_mut()));
        assert_eq!(of_function(IN_THE_MIDST), (0, 0));
        // All lost blocks of the handlers are freed. A block or two of the harness or the standard library, on a stack that
        // was new during a fork, may live.
        let unrecorded = of_function("[unrecorded]");
        assert!(unrecorded.1 < 4 && dropped.reentrant > 0, "{unrecorded:?} of {dropped:?}");
        assert_eq!((dropped.stacks, dropped.memory, dropped.threads, dropped.series), (0, 0, 0, 0));
    });
}
