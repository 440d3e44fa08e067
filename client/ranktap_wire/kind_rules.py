"""One kind's rules at a time: functions for the table in `kinds`.

A kind has a function of its name, for what can be said before the data is there (it gives the
parameters in their normal form), and, where the data or its parts say something, one that
reads them. Dtype, the names of parts and parameters, and the size of it all are right already.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from ranktap_wire import documents, histograms, limits, pictures, rules
from ranktap_wire.records import (
    DTYPES,
    HISTOGRAM_BUCKETS,
    MOMENTS,
    MOMENTS_ROWS,
    REAL,
    Blob,
    byte_view,
    split_name,
)
from ranktap_wire.rules import given, listed

THRESHOLDS_MAX: Final = 127
"""Thresholds of a precision-recall curve: torch's bound."""

SAMPLE_RATE_MAX: Final = (1 << 31) - 1
"""Hertz: the bytes a second of 16-bit samples fit the 32 bits of a WAV header."""

EMBEDDING_TAG_BYTES: Final = 230
"""An embedding's tag becomes a directory's name, in which `%`, `/` and `\\` take three bytes. A
name has 255, of which `ranks/<tag>/rank<k>` needs 20."""

_SIGNATURES: Final = (b"GIF87a", b"GIF89a", b"\x89PNG\r\n\x1a\n")


def part_bytes(blob: Blob, name: str) -> int:
    return byte_view(blob.parts[name]).nbytes


def _check_shape(name: str, blob: Blob, *sizes: int | None) -> None:
    """Hold the data's shape against the sizes that it must have; None: any from 1 on."""
    if len(blob.shape) != len(sizes) or not all(
        has > 0 if size is None else has == size
        for has, size in zip(blob.shape, sizes, strict=True)
    ):
        letters = iter("NMK")
        form = ", ".join(next(letters) if size is None else str(size) for size in sizes)
        raise ValueError(
            f"{name}: expected shape ({form}{',' * (len(sizes) == 1)}) "
            f"with at least one element, got {blob.shape}"
        )


def _check_part(blob: Blob, name: str, dtype: str, shape: tuple[int, ...]) -> None:
    """Hold the bytes of a part, if it is there, against its dtype and shape."""
    if name in blob.parts and part_bytes(blob, name) != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(
            f"{name}: expected {dtype} of shape {shape}, got {part_bytes(blob, name)} bytes"
        )


def _check_elements(name: str, blob: Blob) -> None:
    count = math.prod(blob.shape)
    if count > limits.TENSOR_ELEMENTS:
        raise ValueError(
            f"{name}: expected at most {limits.TENSOR_ELEMENTS} elements, "
            f"got {count} (shape {blob.shape})"
        )


# -- pictures ---------------------------------------------------------------------------


def image(blob: Blob) -> dict[str, Any]:
    dataformats = blob.parameters["dataformats"]
    pictures.check_image_shape(blob.shape, dataformats, pictures.IMAGE_LETTERS)
    return {"dataformats": dataformats.upper()}


def images(blob: Blob) -> dict[str, Any]:
    dataformats = blob.parameters["dataformats"]
    pictures.check_image_shape(blob.shape, dataformats, pictures.IMAGES_LETTERS, "images")
    return {"dataformats": dataformats.upper()}


def image_grid(blob: Blob) -> dict[str, Any]:
    return pictures.check_grid(blob.shape, blob.dtype, blob.parameters)


def image_boxes(blob: Blob) -> dict[str, Any]:
    dataformats = blob.parameters["dataformats"]
    size = pictures.check_image_shape(blob.shape, dataformats, pictures.IMAGE_LETTERS)
    rescale = pictures.check_rescale(blob.parameters["rescale"], *size)
    count, rest = divmod(part_bytes(blob, "boxes"), 4 * 8)
    if rest:
        raise ValueError(
            "boxes: expected float64 of shape (N, 4): left, top, right, bottom, "
            f"got {part_bytes(blob, 'boxes')} bytes"
        )
    if count > limits.BOXES:
        raise ValueError(f"boxes: expected at most {limits.BOXES}, got {count}")
    return {"dataformats": dataformats.upper(), "rescale": rescale}


