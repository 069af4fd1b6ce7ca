//! Tests `/debug/pprof/heap`, `/debug/pprof/allocs` and `/debug/heap/folded` over real connections: their answers, their
//! refusals, and that they do not appear in their own numbers. One test, because the numbers are the process's.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::client;
use heapgauge::{Profile, ProfileValue};

/// Returns status, head and body; allocations of the client are untracked.
fn ask(addr: SocketAddr, method: &str, path: &str) -> (u16, String, Vec<u8>) {
    let _paused = heapgauge::pause();
    let answer = client::ask_unchunked(addr, method, path);
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{}", answer.head);
    (answer.status, answer.head, answer.body)
}

fn get(addr: SocketAddr, path: &str) -> String {
    let (status, head, body) = ask(addr, "GET", path);
    let _paused = heapgauge::pause();
    let body = String::from_utf8(body).unwrap();
    assert_eq!(status, 200, "{path}: {body}");
    assert!(head.contains("content-type: text/plain; charset=utf-8\r\n"), "{head}");
    body
}

fn refused(addr: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let (status, head, body) = ask(addr, method, path);
    let _paused = heapgauge::pause();
    assert!(head.contains("content-type: text/plain; charset=utf-8\r\n"), "{head}");
    (status, String::from_utf8(body).unwrap())
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

/// Returns the counts of each record of the text whose first frame is the line in `hold`.
fn held(text: &str) -> Vec<String> {
    let _paused = heapgauge::pause();
    let place = format!("\thttp::profiles::hold\ttests/http/profiles.rs:{HOLD_LINE}");
    let lines: Vec<&str> = text.lines().collect();
    let records = lines.windows(2).filter(|pair| pair[1].starts_with("#\t0x") && pair[1].ends_with(&place));
    let records = records.filter(|pair| !pair[0].starts_with('#'));
    records.map(|pair| pair[0].split(" @ ").next().unwrap().to_owned()).collect()
}

fn sum(folded: &str) -> u64 {
    let values = folded.lines().map(|line| line.rsplit_once(' ').unwrap().1);
    values.map(|value| value.parse::<u64>().unwrap()).sum()
}

#[test]
fn case_57_profiles_over_http() {
    own_process!();
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    let kept = hold(3, 1_000);
    drop(hold(2, 500));

    // Browsers save the answer as a file.
    for name in ["heap", "allocs"] {
        for query in ["", "?debug=0"] {
            let (status, head, body) = ask(addr, "GET", &format!("/debug/pprof/{name}{query}"));
            assert_eq!((status, &body[..2]), (200, &[0x1f, 0x8b][..]), "{head}");
            assert!(head.contains("content-type: application/octet-stream\r\n"), "{head}");
            assert!(
                head.contains(&format!("content-disposition: attachment; filename=\"{name}.pb.gz\"\r\n")),
                "{head}"
            );
            assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
        }
    }

    // The text, and that all answers are of the same heap: only the test allocates.
    let text = get(addr, "/debug/pprof/heap?debug=1");
    assert!(text.starts_with("heap profile: "), "{text}");
    assert_eq!(held(&text), ["3: 3000 [3: 3000]", "0: 0 [2: 1000]"]);
    let profile = Profile::take().unwrap();
    let (bytes, blocks) = (get(addr, "/debug/heap/folded"), get(addr, "/debug/heap/folded?value=blocks"));
    assert_eq!(bytes, get(addr, "/debug/heap/folded?value=bytes"));
    for _ in 0..20 {
        assert_eq!(get(addr, "/debug/pprof/heap?debug=1").lines().next(), text.lines().next());
        ask(addr, "GET", "/debug/pprof/allocs");
        get(addr, "/debug/heap/folded");
    }
    assert!(text.starts_with(&format!("heap profile: {}: {} [", sum(&blocks), sum(&bytes))), "{text}");
    assert_eq!(sum(&bytes), heapgauge::traced_memory().current);
    let line = blocks.lines().find(|line| line.ends_with(";http::profiles::hold 4")).unwrap(); // the list, too
    assert!(line.contains(";http::profiles::case_57_profiles_over_http;"), "{line}");
    // The library gives the same. It took the profile above.
    let library = profile.to_folded(ProfileValue::LiveBytes);
    assert_eq!(library, bytes);
    drop((text, bytes, blocks, profile, library));

    // Other programs may have the processors for seconds. A server that lets others wait does so every time.
    assert!((0..3).any(|_| a_profile_over_seconds_leaves_the_server_to_others(addr)));

    a_bad_parameter_is_one_line(addr);
    let paths = ["/debug/pprof/heap", "/debug/pprof/allocs", "/debug/heap/folded"];
    for path in paths {
        let line = format!("method POST is not allowed on {path}, allowed are GET, HEAD\n");
        assert_eq!(refused(addr, "POST", path), (405, line));
    }
    assert_eq!(refused(addr, "GET", "/debug/pprof/profile").0, 404);

    heapgauge::stop();
    for path in paths {
        let line = "profile: tracking is off, heapgauge::start turns it on\n";
        assert_eq!(refused(addr, "GET", path), (503, line.to_owned()));
    }
    drop((server, kept));

    are_absent_beyond_loopback_unless_exposed(&paths);
}

fn a_bad_parameter_is_one_line(addr: SocketAddr) {
    for (query, line) in [
        ("/debug/pprof/heap?seconds=0", "parameter seconds is 0, allowed are 1 to 59, in seconds\n"),
        ("/debug/pprof/heap?seconds=60", "parameter seconds is 60, allowed are 1 to 59, in seconds\n"),
        ("/debug/pprof/allocs?seconds=x", "parameter seconds is x, allowed are 1 to 59, in seconds\n"),
        ("/debug/pprof/allocs?debug=2", "parameter debug is 2, allowed are 0, 1\n"),
        (
            "/debug/pprof/heap?seconds=1&debug=1",
            "parameter debug is 1 and seconds 1, allowed is one of them\n",
        ),
        ("/debug/pprof/heap?gc=1", "parameter gc is unknown, allowed are seconds, debug, older_than\n"),
        ("/debug/pprof/allocs?gc=1", "parameter gc is unknown, allowed are seconds, debug\n"),
        ("/debug/heap/folded?value=kib", "parameter value is kib, allowed are bytes, blocks\n"),
        ("/debug/heap/folded?debug=1", "parameter debug is unknown, allowed are value, scopes, older_than\n"),
    ] {
        assert_eq!(refused(addr, "GET", query), (400, line.to_owned()), "{query}");
    }
}

/// Checks addresses other than loopback.
fn are_absent_beyond_loopback_unless_exposed(paths: &[&str]) {
    heapgauge::start(32).unwrap();
    let server = heapgauge::serve("0.0.0.0:0").unwrap();
    let addr = ([127, 0, 0, 1], server.local_addr().port()).into();
    for path in paths {
        assert_eq!(refused(addr, "GET", path).0, 404);
    }
    drop(server);
    for (exposed, folded) in [(heapgauge::Expose::All, 200), (heapgauge::Expose::Pprof, 404)] {
        let server = heapgauge::Server::builder().expose(exposed).serve("0.0.0.0:0").unwrap();
        let addr = ([127, 0, 0, 1], server.local_addr().port()).into();
        for path in paths {
            let expected = if path.starts_with("/debug/pprof/") { 200 } else { folded };
            assert_eq!(ask(addr, "GET", path).0, expected, "{path}");
        }
    }
}

/// Requests five profiles at once, of which four are taken. Returns whether other requests were answered in less time than
/// the profiles take.
fn a_profile_over_seconds_leaves_the_server_to_others(addr: SocketAddr) -> bool {
    let _paused = heapgauge::pause();
    let asked: Vec<_> = (0..5)
        .map(|_| {
            std::thread::spawn(move || {
                let begun = Instant::now();
                let (status, head, body) = ask(addr, "GET", "/debug/pprof/heap?seconds=3");
                let _paused = heapgauge::pause();
                if status == 503 {
                    let line = "4 profiles over seconds are being taken already, try again later\n";
                    assert_eq!(String::from_utf8(body).unwrap(), line);
                    return false;
                }
                assert_eq!((status, &body[..2]), (200, &[0x1f, 0x8b][..]));
                assert!(head.contains("attachment; filename=\"heap-delta.pb.gz\""), "{head}");
                assert!(begun.elapsed() >= Duration::from_secs(3));
                true
            })
        })
        .collect();
    let mut answers = Vec::new();
    while asked.iter().any(|thread| !thread.is_finished()) {
        let begun = Instant::now();
        assert_eq!(get(addr, "/health"), "ok\n");
        assert_eq!(ask(addr, "GET", "/debug/pprof/heap").0, 200);
        answers.push(begun.elapsed());
    }
    assert_eq!(asked.into_iter().map(|thread| thread.join().unwrap()).filter(|made| *made).count(), 4);
    println!("answered meanwhile: {answers:?}");
    answers.len() >= 2 && answers.iter().all(|took| *took < Duration::from_secs(2))
}
