"""`ranktapd tail`: values as they arrive in a run's event file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from threading import Thread

import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

import ranktap
from ranktapd import cli, event_file
from ranktapd.tail import EventTail, RunTail
from tests.support.daemons import DaemonProcess
from tests.support.strangers import free_port
from tests.support.waiting import wait_for

FILE = "events.out.tfevents.1700000000.host.1.0"


class Tailing:
    """A `ranktapd tail` whose lines are taken as they come, with the time when."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ranktapd", "tail", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.lines: Queue[tuple[float, str]] = Queue()
        self._reader = Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put((time.monotonic(), line))

    def next(self) -> tuple[float, list[str]]:
        """When a line came, and its step, tag and value."""
        when, line = self.lines.get(timeout=30)
        return when, line.split()[2:]

    def interrupt(self) -> tuple[int, str]:
        """What becomes of Ctrl-C: the status, and what is said."""
        self.process.send_signal(signal.SIGINT)
        return self.close()

    def close(self) -> tuple[int, str]:
        assert self.process.stdout is not None and self.process.stderr is not None
        status = self.process.wait(30)
        self._reader.join(30)
        said = self.process.stderr.read()
        self.process.stdout.close()
        self.process.stderr.close()
        return status, said


@pytest.fixture
def tailing() -> Iterator[Callable[..., Tailing]]:
    started: list[Tailing] = []

    def start(*arguments: str) -> Tailing:
        started.append(Tailing(*arguments))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.close()


