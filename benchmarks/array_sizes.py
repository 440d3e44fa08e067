"""How pictures grow with their pixels and what is on them, and histograms with their values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import work
from benchmarks.cases import (
    Case,
    Figures,
    expect,
    open_tap,
    open_torch,
    wait_for_end,
)
from benchmarks.work import Image, Values, many, per_call_us, timed

CONTENTS: dict[str, Callable[[int], Image]] = {
    "smooth": work.smooth,
    "photograph-like": work.image,
    "feature-map-like": work.feature_maps,
    "noise": work.noisy,
}
EDGES = (64, 128, 256, 512, 1024)
PICTURES = {
    f"{content}, {edge} x {edge}": (content, edge) for content in CONTENTS for edge in EDGES
}

COUNTS = {f"{10**power:,} values": 10**power for power in range(3, 8)}


def _arrays() -> dict[str, Image]:
    return {
        name: CONTENTS[content](many(edge, edge // 8)) for name, (content, edge) in PICTURES.items()
    }


def _values() -> dict[str, Values]:
    return {name: work.values(many(count, count // 100)) for name, count in COUNTS.items()}


def _times(nbytes: int, budget: int, least: int, most: int) -> int:
    """How often something of that size is logged, so that all of it is about `budget` bytes."""
    return many(min(most, max(least, budget // nbytes)), 1)


def _warm(log: Callable[..., None], arrays: Callable[[], dict[str, Any]]) -> Callable[..., None]:
    """The first call imports what it needs."""
    log("warm-up/first", next(iter(arrays().values())), 0)
    return log


# -- one side each ---------------------------------------------------------------------------


def calls(kind: str, arrays: Callable[[], dict[str, Any]]) -> Callable[[Path], Figures]:
    """ranktap: microseconds in the training thread, paced."""

    def side(directory: Path) -> Figures:
        tap = open_tap(directory)
        figures, logged = {}, {}
        log = _warm(getattr(tap, kind), arrays)
        for name, array in arrays().items():
            count = logged[name] = _times(array.nbytes, 50 << 20, 3, 20)
            figures[name] = per_call_us(
                lambda i, name=name, array=array: log(name, array, i), count, burst=1
            )
        tap.close(60)
        expect(directory, logged)
        return figures

    return side


def calls_torch(kind: str, arrays: Callable[[], dict[str, Any]]) -> Callable[[Path], Figures]:
    """torch: the same."""

    def side(directory: Path) -> Figures:
        writer = open_torch(directory)
        figures, logged = {}, {}
        log = _warm(getattr(writer, kind), arrays)
        for name, array in arrays().items():
            count = logged[name] = _times(array.nbytes, 3 << 20, 2, 20)
            figures[name] = per_call_us(
                lambda i, name=name, array=array: log(name, array, i), count, burst=1
            )
        writer.close()
        expect(directory, logged)
        return figures

    return side


def through(kind: str, arrays: Callable[[], dict[str, Any]]) -> Callable[[Path], Figures]:
    """ranktap: how many a second, from the first call until the last is readable."""

    def side(directory: Path) -> Figures:
        tap = open_tap(directory)
        figures, logged = {}, {}
        log = _warm(getattr(tap, kind), arrays)
        for number, (name, array) in enumerate(arrays().items()):
            count = logged[name] = _times(array.nbytes, 60 << 20, 4, 300)
            with timed() as took:
                for step in range(count):
                    log(name, array, step)
                tap.image(f"end-of-{number}.", np.zeros((1, 1, 1)), 0)
                wait_for_end(directory, f"end-of-{number}.")
            figures[name] = count / took.seconds
        tap.close(60)
        expect(directory, logged)
        return figures

    return side


def through_torch(kind: str, arrays: Callable[[], dict[str, Any]]) -> Callable[[Path], Figures]:
    """torch: the same."""

    def side(directory: Path) -> Figures:
        writer = open_torch(directory)
        figures, logged = {}, {}
        log = _warm(getattr(writer, kind), arrays)
        for name, array in arrays().items():
            count = logged[name] = _times(array.nbytes, 6 << 20, 2, 30)
            with timed() as took:
                for step in range(count):
                    log(name, array, step)
                writer.flush()
            figures[name] = count / took.seconds
        writer.close()
        expect(directory, logged)
        return figures

    return side


# -- more values than a record has room for ----------------------------------------------------

HUGE = 100_000_000


def huge_ranktap(directory: Path) -> Figures:
    """A record has at most 64 MiB, 16 million float32. `watch` counts where the tensor is and
    sends what it has counted: a parameter of a hundred million, at an optimizer's step."""
    import torch

    parameter = torch.nn.Parameter(torch.from_numpy(work.values(many(HUGE, 1_000))))
    model = torch.nn.Module()
    model.huge = parameter
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    tap, count = open_tap(directory), many(3, 1)
    tap.watch(model, every=1, activations=(), gradients=(), parameters="histogram",
              optimizer=optimizer)  # fmt: skip
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    optimizer.step()
    milliseconds = per_call_us(lambda _: optimizer.step(), count) / 1e3
    torch.set_num_threads(before)
    tap.close(60)
    expect(directory, {"parameters/huge": count + 1})
    return {"a call": milliseconds}


def huge_torch(directory: Path) -> Figures:
    writer, data = open_torch(directory), work.values(many(HUGE, 1_000))
    milliseconds = per_call_us(lambda i: writer.add_histogram("huge", data, i), 1) / 1e3
    writer.close()
    expect(directory, {"huge": 1})
    return {"a call": milliseconds}


ARRAY_CASES = [
    Case(
        "image-sizes-call",
        "`image` of uint8, in the training thread, paced",
        {"ranktap": calls("image", _arrays), "torch": calls_torch("add_image", _arrays)},
        {},
        dict.fromkeys(PICTURES, "us"),
        group="sizes",
    ),
    Case(
        "image-sizes",
        "images until readable in the event file",
        {"ranktap": through("image", _arrays), "torch": through_torch("add_image", _arrays)},
        {},
        dict.fromkeys(PICTURES, "1/s"),
        higher_is_better=True,
        group="sizes",
    ),
    Case(
        "histogram-sizes-call",
        "`histogram` of float32, in the training thread, paced",
        {"ranktap": calls("histogram", _values), "torch": calls_torch("add_histogram", _values)},
        {},
        dict.fromkeys(COUNTS, "us"),
        group="sizes",
    ),
    Case(
        "histogram-sizes",
        "histograms until readable in the event file",
        {
            "ranktap": through("histogram", _values),
            "torch": through_torch("add_histogram", _values),
        },
        {},
        dict.fromkeys(COUNTS, "1/s"),
        higher_is_better=True,
        group="sizes",
    ),
    Case(
        "histogram-huge",
        f"a histogram of {HUGE:,} values by `watch`, in the training thread",
        {"ranktap": huge_ranktap, "torch": huge_torch},
        {},
        {"a call": "ms"},
        group="sizes",
    ),
]
