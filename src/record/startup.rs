//! Before `main`: what may read files, take the loader's lock or allocate in the C library.
//!
//! One function in `.init_array`; where there is none, the same happens at the first call of the
//! read side, and until then stacks are walked by the platform's unwinder.

use crate::record::count::sampling;
use crate::record::count::unsampled;
use crate::record::fork;
use crate::record::stack_id::table;
use crate::record::thread::{self, Silence};
use crate::record::unwind;
use std::hash::{BuildHasher, RandomState};
use std::sync::Once;

static DONE: Once = Once::new();

/// Gets everything ready, once.
pub(crate) fn ensure() {
    DONE.call_once(|| {
        thread::prepare();
        unwind::prepare();
        let _own = Silence::new(thread::OWN);
        // Of the system's random numbers, as every map of the standard library takes them.
        sampling::scatter(RandomState::new().hash_one(0));
        table::prepare();
        at_fork();
    });
}

#[cfg(unix)]
fn at_fork() {
    // Prepare handlers run in the reverse order of registration: this one, registered before `main`,
    // runs after those of the program, which may allocate.
    // SAFETY: three functions that live as long as the process.
    unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork), Some(in_child)) };
}

#[cfg(not(unix))]
fn at_fork() {}

#[cfg(unix)]
unsafe extern "C" fn before_fork() {
    let is_inside = thread::current().is_some_and(|state| state.quiet() & thread::INTERNING != 0);
    fork::close(usize::from(is_inside));
}

#[cfg(unix)]
unsafe extern "C" fn after_fork() {
    fork::open();
}

#[cfg(unix)]
unsafe extern "C" fn in_child() {
    thread::forget_other_threads();
    // A thread may have been about to, which is not in this process.
    unsampled::recall_all();
    fork::open();
}

// Miri has none of what is asked for there.
#[cfg(all(any(target_os = "linux", target_os = "android", target_os = "freebsd"), not(miri)))]
#[used]
#[unsafe(link_section = ".init_array")]
// SAFETY of the section: the loader calls what stands in it once, with arguments that this ignores.
static BEFORE_MAIN: extern "C" fn() = {
    extern "C" fn before_main() {
        ensure();
    }
    before_main
};
