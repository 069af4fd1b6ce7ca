//! The query of `/memory/snapshots` → a value.
//!
//! Pure; the query is as long as a request's head may be at most.
#![forbid(unsafe_code)]

use crate::collector::Since;
use crate::config::{self, Shown};
use crate::statistics::{GroupBy, Order};

/// The most rows of one answer.
const MAX_TOP: usize = 10_000;

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    Json,
}

/// What `GET /memory/snapshots` is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Query {
    pub top: usize,
    pub group_by: GroupBy,
    pub since: Since,
    pub order: Order,
    pub format: Format,
}

/// What `since` may be.
pub(super) const SINCE: &str = "first, previous, a duration such as 5m, or the id of a snapshot";

impl Query {
    /// Err: one line that names parameter, value and what is allowed.
    pub(super) fn parse(query: &str) -> Result<Query, String> {
        let mut asked = Query {
            top: 10,
            group_by: GroupBy::File,
            since: Since::First,
            order: Order::Diff,
            format: Format::Text,
        };
        let mut seen: Vec<String> = Vec::new();
        for (key, value) in pairs(query) {
            let (key, value) = (&*key, &*value);
            let wrong = |allowed: &str| {
                format!("parameter {} is {}, allowed are {allowed}", Shown(key), Shown(value))
            };
            match key {
                "top" => {
                    let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
                    let number = is_number.then(|| value.parse().ok()).flatten();
                    asked.top = number
                        .filter(|top| (1..=MAX_TOP).contains(top))
                        .ok_or_else(|| wrong("1 to 10000"))?;
                }
                "group_by" => {
                    asked.group_by =
                        value.parse().map_err(|_| wrong("file, line, function, crate, traceback"))?;
                }
                "sort" => asked.order = value.parse().map_err(|_| wrong("diff, growth, size, count"))?,
                "format" => {
                    asked.format = match value {
                        "text" => Format::Text,
                        "json" => Format::Json,
                        _ => return Err(wrong("text, json")),
                    }
                }
                "since" => asked.since = since(value).ok_or_else(|| wrong(SINCE))?,
                _ => {
                    return Err(format!(
                        "parameter {} is unknown, allowed are top, group_by, since, sort, format",
                        Shown(key)
                    ));
                }
            }
            if seen.iter().any(|earlier| earlier == key) {
                return Err(format!(
                    "parameter {} is {} the second time, allowed is once",
                    key,
                    Shown(value)
                ));
            }
            seen.push(key.to_owned());
        }
        Ok(asked)
    }
}

/// Figures alone are an id; a duration has a unit.
fn since(value: &str) -> Option<Since> {
    match value {
        "first" => Some(Since::First),
        "previous" => Some(Since::Previous),
        "" => None,
        _ if value.bytes().all(|byte| byte.is_ascii_digit()) => value.parse().ok().map(Since::Number),
        _ => config::duration(value).map(Since::Ago),
    }
}

/// `a=b&c=d`, percent-decoded; what decodes to no text shows as replacement characters.
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
    use crate::fuzz::{Random, inputs};
    use std::time::Duration;

    #[test]
    fn the_defaults_are_those_of_the_post() {
        let asked = Query {
            top: 10,
            group_by: GroupBy::File,
            since: Since::First,
            order: Order::Diff,
            format: Format::Text,
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
                "parameter group_by is lines, allowed are file, line, function, crate, traceback",
            ),
            ("sort=Diff", "parameter sort is Diff, allowed are diff, growth, size, count"),
            ("format=xml", "parameter format is xml, allowed are text, json"),
            (
                "since=",
                "parameter since is , allowed are first, previous, a duration such as 5m, or the id of a snapshot",
            ),
            (
                "since=5y",
                "parameter since is 5y, allowed are first, previous, a duration such as 5m, or the id of a snapshot",
            ),
            ("tpo=1", "parameter tpo is unknown, allowed are top, group_by, since, sort, format"),
            ("top=1&top=2", "parameter top is 2 the second time, allowed is once"),
            ("top=%0a%ff%", "parameter top is ?\u{fffd}%, allowed are 1 to 10000"),
        ] {
            assert_eq!(Query::parse(query), Err(line.to_owned()), "{query}");
        }
        let long = Query::parse(&format!("top={}", "x".repeat(9_000))).unwrap_err();
        assert_eq!(long.chars().count(), 80 + 1 + "parameter top is , allowed are 1 to 10000".len());
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
