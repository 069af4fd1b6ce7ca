//! Tests snapshot files: their format, saving and loading, and invalid files.

use super::common::{Directory, S1, json, load, snapshot};
use heapgauge::{GroupBy, Snapshot};
use std::time::{Duration, UNIX_EPOCH};

fn error(text: &str) -> String {
    let error = load(text).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    let (before, after) = error.split_once("snapshot.json: ").unwrap();
    assert!(before.starts_with("load snapshot from "), "{error}");
    after.to_owned()
}

#[test]
fn the_form_of_the_specification() {
    let text = r#"{"version": 1, "taken_at": 1793000000.25, "traceback_limit": 32, "build_id": "c0ffee", "traces": [
      {"domain": 0, "size": 30, "count": 3, "total_frames": 3,
       "frames": [{"function": "app::load", "file": "a.rs", "line": 2}, {"function": "app::main", "file": "b.rs", "line": 4}]},
      {"domain": 0, "size": 1, "count": 1, "total_frames": 1,
       "frames": [{"function": null, "file": "<unknown>", "line": 0, "module": "app", "offset": 4660}]}]}"#;
    let snapshot = load(text).unwrap();
    assert_eq!(snapshot.taken_at(), UNIX_EPOCH + Duration::from_secs_f64(1793000000.25));
    assert_eq!((snapshot.traceback_limit(), snapshot.build_id()), (32, Some("c0ffee")));
    let trace = &snapshot.traces()[0];
    assert_eq!((trace.domain, trace.size, trace.count), (0, 30, 3));
    let frames: Vec<_> = trace.traceback.frames().collect();
    assert!(trace.traceback.is_truncated());
    assert_eq!((frames[0].function(), frames[0].file(), frames[0].line()), (Some("app::load"), "a.rs", 2));
    assert_eq!(frames[1].to_string(), "b.rs:4");
    assert_eq!(snapshot.traces()[1].traceback.most_recent().name(), "app+0x1234");

    let directory = Directory::new();
    let path = directory.file("saved.json");
    snapshot.save(&path).unwrap();
    assert_eq!(Snapshot::load(&path).unwrap(), snapshot);
    let saved: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let given: serde_json::Value = serde_json::from_str(text).unwrap();
    assert_eq!(saved, given);
}

#[test]
fn estimates_keep_their_errors_in_a_file() {
    let text = r#"{"version": 1, "taken_at": 0.5, "traceback_limit": 32, "build_id": null, "sample_interval": 524288,
      "traces": [
      {"domain": 0, "size": 1048576, "count": 9, "stderr": 300, "total_frames": 1,
       "frames": [{"function": "app::load", "file": "a.rs", "line": 2}]},
      {"domain": 0, "size": 7, "count": 1, "stderr": 400, "total_frames": 2,
       "frames": [{"function": "app::load", "file": "a.rs", "line": 2}, {"function": "app::main", "file": "b.rs", "line": 4}]},
      {"domain": 0, "size": 30, "count": 3, "total_frames": 1,
       "frames": [{"function": "app::main", "file": "b.rs", "line": 4}]}]}"#;
    let snapshot = load(text).unwrap();
    assert_eq!(snapshot.sample_interval(), 524_288);
    let rows = snapshot.statistics(GroupBy::Line);
    let errors: Vec<_> = rows.iter().map(|row| (row.name().into_owned(), row.size, row.stderr)).collect();
    assert_eq!(errors, [("a.rs:2".to_owned(), 1_048_583, 500), ("b.rs:4".to_owned(), 30, 0)]);
    // The printed error follows its figure; exact figures have none.
    let printed: Vec<String> = rows.iter().map(ToString::to_string).collect();
    assert_eq!(printed[0], "a.rs:2: size=1024 KiB ± 500 B, count=10, average=102 KiB");
    assert_eq!(printed[1], "b.rs:4: size=30 B, count=3, average=10 B");
    let nothing = load(&text.replace("\"traces\": [", "\"traces\": [], \"not_traces\": [")).unwrap();
    let gone: Vec<String> =
        nothing.compare_to(&snapshot, GroupBy::Line).iter().map(ToString::to_string).collect();
    assert_eq!(
        gone,
        ["a.rs:2: size=0 B (-1024 KiB ± 500 B), count=0 (-10)", "b.rs:4: size=0 B (-30 B), count=0 (-3)"]
    );
    let directory = Directory::new();
    let path = directory.file("saved.json");
    snapshot.save(&path).unwrap();
    let saved: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(saved, serde_json::from_str::<serde_json::Value>(text).unwrap());
    // An exact file holds neither word.
    self::snapshot(S1).save(&path).unwrap();
    let exact = std::fs::read_to_string(&path).unwrap();
    assert!(!exact.contains("sample_interval") && !exact.contains("stderr"));
}

