"""A ranktapd for a measurement: when it is ready, and what CPU time it has taken."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

READY_S, END_S = 60.0, 120.0


class Service:
    """A ranktapd on a socket of its own, from entering to leaving, which ends it."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.logdir = directory
        self._arguments = arguments

    def __enter__(self) -> Service:
        # A socket's path is at most 107 characters, a directory's may be longer.
        self._sockets = tempfile.TemporaryDirectory(prefix="ranktap-bench-")
        self.endpoint = f"ipc://{self._sockets.name}/daemon"
        address = f"{self._sockets.name}/notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.bind(address)
            notified.settimeout(READY_S)
            started = time.perf_counter()
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ranktapd", "--logdir", str(self.logdir)),
                    *("--listen", self.endpoint, *self._arguments),
                ],
                env=os.environ | {"NOTIFY_SOCKET": address},
                stderr=subprocess.DEVNULL,
            )
            try:
                while b"READY=1" not in notified.recv(4_096):
                    pass
            except BaseException:
                self.__exit__(None, None, None)
                raise
            self.seconds_until_ready = time.perf_counter() - started
        return self

    def cpu_s(self) -> float:
        """CPU seconds of its main process until now."""
        return _cpu_s(self.process.pid)

    def workers_cpu_s(self) -> float:
        """CPU seconds of its workers until now."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return sum(_cpu_s(int(child)) for child in children)

    def end(self) -> None:
        """Let it write what it has and end.

        Raises:
            RuntimeError: it did not end well.
        """
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(END_S)
        if status != 0:
            raise RuntimeError(f"ranktapd ended with status {status}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._sockets.cleanup()


def _cpu_s(pid: int) -> float:
    """Of all threads of a process, in nanoseconds where `stat` has hundredths of a second."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9
