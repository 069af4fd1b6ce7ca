"""Reads every outlet with a foreign parser: all of one snapshot agree, and each example works.

Texts are read by Prometheus' own Python client, OTLP by the protobufs of OpenTelemetry."""

import http.server
import json
import os
import pathlib
import re
import subprocess
import tempfile
import threading
import time

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest, ExportMetricsServiceResponse)
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from support import EXAMPLES, MARKER, ROOT, Program, get, main, wait_for

UNITS = {"By": "bytes", "s": "seconds"}
CODE = {"code_function_name", "code_file_path", "code_line_number"}


def marked(example):
    """Returns the line that leaks in an example."""
    file = source(example)
    lines = (ROOT / file).read_text().splitlines()
    line, = [number for number, text in enumerate(lines, 1) if text.endswith(MARKER)]
    return file, line


def source(example):
    """Returns the source of an example; an example with dependencies of its own is a package."""
    package = f"examples/{example}/{example}.rs"
    return package if (ROOT / package).exists() else f"examples/{example}.rs"


def samples(families):
    """Returns (name, labels) → value, and the type of each family."""
    found, types = {}, {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"twice: {key}"
            found[key] = sample.value
            types[sample.name] = family.type
    return found, types


def attributes(point):
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in point.attributes}


def translated(metric, is_counter):
    """Returns the name in Prometheus, as
    https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/ has it."""
    name = re.sub(r"[^a-zA-Z0-9]+", "_", metric.name)
    unit = UNITS.get(metric.unit, "" if metric.unit in ("", "1") or metric.unit.startswith("{") else metric.unit)
    if metric.unit == "1" and metric.HasField("gauge"):
        unit = "ratio"
    if unit and unit not in name.split("_"):
        name += "_" + unit
    return name + "_total" if is_counter and not name.endswith("_total") else name


def otlp(request):
    """Returns the series that Prometheus stores of an OTLP request: (name, labels) → value, and the type of each name."""
    found, types = {}, {}
    for scope in (scope for resource in request.resource_metrics for scope in resource.scope_metrics):
        for metric in scope.metrics:
            kind = metric.WhichOneof("data")
            data = getattr(metric, kind)
            is_counter = kind == "sum" and data.is_monotonic
            if kind == "sum":
                assert data.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE, metric
            name = translated(metric, is_counter)
            types[name] = "counter" if is_counter else "gauge"
            for point in data.data_points:
                assert kind == "gauge" or 0 < point.start_time_unix_nano <= point.time_unix_nano, metric
                labels = {key.replace(".", "_"): str(value) for key, value in attributes(point).items()}
                key = (name, frozenset(labels.items()))
                assert key not in found, f"twice: {key}"
                found[key] = getattr(point, point.WhichOneof("value"))
    return found, types


def without_code(found):
    """Removes the attributes that only OpenTelemetry has; they repeat other labels."""
    plain = {}
    for (name, labels), value in found.items():
        labels = dict(labels)
        if name == "heap_site_info":
            assert CODE < set(labels), labels
            assert labels["code_function_name"].endswith(labels["function"]), labels
            assert (labels["code_file_path"], labels["code_line_number"]) == (labels["file"], labels["line"]), labels
        plain[name, frozenset((key, value) for key, value in labels.items() if key not in CODE)] = value
    return plain


