"""The dashboard, the runbooks and the Kubernetes files: tidy, equal to their sources, and answered by a real service.

    tests/e2e/dashboards.py            all of it
    tests/e2e/dashboards.py --write    writes the files under dashboards/kubernetes/ that are made from others
"""

import json
import pathlib
import re
import sys
import time
import urllib.parse

DASHBOARDS = pathlib.Path(__file__).resolve().parents[2] / "dashboards"
BOARD = DASHBOARDS / "heapgauge.json"
RULES = DASHBOARDS / "rules" / "heapgauge.rules.yml"
TARGET_LABELS = {"cluster", "namespace", "pod", "job", "instance"}

PROMETHEUS_RULE = """\
# The rules of ../rules/heapgauge.rules.yml as a PrometheusRule: `tests/e2e/dashboards.py --write` makes this file.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: heapgauge
  labels:
    app.kubernetes.io/name: heapgauge
spec:
"""
CONFIG_MAP = """\
# The dashboard ../heapgauge.json for Grafana's sidecar: `tests/e2e/dashboards.py --write` makes this file.
apiVersion: v1
kind: ConfigMap
metadata:
  name: heapgauge-dashboard
  labels:
    app.kubernetes.io/name: heapgauge
    grafana_dashboard: "1"
data:
  heapgauge.json: |
"""


def indented(text, spaces):
    return "".join(" " * spaces + line if line.strip() else line for line in text.splitlines(keepends=True))


def made():
    """Each file that is made from another, and what it has to hold."""
    return {
        DASHBOARDS / "kubernetes" / "prometheusrule.yaml": PROMETHEUS_RULE + indented(RULES.read_text(), 2),
        DASHBOARDS / "kubernetes" / "dashboard-configmap.yaml": CONFIG_MAP + indented(BOARD.read_text(), 4),
    }


def board():
    return json.loads(BOARD.read_text())


def panels():
    """Every panel that is not a row."""
    return [panel for panel in board()["panels"] if panel["type"] != "row"]


def the_dashboard_is_tidy():
    """Unique ids, stable uid, title, description and unit everywhere, every target templated, no absolute time."""
    whole = board()
    assert whole["uid"] == "heapgauge" and 39 <= whole["schemaVersion"] <= 42
    assert "__inputs" not in whole and "__requires" not in whole and "id" not in whole
    assert all(re.fullmatch(r"now(-\d+[smhd])?", whole["time"][end]) for end in ("from", "to")), whole["time"]
    variables = [variable["name"] for variable in whole["templating"]["list"]]
    assert variables == ["datasource", "cluster", "namespace", "job", "instance", "function", "site", "topn"]

    everything = whole["panels"]
    ids = [panel["id"] for panel in everything]
    assert len(ids) == len(set(ids)), ids
    rows = [panel["title"] for panel in everything if panel["type"] == "row"]
    assert rows == ["Overview", "Heap, resident memory and limit", "Top sites", "Growth", "Allocation and free rate",
                    "Fleet", "Tracker health", "Sampling"], rows
    cells = [(x, y) for panel in everything for place in [panel["gridPos"]]
             for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) == 23, "panels overlap or leave the grid"

    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels():
        name = panel["title"]
        assert name and panel["description"].endswith("."), name
        assert panel["fieldConfig"]["defaults"]["unit"], name
        assert panel["datasource"] == source, name
        refs = [target["refId"] for target in panel["targets"]]
        assert refs and len(refs) == len(set(refs)), name
        for target in panel["targets"]:
            assert target["datasource"] == source, name
    titles = [panel["title"] for panel in panels()]
    assert all(titles.count(title) <= 2 for title in titles), titles

    for where, query in queries():
        # Every selector, so that no panel mixes in processes that were not chosen.
        for selector in re.findall(r"\bheap_\w+(\{[^}]*\})?", query):
            for label in ("cluster", "namespace", "job", "instance"):
                assert f'{label}=~"${label}"' in selector, f"{where}: {query}"
        for function, window in re.findall(r"\b(rate|irate|increase)\(heap_\w+\{[^}]*\}\[([^]]*)\]", query):
            assert window == "$__rate_interval" or (function, window) == ("increase", "$__range"), f"{where}: {query}"
        assert not re.search(r"@ *\d|\b1[0-9]{9}\b|\b20\d\d-\d\d", query), f"{where}: absolute time in {query}"
        for labels in re.findall(r"[-+*/<>=] on \(([^)]*)\)", query):
            assert labels.replace(" ", "").split(",")[:5] == ["cluster", "namespace", "pod", "job", "instance"], query


