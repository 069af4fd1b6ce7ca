//! Environment → settings of the server: every `HEAPGAUGE_…` variable.
//!
//! Read once, by `serve_from_env`, on the thread that calls it. A variable that cannot be read is one
//! line for the user, and its default is taken.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::settings;
use crate::analyze::ages::{HORIZON, MIN_OLD_AGE};
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
const KEYS: [&str; 18] = [
    "HEAPGAUGE",
    "HEAPGAUGE_ADDR",
    "HEAPGAUGE_TOP_N",
    "HEAPGAUGE_DELTA_WINDOW",
    "HEAPGAUGE_OLD_AGE",
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
    /// Age from which blocks count as old; `None`: the program's, else the default.
    pub old_age: Option<Duration>,
    /// Stacks get new ids, to tell the ages of their blocks.
    pub cohorts: Option<bool>,
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
            old_age: None,
            cohorts: None,
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
        "HEAPGAUGE_OLD_AGE" => old_age(config, value)?,
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

/// Reads the age from which blocks count as old, or that ages are known by bounds alone.
fn old_age(config: &mut Config, value: &str) -> Result<(), &'static str> {
    if value.eq_ignore_ascii_case("off") {
        config.cohorts = Some(false);
        return Ok(());
    }
    let age = duration(value).filter(|age| (MIN_OLD_AGE..=HORIZON).contains(age));
    config.old_age = Some(age.ok_or(OLD_AGE)?);
    Ok(())
}

/// Values of an age, for the line about another one.
const OLD_AGE: &str =
    "allowed are off and a number with s, m, h or d, from 1s to 7d, keeping what the program has set";

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
mod tests;
