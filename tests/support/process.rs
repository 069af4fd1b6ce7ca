//! Tests in processes of their own: the test program starts itself again, with one test.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Set in a process that was started for one test.
pub const OWN_PROCESS: &str = "TEST_OF_ITS_OWN_PROCESS";

/// Runs the rest of a test in a process of its own: the counts of a heap are those of a whole process.
///
/// Returns from the calling test in the first process, where it fails unless the other process passes.
#[allow(unused_macros, reason = "not each test program uses it")]
macro_rules! own_process {
    () => {
        fn this_test() {}
        let path = std::any::type_name_of_val(&this_test);
        if !$crate::process::is_own($crate::process::name_of_test(path)) {
            return;
        }
    };
}

/// Returns the name that the test harness uses, from the path of a function inside the test.
#[allow(dead_code, reason = "not each test program uses it")]
pub fn name_of_test(path: &str) -> &str {
    path.split_once("::").and_then(|(_crate, path)| path.rsplit_once("::")).unwrap().0
}

/// Returns whether this process was started for one test. Starts one for this test if it was not, and waits for it.
#[allow(dead_code, reason = "not each test program uses it")]
#[track_caller]
pub fn is_own(name: &str) -> bool {
    if is_started_for_one_test() {
        wait_for_harness();
        return true;
    }
    let _turn = turn();
    let output = run_alone(name, &[], Duration::from_secs(600));
    assert!(output.contains("1 passed"), "{name} was not run\n{output}");
    false
}

pub fn is_started_for_one_test() -> bool {
    std::env::var_os(OWN_PROCESS).is_some()
}

/// Waits until the test harness does nothing but wait for the test: its main thread still allocates when the test begins.
#[allow(dead_code, reason = "not each test program uses it")]
pub fn wait_for_harness() {
    let stat = format!("/proc/self/task/{}/stat", std::process::id());
    // The state follows the name in parentheses; `S` is an interruptible sleep.
    let is_harness = std::thread::current().name() == Some("main");
    let is_waiting = || is_harness || std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") S "));
    let begun = Instant::now();
    while cfg!(target_os = "linux") && !is_waiting() && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Returns the name of the C compiler for the processor that the tests run on.
#[allow(dead_code, reason = "not each test program uses it")]
pub fn c_compiler() -> std::ffi::OsString {
    std::env::var_os("CC").unwrap_or("cc".into())
}

/// Waits for the other tests of this program that take turns.
#[allow(dead_code, reason = "not each test program uses it")]
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs one test in a process of its own, and returns its output. Fails if the process fails or takes longer than
/// `patience`.
#[track_caller]
pub fn run_alone(name: &str, arguments: &[&str], patience: Duration) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .args(arguments)
        .env(OWN_PROCESS, "1")
        .env("RUST_BACKTRACE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (output, errors) = (read(child.stdout.take().unwrap()), read(child.stderr.take().unwrap()));
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > patience {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{name} hangs: no end after {patience:?}\n{}", output.join().unwrap());
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let (output, errors) = (output.join().unwrap(), errors.join().unwrap());
    let last: String = errors.chars().skip(errors.chars().count().saturating_sub(6_000)).collect();
    assert!(status.success(), "{name}: {status}\n{output}\n{last}");
    output
}

/// Reads a pipe to its end, beside the other one.
fn read(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        pipe.read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    })
}
