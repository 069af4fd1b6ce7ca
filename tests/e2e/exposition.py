"""Checks the promises of every exposition on a running service, by a foreign parser."""

import gzip
import json
import lzma
import pathlib
import subprocess
import tempfile
import threading
import time

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from support import EXAMPLES, ROOT, SOURCE, Exposition, Service, fnv1a, get, leak_line, main, wait_for

GAUGES = """heap_tracking heap_start_timestamp_seconds heap_live_bytes heap_live_blocks heap_peak_bytes
    heap_sites heap_sites_exported heap_delta_window_seconds heap_snapshot_timestamp_seconds
    heap_old_age_seconds heap_snapshot_duration_seconds heap_untracked_bytes heap_overhead_bytes heap_resident_bytes
    heap_memory_limit_usage_bytes heap_sample_interval_bytes
    heap_resident_anonymous_bytes heap_resident_file_bytes heap_resident_shared_bytes
    heap_allocator_resident_bytes heap_allocator_free_resident_bytes heap_allocator_internal_fragmentation_bytes
    heap_foreign_bytes heap_process_threads heap_thread_stack_bytes heap_live_untouched_bytes
    heap_unaccounted_bytes""".split()
COUNTERS = """heap_allocated_bytes_total heap_allocations_total heap_deallocated_bytes_total
    heap_deallocations_total heap_truncated_stacks_total heap_fallback_walks_total""".split()
PER_SITE = ["heap_site_live_bytes", "heap_site_live_blocks", "heap_site_live_delta_bytes", "heap_site_live_delta_blocks",
            "heap_site_old_bytes", "heap_site_allocated_bytes_total"]
REASONS = ["stacks", "memory", "threads", "series", "reentrant", "scopes"]


def check(text):
    """Checks the promises that concern one exposition."""
    exposition = Exposition(text)
    value = exposition.value
    live = {name: value(name) for name in GAUGES + COUNTERS}
    assert live["heap_live_bytes"] == live["heap_allocated_bytes_total"] - live["heap_deallocated_bytes_total"]
    assert live["heap_live_blocks"] == live["heap_allocations_total"] - live["heap_deallocations_total"]
    assert live["heap_peak_bytes"] >= live["heap_live_bytes"]
    dropped = [s.labels["reason"] for s in exposition.samples if s.name == "heap_dropped_events_total"]
    assert sorted(dropped) == sorted(REASONS), dropped
    unnamed = {state: value("heap_unnamed_bytes", state=state) for state in ("lost", "pending")}
    assert sum(unnamed.values()) <= live["heap_live_bytes"], unnamed

    info = exposition.info()
    for name in PER_SITE:
        assert set(exposition.by_site(name)) == set(info), name
    assert len(info) == live["heap_sites_exported"] <= min(41, live["heap_sites"])
    assert len(exposition.samples) <= 300, len(exposition.samples)
    # What is old is live, and what is live was allocated; estimates of live bytes are made to fit the total.
    old, allocated = (exposition.by_site(f"heap_site_{name}") for name in ["old_bytes", "allocated_bytes_total"])
    for site, bytes_live in exposition.by_site("heap_site_live_bytes").items():
        assert old[site] <= bytes_live, (site, old[site], bytes_live)
        assert value("heap_sample_interval_bytes") > 0 or bytes_live <= allocated[site], (site, bytes_live, allocated[site])
    assert sum(exposition.by_site("heap_site_live_bytes").values()) <= live["heap_live_bytes"]
    assert sum(exposition.by_site("heap_site_live_blocks").values()) <= live["heap_live_blocks"]
    for site, labels in info.items():
        assert set(labels) == {"site", "function", "file", "line", "crate", "via"}, labels
        assert len(labels["function"]) <= 120, labels
        if len(labels["function"]) < 120:
            assert site == fnv1a(*(labels[name] for name in ["function", "file", "line", "via"])), labels
        assert not labels["file"].startswith(("/root", "/home")), labels
    for sample in exposition.samples:
        assert "\\" not in "".join(sample.labels.values()), sample

    # Each family once, with its help and its type.
    names = [line.split(" ", 3)[2] for line in text.splitlines() if line.startswith("# TYPE ")]
    helped = [line.split(" ", 3)[2] for line in text.splitlines() if line.startswith("# HELP ")]
    assert names == helped and len(names) == len(set(names)), (names, helped)
    types = dict(line.split(" ")[2:4] for line in text.splitlines() if line.startswith("# TYPE "))
    for name in types:
        expected = "counter" if name.endswith("_total") else "gauge"
        assert types[name] == expected, (name, types[name])
    assert {"heap_build_info", *PER_SITE, *GAUGES, *COUNTERS} <= set(types)
    return exposition


