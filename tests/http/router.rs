//! Tests `http::router` and `http::debug_router` inside a program's own axum server: their paths, and that they do not work
//! on the program's runtime.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::client::{self, Answer};
use crate::stacks::blocks_on_many_stacks;
use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::routing::get;
use heapgauge::Collector;
use heapgauge::http::{debug_router, router};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tower::ServiceExt as _;

/// Runs a server of the program's own, until it is dropped.
struct Program {
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Program {
    /// Starts the server. `beside` runs on the same runtime.
    fn serve(runtime: Runtime, app: Router, beside: impl Future<Output = ()> + Send + 'static) -> Program {
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::spawn(beside);
                tokio::select! {
                    _ = stopped => {}
                    served = async { axum::serve(listener, app).await } => served.unwrap(),
                }
            });
        });
        Program { addr, stop: Some(stop), thread: Some(thread) }
    }

    fn ask(&self, method: &str, path: &str) -> Answer {
        let host = "Host: service.example\r\nConnection: close";
        client::send(self.addr, format!("{method} {path} HTTP/1.1\r\n{host}\r\n\r\n").as_bytes())
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn the_router_becomes_part_of_another_server() {
    own_process!();
    let own = Router::new()
        .route("/", get(async || "the program's own"))
        .fallback(async || (StatusCode::NOT_FOUND, "the program's own, too"));
    let collector = Collector::new();
    let program = Program::serve(current_thread(), own.clone().merge(router(&collector)), async {});
    assert_eq!(program.get("/").text(), "the program's own");
    assert_eq!(program.get("/else").text(), "the program's own, too");
    let metrics = program.get("/metrics");
    assert_eq!(metrics.status, 200);
    assert_eq!(metrics.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(metrics.text().contains("\nheap_tracking 1\n"));
    // The program decides which host names are allowed.
    assert_eq!(program.get("/health").text(), "ok\n");
    assert_eq!(program.ask("DELETE", "/metrics").status, 405);
    // The router of metrics serves no stacks.
    for path in ["/memory/snapshots", "/debug/heap", "/debug/heap/snapshot.json", "/debug/pprof/heap"] {
        assert_eq!(program.get(path).status, 404, "{path}");
    }
    assert_eq!(program.ask("POST", "/memory/snapshots").status, 404);
    drop(program);

    let both = own.merge(router(&collector)).nest("/inside", debug_router(&collector));
    let program = Program::serve(current_thread(), both, async {});
    for path in ["/metrics", "/health", "/inside/debug/heap", "/inside/debug/heap/folded"] {
        assert_eq!(program.get(path).status, 200, "{path}");
    }
    let answer = program.get("/inside/memory/snapshots?top=0");
    assert_eq!((answer.status, answer.text()), (400, "parameter top is 0, allowed are 1 to 10000\n"));
    assert_eq!(program.ask("POST", "/inside/memory/snapshots").status, 200);
    assert_eq!(program.get("/inside/metrics").status, 404);
}

/// Returns the processor time of the calling thread.
fn computed() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a place for the answer that this function owns.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(done, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A service with one thread answers others while heapgauge makes a large answer.
#[test]
fn the_programs_runtime_is_not_held_up() {
    own_process!();
    const TURNS: u32 = 9;
    let kept = blocks_on_many_stacks(TURNS);
    let longest = Arc::new(AtomicU64::new(0));
    let ticker = {
        let longest = longest.clone();
        async move {
            let mut before = computed();
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                let now = computed();
                longest.fetch_max((now - before).as_micros() as u64, Ordering::Relaxed);
                before = now;
            }
        }
    };
    let collector = Collector::new();
    let app = router(&collector).merge(debug_router(&collector));
    let program = Program::serve(current_thread(), app, ticker);
    let mut paths = vec![
        "/metrics",
        "/memory/snapshots?group_by=traceback&top=10000&format=json",
        "/debug/heap/sites.json",
        "/debug/heap/stacks.json?top=10000",
        "/debug/heap/tree.json?nodes=20000",
        "/debug/heap/snapshot.json",
        "/debug/heap/folded",
    ];
    if cfg!(feature = "pprof") {
        paths.extend(["/debug/pprof/heap", "/debug/pprof/allocs?seconds=1", "/debug/pprof/heap?debug=1"]);
    }
    for path in paths {
        longest.store(0, Ordering::Relaxed);
        assert_eq!(program.get(path).status, 200, "{path}");
        let longest = Duration::from_micros(longest.load(Ordering::Relaxed));
        assert!(longest < Duration::from_millis(25), "{path}: {longest:?} between two ticks");
    }
    assert_eq!(kept.len(), 1 << TURNS);
}

/// A profile over seconds waits on heapgauge's thread, whose clock is its own.
#[cfg(feature = "pprof")]
#[test]
fn the_programs_runtime_needs_no_clock() {
    own_process!();
    let runtime = Builder::new_current_thread().enable_io().build().unwrap();
    let program = Program::serve(runtime, debug_router(&Collector::new()), async {});
    let answer = program.get("/debug/pprof/heap?seconds=1");
    assert_eq!(answer.status, 200, "{}", answer.head);
}

fn status(app: &Router, path: &str) -> StatusCode {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let runtime = Builder::new_current_thread().build().unwrap();
    runtime.block_on(app.clone().oneshot(request)).unwrap().status()
}

/// The thread that does the work is not in the child, so the child starts another.
#[test]
fn a_forked_child_is_answered_too() {
    own_process!();
    let app = router(&Collector::new());
    assert_eq!(status(&app, "/metrics"), StatusCode::OK);
    // SAFETY: the child uses what its own thread has, and ends without running anything of the parent's.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: a signal ends the child if it hangs, and `_exit` ends it otherwise.
        unsafe {
            libc::alarm(60);
            libc::_exit(i32::from(status(&app, "/metrics") != StatusCode::OK));
        }
    }
    let mut how = 0;
    // SAFETY: a child of this process, and a place for the answer.
    assert_eq!(unsafe { libc::waitpid(child, &mut how, 0) }, child);
    assert!(libc::WIFEXITED(how) && libc::WEXITSTATUS(how) == 0, "{how}");
}
