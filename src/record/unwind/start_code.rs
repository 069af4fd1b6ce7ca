//! Address → whether it is of the code of the C library that starts `main` or a thread, where a stack ends.
//!
//! Most C libraries have unwind rules there, which say that it ends. musl has none for its own code.

/// Bytes of such code on either side of a function of it: more than musl has there, and less than separates it from code
/// that could be the program's and has no rules.
#[cfg(target_env = "musl")]
const NEAR: usize = 4096;

/// Returns whether an address that has no unwind rule is of that code.
#[cfg(target_env = "musl")]
pub(super) fn contains(address: usize) -> bool {
    unsafe extern "C" {
        fn __libc_start_main();
    }
    let functions = [__libc_start_main as *const () as usize, libc::pthread_create as *const () as usize];
    functions.iter().any(|function| address.abs_diff(*function) < NEAR)
}

/// Returns whether an address that has no unwind rule is of that code.
#[cfg(not(target_env = "musl"))]
pub(super) fn contains(_address: usize) -> bool {
    false
}
