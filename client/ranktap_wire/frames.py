"""Messages and their byte layout.

A message is a list of frames. The first is a msgpack map of at most 64 KiB,
the header; the rest are raw buffers that it refers to by index. Nothing is
pickled and buffers are never unpacked. Each buffer is referred to once, in order.

    client to daemon                            daemon to client
      hello  protocol session run rank ...        welcome  protocol last limits [run] [interval]
      batch  session number ... + buffers         ack      number (cumulative) [interval]
      beat   session sent                         ack      ... sent (the beat's) now held
      bye    session                              bye
      probe  protocol sent run                    probe    protocol sent now daemon code text
                                                  error    code text [number]

What the buffers of a batch are is said in `batches`.
"""

from __future__ import annotations

from typing import Any, Final

from ranktap_wire import limits, rules
from ranktap_wire.batches import pack_records, read_records
from ranktap_wire.header import finite_field, integer_field, pack_header, read_header, session_field
from ranktap_wire.messages import (
    PROTOCOL,
    Ack,
    BatchMessage,
    Beat,
    Bye,
    ByeAnswer,
    ClientMessage,
    Code,
    DaemonMessage,
    Error,
    FrameError,
    Frames,
    Hello,
    Probe,
    ProbeAnswer,
    Source,
    Welcome,
)
from ranktap_wire.records import STEP_MAX, Batch, Buffer
from ranktap_wire.rules import shown

# -- writing ----------------------------------------------------------------------------


def pack_hello(hello: Hello) -> list[Buffer]:
    head = {"type": "hello"} | {name: getattr(hello, name) for name in _HELLO}
    if hello.source is not Source.LIVE:
        head["source"] = str(hello.source)
    return [pack_header(head)]


def pack_batch(session: bytes, number: int, batch: Batch) -> list[Buffer]:
    """The frames of a batch. Columns and data are referred to, not copied.

    Raises:
        ValueError: its header would be over the limit.
    """
    fields, buffers = pack_records(batch)
    header = pack_header({"type": "batch", "session": session, "number": number} | fields)
    if len(header) > limits.HEADER_BYTES:
        raise ValueError(f"header of {len(header)} bytes, at most {limits.HEADER_BYTES} allowed")
    return [header, *buffers]


def pack_beat(session: bytes, sent: float) -> list[Buffer]:
    return [pack_header({"type": "beat", "session": session, "sent": sent})]


def pack_bye(session: bytes) -> list[Buffer]:
    return [pack_header({"type": "bye", "session": session})]


def pack_probe(probe: Probe) -> list[Buffer]:
    fields = {"protocol": probe.protocol, "sent": probe.sent, "run": probe.run}
    return [pack_header({"type": "probe"} | fields)]


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
            if answer.run is not None:
                head["run"] = answer.run
            if answer.interval is not None:
                head["interval"] = answer.interval
        case Ack():
            head = {"type": "ack", "number": answer.number}
            if answer.sent is not None:
                head["sent"] = answer.sent
            if answer.now is not None:
                head |= {"now": answer.now, "held": answer.held}
            if answer.interval is not None:
                head["interval"] = answer.interval
        case ByeAnswer():
            head = {"type": "bye"}
        case ProbeAnswer():
            head = {
                "type": "probe",
                "protocol": answer.protocol,
                "sent": answer.sent,
                "now": answer.now,
                "daemon": answer.daemon,
                "code": answer.code,
                "text": answer.text[:1_000],
            }
        case Error():
            head = {
                "type": "error",
                "code": str(answer.code),
                "text": answer.text[:1_000],
                "number": answer.number,
            }
    return [pack_header(head)]


# -- reading, the daemon's side ---------------------------------------------------------


def read_message(frames: Frames) -> ClientMessage:
    """What a client says, checked to the last field; its arrays are views of `frames`.

    Raises:
        FrameError: what is wrong with it, and the code to answer with.
    """
    head = read_header(frames)
    kind = head.get("type")
    if kind == "hello":
        return _read_hello(head)
    if kind == "probe":
        return _read_probe(head)
    if kind not in ("batch", "beat", "bye"):
        raise FrameError(
            Code.MALFORMED, f"type: expected hello, batch, beat, bye or probe, got {shown(kind)}"
        )
    session = session_field(head)
    if kind == "bye":
        return Bye(session)
    if kind == "beat":
        return Beat(session, finite_field(head, "sent"))
    number = integer_field(head, "number", 1, STEP_MAX)
    try:
        return BatchMessage(session, number, read_records(head, frames[1:]))
    except FrameError as error:
        error.number = number
        raise
    except (TypeError, ValueError, OverflowError, KeyError) as error:
        raise FrameError(Code.REFUSED, str(error), number) from error


