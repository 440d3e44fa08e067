"""Messages that are right, and ways to make them wrong."""

from __future__ import annotations

import dataclasses
import math
import random
import struct
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import zmq

from ranktap_wire import limits
from ranktap_wire.messages import BatchMessage, Frames, Hello
from ranktap_wire.records import (
    HISTOGRAM_BUCKETS,
    MOMENTS,
    Across,
    Batch,
    Blob,
    Columns,
    Kind,
    byte_view,
)

SESSION = bytes(range(16))
GRID: dict[str, Any] = {
    "nrow": 8, "padding": 2, "normalize": False, "value_range": None, "scale_each": False,
    "pad_value": 0.0,
}  # fmt: skip
LABELS = b'["cat", "dog"]'
LAYOUT = b'[["losses", [["both", "Multiline", ["a", "b"]], ["band", "Margin", ["m", "l", "u"]]]]]'
HPARAMS = (
    b'{"hparams": [["lr", 0.5], ["optimizer", "sgd"], ["nesterov", true], ["layers", 3]], '
    b'"metrics": ["loss", "accuracy"], "discrete": {"optimizer": ["sgd", "adam"], "lr": [1, 0.5]}}'
)
MOMENTS_PARAMETERS: dict[str, Any] = {"fields": ["mean", "norm"], "replicated": False}


def hello(**changed: Any) -> Hello:
    right: dict[str, Any] = {
        "session": SESSION, "run": "digits/lr=0.1", "rank": 1, "world_size": 4, "host": "node-7",
        "pid": 4_711, "first": 1, "started": 1_700_000_000.25, "about": {"job": "slurm-17"},
    }  # fmt: skip
    return Hello(**(right | changed))


def columns(values: list[float], tags: tuple[str, ...] = ("loss", "lr")) -> Columns:
    """One scalar a value, the tags in turn, at steps 0, 1, 2 ..."""
    count = len(values)
    return Columns(
        tags=list(tags),
        across=np.full(len(tags), Across.MEAN, np.uint8),
        tag_index=(np.arange(count) % len(tags)).astype(np.int32),
        step=np.arange(count, dtype=np.int64),
        wall_time=1_700_000_000.0 + np.arange(count),
        value=np.array(values, np.float64),
    )


def blob(kind: Kind = Kind.IMAGE, **changed: Any) -> Blob:
    """A record of that kind that is right but for what is changed."""
    across = Across.EACH
    if kind in (Kind.HISTOGRAM, Kind.MOMENTS):
        across = Across.MERGE
    elif kind in (Kind.GRAPH, Kind.CUSTOM_SCALARS, Kind.HPARAMS):
        across = Across.RANK0
    right: dict[str, Any] = {
        "tag": f"a {kind}", "step": 1, "wall_time": 1.5, "across": across, "parameters": {},
    }  # fmt: skip
    return Blob(kind, **(right | _content(kind) | changed))


