#!/usr/bin/env python3
"""Runs the project where people run it: with Debian's Rust, on aarch64 under emulation, with musl, linked statically, and for Windows
under Wine; and checks that it compiles for other systems.

Everything comes from Debian packages, in a tree of Debian's newest distribution that `debootstrap` makes once in
target/platforms/root. Commands run there by chroot, in namespaces of their own, with the working tree and Cargo's home at their own
paths. Words as arguments choose rows by name. A row whose packages cannot be had fails. Prints the rows of the table of platforms.
"""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import variants

ROOT = pathlib.Path(__file__).resolve().parent.parent
MADE = ROOT / "target" / "platforms"
TREE = MADE / "root"
CARGO_HOME = pathlib.Path(os.environ.get("CARGO_HOME", pathlib.Path.home() / ".cargo"))
AS_ROOT = [] if os.geteuid() == 0 else ["sudo"]
PROGRAM = ["--locked", "--manifest-path", "tests/variants/Cargo.toml"]
RUST = ["rustc", "cargo", "gcc", "libc6-dev"]
ARM, X86, MUSL = "aarch64-unknown-linux-gnu", "x86_64-unknown-linux-gnu", "x86_64-unknown-linux-musl"
WINDOWS = "x86_64-pc-windows-gnu"
# Programs for aarch64 start by qemu, in these namespaces alone: the header of an ELF file, and its mask, as in qemu's own list.
EMULATOR = "/usr/bin/qemu-aarch64"
BINFMT = (rb":aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
          rb":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:" + EMULATOR.encode() + b":F")
ARM_SETTINGS = {
    "QEMU_LD_PREFIX": "/usr/aarch64-linux-gnu", "CC": "aarch64-linux-gnu-gcc", "CARGO_BUILD_TARGET": ARM,
    "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER": "aarch64-linux-gnu-gcc",
}


