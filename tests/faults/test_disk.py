"""Full disks: the journal's, the event file's, and one that is nearly full."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import ranktap
from tests.support.daemons import DaemonProcess
from tests.support.event_files import scalar_points
from tests.support.ledger import Contents
from tests.support.shown import assert_shown
from tests.support.timing import SlowestCall
from tests.support.waiting import wait_for

DaemonStarter = Callable[..., DaemonProcess]
RUN = "job"
STEPS = 60_000
SLOWEST_CALL_S = 0.05
MIB = 1 << 20


class SmallDisk:
    """A file system of a size that can be changed."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        path.mkdir()
        _mount("-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(path))

    def resize(self, size_bytes: int) -> None:
        _mount("-o", f"remount,size={size_bytes}", str(self.path))

    def free(self) -> int:
        return psutil.disk_usage(str(self.path)).free

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], SmallDisk]]:
    """Makes a small disk; skips where this process may not."""
    made: list[SmallDisk] = []

    def make(size_bytes: int) -> SmallDisk:
        if os.geteuid() != 0:
            pytest.skip("mounting a small disk takes root")
        try:
            made.append(SmallDisk(tmp_path / "disk", size_bytes))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"a small disk cannot be mounted here: {error.stderr.decode().strip()}")
        return made[-1]

    yield make
    for disk in made:
        disk.close()


@pytest.fixture
def no_reserve(tmp_path: Path) -> Path:
    """A configuration in which the disk may be filled to its last byte."""
    path = tmp_path / "config.toml"
    path.write_text("min_free_bytes = 0\n")
    return path


def _log(tap: ranktap.Tap, steps: range) -> SlowestCall:
    """Log these steps."""
    slowest = SlowestCall()
    for step in steps:
        began = time.perf_counter()
        tap.scalar("loss", float(step), step)
        slowest.add(time.perf_counter() - began)
    return slowest


def _points(directory: Path) -> list[tuple[int, float]]:
    return scalar_points(directory).get("loss", [])


def _assert_shown(directory: Path, steps: int) -> None:
    logged = [(step, float(step)) for step in range(steps)]
    assert_shown(directory, Contents(scalars={"loss": logged}))


def test_when_the_journals_disk_is_full_logging_goes_on_and_everything_arrives_when_there_is_room(
    start_daemon: DaemonStarter, small_disk: Callable[[int], SmallDisk], no_reserve: Path
) -> None:
    disk = small_disk(MIB)
    daemon = start_daemon("--config", str(no_reserve), "--state-dir", str(disk.path / "state"))
    with ranktap.init(RUN, endpoint=daemon.endpoint, rank=0, world_size=1) as tap:
        _log(tap, range(1_000))
        assert tap.flush()
        filling = _log(tap, range(1_000, STEPS))
        wait_for(lambda: "nothing is acknowledged until there is room" in daemon.log, "its word")
        assert not tap.flush(timeout=3.0)
        full = _log(tap, range(STEPS, STEPS + 1_000))
        print(f"while it fills: {filling}; while it is full: {full}")
        assert max(filling.blocked_s, full.blocked_s) < SLOWEST_CALL_S
        # Said once, however often it was tried again.
        assert daemon.log.count("nothing is acknowledged until there is room") == 1
        assert "there is room on the disk again" not in daemon.log
        disk.resize(64 * MIB)
        assert tap.flush(timeout=30)
        assert "there is room on the disk again" in daemon.log
    assert daemon.stop() == 0
    _assert_shown(Path(daemon.logdir) / RUN, STEPS + 1_000)


def test_when_everything_is_on_one_full_disk_kills_lose_and_double_nothing(
    start_daemon: DaemonStarter,
    small_disk: Callable[[int], SmallDisk],
    no_reserve: Path,
) -> None:
    disk = small_disk(MIB)
    daemon = start_daemon(
        "--config", str(no_reserve), "--segment-bytes", str(1 << 16), logdir=disk.path / "runs"
    )
    with ranktap.init(RUN, endpoint=daemon.endpoint, rank=0, world_size=1) as tap:
        for begin in range(0, STEPS, 6_000):
            _log(tap, range(begin, begin + 6_000))
            tap.flush(timeout=0.2)
            if begin % 12_000 == 0:
                daemon.kill()
                daemon.start()
        assert not tap.flush(timeout=1.0)
        # Room is left, but not for what waits: batches are as large as what has gathered.
        assert "nothing is acknowledged until there is room" in daemon.log
        daemon.kill()
        daemon.start()
        disk.resize(64 * MIB)
        assert tap.flush(timeout=60)
        wait_for(
            lambda: len(_points(disk.path / "runs" / RUN)) >= STEPS, "everything to be written", 60
        )
    assert daemon.stop() == 0
    _assert_shown(disk.path / "runs" / RUN, STEPS)


