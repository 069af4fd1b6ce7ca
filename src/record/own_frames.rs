//! Allocations on purpose → the return addresses between the program and heapgauge. They serve binaries without
//! symbols, where nothing else tells heapgauge's functions and the standard library's from the program's.
//!
//! The compiler decides which of those functions are there, so they are found by asking: [`own_allocation_stacks`] allocates in all
//! the ways a program does, as heapgauge's own, and the walk of each is kept up to the function that asked.

use crate::base::atomics::{AtomicUsize, Ordering};
use crate::record::thread::{self, BUSY, INTERNAL, Suspension, ThreadState};
use crate::record::unwind::{self, Registers};
use std::alloc::Layout;
use std::collections::{HashMap, VecDeque};
use std::hint::black_box;

/// Address of the state of the thread that samples; 0: none does. Relaxed, as all here: only that thread reads its
/// own writes, and any other one only compares.
static SAMPLING: AtomicUsize = AtomicUsize::new(0);

/// First addresses of each stack, with a 0 behind them.
static FOUND: [AtomicUsize; 4096] = [const { AtomicUsize::new(0) }; 4096];
static LEN: AtomicUsize = AtomicUsize::new(0);

/// Addresses kept of a stack: in a debug build the standard library has a dozen functions of its own there.
const DEPTH: usize = 24;

/// Keeps the stack of an allocation in a thread marked [`INTERNAL`], if it is one of [`own_allocation_stacks`]. The thread is not
/// busy.
#[inline]
pub(crate) fn note(state: &'static ThreadState, registers: &Registers) {
    if SAMPLING.load(Ordering::Relaxed) == std::ptr::from_ref(state).addr() {
        note_slow(state, registers);
    }
}

/// Walks the stack and stores its first addresses in [`FOUND`].
#[cold]
#[inline(never)]
fn note_slow(state: &'static ThreadState, registers: &Registers) {
    let len = LEN.load(Ordering::Relaxed);
    if state.flags() & (BUSY | INTERNAL) != INTERNAL || len + DEPTH >= FOUND.len() {
        return;
    }
    let _busy = state.enter(BUSY);
    // SAFETY: this thread's own state, just marked.
    let owner = unsafe { state.owner() };
    unwind::walk(owner, *registers, None);
    let addresses = &owner.buffer.addresses[..usize::from(owner.buffer.header.len).min(DEPTH)];
    debug_assert!(addresses.len() <= DEPTH && len + addresses.len() < FOUND.len());
    for (place, address) in FOUND[len..].iter().zip(addresses.iter().chain(&[0])) {
        place.store(*address, Ordering::Relaxed);
    }
    LEN.store(len + addresses.len() + 1, Ordering::Relaxed);
}

/// Allocates in all the ways that a program does, and returns the stacks of that, most recent address first, each with the
/// addresses inside [`allocate`] and above it; and the start address of `allocate`. One thread at a time.
pub(crate) fn own_allocation_stacks() -> (Vec<Vec<usize>>, usize) {
    let _internal = Suspension::new(INTERNAL);
    let Some(state) = thread::current_or_make() else { return (Vec::new(), 0) };
    LEN.store(0, Ordering::Relaxed);
    SAMPLING.store(std::ptr::from_ref(state).addr(), Ordering::Relaxed);
    allocate();
    SAMPLING.store(0, Ordering::Relaxed);
    let len = LEN.load(Ordering::Relaxed);
    let found: Vec<usize> = FOUND[..len].iter().map(|place| place.load(Ordering::Relaxed)).collect();
    let stacks = found.split(|address| *address == 0).filter(|stack| !stack.is_empty());
    (stacks.map(<[usize]>::to_vec).collect(), allocate as fn() as usize)
}

/// Allocates in each of the ways that compiled code has: sizes, alignments and entries of the allocator, and the
/// standard library's functions that are not compiled anew in each crate.
#[inline(never)]
fn allocate() {
    for (size, align) in [(8, 8), (100, 4), (2000, 8), (300_000, 8), (64, 64), (5000, 4096)] {
        let Ok(layout) = Layout::from_size_align(black_box(size), black_box(align)) else { continue };
        // SAFETY: the size is not zero; each block is freed once with the layout it has.
        unsafe {
            let block = std::alloc::alloc(layout);
            if !block.is_null() {
                let new_size = layout.size() * 2;
                let moved = std::alloc::realloc(block, layout, black_box(new_size));
                match moved.is_null() {
                    true => std::alloc::dealloc(block, layout),
                    false => std::alloc::dealloc(moved, Layout::from_size_align_unchecked(new_size, align)),
                }
            }
            let zeroed = std::alloc::alloc_zeroed(layout);
            if !zeroed.is_null() {
                std::alloc::dealloc(zeroed, layout);
            }
        }
    }
    let mut bytes: Vec<u8> = Vec::new();
    let mut words: Vec<u64> = Vec::with_capacity(black_box(1));
    let mut queue: VecDeque<u8> = VecDeque::new();
    let mut text = String::new();
    for number in 0..black_box(100u8) {
        bytes.push(number);
        words.push(u64::from(number));
        queue.push_back(number);
        text.push(char::from(number));
    }
    bytes.extend_from_slice(black_box(&[7; 1000]));
    bytes.reserve_exact(black_box(5000));
    text.push_str(black_box("text"));
    text.push_str(&format!("{number} {words:?}", number = black_box(7)));
    let map: HashMap<u64, u64> = words.iter().map(|word| (*word, *word)).collect();
    black_box((
        bytes.clone(),
        bytes,
        vec![0u8; black_box(3000)],
        words,
        queue,
        text.to_uppercase(),
        text,
        map,
    ));
}
