//! Address of a server of heapgauge's → its JSON.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::failure::Failure;
use crate::text::short;

/// Longest answer that is read; ten thousand sites are a tenth of it.
const LONGEST: u64 = 64 << 20;
/// Longest wait for a connection, and for an answer: the server reads names for 20 s at most.
const CONNECT_TIME: Duration = Duration::from_secs(5);
const ANSWER_TIME: Duration = Duration::from_secs(40);

const ALLOWED: &str = "allowed is the address of heapgauge's server, such as http://127.0.0.1:9898";

/// Paths that people copy together with the address.
const PATHS: [&str; 6] =
    ["/", "/metrics", "/health", "/memory/snapshots", "/debug/heap", "/debug/pprof/heap"];

/// Address of a server, without a path of heapgauge's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url(String);

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Url {
    /// Returns whether a text is meant to be an address, not the name of a file.
    pub fn is_one(text: &OsStr) -> bool {
        text.to_str().is_some_and(|text| text.contains("://"))
    }

    /// Parses `http://HOST:PORT`, also with a path of heapgauge's behind it, or without the scheme.
    pub fn parse(text: &OsStr) -> Result<Url, Failure> {
        let wrong = |why: &str| {
            Failure::usage(format_args!("URL {}: {why}, {ALLOWED}", short(&text.to_string_lossy())))
        };
        let text = text.to_str().ok_or_else(|| wrong("it is no text"))?;
        let text = text.split(['?', '#']).next().unwrap_or_default();
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        match scheme.to_ascii_lowercase().as_str() {
            "http" => {}
            "https" => {
                return Err(wrong(
                    "TLS is not spoken here; forward the port of the program, as by kubectl port-forward",
                ));
            }
            _ => return Err(wrong(&format!("the scheme {scheme} is not known"))),
        }
        let mut rest = rest;
        for path in PATHS {
            rest = rest.strip_suffix(path).unwrap_or(rest);
        }
        let authority = rest.split('/').next().unwrap_or_default();
        let (host, port) =
            authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')).unwrap_or((authority, "80"));
        if host.is_empty() || port.parse::<u16>().is_err() {
            return Err(wrong("it has no host or no port"));
        }
        let uri: Result<ureq::http::Uri, _> = format!("http://{rest}/").parse();
        uri.map_err(|error| wrong(&error.to_string()))?;
        Ok(Url(format!("http://{rest}")))
    }
}

/// Connection to a server.
pub struct Client {
    url: Url,
    agent: ureq::Agent,
}

impl Client {
    pub fn new(url: &Url) -> Client {
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(CONNECT_TIME))
            .timeout_global(Some(ANSWER_TIME))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // The address is this machine's, and so is what is said there.
            .proxy(None)
            .user_agent(concat!("heapgauge/", env!("CARGO_PKG_VERSION")))
            .build();
        Client { url: url.clone(), agent: config.new_agent() }
    }

    /// Asks for a path and parses its JSON.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let Client { url, agent } = self;
        let failed = |error| Failure::Other(format!("{url}: {}", described(&error)));
        let mut answer = agent.get(format!("{url}{path}")).call().map_err(failed)?;
        let status = answer.status().as_u16();
        let body = answer.body_mut().with_config().limit(LONGEST).lossy_utf8(true).read_to_string();
        let bare = path.split('?').next().unwrap_or_default();
        let said = body.as_deref().map(short).unwrap_or_default();
        // Other servers answer with a page.
        let said = if said.starts_with('<') { "(a page)".into() } else { said };
        let line = match status {
            200 => {
                let body = body.map_err(failed)?;
                return serde_json::from_str(&body).map_err(|error| {
                    Failure::Other(format!(
                        "{url}: the answer to {bare} is not heapgauge's ({}), {ALLOWED}",
                        short(&error.to_string())
                    ))
                });
            }
            403 => format!("{bare} is forbidden (403): {said}"),
            404 => format!(
                "{bare} is not there (404): {said}; allowed is an address that serves every path, which heapgauge's does on \
                 loopback and in HEAPGAUGE_DEBUG_ADDR (127.0.0.1:9899)"
            ),
            503 => format!("{bare} is not to be had now (503): {said}"),
            status => format!("{bare} was answered with status {status}, {ALLOWED}: {said}"),
        };
        Err(Failure::Other(format!("{url}: {line}")))
    }
}

/// Encodes a text for the value of a parameter.
pub fn encoded(text: &str) -> String {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    let one = |byte: &u8| {
        if is_plain(byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") }
    };
    text.as_bytes().iter().map(one).collect()
}

fn described(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            "connection refused: no program listens there".into()
        }
        ureq::Error::Io(error) => short(&error.to_string()),
        ureq::Error::Timeout(ureq::Timeout::Connect) => "no connection within 5 s".into(),
        ureq::Error::Timeout(_) => "no answer within 40 s".into(),
        ureq::Error::HostNotFound => "the host is not known".into(),
        ureq::Error::BodyExceedsLimit(most) => format!("the answer is longer than the {most} bytes allowed"),
        ureq::Error::Protocol(error) => format!("no answer of an HTTP server: {error}"),
        error => short(&error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<String, String> {
        match Url::parse(OsStr::new(text)) {
            Ok(url) => Ok(url.to_string()),
            Err(Failure::Usage(line)) => Err(line),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_value_is_encoded_byte_by_byte() {
        assert_eq!(encoded("a-b.C_d~9"), "a-b.C_d~9");
        assert_eq!(encoded("/ä &=%:"), "%2F%C3%A4%20%26%3D%25%3A");
    }

    #[test]
    fn an_address_is_read_in_any_form_that_people_copy() {
        for text in [
            "http://127.0.0.1:9898",
            "127.0.0.1:9898",
            "http://127.0.0.1:9898/",
            "http://127.0.0.1:9898/metrics",
            "http://127.0.0.1:9898/debug/heap",
            "http://127.0.0.1:9898/debug/heap/",
            "HTTP://127.0.0.1:9898/debug/heap#sort=size",
            "http://127.0.0.1:9898/memory/snapshots?top=5",
        ] {
            assert_eq!(parsed(text).as_deref(), Ok("http://127.0.0.1:9898"), "{text}");
        }
        assert_eq!(parsed("http://[::1]:9898/inside/debug/heap").as_deref(), Ok("http://[::1]:9898/inside"));
        assert_eq!(parsed("http://service").as_deref(), Ok("http://service"));
    }

    #[test]
    fn what_is_no_address_is_one_line_that_says_what_is_allowed() {
        for (text, why) in [
            ("", "it has no host or no port"),
            ("http://", "it has no host or no port"),
            ("http://:9898", "it has no host or no port"),
            ("http://a:b", "it has no host or no port"),
            ("http://a:99999", "it has no host or no port"),
            ("ftp://a:21", "the scheme ftp is not known"),
            (
                "https://a:443",
                "TLS is not spoken here; forward the port of the program, as by kubectl port-forward",
            ),
        ] {
            let line = format!("URL {text}: {why}, {ALLOWED}");
            assert_eq!(parsed(text), Err(line), "{text}");
        }
        assert!(parsed("http://a b:1").is_err());
    }
}
