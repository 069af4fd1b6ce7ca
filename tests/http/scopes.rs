//! Tests scopes in every answer over real connections: all of them have the same figures. Each test has a process of its own, because
//! the figures are the process's.

use std::net::SocketAddr;

use crate::client;
use heapgauge::{Filter, GroupBy, Scope, Snapshot};
use serde_json::Value;

/// Returns the body; allocations of the client are untracked.
fn get(addr: SocketAddr, path: &str) -> String {
    let _paused = heapgauge::pause();
    let answer = client::ask_unchunked(addr, "GET", path);
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    answer.text().to_owned()
}

fn document(addr: SocketAddr, path: &str) -> Value {
    let _paused = heapgauge::pause();
    serde_json::from_str(&get(addr, path)).unwrap()
}

#[inline(never)]
fn hold(blocks: usize, bytes: usize) -> Vec<Vec<u8>> {
    let mut held = Vec::with_capacity(blocks);
    for _ in 0..blocks {
        held.push(Vec::with_capacity(bytes));
    }
    held
}

/// Holds blocks of two tenants, nine to one, on one line; those of the first are of two routes, and some are of no scope.
fn hold_of_tenants() -> Vec<Vec<Vec<u8>>> {
    let tenant = |name: &str| Scope::new("tenant", name);
    vec![
        tenant("acme").with("route", "/search").in_scope(|| hold(5, 1_000)),
        tenant("acme").with("route", "/cart").in_scope(|| hold(4, 1_000)),
        tenant("b \"q\"").in_scope(|| hold(1, 1_000)),
        hold(7, 10),
    ]
}

