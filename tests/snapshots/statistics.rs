//! Tests grouping, order, comparison and formatting against numbers of CPython's own `tracemalloc`: the acceptance cases A, B
//! and 55.

use super::common::{Block, Directory, S1, S2, diff_rows, load, rows, snapshot};
use heapgauge::{GroupBy, Order, Snapshot, Top, Totals};

fn grouped(blocks: &[Block<'_>], group_by: GroupBy) -> Vec<String> {
    rows(&snapshot(blocks).statistics(group_by), group_by)
}

fn compared(new: &[Block<'_>], old: &[Block<'_>], group_by: GroupBy) -> Vec<String> {
    diff_rows(&snapshot(new).compare_to(&snapshot(old), group_by), group_by)
}

#[test]
fn case_1_s1_by_line() {
    let expected = ["b.rs:1 66/1", "a.rs:2 30/3", "<unknown>:0 7/1", "a.rs:5 2/1"];
    assert_eq!(grouped(S1, GroupBy::Line), expected);
}

#[test]
fn case_2_s2_by_line() {
    assert_eq!(grouped(S2, GroupBy::Line), ["a.rs:5 5002/2", "c.rs:578 400/1", "a.rs:2 30/3"]);
}

#[test]
fn case_3_by_file() {
    assert_eq!(grouped(S1, GroupBy::File), ["b.rs 66/1", "a.rs 32/4", "<unknown> 7/1"]);
    assert_eq!(grouped(S2, GroupBy::File), ["a.rs 5032/5", "c.rs 400/1"]);
}

#[test]
fn case_4_s1_by_traceback() {
    let expected = ["[b.rs:1] 66/1", "[a.rs:2,b.rs:4] 30/3", "[<unknown>:0] 7/1", "[a.rs:5,b.rs:4] 2/1"];
    assert_eq!(grouped(S1, GroupBy::Traceback), expected);
}

#[test]
fn case_5_s1_cumulative_by_file() {
    assert_eq!(grouped(S1, GroupBy::CumulativeFile), ["b.rs 98/5", "a.rs 32/4", "<unknown> 7/1"]);
}

#[test]
fn case_6_s1_cumulative_by_line() {
    let expected = ["b.rs:1 66/1", "b.rs:4 32/4", "a.rs:2 30/3", "<unknown>:0 7/1", "a.rs:5 2/1"];
    assert_eq!(grouped(S1, GroupBy::CumulativeLine), expected);
}

#[test]
fn case_7_no_cumulative_traceback_and_no_unknown_key() {
    let error = GroupBy::Traceback.cumulative().unwrap_err();
    assert_eq!(error.to_string(), "cumulative: not for traceback, allowed are file, line, function, crate");
    let error = "lineno\n".parse::<GroupBy>().unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"group by: "lineno\n" is not known, allowed are file, line, function, crate, traceback, nearest, via, scope"#
    );
}