#[test]
fn a_dump_keeps_its_reason_in_a_file() {
    let text = r#"{"version": 1, "taken_at": 0.5, "traceback_limit": 32, "build_id": null, "reason": "limit", "traces": []}"#;
    let snapshot = load(text).unwrap();
    assert_eq!(snapshot.reason(), Some("limit"));
    let directory = Directory::new();
    let path = directory.file("saved.json");
    snapshot.save(&path).unwrap();
    assert_eq!(Snapshot::load(&path).unwrap(), snapshot);
    let saved: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(saved, serde_json::from_str::<serde_json::Value>(text).unwrap());
    // Another snapshot has none, nor has a file that says null.
    for reason in ["", r#""reason": null, "#] {
        assert_eq!(load(&text.replace(r#""reason": "limit", "#, reason)).unwrap().reason(), None);
    }
    self::snapshot(S1).save(&path).unwrap();
    assert!(!std::fs::read_to_string(&path).unwrap().contains("reason"));
    assert!(error(&text.replace(r#""limit""#, "7")).starts_with("not a snapshot: invalid type: integer `7`"));
}

#[test]
fn build_id_may_be_missing() {
    let text = r#"{"version": 1, "taken_at": 0, "traceback_limit": 1, "traces": []}"#;
    assert_eq!(load(text).unwrap().build_id(), None);
}

#[test]
fn saving_replaces_whole_files_and_leaves_nothing_else() {
    let directory = Directory::new();
    let path = directory.file("saved.json");
    std::fs::write(&path, "what was there").unwrap();
    snapshot(S1).save(&path).unwrap();
    snapshot(S1).save(&path).unwrap();
    assert_eq!(Snapshot::load(&path).unwrap(), snapshot(S1));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);

    let nowhere = directory.file("no/such/directory.json");
    let error = snapshot(S1).save(&nowhere).unwrap_err().to_string();
    assert!(error.starts_with("save snapshot to "), "{error}");
    assert!(error.contains("no/such/directory.json: No such file or directory"), "{error}");
    let onto_directory = directory.file("taken");
    std::fs::create_dir(&onto_directory).unwrap();
    snapshot(S1).save(&onto_directory).unwrap_err();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    // A name as long as names may be.
    let long = directory.file(&format!("{}.json", "x".repeat(250)));
    snapshot(S1).save(&long).unwrap();
    assert_eq!(Snapshot::load(&long).unwrap(), snapshot(S1));
}

/// Processes in containers have the same id, so the next process may find the temporary file of a killed one.
#[test]
fn what_others_left_behind_is_neither_in_the_way_nor_touched() {
    let directory = Directory::new();
    let left: Vec<_> = (0..1_000)
        .map(|number| directory.file(&format!(".heapgauge-{}-{number}.tmp", std::process::id())))
        .collect();
    left.iter().for_each(|path| std::fs::write(path, "half").unwrap());
    let path = directory.file("saved.json");
    snapshot(S1).save(&path).unwrap();
    assert_eq!(Snapshot::load(&path).unwrap(), snapshot(S1));
    assert!(left.iter().all(|path| std::fs::read(path).unwrap() == b"half"));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1_001);
}

#[test]
fn many_may_save_to_one_path() {
    let directory = Directory::new();
    let path = directory.file("saved.json");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    snapshot(S1).save(&path).unwrap();
                    assert_eq!(Snapshot::load(&path).unwrap(), snapshot(S1));
                }
            });
        }
    });
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn every_truncation_is_an_error() {
    let whole = json(S1).to_string();
    for end in 0..whole.len() {
        assert!(error(&whole[..end]).starts_with("the file is truncated: EOF while parsing"), "{end}");
    }
}

