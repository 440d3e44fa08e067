"""Precision-recall curves against `torch.utils.tensorboard.summary`, byte for byte."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch.utils.tensorboard import summary as torch_summary

from ranktapd.render.curves import pr_curve_raw_value, pr_curve_value

COUNTS = st.shared(st.integers(1, 60), key="count")


def torchs(summary: object) -> bytes:
    serialized: bytes = summary.value[0].SerializeToString()  # type: ignore[attr-defined]
    return serialized


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@settings(deadline=None)
@given(
    data=st.data(),
    labels=arrays.arrays(np.uint8, COUNTS, elements=st.integers(0, 1)),
    num_thresholds=st.integers(2, 127),
    weights=st.none() | arrays.arrays(np.float64, COUNTS, elements=st.floats(0, 1e6)),
)
def test_a_curve_has_the_bytes_that_torch_writes(
    dtype: str,
    data: st.DataObject,
    labels: np.ndarray,
    num_thresholds: int,
    weights: np.ndarray | None,
) -> None:
    elements = st.floats(-0.5, 1.5, width=16) | st.sampled_from([0.0, 0.5, 1.0])
    predictions = data.draw(arrays.arrays(np.dtype(dtype), len(labels), elements=elements))
    ours = pr_curve_value("a", labels, predictions, num_thresholds, weights)
    assert ours == torchs(torch_summary.pr_curve("a", labels, predictions, num_thresholds, weights))


def test_labels_may_be_shares_and_counts_add_up_in_the_same_order() -> None:
    chance = np.random.default_rng(0)
    # More than numpy adds up at a time.
    labels, predictions, weights = chance.random((3, 200_000))
    assert pr_curve_value("a", labels, predictions, 100, weights) == torchs(
        torch_summary.pr_curve("a", labels, predictions, 100, weights)
    )


def test_predictions_that_are_no_probabilities_are_left_out() -> None:
    predictions = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 0.75], np.float32)
    labels = np.array([1, 1, 1, 0, 0, 1], np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        theirs = torchs(torch_summary.pr_curve("a", labels, predictions, 10))
    assert pr_curve_value("a", labels, predictions, 10) == theirs
    assert theirs == pr_curve_value("a", labels[-1:], predictions[-1:], 10)


@settings(deadline=None)
@given(arrays.arrays(np.float64, st.tuples(st.just(6), st.integers(1, 8))), st.integers(2, 127))
def test_a_raw_curve_has_the_bytes_that_torch_writes(curve: np.ndarray, thresholds: int) -> None:
    theirs = torch_summary.pr_curve_raw("a", *curve, num_thresholds=thresholds)
    assert pr_curve_raw_value("a", curve, thresholds) == torchs(theirs)
