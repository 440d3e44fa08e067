"""An append-only log of entries in segment files, written by one process and tailed by others.

A segment is named after its first entry's sequence number, `%020d.journal`:

    header   magic "ranktapJ" | version u32 | crc32c u32 | first sequence u64 | 0 u64
    entry    length u32 | crc32c u32 | sequence u64 | index u32 | remaining u32
             payload, `length` bytes, then zeros up to a multiple of 8
    entry    ...

    payload  frame count u32 | 0 u32 | length u64 each | frames, each padded to 8

The header's checksum covers its other fields; an entry's covers everything of
it behind the checksum. Little endian throughout. Frames stand at multiples of 8
so that they can be read as columns in place.

Entries are appended in groups: one write, one `fdatasync`, then everyone in the
group is answered. `index` and `remaining` place an entry in its group. They
tell two things apart that look alike when an entry's checksum is wrong:

* a later entry begins a later group: the bad entry's group had been synced.
  That is damage. It is reported and passed over; what follows is read.
* no later group begins behind it: the last append was cut off. Nobody has been
  answered for it. The writer cuts the whole group off; readers never get there,
  because they read no further than they are told.

`JournalWriter` is the one writer of its directory (the caller holds a lock).
Neither class is thread safe.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from ranktap_wire import limits
from ranktap_wire.checksum import crc32c
from ranktap_wire.records import Buffer, byte_view

MAGIC: Final = b"ranktapJ"
VERSION: Final = 1
SUFFIX: Final = ".journal"

_SEGMENT = struct.Struct("<8sIIQQ")
_ENTRY = struct.Struct("<IIQII")
_FRAMES = struct.Struct("<II")
_READ_BYTES: Final = 1 * limits.MIB
_GATHER_BYTES: Final = 64 * limits.KIB  # below this, copying beats one more iovec
_IOV_MAX: Final = 1_024


class JournalError(Exception):
    """The journal cannot go on. The message names the file."""


class JournalFullError(JournalError):
    """No room on the device. What did not fit was taken back; append again when there is room."""


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Behind an entry: its sequence number, and where the next one begins."""

    sequence: int
    segment: int
    """First sequence number of the segment: its name."""
    offset: int
    """Bytes from the segment's start."""

    def __str__(self) -> str:
        return f"{self.sequence}@{self.segment}+{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """The position that `str` made this of.

        Raises:
            ValueError: it is none.
        """
        sequence, _, rest = text.partition("@")
        segment, _, offset = rest.partition("+")
        return cls(int(sequence), int(segment), int(offset))


START: Final = Position(0, 1, _SEGMENT.size)


@dataclass(slots=True)
class Entry:
    """One entry; its frames are views of memory that the entry owns."""

    sequence: int
    ends_group: bool
    frames: list[memoryview]
    after: Position


@dataclass(slots=True)
class Damage:
    """Entries that were synced and can no longer be read."""

    first: int
    last: int
    """Sequence numbers, both included."""
    path: Path
    offset: int
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.path}: entries {self.first} to {self.last} are damaged "
            f"(from byte {self.offset}: {self.reason})"
        )


@dataclass(slots=True)
class Cut:
    """What opening a journal took off its end: a group that nobody was answered for."""

    path: Path
    offset: int
    nbytes: int


def segment_path(directory: Path, first: int) -> Path:
    return directory / f"{first:020d}{SUFFIX}"


def segments(directory: Path) -> list[int]:
    """First sequence numbers of a journal's segments, ascending."""
    return sorted(
        int(path.name.removesuffix(SUFFIX))
        for path in directory.glob(f"*{SUFFIX}")
        if path.name.removesuffix(SUFFIX).isdigit()
    )


# -- layout -----------------------------------------------------------------------------


def pack_frames(frames: Sequence[Buffer]) -> list[Buffer]:
    """The pieces of a payload that holds `frames`; large frames are referred to, not copied."""
    views = [byte_view(frame) for frame in frames]
    table = _FRAMES.pack(len(views), 0) + struct.pack(
        f"<{len(views)}Q", *(view.nbytes for view in views)
    )
    pieces: list[Buffer] = [table]
    for view in views:
        pieces.append(view)
        if view.nbytes % 8:
            pieces.append(bytes(-view.nbytes % 8))
    return pieces


def unpack_frames(payload: memoryview) -> list[memoryview]:
    """The frames of a payload whose checksum was right.

    Raises:
        ValueError: it is no payload of this version.
    """
    if payload.nbytes < _FRAMES.size:
        raise ValueError("payload without a frame table")
    count, _ = _FRAMES.unpack_from(payload)
    offset = _FRAMES.size + 8 * count
    if offset > payload.nbytes:
        raise ValueError(f"payload of {payload.nbytes} bytes for a table of {count} frames")
    frames = []
    for length in struct.unpack_from(f"<{count}Q", payload, _FRAMES.size):
        if offset + length > payload.nbytes:
            raise ValueError("frame past the end of its payload")
        frames.append(payload[offset : offset + length])
        offset += length + -length % 8
    return frames


