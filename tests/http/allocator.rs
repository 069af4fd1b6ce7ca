//! Tests `/debug/heap/allocator.json` and `/debug/heap/trim` over real connections, with a program whose use of memory is
//! known.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::client::{Answer, ask, ask_unchunked};
use serde_json::Value;

const MIB: i64 = 1 << 20;
/// Blocks that are allocated and never touched, and those that are touched as a whole.
const UNTOUCHED: usize = 16 << 20;
const LARGE: usize = 8 << 20;

#[track_caller]
fn document(answer: &Answer) -> Value {
    let kind = answer.header("content-type");
    assert_eq!((answer.status, kind), (200, Some("application/json")), "{}", answer.text());
    serde_json::from_str(answer.text()).unwrap()
}

/// Returns a reading for which `is_it` holds, or the last one after two minutes. While heapgauge reads names, its own blocks
/// come and go between two figures.
fn reading(addr: SocketAddr, is_it: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        // The next one is due at once then.
        heapgauge::trim();
        let reading = document(&ask_unchunked(addr, "GET", "/debug/heap/allocator.json"));
        if is_it(&reading["parts"]) || begun.elapsed() > Duration::from_secs(120) {
            return reading;
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// Allocates blocks of many sizes and fills them; every third one is freed.
#[inline(never)]
fn fill(seed: usize) -> Vec<Vec<u8>> {
    let block = |number: usize| vec![1; 1 + (number * 7_919 + seed * 977) % 3_000];
    let blocks: Vec<Vec<u8>> = (0..9_000).map(block).collect();
    blocks
        .into_iter()
        .enumerate()
        .filter(|(number, _)| !number.is_multiple_of(3))
        .map(|(_, block)| block)
        .collect()
}

#[test]
fn parts_add_up_in_a_program_that_touches_what_it_allocates() {
    own_process!();
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    let threads: Vec<_> = (0..4).map(|seed| std::thread::spawn(move || fill(seed))).collect();
    let held: Vec<Vec<Vec<u8>>> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let (large, untouched) = (vec![1_u8; LARGE], Vec::<u8>::with_capacity(UNTOUCHED));

    let live = (LARGE + UNTOUCHED + (30 << 20)) as i64;
    // Blocks that threads keep for themselves, and no more: no C library allocates here.
    let foreign = |parts: &Value| MIB + parts["threads"].as_i64().unwrap() * MIB / 4;
    let is_settled = |parts: &Value| {
        let of = |name: &str| parts[name].as_i64().unwrap_or(i64::MAX);
        of("live") >= live && of("foreign") <= foreign(parts)
    };
    let reading = reading(addr, is_settled);
    assert_eq!((&reading["allocator"], is_settled(&reading["parts"])), (&"glibc".into(), true), "{reading}");
    let part = |name: &str| reading["parts"][name].as_i64().unwrap_or_else(|| panic!("{name} in {reading}"));
    let named: i64 = [
        "live",
        "untracked",
        "overhead",
        "internal_fragmentation",
        "allocator_free_resident",
        "foreign",
        "thread_stack",
        "unaccounted",
    ]
    .into_iter()
    .map(part)
    .sum();
    assert_eq!(named - part("live_untouched"), part("anonymous"));
    assert_eq!(part("anonymous") + part("file") + part("shared"), part("resident"));
    let tolerated = (part("anonymous") * 3 / 100).max(4 * MIB + part("threads") * MIB / 4);
    assert!(part("unaccounted").abs() <= tolerated, "{tolerated} in {reading}");
    // The first page has the allocator's header.
    let missing = UNTOUCHED as i64 - part("live_untouched");
    assert!((0..=64 << 10).contains(&missing), "{missing} in {reading}");
    let arenas = reading["arenas"].as_array().unwrap();
    assert!(arenas.iter().all(|arena| arena["in_use"].as_u64() <= arena["size"].as_u64()), "{reading}");
    let kinds: Vec<&Value> = reading["mappings"].as_array().unwrap().iter().map(|row| &row["kind"]).collect();
    assert!(
        ["heap", "stack", "file"].iter().all(|kind| kinds.iter().any(|found| **found == **kind)),
        "{kinds:?}"
    );

    let text = ask(addr, "GET", "/memory/snapshots", "");
    let last = text.text().lines().last().unwrap();
    assert!(last.starts_with("# resident: ") && last.contains(" live touched + "), "{last}");
    drop((held, large, untouched));
}

/// Frees 40 MB in blocks below the size from which on they are mappings, with blocks between them that it returns.
#[inline(never)]
fn free_between() -> Vec<Vec<u8>> {
    let block = |number: usize| vec![1_u8; if number.is_multiple_of(2) { 64 } else { 20_000 }];
    let blocks: Vec<Vec<u8>> = (0..4_000).map(block).collect();
    blocks.into_iter().filter(|block| block.len() == 64).collect()
}

#[test]
fn free_memory_goes_back_on_request() {
    own_process!();
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    // When heapgauge gives back the memory that names took, these blocks may go with it.
    let went = (0..20).map(|_| {
        let kept = free_between();
        let answer = document(&ask(addr, "POST", "/debug/heap/trim", ""));
        drop(kept);
        answer["returned"].as_u64().unwrap()
    });
    // Whole pages of the 40 MB go back; 20,000 bytes have three at least.
    let went: Vec<u64> = went.collect();
    assert!(went.iter().any(|bytes| (24 << 20..60 << 20).contains(bytes)), "{went:?}");

    for (method, path, status, line) in [
        ("GET", "/debug/heap/trim", 405, "method GET is not allowed on /debug/heap/trim, allowed are POST"),
        ("POST", "/debug/heap/trim?x=1", 400, "parameter x is unknown"),
        ("GET", "/debug/heap/allocator.json?x=1", 400, "parameter x is unknown"),
        ("POST", "/debug/heap/allocator.json", 405, "method POST is not allowed"),
    ] {
        let answer = ask(addr, method, path, "");
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(answer.text().starts_with(line), "{}", answer.text());
    }
}
