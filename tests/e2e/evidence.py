#!/usr/bin/env python3
"""Checks that a process leaves evidence of its memory: dumps at the limit, at a peak, on a signal and where an allocation
fails, the termination log, and what the next run says of it.

The kernel's own out-of-memory kills are used where a memory cgroup can be made (root, a writable controller). Where none can,
this script plays the kernel: it kills the process once its resident memory has passed the limit. EVIDENCE_ROUNDS sets how
often each kill is repeated (1 by default, 20 once).
"""

import fcntl
import itertools
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time

from cgroup import Cgroup
from support import EXAMPLES, Exposition, HEAPGAUGE, Program, ROOT, fnv1a, get, main, wait_for

MIB = 1 << 20
ROUNDS = int(os.environ.get("EVIDENCE_ROUNDS", "1"))
SOURCE = "tests/e2e/memory_scenarios.rs"
LIMIT = 200 * MIB


def line_of(marker):
    lines = (ROOT / SOURCE).read_text().splitlines()
    found = [number for number, line in enumerate(lines, 1) if line.endswith(f"// the planted {marker}")]
    assert len(found) == 1, f"{marker}: {found}"
    return found[0]


def can_make_cgroup():
    try:
        with Cgroup(64 * MIB):
            return True
    except OSError:
        return False


REAL_KERNEL = can_make_cgroup()


class Scenario(Program):
    """Runs `memory_scenarios` with a directory for dumps, in a cgroup if there is one."""

    def __init__(self, folder, *arguments, env=None, cgroup=None, program=EXAMPLES / "memory_scenarios", shell=""):
        command = [program, *arguments]
        if cgroup or shell:
            enter = f'echo $$ > "{cgroup.directory}/cgroup.procs" && ' if cgroup else ""
            command = ["sh", "-c", f'{enter}{shell}exec "$0" "$@"', *command]
        super().__init__(command, {"HEAPGAUGE_DUMP_DIR": str(folder), **(env or {})})


def dumps(folder, reason="*"):
    """Returns the dumps of a reason, oldest first: (path, document)."""
    files = sorted(pathlib.Path(folder).glob(f"heap-*-{reason}.json"), key=lambda path: path.stat().st_mtime_ns)
    return [(path, json.loads(path.read_text())) for path in files]


def sites(document):
    """Returns the bytes by (file, line) of each site of a dump."""
    sums = {}
    for trace in document["traces"]:
        frame = trace["frames"][trace.get("site", 0)]
        key = (frame["file"], frame["line"]) if frame["file"] != "<unknown>" else (frame.get("module"), frame.get("offset"))
        sums[key] = sums.get(key, 0) + trace["size"]
    return sums


def folder():
    return tempfile.TemporaryDirectory(prefix="heapgauge-evidence-")


class Limited:
    """A limit of memory: the kernel's, or this script's where no cgroup can be made."""

    def __enter__(self):
        self.cgroup = Cgroup(LIMIT).__enter__() if REAL_KERNEL else None
        self.env = {} if REAL_KERNEL else {"HEAPGAUGE_MEMORY_LIMIT": "200MiB"}
        return self

    def __exit__(self, *arguments):
        self.cgroup and self.cgroup.__exit__(*arguments)

    def wait_for_the_kill(self, scenario):
        """Waits until the process was ended for its memory."""
        def is_over():
            if not REAL_KERNEL and scenario.process.poll() is None:
                pages = pathlib.Path(f"/proc/{scenario.process.pid}/statm").read_text().split()
                if int(pages[1]) * resource.getpagesize() > LIMIT:
                    scenario.process.kill()
            return scenario.process.poll() is not None
        wait_for("the end of the process", is_over, 100.0, 0.005)
        assert scenario.process.returncode == -signal.SIGKILL, f"{scenario.process.returncode}\n{scenario.output()}"
        if REAL_KERNEL:
            assert self.cgroup.killed() > 0, scenario.output()


