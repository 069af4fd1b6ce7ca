//! Tests ages in every answer over real connections: each leaves out the same young blocks, and refuses the same ages. Each test has a
//! process of its own, because the figures are the process's.

use std::net::SocketAddr;
use std::time::Duration;

use crate::client;
use heapgauge::{GroupBy, Snapshot};
use serde_json::Value;

/// Returns status, head and body; allocations of the client are untracked.
fn ask(addr: SocketAddr, path: &str) -> (u16, String, Vec<u8>) {
    let _paused = heapgauge::pause();
    let answer = client::ask_unchunked(addr, "GET", path);
    (answer.status, answer.head, answer.body)
}

fn get(addr: SocketAddr, path: &str) -> String {
    let _paused = heapgauge::pause();
    let (status, _, body) = ask(addr, path);
    let body = String::from_utf8(body).unwrap();
    assert_eq!(status, 200, "{path}: {body}");
    body
}

fn document(addr: SocketAddr, path: &str) -> Value {
    let _paused = heapgauge::pause();
    serde_json::from_str(&get(addr, path)).unwrap()
}

#[inline(never)]
fn hold_old(blocks: usize, bytes: usize) -> Vec<Vec<u8>> {
    let mut held = Vec::with_capacity(blocks);
    for _ in 0..blocks {
        held.push(Vec::with_capacity(bytes));
    }
    held
}
const OLD_LINE: u32 = line!() - 4;

#[inline(never)]
fn hold_young(blocks: usize, bytes: usize) -> Vec<Vec<u8>> {
    let mut held = Vec::with_capacity(blocks);
    for _ in 0..blocks {
        held.push(Vec::with_capacity(bytes));
    }
    held
}
const YOUNG_LINE: u32 = line!() - 4;

/// Returns the row of a line of this file, among rows that have `file` and `line`, or `frames` that have them.
fn row_of(rows: &Value, line: u32) -> Option<&Value> {
    rows.as_array().unwrap().iter().find(|row| {
        let frame = row.get("frames").map_or(*row, |frames| &frames[0]);
        frame["file"] == "tests/http/ages.rs" && frame["line"] == line
    })
}

/// Checks size and count of the line that holds ten old blocks, and that the young one has no row. Nothing changes.
#[track_caller]
fn check_rows(rows: &Value) {
    let old = row_of(rows, OLD_LINE).unwrap_or_else(|| panic!("{rows}"));
    assert_eq!(
        [&old["size"], &old["count"], &old["size_diff"], &old["count_diff"]],
        [10_000, 10, 0, 0],
        "{old}"
    );
    assert_eq!(row_of(rows, YOUNG_LINE), None);
}

