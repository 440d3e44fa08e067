"""Precision-recall curves, as `SummaryWriter.add_pr_curve` and `add_pr_curve_raw` write them.

A curve is float32 of shape (6, thresholds): true positives, false positives, true
negatives, false negatives, precision and recall when everything from a threshold on
counts as positive.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tensorboard.plugins.pr_curve.plugin_data_pb2 import PrCurvePluginData

from ranktapd.render.protos import float_tensor, plugin_metadata, value_of_tensor

_LEAST: Final = 1e-7
"""What is divided by where nothing was counted."""


def pr_curve_value(
    tag: str,
    labels: NDArray[Any],
    predictions: NDArray[Any],
    num_thresholds: int,
    weights: NDArray[np.float64] | None = None,
) -> bytes:
    """The curve of predictions as a serialized `Summary.Value`.

    All of shape (N,): `labels` are 1 (or True) for what is positive, `predictions`, of a
    float dtype, lie between 0 and 1; others, and NaN, are left out. Thresholds, up to 127,
    are evenly spaced.
    """
    curve = _curve(labels, predictions, num_thresholds, weights)
    return pr_curve_raw_value(tag, curve, num_thresholds)


def pr_curve_raw_value(tag: str, curve: NDArray[Any], num_thresholds: int) -> bytes:
    """A curve of shape (6, N), see above, that was computed elsewhere."""
    with np.errstate(all="ignore"):  # to infinity without a word
        narrow = curve.astype(np.float32)
    data = PrCurvePluginData(version=0, num_thresholds=num_thresholds)
    metadata = plugin_metadata("pr_curves", data.SerializeToString())
    return value_of_tensor(tag, float_tensor(narrow), metadata)


def _curve(
    labels: NDArray[Any],
    predictions: NDArray[Any],
    num_thresholds: int,
    weights: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """Float64 (6, num_thresholds). Equal to torch's to the last bit: the same roundings (in
    the dtype of the predictions) and the same order of adding."""
    with np.errstate(all="ignore"):
        bucket = np.floor(predictions * predictions.dtype.type(num_thresholds - 1))
        # A NaN becomes -1, which is no bucket.
        bucket = np.fmax(np.fmin(bucket, num_thresholds), -1).astype(np.int32)
    positive = labels.astype(np.float64)
    negative = 1.0 - positive
    if weights is not None:
        positive, negative = positive * weights, negative * weights
    # From each threshold on, so summed from the end.
    true_positive, false_positive = (
        np.cumsum(_sums(bucket, counted, num_thresholds)[::-1])[::-1]
        for counted in (positive, negative)
    )
    true_negative = false_positive[0] - false_positive
    false_negative = true_positive[0] - true_positive
    precision = true_positive / np.maximum(_LEAST, true_positive + false_positive)
    recall = true_positive / np.maximum(_LEAST, true_positive + false_negative)
    return np.stack(
        (true_positive, false_positive, true_negative, false_negative, precision, recall)
    )


def _sums(
    bucket: NDArray[np.int32], counted: NDArray[np.float64], num_thresholds: int
) -> NDArray[np.float64]:
    span = (0, num_thresholds - 1)
    sums: NDArray[np.float64] = np.histogram(
        bucket, bins=num_thresholds, range=span, weights=counted
    )[0]
    return sums
