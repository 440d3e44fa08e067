"""`ranktapd tail`: what a run logs, as it arrives in its event file.

It is one of the daemon's commands because it reads event files, of which clients know
nothing. It only reads them: no daemon need run, and one that does never notices.

The end of a file is found without reading all of it: a record begins where twelve bytes are
a length and its checksum. From there on what is whole is shown; a record that is not is
being written, and is looked at again. A run's files follow each other by their names.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.util import tensor_util

from ranktap_wire import rules
from ranktapd import event_file
from ranktapd.event_file import HEADER_BYTES, TRAILER_BYTES

LOOK_S: Final = 0.1
"""How often it is looked for more: a value should be shown a second after the call."""
READ_BYTES: Final = 1 << 20
"""What is read at a time, and how far before the end a record is first looked for."""
TEXT_CHARACTERS: Final = 100
"""What of a text is shown: about a line."""

_DESCRIPTION = """\
Shows what a run logs as it arrives in its event file: time, step, tag, value. What one rank
logs alone is here within a second of its call, what several log when all of them have.

  ranktapd tail digits/lr=0.1 --logdir runs
  ranktapd tail digits/lr=0.1 --logdir runs --tag 'loss/*' --tag accuracy
  ranktapd tail digits/lr=0.1 --logdir runs -n 1000 --no-follow

A sub-run is named RUN/SUB-RUN. Ctrl-C ends it.
"""


class TailError(Exception):
    """There is nothing to show; the message is for the person who asked."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="ranktapd tail",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="the run, as TensorBoard names it; '.' is the logdir itself")
    add("--logdir", type=Path, metavar="DIR", required=True, help="where its event files are")
    add("--tag", action="append", metavar="PATTERN",
        help="only tags like this: * is anything; may be given several times (all)")  # fmt: skip
    add("-n", "--lines", type=int, default=10, metavar="N", help="begin with the last N (10)")
    add("--no-follow", dest="follow", action="store_false", help="end where the file does")
    options = parser.parse_args(arguments)
    try:
        tail = RunTail(options.logdir, options.run, options.tag or ["*"])
        for line in tail.last(options.lines):
            print(line)
        sys.stdout.flush()
        while options.follow:
            for line in tail.more():
                print(line)
            sys.stdout.flush()
            time.sleep(LOOK_S)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read it has had enough; what is left must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (TailError, OSError) as error:
        print(f"ranktapd tail: {error}", file=sys.stderr)
        return 1
    return 0


class RunTail:
    """The lines of one run's event files whose tag is like one of `patterns`.

    Raises:
        TailError: there is no such run.
    """

    def __init__(self, logdir: Path, run: str, patterns: Sequence[str]) -> None:
        try:
            rules.check_run(run)
        except ValueError as error:
            raise TailError(str(error)) from None
        self._directory = logdir / run
        self._patterns = patterns
        names = self._names()
        if not names:
            raise TailError(
                f"run: expected one with an event file below {logdir}, got {run!r}: "
                f"{self._directory} has none"
            )
        self._file = EventTail(self._directory / names[-1])

    def last(self, count: int) -> list[str]:
        """The last lines of the file that is written now, at most `count`."""
        size = READ_BYTES
        while True:
            self._file.seek_back(size)
            found = deque(self._lines(), max(count, 0))
            if len(found) >= count or size >= self._file.offset:
                return list(found)
            size *= 8

    def more(self) -> Iterator[str]:
        """What has come since."""
        yield from self._lines()
        later = [name for name in self._names() if name > self._file.path.name]
        if later:
            # The former one is never written again, but it was until now.
            yield from self._lines()
            was_compacted = self._file.was_cut
            self._file.close()
            self._file = EventTail(self._directory / later[0])
            if was_compacted:
                # What it holds now is what the former one held, which was shown.
                self._file.seek_back(READ_BYTES)
                for _ in self._file.payloads():
                    pass
            yield from self._lines()

    def _names(self) -> list[str]:
        return sorted(path.name for path in self._directory.glob("*tfevents*"))

    def _lines(self) -> Iterator[str]:
        for payload in self._file.payloads():
            for tag, line in shown(payload):
                if any(fnmatchcase(tag, pattern) for pattern in self._patterns):
                    yield line


# -- the file ---------------------------------------------------------------------------


