#!/usr/bin/env python3
"""Checks that no allocation or free of a known stack uses a word that another thread writes.

drd, a tool of valgrind, follows each load and store of 64 threads that do nothing but such events at the same time. It reports words
that two threads use without an order between them, one of them to write. That it would is seen in threads that write one word.
"""

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = ROOT / "target" / "variants"
THREADS = 64


def run(command, **settings):
    """Runs a command that must succeed. Returns its output and error."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **settings)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return done.stdout, done.stderr


def conflicts(events):
    """Returns how many conflicts drd reports of threads in these events, and what it says of them."""
    program = TARGET / "release" / "no_sharing"
    printed, said = run(["valgrind", "--tool=drd", "--num-callers=4", program, THREADS, events], env={"PATH": os.environ["PATH"]})
    return int(re.search(r"(\d+) conflicts", printed)[1]), said


def main():
    run(["cargo", "build", "--release", "--locked", "--manifest-path", ROOT / "tests" / "no_sharing" / "Cargo.toml"],
        env={**os.environ, "CARGO_TARGET_DIR": str(TARGET)})
    failed = 0
    for events, expected in (("shared", True), ("exact", False), ("unsampled", False)):
        found, said = conflicts(events)
        passes = (found > 0) == expected
        failed += not passes
        print(f"{'ok' if passes else 'FAILED'}  {THREADS} threads, {events}: {found} conflicts")
        if not passes:
            print(said[-6000:])
    print(f"{3 - failed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    try:
        main()
    except AssertionError as problem:
        sys.exit(f"FAILED: {problem}")
