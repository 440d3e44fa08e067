"""Batches of images to one picture, and any logged image to the pixels TensorBoard shows.

Two tilings, because users know two: `make_grid` is `torchvision.utils.make_grid`
(padding, normalizing), `to_uint8_hwc` is what `SummaryWriter.add_image` and
`add_images` do to what they are given. Both are held to the pixel: the same
rounding in the same dtype in the same order. Only the order of steps that cannot
change a pixel is ours (one channel is repeated last, a batch is tiled as uint8).

Sources: torchvision 0.29 `utils.py`; torch 2.13 `utils/tensorboard/summary.py`
(`image`) and `_utils.py` (`convert_to_HWC`, `make_grid`).
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What `to_uint8_hwc` takes: any order of one of these, in either case. NHW is ours, a
# batch of grey images; torch stops at it. That torch also takes an unknown letter in the
# last place (`find` answers -1, which then indexes from the end) is an accident.
_LAYOUTS = ("HW", "CHW", "NHW", "NCHW")

# `SummaryWriter.add_images` tiles in rows of eight and offers no way to change it.
_ADD_IMAGES_PER_ROW = 8


def make_grid(
    images: NDArray[Any],
    *,
    nrow: int = 8,
    padding: int = 2,
    normalize: bool = False,
    value_range: tuple[float, float] | None = None,
    scale_each: bool = False,
    pad_value: float = 0.0,
) -> NDArray[Any]:
    """One (C, H, W) picture of all images, in the dtype of `images`.

    `images` is a batch (N, C, H, W), one image (C, H, W) or one (H, W), of any
    float, integer or bool dtype; bfloat16 comes widened to float32. A single
    channel is repeated to three. `nrow` is the number of images in a row. One
    image alone is returned without padding. `pad_value` is stored as torch does:
    in integers truncated, in bools true unless it is 0.

    `normalize` maps `value_range`, or else the smallest and largest value, to 0
    and 1; with `scale_each` for each image by itself. A NaN makes the smallest and
    largest NaN, and with them everything that they normalize. Values out of
    0 to 1 are left as they are without `normalize`.

    The result may be a read-only view of `images`; `images` is never changed.

    Raises:
        ValueError: an image without pixels, or of more than four channels, which no PNG
            shows; `normalize` of integers; a `nrow` below 1, a negative `padding`; a
            `pad_value` or `value_range` that the dtype cannot hold.

    Source: equal, element for element, to `torchvision.utils.make_grid` on the CPU.
    """
    _check_images(images)
    if nrow < 1:
        raise ValueError(f"nrow is {nrow}, expected at least 1")
    if padding < 0:
        raise ValueError(f"padding is {padding}, expected at least 0")
    _check_fits("pad_value", pad_value, images.dtype)
    if normalize and images.dtype.kind != "f":
        raise ValueError(
            f"normalize needs images of a float dtype, as its result lies between 0 and 1; "
            f"got {images.dtype}"
        )
    batch = images.reshape((1,) * (4 - images.ndim) + images.shape)
    if normalize:
        if scale_each:
            batch = np.stack([_normalized(image, value_range) for image in batch])
        else:
            batch = _normalized(batch, value_range)

    count, channels, height, width = batch.shape
    if channels == 1:
        channels = 3
        batch = np.broadcast_to(batch, (count, channels, height, width))
    if count == 1:
        result: NDArray[Any] = batch[0]
        return result

    columns = min(nrow, count)
    rows = math.ceil(count / columns)
    pitch_y, pitch_x = height + padding, width + padding
    grid = np.full(
        (channels, rows * pitch_y + padding, columns * pitch_x + padding),
        _as_dtype(pad_value, images.dtype),
        dtype=images.dtype,
    )
    for index, image in enumerate(batch):
        row, column = divmod(index, columns)
        top, left = row * pitch_y + padding, column * pitch_x + padding
        grid[:, top : top + height, left : left + width] = image
    return grid


def to_uint8_hwc(image: NDArray[Any], dataformats: str) -> NDArray[np.uint8]:
    """The pixels that TensorBoard shows of a logged image: contiguous (H, W, C) uint8.

    `dataformats` names the dimensions of `image`: HW, CHW, NHW or NCHW in any order
    and case. C comes out as 3 (a single channel is repeated), or as the 2 or 4 of one
    image with alpha. A batch is tiled in rows of eight, without padding,
    the rest of the last row black.

    uint8 is taken as it is. Everything else is multiplied by 255 in float32,
    clipped to 0 to 255 and truncated: floats mean 0 to 1, a bool is black or
    white, and so is any other integer. NaN is 0.

    The result may share memory with `image`.

    Raises:
        ValueError: `dataformats` is no order of a known layout, or has another number of
            dimensions than `image`; no pixels; a number of channels other than 1, 2, 3, 4
            (in a batch 1, 3); a dtype that is no real number.

    Source: `SummaryWriter.add_image` and `add_images`.
    """
    if image.dtype.kind not in "fbiu":
        raise ValueError(f"the image has dtype {image.dtype}, expected float, integer or bool")
    layout = _checked_layout(dataformats, image.shape)
    pixels = _to_uint8(image)
    if "C" not in layout:
        pixels, layout = pixels[..., None], layout + "C"
    if "N" in layout:
        return _tile(pixels.transpose([layout.index(letter) for letter in "NHWC"]))
    return _interleave(pixels.transpose([layout.index(letter) for letter in "HWC"]))


def _checked_layout(dataformats: str, shape: tuple[int, ...]) -> str:
    """`dataformats` in capitals, if an image of this shape can be one."""
    layout = dataformats.upper()
    if sorted(layout) not in [sorted(known) for known in _LAYOUTS]:
        raise ValueError(
            f"dataformats is {dataformats!r}, expected the letters of {', '.join(_LAYOUTS)} "
            "in some order"
        )
    if len(layout) != len(shape):
        raise ValueError(f"dataformats is {dataformats!r}, but the image has shape {shape}")
    if 0 in shape:
        raise ValueError(f"the image has no pixels: its shape is {shape}")
    if "C" in layout:
        channels = shape[layout.index("C")]
        allowed = (1, 3) if "N" in layout else (1, 2, 3, 4)
        if channels not in allowed:
            raise ValueError(
                f"the image has {channels} channels (shape {shape} as {dataformats!r}), "
                f"expected one of {allowed}"
            )
    return layout


def _check_images(images: NDArray[Any]) -> None:
    if images.dtype.kind not in "fbiu" or images.dtype.itemsize > 8:
        raise ValueError(f"images has dtype {images.dtype}, expected float, integer or bool")
    if images.ndim not in (2, 3, 4):
        raise ValueError(f"images has shape {images.shape}, expected NCHW, CHW or HW")
    if images.size == 0:
        raise ValueError(f"images has no pixels: its shape is {images.shape}")
    if images.ndim > 2 and images.shape[-3] > 4:
        raise ValueError(
            f"images has {images.shape[-3]} channels (shape {images.shape}, which ends in CHW), "
            "expected 1 to 4"
        )


def _check_fits(name: str, value: float, dtype: np.dtype[Any]) -> None:
    """Raise ValueError where torch would, because `dtype` cannot hold `value`."""
    if dtype.kind == "f":
        # NaN and the infinities are values of every float dtype.
        fits = not math.isfinite(value) or abs(value) <= float(np.finfo(dtype).max)
    elif dtype.kind == "b":
        fits = True
    else:
        # -0.5 would truncate to 0, yet torch refuses it for unsigned dtypes.
        limits = np.iinfo(dtype)
        fits = bool(limits.min <= value <= limits.max)
    if not fits:
        raise ValueError(f"{name} is {value!r}, which {dtype} cannot hold")


def _as_dtype(value: float, dtype: np.dtype[Any]) -> float | int | bool:
    """`value` as torch stores it in `dtype`: truncated toward 0; true unless 0."""
    if dtype.kind == "b":
        return bool(value)
    return float(value) if dtype.kind == "f" else int(value)


def _normalized(values: NDArray[Any], value_range: tuple[float, float] | None) -> NDArray[Any]:
    """`values` clamped to the range, less its low end, divided by its width.

    Each step is rounded to the dtype of `values`. The width of float16 stays a
    float32, as torch leaves a half tensor's divisor (but not what is subtracted).
    """
    dtype = values.dtype
    compute = np.dtype(np.float32) if dtype == np.float16 else dtype
    # NaN and infinities are data here: what they lead to is defined (NaN, then 0).
    with np.errstate(invalid="ignore", over="ignore"):
        if value_range is None:
            # Clamping to one's own extremes changes nothing, except that torch fills
            # everything with NaN when they are; subtracting them does that as well.
            low, high = float(values.min()), float(values.max())
        else:
            low, high = map(float, value_range)
            _check_fits("value_range", low, dtype)
            _check_fits("value_range", high, dtype)
            values = np.clip(values, dtype.type(low), dtype.type(high))
        shifted = np.subtract(values, dtype.type(low))
        width = compute.type(max(high - low, 1e-5))
        scaled: NDArray[Any] = np.divide(shifted, width, dtype=compute).astype(dtype, copy=False)
    return scaled


def _to_uint8(image: NDArray[Any]) -> NDArray[np.uint8]:
    """`image` scaled to 0 to 255 as `SummaryWriter` does, in its own shape and memory order."""
    if image.dtype == np.uint8:
        return image
    if image.dtype.kind != "f":
        # 255 times any positive integer is at least 255.
        white: NDArray[np.uint8] = np.multiply(image > 0, np.uint8(255), dtype=np.uint8)
        return white
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = np.multiply(image, np.float32(255), dtype=np.float32, casting="same_kind")
        np.clip(scaled, 0, 255, out=scaled)
        # A cast of NaN to uint8 is whatever the processor makes of it (0 on x86-64).
        # min() is NaN if anything is, and costs a tenth of asking isnan() of every pixel.
        if np.isnan(scaled.min()):
            scaled[np.isnan(scaled)] = 0
        pixels: NDArray[np.uint8] = scaled.astype(np.uint8)
    return pixels


def _interleave(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, C) in any memory order as a contiguous array, one channel repeated to three."""
    height, width, channels = image.shape
    if channels > 1 and image.flags.c_contiguous:
        return image
    pixels = np.empty((height, width, 3 if channels == 1 else channels), np.uint8)
    _fill(pixels, image)
    return pixels


def _tile(batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, H, W, C) as one (H', W', 3) picture, left to right and top to bottom."""
    count, height, width, _ = batch.shape
    columns = min(count, _ADD_IMAGES_PER_ROW)
    rows = math.ceil(count / columns)
    canvas = np.zeros((rows * height, columns * width, 3), np.uint8)
    for index, image in enumerate(batch):
        row, column = divmod(index, columns)
        top, left = row * height, column * width
        _fill(canvas[top : top + height, left : left + width], image)
    return canvas


def _fill(target: NDArray[np.uint8], image: NDArray[np.uint8]) -> None:
    # Channel by channel: numpy's copy of a whole transposed array walks it with the
    # three channels innermost and takes four times as long (512x512x3: 0.9 ms, 0.2 ms).
    for channel in range(target.shape[2]):
        target[..., channel] = image[..., channel if image.shape[2] > 1 else 0]
