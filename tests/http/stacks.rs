//! Makes a heap of many stacks.

use std::hint::black_box;

/// Allocates one block on each of the stacks that `turns` left or right calls make.
#[allow(clippy::vec_box, reason = "each box is a block of its own")]
pub fn blocks_on_many_stacks(turns: u32) -> Vec<Box<u64>> {
    let mut kept = Vec::with_capacity(1 << turns);
    (0..1 << turns).for_each(|path| descend(path, turns, &mut kept));
    kept
}

// The code behind each call differs, so that the compiler makes neither one function nor a jump of them.

#[inline(never)]
#[allow(clippy::vec_box, reason = "each box is a block of its own")]
fn left(path: u32, depth: u32, kept: &mut Vec<Box<u64>>) {
    descend(path, depth, kept);
    black_box(&kept);
}

#[inline(never)]
#[allow(clippy::vec_box, reason = "each box is a block of its own")]
fn right(path: u32, depth: u32, kept: &mut Vec<Box<u64>>) {
    black_box(&kept);
    descend(path, depth, kept);
    black_box(&kept);
}

#[inline(never)]
#[allow(clippy::vec_box, reason = "each box is a block of its own")]
fn descend(path: u32, depth: u32, kept: &mut Vec<Box<u64>>) {
    match depth {
        0 => kept.push(Box::new(7)),
        _ if path & 1 == 0 => left(path >> 1, depth - 1, kept),
        _ => right(path >> 1, depth - 1, kept),
    }
    black_box(&kept);
}
