"""Checks that a bad setting is one clear line on stderr, and that the program continues."""

import signal
import socket
import subprocess
import time

from support import EXAMPLES, Service, get, main, wait_for

VARIABLES = ["HEAPGAUGE", "HEAPGAUGE_ADDR", "HEAPGAUGE_TOP_N", "HEAPGAUGE_DELTA_WINDOW", "HEAPGAUGE_OLD_AGE", "HEAPGAUGE_FRAMES",
             "HEAPGAUGE_SAMPLE", "HEAPGAUGE_MAX_OVERHEAD", "HEAPGAUGE_RECLAIM", "HEAPGAUGE_MEMORY_LIMIT", "HEAPGAUGE_RELEASE",
             "HEAPGAUGE_SITE", "HEAPGAUGE_OWN_CRATES", "HEAPGAUGE_LOOK_THROUGH",
             "HEAPGAUGE_EXPOSE", "HEAPGAUGE_DEBUG_ADDR", "HEAPGAUGE_QUIET"]


def goes_on(service):
    """Checks that the program answers without heapgauge's server and exits with 0. Returns its lines on stderr."""
    assert get(service.documents(), "/search?q=heap").status == 200
    for at, _ in service.said("^listening on "):
        # A server that lives for less than a second is a line of its own.
        time.sleep(max(0, service.started + at + 1.5 - time.monotonic()))
    assert service.stop() == 0, service.output()
    return service.errors()


def one_line(service, *words):
    """Checks that the program continues after exactly one line, which contains the words."""
    only_line(service, goes_on(service), *words)


def only_line(service, problems, *words):
    """Checks that there is one line, which contains the words."""
    assert len(problems) == 1, service.output()
    for word in words:
        assert word in problems[0], (word, problems[0])


