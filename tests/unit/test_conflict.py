"""Two jobs with one run's name: who is told to wait, who is refused, who gets another run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ranktap_wire.delivery import ReceiveWindow
from ranktap_wire.messages import Ack, Code, DaemonMessage, Error, FrameError, Hello, Welcome
from ranktapd import __version__
from ranktapd.conflicts import ALIVE_S, ASKED_MAX, HEARD_S, SUFFIXES_MAX, Conflicts
from ranktapd.entries import JobMoved, SessionOpened
from ranktapd.sessions import Session
from tests.support.messages import hello
from tests.unit.test_intake import Station, batch, beat, greeting

FIRST, SECOND = "torchrun 1 on a", "torchrun 2 on b"


def session(job: str = FIRST, heard: float = 0.0, host: str = "node-1") -> Session:
    opened = SessionOpened(bytes(16), 0, 1, host, 7, 1.5, None, 0, {"job": job} if job else {})
    return Session(opened, ReceiveWindow(), last_heard=heard)


def asking(job: str = SECOND, run: str = "run") -> Hello:
    return hello(run=run, about={"job": job} if job else {}, host="node-2")


def nothing_is_there(name: str) -> bool:
    return True


def refusal(
    conflicts: Conflicts,
    now: float,
    *others: Session,
    who: Hello | None = None,
    is_free: Callable[[str], bool] | None = None,
) -> FrameError:
    with pytest.raises(FrameError) as raised:
        conflicts.second_run(who or asking(), others, now, is_free)
    return raised.value


# -- no conflict --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "other"),
    [
        (asking(FIRST), session(FIRST)),
        (asking(""), session(FIRST)),
        (asking(SECOND), session("")),
        (asking(SECOND), session(FIRST, heard=-ALIVE_S)),
    ],
    ids=["of the same job", "of no job", "beside one of no job", "behind one that is silent"],
)
def test_a_rank_is_in_nobodys_way(who: Hello, other: Session) -> None:
    assert Conflicts().second_run(who, [other], 0.0, nothing_is_there) is None


# -- waiting ------------------------------------------------------------------------------


def test_a_second_job_waits_until_it_shows_whether_the_first_is_there() -> None:
    error = refusal(Conflicts(), 0.0, session())
    assert error.code is Code.BUSY
    assert error.text.startswith("another job, on node-1, was writing to run 'run' a moment ago")


def test_a_job_that_is_not_heard_of_again_is_not_there() -> None:
    conflicts = Conflicts()
    killed = session(heard=-1.0)
    for now in (0.0, 1.5, 3.0):
        assert refusal(conflicts, now, killed).code is Code.BUSY
    assert conflicts.second_run(asking(), [killed], ALIVE_S, nothing_is_there) is None


def test_what_was_on_its_way_when_the_first_job_was_killed_is_no_sign_of_life() -> None:
    conflicts = Conflicts()
    assert refusal(conflicts, 0.0, session(heard=-0.1)).code is Code.BUSY
    late = session(heard=HEARD_S)
    assert refusal(conflicts, 3.0, late).code is Code.BUSY
    assert conflicts.second_run(asking(), [late], HEARD_S + ALIVE_S, nothing_is_there) is None


def test_all_ranks_of_a_job_wait_from_when_its_first_one_asked() -> None:
    conflicts = Conflicts()
    assert refusal(conflicts, 0.0, session()).code is Code.BUSY
    # Another rank, which says hello now for the first time.
    assert refusal(conflicts, 2.0, session(heard=1.9)).code is Code.CONFLICT


def test_a_job_that_asked_long_ago_asks_anew() -> None:
    conflicts = Conflicts()
    refusal(conflicts, 0.0, session())
    later = 3 * ALIVE_S
    assert refusal(conflicts, later, session(heard=later)).code is Code.BUSY


def test_a_crowd_of_jobs_is_not_remembered_for_ever() -> None:
    conflicts = Conflicts()
    for number in range(ASKED_MAX + 10):
        refusal(conflicts, 0.0, session(), who=asking(f"job {number}"))
    assert len(conflicts._asked) == ASKED_MAX


# -- a job that is there ------------------------------------------------------------------


def taken(is_free: Callable[[str], bool] | None, run: str = "run") -> str | None:
    """What becomes of a second job."""
    conflicts = Conflicts()
    refusal(conflicts, 0.0, session(), who=asking(run=run), is_free=is_free)
    alive = [session(heard=2.9), session(heard=0.5, host="node-3")]
    return conflicts.second_run(asking(run=run), alive, 3.0, is_free)


def test_the_second_job_is_refused_with_both_hosts_and_what_to_do() -> None:
    with pytest.raises(FrameError) as raised:
        taken(None)
    assert raised.value.code is Code.CONFLICT
    assert raised.value.text == (
        "another job, on node-1, node-3, is writing to run 'run'; this one is on node-2: give one "
        'of them another run= or comment=, or set on_conflict = "suffix" in the settings of '
        "ranktapd"
    )


def test_the_second_job_gets_the_first_name_that_is_free() -> None:
    assert taken(nothing_is_there) == "run-2"
    assert taken(lambda name: name not in ("run-2", "run-3")) == "run-4"
    assert taken(nothing_is_there, run="a/b") == "a/b-2"


@pytest.mark.parametrize(
    ("run", "is_free"),
    [("run", lambda name: False), (".", nothing_is_there), ("r" * 199, nothing_is_there)],
    ids=["none is free", "the logdir itself", "too long"],
)
def test_where_there_is_no_other_name_the_second_job_is_refused(
    run: str, is_free: Callable[[str], bool]
) -> None:
    with pytest.raises(FrameError) as raised:
        taken(is_free, run=run)
    assert raised.value.code is Code.CONFLICT
    assert SUFFIXES_MAX == 100


# -- in the intake ------------------------------------------------------------------------


class Jobs:
    """Two jobs at an intake whose clock the test moves."""

    def __init__(self, station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
        self.station = station
        self.now = 1_000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        station.config.logdir = station.config.state_dir = station.tmp_path
        self.hello(FIRST, b"1" * 16)

    def hello(self, job: str, session: bytes) -> DaemonMessage:
        (answer,) = self.station.hear(
            greeting(session, world_size=1, about={"job": job}), peer=session[:4]
        )
        return answer

    def second(self) -> DaemonMessage:
        return self.hello(SECOND, b"2" * 16)

    def first_is_there(self) -> None:
        self.now += 2.0
        self.station.hear(beat(b"1" * 16), peer=b"1111")

    def counted(self, outcome: str) -> float:
        return self.station.count("conflicts", outcome=outcome)


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    return Jobs(Station(tmp_path), monkeypatch)


def test_a_second_jobs_hello_is_put_off_then_refused_and_counted(jobs: Jobs) -> None:
    answer = jobs.second()
    assert isinstance(answer, Error) and answer.code == Code.BUSY
    jobs.first_is_there()
    answer = jobs.second()
    assert isinstance(answer, Error) and answer.code == Code.CONFLICT
    assert (jobs.counted("wait"), jobs.counted("error"), jobs.counted("suffix")) == (1, 1, 0)
    assert [each.about["job"] for each in opened(jobs.station, "run")] == [FIRST]


def test_a_second_jobs_own_run_is_journaled_and_known_after_a_restart(jobs: Jobs) -> None:
    jobs.station.config.on_conflict = "suffix"
    jobs.second()
    jobs.first_is_there()
    assert jobs.second() == Welcome(0, "run-2", daemon=__version__)
    assert JobMoved(SECOND, "run-2") in jobs.station.words("run")
    assert jobs.counted("suffix") == 1
    second = batch(1, b"2" * 16)
    assert jobs.station.hear(second, peer=b"2222") == [Ack(1)]
    assert jobs.station.numbers("run-2") == [(b"2" * 16, 1)]
    assert jobs.station.numbers("run") == []
    jobs.station.restart()
    # Nobody of the first job is in the way, and yet it is where it was.
    jobs.now += 100.0
    assert jobs.second() == Welcome(1, "run-2", daemon=__version__)
    jobs.now += 100.0
    assert jobs.hello(SECOND, b"3" * 16) == Welcome(0, "run-2", daemon=__version__)
    assert [each.about["job"] for each in opened(jobs.station, "run")] == [FIRST]


def test_a_rank_that_is_open_already_is_not_asked_again(jobs: Jobs) -> None:
    assert jobs.hello(FIRST, b"1" * 16) == Welcome(0, daemon=__version__)
    jobs.now += ALIVE_S + 1
    assert jobs.second() == Welcome(0, daemon=__version__)
    # It was cut off, and another job has become its rank meanwhile.
    answer = jobs.hello(FIRST, b"1" * 16)
    assert isinstance(answer, Error) and answer.code == Code.CONFLICT
    assert "another process has become rank 0" in answer.text
    assert jobs.second() == Welcome(0, daemon=__version__)


def opened(station: Station, run: str) -> list[SessionOpened]:
    return [words for words in station.words(run) if isinstance(words, SessionOpened)]
