//! Failures: one line each, which says what was wrong and what is allowed.

use std::fs;
use std::net::TcpListener;

use serde_json::json;

use super::{Directory, failure, snapshot, stdout, with_answers};

#[test]
fn a_wrong_command_line_is_a_line_that_says_what_is_allowed() {
    let commands = "allowed are top, diff, report, page; see heapgauge --help";
    for (arguments, line) in [
        (&[][..], format!("no command, {commands}")),
        (&["frob"], format!("command frob: {commands}")),
        (&["--frob"], "invalid option '--frob'; see heapgauge --help".into()),
        (&["top"], "top takes URL, and 0 were given; see heapgauge --help".into()),
        (
            &["top", "http://a:1", "http://b:1"],
            "top takes URL, and 2 were given; see heapgauge --help".into(),
        ),
        (&["top", "http://a:1", "--by", "age"], "--by age: allowed are bytes, growth".into()),
        (
            &["top", "http://a:1", "--interval", "0"],
            "--interval 0: allowed are seconds from 0.1 to 3600".into(),
        ),
        (
            &["top", "http://a:1", "--rows"],
            "missing argument for option '--rows'; see heapgauge --help".into(),
        ),
        (&["top", "http://a:1", "--count", "0"], "--count 0: allowed are 1 to 4294967295".into()),
        (&["diff", "a"], "diff takes OLD and NEW, and 1 were given; see heapgauge --help".into()),
        (&["diff", "a", "b", "--top", "-1"], "--top -1: allowed are numbers from 1 on".into()),
        (
            &["report", "http://a:1", "--since", "x"],
            "--since is for a FILE: a running program compares and names itself".into(),
        ),
        (
            &["page", "a", "--addr", "0.0.0.0:1"],
            "--addr 0.0.0.0:1: allowed are 127.0.0.1:PORT, [::1]:PORT and localhost:PORT".into(),
        ),
    ] {
        assert_eq!(failure(arguments, 2), line, "{arguments:?}");
    }
    let unknown = failure(&["diff", "a", "b", "--group-by", "age"], 2);
    assert!(unknown.starts_with("--group-by: ") && unknown.contains("allowed are"), "{unknown}");
    assert!(
        failure(&["top", "https://127.0.0.1:1"], 2)
            .starts_with("URL https://127.0.0.1:1: TLS is not spoken here; ")
    );
    assert!(stdout(&["--help"]).contains("Usage: heapgauge COMMAND\n"));
    assert_eq!(stdout(&["top", "--help"]), stdout(&["-h"]));
    assert_eq!(stdout(&["-V"]), format!("heapgauge {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_wrong_file_is_a_line_that_says_what_is_wrong() {
    let directory = Directory::new();
    let good = snapshot("limit", [1, 1]).to_string();
    let newer = good.replace("\"version\":1", "\"version\":2");
    for (text, why) in [
        ("", "the file is truncated: "),
        (&good[..good.len() / 2], "the file is truncated: "),
        ("\x7fELF", "not JSON: "),
        ("[1]", "not a snapshot: "),
        (&newer, "not a snapshot: version 2 is not known, only 1 is"),
    ] {
        let file = directory.file("wrong.json", text);
        for arguments in [&["report", &file][..], &["page", &file], &["diff", &file, &file]] {
            let line = failure(arguments, 1);
            assert!(line.starts_with(&format!("load snapshot from {file}: {why}")), "{line}");
        }
    }
    let missing = directory.0.join("missing.json");
    let missing = missing.to_str().unwrap();
    let line = format!("load snapshot from {missing}: No such file or directory (os error 2)");
    assert_eq!(failure(&["report", missing], 1), line);
    let folder = directory.0.to_str().unwrap();
    assert!(
        failure(&["report", folder], 1)
            .starts_with(&format!("{folder} is a directory, allowed is a snapshot file: "))
    );
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let file = directory.file("secret.json", &good);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
        // The superuser may read it.
        if fs::read(&file).is_err() {
            let line = format!("load snapshot from {file}: Permission denied (os error 13)");
            assert_eq!(failure(&["report", &file], 1), line);
        }
    }
}

#[test]
fn what_is_no_server_of_heapgauges_is_a_line() {
    let allowed = "allowed is the address of heapgauge's server, such as http://127.0.0.1:9898";
    let answer = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    let path = "/debug/heap/summary.json";
    let newer = json!({"version": 2, "number": 1, "taken_at": 1.0, "size": 1, "count": 1, "size_diff": 0, "build": {"version": "9"}});
    let off = json!({"version": 1, "number": 1, "taken_at": 1.0, "size": 1, "count": 1, "size_diff": 0, "tracking": false,
        "build": {"version": "9"}});
    for (answer, line) in [
        (
            answer("403 Forbidden", "host x is foreign\n"),
            format!("{path} is forbidden (403): host x is foreign"),
        ),
        (
            answer("404 Not Found", "<html>\nnothing\n"),
            format!(
                "{path} is not there (404): (a page); allowed is an address that \
            serves every path, which heapgauge's does on loopback and in HEAPGAUGE_DEBUG_ADDR (127.0.0.1:9899)"
            ),
        ),
        (answer("503 Busy", "later\x1b[2J"), format!("{path} is not to be had now (503): later [2J")),
        (
            answer("302 Found\r\nlocation: /login", ""),
            format!("{path} was answered with status 302, {allowed}: "),
        ),
        (
            answer("200 OK", "<html>"),
            format!("the answer to {path} is not heapgauge's (expected value at line 1 column 1), {allowed}"),
        ),
        (
            answer("200 OK", "{}"),
            format!(
                "the answer to {path} is not heapgauge's (missing field `version` at line 1 column 2), {allowed}"
            ),
        ),
        (
            answer("200 OK", &newer.to_string()),
            format!(
                "version 2 of {path} is not known, only 1 is: this heapgauge is older than the program's"
            ),
        ),
        (answer("200 OK", &off.to_string()), "tracking is off there, nothing is recorded".into()),
    ] {
        with_answers(&answer, |url| {
            for command in ["top", "report"] {
                let said = failure(&[command, url], 1);
                // The version is no matter of the address.
                let said = said.strip_prefix(&format!("{url}: ")).unwrap_or(&said);
                assert_eq!(said, line.trim_end(), "{answer}");
            }
        });
    }
    for not_http in ["", "SSH-2.0-OpenSSH\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}"] {
        with_answers(not_http, |url| {
            let said = failure(&["top", url], 1);
            assert!(said.starts_with(&format!("{url}: ")), "{said}");
        });
    }
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let line = format!("http://{closed}: connection refused: no program listens there");
    assert_eq!(failure(&["top", &closed.to_string()], 1), line);
    let line = failure(&["top", "http://host.invalid:1"], 1);
    assert!(line.starts_with("http://host.invalid:1: ") && !line.contains("io: "), "{line}");
}
