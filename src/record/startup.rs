//! Preparations before `main`: all that may read files, take the loader's lock or allocate in the C library.
//!
//! One function in `.init_array`; where there is none, the same happens at the first call of the
//! read side, and until then stacks are walked by the platform's unwinder.

use crate::base::atomics::{AtomicBool, Ordering};
use crate::record::count::sampling;
#[cfg(unix)]
use crate::record::count::unsampled;
#[cfg(unix)]
use crate::record::epoch;
#[cfg(unix)]
use crate::record::failure;
#[cfg(unix)]
use crate::record::fork::{self, mutex};
use crate::record::fork::{Once, mutex::ForkMutex};
#[cfg(unix)]
use crate::record::scope::pass;
#[cfg(unix)]
use crate::record::scope::table as scopes;
use crate::record::stack_id::table;
use crate::record::thread::{self, Suspension};
use crate::record::unwind;
#[cfg(unix)]
use crate::record::watermark;
use std::hash::{BuildHasher, RandomState};
use std::time::SystemTime;

/// Acquire and Release: a thread that sees it set sees what was prepared.
static DONE: AtomicBool = AtomicBool::new(false);

/// Set once, before `DONE`.
static BEGAN: Once<SystemTime> = Once::new();

/// Returns the time of the first preparation; now, where that is still to come.
pub(crate) fn began_at() -> SystemTime {
    BEGAN.get().copied().unwrap_or_else(SystemTime::now)
}

/// Prepares everything, once.
pub(crate) fn ensure() {
    if !DONE.load(Ordering::Acquire) {
        prepare_slow();
    }
}

/// Prepares everything unless another thread has, under a lock.
#[cold]
fn prepare_slow() {
    // Not `Once`: a child that was forked in between would wait for ever.
    static ALONE: ForkMutex<()> = ForkMutex::new(());
    let _alone = ALONE.lock();
    if DONE.load(Ordering::Acquire) {
        return;
    }
    BEGAN.get_or_make(SystemTime::now);
    thread::prepare();
    unwind::prepare();
    let _internal = Suspension::new(thread::INTERNAL);
    // `RandomState` takes its keys from the system's random numbers.
    sampling::reseed(RandomState::new().hash_one(0));
    table::prepare();
    thread::process_barrier::prepare();
    at_fork();
    pin();
    DONE.store(true, Ordering::Release);
}

/// Registers the fork handlers, once.
#[cfg(unix)]
fn at_fork() {
    // A child that was forked before `DONE` was set comes here again, with its parent's handlers.
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    if REGISTERED.swap(true, Ordering::Relaxed) {
        return;
    }
    // Prepare handlers run in the reverse order of registration: this one, registered before `main`, runs after those
    // of the program, which may allocate. It runs before those of an inner allocator, which has been asked for memory
    // by now: that may hold its locks from there on, and threads inside the fork lock may need them.
    // SAFETY: three functions that live as long as the process.
    unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork), Some(in_child)) };
}

#[cfg(not(unix))]
fn at_fork() {}

/// Keeps the module that holds this code mapped: a library may be closed, but the destructor of threads' states and
/// the handlers of forks are called for as long as the process lives, and threads of heapgauge's may run.
#[cfg(all(
    any(target_os = "linux", target_vendor = "apple", target_os = "freebsd"),
    not(target_feature = "crt-static")
))]
fn pin() {
    // SAFETY: a record of addresses, for which zero is a value.
    let mut module: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: an address, which is looked up and not followed, and a place for the answer.
    let known = unsafe { libc::dladdr((pin as *const ()).cast(), &raw mut module) } != 0;
    if !known || module.dli_fname.is_null() {
        return;
    }
    // The program itself is never closed; its name would be looked for in all directories of libraries.
    #[cfg(target_os = "linux")]
    // SAFETY: a plain query. The program headers lie in the first page of what they describe.
    if unsafe { libc::getauxval(libc::AT_PHDR) as usize }.wrapping_sub(module.dli_fbase.addr()) < 4096 {
        return;
    }
    // SAFETY: the loader's own name of a module that is loaded, which is not loaded again. Its handle is never
    // closed.
    unsafe { libc::dlopen(module.dli_fname, libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE) };
}

#[cfg(not(all(
    any(target_os = "linux", target_vendor = "apple", target_os = "freebsd"),
    not(target_feature = "crt-static")
)))]
fn pin() {}

/// Closes the fork lock, before the process is copied.
#[cfg(unix)]
unsafe extern "C" fn before_fork() {
    fork::close();
}

/// Opens the fork lock, in the parent.
#[cfg(unix)]
unsafe extern "C" fn after_fork() {
    fork::open();
}

/// Makes the tables those of the one thread that the child has, and opens the fork lock.
#[cfg(unix)]
unsafe extern "C" fn in_child() {
    mutex::begin_process();
    // The thread that waits and prepares is not in this process.
    watermark::remove();
    failure::forget();
    fork::closed_in_child::close_in_child();
    fork::forget_other_threads();
    thread::forget_other_threads();
    epoch::forget_moves();
    scopes::forget_readings();
    pass::forget_pass();
    // A thread may have been about to, which is not in this process.
    unsampled::revoke_all();
    fork::open();
}

// Miri has none of what is asked for there.
#[cfg(all(any(target_os = "linux", target_os = "android", target_os = "freebsd"), not(miri)))]
#[used]
#[unsafe(link_section = ".init_array")]
// SAFETY of the section: the loader calls each entry once, with arguments that this ignores.
static BEFORE_MAIN: extern "C" fn() = {
    extern "C" fn before_main() {
        ensure();
    }
    before_main
};
