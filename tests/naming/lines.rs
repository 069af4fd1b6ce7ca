//! Tests that allocations are named by the program's line when they go through a library.

use heapgauge::{DomainFilter, GroupBy, Snapshot, traceback_of};
use std::collections::HashMap;
use std::hint::black_box;

/// Returns live bytes and blocks of a line of this file.
fn at_line(line: u32) -> (u64, u64) {
    let rows = Snapshot::take().unwrap().statistics(GroupBy::Line);
    let row = rows.iter().find(|row| row.name() == format!("tests/naming/lines.rs:{line}"));
    row.map_or((0, 0), |row| (row.size, row.count))
}

#[inline(never)]
#[allow(clippy::vec_box, reason = "each box is a block of its own, which is what is counted")]
fn boxes(count: usize) -> (Vec<Box<[u8; 48]>>, u32) {
    let mut boxes = Vec::with_capacity(count);
    for _ in 0..count {
        boxes.push(black_box(Box::new([1; 48])));
    }
    (boxes, line!() - 2)
}

#[test]
fn twelve_thousand_boxes_of_one_line() {
    own_process!();
    let (kept, line) = boxes(12_345);
    assert_eq!(at_line(line), (592_560, 12_345));
    let snapshot = Snapshot::take().unwrap();
    let trace = snapshot.traces().iter().find(|trace| trace.count == 12_345).unwrap();
    let frame = trace.traceback.most_recent();
    assert_eq!((frame.function(), frame.crate_name()), (Some("naming::lines::boxes"), "naming"));
    assert_eq!(
        trace.traceback.frames().nth(1).unwrap().name(),
        "naming::lines::twelve_thousand_boxes_of_one_line"
    );
    drop(kept);
    assert_eq!(at_line(line), (0, 0));
}

#[test]
fn a_map_that_grows_names_the_line_that_fills_it() {
    own_process!();
    let mut map: HashMap<u64, [u64; 4]> = HashMap::new();
    for key in 0..10_000 {
        map.insert(key, [key; 4]);
    }
    let line = line!() - 2;
    let (size, count) = at_line(line);
    assert_eq!(count, 1);
    // 16,384 buckets of 40 bytes, their control bytes and a group more, of as many as the processor compares at once.
    assert_eq!(size, 16_384 * 40 + 16_384 + if cfg!(target_arch = "x86_64") { 16 } else { 8 });
    drop(map);
}

#[test]
fn a_parser_is_looked_through() {
    own_process!();
    let text = format!("[{}\"end\"]", "\"some text\",".repeat(1000));
    let value: serde_json::Value = serde_json::from_str(black_box(&text)).unwrap();
    let line = line!() - 1;
    // A string each of 9 bytes and 3, and the array's 32-byte elements, doubled from 4.
    assert_eq!(at_line(line), (9 * 1000 + 3 + 1024 * 32, 1002));
    drop(value);
}

#[test]
fn a_resize_belongs_to_the_line_that_resized() {
    own_process!();
    let mut bytes: Vec<u8> = Vec::with_capacity(1000);
    let first = line!() - 1;
    assert_eq!(at_line(first), (1000, 1));
    bytes.reserve_exact(black_box(5000));
    let second = line!() - 1;
    assert_eq!((at_line(first), at_line(second)), ((0, 0), (5000, 1)));
    assert_eq!(traceback_of(&bytes).unwrap().to_string(), format!("tests/naming/lines.rs:{second}"));
}

/// Blocks of threads and of the test harness: no frame but the standard library's.
#[test]
fn the_standard_librarys_own_blocks_are_named_by_what_wanted_them() {
    own_process!();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || wait.recv());
    let rows = Snapshot::take().unwrap().statistics(GroupBy::Line);
    let standard: Vec<_> =
        rows.iter().map(|row| row.name()).filter(|name| name.starts_with("library/")).collect();
    assert!(!standard.is_empty());
    let ways = ["library/alloc/src/", "library/core/src/alloc/", "library/std/src/alloc.rs"];
    for name in standard {
        assert!(!ways.iter().any(|way| name.starts_with(way)), "{name}");
    }
    drop(go);
    thread.join().unwrap().unwrap_err();
}