def scalar(tag: str, value: float, step: int) -> bytes:
    summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
    return event_file.frame(Event(wall_time=1.7e9, step=step, summary=summary).SerializeToString())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An event file of a run "run", with one scalar."""
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / FILE
    path.write_bytes(event_file.version_record(1.7e9) + scalar("loss", 0.5, 0))
    return path


def append(path: Path, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)


def words(lines: list[str]) -> list[list[str]]:
    """Step, tag and value of each line."""
    return [line.split(maxsplit=4)[2:] for line in lines]


def tail_here(*arguments: str | Path) -> int:
    return cli.main(["tail", *map(str, arguments)])


# -- with a daemon ----------------------------------------------------------------------


def test_values_are_shown_within_a_second_of_the_call(
    start_daemon: Callable[..., DaemonProcess], tailing: Callable[..., Tailing]
) -> None:
    daemon = start_daemon()
    with ranktap.init("a/b", endpoint=daemon.endpoint, rank=0, world_size=1) as tap:
        tap.scalar("loss", 0.0, 0)
        directory = daemon.logdir / "a" / "b"
        wait_for(lambda: [*directory.glob("*tfevents*")], "the event file")
        each = tailing("a/b", f"--logdir={daemon.logdir}", "--tag=lo*")
        assert each.next()[1] == ["0", "loss", "0"]
        delays = []
        for step in range(1, 6):
            tap.scalar("other", 1.0, step)
            called = time.monotonic()
            tap.scalar("loss", step / 8, step)
            when, shown = each.next()
            assert shown == [str(step), "loss", f"{step / 8:g}"]
            delays.append(when - called)
    print("seconds from the call to the line:", *(f"{delay:.3f}" for delay in delays))
    assert min(delays) < 1.0  # the quickest: others use these cores too
    assert each.interrupt() == (130, "")
    assert daemon.stop() == 0


def test_every_kind_of_record_has_a_line(
    start_daemon: Callable[..., DaemonProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = start_daemon()
    with ranktap.init("kinds", endpoint=daemon.endpoint, rank=0, world_size=1) as tap:
        tap.scalar("scalar", 1.25, 1)
        tap.image("picture", np.zeros((3, 4, 8), np.float32), 1)
        tap.histogram("histogram", np.arange(5.0), 1)
        tap.text("text", "two\nlines\x1b[31m", 1)
        assert tap.flush(timeout=30)
    assert daemon.stop() == 0
    assert tail_here("kinds", "--logdir", daemon.logdir, "--no-follow", "-n", "100") == 0
    said = {tag: value for _, tag, value in words(capsys.readouterr().out.splitlines())}
    assert said["scalar"] == "1.25"
    assert said["picture"] == "(picture, 8 x 4)"
    assert said["histogram"] == "(5 values, 0 to 4)"
    assert said["text/text_summary"] == "two lines [31m"


# -- the file ---------------------------------------------------------------------------


def test_a_record_is_shown_when_all_of_it_is_written(run: Path) -> None:
    tail = RunTail(run.parents[1], "run", ["*"])
    assert words(tail.last(10)) == [["0", "loss", "0.5"]]
    record = scalar("loss", 0.25, 1)
    for byte in record[:-1]:
        append(run, bytes([byte]))
        assert [*tail.more()] == []
    append(run, record[-1:])
    assert words([*tail.more()]) == [["1", "loss", "0.25"]]
    assert [*tail.more()] == []


def test_a_later_file_is_gone_on_with_behind_the_end_of_the_former(run: Path) -> None:
    tail = RunTail(run.parents[1], "run", ["loss"])
    tail.last(0)
    append(run, scalar("other", 1.0, 1) + scalar("loss", 0.25, 1))
    later = run.with_name(FILE.replace("1700000000", "1700000001"))
    later.write_bytes(event_file.version_record(1.7e9) + scalar("loss", 0.125, 2))
    assert words([*tail.more()]) == [["1", "loss", "0.25"], ["2", "loss", "0.125"]]
    append(later, scalar("loss", 0.0625, 3))
    assert words([*tail.more()]) == [["3", "loss", "0.0625"]]


def test_the_last_lines_of_a_large_file_are_found_from_its_end(run: Path) -> None:
    large = event_file.frame(Event(summary=Summary(value=[Summary.Value(
        tag="large", image=Summary.Image(width=1, height=2, encoded_image_string=bytes(3 << 20))
    )])).SerializeToString())  # fmt: skip
    many = [scalar("loss", step / 4, step) for step in range(8_000)]
    append(run, b"".join(many) + large)
    for nbytes in (1, 100, 1 << 20, 4 << 20):
        file = EventTail(run)
        file.seek_back(nbytes)
        start = file.offset
        payloads = [*file.payloads()]
        assert len(payloads) > 1 or nbytes < 4 << 20
        assert file.offset == run.stat().st_size
        assert b"".join(map(event_file.frame, payloads)) == run.read_bytes()[start:]
        file.close()
    tail = RunTail(run.parents[1], "run", ["*"])
    lines = words(tail.last(3))
    assert lines == [["7998", "loss", "1999.5"], ["7999", "loss", "1999.75"],
                     ["0", "large", "(picture, 1 x 2)"]]  # fmt: skip
    assert len(tail.last(10_000)) == 8_002
    assert words(RunTail(run.parents[1], "run", ["other", "lo?s"]).last(1)) == [
        ["7999", "loss", "1999.75"]
    ]


def test_nothing_behind_damage_is_shown_and_it_is_told_once(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end = run.stat().st_size
    damaged = bytearray(scalar("loss", 0.25, 1))
    damaged[-6] ^= 1
    append(run, bytes(damaged) + scalar("loss", 0.125, 2))
    tail = RunTail(run.parents[1], "run", ["*"])
    tail.last(10)
    assert [*tail.more()] == [*tail.more()] == []
    assert capsys.readouterr().err == (
        f"{run}: no record at byte {end}; nothing behind it is shown until there is one\n"
    )
    # What a power cut left, put right by the daemon.
    with open(run, "r+b") as file:
        file.seek(end)
        file.write(scalar("loss", 0.25, 1))
    assert words([*tail.more()]) == [["1", "loss", "0.25"], ["2", "loss", "0.125"]]


def test_a_reader_that_has_had_enough_is_no_error(run: Path) -> None:
    append(run, b"".join(scalar("loss", 1.0, step) for step in range(4_000)))
    program = [sys.executable, "-m", "ranktapd", "tail", "run", "--logdir", str(run.parents[1])]
    process = subprocess.Popen(
        [*program, "-n", "4000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    os.read(process.stdout.fileno(), 100)
    process.stdout.close()
    assert (process.wait(30), process.stderr.read()) == (0, b"")
    process.stderr.close()


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tail_here("nothing", "--logdir", tmp_path) == 1
    assert "run: expected one with an event file below" in capsys.readouterr().err
    assert tail_here("../elsewhere", "--logdir", tmp_path) == 1
    assert "ranktapd tail: run: expected" in capsys.readouterr().err


# -- `ranktap tail` ---------------------------------------------------------------------


def client_tail(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ranktap.cli", "tail", *arguments],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_the_clients_command_asks_the_daemon_where_it_writes(
    start_daemon: Callable[..., DaemonProcess], tmp_path: Path
) -> None:
    address = f"127.0.0.1:{free_port()}"
    daemon = start_daemon(f"--metrics={address}", f"--state-dir={tmp_path / 'state'}")
    with ranktap.init("-team/a b", endpoint=daemon.endpoint, rank=0, world_size=1) as tap:
        for step in range(3):
            tap.scalars({"loss": step / 2, "accuracy": 1.0}, step)
    assert daemon.stop() == 0
    daemon.start()
    for where in ("--metrics", "--logdir"):
        given = address if where == "--metrics" else str(daemon.logdir)
        done = client_tail(where, given, "--no-follow", "--tag=l*", "-n", "2", "--", "-team/a b")
        assert (done.returncode, done.stderr) == (0, "")
        said = [line.split()[2:] for line in done.stdout.splitlines()]
        assert said == [["1", "loss", "0.5"], ["2", "loss", "1"]]
    daemon.logdir.rename(tmp_path / "moved")  # as from a machine that does not have it
    done = client_tail("--metrics", address, "a")
    assert done.returncode == 1
    assert f"writes to {daemon.logdir}, which is not on this machine" in done.stderr
    assert f"there: ranktapd tail a --logdir {daemon.logdir}\n" in done.stderr
    done = client_tail("--metrics", f"127.0.0.1:{free_port()}", "a")
    assert done.returncode == 1 and "Connection refused" in done.stderr