#[test]
fn every_answer_leaves_out_the_young() {
    own_process!();
    let old = hold_old(10, 1_000);
    // The server looks at the counts when it starts.
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    std::thread::sleep(Duration::from_millis(1_200));
    let young = hold_young(5, 10_000);
    let _paused = heapgauge::pause();

    // Snapshots, as JSON and as text.
    let old_rows = document(addr, "/memory/snapshots?older_than=1s&group_by=line&top=10000&format=json");
    check_rows(&old_rows["rows"]);
    let sum = |name: &str| -> u64 {
        old_rows["rows"].as_array().unwrap().iter().map(|row| row[name].as_u64().unwrap()).sum()
    };
    let total = old_rows["total"]["size"].as_u64().unwrap();
    assert_eq!(sum("size") + old_rows["other"]["size"].as_u64().unwrap(), total);
    assert_eq!(old_rows["total"]["size_diff"], 0);
    let text = get(addr, "/memory/snapshots?older_than=1s&group_by=line&top=10000");
    assert!(
        text.contains(&format!(
            "0.00 new KiB, 9.77 total KiB, 0 new blocks, 10 total blocks\n  File \"tests/http/ages.rs\", line {OLD_LINE}, in http::ages::hold_old\n"
        )) && !text.contains("hold_young"),
        "{text}"
    );
    // Resident memory is that of all blocks.
    assert!(text.lines().last().unwrap().starts_with("# total: 0.00 new KiB, "), "{text}");

    // The JSON of the page.
    let sites = document(addr, "/debug/heap/sites.json?older_than=1s&top=10000");
    check_rows(&sites["rows"]);
    assert_eq!(sites["total"]["size"], total);
    let all = document(addr, "/debug/heap/sites.json?top=10000");
    assert_eq!(row_of(&all["rows"], YOUNG_LINE).unwrap()["size"], 50_000);
    assert!(all["total"]["size"].as_u64().unwrap() >= total + 50_000);
    let stacks = document(addr, "/debug/heap/stacks.json?older_than=1s&top=10000");
    check_rows(&stacks["rows"]);
    assert_eq!(stacks["total"]["size"], total);
    let tree = document(addr, "/debug/heap/tree.json?older_than=1s&nodes=20000");
    assert_eq!([&tree["nodes"][0]["value"], &tree["nodes"][0]["size"]], [total, total]);
    let functions = tree["frames"].to_string();
    assert!(functions.contains("hold_old") && !functions.contains("hold_young"), "{functions}");

    // Folded stacks, and the file of a snapshot.
    let folded = get(addr, "/debug/heap/folded?older_than=1s");
    let values = folded.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap());
    assert_eq!(values.sum::<u64>(), total);
    assert!(folded.contains("http::ages::hold_old") && !folded.contains("hold_young"), "{folded}");
    let (status, head, body) = ask(addr, "/debug/heap/snapshot.json?older_than=1s");
    assert_eq!(status, 200);
    assert!(head.contains("content-disposition: attachment; filename=\"heap-old-"), "{head}");
    let path = std::env::temp_dir().join(format!("heapgauge-http-ages-{}.json", std::process::id()));
    std::fs::write(&path, body).unwrap();
    let file = Snapshot::load(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(file.older_than(), Some(Duration::from_secs(1)));
    assert_eq!(file.traces().iter().map(|trace| trace.size).sum::<u64>(), total);
    assert!(file.traces().is_sorted_by_key(|trace| std::cmp::Reverse(trace.size)));
    let lines = file.statistics(GroupBy::Line);
    let line = lines.iter().find(|row| row.name() == format!("tests/http/ages.rs:{OLD_LINE}")).unwrap();
    assert_eq!((line.size, line.count), (10_000, 10));

    #[cfg(feature = "pprof")]
    {
        let profile = get(addr, "/debug/pprof/heap?older_than=1s&debug=1");
        assert!(profile.lines().any(|line| line.starts_with("10: 10000 [10: 10000] @ ")), "{profile}");
        assert!(!profile.contains("hold_young"), "{profile}");
        let (_, head, body) = ask(addr, "/debug/pprof/heap?older_than=1s");
        assert_eq!(body[..2], [0x1f, 0x8b]);
        assert!(head.contains("filename=\"heap-old.pb.gz\""), "{head}");
    }

    // In a process that is younger than the age nothing is that old.
    let none = document(addr, "/memory/snapshots?older_than=7d&format=json");
    assert_eq!((&none["rows"], &none["total"]["size"]), (&serde_json::json!([]), &0.into()));
    assert_eq!(document(addr, "/debug/heap/tree.json?older_than=1h")["nodes"][0]["size"], 0);
    drop((old, young, server));
}

