//! Lets two measuring processes alternate.
//!
//! The speed of a shared machine varies over seconds, so two processes that run one after the other measure different speeds.
//! Processes that alternate every few milliseconds measure the same.
//!
//! A process starts with the turn. It ends its turn by the line [`OVER`] on standard output, and gets the next by a line on
//! standard input.

use std::io;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

/// The line that a process prints at the end of its turn; the harness repeats it, because it does not depend on this crate.
const OVER: &str = "over";

/// The turns of one process, which all its measuring threads take together.
pub struct Turns {
    threads: Barrier,
    /// Whether there is another process.
    is_taken: bool,
    is_last: AtomicBool,
}

impl Turns {
    pub fn new(threads: usize, is_taken: bool) -> Turns {
        Turns { threads: Barrier::new(threads), is_taken, is_last: AtomicBool::new(false) }
    }

    /// Ends the turn and waits for the next one. Returns false if there is none, because a thread needs no more.
    ///
    /// # Panics
    ///
    /// If the harness is gone.
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
            assert!(read.is_ok_and(|bytes| bytes > 0), "the harness is gone");
        }
        self.threads.wait();
        true
    }
}
