//! Tests `serve_from_env`: each case is a process of its own with its own environment.

use std::net::TcpListener;
use std::process::Command;

use crate::client;

/// Runs the program under test: serves, prints its state, ends.
fn main_of_the_child() {
    if std::env::var_os("ENVIRONMENT_TEST_CHILD").is_some_and(|how| how == "decides") {
        let (end, error) = match heapgauge::Server::from_env() {
            Ok(server) => (format!("server={}", server.is_some()), None),
            Err(error) => (error.to_string(), Some(error.kind())),
        };
        return println!("tracing={} {end} {error:?}\nthe program goes on", heapgauge::is_tracing());
    }
    if std::env::var_os("ENVIRONMENT_TEST_CHILD").is_some_and(|how| how == "reports") {
        let outlet = heapgauge::emit::Metrics::new(&heapgauge::Collector::new());
        let _ = outlet.report_every(std::time::Duration::from_secs(1));
        println!("tracing={}\nthe program goes on", heapgauge::is_tracing());
        return std::thread::sleep(std::time::Duration::from_secs(3));
    }
    let server = match std::env::var_os("ENVIRONMENT_TEST_CHILD").is_some_and(|how| how == "serves") {
        true => heapgauge::serve("127.0.0.1:0").ok(),
        false => heapgauge::serve_from_env(),
    };
    // At once: an answer takes more than a second on a busy machine.
    let how = std::env::var("ENVIRONMENT_TEST_CHILD").unwrap();
    if how.starts_with("drops") {
        drop(server);
        let _second = (how == "drops and serves again").then(heapgauge::serve_from_env);
        println!("tracing={}\nthe program goes on", heapgauge::is_tracing());
        if how != "drops and ends" {
            std::thread::sleep(std::time::Duration::from_secs(3));
        }
        return;
    }
    println!("tracing={} frames={}", heapgauge::is_tracing(), heapgauge::traceback_limit());
    match &server {
        None => println!("no server"),
        Some(server) => {
            let addr = server.local_addr();
            println!("ip={}", addr.ip());
            let health = client::send(([127, 0, 0, 1], addr.port()).into(), b"GET /health HTTP/1.0\r\n\r\n");
            println!("health={}", health.text() == "ok\n");
        }
    }
    println!("the program goes on");
}

/// Runs such a process. Returns its stdout from `tracing=` on, and its stderr.
fn run(variables: &[(&str, &str)]) -> (String, String) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "environment::served_where_the_environment_says",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("ENVIRONMENT_TEST_CHILD", "1")
        .env("HEAPGAUGE_QUIET", "on")
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let stdout = text(output.stdout);
    let from = stdout.find("tracing=").unwrap();
    let to = stdout.find("the program goes on\n").unwrap();
    (stdout[from..to].to_owned(), text(output.stderr))
}

const FREE: (&str, &str) = ("HEAPGAUGE_ADDR", "127.0.0.1:0");
const SERVED: &str = "ip=127.0.0.1\nhealth=true\n";

#[test]
fn served_where_the_environment_says() {
    // Each case starts this test again as the program under test.
    if std::env::var_os("ENVIRONMENT_TEST_CHILD").is_some() {
        return main_of_the_child();
    }
    assert_eq!(run(&[FREE]), (format!("tracing=true frames=32\n{SERVED}"), String::new()));
}

#[test]
fn off_is_off() {
    for word in ["off", "OFF", "False", "no", "0"] {
        let (stdout, stderr) = run(&[FREE, ("HEAPGAUGE", word)]);
        assert_eq!(
            (stdout.as_str(), stderr.as_str()),
            ("tracing=false frames=32\nno server\n", ""),
            "{word}"
        );
    }
}

