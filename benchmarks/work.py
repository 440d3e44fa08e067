"""What every side of a case does alike: how much of it, on which data, and how it is timed.

Nothing here knows ranktap: the rivals' sides run with an interpreter that need not have it.
"""

from __future__ import annotations

import cProfile
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

PAUSE_S = 0.05
"""Between two bursts: a training step's worth of other work, after which caches are cold."""

Image = np.ndarray[Any, np.dtype[np.uint8]]
Values = np.ndarray[Any, np.dtype[np.float32]]

_smoke = False
_profile: cProfile.Profile | None = None
_before_first: Callable[[], None] | None = None


def begin(
    *,
    smoke: bool,
    profile: cProfile.Profile | None = None,
    before_first: Callable[[], None] | None = None,
) -> None:
    """Say, once in a process, whether cases are only tried out, and what looks on; the last is
    called when the first is about to be timed."""
    global _smoke, _profile, _before_first
    _smoke, _profile, _before_first = smoke, profile, before_first


def many(full: int, smoke: int) -> int:
    """`full`, or `smoke` where it is only to be seen that a case does its work."""
    return smoke if _smoke else full


class Took:
    """Seconds, once the clock has stopped."""

    seconds = 0.0
    cpu_s = 0.0
    """Of this process, all its threads."""


@contextmanager
def timed() -> Iterator[Took]:
    """Time what is inside. What a case prepares and reads back stays outside, and out of its
    profile too."""
    took = Took()
    _look_on()
    gc.collect()
    if _profile is not None:
        _profile.enable()
    started, started_cpu = time.perf_counter(), time.process_time()
    try:
        yield took
    finally:
        took.seconds = time.perf_counter() - started
        took.cpu_s = time.process_time() - started_cpu
        if _profile is not None:
            _profile.disable()


def _look_on() -> None:
    global _before_first
    if _before_first is not None:
        _before_first()
        _before_first = None


def per_call_us(call: Callable[[int], object], count: int, *, burst: int = 0) -> float:
    """Microseconds a call takes in the calling thread.

    In a tight loop, which shows what a full queue does to the caller; with `burst`, so many
    calls and then 50 ms of nothing, as a training step would leave: cold caches, empty queues.
    """
    if not burst:
        with timed() as took:
            for i in range(count):
                call(i)
        return took.seconds / count * 1e6
    _look_on()
    gc.collect()
    spent = 0.0
    for first in range(0, count, burst):
        if _profile is not None:
            _profile.enable()
        started = time.perf_counter()
        for i in range(first, min(first + burst, count)):
            call(i)
        spent += time.perf_counter() - started
        if _profile is not None:
            _profile.disable()
        time.sleep(0 if _smoke else PAUSE_S)
    return spent / count * 1e6


def image(edge: int = 512) -> Image:
    """3 x edge x edge, what a photograph is like: smooth shapes and some noise."""
    y, x = np.mgrid[0:edge, 0:edge] / edge
    waves = [np.sin(8 * x + phase) * np.cos(6 * y - phase) for phase in (0.0, 1.0, 2.0)]
    noise = np.random.default_rng(0).normal(0, 0.02, (3, edge, edge))
    return np.clip((np.stack(waves) * 0.5 + 0.5 + noise) * 255, 0, 255).astype(np.uint8)


def smooth(edge: int) -> Image:
    """3 x edge x edge without noise: what deflate makes little of."""
    y, x = np.mgrid[0:edge, 0:edge] / edge
    waves = [np.sin(8 * x + phase) * np.cos(6 * y - phase) for phase in (0.0, 1.0, 2.0)]
    return ((np.stack(waves) * 0.5 + 0.5) * 255).astype(np.uint8)


def noisy(edge: int) -> Image:
    """3 x edge x edge of chance: what deflate can make nothing of."""
    return np.random.default_rng(0).integers(0, 256, (3, edge, edge), np.uint8)


def feature_maps(edge: int) -> Image:
    """3 x edge x edge like maps behind a ReLU, in tiles of 16: half of it zero, blobs elsewhere."""
    rng = np.random.default_rng(0)
    coarse = np.maximum(rng.normal(0, 80, (3, edge // 4, edge // 4)), 0)
    maps = coarse.repeat(4, axis=1).repeat(4, axis=2) + rng.normal(0, 4, (3, edge, edge))
    return np.clip(np.where(maps > 16, maps, 0), 0, 255).astype(np.uint8)


def values(count: int = 1_000_000) -> Values:
    return np.random.default_rng(0).normal(0, 1, count).astype(np.float32)
