"""What a picture may be: its shape, its channels, its pixels, and how a grid is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from ranktap_wire import limits, rules
from ranktap_wire.records import DTYPES, FLOATS
from ranktap_wire.rules import given, listed

IMAGE_LETTERS: Final = ("CHW", "HW", "NCHW")
IMAGES_LETTERS: Final = ("NCHW", "NHW")

PIXELS: Final = 64 * limits.MIB
"""Pixels of a picture, padding included: 8192 x 8192. What a browser still shows."""

DRAWN_BYTES: Final = 200 * limits.MIB
"""Of a grid as it is drawn, in three channels of the images' dtype: as many as PIXELS of uint8,
and the padding around 4096 x 4096 of float32. Padding makes a large grid of little data:
without this bound 1.4 KB of float64 took 2.8 GB; the largest of uint8 takes 0.9 GB."""

PADDING_MAX: Final = 1_024


def check_image_shape(
    shape: Sequence[int], dataformats: object, letters: Sequence[str], name: str = "image"
) -> tuple[int, int]:
    """Hold a picture's shape against its `dataformats`: each of `letters` in any order.

    `name` is the argument's, for the message. Height and width of what is drawn of it come
    back.

    Raises:
        TypeError: `dataformats` is no string.
        ValueError: it is no order of one of `letters`; the shape has another number of
            dimensions; the channels are none of 1, 3, 4; it is empty or too large.
    """
    if not isinstance(dataformats, str):
        raise TypeError(f"dataformats: expected a string, got {given(dataformats)}")
    order = dataformats.upper()
    if not any(sorted(order) == sorted(allowed) for allowed in letters):
        raise ValueError(
            f"dataformats: expected the letters of {listed(letters)} in some order, "
            f"got {dataformats!r}"
        )
    if len(shape) != len(order):
        raise ValueError(
            f"{name}: expected {len(order)} dimensions for dataformats {dataformats!r}, "
            f"got shape {tuple(shape)}"
        )
    if 0 in shape:
        raise ValueError(f"{name}: expected at least one pixel, got shape {tuple(shape)}")
    channels = shape[order.index("C")] if "C" in order else 1
    if channels not in (1, 2, 3, 4):
        raise ValueError(
            f"{name}: expected 1, 3 or 4 channels (2: grey and alpha), got {channels} "
            f"(shape {tuple(shape)}, dataformats {dataformats!r})"
        )
    if "N" in order and channels not in (1, 3):
        raise ValueError(f"{name}: expected 1 or 3 channels in a batch, got shape {tuple(shape)}")
    # torch tiles a batch in rows of eight.
    count = shape[order.index("N")] if "N" in order else 1
    columns = min(count, 8)
    height = shape[order.index("H")] * math.ceil(count / columns)
    width = shape[order.index("W")] * columns
    _check_pixels(name, height, width, f"for shape {tuple(shape)}")
    return height, width


def check_rescale(rescale: object, height: int, width: int) -> float:
    """The factor, if a picture of this size has pixels afterwards, and not too many.

    Raises:
        TypeError, ValueError: it is no positive number, or has not.
    """
    factor = rules.check_finite("rescale", rescale)
    if not 0 < factor <= PIXELS:
        raise ValueError(f"rescale: expected a positive number, got {factor}")
    scaled = int(height * factor), int(width * factor)
    if 0 in scaled:
        raise ValueError(
            f"rescale: expected a pixel to be left, got {factor} for {height} x {width}"
        )
    _check_pixels("rescale", *scaled, f"for {factor} times {height} x {width}")
    return factor


def check_sprite(shape: Sequence[int]) -> None:
    """Hold the little pictures of an embedding against what TensorBoard shows of them: one
    square of N tiles in rows of ceil(sqrt(N)), each of (C, H, W).

    Raises:
        ValueError: they are no batch, or do not fit a square, or there are too many.
    """
    if len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape:
        raise ValueError(
            f"sprite: expected images (N, C, H, W) of 1 or 3 channels, got shape {tuple(shape)}"
        )
    count, _, height, width = shape
    columns = math.isqrt(count - 1) + 1
    side = columns * width
    _check_pixels("sprite", side, side, f"for shape {tuple(shape)}")
    if math.ceil(count / columns) * height > side:
        raise ValueError(
            f"sprite: expected images that fit a square with {columns} in a row, "
            f"which these are too high for, got shape {tuple(shape)}"
        )


def check_encoded_size(height: object, width: object, channels: object) -> dict[str, int]:
    """What is said of the size of a picture that was encoded in the rank.

    Raises:
        TypeError, ValueError: it is no size, or too large.
    """
    size = {
        "height": rules.check_whole("height", height, 1, PIXELS),
        "width": rules.check_whole("width", width, 1, PIXELS),
        "channels": rules.check_whole("channels", channels, 1, 4),
    }
    _check_pixels("image", size["height"], size["width"], "")
    return size


def check_grid(shape: Sequence[int], dtype: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of an image grid, normalised, for images of `shape` (HW, CHW or NCHW).

    Raises:
        TypeError, ValueError: a parameter is not what `ranktap.Tap.image_grid` says, the
            shape is no picture's, or the grid would exceed PIXELS.
    """
    if not 2 <= len(shape) <= 4:
        raise ValueError(
            f"images: expected 2, 3 or 4 dimensions (HW, CHW, NCHW), got {tuple(shape)}"
        )
    if 0 in shape:
        raise ValueError(f"images: expected at least one pixel, got shape {tuple(shape)}")
    if len(shape) > 2 and shape[-3] not in (1, 3):
        raise ValueError(
            f"images: expected 1 or 3 channels, got {shape[-3]} (shape {tuple(shape)})"
        )
    nrow = rules.check_whole("nrow", parameters["nrow"], 1, 1 << 20)
    padding = rules.check_whole("padding", parameters["padding"], 0, PADDING_MAX)
    count = shape[0] if len(shape) == 4 else 1
    columns = min(nrow, count)
    rows = math.ceil(count / columns)
    height, width = rows * (shape[-2] + padding), columns * (shape[-1] + padding)
    _check_pixels("images", height, width, f"for shape {tuple(shape)}")
    drawn_bytes = 3 * DTYPES[dtype].itemsize * height * width
    if drawn_bytes > DRAWN_BYTES:
        raise ValueError(
            f"images: expected a grid of at most {DRAWN_BYTES >> 20} MiB, "
            f"got {height} x {width} pixels of {dtype} ({drawn_bytes >> 20} MiB)"
        )
    normalize = rules.check_flag("normalize", parameters["normalize"])
    value_range = _checked_range(parameters["value_range"], dtype)
    if normalize and dtype not in FLOATS:
        raise ValueError(f"normalize: expected images of a float dtype, got {dtype}")
    pad_value = rules.check_finite("pad_value", parameters["pad_value"])
    _check_fits("pad_value", pad_value, dtype)
    return {
        "nrow": nrow,
        "padding": padding,
        "normalize": normalize,
        "value_range": value_range,
        "scale_each": rules.check_flag("scale_each", parameters["scale_each"]),
        "pad_value": pad_value,
    }


