"""What it costs besides calls: starting, the daemon's CPU time, the interpreter's lock."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

import ranktap
from benchmarks import tally
from benchmarks.cases import (
    END_TAG,
    RUN,
    Case,
    Figures,
    event_file,
    expect,
    open_tap,
    open_torch,
    wait_for_end,
)
from benchmarks.service import Service
from benchmarks.work import many, timed

# -- starting ------------------------------------------------------------------------------


def _import_ms(module: str) -> float:
    """Of a fresh interpreter, less what one that imports nothing takes."""
    taken = []
    for _ in range(many(5, 1)):
        both = []
        for program in ("pass", f"import {module}"):
            with timed() as took:
                subprocess.run([sys.executable, "-c", program], check=True)
            both.append(took.seconds)
        taken.append(both[1] - both[0])
    tally.note({f"import {module}": len(taken)})
    return statistics.median(taken) * 1e3


def starting_ranktap(directory: Path) -> Figures:
    figures = {"import": _import_ms("ranktap")}
    with Service(directory / "service") as service:
        figures["`ranktapd` until it is ready"] = service.seconds_until_ready * 1e3
    with timed() as took:
        tap = ranktap.init(RUN, logdir=directory, rank=0, world_size=1)
        tap.scalar("first", 0.0, 0)
        if not tap.flush(60):
            raise RuntimeError("the embedded daemon did not answer")
    figures["until the first scalar is safe"] = took.seconds * 1e3
    tap.close(60)
    expect(directory, {"first": 1})
    return figures


def starting_torch(directory: Path) -> Figures:
    figures = {"import": _import_ms("torch.utils.tensorboard")}
    with timed() as took:
        writer = open_torch(directory)
    figures["until the first scalar is safe"] = took.seconds * 1e3
    writer.close()
    expect(directory, {"warm-up": 1})
    return figures


# -- the daemon ----------------------------------------------------------------------------

DECADES = {f"{10**power:,}": 10**power for power in range(3, 7)}
TAGS = [f"layer{number}/value" for number in range(20)]


def daemon_costs(directory: Path) -> Figures:
    """CPU time of the main process and the worker, from the first scalar until all is readable."""
    figures: Figures = {}
    for name, full in DECADES.items():
        count = many(full, 40)
        with Service(directory / name) as service:
            tap = ranktap.init(RUN, endpoint=service.endpoint, rank=0, world_size=1)
            tap.scalar("warm-up", 0.0, 0)
            tap.flush(60)
            wait_for_end(directory / name, "warm-up")
            before = event_file(directory / name).stat().st_size
            spent = service.cpu_s() + service.workers_cpu_s()
            for step in range(count // len(TAGS)):
                for tag in TAGS:
                    tap.scalar(tag, 0.5, step)
            tap.scalar(END_TAG, 0.0, 0)
            wait_for_end(directory / name)
            spent = service.cpu_s() + service.workers_cpu_s() - spent
            nbytes = event_file(directory / name).stat().st_size - before
            tap.close(60)
        expect(directory / name, dict.fromkeys(TAGS, count // len(TAGS)))
        figures[f"CPU time a million, of {name}"] = spent / count * 1e6
        figures[f"bytes each, of {name}"] = nbytes / count
    return figures


def daemon_costs_torch(directory: Path) -> Figures:
    """SummaryWriter has no daemon: its own process's CPU time, and its file."""
    figures: Figures = {}
    for name, full in DECADES.items():
        count = many(min(full, 20_000), 40)
        writer = open_torch(directory / name)
        before = time.process_time()
        for step in range(count // len(TAGS)):
            for tag in TAGS:
                writer.add_scalar(tag, 0.5, step)
        writer.close()
        figures[f"CPU time a million, of {name}"] = (time.process_time() - before) / count * 1e6
        figures[f"bytes each, of {name}"] = event_file(directory / name).stat().st_size / count
        expect(directory / name, dict.fromkeys(TAGS, count // len(TAGS)))
    return figures


# -- the interpreter's lock ------------------------------------------------------------------

SCALARS, STEP_S = 50, 0.01
"""Of a step of the loop, of which there are a hundred a second."""
BLOCK = 10
"""Steps with, and as many without: the machine's speed drifts from second to second."""
PAUSE_S = 0.1
"""Before each block, so that what the one before it left to be sent is not this one's."""
_FOLLOWS = [number * 5 + 3 & 127 for number in range(128)]


def _work(amount: int) -> int:
    """Pure Python that makes no objects: where the interpreter puts new ones changes with all else
    that the process does, and with it the speed of a loop, by 5 % to either side."""
    number = 0
    for _ in repeat(None, amount):
        number = _FOLLOWS[number]
    return number


def _calibrated() -> int:
    """Work of about a step's time."""
    amount = 10_000
    while True:
        started = time.thread_time()
        _work(amount)
        spent = time.thread_time() - started
        if spent > STEP_S / 2:
            return max(1, int(amount * STEP_S / spent))
        amount *= 2


def slowed(log: Callable[[int], None]) -> Figures:
    """By how many per cent a loop of pure Python is slower when it logs at each step.

    The calls themselves are told apart from what the rest of the process does meanwhile, which
    is the sender: its turns at the interpreter's lock, and what they throw out of the caches.
    """
    amount, blocks = _calibrated(), many(200, 4)
    times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    in_calls: list[float] = []
    step = 0
    for number in range(blocks):
        logs = number % 4 in (0, 3)  # with, without, without, with: drift counts on both sides
        calls = 0.0
        time.sleep(PAUSE_S)
        began, began_cpu = time.perf_counter(), time.thread_time()
        for _ in range(many(BLOCK, 5)):
            _work(amount)
            if logs:
                started = time.perf_counter()
                log(step)
                calls += time.perf_counter() - started
                step += 1
        times[logs].append((time.perf_counter() - began, time.thread_time() - began_cpu))
        if logs:
            in_calls.append(calls)
    pairs = list(zip(times[True], times[False], strict=True))
    return {
        "slower": statistics.median((with_[0] / without[0] - 1) * 100 for with_, without in pairs),
        "more CPU time of its thread": statistics.median(
            (with_[1] / without[1] - 1) * 100 for with_, without in pairs
        ),
        "of which in the calls": statistics.median(
            calls / without[0] * 100 for calls, (_, without) in zip(in_calls, pairs, strict=True)
        ),
    }


def _names() -> list[str]:
    return [f"layer{number}/value" for number in range(SCALARS)]


def _slowed_ranktap(directory: Path, log_of: Callable[[Any], Callable[[int], None]]) -> Figures:
    tap = open_tap(directory)
    figures = slowed(log_of(tap))
    tap.close(60)
    expect(directory, dict.fromkeys(_names(), many(200, 4) // 2 * many(BLOCK, 5)))
    return figures


def lock_ranktap(directory: Path) -> Figures:
    names = _names()

    def log_of(tap: Any) -> Callable[[int], None]:
        def log(step: int) -> None:
            for name in names:
                tap.scalar(name, 0.5, step)

        return log

    return _slowed_ranktap(directory, log_of)


def lock_dict_ranktap(directory: Path) -> Figures:
    values = dict.fromkeys(_names(), 0.5)
    return _slowed_ranktap(directory, lambda tap: lambda step: tap.scalars(values, step))


def lock_torch(directory: Path) -> Figures:
    writer, names = open_torch(directory), _names()

    def log(step: int) -> None:
        for name in names:
            writer.add_scalar(name, 0.5, step)

    figures = slowed(log)
    writer.close()
    expect(directory, dict.fromkeys(names, many(200, 4) // 2 * many(BLOCK, 5)))
    return figures


_SLOWED = {"slower": "%", "more CPU time of its thread": "%", "of which in the calls": "%"}

COST_CASES = [
    Case(
        "starting",
        "starting",
        {"ranktap": starting_ranktap, "torch": starting_torch},
        {},
        dict.fromkeys(
            ("import", "`ranktapd` until it is ready",
             "until the first scalar is safe"),
            "ms",
        ),
        group="parts",
    ),
    Case(
        "daemon-costs",
        "scalars of 20 tags",
        {"ranktap": daemon_costs, "torch": daemon_costs_torch},
        {},
        {f"CPU time a million, of {name}": "s" for name in DECADES}
        | {f"bytes each, of {name}": "bytes" for name in DECADES},
        group="parts",
    ),
    Case(
        "lock",
        f"a loop of pure Python, {SCALARS} calls of `scalar` a step, 100 steps a second",
        {"ranktap": lock_ranktap, "torch": lock_torch},
        {"slower": ("below", 1), "more CPU time of its thread": ("below", 1)},
        _SLOWED,
        group="parts",
    ),
    Case(
        "lock-dict",
        f"the same, {SCALARS} scalars in one call of `scalars`",
        {"ranktap": lock_dict_ranktap},
        {"slower": ("below", 1), "more CPU time of its thread": ("below", 1)},
        _SLOWED,
        group="parts",
    ),
]  # fmt: skip
