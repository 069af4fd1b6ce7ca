//! Two processes that measure → one at a time, many times in turn.
//!
//! A machine that others use too is slower now and faster then, for seconds; what two processes measure one after the
//! other differs by that. Where they take turns of some milliseconds, it is the same for both.
//!
//! A process begins with the turn. It gives it up by the line [`OVER`] on standard output, and has it again with a line
//! on standard input.

use std::io;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a process says when its turn is over; the harness, which has none of our dependencies, writes it down too.
const OVER: &str = "over";

/// The turns of one process, all of whose measuring threads take them together.
pub struct Turns {
    threads: Barrier,
    /// There is another process.
    is_taken: bool,
    is_last: AtomicBool,
}

impl Turns {
    pub fn new(threads: usize, is_taken: bool) -> Turns {
        Turns { threads: Barrier::new(threads), is_taken, is_last: AtomicBool::new(false) }
    }

    /// Gives up the turn and waits for the next one. False: there is none, because a thread needs no more.
    ///
    /// # Panics
    ///
    /// If nobody is there to give it back.
    pub fn next(&self, is_needed: bool) -> bool {
        if !is_needed {
            // Relaxed: the barrier orders it before the load.
            self.is_last.store(true, Ordering::Relaxed);
        }
        let is_leader = self.threads.wait().is_leader();
        if self.is_last.load(Ordering::Relaxed) {
            return false;
        }
        if is_leader && self.is_taken {
            println!("{OVER}");
            let read = io::stdin().read_line(&mut String::new());
            assert!(read.is_ok_and(|bytes| bytes > 0), "nobody gives the turn back");
        }
        self.threads.wait();
        true
    }
}
