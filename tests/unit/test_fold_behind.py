"""Sessions that send what was logged some time ago: no window is given up on meanwhile."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgpack
import pytest

from ranktap_wire.messages import Source
from ranktapd.entries import SessionGone, SessionSource, WindowsExpired
from ranktapd.fold import Fold
from tests.unit.test_fold import Journal, Point, begun


def source(journal: Journal, session: int, said: Source) -> None:
    journal.say(SessionSource(session.to_bytes(16, "little"), said))


def gone(journal: Journal, session: int, *, final: bool) -> list[Point]:
    return journal.say(SessionGone(session.to_bytes(16, "little"), final=final))


def expire(journal: Journal) -> list[Point]:
    return journal.say(WindowsExpired(journal.sequence))


def two_ranks(*sources: Source) -> Journal:
    journal = begun(2)
    for rank, said in enumerate(sources):
        journal.open(rank, rank, 2)
        if said is not Source.LIVE:
            source(journal, rank, said)
    return journal


def of_tag(points: list[Point]) -> list[Point]:
    return [point for point in points if point[0] == "loss"]


@pytest.mark.parametrize("said", [Source.BACKLOG, Source.SPOOL])
def test_while_a_rank_is_behind_windows_wait_for_it(said: Source) -> None:
    journal = two_ranks(Source.LIVE, said)
    assert journal.scalar(0, 1, "loss", 5, 1.0) == []
    assert journal.fold.is_held
    assert expire(journal) == []
    assert of_tag(journal.scalar(1, 1, "loss", 5, 3.0)) == [("loss", 5, 2.0)]


@pytest.mark.parametrize("said", [Source.BACKLOG, Source.SPOOL])
def test_a_rank_that_has_caught_up_is_a_straggler_like_others(said: Source) -> None:
    journal = two_ranks(Source.LIVE, said)
    journal.scalar(0, 1, "loss", 5, 1.0)
    source(journal, 1, Source.LIVE)
    assert not journal.fold.is_held
    assert of_tag(expire(journal)) == [("loss", 5, 1.0)]


def test_a_spools_session_that_is_silent_is_waited_for_until_it_says_bye() -> None:
    journal = two_ranks(Source.SPOOL, Source.SPOOL)
    journal.scalar(0, 1, "loss", 5, 1.0)
    assert of_tag(gone(journal, 0, final=False) + gone(journal, 1, final=False)) == []
    assert expire(journal) == [] and journal.fold.is_held
    # Days later it is sent on.
    for rank in (0, 1):
        journal.open(rank, rank, 2)
        source(journal, rank, Source.SPOOL)
    assert of_tag(journal.scalar(1, 1, "loss", 5, 3.0)) == [("loss", 5, 2.0)]
    for rank in (0, 1):
        gone(journal, rank, final=True)
    assert not journal.fold.is_held


def test_a_spools_bye_ends_the_waiting_for_its_rank() -> None:
    journal = two_ranks(Source.SPOOL, Source.SPOOL)
    journal.scalar(0, 1, "loss", 5, 1.0)
    assert of_tag(gone(journal, 1, final=True)) == [("loss", 5, 1.0)]


def test_a_rank_that_died_while_it_caught_up_is_not_waited_for() -> None:
    journal = two_ranks(Source.LIVE, Source.BACKLOG)
    journal.scalar(0, 1, "loss", 5, 1.0)
    assert of_tag(gone(journal, 1, final=False)) == [("loss", 5, 1.0)]
    assert not journal.fold.is_held


def test_a_job_that_is_started_again_does_not_wait_for_a_spool_of_its_former_life() -> None:
    journal = two_ranks(Source.SPOOL, Source.SPOOL)
    journal.open(7, 0, 2)
    assert not journal.fold.is_held


def test_a_snapshot_knows_who_is_behind() -> None:
    journal = two_ranks(Source.LIVE, Source.SPOOL)
    state = msgpack.unpackb(msgpack.packb(journal.fold.state()), strict_map_key=False)
    assert Fold.restore(state, ThreadPoolExecutor(1)).is_held
    del state["behind"]  # as in snapshots of former releases
    assert not Fold.restore(state, ThreadPoolExecutor(1)).is_held
