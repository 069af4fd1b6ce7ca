//! Tests forks in the middle of heapgauge's read side: the child can use all of it, and a signal handler that forks
//! returns.
//!
//! A program of its own, because its inner allocator makes a thread slow, or interrupts it, at the allocations of the read side.
#![cfg(all(unix, feature = "http"))]

#[path = "support/at_end.rs"]
mod at_end;

use at_end::SetAtEnd;
use heapgauge::{Collector, GroupBy, Snapshot, emit};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

/// The behaviour of a thread at its allocations.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Nothing,
    /// It sleeps, so that nearly always a lock is held.
    Sleep,
    /// It gets a signal, whose handler forks.
    Fork,
    /// It stops at the first of so many bytes as reading debug information takes, until [`GO`].
    Stop,
}

thread_local! {
    static AT: Cell<At> = const { Cell::new(At::Nothing) };
}

static STOPPED: AtomicBool = AtomicBool::new(false);
static GO: AtomicBool = AtomicBool::new(false);

/// The system's allocator, after the behaviour in [`AT`].
struct Inner;

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Inner {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match AT.try_with(Cell::get).unwrap_or(At::Nothing) {
            At::Nothing => {}
            At::Stop if layout.size() < 256 << 10 => {}
            At::Stop => {
                STOPPED.store(true, Ordering::Release);
                while !GO.load(Ordering::Acquire) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            At::Sleep => std::thread::sleep(Duration::from_micros(100)),
            // SAFETY: the handler is `fork_here`. No lock of the C library's allocator is held.
            At::Fork => unsafe {
                libc::raise(libc::SIGUSR1);
            },
        }
        // SAFETY: the caller's duties.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's duties.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator<Inner> = heapgauge::TrackingAllocator::new(Inner);

/// The tests count what the process does, so they take turns.
static TURN: Mutex<()> = Mutex::new(());

/// Ends a process that hangs.
fn within(seconds: u32) {
    // SAFETY: no handler is involved.
    unsafe { libc::alarm(seconds) };
}

const DOMAIN: u32 = 43;

/// All that has a lock: collectors, outlets with caches and turns, snapshots, domains.
struct ReadSide {
    collectors: Vec<Collector>,
    facade: emit::Metrics,
}

impl ReadSide {
    fn new() -> ReadSide {
        // A collection is given out again for a second: one alone would hardly ever be locked.
        let collectors: Vec<_> = (0..4).map(|_| Collector::new()).collect();
        ReadSide { facade: emit::Metrics::new(&collectors[0]), collectors }
    }

    fn use_all(&self, number: usize) {
        for collector in &self.collectors {
            assert!(collector.collect().live.now.bytes > 0);
        }
        self.facade.collect();
        heapgauge::track(DOMAIN, number, 1).unwrap();
        assert!(Snapshot::take().unwrap().traces().iter().any(|trace| trace.domain == DOMAIN));
        heapgauge::untrack(DOMAIN, number);
        let rows = Snapshot::take().unwrap().statistics(GroupBy::Line);
        assert!(!rows.is_empty());
    }
}

/// Forks, and returns the status of the child, which ends with what `steps` gives.
fn in_child(steps: impl FnOnce() -> i32) -> i32 {
    ended(child(steps))
}

/// Forks a child that ends with what `steps` gives.
fn child(steps: impl FnOnce() -> i32) -> libc::pid_t {
    // SAFETY: the child does what this test is about, and ends by `_exit`.
    let process = unsafe { libc::fork() };
    assert!(process >= 0, "fork");
    if process == 0 {
        within(100);
        let status = catch_unwind(AssertUnwindSafe(steps)).unwrap_or(9);
        // SAFETY: ends the child without the parent's exit handlers.
        unsafe { libc::_exit(status) };
    }
    process
}

/// Waits for a child, and returns its status.
fn ended(process: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: waits for a child of this process.
    assert_eq!(unsafe { libc::waitpid(process, &raw mut status, 0) }, process);
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 100 + libc::WTERMSIG(status) }
}

#[test]
fn a_child_uses_what_another_thread_had_locked() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    within(500);
    let read_side = ReadSide::new();
    // Names are cached in the parent, so that the child's part is fast.
    read_side.use_all(0);
    let before: Vec<u64> = read_side.collectors.iter().map(|collector| collector.collect().number).collect();
    let over = AtomicBool::new(false);
    let rounds = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (read_side, over, rounds) = (&read_side, &over, &rounds);
        let _end = SetAtEnd(over);
        for thread in 1..=2 {
            scope.spawn(move || {
                AT.set(At::Sleep);
                while !over.load(Ordering::Relaxed) {
                    read_side.use_all(thread);
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
                AT.set(At::Nothing);
            });
        }
        for round in 0..6 {
            let (read_side, before) = (&read_side, &before);
            let status = in_child(move || {
                // In threads of the child too, which wait for each other.
                let uses = |number| move || read_side.use_all(number);
                let threads_end = std::thread::scope(|scope| {
                    let threads: Vec<_> = (10..13).map(|number| scope.spawn(uses(number))).collect();
                    threads.into_iter().all(|thread| thread.join().is_ok())
                });
                if !threads_end {
                    return 2;
                }
                // State from before the fork is still there, so the numbers continue.
                let numbers = read_side.collectors.iter().map(|collector| collector.collect().number);
                i32::from(!before.iter().zip(numbers).all(|(before, now)| *before <= now)) * 3
            });
            assert_eq!(status, 0, "round {round}");
            std::thread::sleep(Duration::from_millis(13));
        }
    });
    within(0);
    println!("{} rounds of the parent's threads", rounds.load(Ordering::Relaxed));
}

