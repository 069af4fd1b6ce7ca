//! Tests threads that leave an event by `siglongjmp` out of a signal handler, and end: what they were in the middle of is
//! left behind, and the next threads take their states over.
//!
//! The inner allocator only adds to a number, so that a jump out of it leaves nothing locked. A jump out of the C library's
//! `malloc` leaves its lock locked, with heapgauge or without.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

use heapgauge::{Collector, Snapshot, TrackingAllocator};
use std::alloc::{GlobalAlloc, Layout, alloc, dealloc};
use std::ffi::{CString, c_int, c_void};
use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOC: TrackingAllocator<Jumpable> = TrackingAllocator::new(Jumpable);

/// Cuts blocks of some threads from a mapping, and never reuses one; the system's for all others.
struct Jumpable;

thread_local! {
    static JUMPS: AtomicBool = const { AtomicBool::new(false) };
}

const ROOM: usize = 1 << 34;
static FIRST: AtomicUsize = AtomicUsize::new(0);
static USED: AtomicUsize = AtomicUsize::new(0);

fn map() {
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a fresh anonymous mapping; it touches no memory that exists.
    let room =
        unsafe { libc::mmap(std::ptr::null_mut(), ROOM, libc::PROT_READ | libc::PROT_WRITE, kind, -1, 0) };
    assert_ne!(room, libc::MAP_FAILED);
    FIRST.store(room.expose_provenance(), Ordering::Relaxed);
}

// SAFETY: blocks are the system's, or lie side by side in a mapping that is never unmapped.
unsafe impl GlobalAlloc for Jumpable {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !JUMPS.with(|jumps| jumps.load(Ordering::Relaxed)) {
            // SAFETY: the caller's duties.
            return unsafe { std::alloc::System.alloc(layout) };
        }
        let size = layout.size() + layout.align();
        let at = FIRST.load(Ordering::Relaxed) + USED.fetch_add(size, Ordering::Relaxed);
        std::ptr::with_exposed_provenance_mut(at.next_multiple_of(layout.align()))
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if block.addr().wrapping_sub(FIRST.load(Ordering::Relaxed)) >= ROOM {
            // SAFETY: the caller's duties; not cut from the mapping.
            unsafe { std::alloc::System.dealloc(block, layout) }
        }
    }
}

const CODE: &str = "
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
static __thread sigjmp_buf place;
static __thread volatile sig_atomic_t may_jump;
static void handle(int number) { if (may_jump) { may_jump = 0; siglongjmp(place, 1); } }
void prepare(void) { struct sigaction action = {0}; action.sa_handler = handle; sigaction(SIGUSR2, &action, 0); }
int until_jump(void (*work)(void)) {
    if (sigsetjmp(place, 1)) return 1;
    may_jump = 1;
    work();
    may_jump = 0;
    return 0;
}
";

type UntilJump = unsafe extern "C" fn(extern "C" fn()) -> c_int;

fn library() -> UntilJump {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, library) = (folder.join("jump_out.c"), folder.join("libjump_out.so"));
    std::fs::write(&source, CODE).unwrap();
    let arguments = ["-O2", "-shared", "-fPIC", "-fasynchronous-unwind-tables", "-o"];
    let compiled = Command::new("cc").args(arguments).args([&library, &source]).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let path = CString::new(library.to_str().unwrap()).unwrap();
    // SAFETY: a library of this file, whose functions have these types.
    unsafe {
        let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        assert!(!handle.is_null());
        let function = |name: &std::ffi::CStr| {
            let function: *mut c_void = libc::dlsym(handle, name.as_ptr());
            assert!(!function.is_null());
            function
        };
        std::mem::transmute::<*mut c_void, unsafe extern "C" fn()>(function(c"prepare"))();
        std::mem::transmute::<*mut c_void, UntilJump>(function(c"until_jump"))
    }
}

const SMALL: Layout = Layout::new::<[u64; 5]>();
/// Blocks that each thread keeps.
const KEPT: u64 = 100;

/// Keeps a block of a known stack.
#[inline(never)]
fn keep() {
    // SAFETY: the layout is of some bytes.
    black_box(unsafe { alloc(SMALL) });
}

/// Allocates on known and on ever new stacks, and frees, until it is interrupted.
extern "C" fn churn() {
    let mut path = black_box(1u64);
    for _ in 0..u32::MAX {
        path = path.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        below(path >> 40, 12);
    }
}

/// Calls itself from two places, so that the path makes a stack of its own.
#[inline(never)]
fn below(path: u64, levels: u32) -> u64 {
    match (levels, path & 1) {
        (0, _) => {
            // SAFETY: the layout is of some bytes, and the block is freed once.
            unsafe { dealloc(black_box(alloc(SMALL)), SMALL) };
            1
        }
        (_, 0) => black_box(below(path >> 1, levels - 1)) + 2,
        _ => black_box(below(path >> 1, levels - 1)) + 3,
    }
}

#[test]
fn threads_that_jump_out_of_events_and_end() {
    map();
    let until_jump = library();
    let collector = Collector::new();
    let (jumped, threads) = (AtomicU64::new(0), 300);
    let begin = Instant::now();
    for number in 0..threads {
        let thread = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                (0..KEPT).for_each(|_| keep());
                JUMPS.with(|jumps| jumps.store(true, Ordering::Relaxed));
                // SAFETY: asks for a number.
                thread.store(unsafe { libc::pthread_self() }, Ordering::Release);
                // SAFETY: it jumps over frames of `churn` and of the allocator, which leave nothing to be released.
                let has_jumped = unsafe { until_jump(churn) };
                JUMPS.with(|jumps| jumps.store(false, Ordering::Relaxed));
                jumped.fetch_add(has_jumped as u64, Ordering::Relaxed);
                keep();
            });
            while thread.load(Ordering::Acquire) == 0 {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_micros(200 + number % 37 * 31));
            while !worker.is_finished() {
                // SAFETY: the thread is not joined yet.
                unsafe { libc::pthread_kill(thread.load(Ordering::Relaxed), libc::SIGUSR2) };
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }
    assert_eq!(jumped.load(Ordering::Relaxed), threads);
    // A lock that a thread has left locked costs a quarter of a second once, not each event.
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
    let report = collector.collect();
    let snapshot = Snapshot::take().unwrap();
    let traces = snapshot.traces();
    let is_kept =
        |trace: &&heapgauge::Trace| trace.traceback.frames().any(|frame| frame.name().ends_with("keep"));
    let kept: u64 = traces.iter().filter(is_kept).map(|trace| trace.count).sum();
    let lost = report.dropped.reentrant + report.dropped.memory;
    // One more each after the jump: where its thread is still in the middle of an event, that one is not at its line.
    let made = threads * (KEPT + 1);
    println!("{kept} of {made} kept, {lost} events without a stack");
    // Some thread was in the middle of an event, so not all are kept. Where it was in the map of stacks, a part of the map stays
    // locked. If the stack of `keep` belongs to that part, later blocks of it have no stack, and are counted as lost.
    let least = (threads * KEPT).saturating_sub(lost).max(KEPT);
    assert!((least..made).contains(&kept), "{kept} of {made}, {lost} lost");
    // A forked child and its parent go on.
    // SAFETY: the child ends at once.
    let child = unsafe { libc::fork() };
    if child == 0 {
        keep();
        // SAFETY: ends the child without its destructors.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: a place to write to.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
}
