"""An append-only log of entries in segment files, written by one process and tailed by others.

How a segment lies in its file is said in `ranktap_wire.segment`.

Entries are appended in groups: one write, one `fdatasync`, then everyone in the
group is answered. `index` and `remaining` place an entry in its group. They
tell two things apart that look alike when a checksum is wrong:

* a later entry begins a later group: the bad entry's group had been synced.
  That is damage. It is reported and passed over; what follows is read.
* no later group begins behind it: the last append was cut off. Nobody has been
  answered for it. The writer cuts the whole group off; readers never get there,
  because they read no further than they are told.

`JournalWriter` is the one writer of its directory (the caller holds a lock).
Neither class is thread safe.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from ranktap_wire import limits
from ranktap_wire.records import Buffer
from ranktap_wire.segment import (
    HEAD_BYTES,
    HEADER_BYTES,
    START,
    Damage,
    Entry,
    Head,
    Position,
    check_header,
    end_of_groups,
    next_head,
    pack_entry,
    pack_header,
    segment_path,
    segments,
    unpack_frames,
)

_READ_BYTES: Final = 4 * limits.MIB
_IOV_MAX: Final = 1_024


class JournalError(Exception):
    """The journal cannot go on. The message names the file."""


class JournalFullError(JournalError):
    """No room on the device. What did not fit was taken back; append again when there is room."""


@dataclass(slots=True)
class Cut:
    """What opening a journal took off its end: a group that nobody was answered for."""

    path: Path
    offset: int
    nbytes: int


# -- reading ----------------------------------------------------------------------------


class JournalReader:
    """Tails a journal: entries behind `after`, up to the sequence number that it is told."""

    def __init__(self, directory: Path, after: Position = START) -> None:
        self.directory = directory
        self.position = after
        self._fd = -1
        self._segment = -1
        self._buffer = memoryview(b"")
        self._buffer_offset = 0
        self._buffer_upto = 0

    def entries(self, upto: int) -> Iterator[Entry | Damage]:
        """Entries up to and including sequence number `upto`, which is known to be on disk.

        Raises:
            JournalError: a segment is missing, or of another version.
        """
        if upto != self._buffer_upto:
            # Behind the former end the buffer may hold half of a write that was going on.
            self._buffer = memoryview(b"")
            self._buffer_upto = upto
        while self.position.sequence < upto:
            yield self._next(upto)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._segment = -1
            self._buffer = memoryview(b"")

    def _next(self, upto: int) -> Entry | Damage:
        expected = self.position.sequence + 1
        if self._segment != self.position.segment and not self._open(self.position.segment):
            path = segment_path(self.directory, self._segment)
            return Damage(expected, expected - 1, path, 0, "checksum mismatch of its header")
        offset = self.position.offset
        data = self._read(offset, HEAD_BYTES)
        at_end = not data and expected > self._segment
        if at_end and segment_path(self.directory, expected).exists():
            self.position = Position(expected - 1, expected, HEADER_BYTES)
            return self._next(upto)
        head = Head.read(data, 0)
        if head is None:
            short = len(data) < HEAD_BYTES
            reason = "the segment ends before it" if short else "checksum mismatch of its head"
            return self._pass_over(upto, offset, reason)
        if head.sequence != expected:
            return self._pass_over(upto, offset, f"its number is {head.sequence}")
        payload = self._read(offset, HEAD_BYTES + head.length)[HEAD_BYTES:]
        if len(payload) < head.length:
            return self._pass_over(upto, offset + head.nbytes, "the segment ends before its length")
        self.position = Position(expected, self.position.segment, offset + head.nbytes)
        try:
            if not head.is_proved_by(payload):
                raise ValueError("checksum mismatch")
            frames = unpack_frames(payload)
        except ValueError as error:
            path = segment_path(self.directory, self.position.segment)
            return Damage(expected, expected, path, offset, str(error))
        return Entry(expected, head.remaining == 0, frames, self.position)

    def _pass_over(self, upto: int, search_from: int, reason: str) -> Entry | Damage:
        """Go on behind what cannot be read: at the next head, or in the next segment."""
        first = self.position.sequence + 1
        segment, offset = self.position.segment, self.position.offset
        size = os.fstat(self._fd).st_size
        rest = memoryview(os.pread(self._fd, max(0, size - search_from), search_from))
        later = [number for number in segments(self.directory) if number > segment]
        found = next_head(rest, 0, first, min([upto, *(number - 1 for number in later[:1])]))
        if found is not None:
            at, head = found
            self.position = Position(head.sequence - 1, segment, search_from + at)
        elif later and later[0] <= upto:
            holds_first = max((number for number in later if number <= first), default=later[0])
            self.position = Position(max(first, holds_first) - 1, holds_first, HEADER_BYTES)
        else:
            # Not moved: what will stand behind it may be half written now.
            self.position = Position(upto, segment, offset)
        last = self.position.sequence
        if last < first:
            return self._next(upto)
        return Damage(first, last, segment_path(self.directory, segment), offset, reason)

    def _open(self, segment: int) -> bool:
        """Go to a segment; False: its header is damaged."""
        self.close()
        path = segment_path(self.directory, segment)
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            is_whole = check_header(os.pread(self._fd, HEADER_BYTES, 0), segment)
        except (OSError, ValueError) as error:
            self.close()
            raise JournalError(f"{path}: {error}") from error
        self._segment = segment
        self._buffer_offset = 0
        return is_whole

    def _read(self, offset: int, nbytes: int) -> memoryview:
        """`nbytes` from `offset`, fewer at the segment's end."""
        start = offset - self._buffer_offset
        if start < 0 or start + nbytes > len(self._buffer):
            self._buffer = memoryview(os.pread(self._fd, max(nbytes, _READ_BYTES), offset))
            self._buffer_offset = offset
            start = 0
        return self._buffer[start : start + nbytes]


