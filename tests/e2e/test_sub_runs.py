"""Runs and sub-runs that want one directory: the first has it, and nobody writes between."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

import ranktap
from tests.support.daemons import DaemonProcess
from tests.support.event_files import event_files, scalar_points
from tests.support.waiting import wait_for


def test_a_run_that_has_the_name_of_a_sub_run_is_refused_with_words_and_the_other_goes_on(
    start_daemon: Callable[..., DaemonProcess], caplog: pytest.LogCaptureFixture
) -> None:
    daemon = start_daemon()
    logdir = Path(daemon.logdir)
    with ranktap.init("job", endpoint=daemon.endpoint, rank=0, world_size=1) as first:
        first.curves("loss", {"a": 1.0}, 1)
        assert first.flush()
        wait_for(lambda: event_files(logdir / "job" / "loss_a"), "the sub-run's file")
        with caplog.at_level(logging.WARNING):
            second = ranktap.init("job/loss_a", endpoint=daemon.endpoint, rank=0, world_size=1)
            second.scalar("loss", 2.0, 2)
            assert not second.close(timeout=5)
        assert "is the directory of a sub-run of run 'job'" in caplog.text
        first.curves("loss", {"a": 3.0}, 3)
    assert daemon.stop() == 0
    assert scalar_points(logdir / "job" / "loss_a") == {"loss": [(1, 1.0), (3, 3.0)]}


def test_a_sub_run_that_has_the_name_of_a_run_is_left_out_and_all_else_is_written(
    start_daemon: Callable[..., DaemonProcess],
) -> None:
    daemon = start_daemon()
    logdir = Path(daemon.logdir)
    with (
        ranktap.init("job/loss_a", endpoint=daemon.endpoint, rank=0, world_size=1) as first,
        ranktap.init("job", endpoint=daemon.endpoint, rank=0, world_size=1) as second,
    ):
        for step in range(3):
            first.scalar("own", 1.0, step)
            second.curves("loss", {"a": 2.0, "b": 3.0}, step)
            second.scalar("own", 4.0, step)
            assert first.flush() and second.flush()
    assert daemon.stop() == 0
    assert daemon.log.count("its sub-run 'loss_a' is left out") == 1
    assert f"{logdir / 'job' / 'loss_a'} is the directory of run 'job/loss_a'" in daemon.log
    for directory, tag, value in (("job/loss_a", "own", 1.0), ("job", "own", 4.0),
                                  ("job/loss_b", "loss", 3.0)):  # fmt: skip
        assert scalar_points(logdir / directory) == {tag: [(step, value) for step in range(3)]}
        assert len(event_files(logdir / directory)) == 1


def test_the_logdir_itself_is_a_run_that_goes_on_after_a_kill_and_has_sub_runs(
    start_daemon: Callable[..., DaemonProcess],
) -> None:
    daemon = start_daemon()
    logdir = Path(daemon.logdir)
    for step in range(2):
        with ranktap.init(".", endpoint=daemon.endpoint, rank=0, world_size=1) as tap:
            tap.scalar("own", 1.0, step)
            tap.curves("loss", {"a": 2.0}, step)
        daemon.kill()
        daemon.start()
    assert daemon.stop() == 0
    points = [(step, 1.0) for step in range(2)]
    assert scalar_points(logdir) == {"own": points}
    assert scalar_points(logdir / "loss_a") == {"loss": [(step, 2.0) for step in range(2)]}
    visible = [path.name for path in logdir.iterdir() if not path.name.startswith(".")]
    assert sorted(visible) == sorted([event_files(logdir)[0].name, "loss_a"])
    assert [path.name for path in (logdir / ".ranktap" / "runs").iterdir()] == ["%2E"]
