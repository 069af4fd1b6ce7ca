//! Tests exact counts and function names on the stacks of coroutines, which the tracker does not know.
//!
//! A package of its own, because only this test needs a library of coroutines.
#![cfg(unix)]

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use heapgauge::{GroupBy, Snapshot};
use std::hint::black_box;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

const FILE: &str = "tests/coroutines/coroutines.rs";

type Kept<T> = Vec<Box<T>>;

/// Waits for the other tests: their counts are those of the whole process.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns live bytes and blocks of a line of this file, and its function.
fn at_line(line: u32) -> (u64, u64, String) {
    let snapshot = Snapshot::take().unwrap();
    let rows = snapshot.statistics(GroupBy::Line);
    let Some(row) = rows.iter().find(|row| row.name() == format!("{FILE}:{line}")) else {
        return (0, 0, String::new());
    };
    let here = |frame: &heapgauge::Frame| (frame.file(), frame.line()) == (FILE, line);
    let trace = snapshot.traces().iter().find(|trace| here(trace.traceback.most_recent())).unwrap();
    (row.size, row.count, trace.traceback.most_recent().name().into_owned())
}

#[inline(never)]
fn narrow(kept: &mut Kept<[u64; 3]>) {
    kept.push(black_box(Box::new([3; 3])));
}
const NARROW: u32 = line!() - 2;

#[inline(never)]
fn wide(kept: &mut Kept<[u64; 7]>) {
    let room = black_box([7u8; 3_000]);
    kept.push(black_box(Box::new([u64::from(room[0]); 7])));
    black_box(&room);
}
const WIDE: u32 = line!() - 3;

#[inline(never)]
fn deep(kept: &mut Kept<[u64; 5]>, depth: usize) {
    if depth > 0 {
        deep(kept, depth - 1);
    } else {
        kept.push(black_box(Box::new([5; 5])));
    }
    black_box(depth);
}
const DEEP: u32 = line!() - 4;

#[test]
fn two_coroutines_in_turn() {
    let _turn = turn();
    const TURNS: usize = 1_000;
    let mut first = Coroutine::new(|yielder: &Yielder<(), usize>, ()| {
        let mut kept = Vec::with_capacity(TURNS);
        for _ in 0..TURNS {
            narrow(&mut kept);
            yielder.suspend(kept.len());
        }
        kept
    });
    let mut second = Coroutine::new(|yielder: &Yielder<(), usize>, ()| {
        let mut kept = Vec::with_capacity(2 * TURNS);
        for _ in 0..TURNS {
            wide(&mut kept);
            wide(&mut kept);
            yielder.suspend(kept.len());
        }
        kept
    });
    for turn in 1..=TURNS {
        assert!(matches!(first.resume(()), CoroutineResult::Yield(kept) if kept == turn));
        assert!(matches!(second.resume(()), CoroutineResult::Yield(kept) if kept == 2 * turn));
        if turn == TURNS / 2 {
            assert_eq!(at_line(NARROW), (24 * 500, 500, "coroutines::narrow".to_owned()));
            assert_eq!(at_line(WIDE), (56 * 1_000, 1_000, "coroutines::wide".to_owned()));
        }
    }
    let CoroutineResult::Return(first) = first.resume(()) else { panic!("it has more turns") };
    let CoroutineResult::Return(second) = second.resume(()) else { panic!("it has more turns") };
    assert_eq!(at_line(NARROW), (24_000, 1_000, "coroutines::narrow".to_owned()));
    assert_eq!(at_line(WIDE), (112_000, 2_000, "coroutines::wide".to_owned()));
    drop((first, second));
    assert_eq!((at_line(NARROW).1, at_line(WIDE).1), (0, 0));
}

