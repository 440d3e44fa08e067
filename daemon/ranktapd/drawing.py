"""Records that are not merged to the events that show them, one function a kind.

Pure: a record in, serialized events out, so that they may be drawn in any thread. Only what
a record's kind demands is looked at; that it obeys its rules is seen to when a batch is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ranktap_wire import documents
from ranktap_wire.records import DTYPES, Blob, Kind, byte_view
from ranktapd.rank_pictures import RankPictures
from ranktapd.render import hparams, layout, summaries
from ranktapd.render.audio import audio_value
from ranktapd.render.curves import pr_curve_raw_value, pr_curve_value
from ranktapd.render.graph import graph_payloads
from ranktapd.render.grid import make_grid, to_uint8_hwc
from ranktapd.render.mesh import mesh_values
from ranktapd.render.protos import event_payload
from ranktapd.render.tensors import tensor_value
from ranktapd.render.tiles import tile


def draw(blob: Blob, tag: str) -> list[bytes]:
    """The serialized `Event`s of a record that is shown under `tag`, in order.

    Raises:
        ValueError: it cannot be drawn.
    """
    return DRAWN[blob.kind](blob, tag)


def array_as_torch_has_it(blob: Blob) -> NDArray[Any]:
    """The elements; of bfloat16 as float16, in which torch goes on calculating with them."""
    array = blob.array()
    if blob.dtype == "bfloat16":
        with np.errstate(over="ignore"):
            array = array.astype(np.float16)
    return array


def part_array(blob: Blob, name: str, dtype: str, *shape: int) -> NDArray[Any] | None:
    """A part as an array, a view of it; None if there is none."""
    if name not in blob.parts:
        return None
    return np.frombuffer(blob.parts[name], DTYPES[dtype]).reshape(shape)


def pixels_of(blob: Blob) -> NDArray[np.uint8]:
    """A picture, or several as one, in the pixels that are shown: uint8 (H, W, C).

    Raises:
        ValueError: it cannot be drawn.
    """
    if blob.kind is Kind.IMAGE_GRID:
        return to_uint8_hwc(make_grid(blob.array(), **blob.parameters), "CHW")
    return to_uint8_hwc(blob.array(), blob.parameters["dataformats"])


def draw_tiles(pictures: RankPictures, tag: str, step: int, wall_time: float) -> list[bytes]:
    """The serialized `Event` of several ranks' pictures."""
    value = summaries.image_value(tag, tile(pictures.by_rank))
    return [event_payload(wall_time, step, value)]


# -- one kind at a time -----------------------------------------------------------------


def _one_event(blob: Blob, *values: bytes) -> list[bytes]:
    return [event_payload(blob.wall_time, blob.step, *values)]


def _picture(blob: Blob, tag: str) -> list[bytes]:
    return _one_event(blob, summaries.image_value(tag, pixels_of(blob)))


def _boxes(blob: Blob, tag: str) -> list[bytes]:
    from ranktapd.render.boxes import with_boxes  # with Pillow, 15 ms of every worker's start

    pixels = to_uint8_hwc(blob.array(), blob.parameters["dataformats"])
    boxes = np.frombuffer(blob.parts["boxes"], "<f8").reshape(-1, 4)
    labels = None
    if "labels" in blob.parts:
        labels = documents.read_labels(blob.parts["labels"], len(boxes))
    drawn = with_boxes(pixels, boxes, labels, blob.parameters["rescale"])
    # torch says the size that it had before.
    said_size = (pixels.shape[0], pixels.shape[1])
    return _one_event(blob, summaries.image_value(tag, drawn, said_size))


def _encoded(blob: Blob, tag: str) -> list[bytes]:
    encoded = bytes(byte_view(blob.data))
    return _one_event(blob, summaries.encoded_image_value(tag, encoded, **blob.parameters))


def _histogram_raw(blob: Blob, tag: str) -> list[bytes]:
    value = summaries.histogram_raw_value(tag, blob.array(), blob.parameters)
    return _one_event(blob, value)


def _text(blob: Blob, tag: str) -> list[bytes]:
    return _one_event(blob, summaries.text_value(tag, str(byte_view(blob.data), "utf-8")))


def _tensor(blob: Blob, tag: str) -> list[bytes]:
    return _one_event(blob, tensor_value(tag, blob.array(), blob.dtype))


def _audio(blob: Blob, tag: str) -> list[bytes]:
    samples = array_as_torch_has_it(blob)
    return _one_event(blob, audio_value(tag, samples, blob.parameters["sample_rate"]))


def _pr_curve(blob: Blob, tag: str) -> list[bytes]:
    predictions = array_as_torch_has_it(blob)
    count = predictions.size
    of_bytes = byte_view(blob.parts["labels"]).nbytes == count
    labels = part_array(blob, "labels", "uint8" if of_bytes else "float64", count)
    assert labels is not None
    weights = part_array(blob, "weights", "float64", count)
    thresholds = blob.parameters["num_thresholds"]
    return _one_event(blob, pr_curve_value(tag, labels, predictions, thresholds, weights))


def _pr_curve_raw(blob: Blob, tag: str) -> list[bytes]:
    thresholds = blob.parameters["num_thresholds"]
    return _one_event(blob, pr_curve_raw_value(tag, blob.array(), thresholds))


def _mesh(blob: Blob, tag: str) -> list[bytes]:
    colors = part_array(blob, "colors", "float32", *blob.shape)
    faces = part_array(blob, "faces", "float32", blob.shape[0], -1, 3)
    config = str(byte_view(blob.parts["config"]), "utf-8") if "config" in blob.parts else "{}"
    return _one_event(blob, *mesh_values(tag, blob.array(), colors, faces, config))


def _graph(blob: Blob, tag: str) -> list[bytes]:
    run_metadata = blob.parts.get("run_metadata")
    return graph_payloads(
        blob.wall_time,
        bytes(byte_view(blob.data)),
        None if run_metadata is None else bytes(byte_view(run_metadata)),
    )


def _layout(blob: Blob, tag: str) -> list[bytes]:
    return _one_event(blob, layout.layout_value(documents.read_layout(blob.data)))


def _hparams(blob: Blob, tag: str) -> list[bytes]:
    values = hparams.hparams_values(documents.read_hparams(blob.data))
    return [payload for value in values for payload in _one_event(blob, value)]


DRAWN: Final[dict[Kind, Callable[[Blob, str], list[bytes]]]] = {
    Kind.IMAGE: _picture,
    Kind.IMAGES: _picture,
    Kind.IMAGE_GRID: _picture,
    Kind.IMAGE_BOXES: _boxes,
    Kind.ENCODED_IMAGE: _encoded,
    Kind.HISTOGRAM_RAW: _histogram_raw,
    Kind.TEXT: _text,
    Kind.TENSOR: _tensor,
    Kind.AUDIO: _audio,
    Kind.PR_CURVE: _pr_curve,
    Kind.PR_CURVE_RAW: _pr_curve_raw,
    Kind.MESH: _mesh,
    Kind.GRAPH: _graph,
    Kind.CUSTOM_SCALARS: _layout,
    Kind.HPARAMS: _hparams,
}
