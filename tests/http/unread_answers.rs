//! Tests that heapgauge's memory stays limited when clients request large answers and do not read them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::client::{self, Answer};
use crate::stacks::blocks_on_many_stacks;

const TURNS: u32 = 11;
const CLIENTS: usize = 30;
const LARGE: &str = "/memory/snapshots?group_by=traceback&top=10000&format=json";

/// Runs the program under test: holds blocks of many stacks, and serves until its stdin ends.
fn main_of_the_child(limit: u64) {
    heapgauge::set_max_overhead(limit).unwrap();
    let kept = blocks_on_many_stacks(TURNS);
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    println!("\nlistening on {}", server.local_addr());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    assert_eq!(kept.len(), 1 << TURNS);
}

/// Sends a request, and reads nothing of the answer.
fn ask(addr: SocketAddr, path: &str) -> TcpStream {
    let mut stream = client::connect(addr);
    let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

fn read(addr: SocketAddr, path: &str) -> Answer {
    client::ask(addr, "GET", path, "")
}

/// Returns bytes from `/proc/PID/status`.
fn status(child: &Child, key: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn own_memory(addr: SocketAddr) -> u64 {
    let metrics = read(addr, "/metrics");
    let line = metrics.text().lines().find_map(|line| line.strip_prefix("heap_overhead_bytes ")).unwrap();
    line.parse().unwrap()
}

/// Starts this test again as the program under test. Returns it with its address.
fn start(test: &str, limit: u64) -> (Child, SocketAddr) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("unread_answers::{test}"), "--nocapture"])
        .env("UNREAD_ANSWERS_CHILD", limit.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let addr = loop {
        let mut line = String::new();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the program has ended");
        if let Some(addr) = line.strip_prefix("listening on ") {
            break addr.trim().parse().unwrap();
        }
    };
    // It goes on writing.
    child.stdout = Some(output.into_inner());
    (child, addr)
}

/// Ends the program under test.
fn end(mut child: Child) {
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

/// At a limit that tables and names leave less of than large answers may have together.
#[test]
fn clients_that_do_not_read_leave_the_limit_alone() {
    const LIMIT: u64 = 16 << 20;
    if let Ok(limit) = std::env::var("UNREAD_ANSWERS_CHILD") {
        return main_of_the_child(limit.parse().unwrap());
    }
    let (child, addr) = start("clients_that_do_not_read_leave_the_limit_alone", LIMIT);
    assert_eq!(read(addr, LARGE).status, 200, "with the names");
    let (mut unread, mut refused) = (Vec::new(), 0);
    for _ in 0..CLIENTS {
        let mut stream = ask(addr, LARGE);
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        match &head[9..] {
            b"200" => unread.push(stream),
            b"503" => refused += 1,
            status => panic!("{status:?}"),
        }
        let own = own_memory(addr);
        assert!(own <= LIMIT, "{own} bytes with {} clients, {refused} refused", unread.len());
    }
    assert!((1..CLIENTS).contains(&refused), "{refused} refused");
    drop(unread);
    end(child);
}

#[test]
fn clients_that_do_not_read_do_not_fill_the_memory() {
    if let Ok(limit) = std::env::var("UNREAD_ANSWERS_CHILD") {
        return main_of_the_child(limit.parse().unwrap());
    }
    let (child, addr) = start("clients_that_do_not_read_do_not_fill_the_memory", 64 << 20);
    // One answer is read first, so that names and the memory for one answer are in the figures before.
    let whole = read(addr, LARGE);
    assert_eq!(whole.status, 200);
    let whole = whole.head.len() + whole.body.len();
    assert!(whole > 4 << 20, "{whole}");
    let (one, own) = (status(&child, "VmHWM"), own_memory(addr));
    let mut unread = Vec::new();
    let mut refused = 0;
    for _ in 0..CLIENTS {
        let mut stream = ask(addr, LARGE);
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        if head.ends_with(b"503") {
            let mut rest = String::new();
            stream.read_to_string(&mut rest).unwrap();
            assert!(rest.contains("\r\nretry-after: 10\r\n"), "{rest}");
            assert!(rest.ends_with("(HEAPGAUGE_MAX_OVERHEAD), try again in 10 seconds\n"), "{rest}");
            refused += 1;
        } else {
            assert!(head.ends_with(b"200"), "{head:?}");
            unread.push(stream);
        }
    }
    let (peak, own_now) = (status(&child, "VmHWM"), own_memory(addr));
    let all = (whole * CLIENTS) as u64;
    let limit = 64 << 20;
    assert!(all > 2 * limit, "{all} bytes would not show it");
    assert!(peak - one < limit, "{one} bytes with one answer became {peak}");
    assert!(own_now.saturating_sub(own) < limit, "{own} bytes of heapgauge's own became {own_now}");
    assert!(refused > 0 && !unread.is_empty());
    // Small answers are served meanwhile, and large ones after the other clients are gone.
    assert_eq!(read(addr, "/debug/heap/summary.json").status, 200);
    drop(unread);
    let again = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        read(addr, LARGE).status == 200
    });
    assert!(again);
    end(child);
}
