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

/// The program under test: holds blocks of many stacks, and serves until its stdin ends.
fn main_of_the_child() {
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

#[test]
fn clients_that_do_not_read_do_not_fill_the_memory() {
    if std::env::var_os("UNREAD_ANSWERS_CHILD").is_some() {
        return main_of_the_child();
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "unread_answers::clients_that_do_not_read_do_not_fill_the_memory", "--nocapture"])
        .env("UNREAD_ANSWERS_CHILD", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let addr = loop {
        let line = lines.next().unwrap().unwrap();
        if let Some(addr) = line.strip_prefix("listening on ") {
            break addr.parse().unwrap();
        }
    };
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
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}
