"""Small messages that say that they are large: what reading and drawing them may cost."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from typing import Any

import msgpack
import pytest

from ranktap_wire import frames, limits
from ranktap_wire.messages import FrameError
from ranktap_wire.records import DTYPES, Batch, Kind
from tests.fuzz.targets import pack
from tests.support import messages
from tests.support.counted import Calls
from tests.support.messages import HOSTILE_HEADERS, SESSION
from tests.support.rank_program import ROOT

READ_CALLS = 2_000
"""Functions of Python and of C. A thousand dimensions take 600, most take less than a hundred."""
READ_BYTES = 16 * limits.MIB
"""What it may take for a moment."""
DRAWN_BYTES = 1_200 * limits.MIB
"""What a process takes at most to draw the largest picture that padding makes of a few bytes."""


def _blob(kind: Kind, changed: dict[str, Any], **parameters: Any) -> list[bytes]:
    """A batch of one record whose head nobody has looked at."""
    parts = messages.as_bytes(frames.pack_batch(SESSION, 1, Batch(None, [messages.blob(kind)])))
    head = messages.header(parts)
    head["blobs"][0] |= changed
    head["blobs"][0]["parameters"] |= parameters
    return messages.with_header(parts, head)


def _scalars(count: int, tags: bytes = b"a", across: bytes = b"\0") -> list[bytes]:
    head = {
        "type": "batch", "session": SESSION, "number": 1, "scalars": count, "dropped": [0, 0],
        "blobs": [],
    }  # fmt: skip
    return [msgpack.packb(head), tags, across, b"", b"", b"", b""]


def _many_heads_of_one_buffer() -> list[bytes]:
    parts = messages.as_bytes(
        frames.pack_batch(SESSION, 1, Batch(None, [messages.blob(Kind.TEXT)]))
    )
    head = messages.header(parts)
    head["blobs"] *= limits.BLOBS
    return messages.with_header(parts, head)


def _padded(**changed: Any) -> list[bytes]:
    """49 pictures of one pixel, as far apart as they may be: 7,175 x 7,175 pixels."""
    shape, dtype = changed.get("shape", [49, 1, 1, 1]), changed.get("dtype", "uint8")
    head = {"shape": shape, "dtype": dtype}
    parts = _blob(Kind.IMAGE_GRID, head, nrow=7, padding=1_024, pad_value=0.0)
    return [parts[0], bytes(shape[0] * shape[1] * DTYPES[dtype].itemsize)]


SMALL = {
    "a picture of a terabyte": _blob(Kind.IMAGE, {"shape": [3, 1 << 20, 1 << 20]}),
    "a size past 64 bits": _blob(Kind.IMAGE, {"shape": [1 << 62] * 8}),
    "no bytes, and a size past 64 bits": _blob(Kind.IMAGE, {"shape": [0, 1 << 62, 1 << 62]}),
    "a thousand dimensions": _blob(Kind.IMAGE, {"shape": [1] * 500}),
    "a grid of a terabyte": _blob(Kind.IMAGE_GRID, {}, padding=1 << 40),
    "a padded grid of the widest numbers": _padded(dtype="float64"),
    "as many buckets as there are numbers": _blob(Kind.HISTOGRAM, {}, bins=1 << 62),
    "all scalars, and no columns": _scalars(limits.SCALARS),
    "a million codes": _scalars(1, across=bytes(1 << 20)),
    "a megabyte of empty tags": _scalars(1, tags=b"\n" * (1 << 20), across=bytes(60_000)),
    "every record the same bytes": _many_heads_of_one_buffer(),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_small_message_that_says_it_is_large_is_refused_at_the_price_of_its_bytes(
    name: str,
) -> None:
    _read(SMALL[name])


@pytest.mark.parametrize("header", HOSTILE_HEADERS, ids=lambda header: header[:12].hex() or "none")
def test_a_hostile_header_is_refused_at_the_price_of_its_bytes(header: bytes) -> None:
    _read([header])


def _read(parts: list[bytes]) -> None:
    def read() -> None:
        with pytest.raises(FrameError):
            frames.read_message(parts)

    calls = Calls(read)
    assert calls.python + calls.c.total() < READ_CALLS
    tracemalloc.start()
    try:
        read()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < READ_BYTES


MEASURE = """
import resource, sys
from tests.fuzz import targets
targets.PIXELS_MAX = 1 << 40
targets.fold(sys.stdin.buffer.read())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    [_padded(), _padded(shape=[49, 3, 1, 1]), _padded(shape=[28, 1, 1, 1], dtype="float16")],
    ids=["grey", "colours", "float16"],
)
def test_the_largest_picture_of_a_few_bytes_is_drawn_in_bounded_memory(parts: list[bytes]) -> None:
    assert sum(map(len, parts)) < 1_000
    frames.read_message(parts)  # it is allowed
    command = [sys.executable, "-c", MEASURE]
    done = subprocess.run(command, input=pack(parts), capture_output=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    peak = int(done.stdout)
    print(f"{sum(map(len, parts))} bytes: {peak / limits.MIB:.0f} MiB")
    assert peak < DRAWN_BYTES
