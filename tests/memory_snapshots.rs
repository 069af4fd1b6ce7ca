//! `/memory/snapshots` over real connections: the service the project began with.
#![cfg(feature = "http")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

fn ask(addr: SocketAddr, method: &str, path: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(addr).unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("x-content-type-options: nosniff\r\n"), "{head}");
    (head[9..12].parse().unwrap(), head.to_owned(), body.to_owned())
}

fn get(addr: SocketAddr, path: &str) -> String {
    let (status, head, body) = ask(addr, "GET", path);
    assert_eq!(status, 200, "{path}: {body}");
    let json = path.contains("format=json");
    let content_type = if json { "application/json" } else { "text/plain; charset=utf-8" };
    assert!(head.contains(&format!("content-type: {content_type}\r\n")), "{head}");
    body
}

fn post(addr: SocketAddr) -> u64 {
    let (status, head, body) = ask(addr, "POST", "/memory/snapshots");
    assert_eq!(status, 200, "{body}");
    assert!(head.contains("content-type: application/json\r\n"), "{head}");
    serde_json::from_str::<serde_json::Value>(&body).unwrap()["id"].as_u64().unwrap()
}

#[inline(never)]
fn hold(blocks: usize, bytes: usize) -> Vec<Vec<u8>> {
    let mut held = Vec::with_capacity(blocks);
    for _ in 0..blocks {
        held.push(Vec::with_capacity(bytes));
    }
    held
}
const HOLD_LINE: u32 = line!() - 4;

/// The two lines of the entry for the line that holds.
fn entry(text: &str) -> Option<(String, String)> {
    let place = format!("  File \"tests/memory_snapshots.rs\", line {HOLD_LINE}, in memory_snapshots::hold");
    let lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().position(|line| *line == place)?;
    Some((lines[at - 1].to_owned(), lines[at].to_owned()))
}

fn figures(text: &str) -> Option<String> {
    entry(text).map(|(figures, _)| figures)
}

/// Rows and other add up to the total, in each of the four figures.
fn check_sums(document: &serde_json::Value) {
    for figure in ["size", "size_diff", "count", "count_diff"] {
        let rows: i64 =
            document["rows"].as_array().unwrap().iter().map(|row| row[figure].as_i64().unwrap()).sum();
        assert_eq!(
            rows + document["other"][figure].as_i64().unwrap(),
            document["total"][figure].as_i64().unwrap(),
            "{figure}"
        );
    }
}

