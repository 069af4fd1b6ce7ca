"""Runs programs under test and other people's tools for the end-to-end tests.

Everything listens on loopback, every wait has an end, and every program started here is stopped here.
"""

import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

from prometheus_client.parser import text_string_to_metric_families

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "target" / "release" / "examples"
HEAPGAUGE = ROOT / "target" / "release" / "heapgauge"
SOURCE = "examples/leaky_service.rs"
MARKER = "// the planted leak"


def leak_line():
    """Returns the line of the planted leak, from the source."""
    lines = (ROOT / SOURCE).read_text().splitlines()
    found = [number for number, line in enumerate(lines, 1) if line.endswith(MARKER)]
    assert len(found) == 1, f"{SOURCE}: {MARKER!r} ends lines {found}, not exactly one"
    return found[0]


def free_port():
    """Returns a port that is free now. Another program may take it first, so its user tries again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def faster(text, speed):
    """Divides every duration (`15m`, `2h`) and the numbers of seconds in the rules by `speed`."""
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400}

    def duration(match):
        return f"{int(match[1]) * seconds[match[2]] * 1000 // speed}ms"

    text = re.sub(r"(?<![\w.:])(\d+)([smhd])(?!\w)", duration, text)
    return re.sub(r"\b(1800|3600|7200|14400)\b", lambda match: str(int(match[1]) / speed), text)


def wait_for(what, condition, seconds=60.0, pause=0.2):
    """Waits for a true value of `condition`, and returns it. Fails with `what` when the time is over."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(pause)


class Program:
    """Runs a process, reads its output line by line, and stops it at the end of the block."""

    def __init__(self, command, env=None):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HEAPGAUGE")}
        self.command = [str(word) for word in command]
        self.lines = []  # (seconds since start, "out" or "err", text)
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            self.command, env={**clean, "HEAPGAUGE_QUIET": "on", **(env or {})}, cwd=ROOT, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.readers = [
            threading.Thread(target=self._read, args=(name, stream), daemon=True)
            for name, stream in [("out", self.process.stdout), ("err", self.process.stderr)]]
        for reader in self.readers:
            reader.start()

    def _read(self, name, stream):
        for line in stream:
            self.lines.append((time.monotonic() - self.started, name, line.rstrip("\n")))

    def said(self, pattern, name=None):
        """Returns the matches of `pattern` in the lines so far, with the seconds of each."""
        found = [(at, re.search(pattern, text)) for at, stream, text in list(self.lines) if name in (None, stream)]
        return [(at, match) for at, match in found if match]

    def wait_line(self, pattern, seconds=60.0):
        def look():
            found = self.said(pattern)
            if not found and self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode} before {pattern!r}:\n{self.output()}")
            return found
        return wait_for(f"{pattern!r} from {self.command}\n{self.output()}", look, seconds)[0]

    def errors(self):
        return [text for _, name, text in list(self.lines) if name == "err"]

    def output(self):
        return "\n".join(f"  {at:6.2f} {name}: {text}" for at, name, text in list(self.lines))

    def stop(self, how=signal.SIGTERM, seconds=10.0):
        """Sends the signal, and returns the exit code. Kills the process and fails if it does not end in time."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.command} did not end within {seconds:.0f} s of {how!r}") from None
        for reader in self.readers:
            reader.join(5)
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for reader in self.readers:
            reader.join(5)


class Service(Program):
    """Runs `leaky_service`, with heapgauge's server on a free port unless the environment names one."""

    def __init__(self, *flags, env=None, program=EXAMPLES / "leaky_service"):
        where = [] if env and "HEAPGAUGE_ADDR" in env else ["--listen", "127.0.0.1:0"]
        super().__init__([program, *where, *flags], env)

    def documents(self):
        """Returns the port of the service."""
        return int(self.wait_line(r"^documents are served at http://127\.0\.0\.1:(\d+)/")[1][1])

    def port(self):
        """Returns the port of heapgauge's server."""
        return int(self.wait_line(r"^listening on http://127\.0\.0\.1:(\d+)$")[1][1])

    def metrics(self):
        return Exposition(get(self.port(), "/metrics").body)

    def named(self, seconds=30.0):
        """Waits until the leaking line is exported, as soon as its name is final."""
        return wait_for("the planted leak among the sites", lambda: self.metrics().site_at(SOURCE, leak_line()), seconds)


class Answer:
    """Reads status, headers and body of one HTTP answer."""

    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.bytes = response.read()

    @property
    def body(self):
        return self.bytes.decode()


def get(port, path, method="GET", headers=None, body=None, seconds=20.0):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        return Answer(connection.getresponse())
    finally:
        connection.close()


