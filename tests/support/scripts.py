"""Programs in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

OTHER_VERSION = Path(__file__).with_name("other_version.py")
"""Runs a program as if it were of another version of the protocol."""


def run_python(
    program: str | Path,
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
    status: int = 0,
    before: tuple[str | Path, ...] = (),
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program (a file, or its text) to its end; what it said.

    `env` is added to this process's; `before` stands between Python and the program.

    Raises:
        AssertionError: it ended with another status than `status`; with all that it said.
    """
    file = ["-c", program] if isinstance(program, str) else [program]
    done = subprocess.run(
        [sys.executable, *before, *file, *map(str, arguments)],
        env=os.environ | dict(env or {}),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=cwd,
    )
    assert done.returncode == status, (
        f"ended with {done.returncode}, expected {status}\n--- stdout\n{done.stdout}\n"
        f"--- stderr\n{done.stderr}"
    )
    return done
