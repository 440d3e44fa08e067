"""A daemon for this machine, started by whichever local rank comes first.

It is a `ranktapd` like any other, in a session of its own: it outlives the job until
everything is written, ends by itself, and is started again if it was killed. The
daemon holds a lock file in the logdir while it lives; whoever finds the lock free
starts one.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ranktap_wire import places

logger = logging.getLogger("ranktap")

START_TIMEOUT_S = 60
"""Importing from a cold network file system takes many seconds."""


def check_installed() -> None:
    """Raise ModuleNotFoundError, with what to install, when no daemon can be started from here."""
    missing = places.daemon_lacks()
    if missing:
        raise ModuleNotFoundError(
            f"logdir= starts a ranktapd in this environment, which lacks {', '.join(missing)}: "
            "pip install 'ranktap[daemon]', or give endpoint= of a ranktapd elsewhere"
        )


class EmbeddedDaemon:
    """Finds the daemon of a logdir, and starts it when there is none."""

    def __init__(self, logdir: Path, arguments: Sequence[str] = ()) -> None:
        self.logdir = logdir
        self.arguments = arguments
        """What it is started with, besides where it writes and its own socket."""

    def locate(self) -> str:
        """The endpoint of the daemon that has this logdir.

        Raises:
            OSError: there is none and it cannot be started; the message has its own words.
        """
        found = self.endpoints()
        if found is None:
            # One rank starts it; the others wait here until it is ready.
            with self.starting():
                found = self.endpoints()
                if found is None:
                    self.start()
                    found = self.endpoints()
        if found is None:
            raise OSError(f"the embedded daemon of {self.logdir} ended at once")
        return found[0]

    @contextmanager
    def starting(self) -> Iterator[None]:
        """While this is held, nobody else of this machine starts the daemon of this logdir."""
        self.logdir.mkdir(parents=True, exist_ok=True)
        with _locked(self.logdir / ".ranktap.starting"):
            yield

    def endpoints(self) -> list[str] | None:
        """Where the daemon that holds the logdir's lock listens; None when the lock is free."""
        try:
            with open(places.lock_path(self.logdir)) as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return lock.read().splitlines() or [self._endpoint()]
                fcntl.flock(lock, fcntl.LOCK_UN)  # as in _locked
        except FileNotFoundError:
            return None
        return None

    def _endpoint(self) -> str:
        return f"ipc://{places.embedded_socket(self.logdir)}"

    def start(self) -> None:
        """Start it; it is ready then. The caller holds `starting`.

        Raises:
            OSError: it cannot be started; the message has its own words.
        """
        socket = places.embedded_socket(self.logdir)
        socket.parent.mkdir(mode=0o700, exist_ok=True)
        if socket.parent.stat().st_uid != os.getuid():
            raise OSError(f"{socket.parent} belongs to another user")
        # -P: what lies in the training's directory (a queue.py, a json.py) is not for the daemon.
        command = [sys.executable, "-P", "-m", "ranktapd", "--embedded"]
        command += [f"--logdir={self.logdir}", f"--listen={self._endpoint()}", *self.arguments]
        with tempfile.TemporaryFile() as said:
            # Not subprocess: it waits for the ends of its pipes, which a process that is forked
            # at that moment (a DataLoader's worker) has too, and keeps as long as it lives.
            pid = os.posix_spawn(
                sys.executable,
                command,
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, said.fileno(), 2),
                ],
            )
            # It ends when the daemon that it left behind is ready, or with its error.
            status = _wait(pid, START_TIMEOUT_S)
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
        if status is None:
            raise OSError(f"the embedded daemon was not ready in {START_TIMEOUT_S} s")
        if status != 0:
            why = lines[-1] if lines else f"exit status {status}"
            raise OSError(f"the embedded daemon did not start: {why}")


def _wait(pid: int, timeout_s: float) -> int | None:
    """The exit status of a child; None when it had to be ended, as it took too long."""
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return None
            time.sleep(0.02)
    except ChildProcessError:
        return 0  # someone else has waited for all children: whether it runs will be seen


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Not only closed: a process forked meanwhile (a DataLoader's worker) has the
            # descriptor too, and would keep the lock as long as it lives.
            fcntl.flock(lock, fcntl.LOCK_UN)
