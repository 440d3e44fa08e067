"""What a watch costs on a step that is not looked at.

In CPU time of the training thread: what others do on the machine is a thousand times as much.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.cases import Figures, expect, open_tap
from benchmarks.model import one_thread
from benchmarks.work import many

MODULES = 68
"""As many as the ResNet has."""


def figures(directory: Path) -> Figures:
    with one_thread():
        tap = open_tap(directory)
        found = {"a module": module_ns(tap), "a step": step_us(tap)}
        found["a module, in a process that compiles"] = module_ns(tap, compiles=True)
    tap.close(60)
    expect(directory, {"warm-up": 1})
    return found


def module_ns(tap: Any, *, compiles: bool = False) -> float:
    """Nanoseconds a module with hooks of all kinds, in its forward."""
    modules, calls = many(1_000, 10), many(300, 3)
    bare = nn.Sequential(*(nn.Identity() for _ in range(modules)))
    hooked = nn.Sequential(*(nn.Identity() for _ in range(modules)))
    sections = ("inputs", "activations", "grad_inputs", "grad_outputs")
    tap.step(1)
    watch = tap.watch(hooked, every=1 << 40, **dict.fromkeys(sections, "moments"))
    if compiles:
        torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))
    value = torch.ones(1)
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(calls):
        for model in (bare, hooked):
            started = time.thread_time()
            model(value)
            times[model is hooked].append(time.thread_time() - started)
    watch.remove()
    difference = statistics.median(times[True]) - statistics.median(times[False])
    return difference / modules * 1e9


class TinyJob:
    """A step that costs nothing but calls."""

    def __init__(self) -> None:
        identities = (nn.Identity() for _ in range(MODULES - 1))
        self.model = nn.Sequential(nn.Linear(1, 1), *identities)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.value = torch.ones(1, 1)

    def step(self) -> float:
        started = time.thread_time()
        self.optimizer.zero_grad()
        self.model(self.value).backward()
        self.optimizer.step()
        return time.thread_time() - started


def step_us(tap: Any) -> float:
    """Microseconds of a whole step, the optimizer's hooks among them."""
    watched, alone = TinyJob(), TinyJob()
    tap.step(1)
    # torch's hooks of all optimizers would be the other job's too.
    watch = tap.watch(watched.model, every=1 << 40, optimizer=watched.optimizer)
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(many(3_000, 5)):
        for job in (watched, alone):
            times[job is watched].append(job.step())
    watch.remove()
    return (statistics.median(times[True]) - statistics.median(times[False])) * 1e6
