//! Values of the variables, right and wrong.
#![forbid(unsafe_code)]

use super::*;
use crate::analyze::symbols::SiteFrame;
use crate::base::random_input::{Random, inputs};

fn read(variables: &[(&str, &str)]) -> (Config, Vec<String>) {
    parse(variables.iter().map(|&(key, value)| (key.into(), value.into())))
}

#[test]
fn nothing_set_gives_the_defaults() {
    let (config, problems) = read(&[("PATH", "/bin"), ("HEAPGAUGES", "x"), ("heapgauge_addr", "y")]);
    assert_eq!((config, problems), (Config::default(), vec![]));
}

#[test]
fn every_variable_is_read() {
    let (config, problems) = read(&[
        ("HEAPGAUGE", "on"),
        ("HEAPGAUGE_ADDR", "[::1]:0"),
        ("HEAPGAUGE_TOP_N", "10"),
        ("HEAPGAUGE_DELTA_WINDOW", "90s"),
        ("HEAPGAUGE_OLD_AGE", "10m"),
        ("HEAPGAUGE_FRAMES", "64"),
        ("HEAPGAUGE_SAMPLE", "512KiB"),
        ("HEAPGAUGE_MAX_OVERHEAD", "16MiB"),
        ("HEAPGAUGE_MEMORY_LIMIT", "2GiB"),
        ("HEAPGAUGE_RECLAIM", "off"),
        ("HEAPGAUGE_RELEASE", "2.4.1-rc1"),
        ("HEAPGAUGE_SITE", "nearest"),
        ("HEAPGAUGE_OWN_CRATES", "+tasks, -common::cache,"),
        ("HEAPGAUGE_LOOK_THROUGH", "-bytes"),
        ("HEAPGAUGE_EXPOSE", "pprof"),
        ("HEAPGAUGE_DEBUG_ADDR", "[::1]:7"),
        ("HEAPGAUGE_SOURCE_URL", "https://git.example/{file}#L{line}"),
        ("HEAPGAUGE_QUIET", "on"),
    ]);
    assert_eq!(problems, Vec::<String>::new());
    let expected = Config {
        on: Some(true),
        addr: "[::1]:0".into(),
        top_n: 10,
        delta_window: Duration::from_secs(90),
        old_age: Some(Duration::from_secs(600)),
        cohorts: None,
        frames: Some(64),
        sample: Some(512 << 10),
        max_overhead: Some(16 << 20),
        reclaim: Some(false),
        dumps: {
            let mut dumps = DumpSettings::default();
            dumps.memory_limit = Some(2 << 30);
            dumps
        },
        release: "2.4.1-rc1".into(),
        sites: SiteSettings {
            frame: Some(SiteFrame::Nearest),
            own_crates: Some(vec!["+tasks".into(), "-common::cache".into()]),
            look_through: Some(vec!["-bytes".into()]),
        },
        expose: Expose::Pprof,
        debug_addr: Some("[::1]:7".parse().unwrap()),
        source_url: Some("https://git.example/{file}#L{line}".into()),
        quiet: true,
    };
    assert_eq!(config, expected);
    assert_eq!(read(&[("HEAPGAUGE", "off")]).0.on, Some(false));
    let (config, problems) = read(&[("HEAPGAUGE_OLD_AGE", "Off")]);
    assert_eq!((config.old_age, config.cohorts, problems), (None, Some(false), vec![]));
    for (value, bytes) in [("exact", 0), ("0", 0), ("1", 1), ("1GiB", 1 << 30)] {
        let (config, problems) = read(&[("HEAPGAUGE_SAMPLE", value)]);
        assert_eq!((config.sample, problems), (Some(bytes), vec![]), "{value}");
    }
}

