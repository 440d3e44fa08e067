"""Real TensorBoard processes, with either of its loaders."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.waiting import wait_for


class Board:
    """`tensorboard --logdir` on a free port; `fast` is the Rust data server."""

    def __init__(self, logdir: Path, *, fast: bool, reload_interval_s: int = 1) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the board
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "tensorboard.main",
                "--logdir", str(logdir), "--port", "0", "--host", "127.0.0.1",
                "--reload_interval", str(reload_interval_s),
                f"--load_fast={'true' if fast else 'false'}",
                # Not 0, which is all for the loaders and none for the plugin behind the HTTP API.
                "--samples_per_plugin", "scalars=1000000,images=1000,histograms=1000",
            ],
            stdout=self._log, stderr=self._log,
        )  # fmt: skip
        self.url = wait_for(self._address, "TensorBoard's address", 60)

    @property
    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def get(self, path: str, **query: str) -> Any:
        """What the HTTP API answers, as JSON where it is; None for an error status."""
        url = f"{self.url}{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                body = answer.read()
                is_json = "json" in answer.headers.get("Content-Type", "")
        except urllib.error.HTTPError:
            return None
        return json.loads(body) if is_json else body

    def scalars(self, run: str, tag: str) -> list[list[float]]:
        """[wall time, step, value] of each point that it shows."""
        return self.get("/data/plugin/scalars/scalars", run=run, tag=tag) or []

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._log.close()

    def _address(self) -> str | None:
        assert self._process.poll() is None, self.log
        for word in self.log.split():
            if word.startswith("http://127.0.0.1:"):
                return word.rstrip("/")
        return None