#[test]
fn first_snapshot_work_last_snapshot_top_ten() {
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    let by_line = "/memory/snapshots?group_by=line&top=10000";

    // 6,161 blocks, 616,765 bytes: the figures of the post.
    let mut held = hold(6_160, 100);
    held.extend(hold(1, 765));
    assert_eq!(
        figures(&get(addr, by_line)).unwrap(),
        "602.31 new KiB, 602.31 total KiB, 6161 new blocks, 6161 total blocks"
    );
    let (one, two) = (post(addr), {
        held.extend(hold(10, 1_024));
        post(addr)
    });
    assert_ne!(one, two);
    held.truncate(6_161);

    // Clients with different pasts at the same time.
    let clients: Vec<_> = [
        ("first", "602.31 new KiB, 602.31 total KiB, 6161 new blocks, 6161 total blocks".to_owned()),
        (&one.to_string(), "0.00 new KiB, 602.31 total KiB, 0 new blocks, 6161 total blocks".to_owned()),
        (&two.to_string(), "-10.00 new KiB, 602.31 total KiB, -10 new blocks, 6161 total blocks".to_owned()),
        ("previous", "602.31 new KiB, 602.31 total KiB, 6161 new blocks, 6161 total blocks".to_owned()),
        ("1h", "602.31 new KiB, 602.31 total KiB, 6161 new blocks, 6161 total blocks".to_owned()),
    ]
    .map(|(since, expected)| {
        let path = format!("{by_line}&since={since}");
        std::thread::spawn(move || {
            for _ in 0..5 {
                assert_eq!(figures(&get(addr, &path)).unwrap(), expected, "{path}");
            }
        })
    })
    .into_iter()
    .collect();
    for client in clients {
        client.join().unwrap();
    }

    // The defaults: ten files, line 0, and the two lines that complete the sum.
    let text = get(addr, "/memory/snapshots");
    let same = get(addr, "/memory/snapshots?top=10&group_by=file&since=first&sort=diff&format=text");
    for text in [&text, &same] {
        let lines: Vec<&str> = text.lines().collect();
        let place = lines.iter().position(|line| *line == "  File \"tests/memory_snapshots.rs\", line 0");
        assert_eq!(place, Some(1), "{text}");
        let marked: Vec<&&str> = lines.iter().filter(|line| line.starts_with("# ")).collect();
        assert!(marked[0].starts_with("# other: ") && marked[1].starts_with("# total: "), "{text}");
        assert_eq!(lines[lines.len() - 2..], [*marked[0], *marked[1]]);
        assert_eq!(marked.len(), 2);
        assert!((lines.len() - 2) / 2 <= 10);
    }

    for group_by in ["file", "line", "function", "crate", "traceback"] {
        for sort in ["diff", "growth", "size", "count"] {
            let path = format!("/memory/snapshots?format=json&top=2&group_by={group_by}&sort={sort}");
            let document: serde_json::Value = serde_json::from_str(&get(addr, &path)).unwrap();
            assert_eq!((&document["version"], document["rows"].as_array().unwrap().len()), (&1.into(), 2));
            check_sums(&document);
        }
    }
    let document = get(addr, "/memory/snapshots?format=json&top=1&group_by=line&sort=size");
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    let row = &document["rows"][0];
    assert_eq!(row["name"], format!("tests/memory_snapshots.rs:{HOLD_LINE}"));
    assert_eq!((&row["size"], &row["count"]), (&616_765.into(), &6_161.into()));
    assert_eq!(row["frames"][0]["function"], "memory_snapshots::hold");
    assert_eq!(row["frames"][0]["line"], HOLD_LINE);

    // A hundred requests leave what the line holds as it was.
    for _ in 0..100 {
        get(addr, by_line);
    }
    assert_eq!(
        figures(&get(addr, &format!("{by_line}&since={one}"))).unwrap(),
        "0.00 new KiB, 602.31 total KiB, 0 new blocks, 6161 total blocks"
    );

    // Freed: the row says so, and is last but by growth.
    drop(held);
    assert_eq!(
        figures(&get(addr, &format!("{by_line}&since={one}"))).unwrap(),
        "-602.31 new KiB, 0.00 total KiB, -6161 new blocks, 0 total blocks"
    );

    for (query, line) in [
        ("top=0", "parameter top is 0, allowed are 1 to 10000\n"),
        ("top=-1", "parameter top is -1, allowed are 1 to 10000\n"),
        ("top=abc", "parameter top is abc, allowed are 1 to 10000\n"),
        ("limit=3", "parameter limit is unknown, allowed are top, group_by, since, sort, format\n"),
        (
            "since=77",
            "parameter since: snapshot 77 is not kept, kept are 1, 2, allowed are first, previous, \
             a duration such as 5m, or the id of a snapshot\n",
        ),
    ] {
        let (status, _, body) = ask(addr, "GET", &format!("/memory/snapshots?{query}"));
        assert_eq!((status, body.as_str()), (400, line));
    }
    let (status, head, _) = ask(addr, "DELETE", "/memory/snapshots");
    assert_eq!(status, 405);
    assert!(head.contains("allow: GET,HEAD,POST\r\n"), "{head}");

    heapgauge::stop();
    for method in ["GET", "POST"] {
        let (status, _, body) = ask(addr, method, "/memory/snapshots");
        assert_eq!((status, body.as_str()), (503, "tracking is off, heapgauge::start turns it on\n"));
    }
    drop(server);

    // Elsewhere than on loopback it is not there, unless somebody says so.
    let server = heapgauge::serve("0.0.0.0:0").unwrap();
    let (status, _, body) =
        ask(([127, 0, 0, 1], server.local_addr().port()).into(), "GET", "/memory/snapshots");
    assert_eq!(status, 404);
    assert_eq!(
        body,
        "path /memory/snapshots is unknown, allowed are /metrics, /health; others where HEAPGAUGE_DEBUG=on\n"
    );
    drop(server);
    heapgauge::start(32).unwrap();
    let server = heapgauge::Server::builder().debug(true).serve("0.0.0.0:0").unwrap();
    get(([127, 0, 0, 1], server.local_addr().port()).into(), "/memory/snapshots");
}
