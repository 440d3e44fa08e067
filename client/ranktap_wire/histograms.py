"""What a histogram's bins may be, and the rows of statistics that become one."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from ranktap_wire import limits, rules
from ranktap_wire.records import FIELD_BYTES, MOMENT_FIELDS, MOMENTS, Buffer, byte_view
from ranktap_wire.rules import given, listed

NUMPY_BINS: Final = ("auto", "doane", "fd", "rice", "scott", "sqrt", "stone", "sturges")
"""Names of bins that numpy computes from the data: one rank's edges are not another's."""

BINS_MAX: Final = 100_000
"""Buckets of one histogram. TensorBoard draws 30."""


def check_bins(
    bins: object, max_bins: object = None
) -> tuple[str | int | None, list[float] | None]:
    """How to bin a histogram: (name or count, None) or (None, edges).

    Raises:
        TypeError, ValueError: `bins` is none of `tensorflow`, numpy's names, a whole number,
            and increasing finite edges.
    """
    check_max_bins(max_bins)
    if isinstance(bins, str):
        if bins != "tensorflow" and bins not in NUMPY_BINS:
            raise ValueError(
                f"bins: expected one of {listed(('tensorflow', *NUMPY_BINS))}, a whole number "
                f"or a sequence of edges, got {bins!r}"
            )
        return bins, None
    if isinstance(bins, int | np.integer) and not isinstance(bins, bool):
        return rules.check_whole("bins", bins, 1, BINS_MAX), None
    try:
        edges = np.asarray(bins, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(
            f"bins: expected a name, a whole number or a sequence of edges, got {given(bins)}"
        ) from None
    check_edges(edges)
    return None, [float(edge) for edge in edges]


def check_max_bins(max_bins: object) -> None:
    """The number of buckets to come down to, or None.

    Raises:
        TypeError, ValueError: it is neither.
    """
    if max_bins is not None:
        rules.check_whole("max_bins", max_bins, 1, BINS_MAX)


def check_edges(edges: NDArray[np.float64]) -> None:
    """Hold a histogram's edges against what they may be.

    Raises:
        ValueError: they are not 2 to BINS_MAX + 1 finite, increasing numbers.
    """
    if edges.ndim != 1 or not 2 <= edges.size <= BINS_MAX + 1:
        raise ValueError(
            f"bins: expected 2 to {BINS_MAX + 1} edges in one dimension, got shape {edges.shape}"
        )
    if not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
        raise ValueError(
            "bins: expected finite edges, each greater than the one before, "
            f"got {given(edges.tolist())}"
        )


def check_fields(fields: object) -> list[str]:
    """Which scalars are made of rows of moments.

    Raises:
        ValueError: they are not some of MOMENT_FIELDS, each once.
    """
    if not isinstance(fields, list | tuple) or not all(name in MOMENT_FIELDS for name in fields):
        raise ValueError(f"fields: expected some of {listed(MOMENT_FIELDS)}, got {given(fields)}")
    if len(set(fields)) < len(fields):
        raise ValueError(f"fields: expected each once, got {given(fields)}")
    return list(fields)


def check_moments(rows: NDArray[np.float64]) -> None:
    """Hold rows of moments, (N, len(MOMENTS)), against what can be added up.

    Raises:
        ValueError: what counts is negative, NaN or too large.
    """
    counted = rows[:, [MOMENTS.index(name) for name in ("count", "zeros", "non_finite")]]
    # 2**62: what is added up from many ranks still fits 64 bits' worth of floats, and more.
    if not ((counted >= 0) & (counted <= 2.0**62)).all():  # NaN is neither
        raise ValueError("moments: expected counts from 0 on")


def check_row_tags(table: Buffer, rows: int) -> list[str]:
    """The tags of the rows, each once, and each short enough to take the name of a field.

    Raises:
        TypeError, ValueError: they are not that.
    """
    tags = rules.check_utf8("tags", byte_view(table)).split("\n", rows)
    if len(tags) != rows:
        raise ValueError(f"tags: expected {rows} of them, got {len(tags)}")
    for tag in tags:
        rules.check_tag(tag, limits.TAG_BYTES - FIELD_BYTES)
    if len(set(tags)) < rows:
        raise ValueError("tags: expected each once")
    return tags