def every_exposition_adds_up():
    """Totals, sites, names, bounds and counters hold in each of twenty scrapes of a busy service."""
    with Service() as service:
        service.named()
        before, order = None, None
        for _ in range(20):
            answer = get(service.port(), "/metrics")
            assert answer.status == 200
            assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8", answer.headers
            exposition = check(answer.body)
            families = [line for line in answer.body.splitlines() if line.startswith("# ")]
            assert order in (None, families), "families changed their order"
            order = families
            now = {name: exposition.value(name) for name in COUNTERS}
            if before:
                assert all(now[name] >= before[name] for name in COUNTERS), (before, now)
            before = now
            time.sleep(1.1)
        build, = [s.labels for s in exposition.samples if s.name == "heap_build_info"]
        assert build["symbols"] == "lines" and build["version"] and build["capture"], build
        assert exposition.value("heap_tracking") == 1


def a_sampled_exposition_adds_up_too():
    """Estimates keep every promise of exact values, and each has a standard error."""
    with Service("--leak-rate", "2000000", env={"HEAPGAUGE_SAMPLE": "256KiB"}) as service:
        service.named()
        for _ in range(10):
            exposition = check(get(service.port(), "/metrics").body)
            assert exposition.value("heap_sample_interval_bytes") == 256 << 10
            errors = exposition.by_site("heap_site_live_stderr_bytes")
            assert set(errors) == set(exposition.info()) and len(errors) <= 32
            leak = exposition.site_at(SOURCE, leak_line())
            # Its blocks are below the interval: their error is about the root of interval times bytes, or more where
            # the estimate was above the exact total and has been scaled down to it.
            live = exposition.by_site("heap_site_live_bytes")[leak]
            assert 0.85 < errors[leak] / (live * (256 << 10)) ** 0.5 < 2, (errors[leak], live)
            time.sleep(1.1)
        text = get(service.port(), "/memory/snapshots?group_by=line").body
        assert ", ±" in text.splitlines()[0], text
        document = json.loads(get(service.port(), "/memory/snapshots?group_by=line&format=json").body)
        assert document["sample_interval"] == 256 << 10 and document["rows"][0]["stderr"] > 0, document


def one_snapshot_reads_the_same_twice():
    """Two expositions of one snapshot are the same bytes."""
    with Service() as service:
        service.named()
        pairs = 0
        for _ in range(40):
            first, second = (get(service.port(), "/metrics").body for _ in range(2))
            stamps = [Exposition(text).value("heap_snapshot_timestamp_seconds") for text in (first, second)]
            if stamps[0] == stamps[1]:
                assert first == second
                pairs += 1
            time.sleep(0.3)
        assert pairs >= 10, f"only {pairs} of 40 pairs came from one snapshot"


