"""Where a run stands, and how a worker gets there: starting up and recovering are the same.

    event file   ... | records | checkpoint P | perhaps part of the next group
    journal      [deleted] | segment | segment | ...
    snapshots    the fold's state at the end of a group, S <= P

Restore the last snapshot that is not behind P, fold the journal from S to P without
writing, go on from there. What stands behind P is written again, with the same bytes.

A snapshot is taken when the fold has left a segment behind; then that segment is deleted.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Set
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import msgpack

from ranktap_wire.journal import (
    START,
    Damage,
    JournalReader,
    Position,
    segment_path,
    segments,
    sync_directory,
)
from ranktapd import event_file
from ranktapd.entries import RunBegins, read_entry
from ranktapd.fold import Fold
from ranktapd.runs import RunPlace
from ranktapd.summary_writer import FileStart, SummaryWriter

logger = logging.getLogger("ranktapd")

P = ParamSpec("P")
T = TypeVar("T")


class RecoveryError(Exception):
    """A run cannot be continued; the message says what is missing."""


@dataclass(slots=True)
class Standing:
    """A run, ready to be continued behind its last checkpoint."""

    fold: Fold
    reader: JournalReader
    writer: SummaryWriter


def recover(place: RunPlace, last: int, skipped: Set[int], executor: Executor) -> Standing:
    """Where the run stands. `last` is the journal's last entry that is known to be on disk,
    `skipped` the entries that were set aside, `executor` what pictures are drawn by.

    Raises:
        RecoveryError: parts of the journal that are needed are gone.
        JournalError, OSError: files cannot be read or written.
    """
    snapshots = sorted(_snapshots(place))
    begins = _begins(place, snapshots, last)
    writer = _open_writer(place, begins)
    found = writer.checkpoint
    reached = Position.parse(found) if found is not None else None
    if reached is not None and reached.sequence > last:
        raise RecoveryError(
            f"{writer.path} holds everything up to entry {reached.sequence} of a journal that "
            f"ends at entry {last}: move one of them away"
        )
    fold, position = _restore(place, snapshots, reached, _Nobody())
    reader = JournalReader(place.journal, position)
    if reached is not None:
        replay(fold, reader, reached, skipped)
    fold.executor = executor
    return Standing(fold, reader, writer)


def replay(fold: Fold, reader: JournalReader, upto: Position, skipped: Set[int]) -> None:
    """Fold what is in the event file already, without writing it."""
    in_group = False
    for entry in reader.entries(upto.sequence):
        if isinstance(entry, Damage):
            continue
        in_group = True
        if entry.sequence not in skipped:
            fold.apply(entry)
        if entry.ends_group:
            fold.close_group(str(entry.after))
            in_group = False
    if in_group:
        # Its end has been damaged since it was written.
        fold.close_group(str(upto))


class _Nobody(Executor):
    """Draws no picture: those that are in the event file are not needed again."""

    def submit(self, fn: Callable[P, T], /, *arguments: P.args, **named: P.kwargs) -> Future[T]:
        return Future()


def save_snapshot(place: RunPlace, fold: Fold, position: Position) -> None:
    """Keep the fold's state, and delete the segments and snapshots that it makes needless.

    The event file must be on disk up to there.

    Raises:
        OSError: it cannot be written; nothing was deleted.
    """
    path = _snapshot_directory(place) / f"{position.sequence:020d}.msgpack"
    path.parent.mkdir(exist_ok=True)
    _replace_file(path, msgpack.packb({"position": str(position), "fold": fold.state()}))
    for older in _snapshots(place):
        if older < position.sequence:
            (_snapshot_directory(place) / f"{older:020d}.msgpack").unlink()
    for segment in segments(place.journal):
        if segment < position.segment:
            segment_path(place.journal, segment).unlink()


def _restore(
    place: RunPlace, snapshots: list[int], reached: Position | None, executor: Executor
) -> tuple[Fold, Position]:
    usable = [number for number in snapshots if reached is not None and number <= reached.sequence]
    first_segment = min(segments(place.journal), default=1)
    if not usable and first_segment == 1:
        return Fold(executor), START
    if not usable:
        # The event file was deleted, and with it what the snapshot had let go of.
        usable = snapshots[:1]
    if not usable:
        raise RecoveryError(
            f"{place.journal} begins at entry {first_segment} and there is no snapshot of before"
        )
    path = _snapshot_directory(place) / f"{usable[-1]:020d}.msgpack"
    saved = _read_snapshot(path)
    return Fold.restore(saved["fold"], executor), Position.parse(saved["position"])


def _begins(place: RunPlace, snapshots: list[int], last: int) -> RunBegins:
    if snapshots:
        saved = _read_snapshot(_snapshot_directory(place) / f"{snapshots[-1]:020d}.msgpack")
        return RunBegins(*saved["fold"]["begins"])
    reader = JournalReader(place.journal, START)
    try:
        for entry in reader.entries(min(1, last)):
            if not isinstance(entry, Damage):
                words = read_entry(entry.frames)
                if isinstance(words, RunBegins):
                    return words
    finally:
        reader.close()
    raise RecoveryError(f"the first entry of {place.journal} cannot be read")


def _open_writer(place: RunPlace, begins: RunBegins) -> SummaryWriter:
    pointer = place.state / "event_file"
    uid = 0

    def later(existing: list[str]) -> str:
        return event_file.later_name(
            existing, int(begins.created), begins.host, begins.pid, uid, begins.suffix
        )

    def remember(start: FileStart) -> None:
        _replace_file(pointer, json.dumps(dataclasses.asdict(start)).encode())

    if pointer.exists():
        start = FileStart(**json.loads(pointer.read_bytes()))
    else:
        # A file that an earlier journal or another writer left must sort before ours.
        place.events.mkdir(parents=True, exist_ok=True)
        start = FileStart(later([path.name for path in place.events.iterdir()]))
        remember(start)
    version = event_file.version_record(begins.created)
    return SummaryWriter(place.events, start, version, later, remember)


def _snapshot_directory(place: RunPlace) -> Path:
    return place.state / "snapshots"


def _snapshots(place: RunPlace) -> list[int]:
    return [int(path.stem) for path in _snapshot_directory(place).glob("*.msgpack")]


def _read_snapshot(path: Path) -> dict[str, Any]:
    saved: dict[str, Any] = msgpack.unpackb(path.read_bytes(), strict_map_key=False)
    return saved


def _replace_file(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, whatever ends this process."""
    partial = path.with_suffix(".partial")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(fd, left) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    partial.replace(path)
    sync_directory(path.parent)
