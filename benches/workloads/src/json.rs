//! Parses 100 kB of JSON into values and drops them: the worst case of a real program. Each key and string is a block, each
//! object and array several.

use std::fmt::Write;
use std::hint::black_box;
use std::sync::Barrier;
use std::time::Duration;

use serde_json::Value;

use crate::timing::{Measured, Numbers, measure};
use crate::turns::Turns;

pub fn run(threads: usize, time: Duration, turns: &Turns) -> Value {
    let document = document();
    let mut report = if threads == 1 {
        measure(time, turns, || parse(&document)).report(1)
    } else {
        let ready = Barrier::new(threads);
        let all: Vec<Measured> = std::thread::scope(|scope| {
            let running: Vec<_> = (0..threads)
                .map(|_| {
                    scope.spawn(|| {
                        ready.wait();
                        measure(time, turns, || parse(&document))
                    })
                })
                .collect();
            running.into_iter().map(|thread| thread.join().expect("a workload's thread")).collect()
        });
        Measured {
            calls: all.iter().map(|m| m.calls).sum(),
            elapsed: all.iter().map(|m| m.elapsed).sum(),
            checksum: all[0].checksum,
        }
        .report(1)
    };
    report["document_bytes"] = document.len().into();
    report
}

fn parse(document: &str) -> u64 {
    let value: Value = serde_json::from_str(black_box(document)).expect("the generated document is JSON");
    let checksum = nodes(&value);
    drop(black_box(value));
    checksum
}

fn nodes(value: &Value) -> u64 {
    match value {
        Value::Array(values) => 1 + values.iter().map(nodes).sum::<u64>(),
        Value::Object(map) => 1 + map.values().map(nodes).sum::<u64>(),
        _ => 1,
    }
}

/// Generates about 100 kB: orders of a shop, with short strings, small objects and small arrays.
fn document() -> String {
    let mut numbers = Numbers::new(1);
    let mut text = String::from("[");
    while text.len() < 100_000 {
        if text.len() > 1 {
            text.push(',');
        }
        let id = numbers.below(1_000_000);
        write!(
            text,
            r#"{{"id":"o{id}","customer":{{"name":"c{}","mail":"m{}@example.org","city":"t{}"}},"open":{},"items":["#,
            numbers.below(9_000),
            numbers.below(9_000),
            numbers.below(90),
            numbers.below(2) == 0,
        )
        .expect("a String takes everything");
        for item in 0..1 + numbers.below(4) {
            let comma = if item == 0 { "" } else { "," };
            write!(
                text,
                r#"{comma}{{"sku":"s{}","count":{},"price":{}.{:02},"tags":["a{}","b{}"]}}"#,
                numbers.below(50_000),
                1 + numbers.below(9),
                numbers.below(400),
                numbers.below(100),
                numbers.below(30),
                numbers.below(30),
            )
            .expect("a String takes everything");
        }
        text.push_str("]}");
    }
    text.push(']');
    text
}
