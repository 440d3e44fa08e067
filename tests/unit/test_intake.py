"""The intake against a router that is a list: what is journaled, and what is said when."""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq

from ranktap_wire import frames, limits
from ranktap_wire.journal import JournalError
from ranktap_wire.messages import (
    Ack,
    ByeAnswer,
    Code,
    DaemonMessage,
    Error,
    FrameError,
    Probe,
    ProbeAnswer,
    Source,
    Welcome,
)
from ranktap_wire.records import Batch, Buffer
from ranktap_wire.segment import START, segment_path, segments
from ranktapd import __version__, crowd, log_budget, pace, sessions
from ranktapd import intake as intake_module
from ranktapd.config import Config
from ranktapd.entries import (
    BatchAccepted,
    BatchRefused,
    JobMoved,
    RunBegins,
    SessionGone,
    SessionOpened,
    SessionSource,
    SessionsSoFar,
    WindowsExpired,
    Words,
    pack_entry,
    read_entry,
)
from ranktapd.intake import Intake
from ranktapd.retention import FinishedRuns
from ranktapd.runs import Run, RunPlace
from ranktapd.status import Metrics
from tests.support.journals import flip_bit, read_journal
from tests.support.messages import SESSION, as_bytes, as_received, blob, columns, hello

OTHER = bytes(16)
PEER, OTHER_PEER = b"peer", b"other peer"
NOW = 1_700_000_001.5
"""The daemon's wall clock."""
ABOUT = hello().about


class Router:
    """What the intake uses of a ROUTER."""

    def __init__(self) -> None:
        self.arrived: deque[list[bytes]] = deque()
        self._frames: deque[zmq.Frame] = deque()
        self.said: list[tuple[bytes, DaemonMessage]] = []
        self.refuses: Exception | None = None

    def recv(self, flags: int, copy: bool) -> zmq.Frame:
        assert flags == zmq.NOBLOCK and not copy
        if not self._frames:
            if not self.arrived:
                raise zmq.Again
            self._frames += as_received(self.arrived.popleft())
        return self._frames.popleft()

    def send_multipart(self, parts: list[Buffer], flags: int) -> None:
        assert flags == zmq.NOBLOCK
        if self.refuses is not None:
            raise self.refuses
        peer, *rest = as_bytes(parts)
        self.said.append((peer, frames.read_answer(rest)))