def queries():
    """Every PromQL query of the dashboard with the place it stands at."""
    found = [(f"{panel['title']} {target['refId']}", target["expr"]) for panel in panels() for target in panel["targets"]]
    found += [(entry["name"], entry["expr"]) for entry in board()["annotations"]["list"] if "expr" in entry]
    return found


def kubernetes_files_hold_their_sources():
    """prometheusrule.yaml and dashboard-configmap.yaml are their sources, indented; podmonitor.yaml scrapes the same."""
    for path, text in made().items():
        assert path.read_text() == text, f"{path.name} differs from its source; tests/e2e/dashboards.py --write makes it"
    monitor = (DASHBOARDS / "kubernetes" / "podmonitor.yaml").read_text()
    scrape = (DASHBOARDS / "prometheus.yml").read_text()
    def setting(text, name):
        value, = re.findall(rf"^ *{name}: (\S+)$", text, re.MULTILINE)
        return value
    assert setting(monitor, "interval") == setting(scrape, "scrape_interval")
    assert setting(monitor, "sampleLimit") == setting(scrape, "sample_limit")
    assert setting(monitor, "path") == "/metrics"


def every_alert_has_a_runbook():
    """Each alert says how bad it is, for how long, and where its runbook is; each runbook has its four parts."""
    alerts = re.split(r"^ +- (?=alert: )", RULES.read_text(), flags=re.MULTILINE)[1:]
    names = []
    for alert in alerts:
        name = re.match(r"alert: (\w+)\n", alert)[1]
        names.append(name)
        for part in ["for", "keep_firing_for", "severity", "summary", "description"]:
            assert re.search(rf"^ +{part}: ", alert, re.MULTILINE), (name, part)
        assert f"runbook_url: https://runbooks.example.com/heapgauge/{name}.md\n" in alert, name
        text = (DASHBOARDS / "runbooks" / f"{name}.md").read_text()
        assert text.startswith(f"# {name}\n\n**Meaning.** "), name
        parts = re.findall(r"^(?:\*\*(Meaning|Impact)\.\*\* |## (\w+)$)", text, re.MULTILINE)
        assert ["".join(part) for part in parts] == ["Meaning", "Impact", "Diagnosis", "Mitigation"], (name, parts)
        assert "```sh\n" in text.split("## Diagnosis")[1].split("## Mitigation")[0], name
    assert sorted(path.stem for path in (DASHBOARDS / "runbooks").iterdir()) == sorted(names)
    assert sorted(names) == ["HeapGrowsOutsideTracker", "HeapLinesLost", "HeapSiteExhaustsMemory", "HeapSiteGrowing", "HeapTrackerOff",
                             "HeapTrackerSaturated", "HeapWillExceedLimit"]


WORDS = set("""abs and by changes clamp_min count deriv end group_left group_right increase label_join last_over_time
    max max_over_time min min_over_time offset on or predict_linear rate resets sum time timestamp topk unless
    without""".split())


def names_in(query):
    """Metrics and labels a query names. A word it uses beside those of PromQL known here is an assertion."""
    text = re.sub(r"#.*", "", query)
    labels = set(re.findall(r"(\w+) *(?:=~|!~|!=|=)(?!=) *\"", text))
    text = re.sub(r"\{[^}]*\}", "", text)
    for inside in re.findall(r"\b(?:by|on|without|group_left|group_right) *\(([^)]*)\)", text):
        labels |= set(re.findall(r"\w+", inside))
    text = re.sub(r"\b(by|on|without|group_left|group_right) *\([^)]*\)", "", text)
    # label_join(query, "made", separator, "from", …): what it makes is no label of the exposition.
    labels |= set(re.findall(r", \"(\w+)\"", text)) - set(re.findall(r", \"(\w+)\", \"[^\w\"]", text))
    text = re.sub(r"\"[^\"]*\"|\[[^]]*\]|\$\w+|\b\d\w*", "", text)
    words = set(re.findall(r"[A-Za-z_:][\w:]*", text))
    metrics = {word for word in words if ":" in word or word.startswith("heap_")}
    unknown = words - metrics - WORDS
    assert not unknown, f"{sorted(unknown)} in {query}"
    return metrics, labels


