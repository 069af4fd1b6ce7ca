#!/usr/bin/env python3
"""Compiles the library against the lowest versions that Cargo.toml allows, with all features and with none; and holds its
`rust-version` to the lowest that those dependencies allow.

The copy in target/minimal-versions has no tests and examples, so that their dependencies do not raise the versions. The option of
cargo that resolves them is unstable: RUSTC_BOOTSTRAP=1 for that command alone.
"""

import json
import os
import re
import shutil
import subprocess
import sys

from first_build import ROOT

FOLDER = ROOT / "target" / "minimal-versions"


def manifest():
    """Returns the manifest of the library alone."""
    text = (ROOT / "Cargo.toml").read_text()
    text = re.sub(r"^\[dev-dependencies\]\n.*?(?=^\[)", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^\[\[(?:example|test)\]\]\n(?:.+\n)+", "", text, flags=re.MULTILINE)
    text = re.sub(r"^members = .*$", "members = []", text, flags=re.MULTILINE)
    # Of a crate that only tests have.
    return re.sub(r"^\[profile\.dev\.package\.tikv-jemalloc-sys\]\n(?:.+\n)+", "", text, flags=re.MULTILINE)


def number(version):
    """Returns a version of Rust as numbers that compare."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def check_rust_version(environment):
    """The `rust-version` is the highest of those of the direct dependencies. clippy refuses what is newer in the standard library."""
    command = ["cargo", "metadata", "--locked", "--format-version=1", "--all-features"]
    found = json.loads(subprocess.run(command, cwd=FOLDER, check=True, env=environment, stdout=subprocess.PIPE).stdout)
    packages = {package["id"]: package for package in found["packages"]}
    nodes = {node["id"]: node for node in found["resolve"]["nodes"]}
    library = found["resolve"]["root"]
    needed = {packages[name]["name"]: packages[name]["rust_version"] for name in nodes[library]["dependencies"]}
    highest = max((number(version), name) for name, version in needed.items() if version)
    assert number(packages[library]["rust_version"]) == highest[0], (packages[library]["rust_version"], highest)
    print(f"rust-version {packages[library]['rust_version']} is the one that {highest[1]} needs")


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "Cargo.toml").write_text(manifest())
    (FOLDER / "Cargo.lock").unlink(missing_ok=True)
    for name in ("README.md", "src"):
        if (FOLDER / name).is_dir():
            shutil.rmtree(FOLDER / name)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, FOLDER / name)
    environment = {name: value for name, value in os.environ.items() if name not in ("CARGO_TARGET_DIR", "RUSTFLAGS")}
    subprocess.run(["cargo", "update", "-q", "-Z", "direct-minimal-versions"], cwd=FOLDER, check=True,
                   env=environment | {"RUSTC_BOOTSTRAP": "1"})
    check_rust_version(environment)
    for features in ("--all-features", "--no-default-features"):
        subprocess.run(["cargo", "check", "-q", "--locked", "--lib", features], cwd=FOLDER, check=True, env=environment)
    print("the library compiles against the lowest versions that Cargo.toml allows")


if __name__ == "__main__":
    sys.exit(main())