def _content(kind: Kind) -> dict[str, Any]:
    """Its elements, parameters and parts."""
    match kind:
        case Kind.HISTOGRAM:
            return _pixels((3, 4, 5), bins="tensorflow", max_bins=None)
        case Kind.IMAGES:
            return _pixels((1, 3, 4, 5), dataformats="NCHW")
        case Kind.IMAGE_GRID:
            return _pixels((3, 4, 5), **GRID)
        case Kind.IMAGE_BOXES:
            parts = {"boxes": np.array([[0, 0, 2, 2], [1, -1, 9, 1.5]], "<f8"), "labels": LABELS}
            return _pixels((3, 4, 5), dataformats="CHW", rescale=1.5) | {"parts": parts}
        case Kind.MOMENTS:
            return {
                "parameters": MOMENTS_PARAMETERS, "parts": {"tags": b"layer/a\nlayer/b"},
            } | _array(np.ones((2, len(MOMENTS))))  # fmt: skip
        case Kind.TEXT:
            return _utf8(b"some words")
        case Kind.TENSOR:
            return _array(np.array([[1 + 2j, 3], [4, 5]], np.complex64))
        case Kind.HISTOGRAM_RAW:
            sums = {"min": 0.0, "max": 3.0, "num": 5.0, "sum": 7.0, "sum_squares": math.inf}
            return _array(np.array([[1.0, 2.0, 3.0], [0.0, 1.0, 4.0]])) | {"parameters": sums}
        case Kind.ENCODED_IMAGE:
            gif = _array(np.frombuffer(b"GIF89a and so on", np.uint8))
            return gif | {"parameters": {"height": 4, "width": 5, "channels": 3}}
        case Kind.AUDIO:
            sound = _array(np.array([0.0, 0.5, -1.0], np.float32))
            return sound | {"parameters": {"sample_rate": 44_100}}
        case Kind.PR_CURVE:
            parts = {"labels": np.array([0, 1, 1], np.uint8), "weights": np.ones(3)}
            predictions = _array(np.array([0.25, 0.5, math.nan], np.float32))
            return predictions | {"parameters": {"num_thresholds": 127}, "parts": parts}
        case Kind.PR_CURVE_RAW:
            return _array(np.ones((6, 4))) | {"parameters": {"num_thresholds": 4}}
        case Kind.MESH:
            parts = {
                "colors": np.zeros((2, 4, 3), np.float32), "faces": np.ones((2, 3, 3), np.float32),
                "config": b'{"camera": {"fov": 75}}',
            }  # fmt: skip
            return _array(np.ones((2, 4, 3), np.float32)) | {"parts": parts}
        case Kind.EMBEDDING:
            parts = {"metadata": b"a\nb\n", "sprite": np.zeros((2, 3, 4, 4), np.uint8)}
            parameters = {
                "global_step": None, "sprite_shape": [2, 3, 4, 4], "sprite_dtype": "uint8"
            }  # fmt: skip
            return _array(np.ones((2, 5), np.float32)) | {"parameters": parameters, "parts": parts}
        case Kind.GRAPH:
            graph = _array(np.frombuffer(b"a GraphDef", np.uint8))
            return graph | {"parts": {"run_metadata": b"a RunMetadata"}}
        case Kind.CUSTOM_SCALARS:
            return _utf8(LAYOUT)
        case Kind.HPARAMS:
            return _utf8(HPARAMS)
    return _pixels((3, 4, 5), dataformats="CHW")


def _pixels(shape: tuple[int, ...], **parameters: Any) -> dict[str, Any]:
    return {"dtype": "uint8", "shape": shape, "data": bytes(range(60)), "parameters": parameters}


def _array(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"dtype": array.dtype.name, "shape": array.shape, "data": array}


def _utf8(data: bytes) -> dict[str, Any]:
    return {"dtype": "utf8", "shape": (len(data),), "data": data}


def batch() -> Batch:
    """Scalars, one record of each kind, and two that have more parts than their kind needs."""
    edges = blob(
        Kind.HISTOGRAM, tag="edges", parts={"edges": np.array([0.0, 1.0, 99.0])},
        parameters={"bins": None, "max_bins": 7},
    )  # fmt: skip
    counts = np.arange(2 * HISTOGRAM_BUCKETS, dtype=np.uint32).reshape(2, HISTOGRAM_BUCKETS)
    parts = {"tags": b"layer/a\nlayer/b", "counts": counts}
    moments = blob(Kind.MOMENTS, tag="counts", parts=parts)
    return Batch(
        columns([0.5, float("nan"), float("inf"), -0.0, 1e300]),
        [*map(blob, Kind), edges, moments],
        dropped_scalars=3,
        dropped_blobs=1 << 40,
        clock=(-0.25, 0.0),
    )


class _Followed(zmq.Frame):
    """A frame of a message, as it was received, with another behind it."""

    more = True


def as_received(parts: list[bytes]) -> list[zmq.Frame]:
    """A message's frames as a socket gives them, each saying whether another follows."""
    return [*map(_Followed, parts[:-1]), zmq.Frame(parts[-1])]


def as_bytes(parts: Frames) -> list[bytes]:
    """The frames of a message as they arrive."""
    return [bytes(byte_view(part)) for part in parts]


