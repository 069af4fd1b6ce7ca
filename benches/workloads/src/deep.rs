//! Measures allocations on stacks of a known shape: the cost of a frame, and of a new stack.

use std::hint::black_box;
use std::time::Duration;

use serde_json::Value;

use crate::timing::measure;
use crate::turns::Turns;

/// Number of boxes allocated and freed on one descent, so that the descent itself has no weight.
const TURNS: u64 = 1_000;

/// Sixty functions, each calling the next: every frame has a return address of its own, as in a real program
/// (plain recursion would repeat one). They are not inlined, and no call is in tail position. The
/// numbers differ, or the compiler would merge them.
macro_rules! chain {
    ($($name:ident $number:literal $next:ident,)*) => {$(
        #[inline(never)]
        fn $name(left: u32) -> u64 {
            let below = if left == 0 { leaf() } else { $next(left - 1) };
            black_box(below) + black_box($number) - $number
        }
    )*};
}

chain! {
    f1 1 f2, f2 2 f3, f3 3 f4, f4 4 f5, f5 5 f6, f6 6 f7, f7 7 f8, f8 8 f9, f9 9 f10, f10 10 f11,
    f11 11 f12, f12 12 f13, f13 13 f14, f14 14 f15, f15 15 f16, f16 16 f17, f17 17 f18, f18 18 f19,
    f19 19 f20, f20 20 f21, f21 21 f22, f22 22 f23, f23 23 f24, f24 24 f25, f25 25 f26, f26 26 f27,
    f27 27 f28, f28 28 f29, f29 29 f30, f30 30 f31, f31 31 f32, f32 32 f33, f33 33 f34, f34 34 f35,
    f35 35 f36, f36 36 f37, f37 37 f38, f38 38 f39, f39 39 f40, f40 40 f41, f41 41 f42, f42 42 f43,
    f43 43 f44, f44 44 f45, f45 45 f46, f46 46 f47, f47 47 f48, f48 48 f49, f49 49 f50, f50 50 f51,
    f51 51 f52, f52 52 f53, f53 53 f54, f54 54 f55, f55 55 f56, f56 56 f57, f57 57 f58, f58 58 f59,
    f59 59 f60, f60 60 bottom,
}

#[inline(never)]
fn bottom(_: u32) -> u64 {
    leaf()
}

#[inline(always)]
fn leaf() -> u64 {
    let mut sum = 0;
    for turn in 0..TURNS {
        let block = black_box(Box::new([turn; 8]));
        sum += block[(turn % 8) as usize];
    }
    sum
}

/// Allocates below `frames` functions. Returns `None` if there are not so many.
pub fn deep(frames: u32, time: Duration, turns: &Turns) -> Option<Value> {
    let left = frames.checked_sub(1).filter(|left| *left < 60)?;
    Some(measure(time, turns, || f1(black_box(left))).report(TURNS))
}

/// Nodes of one repetition of [`branch`]: each has a stack of its own.
const STACKS: u32 = 20_000;

/// Builds and drops a tree by a recursion that calls itself at three places, ten deep, up to 20,000 nodes: each node is a `Box`
/// with a stack that no other node of this repetition has.
pub fn branch(time: Duration, turns: &Turns) -> Value {
    let mut report = measure(time, turns, || {
        let mut left = STACKS;
        let tree = black_box(build(10, &mut left));
        tree.map_or(0, |root| u64::from(root.nodes))
    })
    .report(u64::from(STACKS));
    report["stacks"] = STACKS.into();
    report
}

struct Node {
    nodes: u32,
    _below: [Option<Box<Node>>; 3],
}

#[inline(never)]
fn build(depth: u32, left: &mut u32) -> Option<Box<Node>> {
    if depth == 0 || *left == 0 {
        return None;
    }
    *left -= 1;
    let below = [build(depth - 1, left), build(depth - 1, left), build(depth - 1, left)];
    let nodes = 1 + below.iter().flatten().map(|node| node.nodes).sum::<u32>();
    Some(Box::new(Node { nodes, _below: below }))
}

/// One block for each stack.
pub type Blocks = Vec<Box<[u64; 2]>>;

/// Makes `count` live stacks of exactly `frames` return addresses up to and including the caller's, each with
/// one block, and pushes the blocks. Room in `blocks` must be there already.
///
/// # Panics
///
/// If the caller's own stack leaves no room for enough branches.
pub fn grow(count: usize, frames: usize, blocks: &mut Blocks) {
    let depth = frames.checked_sub(addresses() + 1).expect("a shallower stack");
    assert!(8_usize.pow(depth as u32) >= count, "{depth} frames are too few for {count} stacks");
    let full = blocks.len() + count;
    assert!(blocks.capacity() >= full, "room for the blocks");
    fan(depth, full, blocks);
    assert_eq!(blocks.len(), full);
}

/// Recurses at eight call sites, so that few frames make many stacks.
#[inline(never)]
fn fan(depth: usize, full: usize, blocks: &mut Blocks) -> usize {
    if blocks.len() == full {
        return 0;
    }
    if depth == 0 {
        blocks.push(black_box(Box::new([1; 2])));
        return 1;
    }
    let mut sum = black_box(fan(depth - 1, full, blocks));
    sum += black_box(fan(depth - 1, full, blocks));
    sum += black_box(fan(depth - 1, full, blocks));
    sum += black_box(fan(depth - 1, full, blocks));
    sum += black_box(fan(depth - 1, full, blocks));
    sum += black_box(fan(depth - 1, full, blocks));
    sum += black_box(fan(depth - 1, full, blocks));
    sum + black_box(fan(depth - 1, full, blocks))
}

/// Counts the return addresses of the caller's stack, by the C library's own walk.
#[inline(never)]
pub fn addresses() -> usize {
    let mut room = [std::ptr::null_mut(); 256];
    // SAFETY: the array has 256 places, as told.
    let found = unsafe { libc::backtrace(room.as_mut_ptr(), 256) };
    // The first is in this function.
    black_box(found as usize - 1)
}
