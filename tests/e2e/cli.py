"""Runs the program `heapgauge` beside a live service: in a pseudo terminal, and on the dump of a stripped program."""

import contextlib
import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import tempfile
import termios
import threading
import time

from support import EXAMPLES, HEAPGAUGE, ROOT, SOURCE, Program, Service, get, leak_line, main, wait_for

LEAK = f"{SOURCE}:{leak_line()} leaky_service::Cache::insert"
# Sequences of a terminal, each with the one that undoes it: its other screen, no cursor, no wrapped lines.
PAIRS = [(b"\x1b[?1049h", b"\x1b[?1049l"), (b"\x1b[?25l", b"\x1b[?25h"), (b"\x1b[?7l", b"\x1b[?7h")]


class Terminal:
    """Runs a program with a terminal of its own, as the session's leader."""

    def __init__(self, command, rows=30, columns=120):
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(self.slave)
        self.bytes = b""
        self.process = subprocess.Popen(
            [str(word) for word in command], stdin=self.slave, stdout=self.slave, stderr=self.slave, cwd=ROOT,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        with contextlib.suppress(OSError):
            while piece := os.read(self.master, 1 << 16):
                self.bytes += piece

    def frames(self):
        """Returns the tables that were shown so far, each as its lines."""
        begun = self.bytes.split(b"\x1b[1;1H")[1:]
        # A whole frame ends with the erasure of what is below it.
        whole = [frame.split(b"\x1b[J")[0] for frame in begun if b"\x1b[J" in frame]
        return [re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", frame.decode()).split("\r\n") for frame in whole]

    def frame(self, number, seconds=20.0):
        return wait_for(f"frame {number} of {self.process.args}: {self.bytes[-500:]}",
                        lambda: (found := self.frames()) and len(found) > number and found[number], seconds)

    def press(self, key):
        os.write(self.master, key)

    def ends(self, seconds=5.0):
        """Waits for the end, checks that the terminal is as it was, and returns the exit code."""
        code = self.process.wait(seconds)
        time.sleep(0.2)  # for the reader
        for entered, left in PAIRS:
            assert self.bytes.count(entered) == self.bytes.count(left) == 1, self.bytes[-200:]
            assert self.bytes.index(entered) < self.bytes.index(left)
        # Nothing is written on the other screen afterwards, nor on the one that was there.
        assert self.bytes.endswith(PAIRS[0][1]), self.bytes[-100:]
        assert termios.tcgetattr(self.slave) == self.before
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.slave)
        os.close(self.master)


def first_row(frame):
    head = next(number for number, line in enumerate(frame) if line.endswith(" SITE"))
    return frame[head + 1]


@contextlib.contextmanager
def top(service, *options):
    with Terminal([HEAPGAUGE, "top", f"http://127.0.0.1:{service.port()}", *options]) as terminal:
        terminal.frame(0)
        # Raw: a Ctrl-C is a key there, and no key is echoed.
        assert not termios.tcgetattr(terminal.slave)[3] & (termios.ECHO | termios.ISIG)
        yield terminal


def the_leaking_line_is_on_top_within_two_refreshes():
    """The first row of one of the first two tables is the leak; the tables follow each other, and fit."""
    with Service() as service:
        service.named()
        with top(service) as terminal:
            frames = [terminal.frame(number) for number in range(3)]
            assert any(first_row(frame).endswith(LEAK) for frame in frames[:2]), frames
            assert all(len(frame) <= 30 and max(map(len, frame)) <= 120 for frame in frames), frames
            # Growth beside live: all of it, as the service is young.
            assert re.match(r" *[\d.]+ [KM]iB +\d+ +\+[\d.]+ [KM]iB +\+[\d.]+ MiB  ", first_row(frames[2])), frames[2]
            terminal.press(b"g")
            wait_for("by growth", lambda: ", by growth " in terminal.frames()[-1][0], 5)
            assert first_row(terminal.frames()[-1]).endswith(LEAK)
            terminal.press(b"\x03")
            assert terminal.ends() == 0


def any_end_leaves_the_terminal_whole():
    """Ctrl-C, a key, the last table and signals give back the screen, the cursor and the settings."""
    with Service("--quiet-traffic") as service:
        for key in (b"\x03", b"q", b"\x1b"):
            with top(service) as terminal:
                terminal.press(key)
                assert terminal.ends() == 0, key
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            with top(service) as terminal:
                terminal.process.send_signal(number)
                assert terminal.ends() == -number
        with top(service, "--count", "2", "--interval", "0.2") as terminal:
            assert terminal.ends() == 0 and len(terminal.frames()) == 2


def a_program_that_does_not_answer_is_said_and_can_be_left():
    """While the program is stopped Ctrl-C works; once it has gone, a line says so."""
    with Service("--quiet-traffic") as service:
        with top(service, "--interval", "0.2") as terminal:
            service.process.send_signal(signal.SIGSTOP)
            try:
                time.sleep(1)
                began = time.monotonic()
                terminal.press(b"\x03")
                assert terminal.ends() == 0
                assert time.monotonic() - began < 2
            finally:
                service.process.send_signal(signal.SIGCONT)
        with top(service, "--interval", "0.2") as terminal:
            service.stop()
            wait_for("a line about it", lambda: "refused: no program listens there; trying again" in terminal.frames()[-1][0], 10)
            assert " SITE" in "".join(terminal.frames()[-1])
            terminal.press(b"q")
            assert terminal.ends() == 0


def a_long_read_shows_that_it_goes_on():
    """A file that takes more than a moment to read is named on the terminal until it is read, and the report is whole."""
    frames = ",".join(f'{{"function":"shop::f{number}","file":"src/a.rs","line":{number}}}' for number in range(30))
    trace = f'{{"domain":0,"size":1,"count":1,"total_frames":30,"frames":[{frames}]}}'
    with tempfile.TemporaryDirectory(prefix="heapgauge-cli-") as folder:
        path = f"{folder}/large.json"
        with open(path, "w") as file:
            file.write('{"version":1,"taken_at":1,"traceback_limit":32,"traces":[' + ",".join([trace] * 200_000) + "]}")
        assert os.stat(path).st_size > 100e6
        with Terminal([HEAPGAUGE, "report", path, "--top", "1"]) as terminal:
            assert terminal.process.wait(180) == 0
            time.sleep(0.2)
            said = terminal.bytes.decode()
        lines = re.findall(rf"\rreading {re.escape(path)} \(\d+ MiB\): (\d+) %, (\d+) s\x1b\[K", said)
        parts = [int(part) for part, _ in lines]
        assert parts == sorted(parts) and 0 < parts[0] < 100 and len(set(parts)) > 1, lines
        assert "\r\x1b[K" in said[said.rindex(" s\x1b[K") + 3:], said[:300]
        assert "200,000 blocks" in said


def a_dump_of_a_stripped_program_is_named_from_its_debug_file():
    """Frames that are offsets in the file get the names that the program would have given."""
    with tempfile.TemporaryDirectory(prefix="heapgauge-cli-") as folder:
        stripped, debug, dump = (f"{folder}/{name}" for name in ("leaky_service", "leaky_service.debug", "dump.json"))
        shutil.copy(EXAMPLES / "leaky_service", stripped)
        subprocess.run(["objcopy", "--only-keep-debug", stripped, debug], check=True)
        subprocess.run(["strip", "--strip-all", stripped], check=True)
        with Program([stripped, "--listen", "127.0.0.1:0", "--leak-rate", "2000000"]) as service:
            port = int(service.wait_line(r"^listening on http://127\.0\.0\.1:(\d+)$")[1][1])
            time.sleep(8)
            with open(dump, "w") as file:
                file.write(get(port, "/debug/heap/snapshot.json", seconds=60).body)
            told = subprocess.run([HEAPGAUGE, "report", f"http://127.0.0.1:{port}"], capture_output=True, text=True, check=True)
            assert service.stop() == 0

        def report(*options):
            done = subprocess.run([HEAPGAUGE, "report", dump, "--top", "3", *options], capture_output=True, text=True)
            assert done.returncode == 0 and not done.stderr, done
            return done.stdout

        for text in (told.stdout, report()):
            assert "leaky_service+0x" in text and "Cache::insert" not in text, text
        for option, path in [("--debug-file", debug), ("--binary", EXAMPLES / "leaky_service")]:
            text = report(option, path)
            lines = text.splitlines()
            assert lines[lines.index("Lines that hold most") + 2].endswith(LEAK), text
            named, all_of_them = re.search(rf"  names      ([\d,]+) of ([\d,]+) addresses of leaky_service named from {re.escape(str(path))}$",
                                           text, re.MULTILINE).groups()
            assert named == all_of_them, text
            assert "another build" not in text and "axum::serve" in text, text
        assert f"{stripped} holds neither line tables nor symbols: it was stripped" in report("--binary", stripped)
        both = report("--binary", stripped, "--debug-file", debug)
        assert both == report("--debug-file", debug), both
        assert "is of another build, its names may be wrong: build id" in report("--binary", HEAPGAUGE)


if __name__ == "__main__":
    main([the_leaking_line_is_on_top_within_two_refreshes, any_end_leaves_the_terminal_whole,
          a_program_that_does_not_answer_is_said_and_can_be_left, a_long_read_shows_that_it_goes_on,
          a_dump_of_a_stripped_program_is_named_from_its_debug_file])
