"""An append-only log of entries in segment files, written by one process and tailed by others.

A segment is named after its first entry's sequence number, `%020d.journal`:

    header   magic "ranktapJ" | version u32 | crc32c u32 | first sequence u64 | 0 u64
    entry    head crc32c u32 | payload crc32c u32 | sequence u64
             length u32 | index u32 | remaining u32 | 0 u32
             payload, `length` bytes, then zeros up to a multiple of 8
    entry    ...

    payload  frame count u32 | 0 u32 | length u64 each | frames, each padded to 8

The header's checksum covers its other fields, the head's checksum the rest of the
head. Little endian throughout. Frames stand at multiples of 8 so that they can be
read as columns in place.

Entries are appended in groups: one write, one `fdatasync`, then everyone in the
group is answered. `index` and `remaining` place an entry in its group. They
tell two things apart that look alike when a checksum is wrong:

* a later entry begins a later group: the bad entry's group had been synced.
  That is damage. It is reported and passed over; what follows is read.
* no later group begins behind it: the last append was cut off. Nobody has been
  answered for it. The writer cuts the whole group off; readers never get there,
  because they read no further than they are told.

The head has a checksum of its own so that a damaged payload is passed over by its
length, and one that was cut off is known to be. With one checksum over both, the next
entry had to be searched for in bytes that a client chose: 40 s for 64 MiB of token
ids, and an entry that was sent as a tensor would have been believed.

`JournalWriter` is the one writer of its directory (the caller holds a lock).
Neither class is thread safe.
"""

from __future__ import annotations

import contextlib
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
_HEAD = struct.Struct("<IIQIIII")
_FRAMES = struct.Struct("<II")
_ZEROS: Final = bytes(8)
_READ_BYTES: Final = 4 * limits.MIB
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
    """Sequence numbers, both included; `first - 1` where no entry was lost."""
    path: Path
    offset: int
    reason: str

    def __str__(self) -> str:
        if self.last < self.first:
            return f"{self.path}: damaged at byte {self.offset} ({self.reason}), no entry is lost"
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


def pack_frames(frames: Sequence[Buffer]) -> list[bytes | memoryview]:
    """The pieces of a payload that holds `frames`, as bytes; large frames are referred to, not
    copied. Together they fill a multiple of 8."""
    views = [byte_view(frame) for frame in frames]
    lengths = [len(view) for view in views]
    pieces: list[bytes | memoryview] = [struct.pack(f"<II{len(views)}Q", len(views), 0, *lengths)]
    for view, length in zip(views, lengths, strict=True):
        pieces.append(view)
        if length % 8:
            pieces.append(_ZEROS[: -length % 8])
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
) -> tuple[list[bytes | memoryview], int]:
    pieces = pack_frames(frames)
    length = sum(map(len, pieces))
    if length > limits.ENTRY_BYTES:
        raise ValueError(f"entry of {length} bytes, at most {limits.ENTRY_BYTES} allowed")
    if length <= _GATHER_BYTES:
        pieces = [b"".join(pieces)]
    checksum = 0
    for piece in pieces:
        checksum = crc32c(piece, checksum)
    blank = _HEAD.pack(0, checksum, sequence, length, index, remaining, 0)
    head = _HEAD.pack(crc32c(blank[4:]), checksum, sequence, length, index, remaining, 0)
    return [head, *pieces], _HEAD.size + length


def whole_segment(first: int, entries: Sequence[Sequence[Buffer]]) -> list[bytes]:
    """The bytes of a segment whose first group is `entries`, each given as frames."""
    pieces = [_segment_header(first)]
    for index, frames in enumerate(entries):
        packed, nbytes = _pack_entry(first + index, index, len(entries) - 1 - index, frames)
        pieces += [*map(bytes, packed), bytes(-nbytes % 8)]
    return pieces


def _segment_header(first: int) -> bytes:
    blank = _SEGMENT.pack(MAGIC, VERSION, 0, first, 0)
    return _SEGMENT.pack(MAGIC, VERSION, crc32c(blank), first, 0)


def _check_segment_header(header: bytes, first: int) -> bool:
    """Whether the header is whole.

    A damaged one costs nothing but a report: it says only what the name and the entries
    say too.

    Raises:
        ValueError: it is whole, and of another version or another segment's.
    """
    if len(header) < _SEGMENT.size:
        return False
    magic, version, checksum, named, zero = _SEGMENT.unpack(header)
    if magic != MAGIC or crc32c(_SEGMENT.pack(magic, version, 0, named, zero)) != checksum:
        return False
    if version != VERSION:
        raise ValueError(f"version {version} of the format, this release reads {VERSION}")
    if named != first:
        raise ValueError(f"it begins with entry {named}, its name says {first}")
    return True


