//! `/debug/pprof/heap`, `/debug/pprof/allocs`, `/debug/heap/folded` → a profile, sent in pieces.
//!
//! How many are asked for, made and sent at once is bounded, because each holds memory; a profile over some seconds
//! leaves the thread to others meanwhile.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Frame, SizeHint};
#[cfg(feature = "pprof")]
use hyper::header::{CONTENT_DISPOSITION, HeaderValue};
use hyper::{StatusCode, Uri};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

#[cfg(feature = "pprof")]
use super::query::ProfileQuery;
use super::response::{Refusal, Response, TEXT, answer, catch_panic, refuse};
use super::{NAMING_TIME, Outlet, query};
use crate::analyze::collector::Collector;
use crate::analyze::profile::Profile;
#[cfg(feature = "pprof")]
use crate::analyze::profile::ProfileValue;
use crate::export::emit::folded;
#[cfg(feature = "pprof")]
use crate::export::emit::pprof;
use crate::record::control;

/// Most profiles asked for and not made yet. Fewer than there may be connections, so that `/metrics` is always answered.
const ASKED: usize = 16;
/// Most profiles that wait for their seconds to pass. They hold the counts of all stacks.
#[cfg(feature = "pprof")]
const WAITING: usize = 4;
/// Most profiles that are made or sent. They hold a whole profile.
const MADE: usize = 2;

/// Limits on the profiles that are asked for, waited for, made and sent at a time.
pub(super) struct ProfileSlots {
    asked: Arc<Semaphore>,
    #[cfg(feature = "pprof")]
    waiting: Arc<Semaphore>,
    made: Arc<Semaphore>,
}

impl Default for ProfileSlots {
    fn default() -> ProfileSlots {
        ProfileSlots {
            asked: Arc::new(Semaphore::new(ASKED)),
            #[cfg(feature = "pprof")]
            waiting: Arc::new(Semaphore::new(WAITING)),
            made: Arc::new(Semaphore::new(MADE)),
        }
    }
}

impl ProfileSlots {
    fn ask(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        let busy = |_| busy(format_args!("{ASKED} profiles are being taken already, try again later"));
        self.asked.clone().try_acquire_owned().map_err(busy)
    }

    #[cfg(feature = "pprof")]
    fn wait(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        let busy = |_| {
            busy(format_args!("{WAITING} profiles over seconds are being taken already, try again later"))
        };
        self.waiting.clone().try_acquire_owned().map_err(busy)
    }

    async fn make(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        // It is never closed.
        self.made.clone().acquire_owned().await.map_err(|_| busy(format_args!("try again later")))
    }
}

fn busy(line: std::fmt::Arguments<'_>) -> Refusal {
    Box::new(refuse(StatusCode::SERVICE_UNAVAILABLE, line))
}

#[cfg(feature = "pprof")]
pub(super) async fn heap(outlet: &Outlet, uri: &Uri) -> Response {
    let keys = ["seconds", "debug", "older_than"];
    profile(outlet, uri, "heap", &keys, ProfileValue::LiveBytes).await.unwrap_or_else(|refusal| *refusal)
}

#[cfg(feature = "pprof")]
pub(super) async fn allocs(outlet: &Outlet, uri: &Uri) -> Response {
    profile(outlet, uri, "allocs", &["seconds", "debug"], ProfileValue::AllocatedBytes)
        .await
        .unwrap_or_else(|refusal| *refusal)
}

pub(super) async fn folded(outlet: &Outlet, uri: &Uri) -> Response {
    folded_lines(outlet, uri).await.unwrap_or_else(|refusal| *refusal)
}

#[cfg(feature = "pprof")]
async fn profile(
    outlet: &Outlet,
    uri: &Uri,
    name: &str,
    keys: &[&str],
    shown: ProfileValue,
) -> Result<Response, Refusal> {
    let asked = internal(|| ProfileQuery::parse(uri.query().unwrap_or(""), keys))?.map_err(bad)?;
    let _asked = outlet.profile_slots.get().ask()?;
    let (profile, made) = match asked.seconds {
        None => {
            let made = outlet.profile_slots.get().make().await?;
            (take(&outlet.collector, asked.older_than)?, made)
        }
        Some(seconds) => {
            let _waiting = outlet.profile_slots.get().wait()?;
            let before = take(&outlet.collector, None)?;
            // In a runtime without a clock this panics when it is made, not when it is awaited.
            internal(|| tokio::time::sleep(seconds))?.await;
            let after = take(&outlet.collector, None)?;
            let profile = internal(|| after.since(&before))?;
            drop((before, after));
            (profile, outlet.profile_slots.get().make().await?)
        }
    };
    give_names(&outlet.collector, &profile).await?;
    if asked.text {
        let text = internal(|| Bytes::from(pprof::text(&profile)))?;
        return send(TEXT, Unsent::Whole(text), made);
    }
    let mut encoder = internal(|| pprof::Encoder::new(&profile, shown))?;
    while internal(|| encoder.encode_piece(&profile))? {
        tokio::task::yield_now().await;
    }
    let bytes = internal(|| Bytes::from(encoder.finish()))?;
    let mut response = send("application/octet-stream", Unsent::Whole(bytes), made)?;
    internal(|| {
        let difference = match asked {
            ProfileQuery { seconds: Some(_), .. } => "-delta",
            ProfileQuery { older_than: Some(_), .. } => "-old",
            _ => "",
        };
        let file = HeaderValue::try_from(format!("attachment; filename=\"{name}{difference}.pb.gz\""));
        response.headers_mut().extend(file.map(|file| (CONTENT_DISPOSITION, file)));
        response
    })
}

