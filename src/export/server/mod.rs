//! Address → a server on a thread of its own, which also keeps the collector's clock.
//!
//! Beside an address that is not on loopback there is a second listener that is: it serves every path, to people on the
//! machine or at the end of `kubectl port-forward`.
//!
//! `serve` returns as soon as the port is open. The thread is heapgauge's own for life: nothing it
//! allocates is tracked. Whatever a client does, the program around it goes on.
#![forbid(unsafe_code)]

mod builder;
mod clock;
mod connections;
mod env;
mod listener;
mod settings;
mod snapshot_server;
mod stream;

use std::fmt;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::panic::catch_unwind;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use crate::analyze::collector::Collector;
use crate::base::error::Error;
use crate::export::dump::Dumps;
use crate::export::http::{Access, App, Expose, Outlet};
use crate::export::short_life::{say, say_if_short};
use crate::record::control;
use crate::record::fork::closed_in_child::{self, ClosedInChild};
use crate::record::fork::{mutex, mutex::ForkMutex};
pub use builder::ServerBuilder;
use clock::keep_time;
use connections::accept;
use env::{Config, DEFAULT_DEBUG_ADDR};
use listener::is_loopback;

/// Most open connections; beyond it the one that has been waiting longest makes room.
const MAX_CONNECTIONS: usize = 64;
/// Most open connections of the second listener, which is for people.
const MAX_DEBUG_CONNECTIONS: usize = 16;
/// Address of the server that lives, and its process: a child of `fork` has the memory but not the thread. Locked while a server
/// starts.
static LIVE: ForkMutex<Option<(u32, SocketAddr)>> = ForkMutex::new(None);

/// Starts heapgauge's server on `addr`, with every default.
///
/// Metrics are at `/metrics`, a page for people at `/debug/heap`, `ok` at `/health`; [`crate::http`] lists
/// all. On a loopback address requests with a foreign `Host` or
/// `Origin` are refused, so that no web page can read them. On any other address `/metrics` and `/health` are served, and
/// each client that reaches the port reads names of functions and files, and the memory they hold; every path is then on
/// [`Server::debug_addr`].
///
/// A server that starts is one line on stderr, which names its address, unless `HEAPGAUGE_QUIET=on`: no other variable of the
/// environment is read here.
///
/// The two threads it starts, for requests and for [`Dumps`](crate::Dumps), wake once a second. Dropping the [`Server`] stops it; `let _ = serve(addr)` drops it at once, and
/// the compiler does not warn. A server that was dropped within a second is a line on stderr, if the program still runs a
/// second later and has started no other one.
///
/// Where heapgauge is not the global allocator of the program, the server starts with `heap_tracking 0` and without a site,
/// and a line on stderr names the two lines to add.
///
/// # Errors
///
/// An address that cannot be resolved or listened on, a server that already lives in this process, or
/// a thread that cannot be started. The message names the address; nothing was changed.
///
/// # Examples
///
/// ```
/// let server = heapgauge::serve("127.0.0.1:0")?;
/// println!("listening on http://{}/metrics", server.local_addr());
/// let second = heapgauge::serve("127.0.0.1:0").unwrap_err();
/// assert_eq!(
///     second.to_string(),
///     format!("serve: already serving on http://{}, drop that server first", server.local_addr())
/// );
/// # Ok::<(), heapgauge::Error>(())
/// ```
pub fn serve(addr: impl ToSocketAddrs) -> Result<Server, Error> {
    Server::builder().serve(addr)
}

