#!/usr/bin/env python3
"""Checks the parts of resident memory where the system tells less than usual: `/proc` hidden or without some of its files, and
cgroups of each kind. A family whose source is missing is absent, no scrape prints a line, and everything else is there.

Files are hidden or replaced in a mount namespace of the service's own. Needs root.
"""

import pathlib
import re
import shutil
import tempfile
import time

from support import EXAMPLES, Program, Service, get, main, wait_for

MIB = 1 << 20
# A user that is not root, and owns no file.
UNPRIVILEGED = 65534

# The families of a reading, by their source.
OF_STATUS = {"heap_resident_anonymous_bytes", "heap_resident_file_bytes", "heap_resident_shared_bytes", "heap_process_threads"}
OF_SMAPS = {"heap_allocator_resident_bytes", "heap_allocator_free_resident_bytes", "heap_allocator_internal_fragmentation_bytes",
            "heap_foreign_bytes", "heap_live_untouched_bytes", "heap_thread_stack_bytes", "heap_unaccounted_bytes"}
PARTS = OF_STATUS | OF_SMAPS
RESIDENT = {"heap_resident_bytes"}
LIMIT, USAGE = "heap_memory_limit_bytes", "heap_memory_limit_usage_bytes"
WATCHED = PARTS | RESIDENT | {LIMIT, USAGE}
# The allocator was asked; `rare` is for a call of more than 5 ms, as happens on a busy machine.
ASKED = {"read", "rare"}

MOUNT_V1 = "31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
MOUNT_V2 = "29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
# The unified tree of a hybrid system has no controller of memory.
MOUNT_HYBRID = MOUNT_V1 + "32 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
# Mappings as gVisor lists them: without figures.
HEADS = "55d000000000-55d000021000 rw-p 00000000 00:00 0 [heap]\nSize:                132 kB\nRss:                   0 kB\n"

STAT_V1 = f"total_rss {3 * MIB}\ntotal_shmem 0\ntotal_inactive_file {5 * MIB}\n"
STAT_V2 = f"anon {3 * MIB}\nshmem 0\nkernel 0\nslab_reclaimable 0\nsock 0\ninactive_file {5 * MIB}\n"


class Around(Service):
    """Runs `leaky_service` after a shell's command in a mount namespace; `$F` is a folder with files, by their names in it."""

    def __init__(self, command, files=None, user=None):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="heapgauge-surroundings-"))
        self.folder.chmod(0o755)
        for name, text in (files or {}).items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
        # The files of a process are those of its number, which stays the same through `exec`.
        shell = ["sh", "-c", command.replace("$F", str(self.folder)) + ' && exec "$0" "$@"']
        service = [EXAMPLES / "leaky_service", "--listen", "127.0.0.1:0"]
        Program.__init__(self, ["unshare", "--mount", "--propagation", "private", *shell, *as_user, *service])

    def __exit__(self, *arguments):
        super().__exit__(*arguments)
        shutil.rmtree(self.folder)


def check(service, present, values=None, states=ASKED, has_names=True):
    """Checks the families of a reading, their absence, and that scrapes are silent and complete."""
    with service:
        answered = lambda: get(service.port(), "/debug/heap/allocator.json").status == 200
        wait_for("a reading", answered)
        if has_names:
            service.named()
        before = service.errors()
        time.sleep(1.2)  # a collection is given out again for a second
        metrics = service.metrics()
        names = {sample.name for sample in metrics.samples}
        shown = names & WATCHED
        assert shown == present, f"missing {sorted(present - shown)}, unexpected {sorted(shown - present)}"
        for name, expected in (values or {}).items():
            assert metrics.value(name) == expected, f"{name}: {metrics.value(name)}, not {expected}"
        assert metrics.value("heap_tracking") == 1 and metrics.value("heap_live_bytes") > 0
        assert metrics.value("heap_overhead_bytes") > 0
        symbols = [sample.labels["symbols"] for sample in metrics.samples if sample.name == "heap_build_info"]
        assert symbols == ["lines" if has_names else "none"], symbols
        label, = (sample.labels["state"] for sample in metrics.samples if sample.name == "heap_allocator_info")
        assert label in states, f"{label}, not of {states}"
        said = lambda: re.search(r'"state":"(\w+)"', get(service.port(), "/debug/heap/allocator.json").body)[1]
        # There may be a new reading between the two answers.
        wait_for("the label's state in the JSON", lambda: said() in states)
        for path in ("/debug/heap", "/debug/heap/summary.json", "/memory/snapshots"):
            assert get(service.port(), path).status == 200, path
        assert service.errors() == before, f"scrapes print lines: {service.errors()[len(before):]}"
        errors = [line for line in before if not line.startswith("heapgauge: http://")]
        assert not errors, errors


