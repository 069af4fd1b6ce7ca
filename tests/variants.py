#!/usr/bin/env python3
"""Five leaks in five functions are five sites with exact numbers, however the program was built.

`tests/variants/` is built by Cargo as a stock release and with fat LTO. For the other variants heapgauge and
the program are compiled anew with what each varies, against the dependencies of the stock release: those only
read names and hold tables, and compiling them eight times would take minutes. Words as arguments choose tests by name.
"""

import json
import os
import pathlib
import re
import secrets
import shutil
import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "tests" / "variants"
SOURCE = "src/main.rs"
TARGET = ROOT / "target" / "variants"
MADE = TARGET / "made"

# Function: (bytes, blocks). The first two ask for boxes, the third lets a container ask; the others are large blocks that
# are zeroed, and that grow.
LEAKS = {"first_leak": (1234 * 48, 1234), "second_leak": (567 * 96, 567), "third_leak": (777 * 320, 777),
         "fourth_leak": (50 * 3000, 50), "fifth_leak": (60 * 5000, 60)}
# By its own line only where line tables tell which crates are the program's.
LEAK_OF_A_LIBRARY = ("sixth_leak", (40 * 2000, 40))
# Where line tables give the bare name of an inlined method.
INLINED_LEAK = ("keep", (30 * 700, 30))


def run(command, where=ROOT, **settings):
    """Runs a command that must succeed. Returns its output."""
    return ran(command, where, **settings).stdout


