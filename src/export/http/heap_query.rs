//! The query of the JSON of `/debug/heap/…` → a value.
//!
//! Pure; the query is as long as a request's head may be at most.

use super::query::{MAX_TOP, SINCE, SORT, age, each, since};
use crate::analyze::call_tree::Value;
use crate::analyze::collector::{Since, ViewQuery};
use crate::analyze::snapshot::order::Order;
use crate::analyze::symbols::Site;
use crate::export::input::number;

/// Most points of a site's history; the collector keeps as many.
const MAX_HISTORY: usize = 64;
/// Most nodes of a call tree, a few megabytes.
const MAX_NODES: usize = 20_000;

/// Query of the JSON of `/debug/heap/…`; each path takes some of its parameters.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HeapQuery {
    pub asked: ViewQuery,
    pub order: Order,
    pub top: usize,
    /// Number of points of a site's history.
    pub history: usize,
    pub value: Value,
    pub nodes: usize,
    pub filter: Filter,
}

/// Selection of sites by parts of a site, all of which must match.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    site: Option<u64>,
    function: Option<String>,
    file: Option<String>,
    line: Option<u32>,
    krate: Option<String>,
    via: Option<String>,
}

impl Filter {
    pub(super) fn admits(&self, site: Option<&Site>) -> bool {
        let Some(site) = site else { return *self == Filter::default() };
        self.site.is_none_or(|id| id == site.id)
            && self.line.is_none_or(|line| line == site.line)
            && self.function.as_deref().is_none_or(|function| function == &*site.function)
            && self.file.as_deref().is_none_or(|file| file == &*site.file)
            && self.krate.as_deref().is_none_or(|krate| krate == &*site.krate)
            && self.via.as_deref().is_none_or(|via| via == &*site.via)
    }
}

impl HeapQuery {
    /// Parses the parameters in `keys` and no others. Err: one line that names parameter, value and allowed values.
    pub(super) fn parse(query: &str, keys: &[&str]) -> Result<HeapQuery, String> {
        let mut asked = HeapQuery {
            asked: ViewQuery {
                at: None,
                since: Since::Previous,
                nearest: false,
                scope: None,
                older_than: None,
            },
            order: Order::Size,
            top: 100,
            history: 16,
            value: Value::Bytes,
            nodes: 2_000,
            filter: Filter::default(),
        };
        each(query, keys, |key, value| {
            match key {
                "top" => asked.top = number(value, 1, MAX_TOP).ok_or("1 to 10000")?,
                "sort" => asked.order = value.parse().map_err(|_| SORT)?,
                "since" => asked.asked.since = since(value).ok_or(SINCE)?,
                "at" => {
                    let at = number(value, 1, usize::MAX).ok_or("the number of summary.json")?;
                    asked.asked.at = Some(at as u64);
                }
                "history" => asked.history = number(value, 0, MAX_HISTORY).ok_or("0 to 64")?,
                "value" => asked.value = value.parse().map_err(|_| "bytes, blocks, growth")?,
                "nodes" => asked.nodes = number(value, 1, MAX_NODES).ok_or("1 to 20000")?,
                "site" => {
                    let is_id = value.len() == 16 && value.bytes().all(|byte| byte.is_ascii_hexdigit());
                    let id = is_id.then(|| u64::from_str_radix(value, 16).ok()).flatten();
                    asked.filter.site = Some(id.ok_or("16 hex digits")?);
                }
                "line" => {
                    let line = number(value, 0, u32::MAX as usize).ok_or("0 to 4294967295")?;
                    asked.filter.line = Some(line as u32);
                }
                "function" => asked.filter.function = Some(value.to_owned()),
                "file" => asked.filter.file = Some(value.to_owned()),
                "via" => asked.filter.via = Some(value.to_owned()),
                "scope" => asked.asked.scope = Some(value.parse()?),
                "older_than" => asked.asked.older_than = Some(age(value)?),
                "by" => {
                    asked.asked.nearest = match value {
                        "site" => false,
                        "nearest" => true,
                        _ => return Err("site, nearest"),
                    };
                }
                _ => asked.filter.krate = Some(value.to_owned()),
            }
            Ok(())
        })?;
        Ok(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_are_asked_for_by_any_part_of_their_site() {
        let site = Site {
            id: 0xfeed,
            function: "shop::cart::add<&>".into(),
            file: "src/cart.rs".into(),
            line: 7,
            krate: "shop".into(),
            via: "tokio".into(),
            lost: None,
        };
        let keys = ["site", "function", "file", "line", "crate", "via", "by", "at"];
        let admits = |query: &str| HeapQuery::parse(query, &keys).unwrap().filter.admits(Some(&site));
        for query in [
            "",
            "at=5",
            "site=000000000000feed",
            "site=000000000000FEED",
            "function=shop%3A%3Acart%3A%3Aadd%3C%26%3E",
            "file=src/cart.rs&line=7",
            "crate=shop",
            "via=tokio",
            "by=nearest",
        ] {
            assert!(admits(query), "{query}");
        }
        for query in
            ["site=000000000000feee", "function=shop", "file=src/cart.rs&line=8", "crate=shop2", "via="]
        {
            assert!(!admits(query), "{query}");
        }
        let of_no_site = |query: &str| HeapQuery::parse(query, &keys).unwrap().filter.admits(None);
        assert_eq!([of_no_site(""), of_no_site("crate=shop")], [true, false]);
    }

    #[test]
    fn what_is_wrong_names_parameter_value_and_what_is_allowed() {
        for (query, line) in [
            ("at=now", "parameter at is now, allowed are the number of summary.json"),
            ("history=65", "parameter history is 65, allowed are 0 to 64"),
            ("value=count", "parameter value is count, allowed are bytes, blocks, growth"),
            ("nodes=0", "parameter nodes is 0, allowed are 1 to 20000"),
            ("by=line", "parameter by is line, allowed are site, nearest"),
            ("site=12", "parameter site is 12, allowed are 16 hex digits"),
            ("scope=:a", "parameter scope is :a, allowed are a key and a value such as tenant:acme"),
            ("older_than=1", "parameter older_than is 1, allowed are durations from 1s to 7d, such as 1h"),
            ("line=-1", "parameter line is -1, allowed are 0 to 4294967295"),
            (
                "crate=a",
                "parameter crate is unknown, allowed are at, history, value, nodes, site, line, by, scope, older_than",
            ),
        ] {
            let keys = ["at", "history", "value", "nodes", "site", "line", "by", "scope", "older_than"];
            assert_eq!(HeapQuery::parse(query, &keys), Err(line.to_owned()), "{query}");
        }
        let none = HeapQuery::parse("a=b", &[]);
        assert_eq!(none, Err("parameter a is unknown, none is allowed".to_owned()));
    }
}