def asked(port, path, **headers):
    """Returns the content type, whether the answer was compressed, and its text."""
    answer = get(port, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    encoding = answer.headers["content-encoding"]
    assert answer.status == 200 and encoding in (None, "gzip"), (path, answer.status, encoding)
    text = gzip.decompress(answer.bytes) if encoding else answer.bytes
    assert not encoding or len(answer.bytes) < len(text), (path, len(answer.bytes), len(text))
    return answer.headers["content-type"], bool(encoding), text.decode()


def each_client_gets_the_format_it_asks_for():
    """OpenMetrics for those who prefer it, checked by its own parser, gzip for those who ask; the numbers are the same."""
    prometheus = ("application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
                  "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2")
    with Service() as service:
        port = service.port()
        service.named()
        pairs = 0
        for _ in range(40):
            plain = asked(port, "/metrics")
            found = {}
            for encoding in ("identity", "gzip"):
                content_type, compressed, text = asked(port, "/metrics", Accept=prometheus, Accept_Encoding=encoding)
                assert content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
                assert compressed == (encoding == "gzip")
                families = list(openmetrics_families(text))
                for family in families:
                    unit = next((unit for unit in ("bytes", "seconds") if family.name.endswith("_" + unit)), "")
                    assert family.unit == unit, (family.name, family.unit)
                samples = [sample for family in families for sample in family.samples]
                assert not [sample for sample in samples if sample.name.endswith("_created")]
                found[encoding] = {(s.name, *sorted(s.labels.items())): s.value for s in samples}
            assert plain[:2] == ("text/plain; version=0.0.4; charset=utf-8", False), plain[:2]
            text = {(s.name, *sorted(s.labels.items())): s.value for s in Exposition(plain[2]).samples}
            # Within a second they are of one snapshot.
            stamp = ("heap_snapshot_timestamp_seconds",)
            if len({text[stamp], *(samples[stamp] for samples in found.values())}) == 1:
                assert found["identity"] == found["gzip"] == text
                pairs += 1
            time.sleep(0.3)
        assert pairs >= 5, f"only {pairs} of 40 rounds came from one snapshot"
        for path in ("/memory/snapshots?format=json&top=100&group_by=traceback", "/debug/heap/summary.json",
                     "/debug/heap/sites.json", "/debug/heap/stacks.json", "/debug/heap/tree.json", "/debug/heap/snapshot.json"):
            for encoding in ("gzip", "identity"):
                content_type, compressed, text = asked(port, path, Accept_Encoding=encoding)
                assert (content_type, compressed) == ("application/json", encoding == "gzip"), path
                json.loads(text)


def a_restart_keeps_the_names():
    """Two processes of a binary, at different addresses, have the same value of every site."""
    seen = []
    for _ in range(2):
        with Service() as service:
            site = service.named()
            assert site == fnv1a("leaky_service::Cache::insert", SOURCE, leak_line())
            time.sleep(3)
            info = service.metrics().info()
            seen.append({tuple(labels[key] for key in ("function", "file", "line", "via")): s for s, labels in info.items()})
    both = set(seen[0]) & set(seen[1])
    assert len(both) >= 5, seen
    assert all(seen[0][name] == seen[1][name] for name in both), seen


def a_scrape_leaves_no_trace():
    """A hundred scrapes of an idle program, each a new snapshot, leave all sites as they were."""
    with Service("--quiet-traffic") as service:
        port = service.port()
        service.documents()

        # On a busy machine the first names come later.
        wait_for("the first site", lambda: "heap_site_live_bytes{" in get(port, "/metrics").body)

        def sites():
            exposition = check(get(port, "/metrics").body)
            counts = {name: exposition.by_site(name) for name in PER_SITE[:2]}
            totals = [exposition.value(name) for name in ("heap_live_bytes", "heap_allocations_total", "heap_untracked_bytes")]
            return exposition.value("heap_snapshot_timestamp_seconds"), counts, totals

        # The program is idle once its runtime has started and its watcher has seen every site.
        same, course = 0, []
        while same < 10:
            assert len(course) < 90, course[-3:]
            course.append(sites()[1:])
            same = same + 1 if course[-1] == course[max(0, len(course) - 2)] else 0
            time.sleep(1.02)
        before, totals = course[-1]
        stamps = set()
        for number in range(100):
            time.sleep(1.02)
            stamp, now, now_totals = sites()
            stamps.add(stamp)
            assert now == before, f"scrape {number}: {difference(service, before, now)}"
            assert now_totals == totals, f"scrape {number}: {totals} became {now_totals}"
        assert len(stamps) >= 90, f"only {len(stamps)} snapshots in a hundred scrapes"


def difference(service, before, now):
    info = service.metrics().info()
    return [(name, info.get(site, site), before[name].get(site), now[name].get(site))
            for name in before for site in sorted(set(before[name]) | set(now[name]))
            if before[name].get(site) != now[name].get(site)]


def two_scrapers_see_the_same_baselines():
    """Scrapers at an offset: in every sample delta = live − baseline, and none disturbs the other."""
    window = 10.0
    with Service("--leak-rate", "400000", env={"HEAPGAUGE_DELTA_WINDOW": "10s"}) as service:
        port = service.port()
        site = service.named()
        # Waits until all stacks of the start have names: a stack that gets its name between two samples
        # joins its site then, with its bytes at the baseline.
        time.sleep(8)
        samples = {1.1: [], 1.7: []}
        problems = []

        def scrape(pause):
            try:
                end = time.monotonic() + 35
                while time.monotonic() < end:
                    samples[pause].append(check(get(port, "/metrics").body))
                    time.sleep(pause)
            except Exception as problem:  # reported by the thread of the test
                problems.append(problem)

        threads = [threading.Thread(target=scrape, args=(pause,)) for pause in samples]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert problems == [], problems
        assert all(len(found) >= 15 for found in samples.values()), {k: len(v) for k, v in samples.items()}

        baselines = {}  # the moment of a baseline, to the tenth of a second → live of each site then
        course = []  # (moment, live) of the leak, in all samples
        ages = []  # seconds between a sample and its baseline
        shared = 0
        for scraper, found in samples.items():
            for exposition in found:
                taken = exposition.value("heap_snapshot_timestamp_seconds")
                age = exposition.value("heap_delta_window_seconds")
                for unit in ("bytes", "blocks"):
                    live = exposition.by_site(f"heap_site_live_{unit}")
                    delta = exposition.by_site(f"heap_site_live_delta_{unit}")
                    for name in live:
                        then = live[name] - delta[name]
                        assert then >= 0, (name, live[name], delta[name])
                        known = baselines.setdefault((round(taken - age, 1), unit, name), (scraper, then))
                        assert known[1] == then, f"{name}: baseline {known[1]} for one sample, {then} for another"
                        shared += known[0] != scraper
                course.append((taken, exposition.by_site("heap_site_live_bytes")[site]))
                uptime = taken - exposition.value("heap_start_timestamp_seconds")
                assert age >= min(window, uptime - 5), (age, uptime)
                ages.append(age)
        assert shared > 0, "the two scrapers never met the same baseline"
        # Snapshots are kept every fifth of the window. A busy machine delays some of them by seconds, but not most.
        ages.sort()
        assert ages[len(ages) * 3 // 4] <= window * 1.2 + 1, ages

        # The baseline is the size of the leak at that moment: between the samples around it.
        course.sort()
        assert [live for _, live in course] == sorted(live for _, live in course), "the leak never shrinks"
        compared = 0
        for (moment, unit, name), (_, then) in baselines.items():
            earlier = [live for taken, live in course if taken < moment - 0.2]
            later = [live for taken, live in course if taken > moment + 0.2]
            if (unit, name) == ("bytes", site) and earlier and later:
                assert earlier[-1] <= then <= later[0], (moment, earlier[-1], then, later[0])
                compared += 1
        assert compared >= 5, compared


def without_its_leak_a_service_is_named_by_its_own_lines():
    """After half a minute at least three quarters of the sites are lines of the example, and no stack of the others has one."""
    source = (ROOT / SOURCE).read_text().splitlines()
    with Service("--leak-rate", "0", env={"HEAPGAUGE_FRAMES": "64"}) as service:
        port = service.port()
        service.documents()
        time.sleep(30)
        info = check(get(port, "/metrics").body).info().values()
        rows = json.loads(get(port, "/memory/snapshots?format=json&top=10000&group_by=traceback").body)["rows"]
        own = [labels for labels in info if labels["file"] == SOURCE]
        others = {f"{labels['file']}:{labels['line']}" for labels in info if labels["file"] != SOURCE}
        assert len(info) >= 10 and 4 * len(own) >= 3 * len(info), sorted(map(str, info))
        of_others = [row for row in rows if row["name"] in others]
        assert others == {row["name"] for row in of_others}, others
        seen = [row for row in of_others if any(frame["file"].startswith("examples/") for frame in row["frames"])]
        assert not seen, seen
        # What a derive made is charged to the line that calls it.
        derived = [labels for labels in own if source[int(labels["line"]) - 1].startswith("#[derive")]
        assert not derived, derived


def a_stripped_service_has_the_functions_of_its_compressed_symbols():
    """Distributions strip programs and leave their symbols, compressed, in a section. By itself the nearest function is the
    site; by the crates that `HEAPGAUGE_OWN_CRATES` names it is the program's own."""
    with tempfile.TemporaryDirectory(prefix="heapgauge-stripped-") as folder:
        folder = pathlib.Path(folder)
        program, symbols = folder / "leaky_service", folder / "symbols"
        # As GDB's manual has it under "MiniDebugInfo".
        whole = EXAMPLES / "leaky_service"
        named = subprocess.run(["nm", "--format=posix", "--defined-only", whole], capture_output=True, text=True, check=True)
        functions = [line.split()[0] for line in named.stdout.splitlines() if line.split()[1] in "Tt"]
        (folder / "kept").write_text("\n".join(functions) + "\n")
        for command in [["objcopy", "--only-keep-debug", whole, symbols],
                        ["objcopy", "--strip-all", "--remove-section=.comment", f"--keep-symbols={folder}/kept", symbols],
                        ["objcopy", "--strip-all", whole, program]]:
            subprocess.run(command, check=True)
        symbols.with_suffix(".xz").write_bytes(lzma.compress(symbols.read_bytes()))
        subprocess.run(["objcopy", f"--add-section=.gnu_debugdata={symbols}.xz", program], check=True)

        def sites(env):
            with Service(env=env, program=program) as service:
                leak = {"function": "leaky_service::Cache::insert", "file": "<unknown>", "line": "0"}
                wait_for("the leak's function", lambda: [
                    labels for labels in service.metrics().info().values() if leak.items() <= labels.items()], 30)
                time.sleep(3)
                metrics = service.metrics()
                build, = [sample.labels for sample in metrics.samples if sample.name == "heap_build_info"]
                assert build["symbols"] == "functions", build
                return list(metrics.info().values())

        nearest, own = sites({}), sites({"HEAPGAUGE_OWN_CRATES": "+leaky_service"})
        assert not any(labels["via"] for labels in nearest), nearest
        crates = {labels["crate"] for labels in nearest}
        assert {"leaky_service", "hyper"} <= crates and crates.isdisjoint({"alloc", "hashbrown", "serde_json"}), nearest
        functions = {labels["function"] for labels in own if labels["crate"] == "leaky_service"}
        # `add` is inlined into axum's function that calls it.
        assert {"leaky_service::Cache::insert", "leaky_service::run", "leaky_service::traffic"} <= functions, own
        assert "tokio" in {labels["via"] for labels in own}, own
        assert 2 * sum(labels["crate"] == "leaky_service" for labels in own) >= len(own), own


main([every_exposition_adds_up, a_sampled_exposition_adds_up_too, one_snapshot_reads_the_same_twice,
      each_client_gets_the_format_it_asks_for, a_restart_keeps_the_names, a_scrape_leaves_no_trace,
      two_scrapers_see_the_same_baselines, a_stripped_service_has_the_functions_of_its_compressed_symbols,
      without_its_leak_a_service_is_named_by_its_own_lines])
