"""Histograms against `np.histogram` bucket by bucket, and against torch's `make_histogram`."""

import math
from functools import reduce

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import make_histogram

from ranktap_wire.histograms import BINS_MAX, NUMPY_BINS
from ranktapd.render.histogram import (
    HistogramStats,
    count_values,
    histogram_stats,
    tensorflow_edges,
)

EDGES = tensorflow_edges()


def numpy_counts(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.histogram(values.astype(np.float64), bins=edges)[0]


@st.composite
def finite_values(draw: st.DrawFn, max_size: int = 60) -> np.ndarray:
    """Values of any real dtype, often exactly on an edge or next to one."""
    dtype = np.dtype(draw(st.sampled_from(["float16", "float32", "float64", "int64", "bool"])))
    if dtype.kind != "f":
        return draw(hnp.arrays(dtype, st.integers(1, max_size)))
    width = dtype.itemsize * 8
    largest = float(np.finfo(dtype).max)
    on_edge = st.sampled_from(EDGES.tolist()).filter(lambda edge: abs(edge) < largest)
    elements = st.one_of(
        st.floats(width=width, allow_nan=False, allow_infinity=False),
        st.floats(-10, 10, width=width),
        on_edge,
    )
    values = np.array(draw(st.lists(elements, min_size=1, max_size=max_size)), dtype)
    if draw(st.booleans()):
        values = np.nextafter(values, dtype.type(draw(st.sampled_from([0.0, 1.0]))))
    return values


def test_tensorflow_edges_are_summary_writers_to_the_last_bit(tmp_path: object) -> None:
    writer = SummaryWriter(str(tmp_path))
    writer.close()
    assert EDGES.tolist() == writer.default_bins
    assert EDGES.dtype == np.float64
    assert EDGES is tensorflow_edges()
    assert not EDGES.flags.writeable


@settings(deadline=None, max_examples=300)
@given(finite_values())
def test_counts_in_tensorflow_edges_equal_numpy(values: np.ndarray) -> None:
    np.testing.assert_array_equal(count_values(values, EDGES), numpy_counts(values, EDGES))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_on_and_next_to_every_edge_fall_where_numpy_puts_them(dtype: type) -> None:
    with np.errstate(over="ignore", under="ignore"):
        on_edge = EDGES.astype(dtype)
    on_edge = on_edge[np.isfinite(on_edge)]
    up = np.nextafter(on_edge, dtype(np.inf))
    down = np.nextafter(on_edge, dtype(-np.inf))
    for values in (on_edge, up[np.isfinite(up)], down[np.isfinite(down)]):
        np.testing.assert_array_equal(count_values(values, EDGES), numpy_counts(values, EDGES))


@settings(deadline=None, max_examples=300)
@given(finite_values(), st.data())
def test_counts_in_any_edges_equal_numpy(values: np.ndarray, data: st.DataObject) -> None:
    # Edges among the values themselves: doubled, a bit apart, many within one cell.
    doubles = values.astype(np.float64)
    candidates = np.concatenate([doubles, np.nextafter(doubles, 1), doubles * 0.999, [0.0, -0.0]])
    edges = np.sort(data.draw(st.lists(st.sampled_from(candidates.tolist()), min_size=2)))
    np.testing.assert_array_equal(count_values(values, edges), numpy_counts(values, edges))


def test_both_zeros_belong_to_the_bucket_that_begins_at_zero() -> None:
    values = np.array([0.0, -0.0, 5e-324, -5e-324, 1e-45, -1e-45])
    for edges in (np.array([-1.0, 0.0, 1.0]), np.array([-1.0, -0.0, 1.0])):
        assert count_values(values, edges).tolist() == [2, 4]
        assert count_values(values.astype(np.float32), edges).tolist() == [1, 5]


def test_last_edge_is_inclusive_and_values_beyond_are_in_no_bucket() -> None:
    stats = histogram_stats(np.array([-1.0, 0.0, 1.0, 2.0, 2.0, 3.0]), [0.0, 1.0, 2.0])
    assert stats.counts.tolist() == [1, 3]
    assert stats.num == 6
    assert (stats.min, stats.max) == (-1.0, 3.0)


def test_edges_finer_than_float32_are_told_apart() -> None:
    values = 1.0 + np.arange(20_000) * 2e-12
    edges = 1.0 + np.arange(0, 20_001, 7) * 2e-12
    np.testing.assert_array_equal(count_values(values, edges), numpy_counts(values, edges))


def test_infinite_edges_take_all_finite_values() -> None:
    edges = [-math.inf, 0.0, math.inf]
    values = np.array([-1.7e308, -1.0, 1.0, 1.7e308])
    assert count_values(values, edges).tolist() == [2, 2]


def test_more_values_than_one_chunk_and_any_shape() -> None:
    values = np.random.default_rng(0).standard_normal((3, 250, 200)).astype(np.float32)
    stats = histogram_stats(values.transpose(2, 0, 1))
    np.testing.assert_array_equal(stats.counts, numpy_counts(values, EDGES))
    assert stats.num == 150_000
    doubles = values.astype(np.float64)
    assert stats.sum == pytest.approx(doubles.sum(), rel=1e-9)
    assert stats.sum_squares == pytest.approx(np.square(doubles).sum(), rel=1e-12)
    assert (stats.min, stats.max) == (values.min(), values.max())


@settings(deadline=None)
@given(finite_values(), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_non_finite_values_are_counted_and_change_nothing_else(
    values: np.ndarray, nan: int, positive: int, negative: int
) -> None:
    values = values.astype(np.float64)
    extra = [math.nan] * nan + [math.inf] * positive + [-math.inf] * negative
    mixed = np.concatenate([extra[::2], values, extra[1::2]])
    stats, clean = histogram_stats(mixed), histogram_stats(values)
    assert (stats.nan, stats.positive_infinities, stats.negative_infinities) == (
        nan,
        positive,
        negative,
    )
    assert stats.non_finite == len(extra)
    np.testing.assert_array_equal(stats.counts, clean.counts)
    assert (stats.num, stats.min, stats.max) == (clean.num, clean.min, clean.max)
    assert stats.sum_squares == clean.sum_squares


@pytest.mark.parametrize("bins", ["tensorflow", 10, [0.0, 1.0], *NUMPY_BINS])
@pytest.mark.parametrize("values", [[], [math.nan], [math.inf, -math.inf, math.nan]])
def test_without_finite_values_the_histogram_is_empty(values: list[float], bins: object) -> None:
    stats = histogram_stats(np.array(values), bins)  # type: ignore[arg-type]
    assert stats.num == 0
    assert stats.counts.sum() == 0
    assert (stats.min, stats.max) == (math.inf, -math.inf)
    assert (stats.sum, stats.sum_squares) == (0.0, 0.0)
    assert stats.non_finite == len(values)
    limits, counts = stats.buckets()
    assert limits.size == counts.size == 0


@settings(deadline=None, max_examples=200)
@given(finite_values(), st.none() | st.integers(1, 40))
def test_buckets_equal_torchs_in_tensorflow_edges(values: np.ndarray, max_bins: int | None) -> None:
    assume((np.abs(values.astype(np.float64)) < 1e20).any())
    with np.errstate(over="ignore"):
        expected = make_histogram(values.astype(float), EDGES, max_bins)
    stats = histogram_stats(values)
    limits, counts = stats.buckets(max_bins)
    assert limits.tolist() == list(expected.bucket_limit)
    assert counts.tolist() == list(expected.bucket)
    assert (stats.min, stats.max, stats.num) == (expected.min, expected.max, expected.num)
    if math.isfinite(expected.sum_squares):
        assert stats.sum_squares == pytest.approx(expected.sum_squares, rel=1e-12)


@pytest.mark.parametrize("max_bins", [None, 1, 2, 3, 5, 7, 9, 10, 11, 1000])
@pytest.mark.parametrize("bins", [1, 2, 10, 11, [0.0, 0.5, 0.5, 2.0, 4.0], *NUMPY_BINS])
@pytest.mark.filterwarnings("ignore:The number of bins estimated may be suboptimal")
def test_buckets_equal_torchs_for_every_kind_of_bins(bins: object, max_bins: int | None) -> None:
    rng = np.random.default_rng(0)
    for values in (
        rng.standard_normal(300),
        rng.exponential(size=50),
        np.array([0.5]),
        rng.integers(0, 9, 40),
    ):
        expected = make_histogram(values.astype(float), bins, max_bins)
        limits, counts = histogram_stats(values, bins).buckets(max_bins)  # type: ignore[arg-type]
        assert limits.tolist() == list(expected.bucket_limit)
        assert counts.tolist() == list(expected.bucket)


def test_values_past_all_edges_leave_no_bucket() -> None:
    stats = histogram_stats(np.array([1e25, -1e25]))
    limits, counts = stats.buckets(30)
    assert limits.size == counts.size == 0
    assert (stats.num, stats.max) == (2, 1e25)


@pytest.mark.parametrize("bins", [10, "sturges", "auto", "doane", "scott"])
@pytest.mark.parametrize(
    "values",
    [[1.7e308, -1.7e308, 0.0, 1.0], [1.0, 1.0 + 2**-52, 1.0, 1.0], [1e17] * 4, [0.0, 5e-324]],
)
def test_range_that_cannot_be_divided_becomes_one_bucket(
    values: list[float], bins: str | int
) -> None:
    stats = histogram_stats(np.array(values), bins)
    assert stats.counts.sum() == len(values)
    assert stats.num == len(values)
    assert np.isfinite(stats.edges).all()


@pytest.mark.parametrize("bins", ["fd", "auto"])
def test_rule_that_one_outlier_makes_explode_is_bounded(bins: str) -> None:
    values = np.append(np.linspace(0, 1e-6, 1000), 1e30)
    stats = histogram_stats(values, bins)
    assert stats.counts.size == BINS_MAX
    assert stats.counts.sum() == stats.num == 1001


def test_negative_zero_is_not_left_in_min_and_max() -> None:
    stats = histogram_stats(np.array([-0.0, -0.0]))
    assert math.copysign(1, stats.min) == math.copysign(1, stats.max) == 1


def test_squares_may_overflow_without_a_warning() -> None:
    stats = histogram_stats(np.array([1e200, -1e200]))
    assert stats.sum_squares == math.inf
    assert stats.max == 1e200


@settings(deadline=None)
@given(st.lists(finite_values(max_size=20), min_size=1, max_size=6))
def test_merging_ranks_equals_the_histogram_of_all_their_values(ranks: list[np.ndarray]) -> None:
    together = histogram_stats(np.concatenate([values.astype(np.float64) for values in ranks]))
    merged = reduce(HistogramStats.merge, map(histogram_stats, ranks))
    np.testing.assert_array_equal(merged.counts, together.counts)
    assert (merged.num, merged.min, merged.max) == (together.num, together.min, together.max)
    assert merged.edges is EDGES
    if math.isfinite(together.sum_squares):
        assert merged.sum_squares == pytest.approx(together.sum_squares, rel=1e-12)


def test_rank_without_finite_values_adds_only_its_count_of_them() -> None:
    some = histogram_stats(np.array([1.0, 2.0]))
    none = histogram_stats(np.array([math.nan, math.inf]))
    for merged in (some.merge(none), none.merge(some)):
        assert (merged.num, merged.min, merged.max, merged.sum) == (2, 1.0, 2.0, 3.0)
        assert (merged.nan, merged.positive_infinities, merged.negative_infinities) == (1, 1, 0)


def test_equal_edges_merge_though_they_are_other_arrays() -> None:
    left = histogram_stats(np.array([0.5]), [0.0, 1.0])
    right = histogram_stats(np.array([0.7]), np.array([0.0, 1.0]))
    assert left.merge(right).counts.tolist() == [2]


def test_different_edges_do_not_merge() -> None:
    left = histogram_stats(np.array([0.5]), [0.0, 1.0])
    with pytest.raises(ValueError, match=r"2 edges from 0\.0 to 1\.0, and 1549 edges"):
        left.merge(histogram_stats(np.array([0.5])))


def test_same_values_give_the_same_bytes() -> None:
    values = np.random.default_rng(0).standard_normal(200_000)
    first, second = histogram_stats(values), histogram_stats(values.copy())
    assert (first.sum, first.sum_squares) == (second.sum, second.sum_squares)


@pytest.mark.parametrize(
    ("bins", "message"),
    [
        ("tensorfow", "expected tensorflow or one of auto"),
        (0, "expected 1 to"),
        (BINS_MAX + 1, "expected 1 to"),
        (2.5, "a name, an integer or edges"),
        (None, "a name, an integer or edges"),
        ([1.0], "expected one dimension of 2 to"),
        ([[1.0, 2.0], [3.0, 4.0]], "expected one dimension"),
        ([1.0, 0.0], "must increase"),
        ([0.0, math.nan, 1.0], "hold no NaN"),
        (["a", "b"], "edges that are numbers"),
    ],
)
def test_bins_that_are_none_are_refused_by_what_was_given(bins: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        histogram_stats(np.ones(3), bins)  # type: ignore[arg-type]


def test_max_bins_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="max_bins is 0"):
        histogram_stats(np.ones(3)).buckets(0)


@pytest.mark.parametrize("dtype", [np.complex64, object, "U3"])
def test_values_that_are_no_real_numbers_are_refused(dtype: object) -> None:
    with pytest.raises(ValueError, match="expected a float, integer or bool"):
        histogram_stats(np.zeros(3).astype(dtype))  # type: ignore[call-overload]


def test_counts_that_do_not_fit_their_edges_are_refused() -> None:
    with pytest.raises(ValueError, match="one edge more"):
        HistogramStats(EDGES, np.zeros(3, np.int64), 0, 0.0, 0.0, 0.0, 0.0)