SCRAPES = """
global:
  scrape_interval: 1s
  scrape_timeout: 1s
scrape_configs:
  - job_name: plain
    static_configs:
      - targets: ["127.0.0.1:{port}"]
  - job_name: labelled
    static_configs:
      - targets: ["127.0.0.1:{port}"]
        labels: {{cluster: east, namespace: shop, pod: cart-0}}
"""


def every_query_is_answered_by_a_real_service():
    """Prometheus scrapes leaky_service; each query of the dashboard, for each choice of its variables, has data."""
    from support import SOURCE, Exposition, Prometheus, Service, get, leak_line, wait_for

    with Service() as service, Prometheus(SCRAPES.format(port=service.port())) as prometheus:
        site = service.named()
        prometheus.ready()
        started = time.time()
        exposition = Exposition(get(service.port(), "/metrics").body)
        limited = any(sample.name == "heap_memory_limit_bytes" for sample in exposition.samples)
        known = {}  # metric -> its labels
        for sample in exposition.samples:
            known.setdefault(sample.name, set()).update(sample.labels)
        known.setdefault("heap_memory_limit_bytes", set())  # absent without a limit, but a name of the exposition
        # Absent while every allocation is recorded; `sampled_panels_have_data` asks for these.
        known.setdefault("heap_site_live_stderr_bytes", {"site", "function"})

        def check_names(where, query, recorded=()):
            metrics, labels = names_in(query)
            assert metrics, f"{where}: {query}"
            assert metrics - set(recorded) <= set(known), f"{where}: {sorted(metrics - set(known))} are not exported"
            there = set().union(TARGET_LABELS, *(known[metric] for metric in metrics & set(known)))
            if not metrics <= set(recorded):
                assert labels <= there, f"{where}: {sorted(labels - there)} are no labels of {sorted(metrics)}"

        for where, query in queries():
            check_names(where, query)
        # The same for the rules; recorded series carry the labels of what they are made from.
        rules = re.sub(r"^ *#.*\n", "", RULES.read_text(), flags=re.MULTILINE)
        recorded = re.findall(r"- record: (\S+)", rules)
        expressions = re.findall(r"^( +)expr: (?:\|\n((?:\1 +.*\n)+)|(.*)\n)", rules, re.MULTILINE)
        assert len(expressions) == len(re.findall(r"- (?:record|alert): ", rules)) == len(recorded) + 6
        for _, block, line in expressions:
            metrics, labels = names_in(block or line)
            assert metrics <= set(known) | set(recorded), sorted(metrics - set(known) - set(recorded))
            assert labels <= TARGET_LABELS | {"site", "function", "file", "line", "reason"}, labels
            for inside in re.findall(r"\bon \(([^)]*)\)", block or line):
                matched = inside.split(", ")
                assert matched in (["cluster", "namespace", "pod", "job", "instance"],
                                   ["cluster", "namespace", "pod", "job", "instance", "site"]), inside

        function = exposition.info()[site]["function"]
        instance = re.escape(f"127.0.0.1:{service.port()}")
        everything = {name: ".*" for name in ["cluster", "namespace", "job", "instance", "function", "site"]}
        choices = [
            everything,
            {**everything, "job": "plain", "instance": instance},
            {**everything, "cluster": "east", "namespace": "shop", "job": "labelled", "instance": instance,
             "function": re.escape(function), "site": site},
        ]

        def filled(query, choice):
            values = {**{k: v.replace("\\", "\\\\") for k, v in choice.items()}, "topn": "10", "__rate_interval": "10s",
                      "__range": "5m"}
            return re.sub(r"\$(\w+)", lambda m: values[m[1]], query)

        def answer(query, instant):
            now = time.time()
            if instant:
                path, arguments = "query", {"query": query}
            else:
                path, arguments = "query_range", {"query": query, "start": max(started, now - 60), "end": now, "step": 1}
            answer = get(prometheus.web, f"/api/v1/{path}?{urllib.parse.urlencode(arguments)}")
            assert answer.status == 200, f"{query}: {answer.status} {answer.body}"
            body = json.loads(answer.body)
            assert not body.get("warnings"), body["warnings"]
            return body["data"]["result"]

        asked = 0
        for choice in choices:
            for panel in panels():
                for target in panel["targets"]:
                    query, instant = filled(target["expr"], choice), target.get("instant", False)
                    where = f"{panel['title']} {target['refId']}: {query}"
                    if "heap_memory_limit_bytes" in query and not limited or "heap_site_live_stderr_bytes" in query:
                        assert answer(query, instant) == [], where
                    else:  # rates want two scrapes
                        wait_for(f"data for {where}", lambda: answer(query, instant), 60)
                    asked += 1
        assert asked == 3 * sum(len(panel["targets"]) for panel in panels())

        # The table that names the line does name it: one row for each process, three queries that join by their labels.
        table, = (panel for panel in panels() if panel["title"] == "Sites that grow")
        rows = [answer(filled(target["expr"], choices[2]), True) for target in table["targets"]]
        assert [[row["metric"]["location"] for row in found] for found in rows] == [[f"{SOURCE}:{leak_line()}"]] * 3, rows
        keys = [{k: v for k, v in found[0]["metric"].items() if k != "__name__"} for found in rows]
        assert keys[0] == keys[1] == keys[2], keys
        # Top sites and other are the live bytes.
        top, = (panel for panel in panels() if panel["title"] == "Live bytes of the top sites")
        parts, other = (f"sum({filled(target['expr'], choices[1])})" for target in top["targets"])
        (_, live), = prometheus.query(f'sum(heap_live_bytes{{job="plain"}}) - ({parts}) - ({other})')
        assert live == 0, live
        for entry in board()["annotations"]["list"]:
            if "expr" in entry:
                start = answer(filled(entry["expr"], choices[1]), True)
                assert float(start[0]["value"][1]) == 1000 * exposition.value("heap_start_timestamp_seconds")

        # The variables offer what there is.
        offered = {}
        for variable in board()["templating"]["list"]:
            if variable["type"] != "query":
                continue
            asks = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert variable["definition"] == variable["query"]["query"] and variable["allValue"] == ".*"
            selector, label = filled(asks[1], choices[0]), asks[2]
            check_names(variable["name"], selector)
            found = get(prometheus.web, "/api/v1/series?" + urllib.parse.urlencode({"match[]": selector}))
            offered[label] = {series[label] for series in json.loads(found.body)["data"] if label in series}
        assert offered["cluster"] == {"east"} and offered["namespace"] == {"shop"}, offered
        assert offered["job"] == {"plain", "labelled"} and offered["instance"] == {f"127.0.0.1:{service.port()}"}
        assert function in offered["function"] and site in offered["site"]

        # As many series as the page on production says, in the text and in Prometheus.
        page = (DASHBOARDS / "README.md").read_text()
        fixed, each, most = map(int, re.search(
            r"(\d+) series a process and (\d+) for each exported site: at most (\d+)", page).groups())
        assert most == fixed + 40 * each <= 240
        for _ in range(5):
            exposition = Exposition(get(service.port(), "/metrics").body)
            expected = fixed - (not limited) + each * exposition.value("heap_sites_exported")
            assert len(exposition.samples) == expected, (len(exposition.samples), expected)
            time.sleep(1.1)
        (_, stored), = prometheus.query('count({__name__=~"heap_.+", job="plain"})')
        (_, sites), = prometheus.query('heap_sites_exported{job="plain"}')
        assert stored == fixed - (not limited) + each * sites, (stored, sites)


