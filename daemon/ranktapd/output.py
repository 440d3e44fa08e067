"""What a group of the journal gives to write: records, by the event file they go to, and files.

The run itself has an event file, and so has each of its sub-runs; the run's is that of
sub-run "". A group's records end with a checkpoint in every file that has any, and in the
run's own whenever there is anything at all: so that one checkpoint says of all files that
everything up to it is there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import ParamSpec

from ranktapd import event_file

logger = logging.getLogger("ranktapd")

P = ParamSpec("P")


@dataclass(slots=True)
class Drawing:
    """Events that are being drawn; they have their place among the others already."""

    name: str
    step: int
    framed: Future[bytes]
    nbytes: int
    """Of what they are drawn from, as it was logged."""

    @property
    def is_done(self) -> bool:
        return self.framed.done()

    def records(self) -> bytes:
        """The events, framed, when they are drawn; nothing when they cannot be."""
        try:
            return self.framed.result()
        except ValueError as error:
            # The rules of the wire let nothing through that cannot be drawn; where they are
            # wrong, one picture is missing, not the batch that it came in.
            logger.warning(
                "%(tag)r cannot be drawn at step %(step)d: %(error)s",
                {"tag": self.name, "step": self.step, "error": error},
            )
            return b""


def framed(draw: Callable[P, list[bytes]], *arguments: P.args, **named: P.kwargs) -> bytes:
    """The events that `draw` makes, framed: in the thread that draws them."""
    return b"".join(map(event_file.frame, draw(*arguments, **named)))


Record = bytes | memoryview | Drawing


@dataclass(frozen=True, slots=True)
class File:
    """A file that stands beside the events of a sub-run, written whole."""

    sub_run: str
    path: str
    """Below the sub-run's directory, with '/' between."""
    pieces: Callable[[], Iterable[bytes]]
    """Its content, made when it is written: a table of numbers takes five times as much as
    they do."""
    nbytes: int
    """What `pieces` holds until then."""


class Output:
    """What one group gives to write. Its pictures may still be being drawn, so that the next
    group can be read meanwhile."""

    def __init__(self, position: str, records: dict[str, list[Record]], files: list[File]) -> None:
        self.position = position
        """In the journal, behind the group."""
        self.files = files
        self._records = records
        self.nbytes = sum(
            record.nbytes if isinstance(record, Drawing) else len(record)
            for each in records.values()
            for record in each
        ) + sum(file.nbytes for file in files)
        """What it takes until it is written, about."""

    @property
    def sub_runs(self) -> list[str]:
        """Those that get records, in the order of their first."""
        return [sub_run for sub_run in self._records if sub_run]

    @property
    def is_drawn(self) -> bool:
        """Whether nothing of it is still being drawn."""
        return all(
            record.is_done
            for records in self._records.values()
            for record in records
            if isinstance(record, Drawing)
        )

    def pieces(self, sub_run: str = "") -> list[bytes | memoryview]:
        """The records of one event file, in order, when all are drawn; empty if there are none.
        They are not put together: pictures are large, and are written from where they lie."""
        return [
            record.records() if isinstance(record, Drawing) else record
            for record in self._records.get(sub_run, [])
        ]

    def join(self, sub_run: str = "") -> bytes:
        """`pieces`, put together."""
        return b"".join(self.pieces(sub_run))


class Group:
    """Collects the output of the group that is being folded."""

    def __init__(self) -> None:
        self._records: dict[str, list[Record]] = {}
        self._files: dict[tuple[str, str], File] = {}

    def __bool__(self) -> bool:
        return bool(self._records or self._files)

    def add(self, sub_run: str, record: Record) -> None:
        """One or more framed events for a sub-run's file."""
        self._records.setdefault(sub_run, []).append(record)

    def add_file(self, file: File) -> None:
        """A file; it takes the place of one of the same path."""
        self._files.pop((file.sub_run, file.path), None)
        self._files[file.sub_run, file.path] = file

    def close(self, wall_time: float, position: str, first: bytes = b"") -> Output:
        """What was collected, with its checkpoints; `first` stands before all else in the run's
        own file. Nothing gives nothing."""
        records, self._records = self._records, {}
        files, self._files = [*self._files.values()], {}
        if records or files:
            own = records.setdefault("", [])
            if first:
                own.insert(0, first)
            for each in records.values():
                each.append(event_file.checkpoint_record(wall_time, position))
        return Output(position, records, files)
