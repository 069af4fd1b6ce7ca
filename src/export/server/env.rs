//! Environment → settings of the server: every `HEAPGAUGE_…` variable.
//!
//! Read once, by `serve_from_env`, on the thread that calls it. A variable that cannot be read is one
//! line for the user, and its default is taken.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::settings;
use crate::analyze::collector::budget::MIN_MAX_OVERHEAD;
use crate::analyze::collector::settings::{DEFAULT_DELTA_WINDOW, DEFAULT_TOP_N, MAX_DELTA_WINDOW, MAX_TOP_N};
use crate::analyze::symbols::SiteSettings;
use crate::export::dump::{self, DumpSettings};
use crate::export::http::Expose;
use crate::export::input::{Quoted, digits, duration, number, size};
use crate::record::control::MAX_INTERVAL;

/// Default address of the server.
pub(crate) const DEFAULT_ADDR: &str = "127.0.0.1:9898";
/// Default address of the listener for every path, beside a listener that is not on loopback.
pub(crate) const DEFAULT_DEBUG_ADDR: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9899);

/// Names of all variables, in the order of the documentation.
const KEYS: [&str; 17] = [
    "HEAPGAUGE",
    "HEAPGAUGE_ADDR",
    "HEAPGAUGE_TOP_N",
    "HEAPGAUGE_DELTA_WINDOW",
    "HEAPGAUGE_FRAMES",
    "HEAPGAUGE_SAMPLE",
    "HEAPGAUGE_MAX_OVERHEAD",
    "HEAPGAUGE_RECLAIM",
    "HEAPGAUGE_MEMORY_LIMIT",
    "HEAPGAUGE_RELEASE",
    "HEAPGAUGE_SITE",
    "HEAPGAUGE_OWN_CRATES",
    "HEAPGAUGE_LOOK_THROUGH",
    "HEAPGAUGE_EXPOSE",
    "HEAPGAUGE_DEBUG_ADDR",
    "HEAPGAUGE_SOURCE_URL",
    "HEAPGAUGE_QUIET",
];

/// Settings of the environment; `None` keeps the program's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub on: Option<bool>,
    pub addr: String,
    pub top_n: usize,
    pub delta_window: Duration,
    pub frames: Option<usize>,
    /// Average bytes between samples; 0: every allocation is recorded.
    pub sample: Option<usize>,
    /// `None`: the program's, else the default.
    pub max_overhead: Option<u64>,
    /// The memory of stacks that are forgotten is given back.
    pub reclaim: Option<bool>,
    /// Dumps, and the limit of this process.
    pub dumps: DumpSettings,
    /// Release of the program; empty: it has no name.
    pub release: String,
    /// Rules by which sites are chosen.
    pub sites: SiteSettings,
    pub expose: Expose,
    /// Address of the second listener; `None`: there is none.
    pub debug_addr: Option<SocketAddr>,
    /// Template of links from lines of code to their source.
    pub source_url: Option<String>,
    pub quiet: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            on: None,
            addr: DEFAULT_ADDR.into(),
            top_n: DEFAULT_TOP_N,
            delta_window: DEFAULT_DELTA_WINDOW,
            frames: None,
            sample: None,
            max_overhead: None,
            reclaim: None,
            dumps: DumpSettings::default(),
            release: String::new(),
            sites: SiteSettings::default(),
            expose: Expose::Metrics,
            debug_addr: Some(DEFAULT_DEBUG_ADDR),
            source_url: None,
            quiet: false,
        }
    }
}