def outlets_of_one_snapshot_agree():
    """Prometheus text, joined text, facade, OpenMetrics and OTLP: the same series with the same values and types."""
    with tempfile.TemporaryDirectory(prefix="heapgauge-outlets-") as directory:
        command = ["cargo", "bench", "-q", "--locked", "--package", "outlet-costs", "--", "--write", directory]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        folder = pathlib.Path(directory)
        read = lambda name: (folder / name).read_text()
        expected, types = samples(text_string_to_metric_families(read("prometheus.txt")))
        request = ExportMetricsServiceRequest.FromString((folder / "otlp.bin").read_bytes())
        others = {
            "joined": samples(text_string_to_metric_families(read("joined.txt"))),
            "facade": samples(text_string_to_metric_families(read("facade.txt"))),
            "prometheus-client": samples(openmetrics_families(read("openmetrics.txt"))),
            "opentelemetry": otlp(request),
        }
        assert read("openmetrics.txt").endswith("\n# EOF\n")

    sites = sum(name == "heap_site_info" for name, _ in expected)
    assert sites == expected["heap_sites_exported", frozenset()] == 37, sites
    assert len({name for name, _ in expected}) >= 30 and len(expected) >= 286, len(expected)
    scopes = [dict(labels) for name, labels in expected if name == "heap_scope_live_bytes"]
    assert len(scopes) == 25 and {"scope_key": "tenant", "scope_value": "[other]"} in scopes, scopes
    assert {"scope_key": "route", "scope_value": "/search"} in scopes and {"scope_key": "tenant", "scope_value": 't29 "é"'} in scopes, scopes
    for outlet, (found, found_types) in others.items():
        if outlet == "opentelemetry":
            found = without_code(found)
        missing, added = expected.keys() - found.keys(), found.keys() - expected.keys()
        assert not missing and not added, (outlet, missing, added)
        wrong = {key: (value, found[key]) for key, value in expected.items() if found[key] != value}
        assert not wrong, (outlet, wrong)
        assert found_types == types, (outlet, found_types)


class Receiver(http.server.ThreadingHTTPServer):
    """Receives OTLP over HTTP, and keeps the requests."""

    def __init__(self):
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.requests.append((self.path, self.headers["content-type"], body))
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.end_headers()
                self.wfile.write(ExportMetricsServiceResponse().SerializeToString())

            def log_message(self, *_):
                pass

        self.requests = []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *arguments):
        self.shutdown()
        super().__exit__(*arguments)


def opentelemetry_sends_the_leak():
    """The OTLP of the example names the planted line, with its attributes, units, kinds and growth."""
    file, line = marked("opentelemetry")
    with Receiver() as receiver:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.server_port}",
               "OTEL_METRIC_EXPORT_INTERVAL": "1200", "OTEL_SERVICE_NAME": "a-leaking-program"}
        with Program([EXAMPLES / "opentelemetry", "--for", "20"], env) as program:
            began = time.monotonic()
            program.wait_line(r"^\d+ answers were kept$")
            assert 19 < time.monotonic() - began < 45
            assert program.process.wait(10) == 0 and not program.errors(), program.output()
        requests = list(receiver.requests)
    assert len(requests) >= 4, len(requests)
    live, cycles = [], []
    for path, content_type, body in requests:
        assert (path, content_type) == ("/v1/metrics", "application/x-protobuf")
        request = ExportMetricsServiceRequest.FromString(body)
        resource, = request.resource_metrics
        assert attributes(resource.resource)["service.name"] == "a-leaking-program"
        scope, = resource.scope_metrics
        assert scope.scope.name == "heapgauge"
        metrics = {metric.name: metric for metric in scope.metrics}
        assert len(metrics) == len(scope.metrics)
        kinds = {name: (metric.unit, metric.WhichOneof("data"), metric.sum.is_monotonic) for name, metric in metrics.items()}
        for name, kind in {
            "heap.live": ("By", "sum", False), "heap.live_blocks": ("{block}", "sum", False),
            "heap.allocated": ("By", "sum", True), "heap.peak": ("By", "gauge", False),
            "heap.delta_window": ("s", "gauge", False),
        }.items():
            assert kinds[name] == kind, (name, kinds[name])
        values = otlp(request)[0]  # also checks temporality and times
        total = lambda name: values[name, frozenset()]
        assert total("heap_live_bytes") == total("heap_allocated_bytes_total") - total("heap_deallocated_bytes_total")
        assert total("heap_live_bytes") >= sum(v for (name, _), v in values.items() if name == "heap_site_live_bytes")
        cycles.append(total("heap_snapshot_timestamp_seconds"))
        if "heap.site.info" not in metrics:
            continue  # no line has its name yet
        for name, kind in {
            "heap.site.live": ("By", "sum", False), "heap.site.live_blocks": ("{block}", "sum", False),
            "heap.site.live.delta": ("By", "gauge", False), "heap.site.live.delta_blocks": ("{block}", "gauge", False),
            "heap.site.info": ("", "sum", False),
        }.items():
            assert kinds[name] == kind, (name, kinds[name])
            points = getattr(metrics[name], kind[1]).data_points
            sites = [attributes(point)["site"] for point in points]
            assert len(sites) == len(set(sites)) == total("heap_sites_exported"), name
            if name != "heap.site.info":
                assert all(set(attributes(point)) == {"site", "function"} for point in points)
        leaks = [info for info in map(attributes, metrics["heap.site.info"].sum.data_points)
                 if (info["code.file.path"], info["code.line.number"]) == (file, line)]
        if leaks:
            leak, = leaks
            assert leak["code.function.name"] == leak["function"] == "opentelemetry::Cache::insert", leak
            assert (leak["file"], leak["line"], leak["crate"]) == (file, str(line), "opentelemetry"), leak
            labels = frozenset({"site": leak["site"], "function": leak["function"]}.items())
            live.append(values["heap_site_live_bytes", labels])
            assert values["heap_site_live_delta_bytes", labels] == live[-1], "it is absent in the baseline"
    # A request within a second of another shows the same snapshot.
    assert cycles == sorted(cycles) and len(set(cycles)) >= 3, cycles
    assert live == sorted(live) and len(set(live)) >= 3, live


