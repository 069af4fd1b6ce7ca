//! Serves `/debug/heap/allocator.json`, the parts of resident memory, and `/debug/heap/trim`, which gives free pages back.
//!
//! Any thread of any tokio runtime. The allocators are asked by a thread of heapgauge's; here the last answer is given.

use std::sync::mpsc::{self, TryRecvError};
use std::time::{Duration, Instant};

use hyper::{StatusCode, Uri};

use super::debug_heap::not_stored;
use super::query;
use super::response::{JSON, Refusal, Response, answer, catch_panic, refuse};
use crate::analyze::memory_parts;
use crate::export::emit::allocator_json;
use crate::record::control;

/// Longest wait for the first reading, and for a trim.
const READING_TIME: Duration = Duration::from_secs(2);
const TRIM_TIME: Duration = Duration::from_secs(30);
/// Time between two looks whether either is done.
const STEP: Duration = Duration::from_millis(2);

/// Answers `GET /debug/heap/allocator.json` with the last reading.
pub(super) async fn reading(uri: &Uri) -> Response {
    if let Err(refusal) = without_parameters(uri) {
        return *refusal;
    }
    let begun = Instant::now();
    loop {
        let text = catch_panic(|| {
            let _own = control::internal();
            memory_parts::latest().map(|reading| allocator_json::allocator(&reading))
        });
        match text {
            Ok(Some(text)) => return not_stored(answer(StatusCode::OK, JSON, text)),
            Ok(None) if begun.elapsed() < READING_TIME => tokio::time::sleep(STEP).await,
            Ok(None) => {
                let line = "the parts of memory were not read yet, try again in a moment";
                return refuse(StatusCode::SERVICE_UNAVAILABLE, format_args!("{line}"));
            }
            Err(failed) => return *failed,
        }
    }
}

/// Answers `POST /debug/heap/trim` with the bytes that went back to the system.
pub(super) async fn trim(uri: &Uri) -> Response {
    if let Err(refusal) = without_parameters(uri) {
        return *refusal;
    }
    let begun = Instant::now();
    let started = catch_panic(|| {
        let _own = control::internal();
        let (done, returned) = mpsc::channel();
        // It may take seconds, in which others are to be answered.
        let trim = move || {
            control::internal_for_life();
            // The client may have gone.
            let _ = done.send(memory_parts::trim());
        };
        std::thread::Builder::new().spawn(trim).map(|_| returned)
    });
    let returned = match started {
        Ok(Ok(returned)) => returned,
        Ok(Err(error)) => {
            let line = format_args!("the thread that trims cannot be started: {error}");
            return refuse(StatusCode::SERVICE_UNAVAILABLE, line);
        }
        Err(failed) => return *failed,
    };
    loop {
        match returned.try_recv() {
            Ok(bytes) => {
                let text = catch_panic(|| {
                    let _own = control::internal();
                    let text =
                        serde_json::json!({ "returned": bytes, "seconds": begun.elapsed().as_secs_f64() });
                    answer(StatusCode::OK, JSON, format!("{text}\n"))
                });
                return text.unwrap_or_else(|failed| *failed);
            }
            Err(TryRecvError::Empty) if begun.elapsed() < TRIM_TIME => tokio::time::sleep(STEP).await,
            Err(TryRecvError::Disconnected) => {
                let line = "AllocatorStatistics::trim of the program panicked";
                return refuse(StatusCode::INTERNAL_SERVER_ERROR, format_args!("{line}"));
            }
            Err(TryRecvError::Empty) => {
                let line = format_args!("free memory was not given back within {} s", TRIM_TIME.as_secs());
                return refuse(StatusCode::SERVICE_UNAVAILABLE, line);
            }
        }
    }
}

fn without_parameters(uri: &Uri) -> Result<(), Refusal> {
    let parsed = catch_panic(|| {
        let _own = control::internal();
        query::no_params(uri.query().unwrap_or(""))
    })?;
    parsed.map_err(|line| Box::new(refuse(StatusCode::BAD_REQUEST, format_args!("{line}"))))
}