def plain(message: object) -> object:
    """A message as values that are equal when they are the same, NaN and -0.0 included."""
    match message:
        case BatchMessage():
            return (message.session, message.number, plain(message.batch))
        case Batch():
            return (
                plain(message.columns), [*map(plain, message.blobs)],
                message.dropped_scalars, message.dropped_blobs, message.clock,
            )  # fmt: skip
        case Columns():
            arrays = (message.across, message.tag_index, message.step, message.wall_time)
            return (message.tags, *(a.tolist() for a in arrays), message.value.tobytes())
        case Blob():
            values = dataclasses.asdict(dataclasses.replace(message, data=b"", parts={}))
            return values | {
                "parameters": repr(sorted(message.parameters.items())),
                "data": as_bytes([message.data])[0],
                "parts": [(name, *as_bytes([part])) for name, part in message.parts.items()],
            }
    return message


# -- how messages are made wrong --------------------------------------------------------

Mutation = Callable[[random.Random, list[bytes]], list[bytes]]


def header(parts: list[bytes]) -> Any:
    return msgpack.unpackb(parts[0])


def with_header(parts: list[bytes], head: Any) -> list[bytes]:
    return [msgpack.packb(head), *parts[1:]]


def _flip(rng: random.Random, part: bytes) -> bytes:
    changed = bytearray(part)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _place(rng: random.Random, parts: list[bytes]) -> int:
    return rng.randrange(len(parts))


def drop_frame(rng: random.Random, parts: list[bytes]) -> list[bytes]:
    at = _place(rng, parts)
    return parts[:at] + parts[at + 1 :]


def repeat_frame(rng: random.Random, parts: list[bytes]) -> list[bytes]:
    at = _place(rng, parts)
    return parts[:at] + [parts[at]] * rng.randrange(2, 4) + parts[at + 1 :]


def truncate_frame(rng: random.Random, parts: list[bytes]) -> list[bytes]:
    at = _place(rng, parts)
    return [*parts[:at], parts[at][: rng.randrange(len(parts[at]) + 1)], *parts[at + 1 :]]


def extend_frame(rng: random.Random, parts: list[bytes]) -> list[bytes]:
    at = _place(rng, parts)
    return [*parts[:at], parts[at] + rng.randbytes(rng.choice((1, 8, 100))), *parts[at + 1 :]]


def swap_frames(rng: random.Random, parts: list[bytes]) -> list[bytes]:
    changed = list(parts)
    one, other = _place(rng, parts), _place(rng, parts)
    changed[one], changed[other] = changed[other], changed[one]
    return changed


def flip_bits_of_header(rng: random.Random, parts: list[bytes]) -> list[bytes]:
    return [_flip(rng, parts[0]), *parts[1:]]


def flip_bits_of_buffer(rng: random.Random, parts: list[bytes]) -> list[bytes]:
    at = _place(rng, parts)
    return [*parts[:at], _flip(rng, parts[at]), *parts[at + 1 :]]


def random_header(rng: random.Random, parts: list[bytes]) -> list[bytes]:
    return [rng.randbytes(rng.choice((0, 1, 10, 100, 1_000))), *parts[1:]]


def random_message(rng: random.Random, parts: list[bytes]) -> list[bytes]:
    return [rng.randbytes(rng.choice((0, 1, 10, 1_000))) for _ in range(rng.randrange(1, 9))]


def too_many_frames(rng: random.Random, parts: list[bytes]) -> list[bytes]:
    return parts + [b""] * rng.choice((limits.FRAMES, 2 * limits.FRAMES))


def oversized_header(rng: random.Random, parts: list[bytes]) -> list[bytes]:
    return [parts[0] + bytes(limits.HEADER_BYTES), *parts[1:]]


ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 1 << 31, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1,
    0.0, -0.0, 1.5, float("nan"), float("inf"), "", "a", "\n", "../..", "/etc/passwd", "a" * 300,
    "é" * 2_000, b"", b"a", bytes(16), bytes(17), [], [0], [0, 0], [1, 2, 3], [None], [[]], {},
    {"a": 1}, "image", "utf8", "float64", "batch", "hello",
]  # fmt: skip


def _odd(rng: random.Random) -> Any:
    value = rng.choice(ODD_VALUES)
    for _ in range(rng.choice((0, 0, 0, 1, 50, 900))):
        value = [value]
    return value