#[inline(never)]
fn on_a_new_stack() -> Vec<u8> {
    std::hint::black_box(vec![7; 77])
}

#[inline(never)]
fn on_another_stack() -> Vec<u8> {
    std::hint::black_box(vec![8; 78])
}

/// Reading debug information takes from 50 ms to half a second, and may wait for a slow disk.
#[test]
fn a_fork_does_not_wait_for_debug_information() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    within(500);
    let read_side = ReadSide::new();
    let snapshot = || drop(Snapshot::take().unwrap());
    // Holds a lock meanwhile, which the child takes over.
    let collection = || drop(read_side.collectors[0].collect());
    let kept = on_a_new_stack();
    fork_while(&snapshot, &read_side, "fork_read_side::on_a_new_stack");
    let kept = (kept, on_another_stack());
    // A younger collection would be reused.
    std::thread::sleep(Duration::from_millis(1_001));
    fork_while(&collection, &read_side, "fork_read_side::on_another_stack");
    within(0);
    drop(kept);
}

/// Forks while `read` waits in the middle of reading debug information, and looks for a function in the child.
fn fork_while(read: &(dyn Fn() + Sync), read_side: &ReadSide, function: &str) {
    STOPPED.store(false, Ordering::Release);
    GO.store(false, Ordering::Release);
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| {
            AT.set(At::Stop);
            read();
            AT.set(At::Nothing);
        });
        while !STOPPED.load(Ordering::Acquire) {
            assert!(!reads.is_finished(), "nothing was read");
            std::thread::sleep(Duration::from_millis(1));
        }
        let (tell, forked) = mpsc::channel();
        let waits = scope.spawn(move || {
            let waits = forked.recv_timeout(Duration::from_secs(20)).is_err();
            // A fork that waits goes on, so that the test ends.
            GO.store(true, Ordering::Release);
            waits
        });
        let process = child(|| {
            // The parent's thread never comes back here.
            read_side.use_all(20);
            let rows = Snapshot::take().unwrap().statistics(GroupBy::Function);
            i32::from(!rows.iter().any(|row| row.name() == function))
        });
        let _ = tell.send(());
        assert!(!waits.join().unwrap(), "the fork has waited");
        assert_eq!(ended(process), 0);
    });
}

static HANDLED: AtomicUsize = AtomicUsize::new(0);

/// Forks like a crash handler, whose child exits at once.
extern "C" fn fork_here(_signal: libc::c_int) {
    let at = AT.replace(At::Nothing);
    // The first twenty, then fewer: there may be many.
    let number = HANDLED.fetch_add(1, Ordering::Relaxed);
    if number < 20 || number.is_power_of_two() {
        // SAFETY: the child ends at once; the parent waits for it.
        unsafe {
            let process = libc::fork();
            if process == 0 {
                libc::_exit(0);
            }
            libc::waitpid(process, std::ptr::null_mut(), 0);
        }
    }
    AT.set(at);
}

#[test]
fn a_signal_handler_forks_in_the_middle_of_the_read_side() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    within(300);
    // SAFETY: a handler of the right type; all zero is an empty mask.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = fork_here as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
    }
    let read_side = ReadSide::new();
    let each: [&dyn Fn(); 5] = [
        &|| drop(Snapshot::take().unwrap()),
        &|| heapgauge::track(DOMAIN, 1, 1).unwrap(),
        &|| drop(read_side.collectors[0].collect()),
        &|| read_side.facade.collect(),
        &|| drop(read_side.collectors[1].collect().to_prometheus()),
    ];
    let mut interrupted = 0;
    for act in each {
        HANDLED.store(0, Ordering::Relaxed);
        AT.set(At::Fork);
        act();
        AT.set(At::Nothing);
        interrupted += usize::from(HANDLED.load(Ordering::Relaxed) > 0);
    }
    // An insertion may need no memory.
    assert!(interrupted >= 4, "{interrupted}");
    heapgauge::untrack(DOMAIN, 1);
    within(0);
}

/// Set in the process whose first collector is built while it forks.
const FIRST: &str = "FORK_READ_SIDE_FIRST";

/// The first collector looks at the program's line tables, once a process. A child that was forked meanwhile waited for ever.
#[test]
fn a_child_builds_a_collector_while_the_first_is_built() {
    if std::env::var_os(FIRST).is_none() {
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        again
            .args(["--exact", "a_child_builds_a_collector_while_the_first_is_built", "--nocapture"])
            .env(FIRST, "1");
        let output = again.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    }
    within(500);
    let is_built = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            AT.set(At::Sleep);
            drop(Collector::new());
            AT.set(At::Nothing);
            is_built.store(true, Ordering::Relaxed);
        });
        let mut children = Vec::new();
        while !is_built.load(Ordering::Relaxed) && children.len() < 100 {
            children.push(child(|| {
                drop(Collector::new());
                0
            }));
            std::thread::sleep(Duration::from_micros(300));
        }
        let children = children.into_iter();
        assert!(children.map(ended).all(|status| status == 0), "a child hangs, or a panic is in it");
    });
    within(0);
}
