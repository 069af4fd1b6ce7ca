#!/usr/bin/env python3
"""Counts the crates that a program compiles for heapgauge: without features, by default, and beside axum and serde_json.

Counted by `cargo tree -e normal,build --prefix none | sort -u`, heapgauge itself included.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
WITHOUT_FEATURES, BY_DEFAULT, ADDED_TO_A_SERVICE = 30, 85, 50
SERVICE = """
[package]
name = "service"
version = "0.0.0"
edition = "2024"

[workspace]

[dependencies]
axum = "0.8"
serde_json = "1"
"""


def crates(folder, *options):
    tree = subprocess.run(["cargo", "tree", "-q", "-e", "normal,build", "--prefix", "none", *options], cwd=folder,
                          stdout=subprocess.PIPE, text=True, check=True)
    return {line.removesuffix(" (*)") for line in tree.stdout.splitlines()} - {f"service v0.0.0 ({folder})"}


def service(folder, dependency=""):
    """Returns the crates of a service with these dependencies, in the versions of the lock file of this repository."""
    (folder / "src").mkdir(parents=True)
    (folder / "src/main.rs").write_text("fn main() {}\n")
    (folder / "Cargo.toml").write_text(SERVICE + dependency)
    shutil.copy(ROOT / "Cargo.lock", folder)
    return crates(folder)


def main():
    with tempfile.TemporaryDirectory(prefix="heapgauge-crate-counts-") as folder:
        folder = pathlib.Path(folder)
        before = service(folder / "without")
        after = service(folder / "with", f"heapgauge = {{ path = '{ROOT}' }}\n")
    counted = [("without features", len(crates(ROOT, "--locked", "--no-default-features")), WITHOUT_FEATURES),
               ("by default", len(crates(ROOT, "--locked")), BY_DEFAULT),
               ("added to a service with axum and serde_json", len(after - before), ADDED_TO_A_SERVICE)]
    print("crates: " + ", ".join(f"{count} {what} (at most {bound})" for what, count, bound in counted))
    sys.exit(0 if all(count <= bound for _, count, bound in counted) else 1)


main()
