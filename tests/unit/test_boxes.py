"""Boxes on pictures, to the pixel, against `torch.utils.tensorboard.summary.image_boxes`."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import summary as torch_summary

from ranktapd.render.boxes import COORDINATE_MAX, with_boxes
from ranktapd.render.grid import to_uint8_hwc
from ranktapd.render.summaries import image_value

BOXES = np.array([[2, 3, 30, 20], [10.5, 0.25, 38.75, 25.5], [-5, -5, 90, 90], [30, 20, 2, 3]])
LABELS = ["cat", "", "a dog, at 0.97", "Ärger"]


def pixels_of(value: Summary.Value) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))


@pytest.mark.parametrize("labels", [None, LABELS], ids=["", "labels"])
@pytest.mark.parametrize("rescale", [1, 0.5, 2.3])
@pytest.mark.parametrize(
    ("shape", "dataformats", "dtype"),
    [
        ((3, 28, 40), "CHW", np.uint8),
        ((28, 40, 3), "HWC", np.float32),
        ((28, 40), "HW", np.float64),
        ((4, 28, 40), "CHW", np.uint8),
        ((4, 3, 14, 20), "NCHW", np.float32),
    ],
)
def test_a_picture_with_boxes_equals_torchs_but_for_the_encoder(
    shape: tuple[int, ...],
    dataformats: str,
    dtype: type,
    rescale: float,
    labels: list[str] | None,
) -> None:
    noise = np.random.default_rng(0).random(shape)
    image = (noise * 255).astype(dtype) if dtype is np.uint8 else noise.astype(dtype)
    theirs = torch_summary.image_boxes("a", image, BOXES, rescale, dataformats, labels).value[0]
    plain = to_uint8_hwc(image, dataformats)
    drawn = with_boxes(plain, BOXES, labels, rescale)
    ours = Summary.Value.FromString(image_value("a", drawn, plain.shape[:2]))
    np.testing.assert_array_equal(pixels_of(ours), pixels_of(theirs))
    ours.image.encoded_image_string = theirs.image.encoded_image_string
    assert ours == theirs


def test_a_picture_without_boxes_is_as_it_was_and_the_callers_is_not_drawn_on() -> None:
    plain = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    before = plain.copy()
    np.testing.assert_array_equal(with_boxes(plain, np.zeros((0, 4))), before)
    assert not np.array_equal(with_boxes(plain, BOXES), before)
    np.testing.assert_array_equal(plain, before)


def test_a_box_with_a_nan_is_left_out_and_the_others_are_drawn() -> None:
    plain = np.zeros((40, 60, 3), np.uint8)
    boxes = BOXES.copy()
    boxes[1, 2] = np.nan
    left = [0, 2, 3]
    expected = with_boxes(plain, BOXES[left], [LABELS[number] for number in left])
    np.testing.assert_array_equal(with_boxes(plain, boxes, LABELS), expected)


@pytest.mark.parametrize("far", [np.inf, 3 * COORDINATE_MAX, 1e300])
def test_of_a_box_that_ends_nowhere_the_lines_on_the_picture_are_drawn(far: float) -> None:
    plain = np.zeros((40, 60, 3), np.uint8)
    expected = with_boxes(plain, np.array([[10, -100, 200, 20]]))
    assert expected.any()
    np.testing.assert_array_equal(with_boxes(plain, np.array([[10, -far, far, 20]])), expected)


def test_a_box_far_beyond_the_picture_takes_no_time_and_leaves_it_alone() -> None:
    far = np.full((1, 4), COORDINATE_MAX)
    far[0, :2] = -COORDINATE_MAX
    plain = np.zeros((9, 7, 3), np.uint8)
    np.testing.assert_array_equal(with_boxes(plain, far, ["far away"]), plain)
