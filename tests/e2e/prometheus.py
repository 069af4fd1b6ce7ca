"""Finds the line of a leak by queries to Prometheus, and by the sentence that the service prints."""

import re
import subprocess
import time

from support import SOURCE, Prometheus, Service, get, leak_line, main, wait_for

CONFIG = """
global:
  scrape_interval: 2s
  scrape_timeout: 2s
scrape_configs:
  - job_name: leaky_service
    static_configs:
      - targets: ["127.0.0.1:{port}"]
"""

TOP = "topk(1, heap_site_live_delta_bytes) * on (job, instance, site) group_left (file, line, crate) heap_site_info"


def prometheus_names_the_leaking_line():
    """After half a minute the greatest delta, joined with the names, is the planted leak."""
    with Service() as service, Prometheus(CONFIG.format(port=service.port())) as prometheus:
        prometheus.ready()

        def top():
            rows = prometheus.query(TOP)
            return len(rows) == 1 and (rows[0][0]["file"], rows[0][0]["line"]) == (SOURCE, str(leak_line())) and rows

        time.sleep(max(0.0, 30 - (time.monotonic() - service.started)))
        # A busy machine may delay a scrape or two.
        labels, delta = wait_for(f"{SOURCE}:{leak_line()} on top: {prometheus.query(TOP)}", top, 30)[0]
        assert labels["function"].endswith("Cache::insert"), labels
        assert labels["crate"] == "leaky_service", labels
        assert delta > 0, delta
        for _ in range(5):
            time.sleep(2)
            assert top(), prometheus.query(TOP)

        (_, up), = prometheus.query('up{job="leaky_service"}')
        assert up == 1
        # Joins must find exactly one partner for each series.
        sites = prometheus.query("count by (job, instance) (heap_site_live_bytes)")
        joined = prometheus.query(
            "count by (job, instance) (heap_site_live_bytes * on (job, instance, site) group_left (file, line) heap_site_info)")
        assert sites == joined and len(sites) == 1, (sites, joined)
        other = prometheus.query("heap_live_bytes - on (job, instance) sum by (job, instance) (heap_site_live_bytes)")
        assert len(other) == 1 and other[0][1] >= 0, other
        problems = [line for line in prometheus.errors() if re.search(r"level=(warn|error).*(scrape|append)", line)]
        assert problems == [], problems


def promtool_finds_nothing():
    """`promtool check metrics` prints nothing about the exposition of a busy program."""
    with Service() as service:
        service.named()
        text = get(service.port(), "/metrics").body
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", ""), checked


def the_service_says_which_line_leaks():
    """Within half a minute the service prints the sentence, with a rate close to the requested one."""
    rate = 200_000
    with Service("--leak-rate", rate) as service:
        sentence = rf"^leak: {re.escape(SOURCE)}:{leak_line()} Cache::insert \+(\d+\.\d) (KiB|MiB)/min(, limit in .+)?$"
        at, match = service.wait_line(sentence, 40)
        assert at < 30, f"only after {at:.1f} s"
        per_minute = float(match[1]) * {"KiB": 2**10, "MiB": 2**20}[match[2]]
        # The map of the copies doubles on the same line: some kilobytes.
        assert 0.8 < per_minute / (rate * 60) < 1.3, f"{per_minute / 60:.0f} bytes a second, planted {rate}"
        others = [m.string for _, m in service.said(r"^leak: ") if not re.match(sentence, m.string)]
        assert others == [], others
        assert service.stop() == 0, service.output()
        assert service.errors() == []


def a_service_without_a_leak_accuses_nobody():
    """With `--leak-rate 0` the same traffic gives no sentence, and `--for` ends it in time."""
    with Service("--leak-rate", "0", "--for", "45") as service:
        assert service.process.wait(60) == 0
        ended = time.monotonic() - service.started
        assert 45 <= ended < 50, ended
        assert service.said("leak: ") == [], service.output()
        assert service.errors() == []


main([prometheus_names_the_leaking_line, promtool_finds_nothing,
      the_service_says_which_line_leaks, a_service_without_a_leak_accuses_nobody])
