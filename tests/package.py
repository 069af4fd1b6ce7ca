#!/usr/bin/env python3
"""Does all that publishing does but the upload, and uses the packed crate as a new user: a project by `cargo new`, the unpacked
`.crate`, and the ten lines of the README answer with file and line.
"""

import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = ROOT / "target"
# The rest of the program: it keeps a block now and then.
REST = """
    let mut kept = Vec::new();
    loop {
        keep(&mut kept);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[inline(never)]
fn keep(kept: &mut Vec<Vec<u8>>) {
    kept.push(vec![1; 1_000]); // the planted leak
"""


def cargo(*arguments, cwd=ROOT, **environment):
    done = subprocess.run(["cargo", *arguments], cwd=cwd, env=os.environ | environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, f"cargo {' '.join(arguments)}:\n{done.stdout[-3000:]}"
    return done.stdout


def unpacked(folder):
    """Returns the folder of the unpacked `.crate`, which holds what a user needs and no more."""
    # The project below compiles it: no need to do that twice.
    said = cargo("publish", "--dry-run", "--no-verify", "--allow-dirty", "--locked", CARGO_TARGET_DIR=str(TARGET))
    assert "aborting upload due to dry run" in said and "manifest has no" not in said, said
    archive = max((TARGET / "package").rglob("heapgauge-*.crate"), key=lambda path: path.stat().st_mtime)
    with tarfile.open(archive) as files:
        names = files.getnames()
        files.extractall(folder, filter="data")
    inside = [name.split("/", 1)[1] for name in names]
    wrong = [name for name in inside if name.startswith(("tests/", "benches/", "dashboards/", "target/", ".github/", ".ci/"))
             or name.endswith((".png", ".py"))]
    assert not wrong, wrong
    assert {"Cargo.toml", "README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE", "src/lib.rs"} <= set(inside)
    size = archive.stat().st_size
    assert size < 1 << 20, f"{archive} has {size} bytes"
    print(f"{archive.name}: {len(names)} files, {size >> 10} KiB")
    return folder / names[0].split("/")[0]


def readme():
    """Returns the lines for Cargo.toml and the program, from the section of the ten lines."""
    section = (ROOT / "README.md").read_text().split("\n## Ten lines", 1)[1].split("\n## ", 1)[0]
    toml, = re.findall(r"```toml\n(.*?)```", section, re.S)
    program, = re.findall(r"```rust,no_run\n(.*?)```", section, re.S)
    assert 'heapgauge = "0.1"' in toml and "    // the rest of the program\n" in program, section
    return toml, program


def answers(folder, crate):
    toml, program = readme()
    cargo("new", "-q", "--vcs", "none", "--offline", "shop", cwd=folder)
    project = folder / "shop"
    manifest = project / "Cargo.toml"
    text = manifest.read_text().replace("[dependencies]\n", "") + toml
    manifest.write_text(text.replace('heapgauge = "0.1"', f'heapgauge = {{ path = "{crate}" }}') + "\n[workspace]\n")
    source = program.replace("    // the rest of the program\n", REST.lstrip("\n"))
    (project / "src/main.rs").write_text(source)
    line = 1 + next(at for at, text in enumerate(source.splitlines()) if "the planted leak" in text)
    # The versions that are tested; unoptimised, because only time would be different.
    (project / "Cargo.lock").write_bytes((ROOT / "Cargo.lock").read_bytes())
    target = TARGET / "package-user"
    cargo("build", "-q", "--release", cwd=project, CARGO_TARGET_DIR=str(target), CARGO_PROFILE_RELEASE_OPT_LEVEL="0")
    process = subprocess.Popen([target / "release/shop"], env=os.environ | {"HEAPGAUGE_ADDR": "127.0.0.1:0"},
                               stderr=subprocess.PIPE, text=True)
    try:
        said = process.stderr.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert address, said
        info = re.compile(rf'heap_site_info\{{.*function="shop::keep",file="src/main.rs",line="{line}",crate="shop",via=""\}} 1')
        end = time.monotonic() + 60
        while True:
            with urllib.request.urlopen(address[0] + "/metrics", timeout=20) as answer:
                text = answer.read().decode()
            found = info.search(text)
            if found:
                print(found[0])
                return
            assert time.monotonic() < end, text
            time.sleep(1)
    finally:
        process.kill()
        process.wait()


def main():
    with tempfile.TemporaryDirectory(prefix="heapgauge-package-") as folder:
        folder = pathlib.Path(folder)
        answers(folder, unpacked(folder))


sys.exit(main())
