"""Where a daemon is found on this machine, and what it needs: both sides must agree on it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path
from typing import Final

SERVICE_SOCKET: Final = Path("/run/ranktap/ranktapd.sock")
TCP_PORT: Final = 5757
SOCKET_PATH_BYTES: Final = 107
"""`sockaddr_un` has room for no more."""

DAEMON_NEEDS: Final = ("tensorboard", "isal", "prometheus_client")
"""Modules that `pip install 'ranktap[daemon]'` adds, and without which no daemon runs."""


def daemon_lacks() -> list[str]:
    """What of it is not installed here."""
    # A directory of logs called "tensorboard" is found too, as a package without an origin.
    found = {name: importlib.util.find_spec(name) for name in DAEMON_NEEDS}
    return [name for name, spec in found.items() if spec is None or spec.origin is None]


def lock_path(logdir: Path) -> Path:
    """Held by the daemon that writes below this logdir; names its endpoints, one a line."""
    return logdir / ".ranktap.lock"


def state_directory(logdir: Path) -> Path:
    """Journals and the daemon's log, unless it is told another place."""
    return logdir / ".ranktap"


def embedded_socket(logdir: Path) -> Path:
    """The socket of the daemon that a job starts for a logdir.

    Not in the logdir: that may be a network file system, where sockets do not work, and
    its path may be longer than a socket's.
    """
    name = hashlib.sha256(os.fsencode(logdir.resolve())).hexdigest()[:24] + ".sock"
    for base in (os.environ.get("XDG_RUNTIME_DIR"), "/tmp"):
        if base:
            path = Path(base) / f"ranktap-{os.getuid()}" / name
            if len(os.fsencode(path)) <= SOCKET_PATH_BYTES and Path(base).is_dir():
                return path
    raise OSError(f"no place for a socket below {os.environ.get('XDG_RUNTIME_DIR')!r} or '/tmp'")
