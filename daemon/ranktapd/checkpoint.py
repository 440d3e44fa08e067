"""Where a run stands, and how a worker gets there: starting up and recovering are the same.

    event file   ... | records | checkpoint P | perhaps part of the next group
    journal      [deleted] | segment | segment | ...
    snapshots    the fold's state at the end of a group, S <= P

P is that of the run's own event file. Restore the last snapshot that is not behind P, fold
the journal from S to P, go on from there. What stands behind P is written again, with the
same bytes. Up to P everything was written, so nothing is, unless the file of a sub-run
says itself that it lacks something: a power cut may have taken the end of one file and not
that of another.

A snapshot is taken when the fold has left a segment behind, or ends where the journal does,
and all files are on disk; then segments that it has left are deleted. The journal of a run that
has finished goes whole, see retention.py: then the one behind it begins where the snapshot ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Set
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import msgpack

from ranktap_wire.journal import JournalReader, make_directory, sync_directory
from ranktap_wire.segment import START, Damage, Position, segment_path, segments
from ranktapd.durable_files import replace_file
from ranktapd.entries import RunBegins, read_entry
from ranktapd.fold import Fold
from ranktapd.run_files import RunFiles
from ranktapd.runs import RunPlace

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
    files: RunFiles


def recover(
    place: RunPlace,
    last: int,
    skipped: Set[int],
    executor: Executor,
    wait: Callable[[float], None],
) -> Standing:
    """Where the run stands. `last` is the journal's last entry that is known to be on disk,
    `skipped` the entries that were set aside, `executor` what pictures are drawn by; `wait`
    is `RunFiles`'.

    Raises:
        RecoveryError: parts of the journal that are needed are gone.
        JournalError, OSError: files cannot be read or written.
    """
    snapshots = sorted(_snapshots(place))
    begins = _begins(place, snapshots, last)
    files = RunFiles(place, begins, wait)
    found = files.checkpoint
    reached = Position.parse(found) if found is not None else None
    if reached is not None and reached.sequence > last:
        raise RecoveryError(
            f"{files.own.path} holds everything up to entry {reached.sequence} of a journal that "
            f"ends at entry {last}: move one of them away"
        )
    fold, position = _restore(place, snapshots, reached, _OnDemand())
    reader = JournalReader(place.journal, position)
    if reached is not None:
        _replay(fold, reader, reached, skipped, files)
    fold.executor = executor
    return Standing(fold, reader, files)


def _replay(
    fold: Fold, reader: JournalReader, upto: Position, skipped: Set[int], files: RunFiles
) -> None:
    """Fold what was written already; write what a sub-run's file lacks of it."""
    in_group = is_damaged = False
    for entry in reader.entries(upto.sequence):
        if isinstance(entry, Damage):
            is_damaged = True
            continue
        in_group = True
        if entry.sequence not in skipped:
            fold.apply(entry)
        if entry.ends_group:
            output = fold.close_group(str(entry.after))
            # A group that has been damaged since it was written is another one now, perhaps
            # joined to the next: what of it is in a file cannot be told.
            if not is_damaged:
                files.write([output])
            in_group = is_damaged = False
    if in_group:
        # Its end has been damaged since it was written.
        fold.close_group(str(upto))


class _OnDemand(Executor):
    """Draws no picture until it is asked for: those that are written are not needed again."""

    def submit(self, fn: Callable[P, T], /, *arguments: P.args, **named: P.kwargs) -> Future[T]:
        return _Later(partial(fn, *arguments, **named))


class _Later(Future[T]):
    def __init__(self, work: Callable[[], T]) -> None:
        super().__init__()
        self._work = work

    def result(self, timeout: float | None = None) -> T:
        return self._work()


def save_snapshot(place: RunPlace, fold: Fold, position: Position) -> None:
    """Keep the fold's state, and delete the segments and snapshots that it makes needless.

    All files must be on disk up to there.

    Raises:
        OSError: it cannot be written; nothing was deleted.
    """
    path = _snapshot_directory(place) / f"{position.sequence:020d}.msgpack"
    make_directory(path.parent)
    replace_file(path, [msgpack.packb({"position": str(position), "fold": fold.state()})])
    older = [number for number in sorted(_snapshots(place)) if number < position.sequence]
    # Where the segment begins that is not deleted: what is in it can be folded again from there.
    kept = [number for number in older if number >= position.segment > 1][:1]
    for number in older:
        if number not in kept:
            (_snapshot_directory(place) / f"{number:020d}.msgpack").unlink()
    # After a power cut a name may be back whose deletion was not synced: never a snapshot
    # whose segments are gone, nor a segment without the ones behind it.
    sync_directory(_snapshot_directory(place))
    for segment in segments(place.journal):
        if segment < position.segment:
            segment_path(place.journal, segment).unlink()
            sync_directory(place.journal)


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
    try:
        fold = Fold.restore(saved["fold"], executor)
    except ValueError as error:
        if first_segment != 1:
            raise RecoveryError(f"{path}: {error}") from error
        return Fold(executor), START  # of a former release; all of the journal is there
    position = Position.parse(saved["position"])
    sequence = position.sequence
    if (
        not segment_path(place.journal, position.segment).exists()
        and segment_path(place.journal, sequence + 1).exists()
    ):
        # The journal went when the run had finished.
        position = Position(sequence, sequence + 1, START.offset)
    return fold, position


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
    # Damaged, which is reported where it is read. What it says is in the file's name and first
    # record alone, so anything does that is the same each time.
    return RunBegins(0.0, "", 0, "")


def _snapshot_directory(place: RunPlace) -> Path:
    return place.state / "snapshots"


def _snapshots(place: RunPlace) -> list[int]:
    return [int(path.stem) for path in _snapshot_directory(place).glob("*.msgpack")]


def _read_snapshot(path: Path) -> dict[str, Any]:
    saved: dict[str, Any] = msgpack.unpackb(path.read_bytes(), strict_map_key=False)
    return saved