def ran(command, where=ROOT, **settings):
    """Runs a command that must succeed. Returns its result."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HEAPGAUGE", "RUSTFLAGS"))}
    done = subprocess.run([str(word) for word in command], cwd=where, env={**environment, **settings},
                          capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return done


def line_of(function):
    """Returns the line that leaks, from the source."""
    lines = (PROGRAM / SOURCE).read_text().splitlines()
    found = [number for number, line in enumerate(lines, 1) if line.endswith(f"// {function}")]
    assert len(found) == 1, f"{SOURCE}: {function} is marked in lines {found}, not in one"
    return found[0]


class Stock:
    """Runs `cargo build --release`. Has the program, as `name`, and by crate the library that other variants link."""

    # The next build replaces the program.
    turn = threading.Lock()

    def __init__(self, name="stock", **settings):
        self.libraries, self.program = {}, None
        with self.turn:
            self.build(name, settings)

    def build(self, name, settings):
        settings = {"CARGO_TARGET_DIR": str(TARGET), "CARGO_INCREMENTAL": "0", **settings}
        messages = run(["cargo", "build", "--release", "--locked", "--manifest-path", PROGRAM / "Cargo.toml",
                        "--message-format=json"], **settings)
        for message in map(json.loads, messages.splitlines()):
            if message["reason"] != "compiler-artifact":
                continue
            if message["executable"] and message["target"]["name"] == "variants":
                folder = MADE / name
                folder.mkdir(parents=True)
                built = pathlib.Path(message["executable"])
                for file in [built, built.with_name("variants.dwp")]:
                    if file.is_file():
                        shutil.copy2(file, folder)
                self.program = folder / "variants"
            elif message["target"]["kind"] in (["lib"], ["rlib"]):
                library = next(name for name in message["filenames"] if name.endswith(".rlib"))
                # If there are two versions, heapgauge uses the one that its manifest names.
                package = message["package_id"].rsplit("#", 1)[1]
                self.libraries.setdefault(message["target"]["name"], {})[package] = library

    def library(self, name):
        found = self.libraries[name]
        assert len(found) == 1, f"several versions of {name}: {sorted(found)}"
        return next(iter(found.values()))


def compile_variant(stock, name, flags, heapgauge=None, where=PROGRAM, source=SOURCE, kind="bin"):
    """Builds the program with `flags`, and heapgauge with them unless it is given. Returns its path.

    `where` is the folder its sources are in, `kind` the type of crate."""
    folder = MADE / name
    folder.mkdir(parents=True)
    common = ["--edition=2024", "--cap-lints=allow", "-L", f"dependency={TARGET / 'release' / 'deps'}", *flags]

    def externs(*crates):
        return [word for crate in crates for word in ("--extern", f"{crate}={stock.library(crate)}")]

    if heapgauge is None:
        heapgauge = folder / "libheapgauge.rlib"
        version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
        dependencies = ["addr2line", "backtrace", "dashmap", "gimli", "libc", "miniz_oxide", "object", "ruzstd", "serde",
                        "serde_json"]
        run(["rustc", "src/lib.rs", "--crate-name=heapgauge", "--crate-type=rlib", "-o", heapgauge, *common,
             *externs(*dependencies)], CARGO_PKG_VERSION=version)
    program = folder / "variants"
    run(["rustc", source, "--crate-name=variants", f"--crate-type={kind}", "-o", program, *common,
         "--extern", f"heapgauge={heapgauge}", *externs("serde_json")], where)
    return program


# The flags of a release by Cargo.
RELEASE = ["-C", "opt-level=3", "-C", "debuginfo=line-tables-only"]


def answer(program, launcher=()):
    """Runs the program, and checks what holds for every variant. Returns its answer."""
    said, = answers([*launcher, program])
    return said


def answers(command, capture="cfi"):
    """Runs the program. Returns its answers, of which it has one unless an argument asks for more."""
    documents = list(map(json.loads, run(command).splitlines()))
    for said in documents:
        check_whole(said, capture)
    return documents


def check_whole(said, capture):
    """Checks what holds in every process: nothing is lost."""
    assert said["capture"] == capture, said["capture"]
    assert (said["fallback_walks"], said["dropped"], said["truncated"]) == (0, 0, 0), said


def figures(rows):
    return [(row["size"], row["count"]) for row in rows]


def check_named(said, symbols, place):
    """Each leak is one site of its function at `place(function)`, and one traceback."""
    assert said["symbols"] == symbols, said["symbols"]
    ids = set()
    for function, expected in LEAKS.items():
        name = f"variants::{function}"
        sites = [site for site in said["sites"] if site["name"] == name]
        assert figures(sites) == [expected], f"{function}: {sites}"
        assert (sites[0]["file"], sites[0]["line"]) == place(function), sites
        ids.add(sites[0]["site"])
        rows = [row for row in said["tracebacks"] if row["frames"][0]["name"] == name]
        assert figures(rows) == [expected], f"{function}: {rows}"
        frames = rows[0]["frames"]
        assert (frames[0]["file"], frames[0]["line"]) == place(function), frames
        assert frames[1]["name"] == "variants::main", frames
    assert len(ids) == len(LEAKS), ids


# Copies the program, and runs the copy when it has no name any more.
RUN_DELETED = """
import os, shutil, sys
path = shutil.copy(sys.argv[1], sys.argv[1] + ".deleted")
file = os.open(path, os.O_RDONLY)
os.unlink(path)
os.execve(file, [path], os.environ)
"""


def check_lines(program, launcher=()):
    """Each leak is at its line, also where a library allocates for the program."""
    said = answer(program, launcher)
    check_named(said, "lines", lambda function: (SOURCE, line_of(function)))
    function, expected = LEAK_OF_A_LIBRARY
    sites = [site for site in said["sites"] if (site["size"], site["count"]) == expected]
    places = [(site["name"], site["file"], site["line"]) for site in sites]
    assert places == [(f"variants::{function}", SOURCE, line_of(function))], (places, said["sites"])
    assert sites[0]["via"].startswith("serde"), sites
    function, expected = INLINED_LEAK
    places = [(site["name"], site["file"], site["line"]) for site in said["sites"] if (site["size"], site["count"]) == expected]
    assert places == [(f"variants::Keeper::{function}", SOURCE, line_of(function))], (places, said["sites"])


def check_functions(program):
    """Names are functions of the symbol table, and `symbols` says so."""
    said = answer(program)
    assert said["symbols"] == "functions", said["symbols"]
    for function, expected in LEAKS.items():
        sites = [site for site in said["sites"] if site["name"] == f"variants::{function}"]
        assert figures(sites) == [expected], f"{function}: {said['sites']}"


def functions_in(program):
    """Returns by function of the program its addresses in the file, with `main` and the leaks."""
    ranges = {}
    for line in run(["nm", "--print-size", "--defined-only", "--demangle", program]).splitlines():
        found = re.fullmatch(r"([0-9a-f]+) ([0-9a-f]+) [tT] variants::(\w+)(?:::h[0-9a-f]{16})?", line)
        if found:
            begin, size = int(found[1], 16), int(found[2], 16)
            ranges[found[3]] = range(begin, begin + size)
    assert set(LEAKS) | {"main"} <= set(ranges), ranges
    return ranges


def check_offsets(program, symbols):
    """Each leak is one site, the function that leaks, which goes by module and offset, says `symbols`. The offsets of
    its traceback are those of calls: `addr2line` finds them in the file with symbols."""
    said = answer(program)
    assert said["symbols"] == "none", said["symbols"]
    ranges = functions_in(symbols)
    for function, expected in LEAKS.items():
        rows = [row for row in said["tracebacks"] if (row["size"], row["count"]) == expected]
        assert len(rows) == 1, f"{function}: {len(rows)} tracebacks of {expected}"
        frames = [frame for frame in rows[0]["frames"] if frame["module"] == program.name]
        inside = [number for number, frame in enumerate(frames) if frame["offset"] in ranges[function]]
        assert len(inside) == 1, f"{function} at {ranges[function]}: {frames}"
        at = inside[0]
        frame = frames[at]
        assert frame["name"] == f"{program.name}+{frame['offset']:#x}", frame
        assert (frame["file"], frame["line"]) == ("<unknown>", 0), frame
        assert frames[at + 1]["offset"] in ranges["main"], frames
        places = run(["addr2line", "--inlines", "-e", symbols, hex(frame["offset"])]).split()
        assert any(place.endswith(f"{SOURCE}:{line_of(function)}") for place in places), (function, places)
        if function != "third_leak":
            # Nothing distinguishes a container's code from the program's: its frame remains the site's.
            assert at == 0, (function, frames)
            name = f"{program.name}+{ranges[function].start:#x}"
            sites = [site for site in said["sites"] if site["name"] == name]
            assert figures(sites) == [expected], f"{function}: {said['sites']}"


def stock_release(stock):
    check_lines(stock.program)


def release_without_line_tables(stock):
    flags = ["-C", "opt-level=3", "-C", "strip=debuginfo"]
    said = answer(compile_variant(stock, "functions", flags))
    check_named(said, "functions", lambda function: ("<unknown>", 0))


def debug_build(stock):
    flags = ["-C", "opt-level=0", "-C", "debuginfo=2", "-C", "debug-assertions=yes", "-C", "overflow-checks=yes"]
    check_lines(compile_variant(stock, "debug", flags))


def frame_pointers(stock):
    check_lines(compile_variant(stock, "frame-pointers", [*RELEASE, "-C", "force-frame-pointers=yes"]))


def panic_abort(stock):
    check_lines(compile_variant(stock, "abort", [*RELEASE, "-C", "panic=abort"]))


def optimised_for_size(stock):
    check_lines(compile_variant(stock, "size", ["-C", "opt-level=s", "-C", "debuginfo=line-tables-only"]))


def fat_lto(_stock):
    check_lines(Stock("fat-lto", CARGO_PROFILE_RELEASE_LTO="fat").program)


def separate(stock, name):
    """A stripped program finds its symbols and lines in a separate file."""
    # A new build id, by which the file under /usr/lib/debug is found.
    build_id = f"-C link-arg=-Wl,--build-id=0x{secrets.token_hex(20)}".split()
    whole = compile_variant(stock, name, [*RELEASE, *build_id], stock.library("heapgauge"))
    debug, program = whole.with_name("whole.debug"), whole.with_name("stripped")
    run(["objcopy", "--only-keep-debug", whole, debug])
    run(["objcopy", "--strip-all", whole, program])
    return program, debug, build_id[1].rsplit("0x", 1)[1]


def stripped(stock):
    program, debug, _ = separate(stock, "stripped")
    check_offsets(program, debug)


def stripped_with_debug_link(stock):
    program, debug, _ = separate(stock, "debug-link")
    check_offsets(program, debug)
    run(["objcopy", f"--add-gnu-debuglink={debug.name}", program], program.parent)
    check_lines(program)
    # A file that was deleted before it ran.
    check_lines(program, [sys.executable, "-c", RUN_DELETED])
    # Without build ids the link's checksum tells the builds apart.
    for file in (program, debug):
        run(["objcopy", "--remove-section=.note.gnu.build-id", file])
    run(["objcopy", "--remove-section=.gnu_debuglink", program])
    run(["objcopy", f"--add-gnu-debuglink={debug.name}", program], program.parent)
    check_lines(program)
    moved = debug.with_suffix(".moved")
    debug.rename(moved)
    check_offsets(program, moved)
    debug.write_bytes(moved.read_bytes() + b"of another build")
    check_offsets(program, moved)


def stripped_with_build_id(stock):
    program, debug, build_id = separate(stock, "build-id")
    check_offsets(program, debug)
    as_root = [] if os.geteuid() == 0 else ["sudo"]
    installed = f"/usr/lib/debug/.build-id/{build_id[:2]}/{build_id[2:]}.debug"
    run([*as_root, "install", "-D", "-m", "644", debug, installed])
    try:
        check_lines(program)
    finally:
        run([*as_root, "rm", installed])
        subprocess.run([*as_root, "rmdir", "--ignore-fail-on-non-empty", os.path.dirname(installed)], check=True)


def build_id_of(file):
    found = re.search(r"Build ID: ([0-9a-f]+)", run(["readelf", "--notes", file]))
    assert found, file
    return found[1]


def library_in_python(stock):
    """In a library with a heap of its own, loaded by a program of another language, names and build info describe the
    library."""
    flags = [*RELEASE, "-C", "link-arg=-Wl,--build-id"]
    library = compile_variant(stock, "library", flags, stock.library("heapgauge"), source="src/library.rs", kind="cdylib")
    load = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).report()"
    said = json.loads(run([sys.executable, "-c", load, library]))
    lines = (PROGRAM / "src/library.rs").read_text().splitlines()
    leak = next(number for number, line in enumerate(lines, 1) if line.endswith("// leak"))
    sites = [site for site in said["sites"] if (site["file"], site["line"]) == ("src/library.rs", leak)]
    assert figures(sites) == [(1000 * 100, 100)], said
    assert (said["symbols"], said["capture"]) == ("lines", "cfi"), said
    assert said["build_id"] == build_id_of(library), said["build_id"]


def shared_standard_library(stock):
    """Linked against libstd.so, which allocates past the program's allocator, the program says so."""
    program = compile_variant(stock, "shared", [*RELEASE, "-C", "prefer-dynamic"])
    done = ran([program], LD_LIBRARY_PATH=run(["rustc", "--print=target-libdir"]).strip())
    said = json.loads(done.stdout)
    assert said["capture"] == "partial", said["capture"]
    words = [line for line in done.stderr.splitlines() if line.startswith("heapgauge: ")]
    assert len(words) == 1 and "-C prefer-dynamic" in words[0], done.stderr