def _pack_entry(
    sequence: int, index: int, remaining: int, frames: Sequence[Buffer]
) -> tuple[list[Buffer], int]:
    pieces = pack_frames(frames)
    length = sum(byte_view(piece).nbytes for piece in pieces)
    if length > limits.ENTRY_BYTES:
        raise ValueError(f"entry of {length} bytes, at most {limits.ENTRY_BYTES} allowed")
    if length <= _GATHER_BYTES:
        pieces = [b"".join(byte_view(piece) for piece in pieces)]
    tail = _ENTRY.pack(length, 0, sequence, index, remaining)
    checksum = crc32c(tail[8:])
    for piece in pieces:
        checksum = crc32c(byte_view(piece), checksum)
    head = _ENTRY.pack(length, checksum, sequence, index, remaining)
    return [head, *pieces], _ENTRY.size + length


def _segment_header(first: int) -> bytes:
    blank = _SEGMENT.pack(MAGIC, VERSION, 0, first, 0)
    return _SEGMENT.pack(MAGIC, VERSION, crc32c(blank), first, 0)


def _check_segment_header(header: bytes, first: int) -> None:
    if len(header) < _SEGMENT.size:
        raise ValueError("shorter than a segment's header")
    magic, version, _, named, _ = _SEGMENT.unpack(header)
    if magic != MAGIC:
        raise ValueError("not a segment of a ranktap journal")
    if version != VERSION:
        raise ValueError(f"version {version} of the format, this release reads {VERSION}")
    if named != first or header != _segment_header(first):
        raise ValueError("header does not match its checksum or the file's name")


@dataclass(slots=True)
class _Head:
    length: int
    checksum: int
    sequence: int
    index: int
    remaining: int

    @property
    def nbytes(self) -> int:
        """Entry and padding."""
        return _ENTRY.size + self.length + -self.length % 8

    @classmethod
    def read(cls, data: memoryview, offset: int) -> _Head:
        return cls(*_ENTRY.unpack_from(data, offset))


def _entry_error(data: memoryview, offset: int, head: _Head) -> str | None:
    """Why there is no whole entry at `offset`; None when there is."""
    if head.length > limits.ENTRY_BYTES:
        return f"length of {head.length} bytes"
    end = offset + _ENTRY.size + head.length
    if end > len(data):
        return "it ends before its length"
    if crc32c(data[offset + 8 : end]) != head.checksum:
        return "checksum mismatch"
    return None