#[test]
fn a_malformed_value_names_what_is_allowed_and_takes_the_default() {
    for (key, value, allowed) in [
        (
            "HEAPGAUGE",
            "maybe",
            "allowed are on, true, yes, 1, off, false, no and 0, keeping what the program has set",
        ),
        ("HEAPGAUGE_ADDR", "9898", "allowed is HOST:PORT, taking 127.0.0.1:9898"),
        ("HEAPGAUGE_ADDR", "::1:80", "allowed is HOST:PORT, taking 127.0.0.1:9898"),
        ("HEAPGAUGE_ADDR", "a:65536", "allowed is HOST:PORT, taking 127.0.0.1:9898"),
        ("HEAPGAUGE_TOP_N", "0", "allowed are 1 to 25, taking 16"),
        ("HEAPGAUGE_TOP_N", "+3", "allowed are 1 to 25, taking 16"),
        ("HEAPGAUGE_TOP_N", "26", "allowed are 1 to 25, taking 16"),
        (
            "HEAPGAUGE_DELTA_WINDOW",
            "5",
            "allowed is a number with ms, s, m, h or d, from 0s to 7d, taking 5m",
        ),
        (
            "HEAPGAUGE_DELTA_WINDOW",
            "8d",
            "allowed is a number with ms, s, m, h or d, from 0s to 7d, taking 5m",
        ),
        (
            "HEAPGAUGE_OLD_AGE",
            "999ms",
            "allowed are off and a number with s, m, h or d, from 1s to 7d, keeping what the program has set",
        ),
        ("HEAPGAUGE_FRAMES", "65", "allowed are 1 to 64, keeping what the program has set"),
        (
            "HEAPGAUGE_SAMPLE",
            "2GiB",
            "allowed are exact and a size up to 1GiB such as 512KiB, keeping what the program has set",
        ),
        (
            "HEAPGAUGE_SAMPLE",
            "often",
            "allowed are exact and a size up to 1GiB such as 512KiB, keeping what the program has set",
        ),
        (
            "HEAPGAUGE_MAX_OVERHEAD",
            "64mb",
            "allowed is a number with B, KiB, MiB or GiB, at least 1MiB, taking the default",
        ),
        (
            "HEAPGAUGE_MAX_OVERHEAD",
            "99999999999GiB",
            "allowed is a number with B, KiB, MiB or GiB, at least 1MiB, taking the default",
        ),
        ("HEAPGAUGE_QUIET", "", "allowed are on, true, yes, 1, off, false, no and 0, taking off"),
        (
            "HEAPGAUGE_SOURCE_URL",
            "javascript:{file}",
            "allowed is http(s)://… with {file}, and {line} if you like, taking none",
        ),
        ("HEAPGAUGE_EXPOSE", "everything", "allowed are metrics, pprof and all, taking metrics"),
        (
            "HEAPGAUGE_DEBUG_ADDR",
            "0.0.0.0:9899",
            "allowed are a loopback HOST:PORT and off, taking 127.0.0.1:9899",
        ),
    ] {
        let line = format!("{key}={value}: {allowed}");
        assert_eq!(read(&[(key, value)]), (Config::default(), vec![line]));
    }
}

/// `12` was taken as twelve bytes, in which nothing can be recorded.
#[test]
fn less_than_one_mebibyte_of_own_memory_is_one_mebibyte_and_a_line() {
    for (value, bytes) in [("12", 12), ("0", 0), ("1023KiB", 1_047_552)] {
        let (config, problems) = read(&[("HEAPGAUGE_MAX_OVERHEAD", value)]);
        assert_eq!(config, Config { max_overhead: Some(1 << 20), ..Config::default() });
        let line = format!(
            "HEAPGAUGE_MAX_OVERHEAD={value}: this is {bytes} bytes, allowed is at least 1MiB, taking 1MiB"
        );
        assert_eq!(problems, [line]);
    }
    let (config, problems) = read(&[("HEAPGAUGE_MAX_OVERHEAD", "1MiB")]);
    assert_eq!((config.max_overhead, problems), (Some(1 << 20), vec![]));
}

#[test]
fn an_unknown_key_names_those_there_are() {
    let (config, problems) = read(&[("HEAPGAUGE_TOPN", "3"), ("HEAPGAUGE_TOP_N", "3")]);
    assert_eq!(config.top_n, 3);
    assert_eq!(
        problems,
        ["HEAPGAUGE_TOPN is unknown, allowed are HEAPGAUGE, HEAPGAUGE_ADDR, HEAPGAUGE_TOP_N, \
             HEAPGAUGE_DELTA_WINDOW, HEAPGAUGE_OLD_AGE, HEAPGAUGE_FRAMES, HEAPGAUGE_SAMPLE, HEAPGAUGE_MAX_OVERHEAD, \
             HEAPGAUGE_RECLAIM, HEAPGAUGE_MEMORY_LIMIT, HEAPGAUGE_RELEASE, HEAPGAUGE_SITE, HEAPGAUGE_OWN_CRATES, HEAPGAUGE_LOOK_THROUGH, HEAPGAUGE_EXPOSE, \
             HEAPGAUGE_DEBUG_ADDR, HEAPGAUGE_SOURCE_URL, HEAPGAUGE_QUIET, HEAPGAUGE_DUMP_DIR, HEAPGAUGE_DUMP_AT, \
             HEAPGAUGE_DUMP_KEEP, HEAPGAUGE_DUMP_MAX_BYTES, HEAPGAUGE_DUMP_SIGNAL, HEAPGAUGE_TERMINATION_LOG"]
    );
}