def leaks(said):
    """Returns `site` and line of the leaks by function."""
    found = {site["name"]: (site["site"], site["line"]) for site in said["sites"]}
    return {function: found[f"variants::{function}"] for function in LEAKS}


def compressed(stock):
    """Sites are the same with compressed debug sections."""
    whole = leaks(answer(stock.program))
    folder = MADE / "compressed"
    folder.mkdir(parents=True)
    for format in ["zlib", "zlib-gnu", "zstd"]:
        program = folder / "variants"
        run(["objcopy", f"--compress-debug-sections={format}", stock.program, program])
        check_lines(program)
        assert leaks(answer(program)) == whole, format


def dwarf_5(stock):
    """The other version of debug information that rustc writes, whose texts have numbers: the same sites."""
    program = compile_variant(stock, "dwarf-5", [*RELEASE, "-C", "dwarf-version=5"])
    check_lines(program)
    assert leaks(answer(program)) == leaks(answer(stock.program))


def split_debug_information(stock):
    """Lines come from `.dwo` files and from a `.dwp`; without those files, or with those of another build, names are functions of
    the symbol table, and `symbols` says so."""
    for kind, version, files in [("packed", 4, "variants.dwp"), ("packed", 5, "variants.dwp"), ("unpacked", 4, "*.dwo")]:
        flags = ["-C", "opt-level=3", "-C", "debuginfo=1", "-C", f"split-debuginfo={kind}", "-C", f"dwarf-version={version}"]
        program = compile_variant(stock, f"split-{kind}-{version}", flags, stock.library("heapgauge"))
        check_lines(program)
        found = list(program.parent.rglob(files))
        assert found, f"{kind}: no {files} in {program.parent}"
        for file in found:
            file.unlink()
        check_functions(program)


