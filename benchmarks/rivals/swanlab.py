"""swanlab, offline: several values in one call of `log`. It has no histograms."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from benchmarks.rivals.leveldb import payloads
from benchmarks.work import Image, Values


class Library:
    def __init__(self, directory: Path) -> None:
        import swanlab

        self._swanlab = swanlab
        self._directory = directory
        swanlab.init(mode="offline", log_dir=str(directory), project="run")

    def scalars(self, scalars: dict[str, float], step: int) -> None:
        self._swanlab.log(scalars)

    def image(self, tag: str, picture: Image, step: int) -> None:
        self._swanlab.log({tag: self._swanlab.Image(picture.transpose(1, 2, 0))})

    def histogram(self, tag: str, data: Values, step: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._swanlab.finish()

    def count(self, tags: list[str]) -> dict[str, int]:
        from swanlab.proto.swanlab.record.v1.record_pb2 import Record

        found: Counter[str] = Counter()
        for path in self._directory.glob("run-*/*.swanlab"):
            for payload in payloads(path.read_bytes()):
                record = Record.FromString(payload)
                found[record.scalar.key] += record.HasField("scalar")
                found[record.media.key] += len(record.media.value.items)
        return {tag: found[tag] for tag in tags}
