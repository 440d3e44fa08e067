"""Taps whose records stay where they are, and what the daemon would make of them."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from ranktap import Tap
from ranktap.keys import Address
from ranktap_wire import kinds
from ranktap_wire.messages import Hello
from ranktap_wire.records import Blob, Kind
from ranktapd.render.histogram import HistogramStats
from ranktapd.tensor_statistics import TensorStatistics, statistics_of

Make = Callable[..., Tap]
"""Makes a tap, of a rank of a world, with so much memory."""


@dataclass
class Logged:
    """What one rank has logged, taken out of its outbox."""

    scalars: dict[str, dict[int, float]] = field(default_factory=dict)
    """Tag to step to value, of moments."""
    histograms: dict[str, dict[int, HistogramStats]] = field(default_factory=dict)
    pictures: dict[str, dict[int, Blob]] = field(default_factory=dict)
    tensors: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    blobs: list[Blob] = field(default_factory=list)

    @property
    def sections(self) -> set[str]:
        return {tag.partition("/")[0] for tag in (*self.scalars, *self.histograms, *self.pictures)}

    def steps(self, tag: str) -> list[int]:
        return list(self.scalars.get(tag, {}))

    def value(self, tag: str) -> float:
        """The one value of a tag."""
        (value,) = self.scalars[tag].values()
        return value

    def add(self, blob: Blob) -> None:
        # The daemon's rules: nothing that it would refuse leaves a client.
        blob.parameters = {name: _plain(each) for name, each in blob.parameters.items()}
        kinds.check_blob(blob)
        self.blobs.append(blob)
        if blob.kind is Kind.MOMENTS:
            self.add_statistics(blob.step, statistics_of(blob))
        elif blob.kind is Kind.IMAGE_GRID:
            self.pictures.setdefault(blob.tag, {})[blob.step] = blob
        elif blob.kind is Kind.HISTOGRAM:
            self.tensors.setdefault(blob.tag, {})[blob.step] = blob.array()

    def add_statistics(self, step: int, statistics: TensorStatistics) -> None:
        values, written = statistics.scalars()
        for row, tag in enumerate(statistics.tags):
            for column, name in enumerate(statistics.fields):
                if written[row, column]:
                    series = self.scalars.setdefault(f"{tag}/{name}", {})
                    assert step not in series, f"{tag}/{name} twice at step {step}"
                    series[step] = float(values[row, column])
        for tag, stats in statistics.histograms():
            self.histograms.setdefault(tag, {})[step] = stats


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def logged(tap: Tap) -> Logged:
    """All that the tap has logged so far and nobody has taken."""
    found = Logged()
    while (sealed := tap._outbox.take()) is not None:
        for blob in sealed.batch.blobs:
            found.add(blob)
    return found


@contextmanager
def silent_taps() -> Iterator[Make]:
    """Makes taps whose sender looks for a daemon until all is over, and sends nothing."""
    made: list[Tap] = []
    is_over = threading.Event()

    def locate() -> Address:
        is_over.wait()
        raise OSError("no daemon")

    def make(rank: int = 0, world_size: int = 1, memory_bytes: int = 256 << 20) -> Tap:
        session = secrets.token_bytes(16)
        hello = Hello(session, "run", rank, world_size, "host", os.getpid(), 1, time.time())
        made.append(Tap(hello, locate, memory_bytes))
        return made[-1]

    yield make
    is_over.set()
    for tap in made:
        tap.close(timeout=0)
