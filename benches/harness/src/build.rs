//! Builds the sides with cargo, or reports the reason of a failure.
//!
//! Bare allocators and heapgauge's sides are built together; each peer alone, because cargo unites the features
//! that packages built together ask of a shared dependency. Sides with frame pointers have a target directory of
//! their own.
//!
//! Bare allocators and heapgauge's sides are linked several times, with their functions in random orders, and each
//! round takes another one. The addresses of the code change a result by up to four percent, in the same way in each process
//! (Mytkowicz, Diwan, Hauswirth, Sweeney 2009: Producing Wrong Data Without Doing Anything Obviously
//! Wrong).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Results;
use crate::sides::{self, Role, Side};

/// Returns the workspace of the benches.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a member lies inside its workspace")
}

fn target(frame_pointers: bool) -> PathBuf {
    let target = root().join("target");
    if frame_pointers { target.join("frame-pointers") } else { target }
}

/// Returns the binary of a round.
pub fn binary(side: &Side, round: u32) -> PathBuf {
    let linked = in_order(side, round % ORDERS);
    if is_linked_in_orders(side) && linked.exists() { linked } else { stock(side) }
}

fn stock(side: &Side) -> PathBuf {
    target(side.frame_pointers).join("release").join(package(side))
}

/// Number of random link orders.
const ORDERS: u32 = 9;

fn is_linked_in_orders(side: &Side) -> bool {
    matches!(side.role, Role::Bare | Role::Heapgauge)
}

fn in_order(side: &Side, order: u32) -> PathBuf {
    target(side.frame_pointers).join("orders").join(format!("{}-{order}", package(side)))
}

/// Links sides in random orders. Removes the binaries of an earlier run first.
fn link_in_orders(sides: &[&'static Side], results: &mut Results) {
    let sides: Vec<_> = sides.iter().filter(|side| is_linked_in_orders(side)).collect();
    eprintln!("        linking {} sides in {ORDERS} orders", sides.len());
    for side in sides {
        let linked = (0..ORDERS).try_for_each(|order| {
            let place = in_order(side, order);
            let _ = std::fs::remove_file(&place);
            let sections = format!("link-arg=-Wl,--shuffle-sections=*={}", order + 1);
            let mut cargo = side_cargo("rustc", side);
            done(cargo.args(["-p", &package(side), "--", "-C", &sections]))?;
            let copied = place.parent().map(std::fs::create_dir_all).transpose();
            copied.and_then(|_| std::fs::copy(stock(side), &place)).map_err(|error| error.to_string())?;
            Ok::<(), String>(())
        });
        if let Err(reason) = linked {
            eprintln!("        {} in the linker's order alone: {reason}", side.name);
            results.notes.insert(side.name, format!("linked in the linker's order alone: {reason}"));
        }
    }
}

fn package(side: &Side) -> String {
    format!("side-{}", side.name)
}

/// Builds all sides, and adds failures and notes to the results.
pub fn all(sides: &[&'static Side], results: &mut Results) {
    link_in_orders(sides, results);
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

/// Returns the binary of the service under this allocator.
pub fn service_binary(name: &str) -> PathBuf {
    target(false).join("services").join(name)
}

/// Builds the service under this allocator: the name of a feature, or `system`.
pub fn service(name: &str) -> Result<(), String> {
    let (mut cargo, target) = match sides::named(name) {
        Some(side) => (side_cargo("build", side), target(side.frame_pointers)),
        None => (stock_cargo("build"), target(false)),
    };
    cargo.args(["-p", "service"]);
    if name != "system" {
        cargo.args(["--features", name]);
    }
    if sides::named(name).is_none() {
        cargo.arg("--target-dir").arg(&target);
    }
    done(&mut cargo)?;
    let place = service_binary(name);
    let copied = place.parent().map(std::fs::create_dir_all).transpose();
    copied
        .and_then(|_| std::fs::copy(target.join("release").join("service"), place))
        .map(|_| ())
        .map_err(|error| error.to_string())
}

fn cargo(sides: &[&Side], any_compiler: bool) -> Result<(), String> {
    let Some(first) = sides.first() else { return Ok(()) };
    let mut cargo = side_cargo("build", first);
    if any_compiler {
        cargo.arg("--ignore-rust-version");
    }
    for side in sides {
        cargo.args(["-p", &package(side)]);
    }
    done(&mut cargo)
}

/// Returns the cargo command of a stock build, without flags from the caller's environment.
fn stock_cargo(command: &str) -> Command {
    let mut cargo = Command::new("cargo");
    cargo
        .args([command, "--quiet", "--release", "--message-format", "short"])
        .current_dir(root())
        .stdout(Stdio::null())
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS");
    cargo
}

/// Returns the cargo command of a stock build of a side.
fn side_cargo(command: &str, side: &Side) -> Command {
    let mut cargo = stock_cargo(command);
    cargo.arg("--target-dir").arg(target(side.frame_pointers));
    if side.frame_pointers {
        cargo.env("RUSTFLAGS", "-C force-frame-pointers=yes");
    }
    cargo
}

fn done(cargo: &mut Command) -> Result<(), String> {
    let output = cargo.output().map_err(|error| format!("cargo: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(reason(&String::from_utf8_lossy(&output.stderr))) }
}

/// Returns the first error in one line, without paths of this machine.
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
