"""What is told of numbers that are NaN or infinite: once a tag, until they are finite again."""

from __future__ import annotations

import math

import numpy as np

from ranktap.finite import NAMED, FiniteWatch
from ranktap_wire.records import MOMENTS, Batch, Blob, Kind
from tests.support.messages import blob, columns

NAN, INF = math.nan, math.inf


def scalars(*values: float, tags: tuple[str, ...] = ("loss",)) -> Batch:
    return Batch(columns([*values], tags))


def moments(step: int, **non_finite: float) -> Blob:
    """A row a tag, with so many values that are not finite."""
    rows = np.ones((len(non_finite), len(MOMENTS)))
    rows[:, MOMENTS.index("non_finite")] = [*non_finite.values()]
    tags = {"tags": "\n".join(non_finite).encode()}
    return blob(Kind.MOMENTS, step=step, shape=rows.shape, data=rows, parts=tags)


def test_of_finite_numbers_nothing_is_told() -> None:
    look = FiniteWatch().look
    assert look(scalars(0.0, -1e300)) is None
    assert look(Batch(None, [moments(1, a=0, b=0)])) is None
    assert look(Batch()) is None


def test_a_scalar_that_is_not_finite_is_told_with_its_first_step_and_value() -> None:
    assert FiniteWatch().look(scalars(1.0, -INF, NAN)) == "not finite: 'loss' (-inf) at step 1"


def test_moments_are_told_of_with_the_number_of_values() -> None:
    told = FiniteWatch().look(Batch(None, [moments(7, a=0, b=12)]))
    assert told == "not finite: 'b' (12 values) at step 7"


def test_a_tag_is_told_of_once_while_it_stays_as_it_is() -> None:
    look = FiniteWatch().look
    assert look(scalars(NAN)) is not None
    assert look(scalars(INF, NAN)) is None
    assert look(Batch(None, [moments(1, a=3)])) is not None
    assert look(Batch(None, [moments(2, a=1), moments(3, a=9)])) is None


def test_a_tag_that_has_recovered_is_told_of_again() -> None:
    look = FiniteWatch().look
    for _ in range(2):
        assert look(scalars(NAN)) is not None
        assert look(scalars(1.0)) is None
        assert look(Batch(None, [moments(1, a=3)])) is not None
        assert look(Batch(None, [moments(2, a=0)])) is None
    # Within one batch: what it was last counts.
    assert look(scalars(NAN, 1.0)) is not None
    assert look(scalars(1.0, NAN)) is not None
    assert look(scalars(1.0, NAN)) is None


def test_another_tag_that_is_finite_changes_nothing() -> None:
    look = FiniteWatch().look
    assert look(scalars(NAN, 1.0, tags=("a", "b"))) == "not finite: 'a' (nan) at step 0"
    assert look(scalars(2.0, tags=("b",))) is None
    assert look(scalars(NAN, INF, tags=("a", "b"))) == "not finite: 'b' (inf) at step 1"


def test_the_first_step_is_named_first_and_what_is_too_much_is_counted() -> None:
    batch = scalars(0.0, NAN, NAN, tags=("a", "b", "c"))
    batch.blobs = [moments(1, first=1), moments(9, x=1, y=1)]
    assert FiniteWatch().look(batch) == (
        "not finite: 'b' (nan) at step 1, 'first' (1 value) at step 1, 'c' (nan) at step 2, "
        "and 2 more"
    )
    assert NAMED == 3


def test_a_tag_of_a_sub_run_is_named_without_it() -> None:
    told = FiniteWatch().look(scalars(NAN, tags=("run_a\tloss",)))
    assert told == "not finite: 'loss' (nan) at step 0"
