"""Aim: several values in one call of `track`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.work import Image, Values


class Library:
    def __init__(self, directory: Path) -> None:
        import aim

        self._aim = aim
        self._repo = aim.Repo.from_path(str(directory), init=True)
        self._run = self._open()

    def _open(self, name: str | None = None) -> Any:
        return self._aim.Run(
            name, repo=self._repo, system_tracking_interval=None, capture_terminal_logs=False
        )

    def scalars(self, scalars: dict[str, float], step: int) -> None:
        self._run.track(scalars, step=step)

    def image(self, tag: str, picture: Image, step: int) -> None:
        self._run.track(self._aim.Image(picture.transpose(1, 2, 0)), name=tag, step=step)

    def histogram(self, tag: str, data: Values, step: int) -> None:
        self._run.track(self._aim.Distribution(data), name=tag, step=step)

    def close(self) -> None:
        self._run.close()

    def count(self, tags: list[str]) -> dict[str, int]:
        from aim.storage.context import Context

        # A read-only run has only what Aim has put into its index by then.
        run = self._open(self._run.hash)
        everywhere = Context({})
        found = {}
        for tag in tags:
            sequences = (
                run.get_metric(tag, everywhere),
                run.get_image_sequence(tag, everywhere),
                run.get_distribution_sequence(tag, everywhere),
            )
            found[tag] = max(
                len(sequence.values.sparse_list()[1]) if sequence else 0 for sequence in sequences
            )
        run.close()
        return found