/// Reads the variables: their settings, and a line for each that could not be used, in the order of the keys.
pub(crate) fn parse(variables: impl Iterator<Item = (OsString, OsString)>) -> (Config, Vec<String>) {
    let mut ours: Vec<(String, OsString)> = variables
        .map(|(key, value)| (key.to_string_lossy().into_owned(), value))
        .filter(|(key, _)| (key == "HEAPGAUGE" || key.starts_with("HEAPGAUGE_")) && !is_of_kubernetes(key))
        .collect();
    ours.sort();
    let mut config = Config::default();
    let mut problems = Vec::new();
    for (key, value) in &ours {
        if !KEYS.contains(&key.as_str()) && !dump::settings::KEYS.contains(&key.as_str()) {
            let all: Vec<&str> = KEYS.into_iter().chain(dump::settings::KEYS).collect();
            problems.push(format!("{} is unknown, allowed are {}", Quoted(key), all.join(", ")));
            continue;
        }
        let value = value.to_string_lossy();
        if let Err(allowed) = apply(&mut config, key, value.trim()) {
            problems.push(format!("{key}={}: {allowed}", Quoted(&value)));
        }
    }
    (config, problems)
}

/// Tells whether Kubernetes made a variable: it gives every container of a namespace such variables for a Service named `heapgauge`.
fn is_of_kubernetes(key: &str) -> bool {
    let port = key.strip_prefix("HEAPGAUGE_PORT");
    key.starts_with("HEAPGAUGE_SERVICE_") || port.is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
}

/// Applies one variable. Err: the line about its value, without its name.
fn apply(config: &mut Config, key: &str, value: &str) -> Result<(), String> {
    match key {
        "HEAPGAUGE" => {
            config.on =
                Some(switch(value).ok_or_else(|| format!("{SWITCH}, keeping what the program has set"))?);
        }
        "HEAPGAUGE_ADDR" => {
            config.addr = address(value)
                .ok_or_else(|| format!("allowed is HOST:PORT, taking {DEFAULT_ADDR}"))?
                .to_owned();
        }
        "HEAPGAUGE_TOP_N" => {
            config.top_n = number(value, 1, MAX_TOP_N)
                .ok_or_else(|| format!("allowed are 1 to {MAX_TOP_N}, taking {DEFAULT_TOP_N}"))?;
        }
        "HEAPGAUGE_DELTA_WINDOW" => {
            config.delta_window = duration(value)
                .filter(|&window| window <= MAX_DELTA_WINDOW)
                .ok_or("allowed is a number with ms, s, m, h or d, from 0s to 7d, taking 5m")?;
        }
        "HEAPGAUGE_FRAMES" => {
            config.frames =
                Some(number(value, 1, 64).ok_or("allowed are 1 to 64, keeping what the program has set")?);
        }
        "HEAPGAUGE_SAMPLE" => {
            let bytes = if value == "exact" { Some(0) } else { size(value) };
            config.sample = Some(
                bytes.and_then(|bytes| usize::try_from(bytes).ok()).filter(|bytes| *bytes <= MAX_INTERVAL).ok_or(
                    "allowed are exact and a size up to 1GiB such as 512KiB, keeping what the program has set",
                )?,
            );
        }
        "HEAPGAUGE_MAX_OVERHEAD" => {
            let bytes = size(value)
                .ok_or("allowed is a number with B, KiB, MiB or GiB, at least 1MiB, taking the default")?;
            config.max_overhead = Some(bytes.max(MIN_MAX_OVERHEAD));
            if bytes < MIN_MAX_OVERHEAD {
                return Err(format!("this is {bytes} bytes, allowed is at least 1MiB, taking 1MiB"));
            }
        }
        "HEAPGAUGE_RECLAIM" => {
            config.reclaim =
                Some(switch(value).ok_or_else(|| format!("{SWITCH}, keeping what the program has set"))?);
        }
        "HEAPGAUGE_MEMORY_LIMIT" => config.dumps.apply(key, value)?,
        _ if dump::settings::KEYS.contains(&key) => config.dumps.apply(key, value)?,
        "HEAPGAUGE_RELEASE" => config.release = value.to_owned(),
        "HEAPGAUGE_SITE" | "HEAPGAUGE_OWN_CRATES" | "HEAPGAUGE_LOOK_THROUGH" => {
            settings::rule_of_sites(&mut config.sites, key, value)?;
        }
        "HEAPGAUGE_EXPOSE" => {
            config.expose = match value {
                "metrics" => Expose::Metrics,
                "pprof" => Expose::Pprof,
                "all" => Expose::All,
                _ => return Err("allowed are metrics, pprof and all, taking metrics".into()),
            }
        }
        "HEAPGAUGE_DEBUG_ADDR" => {
            config.debug_addr = match switch(value) {
                Some(false) => None,
                _ => Some(loopback(value).ok_or_else(|| {
                    format!("allowed are a loopback HOST:PORT and off, taking {DEFAULT_DEBUG_ADDR}")
                })?),
            }
        }
        "HEAPGAUGE_SOURCE_URL" => {
            let is_template = is_source_url(value);
            config.source_url = Some(value.to_owned()).filter(|_| is_template);
            if !is_template {
                return Err(format!("allowed is {SOURCE_URL}, taking none"));
            }
        }
        // The last of KEYS.
        _ => config.quiet = switch(value).ok_or_else(|| format!("{SWITCH}, taking off"))?,
    }
    Ok(())
}