#[test]
fn case_8_recursion_counts_once() {
    let recursive: &[Block<'_>] = &[(0, 100, &["r.rs:7", "r.rs:7", "m.rs:1"], 3)];
    assert_eq!(grouped(recursive, GroupBy::CumulativeFile), ["r.rs 100/1", "m.rs 100/1"]);
    assert_eq!(grouped(recursive, GroupBy::CumulativeLine), ["r.rs:7 100/1", "m.rs:1 100/1"]);
    // Another line of that file is another frame, as in tracemalloc.
    let lines: &[Block<'_>] = &[(0, 100, &["r.rs:7", "r.rs:8", "m.rs:1"], 3)];
    assert_eq!(grouped(lines, GroupBy::CumulativeFile), ["r.rs 200/2", "m.rs 100/1"]);
}

#[test]
fn case_9_ties() {
    let ties: &[Block<'_>] = &[
        (0, 8, &["a.rs:1"], 1),
        (0, 8, &["a.rs:2"], 1),
        (0, 8, &["b.rs:1"], 1),
        (0, 4, &["c.rs:1"], 1),
        (0, 4, &["c.rs:1"], 1),
    ];
    assert_eq!(grouped(ties, GroupBy::Line), ["c.rs:1 8/2", "b.rs:1 8/1", "a.rs:2 8/1", "a.rs:1 8/1"]);
}

#[test]
fn case_10_a_block_of_size_zero_counts() {
    let empty = snapshot(&[(0, 0, &["a.rs:1"], 1)]).statistics(GroupBy::Line);
    assert_eq!(rows(&empty, GroupBy::Line), ["a.rs:1 0/1"]);
    assert_eq!(empty[0].to_string(), "a.rs:1: size=0 B, count=1, average=0 B");
}

#[test]
fn case_11_total_frames_do_not_matter_in_grouping() {
    let blocks: &[Block<'_>] = &[(0, 100, &["a.rs:1", "b.rs:1"], 2), (0, 50, &["a.rs:1", "b.rs:1"], 7)];
    assert_eq!(grouped(blocks, GroupBy::Traceback), ["[a.rs:1,b.rs:1] 150/2"]);
    let snapshot = snapshot(blocks);
    let truncated: Vec<bool> = snapshot.traces().iter().map(|trace| trace.traceback.is_truncated()).collect();
    assert_eq!(truncated, [false, true]);
}

#[test]
fn case_12_domains_do_not_matter_in_grouping() {
    let blocks: &[Block<'_>] = &[(1, 10, &["a.rs:5"], 1), (2, 20, &["a.rs:5"], 1)];
    assert_eq!(grouped(blocks, GroupBy::Line), ["a.rs:5 30/2"]);
}

#[test]
fn case_13_diff_by_line() {
    let expected = [
        "a.rs:5 5002(+5000) 2(+1)",
        "c.rs:578 400(+400) 1(+1)",
        "b.rs:1 0(-66) 0(-1)",
        "<unknown>:0 0(-7) 0(-1)",
        "a.rs:2 30(+0) 3(+0)",
    ];
    assert_eq!(compared(S2, S1, GroupBy::Line), expected);
}

#[test]
fn case_14_diff_by_file() {
    let expected =
        ["a.rs 5032(+5000) 5(+1)", "c.rs 400(+400) 1(+1)", "b.rs 0(-66) 0(-1)", "<unknown> 0(-7) 0(-1)"];
    assert_eq!(compared(S2, S1, GroupBy::File), expected);
}

#[test]
fn case_15_diff_by_traceback() {
    let expected = [
        "[a.rs:5,b.rs:4] 5002(+5000) 2(+1)",
        "[c.rs:578] 400(+400) 1(+1)",
        "[b.rs:1] 0(-66) 0(-1)",
        "[<unknown>:0] 0(-7) 0(-1)",
        "[a.rs:2,b.rs:4] 30(+0) 3(+0)",
    ];
    assert_eq!(compared(S2, S1, GroupBy::Traceback), expected);
}

#[test]
fn case_16_diff_cumulative_by_file() {
    let expected =
        ["a.rs 5032(+5000) 5(+1)", "b.rs 5032(+4934) 5(+0)", "c.rs 400(+400) 1(+1)", "<unknown> 0(-7) 0(-1)"];
    assert_eq!(compared(S2, S1, GroupBy::CumulativeFile), expected);
}

#[test]
fn case_17_diff_cumulative_by_line() {
    let expected = [
        "b.rs:4 5032(+5000) 5(+1)",
        "a.rs:5 5002(+5000) 2(+1)",
        "c.rs:578 400(+400) 1(+1)",
        "b.rs:1 0(-66) 0(-1)",
        "<unknown>:0 0(-7) 0(-1)",
        "a.rs:2 30(+0) 3(+0)",
    ];
    assert_eq!(compared(S2, S1, GroupBy::CumulativeLine), expected);
}

#[test]
fn case_18_reverse_diff() {
    let (s1, s2) = (snapshot(S1), snapshot(S2));
    let reverse = s1.compare_to(&s2, GroupBy::Line);
    assert_eq!(diff_rows(&reverse, GroupBy::Line)[0], "a.rs:5 2(-5000) 1(-1)");
    let forward = s2.compare_to(&s1, GroupBy::Line);
    assert_eq!(forward.len(), reverse.len());
    for row in &forward {
        let back = reverse.iter().find(|back| back.name() == row.name()).unwrap();
        assert_eq!((back.size_diff, back.count_diff), (-row.size_diff, -row.count_diff));
    }
}

#[test]
fn case_19_self_diff() {
    let expected =
        ["b.rs:1 66(+0) 1(+0)", "a.rs:2 30(+0) 3(+0)", "<unknown>:0 7(+0) 1(+0)", "a.rs:5 2(+0) 1(+0)"];
    assert_eq!(compared(S1, S1, GroupBy::Line), expected);
}

#[test]
fn case_20_empty_snapshots() {
    assert_eq!(
        compared(S2, &[], GroupBy::Line),
        ["a.rs:5 5002(+5002) 2(+2)", "c.rs:578 400(+400) 1(+1)", "a.rs:2 30(+30) 3(+3)"]
    );
    assert_eq!(
        compared(&[], S2, GroupBy::Line),
        ["a.rs:5 0(-5002) 0(-2)", "c.rs:578 0(-400) 0(-1)", "a.rs:2 0(-30) 0(-3)"]
    );
    assert_eq!(compared(&[], &[], GroupBy::Line), [""; 0]);
}

#[test]
fn case_21_a_change_of_the_count_alone() {
    let one: &[Block<'_>] = &[(0, 100, &["a.rs:1"], 1), (0, 1, &["b.rs:1"], 1), (0, 900, &["c.rs:1"], 1)];
    let two: &[Block<'_>] =
        &[(0, 50, &["a.rs:1"], 1), (0, 50, &["a.rs:1"], 1), (0, 2, &["b.rs:1"], 1), (0, 900, &["c.rs:1"], 1)];
    let expected = ["b.rs:1 2(+1) 1(+0)", "c.rs:1 900(+0) 1(+0)", "a.rs:1 100(+0) 2(+1)"];
    assert_eq!(compared(two, one, GroupBy::Line), expected);
}

#[test]
fn case_22_signed_growth_order() {
    let mut rows = snapshot(S2).compare_to(&snapshot(S1), GroupBy::Line);
    Order::Growth.sort(&mut rows);
    let order: Vec<(String, i64)> = rows.iter().map(|row| (row.name().into_owned(), row.size_diff)).collect();
    let expected = [("a.rs:5", 5000), ("c.rs:578", 400), ("a.rs:2", 0), ("<unknown>:0", -7), ("b.rs:1", -66)];
    assert_eq!(order, expected.map(|(name, diff)| (name.to_owned(), diff)));
}

#[test]
fn order_by_size_and_by_count() {
    let names = |order: Order| {
        let mut rows = snapshot(S2).compare_to(&snapshot(S1), GroupBy::Line);
        order.sort(&mut rows);
        rows.iter().map(|row| row.name().into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(Order::Size), ["a.rs:5", "c.rs:578", "a.rs:2", "b.rs:1", "<unknown>:0"]);
    assert_eq!(names(Order::Count), ["a.rs:2", "a.rs:5", "c.rs:578", "b.rs:1", "<unknown>:0"]);
    for (text, order) in
        [("diff", Order::Diff), ("growth", Order::Growth), ("size", Order::Size), ("count", Order::Count)]
    {
        assert_eq!(text.parse::<Order>().unwrap(), order);
    }
    assert_eq!(
        "name".parse::<Order>().unwrap_err().to_string(),
        r#"sort: "name" is not known, allowed are diff, growth, size, count"#
    );
}

#[test]
fn case_23_differences_add_up() {
    let (s1, s2) = (snapshot(S1), snapshot(S2));
    let total = |snapshot: &Snapshot| {
        let size: u64 = snapshot.traces().iter().map(|trace| trace.size).sum();
        let count: u64 = snapshot.traces().iter().map(|trace| trace.count).sum();
        (size as i64, count as i64)
    };
    let ((old_size, old_count), (new_size, new_count)) = (total(&s1), total(&s2));
    for group_by in [GroupBy::File, GroupBy::Line, GroupBy::Function, GroupBy::Crate, GroupBy::Traceback] {
        let sum = Totals::of(&s2.compare_to(&s1, group_by));
        assert_eq!((sum.size_diff, sum.count_diff), (new_size - old_size, new_count - old_count));
        assert_eq!((sum.size, sum.count), (5432, 6));
    }
}

#[test]
fn case_24_top_and_other() {
    let rows = snapshot(S2).compare_to(&snapshot(S1), GroupBy::Line);
    for n in 0..=rows.len() + 1 {
        let top = Top::of(rows.clone(), n);
        assert_eq!(top.rows, rows[..n.min(rows.len())]);
        assert_eq!(top.total, Totals::of(&rows));
        let shown = Totals::of(&top.rows);
        assert_eq!(shown.size + top.other.size, top.total.size);
        assert_eq!(shown.size_diff + top.other.size_diff, top.total.size_diff);
        assert_eq!(shown.count + top.other.count, top.total.count);
        assert_eq!(shown.count_diff + top.other.count_diff, top.total.count_diff);
    }
    let other = Top::of(rows, 2).other;
    assert_eq!((other.size, other.size_diff, other.count, other.count_diff), (30, -73, 3, -2));
}

#[test]
fn case_55_rows_as_text() {
    let rows = snapshot(S2).compare_to(&snapshot(S1), GroupBy::Line);
    assert_eq!(rows[0].to_string(), "a.rs:5: size=5002 B (+5000 B), count=2 (+1), average=2501 B");
    assert_eq!(rows[2].to_string(), "b.rs:1: size=0 B (-66 B), count=0 (-1)");
    let freed = snapshot(&[]).compare_to(&snapshot(&[(0, 100, &["a.py:1"], 1)]), GroupBy::Line);
    assert_eq!(freed[0].to_string(), "a.py:1: size=0 B (-100 B), count=0 (-1)");
    let one = snapshot(S1).statistics(GroupBy::Line);
    assert_eq!(one[0].to_string(), "b.rs:1: size=66 B, count=1, average=66 B");
    let file = snapshot(S1).statistics(GroupBy::File);
    assert_eq!(file[0].to_string(), "b.rs:0: size=66 B, count=1, average=66 B");
}

#[test]
fn functions_and_crates() {
    let text = r#"{"version": 1, "taken_at": 0, "traceback_limit": 32, "traces": [
        {"domain": 0, "size": 10, "count": 1, "total_frames": 2, "frames": [
            {"function": "app::load", "file": "src/a.rs", "line": 2}, {"function": "app::main", "file": "src/m.rs", "line": 9}]},
        {"domain": 0, "size": 20, "count": 2, "total_frames": 2, "frames": [
            {"function": "app::load", "file": "src/a.rs", "line": 3}, {"function": "app::main", "file": "src/m.rs", "line": 8}]},
        {"domain": 0, "size": 40, "count": 4, "total_frames": 1, "frames": [
            {"function": "lib::load", "file": "lib-1.0.0/src/a.rs", "line": 3}]},
        {"domain": 0, "size": 1, "count": 1, "total_frames": 1, "frames": [
            {"function": null, "file": "<unknown>", "line": 0, "module": "app", "offset": 4660}]}]}"#;
    let snapshot = load(text).unwrap();
    let by = |group_by| rows(&snapshot.statistics(group_by), group_by);
    assert_eq!(by(GroupBy::Function), ["lib::load 40/4", "app::load 30/3", "app+0x1234 1/1"]);
    assert_eq!(by(GroupBy::Crate), ["lib 40/4", "app 30/3", "<unknown> 1/1"]);
    assert_eq!(
        by(GroupBy::CumulativeFunction),
        ["lib::load 40/4", "app::main 30/3", "app::load 30/3", "app+0x1234 1/1"]
    );
    assert_eq!(by(GroupBy::CumulativeCrate), ["lib 40/4", "app 30/3", "<unknown> 1/1"]);

    let load = &snapshot.statistics(GroupBy::Function)[1];
    assert_eq!(load.traceback.format(None, false), [r#"  File "src/a.rs", line 0, in app::load"#]);
    let line = &snapshot.statistics(GroupBy::Line)[0];
    assert_eq!(line.traceback.format(None, false), [r#"  File "lib-1.0.0/src/a.rs", line 3, in lib::load"#]);
    assert_eq!(line.to_string(), "lib-1.0.0/src/a.rs:3: size=40 B, count=4, average=10 B");
}

#[test]
fn numbers_beyond_63_bits_stay_in_range() {
    let of = |size: u64| {
        load(&format!(
            r#"{{"version": 1, "taken_at": 0, "traceback_limit": 1, "traces": [
            {{"domain": 0, "size": {size}, "count": 1, "total_frames": 1, "frames": [{{"file": "a", "line": 1}}]}},
            {{"domain": 0, "size": {size}, "count": 1, "total_frames": 1, "frames": [{{"file": "a", "line": 1}}]}}]}}"#
        ))
        .unwrap()
    };
    let rows = of(u64::MAX).compare_to(&of(0), GroupBy::Line);
    assert_eq!((rows[0].size, rows[0].size_diff, rows[0].count), (u64::MAX, i64::MAX, 2));
    let rows = of(0).compare_to(&of(u64::MAX), GroupBy::Line);
    assert_eq!(rows[0].size_diff, i64::MIN);
    assert_eq!(rows[0].to_string(), "a:1: size=0 B (-8388608 TiB), count=2 (+0), average=0 B");
}

#[test]
fn frames_without_lines_are_told_apart_by_their_names() {
    let directory = Directory::new();
    let path = directory.file("no-lines.json");
    let frame = |function: &str| serde_json::json!({"function": function, "file": "<unknown>", "line": 0});
    let offset = serde_json::json!({
        "function": null, "file": "<unknown>", "line": 0, "module": "app", "offset": 4660});
    let trace = |frame: serde_json::Value, size: u64| serde_json::json!({"domain": 0, "size": size, "count": 1, "total_frames": 1, "frames": [frame]});
    let traces = [trace(frame("app::first"), 30), trace(frame("app::second"), 20), trace(offset, 10)];
    let file = serde_json::json!({
        "version": 1, "taken_at": 1.0, "traceback_limit": 32, "build_id": null, "traces": traces});
    std::fs::write(&path, file.to_string()).unwrap();
    let rows = Snapshot::load(&path).unwrap().statistics(GroupBy::Line);
    let rows: Vec<_> = rows.iter().map(|row| (row.name().into_owned(), row.size)).collect();
    let expected = [("app::first", 30), ("app::second", 20), ("app+0x1234", 10)];
    assert_eq!(rows, expected.map(|(name, size)| (name.to_owned(), size)));
}

#[test]
fn a_trace_says_which_frame_is_its_site() {
    let text = r#"{"version": 1, "taken_at": 0.5, "traceback_limit": 32, "build_id": null, "traces": [
      {"domain": 0, "size": 30, "count": 3, "total_frames": 2, "site": 1, "frames": [
       {"function": "tokio::task::spawn", "file": "tokio-1.0.0/src/task.rs", "line": 2},
       {"function": "app::main", "file": "b.rs", "line": 4}]}]}"#;
    let snapshot = load(text).unwrap();
    let traceback = &snapshot.traces()[0].traceback;
    assert_eq!((traceback.site().line(), traceback.via()), (4, "tokio"));
    let names = |snapshot: &Snapshot, group_by| snapshot.statistics(group_by)[0].name().into_owned();
    assert_eq!(names(&snapshot, GroupBy::Line), "b.rs:4");
    assert_eq!(names(&snapshot, GroupBy::Function), "app::main");
    assert_eq!(names(&snapshot, GroupBy::Crate), "app");
    assert_eq!(names(&snapshot, GroupBy::Nearest), "tokio-1.0.0/src/task.rs:2");
    assert_eq!(names(&snapshot, GroupBy::Via), "tokio");
    assert_eq!(snapshot.filter_traces(&[heapgauge::Filter::include("b.rs")]), snapshot);
    assert_eq!(snapshot.filter_traces(&[heapgauge::Filter::exclude("b.rs")]).traces(), []);

    let directory = Directory::new();
    let path = directory.file("saved.json");
    snapshot.save(&path).unwrap();
    let saved: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(saved, serde_json::from_str::<serde_json::Value>(text).unwrap());
    assert_eq!(names(&Snapshot::load(&path).unwrap(), GroupBy::Line), "b.rs:4");
    // A file of before.
    let before = load(&text.replace("\"site\": 1, ", "")).unwrap();
    assert_eq!(names(&before, GroupBy::Line), "tokio-1.0.0/src/task.rs:2");
    let error = load(&text.replace("\"site\": 1", "\"site\": 2")).unwrap_err().to_string();
    assert!(error.contains("trace 0 has its site at frame 2 of 2, allowed are 0 to 1"), "{error}");
}
