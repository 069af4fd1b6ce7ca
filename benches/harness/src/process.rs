//! Runs one process, or two in turns, and reads the JSON line that each prints.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The line that a process prints at the end of its turn, see `turns` of the workloads.
const OVER: &str = "over";

/// The result of a process, or the reason why there is none.
pub type Outcome = Result<Value, String>;

/// Runs one process to its end, or ends it after `limit`.
pub fn run(binary: &Path, workload: &str, milliseconds: u64, limit: Duration) -> Outcome {
    let mut process = Process::start(binary, &[workload, &milliseconds.to_string()], limit)?;
    process.turn()?;
    process.said()
}

/// Runs two processes to their ends, or ends them after `limit`. They alternate, beginning with the first.
pub fn run_in_turns(
    binaries: [&Path; 2],
    workload: &str,
    milliseconds: u64,
    limit: Duration,
) -> [Outcome; 2] {
    let arguments = [workload, &milliseconds.to_string(), "turns"];
    // The second starts after the first turn of the first.
    let mut processes: [Option<Result<Process, String>>; 2] = [None, None];
    loop {
        let mut is_over = true;
        for (process, binary) in processes.iter_mut().zip(binaries) {
            let process = process.get_or_insert_with(|| Process::start(binary, &arguments, limit));
            let turn = match process {
                Ok(process) if process.last.is_none() => process.turn(),
                _ => continue,
            };
            match turn {
                Ok(is_last) => is_over &= is_last,
                Err(reason) => *process = Err(reason),
            }
        }
        if is_over {
            break;
        }
    }
    processes.map(|process| process.expect("both have been started").and_then(Process::said))
}

/// A started process, killed when dropped.
struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    stderr: Option<JoinHandle<String>>,
    end: Instant,
    limit: Duration,
    /// The line with its result; empty if there is none.
    last: Option<String>,
    has_had_a_turn: bool,
}

impl Process {
    fn start(binary: &Path, arguments: &[&str], limit: Duration) -> Result<Process, String> {
        let mut child = Command::new(binary)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("it cannot be started: {error}"))?;
        let (stdin, stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let mut stderr = child.stderr.take().expect("piped");
        let (send, lines) = channel();
        // These threads end with the process.
        spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| send.send(line))
        });
        let stderr = spawn(move || {
            let mut said = vec![];
            // An error leaves the part that was read.
            let _ = stderr.read_to_end(&mut said);
            String::from_utf8_lossy(&said).into_owned()
        });
        let end = Instant::now() + limit;
        let stderr = Some(stderr);
        Ok(Process { child, stdin, lines, stderr, end, limit, last: None, has_had_a_turn: false })
    }

    /// Runs it until its turn is over. Returns whether it was its last.
    fn turn(&mut self) -> Result<bool, String> {
        if self.has_had_a_turn {
            // An ended process is detected below.
            let _ = self.stdin.write_all(b"\n");
        }
        self.has_had_a_turn = true;
        match self.line()? {
            Some(line) if line == OVER => Ok(false),
            line => {
                self.last = Some(line.unwrap_or_default());
                Ok(true)
            }
        }
    }

    /// Returns the next line of its output; `None` at the end.
    fn line(&mut self) -> Result<Option<String>, String> {
        match self.lines.recv_timeout(self.end.saturating_duration_since(Instant::now())) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                let how = self.kill();
                Err(format!("not done after {} s ({how})", self.limit.as_secs()))
            }
        }
    }

    fn kill(&mut self) -> String {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        ended.map_or_else(|error| error.to_string(), |status| status.to_string())
    }

    /// Returns its result.
    fn said(mut self) -> Outcome {
        // Its output ends when it ends.
        while self.line()?.is_some() {}
        let status = self.child.wait().map_err(|error| format!("waiting for it: {error}"))?;
        match serde_json::from_str(self.last.as_deref().unwrap_or_default()) {
            Ok(said) if status.success() => Ok(said),
            _ => {
                let stderr = self.stderr.take().and_then(|stderr| stderr.join().ok()).unwrap_or_default();
                let why =
                    stderr.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("says nothing");
                Err(format!("{why} ({status})"))
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
