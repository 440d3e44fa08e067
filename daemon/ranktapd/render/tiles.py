"""The ranks' pictures side by side in one, each with its rank above it.

    rank 0        rank 1
    +--------+    +-----+
    |        |    |     |
    +--------+    +-----+
    rank 2
    +--------+

Letters are drawn from the table below: a font of the machine's would give other pixels
elsewhere.
"""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ranktap_wire.pictures import PIXELS

_GLYPHS: Final = {
    "r": "     |     |# ## |##   |#    |#    |#    ",
    "a": "     |     | ### |    #| ####|#   #| ####",
    "n": "     |     |# ## |##  #|#   #|#   #|#   #",
    "k": "#    |#    |#  # |# #  |##   |# #  |#  # ",
    " ": "     |     |     |     |     |     |     ",
    "0": " ### |#   #|#  ##|# # #|##  #|#   #| ### ",
    "1": "  #  | ##  |  #  |  #  |  #  |  #  | ### ",
    "2": " ### |#   #|    #|   # |  #  | #   |#####",
    "3": " ### |#   #|    #|  ## |    #|#   #| ### ",
    "4": "   # |  ## | # # |#  # |#####|   # |   # ",
    "5": "#####|#    |#### |    #|    #|#   #| ### ",
    "6": "  ## | #   |#    |#### |#   #|#   #| ### ",
    "7": "#####|    #|   # |  #  |  #  |  #  |  #  ",
    "8": " ### |#   #|#   #| ### |#   #|#   #| ### ",
    "9": " ### |#   #|#   #| ####|    #|   # | ##  ",
}
_GLYPH_WIDTH: Final = 5
_GLYPH_HEIGHT: Final = 7
_MARGIN: Final = 2
"""Around the letters, and between two pictures."""
_STRIP: Final = _GLYPH_HEIGHT + 2 * _MARGIN
_PAPER, _INK = 255, 0
_LARGER_FROM: Final = 256
"""Letters are twice as large for pictures of this width, three times from twice it."""
_LARGEST: Final = 4


def tile(pictures: Mapping[int, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """One picture of those of some ranks, in rank order, in a grid as near to a square as can be.

    `pictures` are uint8 (H, W, C) of 1 to 4 channels, at least one; they need not be of one
    size. The result has 3 channels, or 4 where one has alpha.

    Raises:
        ValueError: it would have more than PIXELS pixels.
    """
    ranks = sorted(pictures)
    has_alpha = any(pictures[rank].shape[2] in (2, 4) for rank in ranks)
    columns = math.ceil(math.sqrt(len(ranks)))
    rows = math.ceil(len(ranks) / columns)
    widest = max(pictures[rank].shape[1] for rank in ranks)
    scale = min(_LARGEST, 1 + widest // _LARGER_FROM)
    labels = {rank: _label(f"rank {rank}", scale) for rank in ranks}
    height = max(pictures[rank].shape[0] for rank in ranks) + _STRIP * scale
    width = max(widest, *(labels[rank].shape[1] for rank in ranks))
    pitch_y, pitch_x = height + _MARGIN, width + _MARGIN
    shape = (rows * pitch_y - _MARGIN, columns * pitch_x - _MARGIN, 4 if has_alpha else 3)
    if shape[0] * shape[1] > PIXELS:
        raise ValueError(
            f"the pictures of {len(ranks)} ranks would be {shape[0]} x {shape[1]} pixels, "
            f"at most {PIXELS} allowed"
        )
    canvas = np.full(shape, _PAPER, np.uint8)
    for index, rank in enumerate(ranks):
        row, column = divmod(index, columns)
        top, left = row * pitch_y, column * pitch_x
        label, picture = labels[rank], pictures[rank]
        canvas[top : top + len(label), left : left + label.shape[1], :3] = label[..., None]
        top += _STRIP * scale
        place = canvas[top : top + picture.shape[0], left : left + picture.shape[1]]
        channels = picture.shape[2]
        place[..., :3] = picture[..., :3] if channels > 2 else picture[..., :1]
        if channels in (2, 4):
            place[..., 3] = picture[..., -1]
    return canvas


def _label(text: str, scale: int) -> NDArray[np.uint8]:
    """A text in grey, (H, W), with a margin around it."""
    pitch = _GLYPH_WIDTH + 1
    label = np.full((_STRIP, len(text) * pitch - 1 + 2 * _MARGIN), _PAPER, np.uint8)
    for index, letter in enumerate(text):
        glyph = np.array([[dot == "#" for dot in line] for line in _GLYPHS[letter].split("|")])
        left = _MARGIN + index * pitch
        place = label[_MARGIN : _MARGIN + _GLYPH_HEIGHT, left : left + _GLYPH_WIDTH]
        place[glyph] = _INK
    return label.repeat(scale, axis=0).repeat(scale, axis=1)
