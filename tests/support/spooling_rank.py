"""A rank of a job that logs the same each time, as a process: with a daemon, or into a spool.

`python -m tests.support.spooling_rank '{"run": ..., "rank": ..., "world_size": ..., ...}'`: the
arguments of `ranktap.init`, and `steps`; `flush_every`, so many steps, of which it prints a line;
`then`: what it does at its end: "close", or "kill", of itself, once it is told to. It prints a JSON
object about how it went.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ranktap
from ranktap_wire.shown import LAYOUT_TAG
from tests.support.event_files import OWN_TAGS, event_files
from tests.support.rank_program import ROOT

WALL = 1_700_000_000.0
PICTURE = np.arange(3 * 32 * 32, dtype=np.uint32).astype(np.uint8).reshape(3, 32, 32)


def python(*arguments: str) -> list[str]:
    """Python, with these arguments."""
    return [sys.executable, *arguments]


def sync(
    *arguments: str | Path, status: int = 0, program: Callable[..., list[str]] = python
) -> str:
    """`ranktap sync`, to its end; what it said."""
    command = program("-m", "ranktap.cli", "sync", *map(str, arguments))
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=60)
    print(done.stdout, done.stderr)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def log_step(tap: ranktap.Tap, step: int) -> None:
    """What a rank logs of a step: the same whenever it is called."""
    wall = WALL + step + tap.rank / 64
    for across in ("mean", "sum", "min", "max", "last", "each", "rank0"):
        value = float(step * 10 + tap.rank)
        tap.scalar(f"scalar/{across}", value, step, walltime=wall, across=across)
    if step % 10 == 0:
        values = np.arange(100, dtype=np.float32) * (tap.rank + 1) + step
        tap.histogram("histogram", values, step, walltime=wall)
        tap.image("picture", PICTURE + np.uint8(step), step, walltime=wall)
        tap.text("words", f"rank {tap.rank} at {step}", step, walltime=wall)


def start(
    then: str = "close", program: Callable[..., list[str]] = python, **options: Any
) -> subprocess.Popen[str]:
    """The process. `program` says how Python is started, with these arguments."""
    command = program("-m", "tests.support.spooling_rank")
    said = {"then": then} | {
        name: str(value) if isinstance(value, Path) else value for name, value in options.items()
    }
    return subprocess.Popen(
        [*command, json.dumps(said)], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], status: int = 0) -> tuple[dict[str, Any], str]:
    """What it says at its end, and its stderr."""
    said, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    return json.loads(said or "{}"), errors


def run_job(world_size: int, **options: Any) -> list[tuple[dict[str, Any], str]]:
    """All ranks of a job, from their beginning to their end."""
    ranks = [start(rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    return [ended(rank) for rank in ranks]


def what_is_logged(directory: Path) -> dict[str, list[bytes]]:
    """Each tag's events in their order, byte for byte; but for what the daemon says of itself.

    That is when the file was made, up to where the journal is in it, what tags under `ranktap/`
    tell (processes, when they came and went, whose clock was how far off), and how often, and
    when, it had the layout of its own charts to write: the last one counts, less its wall time.
    """
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    logged: dict[str, list[bytes]] = {}
    for path in event_files(directory):
        for record in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(record)
            for value in event.summary.value:
                if value.tag == LAYOUT_TAG:
                    event.ClearField("wall_time")
                    logged[value.tag] = [event.SerializeToString()]
                elif not value.tag.startswith(OWN_TAGS):
                    logged.setdefault(value.tag, []).append(bytes(record))
    return logged


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    options = json.loads(sys.argv[1])
    then, steps = options.pop("then"), options.pop("steps")
    flush_every = options.pop("flush_every", 0)
    tap = ranktap.init(**options)
    for step in range(steps):
        log_step(tap, step)
        if flush_every and step % flush_every == flush_every - 1:
            tap.flush()
            print(json.dumps({"flushed_to": step + 1}), flush=True)
    if then == "kill":
        print(json.dumps({"flushed": tap.flush()}), flush=True)
        sys.stdin.readline()
        os.kill(os.getpid(), signal.SIGKILL)
    closed = tap.close(timeout=20.0)
    print(json.dumps({"closed": closed, "dropped": tap._outbox.dropped}))


if __name__ == "__main__":
    main()
