#!/usr/bin/env python3
"""Compares the rows of `examples/compare` with those of CPython's own tracemalloc, on random snapshots.

Usage: tests/e2e/tracemalloc_parity.py PATH-OF-COMPARE [ROUNDS [SEED]]

The same traces are given to both: to compare as snapshot files, to tracemalloc as a Snapshot. Rows must be the
same text in the same order, by file and by line, cumulative or not, for one snapshot and for two.

Two differences are by design and built into the expectation: a traceback is named by its most recent frame
where tracemalloc takes the oldest, and a frame that recurs in a traceback counts once in cumulative rows.
"""
import json
import os
import random
import subprocess
import sys
import tempfile
import tracemalloc

FILES = ["a.rs", "b.rs", "src/cache.rs", "library/alloc/src/vec/mod.rs", "ä.rs", "<unknown>", "z/ö.rs", "A.rs"]
SIZES = [0, 1, 8, 99, 100, 1023, 1024, 5000, 10239, 10240, 102399, 102400, 616765, 10485759, 10485760, 123456789,
         10 ** 12, 10 ** 15]


def random_frames(rng, recursive):
    count = rng.choice([1, 1, 2, 3, 5, 12])
    frames = []
    while len(frames) < count:
        frame = (rng.choice(FILES), rng.choice([0, 1, 2, 5, 9, 10, 578]))
        if recursive or frame not in frames:
            frames.append(frame)
    return tuple(frames)


def random_traces(rng, pool, count):
    """Returns blocks as tracemalloc stores them: (domain, size, frames most recent first, total)."""
    traces = []
    for _ in range(count):
        frames = rng.choice(pool)
        size = rng.choice(SIZES) if rng.random() < 0.5 else rng.randrange(20000)
        traces.append((rng.randrange(3), size, frames, len(frames) + rng.randrange(2)))
    return traces


def write(path, traces, rng):
    """Writes a snapshot file, whose traces are one block or several of the same traceback."""
    file_traces = []
    for domain, size, frames, total in traces:
        same = {"domain": domain, "frames": [{"function": None, "file": f, "line": l} for f, l in frames],
                "total_frames": total}
        last = file_traces[-1] if file_traces else None
        if last and {k: last[k] for k in same} == same and rng.random() < 0.5:
            last["size"] += size
            last["count"] += 1
        else:
            file_traces.append({**same, "size": size, "count": 1})
    snapshot = {"version": 1, "taken_at": 1793000000.25, "traceback_limit": 32, "traces": file_traces}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(snapshot, file, ensure_ascii=rng.random() < 0.5)


def reference(traces, cumulative):
    if not cumulative:
        return tracemalloc.Snapshot(traces, 32)
    once = [(domain, size, tuple(dict.fromkeys(frames)), total) for domain, size, frames, total in traces]
    return tracemalloc.Snapshot(once, 32)


class ByMostRecent:
    """Prints a traceback by its most recent frame; tracemalloc keeps the oldest first."""

    def __enter__(self):
        self.before = tracemalloc.Traceback.__str__
        tracemalloc.Traceback.__str__ = lambda traceback: str(traceback[-1])

    def __exit__(self, *_):
        tracemalloc.Traceback.__str__ = self.before


def main():
    compare, rounds, seed = sys.argv[1], int((sys.argv + ["200"])[2]), int((sys.argv + ["", "1"])[3])
    rng = random.Random(seed)
    keys = {"file": "filename", "line": "lineno", "traceback": "traceback"}
    checked = 0
    with tempfile.TemporaryDirectory() as directory, ByMostRecent():
        old_path, new_path = (os.path.join(directory, name) for name in ("old.json", "new.json"))
        for round_number in range(rounds):
            pool = [random_frames(rng, recursive=round_number % 2 == 1) for _ in range(rng.choice([1, 5, 40]))]
            old = random_traces(rng, pool, rng.choice([0, 1, 10, 300]))
            new = random_traces(rng, pool, rng.choice([0, 1, 10, 300]))
            write(old_path, old, rng)
            write(new_path, new, rng)
            for ours, theirs in keys.items():
                for cumulative in (False, True):
                    if cumulative and ours == "traceback":
                        continue
                    old_snapshot, new_snapshot = reference(old, cumulative), reference(new, cumulative)
                    expected = {
                        (new_path,): new_snapshot.statistics(theirs, cumulative),
                        (old_path, new_path): new_snapshot.compare_to(old_snapshot, theirs, cumulative),
                    }
                    for files, rows in expected.items():
                        arguments = [*files, "--group-by", ours, *(["--cumulative"] if cumulative else [])]
                        printed = subprocess.run([compare, *arguments], check=True, capture_output=True)
                        lines = printed.stdout.decode("utf-8").splitlines()
                        if lines != [str(row) for row in rows]:
                            report(round_number, seed, arguments, lines, rows)
                        checked += len(rows)
    print(f"tracemalloc parity: {checked} rows equal in {rounds} rounds, seed {seed}")


def report(round_number, seed, arguments, lines, rows):
    rows = [str(row) for row in rows]
    for number in range(max(len(lines), len(rows))):
        ours, theirs = (text[number] if number < len(text) else "(none)" for text in (lines, rows))
        if ours != theirs:
            sys.exit(f"round {round_number}, seed {seed}, {' '.join(arguments[-3:])}: row {number} differs\n"
                     f"  ours        {ours}\n  tracemalloc {theirs}")


if __name__ == "__main__":
    main()
