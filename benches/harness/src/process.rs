//! A binary, a workload and a time → the JSON line the process prints, or why there is none.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub enum Outcome {
    Said(Value),
    Failed(String),
}

/// Runs one process to its end, or ends it after `limit`.
pub fn run(binary: &Path, workload: &str, milliseconds: u64, limit: Duration) -> Outcome {
    let child = Command::new(binary)
        .args([workload, &milliseconds.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return Outcome::Failed(format!("it cannot be started: {error}")),
    };
    // What it writes (a line, or a panic) fits into a pipe, so nobody needs to read along.
    let begin = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(_)) => break,
            Ok(None) if begin.elapsed() < limit => std::thread::sleep(Duration::from_millis(2)),
            Ok(None) => {
                let ended = child.kill().and_then(|()| child.wait());
                let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
                return Outcome::Failed(format!("not done after {} s ({how})", limit.as_secs()));
            }
            Err(error) => return Outcome::Failed(format!("waiting for it: {error}")),
        }
    }
    let output = match child.wait_with_output() {
        Ok(output) => output,
        Err(error) => return Outcome::Failed(format!("reading from it: {error}")),
    };
    let stdout = String::from_utf8_lossy(&output.stdout);
    match stdout.lines().last().map(serde_json::from_str) {
        Some(Ok(said)) if output.status.success() => Outcome::Said(said),
        _ => {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let why = stderr.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("says nothing");
            Outcome::Failed(format!("{why} ({})", output.status))
        }
    }
}
