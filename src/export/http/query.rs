//! The query of a path → a value.
//!
//! Pure; the query is as long as a request's head may be at most.
#![forbid(unsafe_code)]

#[cfg(feature = "pprof")]
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
}

/// Allowed values of `since`, for a message.
pub(super) const SINCE: &str = "first, previous, a duration such as 5m, or the id of a snapshot";
/// Allowed values of `since` where it may be a dump.
pub(super) const SINCE_OR_DUMP: &str =
    "first, previous, a duration such as 5m, the id of a snapshot, or the name of a dump";

impl Query {
    /// Parses the query. Err: one line that names parameter, value and allowed values.
    pub(super) fn parse(query: &str) -> Result<Query, String> {
        Query::parse_keys(query, &["top", "group_by", "since", "sort", "format", "scope"], Order::Diff)
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
}

#[cfg(feature = "pprof")]
impl ProfileQuery {
    /// Parses the query. Err: one line that names parameter, value and allowed values.
    pub(super) fn parse(query: &str) -> Result<ProfileQuery, String> {
        let mut asked = ProfileQuery::default();
        each(query, &["seconds", "debug"], |key, value| {
            match key {
                "debug" => asked.text = number(value, 0, 1).ok_or("0, 1")? == 1,
                _ => {
                    let seconds = number(value, 1, MAX_SECONDS).ok_or("1 to 59, in seconds")?;
                    asked.seconds = Some(Duration::from_secs(seconds as u64));
                }
            }
            Ok(())
        })?;
        match asked {
            ProfileQuery { seconds: Some(seconds), text: true } => {
                Err(format!("parameter debug is 1 and seconds {}, allowed is one of them", seconds.as_secs()))
            }
            _ => Ok(asked),
        }
    }
}

/// Parses the query of `GET /debug/heap/folded`: the value, and whether scopes are root frames. Err: one line that names
/// parameter, value and allowed values.
pub(super) fn folded(query: &str) -> Result<(ProfileValue, bool), String> {
    let (mut shown, mut with_scopes) = (ProfileValue::LiveBytes, false);
    each(query, &["value", "scopes"], |key, value| {
        match (key, value) {
            ("value", "bytes") => shown = ProfileValue::LiveBytes,
            ("value", "blocks") => shown = ProfileValue::LiveBlocks,
            ("value", _) => return Err("bytes, blocks"),
            (_, "on") => with_scopes = true,
            (_, "off") => with_scopes = false,
            _ => return Err("on, off"),
        }
        Ok(())
    })?;
    Ok((shown, with_scopes))
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
mod tests {
    use super::*;
    use crate::base::random_input::{Random, inputs};
    use std::time::Duration;

    #[test]
    fn the_defaults_are_those_of_the_post() {
        let asked = Query {
            top: 10,
            group_by: GroupBy::File,
            since: Since::First,
            dump: None,
            order: Order::Diff,
            format: Format::Text,
            scope: None,
        };
        assert_eq!(Query::parse("").as_ref(), Ok(&asked));
        assert_eq!(Query::parse("&&").as_ref(), Ok(&asked));
        assert_eq!(
            Query::parse("top=10&group_by=file&since=first&sort=diff&format=text").as_ref(),
            Ok(&asked)
        );
    }

    #[test]
    fn every_value_is_read() {
        fn parse(query: &str) -> Query {
            Query::parse(query).unwrap()
        }
        assert_eq!((parse("top=1").top, parse("top=10000").top, parse("top=007").top), (1, 10_000, 7));
        for (word, group_by) in [
            ("line", GroupBy::Line),
            ("function", GroupBy::Function),
            ("crate", GroupBy::Crate),
            ("traceback", GroupBy::Traceback),
            ("nearest", GroupBy::Nearest),
            ("via", GroupBy::Via),
            ("scope", GroupBy::Scope),
        ] {
            assert_eq!(parse(&format!("group_by={word}")).group_by, group_by);
        }
        for (word, order) in [("growth", Order::Growth), ("size", Order::Size), ("count", Order::Count)] {
            assert_eq!(parse(&format!("sort={word}")).order, order);
        }
        assert_eq!(parse("since=previous").since, Since::Previous);
        assert_eq!(parse("since=7").since, Since::Number(7));
        assert_eq!(parse("since=5m").since, Since::Ago(Duration::from_secs(300)));
        assert_eq!(parse("since=5%20m&format=j%73on").format, Format::Json);
        let scope = parse("scope=route:%2Fa%3Ab").scope.unwrap();
        assert_eq!((&*scope.key, &*scope.value), ("route", "/a:b"));
    }

    #[test]
    fn what_is_wrong_names_parameter_value_and_what_is_allowed() {
        for (query, line) in [
            ("top=0", "parameter top is 0, allowed are 1 to 10000"),
            ("top=-1", "parameter top is -1, allowed are 1 to 10000"),
            ("top=%2B1", "parameter top is +1, allowed are 1 to 10000"),
            ("top=abc", "parameter top is abc, allowed are 1 to 10000"),
            ("top=", "parameter top is , allowed are 1 to 10000"),
            ("top", "parameter top is , allowed are 1 to 10000"),
            ("top=10001", "parameter top is 10001, allowed are 1 to 10000"),
            (
                "top=99999999999999999999999",
                "parameter top is 99999999999999999999999, allowed are 1 to 10000",
            ),
            (
                "group_by=lines",
                "parameter group_by is lines, allowed are file, line, function, crate, traceback, nearest, via, scope",
            ),
            ("sort=Diff", "parameter sort is Diff, allowed are diff, growth, size, count"),
            ("format=xml", "parameter format is xml, allowed are text, json"),
            (
                "since=",
                "parameter since is , allowed are first, previous, a duration such as 5m, the id of a snapshot, \
                 or the name of a dump",
            ),
            (
                "since=5y",
                "parameter since is 5y, allowed are first, previous, a duration such as 5m, the id of a snapshot, \
                 or the name of a dump",
            ),
            ("scope=acme", "parameter scope is acme, allowed are a key and a value such as tenant:acme"),
            ("tpo=1", "parameter tpo is unknown, allowed are top, group_by, since, sort, format, scope"),
            ("top=1&top=2", "parameter top is 2 the second time, allowed is once"),
            ("top=%0a%ff%", "parameter top is ?\u{fffd}%, allowed are 1 to 10000"),
        ] {
            assert_eq!(Query::parse(query), Err(line.to_owned()), "{query}");
        }
        let long = Query::parse(&format!("top={}", "x".repeat(9_000))).unwrap_err();
        assert_eq!(long.chars().count(), 80 + 1 + "parameter top is , allowed are 1 to 10000".len());
    }

    #[cfg(feature = "pprof")]
    #[test]
    fn case_57_what_a_profile_is_asked_for() {
        let asked =
            |seconds: Option<u64>, text| Ok(ProfileQuery { seconds: seconds.map(Duration::from_secs), text });
        for (query, expected) in [
            ("", asked(None, false)),
            ("debug=0", asked(None, false)),
            ("debug=1", asked(None, true)),
            ("seconds=1", asked(Some(1), false)),
            ("seconds=59&debug=0", asked(Some(59), false)),
        ] {
            assert_eq!(ProfileQuery::parse(query), expected, "{query}");
        }
        for (query, line) in [
            ("seconds=0", "parameter seconds is 0, allowed are 1 to 59, in seconds"),
            ("seconds=60", "parameter seconds is 60, allowed are 1 to 59, in seconds"),
            ("seconds=-1", "parameter seconds is -1, allowed are 1 to 59, in seconds"),
            ("seconds=1.5", "parameter seconds is 1.5, allowed are 1 to 59, in seconds"),
            ("seconds=", "parameter seconds is , allowed are 1 to 59, in seconds"),
            ("debug=2", "parameter debug is 2, allowed are 0, 1"),
            ("debug=yes", "parameter debug is yes, allowed are 0, 1"),
            ("gc=1", "parameter gc is unknown, allowed are seconds, debug"),
            ("seconds=5&debug=1", "parameter debug is 1 and seconds 5, allowed is one of them"),
            ("debug=1&seconds=5", "parameter debug is 1 and seconds 5, allowed is one of them"),
            ("seconds=5&seconds=5", "parameter seconds is 5 the second time, allowed is once"),
        ] {
            assert_eq!(ProfileQuery::parse(query), Err(line.to_owned()), "{query}");
        }
    }

    #[test]
    fn what_folded_stacks_are_asked_for() {
        assert_eq!(folded(""), Ok((ProfileValue::LiveBytes, false)));
        assert_eq!(folded("value=bytes&scopes=off"), Ok((ProfileValue::LiveBytes, false)));
        assert_eq!(folded("value=blocks&scopes=on"), Ok((ProfileValue::LiveBlocks, true)));
        for (query, line) in [
            ("value=Bytes", "parameter value is Bytes, allowed are bytes, blocks"),
            ("scopes=tenant", "parameter scopes is tenant, allowed are on, off"),
            ("values=1", "parameter values is unknown, allowed are value, scopes"),
        ] {
            assert_eq!(folded(query), Err(line.to_owned()));
        }
    }

    /// Values inside their ranges, or one short line.
    #[test]
    fn any_query_is_read_or_refused_in_one_line() {
        let words = [
            "top=",
            "group_by=",
            "since=",
            "sort=",
            "format=",
            "&",
            "=",
            "%",
            "%2",
            "%zz",
            "%00",
            "+",
            "file",
            "line",
            "traceback",
            "first",
            "previous",
            "5m",
            "0s",
            "10",
            "10000",
            "99999999999999999999",
            "growth",
            "json",
            "ms",
        ];
        let mut random = Random::new();
        let mut read = 0;
        for _ in 0..inputs(100_000) {
            let query = random.text(&words);
            match Query::parse(&query) {
                Ok(asked) => {
                    assert!((1..=MAX_TOP).contains(&asked.top), "{query:?}");
                    read += 1;
                }
                Err(line) => {
                    assert!(
                        !line.contains(char::is_control) && line.chars().count() < 400,
                        "{query:?}: {line:?}"
                    );
                    assert!(line.contains("allowed"), "{query:?}: {line:?}");
                }
            }
        }
        assert!(read > 0);
    }
}
