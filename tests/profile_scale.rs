//! Tests time and memory of encoding a profile of 131,072 stacks, and that the profile does not contain its own
//! allocations.
#![cfg(feature = "pprof")]

#[path = "support/counting.rs"]
mod counting;

use counting::{Counting, LIVE, PEAK, busy};
use heapgauge::{Profile, ProfileValue};
use std::hint::black_box;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator<Counting> = heapgauge::TrackingAllocator::new(Counting);

/// Without optimisation everything takes some ten times as long, so there are fewer stacks.
const DEPTH: u32 = if cfg!(debug_assertions) { 14 } else { 17 };

/// Allocates a block on each of the 2^depth paths through a tree of calls.
#[inline(never)]
fn left(depth: u32, kept: &mut Vec<Box<[u8]>>) {
    if depth == 0 {
        kept.push(Box::from([7; 8]));
        return;
    }
    left(depth - 1, kept);
    black_box(&kept);
    right(depth - 1, kept);
    black_box(&kept);
}

/// Repeats [`left`] under another name, so that each path has a folded stack of its own.
#[inline(never)]
fn right(depth: u32, kept: &mut Vec<Box<[u8]>>) {
    if depth == 0 {
        kept.push(Box::from([7; 8]));
        return;
    }
    black_box(&kept);
    left(depth - 1, kept);
    black_box(&kept);
    right(depth - 1, kept);
    black_box(&kept);
}

/// Returns the result of `make`, its processor time, and the peak of its live bytes.
fn measured<T>(what: &str, make: impl FnOnce() -> T) -> (T, Duration, usize) {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let begin = busy();
    let made = make();
    let (time, peak) = (busy() - begin, PEAK.load(Relaxed) - before);
    // The harness keeps what is printed.
    let _paused = heapgauge::pause();
    println!("{what}: {time:?}, at most {:.1} MB", peak as f64 / 1e6);
    (made, time, peak)
}

/// Reads an answer in parts. Returns its number of bytes. The client of `support/` would keep the whole answer, whose memory
/// is measured here.
#[cfg(feature = "http")]
fn read(addr: std::net::SocketAddr, path: &str) -> usize {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(addr).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n").unwrap();
    let mut buffer = [0; 8192];
    let mut bytes = stream.read(&mut buffer).unwrap();
    assert!(buffer.starts_with(b"HTTP/1.0 200 "));
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => return bytes,
            more => bytes += more,
        }
    }
}

#[test]
fn a_hundred_thousand_stacks() {
    // Names have a share of the default limit, tables what it and this test's own texts leave.
    heapgauge::set_max_overhead(1 << 30).unwrap();
    let _collector = heapgauge::Collector::new();
    let stacks = 1 << DEPTH;
    let mut kept = Vec::with_capacity(stacks);
    left(DEPTH, &mut kept);
    let before = heapgauge::traced_memory();

    let (profile, taken, _) = measured("take and name", || Profile::take().unwrap());
    let (pprof, encoded, held) = measured("pprof", || profile.to_pprof(ProfileValue::LiveBytes));
    let (folded, written, _) = measured("folded", || profile.to_folded(ProfileValue::LiveBytes));
    // The harness keeps what is printed.
    let _paused = heapgauge::pause();
    println!("{stacks} stacks: {} bytes of pprof, {} of folded stacks", pprof.len(), folded.len());

    assert_eq!(heapgauge::traced_memory().current, before.current);
    let sum: u64 = folded.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum();
    assert_eq!(sum, before.current);
    let ways = folded.lines().filter(|line| line.contains("profile_scale::left;")).count();
    assert_eq!(ways, stacks);
    assert!(taken + encoded + written < Duration::from_secs(6), "{taken:?} {encoded:?} {written:?}");
    assert!(held < 20_000_000, "{held} bytes");

    // Over HTTP the text is streamed: it is never complete in memory.
    #[cfg(feature = "http")]
    {
        let server = heapgauge::serve("127.0.0.1:0").unwrap();
        read(server.local_addr(), "/health");
        // The server's thread has a name now, which the standard library keeps.
        let before = heapgauge::traced_memory();
        let (bytes, _, held) =
            measured("folded over HTTP", || read(server.local_addr(), "/debug/heap/folded"));
        assert!(bytes > folded.len(), "{bytes}");
        assert!(held < 60_000_000, "{held} bytes");
        let (bytes, _, held) = measured("pprof over HTTP", || read(server.local_addr(), "/debug/pprof/heap"));
        assert!(bytes > pprof.len() / 2, "{bytes}");
        assert!(held < 60_000_000, "{held} bytes");
        assert_eq!(heapgauge::traced_memory().current, before.current);
    }
    drop(kept);
}
