//! Snapshot files: the form, the way there and back, and every way to be wrong.

use super::common::{Directory, S1, json, load, snapshot};
use heapgauge::Snapshot;
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
    let frames = trace.traceback.frames();
    assert_eq!(trace.traceback.total_frames(), 3);
    assert_eq!(
        (frames[0].function.as_deref(), &*frames[0].file, frames[0].line),
        (Some("app::load"), "a.rs", 2)
    );
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
}

#[test]
fn every_truncation_is_an_error() {
    let whole = json(S1).to_string();
    for end in 0..whole.len() {
        assert!(error(&whole[..end]).starts_with("the file is truncated: EOF while parsing"), "{end}");
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

#[test]
fn too_long_a_file_is_not_read() {
    let directory = Directory::new();
    let path = directory.file("long.json");
    // Only its length is long.
    std::fs::File::create(&path).unwrap().set_len((1 << 30) + 1).unwrap();
    let error = Snapshot::load(&path).unwrap_err().to_string();
    assert!(error.ends_with("long.json: 1073741825 bytes, allowed are at most 1073741824"), "{error}");
}

#[test]
fn taking_one_while_nothing_is_tracked_is_an_error() {
    heapgauge::stop();
    let error = Snapshot::take().unwrap_err();
    assert_eq!(error.to_string(), "Snapshot::take: tracking is off, heapgauge::start turns it on");
}
