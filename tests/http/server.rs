//! Tests the server over real connections: its answers, its refusals, and that no client can block it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use crate::client::{Answer, ask, connect, read_answer, send};
use crate::process::turn;
use heapgauge::{Collector, Expose, Server};

/// The paths that the answer to an unknown path lists.
const PATHS: &str = if cfg!(feature = "pprof") {
    "/metrics, /health, /memory/snapshots, /debug/heap, /debug/heap/summary.json, /debug/heap/sites.json, \
     /debug/heap/scopes.json, /debug/heap/stacks.json, /debug/heap/tree.json, /debug/heap/snapshot.json, /debug/heap/folded, \
     /debug/heap/peak, /debug/heap/allocator.json, /debug/heap/trim, /debug/heap/dump, /debug/heap/dumps, \
     /debug/heap/dumps/{name}, \
     /debug/pprof/heap, /debug/pprof/allocs"
} else {
    "/metrics, /health, /memory/snapshots, /debug/heap, /debug/heap/summary.json, /debug/heap/sites.json, \
     /debug/heap/scopes.json, /debug/heap/stacks.json, /debug/heap/tree.json, /debug/heap/snapshot.json, /debug/heap/folded, \
     /debug/heap/peak, /debug/heap/allocator.json, /debug/heap/trim, /debug/heap/dump, /debug/heap/dumps, \
     /debug/heap/dumps/{name}"
};

/// A server, with the turn of its test: a process has one server.
struct Served {
    server: Server,
    _turn: MutexGuard<'static, ()>,
}

fn served() -> Served {
    let turn = turn();
    Served { server: heapgauge::serve("127.0.0.1:0").unwrap(), _turn: turn }
}

/// Checks that no attempt is too early, and one of three not too late. Other programs may have the processors for seconds; a
/// delay of the server itself occurs every time.
fn in_time(range: Range<Duration>, attempt: impl Fn() -> Duration) {
    let mut took = Vec::new();
    while took.last().is_none_or(|took| *took >= range.end) {
        assert!(took.len() < 3, "{took:?}");
        took.push(attempt());
        assert!(*took.last().unwrap() >= range.start, "{took:?}");
    }
}

fn get(addr: SocketAddr, path: &str) -> Answer {
    ask(addr, "GET", path, "")
}

#[test]
fn metrics_and_health() {
    let served = served();
    let addr = served.server.local_addr();
    let answer = get(addr, "/metrics");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert!(answer.text().starts_with("# HELP heap_tracking "), "{}", answer.text());
    assert!(answer.text().contains("\nheap_tracking 1\n"));
    assert!(answer.text().ends_with("\"} 1\n"));
    // Proxies and scrapers may add a query; it changes nothing.
    assert_eq!(get(addr, "/metrics?a=b&%").status, 200);

    let health = get(addr, "/health");
    assert_eq!((health.status, health.text()), (200, "ok\n"));
    assert_eq!(health.header("x-content-type-options"), Some("nosniff"));
}

#[test]
fn two_scrapes_of_one_snapshot_are_the_same_bytes() {
    let served = served();
    let addr = served.server.local_addr();
    // The second may begin just when the first snapshot turns one second old.
    let snapshot_of = |text: &str| -> Option<String> {
        text.lines().find(|line| line.starts_with("heap_snapshot_timestamp_seconds ")).map(str::to_owned)
    };
    let mut same = 0;
    for _ in 0..5 {
        let (one, two) = (get(addr, "/metrics"), get(addr, "/metrics"));
        assert!(snapshot_of(one.text()).is_some());
        if snapshot_of(one.text()) == snapshot_of(two.text()) {
            assert_eq!(one.text(), two.text());
            same += 1;
        }
    }
    assert!(same >= 4, "{same}");
}

#[test]
fn head_is_get_without_its_body() {
    let served = served();
    let addr = served.server.local_addr();
    let mut stream = connect(addr);
    write!(stream, "HEAD /metrics HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{answer}");
}

