//! A signal that wakes the thread that waits for the [`watermark`].

use crate::base::atomics::{AtomicBool, Ordering};
#[cfg(unix)]
use crate::record::watermark;
use std::io;

/// True after the signal, until it is [taken](take). Relaxed: the wake orders it.
static ASKED: AtomicBool = AtomicBool::new(false);

/// Returns whether the signal has come since the last call.
pub(crate) fn take() -> bool {
    ASKED.swap(false, Ordering::Relaxed)
}

/// Wakes the thread. Two stores and a system call that leaves `errno` as it was: all of it may be done in a signal handler.
#[cfg(unix)]
extern "C" fn on_signal(_number: libc::c_int) {
    ASKED.store(true, Ordering::Relaxed);
    watermark::wake();
}

/// Handles the signal of this number from now on. Fails, and changes nothing, where the program handles or ignores it.
#[cfg(unix)]
pub(crate) fn handle(number: i32) -> io::Result<()> {
    // SAFETY: records of integers and addresses, for which zero is a value; one is read from the kernel, one is handed to
    // it with a function that lives as long as the process and does what a handler may do.
    unsafe {
        let mut before: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(number, std::ptr::null(), &raw mut before) != 0 {
            return Err(io::Error::last_os_error());
        }
        let own = on_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
        if before.sa_sigaction == own {
            return Ok(());
        }
        if before.sa_sigaction != libc::SIG_DFL {
            return Err(io::Error::other("the program handles it already"));
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = own;
        // A system call of the program's goes on after it.
        action.sa_flags = libc::SA_RESTART;
        libc::sigemptyset(&raw mut action.sa_mask);
        if libc::sigaction(number, &raw const action, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(not(unix))]
pub(crate) fn handle(_number: i32) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
