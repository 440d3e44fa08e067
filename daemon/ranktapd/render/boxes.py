"""Boxes on a picture, as `SummaryWriter.add_image_with_boxes` draws them, to the pixel.

With Pillow, which has the very lines and letters: another build of it, or of FreeType
behind it, may draw letters differently.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_LINE: Final = "Red"
_TEXT: Final = "black"
_LINE_PIXELS: Final = 2

COORDINATE_MAX: Final = 1e6
"""Beyond every picture: what lies further is drawn here. Pillow's integers overflow at 2**31."""


def with_boxes(
    pixels: NDArray[np.uint8],
    boxes: NDArray[np.float64],
    labels: Sequence[str] | None = None,
    rescale: float = 1.0,
) -> NDArray[np.uint8]:
    """The picture, (H, W, C), with its boxes, then resized by the factor `rescale`.

    `boxes` has shape (N, 4): left, top, right, bottom, in pixels of the picture. One with a
    NaN is left out. A label, if there is one and it is not empty, stands in the box's lower
    left corner.

    Source: torch.utils.tensorboard.summary (`draw_boxes`, `make_image`).
    """
    height, width = pixels.shape[:2]
    size = (int(width * rescale), int(height * rescale))
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default()
    for number, box in enumerate(boxes):
        if np.isnan(box).any():
            continue
        left, top, right, bottom = box.clip(-COORDINATE_MAX, COORDINATE_MAX)
        corners = [(left, top), (left, bottom), (right, bottom), (right, top), (left, top)]
        draw.line(corners, width=_LINE_PIXELS, fill=_LINE)
        if labels is not None and labels[number]:
            _label(draw, font, left, bottom, labels[number])
    return np.asarray(picture.resize(size, Image.Resampling.LANCZOS))


def _label(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    left: float,
    bottom: float,
    text: str,
) -> None:
    text_left, text_top, text_right, text_bottom = font.getbbox(text)
    width, height = text_right - text_left, text_bottom - text_top
    margin = np.ceil(0.05 * height)
    background = [(left, bottom - height - 2 * margin), (left + width, bottom)]
    draw.rectangle(background, fill=_LINE)
    draw.text((left + margin, bottom - height - margin), text, fill=_TEXT, font=font)
