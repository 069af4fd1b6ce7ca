//! Sides → binaries, by `cargo build`, or the reason why there is none.
//!
//! Bare allocators and heapgauge's sides are built together; each peer alone, because cargo unites the features
//! that packages built together ask of a shared dependency. Frame pointers live in a target directory of their
//! own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Results;
use crate::sides::{Role, Side};

/// The workspace of the benches.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a member lies inside its workspace")
}

fn target(frame_pointers: bool) -> PathBuf {
    let target = root().join("target");
    if frame_pointers { target.join("frame-pointers") } else { target }
}

pub fn binary(side: &Side) -> PathBuf {
    target(side.frame_pointers).join("release").join(package(side))
}

fn package(side: &Side) -> String {
    format!("side-{}", side.name)
}

/// Builds all of them; failures and notes go into the results.
pub fn all(sides: &[&'static Side], results: &mut Results) {
    let (together, alone): (Vec<_>, Vec<_>) =
        sides.iter().partition(|side| matches!(side.role, Role::Bare | Role::Heapgauge));
    eprintln!("        building {} sides together", together.len());
    // With a failure in it, each is built alone to see whose it is.
    let apart = if cargo(&together, false).is_ok() { vec![] } else { together };
    for side in apart.into_iter().chain(alone) {
        eprintln!("        building {}", side.name);
        let mut built = cargo(&[side], false);
        if let Err(reason) = &built
            && reason.contains("is not supported by")
        {
            results.notes.insert(side.name, format!("built all the same: {reason}"));
            built = cargo(&[side], true);
        }
        if let Err(reason) = built {
            eprintln!("        {} does not build: {reason}", side.name);
            results.notes.remove(side.name);
            results.failures.insert((side.name, ""), format!("does not build: {reason}"));
        }
    }
}

fn cargo(sides: &[&Side], any_compiler: bool) -> Result<(), String> {
    let Some(first) = sides.first() else { return Ok(()) };
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--quiet", "--release", "--message-format", "short"])
        .arg("--target-dir")
        .arg(target(first.frame_pointers))
        .current_dir(root())
        .stdout(Stdio::null())
        // A stock build, whatever the shell of the caller says.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS");
    if first.frame_pointers {
        cargo.env("RUSTFLAGS", "-C force-frame-pointers=yes");
    }
    if any_compiler {
        cargo.arg("--ignore-rust-version");
    }
    for side in sides {
        cargo.args(["-p", &package(side)]);
    }
    let output = cargo.output().map_err(|error| format!("cargo: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(reason(&String::from_utf8_lossy(&output.stderr))) }
}

/// The first error in one line, without where this machine keeps things.
fn reason(stderr: &str) -> String {
    let is_error = |line: &&str| line.starts_with("error") || line.contains(": error");
    let mut lines = stderr.lines().map(str::trim).skip_while(|line| !is_error(line));
    let first = lines.next().unwrap_or("cargo says nothing").trim_start_matches("error: ");
    let reason = match (first.ends_with(':'), lines.next()) {
        (true, Some(second)) => format!("{first} {second}"),
        _ => first.to_string(),
    };
    let here = root().parent().unwrap_or(root());
    reason.replace(&format!("{}/", here.display()), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_is_the_reason() {
        let stderr =
            "a/lib.rs:2:1: warning: never used\nb/main.rs:1:2: error[E0433]: no `C` in `b`\nerror: could not";
        assert_eq!(reason(stderr), "b/main.rs:1:2: error[E0433]: no `C` in `b`");
    }

    #[test]
    fn a_reason_in_two_lines_is_one() {
        let stderr = "error: rustc 1.95.0 is not supported by the following package:\n  p@0.3.0 requires rustc 1.96\nEither";
        assert_eq!(
            reason(stderr),
            "rustc 1.95.0 is not supported by the following package: p@0.3.0 requires rustc 1.96"
        );
    }
}
