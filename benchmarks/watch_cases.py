"""What watching a model costs a training step: a ResNet-18-size model on one CPU thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import tally
from benchmarks.cases import Case, Figures, count_points, open_tap, open_torch
from benchmarks.rivals import elsewhere
from benchmarks.work import many


def expect_tags(directory: Path, tags: list[str], *, at_least: int) -> None:
    """Raise unless TensorBoard's reader finds, in time, at least so many points of each tag."""
    deadline = time.monotonic() + 60
    while True:
        found = count_points(directory, tags)
        if all(count >= at_least for count in found.values()):
            return tally.note(found)
        if time.monotonic() > deadline:
            raise RuntimeError(f"expected at least {at_least} points of each, found {found}")
        time.sleep(0.2)


def watching(tags: list[str], **named: Any) -> Callable[[Path], Figures]:
    """A side that watches so, and must find these tags in the event file."""

    def side(directory: Path) -> Figures:
        from benchmarks.model import Job, one_thread, slower

        steps = many(STEPS, 1)
        with one_thread():
            job = Job()
            tap = open_tap(directory)
            tap.watch(job.model, **named)
            figures = slower(job, steps=steps)
        tap.close(60)
        expect_tags(directory, tags, at_least=1 + steps)
        return figures

    return side


STEPS = 11

NONE: dict[str, Any] = dict.fromkeys(("activations", "gradients", "parameters"), ())
MOMENTS = {"gradients": "moments", "parameters": "moments"}
HISTOGRAMS = {"gradients": "histogram", "parameters": "histogram"}
WEIGHT = "0.weight"


def by_hand(directory: Path) -> Figures:
    """torch's SummaryWriter: histograms of all parameters and gradients, each step."""
    from benchmarks.model import Job, one_thread, slower

    steps = many(5, 1)
    with one_thread():
        job = Job()
        writer = open_torch(directory)

        def log(step: int) -> None:
            for name, parameter in job.model.named_parameters():
                writer.add_histogram(f"parameters/{name}", parameter, step)
                writer.add_histogram(f"gradients/{name}", parameter.grad, step)

        figures = slower(job, log, steps=steps)
    writer.close()
    expect_tags(directory, [f"gradients/{WEIGHT}", f"parameters/{WEIGHT}"], at_least=steps)
    return figures


def norms_by_hand(directory: Path) -> Figures:
    """torch's SummaryWriter: norm, mean, std and largest of each, as `.item()` reads them."""
    from benchmarks.model import Job, one_thread, slower

    steps = many(STEPS, 1)
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

        figures = slower(job, log, steps=steps)
    writer.close()
    expect_tags(directory, [f"gradients/{WEIGHT}/norm"], at_least=steps)
    return figures


def every_100(directory: Path) -> Figures:
    """All moments at every hundredth step, worked out: the mean of one step that is looked at and
    99 that are not differs by less than two steps do from each other.

    The step that is looked at comes after four that are not: the hooks are put back for it, and
    what it needs is no longer in the processor's caches.
    """
    from benchmarks.model import Job, one_thread, slower
    from benchmarks.unsampled import step_us

    steps = many(STEPS, 1) // 2 + 1
    with one_thread():
        job = Job()
        tap = open_tap(directory)
        with tap.watch(job.model, every=5):
            figures = slower(job, steps=steps, between=4)
        unseen_ms = step_us(tap) / 1e3
    tap.close(60)
    expect_tags(directory, [*_MOMENT_TAGS, "activations/0/rms"], at_least=steps)
    step_ms = figures["step without"]
    return {
        name: (figures[name] + 99 * unseen_ms / step_ms * 100) / 100
        for name in ("slower", "more CPU time")
    }


def unsampled(directory: Path) -> Figures:
    """What a watch costs on a step that is not looked at."""
    from benchmarks.unsampled import figures

    return figures(directory)


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
        group="hooks",
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
        group="hooks",
    ),
    Case(
        "watch-histograms",
        "a step with histograms of all parameters and gradients",
        {
            "ranktap": watching(_HISTOGRAM_TAGS, every=1, **NONE | HISTOGRAMS),
            "torch": by_hand,
            "wandb": elsewhere("wandb", "watch"),
        },
        {"slower": ("below", 25)},
        UNITS,
        group="hooks",
    ),
    Case(
        "watch-feature-maps",
        "a step with feature maps of every convolution",
        {"ranktap": watching(["feature_maps/0"], every=1, **NONE, feature_maps=True)},
        {},
        UNITS,
        group="hooks",
    ),
    Case(
        "watch-every-100",
        "moments of all activations, parameters and gradients at every hundredth step",
        {"ranktap": every_100},
        {"slower": ("below", 0.1)},
        {"slower": "%", "more CPU time": "%"},
        group="hooks",
    ),
    Case(
        "watch-unsampled",
        "hooks of all kinds on a step that is not looked at",
        {"ranktap": unsampled},
        {},
        {"a module": "ns", "a module, in a process that compiles": "ns", "a step": "us"},
        group="hooks",
    ),
]  # fmt: skip
