//! Tests the command line of `examples/compare`; `tests/e2e/tracemalloc_parity.py` compares its rows with CPython's.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// Runs the example, and builds it first: `cargo test --test …` builds no examples.
fn compare(arguments: &[&str]) -> Output {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let example = BUILT.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--example", "compare"]);
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        assert!(cargo.status().unwrap().success());
        // This test is in target/<profile>/deps.
        let test = std::env::current_exe().unwrap();
        test.parent().unwrap().with_file_name("examples").join("compare")
    });
    Command::new(example).args(arguments).output().unwrap()
}

fn file(directory: &Path, name: &str, traces: &str) -> String {
    let path = directory.join(name);
    let text = format!(r#"{{"version": 1, "taken_at": 0.5, "traceback_limit": 32, "traces": [{traces}]}}"#);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn rows_and_errors() {
    let directory = std::env::temp_dir().join(format!("heapgauge-compare-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let trace = |size: u64, file: &str, line: u32| {
        format!(
            r#"{{"domain": 0, "size": {size}, "count": 1, "total_frames": 2, "frames": [
            {{"function": "app::f", "file": "{file}", "line": {line}}}, {{"function": "app::main", "file": "m.rs", "line": 1}}]}}"#
        )
    };
    let old = file(&directory, "old.json", &[trace(2, "a.rs", 5), trace(66, "b.rs", 1)].join(","));
    let new = file(&directory, "new.json", &[trace(2, "a.rs", 5), trace(5000, "a.rs", 5)].join(","));
    let printed = |arguments: &[&str]| {
        let output = compare(arguments);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(
        printed(&[&old, &new]),
        "a.rs:5: size=5002 B (+5000 B), count=2 (+1), average=2501 B\nb.rs:1: size=0 B (-66 B), count=0 (-1)\n"
    );
    assert_eq!(printed(&[&old, "--top", "1"]), "b.rs:1: size=66 B, count=1, average=66 B\n");
    assert_eq!(
        printed(&[&old, &new, "--group-by", "file", "--cumulative", "--top=1"]),
        "a.rs:0: size=5002 B (+5000 B), count=2 (+1), average=2501 B\n"
    );
    assert_eq!(
        printed(&[&new, "--group-by=function", "--cumulative"]),
        "app::main: size=5002 B, count=2, average=2501 B\napp::f: size=5002 B, count=2, average=2501 B\n"
    );

    each_error_is_one_line(&directory, &old, &new);
    // More rows than exist; options before and after the files; the last of two options wins.
    assert_eq!(
        printed(&["--top", "9", "--top=99", &old, "--group-by", "file", "--group-by=line"]).lines().count(),
        2
    );
    assert_eq!(printed(&["--", &old]).lines().count(), 2);
    assert!(printed(&["--help"]).starts_with("usage: compare OLD.json [NEW.json] "));
    // Both may be the same file.
    assert_eq!(
        printed(&[&old, &old]).lines().next(),
        Some("b.rs:1: size=66 B (+0 B), count=1 (+0), average=66 B")
    );
    std::fs::remove_dir_all(&directory).unwrap();
}

fn each_error_is_one_line(directory: &Path, old: &str, new: &str) {
    let error = |arguments: &[&str]| {
        let output = compare(arguments);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(error(&[]).starts_with("compare: usage: compare OLD.json"));
    assert!(error(&[old, new, old]).starts_with("compare: usage: compare OLD.json"));
    for top in ["0", "-1", "abc", "", "1.5", "99999999999999999999", "ä\u{301}"] {
        let problem = format!("compare: --top {top}: allowed are numbers from 1 on\n");
        assert_eq!(error(&[old, "--top", top]), problem);
        assert_eq!(error(&[old, &format!("--top={top}")]), problem);
    }
    assert_eq!(
        error(&[old, "--group-by", "traceback", "--cumulative"]),
        "compare: cumulative: not for traceback, allowed are file, line, function, crate\n"
    );
    assert_eq!(
        error(&[old, "--group-by", "lineno"]),
        "compare: group by: \"lineno\" is not known, allowed are file, line, function, crate, traceback, nearest, via, scope\n"
    );
    assert_eq!(
        error(&["no-such.json"]),
        "compare: load snapshot from no-such.json: No such file or directory (os error 2)\n"
    );
    for wrong in
        ["--wrong", "-x", "--cumulative=yes", "--top", "--group-by", "--top=1\n2", "--group-by=\u{1b}[2J"]
    {
        let problem = error(&[old, wrong]);
        assert_eq!(problem.lines().count(), 1, "{problem}");
        assert!(
            problem.starts_with("compare: ") && !problem.trim_end().contains(char::is_control),
            "{problem:?}"
        );
    }
    // An invalid file is named with the place of the error.
    let cut = directory.join("cut.json");
    std::fs::write(&cut, &std::fs::read(old).unwrap()[..100]).unwrap();
    let cut = cut.to_str().unwrap();
    for arguments in [&[cut][..], &[cut, new], &[new, cut]] {
        let problem = error(arguments);
        assert!(
            problem.starts_with(&format!("compare: load snapshot from {cut}: the file is truncated: EOF "))
        );
        assert_eq!(problem.lines().count(), 1, "{problem}");
    }
}