/// Starts the server the environment asks for; this is the line for `main`.
///
/// `None` when `HEAPGAUGE=off` (tracking is stopped then) or when it cannot be started. A problem is one
/// line on stderr and never the end of the program; an unknown or malformed variable is one too, and the
/// default is taken.
///
/// | variable | meaning | default |
/// |---|---|---|
/// | `HEAPGAUGE` | `on`, `off`; these and all switches also take `true`, `false`, `yes`, `no`, `1` and `0`, in any case | the program's, else `on` |
/// | `HEAPGAUGE_ADDR` | `HOST:PORT` to listen on; port 0 takes a free one | `127.0.0.1:9898` |
/// | `HEAPGAUGE_TOP_N` | sites chosen by live bytes, 1 to 25 | 16 |
/// | `HEAPGAUGE_DELTA_WINDOW` | how far back deltas reach, such as `90s`, `5m`, `1h`, up to `7d`; `0s`: the previous collection | `5m` |
/// | `HEAPGAUGE_OLD_AGE` | age from which blocks count as old, such as `90s`, `1h`, from `1s` to `7d`; `off`: one hour, and ids of stacks are not renewed to tell ages | the program's, else `1h` |
/// | `HEAPGAUGE_FRAMES` | frames of a traceback from now on, 1 to 64 | the program's |
/// | `HEAPGAUGE_SAMPLE` | `exact`, or record one stack per so many bytes from now on, such as `512KiB` (see [`sampling`](crate::docs::sampling)) | the program's, else `exact` |
/// | `HEAPGAUGE_MAX_OVERHEAD` | limit of heapgauge's own memory, such as `64MiB`, at least `1MiB` | the program's, else `64MiB` or a quarter to half of what a cgroup leaves |
/// | `HEAPGAUGE_RECLAIM` | `off`: the memory of stacks that have died, or that `clear_traces` or `stop` has forgotten, is not used again, see [`reclaim`](crate::TrackingAllocator::reclaim) | the program's, else `on` |
/// | `HEAPGAUGE_MEMORY_LIMIT` | limit of this process, such as `512MiB`, where its cgroup has none or a wider one | the cgroup's |
/// | `HEAPGAUGE_RELEASE` | release of the program, for `heap_build_info` | none |
/// | `HEAPGAUGE_SITE` | frame that a block is charged to: `own`, the program's own line, or `nearest`, the library's | the program's, else `own` |
/// | `HEAPGAUGE_OWN_CRATES` | crates and modules that count as own (`+tasks`) or not (`-common::cache`), beside the workspace's | the program's, else none |
/// | `HEAPGAUGE_LOOK_THROUGH` | crates to add to the list that is looked through (`+arena`), or to take from it (`-bytes`) | the program's, else none |
/// | `HEAPGAUGE_EXPOSE` | paths on addresses other than loopback: `metrics`, `pprof` or `all`, see [`Expose`] | `metrics` |
/// | `HEAPGAUGE_DEBUG_ADDR` | `HOST:PORT` on loopback for every path, beside another address; `off` for none | `127.0.0.1:9899` |
/// | `HEAPGAUGE_SOURCE_URL` | template of links to sources, see [`ServerBuilder::source_url`] | none |
/// | `HEAPGAUGE_DUMP_DIR` | directory for [`Dumps`](crate::Dumps) | none |
/// | `HEAPGAUGE_DUMP_AT` | use of memory at which a dump is written: percentages of the limit and sizes | `80%,90%` |
/// | `HEAPGAUGE_DUMP_KEEP` | dumps kept of each reason, 1 to 1000 | 5 |
/// | `HEAPGAUGE_DUMP_MAX_BYTES` | bytes of all dumps, at least `64KiB` | `64MiB` |
/// | `HEAPGAUGE_DUMP_SIGNAL` | signal that makes a dump: `SIGUSR1`, `SIGUSR2`, `SIGHUP` or `SIGQUIT` | none |
/// | `HEAPGAUGE_TERMINATION_LOG` | file that gets the largest sites as text near the memory limit, such as `/dev/termination-log` | none |
/// | `HEAPGAUGE_QUIET` | `on`: no line on stderr that says where the server listens | `off` |
///
/// A server that starts is one line on stderr, which names its address, unless `HEAPGAUGE_QUIET=on`.
///
/// The server stops when the value is dropped: give it a name that lives as long as the program. `let _ =` is no name,
/// and drops it at once; the compiler does not warn there. [`serve`] says which lines on stderr tell of it, and of a program
/// without heapgauge's allocator.
///
/// # Examples
///
/// ```no_run
/// let _server = heapgauge::serve_from_env(); // keep it: dropping it stops the server
/// ```
///
/// Without a name the compiler warns:
///
/// ```compile_fail
/// #![deny(unused_must_use)]
/// heapgauge::serve_from_env();
/// ```
#[must_use = "the server stops when this is dropped: `let _server = heapgauge::serve_from_env();` at the top of `main` keeps it"]
pub fn serve_from_env() -> Option<Server> {
    let _own = control::internal();
    catch_unwind(|| {
        Server::from_env().unwrap_or_else(|error| {
            say(&error);
            None
        })
    })
    .unwrap_or_else(|_| {
        say(&"serve_from_env failed, there is no server");
        None
    })
}

