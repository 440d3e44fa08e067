"""What a spool has to be sent: its sessions, and in which order they may go.

A *life* is what is sent together: one session of each rank, from a start of the job to its end.
The daemon merges them step by step as it would have merged them live, so all of them have to
be there. A job that was started again in the same run is the next life, and goes after it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ranktap.spooled import (
    REACHED,
    InUseError,
    Opening,
    SessionLock,
    SpoolError,
    SpoolReader,
    opening_of,
    remove_directory,
    session_directories,
)
from ranktap_wire.journal import Cut, JournalError, JournalWriter
from ranktap_wire.messages import Hello
from ranktap_wire.segment import segment_path, segments

RANKS_NAMED = 8
"""In a message, at most."""


@dataclass(slots=True)
class UnsentSession:
    """A session in a spool."""

    directory: Path
    hello: Hello
    reached: bool
    """A daemon has heard of it from its own process."""
    lock: SessionLock | None
    """None: its own process has it, and may still write."""
    first: int | None = None
    """The first batch that is here; None: there is none."""
    upto: int = 0
    """The last entry of its journal."""
    nbytes: int = 0
    cut: Cut | None = None
    """What was not written to its end when the process was killed."""
    reader: SpoolReader | None = None

    @property
    def in_use(self) -> bool:
        return self.lock is None

    @property
    def was_reached(self) -> bool:
        """Whether a daemon has heard of it, as it says, or has taken its first batches."""
        return self.reached or (self.first or 0) > 1 or (self.directory / REACHED).exists()

    def note_reached(self) -> None:
        """Have `was_reached` say so from now on.

        Raises:
            OSError: it cannot be written.
        """
        (self.directory / REACHED).touch()

    def remove(self) -> None:
        """All of it has arrived: delete it.

        Raises:
            OSError: it cannot be deleted.
        """
        if self.reader is not None:
            self.reader.forget_all()
        remove_directory(self.directory)
        self.close()

    def close(self) -> None:
        """Let go of it, whatever is left."""
        if self.reader is not None:
            self.reader.close()
        if self.lock is not None:
            self.lock.release()


def open_session(directory: Path) -> UnsentSession | None:
    """The session in a directory, which nobody else may have until it is closed; None: nothing of
    it is left.

    Raises:
        JournalError, OSError, SpoolError: it cannot be read; the message says why.
    """
    try:
        lock = SessionLock(directory)
    except InUseError:
        return _in_use(directory)
    try:
        numbers = segments(directory)
        if not numbers:
            # Between its making and its first batch, or its last batch and its removal.
            remove_directory(directory)
            lock.release()
            return None
        writer = JournalWriter(directory)  # which finds the end, and cuts off what is torn
        writer.close()
        numbers = segments(directory)
        nbytes = sum(segment_path(directory, number).stat().st_size for number in numbers)
        if not writer.last:
            for number in numbers:
                segment_path(directory, number).unlink()
            remove_directory(directory)
            lock.release()
            return None
        opening, first = opening_of(directory, numbers, writer.last)
        session = _session(directory, opening, lock)
        session.first, session.upto, session.nbytes = first, writer.last, nbytes
        session.cut = writer.cut
        session.reader = SpoolReader(directory, session.hello.session)
        return session
    except BaseException:
        lock.release()
        raise


def _in_use(directory: Path) -> UnsentSession | None:
    """Whose session it is that another process has; None: nothing is written of it yet."""
    numbers = segments(directory)
    if not numbers:
        return None
    try:
        # Its first entry is on disk as soon as the second is.
        opening, _ = opening_of(directory, numbers[:1], numbers[0])
    except (JournalError, OSError, SpoolError):
        return None
    return _session(directory, opening, None)


def _session(directory: Path, opening: Opening, lock: SessionLock | None) -> UnsentSession:
    return UnsentSession(directory, opening.hello, opening.reached, lock)


@dataclass(slots=True)
class Life:
    """The sessions of one run that are sent together."""

    run: str
    sessions: list[UnsentSession] = field(default_factory=list)
    """In the order of their ranks."""

    @property
    def world_size(self) -> int:
        return max(session.hello.world_size for session in self.sessions)

    @property
    def missing(self) -> list[int]:
        """Ranks that have no session here."""
        here = {session.hello.rank for session in self.sessions}
        return [rank for rank in range(self.world_size) if rank not in here]

    @property
    def nbytes(self) -> int:
        return sum(session.nbytes for session in self.sessions)

    def why_not(self, *, partial: bool) -> str | None:
        """Why it is not to be sent now; None: it is. `partial`: ranks may be missing."""
        alive = [session for session in self.sessions if session.in_use]
        if alive:
            hello = alive[0].hello
            return (
                f"{ranks_text([each.hello.rank for each in alive])} may still write "
                f"(process {hello.pid} on {hello.host}), or another `ranktap sync` sends it"
            )
        # Where a daemon was reached, ranks that are not here have sent all that they had.
        if self.missing and not partial and not any(each.was_reached for each in self.sessions):
            return (
                f"{ranks_text(self.missing)} of {self.world_size} have nothing here. What comes "
                "after the other ranks were merged is late, so all must be sent together: name "
                "all directories at once. If those ranks have logged nothing, or have reached the "
                "daemon, add --partial"
            )
        return None


def lives_of(sessions: Iterable[UnsentSession]) -> dict[str, list[Life]]:
    """The lives of each run, in the order in which they have to be sent."""
    runs: dict[str, list[Life]] = {}
    for session in sorted(sessions, key=lambda each: (each.hello.started, each.hello.rank)):
        lives = runs.setdefault(session.hello.run, [])
        if not lives or _begins_again(lives[-1], session):
            lives.append(Life(session.hello.run))
        lives[-1].sessions.append(session)
    for lives in runs.values():
        for life in lives:
            life.sessions.sort(key=lambda each: each.hello.rank)
    return runs


def _begins_again(life: Life, session: UnsentSession) -> bool:
    job = session.hello.about.get("job")
    return any(
        other.hello.rank == session.hello.rank
        or (job is not None and other.hello.about.get("job") not in (None, job))
        for other in life.sessions
    )


def ranks_text(ranks: Sequence[int]) -> str:
    """Ranks in words: `rank 3`, `ranks 0, 1, 2`, and how many more."""
    named = ", ".join(map(str, ranks[:RANKS_NAMED]))
    more = f" and {len(ranks) - RANKS_NAMED} more" if len(ranks) > RANKS_NAMED else ""
    return f"rank{'s' * (len(ranks) > 1)} {named}{more}"


def find_sessions(
    spools: Iterable[Path],
) -> tuple[list[UnsentSession], list[tuple[Path, Exception]]]:
    """The sessions below these directories, and those that cannot be read, with why."""
    found: list[UnsentSession] = []
    failed: list[tuple[Path, Exception]] = []
    with contextlib.ExitStack() as on_error:
        for directory in dict.fromkeys(
            each.resolve() for spool in spools for each in session_directories(spool)
        ):
            try:
                session = open_session(directory)
            except (JournalError, OSError, SpoolError) as error:
                failed.append((directory, error))
                continue
            if session is not None:
                on_error.callback(session.close)
                found.append(session)
        on_error.pop_all()
    return found, failed
