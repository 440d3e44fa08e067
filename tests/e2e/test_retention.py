"""Finished runs: their journals go, and whoever comes back later finds everything as it was."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

import ranktap
from ranktap_wire import frames
from ranktap_wire.messages import Ack, ByeAnswer, Welcome
from ranktap_wire.segment import segments
from ranktapd import cli
from ranktapd.retention import FinishedRuns, Rest
from ranktapd.runs import Run, RunPlace
from tests.support import ledger, messages
from tests.support.daemons import DaemonProcess
from tests.support.event_files import scalar_points
from tests.support.interposer import Act, Call, Interposer
from tests.support.shown import assert_shown
from tests.support.strangers import a_batch, free_port, metrics, points_of
from tests.support.waiting import wait_for

StartDaemon = Callable[..., DaemonProcess]
AT_ONCE = "keep_finished_s = 0\n"
LEFT_BYTES = 16 << 10
"""What the state of a small run takes when its journal has gone: six files."""


def _place(daemon: DaemonProcess, run: str) -> RunPlace:
    return RunPlace.of(daemon.logdir, daemon.logdir / ".ranktap", run)


def _has_gone(place: RunPlace) -> bool:
    rest = Rest.read(place.state)
    return rest is not None and not rest.kept


def _config(tmp_path: Path, text: str) -> tuple[str, str]:
    path = tmp_path / "ranktapd.toml"
    path.write_text(text)
    return "--config", str(path)


class Guest:
    """A session that sends batches by number, and hears the daemon's answers."""

    def __init__(self, endpoint: str, run: str, session: bytes) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(endpoint)
        self._run, self._session = run, session

    def hello(self, first: int) -> int:
        """Say hello; the last number that the daemon has."""
        hello = messages.hello(session=self._session, run=self._run, rank=0, world_size=1,
                               first=first)  # fmt: skip
        self._socket.send_multipart(frames.pack_hello(hello))
        return self._hear(Welcome).last  # type: ignore[no-any-return]

    def send(self, numbers: range) -> None:
        """Send batches, and wait until they are acknowledged."""
        for number in numbers:
            self._socket.send_multipart(a_batch(self._session, number))
        while self._hear(Ack).number < numbers[-1]:
            pass

    def goodbye(self) -> None:
        self._socket.send_multipart(frames.pack_bye(self._session))
        self._hear(ByeAnswer)

    def _hear(self, kind: type) -> Any:
        while True:
            assert self._socket.poll(30_000), f"waited for {kind}"
            answer = frames.read_answer(self._socket.recv_multipart())
            if isinstance(answer, kind):
                return answer

    def close(self) -> None:
        self._context.destroy(linger=0)


@pytest.fixture
def guest() -> Iterator[Callable[..., Guest]]:
    guests: list[Guest] = []

    def make(*arguments: Any) -> Guest:
        guests.append(Guest(*arguments))
        return guests[-1]

    yield make
    for each in guests:
        each.close()


