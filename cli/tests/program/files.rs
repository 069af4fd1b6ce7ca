//! `diff`, `report` and `page` of snapshot files.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};

use heapgauge::{GroupBy, Snapshot};
use serde_json::{Value, json};

use super::{Directory, PROGRAM, failure, planted, snapshot, stdout};

#[test]
fn a_report_of_a_file_has_its_reason_and_growth_since_another() {
    let directory = Directory::new();
    let (old, new) = directory.old_and_new([3_000, 50]);
    let report = stdout(&["report", &new]);
    let expected = format!(
        "Heap of {new}\n  taken      2026-10-26T08:23:20Z\n  reason     limit: the memory limit was near\n  build id   c0ffee\n  \
         live       2.98 KiB (3,050 bytes) in 4 blocks\n\n\
         Lines that hold most\n    LIVE   SHARE  BLOCKS  SITE\n2.93 KiB  98.4 %       3  src/cart.rs:7 shop::cart::add\n    \
         50 B   1.6 %       1  src/load.rs:9 shop::load [2J\n\n\
         Stacks that hold most, 2 of 2\n\n\
         1. 2.93 KiB, 98.4 %, 3 blocks\n   shop::cart::add  src/cart.rs:7\n   shop::main  src/main.rs:2\n   … older frames were not kept\n\n\
         2. 50 B, 1.6 %, 1 blocks\n   shop::load [2J  src/load.rs:9\n   … older frames were not kept\n"
    );
    assert_eq!(report, expected);
    let report = stdout(&["report", &new, "--since", &old, "--top", "1"]);
    assert!(report.contains("(3,050 bytes) in 4 blocks, +1.95 KiB in 33 min\n"), "{report}");
    let grown = "Lines that grew most\n    LIVE   SHARE  BLOCKS     GROWTH  A MINUTE  SITE\n2.93 KiB  98.4 %       3  +1.95 KiB     +60 B  src/cart.rs:7 shop::cart::add\n";
    assert!(report.contains(grown), "{report}");
    assert!(report.contains("50 B at 1 other lines, 2.98 KiB in all\n"), "{report}");
    let shrunk = stdout(&["report", &old, "--since", &new]);
    assert!(shrunk.contains("\nNo line has grown\n") && shrunk.contains("-1.95 KiB"), "{shrunk}");
}

/// Members that other snapshots do not have.
#[test]
fn a_report_of_a_dump_has_its_limit_and_the_stacks_left_out() {
    let mut dump = snapshot("limit", [3_000, 50]);
    let members = json!({"program": "shop", "memory_limit": 209_715_200, "memory_limit_usage": 167_772_160,
        "rest": {"size": 2_048, "count": 12}});
    dump.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    let directory = Directory::new();
    let report = stdout(&["report", &directory.file("dump.json", &dump.to_string())]);
    for line in [
        "  program    shop\n",
        "  limit      200 MiB, 160 MiB count against it (80.0 %)\n",
        "  besides    2.00 KiB in 12 blocks of stacks that found no room in the dump\n",
    ] {
        assert!(report.contains(line), "{line}---\n{report}");
    }
}

#[test]
fn a_diff_is_that_of_the_library() {
    let directory = Directory::new();
    let (old, new) = directory.old_and_new([3_000, 40]);
    let rows = |group_by| {
        let rows = Snapshot::load(&new).unwrap().compare_to(&Snapshot::load(&old).unwrap(), group_by);
        rows.iter().map(|row| format!("{row}\n")).collect::<String>()
    };
    assert_eq!(stdout(&["diff", &old, &new]), rows(GroupBy::Line));
    assert!(
        stdout(&["diff", &old, &new])
            .starts_with("src/cart.rs:7: size=3000 B (+2000 B), count=3 (+0), average=1000 B\n")
    );
    assert_eq!(stdout(&["diff", &old, &new, "--group-by", "function"]), rows(GroupBy::Function));
    assert_eq!(
        stdout(&["diff", "--group-by=file", "--cumulative", &old, &new]),
        rows(GroupBy::CumulativeFile)
    );
    assert_eq!(stdout(&["diff", &old, &new, "--top", "1"]).lines().count(), 1);
}

/// Makes a snapshot file whose first line is in two scopes, and the second in none.
fn scoped(first: u64) -> String {
    let mut file = snapshot("peak", [first, 50]);
    let traces = file["traces"].as_array_mut().unwrap();
    let mut other = traces[0].clone();
    traces[0]["scope"] = json!({"tenant": "acme", "route": "/a b"});
    (other["scope"], other["size"]) = (json!({"tenant": "b"}), 1_000.into());
    traces.push(other);
    file.to_string()
}

