"""An event file rewritten without what no reader shows, so that any TensorBoard shows the same.

What goes:

* checkpoints but the last one, and all version records but the first;
* points that both of TensorBoard's loaders have put others in the place of. The Python loader
  purges what stands before a START of its step or a lower one, from a directory's second START
  on; the fast loader what stands before a point of the same tag, of its step or a lower one.
  After a job was resumed most of what it logged again is such a point. What one of the two
  still shows stays, in its order, and so do the STARTs.

All files of a directory become one, with a later name. It begins

    version record | START | START | what stays ... | the last checkpoint

with two STARTs at the lowest step there is: a Python loader that has read the former files
purges all of that at the second one, and reads it again; a new one has nothing to purge. The
fast loader purges tag by tag as they come again, without being told.

The former files are cut to no bytes, not deleted: a Python loader that was reading one would
fail at it for ever, and never get to the next. The next compaction deletes them.

    .ranktap-compact     the new file, as long as it is not whole
    STATE/compacting     it is whole, and takes the place of these: whoever opens the run next
                         finishes that. Until then both are there, which shows as one of them
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from ranktap_wire.journal import sync_directory
from ranktap_wire.records import STEP_MIN
from ranktapd import event_file
from ranktapd.durable_files import replace_file
from ranktapd.event_file import HEADER_BYTES, TRAILER_BYTES, Ending
from ranktapd.retention import COMPACTING
from ranktapd.runs import RunPlace
from ranktapd.summary_writer import FileStart

PARTIAL: Final = ".ranktap-compact"
STUB_S: Final = 3_600.0
"""A former file is deleted when it was cut this long ago: a TensorBoard has looked since then."""
_WRITE_BYTES: Final = 1 << 20
_NOT_IN_PLACE: Final = -1
"""The tag of a record that stays whatever else comes."""
_WALL_TIME, _STEP, _VERSION, _SESSION_LOG = 0x09, 0x10, 0x1A, 0x3A
"""Keys of an event's fields, in the order in which they stand."""

STAYS, LEFT_OUT, HIDDEN = range(3)
"""What becomes of a record: left out is one that is no point."""

Progress = Callable[[int], None]
"""Told of bytes that were looked at or copied."""


class CompactionError(Exception):
    """A directory stays as it is; the message says why."""


@dataclass(slots=True)
class _Source:
    """One of the former files: its whole records."""

    path: Path
    data: memoryview
    end: int

    def records(self, begin: int = 0) -> Iterator[tuple[int, int]]:
        """Where each begins and ends."""
        data = self.data
        while begin < self.end:
            length = int.from_bytes(data[begin : begin + 8], "little")
            end = begin + HEADER_BYTES + length + TRAILER_BYTES
            yield begin, end
            begin = end

    def payload(self, begin: int, end: int) -> bytes:
        return bytes(self.data[begin + HEADER_BYTES : end - TRAILER_BYTES])


@dataclass(slots=True)
class Plan:
    """What of a directory's event files stays."""

    directory: Path
    start: FileStart
    sources: list[_Source]
    stubs: list[Path]
    """Former files, cut long ago."""
    kept: list[array[int]]
    """Of each file, where what stays begins and ends: alternately."""
    opening: bytes
    closing: bytes
    records: int
    """Points and what else is no mark of the writer's."""
    dropped: int
    """Of those, points that no loader shows."""

    @property
    def before_bytes(self) -> int:
        return sum(len(source.data) for source in self.sources)

    @property
    def after_bytes(self) -> int:
        kept = sum(sum(ranges[1::2]) - sum(ranges[::2]) for ranges in self.kept)
        return len(self.opening) + kept + len(self.closing)

    @property
    def gains(self) -> bool:
        """Whether it is worth it."""
        return len(self.sources) > 1 or self.after_bytes < self.before_bytes


# -- what stays -------------------------------------------------------------------------


