#!/usr/bin/env python3
"""Checks that a program with much debug information and little memory stays inside heapgauge's limit.

Writes, compiles and runs a program of many sites and of a weight of generic code around them; some 60 MB and 1,000
sites unless told otherwise. The large one, a few minutes:

    tests/e2e/large_binary.py --sites 5000 --heavy 1000 --overhead 64 --memory 128
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys

from support import ROOT, main

WORK = ROOT / "target" / "large"
MIB = 1 << 20

HEAD = """use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

#[global_allocator]
static ALLOC: heapgauge::TrackingAllocator = heapgauge::TrackingAllocator::system();

fn weight<const N: usize>() {
    let mut tree: BTreeMap<[u8; N], Vec<[u8; N]>> = BTreeMap::new();
    let mut map: HashMap<[u8; N], u32> = HashMap::new();
    let mut list: Vec<[u8; N]> = Vec::new();
    for n in 0..black_box(3u8) {
        tree.entry([n; N]).or_default().push([n; N]);
        *map.entry([n; N]).or_default() += 1;
        list.push([n; N]);
    }
    tree.remove(&[1; N]);
    map.remove(&[1; N]);
    list.sort();
    black_box((&tree.range([0; N]..).next(), &map, &list));
}
"""

MAIN = """
/// The most that heapgauge has held, looked for all the time.
static PEAK: AtomicU64 = AtomicU64::new(0);

fn main() {
    let limit: u64 = std::env::args().nth(1).unwrap().parse().unwrap();
    heapgauge::set_max_overhead(limit).unwrap();
    let collector = heapgauge::Collector::new();
    let kept: Vec<_> = SITES.iter().map(|site| site()).collect();
    std::thread::spawn(|| loop {
        PEAK.fetch_max(heapgauge::tracker_memory(), Ordering::Relaxed);
        std::thread::sleep(std::time::Duration::from_micros(100));
    });
    let begun = std::time::Instant::now();
    let snapshot = heapgauge::Snapshot::take().unwrap();
    let seconds = begun.elapsed().as_secs_f64();
    let report = collector.collect();
    for trace in snapshot.traces() {
        let frame = trace.traceback.most_recent();
        println!("{}\\t{}\\t{}\\t{}\\t{}", frame.name(), frame.file(), frame.line(), trace.size, trace.count);
    }
    println!("# {seconds} {} {} {}", PEAK.load(Ordering::Relaxed), report.dropped.memory, kept.len());
}
"""


def source(sites, heavy):
    """Returns the source, and the allocating line of each site."""
    text = HEAD
    for site in range(sites):
        text += f"#[inline(never)]\nfn site_{site}() -> Box<[u8]> {{\n"
        if site * heavy // sites != (site + 1) * heavy // sites:
            text += f"    if black_box(false) {{ weight::<{site}>() }}\n"
        text += f"    black_box(vec![1; {size_of(site)}].into_boxed_slice())\n}}\n"
    lines = [number for number, line in enumerate(text.splitlines(), 1) if line.startswith("    black_box(vec!")]
    names = ", ".join(f"site_{site}" for site in range(sites))
    return f"{text}static SITES: [fn() -> Box<[u8]>; {sites}] = [{names}];\n{MAIN}", lines


def size_of(site):
    return 16 + site % 64


def heapgauge():
    """Builds the library as a release does."""
    built = subprocess.run(["cargo", "build", "-q", "--release", "--locked", "--all-features", "--lib",
                            "--message-format=json"], cwd=ROOT, capture_output=True, text=True, check=True)
    for message in map(json.loads, built.stdout.splitlines()):
        if message["reason"] == "compiler-artifact" and message["target"]["name"] == "heapgauge":
            return next(pathlib.Path(name) for name in message["filenames"] if name.endswith(".rlib"))
    raise AssertionError("cargo has built no heapgauge")


def build(sites, heavy):
    """Compiles the program. Returns its path and the lines of its sites."""
    WORK.mkdir(parents=True, exist_ok=True)
    text, lines = source(sites, heavy)
    (WORK / "large.rs").write_text(text)
    library = heapgauge()
    dependencies = ROOT / "target" / "release" / "deps"
    # Without optimization: faster to compile, and larger.
    subprocess.run(["rustc", "--edition", "2024", "-C", "opt-level=0", "-C", "debuginfo=line-tables-only",
                    "-C", "codegen-units=64", "--extern", f"heapgauge={library}", "-L", f"dependency={dependencies}",
                    "large.rs", "-o", "large"], cwd=WORK, check=True)
    return WORK / "large", lines


class Outcome:
    """Runs the program with this limit of heapgauge's, under this limit of the system."""

    def __init__(self, overhead, limit=None):
        def before():
            if limit:
                resource.setrlimit(limit[0], (limit[1], limit[1]))

        ended = subprocess.run([PROGRAM, str(overhead)], cwd=WORK, capture_output=True, text=True, timeout=300,
                               preexec_fn=before, env={**os.environ, "HEAPGAUGE": "on"})
        assert ended.returncode == 0, (ended.returncode, ended.stderr[-2000:])
        *traces, last = ended.stdout.splitlines()
        self.traces = [trace.split("\t") for trace in traces]
        seconds, self.peak, self.dropped, kept = last.removeprefix("# ").split()
        self.seconds, self.peak, self.dropped = float(seconds), int(self.peak), int(self.dropped)
        assert int(kept) == ARGUMENTS.sites
        # No byte is lost, with or without names.
        blocks = sum(int(count) for *_, count in self.traces)
        size = sum(int(size) for *_, size, _ in self.traces)
        assert blocks >= ARGUMENTS.sites and size >= sum(map(size_of, range(ARGUMENTS.sites))), (blocks, size)

    def by_line(self):
        """Returns the sites that have their function, file, line and exactly their block."""
        expected = {(f"large::site_{site}", "large.rs", str(line), str(size_of(site)), "1")
                    for site, line in enumerate(LINES)}
        return len(expected & {tuple(trace) for trace in self.traces})

    def by_function(self):
        expected = {(f"large::site_{site}", str(size_of(site)), "1") for site in range(ARGUMENTS.sites)}
        return len(expected & {(name, size, count) for name, _, _, size, count in self.traces})

    def by_offset(self):
        return sum(name.startswith("large+0x") for name, *_ in self.traces)

    def show(self, what):
        print(f"{what}: {self.by_line()} sites by line, {self.by_function()} by function, {self.by_offset()} by "
              f"offset, {self.peak / MIB:.1f} MiB held at most, {self.seconds:.2f} s", flush=True)
        return self


