//! Tests `/debug/heap` over real connections: its numbers are exact and add up, while the program's own runtime is blocked.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::client::{Answer, ask_unchunked};
use serde_json::{Value, json};

fn ask(addr: SocketAddr, method: &str, path: &str) -> Answer {
    let answer = ask_unchunked(addr, method, path);
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}: {}", answer.head);
    answer
}

fn get(addr: SocketAddr, path: &str) -> Value {
    let answer = ask(addr, "GET", path);
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, Some("application/json")),
        "{path}: {}",
        answer.text()
    );
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    serde_json::from_str(answer.text()).unwrap()
}

/// Returns the summary once everything has its name.
fn summary(addr: SocketAddr) -> Value {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let summary = get(addr, "/debug/heap/summary.json");
        if summary["naming"]["named"] == summary["naming"]["total"] {
            return summary;
        }
        assert!(Instant::now() < end, "{summary}");
    }
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

fn figures(of: &Value) -> [i64; 4] {
    ["size", "size_diff", "count", "count_diff"].map(|figure| of[figure].as_i64().unwrap())
}

fn sum<'a>(of: impl IntoIterator<Item = &'a Value>) -> [i64; 4] {
    of.into_iter().map(figures).fold([0; 4], |sum, figures| [0, 1, 2, 3].map(|at| sum[at] + figures[at]))
}

fn array(of: &Value) -> &[Value] {
    of.as_array().map_or(&[], Vec::as_slice)
}

/// Returns the children of each node. Checks that no node is smaller than its children, and that the root is their sum.
fn below(tree: &Value) -> Vec<Vec<&Value>> {
    let nodes = array(&tree["nodes"]);
    let mut below = vec![Vec::new(); nodes.len()];
    for (at, node) in nodes.iter().enumerate().skip(1) {
        let parent = node["parent"].as_u64().unwrap() as usize;
        assert!(parent < at);
        below[parent].push(node);
    }
    for (node, children) in nodes.iter().zip(&below) {
        let (all, part) = (figures(node), sum(children.iter().copied()));
        assert!(part[0] <= all[0] && part[2] <= all[2], "{node}");
    }
    assert_eq!((&nodes[0]["kind"], &nodes[0]["parent"]), (&json!("root"), &Value::Null));
    assert_eq!(sum(below[0].iter().copied()), figures(&nodes[0]));
    below
}

/// Returns the width of the line in `hold`, over all its callers.
fn width(tree: &Value) -> u64 {
    let is_line = |node: &&Value| {
        let frame = &tree["frames"][node["frame"].as_u64().unwrap_or(u64::MAX) as usize];
        frame["file"] == "tests/http/debug_heap.rs" && frame["line"] == HOLD_LINE
    };
    array(&tree["nodes"]).iter().filter(is_line).map(|node| node["value"].as_u64().unwrap()).sum()
}

#[test]
fn the_page_and_all_it_is_made_from() {
    own_process!();
    // The program's own runtime is blocked from here to the end.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let releases = block(&runtime);

    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    let mut held = hold(100, 50);
    let posted: Value = serde_json::from_str(ask(addr, "POST", "/memory/snapshots").text()).unwrap();
    let id = posted["id"].as_u64().unwrap();
    held.extend(hold(40, 1_000));

    is_one_document_and_nothing_else_may_run(addr);

    // Totals, history, snapshots.
    let summary = summary(addr);
    let number = summary["number"].as_u64().unwrap();
    let numbers =
        [&summary["size"], &summary["count"], &summary["resident_bytes"], &summary["overhead_bytes"]];
    assert!(numbers.iter().all(|number| number.as_u64().unwrap() > 0), "{summary}");
    assert_eq!(summary["tracking"], true);
    assert_eq!(summary["snapshots"], json!([posted]));
    assert!(!array(&summary["history"]).is_empty());
    assert!(array(&summary["paths"]).contains(&json!("/debug/heap")));

    // Without a number the answer is a new one, and waits for names.
    let sites = get(addr, &format!("/debug/heap/sites.json?since={id}&top=10000"));
    assert_eq!(figures(&sites["other"]), [0; 4]);

    let (sites, row) = sites_add_up(addr, number, id, &summary);
    stacks_add_up(addr, number, id, &row);
    the_root_of_the_tree_is_the_total(addr, number, id, &sites);
    the_snapshot_file_is_read_back(addr);
    a_hundred_answers_leave_no_trace(addr);
    a_bad_parameter_is_one_line(addr);

    // Off, the page is there and says so.
    heapgauge::stop();
    std::thread::sleep(Duration::from_millis(1_100));
    assert_eq!(get(addr, "/debug/heap/summary.json")["tracking"], false);
    assert_eq!(ask(addr, "GET", "/debug/heap").status, 200);
    for path in ["sites.json", "stacks.json", "tree.json", "snapshot.json"] {
        let off = ask(addr, "GET", &format!("/debug/heap/{path}"));
        assert_eq!(off.status, 503, "{path}");
        assert!(off.text().ends_with("tracking is off, heapgauge::start turns it on\n"), "{}", off.text());
    }
    drop(server);

    // On other addresses than loopback the page is absent, unless exposed.
    let server = heapgauge::serve("0.0.0.0:0").unwrap();
    let addr = ([127, 0, 0, 1], server.local_addr().port()).into();
    for path in ["/debug/heap", "/debug/heap/summary.json", "/debug/heap/snapshot.json"] {
        let answer = ask(addr, "GET", path);
        assert_eq!(answer.status, 404);
        assert!(
            answer.text().ends_with("; others on a loopback address or where HEAPGAUGE_EXPOSE says so\n"),
            "{}",
            answer.text()
        );
    }
    drop((releases, held));
}

