"""What stands in a spool: batches of sessions that have not reached a daemon.

    DIR/.ranktap-spool                          says what DIR is
    DIR/<run>/00003-<session>/lock              held by the process that has the session in hand
    DIR/<run>/00003-<session>/<n>.journal       segments, see ranktap_wire.segment
    DIR/<run>/00003-<session>/reached           a daemon has welcomed it, at a sync

    entry    words, a msgpack map | frames of a message, as they travel
             {"kind": "session", "reached": bool}                        | hello
             {"kind": "batch", "number", "at", "scalars", "blobs"}       | header, buffers

The first entry of each segment is the session, so that a segment is understood by itself.
`at` is the wall time at which the batch was sealed, `reached` whether a daemon had heard of
the session by then.

A session has one file each for its lock and its segments, so ranks that share DIR never
write to the same file. The lock is a record lock (fcntl): a forked child does not have it,
and the end of the process, whatever it was, lets go of it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgpack

from ranktap_wire import frames, rules
from ranktap_wire.journal import JournalReader
from ranktap_wire.messages import FrameError, Hello
from ranktap_wire.records import Batch, Buffer, byte_view
from ranktap_wire.segment import START, Damage, Entry, Position, segment_path, segments

MARKER: Final = ".ranktap-spool"
LOCK: Final = "lock"
REACHED: Final = "reached"
DAMAGED: Final = ".damaged"
"""Behind the name of a segment that could not be read whole, once the rest of it has arrived."""
MARKER_TEXT: Final = (
    "What ranks of a job have logged and could not send to ranktapd.\n"
    "`ranktap sync` with this directory sends it; see `ranktap sync --help`.\n"
)


_SESSION: Final = re.compile(r"\d{5,}-[0-9a-f]{32}")
"""What a session's directory is called."""


class SpoolError(Exception):
    """A session in a spool cannot be read. The message says which, and why."""


class InUseError(Exception):
    """Another process has the session in hand."""


def session_directory(spool: Path, hello: Hello) -> Path:
    """Where a session's batches are."""
    name = f"{hello.rank:05d}-{hello.session.hex()}"
    return spool / rules.run_directory_name(hello.run) / name


class SessionLock:
    """The lock of a session's directory, from its making until `release`.

    Raises:
        InUseError: another process has it.
        OSError: it cannot be had, as where a file system has no locks.
    """

    def __init__(self, directory: Path) -> None:
        self._fd = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise InUseError(f"{directory}: another process has it in hand") from None
            raise

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


# -- entries ------------------------------------------------------------------------------


@dataclass(slots=True)
class Loaded:
    """A batch as it was read: frames to send as they are."""

    number: int
    at: float
    scalars: int
    blobs: int
    parts: list[Buffer]
    nbytes: int


@dataclass(slots=True)
class Opening:
    """What a segment says of its session."""

    hello: Hello
    reached: bool
    """A daemon had heard of it when this was written."""


def pack_opening(hello: Hello, *, reached: bool) -> list[Buffer]:
    """The entry that a segment begins with."""
    words = {"kind": "session", "reached": reached}
    return [msgpack.packb(words), *frames.pack_hello(hello)]


def pack_batch(session: bytes, number: int, batch: Batch, at: float) -> list[Buffer]:
    """A batch's entry."""
    scalars = 0 if batch.columns is None else len(batch.columns)
    words = {
        "kind": "batch", "number": number, "at": at,
        "scalars": scalars, "blobs": len(batch.blobs),
    }  # fmt: skip
    return [msgpack.packb(words), *frames.pack_batch(session, number, batch)]


def read_entry(entry: Entry, where: Path) -> Opening | Loaded:
    """What an entry says.

    Raises:
        SpoolError: it is of a release that this one does not know.
    """
    try:
        words: dict[str, Any] = msgpack.unpackb(entry.frames[0])
        parts: list[Buffer] = list(entry.frames[1:])
        if words["kind"] == "session":
            hello = frames.read_message(parts)
            if not isinstance(hello, Hello):
                raise ValueError("no hello")
            return Opening(hello, bool(words["reached"]))
        if words["kind"] != "batch":
            raise ValueError(f"kind {words['kind']!r}")
        nbytes = sum(byte_view(part).nbytes for part in parts)
        number, at = int(words["number"]), float(words["at"])
        return Loaded(number, at, int(words["scalars"]), int(words["blobs"]), parts, nbytes)
    except (FrameError, LookupError, TypeError, ValueError) as error:
        raise SpoolError(
            f"{where}: entry {entry.sequence} is not one that this release of ranktap knows "
            f"({rules.shown(error)})"
        ) from None


# -- reading ------------------------------------------------------------------------------