#[test]
fn deep_on_stacks_that_come_and_go() {
    let _turn = turn();
    let mut kept = Vec::with_capacity(300);
    for round in 0..100 {
        // The next stack may be mapped at the same address.
        let stack = DefaultStack::new(64 << 10).unwrap();
        let mut coroutine = Coroutine::with_stack(stack, move |_: &Yielder<(), ()>, ()| {
            for depth in [0, 10, 100] {
                deep(&mut kept, depth);
            }
            kept
        });
        let CoroutineResult::Return(returned) = coroutine.resume(()) else { panic!("it never yields") };
        kept = returned;
        assert_eq!(kept.len(), 3 * (round + 1));
    }
    assert_eq!(at_line(DEEP), (40 * 300, 300, "coroutines::deep".to_owned()));
    let snapshot = Snapshot::take().unwrap();
    let here = |frame: &heapgauge::Frame| (frame.file(), frame.line()) == (FILE, DEEP);
    let mut depths: Vec<_> = snapshot
        .traces()
        .iter()
        .filter(|trace| here(trace.traceback.most_recent()))
        .map(|trace| {
            let frames = trace.traceback.frames();
            (frames.filter(|frame| frame.name() == "coroutines::deep").count(), trace.count)
        })
        .collect();
    depths.sort_unstable();
    // As many frames as there were calls, up to the limit of a traceback.
    assert_eq!(depths, [(1, 100), (11, 100), (32, 100)]);
    drop(kept);
    assert_eq!(at_line(DEEP).1, 0);
}

/// Code that switches stacks by hand. Its unwind rules ignore the switch: by them the caller's frame is above the new stack,
/// in memory that cannot be read.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod switched_by_hand {
    use super::*;

    std::arch::global_asm!(
        ".pushsection .text.on_stack, \"ax\", @progbits",
        ".globl heapgauge_tests_on_stack",
        ".type heapgauge_tests_on_stack, @function",
        "heapgauge_tests_on_stack:",
        ".cfi_startproc",
        "push rbp",
        ".cfi_def_cfa_offset 16",
        "push rbx",
        ".cfi_def_cfa_offset 8192",
        "mov rbx, rsp",
        "mov rsp, rdx",
        "call rsi",
        "mov rsp, rbx",
        "pop rbx",
        "pop rbp",
        "ret",
        ".cfi_endproc",
        ".size heapgauge_tests_on_stack, . - heapgauge_tests_on_stack",
        ".popsection",
    );

    unsafe extern "C" {
        /// Calls `run` with `argument` on the stack that ends at `end`.
        fn heapgauge_tests_on_stack(
            argument: *mut libc::c_void,
            run: extern "C" fn(*mut libc::c_void),
            end: *mut libc::c_void,
        );
    }

    const BLOCKS: usize = 100;

    extern "C" fn fill(kept: *mut libc::c_void) {
        // SAFETY: what the test passes, which waits.
        let kept = unsafe { &mut *kept.cast::<Kept<[u64; 11]>>() };
        for number in 0..BLOCKS as u64 {
            kept.push(black_box(Box::new([number; 11])));
        }
    }
    const LINE: u32 = line!() - 3;

    #[test]
    fn the_pages_above_a_foreign_stack_are_asked_for() {
        let _turn = turn();
        let mut kept: Kept<[u64; 11]> = Vec::with_capacity(2 * BLOCKS);
        let size = 256 << 10;
        // Unreadable pages, and unmapped ones.
        for is_there in [true, false] {
            // SAFETY: two fresh mappings of one range, the upper of which is a guard; the stack is used by the call alone.
            unsafe {
                let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                let both = libc::mmap(std::ptr::null_mut(), 2 * size, libc::PROT_NONE, kind, -1, 0);
                assert_ne!(both, libc::MAP_FAILED);
                assert_eq!(libc::mprotect(both, size, libc::PROT_READ | libc::PROT_WRITE), 0);
                let end = both.byte_add(size);
                if !is_there {
                    assert_eq!(libc::munmap(end, size), 0);
                }
                heapgauge_tests_on_stack((&raw mut kept).cast(), fill, end);
                libc::munmap(both, if is_there { 2 * size } else { size });
            }
        }
        let blocks = 2 * BLOCKS as u64;
        assert_eq!(at_line(LINE), (88 * blocks, blocks, "coroutines::switched_by_hand::fill".to_owned()));
        drop(kept);
        assert_eq!(at_line(LINE).1, 0);
    }
}
