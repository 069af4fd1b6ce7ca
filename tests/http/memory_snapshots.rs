//! Tests `/memory/snapshots` over real connections: each request gets its comparison, or one line.

use std::net::SocketAddr;
use std::time::Duration;

use crate::client;

/// Returns status, head and body.
fn ask(addr: SocketAddr, method: &str, path: &str) -> (u16, String, String) {
    let answer = client::ask(addr, method, path, "");
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{}", answer.head);
    let body = answer.text().to_owned();
    (answer.status, answer.head, body)
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

/// Returns the two lines of the entry for the line in `hold`.
fn entry(text: &str) -> Option<(String, String)> {
    let place = format!(
        "  File \"tests/http/memory_snapshots.rs\", line {HOLD_LINE}, in http::memory_snapshots::hold"
    );
    let lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().position(|line| *line == place)?;
    Some((lines[at - 1].to_owned(), lines[at].to_owned()))
}

fn figures(text: &str) -> Option<String> {
    entry(text).map(|(figures, _)| figures)
}

/// Checks that rows and other add up to the total, in each of the four figures.
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

fn document(addr: SocketAddr, query: &str) -> serde_json::Value {
    serde_json::from_str(&get(addr, &format!("/memory/snapshots?format=json&{query}"))).unwrap()
}

const BY_LINE: &str = "/memory/snapshots?group_by=line&top=10000";

/// Holds the 6,161 blocks and 616,765 bytes of the original blog post.
fn hold_what_the_post_held() -> Vec<Vec<u8>> {
    let mut held = hold(6_160, 100);
    held.extend(hold(1, 765));
    held
}

#[test]
fn clients_with_different_pasts_at_the_same_time() {
    own_process!();
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    let mut held = hold_what_the_post_held();
    assert_eq!(
        figures(&get(addr, BY_LINE)).unwrap(),
        "602.31 new KiB, 602.31 total KiB, 6161 new blocks, 6161 total blocks"
    );
    let (one, two) = (post(addr), {
        held.extend(hold(10, 1_024));
        post(addr)
    });
    assert_ne!(one, two);
    held.truncate(6_161);

    let clients: Vec<_> = [
        ("first", "602.31 new KiB, 602.31 total KiB, 6161 new blocks, 6161 total blocks"),
        (&one.to_string(), "0.00 new KiB, 602.31 total KiB, 0 new blocks, 6161 total blocks"),
        (&two.to_string(), "-10.00 new KiB, 602.31 total KiB, -10 new blocks, 6161 total blocks"),
        ("previous", "602.31 new KiB, 602.31 total KiB, 6161 new blocks, 6161 total blocks"),
        ("1h", "602.31 new KiB, 602.31 total KiB, 6161 new blocks, 6161 total blocks"),
    ]
    .map(|(since, expected)| {
        let path = format!("{BY_LINE}&since={since}");
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

    // Concurrent clients that keep snapshots get different ids.
    let posting: Vec<_> = (0..8).map(|_| std::thread::spawn(move || post(addr))).collect();
    let mut numbers: Vec<u64> = posting.into_iter().map(|client| client.join().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (two + 1..=two + 8).collect::<Vec<_>>());

    // A hundred requests do not change the numbers of the line.
    for _ in 0..100 {
        get(addr, BY_LINE);
    }
    assert_eq!(
        figures(&get(addr, &format!("{BY_LINE}&since={one}"))).unwrap(),
        "0.00 new KiB, 602.31 total KiB, 0 new blocks, 6161 total blocks"
    );
    // After the free, the row shows it.
    drop(held);
    assert_eq!(
        figures(&get(addr, &format!("{BY_LINE}&since={one}"))).unwrap(),
        "-602.31 new KiB, 0.00 total KiB, -6161 new blocks, 0 total blocks"
    );
}

#[test]
fn every_grouping_order_and_past_adds_up() {
    own_process!();
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    let held = hold_what_the_post_held();
    let number = post(addr).to_string();
    for group_by in ["file", "line", "function", "crate", "traceback", "nearest", "via"] {
        for sort in ["diff", "growth", "size", "count"] {
            let pasts = ["first", "previous", "5m", &number];
            for since in &pasts[..if sort == "diff" { 4 } else { 1 }] {
                let query = format!("top=2&group_by={group_by}&sort={sort}&since={since}");
                let document = document(addr, &query);
                let rows = document["rows"].as_array().unwrap();
                assert_eq!((&document["version"], rows.len()), (&1.into(), 2), "{query}");
                for row in rows {
                    let frames = row["frames"].as_array().unwrap().len();
                    assert!(frames == 1 || group_by == "traceback" && (1..=32).contains(&frames), "{query}");
                    let total = row["total_frames"].as_u64().unwrap() as usize;
                    assert!(total == frames || (frames, total) == (32, 33), "{query}");
                }
                check_sums(&document);
            }
        }
    }
    // The tracebacks differ only in the place of the two calls.
    let document = document(addr, "since=previous&group_by=traceback&top=1");
    let row = &document["rows"][0];
    assert_eq!(row["name"], format!("tests/http/memory_snapshots.rs:{HOLD_LINE}"));
    assert_eq!((&row["size"], &row["size_diff"]), (&616_000.into(), &616_000.into()));
    assert_eq!((&row["count"], &row["count_diff"]), (&6_160.into(), &6_160.into()));
    assert_eq!(row["frames"][0]["function"], "http::memory_snapshots::hold");
    assert_eq!(row["frames"][0]["line"], HOLD_LINE);
    assert_eq!(row["frames"][1]["function"], "http::memory_snapshots::hold_what_the_post_held");
    drop(held);
}

#[test]
fn case_57_defaults_and_one_line_for_what_is_wrong() {
    own_process!();
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    let held = hold_what_the_post_held();
    let (one, two) = (post(addr), post(addr));
    assert_eq!((one, two), (1, 2));

    // The defaults: text of ten files at most, line 0, and the two lines that complete the sum. `get` and `ask`
    // check the content type and `nosniff`.
    let text = get(addr, "/memory/snapshots");
    let same = get(addr, "/memory/snapshots?top=10&group_by=file&since=first&sort=diff&format=text");
    for text in [&text, &same] {
        let lines: Vec<&str> = text.lines().collect();
        let place =
            lines.iter().position(|line| *line == "  File \"tests/http/memory_snapshots.rs\", line 0");
        assert_eq!(place, Some(1), "{text}");
        let marked: Vec<&&str> = lines.iter().filter(|line| line.starts_with("# ")).collect();
        assert!(marked[0].starts_with("# other: ") && marked[1].starts_with("# total: "), "{text}");
        assert!(marked.len() == 2 || marked[2].starts_with("# resident: "), "{text}");
        assert_eq!(lines[lines.len() - marked.len()..], marked.iter().map(|line| **line).collect::<Vec<_>>());
        assert!(marked.len() <= 3 && (lines.len() - marked.len()) / 2 <= 10);
    }

    a_bad_parameter_is_one_line(addr, [one, two]);
    let (status, _, body) = ask(addr, "POST", "/memory/snapshots?top=3");
    assert_eq!((status, &*body), (400, "parameter top is unknown, allowed are none with POST\n"));
    // It kept nothing.
    assert_eq!(post(addr), 3);
    let (status, _, body) = ask(addr, "GET", "/memory/snapshot");
    // All of them are in `server.rs`.
    let begin = "path /memory/snapshot is unknown, allowed are /metrics, /health, /memory/snapshots";
    assert!(status == 404 && body.starts_with(begin) && body.lines().count() == 1, "{status} {body}");
    assert_eq!(ask(addr, "GET", "/memory/snapshots/").0, 404);
    let (status, head, body) = ask(addr, "DELETE", "/memory/snapshots");
    assert_eq!(
        (status, &*body),
        (405, "method DELETE is not allowed on /memory/snapshots, allowed are GET, HEAD, POST\n")
    );
    assert!(head.contains("allow: GET,HEAD,POST\r\n"), "{head}");
    drop(held);
}

/// Checks the line, and that the two snapshots are still kept.
fn a_bad_parameter_is_one_line(addr: SocketAddr, [one, two]: [u64; 2]) {
    let since = "first, previous, a duration such as 5m, the id of a snapshot, or the name of a dump";
    let unknown = |id: &str| {
        format!("parameter since: snapshot {id} is not kept, kept are 1, 2, allowed are {since}\n")
    };
    let parameters = "allowed are top, group_by, since, sort, format, scope, older_than\n";
    for (query, line) in [
        ("top=0", "parameter top is 0, allowed are 1 to 10000\n".to_owned()),
        ("top=-1", "parameter top is -1, allowed are 1 to 10000\n".to_owned()),
        ("top=abc", "parameter top is abc, allowed are 1 to 10000\n".to_owned()),
        ("top=10001", "parameter top is 10001, allowed are 1 to 10000\n".to_owned()),
        ("top=1&top=1", "parameter top is 1 the second time, allowed is once\n".to_owned()),
        ("limit=3", format!("parameter limit is unknown, {parameters}")),
        ("TOP=3", format!("parameter TOP is unknown, {parameters}")),
        ("=", format!("parameter  is unknown, {parameters}")),
        (
            "group_by=lineno",
            "parameter group_by is lineno, allowed are file, line, function, crate, traceback, nearest, via, scope\n".to_owned(),
        ),
        ("sort=name", "parameter sort is name, allowed are diff, growth, size, count\n".to_owned()),
        ("format=xml", "parameter format is xml, allowed are text, json\n".to_owned()),
        ("since=yesterday", format!("parameter since is yesterday, allowed are {since}\n")),
        ("since=-1", format!("parameter since is -1, allowed are {since}\n")),
        ("since=77", unknown("77")),
        ("since=0", unknown("0")),
        ("since=18446744073709551615", unknown("18446744073709551615")),
        (
            "since=18446744073709551616",
            format!("parameter since is 18446744073709551616, allowed are {since}\n"),
        ),
    ] {
        let (status, head, body) = ask(addr, "GET", &format!("/memory/snapshots?{query}"));
        assert_eq!((status, body), (400, line), "{query}");
        assert!(head.contains("content-type: text/plain; charset=utf-8\r\n"), "{head}");
        // The kept snapshots are still there.
        for (number, place) in [(one, "&group_by=line"), (two, "&group_by=line")] {
            let text = get(addr, &format!("/memory/snapshots?since={number}{place}&top=10000"));
            assert_eq!(
                figures(&text).unwrap(),
                "0.00 new KiB, 602.31 total KiB, 0 new blocks, 6161 total blocks",
                "{query}"
            );
        }
    }
}

#[test]
fn kept_up_to_a_number_and_an_age() {
    own_process!();
    let of = |most, longest| {
        let collector = heapgauge::Collector::builder().snapshots(most, longest).build().unwrap();
        heapgauge::Server::builder().collector(&collector).serve("127.0.0.1:0").unwrap()
    };
    let gone = |addr, number: u64, kept: &str| {
        let (status, _, body) = ask(addr, "GET", &format!("/memory/snapshots?since={number}"));
        assert_eq!(status, 400);
        let expected = format!("parameter since: snapshot {number} is not kept, {kept}, allowed are ");
        assert!(body.starts_with(&expected), "{body}");
    };
    let server = of(2, Duration::from_secs(3_600));
    let addr = server.local_addr();
    for number in 1..=5 {
        assert_eq!(post(addr), number);
    }
    for number in 1..=3 {
        gone(addr, number, "kept are 4, 5");
    }
    for number in 4..=5 {
        get(addr, &format!("/memory/snapshots?since={number}"));
    }
    drop(server);

    let server = of(10, Duration::from_millis(200));
    let addr = server.local_addr();
    assert_eq!(post(addr), 1);
    std::thread::sleep(Duration::from_millis(201));
    gone(addr, 1, "and no other");
    // Numbers are not given twice.
    assert_eq!(post(addr), 2);
}

#[test]
fn while_tracking_is_off_there_is_nothing_to_compare() {
    own_process!();
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    let number = post(addr);
    heapgauge::stop();
    for (method, query) in [("GET", ""), ("GET", "?since=1"), ("GET", "?since=77"), ("POST", "")] {
        let (status, _, body) = ask(addr, method, &format!("/memory/snapshots{query}"));
        assert_eq!((status, &*body), (503, "tracking is off, heapgauge::start turns it on\n"));
    }
    // Snapshots from before the restart do not compare with later ones.
    heapgauge::start(32).unwrap();
    let (status, _, body) = ask(addr, "GET", &format!("/memory/snapshots?since={number}"));
    assert_eq!(status, 400);
    assert!(
        body.starts_with("parameter since: snapshot 1 is not kept, and no other, allowed are "),
        "{body}"
    );
    let held = hold_what_the_post_held();
    assert_eq!(
        figures(&get(addr, BY_LINE)).unwrap(),
        "602.31 new KiB, 602.31 total KiB, 6161 new blocks, 6161 total blocks"
    );
    let number = post(addr);
    assert_eq!(number, 2);
    heapgauge::clear_traces();
    assert_eq!(figures(&get(addr, BY_LINE)), None);
    assert_eq!(ask(addr, "GET", "/memory/snapshots?since=2").0, 400);
    drop(held);
}

#[test]
fn elsewhere_than_on_loopback_it_is_there_if_somebody_says_so() {
    own_process!();
    let server = heapgauge::serve("0.0.0.0:0").unwrap();
    let here = |server: &heapgauge::Server| ([127, 0, 0, 1], server.local_addr().port()).into();
    for method in ["GET", "POST"] {
        let (status, _, body) = ask(here(&server), method, "/memory/snapshots");
        assert_eq!(
            (status, &*body),
            (
                404,
                "path /memory/snapshots is unknown, allowed are /metrics, /health; others on a loopback address or where HEAPGAUGE_EXPOSE says so\n"
            )
        );
    }
    drop(server);
    let server = heapgauge::Server::builder().expose(heapgauge::Expose::All).serve("0.0.0.0:0").unwrap();
    get(here(&server), "/memory/snapshots");
    assert_eq!(post(here(&server)), 1);
}