def room_enough():
    """With enough memory every site has its line, and nothing is dropped."""
    outcome = Outcome(1 << 30).show("room enough")
    assert outcome.by_line() == ARGUMENTS.sites and outcome.dropped == 0


def in_little_memory():
    """Names have lines inside heapgauge's limit, in a process that may have twice that in all."""
    outcome = Outcome(ARGUMENTS.overhead * MIB, (resource.RLIMIT_DATA, ARGUMENTS.memory * MIB)).show("little memory")
    assert outcome.by_line() == ARGUMENTS.sites
    assert outcome.peak <= ARGUMENTS.overhead * MIB, outcome.peak


def too_little_for_lines():
    """Names are functions of the symbol table, or offsets where that does not fit; the process continues, all is counted."""
    functions = offsets = False
    for tenths in [120, 80, 50, 30, 20, 15, 12, 10]:
        limit = tenths * ARGUMENTS.sites // 1_000 * MIB // 10
        outcome = Outcome(limit, (resource.RLIMIT_DATA, ARGUMENTS.memory * MIB)).show(f"{limit / MIB:.1f} MiB")
        assert outcome.dropped > 0
        # Beyond the limit there are the snapshot that the program keeps, and the tables of one look-up.
        assert outcome.peak <= limit + 2 * MIB, (limit, outcome.peak)
        functions |= outcome.by_line() == 0 and outcome.by_function() == ARGUMENTS.sites
        offsets |= outcome.by_offset() > 0 and outcome.by_function() < ARGUMENTS.sites
    assert functions and offsets


def no_address_space():
    """Where the file cannot be mapped, functions come from its table of symbols, which is read by parts."""
    outcome = Outcome(ARGUMENTS.overhead * MIB, (resource.RLIMIT_AS, ARGUMENTS.memory * MIB)).show("no address space")
    # A small file can still be mapped.
    assert outcome.by_function() == ARGUMENTS.sites


parser = argparse.ArgumentParser()
parser.add_argument("--sites", type=int, default=1_000)
parser.add_argument("--heavy", type=int, default=150)
parser.add_argument("--overhead", type=int, default=48, help="MiB heapgauge may hold")
parser.add_argument("--memory", type=int, default=96, help="MiB of private memory the process may have")
ARGUMENTS = parser.parse_args()
sys.argv[1:] = []
PROGRAM, LINES = build(ARGUMENTS.sites, ARGUMENTS.heavy)
print(f"{PROGRAM.stat().st_size / 1e6:.0f} MB", flush=True)
main([room_enough, in_little_memory, too_little_for_lines, no_address_space])
