"""Values to buckets: `np.histogram`'s counts in a tenth of its time, and sums that merge.

`SummaryWriter.add_histogram` sorts every value (`np.histogram` with explicit edges),
40 to 50 ms for a million. Here each value is counted where it lies, 4.5 ms. The upper
16 bits of a float32 (sign, exponent, 7 bits of mantissa) name one of 65,536 cells, and
the order of cells is the order of floats. A table knows for each cell

    below       how many edges lie in lower cells
    threshold   the one edge inside the cell, if there is one

so `below[cell] + (value >= threshold[cell])` is the number of edges at or below the
value: its bucket. A cell is at most 1/128 wide, relative to its values, and
TensorFlow's edges are 1/10 apart, so that none of its cells holds two; where edges
are closer, the values in such crowded cells are searched for.

That this is exact for float64 as well, though the cell is found from the value rounded
to float32: rounding never swaps two values, so a value in a higher cell than an edge is
above it, one in a lower cell is below it, and in the edge's own cell the float64s are
compared. The two zeros are equal but lie in different cells; an edge at zero belongs
to the lower one.

Sums are taken in float64, pairwise in chunks of a fixed size, never by BLAS: its
`dot` (torch's choice) depends on the number of threads, and equal values must lead to
equal bytes.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ranktap_wire.histograms import BINS_MAX, NUMPY_BINS

# `bins`: TensorFlow's edges, a rule of numpy's, a number of equal buckets, or edges.
Bins = str | int | Sequence[float] | NDArray[Any]

# Values counted at a time: their float64s stay in a level 2 cache. Changing this
# changes the last bits of sums.
_CHUNK: Final = 1 << 16

_CELLS: Final = 1 << 16


@cache
def tensorflow_edges() -> NDArray[np.float64]:
    """The 1,549 edges of `bins="tensorflow"`, from -1e20 to 1e20; read-only, always the same array.

    Zero, and 774 edges to each side, from 1e-12 on and a tenth apart, by repeated
    multiplication: rounding errors and all are `SummaryWriter.default_bins`.
    """
    positive = []
    edge = 1e-12
    while edge < 1e20:
        positive.append(edge)
        edge *= 1.1
    edges = np.array([*(-edge for edge in reversed(positive)), 0.0, *positive])
    edges.flags.writeable = False
    return edges


@dataclass(frozen=True, slots=True, eq=False)
class HistogramStats:
    """What a histogram keeps of its values; ranks' histograms over the same edges merge exactly.

    edges: float64 (B + 1,), ascending. Bucket i is [edges[i], edges[i + 1]), the last
        one includes its upper edge.
    counts: int64 (B,). Values beyond the edges are in no bucket.
    num: finite values, those beyond the edges included.
    min, max: over finite values; +inf and -inf when there are none.
    sum, sum_squares: over finite values, in float64, which may overflow.
    nan, positive_infinities, negative_infinities: the values left out of all above.

    Raises:
        ValueError: the shapes of edges and counts do not match.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    num: int
    min: float
    max: float
    sum: float
    sum_squares: float
    nan: int = 0
    positive_infinities: int = 0
    negative_infinities: int = 0

    def __post_init__(self) -> None:
        if self.edges.ndim != 1 or self.counts.shape != (self.edges.size - 1,):
            raise ValueError(
                f"edges has shape {self.edges.shape} and counts {self.counts.shape}, "
                "expected one edge more than there are counts"
            )

    @property
    def non_finite(self) -> int:
        """How many values were left out: NaN and both infinities."""
        return self.nan + self.positive_infinities + self.negative_infinities

    def merge(self, other: "HistogramStats") -> "HistogramStats":
        """The histogram of both sides' values.

        Counts, min and max are exact. The order of merging changes the last bits of the
        sums: where equal bytes matter (a journal folded again), merge in rank order.

        Raises:
            ValueError: the sides have different edges, so that values cannot be told
                into common buckets. That is so for numpy's rules and for a number of
                buckets, which follow the data.
        """
        if self.edges is not other.edges and not np.array_equal(self.edges, other.edges):
            raise ValueError(
                "histograms over different edges cannot be merged: "
                f"{_describe_edges(self.edges)}, and {_describe_edges(other.edges)}"
            )
        return HistogramStats(
            edges=self.edges,
            counts=self.counts + other.counts,
            num=self.num + other.num,
            min=min(self.min, other.min),
            max=max(self.max, other.max),
            sum=self.sum + other.sum,
            sum_squares=self.sum_squares + other.sum_squares,
            nan=self.nan + other.nan,
            positive_infinities=self.positive_infinities + other.positive_infinities,
            negative_infinities=self.negative_infinities + other.negative_infinities,
        )

    def buckets(self, max_bins: int | None = None) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The upper limits and counts to write: (K,) each, one empty bucket before the first full.

        TensorBoard keeps only upper limits; the empty bucket's is the lower limit of
        the first that holds something. Empty buckets at both ends are dropped. Both
        arrays are empty if no value lies within the edges.

        `max_bins` joins neighbours where there are more buckets. As in torch, the group
        size is rounded down, so that up to twice as many can remain.

        Raises:
            ValueError: `max_bins` is below 1.

        Source: torch.utils.tensorboard.summary.make_histogram.
        """
        edges, counts = self.edges, self.counts
        if max_bins is not None:
            if max_bins < 1:
                raise ValueError(f"max_bins is {max_bins}, expected at least 1")
            group = max(1, counts.size // max_bins)
            if group > 1:
                edges = np.append(edges[:-1:group], edges[-1])
                counts = np.add.reduceat(counts, np.arange(0, counts.size, group))
        filled = np.flatnonzero(counts)
        if filled.size == 0:
            return edges[:0], counts[:0]
        first, last = int(filled[0]), int(filled[-1])
        return edges[first : last + 2], np.concatenate(([0], counts[first : last + 1]))


def histogram_stats(values: NDArray[Any], bins: Bins = "tensorflow") -> HistogramStats:
    """Count `values`, of any shape and any real dtype, in float64 throughout.

    `bins` is "tensorflow", one of numpy's rules (NUMPY_BINS), a number of buckets between
    the smallest and the largest value, or edges that increase from one to the next (equal
    neighbours are allowed, as in numpy).

    Without finite values num and all counts are 0; a rule or a number then divides 0 to 1.
    Where the range overflows or is too narrow for so many buckets, and torch raises, there
    is one bucket. Where a rule wants more than BINS_MAX there are BINS_MAX: for one far
    outlier "fd" would allocate terabytes. "stone" counts up to sqrt(n) times over (10 s for
    a million values) and may give a RuntimeWarning, numpy's own.

    Raises:
        ValueError: `values` is not of a bool, integer or float dtype, or `bins` none of the
            above.

    Source: counts and edges equal `np.histogram(values.astype(float), bins)`, which is
    what torch's add_histogram calls; sums agree with it to rounding.
    """
    _check_real(values)
    flat = values.reshape(-1)
    if isinstance(bins, str) and bins == "tensorflow":
        return _collect(flat, tensorflow_edges())
    if not isinstance(bins, str) and np.ndim(bins):
        return _collect(flat, _as_edges(bins))
    rule = _rule_or_number(bins)
    with np.errstate(over="ignore"):  # a longdouble past float64's range is infinite
        doubles = flat.astype(np.float64)
    finite = np.isfinite(doubles)
    if not finite.all():
        doubles = doubles[finite]
    counts, edges = _equal_width(doubles, rule)
    return _collect(flat, edges, counts)


def count_values(values: NDArray[Any], edges: ArrayLike) -> NDArray[np.int64]:
    """How many of `values` lie in each bucket between `edges`: (B,), one less than edges.

    Raises:
        ValueError: as `histogram_stats`.

    Source: equal to `np.histogram(values.astype(float), edges)[0]` of finite values.
    """
    _check_real(values)
    return _collect(values.reshape(-1), _as_edges(edges)).counts


@dataclass(frozen=True, slots=True)
class _CellTable:
    """Where each cell's values lie among the edges; indexed by the upper bits of a float32."""

    below: NDArray[np.int32]
    threshold: NDArray[np.float64]  # +inf where the cell holds no edge, or is crowded
    crowded: NDArray[np.bool_] | None  # cells of several edges; None if there are none