#[test]
fn unknown_paths_and_wrong_methods_say_what_there_is() {
    let served = served();
    let addr = served.server.local_addr();
    let unknown = get(addr, "/metric");
    assert_eq!(unknown.status, 404);
    let line = format!("path /metric is unknown, allowed are {PATHS}\n");
    assert_eq!(unknown.text(), line);
    assert_eq!(unknown.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(unknown.header("content-type"), Some("text/plain; charset=utf-8"));
    let long = get(addr, &format!("/{}", "x".repeat(5_000)));
    assert_eq!(long.status, 404);
    assert_eq!(long.text(), format!("path /{}… is unknown, allowed are {PATHS}\n", "x".repeat(79)));

    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"] {
        let wrong = ask(addr, method, "/metrics", "");
        assert_eq!(wrong.status, 405, "{method}");
        assert_eq!(
            wrong.text(),
            format!("method {method} is not allowed on /metrics, allowed are GET, HEAD\n")
        );
        assert_eq!(wrong.header("allow"), Some("GET,HEAD"), "{method}");
        assert_eq!(wrong.header("x-content-type-options"), Some("nosniff"));
    }
}

#[test]
fn a_foreign_host_or_origin_is_refused_on_loopback() {
    let served = served();
    let addr = served.server.local_addr();
    let with = |lines: &str| send(addr, format!("GET /metrics HTTP/1.1\r\n{lines}\r\n").as_bytes());
    for here in [
        format!("Host: {addr}\r\n"),
        "Host: localhost:1234\r\n".into(),
        "Host: LOCALHOST\r\n".into(),
        "Host: [::1]:9898\r\nOrigin: http://localhost:3000\r\n".into(),
        "Host: 127.0.0.1\r\nOrigin: https://127.0.0.1\r\n".into(),
    ] {
        assert_eq!(with(&here).status, 200, "{here}");
    }
    for (foreign, line) in [
        (
            "Host: evil.example\r\n",
            "host evil.example is foreign, allowed are localhost, 127.0.0.1 and [::1]\n",
        ),
        (
            "Host: 127.0.0.1.evil.example:9898\r\n",
            "host 127.0.0.1.evil.example:9898 is foreign, allowed are localhost, 127.0.0.1 and [::1]\n",
        ),
        (
            "Host: localhost\r\nHost: evil.example\r\n",
            "host evil.example is foreign, allowed are localhost, 127.0.0.1 and [::1]\n",
        ),
        ("Host: \r\n", "host  is foreign, allowed are localhost, 127.0.0.1 and [::1]\n"),
        (
            "Host: localhost\r\nOrigin: http://evil.example\r\n",
            "origin http://evil.example is foreign, allowed are localhost, 127.0.0.1 and [::1]\n",
        ),
        (
            "Host: localhost\r\nOrigin: null\r\n",
            "origin null is foreign, allowed are localhost, 127.0.0.1 and [::1]\n",
        ),
    ] {
        let answer = with(foreign);
        assert_eq!((answer.status, answer.text()), (403, line), "{foreign}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    }
    // A foreign host is rejected for unknown paths, too.
    assert_eq!(send(addr, b"GET /nowhere HTTP/1.1\r\nHost: evil.example\r\n\r\n").status, 403);
    let absolute = send(addr, b"GET http://evil.example/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(absolute.status, 403);

    let missing = with("");
    assert_eq!(
        (missing.status, missing.text()),
        (400, "the header Host is missing, allowed are localhost, 127.0.0.1 and [::1]\n")
    );
    assert_eq!(send(addr, b"GET /health HTTP/1.0\r\n\r\n").text(), "ok\n");
    assert_eq!(send(addr, b"GET /health HTTP/1.0\r\nHost: evil.example\r\n\r\n").status, 403);
}

#[test]
fn on_other_addresses_any_name_may_ask() {
    let _turn = turn();
    let server = heapgauge::serve("0.0.0.0:0").unwrap();
    let addr: SocketAddr = ([127, 0, 0, 1], server.local_addr().port()).into();
    let ask =
        |path: &str| send(addr, format!("GET {path} HTTP/1.1\r\nHost: service.example\r\n\r\n").as_bytes());
    assert_eq!(ask("/metrics").status, 200);
    assert_eq!(ask("/health").status, 200);
    // Paths that show more than metrics are absent, unless exposed.
    for path in ["/memory/snapshots", "/memory/snapshots?group_by=traceback", "/debug/heap", "/nowhere"] {
        let answer = ask(path);
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.text().ends_with(
            "allowed are /metrics, /health; others on a loopback address or where HEAPGAUGE_EXPOSE says so\n"
        ));
    }
    let post = send(addr, b"POST /memory/snapshots HTTP/1.1\r\nHost: service.example\r\n\r\n");
    assert_eq!(post.status, 404);
    drop(server);
    let server = Server::builder().expose(Expose::All).serve("0.0.0.0:0").unwrap();
    let addr: SocketAddr = ([127, 0, 0, 1], server.local_addr().port()).into();
    let answer = send(addr, b"GET /memory/snapshots HTTP/1.1\r\nHost: service.example\r\n\r\n");
    assert_eq!(answer.status, 200);
}

#[test]
fn malformed_and_oversized_requests_are_answered_and_forgotten() {
    let served = served();
    let addr = served.server.local_addr();
    for (request, status) in [
        (b"NONSENSE\r\n\r\n".to_vec(), 400),
        (b"GET /metrics HTTP/9.9\r\n\r\n".to_vec(), 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), 400),
        (format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(100_000)).into(), 431),
        (format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(100_000)).into(), 431),
        (format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "a: b\r\n".repeat(1_000)).into(), 431),
        (b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 65537\r\n\r\n".to_vec(), 413),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n".to_vec(), 400),
    ] {
        let mut stream = connect(addr);
        // The server may answer and close before all is sent.
        let _ = stream.write_all(&request);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(200)]).into_owned();
        assert!(shown.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {shown}");
        assert_eq!(get(addr, "/health").status, 200);
    }
}

