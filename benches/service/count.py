#!/usr/bin/env python3
"""Counts the instructions of a request, with the scope layer and without, by valgrind's callgrind.

Requests 9,000 to 13,000 of the mix, as the difference of two runs. Left out is the time that the program spends on setting its
clock at the start, which differs from run to run by millions of instructions.

    benches/service/count.py [inside] [fifty]
"""

import collections
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

BENCHES = pathlib.Path(__file__).resolve().parents[1]
FROM, TO = 9_000, 13_000
KINDS = ("heapgauge", "heapgauge-scopes")
CLOCK = re.compile(r"once_cell|quanta|clock_gettime")


def build(kind, directory):
    """Builds the service with this allocator, and returns a copy of the program."""
    subprocess.run(["cargo", "build", "-q", "--release", "--locked", "-p", "service", "--features", kind], cwd=BENCHES, check=True)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", BENCHES / "target"))
    return pathlib.Path(shutil.copy(target / "release" / "service", directory / kind))


def count(program, routes, requests, directory):
    """Returns the instructions of a run, without those that set the clock."""
    out = directory / f"{program.name}.{routes}.{requests}"
    subprocess.run(["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", program, routes, str(requests)],
                   check=True, capture_output=True)
    names, of_function, function, is_call = {}, collections.Counter(), None, False
    for line in out.read_text().splitlines():
        if named := re.match(r"c?fn=(\(\d+\))(?: (.*))?", line):
            names.setdefault(named[1], named[2])
            if line.startswith("fn="):
                function = names[named[1]]
        elif line.startswith("calls="):
            is_call = True
        elif line[:1].isdigit() or line[:1] in ("+", "-", "*"):
            # The line after a call has the cost of the callee.
            of_function[function] += 0 if is_call else int(line.split()[1])
            is_call = False
    return sum(cost for name, cost in of_function.items() if not CLOCK.search(name or ""))


def main(chosen):
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(2) as threads:
        directory = pathlib.Path(directory)
        programs = [build(kind, directory) for kind in KINDS]
        for routes in chosen or ("inside", "fifty"):
            runs = [threads.submit(count, program, routes, requests, directory) for program in programs for requests in (FROM, TO)]
            counts = [run.result() for run in runs]
            plain, scopes = [(counts[at + 1] - counts[at]) / (TO - FROM) for at in (0, 2)]
            print(f"{routes}: {plain:,.0f} instructions a request, {scopes:,.0f} with scopes: {scopes / plain - 1:+.2%}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