#[test]
fn traceback_of_what_owns_a_block() {
    own_process!();
    let of = |traceback: Option<heapgauge::Traceback>| traceback.map(|traceback| traceback.to_string());
    let expected = |line: u32| Some(format!("tests/naming/lines.rs:{line}"));
    let text = black_box(String::from("text"));
    assert_eq!(of(traceback_of(&text)), expected(line!() - 1));
    let boxed = black_box(Box::new(7u64));
    assert_eq!(of(traceback_of(&boxed)), expected(line!() - 1));
    let slice: Box<[u16]> = black_box(vec![7; 9].into_boxed_slice());
    assert_eq!(of(traceback_of(&slice)), expected(line!() - 1));
    let object: Box<dyn std::fmt::Debug> = black_box(Box::new(7u64));
    assert_eq!(of(traceback_of(&object)), expected(line!() - 1));

    assert_eq!(traceback_of(&String::new()), None);
    assert_eq!(traceback_of(&Vec::<u64>::new()), None);
    assert_eq!(traceback_of(&vec![(); 7]), None);
    assert_eq!(traceback_of(&Box::new(())), None);
    let paused = heapgauge::pause();
    let untracked = vec![1u8; 100];
    drop(paused);
    assert_eq!(traceback_of(&untracked), None);
}

#[test]
fn case_38_no_more_frames_than_the_limit() {
    own_process!();
    #[inline(never)]
    fn deep(depth: usize) -> Box<u64> {
        match depth {
            0 => black_box(Box::new(38)),
            _ => black_box(deep(depth - 1)),
        }
    }
    let (site, recursion) = (line!() - 4, line!() - 3);
    heapgauge::stop();
    heapgauge::start(5).unwrap();
    let mut kept = Vec::with_capacity(10);
    // The traces of that line, with how many blocks each has, most first.
    let counts = || {
        let snapshot = Snapshot::take().unwrap();
        assert_eq!(snapshot.traceback_limit(), 5);
        for trace in snapshot.traces() {
            let (frames, is_truncated) = (trace.traceback.frames().len(), trace.traceback.is_truncated());
            assert!(frames == 5 || frames < 5 && !is_truncated, "{frames} frames, truncated: {is_truncated}");
        }
        let here = snapshot.traces().iter().filter(|trace| trace.traceback.most_recent().line() == site);
        here.map(|trace| trace.count).collect::<Vec<_>>()
    };
    for depth in black_box(&[20, 20, 20, 21][..]) {
        kept.push(deep(*depth));
    }
    // The limit counts from the frame of the site.
    let traceback = traceback_of(&kept[0]).unwrap();
    let lines: Vec<u32> = traceback.frames().map(|frame| frame.line()).collect();
    assert_eq!(lines, [site, recursion, recursion, recursion, recursion]);
    assert!(traceback.is_truncated());
    // Equal stacks are one trace; different ones stay apart, although the shown frames are equal.
    assert_eq!(traceback, traceback_of(&kept[3]).unwrap());
    assert_eq!(counts(), [3, 1]);
    // Stacks deeper than the stored part are equal.
    kept.clear();
    for depth in black_box(&[100, 101, 150][..]) {
        kept.push(deep(*depth));
    }
    assert_eq!(counts(), [3]);
    kept.clear();
    assert_eq!(counts(), [0; 0]);

    heapgauge::stop();
    heapgauge::start(64).unwrap();
    let whole = deep(2);
    let traceback = traceback_of(&whole).unwrap();
    assert_eq!(
        (traceback.is_truncated(), traceback.frames().nth(3).unwrap().name()),
        (false, "naming::lines::case_38_no_more_frames_than_the_limit".into())
    );
    heapgauge::stop();
    heapgauge::start(32).unwrap();
}

