"""Moments and histograms of many tensors at one step: merged over ranks, and made into scalars.

Pure: arrays in, arrays out. A record's rows are those of `records.MOMENTS`, one a
tensor; they add up exactly (in rank order, so that the last bits of sums are always the
same ones), and so do the counts of histograms, as all have the same buckets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ranktap_wire.records import HISTOGRAM_BUCKETS, MOMENTS, Blob, byte_view
from ranktapd.render.histogram import HistogramStats

COUNT, SUM, SQUARES, MIN, MAX, ZEROS, NON_FINITE, REFERENCE = range(len(MOMENTS))

_HALF: Final = HISTOGRAM_BUCKETS // 2
_FINITE: Final = _HALF - 8
"""Buckets of a sign whose exponent is not the highest."""


@cache
def bit_edges() -> NDArray[np.float64]:
    """The 4,081 edges of the buckets of finite float32, ascending; read-only, always one array.

    From -2**128 over 0 to 2**128. Float32 in bucket i lie in [edges[i], edges[i + 1]) above
    zero and in (edges[i], edges[i + 1]] below it, where the sign's own bits are cut off.
    """
    lower = (np.arange(_FINITE, dtype=np.uint32) << np.uint32(20)).view(np.float32)
    positive = np.append(lower.astype(np.float64), 2.0**128)
    edges = np.concatenate((-positive[:0:-1], positive))
    edges.flags.writeable = False
    return edges


@dataclass(frozen=True, slots=True, eq=False)
class TensorStatistics:
    """Rows of one step, of one rank or merged.

    tags: the tag of each row, no two alike.
    rows: float64 (N, 8), columns as in `records.MOMENTS`.
    fields: the scalars to make of each row.
    replicated: every rank has the same tensors: of a tag's rows the lowest rank's counts, alone.
    cells, counts: int64, of histograms, sparse: cell row * HISTOGRAM_BUCKETS + bucket
        (numbered as on the wire), ascending; None when there are no histograms.
    """

    tags: tuple[str, ...]
    rows: NDArray[np.float64]
    fields: tuple[str, ...]
    replicated: bool
    cells: NDArray[np.int64] | None = None
    counts: NDArray[np.int64] | None = None

    @property
    def nbytes(self) -> int:
        """What it takes of the memory, about."""
        cells = 0 if self.cells is None else 2 * self.cells.nbytes
        return self.rows.nbytes + cells + 100 * len(self.tags)

    def merge(self, other: TensorStatistics) -> TensorStatistics:
        """This rank's and a higher rank's as one. A tag that only one of them has stays as it is:
        so ranks may have different layers."""
        tags, left, right = self.tags, None, None
        if self.tags != other.tags:
            tags = tuple(dict.fromkeys((*self.tags, *other.tags)))
            place = {tag: row for row, tag in enumerate(tags)}
            left, right = (
                np.array([place[tag] for tag in side.tags], np.int64) for side in (self, other)
            )
        if self.replicated and right is None:
            return self
        if self.replicated:
            assert right is not None
            is_new = right >= len(self.tags)
            other = other.only(is_new)
            right = right[is_new]
        rows = _merged_rows(len(tags), (self.rows, left), (other.rows, right))
        if self.cells is None or other.cells is None:
            return replace(self, tags=tags, rows=rows, cells=None, counts=None)
        cells, inverse = np.unique(
            np.concatenate((_moved(self.cells, left), _moved(other.cells, right))),
            return_inverse=True,
        )
        counts = np.zeros(cells.size, np.int64)
        assert self.counts is not None and other.counts is not None
        np.add.at(counts, inverse, np.concatenate((self.counts, other.counts)))
        return replace(self, tags=tags, rows=rows, cells=cells, counts=counts)

    def only(self, chosen: NDArray[np.bool_]) -> TensorStatistics:
        """Some of the rows."""
        tags = tuple(tag for tag, kept in zip(self.tags, chosen.tolist(), strict=True) if kept)
        cells, counts = self.cells, self.counts
        if cells is not None and counts is not None:
            kept = chosen[cells // HISTOGRAM_BUCKETS]
            moved = np.cumsum(chosen) - 1
            cells, counts = _moved(cells[kept], moved), counts[kept]
        return replace(self, tags=tags, rows=self.rows[chosen], cells=cells, counts=counts)

    def scalars(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The value of each row's fields, (N, F), and which of them are to be written.

        Of no finite values there are none but `non_finite`, and that is written only where
        it is not 0: so a series of it begins at the step at which something went wrong.
        """
        columns = self.rows.T
        count = columns[COUNT]
        values = np.empty((len(self.tags), len(self.fields)))
        written = np.zeros(values.shape, np.bool_)
        with np.errstate(all="ignore"):  # 0 / 0 of what is not written, sums that overflowed
            for field, name in enumerate(self.fields):
                values[:, field] = _FIELDS[name](columns)
                written[:, field] = columns[NON_FINITE] > 0 if name == "non_finite" else count > 0
        if "ratio" in self.fields:
            written[:, self.fields.index("ratio")] &= columns[REFERENCE] > 0
        return values, written

    def histograms(self) -> Iterator[tuple[str, HistogramStats]]:
        """Tag and histogram of each row that has one and any finite value."""
        if self.cells is None or self.counts is None:
            return
        ends = np.searchsorted(
            self.cells, np.arange(1, len(self.tags) + 1, dtype=np.int64) * HISTOGRAM_BUCKETS
        )
        start = 0
        for tag, row, end in zip(self.tags, self.rows, ends.tolist(), strict=True):
            if row[COUNT] > 0:
                buckets = self.cells[start:end] % HISTOGRAM_BUCKETS
                yield tag, _histogram(row, buckets, self.counts[start:end])
            start = end

    def dump(self) -> list[Any]:
        """All of it, msgpack-able."""
        cells = None if self.cells is None else self.cells.tobytes()
        counts = None if self.counts is None else self.counts.tobytes()
        tags, fields = list(self.tags), list(self.fields)
        return [tags, self.rows.tobytes(), fields, self.replicated, cells, counts]

    @classmethod
    def load(cls, dumped: list[Any]) -> TensorStatistics:
        """What `dump` was taken of."""
        tags, rows, fields, replicated, cells, counts = dumped
        return cls(
            tuple(tags),
            np.frombuffer(rows, np.float64).reshape(-1, len(MOMENTS)),
            tuple(fields),
            replicated,
            None if cells is None else np.frombuffer(cells, np.int64),
            None if counts is None else np.frombuffer(counts, np.int64),
        )