/// Files that `save` wrote are read by a faster parser than others, unless they are invalid.
#[test]
fn a_saved_file_that_was_broken_is_an_error_like_any() {
    let directory = Directory::new();
    let path = directory.file("saved.json");
    snapshot(S1).save(&path).unwrap();
    let whole = std::fs::read_to_string(&path).unwrap();
    assert_eq!(load(&whole).unwrap(), snapshot(S1));
    for end in 0..whole.len() - 1 {
        assert!(error(&whole[..end]).starts_with("the file is truncated: EOF while parsing"), "{end}");
    }
    let last = whole.len() - 1;
    for (what, by, problem) in [
        (
            r#""version":1"#,
            r#""version":2"#,
            "not a snapshot: version 2 is not known, only 1 is at line 1 column 12",
        ),
        (r#""line":4}]"#, r#""line":4}];"#, "not JSON: expected `,` or `}` at line 1 column "),
        (
            r#""size":7"#,
            r#""size":7.5"#,
            "not a snapshot: invalid type: floating point `7.5`, expected u64 at line 1 ",
        ),
        (
            r#""size":66"#,
            r#""size":66,"size":66"#,
            "not a snapshot: duplicate field `size` at line 1 column ",
        ),
        (
            r#""frames":[{"#,
            r#""frames":[{"line":1,"#,
            "not a snapshot: duplicate field `line` at line 1 column ",
        ),
        (
            r#""total_frames":1,"#,
            r#""total_frames":0,"#,
            "not a snapshot: trace 4 has 1 frames of 0, allowed are",
        ),
        (&whole[last..], "{", &format!("not JSON: trailing characters at line 1 column {}", last + 1)),
        (&whole[last..], "\n ]", "not JSON: trailing characters at line 2 column 2"),
        (&whole[last..], "\u{c}\n", &format!("not JSON: trailing characters at line 1 column {}", last + 1)),
    ] {
        let broken = whole.replacen(what, by, 1);
        assert_ne!(broken, whole);
        let found = error(&broken);
        assert!(found.starts_with(problem), "{what} {by}: {found}");
    }
}

#[test]
fn wrong_versions_and_types() {
    let with = |name: &str, value: serde_json::Value| {
        let mut json = json(S1);
        json[name] = value;
        error(&json.to_string())
    };
    assert!(
        with("version", 2.into()).starts_with("not a snapshot: version 2 is not known, only 1 is at line")
    );
    assert!(
        with("version", "1".into()).starts_with("not a snapshot: invalid type: string \"1\", expected u64")
    );
    assert!(with("taken_at", "now".into()).starts_with("not a snapshot: invalid type: string \"now\""));
    assert!(
        with("taken_at", (-1.0).into()).starts_with("not a snapshot: invalid value: floating point `-1.0`")
    );
    assert!(
        with("traces", 3.into())
            .starts_with("not a snapshot: invalid type: integer `3`, expected an array of")
    );
    assert!(with("build_id", 3.into()).starts_with("not a snapshot: invalid type: integer `3`"));
    assert!(with("traceback_limit", (-3).into()).starts_with("not a snapshot: invalid value: integer `-3`"));

    let with_trace = |name: &str, value: serde_json::Value| {
        let mut json = json(S1);
        json["traces"][3][name] = value;
        error(&json.to_string())
    };
    assert!(with_trace("size", (-1).into()).starts_with("not a snapshot: invalid value: integer `-1`"));
    assert!(with_trace("size", 1.5.into()).starts_with("not a snapshot: invalid type: floating point `1.5`"));
    assert!(with_trace("count", serde_json::Value::Null).starts_with("not a snapshot: invalid type: null"));
    assert!(
        with_trace("domain", 4_294_967_296_u64.into()).starts_with("not a snapshot: invalid value: integer")
    );
    let frames = "trace 3 has 0 frames of 3, allowed are 1 to 65535 of at least as many";
    assert!(with_trace("frames", serde_json::json!([])).contains(frames));
    assert!(with_trace("total_frames", 1.into()).contains("trace 3 has 2 frames of 1, allowed are"));

    let without = |name: &str| {
        let mut json = json(S1);
        json.as_object_mut().unwrap().remove(name);
        error(&json.to_string())
    };
    for name in ["version", "taken_at", "traceback_limit", "traces"] {
        assert!(without(name).starts_with(&format!("not a snapshot: missing field `{name}`")), "{name}");
    }
}

#[test]
fn not_json_or_not_only_json() {
    assert!(error("not json").starts_with("not JSON: expected ident at line 1 column 2"));
    assert!(error("[]").starts_with("not a snapshot: invalid type: sequence, expected a heapgauge snapshot"));
    let twice = format!("{}{}", json(S1), json(S1));
    assert!(error(&twice).starts_with("not JSON: trailing characters"));
    let repeated = r#"{"version": 1, "version": 1, "taken_at": 0, "traceback_limit": 1, "traces": []}"#;
    assert!(error(repeated).starts_with("not a snapshot: duplicate field `version`"));
    let deep = format!(r#"{{"version": 1, "x": {}"#, "[".repeat(100_000));
    assert!(error(&deep).starts_with("the file is truncated"));
    let deep = deep.replace("\"x\"", "\"build_id\"");
    assert!(error(&deep).starts_with("not a snapshot: invalid type: sequence"));
}

/// Makes a trace of that many different frames.
fn with_frames(count: usize) -> String {
    let frames: Vec<String> =
        (0..count).map(|line| format!(r#"{{"function":null,"file":"a.rs","line":{line}}}"#)).collect();
    format!(
        r#"{{"version":1,"taken_at":0.5,"traceback_limit":1,"traces":[{{"domain":0,"size":1,"count":1,
        "total_frames":{count},"frames":[{}]}}]}}"#,
        frames.join(",")
    )
}

