//! Address → listening sockets, which a forked child closes.
//!
//! On the thread that starts a server.

use std::net::{SocketAddr, TcpListener};

use super::say;
use crate::record::fork::closed_in_child::ClosedInChild;

/// Number of ports that are tried one after the other where the second listener's is taken; then any free one.
const DEBUG_PORTS: u16 = 100;

/// Tells whether an address is reached from this machine only.
pub(super) fn is_loopback(addr: SocketAddr) -> bool {
    addr.ip().to_canonical().is_loopback()
}

/// Opens a listener on the first of the addresses that can be had.
pub(super) fn listen(addrs: &[SocketAddr]) -> std::io::Result<ClosedInChild<TcpListener>> {
    ClosedInChild::new(|| {
        let listener = TcpListener::bind(addrs)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    })
}

/// Opens the second listener. A failure is a line on stderr and never ends the first.
pub(super) fn listen_for_debugging(wanted: SocketAddr) -> Option<ClosedInChild<TcpListener>> {
    let ports = (0..DEBUG_PORTS).map_while(|more| wanted.port().checked_add(more)).chain([0]);
    let mut refused = None;
    for port in ports {
        match listen(&[SocketAddr::new(wanted.ip(), port)]) {
            Ok(listener) => {
                if let (Some(error), Ok(addr)) = (&refused, listener.local_addr()) {
                    say(&format_args!(
                        "HEAPGAUGE_DEBUG_ADDR={wanted}: {error}; every path is served on http://{addr} instead"
                    ));
                }
                return Some(listener);
            }
            Err(error) => {
                let is_of_the_port = matches!(
                    error.kind(),
                    std::io::ErrorKind::AddrInUse | std::io::ErrorKind::PermissionDenied
                );
                let first = refused.get_or_insert(error);
                if !is_of_the_port {
                    say(&format_args!(
                        "HEAPGAUGE_DEBUG_ADDR={wanted}: {first}; only the other address is served"
                    ));
                    return None;
                }
            }
        }
    }
    say(&format_args!("HEAPGAUGE_DEBUG_ADDR={wanted}: no free port; only the other address is served"));
    None
}