def hide(*names):
    """Returns the command that gives some files of the process no content."""
    return " && ".join(f'mount --bind /dev/null "/proc/$$/{name}"' for name in names)


def cgroup(of_process, mounts, files):
    """Returns the command that shows a cgroup of this kind, and its files."""
    command = 'mkdir -p "$F/tree" && mount --bind "$F/tree" /sys/fs/cgroup && mount --bind "$F/cgroup" "/proc/$$/cgroup" && '
    command += 'mount --bind "$F/mountinfo" "/proc/$$/mountinfo"'
    return command, {"cgroup": of_process, "mountinfo": mounts, **{f"tree/{name}": text for name, text in files.items()}}


def of_limit():
    """Returns the families of the limit of this machine's cgroup, where there is one."""
    with Service() as service:
        return {sample.name for sample in service.metrics().samples if sample.name == LIMIT} and {LIMIT, USAGE}


def everything_is_told_here():
    check(Around("true"), PARTS | RESIDENT | {USAGE} | of_limit())


def without_proc_counts_are_left():
    """The list of the loaded files, from which names come, is there too."""
    check(Around("mount -t tmpfs none /proc"), set(), states={"unknown"}, has_names=False)


def other_processes_are_hidden():
    """`hidepid=2` hides the files of other users' processes, never the own ones."""
    around = Around("mount -o remount,hidepid=2 /proc", user=UNPRIVILEGED)
    check(around, PARTS | RESIDENT | {USAGE} | of_limit())


def without_smaps_the_kernels_split_is_left():
    present = OF_STATUS | RESIDENT | {USAGE} | of_limit()
    check(Around(hide("smaps", "smaps_rollup")), present, states={"unknown"})


def mappings_without_figures_are_none():
    around = Around('mount --bind "$F/smaps" "/proc/$$/smaps"', {"smaps": HEADS})
    check(around, OF_STATUS | RESIDENT | {USAGE} | of_limit(), states={"unknown"})


def without_status_the_mappings_are_left():
    check(Around(hide("status")), PARTS - {"heap_process_threads"} | RESIDENT | of_limit())


def a_cgroup_of_version_one():
    command, files = cgroup("4:memory:/test\n", MOUNT_V1, {
        "memory/test/memory.limit_in_bytes": f"{64 * MIB}\n", "memory/test/memory.usage_in_bytes": f"{9 * MIB}\n",
        "memory/test/memory.stat": STAT_V1})
    check(Around(command, files), PARTS | RESIDENT | {LIMIT, USAGE}, {LIMIT: 64 * MIB, USAGE: 3 * MIB})


def a_cgroup_of_version_two():
    command, files = cgroup("0::/test\n", MOUNT_V2, {
        "test/memory.max": f"{64 * MIB}\n", "test/memory.current": f"{9 * MIB}\n", "test/memory.stat": STAT_V2})
    check(Around(command, files), PARTS | RESIDENT | {LIMIT, USAGE}, {LIMIT: 64 * MIB, USAGE: 3 * MIB})


def a_hybrid_cgroup():
    """Controllers of version 1 beside an empty tree of version 2: the limit is that of version 1."""
    command, files = cgroup("4:memory:/test\n0::/test\n", MOUNT_HYBRID, {
        "memory/test/memory.limit_in_bytes": f"{64 * MIB}\n", "memory/test/memory.usage_in_bytes": f"{9 * MIB}\n",
        "memory/test/memory.stat": STAT_V1, "unified/test/cgroup.procs": ""})
    check(Around(command, files), PARTS | RESIDENT | {LIMIT, USAGE}, {LIMIT: 64 * MIB, USAGE: 3 * MIB})


def a_limit_of_max_is_none():
    command, files = cgroup("0::/test\n", MOUNT_V2, {
        "test/memory.max": "max\n", "test/memory.current": f"{9 * MIB}\n", "test/memory.stat": STAT_V2})
    check(Around(command, files), PARTS | RESIDENT | {USAGE})


def no_cgroup_at_all():
    command, files = cgroup("", "", {"none": ""})
    check(Around(command, files), PARTS | RESIDENT | {USAGE})


if __name__ == "__main__":
    main([
        everything_is_told_here, without_proc_counts_are_left, other_processes_are_hidden,
        without_smaps_the_kernels_split_is_left, mappings_without_figures_are_none, without_status_the_mappings_are_left,
        a_cgroup_of_version_one, a_cgroup_of_version_two, a_hybrid_cgroup, a_limit_of_max_is_none, no_cgroup_at_all])
