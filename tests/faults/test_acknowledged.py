"""Acknowledged means on disk: the daemon is stopped between append, sync and acknowledgement."""

from __future__ import annotations

import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import zmq

import ranktap
from ranktap_wire import frames
from ranktap_wire.messages import Ack, DaemonMessage, Error, Hello, Welcome
from ranktap_wire.records import Batch, Columns
from ranktapd.runs import RunPlace
from tests.support.daemons import DaemonProcess
from tests.support.event_files import scalar_points
from tests.support.stopping_daemon import lose_unsynced
from tests.support.waiting import wait_for

RUN = "acknowledged"
DaemonStarter = Callable[..., DaemonProcess]


@pytest.fixture
def points(tmp_path: Path) -> Path:
    """Where points are armed."""
    directory = tmp_path / "points"
    directory.mkdir()
    return directory


@pytest.fixture
def daemon(start_daemon: DaemonStarter, points: Path) -> DaemonProcess:
    program = [sys.executable, "-m", "tests.support.stopping_daemon", str(points)]
    return start_daemon(program=program)


def _arm(points: Path, point: str) -> None:
    (points / point).touch()


def _wait_until_stopped(daemon: DaemonProcess) -> None:
    process = psutil.Process(daemon.pid)
    wait_for(lambda: process.status() == psutil.STATUS_STOPPED, "the daemon to stop itself")


def _journal(daemon: DaemonProcess) -> Path:
    logdir = Path(daemon.logdir)
    return RunPlace.of(logdir, logdir / ".ranktap", RUN).journal


def _journal_bytes(daemon: DaemonProcess) -> int:
    return sum(segment.stat().st_size for segment in _journal(daemon).glob("*.journal"))


def _log(tap: ranktap.Tap, first: int, last: int) -> None:
    for step in range(first, last):
        tap.scalar("loss", float(step), step)


def test_what_was_not_synced_is_not_acknowledged_and_arrives_once_after_its_loss(
    daemon: DaemonProcess, points: Path
) -> None:
    with ranktap.init(RUN, endpoint=daemon.endpoint, rank=0, world_size=1) as tap:
        _log(tap, 0, 100)
        assert tap.flush()
        synced_bytes = _journal_bytes(daemon)
        _arm(points, "before-sync")
        _log(tap, 100, 200)
        _wait_until_stopped(daemon)
        assert _journal_bytes(daemon) > synced_bytes
        assert not tap.flush(timeout=0.5)
        daemon.kill()
        assert lose_unsynced(points, _journal(daemon)) > 0
        assert _journal_bytes(daemon) == synced_bytes
        daemon.start()
        assert tap.flush(timeout=30)
    assert daemon.stop() == 0
    assert scalar_points(Path(daemon.logdir) / RUN) == {
        "loss": [(step, float(step)) for step in range(200)]
    }


def test_what_was_synced_and_not_acknowledged_is_there_once_after_a_kill(
    daemon: DaemonProcess, points: Path
) -> None:
    with ranktap.init(RUN, endpoint=daemon.endpoint, rank=0, world_size=1) as tap:
        _log(tap, 0, 100)
        assert tap.flush()
        _arm(points, "after-sync")
        _log(tap, 100, 200)
        _wait_until_stopped(daemon)
        assert not tap.flush(timeout=0.5)
        daemon.kill()
        assert lose_unsynced(points, _journal(daemon)) == 0
        daemon.start()
        assert tap.flush(timeout=30)
    assert daemon.stop() == 0
    assert scalar_points(Path(daemon.logdir) / RUN) == {
        "loss": [(step, float(step)) for step in range(200)]
    }


def test_after_a_sync_that_failed_it_ends_and_what_was_not_acknowledged_arrives_again(
    daemon: DaemonProcess, points: Path
) -> None:
    with ranktap.init(RUN, endpoint=daemon.endpoint, rank=0, world_size=1) as tap:
        _log(tap, 0, 100)
        assert tap.flush()
        _arm(points, "failing-sync")
        _log(tap, 100, 200)
        # It must not go on: what was dirty may be gone, and a second sync would say nothing of it.
        assert daemon.process.wait(20) == 1
        assert "Input/output error" in daemon.log
        assert not tap.flush(timeout=0.5)
        # Nor may the next one find it in the page cache, where it looks as if it were written.
        assert lose_unsynced(points, _journal(daemon)) == 0
        daemon.start()
        assert tap.flush(timeout=30)
    assert daemon.stop() == 0
    assert scalar_points(Path(daemon.logdir) / RUN) == {
        "loss": [(step, float(step)) for step in range(200)]
    }


# -- a client whose every message is under control -------------------------------------------


class RawClient:
    """A client that sends what the test says and nothing else."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint)
        self.session = secrets.token_bytes(16)

    def hello(self, first: int = 1) -> None:
        hello = Hello(
            session=self.session, run=RUN, rank=0, world_size=1, host="here", pid=1, first=first,
            started=time.time(),
        )  # fmt: skip
        self._socket.send_multipart(frames.pack_hello(hello))

    def batch(self, number: int) -> None:
        """One scalar whose step is the batch's number."""
        columns = Columns(
            tags=["loss"],
            across=np.zeros(1, np.uint8),
            tag_index=np.zeros(1, np.int32),
            step=np.array([number], np.int64),
            wall_time=np.array([time.time()]),
            value=np.array([float(number)]),
        )
        self._socket.send_multipart(frames.pack_batch(self.session, number, Batch(columns)))

    def bye(self) -> None:
        self._socket.send_multipart(frames.pack_bye(self.session))

    def answers(self, wait_s: float = 10.0) -> list[DaemonMessage]:
        """What has been answered, as soon as there is something; none when the time is over."""
        answers = []
        while self._socket.poll(wait_s * 1_000):
            answers.append(frames.read_answer(self._socket.recv_multipart()))
            wait_s = 0
        return answers

    def settle(self) -> None:
        """Let what was sent get as far as the daemon's socket; nothing tells when it has."""
        time.sleep(0.2)

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def client(daemon: DaemonProcess) -> Iterator[RawClient]:
    client = RawClient(daemon.endpoint)
    yield client
    client.close()


def test_an_answer_to_a_gap_names_no_batch_that_is_not_on_disk(
    daemon: DaemonProcess, points: Path, client: RawClient
) -> None:
    client.hello()
    assert client.answers() == [Welcome(last=0, daemon=ranktap.__version__)]
    _arm(points, "before-sync")
    client.batch(1)
    _wait_until_stopped(daemon)
    _arm(points, "before-sync")
    client.batch(2)
    client.batch(4)  # 3 was lost on the way
    client.settle()
    daemon.process.send_signal(signal.SIGCONT)
    _wait_until_stopped(daemon)
    # A client forgets what a gap's answer says that the daemon has.
    told = client.answers(wait_s=0.5)
    assert told in ([], [Ack(1)])
    daemon.process.send_signal(signal.SIGCONT)
    wait_for(lambda: told.extend(client.answers(0.1)) or len(told) >= 3, "all answers")
    assert told == [Ack(1), Ack(2), Error("gap", "batch 3 is missing", 2)]
