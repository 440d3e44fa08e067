"""A batch of records: the fields of its header, and the buffers behind it.

    [0] tags        UTF-8, '\\n' between            n_tags of them, if "scalars" > 0
    [1] across      uint8[n_tags]                 low 4 bits: how ranks are merged, Across
                                                  high 4 bits: how it is written, Style
    [2] tag index   int32[n]                      row to tag
    [3] step        int64[n]
    [4] wall time   float64[n]                    seconds since 1970
    [5] value       float64[n]
    [6...]          of each blob its data, then its parts in the order in which its head
                    names them (from [0] when there are no scalars)

All numbers are little endian. A batch carries its own tag table, so that it is
understood by itself: a resend needs no context.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from ranktap_wire import kinds, limits, rules
from ranktap_wire.header import finite_field, integer_field
from ranktap_wire.messages import Code, FrameError, Frames
from ranktap_wire.records import (
    STEP_MAX,
    STEP_MIN,
    Across,
    Batch,
    Blob,
    Buffer,
    Columns,
    Kind,
    Style,
    byte_view,
)
from ranktap_wire.rules import shown

COLUMN_COUNT: Final = 6


def pack_records(batch: Batch) -> tuple[dict[str, Any], list[Buffer]]:
    """The fields of a batch's header, and its buffers: columns and data as they are, not copied."""
    buffers: list[Buffer] = []
    columns = batch.columns
    if columns is not None:
        buffers += [
            "\n".join(columns.tags).encode(),
            columns.across,
            columns.tag_index,
            columns.step,
            columns.wall_time,
            columns.value,
        ]
    heads = []
    for blob in batch.blobs:
        heads.append(
            {
                "kind": str(blob.kind),
                "tag": blob.tag,
                "step": blob.step,
                "wall": blob.wall_time,
                "across": int(blob.across),
                "dtype": blob.dtype,
                "shape": blob.shape,
                "parameters": blob.parameters,
                "data": len(buffers),
                "parts": [*blob.parts],
            }
        )
        buffers += [blob.data, *blob.parts.values()]
    fields: dict[str, Any] = {
        "scalars": 0 if columns is None else len(columns),
        "dropped": [batch.dropped_scalars, batch.dropped_blobs],
        "blobs": heads,
    }
    if batch.clock is not None:
        fields["clock"] = batch.clock
    return fields, buffers


def read_records(head: dict[str, Any], buffers: Frames) -> Batch:
    """What `pack_records` made these of, checked to the last field; arrays are views of `buffers`.

    Raises:
        FrameError, TypeError, ValueError: what is wrong with it.
    """
    count = integer_field(head, "scalars", 0, limits.SCALARS)
    dropped = head.get("dropped")
    if not (
        isinstance(dropped, list)
        and len(dropped) == 2
        and all(type(drops) is int and 0 <= drops < 1 << 62 for drops in dropped)
    ):
        raise FrameError(Code.REFUSED, f"dropped: expected two counts, got {shown(dropped)}")
    heads = head.get("blobs")
    if not isinstance(heads, list) or len(heads) > limits.BLOBS:
        raise FrameError(Code.REFUSED, f"blobs: expected a list of at most {limits.BLOBS}")
    total = sum(byte_view(buffer).nbytes for buffer in buffers)
    if total > limits.MESSAGE_BYTES:
        raise FrameError(
            Code.REFUSED, f"{total} bytes of buffers, at most {limits.MESSAGE_BYTES} allowed"
        )
    columns = _read_columns(count, buffers[:COLUMN_COUNT]) if count else None
    blobs = []
    used = COLUMN_COUNT if count else 0
    for blob_head in heads:
        blob = _read_blob(blob_head, buffers, used)
        blobs.append(blob)
        used += 1 + len(blob.parts)
    if len(buffers) != used:
        raise FrameError(Code.REFUSED, f"expected {used} buffers, got {len(buffers)}")
    return Batch(columns, blobs, dropped[0], dropped[1], _read_clock(head))


def _read_clock(head: dict[str, Any]) -> tuple[float, float] | None:
    clock = head.get("clock")
    if clock is None:
        return None
    if (
        not isinstance(clock, list)
        or len(clock) != 2
        or not all(type(seconds) is float and np.isfinite(seconds) for seconds in clock)
        or clock[1] < 0
    ):
        raise FrameError(
            Code.REFUSED, f"clock: expected two finite numbers of seconds, got {shown(clock)}"
        )
    return clock[0], clock[1]


