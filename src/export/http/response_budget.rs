//! Large answers that clients have not read yet → a limit for all of them together.
//!
//! A rendered answer stays in memory until its client has read it, and a client may never do so. Each answer above
//! [`small`] bytes takes its share of [`BUDGET`] once it is rendered, and gives it back when it is sent or given up. Without a
//! share, or where it and others take heapgauge beyond its limit, it is dropped and the client is asked to come back.
//! Rendering itself is one answer at a time in each thread that makes answers.
#![forbid(unsafe_code)]

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http_body_util::BodyExt as _;
use hyper::StatusCode;
use hyper::body::{Body as _, Bytes, Frame, SizeHint};
use hyper::header::{HeaderValue, RETRY_AFTER};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::response::{Body, Response, refuse};
use crate::analyze::collector::budget;
use crate::record::control;
use crate::record::fork::mutex::PerProcess;

/// Most bytes of a piece of an answer; a connection buffers as much.
const PIECE: u64 = 64 << 10;
/// Most bytes of larger answers that may be in memory at a time. A single larger answer takes all of them.
const BUDGET: u64 = 16 << 20;
/// Unit of a permit, bytes, because a semaphore holds fewer than there may be bytes.
const UNIT: u64 = 1 << 10;
/// Assumed size of an answer that is made while it is read: it does not know its size, and holds a snapshot.
const UNKNOWN: u64 = BUDGET / 2;
/// Wait that a rejected client is told. A client that does not read is given up after a minute, so this is a middling wait.
const RETRY_SECONDS: &str = "10";

/// Shares of the answers of every server and router of this process.
static SHARES: PerProcess<Shares> = PerProcess::new();

struct Shares(Arc<Semaphore>);

impl Default for Shares {
    fn default() -> Shares {
        Shares(Arc::new(Semaphore::new((BUDGET / UNIT) as usize)))
    }
}

/// Returns the size of a piece, and of the largest answer that is sent without a share: of a small limit little, because every
/// connection may have one.
fn small() -> u64 {
    PIECE.min(budget::limit() / 256)
}

/// Sends a large answer in pieces, with a share that lasts as long as the answer.
pub(super) fn bounded(response: Response) -> Response {
    let _own = control::internal();
    let size = response.body().size_hint().exact().unwrap_or(UNKNOWN);
    if size <= small() {
        return response;
    }
    let units = size.min(BUDGET).div_ceil(UNIT) as u32;
    let has_room = control::own_bytes() <= budget::limit();
    match SHARES.get().0.clone().try_acquire_many_owned(units) {
        Ok(share) if has_room => {
            response.map(|body| Pieces { rest: Bytes::new(), body, _share: share }.boxed_unsync())
        }
        _ => {
            drop(response);
            let mut busy = refuse(
                StatusCode::SERVICE_UNAVAILABLE,
                format_args!(
                    "this answer and those that clients have not read yet take more memory than heapgauge has for them \
                     (HEAPGAUGE_MAX_OVERHEAD), try again in {RETRY_SECONDS} seconds"
                ),
            );
            busy.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(RETRY_SECONDS));
            busy
        }
    }
}

/// Body in pieces. Each is a copy, so that the whole is given back with this value, whatever a connection still buffers.
struct Pieces {
    rest: Bytes,
    body: Body,
    _share: OwnedSemaphorePermit,
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let _own = control::internal();
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
        let length = self.rest.len().min(small() as usize);
        let piece = self.rest.split_to(length);
        Poll::Ready(Some(Ok(Frame::data(Bytes::copy_from_slice(&piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        self.body.size_hint().exact().map_or_else(SizeHint::default, |size| SizeHint::with_exact(rest + size))
    }
}