def all_debug_information_split(stock):
    """The same where every crate but the standard library is split, as by the profile."""
    whole = Stock("all-split", CARGO_PROFILE_RELEASE_DEBUG="1", CARGO_PROFILE_RELEASE_SPLIT_DEBUGINFO="packed")
    check_lines(whole.program)
    package = whole.program.with_name("variants.dwp")
    flags = ["-C", "opt-level=3", "-C", "debuginfo=1", "-C", "split-debuginfo=packed"]
    other = compile_variant(stock, "split-other", flags, stock.library("heapgauge")).with_name("variants.dwp")
    shutil.copy2(other, package)
    check_functions(whole.program)
    package.unlink()
    check_functions(whole.program)


def remapped(stock):
    """The same sites where flags give the sources other paths: of the program alone, as Nix and Bazel have them, and of every
    crate, relative and without a folder that a registry has, as `trim-paths` does."""
    registry = pathlib.Path(os.environ.get("CARGO_HOME", pathlib.Path.home() / ".cargo")) / "registry" / "src"
    index, = {pathlib.Path(file).parent for file in registry.glob("*/serde_json-*")}
    whole = leaks(answer(stock.program))
    for name, own, packages in [("nix", "/build/source", "/build/cargo-vendor-dir"),
                                ("bazel", "/proc/self/cwd", "/proc/self/cwd/external"), ("deps", "/w", "/deps")]:
        flags = [f"--remap-path-prefix={PROGRAM}={own}", f"--remap-path-prefix={index}={packages}"]
        program = compile_variant(stock, f"remapped-{name}", [*RELEASE, *flags], stock.library("heapgauge"))
        check_lines(program)
        assert leaks(answer(program)) == whole, name
        assert str(PROGRAM).encode() not in program.read_bytes(), name
    flags = [f"--remap-path-prefix={ROOT}=heapgauge-0.1.0", f"--remap-path-prefix={PROGRAM}=.",
             f"--remap-path-prefix={index}/="]
    # A folder of its own: Cargo would put the libraries in the place of the others.
    trimmed = Stock("trimmed", RUSTFLAGS=" ".join(flags), CARGO_TARGET_DIR=str(TARGET / "trimmed"))
    check_lines(trimmed.program)
    said = answer(trimmed.program)
    assert leaks(said) == whole
    # Inlined closures are named with the crate, too.
    own = [{site["name"] for site in each["sites"] if site["file"] == SOURCE} for each in (said, answer(stock.program))]
    assert own[0] == own[1], own


