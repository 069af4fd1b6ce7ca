"""Checks the minutes at which each shipped alert fires for simulated processes, by promtool.

A process is simulated minute by minute (live bytes of its sites, restarts, exported sites) and written as the series that
heapgauge exports. `promtool test rules` evaluates the rules once a minute, and for each minute of a case the
firing alerts, with all their labels, must be exactly those listed here. Every case runs with the labels cluster,
namespace and pod, and without. Simulated time: nothing here waits.

    tests/e2e/rules.py           all cases
    tests/e2e/rules.py saw       the cases with `saw` in their name
"""

import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

RULES = pathlib.Path(__file__).resolve().parents[2] / "dashboards" / "rules" / "heapgauge.rules.yml"
MIB = 1 << 20
HOUR = 60
DELTA_WINDOW = 5  # minutes
LEAK, OTHER = "00000000000000aa", "00000000000000bb"
NAMES = {
    LEAK: {"function": "shop::Cache::insert", "file": "src/cache.rs", "line": "42"},
    OTHER: {"function": "shop::parse", "file": "src/parse.rs", "line": "7"},
}


class Process:
    """Describes one scraped process. `sites`: bytes of each at a minute, `None` before it exists. `seen`: first scrape."""

    def __init__(self, minutes, sites, *, base=200, limit=None, unaccounted=lambda t: 50 * MIB, starts=(0,), seen=0,
                 tracking=lambda t: 1, dropped=lambda t: 0, exported=lambda site, t: True, lost=lambda t: 0, cluster="east",
                 instance="10.0.0.7:9898", error=None):
        self.target = {"cluster": cluster, "namespace": "shop", "pod": "cart-0", "job": "cart", "instance": instance}
        self.minutes, self.sites, self.base, self.limit = minutes, sites, base * MIB, limit
        self.unaccounted, self.starts, self.seen, self.tracking = unaccounted, starts, seen, tracking
        self.dropped, self.exported, self.lost = dropped, exported, lost
        self.error = error  # standard error of a site of a sampled process

    def series(self, kubernetes):
        """Returns the exported series for promtool, with or without the labels of Kubernetes."""
        target = target_labels(self.target, kubernetes)

        def line(name, value, **labels):
            text, there = [], False
            for t in range(self.minutes + 1):
                v = value(t) if t >= self.seen else None
                # Prometheus writes a staleness marker when a series is missing from a scrape.
                text.append(repr(v) if v is not None else "stale" if there else "_")
                there = v is not None
            return {"series": name + braces({**target, **labels}), "values": " ".join(text)}

        def start(t):
            return max(s for s in self.starts if s <= t)

        def baseline(t):
            return max(start(t), t - DELTA_WINDOW)

        def held(site, t):
            return self.sites[site](t) or 0

        def live(t):
            return self.base + sum(held(site, t) for site in self.sites)

        yield line("heap_start_timestamp_seconds", lambda t: 60 * start(t))
        yield line("heap_tracking", self.tracking)
        yield line("heap_live_bytes", live)
        yield line("heap_untracked_bytes", lambda t: 0)
        yield line("heap_overhead_bytes", lambda t: 4 * MIB)
        yield line("heap_unnamed_bytes", self.lost, state="lost")
        yield line("heap_unnamed_bytes", lambda t: 90 * MIB if t < 3 else 0, state="pending")
        yield line("heap_resident_bytes", lambda t: live(t) + 4 * MIB + self.unaccounted(t))
        yield line("heap_delta_window_seconds", lambda t: 60 * (t - baseline(t)))
        for reason in ("stacks", "memory", "threads", "series", "reentrant"):
            yield line("heap_dropped_events_total", self.dropped if reason == "stacks" else lambda t: 0, reason=reason)
        if self.limit:
            yield line("heap_memory_limit_bytes", lambda t: self.limit * MIB)
        for site in self.sites:
            def exported(value):
                there = lambda t: self.sites[site](t) is not None and self.exported(site, t) and self.tracking(t)
                return lambda t: value(t) if there(t) else None
            name = {"site": site, "function": NAMES[site]["function"]}
            yield line("heap_site_live_bytes", exported(lambda t: held(site, t)), **name)
            yield line("heap_site_live_delta_bytes", exported(lambda t: held(site, t) - held(site, baseline(t))), **name)
            yield line("heap_site_info", exported(lambda t: 1), site=site, crate="shop", **NAMES[site])
            if self.error:
                yield line("heap_site_live_stderr_bytes", exported(lambda t: self.error(held(site, t))), **name)


