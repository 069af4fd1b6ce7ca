//! Settings of a server → a server that runs.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc;

use tokio::sync::oneshot;

use super::env;
use super::listener::{is_loopback, listen, listen_for_debugging};
use super::{LIVE, Listening, Running, Server, failed, run};
use crate::analyze::collector::Collector;
use crate::base::error::Error;
use crate::export::dump::{self, DumpSettings};
use crate::export::http::{self, Access, Expose};
use crate::export::input::Quoted;
use crate::export::short_life::say;
use crate::record::control;
use crate::record::fork::{self, mutex};

/// Settings of a [`Server`].
///
/// # Examples
///
/// ```
/// use heapgauge::{Expose, Server, ServerBuilder};
///
/// let settings: ServerBuilder = Server::builder().expose(Expose::Pprof).debug_addr(None);
/// let server = settings.serve("127.0.0.1:0")?;
/// # drop(server);
/// # Ok::<(), heapgauge::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing before `serve`"]
pub struct ServerBuilder {
    pub(super) collector: Option<Collector>,
    pub(super) expose: Expose,
    pub(super) debug_addr: Option<SocketAddr>,
    pub(super) source_url: Option<String>,
    /// True if the address is not said on stderr; `None`: as `HEAPGAUGE_QUIET` says.
    pub(super) quiet: Option<bool>,
    /// `None`: the defaults, which are made where allocations are heapgauge's own.
    pub(super) dumps: Option<DumpSettings>,
}

