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

/// Blocks that a thread of the child allocates.
const EACH: usize = 500;

fn blocks_of_child(from: usize) -> Vec<Block> {
    (0..EACH).map(|path| on_path((path + from) * 31, DEPTH, &mut || leaf_of_child(path))).collect()
}

/// Allocates in a thread of the C library's. One of the standard library's would wait for ever where another thread of the
/// parent was beginning or ending: it takes a lock of the handler of stack overflows, which is not released in a child.
extern "C" fn thread_of_child(from: *mut libc::c_void) -> *mut libc::c_void {
    Box::into_raw(Box::new(blocks_of_child(from.addr()))).cast()
}

/// Allocates on new stacks on this thread and on others, which adopt states of the parent's threads. Returns the number of the
/// failed check.
fn child(round: usize) -> i32 {
    // A child that hangs ends by the signal.
    // SAFETY: no handler is involved.
    unsafe { libc::alarm(100) };
    let mut kept = vec![blocks_of_child(round)];
    for more in 0..2 {
        let threads = [0, 1, 2].map(|number| {
            let (mut thread, from) = (0, std::ptr::without_provenance_mut(number * 100 + more));
            // SAFETY: a function that ends, and whose argument is a number.
            let made =
                unsafe { libc::pthread_create(&raw mut thread, std::ptr::null(), thread_of_child, from) };
            (made == 0).then_some(thread)
        });
        for thread in threads {
            let Some(thread) = thread else { return 2 };
            let mut blocks = std::ptr::null_mut();
            // SAFETY: a thread that is joined once; it returns a box of these blocks.
            unsafe {
                if libc::pthread_join(thread, &raw mut blocks) != 0 {
                    return 2;
                }
                kept.push(*Box::from_raw(blocks.cast::<Vec<Block>>()));
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
