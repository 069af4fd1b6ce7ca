//! Tests contents and counts of blocks of every layout, by direct calls of the allocator.

use crate::inner::Refuse;
use crate::{ALLOC, nothing_is_lost, of_function, say, trap};
use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;

#[inline(never)]
unsafe fn get(layout: Layout) -> *mut u8 {
    // SAFETY: the tracker allows any layout.
    black_box(unsafe { ALLOC.alloc(layout) })
}
const GET: &str = "traps::sizes::get";

#[inline(never)]
unsafe fn get_zeroed(layout: Layout) -> *mut u8 {
    // SAFETY: as above.
    black_box(unsafe { ALLOC.alloc_zeroed(layout) })
}
const GET_ZEROED: &str = "traps::sizes::get_zeroed";

#[inline(never)]
unsafe fn resize(block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
    // SAFETY: the caller's.
    black_box(unsafe { ALLOC.realloc(block, layout, size) })
}
const RESIZE: &str = "traps::sizes::resize";

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

/// Fills a block with contents that no other block has.
fn fill(block: *mut u8, from: usize, to: usize) {
    for at in from..to {
        // SAFETY: the callers pass the block's own size.
        unsafe { block.add(at).write(((block.addr() >> 4) + at * 7) as u8) };
    }
}

/// Returns whether the first `size` bytes are those that were filled in at `home`.
fn holds(block: *mut u8, home: usize, size: usize) -> bool {
    // SAFETY: as above.
    (0..size).all(|at| unsafe { block.add(at).read() } == ((home >> 4) + at * 7) as u8)
}

/// Sizes around each border: the tag's place at 1 KiB, pages, the system's own mappings.
const SIZES: [usize; 22] = [
    0, 1, 2, 3, 4, 7, 8, 15, 16, 63, 1019, 1020, 1021, 1023, 1024, 1025, 4092, 4096, 70_000, 131_072,
    200_001, 3_000_000,
];

#[test]
fn alignments_up_to_a_mebibyte() {
    trap("sizes::alignments_up_to_a_mebibyte", || {
        let mut blocks = Vec::with_capacity(1000);
        let mut bytes = 0;
        for power in 0..=20 {
            for size in SIZES {
                for zeroed in [false, true] {
                    let layout = layout(size, 1 << power);
                    // SAFETY: freed below with this layout.
                    let block = unsafe { if zeroed { get_zeroed(layout) } else { get(layout) } };
                    assert!(!block.is_null() && block.addr().is_multiple_of(layout.align()), "{layout:?}");
                    if zeroed {
                        // SAFETY: that long, and initialised if the promise is kept.
                        assert!((0..size).all(|at| unsafe { block.add(at).read() } == 0), "{layout:?}");
                    }
                    fill(block, 0, size);
                    bytes += size as u64;
                    blocks.push((block, layout));
                }
            }
        }
        let count = blocks.len() as u64;
        assert_eq!(of_function(GET), (bytes / 2, count / 2));
        assert_eq!(of_function(GET_ZEROED), (bytes / 2, count / 2));
        for (block, layout) in blocks.drain(..) {
            assert!(holds(block, block.addr(), layout.size()), "{layout:?}");
            // SAFETY: made above with this layout.
            unsafe { ALLOC.dealloc(block, layout) };
        }
        assert_eq!((of_function(GET), of_function(GET_ZEROED)), ((0, 0), (0, 0)));
        nothing_is_lost();
        say(format_args!("{count} blocks of {} sizes and 21 alignments", SIZES.len()));
    });
}

#[test]
fn case_10_blocks_of_no_bytes() {
    trap("sizes::case_10_blocks_of_no_bytes", || {
        let blocks: Vec<_> = (0..1_000)
            .map(|number| {
                let layout = layout(0, 1 << (number % 13));
                // SAFETY: freed below with this layout.
                (unsafe { get(layout) }, layout)
            })
            .collect();
        assert_eq!(of_function(GET), (0, 1_000));
        let mut grown = Vec::new();
        for (block, old) in blocks {
            // SAFETY: made with this layout; from nothing to something and back.
            unsafe {
                let block = resize(block, old, 5);
                fill(block, 0, 5);
                assert!(block.addr().is_multiple_of(old.align()) && holds(block, block.addr(), 5));
                grown.push((resize(block, layout(5, old.align()), 0), old));
            }
        }
        assert_eq!((of_function(GET), of_function(RESIZE)), ((0, 0), (0, 1_000)));
        // SAFETY: of no bytes again.
        grown.drain(..).for_each(|(block, layout)| unsafe { ALLOC.dealloc(block, layout) });
        assert_eq!(of_function(RESIZE), (0, 0));
        nothing_is_lost();
        say(format_args!("1000 blocks of no bytes"));
    });
}

