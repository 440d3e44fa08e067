"""Records of every kind, of any content that its rules allow, come back from the wire."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranktap_wire import frames, limits
from ranktap_wire.messages import BatchMessage
from ranktap_wire.records import DTYPES, NUMBERS, REAL, Batch, Blob, Buffer, Kind
from tests.support.messages import GRID, HPARAMS, LAYOUT, SESSION, as_bytes, blob, plain

SIZES = st.integers(1, 4)
FLOATS = st.floats(allow_nan=False)


def elements(draw: st.DrawFn, dtype: str, *shape: int) -> bytes:
    """Any bits: what they say as numbers is nobody's business on the way."""
    count = math.prod(shape) * DTYPES[dtype].itemsize
    return draw(st.binary(min_size=count, max_size=count))


def some(draw: st.DrawFn, **parts: Buffer) -> dict[str, Buffer]:
    """Some of these parts, in any order."""
    names = draw(st.lists(st.sampled_from(sorted(parts)), unique=True)) if parts else []
    return {name: parts[name] for name in names}


def pictures(draw: st.DrawFn, kind: Kind) -> dict[str, Any]:
    shape = (draw(st.sampled_from([1, 3])), draw(SIZES), draw(SIZES))
    dtype = draw(st.sampled_from(REAL))
    content: dict[str, Any] = {"dtype": dtype, "parameters": {"dataformats": "CHW"}}
    if kind is Kind.IMAGES:
        shape = (draw(SIZES), *shape)
        content["parameters"] = {"dataformats": "NCHW"}
    elif kind is Kind.IMAGE_GRID:
        content["parameters"] = GRID | {"nrow": draw(SIZES), "pad_value": draw(st.floats(0, 1))}
    elif kind is Kind.IMAGE_BOXES:
        content["parameters"]["rescale"] = draw(st.floats(1, 9))
        count = draw(st.integers(0, 3))
        labels = json.dumps([draw(st.text(max_size=5)) for _ in range(count)]).encode()
        content["parts"] = {"boxes": elements(draw, "float64", count, 4)}
        content["parts"] |= some(draw, labels=labels)
    return content | {"shape": shape, "data": elements(draw, dtype, *shape)}


def curves(draw: st.DrawFn, kind: Kind) -> dict[str, Any]:
    parameters = {"num_thresholds": draw(st.integers(2, 127))}
    count = draw(SIZES)
    if kind is Kind.PR_CURVE_RAW:
        data = elements(draw, "float64", 6, count)
        return {"shape": (6, count), "data": data, "parameters": parameters}
    dtype = draw(st.sampled_from(["bfloat16", "float16", "float32", "float64"]))
    labels = elements(draw, draw(st.sampled_from(["uint8", "float64"])), count)
    weights = some(draw, weights=elements(draw, "float64", count))
    return {
        "dtype": dtype, "shape": (count,), "data": elements(draw, dtype, count),
        "parameters": parameters, "parts": {"labels": labels} | weights,
    }  # fmt: skip


def meshes(draw: st.DrawFn) -> dict[str, Any]:
    shape = (draw(SIZES), draw(SIZES), 3)
    parts = some(
        draw, colors=elements(draw, "float32", *shape),
        faces=elements(draw, "float32", shape[0], draw(st.integers(0, 3)), 3),
        config=json.dumps(draw(st.dictionaries(st.text(max_size=3), FLOATS))).encode(),
    )  # fmt: skip
    return {"shape": shape, "data": elements(draw, "float32", *shape), "parts": parts}


