"""Summaries field by field against `torch.utils.tensorboard.summary`, events byte by byte."""

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import summary as torch_summary

from ranktap_wire.documents import Category, Chart
from ranktapd.render.grid import to_uint8_hwc
from ranktapd.render.histogram import histogram_stats, tensorflow_edges
from ranktapd.render.layout import layout_value
from ranktapd.render.protos import event_payload
from ranktapd.render.summaries import (
    RAW_NUMBERS,
    encoded_image_value,
    histogram_raw_value,
    histogram_value,
    image_value,
    text_value,
)


def parsed(value: bytes) -> Summary.Value:
    return Summary.Value.FromString(value)


@pytest.mark.parametrize(
    ("shape", "dataformats"),
    [((3, 5, 7), "CHW"), ((5, 7, 4), "HWC"), ((5, 7), "HW"), ((9, 1, 5, 7), "NCHW")],
)
def test_image_equals_torchs_but_for_the_encoder(shape: tuple[int, ...], dataformats: str) -> None:
    image = np.random.default_rng(0).random(shape)
    ours = parsed(image_value("a/b", to_uint8_hwc(image, dataformats)))
    theirs = torch_summary.image("a/b", image, dataformats=dataformats).value[0]
    pixels = [
        np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))
        for value in (ours, theirs)
    ]
    np.testing.assert_array_equal(*pixels)
    ours.image.encoded_image_string = theirs.image.encoded_image_string
    assert ours == theirs


@pytest.mark.parametrize("max_bins", [None, 30])
def test_histogram_equals_torchs(max_bins: int | None) -> None:
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    ours = parsed(histogram_value("weights", histogram_stats(values), max_bins))
    theirs = torch_summary.histogram("weights", values, tensorflow_edges(), max_bins).value[0]
    assert ours.histo.sum == pytest.approx(theirs.histo.sum, rel=1e-12)
    assert ours.histo.sum_squares == pytest.approx(theirs.histo.sum_squares, rel=1e-12)
    ours.histo.sum, ours.histo.sum_squares = theirs.histo.sum, theirs.histo.sum_squares
    assert ours == theirs
    assert not ours.HasField("metadata")


def test_histogram_without_finite_values_has_zeros_and_no_buckets() -> None:
    value = parsed(histogram_value("weights", histogram_stats(np.array([math.nan, math.inf]))))
    assert (value.tag, value.WhichOneof("value")) == ("weights", "histo")
    assert (value.histo.num, value.histo.min, value.histo.max) == (0, 0, 0)
    assert not value.histo.bucket
    assert not value.histo.bucket_limit


def test_histogram_of_values_past_all_edges_keeps_its_range_without_buckets() -> None:
    histo = parsed(histogram_value("weights", histogram_stats(np.array([1e25, 2e25])))).histo
    assert (histo.num, histo.min, histo.max) == (2, 1e25, 2e25)
    assert not histo.bucket


@settings(deadline=None)
@given(
    arrays.arrays(np.float64, st.tuples(st.just(2), st.integers(0, 9))),
    st.lists(st.floats() | st.integers(-(2**60), 2**60), min_size=5, max_size=5),
)
def test_a_histogram_that_was_counted_elsewhere_equals_torchs(
    buckets: np.ndarray, numbers: list[float]
) -> None:
    named = dict(zip(RAW_NUMBERS, numbers, strict=True))
    theirs = torch_summary.histogram_raw(
        "a", **named, bucket_limits=buckets[0].tolist(), bucket_counts=buckets[1].tolist()
    )
    assert histogram_raw_value("a", buckets, named) == theirs.value[0].SerializeToString()


def test_an_encoded_image_is_what_torchs_video_is() -> None:
    image = Summary.Image(height=4, width=6, colorspace=3, encoded_image_string=b"GIF89a...")
    ours = encoded_image_value("clip", b"GIF89a...", 4, 6, 3)
    assert ours == Summary.Value(tag="clip", image=image).SerializeToString()


@pytest.mark.parametrize("text", ["", "**loss** fell", "Verlust: ½ µ\n\n| a |\n| - |", "😀"])
def test_text_equals_torchs(text: str) -> None:
    assert (
        text_value("notes/today", text)
        == torch_summary.text("notes/today", text).value[0].SerializeToString()
    )


def test_layout_equals_torchs() -> None:
    band = Chart("loss", True, ["loss", "ranks/loss/min", "ranks/loss/max"])
    lines = Chart("all", False, ["loss", "val.*"])
    ours = layout_value(
        [
            Category("ranks", [band]),
            Category("mine", [lines, Chart("x", True, ["a", "b", "c"])]),
            Category("empty", []),
        ]
    )
    theirs = torch_summary.custom_scalars(
        {
            "ranks": {"loss": ["Margin", ["loss", "ranks/loss/min", "ranks/loss/max"]]},
            "mine": {
                "all": ["Multiline", ["loss", "val.*"]],
                "x": ["Margin", ["a", "b", "c"]],
            },
            "empty": {},
        }
    )
    assert ours == theirs.value[0].SerializeToString()


@settings(deadline=None)
@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-2, 2),
    st.lists(st.text(max_size=200), max_size=3),
)
def test_event_has_the_bytes_that_protobuf_writes(
    wall_time: float, step: int, texts: list[str]
) -> None:
    wall_time += 0.0  # protobuf writes -0.0, which no clock shows
    values = [text_value("tag", text) for text in texts]
    expected = Event(
        wall_time=wall_time, step=step, summary=Summary(value=[parsed(value) for value in values])
    )
    assert event_payload(wall_time, step, *values) == expected.SerializeToString()


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 3_000_000])
def test_event_holds_values_of_any_length(size: int) -> None:
    value = text_value("tag", "x" * size)
    event = Event.FromString(event_payload(1.5, 7, value))
    assert (event.wall_time, event.step) == (1.5, 7)
    assert event.summary.value[0].tensor.string_val[0] == b"x" * size


@pytest.mark.parametrize("wall_time", [math.nan, math.inf, -math.inf])
def test_wall_time_that_would_stop_a_loader_is_refused(wall_time: float) -> None:
    with pytest.raises(ValueError, match="wall_time is"):
        event_payload(wall_time, 0)


@pytest.mark.parametrize("step", [1 << 63, -(1 << 63) - 1])
def test_step_beyond_64_bits_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match="64-bit"):
        event_payload(0.0, step)
