"""Every limit that can be set: who meets it is told, it is counted, and nothing else is lost."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

import ranktap
from ranktapd.config import RULES, Config
from tests.support.daemons import DaemonProcess
from tests.support.event_files import scalar_points
from tests.support.strangers import free_port, metrics
from tests.support.waiting import wait_for

MIB = 1 << 20
BESIDE = "beside"
"""A run that logs what is within all limits, before and behind; it may lose nothing."""


@dataclass
class Stage:
    """A daemon with one limit set low, a run beside, and what has been logged."""

    daemon: DaemonProcess
    port: int
    config: Path
    beside: ranktap.Tap
    caplog: pytest.LogCaptureFixture
    logged: dict[str, int]
    """By run, how many points of "value" must be there: steps 0, 1, 2 ..."""

    def log(self, tap: ranktap.Tap, count: int = 10) -> None:
        begin = self.logged.setdefault(tap.run, 0)
        for step in range(begin, begin + count):
            tap.scalar("value", float(step), step)
        self.logged[tap.run] += count

    def tap(self, run: str) -> ranktap.Tap:
        return ranktap.init(run, endpoint=self.daemon.endpoint, rank=0, world_size=1)

    def is_told(self, limit: str) -> bool:
        return f"({limit})" in self.caplog.text

    def set(self, limit: str, value: int) -> None:
        self.config.write_text(f"{limit} = {value}\n")
        self.daemon.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]

    def worker_of(self, run: str) -> psutil.Process:
        def found() -> psutil.Process | None:
            workers = self.daemon.workers()
            return next((each for each in workers if f"--run={run}" in each.cmdline()), None)

        return wait_for(found, f"a worker of {run}")  # type: ignore[return-value]

    @contextmanager
    def held_worker(self, tap: ranktap.Tap) -> Iterator[None]:
        """The run's worker stands still, with some MiB to write."""
        self.log(tap)
        assert tap.flush()
        worker = self.worker_of(tap.run)
        worker.suspend()
        self.log(tap, 100_000)
        yield
        worker.resume()


def _no_room(stage: Stage) -> None:
    stage.set("min_free_bytes", 1 << 60)
    wait_for(lambda: metrics(stage.port)["ranktapd_full", ""], "the disk to count as full")
    with stage.tap("late") as late:
        stage.log(late)
        stage.log(stage.beside)
        assert not stage.beside.flush(timeout=0.5)
        wait_for(lambda: stage.is_told("min_free_bytes"), "the limit to be told")
        stage.set("min_free_bytes", 0)
        assert late.flush(30)
        assert stage.beside.flush(30)


def _journals(limit: str) -> Callable[[Stage], None]:
    def meet(stage: Stage) -> None:
        with stage.tap("fast") as fast:
            with stage.held_worker(fast):

                def is_met() -> bool:
                    stage.log(fast, 1)
                    return stage.is_told(limit)

                wait_for(is_met, "the limit to be told")
                stage.log(stage.beside)
                # The limit of one run is no other's.
                assert stage.beside.flush(5 if limit == "max_run_journal_bytes" else 0.5) == (
                    limit == "max_run_journal_bytes"
                )
            assert fast.flush(30)
            # Each of the two is told once at most, however long it lasts.
            assert stage.caplog.text.count(f"({limit})") <= 2

    return meet


def _runs(stage: Stage) -> None:
    with stage.tap("one more") as more:
        more.scalar("value", 1.0, 0)
        wait_for(lambda: stage.is_told("max_runs"), "the limit to be told")
    assert not (stage.daemon.logdir / "one more").exists()


def _run_tags(stage: Stage) -> None:
    with stage.tap("many") as many:
        stage.log(many)
        assert many.flush()
        for number in range(60):
            many.scalar(f"tag{number:02}", 1.0, 0)
        assert many.flush()
        wait_for(lambda: stage.is_told("max_run_tags"), "the limit to be told")
        stage.log(many)
        # A rank that comes later is told as well.
        stage.caplog.clear()
    with stage.tap("many") as again:
        stage.log(again)
        assert again.flush()
        wait_for(lambda: stage.is_told("max_run_tags"), "the limit to be told again")
    tags = wait_for(lambda: scalar_points(stage.daemon.logdir / "many"), "points")
    there = sorted(tag for tag in tags if tag.startswith("tag"))
    assert 0 < len(there) < 40
    assert there == [f"tag{number:02}" for number in range(len(there))]