# -- writing ----------------------------------------------------------------------------


class JournalWriter:
    """Appends groups of entries. Opening it recovers: a group that was cut off is taken away.

    `preamble`, called when a segment begins, returns the frames of its first entries:
    what a reader of this segment alone needs to know of those before it.

    Raises:
        JournalError: the last segment is of another version, or it or the directory
            cannot be read or written; JournalFullError when there is no room.
    """

    def __init__(
        self,
        directory: Path,
        *,
        sync: bool = True,
        segment_bytes: int = limits.SEGMENT_BYTES,
        preamble: Callable[[], list[list[Buffer]]] = list,
    ) -> None:
        self.directory = directory
        self.cut: Cut | None = None
        self._sync = sync
        self._segment_bytes = segment_bytes
        self._preamble = preamble
        self._failed: str | None = None
        self._fd = -1
        try:
            make_directory(directory)
            numbers = segments(directory)
            if numbers:
                self._recover(numbers[-1])
            else:
                self._last = 0
                self._start_segment()
        except OSError as error:
            self.close()
            raise _no_room_or_failed(directory, error) from error
        except JournalError:
            self.close()
            raise

    @property
    def last(self) -> int:
        """Sequence number of the last entry; 0 in an empty journal."""
        return self._last

    @property
    def path(self) -> Path:
        return segment_path(self.directory, self._segment)

    def append(self, group: Sequence[Sequence[Buffer]]) -> int:
        """Write the entries of a group, each given as frames; return the first one's number.

        When it returns they are on disk (with `sync`), all of them; when it raises, none
        of them is in the journal.

        Raises:
            ValueError: an entry is over limits.ENTRY_BYTES.
            JournalFullError: no room on the device.
            JournalError: anything else that the disk said. After a failed sync what
                was written may be gone although a second sync succeeds: every later
                call fails too, and the journal must be opened anew.
        """
        if self._failed is not None:
            raise JournalError(self._failed)
        entries: list[Sequence[Buffer]] = list(group)
        if self._offset >= self._segment_bytes:
            self._start_segment()
        if self._offset == HEADER_BYTES and self._last:
            # Not only now: the first group of a new segment may have failed, or been cut off.
            entries = [*self._preamble(), *entries]
        pieces: list[bytes | memoryview] = []
        total = 0
        for index, frames in enumerate(entries):
            packed, nbytes = pack_entry(
                self._last + 1 + index, index, len(entries) - 1 - index, frames
            )
            pieces += packed
            total += nbytes
        self._write(pieces)
        self._offset += total
        first = self._last + 1 + len(entries) - len(group)
        self._last += len(entries)
        return first

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, pieces: list[bytes | memoryview]) -> None:
        views = [memoryview(piece) for piece in pieces if piece]
        try:
            while views:
                written = os.writev(self._fd, views[:_IOV_MAX])
                if not written:
                    raise OSError(errno.EIO, "nothing was written")
                while views and written >= views[0].nbytes:
                    written -= views.pop(0).nbytes
                if written:
                    views[0] = views[0][written:]
        except OSError as error:
            self._take_back(error)
        if self._sync:
            self._flush()

    def _take_back(self, error: OSError) -> None:
        """Cut off what was written of a group that did not fit."""
        try:
            os.ftruncate(self._fd, self._offset)
            os.lseek(self._fd, self._offset, os.SEEK_SET)
        except OSError as second:
            self._failed = f"{self.path}: {error}; then {second}"
            raise JournalError(self._failed) from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise JournalFullError(f"{self.path}: {error.strerror}") from error
        raise JournalError(f"{self.path}: {error}") from error

    def _flush(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._failed = f"{self.path}: sync: {error}"
            # Otherwise whoever opens it next finds the group in the page cache, syncs
            # without an error, and acknowledges what the disk never took.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._offset)
            raise JournalError(self._failed) from error

    def _start_segment(self) -> None:
        first = self._last + 1
        path = segment_path(self.directory, first)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise _no_room_or_failed(path, error) from error
        try:
            left = memoryview(pack_header(first))
            while left:
                left = left[os.write(fd, left) :]
            if self._sync:
                os.fdatasync(fd)
                sync_directory(self.directory)
        except OSError as error:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise _no_room_or_failed(path, error) from error
        self.close()
        self._fd, self._segment, self._offset = fd, first, HEADER_BYTES

    def _recover(self, segment: int) -> None:
        """Find the end of the last whole group and cut off what follows it."""
        path = segment_path(self.directory, segment)
        self._segment = segment
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        data = memoryview(path.read_bytes())
        try:
            is_whole = check_header(bytes(data[:HEADER_BYTES]), segment)
        except ValueError as error:
            raise JournalError(f"{path}: {error}") from error
        self._last, self._offset = end_of_groups(data, segment)
        if not is_whole and self._last < segment:
            if len(data) > HEADER_BYTES and np.frombuffer(data, np.uint8).any():
                raise JournalError(f"{path}: not a segment of a ranktap journal")
            # Cut off while it was made: nothing was ever appended to it.
            self.cut = Cut(path, 0, len(data))
            self._start_segment()
            return
        if self._offset < len(data):
            self.cut = Cut(path, self._offset, len(data) - self._offset)
            os.ftruncate(self._fd, self._offset)
        os.lseek(self._fd, self._offset, os.SEEK_SET)
        # What a killed process had written and not synced counts from now on.
        self._flush()
        sync_directory(self.directory)


def make_directory(directory: Path) -> None:
    """Make it, and its parents, so that they are there after a power cut.

    Raises:
        OSError: it cannot be made.
    """
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    there = missing[-1].parent if missing else directory
    # Whoever made the last one that is there may have ended before it was synced. Where its
    # parent may not be looked into, somebody else made it.
    with contextlib.suppress(PermissionError):
        sync_directory(there.parent)
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync_directory(path.parent)
    directory.mkdir(exist_ok=True)  # FileExistsError: it is something else


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive the machine: of files made, renamed, deleted."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _no_room_or_failed(path: Path, error: OSError) -> JournalError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return JournalFullError(f"{path}: {error.strerror}")
    return JournalError(f"{path}: {error}")
