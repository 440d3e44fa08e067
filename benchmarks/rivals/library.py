"""What is asked of a library, and how it is timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from benchmarks import tally
from benchmarks.work import Image, Values, image, many, per_call_us, timed, values

Figures = dict[str, float]

SCALARS = {f"value{number}": 0.5 for number in range(10)}
"""Of one step: what a training loop has at hand at a time."""


class Library(Protocol):
    """A library that has opened a run in a directory."""

    def scalars(self, scalars: dict[str, float], step: int) -> object: ...

    def image(self, tag: str, picture: Image, step: int) -> object:
        """`picture` is uint8, channels first."""

    def histogram(self, tag: str, data: Values, step: int) -> object: ...

    def close(self) -> object:
        """Return when everything is written."""

    def count(self, tags: list[str]) -> dict[str, int]:
        """How many points of each of these tags are there now."""


def scalars(library: Library, steps: int) -> Figures:
    """Ten scalars a step, in one call where the library has one for several."""
    paced = many(300, 20)

    def log(prefix: str) -> Callable[[int], object]:
        named = {prefix + tag: value for tag, value in SCALARS.items()}
        return lambda step: library.scalars(named, step)

    log("warm-up/")(0)  # the first call imports what it needs
    tight_us = per_call_us(log("tight/"), steps)
    paced_us = per_call_us(log("paced/"), paced, burst=10)
    with timed() as took:
        library.close()
    logged = {f"tight/{tag}": steps for tag in SCALARS} | {f"paced/{tag}": paced for tag in SCALARS}
    _read_back(library, logged)
    return {
        "tight loop": tight_us / len(SCALARS),
        "paced": paced_us / len(SCALARS),
        "tight loop and close": (tight_us * steps / 1e6 + took.seconds)
        / (steps * len(SCALARS))
        * 1e6,
    }


def images(library: Library, count: int) -> Figures:
    """Pictures of 3x512x512 uint8."""
    return _arrays(library.image, image(), count, library)


def histograms(library: Library, count: int) -> Figures:
    """Histograms of a million float32."""
    return _arrays(library.histogram, values(), count, library)


def _read_back(library: Library, logged: dict[str, int]) -> None:
    """Raise unless all of it comes to be there: processes that some leave behind write on."""
    deadline = time.monotonic() + 60
    while (found := library.count([*logged])) != logged and time.monotonic() < deadline:
        time.sleep(0.2)
    tally.read_back(logged, found)


def _arrays(
    call: Callable[[str, Any, int], object],
    data: Image | Values,
    count: int,
    library: Library,
) -> Figures:
    call("warm-up/first", data, 0)
    # Steps go on from one figure to the next: some libraries have one step for all tags.
    tight_us = per_call_us(lambda i: call("tight", data, i), count)
    paced_us = per_call_us(lambda i: call("paced", data, count + i), count, burst=1)
    with timed() as took:
        library.close()
    logged = {"tight": count, "paced": count}
    _read_back(library, logged)
    both = tight_us + paced_us + took.seconds * 1e6 / count
    return {"tight loop": tight_us, "paced": paced_us, "both and close": both / 2}
