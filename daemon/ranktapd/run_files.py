"""All files of a run: its own event file, those of its sub-runs, and the projector's.

    LOGDIR/run/events...               the run's own
    LOGDIR/run/sub-run/events...       a sub-run's, made when it first has something
    LOGDIR/run/00007/tag/tensors.tsv   an embedding's, written whole

A sub-run's event file has checkpoints of its own, at the end of each group that gave it
something. The run's own file is written last, so its checkpoint P says that everything up
to P was written to all files. Each writer passes over the groups up to its own last
checkpoint: whatever a power cut has left of which file, the groups that it lacks are
written again, with the same bytes, and no others.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from ranktap_wire.journal import make_directory
from ranktap_wire.segment import Position
from ranktapd import compaction, event_file
from ranktapd.directories import claim
from ranktapd.durable_files import replace_file
from ranktapd.entries import RunBegins
from ranktapd.output import File, Output
from ranktapd.runs import RunPlace
from ranktapd.summary_writer import RETRY_S, FileStart, SummaryWriter

logger = logging.getLogger("ranktapd")

T = TypeVar("T")

OPEN_FILES: Final = 128
"""Event files that are open at a time, those written last: an eighth of what a process may
usually have."""

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
_IN_THE_WAY: Final = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


class RunFiles:
    """The files of one run; sub-run "" is the run itself. Not thread safe.

    Raises:
        OSError: its own event file cannot be opened.
    """

    def __init__(
        self, place: RunPlace, begins: RunBegins, wait: Callable[[float], None] = time.sleep
    ) -> None:
        self._place = place
        self._begins = begins
        self._wait = wait
        """Waits for so many seconds while the disk is full; what it raises ends the waiting."""
        self._waiting_for_room = False
        self._may_write: dict[str, bool] = {"": True}
        self._written_upto: dict[str, int] = {}
        self._open: dict[str, None] = {}
        """Those that have a descriptor, the one that was used last at the end."""
        self._writers: dict[str, SummaryWriter] = {}
        compaction.complete(place)
        self.own = self._writer("")

    @property
    def checkpoint(self) -> str | None:
        """The position up to which everything was written when this was opened."""
        return self.own.checkpoint

    def write(self, groups: Sequence[Output]) -> None:
        """Write groups, in the order of the journal, or find them written.

        Waits while the disk is full: the journal keeps what follows.

        Raises:
            OSError: a file cannot be written.
        """
        for sub_run in dict.fromkeys(name for group in groups for name in group.sub_runs):
            if self._has_directory(sub_run):
                self._append(sub_run, groups)
        for group in groups:
            if group.files and _sequence(group.position) > self._written_upto[""]:
                for file in group.files:
                    self._write_file(file)
        self._append("", groups)

    def sync(self) -> None:
        """Make everything that was written survive the machine: before its journal may be deleted.

        Raises:
            OSError: it may not.
        """
        for sub_run, writer in self._writers.items():
            writer.sync()
            self._bound_open(sub_run)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _append(self, sub_run: str, groups: Sequence[Output]) -> None:
        writer = self._writers.get(sub_run)
        if writer is None:
            writer = self._until_there_is_room(lambda: self._writer(sub_run))
        upto = self._written_upto[sub_run]
        # Only what is not written yet is drawn.
        left = [group for group in groups if _sequence(group.position) > upto]
        writer.append([group.pieces(sub_run) for group in left])
        self._bound_open(sub_run)

    # -- one sub-run ------------------------------------------------------------------

    def _writer(self, sub_run: str) -> SummaryWriter:
        directory = self._place.events / sub_run
        pointer = self._place.pointer(sub_run)
        begins = self._begins

        def later(existing: list[str]) -> str:
            return event_file.later_name(
                existing, int(begins.created), begins.host, begins.pid, 0, begins.suffix
            )

        def remember(start: FileStart) -> None:
            replace_file(pointer, [json.dumps(dataclasses.asdict(start)).encode()])

        if pointer.exists():
            start = FileStart(**json.loads(pointer.read_bytes()))
        else:
            # A file that an earlier journal or another writer left must sort before ours.
            make_directory(pointer.parent)
            start = FileStart(later(_names(directory)))
            remember(start)
        version = event_file.version_record(begins.created)
        writer = SummaryWriter(directory, start, version, later, remember)
        writer.wait = self._wait
        found = writer.checkpoint
        self._written_upto[sub_run] = -1 if found is None else _sequence(found)
        self._writers[sub_run] = writer
        return writer

    def _has_directory(self, sub_run: str) -> bool:
        """Whether this run may write to the directory of that sub-run; told once if not."""
        may = self._may_write.get(sub_run)
        if may is None:
            may = self._until_there_is_room(lambda: self._takes_directory(sub_run))
            self._may_write[sub_run] = may
        return may

    def _takes_directory(self, sub_run: str) -> bool:
        owner = claim(self._place.state_dir, self._place.name, sub_run)
        if owner is not None:
            logger.error(
                "run %(run)r: its sub-run %(sub_run)r is left out: %(path)s is the directory of "
                "run %(owner)r",
                {
                    "run": self._place.name, "sub_run": sub_run, "owner": owner,
                    "path": self._place.events / sub_run,
                },
            )  # fmt: skip
            return False
        try:
            make_directory(self._place.events / sub_run)
        except OSError as error:
            if error.errno not in _IN_THE_WAY:
                raise
            logger.error(
                "run %(run)r: its sub-run %(sub_run)r is left out: %(error)s",
                {"run": self._place.name, "sub_run": sub_run, "error": error},
            )
            return False
        return True

    def _bound_open(self, sub_run: str) -> None:
        """Note that its file was used; close that of another where too many are open."""
        self._open.pop(sub_run, None)
        if self._writers[sub_run].is_open:
            self._open[sub_run] = None
        while len(self._open) > OPEN_FILES:
            longest_unused = next(iter(self._open))
            del self._open[longest_unused]
            self._writers[longest_unused].close()

    # -- files ------------------------------------------------------------------------

    def _write_file(self, file: File) -> None:
        if not self._has_directory(file.sub_run):
            return
        path = self._place.events / file.sub_run / file.path

        def write() -> None:
            make_directory(path.parent)
            replace_file(path, file.pieces(), 0o644)

        try:
            self._until_there_is_room(write)
        except OSError as error:
            if error.errno not in _IN_THE_WAY:
                raise
            logger.error("run %(run)r: %(error)s", {"run": self._place.name, "error": error})

    def _until_there_is_room(self, action: Callable[[], T]) -> T:
        while True:
            try:
                done = action()
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                if not self._waiting_for_room:
                    self._waiting_for_room = True
                    logger.error(
                        "run %(run)r: %(error)s; waiting for room",
                        {"run": self._place.name, "error": error},
                    )
                self._wait(RETRY_S)
            else:
                self._waiting_for_room = False
                return done


def _sequence(position: str) -> int:
    return Position.parse(position).sequence


def _names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()] if directory.exists() else []
