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
        .args(["build", "--quiet", "--locked", "--release", "--message-format", "short"])
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

/// The first error in one line, with the lines that belong to it.
fn reason(stderr: &str) -> String {
    let mut lines = stderr.lines().map(str::trim).skip_while(|line| !line.contains("error"));
    let first = lines.next().unwrap_or("cargo says nothing").trim_start_matches("error: ");
    if !first.ends_with(':') {
        return first.to_string();
    }
    let rest: Vec<&str> = lines.take_while(|line| !line.is_empty() && !line.contains(": ")).collect();
    format!("{first} {}", rest.join(", "))
}
