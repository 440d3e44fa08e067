"""Rendered data to the bytes of an event, one function a kind.

The functions `*_value` return a serialized `Summary.Value`, field by field what
`torch.utils.tensorboard` writes for the same data; `event_payload` puts values into a
serialized `Event`, which the event file frames. Scalars are not here: they are encoded
a batch at a time by the event file itself.

Values are nested by their bytes, not as messages, which would copy an image's megabyte
once for every level. In protobuf's encoding a field is its number and wire type in one
byte, then its length and content:

    Event    0x09 wall time (8 bytes)   0x10 step (varint)   0x2a Summary
    Summary  0x0a Value, repeated

Fields of value 0 are absent (proto3), and fields stand in the order of their numbers,
so that the bytes are those that protobuf itself would write.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.text.plugin_data_pb2 import TextPluginData

from ranktapd.render.histogram import HistogramStats
from ranktapd.render.png import encode_png

# The one tag under which the custom scalars plugin looks for its layout.
LAYOUT_TAG = "custom_scalars__config__"


@dataclass(frozen=True, slots=True)
class MarginChart:
    """A line with a band around it, from three tags that are taken literally."""

    title: str
    value: str
    lower: str
    upper: str


@dataclass(frozen=True, slots=True)
class MultilineChart:
    """A line for every tag that one of the regular expressions `tags` finds."""

    title: str
    tags: Sequence[str]


def image_value(tag: str, pixels: NDArray[np.uint8]) -> bytes:
    """An image of (H, W, C) uint8 pixels, see `to_uint8_hwc`, as a PNG.

    The pixels, size and colour space are torch's; the PNG's bytes are not, as another
    encoder made them.

    Raises:
        ValueError: see `encode_png`.
    """
    encoded = encode_png(pixels)
    height, width, channels = pixels.shape
    image = Summary.Image(
        height=height, width=width, colorspace=channels, encoded_image_string=encoded
    )
    return _serialized(Summary.Value(tag=tag, image=image))


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
    return _serialized(Summary.Value(tag=tag, histo=histogram))


def text_value(tag: str, text: str) -> bytes:
    """A text, Markdown, shown under `tag`; the series itself is named `tag`/text_summary.

    Raises:
        UnicodeEncodeError: `text` holds a lone surrogate.
    """
    content = TextPluginData(version=0).SerializeToString()
    metadata = SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name="text", content=content)
    )
    tensor = TensorProto(
        dtype="DT_STRING",
        string_val=[text.encode()],
        tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
    )
    return _serialized(Summary.Value(tag=tag + "/text_summary", metadata=metadata, tensor=tensor))


def layout_value(categories: Mapping[str, Sequence[MarginChart | MultilineChart]]) -> bytes:
    """The layout of the custom scalars page: charts by category, in the order given.

    A run has one layout, and the last one written counts: one that adds a chart must
    hold all the others too.

    Source: torch.utils.tensorboard.summary.custom_scalars.
    """
    layout = layout_pb2.Layout(
        category=[
            layout_pb2.Category(title=title, chart=[_chart(chart) for chart in charts])
            for title, charts in categories.items()
        ]
    )
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="custom_scalars"))
    tensor = TensorProto(
        dtype="DT_STRING",
        string_val=[layout.SerializeToString()],
        tensor_shape=TensorShapeProto(),
    )
    return _serialized(Summary.Value(tag=LAYOUT_TAG, tensor=tensor, metadata=metadata))


def margin_layout_value(charts: Iterable[MarginChart], category: str = "ranks") -> bytes:
    """A layout of margin charts alone, in one category: the mean over ranks with its band."""
    return layout_value({category: list(charts)})


def event_payload(wall_time: float, step: int, *values: bytes) -> bytes:
    """A serialized `Event` that holds serialized `Summary.Value`s, in the order given.

    `wall_time` is in seconds since the epoch. `step` is an int64; negative is allowed.

    Raises:
        ValueError: `wall_time` is not finite (a NaN there ends the reading of the file
            by TensorBoard's fast loader), or `step` does not fit.
    """
    if not np.isfinite(wall_time):
        raise ValueError(f"wall_time is {wall_time!r}, expected a finite number of seconds")
    if not -(1 << 63) <= step < 1 << 63:
        raise ValueError(f"step is {step}, expected a 64-bit integer")
    parts = []
    if wall_time:
        parts.append(b"\x09" + struct.pack("<d", wall_time))
    if step:
        # A negative int64 is written as the unsigned number of the same bits.
        parts.append(b"\x10" + _varint(step & ((1 << 64) - 1)))
    headed = [b"\x0a" + _varint(len(value)) + value for value in values]
    parts.append(b"\x2a" + _varint(sum(map(len, headed))))
    return b"".join(parts + headed)


def _chart(chart: MarginChart | MultilineChart) -> layout_pb2.Chart:
    if isinstance(chart, MarginChart):
        series = layout_pb2.MarginChartContent.Series(
            value=chart.value, lower=chart.lower, upper=chart.upper
        )
        margin = layout_pb2.MarginChartContent(series=[series])
        return layout_pb2.Chart(title=chart.title, margin=margin)
    multiline = layout_pb2.MultilineChartContent(tag=list(chart.tags))
    return layout_pb2.Chart(title=chart.title, multiline=multiline)


def _serialized(value: Summary.Value) -> bytes:
    serialized: bytes = value.SerializeToString(deterministic=True)
    return serialized


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