/// Applies the environment's settings and starts the server, unless it is switched off.
fn start(config: &Config) -> Result<Option<Server>, Error> {
    if config.on == Some(false) {
        control::stop();
        return Ok(None);
    }
    settings::apply(config)?;
    let collector = settings::collector(config).build()?;
    let mut builder =
        Server::builder().collector(&collector).expose(config.expose).debug_addr(config.debug_addr);
    builder.quiet = Some(config.quiet);
    builder.dumps = Some(config.dumps.clone());
    if let Some(template) = &config.source_url {
        builder = builder.source_url(template);
    }
    let server = builder
        .serve(config.addr.as_str())
        .map_err(|error| Error::with_source(format_args!("HEAPGAUGE_ADDR={}", config.addr), error))?;
    Ok(Some(server))
}

/// Displays the line that says where a server listens.
struct Listening<'a>(&'a Server);

impl fmt::Display for Listening<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Listening(Server { local_addr, debug_addr, .. }) = self;
        if is_loopback(*local_addr) {
            return write!(f, "http://{local_addr} has the page /debug/heap and /metrics");
        }
        write!(f, "http://{local_addr} has /metrics")?;
        match debug_addr {
            Some(addr) => write!(f, ", http://{addr} the page /debug/heap"),
            None => Ok(()),
        }
    }
}

/// Server with `/metrics` and the other paths. Dropping it closes the port, ends its thread and waits for it.
///
/// The thread stays in the parent of a `fork`. In the child the listener and its connections are closed before `fork`
/// returns there; dropping this does nothing, and [`serve`] starts another server, at the same address once the parent
/// has ended or dropped its own.
///
/// # Examples
///
/// ```
/// let server: heapgauge::Server = heapgauge::serve("127.0.0.1:0")?;
/// println!("http://{}/metrics, {} sites", server.local_addr(), server.collector().collect().sites.len());
/// drop(server); // the port is closed
/// # Ok::<(), heapgauge::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "the server stops when this is dropped: give it a name that lives as long as the program"]
pub struct Server {
    local_addr: SocketAddr,
    debug_addr: Option<SocketAddr>,
    started: std::time::Instant,
    collector: Collector,
    running: Option<Running>,
    /// The thread that watches memory, unless the program has started one itself.
    _dumps: Option<Dumps>,
}

