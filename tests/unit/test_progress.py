"""How a session gets on, how far a run is behind, and the last values of its tags."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ranktap_wire.records import join_name
from ranktapd import lag, last_values
from ranktapd.lag import Lag
from ranktapd.last_values import LastValues
from ranktapd.progress import Progress

# -- progress ---------------------------------------------------------------------------


def test_records_and_bytes_are_counted_from_the_note_before_the_last() -> None:
    session = Progress()
    session.took(10, 100, 0, 0.0, 0.0)
    assert session.since() == (10, 100)
    session.note()
    session.took(5, 50, 1, 0.1, 0.1)
    assert session.since() == (15, 150)
    session.note()
    assert session.since() == (5, 50)
    session.note()
    assert session.since() == (0, 0)


def test_the_time_of_a_step_is_that_of_the_last_seconds() -> None:
    session = Progress()
    assert session.step_time_s is None
    for step in range(100):  # fast, then slow
        session.took(1, 1, step, 0.1 * step, 0.1 * step)
    assert session.step_time_s == pytest.approx(0.1)
    for step in range(100, 120):
        session.took(1, 1, step, 9.9 + 2.0 * (step - 99), 0.0)
    assert session.step_time_s == pytest.approx(2.0)
    assert session.step == 119


def test_one_step_has_no_time_and_an_epoch_beside_the_steps_changes_nothing() -> None:
    session = Progress()
    session.took(1, 1, 500, 10.0, 3.0)
    assert (session.step, session.stepped_at, session.step_time_s) == (500, 3.0, None)
    session.took(1, 1, 501, 10.5, 4.0)
    session.took(1, 1, 3, 11.0, 5.0)  # the third epoch
    session.took(1, 1, 501, 11.0, 6.0)
    assert (session.step, session.stepped_at, session.step_time_s) == (501, 4.0, 0.5)
    assert session.records == 4


def test_a_wall_time_that_goes_back_tells_nothing() -> None:
    session = Progress()
    session.took(1, 1, 1, 1e9, 0.0)
    session.took(1, 1, 2, 0.0, 0.0)
    assert session.step_time_s is None
    session.took(1, 1, 3, -math.inf, 0.0)
    assert session.step_time_s is None


# -- lag --------------------------------------------------------------------------------


def test_the_lag_is_how_long_the_first_unwritten_entry_waits() -> None:
    behind = Lag()
    for second in range(10):
        behind.note(float(second), last=10 * second, written=0)
    assert behind.seconds(9.0, written=0) == 8.0  # entry 1 was there at second 1
    assert behind.seconds(9.0, written=45) == 4.0
    assert behind.seconds(9.0, written=90) == 0.0
    behind.note(10.0, last=90, written=90)
    assert behind.seconds(10.0, written=90) == 0.0


def test_an_hour_of_lag_takes_no_more_than_its_marks_and_is_known_to_a_hundredth() -> None:
    behind = Lag()
    for quarter in range(4 * 3_600):
        behind.note(quarter / 4, last=quarter + 1, written=0)
        assert len(behind._marks) <= lag.MARKS
    assert behind.seconds(3_600.0, written=0) == 3_600.0
    assert behind.seconds(3_600.0, written=7_200) == pytest.approx(1_800.0, abs=36.0)


# -- last values ------------------------------------------------------------------------


def take(values: LastValues, *points: tuple[int, int, float]) -> None:
    ids, steps, numbers = zip(*points, strict=True)
    values.take(np.array(ids), np.array(steps, np.int64), np.array(numbers))


def test_of_points_of_one_tag_the_last_one_stays() -> None:
    values = LastValues()
    take(values, (1, 5, 0.5), (0, 5, 1.0), (1, 6, 0.25), (1, 4, math.nan))
    (first, second) = values.latest(["a", "b"])
    assert first == ("a", 5, 1.0)
    assert (second.tag, second.step) == ("b", 4) and math.isnan(second.value)
    take(values, (1, 7, 2.0))
    assert values.latest(["a", "b"])[1] == ("b", 7, 2.0)


def test_losses_come_first_then_what_was_logged_first_and_not_more_than_is_shown() -> None:
    names = [f"metric {number}" for number in range(1_000)]
    names[700], names[800] = "val/Loss", "train/loss"
    names[100], names[900] = "ranks/loss/rank0", join_name("loss_fold 1", "value")
    values = LastValues()
    take(values, *((number, 0, float(number)) for number in reversed(range(1_000))))
    tags = [each.tag for each in values.latest(names)]
    assert tags[:5] == ["val/Loss", "train/loss", "loss_fold 1/value", "ranks/loss/rank0",
                        "metric 0"]  # fmt: skip
    assert len(tags) == last_values.SHOWN
    take(values, (1_500, 1, 7.0))  # a tag that is new is looked for among those that are shown
    assert values.latest([*names, *["x"] * 500, "late loss"])[3] == ("late loss", 1, 7.0)
