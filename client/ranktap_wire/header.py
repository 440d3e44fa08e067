"""The first frame of a message: a msgpack map, unpacked under limits, and its fields.

It is what a stranger controls first, so nothing of it is taken for what it should be.
"""

from __future__ import annotations

import math
from typing import Any

import msgpack

from ranktap_wire import limits
from ranktap_wire.messages import SESSION_ID_BYTES, Code, FrameError, Frames
from ranktap_wire.records import byte_view
from ranktap_wire.rules import shown


def pack_header(head: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(head, use_bin_type=True)
    return packed


def read_header(frames: Frames) -> dict[str, Any]:
    """The header of a message: any map that is within the limits.

    Raises:
        FrameError: there is none.
    """
    if not frames:
        raise FrameError(Code.MALFORMED, "a message without frames")
    if len(frames) > limits.FRAMES:
        raise FrameError(Code.MALFORMED, f"{len(frames)} frames, at most {limits.FRAMES} allowed")
    head = byte_view(frames[0])
    if head.nbytes > limits.HEADER_BYTES:
        raise FrameError(
            Code.MALFORMED, f"header of {head.nbytes} bytes, at most {limits.HEADER_BYTES} allowed"
        )
    try:
        unpacked = msgpack.unpackb(
            head,
            raw=False,
            strict_map_key=True,
            max_str_len=limits.HEADER_BYTES,
            max_bin_len=limits.HEADER_BYTES,
            max_array_len=2 * limits.BLOBS,
            max_map_len=64,
            max_ext_len=0,
        )
    # Not only ValueErrors: msgpack's OutOfData and BufferFull are none, and a header
    # is the first thing that a stranger controls.
    except Exception as error:
        raise FrameError(
            Code.MALFORMED, f"header is not msgpack within the limits: {shown(error)}"
        ) from None
    if not isinstance(unpacked, dict):
        raise FrameError(Code.MALFORMED, "header is no map")
    return unpacked


def session_field(head: dict[str, Any]) -> bytes:
    """The session that it names.

    Raises:
        FrameError: it names none.
    """
    session = head.get("session")
    if not isinstance(session, bytes) or len(session) != SESSION_ID_BYTES:
        raise FrameError(Code.MALFORMED, f"session: expected {SESSION_ID_BYTES} bytes")
    return session


def integer_field(head: dict[str, Any], name: str, low: int, high: int) -> int:
    """A field that is a whole number from `low` to `high`, both included.

    Raises:
        FrameError: it is none, or missing.
    """
    value = head.get(name)
    # `type(...) is int`: True is an int, and no number.
    if type(value) is not int or not low <= value <= high:
        raise FrameError(
            Code.REFUSED,
            f"{name}: expected a whole number from {low} to {high}, got {shown(value)}",
        )
    return value


def finite_field(head: dict[str, Any], name: str) -> float:
    """A field that is a finite float.

    Raises:
        FrameError: it is none, or missing.
    """
    value = head.get(name)
    if type(value) is not float or not math.isfinite(value):
        raise FrameError(Code.REFUSED, f"{name}: expected a finite number, got {shown(value)}")
    return value
