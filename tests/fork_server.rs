//! A child of `fork` has the server's memory but not its thread: it may drop it, and serve anew.
#![cfg(all(feature = "http", unix))]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

fn is_served(addr: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(addr) else { return false };
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    stream.write_all(request.as_bytes()).is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.contains("\nheap_tracking 1\n")
}

/// The step that failed, 0 for none; 9 when the child did not end by itself.
fn in_child(steps: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child runs Rust code and ends by `_exit`; other threads of this test hold no lock of it.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // A child that hangs is ended by a signal, which is not an exit.
        // SAFETY: `alarm` and `_exit` have no preconditions.
        unsafe { libc::alarm(60) };
        let failed = steps();
        // SAFETY: as above.
        unsafe { libc::_exit(failed) };
    }
    let mut status = 0;
    // SAFETY: a child of this process and a place for its status.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 9 }
}

#[test]
fn a_forked_child_serves_anew() {
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let parent = server.local_addr();
    assert!(is_served(parent));
    let mut server = Some(server);

    let before_the_drop = in_child(|| {
        let Ok(own) = heapgauge::serve("127.0.0.1:0") else { return 1 };
        if !is_served(own.local_addr()) {
            return 2;
        }
        if heapgauge::serve("127.0.0.1:0").is_ok() {
            return 3;
        }
        // The parent's: dropping it touches nothing.
        drop(server.take());
        if heapgauge::serve("127.0.0.1:0").is_ok() {
            return 4;
        }
        drop(own);
        match heapgauge::serve("127.0.0.1:0") {
            Ok(again) if is_served(again.local_addr()) => 0,
            _ => 5,
        }
    });
    assert_eq!(before_the_drop, 0);
    assert!(is_served(parent));
    drop(server);
    assert_eq!(
        in_child(|| match heapgauge::serve("127.0.0.1:0") {
            Ok(own) if is_served(own.local_addr()) => 0,
            _ => 6,
        }),
        0
    );
}
