"""The methods that log arrays: what a daemon reads of them, and what they refuse."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from ranktap import Tap
from ranktap_wire import limits
from ranktap_wire.records import Across, Blob
from tests.support.taps import logged, refused, sent, sent_blob, slow_device
from tests.support.watching import silent_taps

POINTS = np.arange(12.0).reshape(1, 4, 3)
CURVE = [[4.0, 2.0], [3.0, 1.0], [0.0, 2.0], [0.0, 2.0], [0.5, 0.6], [1.0, 0.5]]
COUNTED = {"min": 0.0, "max": 3.0, "num": 4, "sum": 6.0, "sum_squares": 14.0}


@pytest.fixture
def tap() -> Iterator[Tap]:
    with silent_taps() as make:
        yield make()


def part(blob: Blob, name: str, dtype: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(blob.parts[name], dtype)


LOGGING: dict[str, Callable[..., None]] = {
    "tensor": lambda tap, tag="t", **when: tap.tensor(tag, [1.0], **when),
    "histogram_raw": lambda tap, tag="t", **when: tap.histogram_raw(
        tag, **COUNTED, bucket_limits=[1, 3], bucket_counts=[2, 2], **when
    ),
    "pr_curve": lambda tap, tag="t", **when: tap.pr_curve(tag, [0, 1], [0.2, 0.8], **when),
    "pr_curve_raw": lambda tap, tag="t", **when: tap.pr_curve_raw(tag, *CURVE, **when),
    "audio": lambda tap, tag="t", **when: tap.audio(tag, [0.0, 0.5], **when),
    "mesh": lambda tap, tag="t", **when: tap.mesh(tag, POINTS, **when),
    "embedding": lambda tap, tag="t", **when: tap.embedding(tag, [[1.0, 2.0]], **when),
}


# -- what all have in common --------------------------------------------------------------


@pytest.mark.parametrize("method", LOGGING)
def test_a_record_has_its_tag_step_and_wall_time(tap: Tap, method: str) -> None:
    tap.step(5)
    when = {} if method == "embedding" else {"walltime": 2.5}
    LOGGING[method](tap, tag="a/b", **when)
    blob = sent_blob(tap)
    assert (blob.kind, blob.tag, blob.step, blob.across) == (method, "a/b", 5, Across.EACH)
    assert blob.wall_time == 2.5 or method == "embedding"
    LOGGING[method](tap, step=np.int64(-7))
    assert sent_blob(tap).step == -7


@pytest.mark.parametrize("method", LOGGING)
def test_a_wrong_tag_step_or_wall_time_is_refused(tap: Tap, method: str) -> None:
    for tag, error in ((5, TypeError), ("", ValueError), ("a\tb", ValueError)):
        with refused("tag", error):
            LOGGING[method](tap, tag=tag)
    for step, error in ((1.0, TypeError), (1 << 63, ValueError)):
        with refused("step", error):
            LOGGING[method](tap, step=step)
    if method != "embedding":
        with refused("walltime"):
            LOGGING[method](tap, walltime=math.nan)
    assert logged(tap) == 0
    # Nothing is known of the tag either.
    tap.scalar("t", 1.0)


@pytest.mark.parametrize(
    ("method", "tag", "kind"),
    [
        ("tensor", "t", "tensor"), ("histogram_raw", "t", "histogram"),
        ("pr_curve", "t", "pr_curve"), ("pr_curve_raw", "t", "pr_curve"), ("audio", "t", "audio"),
        ("mesh", "t_VERTEX", "mesh"),
    ],
)  # fmt: skip
def test_a_tag_keeps_what_it_is_to_tensorboard(tap: Tap, method: str, tag: str, kind: str) -> None:
    tap.scalar(tag, 1.0)
    with pytest.raises(ValueError, match=rf"^tag: '{tag}' was logged as scalar.*, now as {kind};"):
        LOGGING[method](tap)


def test_what_is_the_same_to_tensorboard_may_share_a_tag(tap: Tap) -> None:
    LOGGING["histogram_raw"](tap, tag="h")
    tap.histogram("h", [1.0])
    LOGGING["pr_curve"](tap, tag="p")
    LOGGING["pr_curve_raw"](tap, tag="p")
    # An embedding has files, and no tag.
    LOGGING["embedding"](tap, tag="h")
    LOGGING["embedding"](tap, tag="e")
    tap.scalar("e", 1.0)
    assert logged(tap) == 7


# -- tensors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(2, 3), np.zeros((0, 2)), 3, [[1, 2], [3, 4]], torch.tensor([1 + 2j]).conj(),
     torch.tensor(1.5, dtype=torch.bfloat16), np.zeros((1,) * 8), np.array([True])],
    ids=lambda value: f"{type(value).__name__} {np.shape(value)}",
)  # fmt: skip
def test_a_tensor_arrives_as_it_is(tap: Tap, tensor: Any) -> None:
    tap.tensor("t", tensor)
    expected = tensor.to(torch.complex128).numpy() if torch.is_tensor(tensor) else tensor
    np.testing.assert_array_equal(sent_blob(tap).array(), expected)


@pytest.mark.parametrize(
    ("tensor", "error"),
    [
        ("text", TypeError), (None, TypeError), ([[1], [1, 2]], TypeError),
        (torch.eye(2).to_sparse(), TypeError), (torch.empty(2, device="meta"), TypeError),
        (np.zeros((1,) * 9), ValueError),
        (np.broadcast_to(np.uint8(0), limits.TENSOR_ELEMENTS + 1), ValueError),
        (np.broadcast_to(np.float64(0), limits.RECORD_BYTES // 8 + 1), ValueError),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_no_tensor_or_too_large_is_refused(tap: Tap, tensor: Any, error: Any) -> None:
    with pytest.raises(error, match=r"(?s)^(tensor|shape): expected "):
        tap.tensor("t", tensor)
    assert logged(tap) == 0


# -- distributions and curves -------------------------------------------------------------


@pytest.mark.parametrize("given", [[1, 3], np.array([1, 3], np.int32), torch.tensor([1.0, 3.0])])
def test_a_counted_histogram_arrives_as_limits_and_counts(tap: Tap, given: Any) -> None:
    numbers = COUNTED | {"num": np.int64(4), "sum": torch.tensor(6.0), "min": math.nan}
    tap.histogram_raw("h", **numbers, bucket_limits=given, bucket_counts=given)
    blob = sent_blob(tap)
    np.testing.assert_array_equal(blob.array(), [[1.0, 3.0], [1.0, 3.0]])
    assert math.isnan(blob.parameters.pop("min"))
    assert blob.parameters == {"max": 3.0, "num": 4.0, "sum": 6.0, "sum_squares": 14.0}
    tap.histogram_raw("h", *COUNTED.values(), [], [])
    assert sent_blob(tap).shape == (2, 0)


@pytest.mark.parametrize(
    ("changed", "argument", "error"),
    [
        ({"min": "0"}, "min", TypeError), ({"num": None}, "num", TypeError),
        ({"sum_squares": [1.0, 2.0]}, "sum_squares", TypeError),
        ({"bucket_limits": [1.0]}, "bucket_limits", ValueError),
        ({"bucket_counts": [[1.0, 2.0]]}, "bucket_limits", ValueError),
        ({"bucket_counts": ["a", "b"]}, "bucket_counts", TypeError),
    ],
)  # fmt: skip
def test_a_wrong_counted_histogram_is_refused(
    tap: Tap, changed: dict[str, Any], argument: str, error: type[Exception]
) -> None:
    with refused(argument, error):
        tap.histogram_raw(
            "h", **(COUNTED | {"bucket_limits": [1.0, 2.0], "bucket_counts": [3, 4]} | changed)
        )
    assert logged(tap) == 0


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [([False, True, True], "u1"), (np.array([0, 1, 1], np.uint8), "u1"), ([0, 1, 1], "<f8"),
     (torch.tensor([0, 1, 1]), "<f8"), (torch.tensor([False, True, True]), "u1"),
     (np.array([0.0, 1.0, 1.0], ">f4"), "<f8")],
    ids=str,
)  # fmt: skip
def test_a_curves_labels_travel_as_small_as_they_came(tap: Tap, labels: Any, dtype: str) -> None:
    tap.pr_curve("p", labels, np.array([0.1, 0.5, 0.9], np.float16), num_thresholds=np.int64(9))
    blob = sent_blob(tap)
    assert (blob.dtype, blob.parameters) == ("float16", {"num_thresholds": 9})
    assert part(blob, "labels", dtype).tolist() == [0, 1, 1]
    assert "weights" not in blob.parts


def test_predictions_that_are_whole_numbers_and_arrays_of_any_shape_are_taken(tap: Tap) -> None:
    tap.pr_curve("p", [[0], [1]], [[0], [1]], weights=2)
    blob = sent_blob(tap)
    assert (blob.dtype, blob.shape) == ("float64", (2,))
    assert part(blob, "weights", "<f8").tolist() == [2.0, 2.0]
    tap.pr_curve("p", [0, 1], [0.0, 1.0], weights=torch.tensor([0.5, 0.25]))
    assert part(sent_blob(tap), "weights", "<f8").tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("changed", "argument", "error"),
    [
        ({"labels": [0, 1, 1]}, "labels", ValueError), ({"labels": "ab"}, "labels", TypeError),
        ({"predictions": None}, "predictions", TypeError),
        ({"weights": [1.0, 2.0, 3.0]}, "weights", ValueError),
        ({"weights": "heavy"}, "weights", TypeError),
        ({"num_thresholds": 128}, "num_thresholds", ValueError),
        ({"num_thresholds": 1}, "num_thresholds", ValueError),
        ({"num_thresholds": 2.5}, "num_thresholds", TypeError),
    ],
)  # fmt: skip
def test_a_wrong_curve_is_refused(
    tap: Tap, changed: dict[str, Any], argument: str, error: type[Exception]
) -> None:
    with refused(argument, error):
        tap.pr_curve("p", **({"labels": [0, 1], "predictions": [0.1, 0.9]} | changed))
    assert logged(tap) == 0


def test_a_counted_curve_arrives_as_six_rows(tap: Tap) -> None:
    tap.pr_curve_raw("p", *CURVE[:4], np.float32(CURVE[4]), torch.tensor(CURVE[5]))
    np.testing.assert_allclose(sent_blob(tap).array(), CURVE, rtol=1e-7)
    for wrong, error in (([1.0], ValueError), ([[1.0, 2.0]], ValueError), ("ab", TypeError)):
        with refused("recall", error):
            tap.pr_curve_raw("p", *CURVE[:5], wrong)
    with refused("true_positive_counts"):
        tap.pr_curve_raw("p", *[[]] * 6)
    assert sent(tap) is None


# -- sounds -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (1, 5), (5, 1), (1, 1, 5, 1)])
def test_a_sound_has_one_dimension_besides_those_of_size_1(
    tap: Tap, shape: tuple[int, ...]
) -> None:
    tap.audio("a", np.linspace(-1, 1, 5).reshape(shape), sample_rate=np.int64(8_000))
    blob = sent_blob(tap)
    assert blob.parameters == {"sample_rate": 8_000}
    np.testing.assert_array_equal(blob.array(), np.linspace(-1, 1, 5))


@pytest.mark.parametrize(
    ("audio", "rate", "argument", "error"),
    [
        (np.zeros((2, 5)), 44_100, "audio", ValueError), ([], 44_100, "audio", ValueError),
        ("la", 44_100, "audio", TypeError), ([0.5], 0, "sample_rate", ValueError),
        ([0.5], 44_100.0, "sample_rate", TypeError), ([True], 44_100, "audio", ValueError),
        ([0.5], 1 << 31, "sample_rate", ValueError),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_sound_is_refused(
    tap: Tap, audio: Any, rate: Any, argument: str, error: type[Exception]
) -> None:
    with refused(argument, error):
        tap.audio("a", audio, sample_rate=rate)
    assert logged(tap) == 0


# -- points -------------------------------------------------------------------------------


def test_a_mesh_arrives_with_what_belongs_to_it(tap: Tap) -> None:
    colors = torch.tensor([[[255, 0, 0]] * 4], dtype=torch.int32)
    config = {"material": {"cls": "PointsMaterial", "size": 2}, "camera": {"fov": 75}}
    tap.mesh("m", POINTS, colors=colors, faces=[[[0, 1, 2], [1, 2, 3]]], config=config)
    blob = sent_blob(tap)
    assert (blob.dtype, blob.shape) == ("float32", (1, 4, 3))
    np.testing.assert_array_equal(blob.array(), POINTS)
    assert part(blob, "colors", "<f4").tolist() == [255.0, 0.0, 0.0] * 4
    assert part(blob, "faces", "<f4").tolist() == [0, 1, 2, 1, 2, 3]
    assert bytes(blob.parts["config"]).decode() == json.dumps(config, sort_keys=True)
    tap.mesh("m", POINTS)
    assert sent_blob(tap).parts == {}


@pytest.mark.parametrize(
    ("changed", "argument", "error"),
    [
        ({"vertices": POINTS[0]}, "vertices", ValueError),
        ({"vertices": POINTS[..., :2]}, "vertices", ValueError),
        ({"vertices": POINTS[:, :0]}, "vertices", ValueError),
        ({"vertices": "cube"}, "vertices", TypeError),
        ({"colors": POINTS[:, :2]}, "colors", ValueError),
        ({"colors": "red"}, "colors", TypeError),
        ({"faces": np.zeros((2, 1, 3))}, "faces", ValueError),
        ({"faces": [[0, 1, 2]]}, "faces", ValueError),
        ({"config": "camera"}, "config", TypeError),
        ({"config": {"camera": object()}}, "config", TypeError),
        ({"config": {"a": np.zeros(2)}}, "config", TypeError),
    ],
)  # fmt: skip
def test_a_wrong_mesh_is_refused(
    tap: Tap, changed: dict[str, Any], argument: str, error: type[Exception]
) -> None:
    with refused(argument, error):
        tap.mesh("m", **({"vertices": POINTS} | changed))
    assert logged(tap) == 0


def test_an_embedding_arrives_with_the_lines_of_its_table_and_its_pictures(tap: Tap) -> None:
    pictures = torch.rand(2, 3, 4, 5)
    tap.embedding("e", torch.ones(2, 3), 7, metadata=["é", 5], sprite=pictures)
    blob = sent_blob(tap)
    assert bytes(blob.parts["metadata"]).decode() == "é\n5\n"
    np.testing.assert_array_equal(
        part(blob, "sprite", "<f4"), pictures.numpy().reshape(-1), strict=True
    )
    assert blob.parameters == {
        "global_step": 7, "sprite_shape": [2, 3, 4, 5], "sprite_dtype": "float32",
    }  # fmt: skip
    tap.embedding("e", [[1], [2]], metadata=[["a", 1], ["b", 2]], metadata_header=["name", "n"])
    blob = sent_blob(tap)
    assert bytes(blob.parts["metadata"]).decode() == "name\tn\na\t1\nb\t2\n"
    assert blob.parameters["global_step"] == 0


@pytest.mark.parametrize(
    ("changed", "argument", "error"),
    [
        ({"mat": [1.0, 2.0]}, "mat", ValueError), ({"mat": np.zeros((0, 2))}, "mat", ValueError),
        ({"mat": [["a"]]}, "mat", TypeError), ({"metadata": ["a"]}, "metadata", ValueError),
        ({"metadata": "ab"}, "metadata", TypeError), ({"metadata": 5}, "metadata", TypeError),
        ({"metadata": ["\ud800", "b"]}, "metadata", ValueError),
        ({"metadata": [["a"], ["b"]], "metadata_header": ["x", "y"]}, "metadata", ValueError),
        ({"metadata": ["ab", "cd"], "metadata_header": ["x", "y"]}, "metadata", ValueError),
        ({"metadata": [1, 2], "metadata_header": ["x", "y"]}, "metadata", ValueError),
        ({"sprite": np.zeros((3, 3, 4, 4))}, "sprite", ValueError),
        ({"sprite": np.zeros((2, 4, 4))}, "sprite", ValueError),
        ({"sprite": np.zeros((2, 2, 4, 4))}, "sprite", ValueError),
        ({"sprite": "pictures"}, "sprite", TypeError),
    ],
)  # fmt: skip
def test_a_wrong_embedding_is_refused(
    tap: Tap, changed: dict[str, Any], argument: str, error: type[Exception]
) -> None:
    with refused(argument, error):
        tap.embedding("e", **({"mat": [[1.0, 2.0], [3.0, 4.0]]} | changed))
    assert logged(tap) == 0


# -- snapshots ----------------------------------------------------------------------------


def log_tensors(tap: Tap, a: torch.Tensor, points: torch.Tensor) -> None:
    """Each method with tensors in every place that takes one."""
    tap.tensor("tensor", a)
    tap.histogram_raw("raw", a.min(), a.max(), a.numel(), a.sum(), a.square().sum(), a, a)
    tap.pr_curve("curve", a, a, weights=a)
    tap.pr_curve_raw("counted", a, a, a, a, a, a)
    tap.audio("audio", a)
    tap.mesh("mesh", points, colors=points, faces=points)
    tap.embedding("points", a[None], sprite=points[None])


def everything(tap: Tap) -> list[tuple[Any, ...]]:
    batch = sent(tap)
    assert batch is not None
    return [
        (
            blob.kind,
            blob.parameters,
            bytes(blob.data),
            [bytes(part) for part in blob.parts.values()],
        )
        for blob in batch.blobs
    ]


def test_every_method_takes_snapshots_and_waits_for_no_device(
    tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = torch.linspace(0, 1, 6, dtype=torch.bfloat16)
    points = torch.linspace(0, 1, 27).reshape(3, 3, 3)
    log_tensors(tap, a, points)
    expected = everything(tap)
    assert len(expected) == 7
    with slow_device(monkeypatch) as arrive:
        log_tensors(tap, a, points)
        assert sent(tap) is None
        a.zero_()
        points.zero_()
        arrive()
        assert everything(tap) == expected


def test_what_is_converted_on_its_way_is_counted_at_its_new_size_and_then_free_again(
    tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    with slow_device(monkeypatch) as arrive:
        tap.pr_curve("p", torch.ones(10_000, dtype=torch.int8), torch.ones(10_000))
        assert 120_000 <= tap._outbox.pending_blob_bytes < 125_000
        arrive()
        assert sent(tap) is not None
    assert tap._outbox.pending_blob_bytes == 0
