"""kill -9 at a named point: before, in the middle of, and behind what changes the disk or is said.

The point is in the process itself, between its code and the C library, so it is met exactly.
The daemon is started again as a service manager would; its workers it starts itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import ranktap
from tests.support import noisy_job
from tests.support.daemons import DaemonProcess
from tests.support.interposer import Act, Call, Interposer, Rule
from tests.support.kept_running import end, kept_running
from tests.support.shown import assert_shown, read_logged
from tests.support.waiting import wait_for

RUN = "crash/point"
WORLD_SIZE = 2
STEPS = range(6)

POINTS: dict[str, tuple[Call, str | bytes]] = {
    "the journal's directory is made": (Call.MKDIR, "/journal$"),
    "a segment is made": (Call.OPEN, ".journal$"),
    "a segment's name is synced": (Call.SYNC, "/journal$"),
    "the journal is appended to": (Call.WRITE, ".journal$"),
    "the journal is synced": (Call.SYNC, ".journal$"),
    "a welcome is sent": (Call.SEND, b"\xa7welcome"),
    "an acknowledgement is sent": (Call.SEND, b"\xa3ack"),
    "a goodbye is answered": (Call.SEND, b"\xa4type\xa3bye"),
    "the run's directory is made": (Call.MKDIR, "/crash/point$"),
    "the event file's name is kept": (Call.RENAME, "/event_file$"),
    "the event file is made": (Call.OPEN, ".tfevents."),
    "the event file's name is synced": (Call.SYNC, "/crash/point$"),
    "the event file is appended to": (Call.WRITE, ".tfevents."),
    "the event file is synced": (Call.SYNC, ".tfevents."),
    "a snapshot is written": (Call.WRITE, "/snapshots/"),
    "a snapshot is synced": (Call.SYNC, "/snapshots/"),
    "a snapshot gets its name": (Call.RENAME, "/snapshots/"),
    "a snapshot's name is synced": (Call.SYNC, "/snapshots$"),
    "an older snapshot is deleted": (Call.UNLINK, "/snapshots/"),
    "a segment is deleted": (Call.UNLINK, ".journal$"),
    "the run is said to rest": (Call.WRITE, "/resting$"),
    "a claim on a directory is written": (Call.WRITE, "/directories/."),
    "a claim on a directory is linked into its place": (Call.LINK, "/directories/"),
    "a claim's other name is deleted": (Call.UNLINK, "/directories/."),
    "a sub-run's event file is made": (Call.OPEN, "/curves_loss_train/events"),
    "a sub-run's event file is appended to": (Call.WRITE, "/curves_loss_train/events"),
    "a sub-run's event file is synced": (Call.SYNC, "/curves_loss_train/events"),
    "an embedding is written": (Call.WRITE, "/points/.partial$"),
    "an embedding gets its name": (Call.RENAME, "/tensors.tsv$"),
    "the projector's configuration gets its name": (Call.RENAME, "/projector_config.pbtxt$"),
}
WHEN = {"before": Act.KILL_BEFORE, "while": Act.KILL_IN_PART, "after": Act.KILL_AFTER}
ALL = [
    f"{when} {point}"
    for point, (call, _) in POINTS.items()
    for when in WHEN
    if when != "while" or call is Call.WRITE
]
IN_CI = [
    "while the journal is appended to",
    "after the journal is synced",
    "after an acknowledgement is sent",
    "before the event file's name is kept",
    "while the event file is appended to",
    "before a snapshot gets its name",
    "after a segment is deleted",
]
MAKING_A_JOURNAL = 8
"""So many calls on a segment belong to its making, at most, and to the first hello."""


@pytest.fixture
def interposer(tmp_path: Path) -> Interposer:
    return Interposer(tmp_path / "interposer", tmp_path)


@pytest.fixture
def daemon(start_daemon: Callable[..., DaemonProcess], interposer: Interposer) -> DaemonProcess:
    return start_daemon(
        "--segment-bytes", str(noisy_job.SEGMENT_BYTES), "--straggler-timeout", "3600",
        program=interposer.program(),
    )  # fmt: skip


@pytest.mark.parametrize("point", IN_CI)
def test_a_kill_loses_and_doubles_nothing(
    interposer: Interposer, daemon: DaemonProcess, point: str
) -> None:
    _die_at(point, interposer, daemon)


@pytest.mark.slow
@pytest.mark.parametrize("point", [point for point in ALL if point not in IN_CI])
def test_a_kill_at_any_other_point_loses_and_doubles_nothing(
    interposer: Interposer, daemon: DaemonProcess, point: str
) -> None:
    _die_at(point, interposer, daemon)


def _die_at(point: str, interposer: Interposer, daemon: DaemonProcess) -> None:
    when, _, what = point.partition(" ")
    call, path = POINTS[what]
    skip = (
        MAKING_A_JOURNAL if what in ("the journal is appended to", "the journal is synced") else 0
    )
    _run_job(daemon, interposer.rule(WHEN[when], call, path=path, skip=skip))


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_at_every_call_in_turn_the_process_that_makes_it_is_killed(
    tmp_path: Path, start_daemon: Callable[..., DaemonProcess]
) -> None:
    """Both processes', each call that changes a file: the n-th of all, for every n."""
    number = 0
    while True:
        logdir = tmp_path / f"runs-{number}"
        interposer = Interposer(tmp_path / "interposer", logdir)
        daemon = start_daemon(
            "--segment-bytes", str(noisy_job.SEGMENT_BYTES), "--straggler-timeout", "3600",
            program=interposer.program(), logdir=logdir, wait=False,
        )  # fmt: skip
        calls = (
            Call.OPEN, Call.WRITE, Call.SYNC, Call.TRUNCATE, Call.RENAME, Call.UNLINK, Call.MKDIR,
            Call.LINK,
        )  # fmt: skip
        rule = interposer.rule(Act.KILL_IN_PART, *calls, path="", skip=number)
        try:
            _run_job(daemon, rule)
        except AssertionError as error:
            if not rule.fired and rule.seen:
                break  # there is no such call: it has been told what is fired
            raise AssertionError(f"killed at call {number}") from error
        daemon.close()
        number += 1
    print(f"killed at {number} calls in turn")
    assert number > 100


def _run_job(daemon: DaemonProcess, rule: Rule) -> None:
    events = Path(daemon.logdir) / RUN
    expected = noisy_job.expected(WORLD_SIZE, STEPS, beside=True)
    with kept_running(daemon) as statuses:
        taps = [
            ranktap.init(RUN, endpoint=daemon.endpoint, rank=rank, world_size=WORLD_SIZE)
            for rank in range(WORLD_SIZE)
        ]
        for step in STEPS:
            for tap in taps:
                noisy_job.log_step(tap, step, beside=True)
            assert all(tap.flush(timeout=30) for tap in taps)
        assert all(tap.close(timeout=30) for tap in taps)
        wait_for(
            lambda: read_logged(events, beside=True).points() >= expected.points(), "everything", 30
        )
    end(daemon)
    print(f"ended with {statuses}; worker deaths: {daemon.log.count('its worker ended')}")
    assert rule.fired == 1
    assert_shown(events, expected, beside=True)