def killed(arguments, env=None, check=None, program=EXAMPLES / "memory_scenarios"):
    """Has processes killed at the limit, and checks what each has left."""
    least = 1.0
    for _ in range(ROUNDS):
        with folder() as directory, Limited() as limited:
            log = pathlib.Path(directory) / "termination-log"
            log.touch()
            variables = {"HEAPGAUGE_TERMINATION_LOG": str(log), **limited.env, **(env or {})}
            with Scenario(directory, *arguments, env=variables, cgroup=limited.cgroup, program=program) as scenario:
                limited.wait_for_the_kill(scenario)
            found = dumps(directory, "limit")
            assert found, f"no dump: {os.listdir(directory)}\n{scenario.output()}"
            path, document = found[-1]
            total = sum(trace["size"] for trace in document["traces"]) + document["rest"]["size"]
            assert total >= 0.7 * LIMIT, f"{total / MIB:.1f} MiB in {path.name}"
            least = min(least, total / LIMIT)
            assert stat.S_IMODE(path.stat().st_mode) == 0o640
            text = log.read_text()
            assert len(text) == 4000 and text.startswith("heapgauge: "), text[:200]
            (check or names_the_leak)(directory, document, text)
    print(f"{' '.join(map(str, arguments))}: {ROUNDS} times, the last dump has at least {least:.0%} of the limit", flush=True)


def names_the_leak(_, document, text):
    found = sites(document)
    leak = (SOURCE, line_of("leak"))
    assert max(found, key=found.get) == leak, sorted(found.items(), key=lambda item: -item[1])[:5]
    first = text.splitlines()[2]
    assert f"{leak[0]}:{leak[1]}" in first and "MiB" in first, text[:400]
    assert f"site={fnv1a('memory_scenarios::leak', leak[0], leak[1])}" in first, first


def a_leak_of_one_thread():
    """A leak of 50 MiB a second in 200 MiB leaves less than a second between 80 % and the kill."""
    killed(["leak", 50, 1, 0])


def a_leak_of_two_threads():
    killed(["leak", 50, 2, 0])


def a_leak_while_blocks_are_sampled():
    killed(["leak", 50, 1, 0], {"HEAPGAUGE_SAMPLE": "512KiB", "SERVE": "1", "HEAPGAUGE_ADDR": "127.0.0.1:0"})


def a_leak_under_ten_thousand_stacks():
    """The dump has the thousand largest, and says what the rest holds."""
    killed(["leak", 50, 1, 14])


def a_leak_of_a_stripped_binary():
    """Without names the dump has offsets, which the binary with names turns into lines afterwards."""
    with folder() as programs:
        stripped = pathlib.Path(programs) / "memory_scenarios"
        subprocess.run(["strip", "-o", stripped, EXAMPLES / "memory_scenarios"], check=True)

        def names_the_module(directory, document, text):
            found = sites(document)
            (module, offset), held = max(found.items(), key=lambda item: item[1])
            assert module == "memory_scenarios" and held >= 0.6 * LIMIT, found
            path = dumps(directory, "limit")[-1][0]
            report = subprocess.run([HEAPGAUGE, "report", path, "--top", "1", "--binary", EXAMPLES / "memory_scenarios"],
                                    check=True, capture_output=True, text=True).stdout
            assert f"{SOURCE}:{line_of('leak')}" in report and "leak" in report, report
            assert "memory_scenarios+0x" in text.splitlines()[2], text[:300]

        killed(["leak", 50, 1, 0], check=names_the_module, program=stripped)


def reading_files_makes_no_dump():
    """The page cache fills the cgroup, and the kernel can take it back."""
    with folder() as directory, Limited() as limited:
        big = pathlib.Path(directory) / "big"
        subprocess.run(["dd", "if=/dev/zero", f"of={big}", "bs=1M", "count=400", "status=none"], check=True)
        with Scenario(directory, "read", 3, env={**limited.env, "READ": str(big)}, cgroup=limited.cgroup) as scenario:
            assert scenario.process.wait(60) == 0, scenario.output()
        assert dumps(directory, "limit") == []