/// The emergency switch took `off` alone, and left tracking on for every other word.
#[test]
fn a_switch_takes_the_usual_words_in_any_case() {
    for (words, on) in
        [(["on", "ON", "true", "True", "yes", "1"], true), (["off", "OFF", "false", "No", "NO", "0"], false)]
    {
        for word in words {
            let (config, problems) = read(&[("HEAPGAUGE", word), ("HEAPGAUGE_QUIET", word)]);
            assert_eq!((config.on, config.quiet, problems), (Some(on), on, vec![]), "{word}");
        }
    }
    assert_eq!(read(&[("HEAPGAUGE_DEBUG_ADDR", "OFF")]).0.debug_addr, None);
    let local = read(&[("HEAPGAUGE_DEBUG_ADDR", "localhost:1")]).0.debug_addr;
    assert_eq!(local, Some("127.0.0.1:1".parse().unwrap()));
}

#[test]
fn variables_of_a_kubernetes_service_are_passed_over() {
    let (config, problems) = read(&[
        ("HEAPGAUGE_SERVICE_HOST", "10.0.0.1"),
        ("HEAPGAUGE_SERVICE_PORT_METRICS", "9898"),
        ("HEAPGAUGE_PORT", "tcp://10.0.0.1:9898"),
        ("HEAPGAUGE_PORT_9898_TCP_ADDR", "10.0.0.1"),
    ]);
    assert_eq!((config, problems), (Config::default(), vec![]));
    assert_eq!(read(&[("HEAPGAUGE_PORTS", "1")]).1.len(), 1);
}

#[test]
fn a_hostile_value_stays_one_short_line() {
    let long = "a\nb\r".repeat(1_000);
    let (_, problems) = read(&[("HEAPGAUGE_TOP_N", &long), ("HEAPGAUGE_\u{1b}[2J", "")]);
    assert_eq!(problems.len(), 2);
    for problem in problems {
        assert!(problem.chars().count() < 540 && !problem.contains(char::is_control), "{problem:?}");
    }
}

#[cfg(unix)]
#[test]
fn what_is_not_unicode_is_malformed() {
    use std::os::unix::ffi::OsStringExt as _;
    let value = OsString::from_vec(vec![b'1', 0xff]);
    let (config, problems) = parse([("HEAPGAUGE_TOP_N".into(), value)].into_iter());
    assert_eq!(config, Config::default());
    assert_eq!(problems, ["HEAPGAUGE_TOP_N=1\u{fffd}: allowed are 1 to 25, taking 16"]);
}

/// Whatever a variable holds: what it says, or one short line and the default.
#[test]
fn any_value_is_read_or_is_one_line() {
    let words = [
        "on",
        "off",
        "127.0.0.1",
        ":",
        "[",
        "]",
        "::1",
        "0",
        "9898",
        "5",
        "m",
        "s",
        "d",
        "KiB",
        "GiB",
        "-",
        " ",
    ];
    let mut random = Random::new();
    for _ in 0..inputs(50_000) {
        let (key, value) = (random.one(&KEYS), random.text(&words));
        let (config, problems) = read(&[(key, &value)]);
        assert!(problems.len() <= 1, "{key}={value:?}: {problems:?}");
        for problem in problems {
            // Beside the default: the floor of the one value that has one.
            let floor = Config { max_overhead: Some(MIN_MAX_OVERHEAD), ..Config::default() };
            let is_floor = problem.ends_with("taking 1MiB") && config == floor;
            assert!(is_floor || config == Config::default(), "{key}={value:?}");
            assert!(!problem.contains(char::is_control) && problem.chars().count() < 300, "{problem:?}");
        }
        assert!((1..=MAX_TOP_N).contains(&config.top_n) && config.delta_window <= MAX_DELTA_WINDOW);
    }
}
