#!/usr/bin/env python3
"""Measures the latency of a service with and without heapgauge under load, and the memory of the tracker.

    target/venv/bin/python tests/e2e/soak.py --minutes 15

Both are `leaky_service` without its leak; the second is the same source with the system's allocator and no server. The
same clients use both in turn, two scrapers read the first. Not a step of `tests/run`, because it takes 15 minutes.
"""

import argparse
import http.client
import json
import pathlib
import random
import re
import statistics
import subprocess
import sys
import threading
import time

from support import ROOT, SOURCE, Exposition, Program, get

CLIENTS = 2
ASKS = 40  # a second and client, of each service
WORDS = "heap stack page frame block line leak map tree word list node edge cache index query".split()


def examples():
    """Builds the example as a release does. Returns it and the libraries it was linked from."""
    built = subprocess.run(["cargo", "build", "-q", "--release", "--locked", "--all-features", "--example", "leaky_service",
                            "--message-format=json"], cwd=ROOT, capture_output=True, text=True, check=True)
    program, libraries = None, {}
    for message in map(json.loads, built.stdout.splitlines()):
        if message["reason"] != "compiler-artifact":
            continue
        if message["executable"]:
            program = pathlib.Path(message["executable"])
        for name in message["filenames"]:
            if name.endswith((".rlib", ".so")):
                libraries[message["target"]["name"].replace("-", "_")] = name
    return program, libraries


def without(libraries):
    """Compiles the same program without the tracking allocator."""
    text = (ROOT / SOURCE).read_text()
    plain, times = re.subn(r"static ALLOC: heapgauge::TrackingAllocator = .*;", "static ALLOC: std::alloc::System = "
                           "std::alloc::System;", text)
    assert times == 1, f"{SOURCE} has no allocator to replace"
    work = ROOT / "target" / "soak"
    work.mkdir(parents=True, exist_ok=True)
    (work / "plain.rs").write_text(plain)
    used = set(re.findall(r"\b([a-z_0-9]+)::", plain)) & set(libraries)
    externs = [word for name in sorted(used) for word in ("--extern", f"{name}={libraries[name]}")]
    subprocess.run(["rustc", "--edition", "2024", "-C", "opt-level=3", "-C", "debuginfo=line-tables-only",
                    "-L", f"dependency={ROOT}/target/release/deps", *externs, "plain.rs", "-o", "plain"],
                   cwd=work, check=True)
    return work / "plain"


class Side:
    """One of the two services, with the times of its answers."""

    def __init__(self, name, process):
        self.name, self.process = name, process
        line = process.wait_line(r"^documents are served at http://127\.0\.0\.1:(\d+)/")
        self.port = int(line[1][1])
        self.seconds = []

    def ask(self, connection, method, path, body=None):
        begun = time.perf_counter()
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (200, 201), (self.name, method, path, answer.status)
        return time.perf_counter() - begun

    def resident(self):
        status = pathlib.Path(f"/proc/{self.process.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024

    def quantile(self, part):
        ordered = sorted(self.seconds)
        return ordered[min(int(len(ordered) * part), len(ordered) - 1)] * 1e3


def client(sides, end, seed, problems):
    """Sends requests to both in turn, in random order, at a bounded rate."""
    chance = random.Random(seed)
    connections = {side: http.client.HTTPConnection("127.0.0.1", side.port, timeout=30) for side in sides}
    try:
        at = time.monotonic()
        while time.monotonic() < end:
            text = " ".join(chance.choices(WORDS, k=400))
            document = json.dumps({"title": "a", "author": "b", "tags": chance.choices(WORDS, k=8), "text": text})
            question = "+".join(chance.sample(WORDS, 2))
            for side in chance.sample(sides, len(sides)):
                taken = [side.ask(connections[side], "POST", "/documents", document),
                         side.ask(connections[side], "GET", f"/search?q={question}")]
                side.seconds += taken
            at += 2 / ASKS
            time.sleep(max(0.0, at - time.monotonic()))
    except Exception as problem:  # shown at the end
        problems.append(repr(problem))


def scraper(port, every, end, problems, series):
    """Scrapes like Prometheus, and keeps the memory of the tracker."""
    try:
        while time.monotonic() < end:
            metrics = Exposition(get(port, "/metrics").body)
            series.append((time.monotonic(), metrics.value("heap_overhead_bytes"), metrics.value("heap_live_bytes")))
            time.sleep(every)
    except Exception as problem:
        problems.append(repr(problem))


def main(minutes):
    program, libraries = examples()
    plain = without(libraries)
    flags = ["--quiet-traffic", "--leak-rate", "0", "--listen", "127.0.0.1:0"]
    with Program([program, *flags]) as tracked, Program([plain, *flags], {"HEAPGAUGE": "off"}) as bare:
        sides = [Side("with heapgauge", tracked), Side("without", bare)]
        port = int(tracked.wait_line(r"^listening on http://127\.0\.0\.1:(\d+)$")[1][1])
        began, problems, series, other = time.monotonic(), [], [], []
        end = began + minutes * 60
        threads = [threading.Thread(target=client, args=(sides, end, seed, problems)) for seed in range(CLIENTS)]
        threads += [threading.Thread(target=scraper, args=(port, every, end, problems, into))
                    for every, into in [(5.0, series), (3.7, other)]]
        resident = []
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(1)
            if time.monotonic() < end:
                resident.append([side.resident() for side in sides])
        assert not problems, problems
        overhead = [bytes for _, bytes, _ in series]
        third = max(len(overhead) // 3, 1)
        # Stacks, names and baselines are new in the first third.
        middle, last = overhead[third:2 * third], overhead[2 * third:]
        for side in sides:
            print(f"{side.name}: {len(side.seconds)} answers, p50 {side.quantile(0.5):.2f} ms, "
                  f"p99 {side.quantile(0.99):.2f} ms, p99.9 {side.quantile(0.999):.2f} ms")
        for at, side in enumerate(sides):
            steady = [row[at] for row in resident[len(resident) // 3:]]
            print(f"{side.name}: {statistics.median(steady) / 2**20:.2f} MiB of private memory, "
                  f"{min(steady) / 2**20:.2f} to {max(steady) / 2**20:.2f}")
        print(f"the tracker: {len(series)} and {len(other)} scrapes, {statistics.median(middle) / 2**20:.3f} MiB in the "
              f"middle, {statistics.median(last) / 2**20:.3f} MiB at the end, {max(overhead) / 2**20:.3f} at most")
        grown = statistics.median(last) / statistics.median(middle)
        assert grown < 1.02, f"what the tracker holds has grown by {grown - 1:.1%}"
        ratio = sides[0].quantile(0.99) / sides[1].quantile(0.99)
        print(f"p99 with heapgauge / without: {ratio:.2f}")
        assert tracked.stop() == 0 and bare.stop() == 0


parser = argparse.ArgumentParser()
parser.add_argument("--minutes", type=float, default=15)
main(parser.parse_args(sys.argv[1:]).minutes)
