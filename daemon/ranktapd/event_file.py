"""TensorBoard's event files: their names, their records, and what of one is whole.

An event file is a TFRecord file: records and nothing between them.

    offset     bytes  what
    0          8      n, the payload's length, little-endian
    8          4      masked CRC-32C of those 8 bytes
    12         n      payload: a serialized `Event`
    12 + n     4      masked CRC-32C of the payload

TensorBoard's Python loader stops for good at the first record that does not
check, its fast loader at the first one that makes no sense; so nothing may ever
be appended behind one. Nor is space preallocated: zeros are no record either
(tensorboard issue 5588).

A checkpoint is an `Event` whose `session_log` is {CHECKPOINT, "ranktap:" +
position}; TensorBoard passes over it. It has no step, so that `session_log`
comes first or directly behind the wall time: that one look at two bytes tells
every other record apart is what makes `scan` affordable.

No function here reads a clock: times are arguments.

Source: tensorflow/core/lib/io/record_writer.h (format), tensorflow/core/lib/
hash/crc32c.h (masking).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from struct import Struct
from typing import TYPE_CHECKING, Final

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorboard.compat.proto.event_pb2 import Event, SessionLog, SourceMetadata

from ranktap_wire.checksum import crc32c
from ranktap_wire.limits import SUFFIX_BYTES

if TYPE_CHECKING:
    from typing_extensions import Buffer

HEADER_BYTES: Final = 12
"""Length and its checksum, before the payload."""

TRAILER_BYTES: Final = 4
"""The payload's checksum, behind it."""

MASK_DELTA: Final = 0xA282EAD8
"""Added to a rotated CRC. The format masks checksums because the CRC of a string
that contains its own CRC says little (crc32c.h)."""

_LENGTH: Final = Struct("<Q")
_CRC: Final = Struct("<I")


# -- records ------------------------------------------------------------------------------


def masked_crc32c(data: Buffer) -> int:
    """The checksum as the format stores it."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + MASK_DELTA) & 0xFFFFFFFF


@lru_cache(maxsize=4096)  # nearly all records are scalars, of a few dozen lengths
def header(payload_bytes: int) -> bytes:
    """The 12 bytes that stand before a payload of that length."""
    length = _LENGTH.pack(payload_bytes)
    return length + _CRC.pack(masked_crc32c(length))


def frame(payload: Buffer) -> bytes:
    """One record: `payload`, which must be contiguous, with what stands before and behind."""
    size = len(payload) if isinstance(payload, bytes) else memoryview(payload).nbytes
    return b"".join((header(size), payload, _CRC.pack(masked_crc32c(payload))))


def version_record(wall_time: float) -> bytes:
    """The record that every event file begins with."""
    return _framed(
        Event(
            wall_time=wall_time,
            file_version="brain.Event:2",
            source_metadata=SourceMetadata(writer="ranktap"),
        )
    )


def start_record(wall_time: float, step: int) -> bytes:
    """A session's beginning: what older sessions wrote from `step` on is out of date.

    TensorBoard's Python loader purges it from the second START of a run on. Its
    fast loader passes over this record and purges a tag when it is written again.
    """
    start = SessionLog(status=SessionLog.START)
    return _framed(Event(wall_time=wall_time, step=step, session_log=start))


_CHECKPOINT_MARK: Final = "ranktap:"
_SESSION_LOG_KEY: Final = b"\x3a"  # field 7, length-delimited
_WALL_TIME_BYTES: Final = 9  # the field of a wall time: key and float64


def checkpoint_record(wall_time: float, position: str) -> bytes:
    """Says that everything up to `position` of the journal stands before this record."""
    log = SessionLog(status=SessionLog.CHECKPOINT, msg=_CHECKPOINT_MARK + position)
    return _framed(Event(wall_time=wall_time, session_log=log))


def read_checkpoint(payload: bytes) -> str | None:
    """The position in a `checkpoint_record`'s payload; None for any other payload."""
    if (
        payload[_WALL_TIME_BYTES : _WALL_TIME_BYTES + 1] != _SESSION_LOG_KEY
        and payload[:1] != _SESSION_LOG_KEY  # proto3 leaves a wall time of 0 out
    ):
        return None  # 0.14 us; parsing a scalar takes 0.45 us
    try:
        log = Event.FromString(payload).session_log
    except DecodeError:
        return None
    msg: str = log.msg
    if log.status != SessionLog.CHECKPOINT or not msg.startswith(_CHECKPOINT_MARK):
        return None
    return msg.removeprefix(_CHECKPOINT_MARK)


