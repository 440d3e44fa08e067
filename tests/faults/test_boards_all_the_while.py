"""Both of TensorBoard's loaders, reading all the while a job runs to which everything happens.

What a board shows is at any moment the beginning of what was logged: never an error, never
a point twice, never one that was not logged.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import ranktap
from tests.support import noisy_job
from tests.support.boards import Board
from tests.support.daemons import DaemonProcess
from tests.support.interposer import Act, Call, Interposer
from tests.support.kept_running import end, kept_running
from tests.support.ledger import Contents
from tests.support.shown import assert_shown, read_logged
from tests.support.waiting import wait_for

RUN = "faults/watched"
WORLD_SIZE = 2
STEPS_A_ROUND = 4

HAPPENINGS: list[tuple[Act, Call, str, int]] = [
    (Act.KILL_IN_PART, Call.WRITE, ".tfevents.", 0),
    (Act.KILL_AFTER, Call.WRITE, ".tfevents.", 0),
    (Act.KILL_BEFORE, Call.SYNC, ".tfevents.", 0),
    (Act.KILL_IN_PART, Call.WRITE, ".journal$", 0),
    (Act.KILL_BEFORE, Call.SYNC, ".journal$", 0),
    (Act.KILL_AFTER, Call.UNLINK, ".journal$", 0),
    (Act.KILL_AFTER, Call.RENAME, "/snapshots/", 0),
    (Act.IN_PART, Call.WRITE, ".tfevents.", 0),
    (Act.FAIL, Call.WRITE, ".tfevents.", errno.ENOSPC),
    (Act.FAIL, Call.WRITE, ".tfevents.", errno.EIO),
    (Act.FAIL, Call.SYNC, ".journal$", errno.EIO),
    (Act.FAIL, Call.WRITE, ".journal$", errno.ENOSPC),
]


class Watch:
    """A board, and whether it has ever shown something wrong."""

    def __init__(self, board: Board, expected: Contents) -> None:
        self.board = board
        self._expected = expected
        self._lengths: dict[str, int] = {}

    def look(self, tag: str) -> bool:
        """Whether it shows all of a tag; AssertionError when it shows anything else."""
        answer = self.board.get("/data/plugin/scalars/scalars", run=RUN, tag=tag)
        if answer is None:
            assert tag not in self._lengths, f"{tag} was shown, and is not any more"
            return False
        points = [(int(step), value) for _, step, value in answer]
        wanted = self._expected.scalars[tag]
        assert points == wanted[: len(points)], (tag, self.board.log)
        assert len(points) >= self._lengths.get(tag, 0), f"{tag} has become shorter"
        self._lengths[tag] = len(points)
        return len(points) == len(wanted)

    def look_at_pictures(self) -> None:
        for tag, pictures in self._expected.pictures.items():
            shown = self.board.get("/data/plugin/images/images", run=RUN, tag=tag, sample="0")
            assert [each["step"] for each in shown] == [step for step, *_ in pictures], tag


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_boards_show_no_error_no_double_point_and_in_the_end_everything(
    start_daemon: Callable[..., DaemonProcess],
    start_board: Callable[..., Board],
    tmp_path: Path,
    seed: int,
) -> None:
    chance = random.Random(seed)
    # Each three times, so that it comes at several moments of the file.
    happenings = chance.sample(HAPPENINGS, len(HAPPENINGS)) * 3
    steps = range(STEPS_A_ROUND * (len(happenings) + 1))
    expected = noisy_job.expected(WORLD_SIZE, steps)
    interposer = Interposer(tmp_path / "interposer", tmp_path)
    daemon = start_daemon(
        "--segment-bytes", str(noisy_job.SEGMENT_BYTES), "--straggler-timeout", "3600",
        program=interposer.program(),
    )  # fmt: skip
    directory = daemon.logdir / RUN
    taps = [
        ranktap.init(RUN, endpoint=daemon.endpoint, rank=rank, world_size=WORLD_SIZE)
        for rank in range(WORLD_SIZE)
    ]
    left = iter(steps)

    def log() -> None:
        for _ in range(STEPS_A_ROUND):
            step = next(left)
            for tap in taps:
                noisy_job.log_step(tap, step)

    log()
    wait_for(lambda: read_logged(directory).points() > 0, "the first points")
    watches = [Watch(start_board(daemon.logdir, fast=fast), expected) for fast in (True, False)]
    rules = []
    looks = 0
    with kept_running(daemon) as statuses:
        for act, call, path, error in happenings:
            rules.append(interposer.rule(act, call, path=path, error=error))
            log()
            if chance.random() < 0.3:
                _stand_still(daemon)
            for watch in watches:
                for tag in chance.sample(sorted(expected.scalars), 8):
                    watch.look(tag)
                    looks += 1
            assert all(tap.flush(timeout=60) for tap in taps)
        assert all(tap.close(timeout=60) for tap in taps)
        wait_for(lambda: read_logged(directory).points() >= expected.points(), "everything", 60)
    end(daemon)
    for watch in watches:
        for tag in expected.scalars:
            wait_for(lambda: watch.look(tag), f"all of {tag}", 60)  # noqa: B023
        watch.look_at_pictures()
        assert "Traceback" not in watch.board.log
    came = sum(rule.fired for rule in rules)
    print(f"{came} faults, {looks} looks, daemon ended with {statuses}")
    assert came >= len(happenings) // 2
    assert_shown(directory, expected)


def _stand_still(daemon: DaemonProcess) -> None:
    """A worker or the daemon stops in the middle of whatever it does, and goes on."""
    for process in (psutil.Process(daemon.pid), *daemon.workers()):
        try:
            process.suspend()
            process.resume()
        except psutil.NoSuchProcess:
            continue