def read_labels(blob: Blob) -> None:
    if "labels" in blob.parts:
        documents.read_labels(blob.parts["labels"], part_bytes(blob, "boxes") // (4 * 8))


def encoded_image(blob: Blob) -> dict[str, Any]:
    _check_shape("image", blob, None)
    return dict(pictures.check_encoded_size(**blob.parameters))


def read_signature(blob: Blob) -> None:
    if not bytes(byte_view(blob.data)[:8]).startswith(_SIGNATURES):
        raise ValueError("image: expected the bytes of a GIF or a PNG")


# -- distributions ----------------------------------------------------------------------


def histogram(blob: Blob) -> dict[str, Any]:
    bins, max_bins = blob.parameters["bins"], blob.parameters["max_bins"]
    if 0 in blob.shape:
        raise ValueError(f"values: expected at least one value, got shape {blob.shape}")
    if "edges" in blob.parts:
        histograms.check_max_bins(max_bins)
        if part_bytes(blob, "edges") % 8:
            raise ValueError("bins: expected edges of 8 bytes each")
        if bins is not None:
            raise ValueError("bins: expected a name, a number or edges, got two of them")
    elif not isinstance(bins, str | int):
        raise TypeError(f"bins: expected a name or a number, got {given(bins)}")
    else:
        histograms.check_bins(bins, max_bins)
    return blob.parameters


def read_edges(blob: Blob) -> None:
    if "edges" in blob.parts:
        histograms.check_edges(np.frombuffer(blob.parts["edges"], dtype="<f8"))


def histogram_raw(blob: Blob) -> dict[str, Any]:
    # torch writes a histogram without buckets too.
    if len(blob.shape) != 2 or blob.shape[0] != 2 or blob.shape[1] > histograms.BINS_MAX:
        raise ValueError(
            f"buckets: expected a limit and a count for each, of at most {histograms.BINS_MAX} "
            f"buckets, got shape {blob.shape}"
        )
    return {name: rules.check_real(name, value) for name, value in blob.parameters.items()}


def moments(blob: Blob) -> dict[str, Any]:
    replicated = rules.check_flag("replicated", blob.parameters["replicated"])
    fields = histograms.check_fields(blob.parameters["fields"])
    _check_shape("moments", blob, None, len(MOMENTS))
    rows = blob.shape[0]
    if rows > MOMENTS_ROWS:
        raise ValueError(f"moments: expected at most {MOMENTS_ROWS} rows, got {rows}")
    _check_part(blob, "counts", "uint32", (rows, HISTOGRAM_BUCKETS))
    return {"fields": fields, "replicated": replicated}


def read_moments(blob: Blob) -> None:
    histograms.check_row_tags(blob.parts["tags"], blob.shape[0])
    histograms.check_moments(blob.array())


# -- text and numbers -------------------------------------------------------------------


def text(blob: Blob) -> dict[str, Any]:
    if len(blob.shape) != 1:
        raise ValueError(f"text: expected one dimension, got shape {blob.shape}")
    return {}


def read_text(blob: Blob) -> None:
    rules.check_utf8("text", byte_view(blob.data))


def tensor(blob: Blob) -> dict[str, Any]:
    _check_elements("tensor", blob)
    return {}


def audio(blob: Blob) -> dict[str, Any]:
    _check_shape("audio", blob, None)
    rate = rules.check_whole("sample_rate", blob.parameters["sample_rate"], 1, SAMPLE_RATE_MAX)
    return {"sample_rate": rate}


def pr_curve(blob: Blob) -> dict[str, Any]:
    if len(blob.shape) != 1:
        raise ValueError(f"predictions: expected one dimension, got shape {blob.shape}")
    count = blob.shape[0]
    if part_bytes(blob, "labels") not in (count, 8 * count):
        raise ValueError(
            f"labels: expected uint8 or float64 of shape ({count},), as predictions has, "
            f"got {part_bytes(blob, 'labels')} bytes"
        )
    _check_part(blob, "weights", "float64", (count,))
    return _thresholds(blob)


def pr_curve_raw(blob: Blob) -> dict[str, Any]:
    _check_shape("curve", blob, 6, None)
    return _thresholds(blob)


def _thresholds(blob: Blob) -> dict[str, Any]:
    # With one there would be no step from 0 to 1 between them.
    count = blob.parameters["num_thresholds"]
    return {"num_thresholds": rules.check_whole("num_thresholds", count, 2, THRESHOLDS_MAX)}


def mesh(blob: Blob) -> dict[str, Any]:
    _check_shape("vertices", blob, None, None, 3)
    _check_part(blob, "colors", "float32", blob.shape)
    if "faces" in blob.parts and part_bytes(blob, "faces") % (blob.shape[0] * 3 * 4):
        raise ValueError(
            f"faces: expected float32 of shape ({blob.shape[0]}, M, 3), "
            f"got {part_bytes(blob, 'faces')} bytes"
        )
    return {}


def read_config(blob: Blob) -> None:
    if "config" in blob.parts:
        documents.read_config(blob.parts["config"])


# -- files and documents ----------------------------------------------------------------


def embedding(blob: Blob) -> dict[str, Any]:
    tag = split_name(blob.tag)[1]
    nbytes = len(tag.encode()) + 2 * sum(map(tag.count, "%/\\"))
    if nbytes > EMBEDDING_TAG_BYTES:
        raise ValueError(
            f"tag: expected at most {EMBEDDING_TAG_BYTES} bytes as the name of a directory, "
            f"got {nbytes} ({tag[:40]!r}...)"
        )
    _check_shape("mat", blob, None, None)
    _check_elements("mat", blob)
    step = blob.parameters["global_step"]
    shape, dtype = blob.parameters["sprite_shape"], blob.parameters["sprite_dtype"]
    if "sprite" not in blob.parts:
        if shape is not None or dtype is not None:
            raise ValueError("sprite: expected images of sprite_shape and sprite_dtype, got none")
    else:
        if not isinstance(shape, list | tuple) or not all(type(size) is int for size in shape):
            raise TypeError(f"sprite_shape: expected whole numbers, got {given(shape)}")
        if any(not 0 <= size <= limits.RECORD_BYTES for size in shape):
            raise ValueError(f"sprite_shape: expected sizes from 0 on, got {given(shape)}")
        if dtype not in REAL:
            raise ValueError(f"sprite_dtype: expected one of {listed(REAL)}, got {given(dtype)}")
        pictures.check_sprite(shape)
        if shape[0] != blob.shape[0]:
            raise ValueError(f"sprite: expected {blob.shape[0]} images, got {shape[0]}")
        _check_part(blob, "sprite", dtype, tuple(shape))
    return {
        "global_step": None if step is None else rules.check_step(step, "global_step"),
        "sprite_shape": None if shape is None else list(shape),
        "sprite_dtype": dtype,
    }


def read_metadata(blob: Blob) -> None:
    if "metadata" not in blob.parts:
        return
    lines = rules.check_utf8("metadata", byte_view(blob.parts["metadata"])).count("\n")
    # A label may have lines of its own.
    if lines < blob.shape[0]:
        raise ValueError(
            f"metadata: expected a line for each of {blob.shape[0]} points, got {lines}"
        )


def graph(blob: Blob) -> dict[str, Any]:
    _check_shape("graph", blob, None)
    return {}


def document(blob: Blob) -> dict[str, Any]:
    if len(blob.shape) != 1 or blob.shape[0] > limits.JSON_BYTES:
        raise ValueError(
            f"{blob.kind}: expected at most {limits.JSON_BYTES} bytes of JSON, "
            f"got shape {blob.shape}"
        )
    return {}


def read_layout(blob: Blob) -> None:
    documents.read_layout(blob.data)


def read_hparams(blob: Blob) -> None:
    documents.read_hparams(blob.data)
