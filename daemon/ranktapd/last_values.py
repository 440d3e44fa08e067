"""The last value of each scalar tag that a run has logged: what one looks at first.

It is no part of what is written, nor of the fold's state: a worker that is started again knows
what it has folded since. Pure.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ranktap_wire.records import split_name
from ranktapd.presence import INT64_MIN

SHOWN: Final = 32
"""Tags that are told of, those that say "loss" first: 2 KB a run and second."""


class LastValue(NamedTuple):
    """A point of a tag."""

    tag: str
    """As TensorBoard shows it: behind its sub-run, where it has one."""
    step: int
    value: float


class LastValues:
    """By the tags' numbers. Not thread safe."""

    def __init__(self) -> None:
        self._steps = np.full(64, INT64_MIN)
        self._values = np.zeros(64)
        self._chosen: list[int] = []
        self._known = 0

    def take(
        self, ids: NDArray[Any], steps: NDArray[np.int64], values: NDArray[np.float64]
    ) -> None:
        """Take points, the later ones last; no number is negative."""
        most = int(ids.max()) + 1
        if most > len(self._steps):
            more = max(most, 2 * len(self._steps)) - len(self._steps)
            self._steps = np.append(self._steps, np.full(more, INT64_MIN))
            self._values = np.append(self._values, np.zeros(more))
        # Of a number that is there twice the last one stays.
        self._steps[ids] = steps
        self._values[ids] = values

    def latest(self, names: list[str]) -> list[LastValue]:
        """The last values of at most SHOWN tags; `names` are the run's, by number.

        Tags that say "loss" come first, each in the order in which they were first logged.
        """
        known = int(np.count_nonzero(self._steps != INT64_MIN))
        if known != self._known:
            self._known = known
            numbers = np.flatnonzero(self._steps != INT64_MIN).tolist()
            self._chosen = sorted(numbers, key=lambda each: _rank_of(names[each]))[:SHOWN]
        return [
            LastValue(_shown(names[each]), int(self._steps[each]), float(self._values[each]))
            for each in self._chosen
        ]


def _rank_of(name: str) -> int:
    """What is told of first: a loss of all ranks, a loss, what else there is."""
    sub_run, tag = split_name(name)
    if "loss" not in f"{sub_run}/{tag}".casefold():
        return 2
    return int(tag.startswith("ranks/"))


def _shown(name: str) -> str:
    sub_run, tag = split_name(name)
    return f"{sub_run}/{tag}" if sub_run else tag
