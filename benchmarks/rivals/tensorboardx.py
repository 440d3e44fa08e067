"""tensorboardX: its SummaryWriter has no call for several scalars in one run's directory."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path

from benchmarks.work import Image, Values


class Library:
    def __init__(self, directory: Path) -> None:
        from tensorboardX import SummaryWriter

        self._directory = directory
        self._writer = SummaryWriter(str(directory))

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
        from tensorboardX.proto.event_pb2 import Event

        found: Counter[str] = Counter()
        for path in self._directory.glob("*tfevents*"):
            data, at = path.read_bytes(), 0
            while at < len(data):
                (length,) = struct.unpack_from("<Q", data, at)
                event = Event.FromString(data[at + 12 : at + 12 + length])
                found.update(value.tag for value in event.summary.value)
                at += 16 + length
        return {tag: found[tag] for tag in tags}