/// Returns bytes and blocks of each tenant: those that `hold` makes, and the list that it fills.
fn of_tenants() -> [(&'static str, u64, u64); 2] {
    let list = size_of::<Vec<u8>>() as u64;
    [("acme", 9_000 + 9 * list, 11), ("b \"q\"", 1_000 + list, 2)]
}

/// Returns bytes and blocks by name, of rows that have these two.
fn by_name(rows: &Value, name: impl Fn(&Value) -> String) -> Vec<(String, u64, u64)> {
    let rows = rows.as_array().unwrap().iter();
    let number = |row: &Value, name: &str| row[name].as_u64().unwrap();
    rows.map(|row| (name(row), number(row, "size"), number(row, "count"))).collect()
}

#[test]
fn every_answer_has_the_figures_of_scopes() {
    own_process!();
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    assert!(!get(addr, "/metrics").contains("heap_scope_"));
    assert_eq!(document(addr, "/debug/heap/summary.json")["scopes"], Value::Null);
    let held = hold_of_tenants();
    let [(_, bytes, blocks), (_, other_bytes, other_blocks)] = of_tenants();
    let _paused = heapgauge::pause();
    // A collection is given out again for a second.
    std::thread::sleep(std::time::Duration::from_millis(1_100));

    let metrics = get(addr, "/metrics");
    let [scopes_of_acme, escaped] =
        ["scope_key=\"tenant\",scope_value=\"acme\"", "scope_value=\"b \\\"q\\\"\""];
    for line in [
        format!("heap_scope_live_bytes{{{scopes_of_acme}}} {bytes}"),
        format!("heap_scope_live_blocks{{{scopes_of_acme}}} {blocks}"),
        format!("heap_scope_live_delta_bytes{{{scopes_of_acme}}} {bytes}"),
        format!("heap_scope_live_bytes{{scope_key=\"tenant\",{escaped}}} {other_bytes}"),
        "heap_scope_live_blocks{scope_key=\"route\",scope_value=\"/search\"} 6".to_owned(),
        "heap_dropped_events_total{reason=\"scopes\"} 0".to_owned(),
    ] {
        assert!(metrics.lines().any(|written| written == line), "{line}\n{metrics}");
    }
    assert_eq!(metrics.matches("\nheap_scope_live_").count(), 12);

    let scopes = document(addr, "/debug/heap/scopes.json?since=first");
    let name = |row: &Value| format!("{}={}", row["key"].as_str().unwrap(), row["value"].as_str().unwrap());
    let list = size_of::<Vec<u8>>() as u64;
    let expected = [
        ("tenant=acme".to_owned(), bytes, blocks),
        ("route=/search".to_owned(), 5_000 + 5 * list, 6),
        ("route=/cart".to_owned(), 4_000 + 4 * list, 5),
        ("tenant=b \"q\"".to_owned(), other_bytes, other_blocks),
    ];
    assert_eq!(by_name(&scopes["rows"], name), expected);
    assert_eq!(
        (scopes["pairs"].as_u64(), document(addr, "/debug/heap/summary.json")["scopes"].as_u64()),
        (Some(4), Some(3))
    );
    let rows = document(addr, "/memory/snapshots?format=json&group_by=scope&sort=size");
    assert_eq!(by_name(&rows["rows"], |row| row["name"].as_str().unwrap().to_owned()), expected);
    let total = rows["total"]["size"].as_u64().unwrap();
    assert_eq!(rows["other"]["size"].as_u64(), Some(total - bytes - other_bytes));
    let text = get(addr, "/memory/snapshots?group_by=scope&sort=size&top=1");
    assert!(text.lines().nth(1) == Some("  Scope tenant=acme"), "{text}");
    drop(held);
}

#[test]
fn every_answer_can_be_of_one_scope() {
    own_process!();
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    let held = hold_of_tenants();
    let [(_, bytes, blocks), _] = of_tenants();
    let _paused = heapgauge::pause();
    let scope = "scope=tenant:acme";

    let rows = document(addr, &format!("/memory/snapshots?format=json&group_by=function&{scope}"));
    assert_eq!(
        by_name(&rows["rows"], |row| row["name"].as_str().unwrap().to_owned()),
        [("http::scopes::hold".into(), bytes, blocks)]
    );
    assert_eq!((rows["total"]["size"].as_u64(), rows["other"]["size"].as_u64()), (Some(bytes), Some(0)));
    let text = get(addr, &format!("/memory/snapshots?group_by=line&{scope}"));
    assert_eq!(text.lines().filter(|line| line.starts_with("  File")).count(), 2, "{text}");
    for (path, of) in [("sites.json", "rows"), ("stacks.json", "rows"), ("tree.json", "nodes")] {
        let answer = document(addr, &format!("/debug/heap/{path}?{scope}"));
        let whole = if of == "nodes" { &answer["nodes"][0] } else { &answer["total"] };
        assert_eq!((whole["size"].as_u64(), whole["count"].as_u64()), (Some(bytes), Some(blocks)), "{path}");
    }
    // A list and its blocks, of two calls.
    assert_eq!(document(addr, &format!("/debug/heap/stacks.json?{scope}"))["stacks"], 4);
    assert_eq!(document(addr, "/debug/heap/sites.json?scope=tenant:nobody")["total"]["size"], 0);
    let answer = client::ask_unchunked(addr, "GET", "/debug/heap/sites.json?scope=acme");
    assert_eq!(answer.text(), "parameter scope is acme, allowed are a key and a value such as tenant:acme\n");

    let file = std::env::temp_dir().join(format!("heapgauge-scopes-{}.json", std::process::id()));
    std::fs::write(&file, get(addr, "/debug/heap/snapshot.json")).unwrap();
    let snapshot = Snapshot::load(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let of_acme = snapshot.filter_traces(&[Filter::include("*").scope("tenant", "acme")]);
    let sum: u64 = of_acme.traces().iter().map(|trace| trace.size).sum();
    assert_eq!((sum, of_acme.statistics(GroupBy::Function).len()), (bytes, 1));
    let outside = snapshot.filter_traces(&[Filter::exclude("*").scope("tenant", "acme")]);
    assert_eq!(outside.traces().len() + of_acme.traces().len(), snapshot.traces().len());

    let folded = get(addr, "/debug/heap/folded?scopes=on");
    let of_acme = folded.lines().filter(|line| line.contains("tenant=acme;"));
    let values = of_acme.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap());
    assert_eq!(values.sum::<u64>(), bytes, "{folded}");
    assert!(folded.lines().any(|line| line.starts_with("route=/search;tenant=acme;")), "{folded}");
    let plain = get(addr, "/debug/heap/folded");
    assert!(!plain.contains("tenant=") && plain.lines().count() < folded.lines().count());
    drop(held);
}
