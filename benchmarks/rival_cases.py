"""The same work by every library that can be had: see `benchmarks.rivals`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, Figures, count_points, open_tap, open_torch
from benchmarks.rivals import DISTRIBUTIONS, elsewhere, library
from benchmarks.rivals.library import SCALARS
from benchmarks.work import Image, Values, many


class Ranktap:
    """ranktap, as a rival is looked at."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tap = open_tap(directory)
        self.scalars = self._tap.scalars
        self.image = self._tap.image
        self.histogram = self._tap.histogram

    def close(self) -> object:
        return self._tap.close(60)

    def count(self, tags: list[str]) -> dict[str, int]:
        return count_points(self._directory, tags)


class Torch:
    """torch's SummaryWriter, whose `add_scalars` opens a writer for each value."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer = open_torch(directory)

    def scalars(self, scalars: dict[str, float], step: int) -> None:
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, step)

    def image(self, tag: str, picture: Image, step: int) -> None:
        self._writer.add_image(tag, picture, step)

    def histogram(self, tag: str, data: Values, step: int) -> None:
        self._writer.add_histogram(tag, data, step)

    def close(self) -> None:
        self._writer.close()

    def count(self, tags: list[str]) -> dict[str, int]:
        return count_points(self._directory, tags)


def _here(opened: Callable[[Path], Any], job: str) -> Callable[[Path], Figures]:
    """A side of this interpreter."""

    def side(directory: Path) -> Figures:
        logger: library.Library = opened(directory)
        match job:
            case "scalars":
                return library.scalars(logger, many(10_000, 20))
            case "images":
                return library.images(logger, many(20, 2))
            case _:
                return library.histograms(logger, many(20, 2))

    return side


def _sides(job: str, but: tuple[str, ...] = ()) -> dict[str, Callable[[Path], Figures]]:
    def each() -> Iterator[tuple[str, Callable[[Path], Figures]]]:
        yield "ranktap", _here(Ranktap, job)
        yield "torch", _here(Torch, job)
        for rival in DISTRIBUTIONS:
            if rival not in but:
                yield rival, elsewhere(rival, job)

    return dict(each())


_SCALARS = {"tight loop": "us", "paced": "us", "tight loop and close": "us"}
_ARRAYS = {"tight loop": "us", "paced": "us", "both and close": "us"}

DICT_CASE = Case(
    "scalars-call",
    f"one scalar of {len(SCALARS)} in a dict, in the training thread",
    {"ranktap": _here(Ranktap, "scalars"), "trackio": elsewhere("trackio", "scalars")},
    {"tight loop": ("times", 1), "paced": ("times", 1)},
    {"tight loop": "us", "paced": "us"},
)
"""Beside the cheapest of the others."""

RIVAL_CASES = [
    Case(
        "rivals-scalars",
        f"one scalar of {len(SCALARS)} a step",
        _sides("scalars"),
        {},
        _SCALARS,
        group="rivals",
    ),
    Case(
        "rivals-images",
        "one image of 3x512x512 uint8",
        _sides("images"),
        {},
        _ARRAYS,
        group="rivals",
    ),
    Case(
        "rivals-histograms",
        "one histogram of 1,000,000 float32",
        _sides("histograms", but=("swanlab", "mlflow")),  # have none
        {},
        _ARRAYS,
        group="rivals",
    ),
]
