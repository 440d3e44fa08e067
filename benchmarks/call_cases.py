"""What a call costs in the training thread: in a tight loop, and after 50 ms of something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import FIRST, Case, Figures, expect, open_tap, open_torch
from benchmarks.work import image, many, per_call_us, values

PACED, SINGLE = "paced", "paced, one at a time"
"""Of a burst of ten the first is the dear one; where a step logs one picture, all are."""
BURST = 10
COPY = f"{SINGLE}, a copy of it alone"
"""What no snapshot can be below."""


def paced_us(
    call: Callable[[int], object], flush: Callable[[], object], bursts: int, singles: int
) -> Figures:
    """Microseconds of a call after 50 ms: in bursts of ten, and one at a time.

    All of it has to fit into the tap's memory: what is measured is not how a full one drops.
    """
    count = bursts * BURST
    flush()
    paced = per_call_us(call, count, burst=BURST)
    flush()
    return {PACED: paced, SINGLE: per_call_us(lambda i: call(count + i), singles, burst=1)}


def loops_us(call: Callable[[int], object], flush: Callable[[], object], count: int) -> Figures:
    """Microseconds of a call in a tight loop, twice with a flush between.

    The first burst of a process takes its memory from the kernel, page by page; those that
    follow have it already, as all but the first of a training do.
    """
    first = per_call_us(call, count)
    flush()
    tight = per_call_us(lambda i: call(count + i), count)
    return {FIRST: first, "tight loop": tight}


def copy_us(array: np.ndarray[Any, Any], count: int) -> float:
    """Microseconds of a copy into memory that was used before, paced."""
    used = np.ones_like(array)
    return per_call_us(lambda i: np.copyto(used, array), count, burst=1)


class Empty:
    """What no method of Python can be below."""

    def scalar(self, tag: str, value: float, step: int) -> None:
        pass


def scalar_calls_ranktap(directory: Path) -> Figures:
    tap, count, paced = open_tap(directory), many(100_000, 200), many(300, 20)
    empty = Empty()
    figures = {
        "tight loop": per_call_us(lambda i: tap.scalar("loss", 0.5, i), count),
        "paced": per_call_us(lambda i: tap.scalar("paced", 0.5, i), paced, burst=10),
        "paced, a method that does nothing": per_call_us(
            lambda i: empty.scalar("paced", 0.5, i), paced, burst=10
        ),
    }
    tap.close(60)
    expect(directory, {"loss": count, "paced": paced})
    return figures


def scalar_calls_torch(directory: Path) -> Figures:
    writer, count, paced = open_torch(directory), many(20_000, 50), many(300, 20)
    figures = {
        "tight loop": per_call_us(lambda i: writer.add_scalar("loss", 0.5, i), count),
        "paced": per_call_us(lambda i: writer.add_scalar("paced", 0.5, i), paced, burst=10),
    }
    writer.close()
    expect(directory, {"loss": count, "paced": paced})
    return figures


def _array_calls(
    call: Callable[[str, Any, int], object],
    flush: Callable[[], object],
    array: np.ndarray[Any, Any],
    tight: int,
    bursts: int,
    singles: int,
) -> tuple[Figures, dict[str, int]]:
    """What `call(tag, array, step)` costs, and how many points of each tag that has logged."""
    call("warm-up/first", array, 0)  # the first call imports what it needs
    figures = loops_us(lambda i: call("tight", array, i), flush, tight)
    figures |= paced_us(lambda i: call("paced", array, i), flush, bursts, singles)
    return figures, {"tight": 2 * tight, "paced": bursts * BURST + singles}


def image_calls_ranktap(directory: Path) -> Figures:
    tap, picture, singles = open_tap(directory), image(), many(30, 2)
    figures, logged = _array_calls(
        tap.image, lambda: tap.flush(60), picture, many(50, 2), many(20, 1), singles
    )
    figures[COPY] = copy_us(picture, singles)
    tap.close(60)
    expect(directory, logged)
    return figures


def image_calls_torch(directory: Path) -> Figures:
    writer = open_torch(directory)
    figures, logged = _array_calls(
        writer.add_image, writer.flush, image(), many(20, 1), many(2, 1), many(20, 1)
    )
    writer.close()
    expect(directory, logged)
    return figures


def histogram_calls_ranktap(directory: Path) -> Figures:
    tap, data, singles = open_tap(directory), values(), many(30, 2)
    figures, logged = _array_calls(
        tap.histogram, lambda: tap.flush(60), data, many(15, 2), many(4, 1), singles
    )
    figures[COPY] = copy_us(data, singles)
    tap.close(60)
    expect(directory, logged)
    return figures


def histogram_calls_torch(directory: Path) -> Figures:
    writer = open_torch(directory)
    figures, logged = _array_calls(
        writer.add_histogram, writer.flush, values(), many(15, 2), many(4, 1), many(15, 2)
    )
    writer.close()
    expect(directory, logged)
    return figures


CALL_CASES = [
    Case(
        "scalar-call",
        "one scalar, in the training thread",
        {"ranktap": scalar_calls_ranktap, "torch": scalar_calls_torch},
        {"tight loop": ("times", 100), "paced": ("times", 100)},
        {"tight loop": "us", "paced": "us", "paced, a method that does nothing": "us"},
    ),
    Case(
        "image-call",
        "`image` of 3x512x512 uint8, in the training thread",
        {"ranktap": image_calls_ranktap, "torch": image_calls_torch},
        dict.fromkeys(("tight loop", PACED, SINGLE), ("times", 200)),
        dict.fromkeys((FIRST, "tight loop", PACED, SINGLE, COPY), "us"),
    ),
    Case(
        "histogram-call",
        "`histogram` of 1,000,000 float32, in the training thread",
        {"ranktap": histogram_calls_ranktap, "torch": histogram_calls_torch},
        dict.fromkeys(("tight loop", PACED, SINGLE), ("times", 30)),
        dict.fromkeys((FIRST, "tight loop", PACED, SINGLE, COPY), "us"),
    ),
]
