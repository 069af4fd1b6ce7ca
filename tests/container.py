#!/usr/bin/env python3
"""Makes the images of examples/docker/Dockerfile without a container runtime, and runs them: a service in an image that holds
nothing but its files names function, file and line on /metrics.

The RUN lines of the build stage run in target/first-build, where first_build.py has built the same command. A final stage is the
packages of its base image, of this machine's Debian release, and the files that its COPY lines name. It runs by chroot, as its USER
and with its ENTRYPOINT and ENV, in namespaces of its own for network, processes and mounts.
"""

import argparse
import fcntl
import http.client
import json
import os
import pathlib
import re
import shutil
import socket
import struct
import subprocess
import sys
import time

from dockerfile_parse import DockerfileParser
from first_build import FOLDER, FOREIGN, ROOT, copy_to

DOCKERFILE = ROOT / "examples" / "docker" / "Dockerfile"
IMAGES = ROOT / "target" / "images"
# The packages with shared libraries that the image `cc` of distroless consists of.
DISTROLESS = ["base-files", "libc6", "libgcc-s1", "libgomp1", "libstdc++6"]
SOURCE, MARKER = "examples/leaky_service.rs", "// the planted leak"
AS_ROOT = [] if os.geteuid() == 0 else ["sudo"]


def run(*command, **settings):
    done = subprocess.run([str(word) for word in command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **settings)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-4000:]}"
    return done.stdout


def stages():
    """Returns the stages of the Dockerfile by name: the base image and the instructions that follow."""
    found = {}
    for line in DockerfileParser(path=str(DOCKERFILE), cache_content=True).structure:
        if line["instruction"] == "FROM":
            image, name = re.fullmatch(r"(\S+) AS (\S+)", line["value"]).groups()
            found[name] = (image, [])
        elif line["instruction"] != "COMMENT":
            found[name][1].append((line["instruction"], line["value"]))
    return found


def build(stage):
    """Runs the build stage. Returns the folder that stands for each absolute path of it."""
    image, instructions = stage
    assert image.startswith("rust:"), image
    (_, directory), *instructions = instructions
    FOLDER.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    for instruction, value in instructions:
        if instruction == "COPY":
            assert value == ". .", value
            copy_to(FOLDER)
        else:
            assert instruction == "RUN", (instruction, value)
            run("sh", "-c", value, cwd=FOLDER, env=environment)
    return directory


def release():
    """Returns the name of this machine's Debian release: what was built here needs its C library."""
    return re.search(r"^VERSION_CODENAME=(\w+)$", pathlib.Path("/etc/os-release").read_text(), re.M)[1]


def debian_slim(folder):
    run(*AS_ROOT, "debootstrap", "--variant=minbase", release(), folder)


def distroless(folder):
    packages = folder.with_suffix(".packages")
    packages.mkdir(parents=True, exist_ok=True)
    run("apt-get", "download", *DISTROLESS, cwd=packages)
    for package in packages.glob("*.deb"):
        run(*AS_ROOT, "dpkg-deb", "-x", package, folder)
    shutil.rmtree(packages)
    assert not (folder / "bin" / "sh").exists()


def base(image):
    """Returns a folder with the files of a base image, which is made once."""
    make, = (make for name, make in [("debian:", debian_slim), ("gcr.io/distroless/cc-debian", distroless)] if image.startswith(name))
    folder = IMAGES / f"{make.__name__}-{release()}"
    if not folder.exists():
        IMAGES.mkdir(parents=True, exist_ok=True)
        unfinished = folder.with_suffix(".unfinished")
        run(*AS_ROOT, "rm", "-rf", unfinished)
        make(unfinished)
        run(*AS_ROOT, "mv", unfinished, folder)
    return folder


