"""What the embedding projector reads: files in the run's directory, no events.

    projector_config.pbtxt             names all embeddings of the run
    <step>/<tag>/tensors.tsv           a line a point, numbers with tabs between
    <step>/<tag>/metadata.tsv          a line a point, after a header if there are columns
    <step>/<tag>/sprite.png            the points' pictures, in a square

Source: torch.utils.tensorboard (`SummaryWriter.add_embedding`, `_embedding.py`).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from google.protobuf import text_format  # type: ignore[import-untyped]
from numpy.typing import NDArray
from tensorboard.plugins.projector.projector_config_pb2 import EmbeddingInfo, ProjectorConfig

from ranktapd.render.png import encode_png

CONFIG_NAME: Final = "projector_config.pbtxt"
TENSORS_NAME: Final = "tensors.tsv"
METADATA_NAME: Final = "metadata.tsv"
SPRITE_NAME: Final = "sprite.png"

_ROWS_AT_ONCE: Final = 1_024


@dataclass(frozen=True, slots=True)
class Embedding:
    """What the configuration says of one."""

    name: str
    """Tag and step, as torch writes them: `default:00000`."""
    directory: str
    """Of its files, below the run's."""
    has_metadata: bool
    picture_size: tuple[int, int] | None
    """Width and height of a point's picture, if they have any."""


def embedding_of(
    tag: str, step: int, has_metadata: bool, sprite_shape: Sequence[int] | None
) -> Embedding:
    """What the configuration will say of an embedding with pictures of this shape, (N, C, H, W).

    `tag` is short enough to be a directory's name (see `kind_rules`).
    """
    number = str(step).zfill(5)
    # As torch encodes it, but for a name that stands for another directory.
    encoded = tag.replace("%", "%25").replace("/", "%2f").replace("\\", "%5c")
    if encoded in (".", ".."):
        encoded = encoded.replace(".", "%2e")
    size = None
    if sprite_shape is not None:
        size = (sprite_shape[3], sprite_shape[2])
    return Embedding(f"{tag}:{number}", f"{number}/{encoded}", has_metadata, size)


def config_text(embeddings: Sequence[Embedding]) -> bytes:
    """The content of `projector_config.pbtxt`."""
    config = ProjectorConfig()
    for embedding in embeddings:
        info = EmbeddingInfo(
            tensor_name=embedding.name, tensor_path=f"{embedding.directory}/{TENSORS_NAME}"
        )
        if embedding.has_metadata:
            info.metadata_path = f"{embedding.directory}/{METADATA_NAME}"
        if embedding.picture_size is not None:
            info.sprite.image_path = f"{embedding.directory}/{SPRITE_NAME}"
            info.sprite.single_image_dim.extend(embedding.picture_size)
        config.embeddings.append(info)
    text: str = text_format.MessageToString(config)
    return text.encode()


def tensor_lines(points: NDArray[Any]) -> Iterator[bytes]:
    """The content of `tensors.tsv`, some lines at a time, for points of shape (N, D).

    Numbers stand as Python writes them: a float32 has the digits of the float64 that it
    is, as torch writes it.
    """
    for first in range(0, len(points), _ROWS_AT_ONCE):
        rows = points[first : first + _ROWS_AT_ONCE].tolist()
        yield "".join("\t".join(map(str, row)) + "\n" for row in rows).encode()


def sprite_png(images: NDArray[Any]) -> bytes:
    """The pictures, (N, C, H, W) with C of 1 or 3, row after row, as one square PNG.

    As many in a row as a square of N has, and not higher than that row is wide (see
    `pictures.check_sprite`). They mean 0 to 1 and are cut off; NaN is 0. uint8 is taken
    as it is, where torch makes all but 0 white.
    """
    count, _, height, width = images.shape
    columns = math.isqrt(count - 1) + 1
    canvas = np.zeros((columns * width, columns * width, 3), np.uint8)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        pixels = image.transpose(1, 2, 0)
        if images.dtype != np.uint8:
            with np.errstate(invalid="ignore", over="ignore"):
                pixels = np.nan_to_num(pixels.astype(np.float64) * 255, posinf=255, neginf=0)
                pixels = pixels.clip(0, 255).astype(np.uint8)
        top, left = row * height, column * width
        canvas[top : top + height, left : left + width] = pixels
    return encode_png(canvas)
