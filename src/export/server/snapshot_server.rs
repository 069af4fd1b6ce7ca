//! Snapshot file → a server with its page, on the calling thread.

use std::net::SocketAddr;
use std::sync::Arc;

use super::connections::accept;
use super::listener::{is_loopback, listen};
use super::{MAX_DEBUG_CONNECTIONS, failed};
use crate::base::error::Error;
use crate::export::http::{App, SnapshotPage};
use crate::record::control;

impl SnapshotPage {
    /// Serves the page on a loopback address until the program ends; `started` gets the address. Returns errors only.
    ///
    /// # Errors
    ///
    /// If the address is not on loopback, or cannot be listened on.
    pub fn serve(self, addr: SocketAddr, started: impl FnOnce(SocketAddr)) -> Result<(), Error> {
        let _own = control::internal();
        if !is_loopback(addr) {
            return Err(Error::new(format_args!(
                "serve: {addr} is not on loopback, allowed are 127.0.0.1:PORT and [::1]:PORT"
            )));
        }
        let cannot = |error| failed(&[addr], error);
        let listener = listen(&[addr]).map_err(cannot)?;
        let local_addr = listener.local_addr().map_err(cannot)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
        runtime.block_on(async {
            let listener = listener.try_map(tokio::net::TcpListener::from_std).map_err(cannot)?;
            started(local_addr);
            accept(listener, Arc::new(App::of_file(self)), MAX_DEBUG_CONNECTIONS).await;
            Ok(())
        })
    }
}
