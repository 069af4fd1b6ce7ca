#!/usr/bin/env python3
"""Checks that names are not what the kernel ends a process for: in a real memory cgroup, where one can be made, and in two
simulated ones, of version 1 and 2.

A simulated one is a directory that a mount namespace shows to the service as its cgroup. It has no kernel behind it: this
script writes the usage there, from the memory of the service, and notes when that passes the limit. Needs root.
"""

import itertools
import os
import pathlib
import shutil
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from support import EXAMPLES, Service, Program, main, wait_for

MIB = 1 << 20
MOUNT = pathlib.Path("/sys/fs/cgroup")
NUMBERS = itertools.count()


class Cgroup:
    """A memory cgroup with a limit, and the name of the file that counts the processes ended for it."""

    def __init__(self, limit):
        self.is_first_version = (MOUNT / "memory" / "cgroup.procs").exists()
        parent = MOUNT / "memory" if self.is_first_version else MOUNT
        self.directory = parent / f"heapgauge-test-{os.getpid()}-{next(NUMBERS)}"
        self.directory.mkdir()
        self.set_limit(limit)

    def set_limit(self, limit):
        name = "memory.limit_in_bytes" if self.is_first_version else "memory.max"
        (self.directory / name).write_text(str(limit))
        if not self.is_first_version:
            # Else the kernel would swap instead.
            swap = self.directory / "memory.swap.max"
            swap.exists() and swap.write_text("0")

    def killed(self):
        name = "memory.oom_control" if self.is_first_version else "memory.events"
        lines = (self.directory / name).read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.split()[0] == "oom_kill")

    def command(self):
        """Returns the command that runs another one, its arguments, in this cgroup."""
        return ["sh", "-c", f'echo $$ > "{self.directory}/cgroup.procs" && exec "$0" "$@"']

    def watch(self, process):
        """Does nothing: the kernel watches it."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        wait_for("an empty cgroup", lambda: not (self.directory / "cgroup.procs").read_text().split())
        self.directory.rmdir()


class Simulated:
    """Files of a memory cgroup, and a thread that writes the usage there. `version` is 1 or 2."""

    # Pages that the kernel keeps for a process beside its own: tables, its stack in the kernel, buffers.
    KERNEL = 512 << 10
    MEMBERSHIPS = {1: "4:memory:/test\n", 2: "0::/test\n"}
    MOUNTS = {1: "31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
              2: "29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"}
    FILES = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_rss {0}\ntotal_shmem 0\ntotal_inactive_file 0\n"),
             2: ("memory.max", "memory.current", "anon {0}\nshmem 0\nkernel 0\nslab_reclaimable 0\nsock 0\ninactive_file 0\n")}

    def __init__(self, version, limit):
        self.version = version
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="heapgauge-cgroup-"))
        self.directory = self.root / "tree" / ("memory" if version == 1 else "") / "test"
        self.directory.mkdir(parents=True)
        (self.root / "cgroup").write_text(self.MEMBERSHIPS[version])
        (self.root / "mountinfo").write_text(self.MOUNTS[version])
        self.excess, self.most, self.over = 0, 0, threading.Event()
        self.watching = None
        self.set_usage(0)
        self.set_limit(limit)

    def put(self, name, text):
        """Replaces a file at once, so that no reader finds half of it."""
        new = self.root / f"new-{name}"
        new.write_text(text)
        new.rename(self.directory / name)

    def set_limit(self, limit):
        self.limit = limit
        self.put(self.FILES[self.version][0], f"{limit}\n")

    def set_usage(self, usage):
        _, name, stat = self.FILES[self.version]
        self.put(name, f"{usage}\n")
        self.put("memory.stat", stat.format(usage))

    def command(self):
        # The files of a process are those of its number, which stays the same through `exec`.
        show = (f'mount --bind "{self.root}/tree" /sys/fs/cgroup && mount --bind "{self.root}/cgroup" /proc/$$/cgroup && '
                f'mount --bind "{self.root}/mountinfo" /proc/$$/mountinfo && exec "$0" "$@"')
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", show]

    def watch(self, process):
        def watch():
            while not self.over.is_set():
                try:
                    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
                except OSError:
                    return
                fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
                held = sum(int(fields.get(name, "0 kB").split()[0]) << 10 for name in ("RssAnon", "RssShmem")) + self.KERNEL
                self.most = max(self.most, held)
                self.excess += held > self.limit
                self.set_usage(held)
                time.sleep(0.002)

        self.watching = threading.Thread(target=watch)
        self.watching.start()

    def killed(self):
        """Returns how often the kernel would have found the limit passed."""
        assert self.most > self.KERNEL, "the memory of the service was never read"
        return self.excess

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.over.set()
        if self.watching:
            self.watching.join()
        shutil.rmtree(self.root)


def kinds():
    """Returns the ways to make a cgroup here: simulated ones, and a real one where the kernel allows it."""
    def simulated(version):
        return lambda limit: Simulated(version, limit)

    found = [simulated(1), simulated(2)]
    try:
        with Cgroup(64 * MIB):
            found.append(Cgroup)
    except OSError as reason:
        print(f"no memory cgroup can be made here, so only simulated ones are tested: {reason}", flush=True)
    return found


class Enclosed(Service):
    """Runs `leaky_service` in a cgroup."""

    def __init__(self, cgroup, env=None):
        Program.__init__(self, [*cgroup.command(), EXAMPLES / "leaky_service", "--listen", "127.0.0.1:0"], env)
        cgroup.watch(self.process)


def in_each(act):
    """Calls `act` with each way to make a cgroup, at the same time."""
    with ThreadPoolExecutor(len(KINDS)) as pool:
        list(pool.map(act, KINDS))


def names_are_not_the_last_straw():
    """Line tables were read into what little the cgroup had left: the kernel ended the process."""
    def act(make):
        for limit in (8, 16, 28):
            for overhead in ({}, {"HEAPGAUGE_MAX_OVERHEAD": "64MiB"}):
                with make(limit * MIB) as cgroup:
                    with Enclosed(cgroup, overhead) as service:
                        for _ in range(4):
                            service.metrics()
                            time.sleep(1)
                        assert service.process.poll() is None
                        shown = service.metrics().value("heap_memory_limit_bytes")
                    assert shown == limit * MIB, f"{shown} bytes are shown as the limit, {limit} MiB are set"
                    assert cgroup.killed() == 0, f"{limit} MiB, {overhead}"

    in_each(act)


def names_are_looked_for_again_when_there_is_room():
    """The limit of a running container may be raised."""
    def act(make):
        with make(8 * MIB) as cgroup:
            with Enclosed(cgroup, {"HEAPGAUGE_MAX_OVERHEAD": "64MiB"}) as service:
                lost = lambda: service.metrics().value("heap_unnamed_bytes", state="lost") > 0
                wait_for("bytes without a line", lost)
                cgroup.set_limit(512 * MIB)
                # Names are looked for again after a minute, and a busy machine is slow.
                service.named(150.0)

    in_each(act)


if __name__ == "__main__":
    KINDS = kinds()
    main([names_are_not_the_last_straw, names_are_looked_for_again_when_there_is_room])