/// Resizes from each size to each other, with each alignment: contents and count remain, the bytes are the new ones.
#[test]
fn case_37_realloc_in_every_direction() {
    trap("sizes::case_37_realloc_in_every_direction", || {
        let mut times = 0;
        for power in [0, 3, 4, 6, 12, 13, 20] {
            let align = 1 << power;
            for from in SIZES {
                for to in SIZES {
                    // SAFETY: each block with the layout it has.
                    unsafe {
                        let first = get(layout(from, align));
                        fill(first, 0, from);
                        let home = first.addr();
                        let second = resize(first, layout(from, align), to);
                        assert!(!second.is_null() && second.addr().is_multiple_of(align));
                        assert!(holds(second, home, from.min(to)), "{from} → {to}, aligned {align}");
                        fill(second, 0, to);
                        if times % 50 == 0 {
                            assert_eq!((of_function(GET), of_function(RESIZE)), ((0, 0), (to as u64, 1)));
                        }
                        let home = second.addr();
                        let third = resize(second, layout(to, align), from);
                        assert!(holds(third, home, from.min(to)), "{to} → {from}, aligned {align}");
                        ALLOC.dealloc(third, layout(from, align));
                    }
                    times += 2;
                }
            }
        }
        assert_eq!((of_function(GET), of_function(RESIZE)), ((0, 0), (0, 0)));
        nothing_is_lost();
        say(format_args!("{times} reallocations"));
    });
}

/// A failed request returns null, and changes neither the counts nor the old block.
#[test]
fn case_37_sizes_up_to_failure() {
    trap("sizes::case_37_sizes_up_to_failure", || {
        const MOST: usize = isize::MAX as usize;
        let mut failures = 0;
        // SAFETY: as above throughout.
        unsafe {
            let kept = layout(777, 8);
            let block = get(kept);
            fill(block, 0, 777);
            for power in 0..=30 {
                let align = 1usize << power;
                for below in [0, 1, 3, 4, 5, 4096] {
                    let size = (MOST - (align - 1)).saturating_sub(below);
                    let huge = layout(size, align);
                    assert!(get(huge).is_null() && get_zeroed(huge).is_null(), "{huge:?}");
                    failures += 2;
                }
            }
            for size in [MOST - 7, MOST - 11, MOST / 2, MOST, usize::MAX] {
                assert!(resize(block, kept, size).is_null(), "{size}");
                failures += 1;
            }
            // From megabytes up to the first size that is refused.
            let mut size = 1 << 20;
            loop {
                let layout = layout(size, 16);
                let large = get(layout);
                if large.is_null() {
                    break;
                }
                assert_eq!(of_function(GET), (777 + size as u64, 2));
                ALLOC.dealloc(large, layout);
                size *= 2;
            }
            assert!(size >= 1 << 26);
            // Refused by the inner allocator, where the system would not refuse.
            let refuse = Refuse::sizes(0, usize::MAX);
            for size in [0, 1, 777, 1 << 10, 1 << 20] {
                let refused = [get(layout(size, 8)), get_zeroed(layout(size, 8)), resize(block, kept, size)];
                assert_eq!(refused, [std::ptr::null_mut(); 3]);
                failures += 3;
            }
            drop(refuse);
            assert!(Refuse::times() >= 15);
            assert!(holds(block, block.addr(), 777));
            assert_eq!(
                (of_function(GET), of_function(GET_ZEROED), of_function(RESIZE)),
                ((777, 1), (0, 0), (0, 0))
            );
            ALLOC.dealloc(block, kept);
        }
        // The program gets an error, and continues.
        assert!(Vec::<u8>::new().try_reserve(MOST).is_err());
        assert_eq!(of_function(GET), (0, 0));
        nothing_is_lost();
        say(format_args!("{failures} requests that fail"));
    });
}
