"""What watching a model costs a training step: a ResNet-18-size model on one CPU thread.

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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import RUN, Case, Figures, event_file, open_tap, open_torch
from benchmarks.wandb_records import expect_history

STEPS = 15
BATCH, EDGE = 10, 128
"""A step of about 400 ms, of which the convolutions are nearly all."""


def expect_tags(directory: Path, tags: list[str], *, at_least: int) -> None:
    """Raise unless TensorBoard's reader finds, in time, at least so many points of each tag."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    deadline = time.monotonic() + 60
    while True:
        found = dict.fromkeys(tags, 0)
        for record in RawEventFileLoader(str(event_file(directory))).Load():
            for value in Event.FromString(record).summary.value:
                if value.tag in found:
                    found[value.tag] += 1
        if all(count >= at_least for count in found.values()):
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"expected at least {at_least} points of each, found {found}")
        time.sleep(0.5)


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
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    inner = 64
    for outer, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(inner, outer, stride), Block(outer, outer, 1)]
        inner = outer
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


class Job:
    """A model, its optimizer, and a step."""

    def __init__(self) -> None:
        self.model = resnet18()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.images = torch.randn(BATCH, 3, EDGE, EDGE)
        self.labels = torch.arange(BATCH)

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
    steps: int = STEPS,
    between: int = 0,
) -> Figures:
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


