//! The longest wait of an allocation beside the statistics of 4 GiB in 64 arenas, for a machine with nothing else to do:
//! `cargo test --manifest-path tests/allocators/Cargo.toml --bench waits`.

#[path = "../support/client.rs"]
mod client;

use client::ask;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

fn main() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_glibc"))
        .args(["latency", "64", "64", "45"])
        .env("MALLOC_ARENA_MAX", "65")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let addr: SocketAddr = lines.next().unwrap().strip_prefix("listening on ").unwrap().parse().unwrap();
    assert_eq!(lines.next().unwrap(), "filled");
    let mut longest = 0;
    for (second, line) in lines.enumerate() {
        let (waits, micros) = line.split_once(' ').unwrap();
        longest = longest.max(micros.parse::<u64>().unwrap());
        print!("second {second}: {waits} allocations waited, at most {micros} µs");
        let answer = if second % 10 == 5 {
            ask(addr, "GET", "/debug/heap/allocator.json", "").body
        } else {
            Vec::new()
        };
        if let Ok(json) = serde_json::from_slice::<serde_json::Value>(&answer) {
            print!(
                "; {}, {} arenas, {}",
                json["state"],
                json["arenas"].as_array().unwrap().len(),
                json["calls"]
            );
        }
        println!();
    }
    assert!(child.wait().unwrap().success());
    assert!(longest <= 5_000, "an allocation waited for {longest} µs");
}
