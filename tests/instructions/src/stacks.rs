//! Calls work on many different stacks of a known depth.

use std::hint::black_box;

/// A function that calls the work below `levels` more calls, which two bits each of `path` select.
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

/// Defines four functions with different return addresses. The numbers differ, or the compiler would merge them, and no call
/// is in tail position.
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