def sampled_panels_have_data():
    """A sampled service: the row Sampling is answered, and what a site may be off is exported with it."""
    from support import Exposition, Prometheus, Service, get, wait_for

    with Service("--leak-rate", "2000000", env={"HEAPGAUGE_SAMPLE": "32KiB"}) as service, \
            Prometheus(SCRAPES.format(port=service.port())) as prometheus:
        service.named()
        prometheus.ready()
        exposition = Exposition(get(service.port(), "/metrics").body)
        assert exposition.value("heap_sample_interval_bytes") == 32 << 10
        errors = exposition.by_site("heap_site_live_stderr_bytes")
        assert set(errors) == set(exposition.by_site("heap_site_live_bytes"))
        assert 0 < max(errors.values()) < exposition.value("heap_live_bytes")
        row, = (panel["gridPos"]["y"] for panel in board()["panels"] if panel["title"] == "Sampling")
        sampling = [panel for panel in panels() if panel["gridPos"]["y"] > row]
        assert len(sampling) == 3
        for panel in sampling:
            for target in panel["targets"]:
                query = re.sub(r'"\$(?!topn)\w+"', '".*"', target["expr"]).replace("$topn", "10")
                wait_for(f"data for {query}", lambda: prometheus.query(query), 60)


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        for path, text in made().items():
            path.write_text(text)
    else:
        from support import main
        main([the_dashboard_is_tidy, kubernetes_files_hold_their_sources, every_alert_has_a_runbook,
              every_query_is_answered_by_a_real_service, sampled_panels_have_data])
