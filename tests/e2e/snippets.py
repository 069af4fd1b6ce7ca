"""Runs or parses each snippet of the documents and each configuration that they name.

Rust snippets are tests of `cargo test --doc`, and those of the README of `tests/package.py`. Blocks of `text` show output.
"""

import json
import pathlib
import re
import shlex
import subprocess
import tempfile
import textwrap
import tomllib

import kubernetes_validate
import yaml
from dockerfile_parse import DockerfileParser

from support import ROOT, SOURCE, Service, fnv1a, get, leak_line, main

MANIFEST = tomllib.loads((ROOT / "Cargo.toml").read_text())
PATCH = ROOT / "dashboards" / "kubernetes" / "dumps" / "deployment-patch.yaml"
DOCKERFILE = ROOT / "examples" / "docker" / "Dockerfile"
# Commands that are recorded with their arguments and checked; those without a check need only be bash.
COMMANDS = ("benches/", "cargo ", "curl ", "docker ", "go tool ", "heapgauge ", "kubectl ", "promtool ", "tests/")


def documents():
    """Returns the text of each document of the repository by its path."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"], cwd=ROOT,
                            capture_output=True, text=True)
    names = listed.stdout.split("\0") if listed.returncode == 0 else map(str, ROOT.rglob("*.md"))
    found = {name: (ROOT / name).read_text() for name in names if name and (ROOT / name).exists() and "target/" not in name}
    assert {"README.md", "src/docs/production.md", "dashboards/README.md"} <= set(found), sorted(found)
    return found


def fenced(language):
    """Yields document and text of each block of a language."""
    for name, text in documents().items():
        for words, block in re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            if words.split(",")[0] == language:
                yield name, block


def every_block_has_a_check():
    """No document has a language that no test here knows, and Rust is where something compiles it."""
    for name, text in documents().items():
        fences = re.findall(r"^```(.*)$", text, re.MULTILINE)
        assert len(fences) % 2 == 0, f"{name}: a block has no end"
        for words in fences[::2]:
            language = words.split(",")[0]
            rust = name.startswith("src/docs/") or name == "README.md"
            known = {"dockerfile", "promql", "sh", "text", "toml", "yaml"} | ({"rust", "standalone_crate"} if rust else set())
            assert language in known, f"{name}: a block of {words!r}"
    for page in (ROOT / "src/docs").glob("*.md"):
        assert f'include_str!("{page.name}")' in (ROOT / "src/docs/mod.rs").read_text(), f"{page.name} is no page"


def toml_is_for_this_crate():
    """Dependencies name this version and its features, profiles their settings."""
    blocks = list(fenced("toml"))
    for name, block in blocks:
        asked = tomllib.loads(block)
        for kind in ("dependencies", "dev-dependencies"):
            wanted = asked.get(kind, {}).get("heapgauge")
            if wanted is not None:
                wanted = wanted if isinstance(wanted, dict) else {"version": wanted}
                assert MANIFEST["package"]["version"].startswith(wanted["version"] + "."), (name, wanted)
                assert set(wanted.get("features", [])) <= set(MANIFEST["features"]), (name, wanted)
        for profile in asked.get("profile", {}).values():
            assert {"debug": "line-tables-only", "strip": "none"}.items() >= profile.items() and profile, (name, profile)
    assert len(blocks) >= 3


def check_rules(expressions):
    """Checks expressions as Prometheus does when it loads rules."""
    rules = {"groups": [{"name": "all", "rules": [{"record": f"checked:{at}", "expr": expression}
                                                  for at, expression in enumerate(expressions)]}]}
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        yaml.safe_dump(rules, file)
        file.flush()
        done = subprocess.run(["promtool", "check", "rules", file.name], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and f"{len(expressions)} rules found" in done.stdout, (expressions, done.stdout, done.stderr)


def promql_is_read_by_prometheus():
    """Each block of PromQL is one expression."""
    blocks = [block for _, block in fenced("promql")]
    check_rules(blocks)
    assert len(blocks) >= 3


def check_prometheus(config):
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        file.write(config)
        file.flush()
        done = subprocess.run(["promtool", "check", "config", "--syntax-only", file.name], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (config, done.stdout, done.stderr)


def yaml_is_an_excerpt_or_a_configuration():
    """YAML is a part of the shipped deployment, word by word, or Prometheus takes it."""
    deployment = (ROOT / "examples/docker/deployment.yaml").read_text()
    deployment += PATCH.read_text()
    places = {
        "scrape_configs": "{}",
        "metric_relabel_configs": "scrape_configs:\n  - job_name: j\n{}",
        "write_relabel_configs": "remote_write:\n  - url: http://127.0.0.1:9/\n{}",
    }
    kinds = set()
    for name, block in fenced("yaml"):
        key = block.split(":")[0].strip()
        if key in places:
            inside = places[key]
            check_prometheus(inside.format(block if inside == "{}" else textwrap.indent(block, "    ")))
        else:
            assert block in deployment, f"{name}: neither in examples/docker/deployment.yaml nor in {PATCH}:\n{block}"
        kinds.add(key)
    assert kinds >= set(places) | {"metadata", "env"}, kinds


def dockerfile_blocks_are_excerpts():
    """Blocks of a Dockerfile are parts of the shipped one, which `tests/container.py` runs; it can be parsed."""
    blocks = list(fenced("dockerfile"))
    for name, block in blocks:
        assert f"\n{block}" in DOCKERFILE.read_text(), f"{name}: not in {DOCKERFILE}:\n{block}"
    stages = [line["value"] for line in DockerfileParser(path=str(DOCKERFILE), cache_content=True).structure
              if line["instruction"] == "FROM"]
    assert len(blocks) == 2 and [stage.split(" AS ")[1] for stage in stages] == ["build", "slim", "distroless"], stages


def kubernetes_takes_the_manifests():
    """Kubernetes' own schemas take them, and the labels and the port that select pods are those that the deployment has."""
    folder = ROOT / "dashboards" / "kubernetes"
    loaded = {path.name: yaml.safe_load(path.read_text()) for path in [*folder.glob("*.yaml"), ROOT / "examples/docker/deployment.yaml"]}
    custom = {name for name, resource in loaded.items() if resource["apiVersion"].startswith("monitoring.coreos.com/")}
    assert custom == {"podmonitor.yaml", "prometheusrule.yaml"}
    for name in set(loaded) - custom:
        kubernetes_validate.validate(loaded[name], "1.31", strict=True)
    pod = loaded["deployment.yaml"]["spec"]["template"]
    container, = pod["spec"]["containers"]
    port, = container["ports"]
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    assert variables["HEAPGAUGE_ADDR"] == f"0.0.0.0:{port['containerPort']}", variables
    monitor, policy = loaded["podmonitor.yaml"]["spec"], loaded["networkpolicy.yaml"]["spec"]
    for selector in (monitor["selector"], policy["podSelector"], loaded["deployment.yaml"]["spec"]["selector"]):
        assert selector["matchLabels"].items() <= pod["metadata"]["labels"].items(), selector
    assert [endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]] == [port["name"]]
    shown, others = policy["ingress"]
    assert [allowed["port"] for allowed in shown["ports"]] == [port["containerPort"]]
    # All other ports stay open to all.
    assert "from" not in others
    *tcp, udp = [(allowed["protocol"], allowed.get("port"), allowed.get("endPort")) for allowed in others["ports"]]
    before, after = port["containerPort"] - 1, port["containerPort"] + 1
    assert (tcp, udp) == ([("TCP", 1, before), ("TCP", after, 65535)], ("UDP", None, None))
    assert loaded["prometheusrule.yaml"]["spec"]["groups"]