def a_peak_of_a_moment_is_kept():
    """500 MiB for 200 ms: nothing scrapes that often."""
    for round in range(ROUNDS):
        with folder() as directory:
            serve = {"SERVE": "1", "HEAPGAUGE_ADDR": "127.0.0.1:0", "HEAPGAUGE_QUIET": "off"} if round == 0 else {}
            with Scenario(directory, "spike", 500, 200, env=serve) as scenario:
                if serve:
                    port = int(scenario.wait_line(r"http://127\.0\.0\.1:(\d+) has the page")[1][1])
                    time.sleep(1.5)
                    answer = get(port, "/debug/heap/peak?group_by=line&format=json")
                    assert answer.status == 200, answer.body
                    row = json.loads(answer.body)["rows"][0]
                    assert row["frames"][0]["line"] == line_of("spike") and row["size"] >= 0.9 * 500 * MIB, row
                assert scenario.process.wait(60) == 0, scenario.output()
            _, document = dumps(directory, "peak")[-1]
            held = sites(document).get((SOURCE, line_of("spike")), 0)
            assert held >= 0.9 * 500 * MIB, f"{held / MIB:.0f} MiB"


def the_last_allocation_fails():
    """The text is written before the process ends, and it ends as it does without heapgauge."""
    limit = "ulimit -v 600000; ulimit -c 0; "
    with folder() as directory:
        with Scenario(directory, "grow", shell=limit) as scenario:
            code = scenario.process.wait(60)
        # As the standard library ends a program that has no memory left.
        assert code == -signal.SIGABRT, code
        errors = "\n".join(scenario.errors())
        assert "heapgauge: an allocation of 262144 bytes failed" in errors, errors
        assert f"{SOURCE}:{line_of('leak')}" in errors.split("largest:")[1].splitlines()[1], errors
        assert "memory allocation of 262144 bytes failed" in errors, errors
        (run,) = pathlib.Path(directory).glob("heap-*-run.txt")
        assert f"{SOURCE}:{line_of('leak')}" in run.read_text()
        # The thread that dumps is faster than the end, or not.
        assert dumps(directory, "limit") or dumps(directory, "failure"), os.listdir(directory)
        # The next run says what was found, and gives the text its name.
        with served(directory) as (_, port):
            metrics = Exposition(get(port, "/metrics").body)
            value = metrics.value("heap_previous_run_info", reason="failure", function="memory_scenarios::leak",
                                  site=fnv1a("memory_scenarios::leak", SOURCE, line_of("leak")))
            assert value == 1
        (text,) = pathlib.Path(directory).glob("heap-*-failure.txt")
        assert not run.exists() and "an allocation of" in text.read_text()


def a_huge_request_is_no_failure_of_ours():
    with folder() as directory:
        with Scenario(directory, "huge", env={"HEAPGAUGE_MEMORY_LIMIT": "1GiB"}) as scenario:
            assert scenario.process.wait(60) == 0, scenario.output()
        assert not scenario.said("an allocation of"), scenario.output()
        assert dumps(directory, "failure") == []


def an_allocator_that_refuses_at_random():
    """One text a minute, a dump, and a program that goes on."""
    with folder() as directory:
        with Scenario(directory, "refuse", 7) as scenario:
            assert scenario.process.wait(60) == 0, scenario.output()
        assert len(scenario.said("heapgauge: an allocation of", "err")) == 1, scenario.output()
        assert scenario.said(r"^\d+ refused$", "out")
        assert len(dumps(directory, "failure")) == 1


def nobody_reads_stderr():
    """A full pipe, a closed one and none: the program neither waits nor ends for the text."""
    for shape in ("full", "closed", "none"):
        with folder() as directory:
            read, write = os.pipe()
            if shape == "full":
                flags = fcntl.fcntl(write, fcntl.F_GETFL)
                fcntl.fcntl(write, fcntl.F_SETFL, flags | os.O_NONBLOCK)
                try:
                    while True:
                        os.write(write, b"x" * 4096)
                except BlockingIOError:
                    fcntl.fcntl(write, fcntl.F_SETFL, flags)
            if shape == "closed":
                os.close(read)
            close = (lambda: (signal.signal(signal.SIGPIPE, signal.SIG_DFL), os.close(2))) if shape == "none" else (
                lambda: signal.signal(signal.SIGPIPE, signal.SIG_DFL))
            clean = {name: value for name, value in os.environ.items() if not name.startswith("HEAPGAUGE")}
            process = subprocess.Popen([EXAMPLES / "memory_scenarios", "refuse", "7"], stdout=subprocess.DEVNULL,
                                       stderr=write, env={**clean, "HEAPGAUGE_DUMP_DIR": directory}, preexec_fn=close)
            os.close(write)
            assert process.wait(30) == 0, (shape, process.returncode)
            assert len(dumps(directory, "failure")) == 1, shape
            if shape != "closed":
                os.close(read)


