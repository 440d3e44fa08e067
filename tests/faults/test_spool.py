"""Spools under fire: kill -9 of ranks, of `ranktap sync` and of the daemon at named points, a full
disk, two syncs at once, one that is broken off. Whatever happens, the ranks' records arrive once.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import ranktap
from ranktap.spooled import InUseError, SessionLock
from tests.support.daemons import DaemonProcess
from tests.support.event_files import scalar_points
from tests.support.interposer import Act, Call, Interposer
from tests.support.kept_running import end, kept_running
from tests.support.rank_program import ROOT
from tests.support.spooling_rank import log_step, python, start, sync, what_is_logged
from tests.support.waiting import wait_for

DaemonStarter = Callable[..., DaemonProcess]
NOBODY = "ipc:///tmp/ranktap-test-nobody-listens-here"
PATIENT = ("--straggler-timeout", "3600")
STEPS = 60
INTERRUPTIBLE = """
import signal, sys
from ranktap.cli import main
# A shell that starts the tests in the background has them, and all below, ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""
FLUSH_EVERY = 10


def leave(spool: Path, world_size: int = 2, steps: int = STEPS) -> None:
    """What the ranks of a job without a daemon leave behind."""
    taps = [
        ranktap.init("job", spool=spool, endpoint=NOBODY, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for step in range(steps):
        for tap in taps:
            log_step(tap, step)
        if step % FLUSH_EVERY == 0:
            assert not any(tap.flush() for tap in taps)
    for tap in taps:
        tap.close()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """What two ranks with a daemon log."""
    logdir = tmp_path_factory.mktemp("live")
    daemon = DaemonProcess(logdir, *PATIENT).start()
    try:
        taps = [
            ranktap.init("job", endpoint=daemon.endpoint, rank=rank, world_size=2)
            for rank in range(2)
        ]
        for step in range(STEPS):
            for tap in taps:
                log_step(tap, step)
        assert all(tap.close() for tap in taps)
        end(daemon)
    finally:
        daemon.close()
    return what_is_logged(logdir / "job")


RANK_POINTS = {
    "after its directory is made": (Act.KILL_AFTER, Call.MKDIR, "/job/", 0),
    "after its lock is made": (Act.KILL_AFTER, Call.OPEN, "/lock$", 0),
    "while the segment's header is written": (Act.KILL_IN_PART, Call.WRITE, ".journal$", 0),
    "while the first batch is written": (Act.KILL_IN_PART, Call.WRITE, ".journal$", 1),
    "while a later batch is written": (Act.KILL_IN_PART, Call.WRITE, ".journal$", 4),
    "before a batch is synced": (Act.KILL_BEFORE, Call.SYNC, ".journal$", 3),
    "after a batch is synced": (Act.KILL_AFTER, Call.SYNC, ".journal$", 3),
}
RANK_IN_CI = ["while a later batch is written", "after its lock is made"]


def _killed_at(point: str, tmp_path: Path, start_daemon: DaemonStarter) -> None:
    act, call, path, skip = RANK_POINTS[point]
    spool = tmp_path / "spool"
    spool.mkdir()
    interposer = Interposer(tmp_path / "interposer", spool)
    rule = interposer.rule(act, call, path=path, skip=skip)
    rank = start(
        run="job", spool=spool, endpoint=NOBODY, rank=0, world_size=1, steps=STEPS,
        flush_every=FLUSH_EVERY, program=interposer.program,
    )  # fmt: skip
    said, errors = rank.communicate(timeout=60)
    assert rank.returncode == -signal.SIGKILL, errors
    assert rule.fired == 1
    kept = max((json.loads(line)["flushed_to"] for line in said.splitlines()), default=0)
    daemon = start_daemon(*PATIENT)
    sync(spool, "--endpoint", daemon.endpoint)
    assert not [path for path in spool.rglob("*") if path.name != ".ranktap-spool"]
    end(daemon)
    points = scalar_points(daemon.logdir / "job").get("scalar/mean", [])
    assert len(points) >= kept
    assert points == [(step, step * 10.0) for step in range(len(points))]


@pytest.mark.parametrize("point", RANK_IN_CI)
def test_a_rank_that_is_killed_in_its_spool_leaves_all_that_was_whole(
    tmp_path: Path, start_daemon: DaemonStarter, point: str
) -> None:
    _killed_at(point, tmp_path, start_daemon)


@pytest.mark.slow
@pytest.mark.parametrize("point", [point for point in RANK_POINTS if point not in RANK_IN_CI])
def test_a_rank_that_is_killed_at_any_other_point_does_too(
    tmp_path: Path, start_daemon: DaemonStarter, point: str
) -> None:
    _killed_at(point, tmp_path, start_daemon)


SYNC_POINTS: dict[str, tuple[Act, Call, str | bytes, int]] = {
    "before the first hello": (Act.KILL_BEFORE, Call.SEND, b"\xa5hello", 0),
    "after a hello": (Act.KILL_AFTER, Call.SEND, b"\xa5hello", 1),
    "after some batches": (Act.KILL_AFTER, Call.SEND, b"\xa5batch", 3),
    "before a bye": (Act.KILL_BEFORE, Call.SEND, b"\xa3bye", 0),
    "after a bye": (Act.KILL_AFTER, Call.SEND, b"\xa3bye", 0),
    "before a segment is deleted": (Act.KILL_BEFORE, Call.UNLINK, ".journal$", 0),
    "after a segment is deleted": (Act.KILL_AFTER, Call.UNLINK, ".journal$", 0),
    "after a lock is deleted": (Act.KILL_AFTER, Call.UNLINK, "/lock$", 0),
}
SYNC_IN_CI = ["after some batches", "before a segment is deleted"]


def _sync_killed_at(
    point: str, tmp_path: Path, start_daemon: DaemonStarter, live: dict[str, list[bytes]]
) -> None:
    act, call, path, skip = SYNC_POINTS[point]
    spool = tmp_path / "spool"
    leave(spool)
    interposer = Interposer(tmp_path / "interposer", spool)
    rule = interposer.rule(act, call, path=path, skip=skip)
    # One that gives up on what waits after a moment: not on what a spool still has.
    daemon = start_daemon("--straggler-timeout", "0.2")
    arguments = (spool, "--endpoint", daemon.endpoint)
    sync(*arguments, status=-signal.SIGKILL, program=interposer.program)
    assert rule.fired == 1
    sync(*arguments)
    assert not [path for path in spool.rglob("*") if path.name != ".ranktap-spool"]
    end(daemon)
    assert what_is_logged(daemon.logdir / "job") == live


@pytest.mark.parametrize("point", SYNC_IN_CI)
def test_a_sync_that_is_killed_is_done_again_and_nothing_is_lost_or_doubled(
    tmp_path: Path, start_daemon: DaemonStarter, live: dict[str, list[bytes]], point: str
) -> None:
    _sync_killed_at(point, tmp_path, start_daemon, live)


@pytest.mark.slow
@pytest.mark.parametrize("point", [point for point in SYNC_POINTS if point not in SYNC_IN_CI])
def test_at_any_other_point_too(
    tmp_path: Path, start_daemon: DaemonStarter, live: dict[str, list[bytes]], point: str
) -> None:
    _sync_killed_at(point, tmp_path, start_daemon, live)


def test_a_daemon_that_is_killed_while_a_sync_sends_is_found_again(
    tmp_path: Path, start_daemon: DaemonStarter, live: dict[str, list[bytes]]
) -> None:
    spool = tmp_path / "spool"
    leave(spool)
    interposer = Interposer(tmp_path / "interposer", tmp_path)
    daemon = start_daemon("--straggler-timeout", "0.2", program=interposer.program())
    rule = interposer.rule(Act.KILL_AFTER, Call.SYNC, path=".journal$", skip=4)
    with kept_running(daemon):
        sync(spool, "--endpoint", daemon.endpoint)
    assert rule.fired == 1
    end(daemon)
    assert what_is_logged(daemon.logdir / "job") == live


def test_a_sync_that_is_broken_off_goes_on_where_it_was_and_others_keep_away(
    tmp_path: Path, start_daemon: DaemonStarter, live: dict[str, list[bytes]]
) -> None:
    spool = tmp_path / "spool"
    leave(spool)
    daemon = start_daemon("--straggler-timeout", "0.2")
    arguments = [str(spool), "--endpoint", daemon.endpoint]
    psutil.Process(daemon.pid).suspend()
    directory = min((spool / "job").iterdir())
    first = subprocess.Popen(
        python("-c", INTERRUPTIBLE, "sync", *arguments, "--patience", "600"),
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:

        def is_in_hand() -> bool:
            try:
                SessionLock(directory).release()
            except InUseError:
                return True
            return False

        wait_for(is_in_hand, "the first one to have it in hand")
        said = sync(*arguments, status=1)
        assert "left: ranks 0, 1 may still write" in said and "another `ranktap sync`" in said
        first.send_signal(signal.SIGINT)
        _, errors = first.communicate(timeout=30)
    finally:
        first.kill()
        first.wait()
        psutil.Process(daemon.pid).resume()
    assert first.returncode == 130 and "run it again" in errors
    sync(*arguments)
    end(daemon)
    assert what_is_logged(daemon.logdir / "job") == live


def test_a_full_disk_stops_no_training_what_memory_does_not_hold_is_counted_and_room_is_used(
    tmp_path: Path, start_daemon: DaemonStarter
) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    interposer = Interposer(tmp_path / "interposer", spool)
    rule = interposer.rule(
        Act.FAIL, Call.WRITE, path=".journal$", error=errno.ENOSPC, skip=3, times=-1
    )
    program = """
import json, sys, time
import ranktap
spool, nobody = sys.argv[1:]
tap = ranktap.init("job", spool=spool, endpoint=nobody, rank=0, world_size=1, memory=1 << 20)
slowest = 0.0
step = 0
def log(steps):
    global step, slowest
    for _ in range(steps):
        began = time.thread_time()
        tap.scalar("loss", float(step), step)
        slowest = max(slowest, time.thread_time() - began)
        step += 1
log(100)
tap.flush()
log(100_000)
print(json.dumps({"dropped": tap._outbox.dropped}), flush=True)
sys.stdin.readline()
tap.flush()
tap.scalar("after", 1.0, step)  # a batch says what was dropped before it
closed = tap.close()
print(json.dumps({"slowest_s": slowest, "dropped": tap._outbox.dropped, "closed": closed}))
"""
    rank = subprocess.Popen(
        interposer.program("-c", program, str(spool), NOBODY), cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert rank.stdout is not None
    full = json.loads(rank.stdout.readline())
    rule.end()
    said, errors = rank.communicate("go on\n", timeout=60)
    assert rank.returncode == 0, errors
    ended = json.loads(said)
    assert full["dropped"] > 0 and ended["dropped"] == full["dropped"] and not ended["closed"]
    assert ended["slowest_s"] < 0.05
    assert errors.count("the spool takes nothing") == 1
    assert errors.count("records are being dropped") == 1
    daemon = start_daemon()
    sync(spool, "--endpoint", daemon.endpoint)
    end(daemon)
    points = scalar_points(daemon.logdir / "job")
    steps = [step for step, _ in points["loss"]]
    assert len(steps) == 100_100 - full["dropped"]
    assert steps == sorted(set(steps)) and all(step == value for step, value in points["loss"])
    assert points["ranktap/dropped"][-1][1] == full["dropped"]
    assert os.listdir(spool) == [".ranktap-spool"]  # noqa: PTH208