def _read_columns(count: int, buffers: Frames) -> Columns:
    if len(buffers) < COLUMN_COUNT:
        raise FrameError(
            Code.REFUSED, f"scalars: expected {COLUMN_COUNT} buffers, got {len(buffers)}"
        )
    table, across, *columns = map(byte_view, buffers)
    for name, column, size in zip(
        ("tag index", "step", "wall time", "value"), columns, (4, 8, 8, 8), strict=True
    ):
        if column.nbytes != count * size:
            raise FrameError(
                Code.REFUSED,
                f"{name}: expected {count} of {size} bytes each, got {column.nbytes} bytes",
            )
    result = Columns(
        tags=_read_tags(table, across.nbytes),
        across=np.frombuffer(across, np.uint8),
        tag_index=np.frombuffer(columns[0], "<i4"),
        step=np.frombuffer(columns[1], "<i8"),
        wall_time=np.frombuffer(columns[2], "<f8"),
        value=np.frombuffer(columns[3], "<f8"),
    )
    if len(result.across) != len(result.tags):
        raise FrameError(
            Code.REFUSED, f"across: expected {len(result.tags)} codes, got {len(result.across)}"
        )
    if result.policy.max() >= Across.MERGE or result.style.max() > max(Style):
        raise FrameError(
            Code.REFUSED, f"across: {int(result.across.max())} is no policy and style of scalars"
        )
    if result.tag_index.min() < 0 or result.tag_index.max() >= len(result.tags):
        raise FrameError(
            Code.REFUSED, f"tag index: expected values from 0 to {len(result.tags) - 1}"
        )
    if not np.isfinite(result.wall_time).all():
        raise FrameError(Code.REFUSED, "wall time: expected finite numbers of seconds")
    return result


def _read_tags(table: memoryview, count: int) -> list[str]:
    """The tags of a table, split at most into one more than `count`.

    A table of 64 MiB could be 32 million tags, which would take gigabytes as objects.
    """
    if count > limits.SCALARS:
        raise FrameError(Code.REFUSED, f"across: {count} codes, at most {limits.SCALARS} allowed")
    try:
        text = str(table, "utf-8")
    except UnicodeDecodeError as error:
        raise FrameError(Code.REFUSED, f"tags: expected UTF-8, {error.reason}") from None
    tags = text.split("\n", count)
    # The usual table is proved right by looking at it once; only another is looked at tag by tag.
    if (
        rules.has_control(text.replace("\n", ""))
        or "" in tags
        or max(map(len, tags)) * 4 > limits.TAG_BYTES
    ):
        for tag in tags:
            rules.check_name(tag)
    return tags


_KINDS: Final = {str(kind): kind for kind in Kind}


def _read_blob(head: object, buffers: Frames, at: int) -> Blob:
    """The record whose first buffer is number `at`.

    In this order alone: heads that shared a buffer would make one message the work of many.
    """
    if not isinstance(head, dict):
        raise FrameError(Code.REFUSED, "blobs: expected maps")
    shape = head.get("shape")
    parameters = head.get("parameters")
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise FrameError(Code.REFUSED, f"shape: expected whole numbers, got {shown(shape)}")
    if not isinstance(parameters, dict):
        raise FrameError(Code.REFUSED, "parameters: expected a map")
    name = head.get("kind")
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise FrameError(Code.REFUSED, f"kind: expected one of {[*_KINDS]}, got {shown(name)}")
    dtype = head.get("dtype")
    if not isinstance(dtype, str):
        raise FrameError(Code.REFUSED, f"dtype: expected a name, got {shown(dtype)}")
    names = _part_names(head, buffers, at)
    blob = Blob(
        kind=kind,
        # check_blob looks at whatever this is.
        tag=head.get("tag", ""),
        step=integer_field(head, "step", STEP_MIN, STEP_MAX),
        wall_time=finite_field(head, "wall"),
        across=Across(integer_field(head, "across", 0, max(Across))),
        dtype=dtype,
        shape=tuple(shape),
        parameters=parameters,
        data=buffers[at],
        parts={name: buffers[at + 1 + i] for i, name in enumerate(names)},
    )
    kinds.check_blob(blob)
    return blob


def _part_names(head: dict[str, Any], buffers: Frames, at: int) -> list[str]:
    """The names of a record's parts; their buffers, and that of its data, are there."""
    data = head.get("data")
    names = head.get("parts")
    if type(data) is not int or data != at or at >= len(buffers):
        raise FrameError(
            Code.REFUSED, f"data: expected buffer {at} of {len(buffers)}, got {shown(data)}"
        )
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) for name in names)
        or len(set(names)) < len(names)
    ):
        raise FrameError(Code.REFUSED, f"parts: expected names, each once, got {shown(names)}")
    if at + 1 + len(names) > len(buffers):
        raise FrameError(
            Code.REFUSED, f"parts: expected buffers up to {at + len(names)}, got {len(buffers)}"
        )
    return names