def embeddings(draw: st.DrawFn) -> dict[str, Any]:
    shape = (draw(SIZES), draw(SIZES))
    dtype, sprite = draw(st.sampled_from(REAL)), draw(st.sampled_from(REAL))
    side = draw(SIZES)
    sprites = (shape[0], draw(st.sampled_from([1, 3])), side, side)
    lines = "".join(draw(st.text(max_size=4)) + "\n" for _ in range(shape[0])).encode()
    parts = some(draw, metadata=lines, sprite=elements(draw, sprite, *sprites))
    parameters = {
        "global_step": draw(st.none() | st.integers(-5, 5)),
        "sprite_shape": [*sprites] if "sprite" in parts else None,
        "sprite_dtype": sprite if "sprite" in parts else None,
    }
    data = elements(draw, dtype, *shape)
    return {
        "dtype": dtype, "shape": shape, "data": data, "parameters": parameters, "parts": parts
    }  # fmt: skip


def arrays(draw: st.DrawFn, kind: Kind) -> dict[str, Any]:
    if kind is Kind.TENSOR:
        dtype = draw(st.sampled_from(NUMBERS))
        shape = tuple(draw(st.lists(st.integers(0, 3), max_size=limits.DIMENSIONS)))
        return {"dtype": dtype, "shape": shape, "data": elements(draw, dtype, *shape)}
    if kind is Kind.HISTOGRAM_RAW:
        count = draw(st.integers(0, 4))
        sums = {name: draw(FLOATS) for name in ("min", "max", "num", "sum", "sum_squares")}
        data = elements(draw, "float64", 2, count)
        return {"shape": (2, count), "data": data, "parameters": sums}
    assert kind is Kind.AUDIO
    dtype, count = draw(st.sampled_from(["int8", "uint16", "float32", "bfloat16"])), draw(SIZES)
    data = elements(draw, dtype, count)
    rate = {"sample_rate": draw(st.integers(1, (1 << 31) - 1))}
    return {"dtype": dtype, "shape": (count,), "data": data, "parameters": rate}


def opaque(draw: st.DrawFn, kind: Kind) -> dict[str, Any]:
    data = draw(st.binary(min_size=1, max_size=20))
    content: dict[str, Any] = {}
    if kind is Kind.ENCODED_IMAGE:
        data = b"GIF89a" + data
        content["parameters"] = {"height": draw(SIZES), "width": draw(SIZES), "channels": 3}
    elif kind is Kind.GRAPH:
        content["parts"] = some(draw, run_metadata=draw(st.binary(max_size=9)))
    elif kind is Kind.TEXT:
        data = draw(st.text(max_size=9)).encode()
    else:
        data = {Kind.CUSTOM_SCALARS: LAYOUT, Kind.HPARAMS: HPARAMS}[kind]
    return content | {"shape": (len(data),), "data": data}


@st.composite
def content(draw: st.DrawFn, kind: Kind) -> Blob:
    match kind:
        case Kind.IMAGE | Kind.IMAGES | Kind.IMAGE_GRID | Kind.IMAGE_BOXES:
            made = pictures(draw, kind)
        case Kind.PR_CURVE | Kind.PR_CURVE_RAW:
            made = curves(draw, kind)
        case Kind.MESH:
            made = meshes(draw)
        case Kind.EMBEDDING:
            made = embeddings(draw)
        case Kind.TENSOR | Kind.HISTOGRAM_RAW | Kind.AUDIO:
            made = arrays(draw, kind)
        case Kind.HISTOGRAM | Kind.MOMENTS:
            made = {}  # of any content in test_frames and test_fold_moments
        case _:
            made = opaque(draw, kind)
    return blob(kind, **made)


@pytest.mark.parametrize("kind", Kind)
@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_record_of_a_kind_comes_back_exactly(kind: Kind, data: st.DataObject) -> None:
    batch = Batch(None, data.draw(st.lists(content(kind), min_size=1, max_size=2)))
    parts = as_bytes(frames.pack_batch(SESSION, 7, batch))
    assert plain(frames.read_message(parts)) == plain(BatchMessage(SESSION, 7, batch))


def test_the_elements_that_arrive_are_those_that_were_sent() -> None:
    sent = blob(Kind.TENSOR)
    read = frames.read_batch(as_bytes(frames.pack_batch(SESSION, 1, Batch(None, [sent]))))
    np.testing.assert_array_equal(read.blobs[0].array(), sent.data)