/// Thread of a server, and the means to end it.
#[derive(Debug)]
struct Running {
    /// The process whose thread it is, see [`mutex::process`].
    process: u32,
    /// Dropping it ends the thread.
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Starts the server the environment asks for, for a program that decides itself about a server that cannot be
    /// started; otherwise as [`serve_from_env`], which lists the variables.
    ///
    /// `None` when `HEAPGAUGE=off`; tracking is stopped then. A malformed variable is one line on stderr, and its default is
    /// taken.
    ///
    /// The server stops when the value is dropped. The compiler does not warn about `Server::from_env()?;` without a name,
    /// which drops it at once.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// fn main() -> Result<(), heapgauge::Error> {
    ///     let _server = heapgauge::Server::from_env()?;
    ///     // the rest of the program
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`serve`]; the message names the variable.
    pub fn from_env() -> Result<Option<Server>, Error> {
        let _own = control::internal();
        let (config, problems) = env::parse(std::env::vars_os());
        problems.iter().for_each(|problem| say(problem));
        start(&config)
    }

    /// Makes the settings of a server, with the defaults of [`serve`].
    ///
    /// # Examples
    ///
    /// ```
    /// let collector = heapgauge::Collector::builder().top_n(10).build()?;
    /// let server = heapgauge::Server::builder().collector(&collector).serve("127.0.0.1:0")?;
    /// # drop(server);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn builder() -> ServerBuilder {
        let debug_addr = Some(DEFAULT_DEBUG_ADDR);
        ServerBuilder {
            collector: None,
            expose: Expose::Metrics,
            debug_addr,
            source_url: None,
            quiet: None,
            dumps: None,
        }
    }

    /// Returns the address it listens on, with the port it was given.
    ///
    /// # Examples
    ///
    /// ```
    /// let server = heapgauge::serve("127.0.0.1:0")?;
    /// assert_ne!(server.local_addr().port(), 0);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Returns the address of the second listener, which serves every path on loopback; `None` where [`Server::local_addr`] is on
    /// loopback itself, and where there is no second one.
    ///
    /// # Examples
    ///
    /// ```
    /// let server = heapgauge::serve("127.0.0.1:0")?;
    /// assert_eq!(server.debug_addr(), None);
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn debug_addr(&self) -> Option<SocketAddr> {
        self.debug_addr
    }

    /// Returns the collector of the reports it serves.
    ///
    /// # Examples
    ///
    /// ```
    /// let server = heapgauge::serve("127.0.0.1:0")?;
    /// let report = server.collector().collect();
    /// assert_eq!(report.tracking, heapgauge::is_tracing());
    /// # Ok::<(), heapgauge::Error>(())
    /// ```
    pub fn collector(&self) -> &Collector {
        &self.collector
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(Running { process, stop, thread }) = self.running.take() else { return };
        let _own = control::internal();
        if process != mutex::process() {
            // Neither end of these is in this process: joining would wait for ever.
            std::mem::forget((stop, thread));
            return;
        }
        // Taken here: the thread may need a while to end, on a busy machine.
        let lived = self.started.elapsed();
        drop(stop);
        // It never panics; if it did, the port is closed all the same.
        let _ = thread.join();
        *LIVE.lock() = None;
        let what = format!("the server at http://{}", self.local_addr);
        say_if_short(lived, what, "let _server = …", || LIVE.lock().is_some());
    }
}

/// Names the addresses in an error of listening.
fn failed(addrs: &[SocketAddr], error: std::io::Error) -> Error {
    let addrs: Vec<String> = addrs.iter().map(SocketAddr::to_string).collect();
    Error::with_source(format_args!("serve: cannot listen on {}", addrs.join(", ")), error)
}

/// Runs the server on its thread until `stopped` ends.
fn run(
    (listener, access): (ClosedInChild<TcpListener>, Access),
    debug: Option<ClosedInChild<TcpListener>>,
    outlet: Arc<Outlet>,
    collector: Collector,
    stopped: oneshot::Receiver<()>,
    ready: mpsc::Sender<std::io::Result<()>>,
) {
    control::internal_for_life();
    closed_in_child::serve_on_this_thread();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(error))),
    };
    runtime.block_on(async {
        let open = |listener: ClosedInChild<TcpListener>| listener.try_map(tokio::net::TcpListener::from_std);
        let (listener, debug) = match (open(listener), debug.map(open).transpose()) {
            (Ok(listener), Ok(debug)) => (listener, debug),
            (Err(error), _) | (_, Err(error)) => return drop(ready.send(Err(error))),
        };
        let app = Arc::new(App::new(&outlet, access));
        let debug_app = Arc::new(App::new(&outlet, Access::Debug));
        let serve_debug = async {
            match debug {
                Some(listener) => accept(listener, debug_app, MAX_DEBUG_CONNECTIONS).await,
                None => std::future::pending().await,
            }
        };
        let _ = ready.send(Ok(()));
        tokio::select! {
            _ = stopped => {}
            () = accept(listener, app, MAX_CONNECTIONS) => {}
            () = serve_debug => {}
            () = keep_time(&collector) => {}
        }
    });
    // Dropping the runtime drops every connection as it is.
}