#[test]
fn as_many_frames_as_tracemalloc_stores_and_no_more() {
    let deep = load(&with_frames(65_535)).unwrap();
    let traceback = &deep.traces()[0].traceback;
    assert_eq!((traceback.frames().len(), traceback.is_truncated()), (65_535, false));
    assert_eq!(traceback.frames().last().unwrap().line(), 65_534);
    let problem = error(&with_frames(65_536));
    assert!(
        problem.starts_with(
            "not a snapshot: trace 0 has more than 65535 frames, allowed are 1 to 65535 at line "
        ),
        "{problem}"
    );
}

#[test]
fn numbers_that_fit_nowhere_are_named() {
    let with = |name: &str, number: &str| {
        // As text: a JSON library would not write these values.
        let trace = [("domain", "0"), ("size", "1"), ("count", "1"), ("total_frames", "1")];
        let trace =
            trace.map(|(key, value)| format!(r#""{key}":{}"#, if key == name { number } else { value }));
        let line = if name == "line" { number } else { "1" };
        let taken_at = if name == "taken_at" { number } else { "0" };
        format!(
            r#"{{"version":1,"taken_at":{taken_at},"traceback_limit":1,"traces":[{{{},
            "frames":[{{"file":"a.rs","line":{line}}}]}}]}}"#,
            trace.join(",")
        )
    };
    let largest = load(&with("size", "18446744073709551615")).unwrap();
    assert_eq!(largest.traces()[0].size, u64::MAX);
    assert_eq!(
        load(&with("line", "4294967295")).unwrap().traces()[0].traceback.most_recent().line(),
        u32::MAX
    );
    for (name, number, problem) in [
        (
            "size",
            "18446744073709551616",
            "invalid type: floating point `1.8446744073709552e+19`, expected u64",
        ),
        ("size", "-1", "invalid value: integer `-1`, expected u64"),
        ("size", "1e3", "invalid type: floating point `1000.0`, expected u64"),
        ("count", "-9223372036854775808", "invalid value: integer `-9223372036854775808`, expected u64"),
        ("count", "true", "invalid type: boolean `true`, expected u64"),
        ("domain", "4294967296", "invalid value: integer `4294967296`, expected u32"),
        ("line", "4294967296", "invalid value: integer `4294967296`, expected u32"),
        ("line", "-1", "invalid value: integer `-1`, expected u32"),
        ("total_frames", "0", "trace 0 has 1 frames of 0, allowed are 1 to 65535 of at least as many"),
        ("taken_at", "-0.5", "invalid value: floating point `-0.5`, expected seconds since 1970"),
        ("taken_at", "1e300", "invalid value: floating point `1e+300`, expected seconds since 1970"),
    ] {
        let problem = format!("not a snapshot: {problem} at line ");
        let found = error(&with(name, number));
        assert!(found.starts_with(&problem), "{name} {number}: {found}");
    }
    // Python writes these, JSON does not have them.
    for number in ["NaN", "Infinity", "-Infinity", "1e999"] {
        assert!(error(&with("taken_at", number)).starts_with("not JSON: "), "{number}");
    }
    // Every representable time is valid, and is loaded unchanged.
    for (number, seconds) in [("0", 0), ("-0.0", 0), ("1e10", 10_000_000_000)] {
        assert_eq!(
            load(&with("taken_at", number)).unwrap().taken_at(),
            UNIX_EPOCH + Duration::from_secs(seconds)
        );
    }
}

