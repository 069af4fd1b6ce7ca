//! Listener → connections, each a task: bounded in number, in bytes and in time.
//!
//! All on the server's thread.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Context;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::export::http::{App, REQUEST_TIME};
use crate::record::fork::closed_in_child::ClosedInChild;

/// Longest head of a request, bytes; anything longer is answered 431.
const MAX_HEADER_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 64;
/// Most bytes that one connection may buffer.
const MAX_BUFFER_BYTES: usize = 64 << 10;
/// Time limit from the moment a connection could send a request until its head is there.
const HEADER_TIME: Duration = Duration::from_secs(10);
/// Connection as the accepting loop sees it.
struct Connection {
    task: AbortHandle,
    state: Arc<Activity>,
}

/// Activity of a connection, which its task writes and the accepting loop reads.
struct Activity {
    opened: Instant,
    /// Milliseconds after `opened` at which the latest request's head was there, or its answer's.
    turned_ms: AtomicU64,
    /// True while an answer is being made.
    answering: AtomicBool,
}

impl Activity {
    /// Returns the time at which the client is given up. The time of making an answer does not count: it has limits of its
    /// own.
    fn ends(&self) -> Instant {
        match self.answering.load(Ordering::Relaxed) {
            true => Instant::now() + REQUEST_TIME,
            false => {
                self.opened + Duration::from_millis(self.turned_ms.load(Ordering::Relaxed)) + REQUEST_TIME
            }
        }
    }

    fn turn(&self, answering: bool) {
        self.turned_ms.store(self.opened.elapsed().as_millis() as u64, Ordering::Relaxed);
        self.answering.store(answering, Ordering::Relaxed);
    }
}

/// Accepts connections, at most so many at a time.
pub(super) async fn accept(listener: ClosedInChild<tokio::net::TcpListener>, app: Arc<App>, most: usize) {
    // Oldest first. All tasks share this thread, so nothing changes between two awaits.
    let mut open: VecDeque<Connection> = VecDeque::with_capacity(most);
    loop {
        let accept = |context: &mut Context<'_>| {
            ClosedInChild::poll_new(|| listener.poll_accept(context).map_ok(|(stream, _)| stream))
        };
        let stream = match poll_fn(accept).await {
            Ok(stream) => stream,
            Err(_) => {
                // Out of descriptors, most likely: trying again at once would only spin.
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        open.retain(|connection| !connection.task.is_finished());
        if open.len() >= most {
            // Slow clients must not keep others out, so the oldest that waits for its client goes.
            let waiting = |connection: &Connection| !connection.state.answering.load(Ordering::Relaxed);
            match open.iter().position(waiting).and_then(|oldest| open.remove(oldest)) {
                Some(oldest) => oldest.task.abort(),
                None => continue,
            }
        }
        let state = Arc::new(Activity {
            opened: Instant::now(),
            turned_ms: AtomicU64::new(0),
            answering: AtomicBool::new(false),
        });
        let task = tokio::spawn(connection(stream, app.clone(), state.clone())).abort_handle();
        open.push_back(Connection { task, state });
    }
}

/// Serves one connection to its end.
async fn connection(stream: ClosedInChild<tokio::net::TcpStream>, app: Arc<App>, state: Arc<Activity>) {
    // Answers are written whole; waiting for more to send would only delay their last packet.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
        let (app, state) = (app.clone(), state.clone());
        async move {
            state.turn(true);
            let response = app.answer(request).await;
            state.turn(false);
            Ok::<_, Infallible>(response)
        }
    });
    let http = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_HEADER_BYTES)
        .max_buf_size(MAX_BUFFER_BYTES)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut http = std::pin::pin!(http);
    loop {
        tokio::select! {
            // An error is the client's: there is no other party to tell.
            _ = http.as_mut() => return,
            () = sleep_until(state.ends()) => {
                if state.ends() <= Instant::now() {
                    return;
                }
            }
        }
    }
}