class Station:
    """An intake and its runs, which can be killed and started again."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.config = Config()
        self.segment_bytes = limits.SEGMENT_BYTES
        self.runs: dict[str, Run] = {}
        self.committed: list[str] = []
        self.restart()

    def restart(self) -> None:
        for run in self.runs.values():
            run.close()
        names = [*self.runs]
        self.runs = {}
        for name in names:
            self.run_of(name, "")
        self.router = Router()
        self.metrics = Metrics()
        self.intake = Intake(
            self.router,  # type: ignore[arg-type]
            self.runs,
            self.run_of,
            lambda run: self.committed.append(run.place.name),
            self.metrics,
            self.config,
        )

    def run_of(self, name: str, suffix: str) -> Run:
        if name not in self.runs:
            place = RunPlace.of(self.tmp_path, self.tmp_path, name)
            self.runs[name] = Run.open(
                place, sync=True, segment_bytes=self.segment_bytes, suffix=suffix
            )
        return self.runs[name]

    def arrive(self, *messages: list[Buffer], peer: bytes = PEER) -> None:
        self.router.arrived += [[peer, *as_bytes(parts)] for parts in messages]

    def turn(self) -> list[DaemonMessage]:
        """One round; what was said, to whomever."""
        self.router.said.clear()
        self.intake.turn()
        answers = [answer for _, answer in self.router.said]
        for answer in answers:
            if isinstance(answer, Ack) and answer.held is not None:
                # By a clock that no test knows.
                assert 0 <= answer.held < 60
                answer.held = 0.0
        return answers

    def hear(self, *messages: list[Buffer], peer: bytes = PEER) -> list[DaemonMessage]:
        self.arrive(*messages, peer=peer)
        return self.turn()

    def words(self, run: str = "run") -> list[Words]:
        """What the journal says, but for the first entry."""
        open_run = self.runs[run]
        read = read_journal(open_run.place.journal, open_run.journal.last)
        said = [read_entry([memoryview(entry[0])]) for entry in read.entries.values()]
        assert isinstance(said[0], RunBegins)
        return said[1:]

    def numbers(self, run: str = "run") -> list[tuple[bytes, int]]:
        """(session, number) of the batches in the journal."""
        return [(w.session, w.number) for w in self.words(run) if isinstance(w, BatchAccepted)]

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"ranktapd_{name}_total", labels) or 0.0


@pytest.fixture
def station(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Station:
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(time, "time", lambda: NOW)
    return Station(tmp_path)


def greeting(session: bytes = SESSION, **changed: Any) -> list[Buffer]:
    right: dict[str, Any] = {"session": session, "run": "run", "rank": 0, "world_size": 2}
    return frames.pack_hello(hello(**(right | changed)))


def batch(number: int, session: bytes = SESSION) -> list[Buffer]:
    return frames.pack_batch(session, number, Batch(columns([float(number)])))


def bad_batch(number: int, session: bytes = SESSION) -> list[Buffer]:
    return batch(number, session)[:-1]


def beat(session: bytes = SESSION) -> list[Buffer]:
    return frames.pack_beat(session, 1.5)


def beaten(number: int) -> Ack:
    """The answer to it."""
    return Ack(number, 1.5, NOW, 0.0)


def bye(session: bytes = SESSION) -> list[Buffer]:
    return frames.pack_bye(session)


def codes(answers: list[DaemonMessage]) -> list[str]:
    return [answer.code for answer in answers if isinstance(answer, Error)]


def welcome(last: int) -> Welcome:
    return Welcome(last, daemon=__version__)


def disk(monkeypatch: pytest.MonkeyPatch, error: int | None) -> None:
    """From now on the disk takes nothing, or everything again."""
    if error is None:
        monkeypatch.undo()
        monkeypatch.setattr(os, "fdatasync", lambda fd: None)
        monkeypatch.setattr(os, "fsync", lambda fd: None)
        return

    def writev(fd: int, views: object) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "writev", writev)


# -- the usual way ----------------------------------------------------------------------


def test_a_session_is_welcomed_journaled_and_bidden_farewell(station: Station) -> None:
    assert station.hear(greeting()) == [welcome(0)]
    assert station.hear(batch(1), batch(2)) == [Ack(2)]
    assert station.hear(beat()) == [beaten(2)]
    assert station.hear(bye()) == [ByeAnswer()]
    assert station.words() == [
        SessionOpened(SESSION, 0, 2, "node-7", 4_711, 1_700_000_000.25, None, 0, ABOUT),
        BatchAccepted(SESSION, 1),
        BatchAccepted(SESSION, 2),
        SessionGone(SESSION, final=True),
    ]


def test_where_a_session_comes_from_is_journaled_when_it_changes_and_no_more(
    station: Station,
) -> None:
    assert station.hear(greeting(source=Source.SPOOL)) == [welcome(0)]
    assert station.hear(batch(1)) == [Ack(1)]
    station.restart()
    assert station.hear(greeting(source=Source.SPOOL)) == [welcome(1)]
    assert station.hear(greeting()) == [welcome(1)]
    assert station.hear(greeting()) == [welcome(1)]
    assert [word for word in station.words() if isinstance(word, SessionSource)] == [
        SessionSource(SESSION, "spool"),
        SessionSource(SESSION, "live"),
    ]
    assert station.numbers() == [(SESSION, 1)]


def test_a_session_that_was_given_up_says_again_where_it_comes_from(station: Station) -> None:
    station.hear(greeting(source=Source.SPOOL))
    (session,) = station.runs["run"].sessions.live()
    session.last_heard -= limits.SESSION_TIMEOUT_S + 1
    station.intake.give_up_silent()
    station.intake.commit()
    station.hear(greeting(source=Source.SPOOL))
    assert [type(word) for word in station.words()] == [
        SessionOpened, SessionSource, SessionGone, SessionOpened, SessionSource,
    ]  # fmt: skip


def test_a_batch_is_journaled_with_the_frames_that_arrived(station: Station) -> None:
    large = os.urandom(2 * zmq.COPY_THRESHOLD)
    parts = as_bytes(
        frames.pack_batch(
            SESSION, 1, Batch(columns([1.0]), [blob(dtype="uint8", shape=(1, 1, len(large)),
                                                    data=large)]),
        )
    )  # fmt: skip
    station.hear(greeting())
    station.hear([*parts])
    run = station.runs["run"]
    read = read_journal(run.place.journal, run.journal.last)
    assert [*read.entries.values()][-1][1:] == parts


def test_nothing_is_acknowledged_before_it_is_on_disk(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    said_at_sync = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: said_at_sync.append([*station.router.said]))
    station.router.said.clear()
    station.arrive(greeting())
    station.arrive(batch(1), batch(3), beat(), bye())
    station.intake.turn()
    assert said_at_sync[-1] == []
    assert station.router.said[0] == (PEER, Ack(1))


def test_a_round_is_one_group_and_one_acknowledgement_a_session(station: Station) -> None:
    station.hear(greeting(), greeting(OTHER, rank=1))
    commits = station.count("commits")
    answers = station.hear(batch(1), batch(1, OTHER), batch(2), batch(2, OTHER), batch(3))
    assert answers == [Ack(3), Ack(2)]
    assert station.count("commits") == commits + 1


def test_a_round_ends_when_it_has_taken_enough(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "ROUND_MESSAGES", 2)
    station.arrive(greeting(), batch(1), batch(2))
    assert station.intake.turn() is True
    assert len(station.router.arrived) == 1
    assert station.intake.turn() is False
    monkeypatch.setattr(intake_module, "ROUND_BYTES", 1)
    station.arrive(batch(3), batch(4))
    assert station.intake.turn() is True
    assert len(station.router.arrived) == 1


def test_runs_are_journaled_apart(station: Station) -> None:
    station.hear(greeting(), greeting(OTHER, run="another"))
    station.hear(batch(1), batch(1, OTHER))
    assert station.numbers("run") == [(SESSION, 1)]
    assert station.numbers("another") == [(OTHER, 1)]


# -- what comes twice, too early, or not at all -----------------------------------------


def test_a_duplicate_batch_is_acknowledged_but_written_once(station: Station) -> None:
    station.hear(greeting())
    station.hear(batch(1), batch(2))
    assert station.hear(batch(1)) == [Ack(2)]
    assert station.hear(batch(2), batch(2)) == [Ack(2)]
    assert station.numbers() == [(SESSION, 1), (SESSION, 2)]


def test_a_gap_is_told_once_and_again_to_who_asks(station: Station) -> None:
    station.hear(greeting())
    gap = Error(Code.GAP, "batch 2 is missing", 1)
    assert station.hear(batch(1), batch(3), batch(4)) == [Ack(1), gap]
    assert station.hear(batch(5)) == []
    assert station.hear(beat()) == [gap]
    assert station.hear(batch(2), batch(3)) == [Ack(3)]
    assert station.hear(beat()) == [beaten(3)]
    assert station.numbers() == [(SESSION, number) for number in (1, 2, 3)]
    assert station.count("refused", code="gap") == 3
    station.hear(batch(9))
    assert station.hear(greeting(first=4)) == [welcome(3)]
    assert station.hear(beat()) == [beaten(3)]


def test_a_gap_that_was_filled_in_the_same_round_is_not_told(station: Station) -> None:
    station.hear(greeting())
    assert station.hear(batch(2), batch(1), batch(2)) == [Ack(2)]


def test_a_session_that_reconnects_goes_on_behind_what_is_journaled(station: Station) -> None:
    station.hear(greeting())
    station.hear(batch(1), batch(2))
    assert station.hear(greeting(first=1), peer=OTHER_PEER) == [welcome(2)]
    # What the old connection still had on the way is nobody's.
    assert codes(station.hear(batch(3))) == [Code.UNKNOWN_SESSION]
    assert station.hear(batch(3), peer=OTHER_PEER) == [Ack(3)]
    assert [type(words) for words in station.words()].count(SessionOpened) == 1


def test_batches_that_no_journal_has_are_told_of_and_passed_over(
    station: Station, caplog: pytest.LogCaptureFixture
) -> None:
    station.hear(greeting())
    station.hear(batch(1))
    assert station.hear(greeting(first=5)) == [welcome(4)]
    assert "3 batches that were acknowledged are not in the journal" in caplog.text
    assert station.hear(batch(5)) == [Ack(5)]
    station.restart()
    assert station.hear(greeting(first=5)) == [welcome(5)]


# -- who says it ------------------------------------------------------------------------


@pytest.mark.parametrize("message", [batch(1), beat(), bye()], ids=["batch", "beat", "bye"])
def test_who_has_not_said_hello_is_asked_to(station: Station, message: list[Buffer]) -> None:
    assert codes(station.hear(message)) == [Code.UNKNOWN_SESSION]
    station.hear(greeting())
    before = station.words()
    assert codes(station.hear(message, peer=OTHER_PEER)) == [Code.UNKNOWN_SESSION]
    assert station.words() == before
    assert station.count("refused", code="unknown-session") == 2


def test_another_process_of_the_same_rank_replaces_the_first(station: Station) -> None:
    station.hear(greeting())
    station.hear(batch(1))
    assert station.hear(greeting(OTHER, first=1), peer=OTHER_PEER) == [welcome(0)]
    # The first is told so, and what it still sends is not journaled for nobody to read.
    assert codes(station.hear(batch(2))) == [Code.UNKNOWN_SESSION]
    (conflict,) = station.hear(greeting(first=2))
    assert isinstance(conflict, Error)
    assert conflict.code == Code.CONFLICT
    assert conflict.text == "another process has become rank 0 of run 'run'"
    assert station.hear(batch(1, OTHER), peer=OTHER_PEER) == [Ack(1)]
    assert station.numbers() == [(SESSION, 1), (OTHER, 1)]


def test_a_replaced_session_may_not_come_back_after_a_restart_either(station: Station) -> None:
    station.hear(greeting())
    station.hear(greeting(OTHER), peer=OTHER_PEER)
    station.restart()
    assert codes(station.hear(greeting())) == [Code.CONFLICT]
    assert station.hear(greeting(OTHER), peer=OTHER_PEER) == [welcome(0)]


def test_sessions_that_were_replaced_are_not_kept_for_ever(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "ENDED_MAX", 5)
    for number in range(30):
        station.hear(greeting(number.to_bytes(16, "big")))
    assert len(station.intake._sessions) == 1
    run = station.runs["run"]
    assert len(run.sessions.sessions) == 1
    assert [*run.sessions.ended] == [number.to_bytes(16, "big") for number in range(24, 29)]


def test_a_session_in_two_runs_is_given_up_in_one_alone(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    station.hear(greeting())
    station.hear(greeting(run="another"))
    station.runs["run"].sessions.sessions[SESSION].last_heard = 0.0
    monkeypatch.setattr(limits, "SESSION_TIMEOUT_S", 10.0)
    soon = time.monotonic() + 5
    monkeypatch.setattr(time, "monotonic", lambda: soon)
    station.intake.give_up_silent()
    assert station.hear(batch(1)) == [Ack(1)]
    assert station.numbers("another") == [(SESSION, 1)]
    assert station.words()[-1] == SessionGone(SESSION, final=False)


def test_a_session_that_was_given_up_comes_back_with_nothing_lost(station: Station) -> None:
    station.hear(greeting())
    station.hear(batch(1))
    station.runs["run"].sessions.sessions[SESSION].last_heard = -1e9
    station.intake.give_up_silent()
    station.intake.commit()
    assert codes(station.hear(batch(2))) == [Code.UNKNOWN_SESSION]
    for restarts in (False, True):
        if restarts:
            station.restart()
        # The acknowledgement of 1 never arrived.
        assert station.hear(greeting(first=1)) == [welcome(1)]
    assert station.hear(batch(1), batch(2)) == [Ack(2)]
    assert station.numbers() == [(SESSION, 1), (SESSION, 2)]


# -- what breaks the rules --------------------------------------------------------------


def test_the_number_of_a_batch_that_breaks_a_rule_counts_and_the_session_goes_on(
    station: Station,
) -> None:
    station.hear(greeting())
    (refusal, ack) = station.hear(batch(1), bad_batch(2), batch(3))
    assert refusal == Error(Code.REFUSED, "scalars: expected 6 buffers, got 5", 2)
    assert ack == Ack(3)
    assert station.words()[-3:] == [
        BatchAccepted(SESSION, 1), BatchRefused(SESSION, 2), BatchAccepted(SESSION, 3),
    ]  # fmt: skip
    station.restart()
    assert station.hear(greeting(first=1)) == [welcome(3)]


def test_a_refused_batch_that_comes_again_is_refused_again_and_acknowledged(
    station: Station,
) -> None:
    station.hear(greeting())
    station.hear(bad_batch(1))
    before = station.words()
    (refusal, ack) = station.hear(bad_batch(1))
    assert (codes([refusal]), ack) == ([Code.REFUSED], Ack(1))
    assert station.words() == before


def test_a_refused_batch_behind_a_gap_does_not_count(station: Station) -> None:
    station.hear(greeting())
    before = station.words()
    assert codes(station.hear(bad_batch(2))) == [Code.REFUSED]
    assert station.words() == before
    assert station.hear(beat()) == [Error(Code.GAP, "batch 1 is missing", 0)]
    assert station.hear(batch(1)) == [Ack(1)]


def test_a_refused_batch_of_someone_elses_session_counts_for_nobody(station: Station) -> None:
    station.hear(greeting())
    before = station.words()
    assert codes(station.hear(bad_batch(1), peer=OTHER_PEER)) == [Code.REFUSED]
    assert station.words() == before
    assert station.hear(batch(1)) == [Ack(1)]


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([b"\xc1"], Code.MALFORMED),
        ([b"", b""], Code.MALFORMED),
        (greeting(protocol=2), Code.PROTOCOL),
        (greeting(run="../x"), Code.REFUSED),
        (greeting(rank=2), Code.REFUSED),
    ],
    ids=["no message", "empty", "version", "run", "rank"],
)
def test_what_is_refused_is_answered_counted_logged_and_touches_nothing_else(
    station: Station, caplog: pytest.LogCaptureFixture, parts: list[Buffer], code: Code
) -> None:
    assert codes(station.hear(parts)) == [code]
    assert station.runs == {}
    assert [*station.tmp_path.iterdir()] == []
    assert station.count("refused", code=str(code)) == 1
    assert station.count("messages", type="invalid") == 1
    assert f"refused a message from ? (peer {PEER.hex()}): {code}: " in caplog.text


def test_a_daemon_that_keeps_no_more_runs_says_so(station: Station) -> None:
    def no_more(name: str, suffix: str) -> Run:
        raise FrameError(Code.LIMIT, "this ranktapd keeps 0 runs (max_runs)")

    station.intake._admission._run_of = no_more
    (refusal,) = station.hear(greeting())
    assert refusal == Error(Code.LIMIT, "this ranktapd keeps 0 runs (max_runs)")
    assert station.count("refused", code="limit") == 1


def test_strangers_cannot_fill_the_log(
    station: Station, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lines() -> int:
        return caplog.text.count("refused a message")

    monkeypatch.setattr(time, "monotonic", lambda: 5.0)
    for _ in range(10):
        station.hear(*[[b"\xc1"]] * 100)
    assert station.count("refused", code="malformed") == 1_000
    assert lines() == log_budget.BURST_LINES
    monkeypatch.setattr(time, "monotonic", lambda: 5.1 + log_budget.LINE_EVERY_S)
    station.hear(*[[b"\xc1"]] * 100)
    assert lines() == log_budget.BURST_LINES + 1
    assert "(and 990 more like it before)" in caplog.text
    # A day of it.
    for second in range(0, 86_400, 5):
        monkeypatch.setattr(time, "monotonic", lambda now=second: 100.0 + now)
        station.hear([b"\xc1"])
    assert lines() < 9_000


def test_a_message_that_cannot_even_be_refused_is_one_message_lost(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    station.hear(greeting())
    with monkeypatch.context() as broken:

        def read(parts: object) -> None:
            raise RecursionError("too deep")

        broken.setattr(frames, "read_message", read)
        assert codes(station.hear(batch(1))) == [Code.MALFORMED]
    assert station.hear(batch(1)) == [Ack(1)]


def test_every_message_is_counted_by_what_it_is(station: Station) -> None:
    station.hear(greeting(), batch(1), batch(1), batch(9), beat(), bye(), [b"\xc1"], bad_batch(2))
    counted = {"hello": 1, "batch": 3, "beat": 1, "bye": 1, "invalid": 2}
    for kind, count in counted.items():
        assert station.count("messages", type=kind) == count
    for verdict in ("next", "duplicate", "gap"):
        assert station.count("batches", verdict=verdict) == 1
    assert station.count("scalars") == 1


def probe(run: str | None = "digits") -> list[Buffer]:
    return frames.pack_probe(Probe(12.5, run))


def test_a_probe_is_answered_at_once_and_leaves_nothing_behind(
    station: Station,
) -> None:
    assert station.hear(probe(), probe(None)) == [ProbeAnswer(12.5, NOW, __version__)] * 2
    assert station.runs == {} and station.committed == []
    assert [*station.tmp_path.iterdir()] == []
    assert station.count("messages", type="probe") == 2


def test_a_probe_is_told_what_a_hello_would_be_refused_with_and_is_not_counted_for_it(
    station: Station,
) -> None:
    station.hear(greeting())

    def told(run: str) -> tuple[str | None, str]:
        (answer,) = station.hear(probe(run), peer=OTHER_PEER)
        assert isinstance(answer, ProbeAnswer)
        return answer.code, answer.text

    run = "run"
    assert told(run) == told("another") == (None, "")
    station.config.max_runs = 1
    assert told("another") == (Code.LIMIT, "this ranktapd keeps 1 runs (max_runs)")
    assert told(run) == (None, "")
    station.config.max_sessions = 1
    assert told(run) == (Code.BUSY, "this ranktapd keeps 1 sessions (max_sessions)")
    station.intake.full_runs = {run: "too much of it waits"}
    assert told(run) == (Code.BUSY, "too much of it waits")
    station.intake.no_room("none")
    assert told("another") == (Code.BUSY, "the daemon's disk is full")
    for code in Code:
        assert station.count("refused", code=str(code)) == 0
    for limit in ("max_runs", "max_sessions"):
        assert station.count("limited", limit=limit) == 0


@pytest.mark.parametrize("error", [zmq.Again(), zmq.ZMQError(errno.EHOSTUNREACH)], ids=repr)
def test_a_peer_that_does_not_listen_costs_only_its_answers(
    station: Station, error: Exception
) -> None:
    station.router.refuses = error
    station.hear(greeting(), [b"\xc1"])
    station.hear(batch(1))
    station.router.refuses = None
    assert station.hear(beat()) == [beaten(1)]


# -- goodbyes ---------------------------------------------------------------------------


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("rolls", [False, True])
def test_a_session_whose_goodbye_was_never_answered_writes_nothing_twice(
    station: Station, restarts: bool, rolls: bool
) -> None:
    station.hear(greeting())
    station.hear(batch(1), batch(2))
    station.hear(batch(3), bye())
    if rolls:  # what is remembered of it is in an earlier segment
        station.runs["run"].journal._segment_bytes = 1
        station.hear(greeting(OTHER, rank=1))
        station.hear(batch(1, OTHER))
        assert len(segments(station.runs["run"].place.journal)) > 1
    if restarts:
        station.restart()
    # The acknowledgements of 2 and 3, and the answer, were lost with the connection.
    assert station.hear(greeting(first=2), peer=b"new") == [welcome(3)]
    assert SESSION not in station.runs["run"].sessions.ended
    assert station.hear(batch(2), batch(3), peer=b"new") == [Ack(3)]
    assert station.hear(batch(4), bye(), peer=b"new") == [Ack(4), ByeAnswer()]
    assert [number for session, number in station.numbers() if session == SESSION] == [1, 2, 3, 4]


def test_what_comes_behind_a_goodbye_is_not_taken(station: Station) -> None:
    station.hear(greeting())
    assert codes(station.hear(bye(), batch(1))) == [Code.UNKNOWN_SESSION]
    assert station.numbers() == []


# -- a full disk ------------------------------------------------------------------------


def test_on_a_full_disk_nothing_is_acknowledged_and_everything_comes_again(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "FULL_RETRY_S", 0.0)
    station.hear(greeting())
    station.hear(batch(1))
    disk(monkeypatch, errno.ENOSPC)
    assert codes(station.hear(batch(2), batch(3))) == [Code.BUSY]
    assert station.intake.full
    assert codes(station.hear(batch(4), greeting(OTHER, rank=1))) == [Code.BUSY, Code.BUSY]
    disk(monkeypatch, None)
    station.intake.room()
    gap = Error(Code.GAP, "batch 2 is missing", 1)
    assert station.hear(beat()) == [gap]
    assert station.hear(batch(2), batch(3), batch(4)) == [Ack(4)]
    assert station.numbers() == [(SESSION, number) for number in (1, 2, 3, 4)]
    assert station.intake.failed is None


def test_what_the_disk_did_not_take_is_asked_for_at_the_next_beat(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "FULL_RETRY_S", 0.0)
    station.hear(greeting())
    disk(monkeypatch, errno.ENOSPC)
    station.hear(batch(1), batch(2))
    disk(monkeypatch, None)
    station.intake.room()
    assert station.hear(beat()) == [Error(Code.GAP, "batch 1 is missing", 0)]


def test_a_gap_acknowledges_nothing_that_the_disk_did_not_take(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    station.hear(greeting())
    disk(monkeypatch, errno.ENOSPC)
    answers = station.hear(batch(1), batch(3))
    assert codes(answers) == [Code.BUSY]
    assert all(answer.number is None for answer in answers if isinstance(answer, Error))


def test_sessions_that_open_and_end_on_a_full_disk_are_journaled_when_there_is_room(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_module, "FULL_RETRY_S", 0.0)
    station.hear(greeting())
    station.hear(batch(1))
    disk(monkeypatch, errno.ENOSPC)
    # Not welcomed, not bidden farewell: neither is on disk.
    answers = station.hear(greeting(OTHER, rank=1), batch(2), bye())
    assert codes(answers) == [Code.BUSY] and len(answers) == 1
    disk(monkeypatch, None)
    station.intake.room()
    station.turn()
    assert station.words()[-2:] == [
        SessionOpened(OTHER, 1, 2, "node-7", 4_711, 1_700_000_000.25, None, 0, ABOUT),
        SessionGone(SESSION, final=True),
    ]
    assert station.hear(greeting(first=2)) == [welcome(1)]
    assert station.hear(batch(2)) == [Ack(2)]
    station.restart()
    assert station.hear(greeting(first=2)) == [welcome(2)]
    assert station.numbers() == [(SESSION, 1), (SESSION, 2)]


def test_a_disk_that_fails_ends_the_intake_without_an_acknowledgement(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    station.hear(greeting())
    disk(monkeypatch, errno.EIO)
    answers = station.hear(batch(1))
    assert not any(isinstance(answer, Ack) for answer in answers)
    assert isinstance(station.intake.failed, JournalError)


# -- limits -----------------------------------------------------------------------------


def limit(station: Station, **changed: Any) -> None:
    for name, value in changed.items():
        setattr(station.config, name, value)
    station.intake.configure(station.config)


def test_more_sessions_than_are_kept_are_told_to_come_again(station: Station) -> None:
    limit(station, max_sessions=1)
    station.hear(greeting())
    (busy,) = station.hear(greeting(OTHER, rank=1), peer=OTHER_PEER)
    assert busy == Error(Code.BUSY, "this ranktapd keeps 1 sessions (max_sessions)")
    assert station.count("limited", limit="max_sessions") == 1
    # One that is there already may reconnect, and the place of one that left is free.
    assert station.hear(greeting(), peer=b"again") == [welcome(0)]
    station.hear(bye(), peer=b"again")
    assert station.hear(greeting(OTHER, rank=1), peer=OTHER_PEER) == [welcome(0)]


def test_a_batch_that_is_too_large_is_refused_and_the_session_goes_on(station: Station) -> None:
    station.hear(greeting())
    large = sum(map(len, as_bytes(batch(1))))
    limit(station, max_message_bytes=large - 1)
    (refusal, ack) = station.hear(batch(1))
    text = f"a batch of {large} bytes, at most {large - 1} allowed (max_message_bytes)"
    assert refusal == Error(Code.REFUSED, text, 1)
    assert ack == Ack(1)
    assert station.count("limited", limit="max_message_bytes") == 1
    limit(station, max_message_bytes=large)
    assert station.hear(batch(2)) == [Ack(2)]
    assert station.numbers() == [(SESSION, 2)]


def test_a_run_whose_journal_is_too_long_is_held_up_and_others_are_not(station: Station) -> None:
    station.hear(greeting(), greeting(OTHER, run="another"))
    station.intake.full_runs = {"run": "too long"}
    answers = station.hear(batch(1), batch(1, OTHER))
    assert answers == [Error(Code.BUSY, "too long"), Ack(1)]
    assert station.hear(beat()) == [beaten(0)]
    station.intake.full_runs = {}
    assert station.hear(beat()) == [Error(Code.GAP, "batch 1 is missing", 0)]
    assert station.hear(batch(1)) == [Ack(1)]
    assert station.numbers() == [(SESSION, 1)]


@pytest.mark.parametrize("limited", ["max_session_batches_per_s", "max_session_bytes_per_s"])
def test_who_sends_too_much_is_acknowledged_later_and_loses_nothing(
    station: Station, monkeypatch: pytest.MonkeyPatch, limited: str
) -> None:
    now = 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    nbytes = sum(map(len, as_bytes(batch(1))))
    a_second = 4
    limit(station, **{limited: a_second * (nbytes if "bytes" in limited else 1)})
    station.hear(greeting())
    in_time = int(pace.BURST_S * a_second)
    assert station.hear(*map(batch, range(1, in_time + 1))) == [Ack(in_time)]
    told, *rest = station.hear(*map(batch, range(in_time + 1, in_time + 5)))
    text = f"this rank sends more than it may ({limited}), and is slowed down"
    assert (told, rest) == (Error(Code.BUSY, text), [])
    assert station.count("limited", limit=limited) == 4
    # They are in the journal, and the session is not silent meanwhile.
    assert station.numbers()[-1] == (SESSION, in_time + 4)
    assert station.hear(beat()) == [beaten(in_time)]
    now += 0.9
    assert station.turn() == []
    now += 0.2
    assert station.turn() == [Ack(in_time + 4)]
    assert station.turn() == []
    assert station.hear(batch(in_time + 5)) == []  # still at its limit, and not told again


def test_who_goes_on_without_acknowledgements_is_not_listened_to(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    limit(station, max_session_batches_per_s=8)
    station.hear(greeting())
    # What a tap may have in flight besides, and no more.
    most = int(pace.BURST_S * 8) + limits.IN_FLIGHT_MESSAGES
    station.hear(*map(batch, range(1, 2 * most)))
    kept = len(station.numbers())
    assert most <= kept <= most + 1
    now += 1e6
    assert station.turn() == [Ack(kept)]
    assert station.hear(beat()) == [Error(Code.GAP, f"batch {kept + 1} is missing", kept)]
    assert station.hear(batch(kept + 1)) == [Ack(kept + 1)]


def test_a_session_that_is_slowed_down_may_reconnect_and_say_goodbye(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1_000.0)
    limit(station, max_session_batches_per_s=1)
    station.hear(greeting())
    station.hear(*map(batch, range(1, 6)))
    assert station.hear(greeting(first=1), peer=b"again") == [welcome(5)]
    assert station.hear(bye(), peer=b"again") == [ByeAnswer()]
    assert station.intake._early == {}


# -- what is known after a restart ------------------------------------------------------


def test_every_restart_at_any_entry_knows_what_the_journal_says(station: Station) -> None:
    """The journal cut behind each entry, as a kill may leave it, with segments that roll."""
    station.segment_bytes = 700
    third = b"3" * 16
    station.hear(greeting())
    station.hear(batch(1), batch(2))
    station.hear(greeting(OTHER, rank=1))
    for number in (1, 2, 3):
        station.hear(batch(number, OTHER), batch(number + 2))
    station.hear(bad_batch(4, OTHER))
    station.hear(bye())
    station.hear(greeting(third, rank=1))
    station.hear(batch(1, third))
    run = station.runs["run"]
    assert len(segments(run.place.journal)) > 3
    # An independent account: the numbers as they stand, whatever segment they are in.
    read = read_journal(run.place.journal, run.journal.last)
    expected: dict[bytes, int] = {}
    for entry in read.entries.values():
        words = read_entry([memoryview(entry[0])])
        if isinstance(words, SessionOpened):
            expected.setdefault(words.session, 0)
        elif isinstance(words, BatchAccepted | BatchRefused):
            expected[words.session] = words.number
    for keep in range(len(segments(run.place.journal))):
        reopened = Run.open(run.place, sync=True, segment_bytes=700)
        known = {key: each.window.last for key, each in reopened.sessions.sessions.items()}
        known |= {key: each.last for key, each in reopened.sessions.ended.items()}
        assert known == expected
        assert set(reopened.sessions.sessions) == {third}
        reopened.close()
        # Segments that workers have passed are deleted; the rest says the same.
        first = segments(run.place.journal)[0]
        if keep and len(segments(run.place.journal)) > 1:
            segment_path(run.place.journal, first).unlink()


def test_a_segment_that_was_only_begun_hides_no_session(station: Station) -> None:
    station.hear(greeting())
    station.hear(batch(1))
    run = station.runs["run"]
    header = run.journal.path.read_bytes()[:0]
    segment_path(run.place.journal, run.journal.last + 1).write_bytes(header)
    station.restart()
    assert station.hear(greeting(first=1)) == [welcome(1)]
    assert station.hear(batch(2)) == [Ack(2)]
    # The new segment begins with what was known, so it can be read alone.
    words = station.words()
    assert isinstance(words[2], SessionsSoFar)
    assert words[3] == BatchAccepted(SESSION, 2)
    station.restart()
    assert station.hear(greeting(first=1)) == [welcome(2)]


def test_a_segment_whose_beginning_is_damaged_is_helped_by_the_one_before(
    station: Station, caplog: pytest.LogCaptureFixture
) -> None:
    station.hear(greeting())
    station.hear(batch(1))
    run = station.runs["run"]
    run.journal._segment_bytes = 1
    station.hear(batch(2))
    run.journal._segment_bytes = 1 << 20
    station.hear(batch(3))
    flip_bit(run.journal.path, START.offset + 40, 0)
    station.restart()
    assert "entries 4 to 4 are damaged" in caplog.text
    assert station.hear(greeting(first=1)) == [welcome(3)]


def test_a_run_whose_last_group_was_all_that_was_left_and_is_damaged_goes_on(
    station: Station,
) -> None:
    station.hear(greeting())
    run = station.runs["run"]
    run.journal._segment_bytes = 1
    station.hear(batch(1))
    # Workers have written all before it, and it is gone from the disk.
    segment_path(run.place.journal, 1).unlink()
    flip_bit(run.journal.path, START.offset + 40, 0)
    station.restart()
    assert station.runs["run"].journal.cut is not None
    assert station.hear(greeting(first=2)) == [welcome(1)]
    assert station.hear(batch(2)) == [Ack(2)]


def test_a_journal_of_a_later_release_is_refused_not_misread(station: Station) -> None:
    station.hear(greeting())
    run = station.runs["run"]
    future = pack_entry(WindowsExpired(1))
    run.journal.append([[future[0].replace(b"expire", b"shrink")]])  # type: ignore[union-attr]
    with pytest.raises(JournalError, match="this release does not know"):
        Run.open(run.place, sync=True, segment_bytes=1 << 20)


# -- entries ----------------------------------------------------------------------------

ENTRIES: list[Words] = [
    RunBegins(1.5, "host", 7, ".x"),
    SessionOpened(SESSION, 1, 4, "host", 7, 1.5, None, 0),
    SessionOpened(SESSION, 1, 4, "host", 7, 1.5, -3, 1 << 62, {"job": "a", "git": "b+"}),
    BatchAccepted(SESSION, 1),
    BatchRefused(SESSION, 1 << 62),
    SessionGone(SESSION, final=True),
    SessionGone(SESSION, final=True, replaced=True),
    SessionSource(SESSION, "spool"),
    WindowsExpired(9),
    JobMoved("torchrun 7 on größer", "run-2"),
    SessionsSoFar(
        [[SESSION, 1, 4, "host", 7, 1.5, 3, True, "job"]], [[OTHER, 7, False]], [["job", "run-2"]]
    ),
]


@pytest.mark.parametrize("words", ENTRIES, ids=lambda words: type(words).__name__)
def test_an_entry_comes_back_as_it_was_with_the_frames_behind_it(words: Words) -> None:
    parts = [memoryview(part) for part in as_bytes(pack_entry(words, [b"frame"]))]
    assert read_entry(parts) == words
    assert parts[1] == b"frame"


def changed(change: Callable[[bytes], bytes]) -> list[memoryview]:
    return [memoryview(change(as_bytes(pack_entry(BatchAccepted(SESSION, 1)))[0]))]


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [memoryview(b"")],
        [memoryview(b"\xc1")],
        [memoryview(b"\x90")],
        [memoryview(b"\x80")],
        changed(lambda packed: packed + b"\0"),
        changed(lambda packed: packed.replace(b"batch", b"catch")),
        changed(lambda packed: packed.replace(b"number", b"lumber")),
        changed(lambda packed: packed[:-3]),
    ],
    ids=["none", "empty", "never", "list", "map", "more", "kind", "field", "cut"],
)
def test_bytes_that_are_no_entry_are_refused(parts: list[memoryview]) -> None:
    with pytest.raises(ValueError, match="this release does not know"):
        read_entry(parts)


def test_what_a_segment_begins_with_is_all_that_is_known() -> None:
    known = sessions.RunSessions()
    gone = b"x" * 16
    for words in (
        SessionOpened(SESSION, 1, 4, "host", 7, 1.5, None, 0),
        SessionOpened(OTHER, 2, 4, "h", 1, 2.5, 5, 9, {"job": "a job", "git": "abc"}),
        BatchAccepted(OTHER, 10),
        SessionGone(OTHER, final=False),
        SessionOpened(gone, 3, 4, "h", 1, 2.5, 5, 1),
        SessionGone(gone, final=True, replaced=True),
        JobMoved("another job", "run-2"),
        SessionSource(SESSION, "backlog"),
    ):
        known.fold(words)
    again = sessions.RunSessions()
    again.fold(known.so_far())
    assert again.so_far() == known.so_far()
    assert [each.window.last for each in again.sessions.values()] == [0, 10]
    assert [each.source for each in again.sessions.values()] == ["backlog", "live"]
    assert [each.job for each in again.sessions.values()] == ["", "a job"]
    assert again.sessions[OTHER].away
    assert again.ended == {gone: sessions.Ended(1, True)}
    assert again.moved == {"another job": "run-2"}
    assert [each.opened.session for each in again.live()] == [SESSION]


def test_a_run_is_kept_below_the_state_directory_whatever_its_name(tmp_path: Path) -> None:
    for name in ("a", "a/b", "%2F", "a%2Fb"):
        place = RunPlace.of(tmp_path / "logs", tmp_path / "state", name)
        assert place.state.parent == tmp_path / "state" / "runs"
        assert place.events == tmp_path / "logs" / name
        place.journal.mkdir(parents=True)
    assert FinishedRuns(tmp_path / "state", 0.0).find() == ["%2F", "a", "a%2Fb", "a/b"]


def test_a_crowd_is_asked_to_collect_for_longer_and_told_when_it_has_gone(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    each_s = 2 * limits.BATCH_INTERVAL_S
    ranks = [((1 + number).to_bytes(16, "big"), str(number).encode())
             for number in range(round(crowd.BATCHES_PER_S * each_s))]  # fmt: skip

    def asked() -> float:
        value = station.metrics.registry.get_sample_value("ranktapd_batch_interval_seconds")
        assert value is not None
        return value

    for number, (session, peer) in enumerate(ranks):
        (answer,) = station.hear(greeting(session, rank=number, world_size=len(ranks)), peer=peer)
        assert answer == welcome(0), "who is there and sends nothing is no crowd"
    assert asked() == limits.BATCH_INTERVAL_S
    for session, peer in ranks:
        station.arrive(batch(1, session), peer=peer)
    assert station.turn() == [Ack(1, interval=each_s)] * len(ranks)
    assert station.hear(beat(ranks[0][0]), peer=ranks[0][1]) == [Ack(1, 1.5, NOW, 0.0, each_s)]
    assert station.hear(greeting(OTHER, run="other")) == [
        Welcome(0, daemon=__version__, interval=each_s)
    ]
    assert asked() == each_s
    now += 2 * crowd.PERIOD_S
    station.turn()
    now += crowd.PERIOD_S
    assert station.hear(batch(2, ranks[0][0]), peer=ranks[0][1]) == [Ack(2)]
    assert asked() == limits.BATCH_INTERVAL_S
