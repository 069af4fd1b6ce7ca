//! Forks while threads allocate, free, exit and take snapshots.

use crate::at_end::SetAtEnd;
use crate::{nothing_is_lost, of_function, on_path, say, trap};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

type Block = Box<[u64; 4]>;

#[inline(never)]
fn leaf(number: usize) -> Block {
    black_box(Box::new([number as u64; 4]))
}
const LEAF: &str = "traps::fork::leaf";

#[inline(never)]
fn leaf_of_child(number: usize) -> Block {
    black_box(Box::new([number as u64 + 1; 4]))
}
const LEAF_OF_CHILD: &str = "traps::fork::leaf_of_child";

const DEPTH: usize = 14;

/// Allocates on new stacks on this thread and on others, which adopt states of the parent's threads. Returns the number of the
/// failed check.
fn child(round: usize) -> i32 {
    // A child that hangs ends by the signal.
    // SAFETY: no handler is involved.
    unsafe { libc::alarm(100) };
    const EACH: usize = 500;
    let some = move |from: usize| -> Vec<Block> {
        (0..EACH).map(|path| on_path((path + from) * 31, DEPTH, &mut || leaf_of_child(path))).collect()
    };
    let mut kept = vec![some(round)];
    for more in 0..2 {
        let threads: Vec<_> = (0..3).map(|number| thread::spawn(move || some(number * 100 + more))).collect();
        for thread in threads {
            match thread.join() {
                Ok(blocks) => kept.push(blocks),
                Err(_) => return 2,
            }
        }
    }
    let blocks = (7 * EACH) as u64;
    if of_function(LEAF_OF_CHILD) != (32 * blocks, blocks) {
        return 3;
    }
    drop(kept);
    if of_function(LEAF_OF_CHILD) != (0, 0) {
        return 4;
    }
    0
}

#[test]
fn case_43_children_that_allocate_on_new_stacks() {
    trap("fork::case_43_children_that_allocate_on_new_stacks", || {
        // Without optimisation a child takes seconds, beside threads that keep every processor busy.
        const FORKS: usize = if cfg!(debug_assertions) { 6 } else { 25 };
        let kept: Vec<_> = (0..50).map(leaf).collect();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let _end = SetAtEnd(&over);
            for number in 0..3usize {
                let over = &over;
                scope.spawn(move || {
                    let mut path = number << 10;
                    while !over.load(Ordering::Relaxed) {
                        // Short threads create, release and adopt states.
                        let begin = path;
                        let blocks = thread::spawn(move || {
                            let blocks =
                                (begin..begin + 50).map(|path| on_path(path * 77, DEPTH, &mut || leaf(path)));
                            blocks.collect::<Vec<_>>()
                        });
                        drop(on_path(path * 5, DEPTH, &mut || leaf(path)));
                        drop(blocks.join().unwrap());
                        path += 50;
                    }
                });
            }
            for round in 0..FORKS {
                // SAFETY: the child does what this test is about, and then leaves at once.
                let process = unsafe { libc::fork() };
                assert!(process >= 0, "fork");
                if process == 0 {
                    let status = std::panic::catch_unwind(|| child(round)).unwrap_or(9);
                    // SAFETY: ends the child without the parent's exit handlers.
                    unsafe { libc::_exit(status) };
                }
                let mut status = 0;
                // SAFETY: waits for the child just made.
                assert_eq!(unsafe { libc::waitpid(process, &raw mut status, 0) }, process);
                assert_eq!(status, 0, "round {round}: ended by {status:#x}");
            }
        });
        assert_eq!(of_function(LEAF), (32 * 50, 50));
        assert_eq!(of_function(LEAF_OF_CHILD), (0, 0));
        drop(kept);
        assert_eq!(of_function(LEAF), (0, 0));
        nothing_is_lost();
        say(format_args!("{FORKS} forks"));
    });
}
