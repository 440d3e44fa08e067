"""An event file torn at every byte of its last group while both of TensorBoard's loaders read.

Each byte is a run of its own, so that one look of a board is at all of them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.compat.proto.event_pb2 import Event

import ranktap
from ranktapd import event_file
from ranktapd.runs import RunPlace
from tests.support import folding
from tests.support.boards import Board
from tests.support.daemons import DaemonProcess
from tests.support.event_files import event_files, scalar_points
from tests.support.waiting import wait_for

RUN = "torn"
TAGS = ("loss", "ranks/loss/min", "ranks/loss/max")
STEPS = 3


def _place(logdir: Path, run: str) -> RunPlace:
    return RunPlace.of(logdir, logdir.parent / "state", run)


@pytest.fixture
def _without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda fd: None)


def _record(start_daemon: Callable[..., DaemonProcess], logdir: Path) -> int:
    """A job that logs one tag at each step; its journal's last entry."""
    daemon = start_daemon("--state-dir", str(logdir.parent / "state"), logdir=logdir)
    taps = [
        ranktap.init(RUN, endpoint=daemon.endpoint, rank=rank, world_size=2) for rank in range(2)
    ]
    for step in range(STEPS):
        for tap in taps:
            tap.scalar("loss", step + 0.5 * tap.rank, step)
            assert tap.flush()
    for tap in taps:
        assert tap.close()
    assert daemon.stop() == 0
    return folding.entries(_place(logdir, RUN).journal)[-1].sequence


@pytest.mark.usefixtures("_without_waiting_for_the_disk")
def test_torn_at_any_byte_both_loaders_show_what_is_whole_and_then_the_rest(
    start_daemon: Callable[..., DaemonProcess],
    start_board: Callable[..., Board],
    tmp_path: Path,
) -> None:
    recorded, logdir = tmp_path / "recorded" / "runs", tmp_path / "torn" / "runs"
    last = _record(start_daemon, recorded)
    expected = scalar_points(_place(recorded, RUN).events)
    assert {*expected} == {*TAGS}
    (whole,) = event_files(_place(recorded, RUN).events)
    data = whole.read_bytes()
    runs = {f"cut at {cut}": cut for cut in range(*_last_group_of_scalars(data))}
    assert len(runs) > 100
    print(f"{len(runs)} runs, {len(data)} bytes each")
    for run, cut in runs.items():
        place = _place(logdir, run)
        shutil.copytree(_place(recorded, RUN).state, place.state)
        shutil.copytree(_place(recorded, RUN).events, place.events)
        os.truncate(place.events / whole.name, cut)
    boards = [start_board(logdir, fast=fast) for fast in (True, False)]

    def shown(board: Board, run: str, tag: str) -> list[tuple[int, float]]:
        return [(int(step), value) for _, step, value in board.scalars(run, tag)]

    torn = {run: _points_of_whole_records(data[:cut]) for run, cut in runs.items()}
    for board in boards:
        for run in runs:
            for tag in TAGS:
                wait_for(
                    lambda: shown(board, run, tag) == torn[run].get(tag, []),  # noqa: B023
                    f"{tag} of the run {run}",
                )
    for run in runs:
        folding.fold_here(_place(logdir, run), [last])
        assert (_place(logdir, run).events / whole.name).read_bytes() == data
    for board in boards:
        for run in runs:
            for tag in TAGS:
                wait_for(
                    lambda: shown(board, run, tag) == expected[tag],  # noqa: B023
                    f"all of {tag} of the run {run}",
                )
        assert "Traceback" not in board.log


def _last_group_of_scalars(data: bytes) -> tuple[int, int]:
    """Where it begins and ends, its checkpoint included."""
    found, group, has_scalars, begin = (0, 0), 0, False, 0
    for end in folding.record_ends(data):
        event = Event.FromString(data[begin + 12 : end - 4])
        has_scalars = has_scalars or any(value.tag in TAGS for value in event.summary.value)
        if event_file.read_checkpoint(data[begin + 12 : end - 4]) is not None:
            found = (group, end) if has_scalars else found
            group, has_scalars = end, False
        begin = end
    return found


def _points_of_whole_records(data: bytes) -> dict[str, list[tuple[int, float]]]:
    """What of a torn file can be read."""
    points: dict[str, list[tuple[int, float]]] = {}
    begin = 0
    for end in folding.record_ends(data[: event_file.scan(data).end]):
        event = Event.FromString(data[begin + 12 : end - 4])
        begin = end
        for value in event.summary.value:
            if value.HasField("simple_value"):
                points.setdefault(value.tag, []).append((event.step, value.simple_value))
    return points
