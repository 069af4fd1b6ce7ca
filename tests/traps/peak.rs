//! Tests that the peak of a resize is the larger of the two heaps, never the sum of both blocks.
//!
//! Most trackers count the new block before they subtract the old one: 64 → 65 MiB then reports a peak of 129 MiB.

use crate::at_end::SetAtEnd;
use crate::{ALLOC, say, trap};
use heapgauge::{TracedMemory, traced_memory};
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Bytes that threads may not have published, with some for the threads of the harness.
const SLACK: u64 = 6 * (64 << 10);

/// Blocks before and after: in place or moved, with the tag behind them or in the map.
const SIZES: [(usize, usize); 9] = [
    (64 * MIB, 65 * MIB),
    (65 * MIB, 64 * MIB),
    (64 * MIB, 64 * MIB),
    (32 * MIB, 500),
    (500, 32 * MIB),
    (3 * MIB, 4 * MIB),
    (900 * KIB, 901 * KIB),
    (60 * KIB, 61 * KIB),
    (600, 1_000),
];

#[derive(Clone, Copy, Debug)]
enum Old {
    Traced,
    Zeroed,
    /// Allocated while the thread was paused.
    Untracked,
    /// From before a `clear`.
    Stale,
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

#[inline(never)]
fn made(old: Old, size: usize) -> *mut u8 {
    let _paused = matches!(old, Old::Untracked).then(heapgauge::pause);
    // SAFETY: freed with this layout.
    let block = black_box(unsafe {
        match old {
            Old::Zeroed => ALLOC.alloc_zeroed(layout(size)),
            _ => ALLOC.alloc(layout(size)),
        }
    });
    assert!(!block.is_null());
    if matches!(old, Old::Stale) {
        heapgauge::clear_traces();
    }
    block
}

#[inline(never)]
fn resize(block: *mut u8, from: usize, to: usize) -> *mut u8 {
    // SAFETY: a block that has this layout.
    let block = black_box(unsafe { ALLOC.realloc(block, layout(from), to) });
    assert!(!block.is_null());
    block
}

fn free(block: *mut u8, size: usize) {
    // SAFETY: a block that has this layout.
    unsafe { ALLOC.dealloc(block, layout(size)) };
}

/// Compares with the larger of the live bytes before and now.
#[track_caller]
fn check(before: u64, what: &dyn std::fmt::Debug) {
    let TracedMemory { current, peak } = traced_memory();
    let highest = before.max(current);
    assert!(peak >= current, "{what:?}: peak {peak}, live {current}");
    assert!(peak <= highest + SLACK, "{what:?}: peak {peak}, live {before} and then {current}");
}

/// Resizes a block of each size there and back, until small changes would add up, and checks the peak.
fn resize_all(plan: &str) -> usize {
    let mut resized = 0;
    for old in [Old::Traced, Old::Zeroed, Old::Untracked, Old::Stale] {
        for (from, to) in SIZES {
            for paused in [false, true] {
                let mut block = made(old, from);
                heapgauge::reset_peak();
                let before = traced_memory().current;
                let silence = paused.then(heapgauge::pause);
                block = resize(block, from, to);
                check(before, &(plan, old, from, to, paused));
                assert!(traced_memory().peak + SLACK >= before, "{plan}: the peak is lost");
                let before = traced_memory().current;
                heapgauge::reset_peak();
                let rounds = if from.max(to) < MIB { 2_000 } else { 20 };
                for _ in 0..rounds {
                    block = resize(resize(block, to, from), from, to);
                }
                resized += 1 + 2 * rounds;
                check(
                    before.max(before + from as u64 - (to as u64).min(from as u64)),
                    &(plan, old, to, from, paused),
                );
                drop(silence);
                free(block, to);
            }
        }
    }
    resized
}

const PLANS: [(&str, usize); 4] =
    [("exact", 0), ("4 KiB", 4 << 10), ("512 KiB", 512 << 10), ("1 GiB", 1 << 30)];

#[test]
fn a_resize_is_one_change_of_the_peak() {
    trap("peak::a_resize_is_one_change_of_the_peak", || {
        let mut resized = 0;
        for (plan, interval) in PLANS {
            heapgauge::set_sample_interval(interval).unwrap();
            resized += resize_all(plan);
        }
        say(format_args!("{resized} resizes"));
    });
}

thread_local! {
    static BLOCK: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

/// Allocates in the thread's first event, and in each round of its key destructors: in the last one it has no state.
fn grow_and_shrink() {
    let block = BLOCK.get();
    heapgauge::reset_peak();
    let before = traced_memory().current;
    let block = resize(resize(block, 64 * MIB, 65 * MIB), 65 * MIB, 64 * MIB);
    check(before + MIB as u64, &"a thread without a state");
    BLOCK.set(block);
}

static KEY: std::sync::OnceLock<libc::pthread_key_t> = std::sync::OnceLock::new();

extern "C" fn at_end(round: *mut libc::c_void) {
    grow_and_shrink();
    // SAFETY: the key exists.
    unsafe { libc::pthread_setspecific(*KEY.get().unwrap(), round.byte_add(1)) };
    if round.addr() == 4 {
        free(BLOCK.get(), 64 * MIB);
    }
}

extern "C" fn resize_first(block: *mut libc::c_void) -> *mut libc::c_void {
    BLOCK.set(block.cast());
    grow_and_shrink();
    // SAFETY: the key exists.
    unsafe { libc::pthread_setspecific(*KEY.get().unwrap(), std::ptr::without_provenance(1)) };
    std::ptr::null_mut()
}

#[test]
fn resizes_of_threads_without_a_state() {
    trap("peak::resizes_of_threads_without_a_state", || {
        let mut key = 0;
        // SAFETY: a place to write to and a function that ends.
        assert_eq!(unsafe { libc::pthread_key_create(&raw mut key, Some(at_end)) }, 0);
        KEY.set(key).unwrap();
        for (plan, interval) in PLANS {
            heapgauge::set_sample_interval(interval).unwrap();
            let block = made(Old::Traced, 64 * MIB);
            let mut thread = 0;
            // SAFETY: a function that ends; the thread is joined.
            unsafe {
                let attributes = std::ptr::null();
                assert_eq!(libc::pthread_create(&raw mut thread, attributes, resize_first, block.cast()), 0);
                assert_eq!(libc::pthread_join(thread, std::ptr::null_mut()), 0);
            }
            assert!(traced_memory().current < MIB as u64, "{plan}: the block was not freed");
        }
    });
}

/// Blocks large enough that each is published by itself.
const PUBLISHED: usize = 4 * MIB;

/// Allocates, resizes and frees until it is told to stop. Between two rounds it lets others look.
fn churn(stop: &AtomicBool, looks: &AtomicBool, quiet: &Mutex<()>) {
    while !stop.load(Ordering::Relaxed) {
        while looks.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        let _round = quiet.lock().unwrap_or_else(PoisonError::into_inner);
        let block = made(Old::Traced, PUBLISHED);
        let block = resize(resize(block, PUBLISHED, 2 * PUBLISHED), 2 * PUBLISHED, PUBLISHED);
        free(block, PUBLISHED);
    }
}

/// An event that a `clear` interrupts is of one epoch, for the counters and for the peak: else the peak is off by the block
/// for as long as the next epoch lasts.
#[test]
fn a_clear_in_the_middle_of_an_event() {
    trap("peak::a_clear_in_the_middle_of_an_event", || {
        let rounds = if cfg!(debug_assertions) { 2_000 } else { 4_000 };
        for (plan, interval) in PLANS {
            heapgauge::set_sample_interval(interval).unwrap();
            let (stop, looks, quiet) = (AtomicBool::new(false), AtomicBool::new(false), Mutex::new(()));
            let check = |number: usize| {
                looks.store(true, Ordering::Relaxed);
                let _quiet = quiet.lock().unwrap_or_else(PoisonError::into_inner);
                looks.store(false, Ordering::Relaxed);
                heapgauge::reset_peak();
                let TracedMemory { current, peak } = traced_memory();
                assert!(peak <= current + SLACK, "{plan}, {number}: peak {peak}, live {current}");
                free(made(Old::Traced, 64 * MIB), 64 * MIB);
                let (expected, peak) = (current + 64 * MIB as u64, traced_memory().peak);
                assert!(peak.abs_diff(expected) <= SLACK, "{plan}, {number}: peak {peak}, not {expected}");
            };
            std::thread::scope(|scope| {
                let _end = SetAtEnd(&stop);
                scope.spawn(|| churn(&stop, &looks, &quiet));
                for number in 0..rounds {
                    (0..number % 97 * 10).for_each(|at| _ = black_box(at));
                    heapgauge::clear_traces();
                    check(number);
                }
            });
        }
        say(format_args!("{rounds} clears"));
    });
}