def _workers(stage: Stage) -> None:
    with stage.tap("another") as another:
        for _ in range(20):
            stage.log(another)
            stage.log(stage.beside)
            assert another.flush()
            assert stage.beside.flush()


def _sessions(stage: Stage) -> None:
    with stage.tap("waits") as waits:
        stage.log(waits)
        wait_for(lambda: stage.is_told("max_sessions"), "the limit to be told")
        assert stage.beside.close()
        assert waits.flush(30)
    stage.beside = stage.tap(BESIDE)


def _message(stage: Stage) -> None:
    with stage.tap("large") as large:
        stage.log(large)
        assert large.flush()  # the batch that is refused goes whole
        large.histogram("values", np.zeros(MIB, np.float32), 0)
        assert large.flush()
        stage.log(large)
        wait_for(lambda: stage.is_told("max_message_bytes"), "the limit to be told")


def _batches(stage: Stage) -> None:
    with stage.tap("often") as often:
        for _ in range(40):
            stage.log(often, 1)
            often.flush(timeout=0)
            wait_for(lambda: not often._outbox, "the batch to be made")
        assert often.flush(30)


def _bytes(stage: Stage) -> None:
    with stage.tap("much") as much:
        for step in range(6):
            much.histogram("values", np.zeros(MIB // 8, np.float32), step)
            stage.log(much, 1)
        assert much.flush(30)


LIMITS: dict[str, tuple[int, Callable[[Stage], None], bool]] = {
    "min_free_bytes": (0, _no_room, True),
    "max_journal_bytes": (MIB, _journals("max_journal_bytes"), True),
    "max_run_journal_bytes": (MIB, _journals("max_run_journal_bytes"), True),
    "max_runs": (1, _runs, True),
    "max_run_tags": (40, _run_tags, True),
    "max_workers": (1, _workers, False),
    "max_sessions": (1, _sessions, True),
    "max_message_bytes": (MIB, _message, True),
    "max_session_batches_per_s": (10, _batches, True),
    "max_session_bytes_per_s": (MIB, _bytes, True),
}
"""The value, what meets it, and whether its client notices."""


def test_the_limits_below_are_all_there_are_and_have_a_default() -> None:
    assert list(LIMITS) == [name for name in RULES if name.startswith(("max_", "min_"))]
    for name, (value, _, _) in LIMITS.items():
        default = getattr(Config(), name)
        assert RULES[name].read(default) == default != value


@pytest.mark.parametrize("limit", LIMITS)
def test_who_meets_a_limit_is_told_it_is_counted_and_nothing_else_is_lost(
    limit: str,
    start_daemon: Callable[..., DaemonProcess],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    value, meet, is_told = LIMITS[limit]
    config, port = tmp_path / "ranktapd.toml", free_port()
    config.write_text(f"{limit} = {value}\n")
    daemon = start_daemon(f"--config={config}", f"--metrics=127.0.0.1:{port}")
    beside = ranktap.init(BESIDE, endpoint=daemon.endpoint, rank=0, world_size=1)
    stage = Stage(daemon, port, config, beside, caplog, {})
    with caplog.at_level(logging.WARNING, "ranktap"):
        stage.log(beside)
        assert beside.flush()
        meet(stage)
        stage.log(stage.beside)
        assert stage.beside.flush(30)
        assert stage.beside.close()
        assert metrics(port)["ranktapd_limited_total", limit] >= 1
        assert is_told == (f"({limit})" in caplog.text), caplog.text
    for run, count in stage.logged.items():
        expected = [(step, float(step)) for step in range(count)]
        wait_for(
            lambda run=run, expected=expected: (
                scalar_points(daemon.logdir / run).get("value") == expected
            ),
            f"all that run {run} logged",
        )
