//! Tests the first `/metrics` of a process that hardly gets any processor time: the leak has its name, and the
//! gauge says how much waits for one.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::mem::forget;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::client;

/// Processes that use a processor, ended when this is dropped; and by themselves where that does not come to pass.
struct Busy(Vec<Child>);

impl Busy {
    fn start(count: usize) -> Busy {
        let start = || {
            let mut shell = Command::new("sh");
            shell.args(["-c", "ulimit -t 60; while :; do :; done"]).stdin(Stdio::null());
            // A pipe of the test would stay open as long as they live.
            shell.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        };
        Busy((0..count).map(|_| start()).collect())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Puts this process and those that it starts from now on on one processor.
fn stay_on_one_processor() {
    // SAFETY: a set of processors on this stack; it is zero, which is an empty one.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        assert_eq!(libc::sched_getaffinity(0, size_of_val(&set), &raw mut set), 0);
        let first = (0..libc::CPU_SETSIZE as usize).find(|cpu| libc::CPU_ISSET(*cpu, &set)).unwrap();
        libc::CPU_ZERO(&mut set);
        libc::CPU_SET(first, &mut set);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &raw const set), 0);
    }
}

/// Leaves the processor to others, as far as the kernel lets this thread and those that it starts.
fn be_nice() {
    // SAFETY: no memory is involved.
    assert_eq!(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 5) }, 0);
}

/// Allocates blocks on as many different stacks: a path through two functions for each bit of the number.
#[inline(never)]
fn below(number: u32, depth: u32) {
    match depth {
        0 => forget(black_box(Box::new([number; 4]))),
        _ if number & 1 == 0 => below(number >> 1, depth - 1),
        _ => beside(number >> 1, depth - 1),
    }
    black_box(());
}

#[inline(never)]
fn beside(number: u32, depth: u32) {
    below(number, depth);
    black_box(());
}

#[test]
fn the_first_answer_of_a_starved_process_names_the_leak_and_says_what_waits() {
    own_process!();
    for number in 0..1_024 {
        below(number, 10);
    }
    forget(black_box(vec![1_u8; 40 << 20]));
    let leak = line!() - 1;
    let place = format!("file=\"tests/http/starved.rs\",line=\"{leak}\"");
    stay_on_one_processor();
    let _busy = Busy::start(2);
    be_nice();
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let begun = Instant::now();
    let mut answers = 0;
    loop {
        let answer = client::ask(server.local_addr(), "GET", "/metrics", "");
        let text = answer.text();
        let series: BTreeMap<&str, f64> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.rsplit_once(' ').unwrap())
            .map(|(series, value)| (series, value.parse().unwrap()))
            .collect();
        let is_live = |series: &str| series.starts_with("heap_site_live_bytes{");
        let named: f64 = series.iter().filter(|(name, _)| is_live(name)).map(|(_, bytes)| bytes).sum();
        let pending = series["heap_unnamed_bytes{state=\"pending\"}"];
        answers += 1;
        println!("{answers}: {named} bytes at sites, {pending} pending, {:?}", begun.elapsed());
        assert!(text.contains(&place), "answer {answers} has no line of the leak\n{text}");
        assert!(named >= f64::from(40 << 20), "{named}");
        assert!(named + pending <= series["heap_live_bytes"], "{text}");
        // The others wait at first, which the gauge says.
        assert!(answers > 1 || pending > 0.0, "all was named at once: the process was not starved");
        if pending == 0.0 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "{pending} bytes wait for their names");
        std::thread::sleep(Duration::from_secs(1));
    }
}
