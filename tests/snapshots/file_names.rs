//! Tests names for frames that go by module and offset, from the binary of this test.

use super::common::{Directory, load};
use std::fs;
use std::path::Path;

#[inline(never)]
fn planted(number: usize) -> usize {
    std::hint::black_box(number) + 1
}

/// Writes a frame without a name.
fn unnamed(module: &str, offset: usize) -> String {
    format!(
        r#"{{"function": null, "file": "<unknown>", "line": 0, "module": "{module}", "offset": {offset}}}"#
    )
}

/// Writes a snapshot of one trace.
fn of_frames(frames: &[String]) -> String {
    let (total, frames) = (frames.len(), frames.join(", "));
    format!(
        r#"{{"version": 1, "taken_at": 1, "traceback_limit": 2, "build_id": "c0ffee", "traces": [
        {{"domain": 0, "size": 8, "count": 1, "total_frames": {total}, "frames": [{frames}]}}]}}"#
    )
}

/// A dump may hold frames in front of the program's that only names tell apart: the traceback begins at the nearest frame.
#[test]
fn frames_by_offset_get_names_and_the_traceback_its_site() {
    let binary = std::env::current_exe().unwrap();
    let module = binary.file_name().unwrap().to_str().unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mapped = maps.lines().find(|line| line.ends_with(binary.to_str().unwrap())).unwrap();
    let low = usize::from_str_radix(mapped.split('-').next().unwrap(), 16).unwrap();
    let here = unnamed(module, planted as fn(usize) -> usize as usize - low);
    let push = r#"{"function": "alloc::vec::Vec::push", "file": "library/alloc/src/vec/mod.rs", "line": 1}"#;
    let main = r#"{"function": "snapshots::main", "file": "tests/snapshots/main.rs", "line": 1}"#;
    let dump =
        load(&of_frames(&[push.into(), unnamed("libc.so.6", 7), here.clone(), main.into(), main.into()]))
            .unwrap();
    let named = dump.named_from(&binary).unwrap();
    assert_eq!((named.module.as_deref(), named.addresses, named.named), (Some(module), 1, 1));
    assert!(named.has_names && named.build_id.is_some_and(|id| id.len() >= 16));
    let traceback = &named.snapshot.traces()[0].traceback;
    let frames: Vec<_> = traceback.frames().map(|frame| (frame.name(), frame.file())).collect();
    let file = "tests/snapshots/file_names.rs";
    assert_eq!(
        frames,
        [
            ("snapshots::file_names::planted".into(), file),
            ("snapshots::main".into(), "tests/snapshots/main.rs")
        ]
    );
    assert!(traceback.is_truncated(), "the limit is two frames");
    assert_eq!((traceback.site().function(), traceback.via()), (Some("snapshots::file_names::planted"), ""));
    assert_eq!(named.snapshot.build_id(), Some("c0ffee"));

    // Code of another module, and addresses that are in no function, stay as they are.
    let others = load(&of_frames(&[unnamed("libc.so.6", 7), unnamed("plugin.so", 1 << 40)])).unwrap();
    let named = others.named_from(&binary).unwrap();
    assert_eq!((named.module.as_deref(), named.addresses, named.named), (Some("plugin.so"), 1, 0));
    assert_eq!(named.snapshot, others);
    let none = load(&of_frames(&[main.into()])).unwrap().named_from(&binary).unwrap();
    assert_eq!((none.module, none.addresses), (None, 0));
}

#[test]
fn a_file_without_names_is_told_from_one_that_is_no_binary() {
    let directory = Directory::new();
    let text = directory.file("text");
    fs::write(&text, "names").unwrap();
    let snapshot = load(&of_frames(&[unnamed("app", 7)])).unwrap();
    let failure = |path: &Path| snapshot.named_from(path).unwrap_err().to_string();
    let allowed = "allowed are an executable and its debug file";
    assert_eq!(failure(&text), format!("{}: is no ELF file, {allowed}", text.display()));
    assert_eq!(
        failure(directory.path()),
        format!("{}: is a directory, {allowed}", directory.path().display())
    );
    let missing = directory.file("missing");
    assert_eq!(failure(&missing), format!("{}: No such file or directory (os error 2)", missing.display()));
    fs::write(&text, b"\x7fELF and no more").unwrap();
    assert!(
        failure(&text)
            .ends_with(": cannot be read: it is malformed, or of another word size than this program")
    );
}