#[test]
fn what_is_given_twice_or_not_at_all_is_named() {
    let twice = |what: &str| {
        let text = r#"{"version":1,"taken_at":0,"traceback_limit":1,"build_id":null,"traces":[{"domain":0,"size":1,"count":1,
            "total_frames":1,"frames":[{"function":null,"file":"a.rs","line":1,"module":null,"offset":null}]}]}"#;
        load(text).unwrap();
        let at = text.find(&format!("\"{what}\"")).unwrap();
        let end = at + text[at..].find([',', '}']).unwrap();
        error(&format!("{},{}{}", &text[..end], &text[at..end], &text[end..]))
    };
    for what in
        ["version", "taken_at", "traceback_limit", "build_id", "domain", "size", "count", "total_frames"]
    {
        assert!(twice(what).starts_with(&format!("not a snapshot: duplicate field `{what}` at ")), "{what}");
    }
    for what in ["function", "file", "line", "module", "offset"] {
        assert!(twice(what).starts_with(&format!("not a snapshot: duplicate field `{what}` at ")), "{what}");
    }
    let without = |what: &str| {
        let mut json = json(S1);
        let trace = &mut json["traces"][1];
        trace.as_object_mut().unwrap().remove(what);
        trace["frames"][0].as_object_mut().unwrap().remove(what);
        error(&json.to_string())
    };
    for what in ["domain", "size", "count", "total_frames", "frames", "file", "line"] {
        // Without frames there is nothing to remove.
        if what != "frames" {
            assert!(
                without(what).starts_with(&format!("not a snapshot: missing field `{what}` at ")),
                "{what}"
            );
        }
    }
    let mut without_frames = json(S1);
    without_frames["traces"][1].as_object_mut().unwrap().remove("frames");
    assert!(error(&without_frames.to_string()).starts_with("not a snapshot: missing field `frames` at "));
    for (frames, problem) in [
        ("3", "invalid type: integer `3`, expected an array of frames"),
        ("[3]", "invalid type: integer `3`, expected a frame"),
        (r#"[{"file":null,"line":1}]"#, "invalid type: null, expected a string"),
        (r#"[{"file":3,"line":1}]"#, "invalid type: integer `3`, expected a string"),
        (r#"[{"function":3,"file":"a","line":1}]"#, "invalid type: integer `3`, expected a string"),
        (r#"[{"file":"a","line":1,"offset":"3"}]"#, "invalid type: string \"3\", expected u64"),
    ] {
        let mut wrong = json(S1);
        wrong["traces"][0]["frames"] = serde_json::from_str(frames).unwrap();
        let found = error(&wrong.to_string());
        assert!(found.starts_with(&format!("not a snapshot: {problem} at ")), "{found}");
    }
    let mut wrong = json(S1);
    wrong["traces"][0] = 3.into();
    assert!(
        error(&wrong.to_string())
            .starts_with("not a snapshot: invalid type: integer `3`, expected a trace at ")
    );
}

#[test]
fn members_nobody_knows_and_equal_traces_are_no_problem() {
    let mut more = json(S1);
    more["comment"] = serde_json::json!({"version": 7, "traces": [1, 2]});
    more["traces"][0]["weight"] = 3.into();
    more["traces"][0]["frames"][0]["column"] = serde_json::json!([1, {"file": 3}]);
    assert_eq!(load(&more.to_string()).unwrap(), snapshot(S1));
    // Three equal traces stay three, and strings may have any escapes of JSON.
    assert_eq!(snapshot(S1).traces().len(), 6);
    let escaped = json(S1).to_string().replace("a.rs", "\\u0061.rs").replace("domain", "d\\u006fmain");
    assert_ne!(escaped, json(S1).to_string());
    assert_eq!(load(&escaped).unwrap(), snapshot(S1));
}

#[test]
fn an_error_is_short_whatever_is_in_the_file() {
    let long = format!(r#"{{"version":"{}"}}"#, "long\\n".repeat(100_000));
    let problem = error(&long);
    assert!(problem.chars().count() < 300, "{}", problem.len());
    assert!(problem.starts_with("not a snapshot: invalid type: string \"long"), "{problem}");
    assert!(problem.ends_with(", expected u64 at line 1 column 600013"), "{problem}");
    for path in ["/no/such/file\n.json", ""] {
        let error = Snapshot::load(path).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.contains("No such file"), "{error}");
    }
    let error = Snapshot::load(std::env::temp_dir()).unwrap_err().to_string();
    assert!(error.contains("Is a directory"), "{error}");
}

/// Reads from a pipe, as in `compare <(zcat old.json.gz)`.
#[cfg(unix)]
#[test]
fn what_cannot_tell_its_length_is_read_all_the_same() {
    use std::os::unix::ffi::OsStrExt;
    let directory = Directory::new();
    let path = directory.file("pipe.json");
    let name = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: a text that ends with a zero.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let through = |text: String| {
        let (to, loaded) = (
            path.clone(),
            std::thread::spawn({
                let path = path.clone();
                move || Snapshot::load(path)
            }),
        );
        // The reader may stop before all is written.
        let _ = std::fs::write(to, text);
        loaded.join().unwrap()
    };
    let whole = json(S1).to_string();
    assert_eq!(through(whole.clone()).unwrap(), snapshot(S1));
    let error = through(whole[..whole.len() - 1].to_owned()).unwrap_err().to_string();
    assert!(error.contains("pipe.json: the file is truncated: EOF while parsing"), "{error}");
    let error = through(with_frames(65_536)).unwrap_err().to_string();
    assert!(error.contains("trace 0 has more than 65535 frames"), "{error}");
}

#[test]
fn too_long_a_file_is_not_read() {
    let directory = Directory::new();
    let path = directory.file("long.json");
    // Only its length is long.
    std::fs::File::create(&path).unwrap().set_len((1 << 30) + 1).unwrap();
    let error = Snapshot::load(&path).unwrap_err().to_string();
    assert!(error.ends_with("long.json: 1073741825 bytes, allowed are at most 1073741824"), "{error}");
}

/// The message where the allocator is there is tested in `tests/naming/lines.rs`.
#[test]
fn taking_one_without_the_allocator_is_an_error() {
    let error = Snapshot::take().unwrap_err().to_string();
    assert!(
        error.starts_with("Snapshot::take: heapgauge is not the global allocator of this program, add `"),
        "{error}"
    );
}
