"""What a service manager is told, and what it hands over (sd_notify(3), sd_listen_fds(3)).

    READY=1               journals are recovered and clients can connect
    EXTEND_TIMEOUT_USEC   recovering takes longer; not stuck
    WATCHDOG=1            the loops that do the work have made progress
    RELOADING=1, STOPPING=1, STATUS=text

Ten lines over a datagram socket: the packages for it are hardly kept. Without a service
manager every call does nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger("ranktapd")

FIRST_FD = 3
"""Where sockets that are handed over begin."""
EXTEND_S = 30.0
"""What is asked for at a time; asked again while there is progress."""
STATUS_S = 1.0
"""How often a changed status is worth a message."""


@dataclass(slots=True)
class ServiceManager:
    """A datagram socket to whoever started the daemon."""

    address: str | None = None
    watchdog_s: float | None = None
    """A sign of life is due within this."""
    _next_sign: float = 0.0
    _next_extension: float = 0.0
    _next_status: float = 0.0
    _status: str = ""
    _is_told: bool = False

    @classmethod
    def from_environment(cls) -> ServiceManager:
        """The one that the environment names, which is cleared: children are not the service."""
        address = os.environ.pop("NOTIFY_SOCKET", None)
        usec = os.environ.pop("WATCHDOG_USEC", "")
        pid = os.environ.pop("WATCHDOG_PID", str(os.getpid()))
        watched = usec.isdigit() and int(usec) > 0 and pid == str(os.getpid())
        return cls(address, int(usec) / 1e6 if watched else None)

    def ready(self) -> None:
        self._send("READY=1")

    def stopping(self) -> None:
        self._send("STOPPING=1\nSTATUS=Writing what is journaled")

    def reloading(self) -> None:
        """`ready` says that it is over."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1_000}")

    def progress(self, text: str) -> None:
        """Starting takes long, and goes on."""
        now = time.monotonic()
        if now >= self._next_extension:
            self._next_extension = now + EXTEND_S / 4
            self._send(f"EXTEND_TIMEOUT_USEC={int(EXTEND_S * 1e6)}\nSTATUS={text}")

    def alive(self) -> None:
        """The work goes on."""
        now = time.monotonic()
        if self.watchdog_s is not None and now >= self._next_sign:
            self._next_sign = now + self.watchdog_s / 4
            self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        now = time.monotonic()
        if text != self._status and now >= self._next_status:
            self._status, self._next_status = text, now + STATUS_S
            self._send(f"STATUS={text}")

    def _send(self, text: str) -> None:
        if self.address is None:
            return
        # An abstract address begins with "@", which stands for a zero byte.
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            try:
                sender.sendto(text.encode(), address)
            except OSError as error:
                # Full for a moment: what matters is said again.
                if not self._is_told:
                    self._is_told = True
                    logger.warning(
                        "the service manager does not listen: %(error)s", {"error": error}
                    )


def inherited_sockets() -> dict[str, int]:
    """Listening sockets that the service manager opened: endpoint to descriptor.

    The variables that name them are cleared, so that no child takes them for its own.

    Raises:
        OSError: one of them is no stream socket that listens.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return {}
    found = {}
    for fd in range(FIRST_FD, FIRST_FD + int(count)):
        os.set_inheritable(fd, False)
        found[_endpoint(fd)] = fd
    return found


def _endpoint(fd: int) -> str:
    with socket.socket(fileno=os.dup(fd)) as listener:
        if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(f"descriptor {fd}, handed over by the service manager, does not listen")
        name = listener.getsockname()
        if listener.family == socket.AF_UNIX:
            path = os.fsdecode(name)
            if not Path(path).is_absolute():
                raise OSError(f"descriptor {fd}: expected a socket with a path, got {path!r}")
            return f"ipc://{path}"
        host, port = name[:2]
        return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
