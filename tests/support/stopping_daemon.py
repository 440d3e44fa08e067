"""A ranktapd that stops itself (SIGSTOP) at a named point of a commit, or whose disk fails there.

    python -m tests.support.stopping_daemon DIRECTORY --logdir ...

When DIRECTORY holds a file named as one of the points, the next commit to get there removes
it, and this happens:

    before-sync    stopped when the group is written, and not synced
    failing-sync   the sync fails with EIO
    after-sync     stopped when the group is synced, and nobody was answered

In DIRECTORY/synced, a file for each segment says how many bytes of it have been synced:
what a machine that loses its power would still have.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path

from ranktapd import cli

_real_fdatasync = os.fdatasync


class Points:
    """The points, and what they leave behind."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        (directory / "synced").mkdir(exist_ok=True)

    def fdatasync(self, fd: int) -> None:
        """`os.fdatasync`, with a point on each side."""
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.suffix != ".journal":
            _real_fdatasync(fd)
            return
        if self._is_armed("before-sync"):
            self._stop()
        if self._is_armed("failing-sync"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        _real_fdatasync(fd)
        (self._directory / "synced" / path.name).write_text(str(os.fstat(fd).st_size))
        if self._is_armed("after-sync"):
            self._stop()

    def _stop(self) -> None:
        # What was answered before is on its way in libzmq's own thread, which stops too.
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGSTOP)

    def _is_armed(self, point: str) -> bool:
        armed = self._directory / point
        if not armed.exists():
            return False
        armed.unlink()
        return True


def lose_unsynced(directory: Path, journal: Path) -> int:
    """Cut off what was not synced; how many bytes that were."""
    lost = 0
    for segment in journal.glob("*.journal"):
        synced = int((directory / "synced" / segment.name).read_text())
        lost += segment.stat().st_size - synced
        os.truncate(segment, synced)
    return lost


if __name__ == "__main__":
    os.fdatasync = Points(Path(sys.argv[1])).fdatasync  # type: ignore[assignment]
    sys.exit(cli.main(sys.argv[2:]))
