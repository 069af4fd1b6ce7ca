//! `Accept` and `Accept-Encoding` → the format of metrics, and gzip for clients that ask for it.
//!
//! A body is compressed piece by piece, as its client reads it.
#![forbid(unsafe_code)]

use std::io::{self, Write as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::BodyExt as _;
use hyper::HeaderMap;
use hyper::body::{Body as _, Bytes, Frame};
use hyper::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, HeaderName, HeaderValue, VARY};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::response::{Body, Response};
use crate::record::control;
use crate::record::fork::mutex::PerProcess;

/// Shortest answer that is compressed, bytes. A shorter one fits into one packet anyway.
const SHORTEST: u64 = 1 << 10;
/// Bytes that are compressed at a time, some milliseconds of work.
const PIECE: usize = 64 << 10;
/// Most answers that are compressed at a time: each holds some 300 KiB until it is sent. Others are sent as they are.
const ENCODERS: usize = 8;

/// Encoders of every server and router of this process.
static FREE_ENCODERS: PerProcess<FreeEncoders> = PerProcess::new();

struct FreeEncoders(Arc<Semaphore>);

impl Default for FreeEncoders {
    fn default() -> FreeEncoders {
        FreeEncoders(Arc::new(Semaphore::new(ENCODERS)))
    }
}

/// Tells whether a client prefers OpenMetrics to the text of Prometheus. A wildcard asks for neither, and is the text; at the
/// same quality the first of the two in the list is preferred.
pub(super) fn prefers_open_metrics(headers: &HeaderMap) -> bool {
    let (mut best, mut is_open_metrics) = (0.0, false);
    for Listed { name, mut parameters, quality } in listed(headers, ACCEPT) {
        let mut version =
            |allowed: &str| parameters.all(|(key, value)| key != "version" || value.starts_with(allowed));
        let is_known = match name {
            "application/openmetrics-text" => version("1."),
            "text/plain" | "text/*" => version("0.0.4"),
            _ => false,
        };
        if is_known && quality > best {
            (best, is_open_metrics) = (quality, name == "application/openmetrics-text");
        }
    }
    is_open_metrics
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let mut accepted =
        listed(headers, ACCEPT_ENCODING).filter(|listed| ["gzip", "x-gzip"].contains(&listed.name));
    accepted.next().is_some_and(|listed| listed.quality > 0.0)
}

/// Member of a list of preferences: `NAME;KEY=VALUE;q=0.5`.
struct Listed<'a, Parameters> {
    name: &'a str,
    parameters: Parameters,
    /// 0: not acceptable.
    quality: f32,
}

/// Splits the lists in all headers of this name. A quality that is no number is 0.
fn listed(
    headers: &HeaderMap,
    header: HeaderName,
) -> impl Iterator<Item = Listed<'_, impl Iterator<Item = (&str, &str)> + Clone>> {
    let values = headers.get_all(header).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|member| {
        let mut parts = member.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let parameters = parts.filter_map(|part| {
            let (key, value) = part.split_once('=')?;
            Some((key.trim(), value.trim()))
        });
        let quality = parameters.clone().find(|(key, _)| key.eq_ignore_ascii_case("q"));
        Listed { name, parameters, quality: quality.map_or(1.0, |(_, value)| value.parse().unwrap_or(0.0)) }
    })
}

/// Compresses an answer for a client that accepts it. `varies` are the headers that the answer depends on.
pub(super) fn compressed(headers: &HeaderMap, varies: &'static str, mut response: Response) -> Response {
    response.headers_mut().insert(VARY, HeaderValue::from_static(varies));
    if !accepts_gzip(headers) || response.body().size_hint().exact().is_some_and(|size| size < SHORTEST) {
        return response;
    }
    let _own = control::internal();
    let Ok(slot) = FREE_ENCODERS.get().0.clone().try_acquire_owned() else { return response };
    response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response.map(|body| {
        let encoder = GzEncoder::new(Vec::new(), Compression::fast());
        Gzipped { body, rest: Bytes::new(), encoder: Some((encoder, slot)) }.boxed_unsync()
    })
}

/// Body that is compressed as it is read.
struct Gzipped {
    body: Body,
    /// Bytes that were read and are not compressed yet.
    rest: Bytes,
    /// `None` once the end has been made.
    encoder: Option<(GzEncoder<Vec<u8>>, OwnedSemaphorePermit)>,
}

impl hyper::body::Body for Gzipped {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let _own = control::internal();
        let this = &mut *self;
        while let Some((encoder, _)) = &mut this.encoder {
            if this.rest.is_empty() {
                match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                    Some(Ok(frame)) => this.rest = frame.into_data().unwrap_or_default(),
                    Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                    None => {
                        let end = this.encoder.take().map(|(encoder, _)| encoder.finish());
                        return Poll::Ready(end.map(|end| end.map(|end| Frame::data(end.into()))));
                    }
                }
            }
            let piece = this.rest.split_to(this.rest.len().min(PIECE));
            if let Err(error) = encoder.write_all(&piece) {
                return Poll::Ready(Some(Err(error)));
            }
            let made = std::mem::take(encoder.get_mut());
            if !made.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(made.into()))));
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.encoder.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &'static str) -> HeaderMap {
        [(name, HeaderValue::from_static(value))].into_iter().collect()
    }

    #[test]
    fn openmetrics_is_for_those_who_prefer_it() {
        // As Prometheus 2 and 3 and the collector of OpenTelemetry ask.
        for accept in [
            "application/openmetrics-text; version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            "application/openmetrics-text",
            "application/openmetrics-text, */*",
            "application/openmetrics-text;version=1.0.0;charset=utf-8, text/plain",
        ] {
            assert!(prefers_open_metrics(&headers(ACCEPT, accept)), "{accept}");
        }
        for accept in [
            "",
            "*/*",
            "text/plain",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "text/plain;version=0.0.4;q=0.5,application/openmetrics-text;version=1.0.0;q=0.4",
            "application/openmetrics-text;version=1.0.0;q=0.4,text/plain;version=0.0.4;q=0.5",
            "text/plain, application/openmetrics-text",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=x",
            "application/openmetrics-text;version=0.0.1,text/plain;q=0.1",
            "application/*",
        ] {
            assert!(!prefers_open_metrics(&headers(ACCEPT, accept)), "{accept}");
        }
        assert!(!prefers_open_metrics(&HeaderMap::new()));
    }

    #[test]
    fn gzip_is_for_those_who_ask() {
        for accept in ["gzip", "x-gzip", "deflate, gzip;q=0.5", "br;q=1.0, gzip ; q=0.8, *;q=0.1"] {
            assert!(accepts_gzip(&headers(ACCEPT_ENCODING, accept)), "{accept}");
        }
        for accept in ["", "identity", "br", "*", "gzip;q=0", "gzip;q=0.0, deflate", "gzipped"] {
            assert!(!accepts_gzip(&headers(ACCEPT_ENCODING, accept)), "{accept}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }
}
