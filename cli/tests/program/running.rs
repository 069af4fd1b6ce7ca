//! `top` and `report` of a running program.

use serde_json::json;

use super::{PLANTED, planted, site, stdout, with_answers, with_server};

#[test]
fn top_of_a_running_program_is_a_table() {
    with_server(|url| {
        let kept = planted();
        // The first answer may come before the names.
        stdout(&["report", url]);
        let table = stdout(&["top", url]);
        let rows: Vec<&str> = table.lines().collect();
        assert!(
            rows[0].starts_with(&format!("{url} at 20")) && rows[0].ends_with(", by live bytes"),
            "{table}"
        );
        assert!(
            rows[1].starts_with("live ") && rows[1].contains(" blocks, ") && rows[1].contains(", peak "),
            "{table}"
        );
        assert_eq!(
            rows[4].split_whitespace().collect::<Vec<_>>(),
            ["LIVE", "BLOCKS", "GROWTH", "A", "MINUTE", "OLD", "SITE"]
        );
        assert!(rows[2].contains("old is older than 60 min"), "{table}");
        assert!(rows[5].contains("47.7 MiB       1") && rows[5].ends_with(&site()), "{table}");
        let two = stdout(&["top", url, "--interval", "0.1", "--count", "2", "--rows", "3", "--by", "growth"]);
        assert_eq!(two.matches(", by growth\n").count(), 2, "{two}");
        assert_eq!(two.lines().count(), 2 * 8 + 1, "{two}");
        drop(kept);
    });
}

#[test]
fn a_report_of_a_running_program_has_its_memory_lines_and_stacks() {
    with_server(|url| {
        let kept = planted();
        let report = stdout(&["report", &format!("{url}/metrics"), "--top", "2"]);
        let id = heapgauge::Snapshot::take().unwrap().build_id().unwrap().to_owned();
        for part in [
            format!("Heap of {url}\n  taken      20"),
            format!("\n  build id   {id}\n"),
            "\n  live       ".into(),
            "\nMemory of the process\n".into(),
            "\n  resident  ".into(),
            "\n  heapgauge itself  ".into(),
            "\nLines that hold most\n".into(),
            site(),
            "\nStacks that hold most, 2 of ".into(),
            format!("\n   program::planted  cli/tests/program/main.rs:{PLANTED}\n"),
        ] {
            assert!(report.contains(&part), "{part}\n---\n{report}");
        }
        // All that was planted a moment ago is younger than a minute.
        assert!(report.contains("  LEAK  SITE\n") || report.contains("     <1m  "), "{report}");
        assert!(!report.contains("reason") && report.contains("\n  old from  "), "{report}");
        drop(kept);
    });
}

/// Members that only newer programs give are shown, and absent ones are not.
#[test]
fn ages_and_parts_of_memory_are_shown_where_they_are_given() {
    let figures = json!({"size": 3_000, "size_diff": 10, "count": 3, "count_diff": 0});
    let mut all = json!({"version": 1, "number": 7, "taken_at": 100.0, "since": 40.0, "sites": 1, "stacks": 0, "tracking": true,
        "build": {"version": "9"}, "delta_window_seconds": 60.0, "resident_bytes": 10_240, "foreign_bytes": 1_024,
        "thread_stack_bytes": 512, "process_threads": 5, "unaccounted_bytes": -100, "other": figures, "total": figures});
    let mut row = json!({"function": "shop::cart::add", "file": "src/cart.rs", "line": 7, "via": "tokio", "frames": [],
        "total_frames": 0, "ages": {">=1d": [2_048, 2_048], "<1m": [0, 952]}, "old_bytes": [2_048, 3_000], "leak_score": 0.75});
    row.as_object_mut().unwrap().extend(figures.as_object().unwrap().clone());
    all["rows"] = json!([row]);
    all["old_age_seconds"] = json!(4_500.0);
    all["leak"] = json!({"text": "src/cart.rs:7 cart::add +3.1 MiB/min, limit in 2 h 40 min"});
    all.as_object_mut().unwrap().extend(figures.as_object().unwrap().clone());
    let body = all.to_string();
    let answer =
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    with_answers(&answer, |url| {
        let report = stdout(&["report", url]);
        for part in [
            "    LIVE    SHARE  BLOCKS  GROWTH  A MINUTE        <1m      >=1d  LEAK  SITE\n",
            "2.93 KiB  100.0 %       3   +10 B     +10 B  0 B–952 B  2.00 KiB  0.75  src/cart.rs:7 shop::cart::add via tokio\n",
            "\n  leak       src/cart.rs:7 cart::add +3.1 MiB/min, limit in 2 h 40 min\n",
            "\n  old from                       75 min\n",
            "  C and C++ libraries          1.00 KiB  10.0 % of resident\n",
            "  threads                             5\n",
            "  unaccounted                    -100 B  -1.0 % of resident\n",
        ] {
            assert!(report.contains(part), "{part}\n---\n{report}");
        }
        // The table of `top` has the bytes that are certain to be old.
        let table = stdout(&["top", url]);
        assert!(table.contains("    LIVE  BLOCKS  GROWTH  A MINUTE       OLD  SITE\n"), "{table}");
        assert!(table.contains("2.93 KiB       3   +10 B     +10 B  2.00 KiB  src/cart.rs:7"), "{table}");
    });
}
