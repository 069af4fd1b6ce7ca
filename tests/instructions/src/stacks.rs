//! Stacks of a known depth, as many different ones as wanted.

use std::hint::black_box;

/// Work to be done, how many functions are to be called before, and which ones: two bits each.
type Level = fn(&mut dyn FnMut(), u32, u64) -> u64;

/// Does the work under `levels` calls of a function by another.
pub fn under(levels: u32, path: u64, work: &mut dyn FnMut()) {
    black_box(next(work, levels, path));
}

#[inline(always)]
fn next(work: &mut dyn FnMut(), levels: u32, path: u64) -> u64 {
    let Some(left) = levels.checked_sub(1) else {
        work();
        return 0;
    };
    black_box(LEVELS)[path as usize % LEVELS.len()](work, left, path >> 2)
}

/// Four, each with a return address of its own: the numbers keep the compiler from making one function of them, and no
/// call is the last thing its function does.
static LEVELS: &[Level; 4] = &[first, second, third, fourth];

macro_rules! levels {
    ($($name:ident $number:literal,)*) => {$(
        #[inline(never)]
        fn $name(work: &mut dyn FnMut(), levels: u32, path: u64) -> u64 {
            black_box(next(work, levels, path)) + black_box($number)
        }
    )*};
}

levels! { first 1, second 2, third 3, fourth 4, }