#[test]
fn scopes_of_a_file_are_rows_and_choose_blocks() {
    let directory = Directory::new();
    let [old, new] =
        [("old.json", 2_000), ("new.json", 9_000)].map(|(name, first)| directory.file(name, &scoped(first)));
    let report = stdout(&["report", &new, "--since", &old]);
    for line in [
        "Scopes that hold most; a block is in each of its keys\n    LIVE   SHARE  BLOCKS     GROWTH  SCOPE\n",
        "8.79 KiB  89.6 %       3  +6.84 KiB  route=/a b\n8.79 KiB  89.6 %       3  +6.84 KiB  tenant=acme\n",
        "1000 B  10.0 %       3        0 B  tenant=b\n",
        "9.77 KiB  99.5 %       6  +6.84 KiB",
        "Stacks that hold most, 2 of 2\n",
    ] {
        assert!(report.contains(line), "{line}---\n{report}");
    }
    let report = stdout(&["report", &new, "--scope", "route:/a b"]);
    for line in [
        "Only blocks allocated in route=/a b: 8.79 KiB\n",
        "8.79 KiB  100.0 %",
        "Stacks that hold most, 1 of 1\n",
    ] {
        assert!(report.contains(line), "{line}---\n{report}");
    }
    assert_eq!(
        stdout(&["diff", &old, &new, "--group-by", "scope"]),
        "tenant=acme: size=9000 B (+7000 B), count=3 (+0), average=3000 B\n\
         route=/a b: size=9000 B (+7000 B), count=3 (+0), average=3000 B\n\
         tenant=b: size=1000 B (+0 B), count=3 (+0), average=333 B\n"
    );
    let of_b = stdout(&["diff", &old, &new, "--scope", "tenant:b"]);
    assert_eq!(of_b, "src/cart.rs:7: size=1000 B (+0 B), count=3 (+0), average=333 B\n");
    let line = "--scope acme: allowed are a key and a value such as tenant:acme";
    assert_eq!(failure(&["report", &new, "--scope", "acme"], 2), line);
}

/// Frames that go by module and offset, as those of a dump that was written with no memory to read names.
#[cfg(target_os = "linux")]
#[test]
fn frames_by_offset_are_named_from_the_binary() {
    let binary = std::env::current_exe().unwrap();
    let name = binary.file_name().unwrap().to_str().unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let of_binary = maps.lines().find(|line| line.ends_with(binary.to_str().unwrap())).unwrap();
    let low = usize::from_str_radix(of_binary.split('-').next().unwrap(), 16).unwrap();
    let offset = planted as fn() -> Vec<u8> as usize - low;
    let id = Snapshot::take().unwrap().build_id().unwrap().to_owned();
    let mut dump = snapshot("limit", [3_000, 50]);
    dump["traces"][0]["frames"] = json!([
        {"function": null, "file": "<unknown>", "line": 0, "module": "libc.so.6", "offset": 77},
        {"function": null, "file": "<unknown>", "line": 0, "module": name, "offset": offset},
        {"function": null, "file": "<unknown>", "line": 0, "module": name, "offset": 1u64 << 40},
    ]);
    dump["traces"][0]["total_frames"] = 3.into();
    dump["build_id"] = id.clone().into();
    let directory = Directory::new();
    let file = directory.file("dump.json", &dump.to_string());
    let before = stdout(&["report", &file]);
    assert!(
        before.contains(
            "  names      frames that go by module and offset are named by --binary or --debug-file\n"
        ),
        "{before}"
    );
    assert!(
        before.contains("   libc.so.6+0x4d\n") && before.contains(&format!("   {name}+{offset:#x}\n")),
        "{before}"
    );
    for option in ["--binary", "--debug-file"] {
        let path = binary.to_str().unwrap();
        let report = stdout(&["report", &file, option, path]);
        let named = format!("  names      1 of 2 addresses of {name} named from {path}\n");
        assert!(report.contains(&named) && !report.contains("another build"), "{report}");
        // The function begins a line before its body.
        let first = report.lines().skip_while(|line| !line.ends_with("SITE")).nth(1).unwrap();
        assert!(
            first.contains(" cli/tests/program/main.rs:") && first.ends_with(" program::planted"),
            "{report}"
        );
        assert!(report.contains(&format!("   {name}+0x10000000000\n")), "{report}");
    }
    dump["build_id"] = "00".into();
    let other = directory.file("other.json", &dump.to_string());
    let report = stdout(&["report", &other, "--binary", binary.to_str().unwrap()]);
    let line = format!("is of another build, its names may be wrong: build id {id}, the snapshot's is 00\n");
    assert!(report.contains(&line), "{report}");
    for (path, why) in [
        ("/nonexistent", "No such file or directory (os error 2)"),
        ("/", "is a directory, allowed are an executable and its debug file"),
        (&*file, "is no ELF file, allowed are an executable and its debug file"),
    ] {
        assert_eq!(failure(&["report", &file, "--binary", path], 1), format!("{path}: {why}"));
    }
}

