//! Request → rejected, or passed on: foreign `Host` and `Origin` headers, forwarded requests, large bodies.
//!
//! Any thread; some comparisons for each request.

use std::net::{IpAddr, Ipv6Addr};

use hyper::header::{CONTENT_LENGTH, HOST, HeaderName, ORIGIN};
use hyper::http::request::Parts;
use hyper::{HeaderMap, StatusCode, Uri, Version};

use super::response::{Refusal, refuse};
use super::routes::{self, Endpoint, Group};
use crate::export::input::Quoted;

/// Longest body of a request; no path needs one.
const MAX_BODY_BYTES: u64 = 64 << 10;

/// Paths that are served on an address other than loopback.
///
/// # Examples
///
/// ```
/// use heapgauge::{Expose, Server};
///
/// let builder = Server::builder().expose(Expose::Pprof);
/// assert_eq!(Expose::default(), Expose::Metrics);
/// # drop(builder);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expose {
    /// `/metrics` and `/health`.
    #[default]
    Metrics,
    /// `/metrics`, `/health`, `/debug/pprof/heap` and `/debug/pprof/allocs`, for a profiler that runs elsewhere.
    Pprof,
    /// Every path. Each client that reaches the port can then take snapshots, and read every stack of the program.
    All,
}

/// Clients that a listener is for, and the paths they get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Clients on a loopback address: every path, but not for a browser that was led here by a foreign name.
    Loopback,
    /// Clients on the loopback address beside another one: every path, but not for such a browser, and not for requests that a proxy or mesh forwards.
    Debug,
    /// Clients on any other address: the paths that the program exposes.
    Foreign(Expose),
}

impl Access {
    fn is_local(self) -> bool {
        matches!(self, Access::Loopback | Access::Debug)
    }

    pub(super) fn serves(self, endpoint: Endpoint) -> bool {
        match endpoint.group() {
            Group::Metrics => true,
            Group::Profiles => self != Access::Foreign(Expose::Metrics),
            Group::Debug => self.is_local() || self == Access::Foreign(Expose::All),
            Group::Root => self.is_local(),
        }
    }

    /// Lists the paths that are served, for the line about another one.
    pub(super) fn paths(self) -> String {
        match self {
            Access::Loopback | Access::Debug | Access::Foreign(Expose::All) => {
                routes::paths().join(", ")
            }
            Access::Foreign(Expose::Metrics) => {
                "/metrics, /health; others on a loopback address or where HEAPGAUGE_EXPOSE says so".into()
            }
            Access::Foreign(Expose::Pprof) => {
                "/metrics, /health, /debug/pprof/heap, /debug/pprof/allocs; others on a loopback address or where \
                 HEAPGAUGE_EXPOSE=all"
                    .into()
            }
        }
    }
}

/// Rejects foreign `Host` and `Origin` headers, forwarded requests and large bodies.
pub(super) fn check(access: Access, request: &Parts) -> Result<(), Refusal> {
    if access.is_local() {
        from_here(request.version, &request.uri, &request.headers)?;
    }
    if access == Access::Debug
        && let Some(header) = request.headers.keys().find(|name| is_of_a_proxy(name))
    {
        return Err(Box::new(refuse(
            StatusCode::FORBIDDEN,
            format_args!(
                "the header {header} is of a forwarded request, allowed are requests from this machine"
            ),
        )));
    }
    let length = request.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > MAX_BODY_BYTES) {
        return Err(Box::new(refuse(
            StatusCode::PAYLOAD_TOO_LARGE,
            format_args!("the body is longer than the {MAX_BODY_BYTES} bytes allowed"),
        )));
    }
    Ok(())
}

/// Tells whether a header is one that proxies and meshes add to requests that they forward.
fn is_of_a_proxy(header: &HeaderName) -> bool {
    let name = header.as_str();
    name == "forwarded" || ["x-forwarded-", "x-envoy-", "l5d-"].iter().any(|prefix| name.starts_with(prefix))
}

/// Rejects requests that a browser sends for a foreign page. A web page may point a name of its own at 127.0.0.1 and read what is served here as its own. The
/// browser then sends that name, so only names that cannot be pointed anywhere are let in.
fn from_here(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(HOST).iter().peekable();
    if hosts.peek().is_none() && version > Version::HTTP_10 {
        return Err(Box::new(refuse(
            StatusCode::BAD_REQUEST,
            format_args!("the header Host is missing, allowed are localhost, 127.0.0.1 and [::1]"),
        )));
    }
    let foreign = |header: HeaderName, value: &[u8]| {
        Box::new(refuse(
            StatusCode::FORBIDDEN,
            format_args!(
                "{header} {} is foreign, allowed are localhost, 127.0.0.1 and [::1]",
                Quoted(&String::from_utf8_lossy(value))
            ),
        ))
    };
    if let Some(host) = hosts.find(|host| !host.to_str().is_ok_and(is_loopback)) {
        return Err(foreign(HOST, host.as_bytes()));
    }
    if let Some(authority) = uri.authority().filter(|authority| !is_loopback(authority.as_str())) {
        return Err(foreign(HOST, authority.as_str().as_bytes()));
    }
    let is_local_page = |origin: &str| {
        origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")).is_some_and(is_loopback)
    };
    match headers.get_all(ORIGIN).iter().find(|origin| !origin.to_str().is_ok_and(is_local_page)) {
        Some(origin) => Err(foreign(ORIGIN, origin.as_bytes())),
        None => Ok(()),
    }
}

/// Tells whether a `Host` is `localhost` or a loopback address in figures, with or without a port.
fn is_loopback(authority: &str) -> bool {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (authority, "0"),
    };
    if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return false;
    }
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok_and(|ip| ip.to_canonical().is_loopback()),
        None => {
            host.eq_ignore_ascii_case("localhost")
                || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4() && ip.is_loopback())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_here_and_nowhere_else() {
        for here in [
            "localhost",
            "LocalHost:9898",
            "127.0.0.1",
            "127.0.0.1:1",
            "127.8.9.10:80",
            "[::1]",
            "[::1]:9898",
            "[::ffff:127.0.0.1]:80",
        ] {
            assert!(is_loopback(here), "{here}");
        }
        for foreign in [
            "",
            ":",
            ":80",
            "localhost:",
            "localhost:x",
            "localhost.evil.example",
            "evil.example:9898",
            "127.0.0.1.evil.example",
            "127.1",
            "10.0.0.1",
            "::1",
            "[::1",
            "[::2]:80",
            "[127.0.0.1]",
            "[::1]x:80",
            "user@localhost",
            "localhost:80:80",
        ] {
            assert!(!is_loopback(foreign), "{foreign}");
        }
    }
}
