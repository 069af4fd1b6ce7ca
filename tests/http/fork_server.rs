//! Tests that a child of `fork`, which has neither the thread nor the sockets of its parent's server, may drop it and serve
//! again.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

fn is_served(addr: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(addr) else { return false };
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    stream.write_all(request.as_bytes()).is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.contains("\nheap_tracking 1\n")
}

/// Returns the failed step of a child, 0 for none; 9 if the child did not end by itself.
fn in_child(steps: impl FnOnce() -> i32) -> i32 {
    ended(child(steps))
}

/// Forks a child that runs `steps`.
fn child(steps: impl FnOnce() -> i32) -> libc::pid_t {
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
    pid
}

/// Waits for a child. Returns its failed step, or 9.
fn ended(pid: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: a child of this process and a place for its status.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 9 }
}

/// A daemon continues in the child: sockets that the parent closes are closed, and the child serves at the same address.
#[test]
fn a_child_keeps_no_socket_of_its_parent() {
    own_process!();
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    let address = server.local_addr();
    // The server has accepted this connection, because it has answered on it.
    let mut connection = TcpStream::connect(address).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(connection, "GET /health HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
    let mut answer = [0; 16];
    connection.read_exact(&mut answer).unwrap();
    let (mut go, mut gone) = UnixStream::pair().unwrap();
    let mut server = Some(server);
    let child = child(|| {
        if gone.read_exact(&mut [0]).is_err() {
            return 1;
        }
        if TcpStream::connect(address).is_ok() {
            return 2;
        }
        drop(server.take());
        match heapgauge::serve(address) {
            Ok(again) if is_served(again.local_addr()) && again.local_addr() == address => 0,
            Ok(_) => 3,
            Err(_) => 4,
        }
    });
    drop(server);
    // The answer ends, and then the connection, although the child lives.
    let mut rest = Vec::new();
    let end = connection.read_to_end(&mut rest);
    go.write_all(&[1]).unwrap();
    assert_eq!(ended(child), 0);
    assert!(end.is_ok(), "the child keeps the connection open: {end:?}");
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn a_forked_child_serves_anew() {
    own_process!();
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
        // Dropping the parent's server changes nothing.
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

/// A child keeps its parent's counters, so it keeps the time they began at; `changes()` over both sees no restart.
#[test]
fn a_forked_child_keeps_the_time_heapgauge_began() {
    own_process!();
    let start = || {
        let text = heapgauge::Collector::new().collect().to_prometheus();
        let line = text.lines().find_map(|line| line.strip_prefix("heap_start_timestamp_seconds "));
        line.map(str::to_owned)
    };
    let parent = start();
    assert!(parent.as_deref().is_some_and(|seconds| seconds.parse::<f64>().is_ok()), "{parent:?}");
    std::thread::sleep(Duration::from_millis(50));
    let grandchild = || in_child(|| i32::from(start() != parent));
    assert_eq!(in_child(|| if start() == parent { 2 * grandchild() } else { 1 }), 0);
}
