//! Tests the paths of each address: the second listener on loopback, and requests through a proxy.

use std::net::{SocketAddr, TcpListener, TcpStream};

use crate::client::{Answer, ask};
use crate::process::turn;
use heapgauge::{Expose, Server};

fn get(addr: SocketAddr, path: &str, headers: &str) -> Answer {
    ask(addr, "GET", path, headers)
}

fn status(addr: SocketAddr, path: &str) -> u16 {
    get(addr, path, "").status
}

fn port(number: u16) -> SocketAddr {
    ([127, 0, 0, 1], number).into()
}

#[test]
fn the_root_leads_to_the_page_on_loopback() {
    let _turn = turn();
    let server = heapgauge::serve("127.0.0.1:0").unwrap();
    assert_eq!(server.debug_addr(), None);
    let answer = get(server.local_addr(), "/", "");
    assert_eq!((answer.status, answer.header("location")), (307, Some("/debug/heap")));
}

#[test]
fn beside_another_address_every_path_is_on_loopback() {
    let _turn = turn();
    let server = Server::builder().debug_addr(Some(port(0))).serve("0.0.0.0:0").unwrap();
    let public = port(server.local_addr().port());
    let debug = server.debug_addr().unwrap();
    assert!(debug.ip().is_loopback());
    assert_eq!([status(public, "/metrics"), status(debug, "/metrics")], [200, 200]);
    // Requests from this machine get no more on the other address: those of a service mesh come from here, too.
    for path in ["/debug/heap", "/debug/heap/summary.json", "/memory/snapshots", "/debug/heap/folded"] {
        assert_eq!([status(public, path), status(debug, path)], [404, 200], "{path}");
    }
    assert_eq!([status(public, "/"), status(debug, "/")], [404, 307]);
    assert_eq!(get(debug, "/metrics", "Origin: http://evil.example\r\n").status, 403);

    drop(server);
    assert!(TcpStream::connect(debug).is_err());
}

#[test]
fn the_second_listener_refuses_forwarded_requests() {
    let _turn = turn();
    let server = Server::builder().debug_addr(Some(port(0))).serve("0.0.0.0:0").unwrap();
    let debug = server.debug_addr().unwrap();
    for header in
        ["X-Forwarded-For", "x-forwarded-proto", "X-Envoy-External-Address", "l5d-client-id", "Forwarded"]
    {
        for path in ["/debug/heap", "/metrics"] {
            let answer = get(debug, path, &format!("{header}: 10.0.0.1\r\n"));
            assert_eq!(answer.status, 403, "{header}");
            let line = format!(
                "the header {} is of a forwarded request, allowed are requests from this machine\n",
                header.to_ascii_lowercase()
            );
            assert_eq!(answer.text(), line);
        }
    }
    assert_eq!(get(debug, "/debug/heap", "X-Request-Id: 7\r\n").status, 200);
    // Metrics are scraped through a mesh.
    let public = port(server.local_addr().port());
    assert_eq!(get(public, "/metrics", "X-Forwarded-For: 10.0.0.1\r\n").status, 200);
}

#[test]
fn a_taken_port_of_the_second_listener_is_never_fatal() {
    let _turn = turn();
    let taken = TcpListener::bind(port(0)).unwrap();
    let wanted = taken.local_addr().unwrap();
    let server = Server::builder().debug_addr(Some(wanted)).serve("0.0.0.0:0").unwrap();
    let debug = server.debug_addr().unwrap();
    assert_ne!(debug, wanted);
    assert_eq!(status(debug, "/debug/heap"), 200);
    drop(server);

    let server = Server::builder().debug_addr(None).serve("0.0.0.0:0").unwrap();
    assert_eq!(server.debug_addr(), None);
    drop(server);

    let elsewhere: SocketAddr = ([10, 0, 0, 1], 9899).into();
    let error = Server::builder().debug_addr(Some(elsewhere)).serve("0.0.0.0:0").unwrap_err();
    assert_eq!(
        error.to_string(),
        "serve: debug address 10.0.0.1:9899 is not on loopback, allowed is 127.0.0.1:PORT or [::1]:PORT"
    );
}

#[test]
fn another_address_has_what_the_program_exposes() {
    let _turn = turn();
    for (exposed, pprof, page) in
        [(Expose::Metrics, 404, 404), (Expose::Pprof, 200, 404), (Expose::All, 200, 200)]
    {
        let server = Server::builder().expose(exposed).debug_addr(None).serve("0.0.0.0:0").unwrap();
        let public = port(server.local_addr().port());
        if cfg!(feature = "pprof") {
            assert_eq!(status(public, "/debug/pprof/heap"), pprof, "{exposed:?}");
        }
        for path in ["/debug/heap", "/memory/snapshots", "/debug/heap/folded"] {
            assert_eq!(status(public, path), page, "{exposed:?} {path}");
        }
        assert_eq!([status(public, "/metrics"), status(public, "/")], [200, 404]);
    }
}
