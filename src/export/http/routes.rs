//! Method and path → the function that answers.
//!
//! One list of paths serves heapgauge's own listeners and, with the feature `axum`, the routers.
#![forbid(unsafe_code)]

use std::sync::Arc;

use hyper::body::{Body as _, Bytes};
use hyper::header::{ALLOW, CONTENT_LENGTH, HeaderValue, LOCATION, X_CONTENT_TYPE_OPTIONS};
use hyper::http::request::Parts;
use hyper::{Method, Request, StatusCode};

use super::guard::{self, Access};
use super::response::{Response, TEXT, answer, refuse, whole};
use super::{
    Outlet, SnapshotPage, allocator, debug_heap, dumps, metrics, negotiation, profiles, response_budget,
    snapshots,
};
use crate::export::input::Quoted;

/// Path that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Root,
    Metrics,
    Health,
    Snapshots,
    Page,
    Summary,
    Sites,
    Scopes,
    Stacks,
    Tree,
    SnapshotFile,
    Folded,
    Peak,
    Allocator,
    Trim,
    Dump,
    Dumps,
    DumpFile,
    #[cfg(feature = "pprof")]
    Heap,
    #[cfg(feature = "pprof")]
    Allocs,
}

/// Paths that are exposed together, see [`guard::Expose`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// Leads a person who opens the address that the program printed to the page.
    Root,
    Metrics,
    #[cfg_attr(not(feature = "pprof"), allow(dead_code, reason = "without profiles it has no paths"))]
    Profiles,
    Debug,
}

/// Every path, in the order in which messages list them.
const ENDPOINTS: &[(&str, Endpoint)] = &[
    ("/metrics", Endpoint::Metrics),
    ("/health", Endpoint::Health),
    ("/memory/snapshots", Endpoint::Snapshots),
    ("/debug/heap", Endpoint::Page),
    ("/debug/heap/summary.json", Endpoint::Summary),
    ("/debug/heap/sites.json", Endpoint::Sites),
    ("/debug/heap/scopes.json", Endpoint::Scopes),
    ("/debug/heap/stacks.json", Endpoint::Stacks),
    ("/debug/heap/tree.json", Endpoint::Tree),
    ("/debug/heap/snapshot.json", Endpoint::SnapshotFile),
    ("/debug/heap/folded", Endpoint::Folded),
    ("/debug/heap/peak", Endpoint::Peak),
    ("/debug/heap/allocator.json", Endpoint::Allocator),
    ("/debug/heap/trim", Endpoint::Trim),
    ("/debug/heap/dump", Endpoint::Dump),
    ("/debug/heap/dumps", Endpoint::Dumps),
    ("/debug/heap/dumps/{name}", Endpoint::DumpFile),
    #[cfg(feature = "pprof")]
    ("/debug/pprof/heap", Endpoint::Heap),
    #[cfg(feature = "pprof")]
    ("/debug/pprof/allocs", Endpoint::Allocs),
    ("/", Endpoint::Root),
];

/// Lists the paths that a loopback address serves, without the one that only redirects.
pub(super) fn paths() -> Vec<&'static str> {
    ENDPOINTS.iter().filter(|(_, endpoint)| *endpoint != Endpoint::Root).map(|(path, _)| *path).collect()
}

/// Returns the endpoint of a path.
pub(super) fn endpoint(path: &str) -> Option<Endpoint> {
    let is_it = |known: &str| match known.strip_suffix("{name}") {
        Some(folder) => path.strip_prefix(folder).is_some_and(|name| !name.is_empty() && !name.contains('/')),
        None => known == path,
    };
    ENDPOINTS.iter().find(|(known, _)| is_it(known)).map(|(_, endpoint)| *endpoint)
}

/// Returns the path of an endpoint.
pub(super) fn path(endpoint: Endpoint) -> Option<&'static str> {
    ENDPOINTS.iter().find(|(_, known)| *known == endpoint).map(|(path, _)| *path)
}

/// Lists the paths of a group.
#[cfg(feature = "axum")]
pub(super) fn endpoints() -> impl Iterator<Item = (&'static str, Endpoint)> {
    ENDPOINTS.iter().copied()
}

impl Endpoint {
    pub(super) fn group(self) -> Group {
        match self {
            Endpoint::Root => Group::Root,
            Endpoint::Metrics | Endpoint::Health => Group::Metrics,
            #[cfg(feature = "pprof")]
            Endpoint::Heap | Endpoint::Allocs => Group::Profiles,
            _ => Group::Debug,
        }
    }

