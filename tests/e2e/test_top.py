"""`ranktap top` with a real daemon and ranks: once, and live on a terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

import ranktap
from ranktap import cli, status
from tests.support.daemons import DaemonProcess
from tests.support.strangers import free_port
from tests.support.waiting import wait_for

RUN = "team/[bold]a"


class Terminal:
    """A program on a terminal, with what it has written there."""

    def __init__(self, *arguments: str, columns: int, rows: int) -> None:
        self.reader, self.writer = pty.openpty()
        self.resize(columns, rows)
        self.modes = termios.tcgetattr(self.writer)
        environment = {**os.environ, "TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ranktap.cli", "top", *arguments],
            stdin=self.writer, stdout=self.writer, stderr=self.writer, env=environment,
            start_new_session=True,
            # What makes Ctrl-C a signal: the terminal is its own.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        self._said = b""
        self._thread = Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                more = os.read(self.reader, 1 << 16)
            except OSError:
                return
            if not more:
                return
            self._said += more

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.writer, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: bytes) -> None:
        os.write(self.reader, keys)

    @property
    def said(self) -> str:
        return self._said.decode(errors="replace")

    def screen(self) -> str:
        """What was drawn last, without colours."""
        drawn = self.said.rpartition("\x1b[H")[2]
        return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", drawn)

    def wait_for(self, text: str) -> None:
        wait_for(lambda: text in self.screen(), f"{text!r} in:\n{self.screen()}")

    def end(self) -> int:
        """Its status, once it has ended; the terminal must be as it was found."""
        status = self.process.wait(30)
        wait_for(lambda: self.said.endswith(("\x1b[?25h", "\x1b[?1049l")), "its last word")
        assert termios.tcgetattr(self.writer) == self.modes
        assert "\x1b[?1049h" in self.said and "\x1b[?1049l" in self.said
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.writer)
        self._thread.join()
        os.close(self.reader)


@pytest.fixture
def start_top() -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def start(*arguments: str, columns: int = 160, rows: int = 24) -> Terminal:
        started.append(Terminal(*arguments, columns=columns, rows=rows))
        return started[-1]

    yield start
    for each in started:
        print(each.said[-2_000:])
        each.close()


@pytest.fixture
def address() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def daemon(start_daemon: Callable[..., DaemonProcess], address: str) -> DaemonProcess:
    return start_daemon(f"--metrics={address}")


@pytest.fixture
def taps(daemon: DaemonProcess) -> Iterator[list[ranktap.Tap]]:
    opened = [
        ranktap.init(RUN, endpoint=daemon.endpoint, rank=rank, world_size=2) for rank in range(2)
    ]
    for step in range(3):
        for tap in opened:
            tap.scalar("train/loss", 1.5 + tap.rank, step)
    assert all(tap.flush(timeout=30) for tap in opened)
    yield opened
    for tap in opened:
        tap.close()


def test_once_it_is_a_plain_table_for_which_no_terminal_and_no_rich_is_needed(
    address: str,
    taps: list[ranktap.Tap],
    daemon: DaemonProcess,
) -> None:
    # Not what a child inherits without: readline, which pytest loads, sets COLUMNS there.
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}

    def top(*arguments: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", program, "top", "--metrics", address, *arguments],
            capture_output=True, text=True, timeout=60, env=environment,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    wait_for(lambda: status.fetch(address)["runs"][0]["last"], "the worker to say what it has seen")
    program = (
        "import sys; sys.modules['rich'] = None; from ranktap import cli; sys.exit(cli.main())"
    )
    for arguments in ([], ["--once"]):
        head, names, row = top(*arguments)
        assert head.startswith(f"ranktapd {ranktap.__version__} at {address}: ok; up ")
        assert names.split()[:2] == ["run", "ranks"] and row.split()[:2] == [RUN, "2/2"]
        assert row.split()[-4:-1] == ["2", "2", "train/loss"]  # the step, and the mean of 1.5, 2.5
    ranks = [line.split()[:4] for line in top(RUN)[-2:]]
    host = ranks[0][1]
    assert ranks == [["0", host, "here", "2"], ["1", host, "here", "2"]]
    environment["COLUMNS"] = "40"
    assert max(map(len, top())) <= 40


def test_live_it_goes_on_opens_a_run_and_outlives_its_daemon(
    address: str,
    taps: list[ranktap.Tap],
    daemon: DaemonProcess,
    start_top: Callable[..., Terminal],
) -> None:
    top = start_top("--metrics", address, "--every", "0.2")
    top.wait_for(RUN)
    top.wait_for("train/loss")
    for tap in taps:
        tap.scalar("train/loss", 7.25, 1_234)
    top.wait_for("1,234")
    top.wait_for("7.25")
    assert "\x1b[31m" not in top.said
    top.press(b"j\r")
    top.wait_for("heard of")
    top.wait_for(str(os.getpid()))
    top.resize(40, 12)
    wait_for(lambda: "records/s" not in top.screen(), "columns to go")
    top.wait_for("a step")
    assert max(map(len, top.screen().splitlines())) <= 40
    top.resize(160, 24)
    top.press(b"b")
    top.wait_for("j k Enter")
    top.press(b"s")
    top.wait_for("s sorts: rate")
    daemon.kill()
    top.wait_for("no answer for")
    top.wait_for("trying again: Connection refused")
    top.wait_for(RUN)  # the last that was known
    daemon.start()
    wait_for(lambda: "no answer for" not in top.screen(), "it to be found again")
    top.wait_for("2/2")
    top.press(b"\x03")
    assert top.end() == 130
    assert "Traceback" not in top.said


@pytest.mark.parametrize(("key", "expected"), [(b"q", 0), (None, 128 + signal.SIGTERM)])
def test_it_leaves_the_terminal_as_it_found_it(
    address: str,
    daemon: DaemonProcess,
    start_top: Callable[..., Terminal],
    key: bytes | None,
    expected: int,
) -> None:
    top = start_top("--metrics", address)
    top.wait_for("no run is open")
    if key is not None:
        top.press(key)
    else:
        top.process.terminate()
    assert top.end() == expected


def test_what_cannot_be_shown_is_said_in_a_line(
    address: str, daemon: DaemonProcess, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["top", "other", "--metrics", address]) == 1
    assert capsys.readouterr().err == f"ranktap top: no run 'other' is open at {address}\n"
    nobody = f"127.0.0.1:{free_port()}"
    assert cli.main(["top", "--metrics", nobody]) == 1
    assert f"ranktap top: --metrics: {nobody}: Connection refused" in capsys.readouterr().err
    reader, writer = pty.openpty()
    program = (
        "import sys; sys.modules['rich'] = None; from ranktap import cli; sys.exit(cli.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "top", "--metrics", address],
        stdin=writer, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60,
        env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(writer)
    os.close(reader)
    assert done.returncode == 1
    assert "the live view needs rich: pip install 'ranktap[top]'" in done.stderr
    with pytest.raises(SystemExit):
        cli.main(["top", "--every", "0"])
    assert "expected a number from 0.1 to 86400, got '0'" in capsys.readouterr().err
