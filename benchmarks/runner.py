"""Runs cases: each side of each round in a process of its own, in turns."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import rivals
from benchmarks.cases import Case

TIMEOUT_S = 600
END_S = 15
"""What a side gets to end its daemons in when it is interrupted."""

Runs = dict[str, dict[str, list[float]]]
"""Side to figure to one value a round."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One side's turn in a round."""

    round: int
    case: Case
    side: str


@dataclass
class Results:
    """What was measured."""

    runs: dict[str, Runs] = field(default_factory=dict)
    read_back: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    """Case to side to what it has found of its own work."""
    failures: list[str] = field(default_factory=list)


def turns(cases: list[Case], rounds: int, known: dict[str, str]) -> Iterator[Turn]:
    """A B, then B A: what one leaves behind is not always the same side's burden."""
    for number in range(rounds):
        for case in cases:
            sides = [
                side for side in case.sides if side not in rivals.DISTRIBUTIONS or side in known
            ]
            for side in sides if number % 2 == 0 else reversed(sides):
                yield Turn(number, case, side)


def run(
    planned: list[Turn],
    rounds: int,
    *,
    directory: Path | None,
    smoke: bool,
    tell: Callable[[str], None],
) -> Results:
    """Take all turns. A side that fails is told of, and the others go on.

    Raises:
        KeyboardInterrupt: so it was asked; the side that was running has ended.
    """
    results = Results()
    taken: dict[tuple[str, str], float] = {}
    for number, turn in enumerate(planned, 1):
        where = f"{turn.case.name}: {turn.side}"
        left = time_left(planned[number - 1 :], taken)
        tell(f"[{number}/{len(planned)}] round {turn.round + 1} of {rounds}, {where}{left}")
        began = time.monotonic()
        try:
            figures, found = measure(turn.case.name, turn.side, directory, smoke=smoke)
        except (subprocess.SubprocessError, RuntimeError) as error:
            tell(f"{where} failed: {error}")
            results.failures.append(where)
            continue
        finally:
            taken[turn.case.name, turn.side] = time.monotonic() - began
        results.read_back.setdefault(turn.case.name, {})[turn.side] = found
        of_side = results.runs.setdefault(turn.case.name, {}).setdefault(turn.side, {})
        for figure, value in figures.items():
            of_side.setdefault(figure, []).append(value)
    return results


def time_left(planned: list[Turn], taken: dict[tuple[str, str], float]) -> str:
    """About how long these turns take: as long as they did before, or as the others did."""
    if not taken:
        return ""
    usual = sum(taken.values()) / len(taken)
    seconds = sum(taken.get((turn.case.name, turn.side), usual) for turn in planned)
    return (
        f"; about {seconds / 60:.0f} min left" if seconds > 90 else f"; about {seconds:.0f} s left"
    )


def measure(
    case: str, side: str, parent: Path | None, *, smoke: bool
) -> tuple[dict[str, float], dict[str, int]]:
    """One turn: its figures, and what it has read back.

    Raises:
        RuntimeError: it failed; its own words are on standard error.
        subprocess.TimeoutExpired: it took too long.
    """
    directory = Path(tempfile.mkdtemp(prefix="ranktap-bench-", dir=parent))
    command = [sys.executable, "-m", "benchmarks.child", case, side, str(directory)]
    command += [f"--python-rivals={rivals.python}", *(["--smoke"] if smoke else [])]
    # A group of its own: Ctrl-C is for this process, which then ends it in order.
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, process_group=0
    )
    try:
        said, _ = child.communicate(timeout=TIMEOUT_S)
    except BaseException:
        _end(child)
        raise
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if child.returncode != 0:
        raise RuntimeError(f"it ended with status {child.returncode}")
    told = json.loads(said.splitlines()[-1])
    return told["figures"], told["read back"]


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a side and what it has started."""
    try:
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=END_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
