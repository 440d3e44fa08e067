"""How scalars grow: with their tags, with how many one call takes, with ranks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import rank
from benchmarks.cases import (
    RUN,
    Case,
    Figures,
    expect,
    open_tap,
    open_torch,
    seconds_through_ranktap,
    seconds_through_torch,
    wait_for_end,
)
from benchmarks.service import Service
from benchmarks.work import many, per_call_us, timed

# -- scalars of few and many tags -----------------------------------------------------------

TAG_COUNTS = {"1 tag": 1, "100 tags": 100, "10,000 tags": 10_000}


def _tags(count: int) -> list[str]:
    return [f"section{number % 100}/value{number}" for number in range(count)]


def _of_tags(through: Callable[..., list[float]], total: int, log_scalar: str, **named: Any) -> Any:
    def side(directory: Path) -> Figures:
        figures: Figures = {}
        for name, count in TAG_COUNTS.items():
            tags = _tags(many(count, min(count, 50)))
            steps = max(1, many(total, 100) // len(tags))

            def log(logger: Any, _: int, tags: list[str] = tags, steps: int = steps) -> None:
                scalar = getattr(logger, log_scalar)
                for step in range(steps):
                    for tag in tags:
                        scalar(tag, 0.5, step)

            (seconds,) = through(directory / name, log, dict.fromkeys(tags, steps), **named)
            figures[name] = steps * len(tags) / seconds
        return figures

    return side


tags_ranktap = _of_tags(seconds_through_ranktap, 500_000, "scalar", scalars=True)
tags_torch = _of_tags(seconds_through_torch, 20_000, "add_scalar")

# -- scalars in a dict -----------------------------------------------------------------------

BATCHES = {"of 1": 1, "of 50": 50, "of 10,000": 10_000}


def batches_ranktap(directory: Path) -> Figures:
    tap = open_tap(directory)
    figures: Figures = {}
    logged: dict[str, int] = {}
    for name, count in BATCHES.items():
        values = {f"{name}/{number}": 0.5 for number in range(many(count, min(count, 100)))}
        calls = max(10, many(200_000, 100) // len(values))
        tap.scalars(values, 0)  # its tags are new to the tap
        figures[name] = per_call_us(lambda i, of=values: tap.scalars(of, i + 1), calls)
        figures[name] /= len(values)
        logged |= dict.fromkeys(values, calls + 1)
    tap.close(60)
    expect(directory, logged)
    return figures


def batches_torch(directory: Path) -> Figures:
    """`add_scalars` opens a writer for each: one `add_scalar` after the other is the fast way."""
    writer = open_torch(directory)
    figures: Figures = {}
    logged: dict[str, int] = {}
    for name, count in BATCHES.items():
        values = {f"{name}/{number}": 0.5 for number in range(many(count, min(count, 100)))}
        calls = max(2, many(5_000, 10) // len(values))

        def log(step: int, values: dict[str, float] = values) -> None:
            for tag, value in values.items():
                writer.add_scalar(tag, value, step)

        figures[name] = per_call_us(log, calls) / len(values)
        logged |= dict.fromkeys(values, calls)
    writer.close()
    expect(directory, logged)
    return figures


# -- scalars of several ranks ----------------------------------------------------------------

RANK_COUNTS = {"1 rank": 1, "2 ranks": 2, "8 ranks": 8}


def ranks_ranktap(directory: Path) -> Figures:
    figures: Figures = {}
    with Service(directory) as service:
        for name, count in RANK_COUNTS.items():
            for across in ("mean", "each") if count > 1 else ("mean",):
                how = "" if count == 1 else ", merged" if across == "mean" else ", not merged"
                figures[name + how] = _of_ranks(service, many(count, min(count, 3)), name, across)
    return figures


def _of_ranks(service: Service, ranks: int, name: str, across: str) -> float:
    """Records a second that a daemon takes from that many processes, until all is written."""
    job = f"{name}, {across}"
    directory, run = service.logdir / job, f"{job}/{RUN}"
    steps = many(400_000, 400) // ranks // len(rank.TAGS)
    with ExitStack() as stack:
        processes = [
            stack.enter_context(_rank(service.endpoint, run, number, ranks, steps, across))
            for number in range(ranks)
        ]
        _hear(processes, "ready")
        with timed() as took:
            _go_on(processes)
            _hear(processes, "journaled")
            _go_on(processes)
            wait_for_end(directory)
        _hear(processes, "ended")
    if across == "each":
        names = [f"ranks/{tag}/rank{number}" for tag in rank.TAGS for number in range(ranks)]
    elif ranks > 1:
        names = [f"ranks/{tag}/{end}" for tag in rank.TAGS for end in ("min", "max")] + rank.TAGS
    else:
        names = rank.TAGS
    expect(directory, dict.fromkeys(names, steps))
    return ranks * steps * len(rank.TAGS) / took.seconds


@contextmanager
def _rank(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.rank", *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _hear(processes: list[subprocess.Popen[str]], word: str) -> None:
    """Wait until each has said this.

    Raises:
        RuntimeError: one has said something else, or ended.
    """
    for process in processes:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        if said != word:
            raise RuntimeError(f"a rank said {said!r} instead of {word!r}")


def _go_on(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go on\n")
        process.stdin.flush()


SCALAR_CASES = [
    Case(
        "tags",
        "scalars until readable in the event file",
        {"ranktap": tags_ranktap, "torch": tags_torch},
        {},
        dict.fromkeys(TAG_COUNTS, "1/s"),
        higher_is_better=True,
        group="sizes",
    ),
    Case(
        "batches",
        "`scalars` in a dict, in the training thread, each",
        {"ranktap": batches_ranktap, "torch": batches_torch},
        {},
        dict.fromkeys(BATCHES, "us"),
        group="sizes",
    ),
    Case(
        "ranks",
        "scalar records of a job until all is written",
        {"ranktap": ranks_ranktap},
        {},
        dict.fromkeys(
            ("1 rank", "2 ranks, merged", "2 ranks, not merged", "8 ranks, merged",
             "8 ranks, not merged"),
            "1/s",
        ),
        higher_is_better=True,
        group="sizes",
    ),
]  # fmt: skip
