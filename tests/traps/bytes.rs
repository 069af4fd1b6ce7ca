//! Measures the bytes of a stack, of a stack in one more thread and of an idle thread, by the tracker's own figure.

use crate::{say, trap};
use heapgauge::{Snapshot, tracker_memory};
use std::fmt::{self, Display};
use std::hint::black_box;
use std::sync::Barrier;

/// Calls from one of 32 sites through code of the standard library: a program's calls lie far apart, too.
struct Levels {
    /// The site of each level, five bits each, the first in the lowest ones.
    path: usize,
    left: usize,
}

/// Distinct stacks of each depth: of three levels, there are more.
const STACKS: usize = 20_000;

macro_rules! sites {
    ($f:ident, $level:ident, $next:ident, $($site:literal)*) => {
        match $level.path & 31 {
            $($site => {
                fmt::write($f, format_args!("{}", $next))?;
                // Equal code would be merged.
                black_box::<u8>($site);
            })*
            other => panic!("{other} has more than five bits"),
        }
    };
}

impl Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(left) = self.left.checked_sub(1) else {
            return kept(f);
        };
        let next = Levels { path: self.path >> 5, left };
        sites!(f, self, next, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31);
        black_box(Ok(()))
    }
}

/// Allocates a block that stays.
#[inline(never)]
fn kept(_: &mut fmt::Formatter<'_>) -> fmt::Result {
    std::mem::forget(black_box(Box::new([1_u64; 2])));
    Ok(())
}

/// Text that nothing is written to.
struct Nothing;

impl fmt::Write for Nothing {
    fn write_str(&mut self, _: &str) -> fmt::Result {
        Ok(())
    }
}

/// Allocates a block on each of the stacks of so many levels.
#[inline(never)]
fn grow(levels: usize) {
    for path in 0..STACKS {
        fmt::write(&mut Nothing, format_args!("{}", Levels { path, left: levels })).unwrap();
    }
}

/// Work of a thread, and the points at which it waits.
struct Work {
    run: fn(),
    done: Barrier,
    all_done: Barrier,
}

/// Runs the work in a thread that has hardly any frames of its own.
extern "C" fn body(work: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: `grown_by` passes its work, and joins the thread before that ends.
    let work = unsafe { &*work.cast::<Work>() };
    (work.run)();
    work.done.wait();
    work.all_done.wait();
    std::ptr::null_mut()
}

/// Runs a function in so many threads, and returns the bytes that the tables have grown by until all have run it and wait.
fn grown_by(threads: usize, run: fn()) -> u64 {
    let mut work = Work { run, done: Barrier::new(threads + 1), all_done: Barrier::new(threads + 1) };
    let argument = (&raw mut work).cast::<libc::c_void>();
    let before = tracker_memory();
    let begin = |_| {
        let mut thread: libc::pthread_t = 0;
        // SAFETY: room for the thread's id, no attributes, and a body that takes the argument.
        assert_eq!(unsafe { libc::pthread_create(&raw mut thread, std::ptr::null(), body, argument) }, 0);
        thread
    };
    let threads: Vec<libc::pthread_t> = (0..threads).map(begin).collect();
    work.done.wait();
    let after = tracker_memory();
    work.all_done.wait();
    for thread in threads {
        // SAFETY: a thread made above, joined once.
        assert_eq!(unsafe { libc::pthread_join(thread, std::ptr::null_mut()) }, 0);
    }
    after - before
}

/// Returns the number of frames of the deepest stack of [`kept`], from there on.
fn frames() -> usize {
    let snapshot = Snapshot::take().unwrap();
    let own = |name: &str| name == "traps::bytes::kept";
    let kept = snapshot.traces().iter().filter(|trace| own(&trace.traceback.most_recent().name()));
    kept.map(|trace| trace.traceback.frames().len()).max().unwrap_or(0)
}

/// Levels of the two kinds of stacks. Two frames each, and those of [`kept`], of [`grow`] and of the thread.
const SHORT: usize = 3;
const LONG: usize = 12;

/// Grows the short stacks, by one function for all threads: else each would have stacks of its own.
fn short() {
    grow(SHORT);
}

fn long() {
    grow(LONG);
}

#[test]
fn a_stack_takes_few_bytes() {
    trap("bytes::a_stack_takes_few_bytes", || {
        heapgauge::set_max_overhead(512 << 20).unwrap();
        heapgauge::stop();
        heapgauge::start(64).unwrap();
        let idle = grown_by(64, || drop(black_box(Box::new(1_u64)))) / 64;
        let short_bytes = grown_by(1, short) / STACKS as u64;
        // One of them takes over the tables of the thread before.
        let more = grown_by(4, short) / (3 * STACKS as u64);
        let short_frames = frames();
        let long_bytes = grown_by(1, long) / STACKS as u64;
        let long_frames = frames();
        say(format_args!(
            "bytes: {short_bytes} a stack of {short_frames} frames, {long_bytes} of {long_frames}, {more} in one more thread; {idle} an idle thread"
        ));
        assert!(
            short_frames >= 16 && short_bytes <= 200,
            "{short_bytes} bytes a stack of {short_frames} frames"
        );
        assert!(idle <= 8 << 10, "{idle} bytes an idle thread");
        // Counters of 18 bytes, and an entry of the stack cache of 17 to 21.
        assert!(more <= 40, "{more} bytes for a stack in one more thread");
        assert!(long_frames >= 40 && long_bytes <= 350, "{long_bytes} bytes a stack of {long_frames} frames");
    });
}
