//! Tests the paths of dumps over real connections: the list, a file, a dump on request, and what held memory at the peak.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::client::{Answer, ask, ask_unchunked};
use crate::process::turn;
use heapgauge::{Dumps, Expose, Server, Snapshot};
use serde_json::{Value, json};

/// Directory of a test, which goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("heapgauge-http-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn get(addr: SocketAddr, path: &str) -> Answer {
    ask_unchunked(addr, "GET", path)
}

#[track_caller]
fn document(answer: &Answer) -> Value {
    let kind = answer.header("content-type");
    assert_eq!((answer.status, kind), (200, Some("application/json")), "{}", answer.text());
    serde_json::from_str(answer.text()).unwrap()
}

/// Checks that an answer is one line.
#[track_caller]
fn refused(answer: &Answer, status: u16, line: &str) {
    assert_eq!((answer.status, answer.text()), (status, format!("{line}\n").as_str()));
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
}

/// Writes a dump, and returns its name.
#[track_caller]
fn dump(addr: SocketAddr) -> String {
    document(&ask(addr, "POST", "/debug/heap/dump", ""))["name"].as_str().unwrap().to_owned()
}

/// Lists the dumps that were asked for. One of a peak may be there at any time.
fn on_request(addr: SocketAddr) -> Vec<String> {
    let list = document(&get(addr, "/debug/heap/dumps"));
    let rows = list["dumps"].as_array().unwrap().iter().filter(|row| row["reason"] == "request");
    rows.map(|row| row["name"].as_str().unwrap().to_owned()).collect()
}

#[inline(never)]
fn hold(bytes: usize) -> Vec<u8> {
    std::hint::black_box(vec![1; bytes])
}
const HOLD_LINE: u32 = line!() - 2;

#[test]
fn a_dump_on_request_is_listed_and_served() {
    own_process!();
    let folder = Folder::new("dumps");
    let _dumps = Dumps::builder().directory(&folder.0).start().unwrap();
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    assert_eq!(document(&get(addr, "/debug/heap/dumps"))["version"], 1);
    assert_eq!(on_request(addr), Vec::<String>::new());

    let held = hold(5 << 20);
    // A dump waits three seconds for names, and goes on without them. This answer waits longer.
    assert_eq!(document(&get(addr, "/debug/heap/sites.json?top=1"))["rows"].as_array().unwrap().len(), 1);
    let name = dump(addr);
    assert!(name.starts_with("heap-") && name.ends_with("-request.json"), "{name}");
    let written = std::fs::read(folder.0.join(&name)).unwrap();
    let list = get(addr, "/debug/heap/dumps");
    assert_eq!(list.header("cache-control"), Some("no-store"));
    let list = document(&list);
    let rows: Vec<&Value> =
        list["dumps"].as_array().unwrap().iter().filter(|row| row["name"] == name).collect();
    assert_eq!(rows.len(), 1, "{list}");
    assert_eq!((&rows[0]["reason"], &rows[0]["bytes"]), (&json!("request"), &json!(written.len())));
    assert!(rows[0]["modified"].as_f64().unwrap() > 1_700_000_000.0, "{list}");

    // The file is sent as it is, and is a snapshot.
    let file = get(addr, &format!("/debug/heap/dumps/{name}"));
    assert_eq!((file.status, file.header("content-type")), (200, Some("application/json")));
    assert_eq!(file.header("cache-control"), Some("no-store"));
    let disposition = format!("attachment; filename=\"{name}\"");
    assert_eq!(file.header("content-disposition"), Some(disposition.as_str()));
    assert!(file.body == written);
    let snapshot = Snapshot::load(folder.0.join(&name)).unwrap();
    assert_eq!(snapshot.reason(), Some("request"));
    let is_held = |trace: &heapgauge::Trace| {
        trace
            .traceback
            .frames()
            .any(|frame| frame.file() == "tests/http/dumps.rs" && frame.line() == HOLD_LINE)
    };
    let bytes: u64 = snapshot.traces().iter().filter(|trace| is_held(trace)).map(|trace| trace.size).sum();
    assert_eq!(bytes, 5 << 20);

    // The heap of now beside it: what was held is gone.
    drop(held);
    let since =
        document(&get(addr, &format!("/memory/snapshots?since={name}&group_by=line&format=json&top=10000")));
    let line = format!("tests/http/dumps.rs:{HOLD_LINE}");
    let row = since["rows"].as_array().unwrap().iter().find(|row| row["name"] == line).unwrap();
    assert_eq!(row["size_diff"], json!(-(5 << 20)), "{row}");

    // summary.json lists the same, newest first.
    let second = dump(addr);
    assert_eq!(on_request(addr).len(), if second == name { 1 } else { 2 });
    assert_eq!(on_request(addr)[0], second, "newest first");
    let list = document(&get(addr, "/debug/heap/dumps"));
    let summary = document(&get(addr, "/debug/heap/summary.json"));
    let shown = summary["dumps"].as_array().unwrap();
    assert!(list["dumps"].as_array().unwrap().iter().all(|row| shown.contains(row)), "{list}\n{summary}");
    assert_eq!(summary["previous_run"], Value::Null);
}

