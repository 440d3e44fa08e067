"""One daemon a logdir, one worker a run: lock files that a dead process cannot keep."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path


class LockedError(Exception):
    """Someone else holds the lock; the message says what it guards."""


class FileLock:
    """An exclusive `flock` on a file, held until the process ends or `release` is called.

    The kernel lets go of it when its holder dies, however it dies.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def acquire(self, what: str, wait_s: float = 0.0) -> None:
        """Take the lock, waiting up to `wait_s` for its holder to let go.

        Raises:
            LockedError: it is held by another process.
        """
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(fd)
                    raise LockedError(what) from None
                time.sleep(0.02)
        self._fd = fd

    def write(self, text: str) -> None:
        """Let others read, in the lock file, what its holder has to say."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text.encode(), 0)

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