def patched(whole, patch):
    """Returns an object with a strategic merge patch, as `kubectl patch` does it: lists of named items are merged by name."""
    if isinstance(whole, dict) and isinstance(patch, dict):
        return {key: patched(whole[key], patch[key]) if key in whole and key in patch else (whole | patch)[key] for key in whole | patch}
    if isinstance(patch, list) and all(isinstance(item, dict) and "name" in item for item in patch):
        items = {item["name"]: item for item in whole}
        return [*(items | {item["name"]: patched(items.get(item["name"], {}), item) for item in patch}).values()]
    return patch


def the_patch_makes_a_pod_that_leaves_evidence():
    """Kubernetes' schema takes the patched Deployment; the dumps are on disk in a volume that outlives the container."""
    patch = yaml.safe_load(PATCH.read_text())
    whole = yaml.safe_load((ROOT / "examples/docker/deployment.yaml").read_text())
    assert patch["metadata"]["name"] == whole["metadata"]["name"]
    deployment = patched(whole, patch)
    kubernetes_validate.validate(deployment, "1.31", strict=True)
    pod = deployment["spec"]["template"]["spec"]
    container, = pod["containers"]
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    before = {variable["name"] for variable in whole["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert set(variables) == before | {"HEAPGAUGE_DUMP_DIR", "HEAPGAUGE_TERMINATION_LOG", "HEAPGAUGE_DEBUG_ADDR"}, variables
    assert container["image"] == "leaky_service:latest" and container["resources"]["limits"], container
    assert container["terminationMessagePath"] == variables["HEAPGAUGE_TERMINATION_LOG"]
    assert variables["HEAPGAUGE_DEBUG_ADDR"].startswith("127.0.0.1:")
    mount, = container["volumeMounts"]
    volume, = pod["volumes"]
    assert mount == {"name": volume["name"], "mountPath": variables["HEAPGAUGE_DUMP_DIR"]}
    assert volume["emptyDir"].keys() == {"sizeLimit"}, volume
    assert container["securityContext"]["readOnlyRootFilesystem"] and pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def prometheus_and_alertmanager_take_their_configurations():
    """promtool and amtool take the shipped files."""
    for command in (["promtool", "check", "config", "dashboards/prometheus.yml"], ["amtool", "check-config", "dashboards/alertmanager.yml"]):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (command, done.stdout, done.stderr)


def commands():
    """Yields document and arguments of each command, as bash splits it. Nothing is run but bash's own words."""
    snippets = list(fenced("sh"))
    for name, text in documents().items():
        without_blocks = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        inline = [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", without_blocks)]
        snippets += [(name, code) for code in inline if code.startswith(COMMANDS) and len(code.split()) > 1]
    with tempfile.TemporaryDirectory(prefix="heapgauge-snippets-") as folder:
        folder = pathlib.Path(folder)
        record = 'printf "%s\\0" "$@" "" >>"$RECORDED"'
        for path in ["tests/run", "benches/run", "benches/fleet/run", *(f"tests/e2e/{p.name}" for p in (ROOT / "tests/e2e").glob("*.py")),
                     *(f"tests/{p.name}" for p in (ROOT / "tests").glob("*.py"))]:
            assert (ROOT / path).is_file(), path
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(f"#!/bin/bash\nset -- {path} \"$@\"\n{record}\n")
            (folder / path).chmod(0o755)
        for name, snippet in snippets:
            recorded = folder / "recorded"
            recorded.write_text("")
            script = f"command_not_found_handle() {{ {record}; }}\n{snippet}\nwait\n"
            done = subprocess.run(["/bin/bash", "-c", script], cwd=folder, capture_output=True, text=True, timeout=60,
                                  env={"PATH": "/none", "RECORDED": str(recorded)})
            calls = [call.split("\0") for call in recorded.read_text().split("\0\0")[:-1]]
            assert done.returncode == 0 and not done.stderr and calls, (name, snippet, done.stderr, calls)
            yield from ((name, call) for call in calls)


def check_cargo(call):
    """Targets, packages and manifests that it names exist."""
    arguments = call[:call.index("--")] if "--" in call else call
    metadata = targets(str(ROOT / "Cargo.toml"))
    manifest = dict(zip(arguments, arguments[1:])).get("--manifest-path")
    if manifest:
        metadata = targets(str(ROOT / manifest))
    for option, name in zip(arguments, arguments[1:]):
        if option in ("--test", "--example", "--bin", "--bench"):
            assert (option[2:], name) in metadata["targets"], call
        if option == "-p":
            assert name in metadata["packages"] or "NAME" in name, call


def targets(manifest, known={}):
    if manifest not in known:
        done = subprocess.run(["cargo", "metadata", "-q", "--no-deps", "--format-version=1", "--manifest-path", manifest],
                              capture_output=True, text=True, check=True)
        packages = json.loads(done.stdout)["packages"]
        known[manifest] = {"packages": {package["name"] for package in packages},
                           "targets": {(kind, target["name"]) for package in packages for target in package["targets"]
                                       for kind in target["kind"]}}
    return known[manifest]


def check_script(call):
    """Options are in its source, names of steps in the list of steps."""
    source = (ROOT / call[0]).read_text()
    if call[0].startswith("benches/run"):
        source += "".join(path.read_text() for path in (ROOT / "benches/harness/src").glob("*.rs"))
    for word in call[1:]:
        if word.startswith("--"):
            assert word in source or word[2:] in source, call
        elif call[0] == "tests/run" and word != "NAME":
            steps = re.search(r"^steps='(.*?)'", source, re.MULTILINE | re.DOTALL)[1]
            assert any(word in line.split("|")[0] for line in steps.splitlines()), call


def check_program(call):
    """Command and options of the program `heapgauge` are in its help."""
    told = (ROOT / "cli/src/arguments.rs").read_text().split('";')[0]
    assert f"\n  {call[1]} " in told, call
    assert all(f"  {word} " in told for word in call if word.startswith("--")), call


def every_command_can_be_given():
    """Each command of a shell block has existing files, targets, paths and expressions; each URL of a service answers."""
    expressions, seen = [], set()
    with tempfile.TemporaryDirectory(prefix="heapgauge-snippets-") as folder, \
            Service("--leak-rate", "2000000", env={"HEAPGAUGE_EXPOSE": "pprof", "HEAPGAUGE_DUMP_DIR": folder}) as service:
        service.named()
        dump = json.loads(get(service.port(), "/debug/heap/dump", method="POST").body)["name"]
        for name, call in commands():
            seen.add(call[0])
            try:
                check_command(call, service.port(), dump, expressions)
            except AssertionError as error:
                raise AssertionError(f"{name}: {shlex.join(call)}") from error
    check_rules(expressions)
    assert {"cargo", "curl", "docker", "go", "kubectl", "promtool", "tests/run", "benches/run"} <= seen, seen
    assert len(expressions) >= 10, expressions


def check_command(call, port, dump, expressions):
    for word in call:
        for path in re.findall(r"http://127\.0\.0\.1:989[89](/\S*)", word):
            method = call[call.index("-X") + 1] if "-X" in call else "GET"
            answer = get(port, re.sub(r"\bNAME\b", dump, path), method=method)
            assert answer.status == 200, f"{path}: {answer.status} {answer.body}"
    if call[0] == "cargo":
        check_cargo(call)
        paths = [path for option, path in zip(call, call[1:]) if option == "--path"]
        assert all((ROOT / path / "Cargo.toml").is_file() for path in paths), call
    elif call[0] == "heapgauge":
        check_program(call)
    elif call[0].startswith(("tests/", "benches/")):
        check_script(call)
    elif call[0] == "promtool":
        assert call[1] == "query" and call[2] in ("instant", "range"), call
        expressions.append(call[-1])
    elif call[:2] == ["docker", "build"]:
        options = dict(zip(call, call[1:]))
        assert (ROOT / options["-f"]).is_file() and f"AS {options['--target']}\n" in (ROOT / options["-f"]).read_text(), call
    elif call[:2] in (["kubectl", "apply"], ["kubectl", "patch"]):
        path = call[call.index("-f" if call[1] == "apply" else "--patch-file") + 1]
        assert (ROOT / path).exists() or (ROOT / "dashboards" / path).exists(), call
    elif call[0] == "sed" and "-i" in call:
        for path in call[3:]:
            assert re.search(call[2].split("|")[1], (ROOT / "dashboards" / path).read_text()), call


def outputs_show_the_planted_leak():
    """Outputs that name the leaking line name the right one, with its site."""
    line, found = leak_line(), 0
    site = fnv1a("leaky_service::Cache::insert", SOURCE, line)
    for name, text in {**documents(), SOURCE: (ROOT / SOURCE).read_text()}.items():
        for shown in re.findall(rf'{SOURCE}:(\d+)|file="{SOURCE}",line="(\d+)"', text):
            assert str(line) in shown, f"{name}: the leak is at line {line}, not {shown}"
            found += 1
        for shown in re.findall(r'site="(\w{16})",function="leaky_service::Cache::insert"', text):
            assert shown == site, f"{name}: the site is {site}"
            found += 1
    assert found >= 8, found


if __name__ == "__main__":
    main([every_block_has_a_check, toml_is_for_this_crate, promql_is_read_by_prometheus, yaml_is_an_excerpt_or_a_configuration,
          dockerfile_blocks_are_excerpts, kubernetes_takes_the_manifests, the_patch_makes_a_pod_that_leaves_evidence,
          prometheus_and_alertmanager_take_their_configurations, every_command_can_be_given, outputs_show_the_planted_leak])