def _next_entry(data: memoryview, offset: int, after: int, upto: int) -> tuple[int, _Head] | None:
    """The first whole entry from `offset` on whose sequence number is in after+1 .. upto."""
    words = np.frombuffer(data[: len(data) // 8 * 8], "<u8")
    start = (offset + 7) // 8
    # The sequence number is an entry's second word, and hardly any other word looks like one.
    candidates = np.flatnonzero((words[start + 1 :] > after) & (words[start + 1 :] <= upto)) + start
    for candidate in candidates.tolist():
        position = candidate * 8
        if position + _ENTRY.size > len(data):
            break
        head = _Head.read(data, position)
        if _entry_error(data, position, head) is None:
            return position, head
    return None


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
        if self._segment != self.position.segment:
            self._open(self.position.segment)
        offset = self.position.offset
        data = self._read(offset, _ENTRY.size)
        if not data and segment_path(self.directory, expected).exists():
            self.position = Position(expected - 1, expected, _SEGMENT.size)
            return self._next(upto)
        if len(data) < _ENTRY.size:
            return self._damage(upto, "the segment ends before it")
        head = _Head.read(data, 0)
        if head.length <= limits.ENTRY_BYTES:
            data = self._read(offset, _ENTRY.size + head.length)
        error = _entry_error(data, 0, head)
        if error is None and head.sequence != expected:
            error = f"its number is {head.sequence}"
        if error is not None:
            return self._damage(upto, error)
        try:
            frames = unpack_frames(data[_ENTRY.size : _ENTRY.size + head.length])
        except ValueError as problem:
            return self._damage(upto, str(problem))
        self.position = Position(expected, self.position.segment, offset + head.nbytes)
        return Entry(expected, head.remaining == 0, frames, self.position)

    def _damage(self, upto: int, reason: str) -> Damage:
        """Pass over what cannot be read: to the next whole entry here, or to the next segment."""
        first = self.position.sequence + 1
        path = segment_path(self.directory, self.position.segment)
        offset = self.position.offset
        rest = memoryview(os.pread(self._fd, os.fstat(self._fd).st_size - offset, offset))
        found = _next_entry(rest, 0, first, upto) if len(rest) >= _ENTRY.size else None
        if found is not None:
            at, head = found
            self.position = Position(head.sequence - 1, self.position.segment, offset + at)
            return Damage(first, head.sequence - 1, path, offset, reason)
        later = [number for number in segments(self.directory) if first < number <= upto]
        if later:
            self.position = Position(later[0] - 1, later[0], _SEGMENT.size)
            return Damage(first, later[0] - 1, path, offset, reason)
        self.position = Position(upto, self.position.segment, offset + len(rest))
        return Damage(first, upto, path, offset, reason)

    def _open(self, segment: int) -> None:
        self.close()
        path = segment_path(self.directory, segment)
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            _check_segment_header(os.pread(self._fd, _SEGMENT.size, 0), segment)
        except (OSError, ValueError) as error:
            self.close()
            raise JournalError(f"{path}: {error}") from error
        self._segment = segment
        self._buffer_offset = 0

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
        directory.mkdir(parents=True, exist_ok=True)
        numbers = segments(directory)
        if numbers:
            self._recover(numbers[-1])
        else:
            self._last = 0
            self._start_segment()

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
            entries = [*self._preamble(), *entries]
        pieces: list[Buffer] = []
        total = 0
        for index, frames in enumerate(entries):
            packed, nbytes = _pack_entry(
                self._last + 1 + index, index, len(entries) - 1 - index, frames
            )
            padding = -nbytes % 8
            pieces += packed
            if padding:
                pieces.append(bytes(padding))
            total += nbytes + padding
        self._write(pieces)
        self._offset += total
        first = self._last + 1 + len(entries) - len(group)
        self._last += len(entries)
        return first

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, pieces: list[Buffer]) -> None:
        views = [byte_view(piece) for piece in pieces if byte_view(piece).nbytes]
        try:
            while views:
                written = os.writev(self._fd, views[:_IOV_MAX])
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
            raise JournalError(self._failed) from error

    def _start_segment(self) -> None:
        first = self._last + 1
        path = segment_path(self.directory, first)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise _no_room_or_failed(path, error) from error
        try:
            if os.write(fd, _segment_header(first)) != _SEGMENT.size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._sync:
                os.fdatasync(fd)
                _sync_directory(self.directory)
        except OSError as error:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise _no_room_or_failed(path, error) from error
        self.close()
        self._fd, self._segment, self._offset = fd, first, _SEGMENT.size

    def _recover(self, segment: int) -> None:
        """Find the end of the last whole group and cut off what follows it."""
        path = segment_path(self.directory, segment)
        self._segment = segment
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        data = memoryview(path.read_bytes())
        if len(data) < _SEGMENT.size:
            # Cut off while it was made: nothing was ever appended to it.
            self._last = segment - 1
            self._start_segment()
            return
        try:
            _check_segment_header(bytes(data[: _SEGMENT.size]), segment)
        except ValueError as error:
            raise JournalError(f"{path}: {error}") from error
        self._last, self._offset = _end_of_groups(data, segment)
        if self._offset < len(data):
            self.cut = Cut(path, self._offset, len(data) - self._offset)
            os.ftruncate(self._fd, self._offset)
        os.lseek(self._fd, self._offset, os.SEEK_SET)
        # What a killed process had written and not synced counts from now on.
        self._flush()
        _sync_directory(self.directory)


def _end_of_groups(data: memoryview, segment: int) -> tuple[int, int]:
    """The last sequence number of the last whole group in a segment, and the offset behind it."""
    last, end = segment - 1, _SEGMENT.size
    offset, expected = end, segment
    group_is_whole = True
    while offset + _ENTRY.size <= len(data):
        head = _Head.read(data, offset)
        error = _entry_error(data, offset, head)
        if error is not None or head.sequence != expected:
            found = _next_entry(data, offset, expected, expected + len(data))
            if found is None:
                break
            offset, head = found
            if head.sequence - head.index > expected:
                group_is_whole = True  # damage: behind it begins a group that came later
            elif head.index:
                group_is_whole = False
        elif head.index == 0:
            group_is_whole = True
        offset += head.nbytes
        expected = head.sequence + 1
        if head.remaining == 0 and group_is_whole and offset <= len(data):
            last, end = head.sequence, offset
    return last, end


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _no_room_or_failed(path: Path, error: OSError) -> JournalError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return JournalFullError(f"{path}: {error.strerror}")
    return JournalError(f"{path}: {error}")