/// Dumps and the kept peak, whose memory was set aside before, have the scope of each stack; it may be over when they are read.
#[test]
fn a_dump_and_the_peak_have_scopes() {
    own_process!();
    let folder = Folder::new("scopes");
    let _dumps = Dumps::builder().directory(&folder.0).start().unwrap();
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    let tenant = |name: &str, bytes| {
        heapgauge::Scope::new("tenant", name).with("route", "/\"a\"").in_scope(|| hold(bytes))
    };
    let held = [tenant("acme", 9 << 20), tenant("b", 1 << 20), hold(3 << 20)];
    let dump = Snapshot::load(folder.0.join(dump(addr))).unwrap();
    let bytes = |tenant: Option<&str>| -> u64 {
        let traces =
            dump.traces().iter().filter(|trace| trace.scope.get("tenant") == tenant && trace.size >= 1 << 20);
        traces.map(|trace| trace.size).sum()
    };
    assert_eq!([Some("acme"), Some("b"), None].map(bytes), [9 << 20, 1 << 20, 3 << 20]);
    assert_eq!(dump.traces()[0].scope.get("route"), Some("/\"a\""));

    drop(held);
    drop(Snapshot::take().unwrap());
    let begun = Instant::now();
    loop {
        let rows = document(&get(addr, "/debug/heap/peak?group_by=scope&format=json"))["rows"].take();
        let of_acme = rows.as_array().unwrap().iter().find(|row| row["name"] == "tenant=acme");
        if of_acme.is_some_and(|row| row["size"] == 9 << 20) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{rows}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let rows = document(&get(addr, "/debug/heap/peak?scope=tenant:b&format=json"))["rows"].take();
    assert_eq!(rows[0]["size"], 1 << 20, "{rows}");
}

#[test]
fn a_name_that_is_no_dump_is_refused() {
    let _turn = turn();
    let folder = Folder::new("names");
    std::fs::write(folder.0.join("other.json"), "{}").unwrap();
    std::fs::write(folder.0.join("heap-1-2-run.txt"), "{}").unwrap();
    let _dumps = Dumps::builder().directory(&folder.0).start().unwrap();
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    let linked = "heap-1700000000-1-limit.json";
    #[cfg(unix)]
    std::os::unix::fs::symlink(folder.0.join("other.json"), folder.0.join(linked)).unwrap();
    for name in
        ["heap-1-2-limit.json", "other.json", "heap-1-2-run.txt", ".heap-1-2.tmp", linked, "%2e%2e", ".."]
    {
        let answer = get(addr, &format!("/debug/heap/dumps/{name}"));
        refused(&answer, 404, &format!("there is no dump {name}, /debug/heap/dumps lists them"));
    }
    for path in ["/debug/heap/dumps/", "/debug/heap/dumps/a/b"] {
        let answer = get(addr, path);
        assert_eq!(answer.status, 404);
        assert!(
            answer.text().starts_with(&format!("path {path} is unknown, allowed are /metrics, ")),
            "{}",
            answer.text()
        );
        assert_eq!(answer.text().lines().count(), 1);
    }
    let since = get(addr, "/memory/snapshots?since=heap-1-2-limit.json");
    refused(
        &since,
        400,
        "parameter since: there is no dump heap-1-2-limit.json, /debug/heap/dumps lists them",
    );
}

#[test]
fn methods_and_parameters() {
    let _turn = turn();
    let folder = Folder::new("methods");
    let _dumps = Dumps::builder().directory(&folder.0).start().unwrap();
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();

    for method in ["GET", "HEAD", "PUT", "DELETE"] {
        let answer = ask(addr, method, "/debug/heap/dump", "");
        assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")), "{method}");
        if method != "HEAD" {
            refused(
                &answer,
                405,
                &format!("method {method} is not allowed on /debug/heap/dump, allowed are POST"),
            );
        }
    }
    for path in ["/debug/heap/dumps", "/debug/heap/dumps/heap-1-2-limit.json", "/debug/heap/peak"] {
        let answer = ask(addr, "POST", path, "");
        assert_eq!(answer.header("allow"), Some("GET,HEAD"));
        refused(&answer, 405, &format!("method POST is not allowed on {path}, allowed are GET, HEAD"));
    }

    refused(
        &ask(addr, "POST", "/debug/heap/dump?top=3", ""),
        400,
        "parameter top is unknown, allowed are none with POST",
    );
    for path in ["/debug/heap/dumps?top=3", "/debug/heap/dumps/heap-1-2-limit.json?top=3"] {
        refused(&get(addr, path), 400, "parameter top is unknown, none is allowed");
    }
    for (query, begin) in [
        ("group_by=module", "parameter group_by is module, allowed are "),
        ("format=xml", "parameter format is xml, allowed are "),
        ("top=-1", "parameter top is -1, allowed are "),
        ("since=5m", "parameter since is unknown, allowed are "),
        ("a=1", "parameter a is unknown, allowed are "),
    ] {
        let answer = get(addr, &format!("/debug/heap/peak?{query}"));
        assert_eq!(answer.status, 400, "{query}: {}", answer.text());
        assert!(answer.text().starts_with(begin), "{query}: {}", answer.text());
        assert_eq!(answer.text().lines().count(), 1, "{query}");
    }
    // None of them has made a dump.
    assert_eq!(on_request(addr), Vec::<String>::new());
}

#[test]
fn without_a_directory_one_line_says_so() {
    let _turn = turn();
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    let line = "there is no directory for dumps, HEAPGAUGE_DUMP_DIR names one";
    refused(&get(addr, "/debug/heap/dumps"), 503, line);
    refused(&ask(addr, "POST", "/debug/heap/dump", ""), 503, line);
    let summary = document(&get(addr, "/debug/heap/summary.json"));
    assert_eq!([&summary["dumps"], &summary["previous_run"]], [&Value::Null; 2]);
}

#[test]
fn the_peak_as_text_and_as_json() {
    own_process!();
    let folder = Folder::new("peak");
    let _dumps = Dumps::builder().directory(&folder.0).start().unwrap();
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    drop(hold(64 << 20));
    let line = format!("tests/http/dumps.rs:{HOLD_LINE}");
    let end = Instant::now() + Duration::from_secs(60);
    let row = loop {
        let peak = get(addr, "/debug/heap/peak?group_by=line&format=json&top=1");
        let found = (peak.status == 200).then(|| document(&peak)["rows"][0].clone());
        match found {
            Some(row) if row["name"] == line => break row,
            _ => assert!(Instant::now() < end, "{}: {}", peak.status, peak.text()),
        }
        std::thread::sleep(Duration::from_millis(20));
        drop(hold(80 << 20));
    };
    assert!(row["size"].as_u64().unwrap() >= 64 << 20, "{row}");

    for query in ["", "group_by=line", "group_by=file&top=1", "group_by=line&top=1&sort=size"] {
        let text = get(addr, &format!("/debug/heap/peak?{query}"));
        let kind = text.header("content-type");
        assert_eq!((text.status, kind), (200, Some("text/plain; charset=utf-8")), "{query}");
        assert_eq!(text.header("cache-control"), Some("no-store"));
        let second = text.text().lines().nth(1).unwrap();
        assert!(second.starts_with("  File \"tests/http/dumps.rs\", line "), "{query}: {}", text.text());
    }
    let whole = document(&get(addr, "/debug/heap/peak?group_by=traceback&format=json&top=1"));
    let frames = whole["rows"][0]["frames"].as_array().unwrap();
    assert!(frames.iter().any(|frame| frame["function"] == "http::dumps::hold"), "{whole}");
}

#[test]
fn foreign_clients_get_no_dumps_unless_all_is_exposed() {
    let _turn = turn();
    let folder = Folder::new("access");
    let _dumps = Dumps::builder().directory(&folder.0).start().unwrap();
    let statuses = |addr: SocketAddr, headers: &str| {
        let get = |path: &str| ask(addr, "GET", path, headers).status;
        let listed = [
            get("/debug/heap/dumps"),
            get("/debug/heap/dumps/heap-1-2-limit.json"),
            get("/debug/heap/peak?top=x"),
        ];
        (listed, ask(addr, "POST", "/debug/heap/dump", headers).status)
    };
    for (exposed, listed, posted) in [
        (Expose::Metrics, [404; 3], 404),
        (Expose::Pprof, [404; 3], 404),
        (Expose::All, [200, 404, 400], 200),
    ] {
        let server = Server::builder().expose(exposed).debug_addr(None).serve("0.0.0.0:0").unwrap();
        let public = SocketAddr::from(([127, 0, 0, 1], server.local_addr().port()));
        assert_eq!(statuses(public, ""), (listed, posted), "{exposed:?}");
    }
    // On loopback, but not for the page of another site, nor for a name that it points here.
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    let before = on_request(addr);
    assert_eq!(statuses(addr, "Origin: http://evil.example\r\n"), ([403; 3], 403));
    assert_eq!(statuses(addr, "Origin: null\r\n"), ([403; 3], 403));
    let foreign = format!("POST /debug/heap/dump HTTP/1.1\r\nHost: evil.example:{}\r\n\r\n", addr.port());
    assert_eq!(crate::client::send(addr, foreign.as_bytes()).status, 403);
    assert_eq!(on_request(addr), before);
    assert_eq!(statuses(addr, "Origin: http://localhost:3000\r\n"), ([200, 404, 400], 200));
}