def _framed(event: Event) -> bytes:
    return frame(event.SerializeToString())


# -- reading ------------------------------------------------------------------------------


class Ending(enum.Enum):
    """What stands behind the last whole record."""

    COMPLETE = enum.auto()
    """Nothing."""

    TORN = enum.auto()
    """What an interrupted write leaves: part of one record, or a record whose
    checksum fails with nothing behind it or only zeros (a file whose size
    reached the disk before its data did). Everything before it is as written."""

    CORRUPT = enum.auto()
    """A length or a payload that fails its checksum, with more data behind it:
    the file was changed after it was written. Whole records may follow, but
    no reader gets to them."""


@dataclass(frozen=True, slots=True)
class Scan:
    """How far an event file is whole, and its last checkpoint. Offsets are in bytes."""

    ending: Ending
    end: int
    """Behind the last whole record: where the next one belongs."""
    records: int
    """Whole records up to `end`, checkpoints and the version record included."""
    checkpoint: str | None
    """The last checkpoint's position in the journal; None if there is none."""
    checkpoint_end: int
    """Behind the last checkpoint record; 0 if there is none."""
    checkpoint_records: int
    """Whole records up to `checkpoint_end`; 0 if there is none."""

    @property
    def records_behind(self) -> int:
        """Whole records behind the last checkpoint; all of them if there is none."""
        return self.records - self.checkpoint_records


_BLOCK_BYTES: Final = 1 << 20  # read at a time; 256 KiB and 4 MiB are as fast


def scan(data: Buffer) -> Scan:
    """Read an event file as far as it is whole.

    `data` is all of the file; give an `mmap` of a large one (an empty file
    cannot be mapped: give `b""`). A copy is made of 1 MiB or of one record at
    a time, whichever is more.

    Every payload's checksum is computed, not just the tail's. A damaged record
    in the middle hides all behind it from TensorBoard, so a file that has one
    must not be continued, and nothing but its checksum tells.

    A record takes 0.55 us: 5 s for 500 MB of nothing but scalars, 8 million of
    them. Checking record by record took 0.9 us. Finding the records' ends with
    numpy too (six zeros in a row, then the checksum that fits) would save
    another 0.1 us, for as much code again.
    """
    view = memoryview(data).cast("B")
    size = view.nbytes
    lengths: dict[bytes, int] = {}
    base = records = checkpoint_records = checkpoint_end = 0
    checkpoint = None
    wanted = HEADER_BYTES  # so many bytes from `base` on say more

    while base + wanted <= size:
        block = bytes(view[base : base + max(wanted, _BLOCK_BYTES)])
        ends, wanted = _record_ends(block, lengths)
        whole = _count_valid(block, ends)
        for record in _session_logs(block, ends[: whole + 1]):
            start, end = ends[record], ends[record + 1]
            position = read_checkpoint(block[start + HEADER_BYTES : end - TRAILER_BYTES])
            if position is not None:
                checkpoint, checkpoint_end = position, base + end
                checkpoint_records = records + record + 1
        records += whole
        base += ends[whole]
        if whole + 1 < len(ends):
            failing_bytes = ends[whole + 1] - ends[whole]
        elif not wanted:
            failing_bytes = HEADER_BYTES
        else:
            continue
        ending = _ending(view[base + failing_bytes :])
        break
    else:
        ending = Ending.COMPLETE if base == size else Ending.TORN

    return Scan(ending, base, records, checkpoint, checkpoint_end, checkpoint_records)


