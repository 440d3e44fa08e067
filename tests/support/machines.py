"""A machine whose first process is systemd, made of this one; see machine.sh."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import psutil

from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[2]
SYSTEMD = Path("/lib/systemd/systemd")
PYTHON = "/opt/ranktap/bin/python"
ENVIRONMENT = {
    "PYTHONPATH": "/opt/ranktap/src/client:/opt/ranktap/src/daemon",
    "LD_LIBRARY_PATH": "/opt/python/lib",
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
}


class CannotBootError(Exception):
    """There can be no such machine here; the message says why."""


class Machine:
    """Booted when made; gone, with all that it wrote, when closed."""

    def __init__(self, directory: Path) -> None:
        if os.geteuid() != 0:
            raise CannotBootError("booting a machine takes root")
        if not SYSTEMD.exists():
            raise CannotBootError(f"{SYSTEMD} is not installed")
        self._log = directory / "boot"
        work = directory / "machine"
        work.mkdir()
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [
                    "unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--fork",
                    "--kill-child", ROOT / "tests" / "support" / "machine.sh",
                    work, sys.base_prefix, sysconfig.get_path("purelib"), ROOT,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            self._init = wait_for(self._booted, "systemd to start")
        except BaseException:
            self.close()
            raise

    def _booted(self) -> int | None:
        if self._process.poll() is not None:
            raise CannotBootError(f"no machine can be booted here: {self._log.read_text().strip()}")
        for child in psutil.Process(self._process.pid).children():
            if child.name() == "systemd":
                return child.pid
        return None

    def run(
        self,
        *command: str | Path,
        user: str = "root",
        status: int | None = 0,
        timeout_s: float = 60.0,
    ) -> str:
        """What a command says there, as some user.

        Raises:
            AssertionError: it ended with another status than `status`, None standing for any.
        """
        become = [] if user == "root" else ["runuser", "-u", user, "--"]
        done = subprocess.run(
            ["nsenter", f"--target={self._init}", "--all", "--root", "--wd", *become, *command],
            env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=timeout_s,
        )  # fmt: skip
        if status is not None:
            assert done.returncode == status, f"{command}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def python(self, program: str, *arguments: str, user: str = "root", status: int = 0) -> str:
        return self.run(PYTHON, "-W", "error", "-c", program, *arguments, user=user, status=status)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--property", name, "--value", unit).strip()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