#[test]
fn slow_clients_block_nobody() {
    let served = served();
    let addr = served.server.local_addr();
    in_time(Duration::ZERO..Duration::from_secs(8), || {
        // Three times the allowed number of connections, each with half a request.
        let slow: Vec<TcpStream> = (0..192)
            .map(|at| {
                let mut stream = connect(addr);
                let _ = stream.write_all(if at % 2 == 0 { b"GET /metrics HT" } else { b"" });
                stream
            })
            .collect();
        let begun = Instant::now();
        for _ in 0..10 {
            assert_eq!(get(addr, "/health").text(), "ok\n");
            assert_eq!(get(addr, "/metrics").status, 200);
        }
        let took = begun.elapsed();
        drop(slow);
        took
    });
}

#[test]
fn a_half_sent_request_is_given_up() {
    let served = served();
    in_time(Duration::from_secs(9)..Duration::from_secs(16), || {
        let mut stream = connect(served.server.local_addr());
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: loc").unwrap();
        let begun = Instant::now();
        let mut answer = Vec::new();
        // Closed, with or without an answer.
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
        begun.elapsed()
    });
}

/// Opens ten thousand connections: cut off, without reading the answer, with an endless body, for unknown paths. Afterwards
/// heapgauge uses as much memory as before, and the program continues.
#[test]
fn ten_thousand_connections_of_every_kind() {
    const CLIENTS: usize = 4;
    const EACH: usize = 2_500;
    let served = served();
    let addr = served.server.local_addr();
    let siege = |each: usize| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                std::thread::spawn(move || {
                    let mut unread = Vec::new();
                    for number in 0..each {
                        let mut stream = connect(addr);
                        let host = format!("HTTP/1.1\r\nHost: {addr}\r\n");
                        let request = match (number + client) % 10 {
                            0 => format!("GET /metrics {host}\r\n"),
                            1 => format!("GET /memory/snapshots?top=10000&group_by=traceback {host}\r\n"),
                            2 => format!("GET /memory/snapshots?top={number}x {host}\r\n"),
                            3 => format!("GET /{} {host}\r\n", "%00".repeat(number % 1_000)),
                            4 => {
                                format!("POST /memory/snapshots {host}Transfer-Encoding: chunked\r\n\r\n")
                                    + "400\r\n"
                                    + &"x".repeat(1_024)
                            }
                            5 => format!("GET /health {host}\r\n").repeat(50),
                            6 => "\0\u{1}\u{2}".repeat(number % 100 + 1),
                            7 => format!("GET /metrics {host}Origin: http://evil.example\r\n\r\n"),
                            8 => String::new(),
                            _ => format!("GET /health {host}\r\n"),
                        };
                        // The server may be the first to close.
                        let _ = stream.write_all(request.as_bytes());
                        match number % 10 {
                            // Closed in the middle of the request or answer.
                            0..5 => {}
                            // Half open: nothing more is sent, and nothing is read.
                            5 => {
                                let _ = stream.shutdown(Shutdown::Write);
                                unread.push(stream);
                            }
                            6 => unread.push(stream),
                            _ => {
                                let _ = stream.shutdown(Shutdown::Write);
                                let _ = stream.read(&mut [0; 512]);
                            }
                        }
                        if unread.len() == 40 {
                            unread.clear();
                        }
                    }
                })
            })
            .collect();
        clients.into_iter().for_each(|client| client.join().unwrap());
        assert_eq!(get(addr, "/health").text(), "ok\n");
        assert_eq!(get(addr, "/metrics").status, 200);
    };
    siege(200);
    let before = heapgauge::tracker_memory();
    siege(EACH);
    // The connections of the last moment are still open.
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let grown = heapgauge::tracker_memory().saturating_sub(before);
        if grown < 1 << 20 {
            break;
        }
        assert!(Instant::now() < end, "{grown} bytes more");
        std::thread::sleep(Duration::from_millis(100));
    }
    // The server's allocations are not the program's.
    let tracked = heapgauge::traced_memory().current;
    assert!(tracked < 64 << 20, "{tracked}");
}