def _checked_range(value_range: object, dtype: str) -> list[float] | None:
    if value_range is None:
        return None
    if not isinstance(value_range, Sequence) or len(value_range) != 2:
        raise TypeError(
            f"value_range: expected a pair (low, high) or None, got {given(value_range)}"
        )
    low, high = (rules.check_finite("value_range", bound) for bound in value_range)
    if low > high:
        raise ValueError(f"value_range: expected low <= high, got {(low, high)}")
    for bound in (low, high):
        _check_fits("value_range", bound, dtype)
    return [low, high]


def _check_fits(name: str, value: float, dtype: str) -> None:
    """Pixels of the grid have the images' dtype, and torch raises where it cannot hold a value."""
    if dtype == "bool":
        return
    if dtype in FLOATS:
        limit = float(np.finfo("float32" if dtype == "bfloat16" else dtype).max)
        low, high = -limit, limit
    else:
        low, high = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    if not low <= value <= high:
        raise ValueError(
            f"{name}: expected a value from {low:g} to {high:g} for {dtype}, got {value:g}"
        )


def _check_pixels(name: str, height: int, width: int, of_what: str) -> None:
    if height * width > PIXELS:
        raise ValueError(
            f"{name}: expected at most {PIXELS} pixels, got {height} x {width} {of_what}".rstrip()
        )
