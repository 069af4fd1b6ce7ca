//! Tests scopes of snapshot files: kept, added up, chosen by and checked.

use super::common::{Directory, S1, json, load, rows};
use heapgauge::{Filter, GroupBy, Snapshot};
use serde_json::{Value, json};

/// Makes the dataset S1 with scopes: the three equal blocks of two tenants and of none, another one of two keys.
fn scoped() -> Value {
    let mut file = json(S1);
    let scopes = [
        json!({"tenant": "acme"}),
        json!({"tenant": "b"}),
        Value::Null,
        json!({"tenant": "acme", "route": "/a b"}),
    ];
    for (trace, scope) in file["traces"].as_array_mut().unwrap().iter_mut().zip(scopes) {
        trace["scope"] = scope;
    }
    file
}

fn snapshot() -> Snapshot {
    load(&scoped().to_string()).unwrap()
}

#[test]
fn a_file_keeps_the_scope_of_each_trace() {
    let snapshot = snapshot();
    let shown: Vec<String> = snapshot.traces().iter().map(|trace| trace.scope.to_string()).collect();
    assert_eq!(shown, ["tenant=acme", "tenant=b", "", "route=/a b,tenant=acme", "", ""]);
    let directory = Directory::new();
    let path = directory.file("scoped.json");
    snapshot.save(&path).unwrap();
    assert_eq!(Snapshot::load(&path).unwrap(), snapshot);
    let written: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(written["traces"][3]["scope"], json!({"route": "/a b", "tenant": "acme"}));
    assert!(written["traces"][2].get("scope").is_none() && written["traces"][4].get("scope").is_none());
}

#[test]
fn control_characters_of_a_file_are_not_printed() {
    let mut file = scoped();
    file["traces"][1]["scope"] = json!({"tenant": "\u{1b}[2J\u{0}b\n"});
    let rows = rows(&load(&file.to_string()).unwrap().statistics(GroupBy::Scope), GroupBy::Scope);
    assert_eq!(rows[1], "tenant=?[2J?b? 10/1");
}

#[test]
fn every_other_grouping_adds_up_over_scopes() {
    let plain = load(&json(S1).to_string()).unwrap();
    for group_by in [
        GroupBy::File,
        GroupBy::Line,
        GroupBy::Function,
        GroupBy::Crate,
        GroupBy::Traceback,
        GroupBy::Nearest,
        GroupBy::Via,
        GroupBy::CumulativeLine,
    ] {
        assert_eq!(snapshot().statistics(group_by), plain.statistics(group_by));
        assert_eq!(snapshot().compare_to(&plain, group_by), plain.compare_to(&plain, group_by));
    }
}

#[test]
fn rows_by_scope_overlap_where_blocks_have_two_keys() {
    let of_scopes = rows(&snapshot().statistics(GroupBy::Scope), GroupBy::Scope);
    assert_eq!(of_scopes, ["tenant=acme 12/2", "tenant=b 10/1", "route=/a b 2/1"]);
    assert_eq!("scope".parse::<GroupBy>().unwrap(), GroupBy::Scope);
    let error = GroupBy::Scope.cumulative().unwrap_err().to_string();
    assert_eq!(error, "cumulative: not for scope, allowed are file, line, function, crate");
    let old = load(&json(S1).to_string()).unwrap();
    let grown = snapshot().compare_to(&old, GroupBy::Scope);
    assert_eq!(grown[0].to_string(), "tenant=acme: size=12 B (+12 B), count=2 (+2), average=6 B");
}

#[test]
fn filters_choose_by_scope() {
    let sizes = |filters: &[Filter]| -> Vec<u64> {
        snapshot().filter_traces(filters).traces().iter().map(|trace| trace.size).collect()
    };
    assert_eq!(sizes(&[Filter::include("*").scope("tenant", "acme")]), [10, 2]);
    assert_eq!(sizes(&[Filter::exclude("*").scope("tenant", "acme")]), [10, 10, 66, 7]);
    assert_eq!(sizes(&[Filter::include("a.rs").line(5).scope("tenant", "acme")]), [2]);
    assert_eq!(sizes(&[Filter::include("*").scope("tenant", "nobody")]), [0; 0]);
}

/// Returns the reason why a file is none, without its place.
fn said(loaded: Result<Snapshot, heapgauge::Error>) -> String {
    let reason = loaded.unwrap_err().to_string();
    let begin = reason.find("not a snapshot").unwrap_or_else(|| panic!("{reason}"));
    reason[begin..].split(" at line").next().unwrap().to_owned()
}

#[test]
fn a_scope_that_is_none_is_one_line() {
    let error = |scope: Value| {
        let mut file = scoped();
        file["traces"][0]["scope"] = scope;
        said(load(&file.to_string()))
    };
    for (scope, said) in [
        (
            json!("tenant=acme"),
            "invalid type: string \"tenant=acme\", expected a scope, keys with strings, or null",
        ),
        (json!(["tenant"]), "invalid type: sequence, expected a scope, keys with strings, or null"),
        (json!({"tenant": 7}), "invalid type: integer `7`, expected a scope, keys with strings, or null"),
    ] {
        assert_eq!(error(scope), format!("not a snapshot: {said}"));
    }
    let twice =
        scoped().to_string().replacen("{\"tenant\":\"acme\"}", "{\"tenant\":\"a\",\"tenant\":\"b\"}", 1);
    assert_eq!(said(load(&twice)), "not a snapshot: duplicate key `tenant` of a scope");
}