/// Form of a template, for the line about another one.
pub(super) const SOURCE_URL: &str = "http(s)://… with {file}, and {line} if you like";

/// Tells whether a text is a template of links to sources.
pub(super) fn is_source_url(template: &str) -> bool {
    let is_web = template.starts_with("http://") || template.starts_with("https://");
    is_web && template.contains("{file}") && !template.contains(char::is_whitespace)
}

/// Words of a switch, for the line about another one.
const SWITCH: &str = "allowed are on, true, yes, 1, off, false, no and 0";

/// Reads a switch, in any case: the word is typed in a hurry, and `HEAPGAUGE=OFF` must not leave tracking on.
fn switch(value: &str) -> Option<bool> {
    let is_one_of = |words: [&str; 4]| words.iter().any(|word| value.eq_ignore_ascii_case(word));
    match value {
        _ if is_one_of(["on", "true", "yes", "1"]) => Some(true),
        _ if is_one_of(["off", "false", "no", "0"]) => Some(false),
        _ => None,
    }
}

/// Reads `localhost` or a loopback address in figures, and a port.
fn loopback(value: &str) -> Option<SocketAddr> {
    let (host, port) = value.rsplit_once(':')?;
    let addr = match host.eq_ignore_ascii_case("localhost") {
        true => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), u16::try_from(digits(port)?).ok()?),
        false => value.parse().ok()?,
    };
    addr.ip().to_canonical().is_loopback().then_some(addr)
}