#[test]
fn rows_have_their_ages_and_metrics_the_old_bytes() {
    own_process!();
    let old = hold_old(10, 1_000);
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    let young = hold_young(5, 10_000);
    let _paused = heapgauge::pause();

    let summary = document(addr, "/debug/heap/summary.json");
    assert_eq!((&summary["old_age_seconds"], &summary["leak"]), (&3_600.0.into(), &Value::Null));
    // The process has just begun: all it has is younger than a minute.
    for path in ["/debug/heap/sites.json?top=10000", "/memory/snapshots?format=json&group_by=line&top=10000"]
    {
        let rows = &document(addr, path)["rows"];
        for (line, size) in [(OLD_LINE, 10_000), (YOUNG_LINE, 50_000)] {
            let row = row_of(rows, line).unwrap();
            let (young, none) = (serde_json::json!([size, size]), serde_json::json!([0, 0]));
            let expected = serde_json::json!({
                "<1m": young, "<10m": none, "<1h": none, "<6h": none, "<1d": none, ">=1d": none
            });
            assert_eq!((&row["ages"], &row["old_bytes"]), (&expected, &none), "{path} {row}");
            assert_eq!(row["leak_score"], Value::Null, "{path} {row}");
            assert_eq!(row.get("live_bytes"), None, "{path} {row}");
        }
    }
    // Where only old blocks are shown, the bar of ages is still that of all.
    std::thread::sleep(Duration::from_millis(1_200));
    let rows = &document(addr, "/debug/heap/sites.json?older_than=1s&top=10000")["rows"];
    let row = row_of(rows, OLD_LINE).unwrap();
    assert_eq!((&row["size"], &row["ages"]["<1m"][1]), (&10_000.into(), &10_000.into()), "{row}");

    let metrics = get(addr, "/metrics");
    // Of each function two lines have series: that of the blocks and that of the list that holds them.
    let sum = |name: &str, function: &str| -> Option<u64> {
        let function = format!("function=\"http::ages::{function}\"");
        let lines =
            metrics.lines().filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(&function));
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().ok()).sum()
    };
    assert!(metrics.contains("\nheap_old_age_seconds 3600\n"), "{metrics}");
    for (function, blocks, bytes) in [("hold_old", 10, 10_000), ("hold_young", 5, 50_000)] {
        let list = blocks * size_of::<Vec<u8>>() as u64;
        assert_eq!(sum("heap_site_live_bytes", function), Some(bytes + list), "{metrics}");
        assert_eq!(sum("heap_site_old_bytes", function), Some(0), "{metrics}");
        assert_eq!(sum("heap_site_allocated_bytes_total", function), Some(bytes + list), "{metrics}");
    }
    drop((old, young, server));
}

#[test]
fn an_age_that_is_none_is_refused_in_one_line_everywhere() {
    own_process!();
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    let mut paths = vec![
        "/memory/snapshots",
        "/debug/heap/sites.json",
        "/debug/heap/scopes.json",
        "/debug/heap/stacks.json",
        "/debug/heap/tree.json",
        "/debug/heap/snapshot.json",
        "/debug/heap/folded",
    ];
    paths.extend(["/debug/pprof/heap"].into_iter().filter(|_| cfg!(feature = "pprof")));
    for path in paths {
        for value in ["", "0s", "999ms", "8d", "1", "an%20hour", "-1h", "1.5h"] {
            let (status, _, body) = ask(addr, &format!("{path}?older_than={value}"));
            let value = value.replace("%20", " ");
            let line =
                format!("parameter older_than is {value}, allowed are durations from 1s to 7d, such as 1h\n");
            assert_eq!((status, String::from_utf8(body).unwrap()), (400, line), "{path}");
        }
        assert_eq!(ask(addr, &format!("{path}?older_than=1s")).0, 200, "{path}");
    }
    // Peaks and dumps have no ages, and neither have allocations.
    let mut paths = vec!["/debug/heap/peak"];
    paths.extend(["/debug/pprof/allocs"].into_iter().filter(|_| cfg!(feature = "pprof")));
    for path in paths {
        let (status, _, body) = ask(addr, &format!("{path}?older_than=1h"));
        let line = String::from_utf8(body).unwrap();
        assert_eq!(status, 400, "{path}: {line}");
        assert!(line.starts_with("parameter older_than is unknown, allowed are "), "{path}: {line}");
    }
}