@dataclass(slots=True)
class _Head:
    """What stands before an entry's payload."""

    checksum: int
    sequence: int
    length: int
    index: int
    remaining: int

    @property
    def nbytes(self) -> int:
        """Entry and padding."""
        return _HEAD.size + self.length + -self.length % 8

    @classmethod
    def read(cls, data: memoryview, offset: int) -> _Head | None:
        """The head at `offset`; None: there is none, or a damaged one."""
        if len(data) < offset + _HEAD.size:
            return None
        own, checksum, sequence, length, index, remaining, zero = _HEAD.unpack_from(data, offset)
        if crc32c(data[offset + 4 : offset + _HEAD.size]) != own:
            return None
        if zero or length > limits.ENTRY_BYTES:
            return None
        return cls(checksum, sequence, length, index, remaining)

    def is_proved_by(self, payload: memoryview) -> bool:
        return len(payload) == self.length and crc32c(payload) == self.checksum


def _next_head(data: memoryview, offset: int, low: int, high: int) -> tuple[int, _Head] | None:
    """The first head from `offset` on whose sequence number is from `low` to `high`."""
    words = np.frombuffer(data[: len(data) // 8 * 8], "<u8")
    start = (offset + 7) // 8
    # The sequence number is a head's second word, and hardly any other word looks like one.
    candidates = np.flatnonzero((words[start + 1 :] >= low) & (words[start + 1 :] <= high)) + start
    for candidate in candidates.tolist():
        head = _Head.read(data, candidate * 8)
        if head is not None:
            return candidate * 8, head
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
        if self._segment != self.position.segment and not self._open(self.position.segment):
            path = segment_path(self.directory, self._segment)
            return Damage(expected, expected - 1, path, 0, "checksum mismatch of its header")
        offset = self.position.offset
        data = self._read(offset, _HEAD.size)
        at_end = not data and expected > self._segment
        if at_end and segment_path(self.directory, expected).exists():
            self.position = Position(expected - 1, expected, _SEGMENT.size)
            return self._next(upto)
        head = _Head.read(data, 0)
        if head is None:
            short = len(data) < _HEAD.size
            reason = "the segment ends before it" if short else "checksum mismatch of its head"
            return self._pass_over(upto, offset, reason)
        if head.sequence != expected:
            return self._pass_over(upto, offset, f"its number is {head.sequence}")
        payload = self._read(offset, _HEAD.size + head.length)[_HEAD.size :]
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
        found = _next_head(rest, 0, first, min([upto, *(number - 1 for number in later[:1])]))
        if found is not None:
            at, head = found
            self.position = Position(head.sequence - 1, segment, search_from + at)
        elif later and later[0] <= upto:
            holds_first = max((number for number in later if number <= first), default=later[0])
            self.position = Position(max(first, holds_first) - 1, holds_first, _SEGMENT.size)
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
            is_whole = _check_segment_header(os.pread(self._fd, _SEGMENT.size, 0), segment)
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
        if self._offset == _SEGMENT.size and self._last:
            # Not only now: the first group of a new segment may have failed, or been cut off.
            entries = [*self._preamble(), *entries]
        pieces: list[bytes | memoryview] = []
        total = 0
        for index, frames in enumerate(entries):
            packed, nbytes = _pack_entry(
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
            left = memoryview(_segment_header(first))
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
        self._fd, self._segment, self._offset = fd, first, _SEGMENT.size

    def _recover(self, segment: int) -> None:
        """Find the end of the last whole group and cut off what follows it."""
        path = segment_path(self.directory, segment)
        self._segment = segment
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        data = memoryview(path.read_bytes())
        try:
            is_whole = _check_segment_header(bytes(data[: _SEGMENT.size]), segment)
        except ValueError as error:
            raise JournalError(f"{path}: {error}") from error
        self._last, self._offset = _end_of_groups(data, segment)
        if not is_whole and self._last < segment:
            if len(data) > _SEGMENT.size and np.frombuffer(data, np.uint8).any():
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


def _end_of_groups(data: memoryview, segment: int) -> tuple[int, int]:
    """The last sequence number of the last whole group in a segment, and the offset behind it."""
    last, end = segment - 1, _SEGMENT.size
    offset, expected = end, segment
    group_is_whole = False
    while True:
        head = _Head.read(data, offset)
        if head is None or head.sequence != expected:
            found = _next_head(data, offset, expected, expected + len(data))
            if found is None:
                return last, end
            offset, head = found
            group_is_whole = False
        if head.index == 0:
            group_is_whole = True
        payload = data[offset + _HEAD.size : offset + _HEAD.size + head.length]
        if not head.is_proved_by(payload):
            group_is_whole = False
        offset += head.nbytes
        expected = head.sequence + 1
        if head.remaining == 0 and group_is_whole and offset <= len(data):
            last, end = head.sequence, offset


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
