"""Messages that are right, and ways to make them wrong."""

from __future__ import annotations

import dataclasses
import random
import struct
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

from ranktap_wire import frames, limits
from ranktap_wire.frames import BatchMessage, Hello
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
MOMENTS_PARAMETERS: dict[str, Any] = {"fields": ["mean", "norm"], "replicated": False}


def hello(**changed: Any) -> Hello:
    right: dict[str, Any] = {
        "session": SESSION, "run": "digits/lr=0.1", "rank": 1, "world_size": 4, "host": "node-7",
        "pid": 4_711, "first": 1, "started": 1_700_000_000.25,
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
    right: dict[str, Any] = {
        "tag": f"a {kind}", "step": 1, "wall_time": 1.5, "across": Across.EACH,
        "dtype": "uint8", "shape": (3, 4, 5), "parameters": {"dataformats": "CHW"},
        "data": bytes(range(60)),
    }  # fmt: skip
    if kind is Kind.IMAGES:
        right |= {"shape": (1, 3, 4, 5), "parameters": {"dataformats": "NCHW"}}
    elif kind is Kind.IMAGE_GRID:
        right |= {"parameters": GRID}
    elif kind is Kind.HISTOGRAM:
        right |= {"across": Across.MERGE, "parameters": {"bins": "tensorflow", "max_bins": None}}
    elif kind is Kind.TEXT:
        right |= {"dtype": "utf8", "shape": (60,), "parameters": {}}
    elif kind is Kind.MOMENTS:
        right |= {
            "across": Across.MERGE, "dtype": "float64", "shape": (2, len(MOMENTS)),
            "data": np.ones((2, len(MOMENTS))), "tags": b"layer/a\nlayer/b",
            "parameters": MOMENTS_PARAMETERS,
        }  # fmt: skip
    return Blob(kind, **(right | changed))


def batch() -> Batch:
    """Scalars, one record of each kind, and two that have more buffers than their data."""
    edges = blob(
        Kind.HISTOGRAM, tag="edges", edges=np.array([0.0, 1.0, 99.0]),
        parameters={"bins": None, "max_bins": 7},
    )  # fmt: skip
    counts = np.arange(2 * HISTOGRAM_BUCKETS, dtype=np.uint32).reshape(2, HISTOGRAM_BUCKETS)
    moments = blob(Kind.MOMENTS, tag="counts", counts=counts)
    return Batch(
        columns([0.5, float("nan"), float("inf"), -0.0, 1e300]),
        [*map(blob, Kind), edges, moments],
        dropped_scalars=3,
        dropped_blobs=1 << 40,
    )


def as_bytes(parts: frames.Frames) -> list[bytes]:
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
                message.dropped_scalars, message.dropped_blobs,
            )  # fmt: skip
        case Columns():
            arrays = (message.across, message.tag_index, message.step, message.wall_time)
            return (message.tags, *(a.tolist() for a in arrays), message.value.tobytes())
        case Blob():
            values = dataclasses.asdict(dataclasses.replace(message, data=b"", edges=None,
                                                            tags=None, counts=None))  # fmt: skip
            buffers = {"data": message.data} | message.buffers
            return values | {name: as_bytes([buffer])[0] for name, buffer in buffers.items()}
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