impl ServerBuilder {
    /// Serves the reports of this collector; default: one of its own, [`Collector::new`].
    ///
    /// # Examples
    ///
    /// ```
    /// let collector = heapgauge::Collector::builder().top_n(10).build()?;
    /// let server = heapgauge::Server::builder().collector(&collector).serve("127.0.0.1:0")?;
    /// assert_eq!(server.collector().collect().number, collector.collect().number);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn collector(mut self, collector: &Collector) -> ServerBuilder {
        self.collector = Some(collector.clone());
        self
    }

    /// Sets the paths that are served on an address other than loopback; default: [`Expose::Metrics`].
    ///
    /// On loopback every path is served, whatever this says.
    ///
    /// # Examples
    ///
    /// ```
    /// use heapgauge::{Expose, Server};
    /// let server = Server::builder().expose(Expose::Pprof).debug_addr(None).serve("0.0.0.0:0")?;
    /// assert_eq!(server.debug_addr(), None);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn expose(mut self, paths: Expose) -> ServerBuilder {
        self.expose = paths;
        self
    }

    /// Sets the address of the second listener, or leaves it out; default: `127.0.0.1:9899`.
    ///
    /// It serves every path beside an address that is not on loopback, and rejects requests that a proxy or mesh forwards.
    /// Where its port is taken, the next free one is used, and a line on stderr says which. The address has to be one of
    /// loopback.
    ///
    /// # Examples
    ///
    /// ```
    /// let everywhere = "0.0.0.0:0".parse().ok();
    /// let refused = heapgauge::Server::builder().debug_addr(everywhere).serve("127.0.0.1:0").unwrap_err();
    /// assert_eq!(
    ///     refused.to_string(),
    ///     "serve: debug address 0.0.0.0:0 is not on loopback, allowed is 127.0.0.1:PORT or [::1]:PORT"
    /// );
    /// ```
    pub fn debug_addr(mut self, addr: Option<SocketAddr>) -> ServerBuilder {
        self.debug_addr = addr;
        self
    }

    /// Sets the template of the links that the page `/debug/heap` has from lines of the program to their source:
    /// `{file}` is the path below the workspace, `{line}` the line.
    ///
    /// It has to begin with `http://` or `https://` and to have `{file}` in it, or [`serve`](ServerBuilder::serve) fails.
    ///
    /// # Examples
    ///
    /// ```
    /// let builder = heapgauge::Server::builder().source_url("https://git.example/shop/blob/main/{file}#L{line}");
    /// let server = builder.serve("127.0.0.1:0")?;
    /// # drop(server);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn source_url(mut self, template: &str) -> ServerBuilder {
        let _own = control::internal();
        self.source_url = Some(template.to_owned());
        self
    }

    /// Starts the server; see [`serve`](crate::serve).
    ///
    /// # Examples
    ///
    /// ```
    /// let server = heapgauge::Server::builder().serve("127.0.0.1:0")?;
    /// assert!(server.local_addr().ip().is_loopback());
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`serve`](crate::serve).
    pub fn serve(self, addr: impl ToSocketAddrs) -> Result<Server, Error> {
        let _own = control::internal();
        // Names are looked up before anything is locked: it may take a while.
        let addrs: Vec<SocketAddr> = addr
            .to_socket_addrs()
            .map_err(|error| {
                Error::with_source("serve: no address to listen on, allowed is HOST:PORT", error)
            })?
            .collect();
        if addrs.is_empty() {
            return Err(Error::new("serve: no address to listen on, allowed is HOST:PORT"));
        }
        if let Some(addr) = self.debug_addr.filter(|addr| !is_loopback(*addr)) {
            return Err(Error::new(format_args!(
                "serve: debug address {addr} is not on loopback, allowed is 127.0.0.1:PORT or [::1]:PORT"
            )));
        }
        if let Some(template) = self.source_url.as_deref().filter(|template| !env::is_source_url(template)) {
            return Err(Error::new(format_args!(
                "serve: source URL {}, allowed is {}",
                Quoted(template),
                env::SOURCE_URL
            )));
        }
        let mut live = LIVE.lock();
        let process = mutex::process();
        if let Some((owner, addr)) = *live
            && owner == process
        {
            return Err(Error::new(format_args!(
                "serve: already serving on http://{addr}, drop that server first"
            )));
        }
        let listener = listen(&addrs).map_err(|error| failed(&addrs, error))?;
        let local_addr = listener.local_addr().map_err(|error| failed(&addrs, error))?;
        let (access, debug) = match is_loopback(local_addr) {
            true => (Access::Loopback, None),
            false => (Access::Foreign(self.expose), self.debug_addr.and_then(listen_for_debugging)),
        };
        let debug_addr = debug.as_ref().and_then(|listener| listener.local_addr().ok());
        let collector = self.collector.unwrap_or_default();
        let (stop, stopped) = oneshot::channel();
        let (ready, outcome) = mpsc::channel();
        let clock = collector.clone();
        // Made here, where allocations are heapgauge's own: the new thread is internal from the first line of `run` on only.
        let outlet = http::outlet(&clock, self.source_url);
        let thread = std::thread::Builder::new()
            .spawn(move || run((listener, access), debug, outlet, clock, stopped, ready))
            .map_err(|error| failed(&addrs, error))?;
        // The sender is gone without a word only if the thread panicked. A fork need not wait for it.
        let outcome = fork::outside(|| outcome.recv());
        if let Err(error) = outcome.unwrap_or(Err(std::io::ErrorKind::Other.into())) {
            let _ = thread.join();
            return Err(failed(&addrs, error));
        }
        *live = Some((process, local_addr));
        if !control::has_allocator() {
            say(&control::NO_ALLOCATOR);
        }
        // A program whose dumps cannot be written is served all the same.
        let dumps = dump::start_for_server(self.dumps.unwrap_or_default()).unwrap_or_else(|error| {
            say(&error);
            None
        });
        let started = std::time::Instant::now();
        let running = Some(Running { process, stop, thread });
        let server = Server { local_addr, debug_addr, started, collector, running, _dumps: dumps };
        if !self.quiet.unwrap_or_else(is_quiet) {
            say(&Listening(&server));
        }
        Ok(server)
    }
}

/// Reads `HEAPGAUGE_QUIET`, for a server that was not started by the environment.
fn is_quiet() -> bool {
    let (config, problems) = env::parse(std::env::vars_os().filter(|(key, _)| key == "HEAPGAUGE_QUIET"));
    problems.iter().for_each(|problem| say(problem));
    config.quiet
}