#[test]
fn where_it_listens_is_one_line() {
    // By the environment, and by `serve`, which said nothing.
    for how in ["1", "serves"] {
        let (stdout, stderr) = run(&[FREE, ("ENVIRONMENT_TEST_CHILD", how), ("HEAPGAUGE_QUIET", "off")]);
        assert_eq!(stdout, format!("tracing=true frames=32\n{SERVED}"));
        let rest = stderr.strip_prefix("heapgauge: http://127.0.0.1:").unwrap_or_else(|| panic!("{stderr}"));
        assert!(rest.ends_with(" has the page /debug/heap and /metrics\n"), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        let (_, stderr) = run(&[FREE, ("ENVIRONMENT_TEST_CHILD", how)]);
        assert_eq!(stderr, "", "HEAPGAUGE_QUIET=on, {how}");
    }
    // `serve` reads that variable alone.
    let wrong = [("HEAPGAUGE_QUIET", "hush"), ("HEAPGAUGE_FRAMES", "many")];
    let (_, stderr) = run(&[FREE, ("ENVIRONMENT_TEST_CHILD", "serves"), wrong[0], wrong[1]]);
    let allowed = "allowed are on, true, yes, 1, off, false, no and 0, taking off";
    let expected = format!("heapgauge: HEAPGAUGE_QUIET=hush: {allowed}\nheapgauge: http://127.0.0.1:");
    assert!(stderr.starts_with(&expected), "{stderr}");
    assert_eq!(stderr.lines().count(), 2, "{stderr}");
}

/// `let _ = outlet.report_every(…)` compiles without a warning, and ends the reports at once.
#[test]
fn a_reporter_that_is_dropped_at_once_is_a_line() {
    let (_, stderr) = run(&[("ENVIRONMENT_TEST_CHILD", "reports")]);
    assert!(stderr.starts_with("heapgauge: the reporter of metrics was stopped after "), "{stderr}");
    assert!(
        stderr.ends_with(" ms, because its value was dropped; `let _reporter = …` keeps it\n"),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

/// `serve_from_env();` without a name compiles, and drops its server at once.
#[test]
fn a_server_that_is_dropped_at_once_is_a_line() {
    let (_, stderr) = run(&[FREE, ("ENVIRONMENT_TEST_CHILD", "drops and goes on")]);
    assert!(stderr.starts_with("heapgauge: the server at http://127.0.0.1:"), "{stderr}");
    assert!(stderr.ends_with(" ms, because its value was dropped; `let _server = …` keeps it\n"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

/// A program that lives for less than a second was told that it had dropped its server.
#[test]
fn a_server_that_ends_with_its_program_or_is_followed_by_another_is_no_line() {
    for how in ["drops and ends", "drops and serves again"] {
        let (_, stderr) = run(&[FREE, ("ENVIRONMENT_TEST_CHILD", how)]);
        assert_eq!(stderr, "", "{how}");
    }
}

#[test]
fn every_setting_is_taken() {
    let said = run(&[
        FREE,
        ("HEAPGAUGE", "on"),
        ("HEAPGAUGE_FRAMES", "7"),
        ("HEAPGAUGE_TOP_N", "5"),
        ("HEAPGAUGE_DELTA_WINDOW", "10s"),
        ("HEAPGAUGE_OLD_AGE", "1m"),
        ("HEAPGAUGE_SAMPLE", "exact"),
        ("HEAPGAUGE_MAX_OVERHEAD", "32MiB"),
        ("HEAPGAUGE_SITE", "nearest"),
        ("HEAPGAUGE_OWN_CRATES", "+tasks,-common::cache"),
        ("HEAPGAUGE_LOOK_THROUGH", "+arena,-bytes"),
        ("HEAPGAUGE_EXPOSE", "all"),
        ("HEAPGAUGE_DEBUG_ADDR", "off"),
        ("HEAPGAUGE_SOURCE_URL", "https://git.example/{file}#L{line}"),
        // Kubernetes' own, for a Service of that name.
        ("HEAPGAUGE_SERVICE_HOST", "10.0.0.1"),
        ("HEAPGAUGE_PORT", "tcp://10.0.0.1:9898"),
    ]);
    assert_eq!(said, (format!("tracing=true frames=7\n{SERVED}"), String::new()));
}

#[test]
fn what_is_wrong_is_a_line_each_and_the_default() {
    let (stdout, stderr) = run(&[FREE, ("HEAPGAUGE_TOP_N", "many"), ("HEAPGAUGE_COLOUR", "red")]);
    assert_eq!(stdout, format!("tracing=true frames=32\n{SERVED}"));
    assert_eq!(
        stderr,
        "heapgauge: HEAPGAUGE_COLOUR is unknown, allowed are HEAPGAUGE, HEAPGAUGE_ADDR, HEAPGAUGE_TOP_N, \
         HEAPGAUGE_DELTA_WINDOW, HEAPGAUGE_OLD_AGE, HEAPGAUGE_FRAMES, HEAPGAUGE_SAMPLE, HEAPGAUGE_MAX_OVERHEAD, \
         HEAPGAUGE_RECLAIM, HEAPGAUGE_MEMORY_LIMIT, HEAPGAUGE_RELEASE, HEAPGAUGE_SITE, \
         HEAPGAUGE_OWN_CRATES, HEAPGAUGE_LOOK_THROUGH, HEAPGAUGE_EXPOSE, HEAPGAUGE_DEBUG_ADDR, \
         HEAPGAUGE_SOURCE_URL, HEAPGAUGE_QUIET, HEAPGAUGE_DUMP_DIR, HEAPGAUGE_DUMP_AT, HEAPGAUGE_DUMP_KEEP, \
         HEAPGAUGE_DUMP_MAX_BYTES, HEAPGAUGE_DUMP_SIGNAL, HEAPGAUGE_TERMINATION_LOG\n\
         heapgauge: HEAPGAUGE_TOP_N=many: allowed are 1 to 25, taking 16\n"
    );
}

#[test]
fn an_address_in_use_is_a_line_and_the_program_goes_on() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let (stdout, stderr) = run(&[("HEAPGAUGE_ADDR", &addr)]);
    assert_eq!(stdout, "tracing=true frames=32\nno server\n");
    assert_eq!(
        stderr,
        format!(
            "heapgauge: HEAPGAUGE_ADDR={addr}: serve: cannot listen on {addr}: Address already in use (os error 98)\n"
        )
    );
}

#[test]
fn an_unusable_host_is_a_line_and_the_program_goes_on() {
    let (stdout, stderr) = run(&[("HEAPGAUGE_ADDR", "no host at all:0")]);
    assert_eq!(stdout, "tracing=true frames=32\nno server\n");
    assert!(
        stderr.starts_with("heapgauge: HEAPGAUGE_ADDR=no host at all:0: serve: no address to listen on, "),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 1);
}

/// A program that wants to end where its server cannot be started gets an error, and nothing is on stderr.
#[test]
fn from_env_leaves_the_decision_to_the_program() {
    let decides = ("ENVIRONMENT_TEST_CHILD", "decides");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let (stdout, stderr) = run(&[decides, ("HEAPGAUGE_ADDR", &addr)]);
    let line = format!("tracing=true HEAPGAUGE_ADDR={addr}: serve: cannot listen on {addr}: ");
    assert!(stdout.starts_with(&line) && stdout.ends_with(" Some(Io)\n"), "{stdout}");
    assert_eq!(stderr, "");
    let (stdout, _) = run(&[decides, FREE, ("HEAPGAUGE", "off")]);
    assert_eq!(stdout, "tracing=false server=false None\n");
}

/// A restart by `exec` keeps the process, and its counters begin anew: `changes()` has to see it.
#[cfg(target_os = "linux")]
#[test]
fn an_exec_moves_the_start() {
    use std::os::unix::process::CommandExt;
    let started = || {
        let since = heapgauge::Collector::new().collect().started_at.duration_since(std::time::UNIX_EPOCH);
        since.unwrap().as_secs_f64()
    };
    let again = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "environment::an_exec_moves_the_start", "--nocapture"]);
        command
    };
    match std::env::var("START_TEST_CHILD").as_deref() {
        Ok("first") => {
            println!("\nstarted {}", started());
            std::thread::sleep(std::time::Duration::from_millis(1_500));
            panic!("{}", again().env("START_TEST_CHILD", "second").exec());
        }
        Ok(_) => println!("\nstarted {}", started()),
        Err(_) => {
            let output = again().env("START_TEST_CHILD", "first").output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let stdout = String::from_utf8(output.stdout).unwrap();
            let starts: Vec<f64> = stdout
                .lines()
                .filter_map(|line| line.strip_prefix("started "))
                .map(|start| start.parse().unwrap())
                .collect();
            assert_eq!(starts.len(), 2, "{stdout}");
            assert!(starts[1] - starts[0] >= 1.4, "{starts:?}");
        }
    }
}
