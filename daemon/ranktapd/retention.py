"""What is kept of runs that have finished: journals go, what they would be continued from stays.

A run rests when all of its journal is in its files, those are on the disk, and none of its
sessions is open. It says so in its state, so that the next daemon does not open it:

    resting   msgpack {"segment", "bytes", "last", "kept", "sessions"}
              how long the journal is, its last entry, whether it was kept until then (else it
              has gone), and the entry that a segment behind it would begin with

Its worker has left a snapshot of the fold where the journal ends. Then nothing but those two
is needed to continue it, and `keep_finished_s` later the journal is replaced by a segment
that holds that one entry:

    before    journal/00...01.journal          snapshots/00...47.msgpack   resting
    after     journal/00...48.journal          the same                    resting
              (sessions so far, 25 bytes each)

Sessions that come back with what they still hold find their last number there, as before. A
crash in between leaves a journal that is longer than `resting` says, so the next daemon opens
the run, and its worker finishes what was begun.
"""

from __future__ import annotations

import heapq
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgpack

from ranktap_wire import rules
from ranktap_wire.journal import sync_directory
from ranktap_wire.segment import segment_path, segments, whole_segment
from ranktapd.durable_files import replace_file
from ranktapd.entries import SessionsSoFar, pack_entry

logger = logging.getLogger("ranktapd")

RESTING: Final = "resting"
"""The file in a run's state that says up to where its journal was all written."""
COMPACTING: Final = "compacting"
"""The file that says that event files are being replaced, see compaction.py: then it is no rest."""
TURN_S: Final = 0.02
"""What journals that go may take of a turn of the main loop: each takes three syncs."""


@dataclass(frozen=True, slots=True)
class Rest:
    """Up to where a run's journal was all written, and what would follow it."""

    segment: int
    nbytes: int
    last: int
    kept: bool
    sessions: bytes
    """Packed `SessionsSoFar`."""

    @classmethod
    def of(cls, journal: Path, last: int, sessions: SessionsSoFar) -> Rest:
        """Of a journal whose last entry is `last`.

        Raises:
            OSError: it cannot be looked at.
        """
        segment, nbytes = _length(journal)
        return cls(segment, nbytes, last, True, bytes(pack_entry(sessions)[0]))

    @classmethod
    def read(cls, state: Path) -> Rest | None:
        """What a run's state says; None: it does not rest, or said so and goes on."""
        if (state / COMPACTING).exists():
            return None
        try:
            said: dict[str, Any] = msgpack.unpackb((state / RESTING).read_bytes())
            rest = cls(*(said[name] for name in ("segment", "bytes", "last", "kept", "sessions")))
            return rest if (rest.segment, rest.nbytes) == _length(state / "journal") else None
        except (OSError, LookupError, TypeError, ValueError, msgpack.UnpackException):
            # Torn, or of a former release: the run is opened, found written, and rests again.
            return None

    def write(self, state: Path) -> None:
        """Say it to the next daemon.

        Raises:
            OSError: it cannot be said.
        """
        said = {
            "segment": self.segment, "bytes": self.nbytes, "last": self.last, "kept": self.kept,
            "sessions": self.sessions,
        }  # fmt: skip
        (state / RESTING).write_bytes(msgpack.packb(said))


def may_go(state: Path, rest: Rest) -> bool:
    """Whether the run could be continued without its journal."""
    return (state / "snapshots" / f"{rest.last:020d}.msgpack").exists()


def let_go(state: Path, rest: Rest) -> int:
    """Replace the journal of a run that rests by what it would be continued from; its bytes.

    Nobody else may open the run meanwhile.

    Raises:
        OSError: it cannot be; the run is as it was, or is found unfinished.
    """
    journal = state / "journal"
    old = segments(journal)
    replace_file(
        segment_path(journal, rest.last + 1), whole_segment(rest.last + 1, [[rest.sessions]])
    )
    snapshots = state / "snapshots"
    for path in snapshots.glob("*.msgpack"):
        if int(path.stem) < rest.last:
            path.unlink()
    # First: never a snapshot whose segments are gone.
    sync_directory(snapshots)
    for number in old:
        segment_path(journal, number).unlink()
        # Never a segment without the ones behind it, whatever a power cut leaves.
        sync_directory(journal)
    segment, nbytes = _length(journal)
    Rest(segment, nbytes, rest.last + 1, False, rest.sessions).write(state)
    return nbytes


def journal_bytes(journal: Path) -> int:
    """What a journal takes on the disk."""
    total = 0
    for number in segments(journal):
        try:
            total += segment_path(journal, number).stat().st_size
        except FileNotFoundError:
            continue  # its worker has just left it
    return total


class FinishedRuns:
    """The runs that rest, and whose journal goes next. `keep_s` is how long one is kept."""

    def __init__(self, state_dir: Path, keep_s: float) -> None:
        self._runs = state_dir / "runs"
        self.keep_s = keep_s
        self._since: dict[str, float] = {}
        """Directory of those whose journal is there, to when they came to rest (wall time)."""
        self._order: list[tuple[float, str]] = []
        self._bytes: dict[str, int] = {}

    def find(self) -> list[str]:
        """See which there are, as a daemon starts; the names of the other runs, of whose journal
        something may have to be written still."""
        unfinished = []
        for path in self._runs.glob("*"):
            if not path.is_dir():
                continue
            rest = Rest.read(path)
            if rest is None:
                unfinished.append(rules.run_of_directory_name(path.name))
            else:
                self._note(path, rest)
        return sorted(unfinished)

    def rests(self, state: Path) -> None:
        """A run has come to rest."""
        rest = Rest.read(state)
        if rest is not None:
            self._note(state, rest)

    def wakes(self, state: Path) -> None:
        """A run is opened again."""
        self._since.pop(state.name, None)
        self._bytes.pop(state.name, None)

    @property
    def nbytes(self) -> int:
        """What their journals take."""
        return sum(self._bytes.values())

    def turn(self, budget_s: float = TURN_S) -> None:
        """Let journals go that have been kept long enough, as many as the time allows."""
        began = time.monotonic()
        while self._order and time.monotonic() - began < budget_s:
            since, name = self._order[0]
            if self._since.get(name) == since and time.time() < since + self.keep_s:
                return
            heapq.heappop(self._order)
            if self._since.get(name) == since:
                del self._since[name]
                self._let_go(self._runs / name)

    def _let_go(self, state: Path) -> None:
        rest = Rest.read(state)
        if rest is None or not may_go(state, rest):
            return  # its next worker leaves a snapshot
        try:
            self._bytes[state.name] = let_go(state, rest)
        except OSError as error:
            # When it rests again, or the next daemon starts, it is tried again.
            logger.warning(
                "run %(run)r: its journal cannot go: %(error)s",
                {"run": rules.run_of_directory_name(state.name), "error": error},
            )

    def _note(self, state: Path, rest: Rest) -> None:
        self._bytes[state.name] = journal_bytes(state / "journal")
        if not rest.kept:
            return
        try:
            since = (state / RESTING).stat().st_mtime
        except FileNotFoundError:
            return
        self._since[state.name] = since
        heapq.heappush(self._order, (since, state.name))


def _length(journal: Path) -> tuple[int, int]:
    """How far a journal goes: its last segment, and the bytes of it."""
    segment = segments(journal)[-1]
    return segment, segment_path(journal, segment).stat().st_size
