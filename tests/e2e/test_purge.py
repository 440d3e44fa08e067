"""`purge_step`: what a resumed job logs again takes the place of what was, in TensorBoard, as
with torch's writer. Boards of both loaders look on all the while."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter as TorchWriter

from ranktap import SummaryWriter
from tests.e2e.jobs import resumed
from tests.e2e.jobs.resumed import RESUMED_AT, log_life
from tests.support.boards import Board
from tests.support.daemons import DaemonProcess, ranks_environment
from tests.support.embedded import kill_all, log_of, wait_until_ended
from tests.support.waiting import wait_for

RUNS = ("embedded", "served/kept", "served/stopped", "served/killed", "served/ranks")
"""Ours: with a daemon that a job starts and that ends with it, and with one that lives through
both lives, is stopped in between, is killed in between; and 4 ranks, the daemon killed."""
BY_TORCH = ("torch", "torch started at 0")
"""The second was told to purge from 0 in its first life, too: so its file begins with a START."""

Points = list[tuple[int, float]]


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Board]]:
    """Boards, by loader, that have seen the first lives of all runs and now show the second."""
    logdir = tmp_path_factory.mktemp("purge")
    daemon = DaemonProcess(logdir / "served").start()
    started: dict[str, Board] = {}
    try:
        _first_lives(logdir, daemon)
        for loader in ("fast", "python"):
            started[loader] = Board(logdir, fast=loader == "fast")
        _wait_until_shown(started, 0)
        _second_lives(logdir, daemon)
        _wait_until_shown(started, 1)
        yield started
    finally:
        for board in started.values():
            print(board.log)
            board.close()
        print(daemon.log, log_of(logdir / "embedded"))
        daemon.close()
        kill_all(logdir / "embedded")


def _first_lives(logdir: Path, daemon: DaemonProcess) -> None:
    log_life(TorchWriter(str(logdir / "torch")), 0)
    log_life(TorchWriter(str(logdir / "torch started at 0"), purge_step=0), 0)
    log_life(SummaryWriter(logdir / "embedded"), 0)
    for run in ("kept", "stopped", "killed"):
        log_life(SummaryWriter(run, endpoint=daemon.endpoint), 0)
    _log_in_ranks(daemon, 0)
    wait_until_ended(logdir / "embedded")


def _second_lives(logdir: Path, daemon: DaemonProcess) -> None:
    # A file of torch's is named by the second in which it was opened, and then by numbers that
    # do not sort: the boards have to read this one as the later.
    names = {path.name.split(".")[3] for path in logdir.glob("torch*/*tfevents*")}
    wait_for(lambda: int(time.time()) > int(max(names)), "the next second")
    for run in BY_TORCH:
        log_life(TorchWriter(str(logdir / run), purge_step=RESUMED_AT), 1)
    log_life(SummaryWriter(logdir / "embedded", purge_step=RESUMED_AT), 1)

    def log_again(run: str) -> None:
        log_life(SummaryWriter(run, purge_step=RESUMED_AT, endpoint=daemon.endpoint), 1)

    log_again("kept")
    assert daemon.stop() == 0
    daemon.start()
    log_again("stopped")
    daemon.kill()
    daemon.start()
    log_again("killed")
    _log_in_ranks(daemon, 1)


def _log_in_ranks(daemon: DaemonProcess, life: int) -> None:
    """One life of a job of four processes."""
    ranks = [
        subprocess.Popen(
            [sys.executable, resumed.__file__, daemon.endpoint, "ranks", str(rank), str(life)],
            env=ranks_environment(rank, 4), stderr=subprocess.PIPE, text=True,
        )
        for rank in range(4)
    ]  # fmt: skip
    for rank in ranks:
        _, errors = rank.communicate(timeout=60)
        assert rank.returncode == 0, errors


def _wait_until_shown(boards: dict[str, Board], life: int) -> None:
    """Wait for the last point of a life, in each run and in its curves."""
    step = resumed.STEPS[life][-1]
    last = [(step, 100.0 * life + step)]
    for loader, board in boards.items():
        for run in (*RUNS, *BY_TORCH):
            wait_for(
                lambda board=board, run=run: (
                    board.scalars(run, f"end {life}")
                    and shown(board, f"{run}/curves_a", "curves")[-1:] == last
                ),
                f"the {loader} loader to show life {life} of {run}",
                60,
            )


def shown(board: Board, run: str, tag: str) -> Points:
    return [(int(step), value) for _, step, value in board.scalars(run, tag)]


def first_life(steps: range) -> Points:
    return [(step, float(step)) for step in steps]


KEPT = first_life(range(RESUMED_AT))
AGAIN: Points = [(5, 105.0), (6, 106.0), (7, 107.0)]
ALL = first_life(range(10))


@pytest.mark.parametrize("loader", ["fast", "python"])
@pytest.mark.parametrize("run", RUNS)
def test_a_resumed_job_shows_what_it_would_with_torchs_writer(
    boards: dict[str, Board], run: str, loader: str
) -> None:
    board = boards[loader]
    assert shown(board, run, "loss") == KEPT + AGAIN
    for tag in ("loss", "not again", "end 1"):
        assert shown(board, run, tag) == shown(board, "torch started at 0", tag), tag
    # Neither has a START in the files of curves.
    assert shown(board, f"{run}/curves_a", "curves") == shown(board, "torch/curves_a", "curves")


@pytest.mark.parametrize("run", RUNS)
def test_without_a_start_in_torchs_first_file_the_python_loader_purges_ours_alone(
    boards: dict[str, Board], run: str
) -> None:
    # It takes the first START of a run for its beginning, and purges at the second. Ours has
    # one at step 0 at its beginning; torch's has one only where purge_step was given, so that of
    # the first job that is resumed is its first.
    board = boards["python"]
    assert shown(board, "torch", "loss") == ALL + AGAIN
    assert shown(board, run, "loss") == KEPT + AGAIN
    assert shown(board, "torch", "not again") == ALL
    assert shown(board, run, "not again") == KEPT
    # The fast loader passes over a START, and purges a tag when a step of it goes back.
    board = boards["fast"]
    for tag, points in (("loss", KEPT + AGAIN), ("not again", ALL)):
        assert shown(board, "torch", tag) == shown(board, run, tag) == points


@pytest.mark.parametrize("loader", ["fast", "python"])
def test_the_bands_of_four_ranks_that_all_say_so_are_purged_once(
    boards: dict[str, Board], loader: str
) -> None:
    for tag, offset in (("ranks/loss/min", -1.5), ("ranks/loss/max", 1.5)):
        points = shown(boards[loader], "served/ranks", tag)
        assert points == [(step, value + offset) for step, value in KEPT + AGAIN]
