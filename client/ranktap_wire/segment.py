"""A segment file of a journal: how it is named, and how entries lie in it.

A segment is named after its first entry's sequence number, `%020d.journal`:

    header   magic "ranktapJ" | version u32 | crc32c u32 | first sequence u64 | 0 u64
    entry    head crc32c u32 | payload crc32c u32 | sequence u64
             length u32 | index u32 | remaining u32 | 0 u32
             payload, `length` bytes, then zeros up to a multiple of 8
    entry    ...

    payload  frame count u32 | 0 u32 | length u64 each | frames, each padded to 8

The header's checksum covers its other fields, the head's checksum the rest of the
head. Little endian throughout. Frames stand at multiples of 8 so that they can be
read as columns in place. `index` and `remaining` place an entry in the group that it
was appended with.

The head has a checksum of its own so that a damaged payload is passed over by its
length, and one that was cut off is known to be. With one checksum over both, the next
entry had to be searched for in bytes that a client chose: 40 s for 64 MiB of token
ids, and an entry that was sent as a tensor would have been believed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
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

_HEADER = struct.Struct("<8sIIQQ")
_HEAD = struct.Struct("<IIQIIII")
_FRAMES = struct.Struct("<II")
_ZEROS: Final = bytes(8)
_GATHER_BYTES: Final = 64 * limits.KIB  # below this, copying beats one more iovec

HEADER_BYTES: Final = _HEADER.size
"""Before a segment's first entry."""
HEAD_BYTES: Final = _HEAD.size
"""Before an entry's payload."""


# -- places -----------------------------------------------------------------------------


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


START: Final = Position(0, 1, HEADER_BYTES)


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


def segment_path(directory: Path, first: int) -> Path:
    """Where the segment that begins with entry `first` is."""
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


def pack_entry(
    sequence: int, index: int, remaining: int, frames: Sequence[Buffer]
) -> tuple[list[bytes | memoryview], int]:
    """The pieces of an entry, and how many bytes they are together.

    Raises:
        ValueError: it is over limits.ENTRY_BYTES.
    """
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
    return [head, *pieces], HEAD_BYTES + length


def whole_segment(first: int, entries: Sequence[Sequence[Buffer]]) -> list[bytes]:
    """The bytes of a segment whose first group is `entries`, each given as frames."""
    pieces = [pack_header(first)]
    for index, frames in enumerate(entries):
        packed, nbytes = pack_entry(first + index, index, len(entries) - 1 - index, frames)
        pieces += [*map(bytes, packed), bytes(-nbytes % 8)]
    return pieces


def pack_header(first: int) -> bytes:
    """What a segment that begins with entry `first` begins with."""
    blank = _HEADER.pack(MAGIC, VERSION, 0, first, 0)
    return _HEADER.pack(MAGIC, VERSION, crc32c(blank), first, 0)


def check_header(header: bytes, first: int) -> bool:
    """Whether the header is whole.

    A damaged one costs nothing but a report: it says only what the name and the entries
    say too.

    Raises:
        ValueError: it is whole, and of another version or another segment's.
    """
    if len(header) < HEADER_BYTES:
        return False
    magic, version, checksum, named, zero = _HEADER.unpack(header)
    if magic != MAGIC or crc32c(_HEADER.pack(magic, version, 0, named, zero)) != checksum:
        return False
    if version != VERSION:
        raise ValueError(f"version {version} of the format, this release reads {VERSION}")
    if named != first:
        raise ValueError(f"it begins with entry {named}, its name says {first}")
    return True


@dataclass(slots=True)
class Head:
    """What stands before an entry's payload."""

    checksum: int
    sequence: int
    length: int
    index: int
    remaining: int

    @property
    def nbytes(self) -> int:
        """Entry and padding."""
        return HEAD_BYTES + self.length + -self.length % 8

    @classmethod
    def read(cls, data: memoryview, offset: int) -> Head | None:
        """The head at `offset`; None: there is none, or a damaged one."""
        if len(data) < offset + HEAD_BYTES:
            return None
        own, checksum, sequence, length, index, remaining, zero = _HEAD.unpack_from(data, offset)
        if crc32c(data[offset + 4 : offset + HEAD_BYTES]) != own:
            return None
        if zero or length > limits.ENTRY_BYTES:
            return None
        return cls(checksum, sequence, length, index, remaining)

    def is_proved_by(self, payload: memoryview) -> bool:
        """Whether these are the bytes that were written behind it."""
        return len(payload) == self.length and crc32c(payload) == self.checksum


def next_head(data: memoryview, offset: int, low: int, high: int) -> tuple[int, Head] | None:
    """The first head from `offset` on whose sequence number is from `low` to `high`."""
    words = np.frombuffer(data[: len(data) // 8 * 8], "<u8")
    start = (offset + 7) // 8
    # The sequence number is a head's second word, and hardly any other word looks like one.
    candidates = np.flatnonzero((words[start + 1 :] >= low) & (words[start + 1 :] <= high)) + start
    for candidate in candidates.tolist():
        head = Head.read(data, candidate * 8)
        if head is not None:
            return candidate * 8, head
    return None


def end_of_groups(data: memoryview, segment: int) -> tuple[int, int]:
    """The last sequence number of the last whole group in a segment, and the offset behind it."""
    last, end = segment - 1, HEADER_BYTES
    offset, expected = end, segment
    group_is_whole = False
    while True:
        head = Head.read(data, offset)
        if head is None or head.sequence != expected:
            found = next_head(data, offset, expected, expected + len(data))
            if found is None:
                return last, end
            offset, head = found
            group_is_whole = False
        if head.index == 0:
            group_is_whole = True
        payload = data[offset + HEAD_BYTES : offset + HEAD_BYTES + head.length]
        if not head.is_proved_by(payload):
            group_is_whole = False
        offset += head.nbytes
        expected = head.sequence + 1
        if head.remaining == 0 and group_is_whole and offset <= len(data):
            last, end = head.sequence, offset