def test_when_no_snapshot_can_be_kept_what_is_journaled_is_written_all_the_same(
    start_daemon: DaemonStarter, small_disk: Callable[[int], SmallDisk], no_reserve: Path
) -> None:
    disk = small_disk(MIB)
    state = disk.path / "state"
    daemon = start_daemon(
        "--config", str(no_reserve), "--segment-bytes", str(1 << 16), "--state-dir", str(state)
    )
    with ranktap.init(RUN, endpoint=daemon.endpoint, rank=0, world_size=1) as tap:
        _log(tap, range(100))
        assert tap.flush()
        wait_for(lambda: _points(Path(daemon.logdir) / RUN), "the worker to write")
        (worker,) = daemon.workers()
        worker.suspend()
        steps = 100
        while "nothing is acknowledged until there is room" not in daemon.log:
            _log(tap, range(steps, steps + 500))
            steps += 500
            tap.flush(timeout=0.5)
        segments = len(list(state.rglob("*.journal")))
        assert segments > 5
        with open(disk.path / "filler", "wb", buffering=0) as filler:
            while disk.free():
                filler.write(bytes(min(disk.free(), 1 << 16)))
        journaled = _size(state)
        worker.resume()
        wait_for(
            lambda: len(_points(Path(daemon.logdir) / RUN)) * 40 > journaled,
            "what is journaled to be written",
        )
        assert "no snapshot can be kept" in daemon.log
        assert daemon.log.count("its worker ended") == 0
        assert len(list(state.rglob("*.journal"))) == segments
        disk.resize(64 * MIB)
        _log(tap, range(steps, steps + 5_000))
        assert tap.flush(timeout=30)
        wait_for(lambda: len(list(state.rglob("*.journal"))) < 3, "the segments to be deleted")
    assert daemon.stop() == 0
    _assert_shown(Path(daemon.logdir) / RUN, steps + 5_000)


def test_when_the_event_files_disk_is_full_the_journal_keeps_what_follows(
    start_daemon: DaemonStarter, small_disk: Callable[[int], SmallDisk], tmp_path: Path
) -> None:
    disk = small_disk(MIB)
    daemon = start_daemon("--state-dir", str(tmp_path / "state"), logdir=disk.path)
    with ranktap.init(RUN, endpoint=daemon.endpoint, rank=0, world_size=1) as tap:
        slowest = _log(tap, range(STEPS))
        assert tap.flush()
        assert slowest.blocked_s < SLOWEST_CALL_S
        wait_for(lambda: "waiting for room" in daemon.log, "the worker's word")
        (worker,) = daemon.workers()
        # It waits for room, and must not wait for it when nobody will ever need it again.
        daemon.kill()
        wait_for(lambda: not worker.is_running(), "the worker to end", 10)
        daemon.start()
        wait_for(lambda: daemon.log.count("waiting for room") >= 2, "the next worker's word")
        assert tap.flush()
        disk.resize(64 * MIB)
    wait_for(lambda: len(_points(disk.path / RUN)) >= STEPS, "everything to be written")
    assert daemon.stop() == 0
    _assert_shown(disk.path / RUN, STEPS)


def test_with_less_free_than_it_must_keep_nothing_is_accepted_and_the_client_is_told(
    start_daemon: DaemonStarter,
    small_disk: Callable[[int], SmallDisk],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f"min_free_bytes = {32 * MIB}\n")
    disk = small_disk(64 * MIB)
    state = disk.path / "state"
    daemon = start_daemon("--config", str(config), "--state-dir", str(state))
    with ranktap.init(RUN, endpoint=daemon.endpoint, rank=0, world_size=1) as tap:
        _log(tap, range(1_000))
        assert tap.flush()
        disk.resize(16 * MIB)
        wait_for(lambda: "nothing is acknowledged until there is room" in daemon.log, "its word")
        journal_bytes = _size(state)
        _log(tap, range(1_000, STEPS))
        assert not tap.flush(timeout=2.0)
        assert _size(state) == journal_bytes
        wait_for(lambda: "the daemon's disk is full" in caplog.text, "the client to be told")
        # Also one that comes only now.
        with ranktap.init("late", endpoint=daemon.endpoint, rank=0, world_size=1) as late:
            _log(late, range(100))
            assert not late.flush(timeout=1.0)
            disk.resize(64 * MIB)
            assert late.flush(timeout=30)
        assert tap.flush(timeout=30)
    assert daemon.stop() == 0
    _assert_shown(Path(daemon.logdir) / RUN, STEPS)
    _assert_shown(Path(daemon.logdir) / "late", 100)


def _size(state: Path) -> int:
    return sum(path.stat().st_size for path in state.rglob("*.journal"))
