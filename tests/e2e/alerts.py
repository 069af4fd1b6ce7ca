"""Sends a leak in one of three services through Prometheus and Alertmanager to one notification that names its line.

The shipped prometheus.yml, alertmanager.yml and rules are taken as they are, but for addresses, and for time, which
runs 120 times as fast: two hours are a minute.
"""

import http.server
import json
import pathlib
import re
import subprocess
import tempfile
import threading
import time

from support import ROOT, SOURCE, Program, Prometheus, Service, faster, free_port, get, leak_line, main, wait_for

SPEED = 120
LEAK_RATE = 400_000  # bytes a second
DASHBOARDS = ROOT / "dashboards"


class Webhook:
    """Collects the alerts of all notifications of Alertmanager, in order."""

    def __init__(self):
        self.alerts = alerts = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                alerts.extend(body["alerts"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Alertmanager(Program):
    """Runs Debian's Alertmanager on a free loopback port."""

    def __init__(self, config, directory):
        self.web = free_port()
        path = pathlib.Path(directory, "alertmanager.yml")
        path.write_text(config)
        super().__init__([
            "prometheus-alertmanager", f"--config.file={path}", f"--storage.path={directory}/alertmanager",
            f"--web.listen-address=127.0.0.1:{self.web}", "--cluster.listen-address="])

    def ready(self):
        def look():
            assert self.process.poll() is None, f"alertmanager ended:\n{self.output()}"
            try:
                return get(self.web, "/-/ready").status == 200
            except OSError:
                return False
        wait_for("alertmanager is ready", look)


def replaced(text, old, new):
    assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times"
    return text.replace(old, new)


def warmed_up(services):
    """Waits until the C library's share of a young process grows no more: at this speed a minute of it is two hours."""
    def resident():
        return [service.metrics().value("heap_resident_bytes") for service in services]

    before, deadline = resident(), time.monotonic() + 180
    while True:
        time.sleep(20)
        now = resident()
        if all(new < 1.01 * old for old, new in zip(before, now)):
            return
        assert time.monotonic() < deadline, f"resident bytes still rise: {before}, {now}"
        before = now


def the_webhook_gets_function_file_and_line():
    """One HeapFunctionGrowing arrives with function, line, release and rate; nothing about the two that do not leak."""
    with tempfile.TemporaryDirectory(prefix="heapgauge-alerts-") as directory, Webhook() as webhook:
        rules = pathlib.Path(directory, "heapgauge.rules.yml")
        rules.write_text(faster((DASHBOARDS / "rules" / "heapgauge.rules.yml").read_text(), SPEED))
        checked = subprocess.run(["promtool", "check", "rules", rules], capture_output=True, text=True, timeout=60)
        assert checked.returncode == 0, checked

        alerting = faster((DASHBOARDS / "alertmanager.yml").read_text(), SPEED)
        alerting = replaced(alerting, "    # webhook_configs:\n    #   - url: http://127.0.0.1:8080/\n",
                            f"    webhook_configs:\n      - url: http://127.0.0.1:{webhook.port}/\n")
        # A leak is an `info` at first.
        alerting = replaced(alerting, 'severity="info"]\n      receiver: nobody\n', 'severity="info"]\n      receiver: on-call\n')
        # Five minutes and an hour, as fast as that.
        env = {"HEAPGAUGE_DELTA_WINDOW": "3s", "HEAPGAUGE_OLD_AGE": "30s", "HEAPGAUGE_RELEASE": "2.3"}
        with Service("--leak-rate", LEAK_RATE, env={**env, "HEAPGAUGE_RELEASE": "2.4"}) as leaking, \
                Service("--leak-rate", "0", env=env) as one, \
                Service("--leak-rate", "0", env=env) as two, Alertmanager(alerting, directory) as alertmanager:
            services = [leaking, one, two]
            instances = [f"127.0.0.1:{service.port()}" for service in services]
            alertmanager.ready()
            warmed_up([one, two])
            config = (DASHBOARDS / "prometheus.yml").read_text()
            # heapgauge takes at most one snapshot a second.
            config = config.replace("15s", "1s")
            config = replaced(config, "rules/heapgauge.rules.yml", str(rules))
            config = replaced(config, "127.0.0.1:9093", f"127.0.0.1:{alertmanager.web}")
            config = replaced(config, '"127.0.0.1:9898"', ", ".join(f'"{instance}"' for instance in instances))
            with Prometheus(config, f"--query.lookback-delta={5 * 60_000 // SPEED}ms") as prometheus:
                prometheus.ready()

                def growing():
                    return [alert for alert in list(webhook.alerts) if alert["labels"]["alertname"] == "HeapFunctionGrowing"]

                # Two hours of life, half an hour of rise, ten minutes to confirm: 80 s at this speed.
                alert = wait_for(f"HeapFunctionGrowing at the webhook\n{alertmanager.output()}", growing, 240)[0]
                time.sleep(30)  # an hour, for the others

                labels, annotations = alert["labels"], alert["annotations"]
                assert alert["status"] == "firing", alert
                assert labels == {"alertname": "HeapFunctionGrowing", "function": "leaky_service::Cache::insert",
                                  "job": "leaky_service", "severity": "info"}, labels
                said = re.match(
                    r"leaky_service::Cache::insert grows in 1 of 3 processes of leaky_service that can be judged; by release:"
                    r" 0 of 2 of 2\.3, 1 of 1 of 2\.4\. It gains ([\d.]+)(Ki|Mi)B a minute in all, since about \d\d:\d\d UTC"
                    rf".*\. Most at {re.escape(SOURCE)}:{leak_line()} in {re.escape(instances[0])}$", annotations["description"])
                assert said, annotations
                rate = float(said[1]) * {"Ki": 2**10, "Mi": 2**20}[said[2]] / 60
                assert 0.6 < rate / LEAK_RATE < 1.6, f"{rate:.0f} bytes a second, planted {LEAK_RATE}"
                assert annotations["summary"] == "Heap leak: leaky_service::Cache::insert in leaky_service (processes: 1)"
                assert annotations["runbook_url"].endswith("/HeapFunctionGrowing.md")

                # No other alert, sent or fired, and none that is warned of twice.
                assert {tuple(sorted(other["labels"].items())) for other in webhook.alerts} == {tuple(sorted(labels.items()))}
                # The parts of resident memory are read every ten seconds, which are 20 minutes at this speed: one step of half a
                # megabyte looks like steady growth. `rules.py` has the alert about them, with a reading a minute.
                alerts = 'ALERTS{alertstate="firing",alertname!="HeapGrowsOutsideTracker"}'
                fired = prometheus.query(f"count by (alertname, function) (last_over_time({alerts}[1h]))")
                assert [row for row, _ in fired] == [{name: labels[name] for name in ("alertname", "function")}], fired
                # Without this the silence would prove nothing: all three were scraped all the time, and no rule failed. (A busy
                # machine may miss a scrape.)
                watched = prometheus.query('avg_over_time(up{job="leaky_service"}[1h]) > 0.9')
                assert sorted(row["instance"] for row, _ in watched) == sorted(instances), watched
                rules_seen = json.loads(get(prometheus.web, "/api/v1/rules").body)["data"]["groups"]
                assert [rule for group in rules_seen for rule in group["rules"] if rule["health"] != "ok"] == [], rules_seen
                shipped = len(re.findall(r"^ *- (?:alert|record):", rules.read_text(), re.M))
                assert sum(len(group["rules"]) for group in rules_seen) == shipped > 0
                failed = prometheus.errors()
                assert [line for line in failed if "Evaluating rule failed" in line] == [], failed


main([the_webhook_gets_function_file_and_line])