def site_of(found, example):
    """Returns the label `site` of the line that leaks in an example."""
    file, line = marked(example)
    for name, labels in found:
        labels = dict(labels)
        if name == "heap_site_info" and (labels["file"], labels["line"]) == (file, str(line)):
            return labels["site"]
    return None


def serving(example):
    """Runs an example that serves. Yields it and its port."""
    program = Program([EXAMPLES / example, "127.0.0.1:0"])
    return program, lambda: int(program.wait_line(r"^listening on http://127\.0\.0\.1:(\d+)$")[1][1])


def named(read, example):
    """Waits until a text names the leaking line after some requests. Returns the text."""
    def look():
        found = read()
        site = site_of(found[0], example)
        blocks = [value for (name, labels), value in found[0].items()
                  if name == "heap_site_live_blocks" and dict(labels)["site"] == site]
        # A line has all its bytes when all of its stacks have names.
        is_complete = found[0]["heap_unnamed_bytes", frozenset({("state", "pending")})] == 0
        return found if site and is_complete and blocks and blocks[0] > 3 else None
    return wait_for(f"{example}'s leak by name", look, pause=0.5)


def check_kept(found, example):
    """Each request keeps 400 bytes; their vector is charged to the same line."""
    site = frozenset({("site", site_of(found, example)), ("function", f"{example}::keep")})
    bytes_, blocks = found["heap_site_live_bytes", site], found["heap_site_live_blocks", site]
    kept = int(blocks) - 1
    # The vector doubles from 4 on; it may not contain the latest block yet.
    capacities = {max(4, 1 << (held - 1).bit_length()) for held in (kept - 1, kept) if held > 0}
    assert kept > 1 and bytes_ in {400 * kept + 24 * capacity for capacity in capacities}, (bytes_, blocks)


def metrics_facade_joins_its_program():
    """Fresh and sticky text hold the program's counter and heapgauge's numbers, each family once."""
    program, port = serving("metrics_facade")
    with program:
        for path in ["/metrics", "/sticky"]:
            read = lambda: samples(text_string_to_metric_families(get(port(), path).body))
            found, types = named(read, "metrics_facade")
            assert found["requests_total", frozenset({("path", "/search")})] > 0
            assert types["requests_total"] == types["heap_allocations_total"] == "counter"
            check_kept(found, "metrics_facade")


