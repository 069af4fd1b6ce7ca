#!/usr/bin/env python3
"""Checks the licence of every crate that a program may compile for heapgauge, with all its features, against deny.toml.

Reads the SPDX expressions of `cargo metadata`. `cargo deny check` does the same, and more, where it is installed.
"""

import json
import pathlib
import re
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent


def allowed(expression, licences):
    """Tells whether an SPDX expression can be met by these licences: AND binds closer than OR, WITH belongs to its licence."""
    words = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))

    def either():
        met = both()
        while words and words[0] == "OR":
            words.pop(0)
            met = both() or met
        return met

    def both():
        met = one()
        while words and words[0] == "AND":
            words.pop(0)
            met = one() and met
        return met

    def one():
        word = words.pop(0)
        if word == "(":
            met = either()
            assert words.pop(0) == ")", expression
            return met
        if words and words[0] == "WITH":
            word = f"{word} WITH {words[1]}"
            del words[:2]
        return word in licences

    met = either()
    assert not words, expression
    return met


def main():
    licences = set(tomllib.loads((ROOT / "deny.toml").read_text())["licenses"]["allow"])
    for expression, met in [("MIT", True), ("MIT OR GPL-3.0", True), ("MIT AND GPL-3.0", False), ("GPL-3.0/MIT", True),
                            ("(GPL-3.0 OR MIT) AND ISC", True), ("GPL-3.0 OR MIT AND GPL-2.0", False),
                            ("Apache-2.0 WITH LLVM-exception", False)]:
        assert allowed(expression, {"MIT", "ISC", "Apache-2.0"}) == met, expression
    metadata = json.loads(subprocess.run(["cargo", "metadata", "-q", "--locked", "--all-features", "--format-version=1"],
                                         cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    # Dependencies of tests and examples are not what a user compiles.
    reached, waiting = set(), [metadata["resolve"]["root"]]
    while waiting:
        package = waiting.pop()
        if package not in reached:
            reached.add(package)
            waiting += [dependency["pkg"] for dependency in nodes[package]["deps"]
                        if any(kind["kind"] != "dev" for kind in dependency["dep_kinds"])]
    wrong = [f"{packages[package]['name']} {packages[package]['version']}: {packages[package]['license']}"
             for package in sorted(reached) if not allowed(packages[package]["license"] or "unknown", licences)]
    print(f"licences of {len(reached)} crates: {len(wrong)} that deny.toml does not allow", *wrong, sep="\n")
    sys.exit(1 if wrong or len(reached) < 50 else 0)


main()