def served(directory, *arguments, env=None, shell=""):
    """Runs a service that holds some memory, and passes the port of its server on."""
    class Served:
        def __enter__(self):
            variables = {"SERVE": "1", "HEAPGAUGE_ADDR": "127.0.0.1:0", "HEAPGAUGE_QUIET": "off", **(env or {})}
            self.scenario = Scenario(directory, *(arguments or ("hold", 10, 60)), env=variables, shell=shell).__enter__()
            port = int(self.scenario.wait_line(r"http://127\.0\.0\.1:(\d+) has the page")[1][1])
            self.scenario.wait_line("^held$")
            return self.scenario, port

        def __exit__(self, *ended):
            self.scenario.__exit__(*ended)
    return Served()


def dumps_by_http():
    """Images without a shell have no other way to their files."""
    with folder() as directory, served(directory) as (_, port):
        answer = get(port, "/debug/heap/dump", "POST")
        assert answer.status == 200, answer.body
        name = json.loads(answer.body)["name"]
        listed = json.loads(get(port, "/debug/heap/dumps").body)["dumps"]
        assert [row["reason"] for row in listed if row["name"] == name] == ["request"], listed
        document = json.loads(get(port, f"/debug/heap/dumps/{name}").body)
        assert sites(document)[(SOURCE, line_of("leak"))] == 10 * MIB
        beside = get(port, f"/memory/snapshots?since={name}&group_by=line&format=json")
        assert beside.status == 200 and json.loads(beside.body)["rows"], beside.body
        for path, status in [("/debug/heap/dumps/heap-1-1-limit.json", 404), ("/debug/heap/dumps/..%2f..%2fetc%2fpasswd", 404),
                             ("/debug/heap/dumps/", 404), ("/debug/heap/dumps?a=b", 400),
                             ("/memory/snapshots?since=heap-1-1-limit.json", 400)]:
            assert get(port, path).status == status, path
        assert get(port, "/debug/heap/dump").status == 405
        assert get(port, "/debug/heap/dump", "POST", {"Origin": "http://evil.example"}).status == 403
        metrics = Exposition(get(port, "/metrics").body)
        assert metrics.value("heap_dumps_total", reason="request") == 1
        assert metrics.value("heap_dump_failures_total") == 0
        # Those of one second have names of their own.
        names = [json.loads(get(port, "/debug/heap/dump", "POST").body)["name"] for _ in range(8)]
        assert len({name, *names}) == 9, names
        assert sorted(path.name for path, _ in dumps(directory, "request")) == sorted(names[3:])


def without_a_directory_there_is_a_line():
    with served("", env={"HEAPGAUGE_DUMP_DIR": ""}) as (scenario, port):
        assert scenario.said("HEAPGAUGE_DUMP_DIR=: allowed is a directory, taking none"), scenario.output()
        answer = get(port, "/debug/heap/dump", "POST")
        assert answer.status == 503 and "HEAPGAUGE_DUMP_DIR" in answer.body, answer.body
        assert get(port, "/debug/heap/dumps").status == 503
        assert get(port, "/debug/heap/peak").status == 200
        assert "heap_dumps_total" not in get(port, "/metrics").body


def a_signal_makes_a_dump():
    with folder() as directory:
        with Scenario(directory, "hold", 5, 60, env={"HEAPGAUGE_DUMP_SIGNAL": "SIGUSR2"}) as scenario:
            scenario.wait_line("^held$")
            scenario.process.send_signal(signal.SIGUSR2)
            wait_for("a dump", lambda: dumps(directory, "signal"), 10.0)
            assert scenario.process.poll() is None
        with Scenario(directory, "hold", 5, 60, env={"HEAPGAUGE_DUMP_SIGNAL": "HUP"}, shell="trap '' HUP; ") as scenario:
            scenario.wait_line("HEAPGAUGE_DUMP_SIGNAL=SIGHUP: the program handles it already, taking none")
            scenario.wait_line("^held$")