/// Checks the shape of an address; only listening tells whether the host exists.
fn address(value: &str) -> Option<&str> {
    let (host, port) = value.rsplit_once(':')?;
    let is_whole =
        !host.is_empty() && (!host.contains(':') || (host.starts_with('[') && host.ends_with(']')));
    (is_whole && digits(port).is_some_and(|port| port <= u64::from(u16::MAX))).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyze::symbols::SiteFrame;
    use crate::base::random_input::{Random, inputs};

    fn read(variables: &[(&str, &str)]) -> (Config, Vec<String>) {
        parse(variables.iter().map(|&(key, value)| (key.into(), value.into())))
    }

    #[test]
    fn nothing_set_gives_the_defaults() {
        let (config, problems) = read(&[("PATH", "/bin"), ("HEAPGAUGES", "x"), ("heapgauge_addr", "y")]);
        assert_eq!((config, problems), (Config::default(), vec![]));
    }

    #[test]
    fn every_variable_is_read() {
        let (config, problems) = read(&[
            ("HEAPGAUGE", "on"),
            ("HEAPGAUGE_ADDR", "[::1]:0"),
            ("HEAPGAUGE_TOP_N", "10"),
            ("HEAPGAUGE_DELTA_WINDOW", "90s"),
            ("HEAPGAUGE_FRAMES", "64"),
            ("HEAPGAUGE_SAMPLE", "512KiB"),
            ("HEAPGAUGE_MAX_OVERHEAD", "16MiB"),
            ("HEAPGAUGE_MEMORY_LIMIT", "2GiB"),
            ("HEAPGAUGE_RECLAIM", "off"),
            ("HEAPGAUGE_RELEASE", "2.4.1-rc1"),
            ("HEAPGAUGE_SITE", "nearest"),
            ("HEAPGAUGE_OWN_CRATES", "+tasks, -common::cache,"),
            ("HEAPGAUGE_LOOK_THROUGH", "-bytes"),
            ("HEAPGAUGE_EXPOSE", "pprof"),
            ("HEAPGAUGE_DEBUG_ADDR", "[::1]:7"),
            ("HEAPGAUGE_SOURCE_URL", "https://git.example/{file}#L{line}"),
            ("HEAPGAUGE_QUIET", "on"),
        ]);
        assert_eq!(problems, Vec::<String>::new());
        let expected = Config {
            on: Some(true),
            addr: "[::1]:0".into(),
            top_n: 10,
            delta_window: Duration::from_secs(90),
            frames: Some(64),
            sample: Some(512 << 10),
            max_overhead: Some(16 << 20),
            reclaim: Some(false),
            dumps: {
                let mut dumps = DumpSettings::default();
                dumps.memory_limit = Some(2 << 30);
                dumps
            },
            release: "2.4.1-rc1".into(),
            sites: SiteSettings {
                frame: Some(SiteFrame::Nearest),
                own_crates: Some(vec!["+tasks".into(), "-common::cache".into()]),
                look_through: Some(vec!["-bytes".into()]),
            },
            expose: Expose::Pprof,
            debug_addr: Some("[::1]:7".parse().unwrap()),
            source_url: Some("https://git.example/{file}#L{line}".into()),
            quiet: true,
        };
        assert_eq!(config, expected);
        assert_eq!(read(&[("HEAPGAUGE", "off")]).0.on, Some(false));
        for (value, bytes) in [("exact", 0), ("0", 0), ("1", 1), ("1GiB", 1 << 30)] {
            let (config, problems) = read(&[("HEAPGAUGE_SAMPLE", value)]);
            assert_eq!((config.sample, problems), (Some(bytes), vec![]), "{value}");
        }
    }

    #[test]
    fn a_malformed_value_names_what_is_allowed_and_takes_the_default() {
        for (key, value, allowed) in [
            (
                "HEAPGAUGE",
                "maybe",
                "allowed are on, true, yes, 1, off, false, no and 0, keeping what the program has set",
            ),
            ("HEAPGAUGE_ADDR", "9898", "allowed is HOST:PORT, taking 127.0.0.1:9898"),
            ("HEAPGAUGE_ADDR", "::1:80", "allowed is HOST:PORT, taking 127.0.0.1:9898"),
            ("HEAPGAUGE_ADDR", "a:65536", "allowed is HOST:PORT, taking 127.0.0.1:9898"),
            ("HEAPGAUGE_TOP_N", "0", "allowed are 1 to 25, taking 16"),
            ("HEAPGAUGE_TOP_N", "+3", "allowed are 1 to 25, taking 16"),
            ("HEAPGAUGE_TOP_N", "26", "allowed are 1 to 25, taking 16"),
            (
                "HEAPGAUGE_DELTA_WINDOW",
                "5",
                "allowed is a number with ms, s, m, h or d, from 0s to 7d, taking 5m",
            ),
            (
                "HEAPGAUGE_DELTA_WINDOW",
                "8d",
                "allowed is a number with ms, s, m, h or d, from 0s to 7d, taking 5m",
            ),
            ("HEAPGAUGE_FRAMES", "65", "allowed are 1 to 64, keeping what the program has set"),
            (
                "HEAPGAUGE_SAMPLE",
                "2GiB",
                "allowed are exact and a size up to 1GiB such as 512KiB, keeping what the program has set",
            ),
            (
                "HEAPGAUGE_SAMPLE",
                "often",
                "allowed are exact and a size up to 1GiB such as 512KiB, keeping what the program has set",
            ),
            (
                "HEAPGAUGE_MAX_OVERHEAD",
                "64mb",
                "allowed is a number with B, KiB, MiB or GiB, at least 1MiB, taking the default",
            ),
            (
                "HEAPGAUGE_MAX_OVERHEAD",
                "99999999999GiB",
                "allowed is a number with B, KiB, MiB or GiB, at least 1MiB, taking the default",
            ),
            ("HEAPGAUGE_QUIET", "", "allowed are on, true, yes, 1, off, false, no and 0, taking off"),
            (
                "HEAPGAUGE_SOURCE_URL",
                "javascript:{file}",
                "allowed is http(s)://… with {file}, and {line} if you like, taking none",
            ),
            ("HEAPGAUGE_EXPOSE", "everything", "allowed are metrics, pprof and all, taking metrics"),
            (
                "HEAPGAUGE_DEBUG_ADDR",
                "0.0.0.0:9899",
                "allowed are a loopback HOST:PORT and off, taking 127.0.0.1:9899",
            ),
        ] {
            let line = format!("{key}={value}: {allowed}");
            assert_eq!(read(&[(key, value)]), (Config::default(), vec![line]));
        }
    }

    /// `12` was taken as twelve bytes, in which nothing can be recorded.
    #[test]
    fn less_than_one_mebibyte_of_own_memory_is_one_mebibyte_and_a_line() {
        for (value, bytes) in [("12", 12), ("0", 0), ("1023KiB", 1_047_552)] {
            let (config, problems) = read(&[("HEAPGAUGE_MAX_OVERHEAD", value)]);
            assert_eq!(config, Config { max_overhead: Some(1 << 20), ..Config::default() });
            let line = format!(
                "HEAPGAUGE_MAX_OVERHEAD={value}: this is {bytes} bytes, allowed is at least 1MiB, taking 1MiB"
            );
            assert_eq!(problems, [line]);
        }
        let (config, problems) = read(&[("HEAPGAUGE_MAX_OVERHEAD", "1MiB")]);
        assert_eq!((config.max_overhead, problems), (Some(1 << 20), vec![]));
    }

    #[test]
    fn an_unknown_key_names_those_there_are() {
        let (config, problems) = read(&[("HEAPGAUGE_TOPN", "3"), ("HEAPGAUGE_TOP_N", "3")]);
        assert_eq!(config.top_n, 3);
        assert_eq!(
            problems,
            ["HEAPGAUGE_TOPN is unknown, allowed are HEAPGAUGE, HEAPGAUGE_ADDR, HEAPGAUGE_TOP_N, \
                 HEAPGAUGE_DELTA_WINDOW, HEAPGAUGE_FRAMES, HEAPGAUGE_SAMPLE, HEAPGAUGE_MAX_OVERHEAD, \
                 HEAPGAUGE_RECLAIM, HEAPGAUGE_MEMORY_LIMIT, HEAPGAUGE_RELEASE, HEAPGAUGE_SITE, HEAPGAUGE_OWN_CRATES, HEAPGAUGE_LOOK_THROUGH, HEAPGAUGE_EXPOSE, \
                 HEAPGAUGE_DEBUG_ADDR, HEAPGAUGE_SOURCE_URL, HEAPGAUGE_QUIET, HEAPGAUGE_DUMP_DIR, HEAPGAUGE_DUMP_AT, \
                 HEAPGAUGE_DUMP_KEEP, HEAPGAUGE_DUMP_MAX_BYTES, HEAPGAUGE_DUMP_SIGNAL, HEAPGAUGE_TERMINATION_LOG"]
        );
    }

    /// The emergency switch took `off` alone, and left tracking on for every other word.
    #[test]
    fn a_switch_takes_the_usual_words_in_any_case() {
        for (words, on) in [
            (["on", "ON", "true", "True", "yes", "1"], true),
            (["off", "OFF", "false", "No", "NO", "0"], false),
        ] {
            for word in words {
                let (config, problems) = read(&[("HEAPGAUGE", word), ("HEAPGAUGE_QUIET", word)]);
                assert_eq!((config.on, config.quiet, problems), (Some(on), on, vec![]), "{word}");
            }
        }
        assert_eq!(read(&[("HEAPGAUGE_DEBUG_ADDR", "OFF")]).0.debug_addr, None);
        let local = read(&[("HEAPGAUGE_DEBUG_ADDR", "localhost:1")]).0.debug_addr;
        assert_eq!(local, Some("127.0.0.1:1".parse().unwrap()));
    }

    #[test]
    fn variables_of_a_kubernetes_service_are_passed_over() {
        let (config, problems) = read(&[
            ("HEAPGAUGE_SERVICE_HOST", "10.0.0.1"),
            ("HEAPGAUGE_SERVICE_PORT_METRICS", "9898"),
            ("HEAPGAUGE_PORT", "tcp://10.0.0.1:9898"),
            ("HEAPGAUGE_PORT_9898_TCP_ADDR", "10.0.0.1"),
        ]);
        assert_eq!((config, problems), (Config::default(), vec![]));
        assert_eq!(read(&[("HEAPGAUGE_PORTS", "1")]).1.len(), 1);
    }

    #[test]
    fn a_hostile_value_stays_one_short_line() {
        let long = "a\nb\r".repeat(1_000);
        let (_, problems) = read(&[("HEAPGAUGE_TOP_N", &long), ("HEAPGAUGE_\u{1b}[2J", "")]);
        assert_eq!(problems.len(), 2);
        for problem in problems {
            assert!(problem.chars().count() < 540 && !problem.contains(char::is_control), "{problem:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_is_not_unicode_is_malformed() {
        use std::os::unix::ffi::OsStringExt as _;
        let value = OsString::from_vec(vec![b'1', 0xff]);
        let (config, problems) = parse([("HEAPGAUGE_TOP_N".into(), value)].into_iter());
        assert_eq!(config, Config::default());
        assert_eq!(problems, ["HEAPGAUGE_TOP_N=1\u{fffd}: allowed are 1 to 25, taking 16"]);
    }

    /// Whatever a variable holds: what it says, or one short line and the default.
    #[test]
    fn any_value_is_read_or_is_one_line() {
        let words = [
            "on",
            "off",
            "127.0.0.1",
            ":",
            "[",
            "]",
            "::1",
            "0",
            "9898",
            "5",
            "m",
            "s",
            "d",
            "KiB",
            "GiB",
            "-",
            " ",
        ];
        let mut random = Random::new();
        for _ in 0..inputs(50_000) {
            let (key, value) = (random.one(&KEYS), random.text(&words));
            let (config, problems) = read(&[(key, &value)]);
            assert!(problems.len() <= 1, "{key}={value:?}: {problems:?}");
            for problem in problems {
                // Beside the default: the floor of the one value that has one.
                let floor = Config { max_overhead: Some(MIN_MAX_OVERHEAD), ..Config::default() };
                let is_floor = problem.ends_with("taking 1MiB") && config == floor;
                assert!(is_floor || config == Config::default(), "{key}={value:?}");
                assert!(!problem.contains(char::is_control) && problem.chars().count() < 300, "{problem:?}");
            }
            assert!((1..=MAX_TOP_N).contains(&config.top_n) && config.delta_window <= MAX_DELTA_WINDOW);
        }
    }
}
