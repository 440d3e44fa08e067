"""The kinds of records that are not scalars: what each is made of, and its rules.

| kind | data | parts ("?": may be missing) |
| --- | --- | --- |
| image, images, image_grid | a picture, or several | |
| image_boxes | a picture | boxes float64 (N, 4): left, top, right, bottom; labels? JSON |
| encoded_image | uint8 (n,): a GIF or PNG | |
| histogram | values | edges? float64 (N,), when the bins are given one by one |
| histogram_raw | float64 (2, N): upper limit, count of each bucket | |
| moments | float64 (N, 8) | tags: each row's, UTF-8, '\\n' between; counts? uint32 (N, 4096) |
| text | utf8 (n,) | |
| tensor | any numbers | |
| audio | (N,), one channel | |
| pr_curve | predictions (N,) | labels uint8 or float64 (N,); weights? float64 (N,) |
| pr_curve_raw | float64 (6, N): tp fp tn fn precision recall | |
| mesh | float32 (B, N, 3) | colors? float32 (B, N, 3); faces? float32 (B, M, 3); config? JSON |
| embedding | (N, D) | metadata? a TSV file's UTF-8; sprite? images (N, C, H, W) |
| graph | uint8 (n,): a GraphDef | run_metadata? a RunMetadata |
| custom_scalars, hparams | utf8 (n,): JSON, see `documents` | |

What can be said before the data is there is apart from what the data says: the client asks
the first at the call, when a tensor may still be on its way from a device; the daemon both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ranktap_wire import kind_rules, limits, rules
from ranktap_wire.records import (
    DTYPES,
    FLOATS,
    HISTOGRAM_ACROSS,
    NUMBERS,
    OTHER_ACROSS,
    PICTURE_ACROSS,
    REAL,
    Across,
    Blob,
    Kind,
    byte_view,
)
from ranktap_wire.rules import given, listed, shown


def check_head(blob: Blob) -> None:
    """Hold a record against every rule that does not need its data or what is in its parts.

    So on the client's side `data` may be empty; parts have their length already. The
    parameters come out in their normal form.

    Raises:
        TypeError, ValueError: what is wrong, and what is allowed.
    """
    rule = _RULES[blob.kind]
    rules.check_name(blob.tag)
    if blob.dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {listed(DTYPES)}, got {given(blob.dtype)}")
    if blob.dtype not in rule.dtypes:
        raise ValueError(
            f"{rule.data}: expected elements of {listed(rule.dtypes)}, got {blob.dtype}"
        )
    if blob.across not in rule.across:
        allowed = listed([policy.name.lower() for policy in rule.across])
        raise ValueError(
            f"across: expected {allowed} for the kind {blob.kind}, got {blob.across.name.lower()!r}"
        )
    if len(blob.shape) > limits.DIMENSIONS or any(size < 0 for size in blob.shape):
        raise ValueError(
            f"shape: expected at most {limits.DIMENSIONS} sizes from 0 on, got {blob.shape}"
        )
    for name in blob.parts:
        if name not in rule.parts and name not in rule.optional:
            raise ValueError(f"{shown(name)}: not for the kind {blob.kind}")
    for name in rule.parts:
        if name not in blob.parts:
            raise ValueError(f"{name}: expected with the kind {blob.kind}, got none")
    _check_bytes(blob)
    if blob.parameters.keys() != set(rule.parameters):
        raise ValueError(
            f"parameters: {blob.kind} takes {listed(rule.parameters) or 'none'}, "
            f"got {listed(sorted(map(str, blob.parameters))) or 'none'}"
        )
    blob.parameters = rule.head(blob)


def check_blob(blob: Blob) -> None:
    """Hold a record that arrived against every rule of its kind; the daemon's side.

    Raises:
        TypeError, ValueError: what is wrong, and what is allowed.
    """
    check_head(blob)
    expected_bytes = _data_bytes(blob)
    if expected_bytes != byte_view(blob.data).nbytes:
        raise ValueError(
            f"shape: {blob.shape} of {blob.dtype} takes {expected_bytes} bytes, "
            f"got {byte_view(blob.data).nbytes}"
        )
    content = _RULES[blob.kind].content
    if content is not None:
        content(blob)


def _data_bytes(blob: Blob) -> int:
    return math.prod(blob.shape) * DTYPES[blob.dtype].itemsize


def _check_bytes(blob: Blob) -> None:
    """With all its parts: MESSAGE_BYTES leaves room for one record of RECORD_BYTES."""
    nbytes = _data_bytes(blob) + sum(kind_rules.part_bytes(blob, name) for name in blob.parts)
    if nbytes > limits.RECORD_BYTES:
        raise ValueError(
            f"{_RULES[blob.kind].data}: expected at most {limits.RECORD_BYTES >> 20} MiB, "
            f"got {nbytes / limits.MIB:.4g} MiB (shape {shown(blob.shape)})"
        )


# -- the table --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rule:
    data: str
    """What errors call the data: the name of the argument that it comes from."""
    dtypes: tuple[str, ...]
    head: Callable[[Blob], dict[str, Any]]
    """Everything but the data and what is in the parts; gives the parameters, normalised."""
    content: Callable[[Blob], None] | None = None
    """The data, and what is in the parts."""
    parameters: tuple[str, ...] = ()
    """All of them must be there."""
    parts: tuple[str, ...] = ()
    """These must be there."""
    optional: tuple[str, ...] = ()
    """Parts that may be there."""
    across: tuple[Across, ...] = tuple(OTHER_ACROSS.values())


_MERGED: Final = tuple(HISTOGRAM_ACROSS.values())
_OF_RANK_0: Final = (Across.RANK0,)
_PICTURES: Final = tuple(PICTURE_ACROSS.values())

_RULES: Final[dict[Kind, _Rule]] = {
    Kind.IMAGE: _Rule(
        "image", REAL, kind_rules.image, parameters=("dataformats",), across=_PICTURES
    ),
    Kind.IMAGES: _Rule(
        "images", REAL, kind_rules.images, parameters=("dataformats",), across=_PICTURES
    ),
    Kind.IMAGE_GRID: _Rule(
        "images", REAL, kind_rules.image_grid,
        parameters=("nrow", "padding", "normalize", "value_range", "scale_each", "pad_value"),
        across=_PICTURES,
    ),
    Kind.IMAGE_BOXES: _Rule(
        "image", REAL, kind_rules.image_boxes, kind_rules.read_labels, ("dataformats", "rescale"),
        parts=("boxes",), optional=("labels",),
    ),
    Kind.ENCODED_IMAGE: _Rule(
        "image", ("uint8",), kind_rules.encoded_image, kind_rules.read_signature,
        ("height", "width", "channels"),
    ),
    Kind.HISTOGRAM: _Rule(
        "values", REAL, kind_rules.histogram, kind_rules.read_edges, ("bins", "max_bins"),
        optional=("edges",), across=_MERGED,
    ),
    Kind.HISTOGRAM_RAW: _Rule(
        "buckets", ("float64",), kind_rules.histogram_raw,
        parameters=("min", "max", "num", "sum", "sum_squares"),
    ),
    Kind.MOMENTS: _Rule(
        "moments", ("float64",), kind_rules.moments, kind_rules.read_moments,
        ("fields", "replicated"), parts=("tags",), optional=("counts",), across=_MERGED,
    ),
    Kind.TEXT: _Rule("text", ("utf8",), kind_rules.text, kind_rules.read_text),
    Kind.TENSOR: _Rule("tensor", NUMBERS, kind_rules.tensor),
    Kind.AUDIO: _Rule(
        "audio", tuple(name for name in REAL if name != "bool"), kind_rules.audio,
        parameters=("sample_rate",),
    ),
    Kind.PR_CURVE: _Rule(
        "predictions", FLOATS, kind_rules.pr_curve, parameters=("num_thresholds",),
        parts=("labels",), optional=("weights",),
    ),
    Kind.PR_CURVE_RAW: _Rule(
        "curve", ("float64",), kind_rules.pr_curve_raw, parameters=("num_thresholds",)
    ),
    Kind.MESH: _Rule(
        "vertices", ("float32",), kind_rules.mesh, kind_rules.read_config,
        optional=("colors", "faces", "config"),
    ),
    Kind.EMBEDDING: _Rule(
        "mat", REAL, kind_rules.embedding, kind_rules.read_metadata,
        ("global_step", "sprite_shape", "sprite_dtype"), optional=("metadata", "sprite"),
    ),
    Kind.GRAPH: _Rule(
        "graph", ("uint8",), kind_rules.graph, optional=("run_metadata",), across=_OF_RANK_0
    ),
    Kind.CUSTOM_SCALARS: _Rule(
        "layout", ("utf8",), kind_rules.document, kind_rules.read_layout, across=_OF_RANK_0
    ),
    Kind.HPARAMS: _Rule(
        "hparams", ("utf8",), kind_rules.document, kind_rules.read_hparams, across=_OF_RANK_0
    ),
}  # fmt: skip
