"""What pictures and the bins of histograms may be."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from ranktap_wire import histograms, pictures
from ranktap_wire.histograms import BINS_MAX
from ranktap_wire.pictures import PADDING_MAX, PIXELS
from tests.support.messages import GRID


def refused(start: str, error: type[Exception] = ValueError) -> Any:
    return pytest.raises(error, match=rf"(?s)^{re.escape(start)}")


# -- pictures ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dataformats", "letters"),
    [
        ((3, 4, 5), "CHW", pictures.IMAGE_LETTERS),
        ((4, 5, 1), "hwc", pictures.IMAGE_LETTERS),
        ((4, 5), "HW", pictures.IMAGE_LETTERS),
        ((4, 5), "WH", pictures.IMAGE_LETTERS),
        ((2, 4, 5, 3), "NHWC", pictures.IMAGE_LETTERS),
        ((9, 4, 5), "NHW", pictures.IMAGES_LETTERS),
        ((1, 1, 8_192, 8_192), "NCHW", pictures.IMAGES_LETTERS),
    ],
)
def test_pictures_of_every_documented_format_are_taken(
    shape: tuple[int, ...], dataformats: str, letters: tuple[str, ...]
) -> None:
    pictures.check_image_shape(shape, dataformats, letters)


@pytest.mark.parametrize(
    ("shape", "dataformats", "error", "start"),
    [
        ((3, 4, 5), None, TypeError, "dataformats: expected a string, got None"),
        ((3, 4, 5), "CHX", ValueError, "dataformats: expected the letters of 'CHW', 'HW', 'NCHW'"),
        ((3, 4, 5), "CHWW", ValueError, "dataformats: expected the letters of"),
        ((3, 4, 5), "", ValueError, "dataformats: expected the letters of"),
        ((3, 4), "CHW", ValueError, "image: expected 3 dimensions for dataformats 'CHW', got"),
        ((3, 0, 5), "CHW", ValueError, "image: expected at least one pixel, got shape (3, 0, 5)"),
        ((5, 4, 5), "CHW", ValueError, "image: expected 1, 3 or 4 channels (2: grey and alpha)"),
        ((2, 4, 4, 5), "NCHW", ValueError, "image: expected 1 or 3 channels in a batch, got"),
        ((1, 8_192, 8_193), "CHW", ValueError, f"image: expected at most {PIXELS} pixels"),
        ((8, 1, 8_192, 1_025), "NCHW", ValueError, f"image: expected at most {PIXELS} pixels"),
        ((1 << 62, 1, 1, 1), "NCHW", ValueError, f"image: expected at most {PIXELS} pixels"),
    ],
)
def test_pictures_that_cannot_be_drawn_are_refused(
    shape: tuple[int, ...], dataformats: Any, error: type[Exception], start: str
) -> None:
    with refused(start, error):
        pictures.check_image_shape(shape, dataformats, pictures.IMAGE_LETTERS)


@pytest.mark.parametrize(
    ("shape", "changed", "error", "start"),
    [
        ((4,), {}, ValueError, "images: expected 2, 3 or 4 dimensions (HW, CHW, NCHW), got (4,)"),
        ((1, 1, 1, 4, 4), {}, ValueError, "images: expected 2, 3 or 4 dimensions"),
        ((4, 3, 0, 4), {}, ValueError, "images: expected at least one pixel, got"),
        ((0, 3, 4, 4), {}, ValueError, "images: expected at least one pixel, got"),
        ((4, 2, 4, 4), {}, ValueError, "images: expected 1 or 3 channels, got 2"),
        ((2, 4, 4), {}, ValueError, "images: expected 1 or 3 channels, got 2"),
        ((4, 3, 4, 4), {"nrow": 0}, ValueError, "nrow: expected a whole number from 1 to"),
        ((4, 3, 4, 4), {"nrow": True}, TypeError, "nrow: expected an integer, got True (bool)"),
        ((4, 3, 4, 4), {"nrow": 2.0}, TypeError, "nrow: expected an integer, got 2.0 (float)"),
        ((4, 3, 4, 4), {"padding": -1}, ValueError, "padding: expected a whole number from 0 to"),
        (
            (4, 3, 4, 4), {"padding": PADDING_MAX + 1}, ValueError,
            "padding: expected a whole number from 0 to 1024, got 1025",
        ),
        ((4, 3, 4, 4), {"normalize": 1}, TypeError, "normalize: expected True or False, got 1"),
        ((4, 3, 4, 4), {"scale_each": "no"}, TypeError, "scale_each: expected True or False, got"),
        ((4, 3, 4, 4), {"pad_value": "0"}, TypeError, "pad_value: expected a number, got '0'"),
        ((4, 3, 4, 4), {"pad_value": math.nan}, ValueError, "pad_value: expected a finite number"),
        ((4, 3, 4, 4), {"pad_value": 1e39}, ValueError, "pad_value: expected a value from"),
        ((4, 3, 4, 4), {"value_range": 3}, TypeError, "value_range: expected a pair (low, high)"),
        ((4, 3, 4, 4), {"value_range": [1]}, TypeError, "value_range: expected a pair (low, high)"),
        ((4, 3, 4, 4), {"value_range": "ab"}, TypeError, "value_range: expected a number, got 'a'"),
        ((4, 3, 4, 4), {"value_range": (1, 0)}, ValueError, "value_range: expected low <= high"),
        (
            (4, 3, 4, 4), {"value_range": (0, math.inf)}, ValueError,
            "value_range: expected a finite number, got inf",
        ),
        (
            (4_096, 1, 1, 1), {"padding": 1_024, "nrow": 64}, ValueError,
            f"images: expected at most {PIXELS} pixels, got 65600 x 65600",
        ),
        (
            (1 << 40, 1, 1, 1), {"nrow": 1}, ValueError,
            f"images: expected at most {PIXELS} pixels",
        ),
        ((1 << 20, 1 << 20), {}, ValueError, f"images: expected at most {PIXELS} pixels"),
    ],
)  # fmt: skip
def test_grids_that_cannot_be_drawn_are_refused(
    shape: tuple[int, ...], changed: dict[str, Any], error: type[Exception], start: str
) -> None:
    with refused(start, error):
        pictures.check_grid(shape, "float32", GRID | changed)


def test_the_parameters_of_a_grid_come_back_as_plain_values() -> None:
    given = GRID | {
        "nrow": np.int32(2), "normalize": np.bool_(True), "value_range": (np.float32(0), 1),
        "pad_value": 1,
    }  # fmt: skip
    assert pictures.check_grid((4, 3, 2, 2), "float32", given) == {
        "nrow": 2, "padding": 2, "normalize": True, "value_range": [0.0, 1.0],
        "scale_each": False, "pad_value": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(("dtype", "value"), [("uint8", 256), ("int8", -129), ("float16", 70_000)])
def test_a_pad_value_that_the_images_cannot_hold_is_refused(dtype: str, value: float) -> None:
    with refused(f"pad_value: expected a value from {-65504 if dtype == 'float16' else ''}"):
        pictures.check_grid((4, 4), dtype, GRID | {"pad_value": value})


# -- histograms -------------------------------------------------------------------------


@pytest.mark.parametrize("bins", ["tensorflow", *histograms.NUMPY_BINS, 1, BINS_MAX, np.int64(30)])
def test_bins_by_name_or_number_are_taken_as_they_are(bins: Any) -> None:
    assert histograms.check_bins(bins) == (bins, None)


def test_bins_by_edges_are_taken_as_floats() -> None:
    assert histograms.check_bins([0, 1, 2.5], 7) == (None, [0.0, 1.0, 2.5])


@pytest.mark.parametrize(
    ("bins", "error", "start"),
    [
        ("tensorboard", ValueError, "bins: expected one of 'tensorflow', 'auto'"),
        (0, ValueError, f"bins: expected a whole number from 1 to {BINS_MAX}, got 0"),
        (BINS_MAX + 1, ValueError, f"bins: expected a whole number from 1 to {BINS_MAX}"),
        (None, ValueError, "bins: expected"),
        (object(), TypeError, "bins: expected a name, a whole number or a sequence of edges"),
        ([1], ValueError, "bins: expected 2 to 100001 edges in one dimension, got shape (1,)"),
        ([[1, 2]], ValueError, "bins: expected 2 to 100001 edges in one dimension"),
        ([1, 1], ValueError, "bins: expected finite edges, each greater than the one before"),
        ([2, 1], ValueError, "bins: expected finite edges, each greater than the one before"),
        ([0, math.inf], ValueError, "bins: expected finite edges"),
        ([0, math.nan, 1], ValueError, "bins: expected finite edges"),
    ],
)
def test_bins_that_are_none_are_refused(bins: Any, error: type[Exception], start: str) -> None:
    with refused(start, error):
        histograms.check_bins(bins)


@pytest.mark.parametrize("max_bins", [0, -1, BINS_MAX + 1])
def test_a_maximum_of_bins_out_of_range_is_refused(max_bins: int) -> None:
    with refused(f"max_bins: expected a whole number from 1 to {BINS_MAX}, got {max_bins}"):
        histograms.check_bins("tensorflow", max_bins)