def session_of(frames: Frames) -> bytes:
    """The session that a message names, whatever else is wrong with it; empty when none."""
    try:
        return session_field(read_header(frames))
    except FrameError:
        return b""


def read_batch(frames: Frames) -> Batch:
    """The records of a batch's frames, as they stand in a journal.

    Raises:
        FrameError, TypeError, ValueError: what is wrong with it.
    """
    return read_records(read_header(frames), frames[1:])


_HELLO: Final = (
    "protocol", "session", "run", "rank", "world_size", "host", "pid", "first", "started",
    "filename_suffix", "resume_step", "about",
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
    world_size = integer_field(head, "world_size", 1, limits.WORLD_SIZE)
    try:
        if resume_step is not None:
            resume_step = rules.check_step(resume_step, "resume_step")
        return Hello(
            session=session_field(head),
            run=rules.check_run(head.get("run")),
            rank=integer_field(head, "rank", 0, world_size - 1),
            world_size=world_size,
            host=_host(head),
            pid=integer_field(head, "pid", 0, 1 << 31),
            first=integer_field(head, "first", 1, STEP_MAX),
            started=finite_field(head, "started"),
            filename_suffix=rules.check_suffix(head.get("filename_suffix")),
            resume_step=resume_step,
            about=rules.check_about(head.get("about")),
            source=_source(head),
        )
    except FrameError:
        raise
    except (TypeError, ValueError) as error:
        raise FrameError(Code.REFUSED, f"hello: {error}") from error


def _read_probe(head: dict[str, Any]) -> Probe:
    run = head.get("run")
    try:
        name = None if run is None else rules.check_run(run)
    except (TypeError, ValueError) as error:
        raise FrameError(Code.REFUSED, f"probe: {error}") from error
    # Any version may ask.
    protocol = integer_field(head, "protocol", 0, STEP_MAX)
    return Probe(finite_field(head, "sent"), name, protocol)


# -- reading, the client's side ---------------------------------------------------------


def read_answer(frames: Frames) -> DaemonMessage:
    """What a daemon says.

    Raises:
        FrameError: it is not of this protocol.
    """
    head = read_header(frames)
    kind = head.get("type")
    if kind == "welcome":
        protocol = head.get("protocol")
        if type(protocol) is not int or protocol != PROTOCOL:
            raise FrameError(
                Code.PROTOCOL,
                f"this client speaks version {PROTOCOL} of the protocol, the daemon version "
                f"{shown(protocol)}: install the same release of ranktap on both sides",
            )
        told, run = head.get("limits"), head.get("run")
        return Welcome(
            last=integer_field(head, "last", 0, STEP_MAX),
            run=None if run is None else str(run),
            daemon=str(head.get("daemon", "")),
            limits=told if isinstance(told, dict) else {},
            interval=_optional(head, "interval"),
        )
    if kind == "ack":
        last = integer_field(head, "number", 0, STEP_MAX)
        if len(head) == 2:
            return Ack(last)  # the usual one
        sent, now, held, interval = (
            _optional(head, name) for name in ("sent", "now", "held", "interval")
        )
        return Ack(last, sent, now, held, interval)
    if kind == "bye":
        return ByeAnswer()
    if kind == "probe":
        code = head.get("code")
        return ProbeAnswer(
            sent=finite_field(head, "sent"),
            now=finite_field(head, "now"),
            daemon=str(head.get("daemon", "")),
            protocol=integer_field(head, "protocol", 0, STEP_MAX),
            code=None if code is None else str(code),
            text=str(head.get("text", "")),
        )
    if kind == "error":
        number = head.get("number")
        return Error(
            str(head.get("code")), str(head.get("text")), number if type(number) is int else None
        )
    raise FrameError(
        Code.MALFORMED, f"type: expected welcome, ack, bye, probe or error, got {shown(kind)}"
    )


def _optional(head: dict[str, Any], name: str) -> float | None:
    return finite_field(head, name) if name in head else None


def _source(head: dict[str, Any]) -> Source:
    said = head.get("source", str(Source.LIVE))
    if not isinstance(said, str) or said not in set(Source):
        raise ValueError(f"source: expected one of {[*map(str, Source)]}, got {shown(said)}")
    return Source(said)


def _host(head: dict[str, Any]) -> str:
    host = head.get("host")
    if not isinstance(host, str) or len(host.encode(errors="replace")) > limits.HOST_BYTES:
        raise ValueError(f"host: expected a name of at most {limits.HOST_BYTES} bytes")
    if rules.has_control(host):
        raise ValueError(f"host: expected no control characters, got {host!r}")
    return host
