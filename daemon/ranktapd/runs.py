"""A run in the main process: its journal, its sessions, and what this round adds to them."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ranktap_wire import limits, rules
from ranktap_wire.journal import (
    JournalError,
    JournalReader,
    JournalWriter,
    make_directory,
    sync_directory,
)
from ranktap_wire.messages import Code, FrameError, Hello
from ranktap_wire.records import Buffer
from ranktap_wire.segment import START, Damage, Entry, Position, segments
from ranktapd.directories import claim
from ranktapd.entries import (
    RunBegins,
    SessionGone,
    SessionOpened,
    SessionSource,
    TagsLimited,
    Words,
    pack_entry,
    read_entry,
)
from ranktapd.retention import Rest, journal_bytes
from ranktapd.sessions import RunSessions, Session

logger = logging.getLogger("ranktapd")


@dataclass(frozen=True, slots=True)
class RunPlace:
    """Where things of a run are."""

    name: str
    events: Path
    """The run's directory, as TensorBoard sees it."""
    state: Path

    @property
    def state_dir(self) -> Path:
        """What the daemon keeps of all runs."""
        return self.state.parents[1]

    @property
    def journal(self) -> Path:
        return self.state / "journal"

    @property
    def quarantine(self) -> Path:
        return self.state / "quarantine"

    def journal_bytes(self) -> int:
        """What its journal takes on the disk."""
        return journal_bytes(self.journal)

    def pointer(self, sub_run: str = "") -> Path:
        """The file that says which event file of it, or of a sub-run, is being written."""
        if not sub_run:
            return self.state / "event_file"
        return self.state / "event_files" / rules.run_directory_name(sub_run)

    @classmethod
    def of(cls, logdir: Path, state_dir: Path, run: str) -> RunPlace:
        return cls(run, logdir / run, state_dir / "runs" / rules.run_directory_name(run))