def assemble(name, stage, directory):
    """Makes the tree of a final stage. Returns it with the settings of its process."""
    image, instructions = stage
    tree = IMAGES / name
    run(*AS_ROOT, "rm", "-rf", tree)
    run(*AS_ROOT, "cp", "-al", base(image), tree)
    settings = {"ENV": {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}}
    for instruction, value in instructions:
        if instruction == "COPY":
            source, target = re.fullmatch(rf"--from=build {directory}/(\S+) /(\S+/)", value).groups()
            run(*AS_ROOT, "mkdir", "-p", tree / target)
            # As Docker does: of a folder its content, of a file the file.
            run(*AS_ROOT, "cp", "-r", f"{FOLDER}/{source}{'.' if source.endswith('/') else ''}", tree / target)
        elif instruction == "ENV":
            settings["ENV"] |= dict([value.split("=", 1)])
        else:
            assert instruction in ("EXPOSE", "USER", "ENTRYPOINT"), (instruction, value)
            settings[instruction] = value
    return tree, settings


def started(tree, settings):
    """Runs the image. Returns the answers of its paths."""
    command = [*AS_ROOT, "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", sys.executable, __file__, "--inside", tree,
               json.dumps(settings)]
    return json.loads(run(*command).splitlines()[-1])


def inside(tree, settings):
    """Runs the process in namespaces that the caller has made: loopback is up, and /proc is its own."""
    with socket.socket() as any_socket:
        up = struct.pack("16sh", b"lo", 1)  # IFF_UP
        fcntl.ioctl(any_socket, 0x8914, up)  # SIOCSIFFLAGS
    os.makedirs(f"{tree}/proc", exist_ok=True)
    subprocess.run(["mount", "-t", "proc", "proc", f"{tree}/proc"], check=True)
    port = int(settings["EXPOSE"])
    command = ["chroot", f"--userspec={settings['USER']}", tree, *json.loads(settings["ENTRYPOINT"])]
    process = subprocess.Popen(command, env=settings["ENV"], stdout=sys.stderr)

    def ask(port, path):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    try:
        end, text = time.monotonic() + 60, ""
        while not ("heap_site_info{" in text and (leak_of(text) or 'symbols="none"' in text)) and time.monotonic() < end:
            assert process.poll() is None, f"ended with {process.returncode}"
            time.sleep(0.5)
            try:
                text = ask(port, "/metrics")[1]
            except OSError:
                pass  # not listening yet
        print(json.dumps({"metrics": text, "health": ask(port, "/health"), "exposed": ask(port, "/debug/heap")[0],
                          "page": ask(port + 1, "/debug/heap")[0]}))
    finally:
        process.kill()
        process.wait()


def leak_of(text):
    return re.search(r'heap_site_info\{[^}]*function="leaky_service::Cache::insert"[^}]*\}', text)


def check(name, answer, line):
    text = answer["metrics"]
    assert re.search(r'heap_build_info\{[^}]*symbols="lines"', text), text
    assert re.search(r'heap_build_info\{[^}]*capture="cfi"', text), text
    found = leak_of(text)
    assert found and f'file="{SOURCE}",line="{line}"' in found[0], text
    assert answer["health"][0] == 200 and (answer["exposed"], answer["page"]) == (404, 200), answer
    print(f"{name}: {found[0]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        return inside(arguments.inside[0], json.loads(arguments.inside[1]))
    found = stages()
    directory = build(found.pop("build"))
    line, = (number for number, text in enumerate((ROOT / SOURCE).read_text().splitlines(), 1) if text.endswith(MARKER))
    assert set(found) == {"slim", "distroless"}, found
    for name, stage in found.items():
        tree, settings = assemble(name, stage, directory)
        sections = run("readelf", "--section-headers", "--wide", tree / "usr/local/bin/leaky_service")
        assert ".text" in sections and ".symtab" not in sections and ".debug_info" not in sections, sections
        check(name, started(tree, settings), line)
    # The debug file is what names come from: without it there are none.
    run(*AS_ROOT, "rm", "-r", tree / "usr/lib/debug")
    text = started(tree, settings)["metrics"]
    assert re.search(r'heap_build_info\{[^}]*symbols="none"', text) and not leak_of(text), text
    print(f"{name} without its debug file: symbols=\"none\"")


sys.exit(main())
