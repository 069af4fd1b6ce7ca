//! `/debug/heap/dump`, `/debug/heap/dumps`, `/debug/heap/peak` → dumps, and what held memory at the highest point.
//!
//! Any thread of any tokio runtime. A dump is written by the thread that watches memory; its file is sent in pieces.

use std::fs::File;
use std::io::{self, Read as _};
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use hyper::header::{CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_TYPE, HeaderValue};
use hyper::{StatusCode, Uri};

use super::debug_heap::Pieces;
use super::query::{self, Query};
use super::response::{JSON, Refusal, Response, TEXT, answer, catch_panic, refuse};
use super::snapshots::{Shown, rows};
use super::{NAMED_LATE, NAMING_TIME};
use crate::analyze::snapshot::Snapshot;
use crate::export::dump::{access, peak};
use crate::export::emit::json;
use crate::export::input::Quoted;
use crate::record::control;

/// Path of the list, before the name of a dump.
const DUMPS: &str = "/debug/heap/dumps/";
/// Longest wait for a dump.
const DUMP_TIME: Duration = Duration::from_secs(10);
/// Time that naming may take in one go.
const SLICE: Duration = Duration::from_millis(100);
/// Length of a piece of a file.
const PIECE: usize = 64 << 10;
const NO_DIRECTORY: &str = "there is no directory for dumps, HEAPGAUGE_DUMP_DIR names one";

/// Answers `POST /debug/heap/dump` with the name of a new dump.
pub(super) async fn write(uri: &Uri) -> Response {
    let asked = catch_panic(|| {
        let _own = control::internal();
        if let Err(line) = query::no_params(uri.query().unwrap_or("")) {
            return Err(Box::new(refuse(StatusCode::BAD_REQUEST, format_args!("{line}"))));
        }
        match access::has_directory() {
            true => Ok(access::ask()),
            false => Err(Box::new(refuse(StatusCode::SERVICE_UNAVAILABLE, format_args!("{NO_DIRECTORY}")))),
        }
    });
    let answers = match asked {
        Ok(Ok(answers)) => answers,
        Ok(Err(refusal)) | Err(refusal) => return *refusal,
    };
    let begun = Instant::now();
    loop {
        match answers.try_recv() {
            Ok(Ok(name)) => {
                let text = catch_panic(|| {
                    let _own = control::internal();
                    answer(StatusCode::OK, JSON, format!("{}\n", serde_json::json!({ "name": name })))
                });
                return text.unwrap_or_else(|failed| *failed);
            }
            Ok(Err(line)) => return refuse(StatusCode::SERVICE_UNAVAILABLE, format_args!("{line}")),
            Err(TryRecvError::Empty) if begun.elapsed() < DUMP_TIME => {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Err(_) => {
                let line = format_args!("the dump was not written within {} s", DUMP_TIME.as_secs());
                return refuse(StatusCode::SERVICE_UNAVAILABLE, line);
            }
        }
    }
}

/// Answers `GET /debug/heap/dumps` with a list, newest first.
pub(super) fn list(uri: &Uri) -> Response {
    let made = catch_panic(|| {
        let _own = control::internal();
        if let Err(line) = query::each(uri.query().unwrap_or(""), &[], |_, _| Ok(())) {
            return refuse(StatusCode::BAD_REQUEST, format_args!("{line}"));
        }
        let rows = match listed() {
            Some(Ok(rows)) => rows,
            Some(Err(error)) => {
                let line = format_args!("the directory of dumps cannot be read: {error}");
                return refuse(StatusCode::SERVICE_UNAVAILABLE, line);
            }
            None => return refuse(StatusCode::SERVICE_UNAVAILABLE, format_args!("{NO_DIRECTORY}")),
        };
        answer(StatusCode::OK, JSON, format!("{}\n", serde_json::json!({ "version": 1, "dumps": rows })))
    });
    no_store(made.unwrap_or_else(|failed| *failed))
}

/// Lists the dumps, newest first. `None` without a directory.
pub(super) fn listed() -> Option<io::Result<Vec<json::Dump>>> {
    let row = |file: access::DumpFile| json::Dump {
        reason: file.reason(),
        bytes: file.bytes,
        modified: json::unix_seconds(file.modified),
        name: file.name,
    };
    access::list().map(|files| Ok(files?.into_iter().rev().map(row).collect()))
}

/// Answers `GET /debug/heap/dumps/NAME` with the file.
pub(super) fn file(uri: &Uri) -> Response {
    let made = catch_panic(|| {
        let _own = control::internal();
        if let Err(line) = query::each(uri.query().unwrap_or(""), &[], |_, _| Ok(())) {
            return refuse(StatusCode::BAD_REQUEST, format_args!("{line}"));
        }
        let name = uri.path().strip_prefix(DUMPS).unwrap_or_default();
        let file = match access::open(name) {
            Ok(file) => file,
            Err(_) => {
                let line = format_args!("there is no dump {}, /debug/heap/dumps lists them", Quoted(name));
                return refuse(StatusCode::NOT_FOUND, line);
            }
        };
        let kind = if name.ends_with(".json") { JSON } else { TEXT };
        let mut response = Response::new(Pieces(Box::new(pieces(file))).boxed_unsync());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename=\"{name}\"")) {
            response.headers_mut().insert(CONTENT_DISPOSITION, value);
        }
        response
    });
    no_store(made.unwrap_or_else(|failed| *failed))
}

