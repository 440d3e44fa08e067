"""Directories that may not be written, and then may again."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ranktap
from tests.support import ledger
from tests.support.daemons import DaemonProcess
from tests.support.interposer import Act, Call, Interposer
from tests.support.kept_running import end, kept_running
from tests.support.shown import assert_shown, read_logged
from tests.support.waiting import wait_for

DaemonStarter = Callable[..., DaemonProcess]
CHANGES = (
    Call.OPEN, Call.WRITE, Call.SYNC, Call.TRUNCATE, Call.RENAME, Call.UNLINK, Call.MKDIR,
)  # fmt: skip


def _without_privileges() -> list[str]:
    """What a program is started with so that permissions hold for it although it is root's."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root may write everywhere, and `setpriv` (util-linux) is not there to stop it")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search",
            "--inh-caps=-dac_override,-dac_read_search"]  # fmt: skip


def _log(tap: ranktap.Tap, steps: range) -> None:
    for step in steps:
        ledger.log_step(tap, step)


def test_a_read_only_logdir_costs_nothing_but_time(
    start_daemon: DaemonStarter, tmp_path: Path
) -> None:
    logdir = tmp_path / "runs"
    program = [*_without_privileges(), sys.executable, "-m", "ranktapd"]
    daemon = start_daemon("--state-dir", str(tmp_path / "state"), program=program)
    taps = {}
    for run in ("old", "new"):
        if run == "new":
            logdir.chmod(0o555)
        taps[run] = ranktap.init(run, endpoint=daemon.endpoint, rank=0, world_size=1)
        _log(taps[run], range(20))
        assert taps[run].flush(), "what is journaled needs no logdir"
        if run == "old":
            wait_for(lambda: read_logged(logdir / "old").points() > 0, "its file to be there")
    wait_for(lambda: "Permission denied" in daemon.log, "the new run's worker to find out")
    # The old one's file is open; its next worker may not even open it.
    expected = ledger.expected_run(1, range(20)).points()
    wait_for(lambda: read_logged(logdir / "old").points() >= expected, "what it can write")
    (old_file,) = (logdir / "old").iterdir()
    old_file.chmod(0o444)
    _worker(daemon, "old").kill()
    for tap in taps.values():
        _log(tap, range(20, 40))
        assert tap.flush()
    wait_for(lambda: f"Permission denied: '{old_file}'" in daemon.log, "the next one to find out")
    assert not (logdir / "new").exists()
    assert read_logged(logdir / "old").points() == expected

    old_file.chmod(0o644)
    logdir.chmod(0o755)
    for tap in taps.values():
        assert tap.close()
    expected = ledger.expected_run(1, range(40))
    for run in taps:
        wait_for(lambda: read_logged(logdir / run).points() >= expected.points(), run)  # noqa: B023
    assert daemon.stop() == 0
    assert daemon.process is not None
    for run in taps:
        assert_shown(logdir / run, expected)


def _worker(daemon: DaemonProcess, run: str):  # type: ignore[no-untyped-def]
    (found,) = [each for each in daemon.workers() if f"--run={run}" in each.cmdline()]
    return found


def test_a_file_system_that_has_become_read_only_and_is_mounted_again_loses_nothing(
    start_daemon: DaemonStarter, tmp_path: Path
) -> None:
    """As a real one does after an error: also what is open can no longer be written."""
    interposer = Interposer(tmp_path / "interposer", tmp_path)
    daemon = start_daemon(program=interposer.program())
    events = daemon.logdir / "job"
    with kept_running(daemon) as statuses:
        tap = ranktap.init("job", endpoint=daemon.endpoint, rank=0, world_size=1)
        _log(tap, range(20))
        assert tap.flush()
        read_only = interposer.rule(Act.FAIL, *CHANGES, path="", error=errno.EROFS, times=-1)
        _log(tap, range(20, 40))
        assert not tap.flush(timeout=1.0)
        wait_for(lambda: len(statuses) >= 2, "it to end, and not to start")
        read_only.end()
        assert tap.flush(timeout=30)
        _log(tap, range(40, 60))
        assert tap.close()
        expected = ledger.expected_run(1, range(60))
        wait_for(lambda: read_logged(events).points() >= expected.points(), "everything")
    end(daemon)
    assert set(statuses) == {1}
    assert "Read-only file system" in daemon.log
    assert_shown(events, expected)
