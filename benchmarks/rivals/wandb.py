"""wandb, offline: several values in one call of `log`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.rivals.leveldb import payloads
from benchmarks.work import Image, Values, many


def open_run(directory: Path) -> Any:
    import wandb

    quiet = wandb.Settings(
        console="off", silent=True, x_disable_stats=True, disable_git=True, disable_code=True
    )
    return wandb.init(mode="offline", dir=directory, project="run", settings=quiet)


class Library:
    def __init__(self, directory: Path) -> None:
        import wandb

        self._wandb = wandb
        self._directory = directory
        self._run = open_run(directory)

    def scalars(self, scalars: dict[str, float], step: int) -> None:
        self._run.log(scalars)

    def image(self, tag: str, picture: Image, step: int) -> None:
        # As uint8: floats in [0, 1] were drawn black by release 0.31.
        self._run.log({tag: self._wandb.Image(picture.transpose(1, 2, 0))})

    def histogram(self, tag: str, data: Values, step: int) -> None:
        self._run.log({tag: self._wandb.Histogram(data)})

    def close(self) -> None:
        self._run.finish()

    def count(self, tags: list[str]) -> dict[str, int]:
        found: Counter[str] = Counter()
        for names in steps(self._directory):
            found.update(names & set(tags))
        pictures = [path.read_bytes() for path in self._directory.rglob("media/images/*.png")]
        assert all(picture[:8] == b"\x89PNG\r\n\x1a\n" for picture in pictures)
        assert not pictures or max(map(len, pictures)) > 10_000, "the pictures are empty"
        return {tag: found[tag] for tag in tags}


def steps(directory: Path) -> Iterator[set[str]]:
    """The names that have a value, of each step in the file of the run."""
    from wandb.proto import wandb_internal_pb2

    (path,) = directory.glob("wandb/offline-run-*/*.wandb")
    for payload in payloads(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(payload)
        if record.HasField("history"):
            # A picture's fields have a nested key each: its tag, then the field.
            yield {
                item.key or item.nested_key[0]
                for item in record.history.item
                if json.loads(item.value_json) is not None
            }


def watch(directory: Path) -> dict[str, float]:
    """wandb.watch(log="all", log_freq=1): histograms of all parameters and gradients."""
    from benchmarks import tally
    from benchmarks.model import WEIGHT, Job, one_thread, slower

    count = many(5, 1)
    with one_thread():
        job = Job()
        run = open_run(directory)
        run.watch(job.model, log="all", log_freq=1)
        figures = slower(job, lambda step: run.log({"step": step}), steps=count)
        run.finish()
    wanted = {f"{section}/{WEIGHT}" for section in ("gradients", "parameters")}
    found: Counter[str] = Counter()
    for names in steps(directory):
        found.update(names & wanted)
    if min(found[name] for name in wanted) < count:
        raise RuntimeError(f"expected at least {count} histograms of each, found {dict(found)}")
    tally.note(found)
    return figures
