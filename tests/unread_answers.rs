//! Clients that ask for large answers and do not read them: heapgauge's memory has a limit all the same.
#![cfg(feature = "http")]

use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

const TURNS: u32 = 11;
const CLIENTS: usize = 30;
const LARGE: &str = "/memory/snapshots?group_by=traceback&top=10000&format=json";

#[inline(never)]
fn left(path: u32, depth: u32, kept: &mut Vec<Box<u64>>) {
    descend(path, depth, kept);
    black_box(());
}

#[inline(never)]
fn right(path: u32, depth: u32, kept: &mut Vec<Box<u64>>) {
    descend(path, depth, kept);
    black_box(());
}

/// One block for each of the ways that `depth` turns make.
#[inline(never)]
fn descend(path: u32, depth: u32, kept: &mut Vec<Box<u64>>) {
    match depth {
        0 => kept.push(Box::new(7)),
        _ if path & 1 == 0 => left(path >> 1, depth - 1, kept),
        _ => right(path >> 1, depth - 1, kept),
    }
}

/// The program: holds blocks of many stacks, and serves until its stdin ends.
fn main_of_the_child() {
    let mut kept = Vec::with_capacity(1 << TURNS);
    (0..1 << TURNS).for_each(|path| descend(path, TURNS, &mut kept));
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    println!("\nlistening on {}", server.local_addr());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    assert_eq!(kept.len(), 1 << TURNS);
}

fn ask(addr: SocketAddr, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

fn read(addr: SocketAddr, path: &str) -> String {
    let mut answer = String::new();
    ask(addr, path).read_to_string(&mut answer).unwrap();
    answer
}

/// Bytes, from the system's account of the process.
fn status(child: &Child, key: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn own_memory(addr: SocketAddr) -> u64 {
    let metrics = read(addr, "/metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix("heap_overhead_bytes ")).unwrap();
    line.parse().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn clients_that_do_not_read_do_not_fill_the_memory() {
    if std::env::var_os("UNREAD_ANSWERS_CHILD").is_some() {
        return main_of_the_child();
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "clients_that_do_not_read_do_not_fill_the_memory", "--nocapture"])
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
    // Once read, so that names, and what it takes to make one answer, are part of what there is before.
    let whole = read(addr, LARGE);
    assert!(whole.starts_with("HTTP/1.1 200 ") && whole.len() > 4 << 20, "{}", whole.len());
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
            assert!(rest.ends_with("hold 16 MiB of memory, try again in 10 seconds\n"), "{rest}");
            refused += 1;
        } else {
            assert!(head.ends_with(b"200"), "{head:?}");
            unread.push(stream);
        }
    }
    let (peak, own_now) = (status(&child, "VmHWM"), own_memory(addr));
    let all = (whole.len() * CLIENTS) as u64;
    let limit = 64 << 20;
    assert!(all > 2 * limit, "{all} bytes would not show it");
    assert!(peak - one < limit, "{one} bytes with one answer became {peak}");
    assert!(own_now.saturating_sub(own) < limit, "{own} bytes of heapgauge's own became {own_now}");
    assert!(refused > 0 && !unread.is_empty());
    // Small answers are given meanwhile, and large ones when the others are gone.
    assert!(read(addr, "/debug/heap/summary.json").starts_with("HTTP/1.1 200 "));
    drop(unread);
    let again = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        read(addr, LARGE).starts_with("HTTP/1.1 200 ")
    });
    assert!(again);
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}
