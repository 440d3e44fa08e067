"""How long batches should be when many send, and how a client follows that."""

from __future__ import annotations

import itertools
import math

import pytest

from ranktap.pacing import Pacing
from ranktap_wire import limits
from ranktapd.crowd import BATCHES_PER_S, PERIOD_S, Crowd

BASE_S, LONGEST_S = limits.BATCH_INTERVAL_S, limits.BATCH_INTERVAL_MAX_S
KEPT = round(BATCHES_PER_S * BASE_S)
"""As many may send as often as they do unasked."""


def crowd_of(count: int, now: float = 100.0) -> Crowd:
    crowd = Crowd()
    crowd.turn(now)
    for number in range(count):
        crowd.sent(number.to_bytes(16, "little"))
    return crowd


# -- the daemon's side --------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 8, KEPT])
def test_a_few_ranks_are_asked_for_nothing(count: int) -> None:
    assert crowd_of(count).interval_s() is None


@pytest.mark.parametrize("count", [KEPT + 1, 200, 1_000, 2_000])
def test_a_crowd_sends_as_much_as_one_daemon_takes_however_many_they_are(count: int) -> None:
    interval_s = crowd_of(count).interval_s()
    assert interval_s is not None
    assert count / interval_s == pytest.approx(BATCHES_PER_S)


def test_points_are_seen_in_seconds_however_many_send() -> None:
    assert crowd_of(20_000).interval_s() == LONGEST_S


def test_a_rank_counts_once_however_often_it_sends() -> None:
    crowd = crowd_of(KEPT + 10)
    before = crowd.interval_s()
    for _ in range(1_000):
        crowd.sent(bytes(16))
    assert crowd.interval_s() == before


def test_who_comes_counts_at_once_and_who_goes_a_period_later() -> None:
    crowd = crowd_of(1_000, now=100.0)
    assert crowd.size == 1_000
    crowd.turn(100.0 + PERIOD_S)
    for number in range(10):
        crowd.sent(number.to_bytes(16, "little"))
    assert crowd.size == 1_000, "those who have not sent yet may only be slow"
    crowd.turn(100.0 + 2 * PERIOD_S)
    assert crowd.size == 10
    assert crowd.interval_s() is None


def test_the_slowest_that_keep_to_it_go_on_counting() -> None:
    crowd = Crowd()
    now = 100.0
    for round_number in range(20):
        for number in range(3_000):
            crowd.sent(number.to_bytes(16, "little"))
        crowd.turn(now)
        assert crowd.interval_s() == LONGEST_S, round_number
        now += LONGEST_S


# -- the client's side --------------------------------------------------------------------


def batches(pacing: Pacing, seconds: float, begin: float = 10.0) -> list[float]:
    """When batches are due for a sender that wakes every millisecond."""
    times = [begin + turn / 1_000 for turn in range(round(seconds * 1_000))]
    return [now for now in times if pacing.turn(now)]


def test_unasked_a_batch_is_due_at_every_turn() -> None:
    pacing = Pacing()
    now, turns = 0.0, 0
    while now < 10:
        assert pacing.turn(now), "none is passed over by a rounding error"
        now, turns = pacing.next_turn_at, turns + 1
    assert turns == pytest.approx(10 / BASE_S, abs=1)


def test_asked_for_longer_batches_it_makes_fewer_and_looks_as_often() -> None:
    pacing = Pacing()
    pacing.asked(0.5)
    due = batches(pacing, 10.0)
    assert 18 <= len(due) <= 20
    assert min(b - a for a, b in itertools.pairwise(due)) >= 0.5
    assert pacing.next_turn_at <= 20.0 + BASE_S


@pytest.mark.parametrize(
    ("asked", "kept"),
    [(None, BASE_S), (-1.0, BASE_S), (0.0, BASE_S), (0.7, 0.7), (1e9, LONGEST_S)],
)
def test_it_follows_within_bounds(asked: float | None, kept: float) -> None:
    pacing = Pacing()
    pacing.asked(1.0)
    pacing.asked(asked)
    assert pacing.interval_s == kept


def test_what_is_asked_holds_for_the_batch_that_waits_too() -> None:
    pacing = Pacing()
    pacing.asked(LONGEST_S)
    assert pacing.turn(10.0)
    assert not pacing.turn(10.5)
    pacing.asked(None)
    assert pacing.turn(10.5 + BASE_S), "it is not kept waiting for a crowd that has gone"


def test_the_first_batch_waits_for_nothing() -> None:
    pacing = Pacing()
    assert pacing.turn(0.0)
    assert Pacing().turn(math.nextafter(0.0, 1.0))