#[test]
fn case_39_track_replaces_and_untrack_forgets() {
    own_process!();
    const GPU: u32 = 39;
    let tracked = || {
        let snapshot = Snapshot::take().unwrap().filter_traces(&[DomainFilter::include(GPU).into()]);
        let rows = snapshot.statistics(GroupBy::Line);
        rows.iter().map(|row| (row.size, row.count, row.name().into_owned())).collect::<Vec<_>>()
    };
    assert_eq!(tracked(), []);
    heapgauge::track(GPU, 0x1000, 100).unwrap();
    heapgauge::track(GPU, 0x1000, 250).unwrap();
    let line = line!() - 1;
    assert_eq!(tracked(), [(250, 1, format!("tests/naming/lines.rs:{line}"))]);
    heapgauge::track(GPU + 1, 0x1000, 1).unwrap();
    heapgauge::untrack(GPU, 0x1000);
    assert_eq!(tracked(), []);
    heapgauge::untrack(GPU, 0x1000);
    assert_eq!(tracked(), []);
    heapgauge::untrack(GPU + 1, 0x1000);

    for address in [0x1000, 0x2000, 0x3000] {
        heapgauge::track(GPU, address, 10).unwrap();
    }
    let line = line!() - 2;
    assert_eq!(tracked(), [(30, 3, format!("tests/naming/lines.rs:{line}"))]);
    heapgauge::clear_traces();
    assert_eq!(tracked(), []);
    heapgauge::track(GPU, 0x1000, 7).unwrap();
    heapgauge::clear_traces();
    assert_eq!(tracked(), []);

    let error = heapgauge::track(0, 0x1000, 1).unwrap_err().to_string();
    assert_eq!(error, "track: domain 0 is the allocator's, allowed are 1 to 4294967295");
    heapgauge::stop();
    let error = heapgauge::track(GPU, 0x1000, 1).unwrap_err().to_string();
    assert_eq!(error, "track: tracking is off, heapgauge::start turns it on");
    let error = Snapshot::take().unwrap_err().to_string();
    assert_eq!(error, "Snapshot::take: tracking is off, heapgauge::start turns it on");
    heapgauge::start(32).unwrap();
}

#[test]
fn case_42_what_heapgauge_holds_is_not_traced() {
    own_process!();
    let overhead = heapgauge::tracker_memory();
    let mut snapshots = Vec::with_capacity(20);
    let mut rows = Vec::with_capacity(40);
    for _ in 0..20 {
        snapshots.push(Snapshot::take().unwrap());
        rows.push(snapshots[0].statistics(GroupBy::Traceback));
        rows.push(snapshots[0].filter_traces(&[]).statistics(GroupBy::CumulativeLine));
    }
    let last = line!() - 2;
    // These lines would be the sites, if heapgauge counted its own allocations.
    for line in last - 2..=last {
        assert_eq!(at_line(line), (0, 0));
    }
    assert!(heapgauge::tracker_memory() > overhead);
    drop((snapshots, rows));
}

/// Counts how often this executable is mapped as a whole file, as `backtrace` does while its cache has it.
#[cfg(target_os = "linux")]
fn whole_file_mappings() -> usize {
    let exe = std::fs::read_link("/proc/self/exe").unwrap();
    let length = std::fs::metadata(&exe).unwrap().len();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let bytes_of = |line: &str| {
        let (low, high) = line.split(' ').next()?.split_once('-')?;
        Some(u64::from_str_radix(high, 16).ok()? - u64::from_str_radix(low, 16).ok()?)
    };
    let lines = maps.lines().filter(|line| line.ends_with(exe.to_str().unwrap()));
    lines.filter_map(bytes_of).filter(|bytes| *bytes >= length).count()
}

#[cfg(target_os = "linux")]
#[test]
fn the_cache_of_the_crate_backtrace_stays_the_programs() {
    own_process!();
    let here = the_cache_of_the_crate_backtrace_stays_the_programs as *mut std::ffi::c_void;
    // `backtrace` takes it for a return address, and looks up the one before.
    let here = here.wrapping_byte_add(1);
    let mut name = None;
    backtrace::resolve(here, |symbol| name = symbol.name().map(|name| name.to_string()));
    assert!(name.unwrap().contains("the_cache_of_the_crate_backtrace"));
    assert_eq!(whole_file_mappings(), 1, "kept by `backtrace`");
    let (kept, line) = boxes(3);
    assert_eq!(at_line(line), (144, 3), "though the file is mapped a second time");
    assert_eq!(whole_file_mappings(), 1, "and by nothing else");
    drop(kept);
}