def _record_ends(block: bytes, lengths: dict[bytes, int]) -> tuple[list[int], int]:
    """Where the records of a block end, by their headers alone; and what it would take to go on.

    The first item is 0, the first record's beginning. The number is how many
    bytes are needed from the last end on, or 0 if what is there is no header.
    `lengths` remembers the headers that checked: most are of a few lengths.
    """
    ends = [0]
    at = 0
    while True:
        head = block[at : at + HEADER_BYTES]
        length = lengths.get(head)
        if length is None:
            if len(head) < HEADER_BYTES:
                return ends, HEADER_BYTES
            (length,) = _LENGTH.unpack_from(head)
            if header(length) != head:
                return ends, 0
            if len(lengths) < 65_536:  # 10 MB
                lengths[head] = length
        end = at + HEADER_BYTES + length + TRAILER_BYTES
        if end > len(block):
            return ends, end - at
        ends.append(end)
        at = end


def _count_valid(block: bytes, ends: list[int]) -> int:
    """How many records from the first on have the checksum of their payload behind it."""
    if len(ends) == 1:
        return 0
    crcs = [
        crc32c(block[start + HEADER_BYTES : end - TRAILER_BYTES]) for start, end in pairwise(ends)
    ]
    crc = np.array(crcs, np.uint32)
    masked = ((crc >> 15) | (crc << 17)) + np.uint32(MASK_DELTA)
    at_every_byte = np.ndarray(len(block) - 3, "<u4", block, 0, (1,))
    damaged = np.flatnonzero(masked != at_every_byte[np.array(ends[1:]) - TRAILER_BYTES])
    return int(damaged[0]) if len(damaged) else len(crcs)


def _session_logs(block: bytes, ends: list[int]) -> list[int]:
    """Which of the records may hold a session log, by number, ascending."""
    payloads = np.array(ends[:-1], np.intp) + HEADER_BYTES
    data = np.frombuffer(block, np.uint8)
    key = _SESSION_LOG_KEY[0]
    # The tenth byte of a shorter payload is another record's or nobody's, and does no harm.
    tenth = np.minimum(payloads + _WALL_TIME_BYTES, len(block) - 1)
    found: list[int] = np.flatnonzero((data[payloads] == key) | (data[tenth] == key)).tolist()
    return found


def _ending(behind: memoryview) -> Ending:
    """Which ending a record that fails its checksum makes, with these bytes behind it."""
    return Ending.CORRUPT if np.frombuffer(behind, np.uint8).any() else Ending.TORN


# -- names --------------------------------------------------------------------------------

_TIME_DIGITS: Final = 10  # TensorBoard's own width, good until the year 2286
_TIME: Final = re.compile(rf"events\.out\.tfevents\.([0-9]{{1,{_TIME_DIGITS}}})")
_HOST_CHARACTERS: Final = 64  # HOST_NAME_MAX of Linux


def file_name(created: int, host: str, pid: int, uid: int, suffix: str) -> str:
    """The name of an event file, as TensorBoard's own writer would give it.

    `created` is in whole seconds since 1970; it is the part that orders a run's
    files, so it has a fixed width. What could leave the directory or not be in
    a file name becomes `_` in `host` and `suffix`, and what is too long is cut.

    Raises:
        ValueError: `created` does not fit 10 digits.
    """
    if not 0 <= created < 10**_TIME_DIGITS:
        raise ValueError(f"created must be from 0 to {10**_TIME_DIGITS - 1}, not {created}")
    host = re.sub(r"[^A-Za-z0-9_.-]", "_", host)[:_HOST_CHARACTERS] or "localhost"
    suffix = re.sub(r"[/\x00-\x1f\x7f]", "_", suffix)
    suffix = suffix.encode(errors="replace")[:SUFFIX_BYTES].decode(errors="ignore")
    return f"events.out.tfevents.{created:0{_TIME_DIGITS}d}.{host}.{pid}.{uid}{suffix}"


def later_name(
    existing: Iterable[str], created: int, host: str, pid: int, uid: int, suffix: str
) -> str:
    """The `file_name` of a new file which TensorBoard reads after all `existing` ones.

    `existing` are the names in the run's directory; those that do not begin as
    an event file's are passed over. The time in the name is `created`, or the
    last one's and one second when the clock has not passed that.

    TensorBoard reads a run's files in the order of their names, and its Python
    loader never goes back to one that sorts before the last it has read.
    """
    for name in existing:
        if match := _TIME.match(name):
            # A shorter time sorts as if zeros followed it, a longer one by its first digits.
            created = max(created, int(match[1].ljust(_TIME_DIGITS, "0")) + 1)
    return file_name(created, host, pid, uid, suffix)
