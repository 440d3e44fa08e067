"""trackio, on this machine: several values in one call of `log`."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from benchmarks.work import Image, Values


class Library:
    def __init__(self, directory: Path) -> None:
        os.environ["TRACKIO_DIR"] = str(directory)  # read at import
        import trackio

        self._trackio = trackio
        self._run = trackio.init(
            project="run", name="run", embed=False, auto_log_gpu=False, auto_log_cpu=False
        )

    def scalars(self, scalars: dict[str, float], step: int) -> None:
        self._trackio.log(scalars)

    def image(self, tag: str, picture: Image, step: int) -> None:
        self._trackio.log({tag: self._trackio.Image(picture.transpose(1, 2, 0))})

    def histogram(self, tag: str, data: Values, step: int) -> None:
        self._trackio.log({tag: self._trackio.Histogram(data)})

    def close(self) -> None:
        self._trackio.finish()

    def count(self, tags: list[str]) -> dict[str, int]:
        from trackio.sqlite_storage import SQLiteStorage

        found = Counter(
            tag
            for step in SQLiteStorage.get_logs("run", "run")
            for tag in tags
            if step.get(tag) is not None
        )
        return {tag: found[tag] for tag in tags}
