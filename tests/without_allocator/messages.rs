//! Tests the message to a program without `#[global_allocator]`: it contains the two missing lines.

use crate::client;
use std::process::Command;

const LINE: &str = "heapgauge is not the global allocator of this program, add `#[global_allocator]` and `static ALLOC: \
                    heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();`";

#[test]
fn start_and_snapshots_say_what_is_missing() {
    assert_eq!(heapgauge::start(32).unwrap_err().to_string(), format!("start: {LINE}"));
    assert!(!heapgauge::is_tracing());
    assert_eq!(heapgauge::Snapshot::take().unwrap_err().to_string(), format!("Snapshot::take: {LINE}"));
    assert_eq!(heapgauge::Profile::take().unwrap_err().to_string(), format!("profile: {LINE}"));
    assert_eq!(heapgauge::track(7, 0x1000, 16).unwrap_err().to_string(), format!("track: {LINE}"));
}

/// Paths that need traces told the program to call `heapgauge::start`, which was an error then.
#[test]
fn paths_that_need_traces_say_what_is_missing() {
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let addr = server.local_addr();
    for (request, attempt) in [
        ("GET /memory/snapshots", ""),
        ("POST /memory/snapshots", ""),
        ("GET /debug/heap/sites.json", ""),
        ("GET /debug/heap/snapshot.json", "Snapshot::take: "),
        #[cfg(feature = "pprof")]
        ("GET /debug/pprof/heap", "profile: "),
        #[cfg(feature = "pprof")]
        ("GET /debug/heap/folded", "profile: "),
    ] {
        let request = format!("{request} HTTP/1.0\r\nHost: {addr}\r\nContent-Length: 0\r\n\r\n");
        let answer = client::send(addr, request.as_bytes());
        assert_eq!((answer.status, answer.text()), (503, &*format!("{attempt}{LINE}\n")), "{request}");
    }
}

#[test]
fn a_server_says_on_stderr_what_is_missing() {
    if std::env::var_os("WITHOUT_ALLOCATOR_CHILD").is_some() {
        let server = heapgauge::serve_from_env().unwrap();
        let answer = client::send(server.local_addr(), b"GET /metrics HTTP/1.0\r\n\r\n");
        let answer = answer.text();
        assert!(answer.contains("\nheap_tracking 0\n"), "{answer}");
        std::mem::forget(server);
        return;
    }
    for switch in ["on", ""] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "messages::a_server_says_on_stderr_what_is_missing", "--nocapture"])
            .envs([("WITHOUT_ALLOCATOR_CHILD", "1"), ("HEAPGAUGE_ADDR", "127.0.0.1:0")])
            .envs([("HEAPGAUGE_QUIET", "on")])
            .envs((!switch.is_empty()).then_some(("HEAPGAUGE", switch)))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), format!("heapgauge: {LINE}\n"));
    }
}
