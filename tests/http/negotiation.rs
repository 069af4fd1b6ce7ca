//! Tests what a client gets that asks for gzip or OpenMetrics, and that no other client does.

use std::io::Read as _;
use std::net::SocketAddr;

use crate::client::{self, Answer};

/// Asks by HTTP/1.0, so that there are no chunks in the body.
fn get(addr: SocketAddr, path: &str, headers: &str) -> Answer {
    client::send(addr, format!("GET {path} HTTP/1.0\r\nHost: {addr}\r\n{headers}\r\n").as_bytes())
}

fn unzipped(answer: &Answer) -> String {
    assert_eq!(answer.header("content-encoding"), Some("gzip"), "{}", answer.head);
    let mut text = String::new();
    flate2::read::GzDecoder::new(&*answer.body).read_to_string(&mut text).unwrap();
    text
}

#[test]
fn answers_are_compressed_for_those_who_ask() {
    own_process!();
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    let _kept: Vec<String> = (0..3_000).map(|number| number.to_string()).collect();
    for path in [
        "/metrics",
        "/memory/snapshots?group_by=traceback&format=json&top=10000",
        "/debug/heap",
        "/debug/heap/sites.json",
        "/debug/heap/stacks.json",
        "/debug/heap/tree.json",
        "/debug/heap/snapshot.json",
        "/debug/heap/folded",
    ] {
        for not_asked in ["", "Accept-Encoding: identity\r\n", "Accept-Encoding: gzip;q=0\r\n"] {
            let plain = get(addr, path, not_asked);
            assert_eq!(
                (plain.status, plain.header("content-encoding")),
                (200, None),
                "{path}: {}",
                plain.head
            );
            assert!(plain.header("vary").unwrap().contains("accept-encoding"), "{path}: {}", plain.head);
            std::str::from_utf8(&plain.body).unwrap();
        }
        let zipped = get(addr, path, "Accept-Encoding: gzip, deflate\r\n");
        assert_eq!(zipped.status, 200, "{path}");
        let text = unzipped(&zipped);
        assert!(zipped.body.len() * 2 < text.len(), "{path}: {} of {} bytes", zipped.body.len(), text.len());
        if path.contains("json") {
            serde_json::from_str::<serde_json::Value>(&text)
                .unwrap_or_else(|error| panic!("{path}: {error}"));
        }
    }
    for path in ["/health", "/memory/snapshots?top=0"] {
        let short = get(addr, path, "Accept-Encoding: gzip\r\n");
        assert_eq!(short.header("content-encoding"), None, "{path}");
        assert!(!short.text().is_empty(), "{path}");
    }
    let head = client::ask(addr, "HEAD", "/metrics", "Accept-Encoding: gzip\r\n");
    assert_eq!((head.header("content-encoding"), head.body.len()), (Some("gzip"), 0), "{}", head.head);
}

/// The answer compressed is the answer, however long it is.
#[test]
fn a_long_answer_is_whole() {
    own_process!();
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let kept = crate::stacks::blocks_on_many_stacks(9);
    heapgauge::stop();
    let snapshot = |headers| get(server.local_addr(), "/debug/heap/snapshot.json", headers);
    assert_eq!(snapshot("").status, 503);
    heapgauge::start(32).unwrap();
    let again = crate::stacks::blocks_on_many_stacks(9);
    let (plain, zipped) = (snapshot(""), snapshot("Accept-Encoding: gzip\r\n"));
    assert!(plain.body.len() > 256 << 10, "{}", plain.body.len());
    let traces = |text: &str| {
        let file: serde_json::Value = serde_json::from_str(text).unwrap();
        file["traces"].as_array().unwrap().len()
    };
    let (plain, zipped) = (traces(plain.text()), traces(&unzipped(&zipped)));
    assert!(plain >= 1 << 9 && plain.abs_diff(zipped) < 20, "{plain}, {zipped}");
    drop((kept, again));
}

#[test]
fn openmetrics_is_sent_to_those_who_prefer_it() {
    own_process!();
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    let text = get(addr, "/metrics", "Accept: */*\r\n");
    assert_eq!(text.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert_eq!(text.header("vary"), Some("accept, accept-encoding"));
    let accept =
        "Accept: application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3\r\n";
    for headers in [accept.to_owned(), format!("{accept}Accept-Encoding: gzip\r\n")] {
        let answer = get(addr, "/metrics", &headers);
        let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        assert_eq!(answer.header("content-type"), Some(content_type), "{}", answer.head);
        let text = match answer.header("content-encoding") {
            Some(_) => unzipped(&answer),
            None => answer.text().to_owned(),
        };
        assert!(text.ends_with("\n# EOF\n"), "{text}");
        for line in [
            "# TYPE heap_allocated_bytes counter",
            "# UNIT heap_allocated_bytes bytes",
            "# UNIT heap_live_bytes bytes",
            "# UNIT heap_delta_window_seconds seconds",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line}");
        }
        assert!(text.contains("\nheap_allocated_bytes_total ") && !text.contains("_created"));
    }
}