    /// Answers a request for this path.
    pub(super) async fn answer(self, outlet: &Outlet, request: &Parts) -> Response {
        let response = match (&request.method, self) {
            (&Method::POST, Endpoint::Dump) => dumps::write(&request.uri).await,
            (&Method::POST, Endpoint::Trim) => allocator::trim(&request.uri).await,
            (_, Endpoint::Dump | Endpoint::Trim) => self.wrong_method(request),
            (&Method::GET | &Method::HEAD, _) => self.get(outlet, request).await,
            (&Method::POST, Endpoint::Snapshots) => snapshots::keep(outlet, &request.uri),
            _ => self.wrong_method(request),
        };
        match self.group() {
            Group::Root => response,
            Group::Metrics => negotiation::compressed(&request.headers, "accept, accept-encoding", response),
            Group::Debug => {
                let response = response_budget::bounded(response);
                negotiation::compressed(&request.headers, "accept-encoding", response)
            }
            // They are compressed already, or for people.
            Group::Profiles => response_budget::bounded(response),
        }
    }

    async fn get(self, outlet: &Outlet, request: &Parts) -> Response {
        let uri = &request.uri;
        match self {
            Endpoint::Root => to_the_page(),
            Endpoint::Metrics => metrics(outlet, &request.headers).await,
            Endpoint::Health => answer(StatusCode::OK, TEXT, "ok\n"),
            Endpoint::Snapshots => snapshots::compare(outlet, uri).await,
            Endpoint::Page => debug_heap::page(),
            Endpoint::Summary => debug_heap::summary(outlet, uri).await,
            Endpoint::Sites => debug_heap::sites(outlet, uri).await,
            Endpoint::Scopes => debug_heap::scopes(outlet, uri).await,
            Endpoint::Stacks => debug_heap::stacks(outlet, uri).await,
            Endpoint::Tree => debug_heap::tree(outlet, uri).await,
            Endpoint::SnapshotFile => debug_heap::snapshot(outlet, uri).await,
            Endpoint::Folded => profiles::folded(outlet, uri).await,
            Endpoint::Peak => dumps::peak(uri).await,
            Endpoint::Allocator => allocator::reading(uri).await,
            Endpoint::Dump | Endpoint::Trim => self.wrong_method(request),
            Endpoint::Dumps => dumps::list(uri),
            Endpoint::DumpFile => dumps::file(uri),
            #[cfg(feature = "pprof")]
            Endpoint::Heap => profiles::heap(outlet, uri).await,
            #[cfg(feature = "pprof")]
            Endpoint::Allocs => profiles::allocs(outlet, uri).await,
        }
    }

    pub(super) fn wrong_method(self, request: &Parts) -> Response {
        let (allowed, header) = match self {
            Endpoint::Snapshots => ("GET, HEAD, POST", "GET,HEAD,POST"),
            Endpoint::Dump | Endpoint::Trim => ("POST", "POST"),
            _ => ("GET, HEAD", "GET,HEAD"),
        };
        let mut response = refuse(
            StatusCode::METHOD_NOT_ALLOWED,
            format_args!(
                "method {} is not allowed on {}, allowed are {allowed}",
                Quoted(request.method.as_str()),
                Quoted(request.uri.path())
            ),
        );
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(header));
        response
    }
}

/// Redirects to the page.
pub(super) fn to_the_page() -> Response {
    let mut response = answer(StatusCode::TEMPORARY_REDIRECT, TEXT, "see /debug/heap\n");
    response.headers_mut().insert(LOCATION, HeaderValue::from_static("/debug/heap"));
    response
}

/// Answers of one of heapgauge's own listeners.
pub(crate) struct App {
    source: Source,
    access: Access,
}

/// Source of the answers.
enum Source {
    Program(Arc<Outlet>),
    File(Box<SnapshotPage>),
}

impl App {
    pub(crate) fn new(outlet: &Arc<Outlet>, access: Access) -> App {
        App { source: Source::Program(outlet.clone()), access }
    }

    /// Answers from a file, for clients on loopback.
    pub(crate) fn of_file(page: SnapshotPage) -> App {
        App { source: Source::File(Box::new(page)), access: Access::Loopback }
    }

    /// Answers a request. No path needs its body.
    pub(crate) async fn answer<B>(&self, request: Request<B>) -> Response {
        let (request, _) = request.into_parts();
        let response = match guard::check(self.access, &request) {
            Ok(()) => self.answer_allowed(&request).await,
            Err(refusal) => *refusal,
        };
        finish(&request, response)
    }

    async fn answer_allowed(&self, request: &Parts) -> Response {
        let path = request.uri.path();
        match endpoint(path) {
            Some(endpoint) if self.access.serves(endpoint) => match &self.source {
                Source::Program(outlet) => endpoint.answer(outlet, request).await,
                Source::File(page) => {
                    let response = page.answer(endpoint, request);
                    negotiation::compressed(&request.headers, "accept-encoding", response)
                }
            },
            _ => refuse(
                StatusCode::NOT_FOUND,
                format_args!("path {} is unknown, allowed are {}", Quoted(path), self.access.paths()),
            ),
        }
    }
}

/// Adds the headers that every answer has, and leaves out the body of an answer to HEAD.
pub(super) fn finish(request: &Parts, mut response: Response) -> Response {
    if request.method == Method::HEAD {
        if let Some(length) = response.body().size_hint().exact() {
            response.headers_mut().insert(CONTENT_LENGTH, length.into());
        }
        *response.body_mut() = whole(Bytes::new());
    }
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