@lru_cache(maxsize=16)
def _cell_table(edge_bytes: bytes) -> _CellTable:
    # Cached because building it (0.5 ms) costs as much as counting 100,000 values, and
    # a user's edges come again with every step. 0.8 MiB each.
    edges = np.frombuffer(edge_bytes, np.float64)
    edge_cells = _cells_of(np.where(edges == 0, -0.0, edges))
    bits = np.arange(_CELLS)
    # Ascending in value: negative floats grow as their bits shrink.
    rank = np.where(bits < _CELLS // 2, bits + _CELLS // 2, _CELLS - 1 - bits)
    edges_inside = np.bincount(rank[edge_cells], minlength=_CELLS)
    below = (np.cumsum(edges_inside) - edges_inside)[rank].astype(np.int32)
    crowded = (edges_inside > 1)[rank]
    threshold = np.full(_CELLS, np.inf)
    threshold[edge_cells] = edges
    threshold[crowded] = np.inf
    return _CellTable(below, threshold, crowded if crowded.any() else None)


def _cells_of(values: NDArray[np.float64]) -> NDArray[np.intp]:
    with np.errstate(over="ignore"):  # past float32's range: the cell of infinity
        singles = values.astype(np.float32)
    return (singles.view(np.uint32) >> 16).astype(np.intp)


def _collect(
    flat: NDArray[Any], edges: NDArray[np.float64], counts: NDArray[np.int64] | None = None
) -> HistogramStats:
    """One pass over the values: moments, and counts in `edges` unless they are given."""
    table = _cell_table(edges.tobytes()) if counts is None else None
    # Slot i: values with i edges at or below them.
    slots = np.zeros(edges.size + 1, np.int64)
    at_last_edge = 0
    num = nan = positive_infinities = negative_infinities = 0
    smallest, largest, total, total_squares = math.inf, -math.inf, 0.0, 0.0
    for start in range(0, flat.size, _CHUNK):
        doubles = flat[start : start + _CHUNK].astype(np.float64)
        with np.errstate(all="ignore"):  # NaN compares, and a square overflows: both are meant
            low, high = float(doubles.min()), float(doubles.max())
            if not (math.isfinite(low) and math.isfinite(high)):
                nan += int(np.count_nonzero(np.isnan(doubles)))
                positive_infinities += int(np.count_nonzero(doubles == np.inf))
                negative_infinities += int(np.count_nonzero(doubles == -np.inf))
                doubles = doubles[np.isfinite(doubles)]
                if doubles.size == 0:
                    continue
                low, high = float(doubles.min()), float(doubles.max())
            total += float(doubles.sum())
            total_squares += float(np.square(doubles).sum())
        num += doubles.size
        smallest, largest = min(smallest, low), max(largest, high)
        if table is not None:
            _count_chunk(doubles, edges, table, slots)
            if high >= edges[-1]:
                at_last_edge += int(np.count_nonzero(doubles == edges[-1]))
    if counts is None:
        counts = slots[1:-1]
        counts[-1] += at_last_edge
    return HistogramStats(
        edges=edges,
        counts=counts,
        num=num,
        # Which of the two zeros min() finds depends on the processor: + 0.0 leaves one.
        min=smallest + 0.0,
        max=largest + 0.0,
        sum=total,
        sum_squares=total_squares,
        nan=nan,
        positive_infinities=positive_infinities,
        negative_infinities=negative_infinities,
    )


def _count_chunk(
    doubles: NDArray[np.float64],
    edges: NDArray[np.float64],
    table: _CellTable,
    slots: NDArray[np.int64],
) -> None:
    cells = _cells_of(doubles)
    below = table.below.take(cells)
    below += doubles >= table.threshold.take(cells)
    if table.crowded is not None:
        inside = table.crowded.take(cells)
        below[inside] = np.searchsorted(edges, doubles[inside], side="right")
    slots += np.bincount(below, minlength=slots.size)


def _equal_width(
    doubles: NDArray[np.float64], bins: str | int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Counts and edges of `np.histogram(doubles, bins)` for a rule or a number, within bounds."""
    with np.errstate(all="ignore"):  # the rules' own arithmetic may overflow
        try:
            buckets = _rule_buckets(doubles, bins) if isinstance(bins, str) else bins
            counts, edges = np.histogram(doubles, bins=buckets)
        except (ValueError, OverflowError):
            counts = np.array([doubles.size])
            edges = np.array([doubles.min(), doubles.max()]) + 0.0
    return counts.astype(np.int64, copy=False), edges.astype(np.float64, copy=False)


def _rule_buckets(doubles: NDArray[np.float64], rule: str) -> int:
    """The number of buckets that one of numpy's rules finds for these values, or BINS_MAX."""
    if rule in ("auto", "fd") and doubles.size:
        # numpy would allocate whatever Freedman-Diaconis asks for: ask first.
        upper, lower = np.percentile(doubles, [75, 25])
        width = 2.0 * (upper - lower) / doubles.size ** (1.0 / 3.0)
        if width > 0 and (doubles.max() - doubles.min()) / width > BINS_MAX:
            return BINS_MAX
    return min(BINS_MAX, np.histogram_bin_edges(doubles, rule).size - 1)


def _check_real(values: NDArray[Any]) -> None:
    if values.dtype.kind not in "fbiu":
        raise ValueError(
            f"values has dtype {values.dtype}, expected a float, integer or bool dtype"
        )


def _rule_or_number(bins: Any) -> str | int:
    if isinstance(bins, str):
        if bins not in NUMPY_BINS:
            rules = ", ".join(NUMPY_BINS)
            raise ValueError(f"bins is {bins!r}, expected tensorflow or one of {rules}")
        return bins
    try:
        number = operator.index(bins)
    except TypeError:
        raise ValueError(f"bins is {bins!r}, expected a name, an integer or edges") from None
    if not 1 <= number <= BINS_MAX:
        raise ValueError(f"bins is {number}, expected 1 to {BINS_MAX} buckets")
    return number


def _as_edges(bins: ArrayLike) -> NDArray[np.float64]:
    try:
        edges = np.asarray(bins, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"bins is {bins!r}, expected edges that are numbers") from None
    if edges.ndim != 1 or not 2 <= edges.size <= BINS_MAX + 1:
        raise ValueError(
            f"bins has shape {edges.shape}, expected one dimension of 2 to {BINS_MAX + 1} edges"
        )
    if not np.all(edges[:-1] <= edges[1:]):  # so that NaN fails
        raise ValueError("bins must increase from edge to edge, and hold no NaN")
    return edges


def _describe_edges(edges: NDArray[np.float64]) -> str:
    return f"{edges.size} edges from {edges[0]} to {edges[-1]}"
