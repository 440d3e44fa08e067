"""How far another clock is ahead: never wrong by more than is said, whatever the ways take."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ranktap.clock import DRIFT, WINDOW_S, Clock

WALL = 1_700_000_000.0
"""This machine's wall clock when its monotonic clock says 0."""


def ask(
    clock: Clock,
    at: float,
    ahead: float,
    there: float,
    back: float,
    held: float = 0.0,
    drift: float = 0.0,
) -> None:
    """A round trip that begins at `at`, with a daemon whose clock is `ahead` as it answers.

    It gains `drift` seconds a second, also in what it measures.
    """
    answered = at + there + held
    received = answered + back
    clock.heard(at, received, WALL + received, WALL + answered + ahead, held * (1 + drift))


def test_before_the_first_round_trip_nothing_is_known() -> None:
    assert Clock().estimate(5.0) is None


def test_ways_of_one_length_tell_the_offset_exactly() -> None:
    clock = Clock()
    ask(clock, 10.0, 3.5, 0.25, 0.25)
    assert clock.estimate(10.5) == (3.5, pytest.approx(0.25, abs=2 * DRIFT))


@pytest.mark.parametrize(("there", "back"), [(1.0, 0.0), (0.0, 1.0)])
def test_a_way_that_takes_all_of_the_round_trip_makes_it_wrong_by_what_is_said(
    there: float, back: float
) -> None:
    clock = Clock()
    ask(clock, 0.0, -2.0, there, back)
    estimate = clock.estimate(1.0)
    assert estimate is not None
    offset, error = estimate
    assert error == pytest.approx(0.5, abs=2 * DRIFT)
    assert offset == pytest.approx(-2.0 + (there - back) / 2, abs=1e-6)


def test_what_the_daemon_has_in_hand_makes_nothing_wrong() -> None:
    clock = Clock()
    ask(clock, 10.0, 3.5, 0.25, 0.25, held=20.0)
    assert clock.estimate(30.5) == (
        pytest.approx(3.5, abs=1e-6), pytest.approx(0.25, abs=21 * DRIFT),
    )  # fmt: skip


def test_a_daemon_whose_clock_is_fast_is_heard_though_its_round_trip_is_less_than_none() -> None:
    clock = Clock()
    ask(clock, 10.0, 3.5, 0.0, 0.0, held=20.0, drift=DRIFT)
    assert clock.estimate(30.0) == (
        pytest.approx(3.5, abs=20 * DRIFT), pytest.approx(20 * DRIFT),
    )  # fmt: skip


SECONDS = st.floats(0.0, 2.0)


@given(
    st.floats(-1e6, 1e6),
    st.floats(-DRIFT, DRIFT),
    st.lists(st.tuples(st.floats(0.01, 100.0), SECONDS, SECONDS, SECONDS), min_size=1),
)
@example(0.0, 0.0, [(1.0, 0.0, 2.3e-313, 0.0)])
def test_it_is_never_wrong_by_more_than_is_said_while_clocks_drift(
    ahead: float, drift: float, trips: list[tuple[float, float, float, float]]
) -> None:
    clock = Clock()
    at = 0.0
    for pause, there, held, back in trips:
        at += pause
        ask(clock, at, ahead + drift * (at + there + held), there, back, held, drift)
        at += there + held + back
        estimate = clock.estimate(at)
        assert estimate is not None
        offset, error = estimate
        # Two microseconds: what float64 leaves of wall clocks.
        assert abs(offset - (ahead + drift * at)) <= error + 2e-6


def test_the_best_round_trip_counts_and_not_the_last() -> None:
    clock = Clock()
    ask(clock, 0.0, 1.0, 0.0, 0.2)
    ask(clock, 1.0, 1.0, 0.001, 0.001)
    ask(clock, 2.0, 1.0, 0.3, 0.0)
    estimate = clock.estimate(3.0)
    assert estimate is not None
    assert estimate[0] == pytest.approx(1.0, abs=1e-6)
    assert estimate[1] == pytest.approx(0.001 + DRIFT * 2, abs=1e-5)


def test_what_was_good_long_ago_is_forgotten() -> None:
    clock = Clock()
    ask(clock, 0.0, 1.0, 0.001, 0.001)
    ask(clock, WINDOW_S - 1, 1.0, 0.0, 0.2)
    assert clock.estimate(WINDOW_S)[1] < 0.01  # type: ignore[index]
    ask(clock, WINDOW_S + 1, 1.0, 0.0, 0.2)
    assert clock.estimate(WINDOW_S + 2)[1] >= 0.1  # type: ignore[index]


def test_what_is_known_grows_worse_with_time_and_stays_until_there_is_better() -> None:
    clock = Clock()
    ask(clock, 0.0, 1.0, 0.0, 0.0)
    assert clock.estimate(100.0) == (1.0, pytest.approx(DRIFT * 100))
    assert clock.estimate(10 * WINDOW_S) == (1.0, pytest.approx(DRIFT * 10 * WINDOW_S))


def test_a_clock_that_was_set_is_measured_anew() -> None:
    clock = Clock()
    ask(clock, 0.0, 1.0, 0.001, 0.001)
    ask(clock, 5.0, 3_600.0, 0.1, 0.1)
    assert clock.estimate(5.2) == (pytest.approx(3_600.0), pytest.approx(0.1, abs=1e-5))


@pytest.mark.parametrize(("received", "held"), [(4.9, 0.0), (70.0, 0.0), (6.0, 1.1), (6.0, -1.0)])
def test_an_answer_that_cannot_be_or_is_of_long_ago_says_nothing(
    received: float, held: float
) -> None:
    clock = Clock()
    clock.heard(5.0, received, WALL, WALL, held)
    assert clock.estimate(received) is None