#[test]
fn the_page_of_a_file_is_served_on_loopback() {
    let directory = Directory::new();
    let (old, new) = directory.old_and_new([3_000, 50]);
    for arguments in [vec!["page", &new], vec!["page", &new, "--since", &old, "--addr", "localhost:0"]] {
        let mut page = Command::new(PROGRAM).args(&arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(page.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.strip_suffix(&format!("/debug/heap shows {new}, until Ctrl-C\n")).unwrap();
        let addr: SocketAddr = url.strip_prefix("http://").unwrap().parse().unwrap();
        assert!(addr.ip().is_loopback());
        let (head, body) = ask(addr, "GET /debug/heap");
        assert!(head.starts_with("HTTP/1.1 200 OK") && body.contains("<title>heap</title>"), "{head}");
        let json =
            |path: &str| -> Value { serde_json::from_str(&ask(addr, &format!("GET {path}")).1).unwrap() };
        let summary = json("/debug/heap/summary.json");
        assert_eq!(
            [&summary["file"], &summary["reason"], &summary["build"]["build_id"]],
            ["new.json", "limit", "c0ffee"]
        );
        assert_eq!([&summary["size"], &summary["count"]], [3_050, 4]);
        // A file cannot tell them.
        assert_eq!(
            [&summary["resident_bytes"], &summary["peak_bytes"], &summary["tracking"]],
            [&Value::Null; 3]
        );
        let sites = json("/debug/heap/sites.json?at=1&since=previous&by=site&top=1&history=24&sort=size");
        let row = &sites["rows"][0];
        assert_eq!(
            (&row["function"], &row["file"], &row["line"]),
            (&json!("shop::cart::add"), &json!("src/cart.rs"), &json!(7))
        );
        let grown = if arguments.len() > 2 { 2_000 } else { 0 };
        assert_eq!(
            (&row["size"], &row["size_diff"], &sites["other"]["size"]),
            (&json!(3_000), &json!(grown), &json!(50))
        );
        assert_eq!(summary["since"].as_f64(), (grown > 0).then_some(1_793_001_000.0));
        let of_site = json(&format!("/debug/heap/stacks.json?site={}", row["site"].as_str().unwrap()));
        assert_eq!((&of_site["stacks"], &of_site["rows"][0]["frames"][1]["line"]), (&json!(1), &json!(2)));
        assert_eq!(json("/debug/heap/tree.json?value=bytes")["nodes"][0]["value"], 3_050);
        for (request, status, said) in [
            (
                "GET /metrics",
                "404",
                "path /metrics is of a running program, and this is a file, allowed are /health, ",
            ),
            (
                "GET /debug/heap/tree.json?value=x",
                "400",
                "parameter value is x, allowed are bytes, blocks, growth",
            ),
            ("POST /debug/heap", "405", "method POST is not allowed on /debug/heap, allowed are GET, HEAD"),
        ] {
            let (head, body) = ask(addr, request);
            assert!(
                head.starts_with(&format!("HTTP/1.1 {status} ")) && body.starts_with(said),
                "{request}: {head} {body}"
            );
        }
        page.kill().unwrap();
        page.wait().unwrap();
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let line = failure(&["page", &new, "--addr", &addr], 1);
    assert!(line.starts_with(&format!("serve: cannot listen on {addr}: Address already in use")), "{line}");
}

#[test]
fn a_reader_that_goes_ends_it_without_a_word() {
    let directory = Directory::new();
    let mut large = snapshot("limit", [1, 1]);
    let trace = large["traces"][0].clone();
    let traces = (0..5_000).map(|line| {
        let mut trace = trace.clone();
        trace["frames"][0]["line"] = line.into();
        trace
    });
    large["traces"] = traces.collect();
    let file = directory.file("large.json", &large.to_string());
    for arguments in [&["diff", &file, &file][..], &["report", &file, "--top", "5000"], &["--help"]] {
        let mut program = Command::new(PROGRAM)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(program.stdout.take());
        let output = program.wait_with_output().unwrap();
        assert_eq!(
            (output.status.code(), &*String::from_utf8_lossy(&output.stderr)),
            (Some(0), ""),
            "{arguments:?}"
        );
    }
}

/// Sends a request, and returns the head and the body of the answer.
fn ask(addr: SocketAddr, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(addr).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}