def address_in_use():
    """An address in use: the line names it, and there is no server."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        where = "127.0.0.1:%d" % other.getsockname()[1]
        with Service("--quiet-traffic", env={"HEAPGAUGE_ADDR": where}) as service:
            one_line(service, where)
            assert service.said("listening on") == []


def addresses_that_are_none():
    """An invalid address is named with the allowed ones, and the default is used."""
    usual = "127.0.0.1:9898"
    for where in ["nonsense", "127.0.0.1", "127.0.0.1:99999", "", "http://127.0.0.1:0/"]:
        with Service("--quiet-traffic", env={"HEAPGAUGE_ADDR": where}) as service:
            first, *rest = goes_on(service)
            assert f"HEAPGAUGE_ADDR={where}" in first and "HOST:PORT" in first and usual in first, first
            # Another program may use the default address: that is a second line.
            assert len(rest) == (0 if service.said(f"listening on http://{usual}$") else 1), service.output()
            assert all(usual in line for line in rest), rest


def unknown_variables():
    """A misspelt variable is named with the known ones; the rest works."""
    with Service("--quiet-traffic", env={"HEAPGAUGE_TOPN": "5"}) as service:
        assert get(service.port(), "/health").body.strip() == "ok"
        one_line(service, "HEAPGAUGE_TOPN", *VARIABLES)


def malformed_values():
    """An invalid value is named with its variable and the allowed values."""
    cases = [("HEAPGAUGE", "maybe", "on"), ("HEAPGAUGE_TOP_N", "many", ""), ("HEAPGAUGE_TOP_N", "-1", ""),
             ("HEAPGAUGE_DELTA_WINDOW", "5 parsecs", "5m"), ("HEAPGAUGE_OLD_AGE", "8d", "1s to 7d"), ("HEAPGAUGE_FRAMES", "65", "64"),
             ("HEAPGAUGE_FRAMES", "0", "1"), ("HEAPGAUGE_MAX_OVERHEAD", "lots", "MiB"),
             ("HEAPGAUGE_SITE", "mine", "own and nearest"), ("HEAPGAUGE_OWN_CRATES", "shop", "-common::cache"),
             ("HEAPGAUGE_LOOK_THROUGH", "bytes", "+arena"),
             ("HEAPGAUGE_EXPOSE", "yes please", "metrics, pprof and all"),
             ("HEAPGAUGE_DEBUG_ADDR", "0.0.0.0:9899", "loopback"), ("HEAPGAUGE_SAMPLE", "now and then", "exact")]
    for name, value, allowed in cases:
        with Service("--quiet-traffic", env={name: value}) as service:
            assert get(service.port(), "/health").status == 200
            one_line(service, name, value, allowed)
    # An invalid HEAPGAUGE_QUIET leaves the line of the address on.
    with Service("--quiet-traffic", env={"HEAPGAUGE_QUIET": "hush"}) as service:
        address = f"http://127.0.0.1:{service.port()} has the page /debug/heap"
        lines = goes_on(service)
        assert sum(address in line for line in lines) == 1, lines
        only_line(service, [line for line in lines if address not in line], "HEAPGAUGE_QUIET", "hush", "off")
    # 1 MiB is taken, in which some names may find no room: that is a second line.
    with Service("--quiet-traffic", env={"HEAPGAUGE_MAX_OVERHEAD": "12"}) as service:
        assert get(service.port(), "/health").status == 200
        first, *others = service.errors()
        assert "HEAPGAUGE_MAX_OVERHEAD=12" in first and "at least 1MiB" in first, first
        assert all("no more memory for names" in line for line in others), others


def switched_off():
    """`HEAPGAUGE=off`: no listener and no line; the program works."""
    with Service("--quiet-traffic", env={"HEAPGAUGE": "off"}) as service:
        assert goes_on(service) == []
        assert service.said("listening on") == []


def too_little_overhead():
    """A very small memory limit is reported once, all bytes are counted, and the rest works."""
    with Service("--quiet-traffic", env={"HEAPGAUGE_MAX_OVERHEAD": "1MiB"}) as service:
        service.documents()
        dropped = {"reason": "memory"}
        wait_for("events to be dropped", lambda: service.metrics().value("heap_dropped_events_total", **dropped) > 0)
        wait_for("a line about it", service.errors)
        time.sleep(3)
        assert service.metrics().value("heap_live_bytes") > 0
        said = goes_on(service)
        assert len(said) in (1, 2) and len(set(said)) == len(said), said
        for line in said:
            assert "HEAPGAUGE_MAX_OVERHEAD" in line and ("for tables" in line or "for names" in line), line


def paths_and_methods():
    """404, 405 and the headers that keep a browser from guessing a content type."""
    with Service("--quiet-traffic") as service:
        port = service.port()
        expected = [("GET", "/health", 200), ("GET", "/metrics", 200), ("GET", "/", 307), ("GET", "/metrics/x", 404),
                    ("GET", "/%2e%2e/etc/passwd", 404), ("POST", "/metrics", 405), ("DELETE", "/health", 405),
                    ("PUT", "/metrics", 405)]
        for method, path, status in expected:
            answer = get(port, path, method)
            assert answer.status == status, (method, path, answer.status)
            assert answer.headers["x-content-type-options"] == "nosniff", (method, path, answer.headers)
            assert status == 200 or len(answer.body.strip().splitlines()) <= 1, answer.body
        assert get(port, "/health").body.strip() == "ok"
        assert goes_on(service) == []


def foreign_hosts():
    """A page of another site gets 403, by its Host or its Origin."""
    with Service("--quiet-traffic") as service:
        port = service.port()
        for host in ["example.com", f"example.com:{port}", "127.0.0.1.example.com", "localhost.example.com"]:
            answer = get(port, "/metrics", headers={"Host": host})
            assert answer.status == 403, (host, answer.status)
            assert len(answer.body.strip().splitlines()) == 1 and "heap_" not in answer.body, answer.body
        for origin in ["http://example.com", "https://example.com:9898", "null"]:
            assert get(port, "/metrics", headers={"Origin": origin}).status == 403, origin
        for host in [f"127.0.0.1:{port}", f"localhost:{port}", "localhost", f"[::1]:{port}"]:
            assert get(port, "/metrics", headers={"Host": host}).status == 200, host
        goes_on(service)


def broken_requests():
    """Bytes that are not HTTP, an endless request and too many headers end the connection."""
    with Service("--quiet-traffic") as service:
        port = service.port()
        broken = [b"\0\1\2\3\r\n\r\n", b"GET /metrics HTTP/9.9\r\n\r\n", b"GET", b"\x16\x03\x01\x02\x00",
                  b"GET /metrics HTTP/1.1\r\n" + b"".join(b"x-%d: y\r\n" % i for i in range(20_000)) + b"\r\n",
                  b"GET /" + b"a" * 2_000_000 + b" HTTP/1.1\r\n\r\n"]
        for number, data in enumerate(broken):
            with socket.create_connection(("127.0.0.1", port), 20) as connection:
                try:
                    connection.sendall(data)
                    connection.shutdown(socket.SHUT_WR)
                    first = connection.recv(64)
                except OSError:  # the server closed it first
                    first = b""
                assert b" 200 " not in first, (number, first)
        # Many silent connections do not delay the answer of another.
        idle = [socket.create_connection(("127.0.0.1", port), 20) for _ in range(20)]
        assert get(port, "/health").status == 200
        for connection in idle:
            connection.close()
        assert goes_on(service) == []


def flags_that_are_none():
    """A wrong flag is one line that names it, with exit code 2; help exits with 0."""
    program = EXAMPLES / "leaky_service"
    for flags, word in [(["--nonsense"], "--nonsense"), (["--listen"], "--listen"), (["--listen", "here"], "here"),
                        (["--leak-rate", "much"], "much"), (["--leak-rate=-1"], "-1"), (["--for", "ever"], "ever"),
                        (["--for", "-1"], "-1"), (["more"], "more")]:
        ended = subprocess.run([program, *flags], capture_output=True, text=True, timeout=20)
        assert (ended.returncode, ended.stdout) == (2, ""), (flags, ended)
        assert len(ended.stderr.splitlines()) == 1 and word in ended.stderr, (flags, ended.stderr)
    ended = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=20)
    assert ended.returncode == 0 and ended.stderr == "", ended
    for flag in ["--listen", "--quiet-traffic", "--leak-rate", "--for"]:
        assert flag in ended.stdout, flag


def signals_end_it():
    """SIGTERM, ctrl-c and `--for` end the program at once with 0, traffic or not."""
    for how in [signal.SIGTERM, signal.SIGINT]:
        for flags in [[], ["--quiet-traffic"]]:
            with Service(*flags) as service:
                service.documents()
                get(service.port(), "/metrics")
                assert service.stop(how) == 0, service.output()
    with Service("--for", "2") as service:
        assert service.process.wait(20) == 0


main([address_in_use, addresses_that_are_none, unknown_variables, malformed_values, switched_off, too_little_overhead,
      paths_and_methods, foreign_hosts, broken_requests, flags_that_are_none, signals_end_it])
