"""Runs VictoriaMetrics, and vmalert beside it, with the interface of `support.Prometheus`."""

import pathlib
import re
import shutil
import signal
import tempfile

from support import GROUPS_A_MINUTE, Program, Prometheus, free_port, get, wait_for


class VictoriaMetrics(Program):
    """Scrapes and keeps, on a free loopback port; `alerts` is the vmalert that evaluates the rules every `minute` milliseconds."""

    def __init__(self, programs, config, rules, minute):
        database, alerts = (shutil.which(name, path=programs) for name in ("victoria-metrics", "vmalert"))
        assert database and alerts, f"victoria-metrics or vmalert is not in {programs}: Debian's newest distribution has a package of both"
        self.directory = tempfile.TemporaryDirectory(prefix="heapgauge-victoria-metrics-")
        folder = pathlib.Path(self.directory.name)
        # Rules and their interval are vmalert's.
        lines = [line for line in config.splitlines() if not re.match(r"\s*(rule_files|evaluation_interval|refresh_interval):", line)]
        (folder / "scrape.yml").write_text("\n".join(lines))
        self.web = free_port()
        url = f"http://127.0.0.1:{self.web}"
        super().__init__([
            database, f"-storageDataPath={folder / 'data'}", f"-httpListenAddr=127.0.0.1:{self.web}",
            f"-promscrape.config={folder / 'scrape.yml'}", f"-promscrape.httpSDCheckInterval={minute}ms",
            f"-search.maxLookback={5 * minute}ms", "-search.latencyOffset=0s", "-search.disableCache",
            "-search.maxUniqueTimeseries=1000000", "-search.maxSeries=1000000"])
        wait_for("VictoriaMetrics is ready", lambda: self._answers(self.web))
        port = free_port()
        self.alerts = Program([
            alerts, f"-rule={rules}", f"-datasource.url={url}", f"-remoteWrite.url={url}", f"-remoteRead.url={url}",
            f"-httpListenAddr=127.0.0.1:{port}", f"-evaluationInterval={minute}ms", f"-datasource.queryStep={5 * minute}ms",
            "-rule.evalDelay=0s", f"-remoteWrite.flushInterval={minute // 20}ms", "-notifier.blackhole",
            "-external.url=http://127.0.0.1"])
        self.alerts.web = port

    def _answers(self, port):
        try:
            return get(port, "/health").status == 200
        except OSError:
            return False

    def ready(self):
        wait_for("vmalert is ready", lambda: self._answers(self.alerts.web))
        return self

    query = Prometheus.query

    def reload(self):
        self.alerts.process.send_signal(signal.SIGHUP)

    def processes(self):
        return [self.process, self.alerts.process]

    def stop_scraping(self):
        pathlib.Path(self.directory.name, "scrape.yml").write_text("global: {}\n")
        self.process.send_signal(signal.SIGHUP)

    def rules(self):
        return Prometheus.rules(self.alerts)

    def evaluations(self):
        done = sum(self.figures("vmalert_iteration_total"))
        return done, done + sum(self.figures("vmalert_iteration_missed_total"))

    def figures(self, name):
        return Prometheus.figures(self.alerts, name)

    def firing(self):
        alerts = Prometheus.firing(self.alerts)
        for alert in alerts:
            alert["labels"].setdefault("alertname", alert["name"])
        return alerts

    def evaluated(self):
        total, missed = sum(self.figures("vmalert_iteration_total")), sum(self.figures("vmalert_iteration_missed_total"))
        failed = sum(self.figures("vmalert_alerting_rules_errors_total") + self.figures("vmalert_recording_rules_errors_total"))
        spent = sum(self.figures("vmalert_iteration_duration_seconds_sum"))
        return missed / max(total + missed, 1), failed, spent / max(total / GROUPS_A_MINUTE, 1)

    def __exit__(self, *arguments):
        self.alerts.__exit__(*arguments)
        super().__exit__(*arguments)
        self.directory.cleanup()
