//! The query of a path → a value.
//!
//! Pure; the query is as long as a request's head may be at most.
#![forbid(unsafe_code)]

use std::time::Duration;

#[cfg(feature = "pprof")]
use super::REQUEST_TIME;
use crate::analyze::collector::Since;
use crate::analyze::profile::ProfileValue;
use crate::analyze::scope::ScopeFilter;
use crate::analyze::snapshot::group::{GROUP_BY, GroupBy};
use crate::analyze::snapshot::order::Order;
use crate::export::dump::access;
use crate::export::input::{self, Quoted, number};

/// Most rows of one answer.
pub(super) const MAX_TOP: usize = 10_000;
pub(super) const SORT: &str = "diff, growth, size, count";
/// Ages that can be asked for. Older counts are not kept.
const LEAST_AGE: Duration = Duration::from_secs(1);
const MOST_AGE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Longest time of a profile over seconds: a longer one would not be there before the connection is given up.
#[cfg(feature = "pprof")]
const MAX_SECONDS: usize = REQUEST_TIME.as_secs() as usize - 1;

/// Format of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    Json,
}

/// Query of `GET /memory/snapshots`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Query {
    pub top: usize,
    pub group_by: GroupBy,
    pub since: Since,
    /// Name of the dump that the heap is compared with, instead of `since`.
    pub dump: Option<String>,
    pub order: Order,
    pub format: Format,
    /// Scope whose blocks alone count; `None`: all blocks.
    pub scope: Option<ScopeFilter>,
    /// Least age of the blocks that count; `None`: all blocks.
    pub older_than: Option<Duration>,
}

/// Allowed values of `since`, for a message.
pub(super) const SINCE: &str = "first, previous, a duration such as 5m, or the id of a snapshot";
/// Allowed values of `since` where it may be a dump.
pub(super) const SINCE_OR_DUMP: &str =
    "first, previous, a duration such as 5m, the id of a snapshot, or the name of a dump";

impl Query {
    /// Parses the query. Err: one line that names parameter, value and allowed values.
    pub(super) fn parse(query: &str) -> Result<Query, String> {
        let keys = ["top", "group_by", "since", "sort", "format", "scope", "older_than"];
        // It is not known how old blocks have changed.
        let is_of_old = pairs(query).iter().any(|(key, _)| key == "older_than");
        let order = if is_of_old { Order::Size } else { Order::Diff };
        let asked = Query::parse_keys(query, &keys, order)?;
        match (&asked.older_than, &asked.dump) {
            (Some(_), Some(dump)) => Err(format!(
                "parameter since is {dump} beside older_than, allowed are {SINCE}: a dump has no ages"
            )),
            _ => Ok(asked),
        }
    }

    /// Parses the query about one snapshot, which is compared with none.
    pub(super) fn parse_of_one(query: &str) -> Result<Query, String> {
        Query::parse_keys(query, &["top", "group_by", "sort", "format", "scope"], Order::Size)
    }

    fn parse_keys(query: &str, keys: &[&str], order: Order) -> Result<Query, String> {
        let mut asked = Query {
            top: 10,
            group_by: GroupBy::File,
            since: Since::First,
            dump: None,
            order,
            format: Format::Text,
            scope: None,
            older_than: None,
        };
        each(query, keys, |key, value| {
            match key {
                "top" => asked.top = number(value, 1, MAX_TOP).ok_or("1 to 10000")?,
                "group_by" => {
                    asked.group_by = value.parse().map_err(|_| GROUP_BY)?;
                }
                "sort" => asked.order = value.parse().map_err(|_| SORT)?,
                "format" => {
                    asked.format = match value {
                        "text" => Format::Text,
                        "json" => Format::Json,
                        _ => return Err("text, json"),
                    }
                }
                "scope" => asked.scope = Some(value.parse()?),
                "older_than" => asked.older_than = Some(age(value)?),
                _ if access::is_name(value) => asked.dump = Some(value.to_owned()),
                _ => asked.since = since(value).ok_or(SINCE_OR_DUMP)?,
            }
            Ok(())
        })?;
        Ok(asked)
    }
}

/// Query of `GET /debug/pprof/heap` and `/debug/pprof/allocs`.
#[cfg(feature = "pprof")]
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ProfileQuery {
    /// Time from now that the profile covers; `None`: everything so far.
    pub seconds: Option<Duration>,
    pub text: bool,
    /// Least age of the blocks that count; `None`: all blocks.
    pub older_than: Option<Duration>,
}

