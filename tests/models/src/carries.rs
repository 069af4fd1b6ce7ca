//! Models of counts in half words, whose carries go to the next word.

use crate::base::atomics::jump;
use crate::models::{FIRST, ID, Model, begin, orders_from};
use crate::record::count::counters::Direction::{Allocated, Freed};
use crate::record::count::counters::{Chunk, Direction};
use crate::state::*;
use loom::thread;

pub(crate) const ALL_OF_THEM: [(&str, Model); 6] = [
    ("bytes carry at 2^31", || carries((HALF - 40, 5), &SMALL)),
    ("bytes carry at 2^32", || carries((2 * HALF - 40, 5), &SMALL)),
    ("blocks carry at 2^31", || carries((100, HALF - 1), &SMALL)),
    ("blocks carry at 2^32", || carries((100, 2 * HALF - 1), &SMALL)),
    ("both carry at each block", || carries((HALF - 1, HALF - 1), &LARGE)),
    ("bytes carry twice before one that fits", || carries((HALF - 1, 1), &TWICE)),
];

/// Changes of bit 31.
const HALF: u64 = 1 << 31;

/// Brings a count from nothing to so many bytes and blocks, below 2^32: the bytes and whatever changes bit 31 by blocks
/// of `most` bytes, the other blocks by a jump.
fn count_up_to((bytes, blocks): Sum, most: u64, count: impl Fn(usize)) {
    let (mut left, mut counted) = (bytes, 0);
    let jump_from = |counted: u64, to: u64| {
        assert!(counted <= to && (counted ^ to) & HALF == 0);
        if counted < to {
            jump(counted << 32 | bytes, to << 32 | bytes);
        }
    };
    while left > 0 {
        let size = left.min(most);
        count(size as usize);
        (left, counted) = (left - size, counted + 1);
    }
    if blocks >= HALF {
        jump_from(counted, HALF - 1);
        count(0);
        counted = HALF;
    }
    jump_from(counted, blocks);
}

type Events = [(Direction, u64); 3];
const SMALL: Events = [(Allocated, 48), (Freed, 48), (Allocated, 16)];
const LARGE: Events = [(Allocated, HALF - 1), (Freed, HALF - 1), (Allocated, HALF - 1)];
const TWICE: Events = [(Allocated, HALF - 1), (Allocated, HALF - 1), (Allocated, 1)];

/// Returns a count before these events and after each of its own.
fn steps(start: Sum, events: &Events, direction: Direction) -> Vec<Sum> {
    let sizes = events.iter().filter(|event| event.0 == direction).map(|event| event.1);
    let add = |sum: &mut Sum, size| {
        *sum = (sum.0 + size, sum.1 + 1);
        Some(*sum)
    };
    std::iter::once(start).chain(sizes.scan(start, add)).collect()
}

/// Reads what was freed and what was allocated, twice: each a value that the count has had, none less than one before,
/// and never more freed than allocated.
fn look_twice(start: Sum, events: &Events, read: impl Fn(Direction) -> Sum) {
    let mut last = Counts::default();
    for _ in 0..2 {
        let mut counts = Counts::default();
        for direction in [Freed, Allocated] {
            let (sum, steps) = (read(direction), steps(start, events, direction));
            assert!(steps.contains(&sum), "{sum:?} of {steps:?}");
            counts.add(direction, sum);
        }
        assert!(last.freed <= counts.freed && last.allocated <= counts.allocated, "{last:?} {counts:?}");
        never_negative(counts);
        last = counts;
    }
}

/// Reads the counts when all threads have ended.
fn look_at_last(start: Sum, events: &Events, read: impl Fn(Direction) -> Sum) {
    for direction in [Freed, Allocated] {
        assert_eq!(Some(&read(direction)), steps(start, events, direction).last());
    }
}

/// Reads in a thread while an owner allocates and frees.
fn carries(start: Sum, events: &'static Events) -> String {
    let prepare = move || {
        begin();
        for direction in [Allocated, Freed] {
            count_up_to(start, HALF - 1, |size| count(&FIRST, ID, direction, size));
        }
    };
    orders_from(prepare, move || {
        let owner = thread::spawn(move || {
            for (direction, size) in events {
                count(&FIRST, ID, *direction, *size as usize);
            }
        });
        let chunk = FIRST.counters.chunk(0).unwrap();
        let read = |direction| chunk.read(ID as usize, direction);
        let reader = thread::spawn(move || look_twice(start, events, read));
        owner.join().unwrap();
        reader.join().unwrap();
        look_at_last(start, events, read);
    })
}