class EventTail:
    """Whole records of an event file that is being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        """Behind the last record that was given."""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._is_told = False

    def seek_back(self, nbytes: int) -> None:
        """Go to the first record in the last so many bytes, or in more where there is none."""
        size = os.fstat(self._fd).st_size
        while nbytes < size:
            found = _first_record(os.pread(self._fd, nbytes, size - nbytes))
            if found is not None:
                self.offset = size - nbytes + found
                return
            nbytes *= 8
        self.offset = 0

    @property
    def was_cut(self) -> bool:
        """Whether what was shown of it is not there any more, see compaction.py."""
        return os.fstat(self._fd).st_size < self.offset

    def payloads(self) -> Iterator[bytes]:
        """What is whole behind `offset`, which is behind it afterwards."""
        wanted = READ_BYTES
        while True:
            block = os.pread(self._fd, wanted, self.offset)
            at = 0
            while (size := _record_bytes(block, at)) and at + size <= len(block):
                if not _is_proved(block, at, size):
                    size = 0
                    break
                yield block[at + HEADER_BYTES : at + size - TRAILER_BYTES]
                at += size
            self.offset += at
            if size == 0:
                self._tell_damage()
                return
            if len(block) < wanted:
                return
            wanted = max(READ_BYTES, size or 0)  # with the record that was read in part

    def close(self) -> None:
        os.close(self._fd)

    def _tell_damage(self) -> None:
        # A power cut leaves zeros at the end, which the daemon puts right when it starts.
        if not self._is_told:
            self._is_told = True
            print(f"{self.path}: no record at byte {self.offset}; nothing behind it is shown until "
                  "there is one", file=sys.stderr)  # fmt: skip


def _record_bytes(block: bytes, at: int) -> int | None:
    """How long the record at `at` is; 0: there is none, None: it cannot be told yet."""
    head = block[at : at + HEADER_BYTES]
    if len(head) < HEADER_BYTES:
        return None
    length = int.from_bytes(head[:8], "little")
    return HEADER_BYTES + length + TRAILER_BYTES if event_file.header(length) == head else 0


def _is_proved(block: bytes, at: int, size: int) -> bool:
    end = at + size - TRAILER_BYTES
    checksum = event_file.masked_crc32c(memoryview(block)[at + HEADER_BYTES : end])
    return checksum.to_bytes(TRAILER_BYTES, "little") == block[end : end + TRAILER_BYTES]


def _first_record(block: bytes) -> int | None:
    """Where the first whole record begins in bytes that begin anywhere."""
    if len(block) < HEADER_BYTES:
        return None
    lengths = np.ndarray(len(block) - 7, "<u8", block, 0, (1,))
    # No event is empty, and zeros are many.
    for at in np.flatnonzero((lengths > 0) & (lengths < len(block))).tolist():
        size = _record_bytes(block, at)
        if size and at + size <= len(block) and _is_proved(block, at, size):
            return int(at)
    return None


# -- lines ------------------------------------------------------------------------------


def shown(payload: bytes) -> Iterator[tuple[str, str]]:
    """Tag and line of each value of an event."""
    try:
        event = Event.FromString(payload)
    except DecodeError:
        return
    when = _time(event.wall_time)
    if event.session_log.status == SessionLog.START and event.step:
        yield "", f"{when}  {event.step:>8}  begins again at this step"
    for value in event.summary.value:
        yield value.tag, f"{when}  {event.step:>8}  {_printable(value.tag)}  {_content(value)}"


def _time(wall_time: float) -> str:
    try:
        return f"{datetime.fromtimestamp(wall_time):%m-%d %H:%M:%S.%f}"[:-3]
    except (ValueError, OverflowError, OSError):
        return f"{wall_time:.6g}"  # a user may give any


def _content(value: Any) -> str:
    """A value of a summary, in some words."""
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        return f"{value.simple_value:.6g}"
    if kind == "image":
        return f"(picture, {value.image.width} x {value.image.height})"
    if kind == "histo":
        histogram = value.histo
        return f"({histogram.num:,.0f} values, {histogram.min:.6g} to {histogram.max:.6g})"
    if kind == "audio":
        return f"(sound, {value.audio.length_frames} frames)"
    plugin = value.metadata.plugin_data.plugin_name
    shape = tuple(dimension.size for dimension in value.tensor.tensor_shape.dim)
    if plugin == "text" and value.tensor.string_val:
        text = _printable(value.tensor.string_val[0].decode(errors="replace"))
        return text if len(text) <= TEXT_CHARACTERS else text[: TEXT_CHARACTERS - 1] + "…"
    if not shape and not value.tensor.string_val:
        return f"{tensor_util.make_ndarray(value.tensor).item():.6g}"
    return f"({plugin or 'tensor'}, {' x '.join(map(str, shape)) or 'one'})"


def _printable(text: str) -> str:
    """The text on one line, without what a terminal would obey."""
    return "".join(each if each.isprintable() else " " for each in text)