/// Blocks both threads of a runtime until the senders are dropped.
fn block(runtime: &tokio::runtime::Runtime) -> Vec<mpsc::Sender<()>> {
    let (blocked, is_blocked) = mpsc::channel();
    let releases = (0..2)
        .map(|_| {
            let (release, released) = mpsc::channel::<()>();
            let blocked = blocked.clone();
            runtime.spawn(async move {
                blocked.send(()).unwrap();
                let _ = released.recv();
            });
            release
        })
        .collect();
    (0..2).for_each(|_| is_blocked.recv().unwrap());
    releases
}

/// Checks the page: one document, nothing from other servers, and a policy that lets nothing else run.
fn is_one_document_and_nothing_else_may_run(addr: SocketAddr) {
    let page = ask(addr, "GET", "/debug/heap");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.text().len() < 200_000, "{}", page.text().len());
    let policy = page.header("content-security-policy").unwrap();
    let nonce = policy.split_once("script-src 'nonce-").unwrap().1.split_once('\'').unwrap().0;
    assert!(nonce.len() == 32 && nonce.bytes().all(|byte| byte.is_ascii_hexdigit()), "{nonce}");
    assert_eq!(
        policy,
        format!(
            "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
             img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
    );
    for part in ["script", "style"] {
        assert_eq!(page.text().matches(&format!("<{part}")).count(), 1, "{part}");
        assert!(page.text().contains(&format!("<{part} nonce=\"{nonce}\">")), "{part}");
    }
    for foreign in ["http://", "https://", "src=", "@import", "url(", "{nonce}", "innerHTML", "eval("] {
        let body = page.text().replace("http://www.w3.org/2000/svg", "");
        assert!(!body.contains(foreign), "{foreign}");
    }
    assert_ne!(ask(addr, "GET", "/debug/heap").header("content-security-policy"), Some(policy));
    assert_eq!(
        [page.header("cache-control"), page.header("referrer-policy")],
        [Some("no-store"), Some("no-referrer")]
    );
}

/// Checks the sites of one snapshot: the total, and the line in `hold`, exactly. Returns all, and that row.
fn sites_add_up(addr: SocketAddr, number: u64, id: u64, summary: &Value) -> (Value, Value) {
    let total = [summary["size"].as_i64().unwrap(), summary["count"].as_i64().unwrap()];
    let path = format!("/debug/heap/sites.json?at={number}&since={id}&top=10000&sort=growth&history=4");
    let sites = get(addr, &path);
    let rows = array(&sites["rows"]);
    assert_eq!(sites["sites"], rows.len());
    assert_eq!([figures(&sites["total"])[0], figures(&sites["total"])[2]], total);
    assert_eq!(sum(rows.iter().chain([&sites["other"]])), figures(&sites["total"]));
    assert_eq!(figures(&sites["other"]), [0; 4]);
    let row = rows
        .iter()
        .find(|row| row["file"] == "tests/http/debug_heap.rs" && row["line"] == HOLD_LINE)
        .unwrap();
    assert_eq!(figures(row), [45_000, 40_000, 140, 40]);
    assert_eq!((&row["function"], &row["crate"]), (&json!("http::debug_heap::hold"), &json!("http")));
    let times = array(&sites["history_at"]);
    assert_eq!(array(&row["history"]).len(), times.len());
    assert_eq!(
        (row["history"].as_array().unwrap().last(), times.last()),
        (Some(&json!(45_000)), Some(&summary["taken_at"]))
    );
    let ids: HashSet<&Value> = rows.iter().map(|row| &row["site"]).collect();
    assert_eq!(ids.len(), rows.len());
    let few = get(addr, &format!("{path}&top=1").replace("&top=10000", ""));
    assert_eq!(array(&few["rows"]).len(), 1);
    assert_eq!(sum(array(&few["rows"]).iter().chain([&few["other"]])), figures(&few["total"]));
    let row = row.clone();
    (sites, row)
}