class SpoolReader:
    """A session's batches in order, and the deletion of what has arrived. Not thread safe.

    Numbers have no gaps: in place of a batch that is damaged there is an empty one, because a
    daemon takes only the number that follows the last.
    """

    def __init__(self, directory: Path, session: bytes, last: int | None = None) -> None:
        first = min(segments(directory), default=None)
        if first is None:
            raise FileNotFoundError(errno.ENOENT, "no segments of a spool", str(directory))
        self._directory = directory
        self._session = session
        self._journal = JournalReader(directory, Position(first - 1, first, START.offset))
        self._segment = first
        self._passed: deque[tuple[int, int]] = deque()
        """Segments that were read whole: (segment, its last batch)."""
        self._last = last
        self._ready: deque[Loaded] = deque()
        self._damaged: set[int] = set()
        self.damages: list[Damage] = []
        self.lost = 0
        """Batches in whose place there is an empty one."""

    @property
    def last(self) -> int | None:
        """The number of the last batch that was read, at first of the one before them all; None:
        it is not known."""
        return self._last

    def next(self, upto: int) -> Loaded | None:
        """The next batch of the entries up to number `upto`; None: there is none.

        Raises:
            JournalError: a segment is missing, or of another version.
            SpoolError: an entry is not known.
            OSError: the disk does not answer.
        """
        if self._ready:
            return self._ready.popleft()
        for entry in self._journal.entries(upto):
            if isinstance(entry, Damage):
                self.damages.append(entry)
                self._damaged.add(int(entry.path.stem))
                continue
            self._reached(entry.after.segment)
            said = read_entry(entry, self._directory)
            if isinstance(said, Loaded):
                if self._last is not None:
                    self.fill_to(said.number - 1)
                self._last = said.number
                self._ready.append(said)
                return self._ready.popleft()
        return None

    def fill_to(self, number: int) -> None:
        """Give empty batches up to this number, in place of those that cannot be read."""
        assert self._last is not None
        for missing in range(self._last + 1, number + 1):
            # What it had dropped by then is not known; the next one says it again.
            parts = frames.pack_batch(self._session, missing, Batch(None))
            nbytes = sum(byte_view(part).nbytes for part in parts)
            self._ready.append(Loaded(missing, 0.0, 0, 0, parts, nbytes))
            self.lost += 1
        self._last = max(self._last, number)

    def _reached(self, segment: int) -> None:
        if segment != self._segment:
            self._passed.append((self._segment, self._last or 0))
            self._segment = segment

    def forget(self, number: int) -> None:
        """Delete segments of which everything up to batch `number`, which has arrived, was read."""
        while self._passed and self._passed[0][1] <= number:
            segment, _ = self._passed.popleft()
            self._delete(segment)

    def forget_all(self) -> None:
        """Delete all segments: everything has arrived."""
        self.close()
        for segment in segments(self._directory):
            self._delete(segment)

    def _delete(self, segment: int) -> None:
        path = segment_path(self._directory, segment)
        if segment in self._damaged:
            # Someone may want to look at it; it is passed over from now on.
            path.rename(path.with_name(path.name + DAMAGED))
        else:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        self._journal.close()


def remove_directory(directory: Path) -> None:
    """Remove a session's directory, of which nothing is left, and its run's with the last one.

    The caller holds its lock. What was kept because it is damaged stays.
    """
    for name in (REACHED, LOCK):
        (directory / name).unlink(missing_ok=True)
    for each in (directory, directory.parent):
        try:
            each.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise
            return


def session_directories(spool: Path) -> Iterator[Path]:
    """Of all sessions below a spool, or of a run's or a session's own directory."""
    if _SESSION.fullmatch(spool.name):
        yield spool
        return
    for level in ("*", "*/*"):
        found = [path for path in sorted(spool.glob(level)) if _SESSION.fullmatch(path.name)]
        if found:
            yield from found
            return


def opening_of(directory: Path, numbers: Sequence[int], last: int) -> tuple[Opening, int | None]:
    """What a session's segments say of it, and the number of the first batch that can be read;
    None: there is none.

    Raises:
        JournalError, OSError: they cannot be read.
        SpoolError: nothing in them says whose they are.
    """
    opening: Opening | None = None
    for number in numbers:
        reader = JournalReader(directory, Position(number - 1, number, START.offset))
        try:
            for entry in reader.entries(last):
                if isinstance(entry, Damage):
                    continue
                said = read_entry(entry, directory)
                if isinstance(said, Opening):
                    opening = said
                elif opening is not None:
                    return opening, said.number
        finally:
            reader.close()
    if opening is None:
        raise SpoolError(f"{directory}: nothing says whose batches these are")
    return opening, None
