"""Two real jobs with one run's name: a clear error for the second, or a run of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.daemons import DaemonProcess
from tests.support.event_files import OWN_TAGS, scalar_points
from tests.support.told_ranks import ToldRank

StartDaemon = Callable[..., DaemonProcess]


class Job:
    """Two ranks, which log `x` = value to the run `exp`, and count their steps."""

    def __init__(self, daemon: DaemonProcess, job: str, value: float) -> None:
        self.ranks = [ToldRank(daemon.endpoint, "exp", job, rank, 2, value) for rank in range(2)]
        self._step = 0
        for rank in self.ranks:
            rank.wait_until_here()

    def log(self, steps: int) -> bool:
        """Log so many steps; whether they were journaled."""
        for rank in self.ranks:
            rank.log(self._step, steps)
        self._step += steps
        return self._journaled()

    def close(self) -> bool:
        for rank in self.ranks:
            rank.close()
        return self._journaled()

    def kill(self) -> list[str]:
        """What its ranks' loggers have said, each of them."""
        return [rank.kill() for rank in self.ranks]

    def _journaled(self) -> bool:
        first, second = (rank.journaled() for rank in self.ranks)
        assert first is second
        return first


StartJob = Callable[..., Job]


@pytest.fixture
def start_job() -> Iterator[StartJob]:
    jobs: list[Job] = []

    def start(daemon: DaemonProcess, job: str, value: float) -> Job:
        jobs.append(Job(daemon, job, value))
        return jobs[-1]

    yield start
    for job in jobs:
        for rank in job.ranks:
            if not rank.is_over:
                rank.kill()


def points(daemon: DaemonProcess, run: str) -> dict[str, list[tuple[int, float]]]:
    found = scalar_points(daemon.logdir / run)
    return {tag: series for tag, series in found.items() if not tag.startswith(OWN_TAGS)}


def expected(value: float, *steps: int) -> dict[str, list[tuple[int, float]]]:
    """So many steps from 0 on, each time that the job was started."""
    series = [(step, value) for count in steps for step in range(count)]
    return {tag: [*series] for tag in ("x", "ranks/x/min", "ranks/x/max")}


def test_the_second_job_is_told_and_the_first_goes_on(
    start_daemon: StartDaemon, start_job: StartJob
) -> None:
    daemon = start_daemon()
    first = start_job(daemon, "first", 1.0)
    assert first.log(5)
    second = start_job(daemon, "second", 2.0)
    assert not second.log(5)
    assert first.log(5)
    assert first.close()
    assert not second.close()
    for told in second.kill():
        assert told.count("is writing to run 'exp'") == 1
        assert "give one of them another run= or comment=" in told
        assert "nothing more is logged by this rank" in told
    assert first.kill() == ["", ""]
    assert daemon.stop() == 0
    assert points(daemon, "exp") == expected(1.0, 10)
    assert not (daemon.logdir / "exp-2").exists()


def test_the_second_job_has_a_run_of_its_own_for_as_long_as_it_lives(
    start_daemon: StartDaemon, start_job: StartJob
) -> None:
    daemon = start_daemon("--on-conflict=suffix")
    first = start_job(daemon, "first", 1.0)
    assert first.log(5)
    second = start_job(daemon, "second", 2.0)
    assert second.log(5)
    # Also when nothing is left of the first that would be in its way: not in the daemon's
    # memory, and not in the run.
    daemon.kill()
    daemon.start()
    assert first.close()
    assert second.log(5)
    assert second.close()
    for told in second.kill():
        assert "another job writes to run 'exp'; this one is run 'exp-2'" in told
    again = start_job(daemon, "second", 2.0)
    assert again.log(3)
    assert again.close()
    first.kill()
    again.kill()
    assert daemon.stop() == 0
    assert points(daemon, "exp") == expected(1.0, 5)
    assert points(daemon, "exp-2") == expected(2.0, 10, 3)


def test_a_job_that_was_killed_is_not_in_the_next_ones_way(
    start_daemon: StartDaemon, start_job: StartJob
) -> None:
    daemon = start_daemon()
    first = start_job(daemon, "first", 1.0)
    assert first.log(5)
    first.kill()
    second = start_job(daemon, "second", 2.0)
    assert second.log(3)
    assert second.close()
    second.kill()
    assert daemon.stop() == 0
    both = expected(1.0, 5)
    for tag, series in expected(2.0, 3).items():
        both[tag] += series
    assert points(daemon, "exp") == both
