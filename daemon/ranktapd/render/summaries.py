"""Pictures, histograms and texts to serialized `Summary.Value`s, one function a kind.

Each is, field by field, what `torch.utils.tensorboard` writes for the same data. What has
a subject of its own has a module of its own beside this one; scalars are encoded a batch
at a time by `scalar_encoder`.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.text.plugin_data_pb2 import TextPluginData

from ranktapd.render.histogram import HistogramStats
from ranktapd.render.png import encode_png
from ranktapd.render.protos import length_field, plugin_metadata, serialized_value

RAW_NUMBERS = ("min", "max", "num", "sum", "sum_squares")
"""What `add_histogram_raw` is given besides the buckets."""


def image_value(
    tag: str, pixels: NDArray[np.uint8], said_size: tuple[int, int] | None = None
) -> bytes:
    """An image of (H, W, C) uint8 pixels, see `to_uint8_hwc`, as a PNG.

    The pixels, size and colour space are torch's; the PNG's bytes are not, as another
    encoder made them. `said_size` is the height and width that it is said to have where
    they are not the pixels' own.

    Raises:
        ValueError: see `encode_png`.
    """
    encoded = encode_png(pixels)
    height, width = said_size or pixels.shape[:2]
    return encoded_image_value(tag, encoded, height, width, pixels.shape[2])


def encoded_image_value(tag: str, encoded: bytes, height: int, width: int, channels: int) -> bytes:
    """An image that was encoded elsewhere (a GIF, of a video). Its bytes are not looked at."""
    image = Summary.Image(height=height, width=width, colorspace=channels).SerializeToString()
    # The last fields of the image and of the value: copied once, not once for each message.
    data = length_field(Summary.Image.ENCODED_IMAGE_STRING_FIELD_NUMBER, len(encoded))
    nbytes = len(image) + len(data) + len(encoded)
    head = length_field(Summary.Value.IMAGE_FIELD_NUMBER, nbytes)
    return b"".join((Summary.Value(tag=tag).SerializeToString(), head, image, data, encoded))


def histogram_value(tag: str, stats: HistogramStats, max_bins: int | None = None) -> bytes:
    """A histogram of what `stats` holds; torch gives it no plugin metadata.

    With no finite value it is written with min, max and sums of 0 and without buckets,
    which TensorBoard shows as an empty histogram; with all values beyond the edges it
    has no buckets either. Whether such a histogram is worth writing is the caller's
    choice: torch raises ValueError in both cases.

    Raises:
        ValueError: see `HistogramStats.buckets`.
    """
    limits, counts = stats.buckets(max_bins)
    histogram = HistogramProto(
        # Of no values these are infinite, and an infinite min or max draws as garbage.
        min=stats.min if stats.num else 0.0,
        max=stats.max if stats.num else 0.0,
        num=stats.num,
        sum=stats.sum,
        sum_squares=stats.sum_squares,
        bucket_limit=limits.tolist(),
        bucket=counts.tolist(),
    )
    return serialized_value(Summary.Value(tag=tag, histo=histogram))


def histogram_raw_value(
    tag: str, buckets: NDArray[np.float64], numbers: Mapping[str, float]
) -> bytes:
    """A histogram that was counted elsewhere, as it was given.

    `buckets` has shape (2, N): upper limits, counts. `numbers` has RAW_NUMBERS.
    """
    histogram = HistogramProto(
        **{name: float(numbers[name]) for name in RAW_NUMBERS},
        bucket_limit=buckets[0].tolist(),
        bucket=buckets[1].tolist(),
    )
    return serialized_value(Summary.Value(tag=tag, histo=histogram))


def text_value(tag: str, text: str) -> bytes:
    """A text, Markdown, shown under `tag`; the series itself is named `tag`/text_summary.

    Raises:
        UnicodeEncodeError: `text` holds a lone surrogate.
    """
    metadata = plugin_metadata("text", TextPluginData(version=0).SerializeToString())
    tensor = TensorProto(
        dtype="DT_STRING",
        string_val=[text.encode()],
        tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
    )
    return serialized_value(
        Summary.Value(tag=tag + "/text_summary", metadata=metadata, tensor=tensor)
    )
