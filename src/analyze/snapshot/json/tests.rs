//! Tests of files that are written, read back, cut, changed and made up.

use super::read::{parse, short};
use super::*;
use crate::base::random_input::{Random, inputs};

#[test]
fn what_is_longer_than_allowed_is_said_to_be() {
    let mut bounded = Bounded { inner: &b"0123456789"[..], left: 10 };
    assert_eq!(io::read_to_string(&mut bounded).unwrap(), "0123456789");
    let mut bounded = Bounded { inner: &b"0123456789"[..], left: 9 };
    let error = io::read_to_string(&mut bounded).unwrap_err();
    assert_eq!(error.to_string(), "more than the 1073741824 bytes that are allowed");
    let mut bounded = Bounded { inner: Vec::new(), left: 9 };
    bounded.write_all(b"012345678").unwrap();
    let error = bounded.write_all(b"9").unwrap_err();
    assert_eq!(error.to_string(), "more than the 1073741824 bytes that are allowed");
}

#[test]
fn a_long_problem_keeps_its_begin_and_its_end() {
    assert_eq!(short("ä"), "ä");
    let long = format!("begin {} end", "ä".repeat(1_000));
    let shown = short(&long);
    assert_eq!(shown.chars().count(), MAX_PROBLEM + 1);
    assert!(shown.starts_with("begin ää") && shown.ends_with("ää end"), "{shown}");
}

/// Reads files that were cut, changed or put together anew: each gives its contents or an error; and a snapshot that
/// was read is written and read again as the same.
#[test]
fn any_file_is_a_snapshot_or_an_error() {
    let parse = |bytes: &[u8]| parse(serde_json::Deserializer::from_slice(bytes));
    let seed = br#"{"version": 1, "taken_at": 1793000000.25, "traceback_limit": 32, "build_id": "ab", "traces": [
        {"domain": 0, "size": 30, "count": 3, "total_frames": 3, "frames": [
            {"function": "app::load", "file": "a.rs", "line": 2}, {"function": null, "file": "<unknown>", "line": 0,
            "module": "app", "offset": 17}]},
        {"domain": 7, "size": 0, "count": 1, "total_frames": 1, "frames": [{"file": "b.rs", "line": 4}]}]}"#;
    parse(seed).unwrap();
    let words: [&[u8]; 16] = [
        b"{",
        b"}",
        b"[",
        b"]",
        b"\"",
        b",",
        b"null",
        b"-1",
        b"1e999",
        b"18446744073709551616",
        b"\\u0000",
        b"\\ud800",
        b"\"version\": 1,",
        b"\"frames\": [],",
        b"\"traces\": [],",
        b"\xff\xfe",
    ];
    let mut random = Random::new();
    let mut read = 0;
    for number in 0..inputs(60_000) {
        let mut bytes = seed.to_vec();
        random.mutate(&mut bytes, &words);
        let Ok(snapshot) = parse(&bytes) else { continue };
        read += 1;
        let written = serde_json::to_vec(&snapshot).unwrap();
        assert_eq!(parse(&written).unwrap(), snapshot, "{}", String::from_utf8_lossy(&bytes));
        if number % 16 == 0 {
            for group_by in [
                crate::GroupBy::Line,
                crate::analyze::snapshot::group::GroupBy::Traceback,
                crate::analyze::snapshot::group::GroupBy::CumulativeFile,
            ] {
                for row in snapshot.compare_to(&parse(seed).unwrap(), group_by) {
                    assert!(!row.to_string().is_empty());
                }
            }
        }
    }
    assert!(read > 100, "{read}");
    // Deeper than a parser's stack.
    for bracket in ["[", "{\"traces\":", "{\"a\":["] {
        assert!(parse(bracket.repeat(200_000).as_bytes()).is_err());
    }
}
