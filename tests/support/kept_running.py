"""A daemon that is started again whenever it ends, as a service manager does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.daemons import DaemonProcess

POLL_S = 0.02


@contextmanager
def kept_running(daemon: DaemonProcess) -> Iterator[list[int]]:
    """Start it again when it has ended, until the end of the block; the exit statuses so far."""
    statuses: list[int] = []
    is_over = threading.Event()

    def keep() -> None:
        while not is_over.wait(POLL_S):
            assert daemon.process is not None
            status = daemon.process.poll()
            if status is not None:
                statuses.append(status)
                daemon.start(wait=False)

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield statuses
    finally:
        is_over.set()
        thread.join(30)


def end(daemon: DaemonProcess, timeout_s: float = 20.0) -> None:
    """Let it end with everything written; where it ends in another way, once more."""
    for _ in range(3):
        if daemon.stop(timeout_s=timeout_s) == 0:
            return
        daemon.start()
    raise AssertionError(f"the daemon does not end\n{daemon.log}")
