"""Which sessions a run has, and up to which batch each of them is in the journal."""

from __future__ import annotations

from dataclasses import dataclass, field

from ranktap_wire.delivery import ReceiveWindow
from ranktap_wire.messages import Source
from ranktap_wire.records import Batch
from ranktapd.entries import (
    BatchAccepted,
    BatchRefused,
    JobMoved,
    SessionGone,
    SessionOpened,
    SessionSource,
    SessionsSoFar,
    TagsLimited,
    Words,
)
from ranktapd.pace import Pace
from ranktapd.progress import Progress


@dataclass(slots=True)
class Session:
    """One tap's life, seen from here."""

    opened: SessionOpened
    window: ReceiveWindow
    peer: bytes = b""
    """Its connection's routing id; empty after a restart, until it says hello again."""
    user: str = ""
    """The public key of who said hello; empty where none is asked for."""
    last_heard: float = 0.0
    """The daemon's monotonic clock, seconds."""
    pace: Pace = field(default_factory=Pace)
    progress: Progress = field(default_factory=Progress)
    dropped: int = 0
    """Records that its rank has not sent for want of memory, as its last batch said."""
    missed: bool = False
    """A batch of it was passed over: it must go back before anything is accepted."""
    away: bool = False
    """Not heard of for too long. It may come back, and what of it is in the journal must
    still be known then: the acknowledgement may never have reached it."""
    source: str = Source.LIVE
    """Where its batches come from."""

    def fields(self, run: str) -> dict[str, object]:
        """Who it is, for the log; `run` is the one that it is in."""
        opened = self.opened
        return {
            "run": run, "rank": opened.rank, "pid": opened.pid, "host": opened.host,
            "session": opened.session.hex(),
        }  # fmt: skip

    def took(self, batch: Batch, records: int, nbytes: int) -> None:
        """Count a batch that is about to be journaled."""
        if batch.columns is not None:
            step, wall = int(batch.columns.step[-1]), float(batch.columns.wall_time[-1])
        elif batch.blobs:
            step, wall = batch.blobs[-1].step, batch.blobs[-1].wall_time
        else:
            return
        self.progress.took(records, nbytes, step, wall, self.last_heard)

    @property
    def job(self) -> str:
        """What tells its job from others; empty when nothing does."""
        return self.opened.about.get("job", "")


ENDED_MAX = 10_000
"""Sessions of a run that are remembered after their end, the latest ones: 300 KB at the
beginning of a segment. A rank comes back within seconds, or not at all."""


MOVED_MAX = 1_000
"""Jobs of which a run remembers that they went to another one, the latest."""


@dataclass(slots=True)
class Ended:
    """A session that has said bye, or was replaced."""

    last: int
    """Its last batch in the journal. The answer to its goodbye, and acknowledgements before
    it, may have been lost: then it says hello again, with batches that are journaled."""
    replaced: bool


@dataclass(slots=True)
class RunSessions:
    """The sessions of one run, as its journal tells."""

    sessions: dict[bytes, Session] = field(default_factory=dict)
    """Those that are open: one a rank at most."""
    ended: dict[bytes, Ended] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    """Job to the run where it is instead of here."""
    most_tags: int | None = None
    """How many tags the run may have, as its journal says last; None: it has said nothing."""

    def live(self) -> list[Session]:
        return [session for session in self.sessions.values() if not session.away]

    def fold(self, words: Words) -> None:
        """Take in what an entry of the journal says."""
        match words:
            case SessionOpened():
                self.ended.pop(words.session, None)
                self.sessions[words.session] = Session(words, ReceiveWindow(words.last))
            case BatchAccepted() | BatchRefused():
                session = self.sessions.get(words.session)
                if session is None and isinstance(words, BatchAccepted) and words.opened:
                    # Its opening was in a part of the journal that is damaged.
                    session = Session(words.opened, ReceiveWindow(words.number))
                    self.sessions[words.session] = session
                if session is not None:
                    # Not accept(): behind damage in the journal the numbers skip what was lost.
                    session.window.last = words.number
            case SessionGone():
                session = self.sessions.get(words.session)
                if session is not None and words.final:
                    del self.sessions[words.session]
                    self.ended[words.session] = Ended(session.window.last, words.replaced)
                    while len(self.ended) > ENDED_MAX:
                        del self.ended[next(iter(self.ended))]
                elif session is not None:
                    session.away = True
            case SessionSource():
                if words.session in self.sessions:
                    self.sessions[words.session].source = words.source
            case JobMoved():
                self.moved[words.job] = words.run
                while len(self.moved) > MOVED_MAX:
                    del self.moved[next(iter(self.moved))]
            case TagsLimited():
                self.most_tags = words.most
            case SessionsSoFar():
                self.most_tags = words.most_tags
                self.moved = dict(words.moved)
                self.ended = {
                    identity: Ended(last, replaced) for identity, last, replaced in words.ended
                }
                self.sessions = {}
                for (
                    identity,
                    rank,
                    world_size,
                    host,
                    pid,
                    started,
                    last,
                    away,
                    job,
                    *source,
                ) in words.sessions:
                    about = {"job": job} if job else {}
                    opened = SessionOpened(
                        identity, rank, world_size, host, pid, started, None, last, about
                    )
                    self.sessions[identity] = Session(
                        opened, ReceiveWindow(last), away=away, source=[*source, Source.LIVE][0]
                    )

    def so_far(self) -> SessionsSoFar:
        """What a segment begins with."""
        return SessionsSoFar(
            [
                [
                    session.opened.session,
                    session.opened.rank,
                    session.opened.world_size,
                    session.opened.host,
                    session.opened.pid,
                    session.opened.started,
                    session.window.last,
                    session.away,
                    session.job,
                    *([] if session.source == Source.LIVE else [session.source]),
                ]
                for session in self.sessions.values()
            ],
            [[identity, ended.last, ended.replaced] for identity, ended in self.ended.items()],
            [[job, run] for job, run in self.moved.items()],
            self.most_tags,
        )