def plan(directory: Path, start: FileStart, progress: Progress) -> Plan:
    """What of the event files of a directory would stay; `start` is where its writer is.

    Raises:
        CompactionError: it cannot be compacted.
        OSError: it cannot be read.
    """
    sources, stubs = [], []
    for path in sorted(directory.glob("*tfevents*")):
        source = _open(path, progress)
        if source is not None:
            sources.append(source)
        elif time.time() - path.stat().st_mtime > STUB_S and path.name != start.name:
            stubs.append(path)
    if not sources:
        raise CompactionError(f"{directory} has no event file")
    marks = _Marks()
    for source in sources:
        marks.find(source, may_continue=source.path.name >= start.name)
    if len(marks.starts) > 1:
        _hide(sources, marks)
    first = sources[0]
    begin, end = next(first.records())
    wall_time = Event.FromString(first.payload(begin, end)).wall_time
    opening = bytes(first.data[begin:end]) + 2 * event_file.start_record(wall_time, STEP_MIN)
    fates = marks.fates
    return Plan(
        directory, start, sources, stubs, [*_ranges(sources, fates)], opening, marks.checkpoint,
        len(fates) - fates.count(LEFT_OUT), fates.count(HIDDEN),
    )  # fmt: skip


def _ranges(sources: list[_Source], fates: bytearray) -> Iterator[array[int]]:
    number = 0
    for source in sources:
        ranges = array("Q")
        for begin, end in source.records():
            if fates[number] == STAYS:
                if ranges and ranges[-1] == begin:
                    ranges[-1] = end
                else:
                    ranges.extend((begin, end))
            number += 1
        yield ranges