async fn folded_lines(outlet: &Outlet, uri: &Uri) -> Result<Response, Refusal> {
    let asked = internal(|| query::folded(uri.query().unwrap_or("")))?.map_err(bad)?;
    let _asked = outlet.profile_slots.get().ask()?;
    let made = outlet.profile_slots.get().make().await?;
    let mut profile = take(&outlet.collector, asked.older_than)?;
    // A stack without live blocks has no line, and needs no name.
    profile.retain_live();
    give_names(&outlet.collector, &profile).await?;
    let mut folder = internal(|| folded::Folder::new(asked.value, asked.with_scopes))?;
    while internal(|| folder.fold_piece(&profile))? {
        tokio::task::yield_now().await;
    }
    let lines = internal(|| folder.finish())?;
    send(TEXT, Unsent::Lines(lines), made)
}

/// Takes a profile, of the blocks that are certain to be older than an age or of all.
fn take(collector: &Collector, older_than: Option<Duration>) -> Result<Profile, Refusal> {
    let off = |off: &dyn fmt::Display| refuse(StatusCode::SERVICE_UNAVAILABLE, format_args!("{off}"));
    match older_than {
        None => internal(Profile::unnamed)?.map_err(|error| Box::new(off(&error))),
        Some(age) => {
            let old = internal(|| collector.old_blocks(age))?.map_err(|error| Box::new(off(&error)))?;
            internal(|| Profile::of(old))?.map_err(|error| Box::new(off(&error)))
        }
    }
}

fn bad(line: String) -> Refusal {
    Box::new(refuse(StatusCode::BAD_REQUEST, format_args!("{line}")))
}

/// Names the stacks, for as long as a client would wait; the rest are shown by module and offset.
async fn give_names(collector: &Collector, profile: &Profile) -> Result<(), Refusal> {
    let begun = Instant::now();
    let mut unnamed = internal(|| profile.without_names())?;
    while !unnamed.is_empty() && begun.elapsed() < NAMING_TIME {
        if !internal(|| collector.name_stacks_slice(&mut unnamed))? {
            break;
        }
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Calls a function with its allocations counted as heapgauge's own.
fn internal<T>(make: impl FnOnce() -> T) -> Result<T, Refusal> {
    catch_panic(|| {
        let _own = control::internal();
        make()
    })
}

fn send(content_type: &'static str, rest: Unsent, made: OwnedSemaphorePermit) -> Result<Response, Refusal> {
    internal(|| {
        let mut response = answer(StatusCode::OK, content_type, Bytes::new());
        *response.body_mut() = StreamBody { rest, _made: made }.boxed_unsync();
        response
    })
}

/// Part of a profile that has not been sent yet.
enum Unsent {
    #[cfg(feature = "pprof")]
    Whole(Bytes),
    Lines(folded::Lines),
}

/// Body that keeps its slot until it is sent or given up.
struct StreamBody {
    rest: Unsent,
    _made: OwnedSemaphorePermit,
}

impl hyper::body::Body for StreamBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let next = internal(|| match &mut self.rest {
            #[cfg(feature = "pprof")]
            Unsent::Whole(bytes) => Some(std::mem::take(bytes)).filter(|bytes| !bytes.is_empty()),
            Unsent::Lines(lines) => lines.next_piece().map(Bytes::from),
        });
        // An error ends the connection, so that a part is not taken for the whole.
        let next = next.map_err(|_| io::Error::other("heapgauge failed to answer"));
        Poll::Ready(next.map(|next| next.map(Frame::data)).transpose())
    }

    fn is_end_stream(&self) -> bool {
        match &self.rest {
            #[cfg(feature = "pprof")]
            Unsent::Whole(bytes) => bytes.is_empty(),
            Unsent::Lines(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.rest {
            #[cfg(feature = "pprof")]
            Unsent::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Unsent::Lines(_) => SizeHint::default(),
        }
    }
}
