"""Processes that stand still (SIGSTOP): the daemon, and a run's worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support import ledger
from tests.support.daemons import DaemonProcess
from tests.support.rank_program import report, start_rank
from tests.support.shown import assert_shown, read_logged
from tests.support.waiting import wait_for

DaemonStarter = Callable[..., DaemonProcess]
RUN = "faults/standstill"
WORLD_SIZE = 2
SLOWEST_SCALAR_S = 0.05


def _run_job(
    daemon: DaemonProcess,
    steps: int,
    victim: Callable[[], psutil.Process],
    done: Callable[[], int],
    still_s: float,
) -> None:
    """The ledger's job, with a process that stands still in the middle of it: no more is `done`."""
    directory = Path(daemon.logdir) / RUN
    ranks = [
        start_rank(daemon.endpoint, RUN, rank, WORLD_SIZE, steps=steps, step_s=0.05)
        for rank in range(WORLD_SIZE)
    ]
    try:
        wait_for(lambda: read_logged(directory).points() > 300, "the job to have begun")
        process = victim()
        process.suspend()
        try:
            wait_for(lambda: process.status() == psutil.STATUS_STOPPED, "it to stand still")
            before = done()
            end = time.monotonic() + still_s
            wait_for(lambda: time.monotonic() > end, "the time to pass", still_s + 10)
            assert done() == before
        finally:
            process.resume()
        reports = [report(rank, 90) for rank in ranks]
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
                rank.wait()
    for told in reports:
        assert told["closed"], told["stderr"]
        assert told["slowest_s"] < SLOWEST_SCALAR_S
    expected = ledger.expected_run(WORLD_SIZE, range(steps))
    wait_for(lambda: read_logged(directory).points() >= expected.points(), "everything")
    assert daemon.stop() == 0
    # Nobody was given up on: what had come in was read before clocks were looked at.
    assert_shown(directory, expected)


def _points(daemon: DaemonProcess) -> int:
    """What a worker writes."""
    return read_logged(Path(daemon.logdir) / RUN).points()


def _journal_bytes(daemon: DaemonProcess) -> int:
    """What the daemon writes; workers may be behind, and go on."""
    return sum(path.stat().st_size for path in Path(daemon.logdir).rglob("*.journal"))


def _worker(daemon: DaemonProcess) -> psutil.Process:
    (worker,) = daemon.workers()
    return worker


def test_while_a_worker_stands_still_everything_is_journaled_and_written_afterwards(
    start_daemon: DaemonStarter,
) -> None:
    daemon = start_daemon()
    _run_job(daemon, 60, lambda: _worker(daemon), lambda: _points(daemon), still_s=1.5)
    assert "its worker ended" not in daemon.log


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_worker_that_stands_still_for_30_s_loses_nothing(start_daemon: DaemonStarter) -> None:
    daemon = start_daemon()
    _run_job(daemon, 900, lambda: _worker(daemon), lambda: _points(daemon), still_s=30.0)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_daemon_that_stands_still_for_30_s_loses_nothing_and_gives_up_on_nobody(
    start_daemon: DaemonStarter,
) -> None:
    daemon = start_daemon()
    _run_job(daemon, 900, lambda: psutil.Process(daemon.pid), lambda: _journal_bytes(daemon), 33.0)
    assert "has not been heard of" not in daemon.log
