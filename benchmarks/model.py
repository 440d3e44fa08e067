"""A ResNet-18-size model on one CPU thread, a step of which is watched and one of which is not.

Each side takes turns with itself: a step that is watched, then one of a copy of the model
that is not, and the figure is the ratio of the medians. A machine whose speed drifts is so
fair to both halves of each figure.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from benchmarks.work import many

WEIGHT = "0.weight"
BATCH, EDGE = 10, 128
"""A step of about 400 ms, of which the convolutions are nearly all."""


class Block(nn.Module):
    """ResNet's basic block."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inner != outer:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer)
            )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        activated: Tensor = self.relu(out)
        return activated


def resnet18() -> nn.Sequential:
    """11.7 million parameters in 62 tensors, as torchvision's."""
    torch.manual_seed(0)
    width = many(64, 4)
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    inner = width
    for outer, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
        layers += [Block(inner, outer, stride), Block(outer, outer, 1)]
        inner = outer
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 1000))


class Job:
    """A model, its optimizer, and a step."""

    def __init__(self) -> None:
        self.model = resnet18()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.images = torch.randn(many(BATCH, 2), 3, many(EDGE, 32), many(EDGE, 32))
        self.labels = torch.arange(many(BATCH, 2))

    def step(self, before_update: Callable[[], None] | None = None) -> tuple[float, float]:
        """Seconds that a step takes, by the clock and of its thread's CPU; `before_update` runs
        between backward and the optimizer."""
        started, started_cpu = time.perf_counter(), time.thread_time()
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(self.images), self.labels).backward()
        if before_update is not None:
            before_update()
        self.optimizer.step()
        return time.perf_counter() - started, time.thread_time() - started_cpu


def slower(
    watched: Job,
    before_update: Callable[[int], None] | None = None,
    *,
    steps: int,
    between: int = 0,
) -> dict[str, float]:
    """By how many per cent a watched step is slower than one that is not, and their times.

    So many steps `between` two that count are not timed.
    """
    alone = Job()
    for job in (watched, alone):
        job.step()
    gc.collect()
    times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for number in range(steps):
        for _ in range(between):
            watched.step()
        seen = (lambda number=number: before_update(number)) if before_update else None
        for job in (watched, alone) if number % 2 else (alone, watched):
            is_watched = job is watched
            times[is_watched].append(job.step(seen if is_watched else None))
    pairs = list(zip(times[True], times[False], strict=True))
    clock, cpu = (
        statistics.median(seen[i] / unseen[i] for seen, unseen in pairs) for i in range(2)
    )
    return {
        "slower": (clock - 1) * 100,
        # On a machine that others use too: what the step itself does more.
        "more CPU time": (cpu - 1) * 100,
        "step without": statistics.median(step for step, _ in times[False]) * 1e3,
    }


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