def statistics_of(blob: Blob) -> TensorStatistics:
    """A record of moments that `kinds.check_blob` has passed, copied out of its message."""
    tags = tuple(str(byte_view(blob.parts["tags"]), "utf-8").split("\n"))
    fields = tuple(blob.parameters["fields"])
    rows = blob.array().astype(np.float64)  # a copy
    cells = counts = None
    if "counts" in blob.parts:
        dense = np.frombuffer(blob.parts["counts"], "<u4")
        cells = np.flatnonzero(dense)
        counts = dense[cells].astype(np.int64)
        # Non-finite values have a column of the moments.
        finite = cells % _HALF < _FINITE
        cells, counts = cells[finite], counts[finite]
    return TensorStatistics(tags, rows, fields, blob.parameters["replicated"], cells, counts)


def _merged_rows(
    size: int, *sides: tuple[NDArray[np.float64], NDArray[np.int64] | None]
) -> NDArray[np.float64]:
    merged = np.zeros((size, len(MOMENTS)))
    merged[:, MIN], merged[:, MAX] = np.inf, -np.inf
    with np.errstate(all="ignore"):  # infinities of opposite signs
        for rows, places in sides:
            at: Any = slice(None) if places is None else places
            low = np.minimum(merged[at, MIN], rows[:, MIN])
            high = np.maximum(merged[at, MAX], rows[:, MAX])
            merged[at] += rows
            merged[at, MIN], merged[at, MAX] = low, high
    return merged


def _moved(cells: NDArray[np.int64], places: NDArray[Any] | None) -> NDArray[np.int64]:
    """The cells of rows that have moved."""
    if places is None:
        return cells
    rows, buckets = np.divmod(cells, HISTOGRAM_BUCKETS)
    moved: NDArray[np.int64] = places[rows] * HISTOGRAM_BUCKETS + buckets
    return moved


def _histogram(
    row: NDArray[np.float64], buckets: NDArray[np.int64], counts: NDArray[np.int64]
) -> HistogramStats:
    """Only the edges that a bucket with something in it has: many empty ones in a row are one."""
    at = np.where(buckets < _HALF, _FINITE + buckets, _FINITE - 1 - (buckets - _HALF))
    order = np.argsort(at)
    at, counts = at[order], counts[order]
    needed = np.unique(np.concatenate((at, at + 1)))
    edges = bit_edges()[needed]
    sparse = np.zeros(max(needed.size - 1, 0), np.int64)
    sparse[np.searchsorted(needed, at)] = counts
    return HistogramStats(
        edges=edges if needed.size else np.zeros(1),
        counts=sparse,
        num=int(row[COUNT]),
        min=float(row[MIN]),
        max=float(row[MAX]),
        sum=float(row[SUM]),
        sum_squares=float(row[SQUARES]),
        nan=int(row[NON_FINITE]),
    )


Columns = NDArray[np.float64]


def _mean(columns: Columns) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = columns[SUM] / columns[COUNT]
    return mean


def _std(columns: Columns) -> NDArray[np.float64]:
    variance = columns[SQUARES] / columns[COUNT] - np.square(_mean(columns))
    # Of equal values rounding may leave less than 0.
    std: NDArray[np.float64] = np.sqrt(np.maximum(variance, 0.0))
    return std


_FIELDS: Final[dict[str, Callable[[Columns], NDArray[np.float64]]]] = {
    "mean": _mean,
    "std": _std,
    "rms": lambda columns: np.sqrt(columns[SQUARES] / columns[COUNT]),
    "norm": lambda columns: np.sqrt(columns[SQUARES]),
    "min": lambda columns: columns[MIN],
    "max": lambda columns: columns[MAX],
    "abs_max": lambda columns: np.maximum(np.abs(columns[MIN]), np.abs(columns[MAX])),
    "zeros": lambda columns: columns[ZEROS] / columns[COUNT],
    "non_finite": lambda columns: columns[NON_FINITE],
    "ratio": lambda columns: np.sqrt(columns[SQUARES] / columns[REFERENCE]),
}
