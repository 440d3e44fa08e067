"""Messages and their byte layout.

A message is a list of frames. The first is a msgpack map of at most 64 KiB,
the header; the rest are raw buffers that it refers to by index. Nothing is
pickled and buffers are never unpacked. Each buffer is referred to once, in order.

    client to daemon                            daemon to client
      hello  protocol session run rank ...        welcome  protocol last limits
      batch  session number ... + buffers         ack      number (cumulative)
      beat   session sent                         ack      number sent (the beat's)
      bye    session                              bye
                                                  error    code text [number]

A batch's buffers:

    [0] tags        UTF-8, '\\n' between            n_tags of them, if "scalars" > 0
    [1] across      uint8[n_tags]                 how ranks are merged: records.Across
    [2] tag index   int32[n]                      row to tag
    [3] step        int64[n]
    [4] wall time   float64[n]                    seconds since 1970
    [5] value       float64[n]
    [6...]          data of the blobs (from [0] when there are no scalars)

All numbers are little endian. A batch carries its own tag table, so that it is
understood by itself: a resend needs no context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import msgpack
import numpy as np

from ranktap_wire import limits, records
from ranktap_wire.records import Across, Batch, Blob, Buffer, Columns, Kind, byte_view, shown

PROTOCOL: Final = 1
"""Raised when a peer of the former version could misread a message."""

SESSION_ID_BYTES: Final = 16
COLUMN_COUNT: Final = 6

Frames = Sequence[Buffer]


class Code(StrEnum):
    """Why a daemon refuses something."""

    MALFORMED = "malformed"
    """Not a message of this protocol: dropped. No healthy client sends it."""
    PROTOCOL = "protocol"
    """Another version of the protocol: the client stops and says so."""
    REFUSED = "refused"
    """This batch breaks a rule: its number counts as seen, its records are not kept."""
    UNKNOWN_SESSION = "unknown-session"
    """The daemon has not heard a hello on this connection: say it again."""
    GAP = "gap"
    """A batch before this one is missing: go back to the number after `number`."""
    LIMIT = "limit"
    """More sessions, runs or tags than the daemon is set to keep."""
    BUSY = "busy"
    """The daemon's disk is full: nothing is acknowledged until there is room."""
    CONFLICT = "conflict"
    """Another session is this rank of this run already."""


