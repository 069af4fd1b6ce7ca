#!/usr/bin/env python3
"""Counts the instructions of the hot paths with callgrind, and compares them with `instructions/counts.toml`.

A count does not depend on the machine's load, and hardly on the machine. Each path of `instructions/` is taken N
times and 2 N times, each in a process of its own; what lies between the two counts, divided by N, is one event, whatever
the process does beside. The environment is fixed, addresses are valgrind's, random numbers and time are the program's own.

Two stack layouts may fall into one slot of their cache, by the addresses of a build: an event is 7 instructions longer then. So
the program is built by a path that is the same for every working tree, and its code is the same to the byte.

    tests/instructions.py            counts and compares all paths
    tests/instructions.py free new   those whose names hold one of the words
    tests/instructions.py --renew    writes what is counted to the table: for a change that is meant, in the same commit
"""

import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "tests" / "instructions"
KEPT = PROGRAM / "counts.toml"
# The working tree, by a path that does not depend on where it is.
PLACE = pathlib.Path(tempfile.gettempdir(), "heapgauge-instructions")
# The variants have the same dependencies, built in the same way.
TARGET = ROOT / "target" / "variants"

# Allowed change of a count, without a message: two builds of the same sources differ by less.
BOUND = 0.01
# Allowed rise with another compiler or C library than that of the kept counts.
BOUND_ELSEWHERE = 0.25

HEAD = """\
# Instructions of one event of each path of tests/instructions, by the compiler, the target and the C library that they
# were counted with. `tests/instructions.py --renew` writes the table of those that it finds.
"""


def run(command, **settings):
    """Runs a command that must succeed. Returns its output and error."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **settings)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return done.stdout, done.stderr


def build():
    """Builds the program by PLACE: the lengths of paths move the addresses by which cache slots are chosen."""
    PLACE.unlink(missing_ok=True)
    PLACE.symlink_to(ROOT)
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("HEAPGAUGE", "CARGO_PROFILE", "CARGO_BUILD", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"))}
    run(["cargo", "build", "--release", "--locked", "--manifest-path", PLACE / "tests" / "instructions" / "Cargo.toml"],
        env={**kept, "CARGO_TARGET_DIR": str(TARGET), "CARGO_INCREMENTAL": "0"})
    return TARGET / "release" / "instructions"


def toolchain():
    """Returns compiler, target and C library, on which counts depend."""
    rustc = run(["rustc", "--version"])[0].strip()
    host = re.search(r"^host: (.*)$", run(["rustc", "--version", "--verbose"])[0], re.M)[1]
    library = " ".join(platform.libc_ver()).strip() or "an unknown C library"
    return f"{rustc}, {host}, {library}"


def architecture(named):
    return named.split(", ")[1].split("-")[0]


def paths(program):
    """Returns by name how often a path is taken, and its one counted function, if not all are counted."""
    lines = [line.split("\t") for line in run([program])[0].splitlines()]
    return {name: (int(count), within) for name, count, within in lines}


def collected(program, name, count, within):
    """Counts the instructions of a process that takes a path so many times."""
    # The C library chooses its `memcpy` by the processor; this makes it the same one everywhere.
    only = {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX2,-AVX,-ERMS"}
    part = [f"--toggle-collect={within}"] if within else []
    _, said = run(["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", *part, program, name, count], env=only)
    return int(re.search(r"Collected : (\d+)", said)[1])


def count(program, wanted):
    """Returns the instructions of one event by name."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # The longest first: paths that read names.
        jobs = {name: [pool.submit(collected, program, name, factor * times, within) for factor in (1, 2)]
                for name, (times, within) in reversed(wanted.items())}
    return {name: (jobs[name][1].result() - jobs[name][0].result()) / wanted[name][0] for name in wanted}


def read_kept():
    return tomllib.loads(KEPT.read_text()) if KEPT.exists() else {}


def write_kept(tables):
    text = HEAD
    for named, counts in sorted(tables.items()):
        text += f'\n["{named}"]\n' + "".join(f'"{name}" = {now:.2f}\n' for name, now in counts.items())
    KEPT.write_text(text)


def comparable(tables, here):
    """Returns the kept counts and their allowed rise. Prints a line if they are of other tools."""
    if here in tables:
        print(f"Compared with counts of {here}.")
        return tables[here], BOUND
    others = [named for named in tables if architecture(named) == architecture(here)]
    assert others, (f"{KEPT.relative_to(ROOT)} holds no counts for {architecture(here)}: nothing to compare with. "
                    f"On a tree that is known to be good, `tests/instructions.py --renew` writes them.")
    # A table of this compiler with another C library is preferred to the reverse.
    other = max(others, key=lambda named: (named.split(", ")[0] == here.split(", ")[0], named))
    print(f"No counts are kept of {here}.\nCompared with those of {other}, and up to {BOUND_ELSEWHERE:.0%} more is taken "
          f"for the tools' doing, so that a small rise is not seen here.")
    return tables[other], BOUND_ELSEWHERE


def compare(kept, now, bound):
    """Prints the changes, and how many rows passed and failed."""
    failed, changed = 0, []
    for name in {**kept, **now}:
        if name not in now or name not in kept:
            failed += 1
            changed.append((name, kept.get(name), now.get(name), "FAILED: in the table or the program alone"))
            continue
        change = now[name] / kept[name] - 1
        # The table has two decimals.
        if now[name] - kept[name] * (1 + bound) > 0.005:
            failed += 1
            changed.append((name, kept[name], now[name], f"{change:+.2%} FAILED"))
        elif kept[name] * (1 - bound) - now[name] > 0.005:
            changed.append((name, kept[name], now[name], f"{change:+.2%} fell"))
    if changed:
        def cell(value):
            return "-" if value is None else f"{value:.2f}"

        print(f"{'path':<46} {'kept':>12} {'now':>12}  change")
        for name, before, after, what in changed:
            print(f"{name:<46} {cell(before):>12} {cell(after):>12}  {what}")
        print("Where it is meant: `tests/instructions.py --renew`, in the same commit, which says why.")
    print(f"{len({**kept, **now}) - failed} passed, {failed} failed")
    return failed


def main():
    words = [word for word in sys.argv[1:] if word != "--renew"]
    program, here = build(), toolchain()
    every = paths(program)
    wanted = {name: path for name, path in every.items() if not words or any(word in name for word in words)}
    assert wanted, f"no path has {' or '.join(words)} in its name; there are: {', '.join(every)}"
    tables = read_kept()
    if "--renew" in sys.argv[1:]:
        now = count(program, wanted)
        before = tables.get(here, {})
        tables[here] = {name: now.get(name, before.get(name)) for name in every if name in now or name in before}
        write_kept(tables)
        print(f"{len(now)} counts of {here} written to {KEPT.relative_to(ROOT)}")
        return
    kept, bound = comparable(tables, here)
    now = count(program, wanted)
    if words:
        kept = {name: value for name, value in kept.items() if name in wanted}
    sys.exit(1 if compare(kept, now, bound) else 0)


if __name__ == "__main__":
    try:
        main()
    except AssertionError as problem:
        sys.exit(f"FAILED: {problem}")