#[test]
fn one_connection_serves_many_requests() {
    let served = served();
    let addr = served.server.local_addr();
    let mut stream = connect(addr);
    // In one piece: parts would each wait for the acknowledgement of the one before.
    let request = format!("GET /health HTTP/1.1\r\nHost: {addr}\r\n\r\n");
    for _ in 0..10_000 {
        stream.write_all(request.as_bytes()).unwrap();
        assert_eq!(read_answer(&mut stream).text(), "ok\n");
    }
    // Several requests at once get several answers.
    stream.write_all(request.repeat(3).as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    assert_eq!(answers.matches("\r\n\r\nok\n").count(), 3);
}

#[test]
fn a_second_server_is_refused_until_the_first_is_gone() {
    let _turn = turn();
    in_time(Duration::ZERO..Duration::from_secs(2), || {
        let first = heapgauge::serve("127.0.0.1:0").unwrap();
        let addr = first.local_addr();
        for other in [addr, "127.0.0.1:0".parse().unwrap()] {
            assert_eq!(
                heapgauge::serve(other).unwrap_err().to_string(),
                format!("serve: already serving on http://{addr}, drop that server first")
            );
        }
        assert_eq!(get(addr, "/health").status, 200);
        // The server ends with an open connection.
        let mut open = connect(addr);
        write!(open, "GET /health HTTP/1.1\r\nHost: {addr}\r\n\r\n").unwrap();
        assert_eq!(read_answer(&mut open).status, 200);
        let begun = Instant::now();
        drop(first);
        let took = begun.elapsed();
        assert!(TcpStream::connect(addr).is_err());
        // The same port is free at once, repeatedly.
        for _ in 0..5 {
            let again = heapgauge::serve(addr).unwrap();
            assert_eq!(again.local_addr(), addr);
            assert_eq!(get(addr, "/health").status, 200);
        }
        took
    });
}

#[test]
fn what_cannot_be_listened_on_is_one_line() {
    let _turn = turn();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    assert_eq!(
        heapgauge::serve(addr).unwrap_err().to_string(),
        format!("serve: cannot listen on {addr}: Address already in use (os error 98)")
    );
    assert_eq!(
        heapgauge::serve("nonsense").unwrap_err().to_string(),
        "serve: no address to listen on, allowed is HOST:PORT: invalid socket address"
    );
    assert_eq!(
        heapgauge::serve("127.0.0.1:99999").unwrap_err().to_string(),
        "serve: no address to listen on, allowed is HOST:PORT: invalid port value"
    );
    assert_eq!(
        heapgauge::serve(&[][..] as &[SocketAddr]).unwrap_err().to_string(),
        "serve: no address to listen on, allowed is HOST:PORT"
    );
    // None of these errors prevents a later server.
    drop(taken);
    let server = heapgauge::serve(addr).unwrap();
    assert_eq!(get(server.local_addr(), "/health").status, 200);
}

#[test]
fn the_server_shows_the_collector_it_was_given() {
    let _turn = turn();
    let collector = Collector::builder().top_n(3).delta_window(Duration::from_secs(60)).build().unwrap();
    let server = Server::builder().collector(&collector).serve("127.0.0.1:0").unwrap();
    let answer = get(server.local_addr(), "/metrics");
    let text = answer.text();
    let report = server.collector().collect();
    assert!(text.contains(&format!("\nheap_live_bytes {}\n", report.live.now.bytes)), "{text}");
    assert_eq!(text, report.to_prometheus());
}