def prometheus_client_joins_its_registry():
    """OpenMetrics has units and an end, and the program's counter."""
    program, port = serving("prometheus_client")
    with program:
        def read():
            answer = get(port(), "/metrics")
            assert answer.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
            assert answer.body.endswith("# EOF\n")
            families = list(openmetrics_families(answer.body))
            units = {family.name: family.unit for family in families}
            assert units["heap_live_bytes"] == "bytes" and units["heap_start_timestamp_seconds"] == "seconds"
            return samples(families)
        found, types = named(read, "prometheus_client")
        assert found["requests_total", frozenset()] > 0
        assert types["heap_allocated_bytes_total"] == "counter"
        check_kept(found, "prometheus_client")


def axum_router_is_part_of_its_server():
    """The program's own page and heapgauge's paths on one port; both name the line that keeps the visits."""
    program, port = serving("axum_router")
    with program:
        for visit in range(1, 51):
            assert get(port(), "/").body == f"{visit} visits\n"
        assert get(port(), "/nowhere").status == 404
        read = lambda: samples(text_string_to_metric_families(get(port(), "/metrics").body))
        found, _ = named(read, "axum_router")
        site = frozenset({("site", site_of(found, "axum_router")), ("function", "axum_router::keep")})
        # 50 visits of 1,000 bytes, and the vector of 64 that holds them.
        assert found["heap_site_live_bytes", site] == 50 * 1_000 + 64 * 24
        assert found["heap_site_live_blocks", site] == 51
        file, line = marked("axum_router")
        answer = json.loads(get(port(), "/memory/snapshots?group_by=line&sort=growth&format=json&top=1").body)
        row, = answer["rows"]
        assert (row["name"], row["size_diff"], row["count_diff"]) == (f"{file}:{line}", 51_536, 51), row


def jemalloc_is_counted_like_any_other():
    """Around jemalloc, a thousand strings of 480 bytes are exact."""
    done = subprocess.run([EXAMPLES / "jemalloc"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), done
    file = source("jemalloc")
    lines = (ROOT / file).read_text().splitlines()
    line, = [number for number, text in enumerate(lines, 1) if text.endswith("// kept")]
    first, last = done.stdout.splitlines()
    expected = f"{file}:{line}: size=469 KiB (+469 KiB), count=1000 (+1000), average=480 B"
    assert first == expected, done.stdout
    live, = re.fullmatch(r"1000 documents, (\d+) bytes live", last).groups()
    assert int(live) >= 1_000 * (480 + 24)


def spans_are_scopes():
    """A layer of `tracing` enters scopes: two tenants on one line, 9 : 1."""
    done = subprocess.run([EXAMPLES / "tracing_scope"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout == "tenant=acme: size=879 KiB, count=900, average=1000 B\n" \
                          "tenant=initech: size=97.7 KiB, count=100, average=1000 B\n", done.stdout


def a_wrong_argument_is_one_line():
    """Each example names a wrong argument with the allowed ones, and exits."""
    for example, argument, said in [
        ("opentelemetry", ["--for", "ever"], "--for is a number of seconds"),
        ("metrics_facade", ["nowhere"], "an address is HOST:PORT"),
        ("prometheus_client", ["nowhere"], "an address is HOST:PORT"),
        ("axum_router", ["nowhere"], "an address is HOST:PORT"),
    ]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        done = subprocess.run([EXAMPLES / example, *argument], capture_output=True, text=True, timeout=60, env=env)
        assert done.returncode == 1 and said in done.stderr and len(done.stderr.splitlines()) == 1, done


if __name__ == "__main__":
    main([outlets_of_one_snapshot_agree, opentelemetry_sends_the_leak, metrics_facade_joins_its_program,
          prometheus_client_joins_its_registry, axum_router_is_part_of_its_server,
          jemalloc_is_counted_like_any_other, spans_are_scopes, a_wrong_argument_is_one_line])
