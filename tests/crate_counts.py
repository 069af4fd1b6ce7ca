#!/usr/bin/env python3
"""Counts the crates that a program compiles for heapgauge: without features, by default, beside axum and serde_json, and as a
dev-dependency for the assertions of `testing`; and those of the program `heapgauge`.

Counted by `cargo tree -e normal,build --prefix none | sort -u`, heapgauge itself included; the last one with `-e normal,build,dev`.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
WITHOUT_FEATURES, BY_DEFAULT, ADDED_TO_A_SERVICE, FOR_TESTS, OF_THE_PROGRAM = 30, 85, 50, 30, 100
PROGRAM = """
[package]
name = "service"
version = "0.0.0"
edition = "2024"

[workspace]

[dependencies]
"""
SERVICE = 'axum = "0.8"\nserde_json = "1"\n'


def crates(folder, *options, edges="normal,build"):
    tree = subprocess.run(["cargo", "tree", "-q", "-e", edges, "--prefix", "none", *options], cwd=folder,
                          stdout=subprocess.PIPE, text=True, check=True)
    return {line.removesuffix(" (*)") for line in tree.stdout.splitlines()} - {f"service v0.0.0 ({folder})"}


def program(folder, dependencies, edges="normal,build"):
    """Returns the crates of a program with these dependencies, in the versions of the lock file of this repository."""
    (folder / "src").mkdir(parents=True)
    (folder / "src/main.rs").write_text("fn main() {}\n")
    (folder / "Cargo.toml").write_text(PROGRAM + dependencies)
    shutil.copy(ROOT / "Cargo.lock", folder)
    return crates(folder, edges=edges)


def main():
    with tempfile.TemporaryDirectory(prefix="heapgauge-crate-counts-") as folder:
        folder = pathlib.Path(folder)
        before = program(folder / "without", SERVICE)
        after = program(folder / "with", SERVICE + f"heapgauge = {{ path = '{ROOT}' }}\n")
        # As the page `docs::leak_tests` says.
        tested = program(folder / "tested", f"[dev-dependencies]\nheapgauge = {{ path = '{ROOT}', default-features = false }}\n",
                         "dev,normal,build")
    counted = [("without features", len(crates(ROOT, "--locked", "--no-default-features")), WITHOUT_FEATURES),
               ("by default", len(crates(ROOT, "--locked")), BY_DEFAULT),
               ("added to a service with axum and serde_json", len(after - before), ADDED_TO_A_SERVICE),
               ("as a dev-dependency", len(tested), FOR_TESTS),
               ("of the program heapgauge", len(crates(ROOT / "cli", "--locked")), OF_THE_PROGRAM)]
    print("crates: " + ", ".join(f"{count} {what} (at most {bound})" for what, count, bound in counted))
    sys.exit(0 if all(count <= bound for _, count, bound in counted) else 1)


main()