#[cfg(feature = "pprof")]
impl ProfileQuery {
    /// Parses the parameters in `keys` and no others. Err: one line that names parameter, value and allowed values.
    pub(super) fn parse(query: &str, keys: &[&str]) -> Result<ProfileQuery, String> {
        let mut asked = ProfileQuery::default();
        each(query, keys, |key, value| {
            match key {
                "debug" => asked.text = number(value, 0, 1).ok_or("0, 1")? == 1,
                "older_than" => asked.older_than = Some(age(value)?),
                _ => {
                    let seconds = number(value, 1, MAX_SECONDS).ok_or("1 to 59, in seconds")?;
                    asked.seconds = Some(Duration::from_secs(seconds as u64));
                }
            }
            Ok(())
        })?;
        match asked {
            ProfileQuery { seconds: Some(seconds), text: true, .. } => {
                Err(format!("parameter debug is 1 and seconds {}, allowed is one of them", seconds.as_secs()))
            }
            ProfileQuery { seconds: Some(seconds), older_than: Some(age), .. } => Err(format!(
                "parameter older_than is {}s and seconds {}, allowed is one of them",
                age.as_secs(),
                seconds.as_secs()
            )),
            _ => Ok(asked),
        }
    }
}

/// Query of `GET /debug/heap/folded`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FoldedQuery {
    pub value: ProfileValue,
    /// Scopes are root frames.
    pub with_scopes: bool,
    /// Least age of the blocks that count; `None`: all blocks.
    pub older_than: Option<Duration>,
}

/// Parses the query of `GET /debug/heap/folded`. Err: one line that names parameter, value and allowed values.
pub(super) fn folded(query: &str) -> Result<FoldedQuery, String> {
    let (mut shown, mut with_scopes, mut older_than) = (ProfileValue::LiveBytes, false, None);
    each(query, &["value", "scopes", "older_than"], |key, value| {
        match (key, value) {
            ("older_than", _) => older_than = Some(age(value)?),
            ("value", "bytes") => shown = ProfileValue::LiveBytes,
            ("value", "blocks") => shown = ProfileValue::LiveBlocks,
            ("value", _) => return Err("bytes, blocks"),
            (_, "on") => with_scopes = true,
            (_, "off") => with_scopes = false,
            _ => return Err("on, off"),
        }
        Ok(())
    })?;
    Ok(FoldedQuery { value: shown, with_scopes, older_than })
}

/// Parses the query of `GET /debug/heap/snapshot.json`: the least age of the blocks in it. Err: one line that names parameter,
/// value and allowed values.
pub(super) fn snapshot_file(query: &str) -> Result<Option<Duration>, String> {
    let mut older_than = None;
    each(query, &["older_than"], |_, value| {
        older_than = Some(age(value)?);
        Ok(())
    })?;
    Ok(older_than)
}

/// Reads each parameter, once. `read` is given only those of `keys`; its error lists the allowed values.
pub(super) fn each(
    query: &str,
    keys: &[&str],
    mut read: impl FnMut(&str, &str) -> Result<(), &'static str>,
) -> Result<(), String> {
    let mut seen: Vec<String> = Vec::new();
    for (key, value) in pairs(query) {
        if !keys.contains(&&*key) {
            let allowed = match keys {
                [] => "none is allowed".to_owned(),
                keys => format!("allowed are {}", keys.join(", ")),
            };
            return Err(format!("parameter {} is unknown, {allowed}", Quoted(&key)));
        }
        if let Err(allowed) = read(&key, &value) {
            return Err(format!("parameter {key} is {}, allowed are {allowed}", Quoted(&value)));
        }
        if seen.contains(&key) {
            return Err(format!("parameter {key} is {} the second time, allowed is once", Quoted(&value)));
        }
        seen.push(key);
    }
    Ok(())
}

/// Checks that there is no parameter, for `POST /memory/snapshots`. Err: as in [`Query::parse`].
pub(super) fn no_params(query: &str) -> Result<(), String> {
    match pairs(query).first() {
        Some((key, _)) => Err(format!("parameter {} is unknown, allowed are none with POST", Quoted(key))),
        None => Ok(()),
    }
}

/// Parses `since`: digits alone are an id; a duration has a unit.
pub(super) fn since(value: &str) -> Option<Since> {
    match value {
        "first" => Some(Since::First),
        "previous" => Some(Since::Previous),
        "" => None,
        _ if value.bytes().all(|byte| byte.is_ascii_digit()) => value.parse().ok().map(Since::Number),
        _ => input::duration(value).map(Since::Ago),
    }
}

/// Parses `older_than`: the least age of blocks. Err: the allowed values.
pub(super) fn age(value: &str) -> Result<Duration, &'static str> {
    let age = input::duration(value).filter(|age| (LEAST_AGE..=MOST_AGE).contains(age));
    age.ok_or("durations from 1s to 7d, such as 1h")
}

/// Splits `a=b&c=d` and decodes percent signs; bytes that are not UTF-8 become replacement characters.
fn pairs(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let [first, tail @ ..] = rest {
            let hex = |digit: &u8| char::from(*digit).to_digit(16);
            match (first, tail) {
                (b'%', [high, low, after @ ..]) if hex(high).is_some() && hex(low).is_some() => {
                    bytes.extend(hex(high).zip(hex(low)).map(|(high, low)| (high * 16 + low) as u8));
                    rest = after;
                }
                (b'+', _) => {
                    bytes.push(b' ');
                    rest = tail;
                }
                _ => {
                    bytes.push(*first);
                    rest = tail;
                }
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let parts = query.split('&').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(key), decode(value))
        })
        .collect()
}

#[cfg(test)]
mod tests;