/// Checks the stacks of one site.
fn stacks_add_up(addr: SocketAddr, number: u64, id: u64, row: &Value) {
    let site = row["site"].as_str().unwrap();
    for query in [
        format!("site={site}"),
        format!("file=tests/http/debug_heap.rs&line={HOLD_LINE}"),
        "function=http::debug_heap::hold&line=".to_owned() + &HOLD_LINE.to_string(),
    ] {
        let stacks =
            get(addr, &format!("/debug/heap/stacks.json?{query}&at={number}&since={id}&sort=growth"));
        let rows = array(&stacks["rows"]);
        assert_eq!((rows.len(), &stacks["stacks"]), (2, &json!(2)));
        assert_eq!(
            rows.iter().map(figures).collect::<Vec<_>>(),
            [[40_000, 40_000, 40, 40], [5_000, 0, 100, 0]]
        );
        assert_eq!(figures(&stacks["total"]), figures(row));
        let frames = array(&rows[0]["frames"]);
        assert_eq!(
            (&frames[0]["line"], &frames[1]["function"]),
            (&json!(HOLD_LINE), &json!("http::debug_heap::the_page_and_all_it_is_made_from"))
        );
    }
    let cut = get(addr, &format!("/debug/heap/stacks.json?at={number}&since={id}&top=1"));
    assert_eq!(sum(array(&cut["rows"]).iter().chain([&cut["other"]])), figures(&cut["total"]));
}

/// Checks that the root of the tree is the total, and that the line has the same numbers as elsewhere.
fn the_root_of_the_tree_is_the_total(addr: SocketAddr, number: u64, id: u64, sites: &Value) {
    for (value, expected) in [("bytes", 45_000), ("blocks", 140), ("growth", 40_000)] {
        let tree = get(addr, &format!("/debug/heap/tree.json?value={value}&at={number}&since={id}"));
        assert_eq!(figures(&tree["nodes"][0]), figures(&sites["total"]), "{value}");
        assert!(below(&tree).len() <= 2 * 2_000 + 2);
        assert_eq!(width(&tree), expected, "{value}");
    }
    let small = get(addr, &format!("/debug/heap/tree.json?at={number}&nodes=5"));
    assert!((2..=12).contains(&below(&small).len()), "{small}");
}

/// Checks the complete snapshot file, which this library reads back.
fn the_snapshot_file_is_read_back(addr: SocketAddr) {
    let file = ask(addr, "GET", "/debug/heap/snapshot.json");
    assert_eq!((file.status, file.header("content-type")), (200, Some("application/json")));
    let name = file.header("content-disposition").unwrap();
    assert!(name.starts_with("attachment; filename=\"heap-1") && name.ends_with(".json\""), "{name}");
    let path = std::env::temp_dir().join(format!("heapgauge-{}.json", std::process::id()));
    std::fs::write(&path, &file.body).unwrap();
    let snapshot = heapgauge::Snapshot::load(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let mut statistics = snapshot.statistics(heapgauge::GroupBy::Line);
    statistics.retain(|statistic| statistic.name() == format!("tests/http/debug_heap.rs:{HOLD_LINE}"));
    assert_eq!((statistics[0].size, statistics[0].count), (45_000, 140));
}

/// Checks that a hundred answers leave no trace in the numbers.
fn a_hundred_answers_leave_no_trace(addr: SocketAddr) {
    let before = heapgauge::traced_memory().current;
    for _ in 0..25 {
        for path in ["summary.json", "sites.json?top=10000", "stacks.json", "tree.json?value=growth"] {
            assert_eq!(ask_quietly(addr, path), 200);
        }
    }
    assert_eq!(heapgauge::traced_memory().current, before);
}

/// Checks that a bad parameter is one line.
fn a_bad_parameter_is_one_line(addr: SocketAddr) {
    for (query, line) in [
        ("tree.json?value=x", "parameter value is x, allowed are bytes, blocks, growth\n"),
        (
            "sites.json?nodes=5",
            "parameter nodes is unknown, allowed are top, since, sort, at, history, by, scope, older_than\n",
        ),
        ("summary.json?top=5", "parameter top is unknown, none is allowed\n"),
        ("snapshot.json?top=5", "parameter top is unknown, allowed are older_than\n"),
        (
            "sites.json?since=99",
            "parameter since: snapshot 99 is not kept, kept are 1, allowed are first, previous, \
         a duration such as 5m, or the id of a snapshot\n",
        ),
    ] {
        let answer = ask(addr, "GET", &format!("/debug/heap/{query}"));
        assert_eq!((answer.status, answer.text()), (400, line));
    }
    let gone = ask(addr, "GET", "/debug/heap/tree.json?at=999999");
    assert_eq!(gone.status, 400);
    assert!(gone.text().starts_with("parameter at: moment 999999 is not kept, kept are "), "{}", gone.text());
    assert!(
        gone.text().ends_with(", allowed is one of the last four numbers of summary.json, for a minute\n")
    );
    for path in ["/debug/heap", "/debug/heap/summary.json"] {
        let wrong = ask(addr, "POST", path);
        assert_eq!((wrong.status, wrong.header("allow")), (405, Some("GET,HEAD")));
    }
    assert_eq!(ask(addr, "GET", "/debug/heap/").status, 404);
}

/// Returns the status, and keeps nothing of the answer.
fn ask_quietly(addr: SocketAddr, path: &str) -> u16 {
    ask(addr, "GET", &format!("/debug/heap/{path}")).status
}