def target_labels(labels, kubernetes):
    return labels if kubernetes else {name: labels[name] for name in ("job", "instance")}


def braces(labels):
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


def leak(per_minute, at=0, begin=20 * MIB):
    """Starts at `begin` bytes, and grows every minute from minute `at` on."""
    return lambda t: begin + int(per_minute * max(0, t - at))


def steps(size, every, begin=20 * MIB):
    return lambda t: begin + size * (t // every)


def saw(period, height, begin=20 * MIB):
    """Fills a cache for `period` minutes, then empties it."""
    return lambda t: begin + height * (t % period) // period


def level(value):
    return lambda t: value


def ramp(until, top, at=0, begin=0):
    """Fills from minute `at` for `until` minutes, then stays."""
    return lambda t: begin + (top - begin) * min(max(0, t - at), until) // until


def wobble(value, share, seed=1):
    """Varies around `value` by `share`; the same numbers in every run."""
    dice = random.Random(seed)
    factors = [1 + share * (2 * dice.random() - 1) for _ in range(1000)]
    return lambda t: int(value * factors[t])


def sampled(interval):
    """Returns the standard error of a site of small blocks, one of which is sampled every `interval` bytes."""
    return lambda held: round((held * interval) ** 0.5)


def plus(*parts):
    return lambda t: sum(part(t) for part in parts)


GROWING, EXHAUSTS, EXCEEDS = "HeapSiteGrowing", "HeapSiteExhaustsMemory", "HeapWillExceedLimit"
OUTSIDE, SATURATED, OFF = "HeapGrowsOutsideTracker", "HeapTrackerSaturated", "HeapTrackerOff"
LINES = "HeapLinesLost"
FLAT = level(60 * MIB)


def one(leak_site, minutes=6 * HOUR, **about):
    """Makes a process with the given site and a constant one."""
    return Process(minutes, {LEAK: leak_site, OTHER: FLAT}, **about)


# (name, processes, [(alert, first minute, last minute)]); in east, and at the site LEAK if it is about a site.
CASES = [
    ("sawteeth of 7 to 120 minutes",
     [one(saw(period, 200 * MIB), instance=f"10.0.0.{period}:9898")
      for period in (7, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 70, 80, 90, 100, 110, 120)], []),
    ("flat", [one(level(80 * MIB))], []),
    ("steady leak", [one(leak(MIB))], [(GROWING, 130, 360)]),
    ("slow steady leak", [one(leak(MIB // 4, begin=100 * MIB))], [(GROWING, 130, 360)]),
    ("leak below 5 % of the heap", [one(leak(MIB // 5), base=2000)], []),
    ("leak in steps of ten minutes", [one(steps(10 * MIB, 10))], [(GROWING, 130, 360)]),
    ("leak in steps of half an hour", [one(steps(20 * MIB, 30))], [(GROWING, 145, 360)]),
    ("leak in steps of an hour", [one(steps(40 * MIB, 60))], [(GROWING, 145, 360)]),
    ("one jump to a new level", [one(lambda t: (20 if t < 200 else 150) * MIB)], []),
    ("leak that leaves the exported set now and then",
     [one(leak(MIB), exported=lambda site, t: site != LEAK or t % 45 >= 12)], [(GROWING, 134, 360)]),
    ("leak that leaves the exported set for half an hour",
     [one(leak(MIB), exported=lambda site, t: site != LEAK or t % 80 >= 30)], [(GROWING, 142, 360)]),
    ("leak that is exported eight minutes of fourteen",
     [one(leak(MIB), exported=lambda site, t: site != LEAK or t % 14 < 8)], [(GROWING, 130, 360)]),
    ("level site that leaves the exported set for long",
     [one(level(80 * MIB), exported=lambda site, t: site != LEAK or t % 200 >= 100)], []),
    ("sawtooth that leaves the exported set",
     [one(saw(40, 200 * MIB), exported=lambda site, t: site != LEAK or t % 90 >= 40)], []),
    ("leak under a sawtooth", [one(plus(leak(MIB), saw(20, 40 * MIB)))], [(GROWING, 130, 360)]),
    ("warm-up of half an hour, then a plateau", [one(ramp(30, 300 * MIB))], []),
    ("warm-up of an hour, then a plateau", [one(ramp(60, 300 * MIB))], []),
    ("warm-up, then a plateau that wobbles", [one(lambda t: ramp(60, 300 * MIB)(t) + wobble(10 * MIB, 1)(t))], []),
    ("warm-up of twelve minutes to two thirds of the limit", [one(ramp(12, 350 * MIB), limit=1024)], []),
    ("warm-up of half an hour to half of the limit", [one(ramp(30, 190 * MIB), limit=1024)], []),
    ("warm-up in five minutes to the edge of the limit", [one(ramp(5, 600 * MIB), limit=1024)], []),
    ("level that wobbles", [one(wobble(100 * MIB, 0.2))], []),
    ("shrinking", [one(lambda t: 300 * MIB - t * MIB // 2)], []),
    ("site that first appears in the fourth hour",
     [one(lambda t: leak(MIB, at=180, begin=MIB)(t) if t >= 180 else None)],
     [(GROWING, 235, 360)]),
    ("site that appears and stays level", [one(lambda t: 90 * MIB if t >= 180 else None)], []),
    ("scraping begins in the middle of a long life", [one(leak(MIB), seen=180)], [(GROWING, 310, 360)]),
    ("scraping begins, level site", [one(level(80 * MIB), seen=180)], []),
    ("restarts every hour, warm-up each time",
     [one(lambda t: ramp(20, 300 * MIB)(t % 60), starts=tuple(range(0, 361, 60)))], []),
    ("a restart into more memory", [one(lambda t: (50 if t < 200 else 200) * MIB, starts=(0, 200))], []),
    ("a restart into a slow warm-up",
     [one(lambda t: 20 * MIB if t < 200 else ramp(60, 300 * MIB, at=200, begin=30 * MIB)(t), starts=(0, 200))], []),
    ("leak over a restart", [one(lambda t: leak(MIB)(t if t < 240 else t - 240), starts=(0, 240), minutes=8 * HOUR)],
     [(GROWING, 130, 299), (GROWING, 370, 480)]),
    ("killed every 40 minutes",
     [one(lambda t: leak(18 * MIB)(t % 40), starts=tuple(range(0, 361, 40)), limit=1024)], [(EXHAUSTS, 20, 360)]),
    ("killed every 40 minutes after a quiet day",
     [one(lambda t: 20 * MIB if t < 200 else leak(18 * MIB)((t - 200) % 40), starts=(0, 240, 280, 320, 360), limit=1024)],
     [(EXHAUSTS, 220, 360)]),
    ("fast leak in a large limit", [one(leak(20 * MIB), limit=8192, minutes=390)],
     [(GROWING, 130, 390), (EXCEEDS, 183, 390), (EXHAUSTS, 343, 390)]),
    ("killed every 40 minutes, nothing else in the process",
     [one(lambda t: leak(25 * MIB, begin=0)(t % 40), base=0, unaccounted=level(0), starts=tuple(range(0, 361, 40)),
          limit=1024)],
     [(EXHAUSTS, 28, 360)]),
    # The first filling cannot be told from a leak that will be killed; the later ones can.
    ("sawtooth of 40 minutes under a limit", [one(saw(40, 400 * MIB), limit=1024)], [(EXHAUSTS, 28, 69)]),
    ("sawtooth of 90 minutes under a limit", [one(saw(90, 400 * MIB), limit=1200)], []),
    ("steady leak that wobbles", [one(plus(leak(MIB), wobble(50 * MIB, 0.2)))], [(GROWING, 130, 360)]),
    ("resident memory creeps to the limit", [one(FLAT, unaccounted=leak(MIB, begin=300 * MIB), limit=1024)],
     [(OUTSIDE, 130, 360), (EXCEEDS, 191, 360)]),
    ("unaccounted memory that wobbles", [one(FLAT, unaccounted=wobble(80 * MIB, 0.3))], []),
    ("unaccounted memory in sawteeth", [one(FLAT, unaccounted=saw(50, 200 * MIB))], []),
    ("unaccounted memory after one jump", [one(FLAT, unaccounted=lambda t: (50 if t < 200 else 250) * MIB)], []),
    ("attribution dropped for half an hour", [one(FLAT, dropped=lambda t: 5 * min(max(0, t - 100), 30))],
     [(SATURATED, 116, 159)]),
    ("attribution dropped once", [one(FLAT, dropped=lambda t: 500 if t >= 100 else 0)], []),
    # A burst of drops is over within the quarter of an hour that the alert above waits for; what it lost is not.
    ("lines lost in one burst of drops, read after an hour",
     [one(FLAT, dropped=lambda t: 26 if t >= 100 else 0, lost=lambda t: 60 * MIB if 100 <= t < 160 else 0)],
     [(LINES, 115, 174)]),
    ("lines lost of one byte in a thousand", [one(FLAT, lost=lambda t: MIB // 4)], []),
    ("tracking off for an hour", [one(FLAT, tracking=lambda t: 0 if 100 <= t < 160 else 1)], [(OFF, 110, 164)]),
    # Sampled at 512 KiB. 120 MiB more on 20 MiB: 13 errors. 8 MiB more on 300 MiB: less than one.
    ("steady leak in a sampled process", [one(leak(MIB), error=sampled(MIB // 2))], [(GROWING, 130, 360)]),
    ("chance in a sampled process", [one(leak(MIB // 15, begin=300 * MIB), error=sampled(MIB // 2))], []),
    ("the same growth in an exact process", [one(leak(MIB // 15, begin=300 * MIB))], [(GROWING, 130, 360)]),
    ("slow leak in a sampled process, beyond three errors from minute 182 on",
     [one(lambda t: leak(MIB // 15, begin=40 * MIB)(t) + leak(MIB // 2, at=120, begin=0)(t), base=50,
          error=sampled(MIB // 2))],
     [(GROWING, 192, 360)]),
    ("site that first appears in the fourth hour of a sampled process",
     [one(lambda t: leak(MIB, at=180, begin=MIB)(t) if t >= 180 else None, error=sampled(MIB // 2))],
     [(GROWING, 235, 360)]),
    ("killed every 40 minutes, sampled",
     [one(lambda t: leak(18 * MIB)(t % 40), starts=tuple(range(0, 361, 40)), limit=1024, error=sampled(MIB // 2))],
     [(EXHAUSTS, 20, 360)]),
    # 90 MiB in a window, and three errors of it are 98 MiB or more.
    ("killed every 40 minutes, sampled too seldom to tell",
     [one(lambda t: leak(18 * MIB)(t % 40), starts=tuple(range(0, 361, 40)), limit=1024, error=sampled(8 * MIB))],
     []),
    ("the same pod address in two clusters",
     [one(leak(MIB)), one(level(80 * MIB), cluster="west")], [(GROWING, 130, 360)]),
]


SITE_ALERTS = (GROWING, EXHAUSTS)
FIRING = ('group by (alertname, cluster, namespace, pod, job, instance, site, function, file, line)'
          ' (ALERTS{alertstate="firing"})')


def labels_of(alert, process, kubernetes):
    """Returns the expected labels of an alert, without its severity and the reason of a drop."""
    site = {"site": LEAK, **NAMES[LEAK]} if alert in SITE_ALERTS else {}
    return {**target_labels(process.target, kubernetes), **site}


def case(name, processes, fires, kubernetes):
    """Makes one test of promtool: every series, and the alerts of every minute."""
    def firing(t):
        now = {alert for alert, first, last in fires if first <= t <= last}
        return [{"labels": braces({"alertname": alert, **labels_of(alert, processes[0], kubernetes)}), "value": 1}
                for alert in now]

    return {
        "name": name,
        "interval": "1m",
        "input_series": [series for process in processes for series in process.series(kubernetes)],
        "promql_expr_test": [
            {"expr": FIRING, "eval_time": f"{t}m", "exp_samples": firing(t)} for t in range(processes[0].minutes + 1)],
    }


# alert -> (a case in which it fires, minute, severity, summary, description)
SENTENCES = {
    GROWING: (
        "steady leak", 240, "warning",
        "Heap leak: src/cache.rs:42 in shop::Cache::insert",
        "shop::Cache::insert (src/cache.rs:42) in cart at 10.0.0.7:9898 gains 1MiB per minute. Its lowest level has"
        " risen for two hours and still rises."),
    EXHAUSTS: (
        "killed every 40 minutes", 30, "critical",
        "Out of memory within the hour: src/cache.rs:42 in shop::Cache::insert",
        "shop::Cache::insert (src/cache.rs:42) in cart at 10.0.0.7:9898 gains 18MiB per minute. At this rate it takes"
        " what is left of the memory limit within the hour."),
    EXCEEDS: (
        "resident memory creeps to the limit", 240, "critical",
        "cart at 10.0.0.7:9898 will exceed its memory limit within four hours",
        "The resident memory of cart at 10.0.0.7:9898 has grown for two hours. In four hours it would be 1.078GiB,"
        " which is above the memory limit."),
    OUTSIDE: (
        "resident memory creeps to the limit", 240, "info",
        "cart at 10.0.0.7:9898 grows outside the tracked heap",
        "Resident memory that is neither live blocks nor heapgauge's own grows by 1MiB per minute in cart at"
        " 10.0.0.7:9898: fragmentation, a C library, mmap or thread stacks."),
    SATURATED: (
        "attribution dropped for half an hour", 120, "warning",
        "heapgauge drops attribution in cart at 10.0.0.7:9898 (stacks)",
        "75 allocations in the last quarter of an hour could not be given to a site in cart at 10.0.0.7:9898; reason:"
        " stacks. Totals stay right, the sites show too little."),
    LINES: (
        "lines lost in one burst of drops, read after an hour", 120, "warning",
        "heapgauge has no memory for the lines of cart at 10.0.0.7:9898",
        "The lines of code that hold 60MiB in cart at 10.0.0.7:9898 were not read for want of memory. Totals stay right,"
        " those sites are missing."),
    OFF: (
        "tracking off for an hour", 120, "warning",
        "heapgauge is off in cart at 10.0.0.7:9898",
        "Tracking is stopped or paused in cart at 10.0.0.7:9898: there are no sites, and none of the other heap alerts"
        " can name a line."),
}


def sentence(alert, kubernetes):
    """Makes one test of promtool: the whole alert, word by word."""
    name, minute, severity, summary, description = SENTENCES[alert]
    processes, = (processes for other, processes, _ in CASES if other == name)
    labels = {**labels_of(alert, processes[0], kubernetes), "severity": severity}
    if alert == SATURATED:
        labels["reason"] = "stacks"
    return {
        "name": f"the words of {alert}",
        "interval": "1m",
        "input_series": [series for process in processes for series in process.series(kubernetes)],
        "alert_rule_test": [{
            "eval_time": f"{minute}m", "alertname": alert,
            "exp_alerts": [{"exp_labels": labels, "exp_annotations": {
                "summary": summary, "description": description,
                "runbook_url": f"https://runbooks.example.com/heapgauge/{alert}.md"}}]}],
    }


def promtool(test):
    """Runs promtool on one test. Returns its complaint, empty if the test passes."""
    with tempfile.TemporaryDirectory(prefix="heapgauge-rules-") as directory:
        path = pathlib.Path(directory, "test.yml")  # JSON is YAML
        path.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))
        done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, timeout=120)
    said = "\n".join(line for line in (done.stdout + done.stderr).splitlines() if line.strip())
    return said if done.returncode else ""


def check_rules():
    """`promtool check rules` accepts the file."""
    done = subprocess.run(["promtool", "check", "rules", "--lint=all", "--lint-fatal", RULES],
                          capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr if done.returncode else ""


def main(words):
    tests = []
    for kubernetes in (True, False):
        # Without the labels that tell them apart, two processes at one address would be one.
        tests += [case(name, processes, fires, kubernetes) for name, processes, fires in CASES
                  if kubernetes or len({process.target["cluster"] for process in processes}) == 1]
        tests += [sentence(alert, kubernetes) for alert in SENTENCES]
    tests = [test for test in tests if all(word in test["name"] for word in words)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = {"promtool check rules": check_rules()}
        for test, problem in zip(tests, pool.map(promtool, tests)):
            plain = "cluster=" not in test["input_series"][0]["series"]
            problems[test["name"] + (", plain labels" if plain else "")] = problem
    for name, problem in problems.items():
        print(f"FAILED  {name}\n{problem[:3000]}" if problem else f"ok  {name}")
    failed = sum(problem != "" for problem in problems.values())
    print(f"{len(problems) - failed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
