//! Work of a request → a thread of heapgauge's, for routers that are part of the program's server.
//!
//! A collection may take a second and a tree of many stacks half of one: on the program's own async workers, that is
//! time the program does not answer in. There the request only waits for a channel, which any executor can do. One thread
//! does the work of all routers, in slices, in the order in which they ask. It starts with the first request and
//! stays; a child of `fork` starts its own.
#![forbid(unsafe_code)]

use std::future::{Future, poll_fn};
use std::io;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http_body_util::BodyExt as _;
use hyper::StatusCode;
use hyper::body::{Body as _, Bytes, Frame, SizeHint};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::REQUEST_TIME;
use super::response::{Body, Response, refuse};
use crate::record::control;
use crate::record::fork::mutex::{self, ForkMutex};

type Job = Pin<Box<dyn Future<Output = ()> + Send>>;
type Jobs = mpsc::UnboundedSender<Job>;

/// Queue of the thread, and the process it belongs to: a child of `fork` has the queue but not the thread.
static JOBS: ForkMutex<Option<(u32, Jobs)>> = ForkMutex::new(None);

/// Makes an answer on heapgauge's thread. A client that goes away ends the work.
pub(super) async fn on_worker_thread(make: impl Future<Output = Response> + Send + 'static) -> Response {
    let submitted = {
        let _own = control::internal();
        let (answer, answered) = oneshot::channel();
        submit(Box::pin(work(make, answer))).map(|()| answered)
    };
    match submitted {
        Ok(answered) => answered.await.unwrap_or_else(|_| {
            refuse(StatusCode::INTERNAL_SERVER_ERROR, format_args!("heapgauge failed to answer, see stderr"))
        }),
        Err(error) => refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            format_args!("heapgauge cannot start the thread that answers: {error}"),
        ),
    }
}

/// Queues a job, and starts the thread if this process has none.
fn submit(job: Job) -> io::Result<()> {
    let mut shared = JOBS.lock();
    let process = mutex::process();
    match &*shared {
        Some((owner, jobs)) if *owner == process => jobs.send(job),
        _ => {
            let jobs = start()?;
            let sent = jobs.send(job);
            // Dropping the queue of another process would wake a thread that is not in this one.
            mem::forget(shared.replace((process, jobs)));
            sent
        }
    }
    .map_err(|_| io::ErrorKind::Other.into())
}

/// Starts a thread. It ends when its queue is closed and its work done.
fn start() -> io::Result<Jobs> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
    std::thread::Builder::new().spawn(move || {
        control::internal_for_life();
        runtime.block_on(async move {
            let mut running = JoinSet::new();
            loop {
                tokio::select! {
                    job = queue.recv() => match job {
                        Some(job) => drop(running.spawn(job)),
                        None => break,
                    },
                    Some(_) = running.join_next() => {}
                }
            }
            while running.join_next().await.is_some() {}
        });
    })?;
    Ok(jobs)
}

/// Makes the answer, and then hands over its body as the client reads it.
async fn work(made: impl Future<Output = Response>, mut answer: oneshot::Sender<Response>) {
    let response = tokio::select! {
        response = made => response,
        () = answer.closed() => return,
    };
    let (parts, body) = response.into_parts();
    let (pieces, received) = mpsc::channel(1);
    let received = Received { pieces: received, size: body.size_hint(), has_ended: false };
    if answer.send(Response::from_parts(parts, received.boxed_unsync())).is_ok() {
        // A client that does not read must not hold the answer's memory for ever.
        let _ = timeout(REQUEST_TIME, hand_over(body, pieces)).await;
    }
}

/// Sends the body in pieces, with an end where it is whole.
async fn hand_over(mut body: Body, pieces: mpsc::Sender<Piece>) {
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let Ok(frame) = frame else { return };
        let Ok(data) = frame.into_data() else { continue };
        if pieces.send(Piece::Data(data)).await.is_err() {
            return;
        }
    }
    let _ = pieces.send(Piece::End).await;
}

/// Piece of a body, or its end.
enum Piece {
    Data(Bytes),
    End,
}

/// Body as the program's server sees it.
struct Received {
    pieces: mpsc::Receiver<Piece>,
    size: SizeHint,
    has_ended: bool,
}

impl hyper::body::Body for Received {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let _own = control::internal();
        Poll::Ready(match ready!(self.pieces.poll_recv(context)) {
            Some(Piece::Data(data)) => Some(Ok(Frame::data(data))),
            Some(Piece::End) => {
                self.has_ended = true;
                None
            }
            // An error ends the connection, so that a part is not taken for the whole.
            None => Some(Err(io::Error::other("heapgauge gave the answer up"))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended || self.size.exact() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        // Asked before the first piece only.
        self.size
    }
}