def a_kill_at_any_moment_leaves_whole_files():
    """500 kills, once; fewer each time."""
    seed = random.Random(1)
    with folder() as directory:
        seen, longest = 0, 0.05
        for _ in range(25 * ROUNDS):
            with Scenario(directory, "hold", 3, 60, env={"HEAPGAUGE_DUMP_SIGNAL": "USR2", "HEAPGAUGE_DUMP_KEEP": "50"}) as scenario:
                scenario.wait_line("^held$")
                end = time.monotonic() + seed.uniform(0.001, longest)
                while time.monotonic() < end:
                    scenario.process.send_signal(signal.SIGUSR2)
                    time.sleep(0.0005)
                scenario.process.kill()
            found = dumps(directory)  # each has to be JSON
            seen += len(found)
            # A busy machine needs longer for a dump.
            longest *= 1 if seen else 1.2
            for path, document in found:
                assert document["version"] == 1 and "rest" in document, path
        assert seen > 0
        # The files of all dead runs are settled by the next one.
        with Scenario(directory, "hold", 1, 60) as scenario:
            scenario.wait_line("^held$")
            left = [path.name for path in pathlib.Path(directory).iterdir() if path.name.startswith(".heap")]
            assert left == [] and len(list(pathlib.Path(directory).glob("*-run.txt"))) == 1, left


def a_disk_that_takes_nothing():
    """Missing, read-only and full: a line, a count, and a program that goes on."""
    with folder() as directory:
        missing = pathlib.Path(directory) / "missing"
        shapes = [(missing, "No such file or directory")]
        full = pathlib.Path(directory) / "full"
        full.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", full], capture_output=True).returncode == 0
        if mounted:
            (full / "rest").write_bytes(b"x" * 4096)
            shapes.append((full, "No space left on device"))
        else:
            # Without the right to mount, a file stands where the directory should be.
            full.rmdir()
            full.touch()
            shapes.append((full, "Not a directory"))
        try:
            for where, problem in shapes:
                with served(where) as (scenario, port):
                    answer = get(port, "/debug/heap/dump", "POST")
                    assert answer.status == 503 and problem in answer.body, answer.body
                    get(port, "/debug/heap/dump", "POST")
                    metrics = Exposition(get(port, "/metrics").body)
                    # On a busy machine the peak of the start is dumped meanwhile.
                    assert metrics.value("heap_dump_failures_total") in (2, 3)
                    assert len(scenario.said(problem, "err")) == 1, scenario.output()
        finally:
            mounted and subprocess.run(["umount", full], check=True)


def a_directory_in_memory_is_used_sparingly():
    """A directory on tmpfs counts against the limit that the process is about to reach."""
    shared = pathlib.Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="heapgauge-evidence-", dir=shared) as directory:
        with Scenario(directory, "leak", 20, 1, 13, env={"HEAPGAUGE_DUMP_SIGNAL": "USR2"}) as scenario:
            scenario.wait_line("it lies in memory, which counts against the limit")
            time.sleep(3)
            scenario.process.send_signal(signal.SIGUSR2)
            (path, document), = wait_for("a dump", lambda: dumps(directory, "signal"), 10.0)
            assert path.stat().st_size <= 256 << 10, path.stat().st_size
            assert document["rest"]["size"] > 0


def near_the_limit_nothing_is_allocated():
    """An allocator's lock may be held by a thread that waits for the kernel to find memory."""
    with folder() as directory:
        log = pathlib.Path(directory) / "log"
        env = {"HEAPGAUGE_MEMORY_LIMIT": "200MiB", "HEAPGAUGE_TERMINATION_LOG": str(log)}
        with Scenario(directory, "near", 135, 195, env=env) as scenario:
            assert scenario.process.wait(60) == 0, scenario.output()
        assert scenario.said("^0 allocations$", "out"), scenario.output()
        assert len(dumps(directory, "limit")) >= 1, os.listdir(directory)
        # The log was written on the way, and emptied when the writer ended.
        assert log.stat().st_size == 4000


