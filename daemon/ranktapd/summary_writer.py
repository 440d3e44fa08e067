"""The one writer of an event file: continued where it ends, with the same bytes.

A TensorBoard may be reading the file at any moment. It survives a torn tail that is
completed with the bytes that were meant to follow, and nothing else. So after a restart
the writer is given again what it may have written before: as far as that is in the file
already it is compared, from there on it is appended. When it differs, the file is left
as it is, for good, and a new one with a later name starts behind the last whole record.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ranktap_wire.journal import make_directory, sync_directory
from ranktapd import event_file
from ranktapd.event_file import Scan

logger = logging.getLogger("ranktapd")

RETRY_S = 1.0
"""How often a full disk is tried again."""
IOV_MAX = 1_024
"""Pieces that the kernel takes in one call."""

Piece = bytes | memoryview


@dataclass(frozen=True, slots=True)
class FileStart:
    """Which event file a run or sub-run is written to, and behind what it begins.

    It is remembered before the file is made: until the file has a checkpoint of its own,
    nothing else says that a former file holds what comes before.
    """

    name: str
    checkpoint: str | None = None
    """Position in the journal up to which former files hold everything; None: no former file."""
    records: int = 0
    """Records of the group behind that position which a former file holds too."""


class SummaryWriter:
    """Appends to one event file, which it begins with the record `version`.

    `name_later(existing)` names the file that would follow it, and `remember` is told of
    that one before it is made.
    """

    def __init__(
        self,
        directory: Path,
        start: FileStart,
        version: bytes,
        name_later: Callable[[list[str]], str],
        remember: Callable[[FileStart], None],
    ) -> None:
        self._directory = directory
        self._start = start
        self._version = version
        self._name_later = name_later
        self._remember = remember
        self._waiting_for_room = False
        self.wait: Callable[[float], None] = time.sleep
        """Waits for so many seconds while the disk is full; what it raises ends the waiting."""
        make_directory(directory)
        self.path = directory / start.name
        is_new = not self.path.exists()
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if is_new:
            sync_directory(directory)
        self._unsynced = True  # what a worker before this one wrote may be
        self._found = self._scan()
        behind = os.fstat(self._fd).st_size - self._found.checkpoint_end
        self._tail = os.pread(self._fd, behind, self._found.checkpoint_end)
        """What stands behind the last checkpoint and is still to be proved right."""
        self._end = self._found.checkpoint_end

    def _scan(self) -> Scan:
        size = os.fstat(self._fd).st_size
        if size == 0:
            return event_file.scan(b"")
        with mmap.mmap(self._fd, size, prot=mmap.PROT_READ) as data:
            return event_file.scan(data)

    @property
    def checkpoint(self) -> str | None:
        """The position in the journal up to which everything was written when this was opened."""
        return self._found.checkpoint or self._start.checkpoint

    def append(self, groups: Sequence[Sequence[Piece]]) -> None:
        """Append groups, each given as pieces of whole records, or find them in the file already.

        Waits while the disk is full: the journal keeps what follows.

        Raises:
            OSError: the file cannot be written.
        """
        # One at a time as long as the file holds what is still to be proved right, and the
        # first of a file: what the file, or a former one, holds already is of one group.
        left = [pieces for pieces in groups if any(map(len, pieces))]
        while left and (self._tail or not self._end):
            self._prove(b"".join(left.pop(0)))
        self._write([piece for pieces in left for piece in pieces])

    def _prove(self, records: bytes) -> None:
        """Append a group whose beginning may be in the file already."""
        expected = self._as_begun(records)
        known = min(len(self._tail), len(expected))
        if expected[:known] == self._tail[:known]:
            self._tail = self._tail[known:]
            self._end += known
            self._write([expected[known:]])
        else:
            self._turn_over()
            self._write([self._as_begun(records)])

    def _as_begun(self, records: bytes) -> bytes:
        """What of a group's records belongs here, and what stands before them in a new file."""
        if self._end:
            return records
        return self._version + _skip_records(records, self._start.records)

    def sync(self) -> None:
        """Make what was appended survive the machine: before its journal may be deleted.

        Raises:
            OSError: it may not.
        """
        if self._unsynced:
            os.fdatasync(self._descriptor())
            self._unsynced = False

    @property
    def is_open(self) -> bool:
        """Whether it has a file descriptor."""
        return self._fd >= 0

    def close(self) -> None:
        """Let go of its file descriptor. The next use takes another."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _descriptor(self) -> int:
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        return self._fd

    def _write(self, pieces: Sequence[Piece]) -> None:
        left = [memoryview(piece) for piece in pieces if piece]
        while left:
            self._unsynced = True
            try:
                written = os.pwritev(self._descriptor(), left[:IOV_MAX], self._end)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                # What is written is the beginning of what belongs there. It is completed
                # with the same bytes, which a reader does not mind.
                self._tell_full(error)
                self.wait(RETRY_S)
                continue
            self._waiting_for_room = False
            self._end += written
            left = _behind(left, written)

    def _tell_full(self, error: OSError) -> None:
        if not self._waiting_for_room:
            self._waiting_for_room = True
            logger.error(
                "%(path)s: %(error)s; waiting for room",
                {"path": self.path, "error": error.strerror},
            )

    def _turn_over(self) -> None:
        """Start a new file behind what the old one holds whole.

        Other bytes than before: the renderer has changed since, or the file was.
        """
        # The tail holds no checkpoint, so all of it is of one group: the one that is being
        # appended.
        held = self._found.records_behind
        if self._found.checkpoint is None:
            held = max(held - 1, 0) + self._start.records  # less the version record
        name = self._name_later([path.name for path in self._directory.iterdir()])
        logger.warning(
            "%(path)s does not continue with the same bytes; going on in %(next)s behind its "
            "%(records)d whole records",
            {"path": self.path, "next": name, "records": self._found.records},
        )  # fmt: skip
        self._start = FileStart(name, self.checkpoint, held)
        self._remember(self._start)
        path = self._directory / name
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self.sync()
        self.close()
        self.path, self._fd = path, fd
        sync_directory(self._directory)
        self._tail = b""
        self._end = 0


def _behind(pieces: list[memoryview], written: int) -> list[memoryview]:
    """What of the pieces stands behind so many bytes."""
    first = 0
    while first < len(pieces) and written >= len(pieces[first]):
        written -= len(pieces[first])
        first += 1
    left = pieces[first:]
    if written:
        left[0] = left[0][written:]
    return left


def _skip_records(records: bytes, count: int) -> bytes:
    """A group's output less its first records; its checkpoint, the last one, always remains."""
    begin = 0
    for _ in range(count):
        length = int.from_bytes(records[begin : begin + 8], "little")
        end = begin + event_file.HEADER_BYTES + length + event_file.TRAILER_BYTES
        if end >= len(records):
            break
        begin = end
    return records[begin:]
