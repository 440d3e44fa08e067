"""One rank of the ledger's job, as a process: `python -m tests.support.rank_program`.

It logs its steps at a pace, times every call of `tap.scalar`, closes, and prints one JSON
object about how it went. A file may be named that comes to say at which step it ends.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import ranktap
from tests.support import ledger
from tests.support.timing import SlowestCall

ROOT = Path(__file__).resolve().parents[2]
FOR_EVER = 1_000_000
"""Steps of a rank that ends when it is told to."""


def start_rank(
    endpoint: str,
    run: str,
    rank: int,
    world_size: int,
    *,
    steps: int,
    step_s: float,
    end: Path | None = None,
) -> subprocess.Popen[str]:
    """The process; `report` waits for it. It logs `steps` steps, or as many as `end` says."""
    command = [
        sys.executable, "-m", "tests.support.rank_program", endpoint, run,
        str(rank), str(world_size), str(steps), str(step_s), *([] if end is None else [str(end)]),
    ]  # fmt: skip
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def let_end(end: Path, began: float, step_s: float) -> int:
    """Tell ranks that were started at `began` at which step to end: soon, and not reached yet.

    Returns the number of their steps. They keep their pace, so none can be ahead of the clock.
    """
    steps = int((time.monotonic() - began) / step_s) + 20
    partial = end.with_suffix(".partial")
    partial.write_text(str(steps))
    partial.rename(end)
    return steps


def report(process: subprocess.Popen[str], timeout_s: float) -> dict[str, float]:
    """What a rank says about itself; AssertionError, with its stderr, when it failed."""
    said, errors = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, errors
    told: dict[str, float] = json.loads(said)
    told["stderr"] = errors  # type: ignore[assignment]
    return told


class Timed:
    """A tap whose `scalar` is timed; everything else is the tap's."""

    def __init__(self, tap: ranktap.Tap) -> None:
        self._tap = tap
        self.rank = tap.rank
        self.image_grid, self.histogram, self.text = tap.image_grid, tap.histogram, tap.text
        self.curves, self.embedding = tap.curves, tap.embedding
        self.calls = 0
        self.slowest = SlowestCall()

    def scalar(self, tag: str, value: float, step: int, *, across: str) -> None:
        began = time.perf_counter()
        self._tap.scalar(tag, value, step, across=across)
        self.slowest.add(time.perf_counter() - began)
        self.calls += 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("endpoint")
    parser.add_argument("run")
    for name in ("rank", "world_size", "steps"):
        parser.add_argument(name, type=int)
    parser.add_argument("step_s", type=float)
    parser.add_argument("end", type=Path, nargs="?")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    tap = ranktap.init(
        options.run, endpoint=options.endpoint, rank=options.rank, world_size=options.world_size
    )
    timed = Timed(tap)
    pace = threading.Event()
    due = time.monotonic()
    steps = options.steps
    step = 0
    while step < steps:
        ledger.log_step(timed, step)  # type: ignore[arg-type]
        ledger.log_beside(timed, step)  # type: ignore[arg-type]
        step += 1
        if options.end is not None and options.end.exists():
            steps = int(options.end.read_text())
        due += options.step_s
        pace.wait(max(0.0, due - time.monotonic()))
    closed = tap.close(timeout=60.0)
    print(
        json.dumps(
            {
                "closed": closed,
                "calls": timed.calls,
                "slowest_s": timed.slowest.blocked_s,
                "slowest_wall_s": timed.slowest.wall_s,
            }
        )
    )


if __name__ == "__main__":
    main()
