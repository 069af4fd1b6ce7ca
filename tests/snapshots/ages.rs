//! Tests the age that a snapshot file says its blocks have.

use super::common::{Directory, S1, load, snapshot};
use heapgauge::Snapshot;
use std::time::Duration;

#[test]
fn a_file_of_old_blocks_keeps_their_age() {
    let text = r#"{"version": 1, "taken_at": 0.5, "traceback_limit": 32, "build_id": null, "older_than": 3600.0, "traces": []}"#;
    let old = load(text).unwrap();
    assert_eq!(old.older_than(), Some(Duration::from_secs(3_600)));
    let directory = Directory::new();
    let path = directory.file("saved.json");
    old.save(&path).unwrap();
    assert_eq!(Snapshot::load(&path).unwrap(), old);
    let saved: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(saved, serde_json::from_str::<serde_json::Value>(text).unwrap());
    // A whole number is one, too. Any other snapshot has none, nor has a file that says null.
    assert_eq!(load(&text.replace("3600.0", "90")).unwrap().older_than(), Some(Duration::from_secs(90)));
    for age in ["", r#""older_than": null, "#] {
        assert_eq!(load(&text.replace(r#""older_than": 3600.0, "#, age)).unwrap().older_than(), None);
    }
    snapshot(S1).save(&path).unwrap();
    assert!(!std::fs::read_to_string(&path).unwrap().contains("older_than"));
    for (age, problem) in [
        ("-1.0", "not a snapshot: invalid value: floating point `-1.0`, expected seconds of an age"),
        ("1e300", "not a snapshot: invalid value: floating point `1e+300`, expected seconds of an age"),
        (r#""1h""#, "not a snapshot: invalid type: string \"1h\", expected f64"),
        (r#"1, "older_than": 2"#, "not a snapshot: duplicate field `older_than`"),
    ] {
        let error = load(&text.replace("3600.0", age)).unwrap_err().to_string();
        assert!(error.contains(problem), "{age}: {error}");
    }
}
