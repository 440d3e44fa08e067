"""Statistics of tensors, merged over ranks: equal to those of all values together."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
import torch

from ranktap import reduce
from ranktap_wire import kinds
from ranktap_wire.records import (
    HISTOGRAM_BUCKETS,
    MOMENT_FIELDS,
    MOMENTS,
    MOMENTS_ROWS,
    Across,
    Blob,
    Buffer,
    Kind,
)
from ranktapd.tensor_statistics import TensorStatistics, bit_edges, statistics_of

FIELDS = tuple(MOMENT_FIELDS)


def blob_of(
    tensors: dict[str, torch.Tensor],
    *,
    fields: tuple[str, ...] = FIELDS,
    replicated: bool = False,
    histograms: bool = True,
) -> Blob:
    rows = np.array([reduce.moments(tensor) for tensor in tensors.values()])
    parts: dict[str, Buffer] = {"tags": "\n".join(tensors).encode()}
    if histograms:
        counted = [reduce.bit_counts(tensor).numpy() for tensor in tensors.values()]
        parts["counts"] = np.array(counted).astype(np.uint32)
    blob = Blob(
        Kind.MOMENTS, "group", 3, 1.0, Across.MERGE, "float64", rows.shape,
        {"fields": list(fields), "replicated": replicated}, rows,
        parts,
    )  # fmt: skip
    kinds.check_blob(blob)
    return blob


def statistics(
    tensors: dict[str, torch.Tensor], *, replicated: bool = False, histograms: bool = True
) -> TensorStatistics:
    return statistics_of(blob_of(tensors, replicated=replicated, histograms=histograms))


def scalars(made: TensorStatistics) -> dict[str, float]:
    values, written = made.scalars()
    return {
        f"{tag}/{field}": float(values[row, column])
        for row, tag in enumerate(made.tags)
        for column, field in enumerate(made.fields)
        if written[row, column]
    }


def test_scalars_are_what_their_names_say() -> None:
    values = torch.tensor([3.0, -4.0, 0.0, 0.0, float("nan")])
    assert scalars(statistics({"x": values})) == pytest.approx(
        {
            "x/mean": -0.25,
            "x/std": np.std([3.0, -4.0, 0.0, 0.0]),
            "x/rms": 2.5,
            "x/norm": 5.0,
            "x/min": -4.0,
            "x/max": 3.0,
            "x/abs_max": 4.0,
            "x/zeros": 0.5,
            "x/non_finite": 1.0,
        }
    )


def test_non_finite_is_written_only_where_there_is_any() -> None:
    assert "x/non_finite" not in scalars(statistics({"x": torch.ones(2)}))


def test_of_no_finite_values_only_their_number_is_written() -> None:
    assert scalars(statistics({"x": torch.full((3,), float("inf"))})) == {"x/non_finite": 3.0}
    assert scalars(statistics({"x": torch.ones(0)})) == {}


def test_ratio_is_the_root_of_the_sums_of_squares() -> None:
    update, weight = torch.full((4,), 0.5), torch.full((4,), 2.0)
    row = reduce.with_reference(reduce.moments(update), reduce.moments(weight))
    made = TensorStatistics(("w",), np.array([row]), ("norm", "ratio"), False)
    assert scalars(made) == {"w/norm": 1.0, "w/ratio": 0.25}


@pytest.mark.parametrize("shards", [2, 3, 8])
def test_shards_merge_to_the_whole(shards: int) -> None:
    torch.manual_seed(shards)
    whole = {"a": torch.randn(37), "b": torch.randn(11, 3) * 1e-3, "c": torch.zeros(5)}
    whole["a"][3] = float("nan")
    split = {name: tensor.flatten().tensor_split(shards) for name, tensor in whole.items()}
    parts = [statistics({name: of[rank] for name, of in split.items()}) for rank in range(shards)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    expected = statistics(whole)
    assert scalars(merged) == pytest.approx(scalars(expected), rel=1e-6)
    assert merged.cells is not None and expected.cells is not None
    np.testing.assert_array_equal(merged.cells, expected.cells)
    np.testing.assert_array_equal(merged.counts, expected.counts)


def test_ranks_with_different_layers_keep_them_all() -> None:
    stage0, stage1 = {"a": torch.ones(2), "both": torch.ones(3)}, {"both": torch.zeros(3)}
    stage1["c"] = torch.full((4,), 2.0)
    merged = statistics(stage0).merge(statistics(stage1))
    assert merged.tags == ("a", "both", "c")
    found = scalars(merged)
    assert (found["a/norm"], found["c/norm"]) == pytest.approx((2**0.5, 4.0))
    assert found["both/mean"] == 0.5
    histograms = {tag: stats.num for tag, stats in merged.histograms()}
    assert histograms == {"a": 2, "both": 6, "c": 4}


def test_of_replicas_the_lowest_rank_counts() -> None:
    first = {"a": torch.full((2,), 3.0), "b": torch.ones(2)}
    second = {"c": torch.full((5,), 4.0), "a": torch.full((9,), 7.0)}
    merged = statistics(first, replicated=True).merge(statistics(second, replicated=True))
    assert merged.tags == ("a", "b", "c")
    assert [row[0] for row in merged.rows] == [2, 2, 5]
    assert {tag: stats.num for tag, stats in merged.histograms()} == {"a": 2, "b": 2, "c": 5}
    same = statistics(first, replicated=True)
    assert same.merge(statistics(first, replicated=True)) is same


def test_merging_changes_neither_side() -> None:
    left, right = statistics({"a": torch.ones(2)}), statistics({"b": torch.ones(2)})
    before = left.rows.copy(), right.rows.copy()
    left.merge(right)
    left.merge(statistics({"a": torch.zeros(3)}))
    np.testing.assert_array_equal(left.rows, before[0])
    np.testing.assert_array_equal(right.rows, before[1])


def test_a_histogram_has_every_value_in_a_bucket_around_it() -> None:
    values = torch.tensor([-1e30, -2.5, -0.0, 0.0, 1e-40, 1.0, 1.125, 3e38])
    ((tag, stats),) = statistics({"x": values}).histograms()
    assert tag == "x"
    assert stats.counts.sum() == stats.num == len(values)
    assert (np.diff(stats.edges) > 0).all()
    for value in values.double().tolist():
        bucket = np.searchsorted(stats.edges, value, side="right") - 1
        if value < 0 and value == stats.edges[bucket]:
            bucket -= 1  # below zero a bucket has its upper edge
        assert stats.counts[bucket] > 0, value
    limits, counts = stats.buckets()
    assert counts.sum() == len(values)
    assert (np.diff(limits) > 0).all()


def test_empty_buckets_in_a_row_are_written_as_one() -> None:
    ((_, stats),) = statistics({"x": torch.tensor([-1.0, 1.0])}).histograms()
    assert len(stats.counts) == 3


def test_buckets_are_an_eighth_of_an_octave() -> None:
    edges = bit_edges()
    assert edges.size == 2 * 2040 + 1
    assert (np.diff(edges) > 0).all()
    start = int(np.searchsorted(edges, 1.0))
    np.testing.assert_array_equal(edges[start : start + 9], 1 + np.arange(9) / 8)
    np.testing.assert_array_equal(edges, -edges[::-1])


@pytest.mark.parametrize("histograms", [False, True])
def test_a_snapshot_is_the_same_again(histograms: bool) -> None:
    made = statistics({"a": torch.randn(9), "b": torch.randn(3)}, histograms=histograms)
    again = TensorStatistics.load(msgpack.unpackb(msgpack.packb(made.dump())))
    assert again.dump() == made.dump()
    assert again.merge(made).dump() == made.merge(again).dump()


def _broken(**changed: object) -> Blob:
    blob = blob_of({"a": torch.ones(2), "b": torch.ones(3)})
    for name, value in changed.items():
        if name not in ("tags", "counts", "edges"):
            setattr(blob, name, value)
        elif value is None:
            del blob.parts[name]
        else:
            assert isinstance(value, bytes)
            blob.parts[name] = value
    return blob


ROWS = np.array([reduce.moments(torch.ones(2))] * 2)


def _rows(**columns: float) -> bytes:
    rows = ROWS.copy()
    for name, value in columns.items():
        rows[1, MOMENTS.index(name)] = value
    return rows.tobytes()


REFUSED = {
    "no tags": {"tags": None},
    "a tag too few": {"tags": b"a"},
    "a tag too many": {"tags": b"a\nb\nc"},
    "an empty tag": {"tags": b"a\n"},
    "a tag twice": {"tags": b"a\na"},
    "tags that are no UTF-8": {"tags": b"a\n\xff"},
    "a control character": {"tags": b"a\nb\x07"},
    "a tag that leaves no room for a field": {"tags": b"a\n" + b"b" * 995},
    "float32": {"dtype": "float32", "shape": (4, 8)},
    "seven columns": {"shape": (2, 7), "data": ROWS[:, :7].tobytes()},
    "one dimension": {"shape": (16,)},
    "no rows": {"shape": (0, 8), "data": b"", "tags": b""},
    "too many rows": {
        "shape": (MOMENTS_ROWS + 1, 8),
        "data": bytes((MOMENTS_ROWS + 1) * 64),
        "tags": "\n".join(map(str, range(MOMENTS_ROWS + 1))).encode(),
        "counts": None,
    },
    "counts of another size": {"counts": bytes(HISTOGRAM_BUCKETS * 4)},
    "a field that there is not": {"parameters": {"fields": ["median"], "replicated": False}},
    "a field twice": {"parameters": {"fields": ["mean", "mean"], "replicated": False}},
    "fields that are no list": {"parameters": {"fields": "mean", "replicated": False}},
    "replicated perhaps": {"parameters": {"fields": [], "replicated": 1}},
    "another parameter": {"parameters": {"fields": [], "replicated": False, "more": 1}},
    "a negative count": {"data": _rows(count=-1.0)},
    "a count that is NaN": {"data": _rows(count=float("nan"))},
    "infinitely many zeros": {"data": _rows(zeros=float("inf"))},
    "edges": {"edges": bytes(16)},
    "a policy of scalars": {"across": Across.MEAN},
}


@pytest.mark.parametrize("changed", REFUSED.values(), ids=REFUSED)
def test_what_a_stranger_sends_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError)):
        kinds.check_blob(_broken(**changed))