class FrameError(ValueError):
    """A message that breaks the protocol. `number` is the batch's, where it could be read."""

    def __init__(self, code: Code, text: str, number: int | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.number = number


@dataclass(slots=True)
class Hello:
    """Who a session is. Sent first on every connection."""

    session: bytes
    run: str
    rank: int
    world_size: int
    host: str
    pid: int
    first: int
    """The first batch that the client still holds."""
    started: float
    """Wall time of `init`, seconds since 1970."""
    filename_suffix: str = ""
    resume_step: int | None = None
    protocol: int = PROTOCOL


@dataclass(slots=True)
class BatchMessage:
    session: bytes
    number: int
    batch: Batch


@dataclass(slots=True)
class Beat:
    session: bytes
    sent: float
    """The client's monotonic clock; comes back in the answer."""


@dataclass(slots=True)
class Bye:
    session: bytes


@dataclass(slots=True)
class Welcome:
    last: int
    """The last batch of this session in the journal."""
    protocol: int = PROTOCOL
    daemon: str = ""
    """The daemon's version, for people."""
    limits: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Ack:
    number: int
    sent: float | None = None


@dataclass(slots=True)
class ByeAnswer:
    pass


@dataclass(slots=True)
class Error:
    code: str
    """A `Code`, or one that this side does not know yet."""
    text: str
    number: int | None = None


ClientMessage = Hello | BatchMessage | Beat | Bye
DaemonMessage = Welcome | Ack | ByeAnswer | Error


# -- writing ----------------------------------------------------------------------------


def pack_hello(hello: Hello) -> list[Buffer]:
    return [_pack({"type": "hello"} | {name: getattr(hello, name) for name in _HELLO})]


def pack_batch(session: bytes, number: int, batch: Batch) -> list[Buffer]:
    """The frames of a batch. Columns and data are referred to, not copied.

    Raises:
        ValueError: its header would be over the limit.
    """
    frames: list[Buffer] = []
    columns = batch.columns
    if columns is not None:
        frames += [
            "\n".join(columns.tags).encode(),
            columns.across,
            columns.tag_index,
            columns.step,
            columns.wall_time,
            columns.value,
        ]
    heads = []
    for blob in batch.blobs:
        head: dict[str, Any] = {
            "kind": str(blob.kind),
            "tag": blob.tag,
            "step": blob.step,
            "wall": blob.wall_time,
            "across": int(blob.across),
            "dtype": blob.dtype,
            "shape": blob.shape,
            "parameters": blob.parameters,
            "data": len(frames),
        }
        frames.append(blob.data)
        for name, buffer in blob.buffers.items():
            head[name] = len(frames)
            frames.append(buffer)
        heads.append(head)
    header = _pack(
        {
            "type": "batch",
            "session": session,
            "number": number,
            "scalars": 0 if columns is None else len(columns),
            "dropped": [batch.dropped_scalars, batch.dropped_blobs],
            "blobs": heads,
        }
    )
    if len(header) > limits.HEADER_BYTES:
        raise ValueError(f"header of {len(header)} bytes, at most {limits.HEADER_BYTES} allowed")
    return [header, *frames]


def pack_beat(session: bytes, sent: float) -> list[Buffer]:
    return [_pack({"type": "beat", "session": session, "sent": sent})]


def pack_bye(session: bytes) -> list[Buffer]:
    return [_pack({"type": "bye", "session": session})]


def pack_answer(answer: DaemonMessage) -> list[Buffer]:
    """The one frame of what a daemon says."""
    match answer:
        case Welcome():
            head: dict[str, Any] = {
                "type": "welcome",
                "last": answer.last,
                "protocol": answer.protocol,
                "daemon": answer.daemon,
                "limits": answer.limits,
            }
        case Ack():
            head = {"type": "ack", "number": answer.number}
            if answer.sent is not None:
                head["sent"] = answer.sent
        case ByeAnswer():
            head = {"type": "bye"}
        case Error():
            head = {
                "type": "error",
                "code": str(answer.code),
                "text": answer.text[:1_000],
                "number": answer.number,
            }
    return [_pack(head)]


# -- reading, the daemon's side ---------------------------------------------------------


def read_message(frames: Frames) -> ClientMessage:
    """What a client says, checked to the last field; its arrays are views of `frames`.

    Raises:
        FrameError: what is wrong with it, and the code to answer with.
    """
    head = _read_head(frames)
    kind = head.get("type")
    if kind == "hello":
        return _read_hello(head)
    if kind not in ("batch", "beat", "bye"):
        raise FrameError(
            Code.MALFORMED, f"type: expected hello, batch, beat or bye, got {shown(kind)}"
        )
    session = _session(head)
    if kind == "bye":
        return Bye(session)
    if kind == "beat":
        return Beat(session, _finite(head, "sent"))
    number = _integer(head, "number", 1, records.STEP_MAX)
    try:
        return BatchMessage(session, number, _read_records(head, frames[1:]))
    except FrameError as error:
        error.number = number
        raise
    except (TypeError, ValueError, OverflowError, KeyError) as error:
        raise FrameError(Code.REFUSED, str(error), number) from error


def session_of(frames: Frames) -> bytes:
    """The session that a message names, whatever else is wrong with it; empty when none."""
    try:
        return _session(_read_head(frames))
    except FrameError:
        return b""


def read_batch(frames: Frames) -> Batch:
    """The records of a batch's frames, as they stand in a journal.

    Raises:
        FrameError, TypeError, ValueError: what is wrong with it.
    """
    return _read_records(_read_head(frames), frames[1:])


_HELLO: Final = (
    "protocol", "session", "run", "rank", "world_size", "host", "pid", "first", "started",
    "filename_suffix", "resume_step",
)  # fmt: skip


def _read_hello(head: dict[str, Any]) -> Hello:
    protocol = head.get("protocol")
    if type(protocol) is not int or protocol != PROTOCOL:
        raise FrameError(
            Code.PROTOCOL,
            f"this ranktapd speaks version {PROTOCOL} of the protocol, the client version "
            f"{shown(protocol)}: install the same release of ranktap on both sides",
        )
    resume_step = head.get("resume_step")
    world_size = _integer(head, "world_size", 1, limits.WORLD_SIZE)
    try:
        if resume_step is not None:
            resume_step = records.check_step(resume_step, "resume_step")
        return Hello(
            session=_session(head),
            run=records.check_run(head.get("run")),
            rank=_integer(head, "rank", 0, world_size - 1),
            world_size=world_size,
            host=_host(head),
            pid=_integer(head, "pid", 0, 1 << 31),
            first=_integer(head, "first", 1, records.STEP_MAX),
            started=_finite(head, "started"),
            filename_suffix=records.check_suffix(head.get("filename_suffix")),
            resume_step=resume_step,
        )
    except FrameError:
        raise
    except (TypeError, ValueError) as error:
        raise FrameError(Code.REFUSED, f"hello: {error}") from error


def _read_records(head: dict[str, Any], buffers: Frames) -> Batch:
    count = _integer(head, "scalars", 0, limits.SCALARS)
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
        used += 1 + len(blob.buffers)
    if len(buffers) != used:
        raise FrameError(Code.REFUSED, f"expected {used} buffers, got {len(buffers)}")
    return Batch(columns, blobs, dropped[0], dropped[1])


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
    if result.across.max() >= Across.MERGE:
        raise FrameError(
            Code.REFUSED, f"across: {int(result.across.max())} is no policy of scalars"
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
        records.has_control(text.replace("\n", ""))
        or "" in tags
        or max(map(len, tags)) * 4 > limits.TAG_BYTES
    ):
        for tag in tags:
            records.check_tag(tag)
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
    others = [name for name in ("edges", "tags", "counts") if head.get(name) is not None]
    blob = Blob(
        kind=kind,
        tag=records.check_tag(head.get("tag")),
        step=_integer(head, "step", records.STEP_MIN, records.STEP_MAX),
        wall_time=_finite(head, "wall"),
        across=Across(_integer(head, "across", 0, Across.MERGE)),
        dtype=dtype,
        shape=tuple(shape),
        parameters=parameters,
        data=_buffer(head, "data", buffers, at),
        **{name: _buffer(head, name, buffers, at + 1 + i) for i, name in enumerate(others)},
    )
    records.check_blob(blob)
    return blob


def _buffer(head: dict[str, Any], name: str, buffers: Frames, at: int) -> Buffer:
    index = head.get(name)
    if type(index) is not int or index != at or at >= len(buffers):
        raise FrameError(
            Code.REFUSED, f"{name}: expected buffer {at} of {len(buffers)}, got {shown(index)}"
        )
    return buffers[at]


# -- reading, the client's side ---------------------------------------------------------


def read_answer(frames: Frames) -> DaemonMessage:
    """What a daemon says.

    Raises:
        FrameError: it is not of this protocol.
    """
    head = _read_head(frames)
    kind = head.get("type")
    if kind == "welcome":
        protocol = head.get("protocol")
        if type(protocol) is not int or protocol != PROTOCOL:
            raise FrameError(
                Code.PROTOCOL,
                f"this client speaks version {PROTOCOL} of the protocol, the daemon version "
                f"{shown(protocol)}: install the same release of ranktap on both sides",
            )
        told = head.get("limits")
        return Welcome(
            last=_integer(head, "last", 0, records.STEP_MAX),
            daemon=str(head.get("daemon", "")),
            limits=told if isinstance(told, dict) else {},
        )
    if kind == "ack":
        sent = _finite(head, "sent") if "sent" in head else None
        return Ack(_integer(head, "number", 0, records.STEP_MAX), sent)
    if kind == "bye":
        return ByeAnswer()
    if kind == "error":
        number = head.get("number")
        return Error(
            str(head.get("code")), str(head.get("text")), number if type(number) is int else None
        )
    raise FrameError(
        Code.MALFORMED, f"type: expected welcome, ack, bye or error, got {shown(kind)}"
    )


# -- both -------------------------------------------------------------------------------


def _pack(head: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(head, use_bin_type=True)
    return packed


def _read_head(frames: Frames) -> dict[str, Any]:
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


def _session(head: dict[str, Any]) -> bytes:
    session = head.get("session")
    if not isinstance(session, bytes) or len(session) != SESSION_ID_BYTES:
        raise FrameError(Code.MALFORMED, f"session: expected {SESSION_ID_BYTES} bytes")
    return session


def _host(head: dict[str, Any]) -> str:
    host = head.get("host")
    if not isinstance(host, str) or len(host.encode(errors="replace")) > limits.HOST_BYTES:
        raise ValueError(f"host: expected a name of at most {limits.HOST_BYTES} bytes")
    if records.has_control(host):
        raise ValueError(f"host: expected no control characters, got {host!r}")
    return host


def _integer(head: dict[str, Any], name: str, low: int, high: int) -> int:
    value = head.get(name)
    # `type(...) is int`: True is an int, and no number.
    if type(value) is not int or not low <= value <= high:
        raise FrameError(
            Code.REFUSED,
            f"{name}: expected a whole number from {low} to {high}, got {shown(value)}",
        )
    return value


def _finite(head: dict[str, Any], name: str) -> float:
    value = head.get(name)
    if type(value) is not float or not np.isfinite(value):
        raise FrameError(Code.REFUSED, f"{name}: expected a finite number, got {shown(value)}")
    return value
