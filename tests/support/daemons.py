"""Real `ranktapd` processes for tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from ranktap_wire.places import lock_path
from tests.support.waiting import wait_for


class DaemonProcess:
    """A `ranktapd` on a logdir, listening on an ipc socket of its own.

    May be killed and started again; stderr of all its lives is in `log_path`.
    """

    def __init__(
        self,
        logdir: Path,
        *arguments: str,
        program: list[str] | None = None,
        descriptors: tuple[int, ...] = (),
    ) -> None:
        self.logdir = logdir
        # A socket's path has room for 107 bytes, which pytest's directories exceed.
        self._socket_dir = tempfile.TemporaryDirectory(prefix="ranktap-test-")
        self.endpoint = f"ipc://{self._socket_dir.name}/d.sock"
        self.arguments = arguments
        self.program = program or [sys.executable, "-m", "ranktapd"]
        self._descriptors = descriptors
        self.log_path = Path(self._socket_dir.name) / "stderr"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, *, wait: bool = True) -> DaemonProcess:
        """Start it, and wait until it listens."""
        lines_before = self.log.count(": listening on")
        command = [*self.program, "--logdir", str(self.logdir), "--listen", self.endpoint]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.arguments], stderr=log, pass_fds=self._descriptors
            )
        if wait:
            wait_for(
                lambda: self.log.count(": listening on") > lines_before or self.process.poll(),
                f"the daemon to listen; its log:\n{self.log}",
            )
            assert self.process.poll() is None, self.log
        return self

    def workers(self) -> list[psutil.Process]:
        """Its worker processes that are alive."""
        try:
            children = psutil.Process(self.pid).children()
        except psutil.NoSuchProcess:
            return []
        return [child for child in children if "ranktapd.run_worker" in " ".join(_cmdline(child))]

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 15.0) -> int:
        """Ask it to end; its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def close(self) -> None:
        """End it in any way, with its workers."""
        if self.process is not None and self.process.poll() is None:
            workers = self.workers()
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            psutil.wait_procs(workers, timeout=10)
        self._socket_dir.cleanup()

    def is_locked(self) -> bool:
        return lock_path(self.logdir).exists()


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def ranks_environment(rank: int, world_size: int) -> dict[str, str]:
    """The variables of a torchrun rank, for a process that is not one."""
    return os.environ | {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "TORCHELASTIC_RUN_ID": f"job-{int(time.time())}",
    }
