//! Tests of files that are written, read back, cut, changed and made up.

use super::read::{parse, short};
use super::read_parts::Frames;
use super::*;
use crate::analyze::snapshot::Snapshot;
use crate::base::random_input::{Random, inputs};
use std::sync::Arc;

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
    let parse = |bytes: &[u8]| parse(serde_json::Deserializer::from_slice(bytes), Frames::ByMember);
    let seed = br#"{"version": 1, "taken_at": 1793000000.25, "traceback_limit": 32, "build_id": "ab", "reason": "peak", "traces": [
        {"domain": 0, "size": 30, "count": 3, "total_frames": 3, "frames": [
            {"function": "app::load", "file": "a.rs", "line": 2}, {"function": null, "file": "<unknown>", "line": 0,
            "module": "app", "offset": 17}]},
        {"domain": 7, "size": 0, "count": 1, "total_frames": 1, "scope": {"tenant": "acme", "a": ""}, "frames": [{"file": "b.rs", "line": 4}]}]}"#;
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

/// Compares both ways to read frames: a file that is read by the text of its frames gives the same by their members,
/// which alone describe a fault.
#[test]
fn frames_read_by_their_text_are_those_read_by_their_members() {
    const SEED: &str = concat!(
        r#"{"version":1,"taken_at":1793000000.25,"traceback_limit":32,"build_id":"ab","sample_interval":7,"traces":["#,
        r#"{"domain":0,"size":30,"count":3,"stderr":2,"scope":{"route":"/ä","tenant":"acme"},"total_frames":3,"frames":["#,
        r#"{"function":"app::{{closure}}","file":"a.rs","line":2},{"function":"ä","file":"a.rs","line":2}]},"#,
        r#"{"domain":7,"size":0,"count":1,"total_frames":2,"frames":["#,
        r#"{"function":"app::{{closure}}","file":"a.rs","line":2},"#,
        r#"{"function":null,"file":"<unknown>","line":0,"module":"app","offset":17}]}]}"#,
        "\n"
    );
    let read = |bytes: &[u8], frames| parse(serde_json::Deserializer::from_slice(bytes), frames);
    let snapshot = read(SEED.as_bytes(), Frames::ByText).unwrap();
    assert_eq!(serde_json::to_string(&snapshot).unwrap() + "\n", SEED);
    // Where the same frame comes again, it is the same.
    let [first, second] = snapshot.traces() else { panic!("{snapshot:?}") };
    assert!(Arc::ptr_eq(&first.traceback.shared_frames()[0], &second.traceback.shared_frames()[0]));

    let words: [&[u8]; 16] = [
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b" ",
        b"\n",
        b"null",
        b"-1",
        b"1e999",
        b"18446744073709551616",
        b"\\ud800",
        b"\"x\":[{}],",
        b",\"traces\":[",
        b"\"frames\":[],",
        b"\xff\xfe",
    ];
    let mut random = Random::new();
    let (mut both, mut left) = (0, 0);
    for _ in 0..inputs(60_000) {
        let mut bytes = SEED.as_bytes().to_vec();
        random.mutate(&mut bytes, &words);
        let by_member = read(&bytes, Frames::ByMember);
        match read(&bytes, Frames::ByText) {
            Ok(by_text) => {
                let text = |snapshot: &Snapshot| serde_json::to_string(snapshot).unwrap();
                assert_eq!(text(&by_text), text(&by_member.unwrap()), "{}", String::from_utf8_lossy(&bytes));
                both += 1;
            }
            Err(_) => left += usize::from(by_member.is_ok()),
        }
    }
    // Nearly all inputs that can be read at all; texts that are not UTF-8 are left to the members.
    assert!(both > 100 && left < both / 20, "{both} {left}");
}
