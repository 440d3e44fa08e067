"""Moments through the wire's frames and the fold: merged, written, and the same after a restart."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from ranktap import reduce
from ranktap_wire import frames
from ranktap_wire.records import Across, Batch, Blob, Kind
from ranktapd.fold import Fold
from tests.unit.test_fold import Journal, begun, events, points


def moments(
    tensors: dict[str, list[float]],
    *,
    across: Across = Across.MERGE,
    step: int = 4,
    fields: tuple[str, ...] = ("mean", "norm", "non_finite"),
    group: str = "group",
) -> Blob:
    made = [torch.tensor(values) for values in tensors.values()]
    rows = np.array([reduce.moments(tensor) for tensor in made])
    counts = np.array([reduce.bit_counts(tensor).numpy() for tensor in made]).astype(np.uint32)
    return Blob(
        Kind.MOMENTS, group, step, 1.0, across, "float64", rows.shape,
        {"fields": list(fields), "replicated": False}, rows,
        {"tags": "\n".join(tensors).encode(), "counts": counts},
    )  # fmt: skip


def histograms(written: bytes) -> dict[str, float]:
    """Tag to number of values."""
    return {
        value.tag: value.histo.num
        for event in events(written)
        for value in event.summary.value
        if value.HasField("histo")
    }


def test_what_travels_is_what_arrives() -> None:
    blob = moments({"a": [3.0, 4.0], "b": [1.0]})
    again = frames.read_batch(frames.pack_batch(bytes(16), 1, Batch(None, [blob]))).blobs[0]
    assert [*again.parts] == ["tags", "counts"]
    np.testing.assert_array_equal(again.array(), blob.array())
    assert bytes(again.parts["tags"]) == b"a\nb"
    np.testing.assert_array_equal(
        np.frombuffer(again.parts["counts"], "<u4"), np.ravel(blob.parts["counts"])
    )


def test_two_ranks_rows_become_one_when_both_are_there() -> None:
    journal = begun(2)
    assert journal.blobs(0, 1, moments({"w": [3.0, 0.0]})) == []
    assert journal.blobs(1, 1, moments({"w": [4.0, 1.0]})) == [
        ("w/mean", 4, 2.0),
        ("w/norm", 4, pytest.approx(26**0.5)),
    ]
    assert histograms(journal.output) == {"w": 4.0}


def test_a_number_of_non_finite_values_begins_where_there_are_any() -> None:
    journal = begun(1)
    journal.blobs(0, 1, moments({"w": [1.0]}, step=0))
    assert journal.blobs(0, 2, moments({"w": [1.0, float("nan")]}, step=1)) == [
        ("w/mean", 1, 1.0),
        ("w/norm", 1, 1.0),
        ("w/non_finite", 1, 1.0),
    ]


def test_of_one_rank_alone_nothing_waits() -> None:
    journal = begun(2)
    assert journal.blobs(1, 1, moments({"w": [5.0]}, across=Across.RANK0)) == []
    assert journal.blobs(0, 1, moments({"w": [3.0]}, across=Across.RANK0))[0] == ("w/mean", 4, 3.0)


def test_each_ranks_own_series_have_its_name() -> None:
    journal = begun(2)
    journal.blobs(1, 1, moments({"w": [5.0]}, across=Across.EACH))
    assert points(journal.output)[0] == ("ranks/w/mean/rank1", 4, 5.0)
    assert histograms(journal.output) == {"ranks/w/rank1": 1.0}


def test_a_group_that_holds_a_users_tag_leaves_out_that_tag_alone() -> None:
    journal = begun(1)
    journal.scalar(0, 1, "w", 0, 1.0)
    assert journal.blobs(0, 2, moments({"w": [5.0], "v": [1.0]}))[0] == ("w/mean", 4, 5.0)
    assert histograms(journal.output) == {"v": 1.0}, "a scalar's tag is no histogram's"


def test_a_fold_that_stops_in_an_open_window_goes_on_with_the_same_bytes() -> None:
    whole, first = begun(2), begun(2)
    for journal in (whole, first):
        journal.blobs(0, 1, moments({"a": [1.0], "b": [2.0]}), moments({"c": [3.0]}, group="other"))
    second = Journal(Fold.restore(first.fold.state(), ThreadPoolExecutor(1)))
    second.sequence = first.sequence
    for journal in (whole, second):
        journal.blobs(1, 1, moments({"b": [4.0], "d": [5.0]}), moments({"c": [6.0]}, group="other"))
    assert first.output + second.output == whole.output
    assert {tag for tag, _, _ in points(whole.output)} == {
        f"{tag}/{field}" for tag in "abcd" for field in ("mean", "norm")
    }
