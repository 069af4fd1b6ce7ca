#!/usr/bin/env python3
"""Checks that names are not what the kernel ends a process for, in a real memory cgroup.

Needs root and a memory controller that is mounted writable, version 1 or 2; says so and ends well where there is none.
"""

import itertools
import os
import pathlib
import sys
import time

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

    def __enter__(self):
        return self

    def __exit__(self, *_):
        wait_for("an empty cgroup", lambda: not (self.directory / "cgroup.procs").read_text().split())
        self.directory.rmdir()


class Enclosed(Service):
    """Runs `leaky_service` in a cgroup."""

    def __init__(self, cgroup, env=None):
        enter = f'echo $$ > "{cgroup.directory}/cgroup.procs" && exec "$0" "$@"'
        Program.__init__(self, ["sh", "-c", enter, EXAMPLES / "leaky_service", "--listen", "127.0.0.1:0"], env)


def names_are_not_the_last_straw():
    """Line tables were read into what little the cgroup had left: the kernel ended the process."""
    for limit in (8, 16, 28):
        for overhead in ({}, {"HEAPGAUGE_MAX_OVERHEAD": "64MiB"}):
            with Cgroup(limit * MIB) as cgroup:
                with Enclosed(cgroup, overhead) as service:
                    for _ in range(4):
                        service.metrics()
                        time.sleep(1)
                    assert service.process.poll() is None
                assert cgroup.killed() == 0, f"{limit} MiB, {overhead}"


def names_are_looked_for_again_when_there_is_room():
    """The limit of a running container may be raised."""
    with Cgroup(8 * MIB) as cgroup:
        with Enclosed(cgroup, {"HEAPGAUGE_MAX_OVERHEAD": "64MiB"}) as service:
            wait_for("bytes without a line", lambda: service.metrics().value("heap_unnamed_bytes", state="lost") > 0)
            cgroup.set_limit(512 * MIB)
            # Names are looked for again after ever longer times, and a busy machine is slow.
            service.named(300.0)


if __name__ == "__main__":
    try:
        with Cgroup(64 * MIB):
            pass
    except OSError as reason:
        print(f"no memory cgroup can be made here, nothing is tested: {reason}")
        sys.exit(0)
    main([names_are_not_the_last_straw, names_are_looked_for_again_when_there_is_room])