def test_a_resumed_job_goes_on_where_its_journal_has_gone(
    start_daemon: StartDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = start_daemon(*_config(tmp_path, AT_ONCE))
    place = _place(daemon, "job")
    for life in range(3):
        tap = ranktap.init("job", endpoint=daemon.endpoint, rank=0, world_size=1)
        for step in range(10 * life, 10 * life + 10):
            ledger.log_step(tap, step)
            ledger.log_beside(tap, step)
        assert tap.close()
        # What a daemon finds at its start goes too, and what comes to rest as it ends.
        assert daemon.stop() == 0
        assert _has_gone(place)
        files = [path for path in place.state.rglob("*") if path.is_file()]
        assert {str(path.relative_to(place.state)).rpartition("/")[0] for path in files} == {
            "", "event_files", "journal", "snapshots",
        }  # fmt: skip
        sub_runs = len(list((place.state / "event_files").iterdir()))
        assert len(files) == 5 + sub_runs, files  # journal, snapshot, event_file, lock, resting
        assert sum(path.stat().st_size for path in files) < LEFT_BYTES
        assert FinishedRuns(place.state_dir, 0.0).find() == []
        daemon.start()
        assert not daemon.workers(), "it has nothing to do"
    assert_shown(place.events, ledger.expected_run(1, range(30)))
    for name in ledger.CURVES:
        points = scalar_points(place.events / f"curves_loss_{name}")[ledger.CURVES_TAG]
        assert points == [(step, ledger.scalar(0, step, name)) for step in range(30)]

    out = tmp_path / "replayed"
    assert cli.main(["replay", str(place.state), "--logdir", str(out)]) == 1
    assert "run 'job': begins behind entry " in capsys.readouterr().err
    assert cli.main(["tail", "job", "--logdir", str(daemon.logdir), "--no-follow"]) == 0
    assert "merged/mean" in capsys.readouterr().out


def test_a_session_that_comes_back_finds_its_number_and_nothing_is_twice(
    start_daemon: StartDaemon, tmp_path: Path, guest: Callable[..., Guest]
) -> None:
    arguments = _config(tmp_path, AT_ONCE)
    program = [sys.executable, "-m", "tests.support.impatient_daemon"]
    daemon = start_daemon(*arguments, program=program)
    session = os.urandom(16)
    first = guest(daemon.endpoint, "job", session)
    assert first.hello(first=1) == 0
    first.send(range(1, 4))
    first.close()
    place = _place(daemon, "job")
    # It has said no goodbye: it is away, and its run rests all the same.
    wait_for(lambda: "has not been heard of for" in daemon.log, "it to be given up", 30)
    wait_for(lambda: len(scalar_points(place.events).get("value", [])) == 9, "its points")
    assert daemon.stop() == 0
    assert _has_gone(place)
    daemon.start()
    again = guest(daemon.endpoint, "job", session)
    assert again.hello(first=2) == 3
    again.send(range(2, 6))  # the acknowledgements of 2 and 3 had been lost
    expected = points_of([1, 2, 3, 4, 5])
    wait_for(lambda: scalar_points(place.events)["value"] == expected, "the rest")


def test_a_journal_is_kept_as_long_as_is_set_and_weighed(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    port = free_port()
    daemon = start_daemon(*_config(tmp_path, f'metrics = "127.0.0.1:{port}"\n'))
    for run in ("a", "b"):
        tap = ranktap.init(run, endpoint=daemon.endpoint, rank=0, world_size=1)
        for step in range(1_000):
            tap.scalar("loss", float(step), step)
        assert tap.close()
    assert daemon.stop() == 0
    places = [_place(daemon, run) for run in ("a", "b")]
    kept = sum(place.journal_bytes() for place in places)
    daemon.start()

    def said() -> float:
        return metrics(port)["ranktapd_kept_journal_bytes", ""]

    wait_for(lambda: said() == kept, "both journals to be weighed")
    assert not any(map(_has_gone, places)), "a day has not gone by"
    # One of them is of the day before yesterday.
    assert daemon.stop() == 0
    then = time.time() - 2 * 86_400
    os.utime(places[0].state / "resting", (then, then))
    daemon.start()
    wait_for(lambda: _has_gone(places[0]), "the older one to go")
    wait_for(
        lambda: said() == sum(place.journal_bytes() for place in places), "the rest to be weighed"
    )
    assert places[0].journal_bytes() < 1_000 < places[1].journal_bytes()
    assert not _has_gone(places[1])


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_a_call_while_a_journal_goes_nothing_is_lost_or_doubled(
    start_daemon: StartDaemon, tmp_path: Path, guest: Callable[..., Guest], every: int
) -> None:
    recorded = start_daemon(logdir=tmp_path / "recorded")
    session = os.urandom(16)
    first = guest(recorded.endpoint, "job", session)
    first.hello(first=1)
    first.send(range(1, 4))
    first.goodbye()
    assert recorded.stop() == 0
    base, logdir = _place(recorded, "job"), tmp_path / "runs"
    assert not _has_gone(base)
    interposer = Interposer(tmp_path / "interposer", logdir)
    program = (
        "import sys; from pathlib import Path; from ranktapd.retention import Rest, let_go; "
        "state = Path(sys.argv[1]); let_go(state, Rest.read(state))"
    )
    places = []
    while True:
        place = RunPlace.of(logdir, logdir / ".ranktap", f"job-{len(places)}")
        shutil.copytree(base.state, place.state)
        shutil.copytree(base.events, place.events)
        interposer.clear()
        calls = (Call.OPEN, Call.WRITE, Call.SYNC, Call.RENAME, Call.UNLINK)
        rule = interposer.rule(Act.KILL_IN_PART, *calls, path="", skip=every * len(places))
        ended = subprocess.run(interposer.program("-c", program, str(place.state)), timeout=60)
        if not rule.fired:
            assert ended.returncode == 0
            assert _has_gone(place)
            break
        assert ended.returncode == -9
        places.append(place)
    assert len(places) > 8 // every
    daemon = start_daemon(*_config(tmp_path, AT_ONCE), logdir=logdir)
    for place in places:
        again = guest(daemon.endpoint, place.name, session)
        assert again.hello(first=2) == 3, place.name
        again.send(range(2, 5))
        again.close()
    expected = points_of([1, 2, 3, 4])
    for place in places:
        wait_for(
            lambda place=place: scalar_points(place.events)["value"] == expected, place.name, 60
        )
    assert "cannot be continued" not in daemon.log


def test_a_run_that_comes_back_in_the_meantime_keeps_its_journal(tmp_path: Path) -> None:
    def open_run() -> Run:
        return Run.open(place, sync=False, segment_bytes=1 << 16)

    place = RunPlace.of(tmp_path / "runs", tmp_path / "state", "job")
    finished = FinishedRuns(tmp_path / "state", 0.0)
    run = open_run()
    run.rest()
    (place.state / "snapshots").mkdir()
    (place.state / "snapshots" / f"{run.journal.last:020d}.msgpack").touch()
    finished.rests(place.state)
    assert finished.nbytes == place.journal_bytes()
    run = open_run()
    finished.wakes(place.state)
    assert finished.nbytes == 0
    finished.turn()
    assert segments(place.journal) == [1]
    run.rest()
    finished.rests(place.state)
    finished.turn()
    assert segments(place.journal) == [run.journal.last + 1]
    assert _has_gone(place)
    assert open_run().sessions.so_far() == run.sessions.so_far()