def four_mib_are_left():
    """The dump is made in memory that was set aside before, in a cgroup that is nearly full."""
    if not REAL_KERNEL:
        return four_mib_are_left_of_a_limit_by_name()
    with folder() as directory, Limited() as limited:
        limited.cgroup.set_limit(512 * MIB)
        with Scenario(directory, "hold", 100, 60, cgroup=limited.cgroup, env={"HEAPGAUGE_DUMP_SIGNAL": "USR2"}) as scenario:
            scenario.wait_line("^held$")
            time.sleep(2)
            used = int((limited.cgroup.directory / "memory.usage_in_bytes").read_text()) if (
                limited.cgroup.is_first_version) else int((limited.cgroup.directory / "memory.current").read_text())
            limited.cgroup.set_limit(used + 4 * MIB)
            wait_for("a dump", lambda: dumps(directory, "limit"), 10.0)
            scenario.process.send_signal(signal.SIGUSR2)
            wait_for("a dump", lambda: dumps(directory, "signal"), 10.0)
            assert scenario.process.poll() is None and limited.cgroup.killed() == 0


def four_mib_are_left_of_a_limit_by_name():
    with folder() as directory:
        with Scenario(directory, "hold", 100, 60, env={"HEAPGAUGE_MEMORY_LIMIT": "110MiB"}) as scenario:
            scenario.wait_line("^held$")
            wait_for("a dump", lambda: dumps(directory, "limit"), 10.0)


def the_log_is_emptied_when_memory_falls():
    """Text of an hour ago would explain another end."""
    with folder() as directory:
        log = pathlib.Path(directory) / "log"
        env = {"HEAPGAUGE_TERMINATION_LOG": str(log), "HEAPGAUGE_MEMORY_LIMIT": "600MiB"}
        with Scenario(directory, "spike", 550, 2500, env=env) as scenario:
            wait_for("text", lambda: log.exists() and "MiB" in log.read_text(), 20.0, 0.05)
            wait_for("none", lambda: log.read_text().strip() == "", 20.0, 0.05)
            assert log.stat().st_size == 4000
            assert scenario.process.wait(60) == 0


def an_idle_process_stays_idle():
    """The thread wakes once a second: a wait and some reads of open files, and nothing else."""
    with folder() as directory:
        with Scenario(directory, "hold", 5, 60, env={"HEAPGAUGE_MEMORY_LIMIT": "2GiB"}) as scenario:
            scenario.wait_line("^held$")
            time.sleep(3)
            trace = pathlib.Path(directory) / "strace"
            subprocess.run(["timeout", "-s", "INT", "10", "strace", "-f", "-qq", "-o", trace, "-p", str(scenario.process.pid)])
            # Not the lines that continue a call of before, "<... futex resumed>".
            calls = re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.MULTILINE)
            kinds = {name: calls.count(name) for name in set(calls)}
            assert kinds.get("futex", 0) <= 13, kinds
            assert sum(kinds.values()) <= 13 * 12, kinds
            allowed = {"futex", "pread64", "restart_syscall", "clock_nanosleep", "read", "openat", "close", "statx", "fstat",
                       "getdents64", "lseek", "madvise", "munmap", "mmap", "brk"}
            assert set(kinds) <= allowed, kinds


if __name__ == "__main__":
    main([
        a_leak_of_one_thread, a_leak_of_two_threads, a_leak_while_blocks_are_sampled, a_leak_under_ten_thousand_stacks,
        a_leak_of_a_stripped_binary, reading_files_makes_no_dump, a_peak_of_a_moment_is_kept, the_last_allocation_fails,
        a_huge_request_is_no_failure_of_ours, an_allocator_that_refuses_at_random, nobody_reads_stderr, dumps_by_http,
        without_a_directory_there_is_a_line, a_signal_makes_a_dump, a_kill_at_any_moment_leaves_whole_files,
        a_disk_that_takes_nothing, a_directory_in_memory_is_used_sparingly,
        near_the_limit_nothing_is_allocated, four_mib_are_left,
        the_log_is_emptied_when_memory_falls, an_idle_process_stays_idle,
    ], at_once=False)