def _open(path: Path, progress: Progress) -> _Source | None:
    """The file's whole records; None: it has none."""
    size = path.stat().st_size
    if not size:
        return None
    with open(path, "rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    found = event_file.scan(data)
    progress(size)
    if found.ending is Ending.CORRUPT:
        raise CompactionError(f"{path} is damaged at byte {found.end}")
    source = _Source(path, data, found.end)
    first = next(source.records(), None)
    if first is None:
        return None
    writer = Event.FromString(source.payload(*first)).source_metadata.writer
    if writer != "ranktap":
        raise CompactionError(f"{path} was not written by ranktapd")
    return source


@dataclass(slots=True)
class _Marks:
    """What becomes of the records, and those that say something of others."""

    fates: bytearray = field(default_factory=bytearray)
    """By number, from the first file on."""
    starts: list[tuple[int, int]] = field(default_factory=list)
    """(number, step) of each START."""
    checkpoint: bytes = b""
    """The last one of those that count for the writer."""

    def find(self, source: _Source, *, may_continue: bool) -> None:
        for begin, end in source.records():
            fate = STAYS
            key = _key(source.data[begin + HEADER_BYTES : min(end, begin + HEADER_BYTES + 24)])
            if key == _VERSION:
                fate = LEFT_OUT
            elif key == _SESSION_LOG:
                payload = source.payload(begin, end)
                if event_file.read_checkpoint(payload) is not None:
                    fate = LEFT_OUT
                    if may_continue:
                        self.checkpoint = bytes(source.data[begin:end])
                else:
                    fate = self._note_start(Event.FromString(payload))
            self.fates.append(fate)

    def _note_start(self, event: Event) -> int:
        if event.session_log.status != SessionLog.START:
            return STAYS
        self.starts.append((len(self.fates), event.step))
        return LEFT_OUT if len(self.starts) == 1 else STAYS  # ours stand for the first


def _key(payload: memoryview) -> int:
    """The key of the field behind wall time and step of an event; 0: there is none."""
    at = 9 if payload and payload[0] == _WALL_TIME else 0
    if len(payload) > at and payload[at] == _STEP:
        at += 1
        while len(payload) > at and payload[at] & 0x80:
            at += 1
        at += 1
    return payload[at] if len(payload) > at else 0


def _hide(sources: list[_Source], marks: _Marks) -> None:
    """Tell the records of which neither loader shows anything."""
    numbers, steps, tags = array("Q"), array("q"), array("l")
    known: dict[str, int] = {}
    number = 0
    for source in sources:
        for begin, end in source.records():
            if marks.fates[number] == STAYS:
                event = Event.FromString(source.payload(begin, end))
                for tag in _tags(event, known):
                    numbers.append(number)
                    steps.append(event.step)
                    tags.append(tag)
            number += 1
    is_shown = bytearray(len(marks.fates))
    lowest: dict[int, int] = {}
    """Of the points behind, by tag: what the fast loader purges from."""
    starts = marks.starts[1:]
    purged_from: int | None = None
    for at in range(len(numbers) - 1, -1, -1):
        number, step, tag = numbers[at], steps[at], tags[at]
        while starts and starts[-1][0] > number:
            again = starts.pop()[1]
            purged_from = again if purged_from is None else min(purged_from, again)
        by_python = purged_from is not None and step >= purged_from
        by_fast = tag != _NOT_IN_PLACE and tag in lowest and step >= lowest[tag]
        if by_python and by_fast and not is_shown[number]:
            marks.fates[number] = HIDDEN
        else:
            is_shown[number] = True
            marks.fates[number] = STAYS
        lowest[tag] = min(step, lowest.get(tag, step))


def _tags(event: Event, known: dict[str, int]) -> Iterator[int]:
    """The number of the tag of each of its values."""
    if event.WhichOneof("what") != "summary":
        return
    for value in event.summary.value:
        if value.tag not in known:
            known[value.tag] = len(known)
            if value.HasField("metadata"):
                yield _NOT_IN_PLACE  # a tag is what its first value says
        yield known[value.tag] if value.WhichOneof("value") else _NOT_IN_PLACE


# -- putting it in place ----------------------------------------------------------------


def carry_out(place: RunPlace, sub_run: str, plan: Plan, progress: Progress) -> Path:
    """Put one file in the place of a directory's others; where it is.

    The caller holds the run's writer lock.

    Raises:
        CompactionError: what was written is not what was planned: nothing was changed.
        OSError: it cannot be written: nothing was changed, or `complete` ends it.
    """
    partial = plan.directory / PARTIAL
    try:
        _write(partial, plan, progress)
        with open(partial, "rb") as file:
            found = event_file.scan(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        if found.ending is not Ending.COMPLETE or found.end != plan.after_bytes:
            raise CompactionError(f"{partial} was written, and reads as something else")
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    name = _later(plan)
    # Without a checkpoint of its own, the position stands for what former files hold.
    start = FileStart(name) if plan.closing else dataclasses.replace(plan.start, name=name)
    said = {
        "sub_run": sub_run,
        "start": dataclasses.asdict(start),
        "instead_of": [source.path.name for source in plan.sources],
    }
    replace_file(place.state / COMPACTING, [json.dumps(said).encode()])
    complete(place)
    for stub in plan.stubs:
        stub.unlink(missing_ok=True)
    return plan.directory / start.name


def complete(place: RunPlace) -> None:
    """End a compaction that was begun, if there is one. The caller holds the writer lock.

    Raises:
        OSError: it cannot be ended.
    """
    begun = place.state / COMPACTING
    if not begun.exists():
        return
    said = json.loads(begun.read_bytes())
    start = FileStart(**said["start"])
    directory = place.events / said["sub_run"]
    path = directory / start.name
    if (directory / PARTIAL).exists():
        (directory / PARTIAL).rename(path)
        sync_directory(directory)
    if path.exists():  # else someone has deleted all of it
        replace_file(
            place.pointer(said["sub_run"]), [json.dumps(dataclasses.asdict(start)).encode()]
        )
        for name in said["instead_of"]:
            if (directory / name).exists():
                _cut(directory / name)
    begun.unlink()
    sync_directory(place.state)


def _cut(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.ftruncate(fd, 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def _write(path: Path, plan: Plan, progress: Progress) -> None:
    with open(path, "wb", buffering=_WRITE_BYTES) as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(plan.opening)
        for source, ranges in zip(plan.sources, plan.kept, strict=True):
            told = 0
            for begin, end in zip(ranges[::2], ranges[1::2], strict=True):
                for at in range(begin, end, _WRITE_BYTES):
                    file.write(source.data[at : min(at + _WRITE_BYTES, end)])
                if end - told > _WRITE_BYTES:
                    progress(end - told)
                    told = end
            progress(len(source.data) - told)
        file.write(plan.closing)
        file.flush()
        os.fsync(file.fileno())


def _later(plan: Plan) -> str:
    """The name of the new file: the present one's, with a later time."""
    existing = [path.name for path in plan.directory.iterdir()]
    later = event_file.later_name(existing, 0, "", 0, 0, "").removesuffix(".localhost.0.0")
    return later + plan.start.name[len(later) :]