class Exposition:
    """Parses one Prometheus text with Prometheus' own Python client."""

    def __init__(self, text):
        self.text = text
        self.families = list(text_string_to_metric_families(text))
        self.samples = [sample for family in self.families for sample in family.samples]

    def value(self, name, **labels):
        found = [sample.value for sample in self.samples if sample.name == name and sample.labels == labels]
        assert len(found) == 1, f"{name}{labels}: {len(found)} samples, not one"
        return found[0]

    def by_site(self, name):
        """Returns the value of each `site`."""
        found = [(sample.labels["site"], sample.value) for sample in self.samples if sample.name == name]
        assert len(found) == len(dict(found)), f"{name}: a site twice"
        return dict(found)

    def info(self):
        """Returns the labels of each `site`."""
        return {s.labels["site"]: s.labels for s in self.samples if s.name == "heap_site_info"}

    def site_at(self, file, line):
        found = [site for site, labels in self.info().items() if (labels["file"], labels["line"]) == (file, str(line))]
        return found[0] if found else None


def fnv1a(function, file, line, via=""):
    """Returns `site` as documented: FNV-1a 64 over function, NUL, file, NUL, line in decimal, and NUL and via behind it."""
    value = 0xCBF29CE484222325
    for byte in f"{function}\0{file}\0{line}{via and chr(0) + via}".encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"


# Three groups of the shipped rules are evaluated every minute, two every second one, and one every fifth.
GROUPS_A_MINUTE = 4.2


class Prometheus(Program):
    """Runs Debian's Prometheus on a free loopback port, with its data in a temporary directory."""

    def __init__(self, config, *flags):
        self.directory = tempfile.TemporaryDirectory(prefix="heapgauge-prometheus-")
        folder = pathlib.Path(self.directory.name)
        (folder / "prometheus.yml").write_text(config)
        self.web = free_port()
        super().__init__([
            "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.web}", *flags])

    def ready(self):
        def look():
            assert self.process.poll() is None, f"prometheus ended:\n{self.output()}"
            try:
                return get(self.web, "/-/ready").status == 200
            except OSError:
                return False
        wait_for("prometheus is ready", look)
        return self

    def query(self, expression):
        """Returns the vector of an instant query: a list of (labels, value)."""
        answer = get(self.web, "/api/v1/query?" + urllib.parse.urlencode({"query": expression}), seconds=120)
        assert answer.status == 200, f"{expression}: {answer.status} {answer.body}"
        return [(row["metric"], float(row["value"][1])) for row in json.loads(answer.body)["data"]["result"]]

    def reload(self):
        """Has it read its configuration and rules again."""
        self.process.send_signal(signal.SIGHUP)

    def processes(self):
        return [self.process]

    def stop_scraping(self):
        pathlib.Path(self.directory.name, "prometheus.yml").write_text("global: {}\n")
        self.reload()

    def rules(self):
        """Returns the rules of all groups, with the time that each took."""
        groups = json.loads(get(self.web, "/api/v1/rules", seconds=60).body)["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def evaluations(self):
        """Returns how often the groups of rules were evaluated since they were loaded, and how often that was due."""
        due = sum(self.figures("prometheus_rule_group_iterations_total"))
        return due - sum(self.figures("prometheus_rule_group_iterations_missed_total")), due

    def figures(self, name):
        """Returns the values of a metric of its own."""
        lines = get(self.web, "/metrics", seconds=60).body.splitlines()
        return [float(line.split()[-1]) for line in lines if line.startswith((name + "{", name + " "))]

    def firing(self):
        """Returns the firing alerts with their labels, values and annotations."""
        alerts = json.loads(get(self.web, "/api/v1/alerts").body)["data"]["alerts"]
        return [alert for alert in alerts if alert["state"] == "firing"]

    def evaluated(self):
        """Returns the share of missed evaluations since the rules were loaded, the failed ones, and the seconds of one."""
        total = sum(self.figures("prometheus_rule_group_iterations_total"))
        missed = sum(self.figures("prometheus_rule_group_iterations_missed_total"))
        spent = sum(self.figures("prometheus_rule_evaluation_duration_seconds_sum"))
        failed = sum(self.figures("prometheus_rule_evaluation_failures_total"))
        return missed / total, failed, spent / max(total / GROUPS_A_MINUTE, 1)

    def __exit__(self, *arguments):
        super().__exit__(*arguments)
        self.directory.cleanup()


def main(tests, at_once=True):
    """Runs the tests, at the same time if `at_once`, and ends with `N passed, N failed`.

    Words given as arguments choose the tests whose names hold one of them.
    """
    words = sys.argv[1:]
    tests = [test for test in tests if not words or any(word in test.__name__ for word in words)]
    assert tests, f"no test is called {words}"

    def run(test):
        began = time.monotonic()
        try:
            test()
            problem = None
        except BaseException:  # also SystemExit and KeyboardInterrupt inside a test are its failure
            problem = traceback.format_exc()
        print(f"{'FAILED' if problem else 'ok'}  {test.__name__} ({time.monotonic() - began:.1f} s)", flush=True)
        return problem

    with ThreadPoolExecutor(len(tests) if at_once else 1) as pool:
        problems = list(pool.map(run, tests))
    for test, problem in zip(tests, problems):
        if problem:
            print(f"\n{test.__name__}: {test.__doc__}\n{problem}")
    failed = sum(problem is not None for problem in problems)
    print(f"{len(tests) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)
