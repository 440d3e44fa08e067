"""The daemon that a job starts for its logdir."""

from __future__ import annotations

import fcntl
from pathlib import Path

import psutil

from ranktap_wire.places import lock_path, state_directory
from tests.support.waiting import wait_for


def processes_of(logdir: Path) -> list[psutil.Process]:
    """Every process whose command line names the logdir: daemons and their workers."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if f"--logdir={logdir}" in (process.info["cmdline"] or [])
    ]


def daemons_of(logdir: Path) -> list[psutil.Process]:
    return [each for each in processes_of(logdir) if "--embedded" in each.info["cmdline"]]


def is_held(logdir: Path) -> bool:
    """Whether a daemon has the logdir's lock."""
    try:
        with open(lock_path(logdir)) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(lock, fcntl.LOCK_UN)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def log_of(logdir: Path) -> str:
    """What its daemons have said, all their lives."""
    path = state_directory(logdir) / "ranktapd.log"
    return path.read_text() if path.exists() else ""


def wait_until_ended(logdir: Path, deadline_s: float = 20.0) -> None:
    """Wait until it has ended by itself, with everything that it started.

    The usual time is under the 30 s after which a daemon gives up on a session that has not
    said goodbye.
    """
    wait_for(
        lambda: not is_held(logdir) and not processes_of(logdir),
        f"the embedded daemon to end; its log:\n{log_of(logdir)}",
        deadline_s,
    )


def kill_all(logdir: Path) -> None:
    """End what is left of it, whatever a test did."""
    left = processes_of(logdir)
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=10)