/// Both have crates of the same names inside: the standard library without lines, the program with lines.
#[cfg(target_os = "linux")]
#[test]
fn the_standard_librarys_copies_of_crates_are_told_from_the_programs() {
    own_process!();
    heapgauge::set_site_frame(heapgauge::SiteFrame::Nearest);
    let copied = || {
        let rows = Snapshot::take().unwrap().statistics(GroupBy::Crate);
        let copied = ["addr2line", "gimli", "miniz_oxide", "object", "rustc_demangle"];
        let rows = rows.iter().filter(|row| copied.contains(&&*row.name()));
        rows.map(|row| row.size).sum::<u64>()
    };
    let before = heapgauge::Snapshot::take().unwrap().traces().iter().map(|trace| trace.size).sum::<u64>();
    // It keeps what it has read of the debug information.
    assert!(std::backtrace::Backtrace::force_capture().to_string().contains("naming::lines"));
    let after = heapgauge::Snapshot::take().unwrap().traces().iter().map(|trace| trace.size).sum::<u64>();
    assert!(after > before + (1 << 20), "{before} and {after} bytes");
    assert_eq!(copied(), 0);
    let here = the_standard_librarys_copies_of_crates_are_told_from_the_programs as *mut std::ffi::c_void;
    backtrace::resolve(here.wrapping_byte_add(1), |_| {});
    assert!(copied() > 1 << 20, "{} bytes", copied());
}

/// An upgrade in place, or a build directory that was cleaned, while the program runs.
#[cfg(target_os = "linux")]
#[test]
fn names_are_those_of_the_running_file_whatever_is_in_its_place() {
    const TEST: &str = "lines::names_are_those_of_the_running_file_whatever_is_in_its_place";
    const CASE: &str = "REPLACED_EXECUTABLE";
    let Some(case) = std::env::var_os(CASE) else {
        let _turn = crate::process::turn();
        let program = std::env::current_exe().unwrap();
        for case in ["deleted", "replaced", "replaced by a program without names"] {
            let copy = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("replaced-executable");
            let _ = std::fs::remove_file(&copy);
            std::fs::hard_link(&program, &copy).unwrap();
            let mut child = std::process::Command::new(&copy);
            child.args(["--exact", TEST, "--nocapture"]).env(CASE, case);
            let output = child.env(crate::process::OWN_PROCESS, "1").output().unwrap();
            assert!(output.status.success(), "{case}: {output:?}");
            assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
            let _ = std::fs::remove_file(&copy);
        }
        return;
    };
    let program = std::env::current_exe().unwrap();
    std::fs::remove_file(&program).unwrap();
    match case.to_str().unwrap() {
        "deleted" => {}
        // A file with debug information, of other code.
        "replaced" => {
            let cc = std::process::Command::new(crate::process::c_compiler())
                .args(["-g", "-x", "c", "-", "-o"])
                .arg(&program)
                .stdin(std::process::Stdio::piped())
                .spawn();
            let mut cc = cc.unwrap();
            std::io::Write::write_all(&mut cc.stdin.take().unwrap(), b"int main() { return 0; }").unwrap();
            assert!(cc.wait().unwrap().success());
        }
        _ => {
            std::fs::copy("/bin/true", &program).unwrap();
        }
    }
    let (kept, line) = boxes(3);
    assert_eq!(at_line(line), (144, 3));
    let traceback = traceback_of(&kept[0]).unwrap();
    assert_eq!(traceback.most_recent().name(), "naming::lines::boxes");
    let report = heapgauge::Collector::new().collect();
    assert_eq!(report.build.symbols(), "lines");
}
