//! Text, status or panic → the response that a client gets.
//!
//! Any thread; a copy of a line at most.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
pub(super) const JSON: &str = "application/json";

/// Body of an answer: a text, or pieces that are made as the client reads them.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;
pub(crate) type Response = hyper::Response<Body>;

/// Answer that rejects a request. Boxed, because it is large and the other case is the common one.
pub(super) type Refusal = Box<Response>;

/// Turns a panic into an answer, so that it ends neither the connection nor the server.
pub(super) fn catch_panic<T>(answer: impl FnOnce() -> T) -> Result<T, Refusal> {
    catch_unwind(AssertUnwindSafe(answer)).map_err(|_| {
        Box::new(refuse(
            StatusCode::INTERNAL_SERVER_ERROR,
            format_args!("heapgauge failed to answer, see stderr"),
        ))
    })
}

/// Answers with one line of text.
pub(super) fn refuse(status: StatusCode, line: std::fmt::Arguments<'_>) -> Response {
    answer(status, TEXT, format!("{line}\n"))
}

/// Answers with a text of this content type.
pub(super) fn answer(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Response {
    let mut response = Response::new(whole(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Makes a body of bytes that are all there.
pub(super) fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_answer() {
        let failed = catch_panic(|| -> u8 { panic!("planted by a test") }).unwrap_err();
        assert_eq!(failed.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
