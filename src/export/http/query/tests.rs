//! Queries are read as a user means them, and refused in one line that says what is allowed.

use super::*;
use crate::base::random_input::{Random, inputs};

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
        older_than: None,
    };
    assert_eq!(Query::parse("").as_ref(), Ok(&asked));
    assert_eq!(Query::parse("&&").as_ref(), Ok(&asked));
    assert_eq!(Query::parse("top=10&group_by=file&since=first&sort=diff&format=text").as_ref(), Ok(&asked));
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
    for (text, seconds) in [("1s", 1), ("90s", 90), ("10m", 600), ("1h", 3_600), ("7d", 604_800)] {
        let asked = parse(&format!("older_than={text}"));
        assert_eq!(asked.older_than, Some(Duration::from_secs(seconds)), "{text}");
    }
    // Where nothing is known to have changed, the order is that of the size.
    assert_eq!(
        (parse("older_than=1h").order, parse("older_than=1h&sort=count").order),
        (Order::Size, Order::Count)
    );
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
        ("top=99999999999999999999999", "parameter top is 99999999999999999999999, allowed are 1 to 10000"),
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
        ("older_than=0s", "parameter older_than is 0s, allowed are durations from 1s to 7d, such as 1h"),
        (
            "older_than=999ms",
            "parameter older_than is 999ms, allowed are durations from 1s to 7d, such as 1h",
        ),
        ("older_than=8d", "parameter older_than is 8d, allowed are durations from 1s to 7d, such as 1h"),
        ("older_than=1", "parameter older_than is 1, allowed are durations from 1s to 7d, such as 1h"),
        ("older_than=old", "parameter older_than is old, allowed are durations from 1s to 7d, such as 1h"),
        (
            "older_than=1h&since=heap-1793000000-7-limit.json",
            "parameter since is heap-1793000000-7-limit.json beside older_than, allowed are first, previous, a duration \
             such as 5m, or the id of a snapshot: a dump has no ages",
        ),
        (
            "tpo=1",
            "parameter tpo is unknown, allowed are top, group_by, since, sort, format, scope, older_than",
        ),
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
    const KEYS: [&str; 3] = ["seconds", "debug", "older_than"];
    let asked = |seconds: Option<u64>, text| {
        Ok(ProfileQuery { seconds: seconds.map(Duration::from_secs), text, older_than: None })
    };
    for (query, expected) in [
        ("", asked(None, false)),
        ("debug=0", asked(None, false)),
        ("debug=1", asked(None, true)),
        ("seconds=1", asked(Some(1), false)),
        ("seconds=59&debug=0", asked(Some(59), false)),
    ] {
        assert_eq!(ProfileQuery::parse(query, &KEYS), expected, "{query}");
    }
    for (query, line) in [
        ("seconds=0", "parameter seconds is 0, allowed are 1 to 59, in seconds"),
        ("seconds=60", "parameter seconds is 60, allowed are 1 to 59, in seconds"),
        ("seconds=-1", "parameter seconds is -1, allowed are 1 to 59, in seconds"),
        ("seconds=1.5", "parameter seconds is 1.5, allowed are 1 to 59, in seconds"),
        ("seconds=", "parameter seconds is , allowed are 1 to 59, in seconds"),
        ("debug=2", "parameter debug is 2, allowed are 0, 1"),
        ("debug=yes", "parameter debug is yes, allowed are 0, 1"),
        ("gc=1", "parameter gc is unknown, allowed are seconds, debug, older_than"),
        ("older_than=1h&seconds=5", "parameter older_than is 3600s and seconds 5, allowed is one of them"),
        ("seconds=5&debug=1", "parameter debug is 1 and seconds 5, allowed is one of them"),
        ("debug=1&seconds=5", "parameter debug is 1 and seconds 5, allowed is one of them"),
        ("seconds=5&seconds=5", "parameter seconds is 5 the second time, allowed is once"),
    ] {
        assert_eq!(ProfileQuery::parse(query, &KEYS), Err(line.to_owned()), "{query}");
    }
}

#[test]
fn what_folded_stacks_are_asked_for() {
    let asked = |value, with_scopes, hours: Option<u64>| {
        Ok(FoldedQuery {
            value,
            with_scopes,
            older_than: hours.map(|hours| Duration::from_secs(3_600 * hours)),
        })
    };
    assert_eq!(folded(""), asked(ProfileValue::LiveBytes, false, None));
    assert_eq!(folded("value=bytes&scopes=off"), asked(ProfileValue::LiveBytes, false, None));
    assert_eq!(folded("value=blocks&scopes=on"), asked(ProfileValue::LiveBlocks, true, None));
    assert_eq!(folded("older_than=6h"), asked(ProfileValue::LiveBytes, false, Some(6)));
    for (query, line) in [
        ("value=Bytes", "parameter value is Bytes, allowed are bytes, blocks"),
        ("scopes=tenant", "parameter scopes is tenant, allowed are on, off"),
        ("older_than=1w", "parameter older_than is 1w, allowed are durations from 1s to 7d, such as 1h"),
        ("values=1", "parameter values is unknown, allowed are value, scopes, older_than"),
    ] {
        assert_eq!(folded(query), Err(line.to_owned()));
    }
}

#[test]
fn a_snapshot_file_is_asked_for_with_an_age_or_none() {
    assert_eq!(snapshot_file(""), Ok(None));
    assert_eq!(snapshot_file("older_than=1h"), Ok(Some(Duration::from_secs(3_600))));
    let unknown = "parameter top is unknown, allowed are older_than";
    assert_eq!(snapshot_file("top=3"), Err(unknown.to_owned()));
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
        "older_than=",
        "7d",
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