def case_62_sites_are_the_same_again(stock):
    """`site` is the same in another process at another address, and after a rebuild that moved code but not the function,
    file and line; it is another one for a line that moved."""
    first, second = answer(stock.program), answer(stock.program)
    assert first["main_at"] != second["main_at"], "both processes were loaded at the same address"
    assert leaks(first) == leaks(second)
    assert sorted(site["site"] for site in first["sites"]) == sorted(site["site"] for site in second["sites"])

    def rebuilt(name, change):
        where = MADE / name / "sources"
        (where / SOURCE).parent.mkdir(parents=True)
        source = (PROGRAM / SOURCE).read_text()
        changed = change(source)
        assert changed != source
        (where / SOURCE).write_text(changed)
        program = compile_variant(stock, f"{name}/built", RELEASE, stock.library("heapgauge"), where)
        return program, leaks(answer(program))

    # More code behind, some of it called first, so that all other code moves.
    more = """
#[inline(never)]
fn more(number: u64) -> Vec<u64> {
    let mut numbers: Vec<u64> = (0..black_box(number)).map(|n| n.wrapping_mul(number)).collect();
    numbers.sort_unstable_by_key(|n| n % 7);
    numbers
}
"""
    program, appended = rebuilt("appended", lambda source: source.replace(
        "fn main() {", "fn main() { black_box(more(1_000).len());", 1) + more)
    before, after = functions_in(stock.program), functions_in(program)
    assert any(after[function] != before[function] for function in LEAKS), "no leak has moved"
    assert appended == leaks(first), (appended, leaks(first))
    # One more line in front of the second leak: that leak and the code behind it move, the first leak does not.
    marker = "/// Leaks 567 blocks of 96 bytes."
    _, moved = rebuilt("moved", lambda source: source.replace(marker, f"/// One line more.\n{marker}", 1))
    assert moved["first_leak"] == leaks(first)["first_leak"]
    for function in ["second_leak", "third_leak"]:
        (site, line), (site_before, line_before) = moved[function], leaks(first)[function]
        assert line == line_before + 1 and site != site_before, (function, moved)


def main():
    shutil.rmtree(MADE, ignore_errors=True)
    stock = Stock()
    assert stock.program, "cargo built no program"

    def problem_of(test):
        try:
            test(stock)
            return None
        except Exception:
            return traceback.format_exc()

    # The longest first: it compiles every dependency again.
    tests = [fat_lto, remapped, stock_release, release_without_line_tables, debug_build, frame_pointers, panic_abort,
             optimised_for_size, library_in_python, shared_standard_library, stripped, stripped_with_debug_link,
             stripped_with_build_id, compressed, dwarf_5, split_debug_information,
             all_debug_information_split, case_62_sites_are_the_same_again]
    wanted = sys.argv[1:]
    tests = [test for test in tests if not wanted or any(word in test.__name__ for word in wanted)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = list(pool.map(problem_of, tests))
    for test, problem in zip(tests, problems):
        print(f"{'FAILED' if problem else 'ok'}  {test.__name__}\n{problem or ''}", end="")
    failed = sum(problem is not None for problem in problems)
    print(f"{len(tests) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