/// Reads a file in pieces.
fn pieces(mut file: File) -> impl Iterator<Item = io::Result<Vec<u8>>> + Send {
    std::iter::from_fn(move || {
        let mut piece = vec![0; PIECE];
        match file.read(&mut piece) {
            Ok(0) => None,
            Ok(len) => {
                piece.truncate(len);
                Some(Ok(piece))
            }
            Err(error) => Some(Err(error)),
        }
    })
}

/// Answers `GET /debug/heap/peak`: what held memory at the highest point so far.
pub(super) async fn peak(uri: &Uri) -> Response {
    peak_rows(uri).await.unwrap_or_else(|refusal| *refusal)
}

async fn peak_rows(uri: &Uri) -> Result<Response, Refusal> {
    let query = catch_panic(|| {
        let _own = control::internal();
        Query::parse_of_one(uri.query().unwrap_or(""))
    })?;
    let query = query.map_err(|line| Box::new(refuse(StatusCode::BAD_REQUEST, format_args!("{line}"))))?;
    let stacks = catch_panic(peak::stacks)?.ok_or_else(|| {
        let line = format_args!("no peak is kept, because no thread of heapgauge's watches memory");
        Box::new(refuse(StatusCode::SERVICE_UNAVAILABLE, line))
    })?;
    let begun = Instant::now();
    while catch_panic(|| stacks.name_slice(SLICE))? {
        if begun.elapsed() > NAMING_TIME {
            return Err(Box::new(refuse(StatusCode::SERVICE_UNAVAILABLE, format_args!("{NAMED_LATE}"))));
        }
        tokio::task::yield_now().await;
    }
    let response = catch_panic(|| {
        let _own = control::internal();
        let snapshot = stacks.snapshot();
        let none = Snapshot::of(snapshot.taken_at(), 1, Vec::new());
        rows(&query, Shown { new: &snapshot, old: &none, ages: &[], resident: None, total: None })
    })?;
    Ok(no_store(response))
}

/// Answers `GET /memory/snapshots?since=NAME`: the heap of `new` beside a dump.
pub(super) fn since_dump(query: &Query, name: &str, new: &Snapshot) -> Response {
    match access::load(name) {
        Ok(old) => rows(query, Shown { new, old: &old, ages: &[], resident: None, total: None }),
        Err(error) => refuse(StatusCode::BAD_REQUEST, format_args!("parameter since: {error}")),
    }
}

fn no_store(mut response: Response) -> Response {
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
