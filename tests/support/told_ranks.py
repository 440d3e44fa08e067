"""Ranks of a job, as processes that log what a test tells them to: tests/e2e/jobs/as_told.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "e2e" / "jobs" / "as_told.py"


class ToldRank:
    """A rank of a job of that id, as torchrun would start it, which logs `x` = value."""

    def __init__(
        self, endpoint: str, run: str, job: str, rank: int, world_size: int, value: float
    ) -> None:
        place = {"RANK": str(rank), "WORLD_SIZE": str(world_size), "TORCHELASTIC_RUN_ID": job}
        self.process = subprocess.Popen(
            [sys.executable, PROGRAM, endpoint, run, str(value)],
            env=os.environ | place, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    @property
    def is_over(self) -> bool:
        """Whether `kill` was called."""
        return self.process.stdout is None or self.process.stdout.closed

    def wait_until_here(self) -> None:
        assert self._hear() == "here"

    def log(self, first: int, count: int) -> None:
        """Log so many steps; `journaled` says what became of them."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{first} {count}\n")
        self.process.stdin.flush()

    def journaled(self) -> bool:
        """Whether all that it was told to log last was journaled, or all of it when it closes."""
        said = self._hear()
        assert said in ("True", "False")
        return said == "True"

    def close(self) -> None:
        """Let it close; `journaled` waits for it."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def kill(self) -> str:
        """End it in any way; what its logger has said."""
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        said = self.process.stderr.read()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        return said

    def _hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()