def run(command, **settings):
    """Runs a command that must succeed. Returns its output."""
    done = subprocess.run([str(word) for word in command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **settings)
    assert done.returncode == 0, f"{shlex.join(map(str, command))}: {done.returncode}\n{done.stdout[-6000:]}"
    return done.stdout


# ── The tree ────────────────────────────────────────────────────────────────────────────────────


def make_tree():
    if TREE.exists():
        return
    MADE.mkdir(parents=True, exist_ok=True)
    if not shutil.which("debootstrap", path=f"{os.environ['PATH']}:/usr/sbin"):
        run([*AS_ROOT, "apt-get", "-q", "update"])
        run([*AS_ROOT, "apt-get", "-q", "install", "-y", "--no-install-recommends", "debootstrap"])
    unfinished = TREE.with_suffix(".unfinished")
    run([*AS_ROOT, "rm", "-rf", unfinished])
    run([*AS_ROOT, "debootstrap", "--variant=minbase", "sid", unfinished])
    # A mirror may be older than the time that its list of files is valid for.
    settings = 'Acquire::Check-Valid-Until "false";\nAPT::Install-Recommends "false";\nDPkg::Options "--force-unsafe-io";\n'
    run([*AS_ROOT, "tee", unfinished / "etc/apt/apt.conf.d/90platforms"], input=settings)
    run([*AS_ROOT, "chroot", unfinished, "dpkg", "--add-architecture", "arm64"])
    run([*AS_ROOT, "mv", unfinished, TREE])


def install(packages):
    """Installs what is missing of the packages."""
    query = ["dpkg-query", "--show", "--showformat", "${db:Status-Status}\n", *packages]
    found = subprocess.run([*AS_ROOT, "chroot", TREE, *query], text=True, capture_output=True)
    if found.returncode == 0 and set(found.stdout.split()) == {"installed"}:
        return
    apt = [*AS_ROOT, "env", "DEBIAN_FRONTEND=noninteractive", "chroot", TREE, "apt-get", "-q"]
    run([*apt, "update"])
    run([*apt, "install", "-y", *packages])
    run([*apt, "clean"])


def launcher(row, settings={}):
    """Returns the words in front of a command that make it run in the tree, for a row with these variables."""
    whole = {
        "PATH": "/usr/bin:/bin", "HOME": "/root", "CARGO_HOME": str(CARGO_HOME), "CARGO_TARGET_DIR": str(MADE / row),
        "CARGO_NET_OFFLINE": "true", "CARGO_INCREMENTAL": "0", "CARGO_TERM_COLOR": "never", "RUST_BACKTRACE": "1", **settings,
    }
    if "CARGO_BUILD_JOBS" in os.environ:
        whole["CARGO_BUILD_JOBS"] = os.environ["CARGO_BUILD_JOBS"]
    return [*AS_ROOT, "unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child",
            sys.executable, __file__, "--inside", json.dumps(whole)]


def inside(settings, command):
    """Runs a command in namespaces that the caller has made. Returns its exit code."""
    for how, folder in [("--rbind", "/dev"), ("--bind", str(ROOT)), ("--bind", str(CARGO_HOME))]:
        os.makedirs(f"{TREE}{folder}", exist_ok=True)
        run(["mount", how, folder, f"{TREE}{folder}"])
    run(["mount", "-t", "proc", "proc", f"{TREE}/proc"])
    emulates = os.path.exists(f"{TREE}{EMULATOR}")
    if emulates:
        run(["mount", "-t", "binfmt_misc", "binfmt_misc", f"{TREE}/proc/sys/fs/binfmt_misc"])
    os.chroot(TREE)
    os.chdir(ROOT)
    if emulates:
        pathlib.Path("/proc/sys/fs/binfmt_misc/register").write_bytes(BINFMT)
    return subprocess.run(command, env=settings).returncode


# ── What rows do ────────────────────────────────────────────────────────────────────────────────


def test(launch, *words):
    """Runs `cargo test`. Returns the number of tests, which have all passed."""
    done = subprocess.run([*launch, "cargo", "test", "-q", "--locked", "--no-fail-fast", *words], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    results = re.findall(r"^test result: .*?(\d+) passed; (\d+) failed", done.stdout, re.M)
    passed, failed = (sum(int(result[number]) for result in results) for number in (0, 1))
    assert done.returncode == 0 and failed == 0 and passed > 0, f"{shlex.join(words)}: {done.returncode}\n{done.stdout[-9000:]}"
    return passed


def build_program(row, launch, target, *words):
    """Builds the program of tests/variants in the tree. Returns its path."""
    run([*launch, "cargo", "build", "-q", "--release", *PROGRAM, "--target", target, *words])
    return MADE / row / target / "release" / "variants"


def check_program(program, launch):
    """The leaks are named with file and line and counted to the byte; also after a panic that prints a backtrace, when the thread that
    has leaked them again has ended, and in a forked child. Nothing is lost, and no stack is cut."""
    variants.check_lines(program, launch)
    documents = variants.answers([*launch, program, "go on"])
    assert len(documents) == 3, documents
    check_leaks(documents, dict([*variants.LEAKS.items(), variants.LEAK_OF_A_LIBRARY]), variants.SOURCE)
    return documents


def check_leaks(documents, leaks, source):
    """Each document has each leak once more than the one before."""
    for times, said in enumerate(documents, 1):
        assert said["symbols"] == "lines", said["symbols"]
        for function, (size, count) in leaks.items():
            place = (source, variants.line_of(function))
            sites = [site for site in said["sites"] if (site["file"], site["line"]) == place]
            assert variants.figures(sites) == [(times * size, times * count)], (times, function, said["sites"])
            assert sites[0]["name"] == f"variants::{function}", sites


def debian():
    """Debian's own Rust, whose standard library has other paths; and started through the loader, as some tools do."""
    launch = launcher("debian")
    program = build_program("debian", launch, X86)
    said = check_program(program, launch)[0]
    by_loader = check_program(program, [*launch, "/lib64/ld-linux-x86-64.so.2"])[0]
    assert said["build_id"] == by_loader["build_id"] == variants.build_id_of(program), (said["build_id"], by_loader["build_id"])


def debian_tests():
    """The tests that name things."""
    launch = launcher("debian")
    return test(launch, "--test", "naming") + test(launch, "--lib", "symbols::")


# Tests that emulation cannot run, and why.
NOT_EMULATED = {
    "names_are_those_of_the_running_file": "the emulator opens the running program by its path, where it is not any more",
    "libraries_that_take_turns": "the emulator maps a library below the one before it, not where that was; the test runs all the same "
                                 "where modules are listed, which does not ask for that",
    "first_names_in": "the private memory of the process is the emulator's too, which is megabytes more",
    "names_leave_no_memory_behind": "as before: the emulator keeps code that it has translated",
    "a_handler_on_a_stack_of_its_own": "the emulator maps its code that returns from a handler as writable, and rules of such a "
                                       "module are left to the platform's unwinder, which goes on to the interrupted function",
    "the_guard_notices": "signals come every 50 microseconds, which is less than the emulator takes for one",
    "no_memory_for_the_tables": "takes minutes, and its limit is four",
    "rows_and_errors": "compiles an example, for minutes; it tests the text of one, and no allocator",
}


def launch_aarch64():
    # Optimised a little, as unoptimised code takes several times as long there; with the assertions of a debug build all the same.
    return launcher("aarch64", {**ARM_SETTINGS, "CARGO_PROFILE_DEV_OPT_LEVEL": "1", "CARGO_PROFILE_DEV_DEBUG": "line-tables-only"})


def aarch64():
    """aarch64 under emulation, which shows the instructions, the unwind rules and the layouts of the C library as they are there, and
    nothing of a weak memory order: x86-64 orders loads and stores more strictly. tests/models stands in for that."""
    launch = launch_aarch64()
    said = check_program(build_program("aarch64", launch, ARM), launch)[0]
    assert said["build_id"], said


def aarch64_tests():
    """The tests of the write side, of names and of snapshots, and the traps."""
    launch = launch_aarch64()
    # The write side has no features.
    programs = [word for name in ["counts", "naming", "snapshots", "traps"] for word in ("--test", name)]
    run([*launch, "cargo", "test", "-q", "--locked", "--no-default-features", "--no-run", "--lib", "--test", "alone", *programs])
    skipped = [word for name in NOT_EMULATED for word in ("--skip", name)]
    tests = test(launch, "--no-default-features", "--lib", "record::") + test(launch, "--no-default-features", "--test", "alone")
    return tests + test(launch, "--no-default-features", *programs, "--", *skipped)


def musl():
    """A static program with musl, whose standard library is compiled for it. Its unwinder is that of gcc, which asks for a function
    that musl lacks."""
    folder = MADE / "musl-support"
    folder.mkdir(parents=True, exist_ok=True)
    launch = launcher("musl", {
        "RUSTC_BOOTSTRAP": "1", "CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER": "musl-gcc",
        "RUSTFLAGS": f"-L native={folder} -C link-self-contained=no",
    })
    run([*launch, "sh", "-ec", f"""
        musl-gcc -O2 -c tests/find_object.c -o {folder}/find_object.o
        cp $(gcc -print-file-name=libgcc_eh.a) {folder}/libunwind.a
        ar r {folder}/libunwind.a {folder}/find_object.o"""])
    program = build_program("musl", launch, MUSL, "-Zbuild-std=std,panic_unwind")
    assert "INTERP" not in run(["readelf", "--program-headers", program]), "not linked statically"
    check_program(program, launch)


def static():
    """A static program with glibc."""
    launch = launcher("static", {"RUSTFLAGS": "-C target-feature=+crt-static"})
    program = build_program("static", launch, X86)
    assert "INTERP" not in run(["readelf", "--program-headers", program]), "not linked statically"
    said = check_program(program, launch)[0]
    assert said["build_id"] == variants.build_id_of(program), said["build_id"]


def windows():
    """A program for Windows, whose standard library is compiled for it, under Wine: walked and named by the crate `backtrace`, which
    knows no workspace, so that a line that a library allocates for has the library's name."""
    folder = MADE / "windows-support"
    folder.mkdir(parents=True, exist_ok=True)
    launch = launcher("windows", {
        "RUSTC_BOOTSTRAP": "1", "CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER": "x86_64-w64-mingw32-gcc", "WINEDEBUG": "-all",
        "RUSTFLAGS": f"-L native={folder} -C link-self-contained=no",
    })
    run([*launch, "sh", "-ec", f"""
        for part in rsbegin rsend; do
            rustc --edition 2021 --target {WINDOWS} -C panic=abort --crate-type=lib --emit=obj={folder}/$part.o \\
                /usr/src/rustc-*/library/rtstartup/$part.rs
        done"""])
    program = build_program("windows", launch, WINDOWS, "-Zbuild-std=std,panic_unwind").with_suffix(".exe")
    documents = list(map(json.loads, variants.run([*launch, "wine", program, "go on"]).splitlines()))
    assert [(said["capture"], said["dropped"]) for said in documents] == [("backtrace", 0)] * 2, documents
    check_leaks(documents, variants.LEAKS, f"variants/{variants.SOURCE}")


def compiles(target, features):
    """Returns what the compiler says about the library, whose standard library it compiles as well."""
    command = ["cargo", "check", "-q", "--locked", "--lib", *features, "--target", target, "-Zbuild-std=std,panic_unwind"]
    return subprocess.run([*launcher("checked", {"RUSTC_BOOTSTRAP": "1"}), *command], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)


def others():
    """Compiles without a warning for the other systems, with no feature and with all of them."""
    for target in ["x86_64-apple-darwin", "aarch64-apple-darwin", WINDOWS]:
        for features in ["--no-default-features", "--all-features"]:
            done = compiles(target, [features])
            assert (done.returncode, done.stdout) == (0, ""), f"{target} {features}\n{done.stdout[-6000:]}"
    done = compiles("wasm32-wasip1", ["--no-default-features"])
    assert done.returncode != 0 and "heapgauge does not support WebAssembly" in done.stdout, done.stdout[-6000:]


ON_ARM = [*RUST, "libstd-rust-dev:arm64", "gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "qemu-user"]
# Function of a row: Debian packages. The longest first.
ROWS = {
    aarch64_tests: ON_ARM,
    # The standard library for Windows is compiled with a tool for its import libraries.
    others: [*RUST, "rust-src", "binutils-mingw-w64-x86-64"],
    debian_tests: RUST,
    musl: [*RUST, "rust-src", "musl-tools"],
    windows: [*RUST, "rust-src", "gcc-mingw-w64-x86-64-win32", "wine", "wine64"],
    aarch64: ON_ARM,
    static: RUST,
    debian: RUST,
}


def fetch():
    """Downloads what the rows compile: dependencies of the project, of the program, and of the standard library."""
    run(["cargo", "fetch", "--locked"], cwd=ROOT)
    run(["cargo", "fetch", *PROGRAM], cwd=ROOT)
    for manifest in TREE.glob("usr/src/rustc-*/library/Cargo.toml"):
        run(["cargo", "fetch", "--locked", "--manifest-path", manifest], env={**os.environ, "RUSTC_BOOTSTRAP": "1"}, cwd=ROOT)


def main():
    if sys.argv[1:2] == ["--inside"]:
        return inside(json.loads(sys.argv[2]), sys.argv[3:])
    rows = [row for row in ROWS if not sys.argv[1:] or row.__name__ in sys.argv[1:]]
    assert rows, f"no row is called {shlex.join(sys.argv[1:])}; there are {', '.join(row.__name__ for row in ROWS)}"
    make_tree()
    problems = {}
    for row in rows:
        try:
            install(ROWS[row])
        except AssertionError:
            problems[row] = traceback.format_exc()
    fetch()

    def ran(row):
        began = time.monotonic()
        try:
            tests = None if row in problems else row()
        except Exception:
            problems[row] = traceback.format_exc()
            tests = None
        return tests, time.monotonic() - began

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(ran, rows))
    passed = failed = 0
    for row, (tests, seconds) in zip(rows, results):
        problem = problems.get(row, "")
        # Lines with the results of tests would be counted twice.
        indented = "".join(f"    {line}\n" for line in problem.splitlines())
        print(f"{'FAILED' if problem else 'ok'}  {row.__name__} in {seconds:.0f} s: {tests or 0} tests\n{indented}", end="")
        passed, failed = passed + (not problem) + (tests or 0), failed + bool(problem)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
