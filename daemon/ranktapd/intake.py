"""The ROUTER's loop: check what comes in, journal it, then acknowledge it.

A round takes everything that has arrived, up to a bound, appends it to the journals of
its runs as one group each, syncs, and only then answers. So an acknowledgement says:
on disk. A batch is accepted only when it follows its session's last one. Whether a session
may open is decided in `admission`.

Nothing here touches an event file.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import zmq

from ranktap_wire import frames, limits, rules
from ranktap_wire.delivery import Verdict
from ranktap_wire.journal import JournalError, JournalFullError
from ranktap_wire.messages import (
    Ack,
    BatchMessage,
    Beat,
    Bye,
    ByeAnswer,
    Code,
    DaemonMessage,
    Error,
    FrameError,
    Hello,
    Probe,
    Welcome,
)
from ranktap_wire.records import Buffer
from ranktapd import __version__
from ranktapd.access import Access
from ranktapd.admission import Admission
from ranktapd.config import Config
from ranktapd.crowd import GATHER_S, Crowd
from ranktapd.entries import BatchAccepted, BatchRefused, SessionGone
from ranktapd.pace import Rates
from ranktapd.probes import answer_to
from ranktapd.replies import Replies
from ranktapd.runs import Run
from ranktapd.sessions import Session
from ranktapd.status import Metrics, Tally

logger = logging.getLogger("ranktapd")

ROUND_MESSAGES = 1_024
"""Messages of one group: a second of one rank's, or a 50 ms of fifty ranks'."""
ROUND_BYTES = 8 * limits.MIB
"""Bytes of one group: large enough that a sync's fixed cost is small beside it, small enough
that receiving, the disk and the worker have something to do at the same time."""
FULL_RETRY_S = 1.0
"""How soon it is tried again after the disk had no room. Every client then sends again what
it has in flight."""

_TYPES = {Hello: "hello", BatchMessage: "batch", Beat: "beat", Bye: "bye", Probe: "probe"}


@dataclass(slots=True)
class _Round:
    """What one round has to say, and to whom, once its journals are synced."""

    runs: dict[str, Run] = field(default_factory=dict)
    acks: dict[bytes, tuple[Run, Session, float | None]] = field(default_factory=dict)
    gaps: dict[bytes, tuple[Run, Session]] = field(default_factory=dict)
    """Who must go back. It acknowledges what comes before the gap, so it too has to wait for
    the disk."""
    answers: list[tuple[Run, bytes, DaemonMessage]] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)


class Intake:
    """Everything between the sockets and the journals.

    `run_of(name, suffix)` opens a run, or raises `FrameError` when there may be no more;
    `committed(run)` is called when a group of it is on disk. `access` is None where no keys
    are asked for.
    """

    def __init__(
        self,
        router: zmq.Socket[bytes],
        runs: dict[str, Run],
        run_of: Callable[[str, str], Run],
        committed: Callable[[Run], None],
        metrics: Metrics,
        config: Config,
        access: Access | None = None,
    ) -> None:
        self._admission = Admission(runs, run_of, metrics, config, access)
        self._router = router
        self._runs = runs
        self._committed = committed
        self._metrics = metrics
        self._sessions: dict[bytes, tuple[Run, Session]] = {}
        self._round = _Round()
        self._replies = Replies(router, metrics)
        self._crowd = Crowd()
        self._interval_s: float | None = None
        """How long clients are asked to collect, see `Crowd`."""
        self._round_at = 0.0
        self._early: dict[bytes, tuple[Run, Session]] = {}
        """Sessions whose acknowledgement waits until they have kept to their rates again."""
        self.full = False
        """The disk has no room: nothing is accepted until `room` says so."""
        self._no_room = ""
        """What clients are told meanwhile. The same each time: they tell it once."""
        self.full_runs: dict[str, str] = {}
        """Runs of which no batch is accepted until more of their journal is written, and why."""
        self._told_full = False
        self._retry_at = 0.0
        self.failed: JournalError | None = None
        """A journal cannot go on; the daemon has to end and recover from what is on disk."""
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Keep to these settings from now on."""
        self._config = config
        self._admission.configure(config)
        self._rates = Rates(config.max_session_batches_per_s, config.max_session_bytes_per_s)
        for run in self._runs.values():
            run.limit_tags(config.max_run_tags)

    def gathers_s(self) -> float:
        """How long the next round should wait for more to come: a crowd sends all the time."""
        if self._interval_s is None:
            return 0.0
        return max(0.0, self._round_at + GATHER_S - time.monotonic())

    def turn(self) -> bool:
        """One round; True when there may be more to take at once."""
        self._round_at = time.monotonic()
        taken_bytes = count = 0
        while count < ROUND_MESSAGES and taken_bytes < ROUND_BYTES:
            try:
                peer, *received = self._receive()
            except zmq.Again:
                break
            # Large frames stay where libzmq received them until they are in the journal.
            parts: list[Buffer] = [
                frame.buffer if len(frame) >= zmq.COPY_THRESHOLD else frame.bytes
                for frame in received
            ]
            count += 1
            taken_bytes += sum(map(len, received))
            self._replies.in_hand = peer
            self._take(peer.bytes, parts)
        self.commit()
        return count == ROUND_MESSAGES or taken_bytes >= ROUND_BYTES

    def _receive(self) -> list[zmq.Frame]:
        """The next message, all of which is there. `recv_multipart` asks the socket whether another
        frame follows, which calls two functions of Python each time.

        Raises:
            zmq.Again: there is none.
        """
        received = [self._router.recv(zmq.NOBLOCK, copy=False)]
        while received[-1].more:
            received.append(self._router.recv(zmq.NOBLOCK, copy=False))
        return received

    def commit(self) -> None:
        """Sync what was added to the runs, in this round or by others, and answer."""
        for name, run in self._runs.items():
            if run.pending:
                self._round.runs.setdefault(name, run)
        self._crowd.turn(time.monotonic())
        self._interval_s = self._crowd.interval_s()
        self._metrics.batch_interval.set(self._interval_s or limits.BATCH_INTERVAL_S)
        said, self._round = self._round, _Round()
        said.tally.add_to(self._metrics)
        unsaved: set[str] = set()
        for name, run in said.runs.items():
            if not run.pending:
                continue
            try:
                run.commit()
            except JournalFullError as error:
                self._retry_at = time.monotonic() + FULL_RETRY_S
                self.no_room(str(error))
                unsaved.add(name)
            except JournalError as error:
                self.failed = error
                unsaved.add(name)
            else:
                self._metrics.commits.inc()
                self._committed(run)
                if self._told_full and not self.full:
                    self._told_full = False
                    logger.warning("there is room on the disk again: going on")
        for run, session, sent in said.acks.values():
            if run.place.name in unsaved:
                why = "disk is full" if self.failed is None else "disk fails"
                self._replies.answer(session.peer, Error(Code.BUSY, f"the daemon's {why}"))
            else:
                self._acknowledge(run, session, sent)
        for run, session in said.gaps.values():
            if run.place.name not in unsaved and session.missed:
                last = session.pace.acknowledged = session.window.last
                self._replies.answer(
                    session.peer, Error(Code.GAP, f"batch {last + 1} is missing", last)
                )
        for run, peer, answer in said.answers:
            if run.place.name not in unsaved:
                self._replies.answer(peer, answer)
        for run, session in [*self._early.values()]:
            self._acknowledge(run, session, None)

    def _acknowledge(self, run: Run, session: Session, sent: float | None) -> None:
        """Say what is on disk, or later when the session has sent more than it may."""
        pace = session.pace
        if pace.is_early(time.monotonic()):
            self._early.setdefault(session.opened.session, (run, session))
            if sent is None:
                return
        else:
            self._early.pop(session.opened.session, None)
            pace.acknowledged = session.window.last
        answer = Ack(pace.acknowledged, sent, interval=self._interval_s)
        if sent is not None:
            # As late as can be: what is not said to have been here counts as having been under way.
            answer.held = time.monotonic() - session.last_heard
            answer.now = time.time()
        self._replies.answer(session.peer, answer)

    def give_up_silent(self) -> None:
        """Let sessions go that were not heard of for too long."""
        since = time.monotonic() - limits.SESSION_TIMEOUT_S
        for run in self._runs.values():
            for session in list(run.silent(since)):
                logger.warning(
                    "run %(run)r: rank %(rank)d (process %(pid)d on %(host)s) has not been heard "
                    "of for %(silent_s)d s",
                    session.fields(run.place.name) | {"silent_s": limits.SESSION_TIMEOUT_S},
                )  # fmt: skip
                self._forget(run, session)
                run.add(SessionGone(session.opened.session, final=False))

    def room(self) -> None:
        """There should be room on the disk again; only the next append can tell."""
        if time.monotonic() >= self._retry_at:
            self.full = False

    def no_room(self, why: str, limit: str = "") -> None:
        """Accept nothing until there is room. `limit` is the setting that was met, if one was."""
        self.full = True
        if limit == "max_journal_bytes":
            self._no_room = f"the daemon does not keep up with what is logged ({limit})"
        else:
            self._no_room = "the daemon's disk is full" + (f" ({limit})" if limit else "")
        if not self._told_full:
            self._told_full = True
            logger.error(
                "nothing is acknowledged until there is room on the disk: %(why)s", {"why": why}
            )

    # -- one message ------------------------------------------------------------------

    def _take(self, peer: bytes, parts: list[Buffer]) -> None:
        try:
            message = frames.read_message(parts)
        except FrameError as error:
            self._round.tally.message("invalid")
            self._refuse(peer, parts, error)
            return
        # There is nothing else that it may raise, but if there is, it is one stranger's
        # message that is lost, not the daemon.
        except Exception as error:
            self._round.tally.message("invalid")
            text = f"reading it failed: {rules.shown(error)}"
            self._refuse(peer, parts, FrameError(Code.MALFORMED, text))
            return
        self._round.tally.message(_TYPES[type(message)])
        if isinstance(message, Hello):
            self._hello(peer, message)
            return
        if isinstance(message, Probe):
            self._probe(peer, message)
            return
        known = self._known(message.session, peer)
        if known is None:
            # Not logged: after a restart every client hears it once.
            self._metrics.refused.labels(str(Code.UNKNOWN_SESSION)).inc()
            self._replies.answer(peer, Error(Code.UNKNOWN_SESSION, "say hello first"))
            return
        run, session = known
        session.last_heard = time.monotonic()
        match message:
            case BatchMessage():
                self._batch(run, session, message, parts)
            case Beat():
                if session.missed and not self.full and run.place.name not in self.full_runs:
                    self._round.gaps[message.session] = known
                else:
                    self._round.acks[message.session] = (run, session, message.sent)
            case Bye():
                self._forget(run, session)
                run.add(SessionGone(message.session, final=True))
                self._round.answers.append((run, peer, ByeAnswer()))

    def _hello(self, peer: bytes, hello: Hello) -> None:
        if self.full:
            self._metrics.refused.labels(str(Code.BUSY)).inc()
            self._replies.answer(peer, Error(Code.BUSY, self._no_room))
            return
        user = self._replies.user
        try:
            run = self._admission.run_for(hello, user, self._sessions)
        except FrameError as error:
            self._replies.refused(error.code, peer, error.text)
            self._replies.answer(peer, Error(error.code, error.text))
            return
        for rival in run.rivals(hello):
            # What it still sends is answered with an error, not journaled for nobody.
            self._forget(run, rival)
        run.limit_tags(self._config.max_run_tags)
        session = run.welcome(hello, peer, time.monotonic())
        session.user = user
        session.pace.acknowledged = session.window.last
        self._early.pop(hello.session, None)
        self._sessions[hello.session] = (run, session)
        other = None if run.place.name == hello.run else run.place.name
        welcome = Welcome(session.window.last, other, daemon=__version__, interval=self._interval_s)
        self._round.answers.append((run, peer, welcome))
        for text in run.limits_met.values():
            self._round.answers.append((run, peer, Error(Code.BUSY, text)))

    def tell_limits(self, run: Run) -> None:
        """Tell a run's ranks which limits what they log has met."""
        for session in run.sessions.live():
            for text in run.limits_met.values():
                # No code that stops them: what is not over the limit is kept.
                self._replies.answer(session.peer, Error(Code.BUSY, text))

    def _probe(self, peer: bytes, probe: Probe) -> None:
        """Say whether a hello for a probe's run would be refused; nothing is counted or opened."""
        refused = None
        if probe.run is not None:
            busy = "the daemon's disk is full" if self.full else self.full_runs.get(probe.run)
            user = self._replies.user
            refused = self._admission.refusal_now(
                probe.run, user, sessions=len(self._sessions), busy=busy
            )
        self._replies.answer(peer, answer_to(probe, refused, time.time()))

    def recheck_keys(self) -> None:
        """Let sessions go whose key would not open them any more, when keys have changed."""
        if not self._admission.have_keys_changed():
            return
        for run, session in [*self._sessions.values()]:
            name = run.place.name
            if self._admission.is_shut_out(session.user, name):
                logger.warning(
                    "run %(run)r: rank %(rank)d (process %(pid)d on %(host)s) is shut out: its key "
                    "is gone, or is for other runs now",
                    session.fields(name),
                )  # fmt: skip
                self._forget(run, session)

    def _batch(
        self, run: Run, session: Session, message: BatchMessage, parts: list[Buffer]
    ) -> None:
        nbytes, most = sum(map(len, parts)), self._config.max_message_bytes
        if nbytes > most:
            self._metrics.limited.labels("max_message_bytes").inc()
            text = f"a batch of {nbytes} bytes, at most {most} allowed (max_message_bytes)"
            self._refuse(session.peer, parts, FrameError(Code.REFUSED, text, message.number))
            return
        verdict = session.window.judge(message.number)
        self._round.tally.batch(verdict.value)
        busy = self._no_room if self.full else self.full_runs.get(run.place.name)
        if busy is not None:
            # Its number does not count: the client holds it and will be asked for it.
            session.missed = True
            self._metrics.refused.labels(str(Code.BUSY)).inc()
            self._replies.answer(session.peer, Error(Code.BUSY, busy))
            return
        if verdict is Verdict.NEXT and not self._may_send(session, nbytes):
            session.missed = True
            return
        if verdict is Verdict.GAP:
            self._metrics.refused.labels(str(Code.GAP)).inc()
            if not session.missed:
                session.missed = True
                self._round.gaps[message.session] = (run, session)
            return
        session.missed = False
        if verdict is Verdict.NEXT:
            opened = session.opened
            words = BatchAccepted(message.session, message.number, opened.rank, opened.world_size)
            run.add_batch(session, words, parts, message.number)
            self._crowd.sent(message.session)
            batch = message.batch
            scalars = 0 if batch.columns is None else len(batch.columns)
            self._round.tally.journaled(scalars, len(batch.blobs), nbytes)
            run.records += scalars + len(batch.blobs)
            run.nbytes += nbytes
            session.dropped = batch.dropped_scalars + batch.dropped_blobs
            session.took(batch, scalars + len(batch.blobs), nbytes)
        self._round.acks.setdefault(message.session, (run, session, None))

    def _may_send(self, session: Session, nbytes: int) -> bool:
        """Count a batch against the session's rates; False when it does not wait for
        acknowledgements, as every tap does."""
        now, pace = session.last_heard, session.pace
        if pace.is_too_early(self._rates, now):
            self._metrics.refused.labels(str(Code.BUSY)).inc()
            return False
        pace.spend(nbytes, self._rates, now)
        if pace.is_early(now):
            limit = self._rates.limit_met(nbytes)
            self._metrics.limited.labels(limit).inc()
            if not pace.told:
                pace.told = True
                text = f"this rank sends more than it may ({limit}), and is slowed down"
                self._replies.refused(Code.BUSY, session.peer, text)
                self._replies.answer(session.peer, Error(Code.BUSY, text))
        return True

    # -- what breaks the rules --------------------------------------------------------

    def _refuse(self, peer: bytes, parts: list[Buffer], error: FrameError) -> None:
        """Answer, count, and touch nothing else; a batch with a number counts as seen."""
        self._replies.refused(error.code, peer, error.text)
        known = self._known(frames.session_of(parts), peer)
        if known is not None and error.number is not None and not self.full:
            run, session = known
            session.last_heard = time.monotonic()
            verdict = session.window.judge(error.number)
            session.missed = verdict is Verdict.GAP
            if verdict is Verdict.NEXT:
                words = BatchRefused(session.opened.session, error.number)
                run.add_batch(session, words, [], error.number)
            if verdict is not Verdict.GAP:
                self._round.acks.setdefault(session.opened.session, (run, session, None))
        self._replies.answer(peer, Error(error.code, error.text, error.number))

    def _known(self, identity: bytes, peer: bytes) -> tuple[Run, Session] | None:
        """The session that said hello on this connection under that name."""
        known = self._sessions.get(identity)
        return known if known is not None and known[1].peer == peer else None

    def _forget(self, run: Run, session: Session) -> None:
        """Take nothing more from a session. One of the same name in another run stays."""
        known = self._sessions.get(session.opened.session)
        if known is not None and known[0] is run:
            del self._sessions[session.opened.session]
            self._early.pop(session.opened.session, None)
