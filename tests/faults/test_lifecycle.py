"""Signals, second daemons, workers that die, batches that kill them: what must go on does."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

import ranktap
from ranktapd.entries import WindowsExpired
from ranktapd.retention import FinishedRuns
from ranktapd.runs import Run, RunPlace
from tests.support.crashing_worker import POISON
from tests.support.daemons import DaemonProcess
from tests.support.event_files import scalar_points
from tests.support.ledger import Contents
from tests.support.shown import assert_shown
from tests.support.waiting import wait_for

DaemonStarter = Callable[..., DaemonProcess]
ENDS_WITHIN_S = 10.0


def _log(tap: ranktap.Tap, steps: range) -> None:
    for step in steps:
        tap.scalar("loss", float(step), step)


def _points(daemon: DaemonProcess, run: str) -> list[tuple[int, float]]:
    return scalar_points(Path(daemon.logdir) / run).get("loss", [])


def _logged(steps: range) -> list[tuple[int, float]]:
    return [(step, float(step)) for step in steps]


def _place(daemon: DaemonProcess, run: str) -> RunPlace:
    logdir = Path(daemon.logdir)
    return RunPlace.of(logdir, logdir / ".ranktap", run)


def _worker_of(daemon: DaemonProcess, run: str) -> psutil.Process:
    def found() -> psutil.Process | None:
        for worker in daemon.workers():
            if f"--run={run}" in worker.cmdline():
                return worker
        return None

    return wait_for(found, f"a worker of {run}")  # type: ignore[return-value]


# -- signals ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_everything_written_and_the_clients_go_on_when_it_is_back(
    start_daemon: DaemonStarter, number: int
) -> None:
    daemon = start_daemon()
    with ranktap.init("job", endpoint=daemon.endpoint, rank=0, world_size=1) as tap:
        _log(tap, range(5_000))
        assert tap.flush()
        began = time.monotonic()
        daemon.process.send_signal(number)
        _log(tap, range(5_000, 6_000))
        assert daemon.process.wait(ENDS_WITHIN_S) == 0
        print(f"ended within {time.monotonic() - began:.2f} s")
        assert not daemon.workers()
        written = _points(daemon, "job")
        assert written[:5_000] == _logged(range(5_000))
        _log(tap, range(6_000, 7_000))
        daemon.start()
        assert tap.flush(timeout=30)
    assert daemon.stop() == 0
    assert _points(daemon, "job") == _logged(range(7_000))


def test_a_signal_ends_it_although_a_worker_cannot_finish(start_daemon: DaemonStarter) -> None:
    daemon = start_daemon()
    with ranktap.init("job", endpoint=daemon.endpoint, rank=0, world_size=1) as tap:
        _log(tap, range(100))
        assert tap.flush()
        _worker_of(daemon, "job").suspend()
        _log(tap, range(100, 200))
        assert tap.flush()
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(ENDS_WITHIN_S) == 0
        assert "the rest at the next start" in daemon.log
        daemon.start()
        assert tap.flush(timeout=30)
    assert daemon.stop() == 0
    assert _points(daemon, "job") == _logged(range(200))


@pytest.mark.parametrize("in_a_row", [False, True], ids=["one after the other", "in a row"])
def test_a_second_signal_ends_it_at_once_and_nothing_is_lost(
    start_daemon: DaemonStarter, in_a_row: bool
) -> None:
    daemon = start_daemon()
    with ranktap.init("job", endpoint=daemon.endpoint, rank=0, world_size=1) as tap:
        _log(tap, range(100))
        assert tap.flush()
        worker = _worker_of(daemon, "job")
        worker.suspend()
        _log(tap, range(100, 200))
        assert tap.flush()
        daemon.process.send_signal(signal.SIGTERM)
        if not in_a_row:
            wait_for(lambda: "ending" in daemon.log, "the daemon to notice the signal")
        else:
            # Two signals of one kind that are pending are one.
            daemon.process.send_signal(signal.SIGINT)
        began = time.monotonic()
        if not in_a_row:
            daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(ENDS_WITHIN_S) == 0
        assert time.monotonic() - began < 3.0
        wait_for(lambda: not worker.is_running(), "the worker to be gone")
        daemon.start()
        assert tap.flush(timeout=30)
    assert daemon.stop() == 0
    assert _points(daemon, "job") == _logged(range(200))


def test_a_second_daemon_on_the_logdir_is_told_why_it_may_not_and_the_first_goes_on(
    start_daemon: DaemonStarter,
) -> None:
    daemon = start_daemon()
    with ranktap.init("job", endpoint=daemon.endpoint, rank=0, world_size=1) as tap:
        _log(tap, range(100))
        assert tap.flush()
        second = start_daemon(wait=False)
        assert second.process.wait(20) == 1
        assert f"another ranktapd writes to {daemon.logdir}" in second.log
        assert daemon.endpoint in second.log
        assert "Traceback" not in second.log
        _log(tap, range(100, 200))
        assert tap.flush()
    assert daemon.stop() == 0
    assert _points(daemon, "job") == _logged(range(200))


def test_a_daemon_of_another_logdir_may_not_use_the_same_state_directory(
    start_daemon: DaemonStarter, tmp_path: Path
) -> None:
    state = ("--state-dir", str(tmp_path / "state"))
    daemon = start_daemon(*state)
    second = start_daemon(*state, wait=False, logdir=tmp_path / "elsewhere")
    assert second.process.wait(20) == 1
    assert f"another ranktapd keeps its journals in {tmp_path / 'state'}" in second.log
    with ranktap.init("job", endpoint=daemon.endpoint, rank=0, world_size=1) as tap:
        _log(tap, range(100))
        assert tap.flush()
    assert daemon.stop() == 0
    assert _points(daemon, "job") == _logged(range(100))


# -- workers that die ---------------------------------------------------------------------


def test_a_worker_that_dies_is_started_again_and_other_runs_never_notice(
    start_daemon: DaemonStarter,
) -> None:
    daemon = start_daemon()
    taps = {
        run: ranktap.init(run, endpoint=daemon.endpoint, rank=0, world_size=1)
        for run in ("dying", "other")
    }
    for tap in taps.values():
        _log(tap, range(100))
        assert tap.flush()
    undisturbed = _worker_of(daemon, "other").pid
    for begin in range(100, 400, 100):
        worker = _worker_of(daemon, "dying")
        worker.kill()
        wait_for(lambda: not worker.is_running(), "the worker to be gone")  # noqa: B023
        for run, tap in taps.items():
            _log(tap, range(begin, begin + 100))
            wait_for(
                lambda: _points(daemon, run) == _logged(range(begin + 100)),  # noqa: B023
                f"{run} to be written up to step {begin + 100}",
            )
    assert _worker_of(daemon, "other").pid == undisturbed
    for tap in taps.values():
        assert tap.close()
    assert daemon.stop() == 0
    for run in taps:
        assert _points(daemon, run) == _logged(range(400))
    assert not list(_place(daemon, "dying").quarantine.glob("*"))


def test_workers_end_when_the_main_process_is_killed(start_daemon: DaemonStarter) -> None:
    daemon = start_daemon()
    taps = [ranktap.init(run, endpoint=daemon.endpoint, rank=0, world_size=1) for run in ("a", "b")]
    for tap in taps:
        _log(tap, range(100))
        assert tap.flush()
    workers = [_worker_of(daemon, run) for run in ("a", "b")]
    daemon.kill()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    daemon.start()
    for tap in taps:
        assert tap.close(timeout=30)
    assert daemon.stop() == 0
    assert _points(daemon, "a") == _points(daemon, "b") == _logged(range(100))


def test_with_more_runs_than_workers_all_of_them_are_written(
    start_daemon: DaemonStarter, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text("max_workers = 1\n")
    daemon = start_daemon("--config", str(config))
    runs = ("a", "b", "c")
    taps = [ranktap.init(run, endpoint=daemon.endpoint, rank=0, world_size=1) for run in runs]
    step = 0

    def all_have_points() -> bool:
        nonlocal step
        # None of them ever rests.
        for tap in taps:
            _log(tap, range(step, step + 10))
        step += 10
        assert len(daemon.workers()) <= 1
        return all(len(_points(daemon, run)) > 0 for run in runs)

    wait_for(all_have_points, "every run to have its turn", 40)
    for tap in taps:
        assert tap.close()
    wait_for(
        lambda: all(_points(daemon, run) == _logged(range(step)) for run in runs),
        "everything to be written",
        40,
    )


def test_a_run_that_goes_on_in_a_new_segment_is_not_taken_for_finished(tmp_path: Path) -> None:
    place = RunPlace.of(tmp_path / "runs", tmp_path / "state", "job")

    def open_run() -> Run:
        return Run.open(place, sync=False, segment_bytes=1)

    run = open_run()
    run.rest()
    assert FinishedRuns(tmp_path / "state", 0.0).find() == []
    run = open_run()
    assert FinishedRuns(tmp_path / "state", 0.0).find() == [], "nothing has been added"
    run.add(WindowsExpired(1))
    run.commit()
    run.close()
    assert FinishedRuns(tmp_path / "state", 0.0).find() == ["job"]


# -- quarantine ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["exit", "kill", "raise", "draw and kill", "draw and raise"])
def test_a_batch_that_kills_its_worker_three_times_is_set_aside_and_all_others_are_written(
    start_daemon: DaemonStarter, how: str
) -> None:
    program = [sys.executable, "-m", "tests.support.crashing_worker", how]
    daemon = start_daemon(program=program)
    poisoned, other = (
        ranktap.init(run, endpoint=daemon.endpoint, rank=0, world_size=1)
        for run in ("poisoned", "other")
    )
    _log(poisoned, range(100))
    assert poisoned.flush()
    # Several batches that arrive together are one group, and are folded together.
    process = psutil.Process(daemon.pid)
    process.suspend()
    for step, tag in enumerate(["picture", "picture", POISON, "picture", "picture"]):
        poisoned.image(tag, np.full((3, 64, 64), step, np.uint8), step)
        poisoned.flush(timeout=0.1)
    process.resume()
    _log(poisoned, range(100, 200))
    _log(other, range(200))
    assert poisoned.flush()
    assert other.flush()
    wait_for(lambda: "was set aside" in daemon.log, "the batch to be set aside", 60)
    wait_for(
        lambda: _points(daemon, "poisoned") == _logged(range(200)),
        "the rest to be written",
    )
    _log(poisoned, range(200, 300))
    assert poisoned.close()
    assert other.close()
    assert daemon.stop() == 0
    pictures = [(step, (64, 64, 3), bytes([step]) * (64 * 64 * 3)) for step in (0, 1, 3, 4)]
    logged = Contents(scalars={"loss": _logged(range(300))}, pictures={"picture": pictures})
    assert_shown(Path(daemon.logdir) / "poisoned", logged)
    assert_shown(Path(daemon.logdir) / "other", Contents(scalars={"loss": _logged(range(200))}))
    (entry,) = _place(daemon, "poisoned").quarantine.iterdir()
    assert POISON.encode() in entry.read_bytes()
    assert str(_place(daemon, "poisoned").quarantine) in daemon.log
    assert daemon.log.count("run 'other': its worker ended") == 0
