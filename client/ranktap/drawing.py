"""What is made into pixels in the rank: figures of matplotlib, and frames as a GIF.

Both libraries are imported by those who draw, and named with what to install when missing.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

GIF_COLORS = 256
GIF_PIXELS = 32 << 20
"""Of all frames. A pixel takes at most a byte and a half, so that the GIF stays in RECORD_BYTES."""


def draw_figure(figure: Any) -> Pixels:
    """A figure as matplotlib draws it, (H, W, 3); its own canvas, maybe a window, stays its own.

    Raises:
        TypeError: it is no figure.
        ModuleNotFoundError: there is no matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise _missing(error, "a figure is drawn by matplotlib", "figure") from None
    if not isinstance(figure, Figure):
        raise TypeError(f"figure: expected a matplotlib figure, got {type(figure).__name__}")
    canvas = figure.canvas
    drawn = FigureCanvasAgg(figure)
    try:
        drawn.draw()
    finally:
        figure.set_canvas(canvas)
    pixels: Pixels = np.array(drawn.buffer_rgba())[..., :3]
    return pixels


def close_figures(figures: Sequence[Any]) -> None:
    """Let pyplot forget figures, if it knows them: it keeps every one that it has made."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        for figure in figures:
            pyplot.close(figure)


def check_gif() -> None:
    """Raise ModuleNotFoundError, with what to install, when no GIF can be made here."""
    try:
        import PIL  # noqa: F401
    except ModuleNotFoundError as error:
        raise _missing(error, "a video is encoded by Pillow", "video") from None


def tile_shape(count: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of a frame that shows `count` videos, as torch's `add_video` lays them out:
    padded with black ones to a power of two, in a rectangle as square as that allows."""
    padded = 1 << (count - 1).bit_length()
    rows = 1 << (count.bit_length() - 1) // 2
    return rows * height, padded // rows * width


def tile_videos(videos: NDArray[Any]) -> Pixels:
    """Videos of shape (N, T, C, H, W) as one, (T, H', W', C): see `tile_shape`.

    Floats are in [0, 1], uint8 is what it is; what lies outside is cut off.
    """
    count, frames, channels, height, width = videos.shape
    full_height, full_width = tile_shape(count, height, width)
    rows, columns = full_height // height, full_width // width
    tiles = np.zeros((rows * columns, *videos.shape[1:]), np.uint8)
    tiles[:count] = _to_uint8(videos)
    tiles = tiles.reshape(rows, columns, frames, channels, height, width)
    return tiles.transpose(2, 0, 4, 1, 5, 3).reshape(frames, full_height, full_width, channels)


def _to_uint8(values: NDArray[Any]) -> Pixels:
    if values.dtype == np.uint8:
        same: Pixels = values
        return same
    scaled = values.astype(np.float32) * np.float32(255)
    # NaN is black: to cast it is undefined.
    known: NDArray[np.float32] = np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0)
    return known.clip(0, 255).astype(np.uint8)


def encode_gif(frames: Pixels, fps: float) -> bytes:
    """Frames of shape (T, H, W, 1 or 3) as a GIF that repeats for ever.

    Grey, and what has no more than 256 colours in a frame, is exact. Otherwise the colours of a
    frame are chosen by an octree: 60 times as fast as Pillow's own choice, by median cut, which
    took 4 s for 32 frames of 256 x 256 (and 2 dB worse). A GIF counts in hundredths of a second.
    """
    from PIL import Image

    pictures = [_to_palette(Image.fromarray(np.squeeze(frame, 2) if frame.shape[2] == 1 else frame))
                for frame in frames]  # fmt: skip
    encoded = io.BytesIO()
    pictures[0].save(
        encoded,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=max(10, round(100 / fps) * 10),
        loop=0,
        optimize=False,
    )
    return encoded.getvalue()


def _to_palette(picture: Any) -> Any:
    from PIL import Image

    if picture.mode == "L":
        return picture
    colors = picture.getcolors(GIF_COLORS)
    if colors is None:
        return picture.quantize(GIF_COLORS, Image.Quantize.FASTOCTREE)
    return picture.quantize(len(colors), Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def _missing(error: ModuleNotFoundError, why: str, extra: str) -> ModuleNotFoundError:
    package = (error.name or "").partition(".")[0]
    return ModuleNotFoundError(
        f"{why}, and {package} is not installed: pip install 'ranktap[{extra}]'", name=package
    )
