//! Tests a library that contains heapgauge and is closed before its threads end and the process forks.

use std::ffi::{CString, c_void};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Barrier;

/// Set in the process that loads the library.
const LOADS: &str = "UNLOADED_LIBRARY";

/// Builds the library: `cargo test --test …` builds no examples.
fn library() -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--locked", "--example", "unloaded_library"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    // With the features of this test, so that nothing is built twice.
    if cfg!(all(feature = "opentelemetry", feature = "prometheus-client")) {
        cargo.arg("--all-features");
    }
    assert!(cargo.status().unwrap().success());
    // This test is in target/<profile>/deps.
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().with_file_name("examples").join("libunloaded_library.so")
}

fn load(library: &CString) -> (*mut c_void, extern "C" fn() -> u64) {
    // SAFETY: a library whose initialisation may run on any thread; the function has this type.
    unsafe {
        let handle = libc::dlopen(library.as_ptr(), libc::RTLD_NOW);
        assert!(!handle.is_null(), "dlopen");
        let function = libc::dlsym(handle, c"live_bytes".as_ptr());
        assert!(!function.is_null(), "dlsym");
        (handle, std::mem::transmute::<*mut c_void, extern "C" fn() -> u64>(function))
    }
}

/// Loads, uses and closes the library. Then its registered functions are called.
fn use_and_close(library: &CString) {
    let (handle, live_bytes) = load(library);
    assert!(live_bytes() >= 1_000);
    let (used, closed) = (Barrier::new(5), Barrier::new(5));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                assert!(live_bytes() >= 1_000);
                used.wait();
                closed.wait();
            });
        }
        used.wait();
        // SAFETY: nothing of the library runs; what it has left with the C library is its own affair.
        assert_eq!(unsafe { libc::dlclose(handle) }, 0);
        closed.wait();
    });
    // SAFETY: the child ends at once.
    unsafe {
        let process = libc::fork();
        if process == 0 {
            libc::_exit(0);
        }
        let mut status = 0;
        assert_eq!((libc::waitpid(process, &raw mut status, 0), status), (process, 0));
    }
}

#[test]
fn a_closed_library_is_not_called_where_it_was() {
    if let Some(library) = std::env::var_os(LOADS) {
        let library = CString::new(library.into_encoded_bytes()).unwrap();
        for _ in 0..3 {
            use_and_close(&library);
        }
        println!("came to its end");
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "unloaded_library::a_closed_library_is_not_called_where_it_was",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(LOADS, library())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("came to its end"), "{output:?}");
}