@dataclass(slots=True)
class Run:
    """One run's journal and sessions; entries are added, then committed together."""

    place: RunPlace
    journal: JournalWriter
    sessions: RunSessions
    records: int = 0
    """Taken since it was opened; `nbytes` are those of their batches."""
    nbytes: int = 0
    limits_met: dict[str, str] = field(default_factory=dict)
    """Settings that what it logs has met in its worker, and what its ranks are told."""
    _pending: list[tuple[bool, list[Buffer]]] = field(default_factory=list)
    """(is a batch, its frames)"""
    _before: dict[bytes, int] = field(default_factory=dict)

    @classmethod
    def open(cls, place: RunPlace, *, sync: bool, segment_bytes: int, suffix: str = "") -> Run:
        """The run of that place, recovered from its journal, or begun.

        Raises:
            FrameError: it would begin in a directory that another run writes to.
            JournalError: its journal cannot be opened.
            OSError: its directory cannot be claimed.
        """
        if not place.journal.exists():
            owner = claim(place.state_dir, place.name)
            if owner is not None:
                raise FrameError(
                    Code.CONFLICT,
                    f"run {place.name!r}: {place.events} is the directory of a sub-run of run "
                    f"{owner!r}; give this run another name",
                )
        sessions = RunSessions()
        writer = JournalWriter(
            place.journal,
            sync=sync,
            segment_bytes=segment_bytes,
            preamble=lambda: [pack_entry(sessions.so_far())],
        )
        if writer.cut is not None:
            logger.info(
                "run %(run)r: cut %(nbytes)d bytes that were never acknowledged off its journal",
                {"run": place.name, "nbytes": writer.cut.nbytes},
            )
        run = cls(place, writer, sessions)
        try:
            if writer.last == 0:
                begins = RunBegins(time.time(), socket.gethostname(), os.getpid(), suffix)
                writer.append([pack_entry(begins)])
            else:
                run._rebuild()
        except JournalError:
            writer.close()
            raise
        return run

    def _rebuild(self) -> None:
        """Fold the last segment, which begins with all that is needed of those before it."""
        last = self.journal.last
        numbers = [number for number in segments(self.place.journal) if number <= last]
        # None: a damaged group was all that the journal still had, and was cut off.
        start = numbers[0] if numbers else last + 1
        for number in reversed(numbers):
            if any(isinstance(entry, Entry) for entry in self._entries(number, number)):
                start = number
                break
        for entry in self._entries(start, last):
            if isinstance(entry, Damage):
                logger.error("run %(run)r: %(damage)s", {"run": self.place.name, "damage": entry})
                continue
            try:
                self.sessions.fold(read_entry(entry.frames))
            except ValueError as error:
                raise JournalError(f"{self.place.journal}: {entry.sequence}: {error}") from error
        now = time.monotonic()
        for session in self.sessions.sessions.values():
            session.last_heard = now

    def _entries(self, segment: int, last: int) -> Iterator[Entry | Damage]:
        """What the journal says from a segment's beginning to entry `last`."""
        reader = JournalReader(self.place.journal, Position(segment - 1, segment, START.offset))
        try:
            yield from reader.entries(last)
        finally:
            reader.close()

    # -- a round ----------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        return bool(self._pending)

    def add(self, words: Words) -> None:
        """Say something in this round's group, and take it in."""
        self._pending.append((False, pack_entry(words)))
        self.sessions.fold(words)

    def limit_tags(self, most: int) -> None:
        """Let it have so many tags from here on."""
        if most != (self.sessions.most_tags or limits.TAGS):
            self.add(TagsLimited(most))

    def add_batch(self, session: Session, words: Words, frames: list[Buffer], number: int) -> None:
        """A batch that follows the session's last one, or the refusal of one."""
        self._before.setdefault(session.opened.session, session.window.last)
        session.window.accept(number)
        self._pending.append((True, pack_entry(words, frames)))

    def commit(self) -> None:
        """Put what was added on disk, all of it or nothing.

        Raises:
            JournalFullError, JournalError: nothing was added; the sessions' batches have
                to come again, everything else waits for the next commit.
        """
        pending, self._pending = self._pending, []
        before, self._before = self._before, {}
        try:
            self.journal.append([frames for _, frames in pending])
        except JournalError:
            self._pending = [each for each in pending if not each[0]]
            for identity, last in before.items():
                session = self.sessions.sessions.get(identity)
                if session is not None:
                    session.window.last = last
                    session.missed = True
                elif identity in self.sessions.ended:
                    self.sessions.ended[identity].last = last
            raise

    # -- sessions ---------------------------------------------------------------------

    def welcome(self, hello: Hello, peer: bytes, now: float) -> Session:
        """The session that said hello on this connection."""
        for rival in self.rivals(hello):
            self._replace(rival, hello)
        session = self.sessions.sessions.get(hello.session)
        if session is None or session.away:
            ended = self.sessions.ended.get(hello.session)
            if session is not None:
                last = session.window.last
            else:
                last = ended.last if ended is not None else hello.first - 1
            self.add(SessionOpened.of(hello, last))
            session = self.sessions.sessions[hello.session]
        lost = session.window.reopened(hello.first)
        if lost:
            logger.error(
                "run %(run)r: rank %(rank)d: %(lost)d batches that were acknowledged are not in "
                "the journal",
                session.fields(self.place.name) | {"lost": lost},
            )
            self.add(SessionOpened.of(hello, session.window.last))
            session = self.sessions.sessions[hello.session]
        if session.source != hello.source:
            self.add(SessionSource(hello.session, str(hello.source)))
        session.peer = peer
        session.last_heard = now
        session.missed = False
        return session

    def rivals(self, hello: Hello) -> list[Session]:
        """Other open sessions of the same rank: they end when it opens."""
        return [
            session
            for session in self.sessions.sessions.values()
            if session.opened.rank == hello.rank and session.opened.session != hello.session
        ]

    def is_replaced(self, identity: bytes) -> bool:
        """Whether another process has become this session's rank."""
        ended = self.sessions.ended.get(identity)
        return ended is not None and ended.replaced

    def _replace(self, rival: Session, hello: Hello) -> None:
        if not rival.away:
            logger.info(
                "run %(run)r: rank %(rank)d is now process %(pid)d on %(host)s",
                {
                    "run": self.place.name, "rank": hello.rank, "pid": hello.pid,
                    "host": hello.host, "session": hello.session.hex(),
                },
            )  # fmt: skip
        self.add(SessionGone(rival.opened.session, final=True, replaced=True))

    def silent(self, since: float) -> Iterator[Session]:
        """Sessions that are here and were not heard of since then."""
        return (session for session in self.sessions.live() if session.last_heard < since)

    def quarantine(self, sequence: int) -> None:
        """Set an entry aside: workers pass over it, and it can be looked at."""
        make_directory(self.place.quarantine)
        reader = JournalReader(self.place.journal, _segment_start(self.place, sequence))
        for entry in reader.entries(sequence):
            if not isinstance(entry, Damage) and entry.sequence == sequence:
                partial = self.place.quarantine / f"{sequence:020d}.partial"
                with open(partial, "wb") as file:
                    for frame in entry.frames:
                        file.write(len(frame).to_bytes(8, "little"))
                        file.write(frame)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(self.place.quarantine / f"{sequence:020d}.entry")
                # What is behind it is in the event file soon: then a worker that folds up to
                # there again must not meet it, nor know that it was the one.
                sync_directory(self.place.quarantine)
        reader.close()

    def rest(self) -> None:
        """Close a run that has nothing left to do, and say so to the next daemon.

        A log host keeps thousands of finished runs; only those that are not finished are
        opened at start. A session that says hello opens it again.
        """
        self.close()
        try:
            Rest.of(self.place.journal, self.journal.last, self.sessions.so_far()).write(
                self.place.state
            )
        except OSError as error:
            # The next daemon opens it, finds nothing to do, and lets it rest again.
            logger.warning("run %(run)r: %(error)s", {"run": self.place.name, "error": error})

    def close(self) -> None:
        self.journal.close()


def quarantined(place: RunPlace) -> set[int]:
    """Sequence numbers of the entries that were set aside."""
    return {int(path.stem) for path in place.quarantine.glob("*.entry")}


def free_bytes(path: Path) -> int:
    return shutil.disk_usage(path).free


def _segment_start(place: RunPlace, sequence: int) -> Position:
    segment = max(number for number in segments(place.journal) if number <= sequence)
    return Position(segment - 1, segment, START.offset)