def odd_field(rng: random.Random, parts: list[bytes]) -> list[bytes]:
    """A field of the header, or of one of its records or their parameters, is something else."""
    try:
        head = header(parts)
    except Exception:  # another mutation was there before
        return parts
    maps = [head]
    for each in maps:
        if isinstance(each, dict):
            blobs = each.get("blobs")
            maps += [*(blobs if isinstance(blobs, list) else []), each.get("parameters")]
    maps = [each for each in maps if isinstance(each, dict) and each]
    if not maps:
        return parts
    chosen = rng.choice(maps)
    name = rng.choice(list(chosen))
    what = rng.random()
    if what < 0.1:
        del chosen[name]
    elif what < 0.2:
        chosen["surprise"] = _odd(rng)
    elif isinstance(chosen[name], list) and chosen[name] and what < 0.5:
        chosen[name][rng.randrange(len(chosen[name]))] = _odd(rng)
    else:
        chosen[name] = _odd(rng)
    return with_header(parts, head)


HOSTILE_HEADERS: list[bytes] = [
    b"",
    b"\xc1",  # never used by msgpack
    b"\x80",  # an empty map
    b"\x90",  # a list
    b"\x80\x80",  # two values
    b"\xdf\xff\xff\xff\xff",  # a map of 4 billion
    b"\xdd\xff\xff\xff\xff",  # a list of 4 billion
    b"\xdb\xff\xff\xff\xff",  # text of 4 GiB
    b"\xc6\xff\xff\xff\xff",  # bytes of 4 GiB
    b"\xc9\xff\xff\xff\xff\x01",  # an extension of 4 GiB
    b"\x81\xa4type\xc7\x00\x05",  # an empty extension
    b"\x81\xa4type\xd4\x05\x00",  # an extension of one byte
    b"\x81\xa4type\xd6\xff\x00\x00\x00\x00",  # a time
    b"\x81\xa4type\xc7\x00\xff",  # a time of no bytes
    b"\x81\xa4type\xa1\xff",  # text that is no UTF-8
    b"\x81\x01\x02",  # a key that is a number
    b"\x81\x90\x02",  # a key that is a list
    b"\x81\x81\x01\x01\x01",  # a key that is a map
    b"\x82\xa4type\xa5hello\xa4type\xa4beat",  # a key twice
    b"\x81\xa4type" + b"\x91" * 1_000 + b"\x01",  # deep, and still unpacked
    b"\x81\xa4type" + b"\x91" * 1_000 + b"\x01\x01",  # deep, and something behind it
    b"\x81\xa4type" + b"\x91" * 60_000 + b"\x01",  # deeper
    b"\x81\xa4type" + b"\x81\xa1a" * 1_000 + b"\x01",
    b"\x81\xa4type\xdc\x02\x00" + b"\x90" * 512,  # as many empty lists as are allowed
    b"\x81\xa4type\xdc\x02\x00" + (b"\x9f" + b"\x90" * 15) * 512,
    b"\xde\x00\x40" + b"".join(b"\xa2%02d\x90" % i for i in range(64)),
    b"\xde\x00\x41" + b"".join(b"\xa2%02d\x90" % i for i in range(65)),
]


def hostile_header(rng: random.Random, parts: list[bytes]) -> list[bytes]:
    return [rng.choice(HOSTILE_HEADERS), *parts[1:]]


def hostile_numbers(rng: random.Random, parts: list[bytes]) -> list[bytes]:
    """Eight bytes of a buffer become a number that is not wanted anywhere."""
    at = _place(rng, parts)
    part = bytearray(parts[at])
    if len(part) >= 8:
        offset = rng.randrange(len(part) // 8) * 8
        number = rng.choice((float("nan"), float("inf"), float("-inf"), 1e308, -1.0))
        part[offset : offset + 8] = struct.pack("<d", number)
    return [*parts[:at], bytes(part), *parts[at + 1 :]]


MUTATIONS: list[Mutation] = [
    drop_frame, repeat_frame, truncate_frame, extend_frame, swap_frames, flip_bits_of_header,
    flip_bits_of_buffer, random_header, random_message, too_many_frames, oversized_header,
    odd_field, odd_field, odd_field, hostile_header, hostile_numbers,
]  # fmt: skip
