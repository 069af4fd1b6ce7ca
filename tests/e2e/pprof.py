"""Reads profiles and folded stacks of a running service with pprof's own messages, `go tool pprof` and flamegraph.pl, and
compares them with `/metrics` and `/memory/snapshots`."""

import gzip
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from xml.etree import ElementTree

import yaml

from support import EXAMPLES, ROOT, SOURCE, Exposition, Program, Service, fnv1a, get, leak_line, main, wait_for

PROTO = pathlib.Path("/usr/share/gocode/src/github.com/google/pprof/proto/profile.proto")
FLAMEGRAPH = pathlib.Path("/usr/share/perl5/Devel/NYTProf/flamegraph.pl")
TYPES = [("alloc_objects", "count"), ("alloc_space", "bytes"), ("inuse_objects", "count"), ("inuse_space", "bytes")]
LEAK = "leaky_service::Cache::insert"

folder = tempfile.TemporaryDirectory(prefix="heapgauge-pprof-")
here = pathlib.Path(folder.name)


def generated():
    """Compiles pprof's own description of its format."""
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO.parent}", f"--python_out={here}", str(PROTO)]
    subprocess.run(protoc, check=True, timeout=60)
    spec = importlib.util.spec_from_file_location("profile_pb2", here / "profile_pb2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


profile_pb2 = generated()


class Profile:
    """Decodes one profile, and checks the promises of the format."""

    def __init__(self, gzipped):
        self.gzipped = gzipped
        self.message = message = profile_pb2.Profile.FromString(gzip.decompress(gzipped))
        self.text = text = message.string_table
        assert text[0] == "" and len(text) == len(set(text))
        assert [(text[t.type], text[t.unit]) for t in message.sample_type] == TYPES
        assert (text[message.period_type.type], text[message.period_type.unit], message.period) == ("space", "bytes", 1)
        for messages in (message.mapping, message.location, message.function):
            ids = [each.id for each in messages]
            assert 0 not in ids and len(ids) == len(set(ids))
        mappings = {mapping.id: mapping for mapping in message.mapping}
        functions = {function.id: (text[function.name], text[function.filename]) for function in message.function}
        self.lines = {}  # by location: (function, file, line), the most recently inlined first
        for location in message.location:
            if location.mapping_id:
                mapping = mappings[location.mapping_id]
                assert mapping.memory_start <= location.address < mapping.memory_limit, location
            self.lines[location.id] = tuple((*functions[line.function_id], line.line) for line in location.line)
        self.samples = [(sample.location_id, tuple(sample.value)) for sample in message.sample]
        assert all(len(values) == 4 and any(values) and locations for locations, values in self.samples)

    def shown(self):
        return self.text[self.message.default_sample_type]

    def total(self, at):
        return sum(values[at] for _, values in self.samples)

    def stacks(self):
        """Returns live bytes and blocks by all frames of a stack, most recent first."""
        sums = Counter()
        for locations, (_, _, blocks, size) in self.samples:
            frames = tuple(frame for location in locations for frame in self.lines[location])
            sums[frames, "bytes"] += size
            sums[frames, "blocks"] += blocks
        return sums

    def leaves(self, at):
        """Sums one of the four values by most recent frame."""
        sums = Counter()
        for locations, values in self.samples:
            sums[self.lines[locations[0]][0]] += values[at]
        return sums


def profile(port, path="/debug/pprof/heap", seconds=60.0, headers=None):
    answer = get(port, path, seconds=seconds, headers=headers)
    assert answer.status == 200, answer.body
    assert answer.headers["content-encoding"] is None, answer.headers
    assert answer.headers["content-type"] == "application/octet-stream", answer.headers
    name = path.split("?")[0].rsplit("/")[-1] + ("-delta" if "seconds=" in path else "")
    assert answer.headers["content-disposition"] == f'attachment; filename="{name}.pb.gz"', answer.headers
    return Profile(answer.bytes)


def go_pprof(*arguments):
    """Runs `go tool pprof` without network and home. Returns its output."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(here), "PPROF_TMPDIR": str(here), "GOPROXY": "off",
                   "GOTOOLCHAIN": "local", "GOCACHE": str(here / "go"), "GOFLAGS": "-mod=mod"}
    command = [pathlib.Path(sys.executable).parent / "go", "tool", "pprof", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert ended.returncode == 0, (command, ended.stdout, ended.stderr)
    return ended.stdout


def asked_for(file):
    """Returns the kinds of profiles that a configuration names: whether each is switched on, and its path."""
    text = (ROOT / "dashboards" / "profilers" / file).read_text()
    if file.endswith(".alloy"):
        found = re.findall(r"profile\.(\w+) \{\s*enabled = (\w+)(?:\s*path\s*= \"([^\"]+)\")?\s*\}", text)
        return {kind: (enabled == "true", path) for kind, enabled, path in found}
    config = yaml.safe_load(text)
    assert set(config) == {"object_storage", "scrape_configs"}, config  # Parca refuses what it does not know
    scrape, = config["scrape_configs"]
    kinds = scrape.pop("profiling_config")["pprof_config"]
    # Debian's Prometheus is built without this kind of discovery.
    assert scrape.pop("kubernetes_sd_configs", [{"role": "pod"}]) == [{"role": "pod"}], scrape
    # The rest is as Prometheus has it.
    checked = here / file
    checked.write_text(yaml.safe_dump({"scrape_configs": [scrape]}))
    subprocess.run(["promtool", "check", "config", "--syntax-only", checked], check=True, capture_output=True, timeout=60)
    return {kind: (settings["enabled"], settings.get("path")) for kind, settings in kinds.items()}


def profilers_get_what_their_configurations_ask_for():
    """Each path that is switched on in dashboards/profilers is a profile that is gzipped once, not a difference, for a client that
    sends what the agents send."""
    kinds = ["block", "goroutine", "memory", "mutex", "process_cpu"]
    files = sorted(path.name for path in (ROOT / "dashboards" / "profilers").iterdir())
    assert files == ["alloy.alloy", "parca.yaml", "polarsignals.yaml"], files
    with Service(env={"HEAPGAUGE_EXPOSE": "pprof"}) as service:
        service.named()
        for file, agent in zip(files, ["Alloy/v1.20.0", "conprof/0.26.0", "conprof/0.26.0"]):
            asked = asked_for(file)
            # What an agent asks for unless it is told not to is named, and off.
            assert sorted(asked) == kinds, asked
            paths = [path for enabled, path in asked.values() if enabled]
            assert paths == ["/debug/pprof/allocs"], asked
            # Go's client adds Accept-Encoding, and unpacks an answer with Content-Encoding before the agent sees it.
            headers = {"User-Agent": agent, "Accept-Encoding": "gzip"}
            for path in paths:
                found = profile(service.port(), path, headers=headers)
                assert found.total(1) > found.total(3) > 0 and found.shown() == "alloc_space"


def saved(name, data):
    path = here / name
    path.write_bytes(data)
    return path


def first_row(top):
    """Returns bytes and function of the first row of `-top -unit=B`."""
    rows = top.split("cum%\n")[1].splitlines()
    flat, _, _, _, _, function = rows[0].split(maxsplit=5)
    return int(flat.removesuffix("B")), function


def build_id(path):
    notes = subprocess.run(["readelf", "-n", path], capture_output=True, text=True, check=True, timeout=60).stdout
    return re.search(r"Build ID: ([0-9a-f]+)", notes)[1]


def all_outlets_show_one_heap():
    """Profile, folded stacks, snapshot and metrics of an idle service have the same stacks, sites and totals."""
    with Service("--quiet-traffic") as service:
        port = service.port()
        service.documents()

        def fingerprint(text):
            exposition = Exposition(text)
            return exposition, exposition.value("heap_live_bytes"), exposition.value("heap_allocations_total")

        def look():
            # A collection is given out again for a second.
            time.sleep(1.1)
            _, *before = fingerprint(get(port, "/metrics").body)
            answers = [profile(port), profile(port, "/debug/pprof/allocs"),
                       get(port, "/debug/heap/folded").body, get(port, "/debug/heap/folded?value=blocks").body,
                       json.loads(get(port, "/memory/snapshots?group_by=traceback&top=10000&format=json").body)]
            time.sleep(1.1)
            metrics, *after = fingerprint(get(port, "/metrics").body)
            # The service's watcher wakes every few seconds: all are of one heap only while it sleeps.
            return (metrics, *answers) if before == after else None

        metrics, heap, allocs, folded, blocks, snapshot = wait_for("a quiet moment", look, 90)
        assert (heap.shown(), allocs.shown()) == ("inuse_space", "alloc_space")
        assert heap.samples == allocs.samples

        for at, name in enumerate(["heap_allocations_total", "heap_allocated_bytes_total", "heap_live_blocks",
                                   "heap_live_bytes"]):
            assert heap.total(at) == metrics.value(name), name
        for text, at in [(folded, 3), (blocks, 2)]:
            assert sum(int(line.rsplit(" ", 1)[1]) for line in text.splitlines()) == heap.total(at)
        assert (snapshot["total"]["size"], snapshot["total"]["count"]) == (heap.total(3), heap.total(2))

        # Every stack, frame by frame.
        stacks = Counter()
        for row in snapshot["rows"]:
            frames = tuple((frame["function"] or f"{frame['module']}+{frame['offset']:#x}",
                            frame["file"].replace("<unknown>", ""), frame["line"]) for frame in row["frames"])
            stacks[frames, "bytes"] += row["size"]
            stacks[frames, "blocks"] += row["count"]
        live = {key: value for key, value in heap.stacks().items() if value}
        assert live == {key: value for key, value in stacks.items() if value}
        lines = Counter()
        for (frames, unit), value in live.items():
            if unit == "bytes":
                lines[";".join(function for function, _, _ in reversed(frames))] += value
        assert dict(lines) == {line.rsplit(" ", 1)[0]: int(line.rsplit(" ", 1)[1]) for line in folded.splitlines()}

        # Every site that is exported.
        by_site = Counter()
        for (frames, unit), value in live.items():
            by_site[site_of(frames)] += value if unit == "bytes" else 0
        exported = metrics.by_site("heap_site_live_bytes")
        assert len(exported) >= 5, exported
        assert {site: by_site[site] for site in exported} == exported

        # The modules, the program's own first.
        text, mappings = heap.text, heap.message.mapping
        paths = [text[mapping.filename] for mapping in mappings]
        assert paths[0] == str(EXAMPLES / "leaky_service") and any("libc.so" in path for path in paths), paths
        for mapping in mappings:
            assert text[mapping.build_id] == build_id(text[mapping.filename]), mapping
        info, = [sample.labels for sample in metrics.samples if sample.name == "heap_build_info"]
        assert text[mappings[0].build_id] == info["build_id"]
        assert mappings[0].has_functions and mappings[0].has_line_numbers and mappings[0].has_inline_frames


def site_of(frames):
    """Returns the id of the site of a stack: its first line of the examples, or else its first frame."""
    nearest = frames[0]
    own = next((frame for frame in frames if frame[1].startswith("examples/")), nearest)
    via = crate_of(nearest)
    return fnv1a(own[0], own[1] or "<unknown>", own[2], "" if via == crate_of(own) else via)


def crate_of(frame):
    """Returns the crate of a frame: the first segment of its path, or else its package."""
    function, file, _ = frame
    first = function.split("::")[0]
    if "::" in function and re.fullmatch(r"\w+", first):
        return first
    parts = file.split("/")
    if parts[0] == "library" and len(parts) > 2:
        return parts[1]
    package = re.match(r"(.*?)-\d[^-]*\.", parts[0] + ".") if len(parts) > 1 else None
    return package[1] if package else "<unknown>"


def go_tool_pprof_names_the_leak():
    """`go tool pprof` reads heap, allocations, difference and text, and the leaking function comes first."""
    with Service("--leak-rate", "400000") as service:
        port = service.port()
        service.named()
        time.sleep(4)
        before = profile(port)
        earlier = saved("before.pb.gz", before.gzipped)
        text = saved("text", get(port, "/debug/pprof/heap?debug=1", seconds=60).bytes)
        began = time.time()
        during = profile(port, "/debug/pprof/heap?seconds=4")
        after = profile(port)
        later = saved("after.pb.gz", after.gzipped)
        frame = (LEAK, SOURCE, leak_line())

        top = go_pprof("-top", "-unit=B", later)
        assert "Type: inuse_space" in top and "File: leaky_service" in top, top
        assert first_row(top) == (after.leaves(3)[frame], LEAK), top
        lines = go_pprof("-top", "-unit=B", "-lines", later)
        assert first_row(lines)[1] == f"{LEAK} {SOURCE}:{leak_line()}", lines
        growth = go_pprof("-top", "-unit=B", "-diff_base", earlier, later)
        assert first_row(growth) == (after.leaves(3)[frame] - before.leaves(3)[frame], LEAK), growth
        traces = go_pprof("-traces", "-unit=B", later)
        blocks = [[line.split(maxsplit=1) for line in block.splitlines()]
                  for block in re.split(r"\n-+\+-+\n", traces)]
        callers = [block[1][0] for block in blocks if block and block[0][-1:] == [LEAK]]
        assert callers and set(callers) == {"leaky_service::search"}, traces[:2000]
        allocated = go_pprof("-top", "-unit=B", "-sample_index=alloc_objects", later)
        assert "Type: alloc_objects" in allocated, allocated

        # The growth of four seconds.
        difference = saved("during.pb.gz", during.gzipped)
        top = go_pprof("-top", "-unit=B", difference)
        assert first_row(top) == (during.leaves(3)[frame], LEAK), top
        assert during.leaves(3)[frame] > 400_000
        assert 4e9 <= during.message.duration_nanos < 10e9, during.message.duration_nanos
        assert began - 1 < during.message.time_nanos / 1e9 < began + 5
        assert len(during.samples) < len(after.samples)
        assert all(values[0] >= 0 and values[1] >= 0 for _, values in during.samples)
        assert (before.message.duration_nanos, before.shown(), during.shown()) == (0, "inuse_space", "inuse_space")

        # The text has the same counts; tools do not read its names.
        head = re.match(r"heap profile: (\d+): (\d+) \[(\d+): (\d+)\] @ heap/2\n", text.read_text())
        read = go_pprof("-top", "-unit=B", "-symbolize=none", "-sample_index=inuse_space", text)
        assert f" of {head[2]}B total" in read, (head[0], read)
        assert f"\t{LEAK}\t{SOURCE}:{leak_line()}\n" in text.read_text()


def flame_graphs_are_drawn():
    """flamegraph.pl draws every line of the folded stacks, and the picture shows the leak."""
    with Service("--leak-rate", "400000") as service:
        service.named()
        time.sleep(4)
        for value in ["bytes", "blocks"]:
            folded = get(service.port(), f"/debug/heap/folded?value={value}", seconds=60).body
            total = sum(int(line.rsplit(" ", 1)[1]) for line in folded.splitlines())
            drawn = subprocess.run(["perl", FLAMEGRAPH, "--countname", value, "--minwidth", "0"], input=folded,
                                   capture_output=True, text=True, timeout=60)
            assert drawn.returncode == 0 and "Ignored" not in drawn.stderr, drawn.stderr
            titles = [title.text for title in ElementTree.fromstring(drawn.stdout).iter("{http://www.w3.org/2000/svg}title")]
            assert f"all ({total:,} {value}, 100%)" in titles, titles[:3]
            leak = sum(int(line.rsplit(" ", 1)[1]) for line in folded.splitlines() if f";{LEAK} " in line)
            shown = [title for title in titles if title.startswith(f"{LEAK} (")]
            assert sum(int(title.split("(")[1].split(" ")[0].replace(",", "")) for title in shown) == leak > 0, shown


def go_tool_pprof_chooses_by_scope():
    """`-tagfocus` counts only the blocks of a tenant, and `-tagroot` puts tenants above the stacks; folded stacks have them on request."""
    serve = {"SERVE": "1", "HEAPGAUGE_ADDR": "127.0.0.1:0", "HEAPGAUGE_QUIET": "off"}
    with Program([EXAMPLES / "memory_scenarios", "tenants", 100], serve) as program:
        port = int(program.wait_line(r"http://127\.0\.0\.1:(\d+) has the page")[1][1])
        program.wait_line("^held$")
        leak, mib = "memory_scenarios::leak", 1 << 20
        whole = profile(port)
        labels = Counter()
        for sample in whole.message.sample:
            labels[tuple((whole.text[label.key], whole.text[label.str]) for label in sample.label)] += sample.value[3]
        assert labels[("tenant", "acme"),] == 9 * mib and labels[("tenant", "b"),] == mib and set(labels) == {
            (("tenant", "acme"),), (("tenant", "b"),), ()}, labels
        file = saved("tenants.pb.gz", whole.gzipped)
        for tenant, bytes in [("acme", 9 * mib), ("b", mib)]:
            top = go_pprof("-top", "-unit=B", f"-tagfocus=tenant={tenant}", file)
            assert first_row(top) == (bytes, leak) and f"{bytes}B total" not in top, top
        assert first_row(go_pprof("-top", "-unit=B", file)) == (10 * mib, leak)
        tags = go_pprof("-tags", "-unit=B", file)
        assert re.search(r"9437184\.0B \(90\.00%\): acme", tags), tags
        rooted = go_pprof("-traces", "-unit=B", "-tagroot=tenant", file)
        assert re.search(r"\bacme\b", rooted), rooted[:2000]
        folded = get(port, "/debug/heap/folded?scopes=on", seconds=60).body
        lines = {line.split(";")[0]: int(line.rsplit(" ", 1)[1]) for line in folded.splitlines() if f";{leak} " in line}
        assert lines == {"tenant=acme": 9 * mib, "tenant=b": mib}, folded


main([profilers_get_what_their_configurations_ask_for, all_outlets_show_one_heap, go_tool_pprof_names_the_leak, go_tool_pprof_chooses_by_scope,
      flame_graphs_are_drawn])
