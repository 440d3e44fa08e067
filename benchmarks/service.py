"""A ranktapd for a measurement: when it is ready, and what CPU time it has taken."""

from __future__ import annotations

import os
import resource
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
        self._before = resource.getrusage(resource.RUSAGE_CHILDREN)
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
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> float:
        """Let it write what it has and end; CPU seconds of it and its workers, start-up included.

        Raises:
            RuntimeError: it did not end well.
        """
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(END_S)
        if status != 0:
            raise RuntimeError(f"ranktapd ended with status {status}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - self._before.ru_utime - self._before.ru_stime

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