def watching(tags: list[str], **named: Any) -> Callable[[Path], Figures]:
    """A side that watches so, and must find these tags in the event file."""

    def side(directory: Path) -> Figures:
        with one_thread():
            job = Job()
            tap = open_tap(directory)
            tap.watch(job.model, **named)
            figures = slower(job)
        tap.close(60)
        expect_tags(directory, tags, at_least=1 + STEPS // named["every"])
        return figures

    return side


NONE: dict[str, Any] = dict.fromkeys(("activations", "gradients", "parameters"), ())
MOMENTS = {"gradients": "moments", "parameters": "moments"}
HISTOGRAMS = {"gradients": "histogram", "parameters": "histogram"}
WEIGHT = "0.weight"


def by_hand(directory: Path) -> Figures:
    """torch's SummaryWriter: histograms of all parameters and gradients, each step."""
    with one_thread():
        job = Job()
        writer = open_torch(directory)

        def log(step: int) -> None:
            for name, parameter in job.model.named_parameters():
                writer.add_histogram(f"parameters/{name}", parameter, step)
                writer.add_histogram(f"gradients/{name}", parameter.grad, step)

        figures = slower(job, log, steps=5)
    writer.close()
    expect_tags(directory, [f"gradients/{WEIGHT}", f"parameters/{WEIGHT}"], at_least=5)
    return figures


def norms_by_hand(directory: Path) -> Figures:
    """torch's SummaryWriter: norm, mean, std and largest of each, as `.item()` reads them."""
    with one_thread():
        job = Job()
        writer = open_torch(directory)

        def log(step: int) -> None:
            for name, parameter in job.model.named_parameters():
                for section, tensor in (("parameters", parameter), ("gradients", parameter.grad)):
                    tensor = tensor.detach()
                    tag = f"{section}/{name}"
                    writer.add_scalar(f"{tag}/norm", tensor.norm().item(), step)
                    writer.add_scalar(f"{tag}/mean", tensor.mean().item(), step)
                    writer.add_scalar(f"{tag}/std", tensor.std().item(), step)
                    writer.add_scalar(f"{tag}/abs_max", tensor.abs().max().item(), step)

        figures = slower(job, log)
    writer.close()
    expect_tags(directory, [f"gradients/{WEIGHT}/norm"], at_least=STEPS)
    return figures


def wandb_watch(directory: Path) -> Figures:
    """wandb.watch(log="all", log_freq=1), offline: histograms of all parameters and gradients."""
    import wandb

    with one_thread():
        job = Job()
        run = wandb.init(
            mode="offline",
            dir=directory,
            project=RUN,
            settings=wandb.Settings(console="off", silent=True),
        )
        run.watch(job.model, log="all", log_freq=1)
        figures = slower(job, lambda step: run.log({"step": step}), steps=5)
        run.finish()
    expect_history(directory, [f"gradients/{WEIGHT}", f"parameters/{WEIGHT}"], at_least=5)
    return figures


MODULES = 68
"""As many as the ResNet has."""


def unsampled(directory: Path) -> Figures:
    """What a watch costs on a step that is not looked at, in CPU time of the training thread: what
    others do on the machine is a thousand times as much."""
    with one_thread():
        tap = open_tap(directory)
        figures = {"a module": _unsampled_ns(tap), "a step": _unsampled_step_us(tap)}
        figures["a module, in a process that compiles"] = _unsampled_ns(tap, compiles=True)
    tap.close(60)
    return figures


def _unsampled_ns(tap: Any, *, compiles: bool = False) -> float:
    """Nanoseconds a module with hooks of all kinds, in its forward."""
    modules, calls = 1_000, 300
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


def _unsampled_step_us(tap: Any) -> float:
    """Microseconds of a whole step, the optimizer's hooks among them."""
    watched, alone = TinyJob(), TinyJob()
    tap.step(1)
    # torch's hooks of all optimizers would be the other job's too.
    watch = tap.watch(watched.model, every=1 << 40, optimizer=watched.optimizer)
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(3_000):
        for job in (watched, alone):
            times[job is watched].append(job.step())
    watch.remove()
    return (statistics.median(times[True]) - statistics.median(times[False])) * 1e6


def every_100(directory: Path) -> Figures:
    """All moments at every hundredth step, worked out: the mean of one step that is looked at and
    99 that are not differs by less than two steps do from each other.

    The step that is looked at comes after four that are not: the hooks are put back for it, and
    what it needs is no longer in the processor's caches.
    """
    with one_thread():
        job = Job()
        tap = open_tap(directory)
        with tap.watch(job.model, every=5):
            figures = slower(job, between=4)
        unseen_ms = _unsampled_step_us(tap) / 1e3
    tap.close(60)
    expect_tags(directory, [*_MOMENT_TAGS, "activations/0/rms"], at_least=STEPS)
    step_ms = figures["step without"]
    return {
        name: (figures[name] + 99 * unseen_ms / step_ms * 100) / 100
        for name in ("slower", "more CPU time")
    }


UNITS = {"slower": "%", "more CPU time": "%", "step without": "ms"}

_MOMENT_TAGS = [f"gradients/{WEIGHT}/norm", f"parameters/{WEIGHT}/norm"]
_HISTOGRAM_TAGS = [f"gradients/{WEIGHT}", f"parameters/{WEIGHT}"]


WATCH_CASES = [
    Case(
        "watch-moments",
        "a step with moments of all parameters and gradients",
        {
            "ranktap": watching(_MOMENT_TAGS, every=1, **NONE | MOMENTS),
            "torch": norms_by_hand,
        },
        {"slower": ("below", 5)},
        UNITS,
    ),
    Case(
        "watch-activations",
        "the same, and of all activations",
        {
            "ranktap": watching(
                [*_MOMENT_TAGS, "activations/0/rms"],
                every=1, **NONE | MOMENTS | {"activations": "moments"},
            )
        },
        {},
        UNITS,
    ),
    Case(
        "watch-histograms",
        "a step with histograms of all parameters and gradients",
        {
            "ranktap": watching(_HISTOGRAM_TAGS, every=1, **NONE | HISTOGRAMS),
            "torch": by_hand,
            "wandb": wandb_watch,
        },
        {"slower": ("below", 25)},
        UNITS,
    ),
    Case(
        "watch-feature-maps",
        "a step with feature maps of every convolution",
        {"ranktap": watching(["feature_maps/0"], every=1, **NONE, feature_maps=True)},
        {},
        UNITS,
    ),
    Case(
        "watch-every-100",
        "moments of all activations, parameters and gradients at every hundredth step",
        {"ranktap": every_100},
        {"slower": ("below", 0.1)},
        {"slower": "%", "more CPU time": "%"},
    ),
    Case(
        "watch-unsampled",
        "hooks of all kinds on a step that is not looked at",
        {"ranktap": unsampled},
        {},
        {"a module": "ns", "a module, in a process that compiles": "ns", "a step": "us"},
    ),
]  # fmt: skip
