//! Documents are rendered and read back.

use super::*;
use crate::analyze::call_tree;
use crate::analyze::collector::sample_report;
use crate::analyze::live::Live;
use crate::analyze::symbols::{Progress, Site};
use serde_json::{Value as Json, json};
use std::time::{Duration, SystemTime};

fn at(seconds: f64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds)
}

fn times() -> Times {
    Times { number: 7, taken_at: at(20.5), since: at(10.0) }
}

fn totals(size: u64, count: u64, size_diff: i64, count_diff: i64) -> Totals {
    let mut totals = Totals::default();
    (totals.size, totals.count, totals.size_diff, totals.count_diff) = (size, count, size_diff, count_diff);
    totals
}

fn parsed(text: &str) -> Json {
    assert!(text.ends_with("}\n"), "{text}");
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_summary_has_the_words_of_metrics_and_of_snapshots() {
    let past = PastTotals { taken_at: at(5.0), live: Live { bytes: 10, blocks: 2 } };
    let overview = Overview {
        report: Arc::new(sample_report()),
        naming: Progress { named: 1_200, total: 5_000, more: true },
        history: vec![past],
        snapshots: vec![(3, past)],
        scopes: 2,
    };
    let summary = parsed(&summary(&overview, &["/metrics"], Some("https://git.example/{file}"), None));
    assert_eq!([&summary["previous_run"], &summary["dumps"]], [&Json::Null; 2]);
    assert_eq!((&summary["size"], &summary["count"]), (&json!(600_000), &json!(12_500)));
    assert_eq!(summary["naming"], json!({"named": 1_200, "total": 5_000}));
    assert_eq!(summary["history"], json!([{"taken_at": 5.0, "size": 10, "count": 2}]));
    assert_eq!(summary["snapshots"], json!([{"id": 3, "taken_at": 5.0, "size": 10, "count": 2}]));
    assert_eq!(summary["dropped_events"]["memory"], 2);
    assert_eq!([&summary["dropped_events"]["scopes"], &summary["scopes"]], [8, 2]);
    assert_eq!((&summary["build"]["symbols"], &summary["paths"]), (&json!("lines"), &json!(["/metrics"])));
    assert_eq!(summary["build"]["lines"], "found");
}

#[test]
fn scopes_are_rows_by_key_and_value() {
    let row = |value: &str, size, stderr| PairTotals {
        pair: ("tenant".into(), value.into()),
        totals: totals(size, 3, 5, 1),
        stderr,
        diff_stderr: stderr,
    };
    let rows = vec![row("acme \"<b>\"", 30, 4), row("b", 20, 0)];
    let found = Scopes { times: times(), rows, pairs: 3, total: totals(100, 9, 10, 2) };
    let figures = |size: u64, count: u64, size_diff: i64, count_diff: i64| json!({"size": size, "size_diff": size_diff, "count": count, "count_diff": count_diff});
    let mut expected = json!({"version": 1, "number": 7, "taken_at": 20.5, "since": 10.0, "pairs": 3,
        "rows": [figures(30, 3, 5, 1), figures(20, 3, 5, 1)], "total": figures(100, 9, 10, 2)});
    for (row, value) in expected["rows"].as_array_mut().unwrap().iter_mut().zip(["acme \"<b>\"", "b"]) {
        (row["key"], row["value"]) = ("tenant".into(), value.into());
    }
    (expected["rows"][0]["stderr"], expected["rows"][0]["diff_stderr"]) = (4.into(), 4.into());
    assert_eq!(parsed(&scopes(&found)), expected);
}

#[test]
fn sites_and_stacks_and_tree() {
    let frame = |name, line| Arc::new(Frame::new(Some(name), "src/a \"<b>\".rs", line));
    let frames: Arc<[Arc<Frame>]> = Arc::new([frame("app::<f&g>", 2), frame("app::main", 1)]);
    let held = [
        StackTotals { traceback: Some(Traceback::shared(frames, 2)), totals: totals(30, 3, 5, 1) },
        StackTotals { traceback: None, totals: totals(4, 1, 4, 1) },
    ];
    let site = Site {
        id: 0xab,
        function: "app::<f&g>".into(),
        file: "src/a.rs".into(),
        line: 2,
        krate: "app".into(),
        via: "".into(),
        lost: None,
    };
    let head = json!({"version": 1, "number": 7, "taken_at": 20.5, "since": 10.0});
    let figures = |size: u64, count: u64, size_diff: i64, count_diff: i64| json!({"size": size, "size_diff": size_diff, "count": count, "count_diff": count_diff});
    let joined = |parts: &[&Json]| {
        let members = parts.iter().flat_map(|part| part.as_object().unwrap().clone());
        Json::Object(members.collect())
    };

    let found = Sites {
        times: times(),
        rows: vec![SiteTotals {
            stderr: 4,
            diff_stderr: 6,
            ..SiteTotals::new(Arc::new(site), totals(30, 3, 5, 1), vec![25, 30])
        }],
        sites: 1,
        other: totals(4, 1, 4, 1),
        total: totals(34, 4, 9, 2),
        history_at: vec![at(10.0), at(20.5)],
    };
    let named = json!({"site": "00000000000000ab", "function": "app::<f&g>", "file": "src/a.rs", "line": 2,
        "crate": "app", "via": "", "history": [25, 30], "stderr": 4, "diff_stderr": 6});
    let rest = json!({"sites": 1, "history_at": [10.0, 20.5], "rows": [joined(&[&named, &figures(30, 3, 5, 1)])],
        "other": figures(4, 1, 4, 1), "total": figures(34, 4, 9, 2)});
    assert_eq!(parsed(&sites(&found)), joined(&[&head, &rest]));

    let shown = parsed(&stacks(&times(), &held, 2, Totals::default(), totals(34, 4, 9, 2)));
    assert_eq!(shown["rows"][0]["frames"][0]["function"], "app::<f&g>");
    assert_eq!(shown["rows"][0]["name"], "src/a \"<b>\".rs:2");
    assert_eq!(shown["rows"][1]["frames"], json!([{"function": null, "file": "<unknown>", "line": 0}]));

    let root = call_tree::tree(&held, Value::Growth, 10);
    let shown = parsed(&tree(&times(), Value::Growth, &root));
    assert_eq!((&shown["value"], &shown["number"]), (&json!("growth"), &json!(7)));
    assert_eq!(
        shown["frames"],
        json!([{"function": "app::main", "file": "src/a \"<b>\".rs", "line": 1, "crate": "app"},
            {"function": "app::<f&g>", "file": "src/a \"<b>\".rs", "line": 2, "crate": "app"}])
    );
    let node = |what: Json, value: u64, stacks: u64, figures: Json| {
        joined(&[&what, &json!({"value": value, "stacks": stacks}), &figures])
    };
    assert_eq!(
        shown["nodes"],
        json!([
            node(json!({"parent": null, "kind": "root"}), 9, 2, figures(34, 4, 9, 2)),
            node(json!({"parent": 0, "kind": "frame", "frame": 0}), 5, 1, figures(30, 3, 5, 1)),
            node(json!({"parent": 1, "kind": "frame", "frame": 1}), 5, 1, figures(30, 3, 5, 1)),
            node(json!({"parent": 0, "kind": "unnamed"}), 4, 1, figures(4, 1, 4, 1)),
        ])
    );
}
