"""Two machines on a wire of their own: network namespaces, which only root may make."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

PREFIX = "rtap"


class TwoMachines:
    """Two network namespaces, joined by a cable that can be pulled.

    Nothing outside of them is touched: the machine's own network keeps its names, addresses
    and routes.
    """

    LOG_HOST = "10.213.7.1"
    TRAINER = "10.213.7.2"

    def __init__(self) -> None:
        if os.geteuid() != 0:
            pytest.skip("making network namespaces takes root")
        if shutil.which("ip") is None:
            pytest.skip("the command `ip` (iproute2) is needed to make network namespaces")
        self._names = [f"{PREFIX}{os.getpid()}{side}" for side in "ab"]
        made: list[str] = []
        try:
            for name in self._names:
                _ip("netns", "add", name)
                made.append(name)
            one, other = self._names
            _ip(
                "link",
                "add",
                "cable",
                "netns",
                one,
                "type",
                "veth",
                "peer",
                "cable",
                "netns",
                other,
            )
            for name, address in zip(self._names, (self.LOG_HOST, self.TRAINER), strict=True):
                _ip("-n", name, "address", "add", f"{address}/30", "dev", "cable")
                _ip("-n", name, "link", "set", "lo", "up")
                _ip("-n", name, "link", "set", "cable", "up")
        except subprocess.CalledProcessError as error:
            for name in made:
                _ip("netns", "delete", name)
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")

    def on_log_host(self, *command: str) -> list[str]:
        """A command line that runs `command` there."""
        return ["ip", "netns", "exec", self._names[0], *command]

    def on_trainer(self, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self._names[1], *command]

    def pull_cable(self) -> None:
        """Both ends see nothing of each other any more, and no connection is closed."""
        _ip("-n", self._names[0], "link", "set", "cable", "down")

    def plug_in(self) -> None:
        _ip("-n", self._names[0], "link", "set", "cable", "up")

    def lose_answers(self) -> None:
        """What the trainer sends arrives; nothing comes back."""
        _ip("-n", self._names[0], "route", "add", "blackhole", f"{self.TRAINER}/32")

    def bring_answers(self) -> None:
        _ip("-n", self._names[0], "route", "delete", "blackhole", f"{self.TRAINER}/32")

    def close(self) -> None:
        for name in self._names:
            _ip("netns", "delete", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
