"""The wire: every message comes back as it was, and nothing else is taken for one."""

from __future__ import annotations

import math
import random
import re
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ranktap_wire import frames, limits
from ranktap_wire.messages import (
    Ack,
    BatchMessage,
    Beat,
    Bye,
    ByeAnswer,
    Code,
    DaemonMessage,
    Error,
    FrameError,
    Hello,
    Probe,
    ProbeAnswer,
    Source,
    Welcome,
)
from ranktap_wire.records import (
    SCALAR_ACROSS,
    STEP_MAX,
    STEP_MIN,
    Across,
    Batch,
    Blob,
    Columns,
    Kind,
    Style,
    join_name,
    scalar_code,
)
from tests.support import messages
from tests.support.messages import (
    HOSTILE_HEADERS,
    MUTATIONS,
    ODD_VALUES,
    SESSION,
    as_bytes,
    blob,
    columns,
    header,
    hello,
    plain,
    with_header,
)


def refusal(parts: list[bytes]) -> FrameError:
    """What the daemon's side says of a message that it must not take."""
    with pytest.raises(FrameError) as raised:
        frames.read_message(parts)
    assert len(raised.value.text) < 5_000
    return raised.value


def packed(batch: Batch, number: int = 7) -> list[bytes]:
    return as_bytes(frames.pack_batch(SESSION, number, batch))


# -- every message comes back -----------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        hello(),
        hello(resume_step=-5, filename_suffix=".x", first=1 << 40, host=""),
        hello(run="é" * 100, rank=0, world_size=1, pid=0, started=0.0),
        hello(run="."),
        hello(source=Source.BACKLOG),
        hello(source=Source.SPOOL),
        hello(about={"job": "", "device": "größer"}),
        hello(about={f"{number:032d}": "a" * 200 for number in range(32)}),
    ],
)
def test_a_hello_comes_back_as_it_was(message: Hello) -> None:
    assert frames.read_message(as_bytes(frames.pack_hello(message))) == message


def test_a_live_session_says_hello_as_it_did_in_former_releases() -> None:
    assert "source" not in header(as_bytes(frames.pack_hello(hello())))


def test_beats_and_goodbyes_come_back_as_they_were() -> None:
    assert frames.read_message(as_bytes(frames.pack_beat(SESSION, 1.5))) == Beat(SESSION, 1.5)
    assert frames.read_message(as_bytes(frames.pack_bye(SESSION))) == Bye(SESSION)


def test_a_batch_of_every_kind_comes_back_as_it_was() -> None:
    batch = messages.batch()
    read = frames.read_message(packed(batch))
    assert plain(read) == plain(BatchMessage(SESSION, 7, batch))


@pytest.mark.parametrize(
    "batch",
    [
        Batch(),
        Batch(columns([1.0], ("a",))),
        Batch(None, [blob()]),
        Batch(dropped_blobs=5),
        Batch(clock=(-1e9, 0.5)),
    ],
    ids=["nothing", "one scalar", "one picture", "drops alone", "a clock"],
)
def test_a_small_batch_comes_back_as_it_was(batch: Batch) -> None:
    parts = packed(batch)
    assert plain(frames.read_message(parts)) == plain(BatchMessage(SESSION, 7, batch))
    assert plain(frames.read_batch(parts)) == plain(batch)


def test_the_largest_number_of_scalars_tags_and_records_comes_back() -> None:
    tags = tuple(f"tag {i}" for i in range(limits.SCALARS))
    scalars = columns([*np.arange(float(limits.SCALARS))], tags)
    texts = [blob(Kind.TEXT, data=b"a", shape=(1,)) for _ in range(limits.BLOBS)]
    batch = Batch(scalars, texts)
    assert plain(frames.read_message(packed(batch))) == plain(BatchMessage(SESSION, 7, batch))


@pytest.mark.parametrize(
    "answer",
    [
        Welcome(0), Welcome(STEP_MAX, daemon="1.2", limits={"record_bytes": 1}),
        Welcome(0, "another run"), Ack(0), Ack(7), Ack(7, 1.25), Ack(7, 1.25, 1e9, 0.5),
        Welcome(0, interval=0.5), Ack(7, interval=0.5), Ack(7, 1.25, 1e9, 0.5, 2.0),
        ByeAnswer(),
        Error(Code.GAP, "batch 3 is missing", 2), Error("a code of the future", "", None),
    ],
    ids=repr,
)  # fmt: skip
def test_an_answer_comes_back_as_it_was(answer: DaemonMessage) -> None:
    assert frames.read_answer(as_bytes(frames.pack_answer(answer))) == answer


def test_the_text_of_an_error_is_cut_to_a_thousand_characters() -> None:
    error = frames.read_answer(as_bytes(frames.pack_answer(Error(Code.BUSY, "é" * 2_000))))
    assert isinstance(error, Error) and error.text == "é" * 1_000


def test_columns_and_data_are_views_of_what_arrived() -> None:
    parts = packed(Batch(columns([1.0, 2.0]), [blob()]))
    read = frames.read_batch(parts)
    assert read.columns is not None
    for array, part in zip(
        (read.columns.step, read.columns.wall_time, read.columns.value), parts[4:7], strict=False
    ):
        assert np.shares_memory(array, np.frombuffer(part, np.uint8))
    assert read.blobs[0].data is parts[7]


def test_a_header_over_the_limit_is_not_sent() -> None:
    texts = [blob(Kind.TEXT, tag="a" * 1_000, data=b"a", shape=(1,)) for _ in range(80)]
    with pytest.raises(ValueError, match=r"header of \d+ bytes, at most 65536 allowed"):
        frames.pack_batch(SESSION, 1, Batch(None, texts))


FLOATS = st.floats(width=64)
TAGS = st.text(
    st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20
)  # fmt: skip
NAMES = st.builds(join_name, st.sampled_from(["", "", "a", "a/b c"]), TAGS)
INT64 = st.integers(STEP_MIN, STEP_MAX)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def scalars(draw: st.DrawFn) -> Columns:
    tags = draw(st.lists(NAMES, min_size=1, max_size=5))
    count = draw(st.integers(1, 20))
    rows = st.lists(st.tuples(st.integers(0, len(tags) - 1), INT64, FINITE, FLOATS),
                    min_size=count, max_size=count)  # fmt: skip
    index, step, wall_time, value = zip(*draw(rows), strict=True)
    code = st.builds(
        scalar_code, st.sampled_from([*SCALAR_ACROSS.values()]), st.sampled_from(Style)
    )
    across = draw(st.lists(code, min_size=len(tags), max_size=len(tags)))
    return Columns(
        tags,
        np.array(across, np.uint8),
        np.array(index, np.int32),
        np.array(step, np.int64),
        np.array(wall_time, np.float64),
        np.array(value, np.float64),
    )


@st.composite
def pictures(draw: st.DrawFn) -> Blob:
    dtype, size = draw(st.sampled_from([("uint8", 1), ("float32", 4), ("bfloat16", 2)]))
    shape = (draw(st.sampled_from([1, 3])), draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    data = draw(st.binary(min_size=math.prod(shape) * size, max_size=math.prod(shape) * size))
    return blob(
        Kind.IMAGE, tag=draw(NAMES), step=draw(INT64), wall_time=draw(FINITE), dtype=dtype,
        shape=shape, data=data,
    )  # fmt: skip


@st.composite
def texts(draw: st.DrawFn) -> Blob:
    data = draw(st.text(max_size=20)).encode()
    return blob(Kind.TEXT, tag=draw(TAGS), step=draw(INT64), data=data, shape=(len(data),))


@st.composite
def histograms(draw: st.DrawFn) -> Blob:
    values = np.array(draw(st.lists(FLOATS, min_size=1, max_size=9)))
    edges = draw(st.none() | st.lists(FINITE, min_size=2, max_size=9, unique=True))
    bins = st.sampled_from(["tensorflow", "fd", 7])
    return blob(
        Kind.HISTOGRAM, tag=draw(TAGS), step=draw(INT64), wall_time=draw(FINITE),
        across=draw(st.sampled_from([Across.MERGE, Across.RANK0, Across.EACH])),
        dtype="float64", shape=(len(values),), data=values,
        parts={} if edges is None else {"edges": np.array(sorted(edges))},
        parameters={
            "bins": draw(bins) if edges is None else None,
            "max_bins": draw(st.none() | st.integers(1, 100)),
        },
    )  # fmt: skip


BATCHES = st.builds(
    Batch,
    st.none() | scalars(),
    st.lists(pictures() | texts() | histograms(), max_size=4),
    st.integers(0, 1 << 61),
    st.integers(0, 1 << 61),
)


@given(BATCHES, st.integers(1, STEP_MAX), st.binary(min_size=16, max_size=16))
@settings(deadline=None)
def test_any_batch_comes_back_exactly(batch: Batch, number: int, session: bytes) -> None:
    parts = as_bytes(frames.pack_batch(session, number, batch))
    assert plain(frames.read_message(parts)) == plain(BatchMessage(session, number, batch))
    assert frames.session_of(parts) == session


# -- what is refused, and how -----------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "code", "start"),
    [
        ({"type": "shout"}, Code.MALFORMED, "type: expected hello, batch, beat, bye or probe"),
        ({"type": None}, Code.MALFORMED, "type: expected hello, batch, beat, bye or probe"),
        ({"session": b"short"}, Code.MALFORMED, "session: expected 16 bytes"),
        ({"session": "a" * 16}, Code.MALFORMED, "session: expected 16 bytes"),
        ({"protocol": 2}, Code.PROTOCOL, "this ranktapd speaks version 1 of the protocol, the "
         "client version 2: install the same release of ranktap on both sides"),
        ({"protocol": True}, Code.PROTOCOL, "this ranktapd speaks version 1"),
        ({"protocol": 1.0}, Code.PROTOCOL, "this ranktapd speaks version 1"),
        ({"run": "../../etc"}, Code.REFUSED, "hello: run: expected names with '/' between"),
        ({"run": "/etc"}, Code.REFUSED, "hello: run: expected names with '/' between"),
        ({"run": ".ranktap/runs/a"}, Code.REFUSED, "hello: run: expected names with '/' between"),
        ({"run": 7}, Code.REFUSED, "hello: run: expected a string, got 7 (int)"),
        ({"rank": 4}, Code.REFUSED, "rank: expected a whole number from 0 to 3, got 4"),
        ({"rank": -1}, Code.REFUSED, "rank: expected a whole number from 0 to 3, got -1"),
        ({"rank": True}, Code.REFUSED, "rank: expected a whole number from 0 to 3, got True"),
        ({"world_size": 0}, Code.REFUSED, "world_size: expected a whole number from 1 to 100000"),
        ({"world_size": 1 << 40}, Code.REFUSED, "world_size: expected a whole number from 1 to"),
        ({"host": "a\nb"}, Code.REFUSED, "hello: host: expected no control characters"),
        ({"host": "a" * 256}, Code.REFUSED, "hello: host: expected a name of at most 255 bytes"),
        ({"host": None}, Code.REFUSED, "hello: host: expected a name of at most 255 bytes"),
        ({"pid": -1}, Code.REFUSED, "pid: expected a whole number from 0 to 2147483648, got -1"),
        ({"first": 0}, Code.REFUSED, "first: expected a whole number from 1 to"),
        ({"first": 1 << 63}, Code.REFUSED, "first: expected a whole number from 1 to"),
        ({"started": math.nan}, Code.REFUSED, "started: expected a finite number, got nan"),
        ({"started": 1}, Code.REFUSED, "started: expected a finite number, got 1"),
        ({"filename_suffix": "/../x"}, Code.REFUSED, "hello: filename_suffix: expected no '/'"),
        ({"filename_suffix": None}, Code.REFUSED, "hello: filename_suffix: expected a string"),
        ({"resume_step": 1.5}, Code.REFUSED, "hello: resume_step: expected an integer, got 1.5"),
        ({"resume_step": True}, Code.REFUSED, "hello: resume_step: expected an integer, got True"),
        ({"source": "disk"}, Code.REFUSED, "hello: source: expected one of ['live', 'backlog',"),
        ({"source": None}, Code.REFUSED, "hello: source: expected one of ['live', 'backlog',"),
        ({"source": ["spool"]}, Code.REFUSED, "hello: source: expected one of ['live',"),
        ({"about": []}, Code.REFUSED, "hello: about: expected a mapping, got [] (list)"),
        ({"about": {"a": 1}}, Code.REFUSED, "hello: about: a: expected a string, got 1 (int)"),
        ({"about": {"": "a"}}, Code.REFUSED, "hello: about: expected names that are not empty"),
        ({"about": {"a\n": ""}}, Code.REFUSED, "hello: about: a name: expected no control"),
        ({"about": {"a": "\x1b[2J"}}, Code.REFUSED, "hello: about: a: expected no control"),
        ({"about": {"a" * 33: ""}}, Code.REFUSED, "hello: about: a name: expected at most 32"),
        ({"about": {"a": "b" * 1_025}}, Code.REFUSED, "hello: about: a: expected at most 1024"),
        ({"about": {str(n): "" for n in range(33)}}, Code.REFUSED,
         "hello: about: expected at most 32 names, got 33"),
        ({"about": {str(n): "a" * 1_023 for n in range(9)}}, Code.REFUSED,
         "hello: about: expected at most 8192 bytes, got 9216"),
    ],
)  # fmt: skip
def test_a_hello_that_breaks_a_rule_is_refused_with_the_rule(
    changed: dict[str, Any], code: Code, start: str
) -> None:
    parts = as_bytes(frames.pack_hello(hello()))
    error = refusal(with_header(parts, header(parts) | changed))
    assert (error.code, error.number) == (code, None)
    assert error.text.startswith(start)


@pytest.mark.parametrize("name", [*header(as_bytes(frames.pack_hello(hello())))])
def test_a_hello_without_one_of_its_fields_is_refused(name: str) -> None:
    parts = as_bytes(frames.pack_hello(hello(resume_step=3)))
    head = header(parts)
    del head[name]
    if name == "resume_step":
        assert frames.read_message(with_header(parts, head)) == hello()
    else:
        refusal(with_header(parts, head))


def test_a_hello_with_fields_of_a_later_release_is_understood() -> None:
    parts = as_bytes(frames.pack_hello(hello()))
    assert frames.read_message(with_header(parts, header(parts) | {"mood": "good"})) == hello()


def without(index: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda parts: parts[:index] + parts[index + 1 :]


def replaced(index: int, content: bytes) -> Callable[[list[bytes]], list[bytes]]:
    return lambda parts: [*parts[:index], content, *parts[index + 1 :]]


def field(**changed: Any) -> Callable[[list[bytes]], list[bytes]]:
    return lambda parts: with_header(parts, header(parts) | changed)


def record(**changed: Any) -> Callable[[list[bytes]], list[bytes]]:
    def change(parts: list[bytes]) -> list[bytes]:
        head = header(parts)
        head["blobs"][0] |= changed
        return with_header(parts, head)

    return change


@pytest.mark.parametrize(
    ("change", "start"),
    [
        (field(scalars=-1), "scalars: expected a whole number from 0 to 65536, got -1"),
        (field(scalars=65_537), "scalars: expected a whole number from 0 to 65536, got 65537"),
        (field(scalars="2"), "scalars: expected a whole number from 0 to 65536, got '2'"),
        (field(scalars=3), "tag index: expected 3 of 4 bytes each, got 8 bytes"),
        (field(dropped=[1]), "dropped: expected two counts, got [1]"),
        (field(dropped=[-1, 0]), "dropped: expected two counts, got [-1, 0]"),
        (field(dropped=[1 << 62, 0]), "dropped: expected two counts"),
        (field(dropped=[True, 0]), "dropped: expected two counts, got [True, 0]"),
        (field(dropped=None), "dropped: expected two counts, got None"),
        (field(clock=0.0), "clock: expected two finite numbers of seconds, got 0.0"),
        (field(clock=[0.0]), "clock: expected two finite numbers of seconds, got [0.0]"),
        (field(clock=[1, 0.0]), "clock: expected two finite numbers of seconds, got [1, 0.0]"),
        (field(clock=[math.nan, 0.0]), "clock: expected two finite numbers of seconds"),
        (field(clock=[0.0, -1.0]), "clock: expected two finite numbers of seconds"),
        (field(blobs=None), "blobs: expected a list of at most 256"),
        (field(blobs=[{}] * 257), "blobs: expected a list of at most 256"),
        (field(blobs=[7]), "blobs: expected maps"),
        (field(blobs=[{}]), "shape: expected whole numbers, got None"),
        (field(blobs=[]), "expected 6 buffers, got 7"),
        (without(7), "data: expected buffer 6 of 6, got 6"),
        (without(6), "value: expected 2 of 8 bytes each, got 60 bytes"),
        (lambda parts: parts[:4], "scalars: expected 6 buffers, got 3"),
        (lambda parts: [*parts, b""], "expected 7 buffers, got 8"),
        (replaced(1, b"\xff"), "tags: expected UTF-8, invalid start byte"),
        (replaced(1, b""), "tag: expected a string that is not empty"),
        (replaced(1, b"a\n"), "tag: expected a string that is not empty"),
        (replaced(1, b"a\n\x1b[2Jb"), "tag: expected no control characters"),
        (replaced(1, b"a\r\nb"), "tag: expected no control characters"),
        (replaced(1, "a\n\x85b".encode()), "tag: expected no control characters"),
        (replaced(1, b"a\n" + b"b" * 1_001), "tag: expected at most 1000 bytes of UTF-8, got 1001"),
        (replaced(1, b"a"), "across: expected 1 codes, got 2"),
        (replaced(1, b"a\nb\nc"), "across: expected 3 codes, got 2"),
        (replaced(2, b"\0"), "across: expected 2 codes, got 1"),
        (replaced(2, b""), "across: expected 1 codes, got 0"),
        (replaced(2, bytes(65_537)), "across: 65537 codes, at most 65536 allowed"),
        (replaced(1, b"a\n../b\tc"), "sub-run: expected names with '/' between"),
        (replaced(1, b"a\nb\tc\td"), "tag: expected no control characters"),
        (replaced(2, b"\0\7"), "across: 7 is no policy and style of scalars"),
        (replaced(2, b"\0\x30"), "across: 48 is no policy and style of scalars"),
        (replaced(2, b"\0\xff"), "across: 255 is no policy and style of scalars"),
        (replaced(3, bytes(7)), "tag index: expected 2 of 4 bytes each, got 7 bytes"),
        (replaced(3, b"\0\0\0\0\2\0\0\0"), "tag index: expected values from 0 to 1"),
        (replaced(3, b"\0\0\0\0\xff\xff\xff\xff"), "tag index: expected values from 0 to 1"),
        (replaced(4, bytes(15)), "step: expected 2 of 8 bytes each, got 15 bytes"),
        (replaced(5, b""), "wall time: expected 2 of 8 bytes each, got 0 bytes"),
        (replaced(5, np.array([1.0, np.nan]).tobytes()), "wall time: expected finite numbers of"),
        (replaced(5, np.array([1.0, np.inf]).tobytes()), "wall time: expected finite numbers of"),
        (replaced(6, bytes(24)), "value: expected 2 of 8 bytes each, got 24 bytes"),
        (replaced(7, bytes(59)), "shape: (3, 4, 5) of uint8 takes 60 bytes, got 59"),
        (record(kind="movie"), "kind: expected one of ['image', 'images', 'image_grid', "),
        (record(kind=None), "kind: expected one of"),
        (record(kind=[["image"]]), "kind: expected one of"),
        (record(tag=7), "tag: expected a string, got 7 (int)"),
        (record(tag=""), "tag: expected a string that is not empty"),
        (record(tag=".\ta"), "sub-run: expected names with '/' between"),
        (record(tag="a\0"), "tag: expected no control characters"),
        (record(step=1.0), "step: expected a whole number from -9223372036854775808 to"),
        (record(step=1 << 63), "step: expected a whole number from"),
        (record(wall=math.nan), "wall: expected a finite number, got nan"),
        (record(wall=math.inf), "wall: expected a finite number, got inf"),
        (record(wall=None), "wall: expected a finite number, got None"),
        (record(across=9), "across: expected a whole number from 0 to 8, got 9"),
        (record(across=0), "across: expected 'each', 'rank0', 'tile' for the kind image"),
        (record(dtype=7), "dtype: expected a name, got 7"),
        (record(dtype="object"), "dtype: expected one of 'bool', 'int8'"),
        (record(shape="345"), "shape: expected whole numbers, got '345'"),
        (record(shape=[3, 4, 5.0]), "shape: expected whole numbers, got [3, 4, 5.0]"),
        (record(shape=[3, 4, True]), "shape: expected whole numbers, got [3, 4, True]"),
        (record(shape=[3, -4, -5]), "shape: expected at most 8 sizes from 0 on"),
        (record(shape=[1 << 63] * 8), "image: expected at most 64 MiB, got 4.995e+145"),
        (record(parameters=None), "parameters: expected a map"),
        (record(parameters={"dataformats": "HWC", "x": 1}), "parameters: image takes 'dataformats"),
        (record(parameters={"dataformats": "HWC"}), "image: expected 1, 3 or 4 channels"),
        (record(data=0), "data: expected buffer 6 of 7, got 0"),
        (record(data=7), "data: expected buffer 6 of 7, got 7"),
        (record(data=-1), "data: expected buffer 6 of 7, got -1"),
        (record(data=None), "data: expected buffer 6 of 7, got None"),
        (record(data=6.0), "data: expected buffer 6 of 7, got 6.0"),
        (record(parts=["edges"]), "parts: expected buffers up to 7, got 7"),
        (record(parts=None), "parts: expected names, each once, got None"),
        (record(parts=[7]), "parts: expected names, each once, got [7]"),
        (record(parts=["edges", "edges"]), "parts: expected names, each once"),
    ],
)
def test_a_batch_that_breaks_a_rule_is_refused_with_the_rule_and_its_number(
    change: Callable[[list[bytes]], list[bytes]], start: str
) -> None:
    error = refusal(change(packed(Batch(columns([1.0, 2.0]), [blob()]))))
    assert (error.code, error.number) == (Code.REFUSED, 7)
    assert re.match(re.escape(start), error.text), error.text


@pytest.mark.parametrize("number", [0, -1, 1 << 63, True, 1.0, None, "1"])
def test_a_batch_without_a_number_that_can_be_counted_is_refused_without_one(number: Any) -> None:
    parts = packed(Batch())
    error = refusal(with_header(parts, header(parts) | {"number": number}))
    assert (error.code, error.number) == (Code.REFUSED, None)
    assert error.text.startswith("number: expected a whole number from 1 to")


@pytest.mark.parametrize("sent", [math.nan, math.inf, 1, None, "now"])
def test_a_beat_without_a_finite_time_is_refused(sent: Any) -> None:
    parts = as_bytes(frames.pack_beat(SESSION, 1.0))
    error = refusal(with_header(parts, header(parts) | {"sent": sent}))
    assert error.text.startswith("sent: expected a finite number, got")


def test_two_records_cannot_share_a_buffer() -> None:
    parts = packed(Batch(None, [blob(), blob()]))
    head = header(parts)
    head["blobs"][1]["data"] = 0
    assert refusal(with_header(parts, head)).text == "data: expected buffer 1 of 2, got 0"


def test_frames_that_are_each_small_enough_may_be_too_much_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = packed(Batch(None, [blob(), blob()]))
    monkeypatch.setattr(limits, "MESSAGE_BYTES", 119)
    error = refusal(parts)
    assert (error.text, error.number) == ("120 bytes of buffers, at most 119 allowed", 7)
    monkeypatch.setattr(limits, "MESSAGE_BYTES", 120)
    assert isinstance(frames.read_message(parts), BatchMessage)


@pytest.mark.parametrize(
    ("parts", "start"),
    [
        ([], "a message without frames"),
        ([b""] * (limits.FRAMES + 1), "265 frames, at most 264 allowed"),
        ([bytes(limits.HEADER_BYTES + 1)], "header of 65537 bytes, at most 65536 allowed"),
        ([msgpack.packb([1, 2])], "header is no map"),
        ([msgpack.packb(None)], "header is no map"),
    ],
)
def test_what_is_no_message_at_all_is_malformed(parts: list[bytes], start: str) -> None:
    error = refusal(parts)
    assert error.code is Code.MALFORMED
    assert error.text.startswith(start)
    assert frames.session_of(parts) == b""


@pytest.mark.parametrize("head", HOSTILE_HEADERS, ids=lambda head: head[:12].hex())
def test_a_hostile_header_is_malformed_and_takes_little_memory(head: bytes) -> None:
    tracemalloc.start()
    try:
        for parts in ([head], [head, bytes(100)]):
            error = refusal(parts)
            assert error.code is Code.MALFORMED
            with pytest.raises(FrameError):
                frames.read_answer(parts)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * limits.MIB


@pytest.mark.parametrize(
    "value",
    [
        msgpack.ExtType(5, b"a"), msgpack.Timestamp(1), [0] * 513, {f"{i}": 0 for i in range(65)},
        {1: 2}, {"a": {"b": [msgpack.ExtType(5, b"a")]}},
    ],
    ids=["extension", "time", "long list", "large map", "key that is no text", "deep extension"],
)  # fmt: skip
def test_the_limits_of_a_header_hold_in_fields_that_nobody_reads_too(value: Any) -> None:
    parts = as_bytes(frames.pack_hello(hello()))
    assert refusal(with_header(parts, header(parts) | {"mood": value})).code is Code.MALFORMED


def test_a_tag_table_of_millions_takes_little_more_memory_than_its_bytes() -> None:
    parts = packed(Batch(columns([1.0])))
    parts[1], parts[2] = b"a\n" * (1 << 20), bytes(1 << 20)
    few_codes = [*parts[:2], bytes(2), *parts[3:]]
    tracemalloc.start()
    try:
        assert "at most 65536 allowed" in refusal(parts).text
        refusal(few_codes)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * limits.MIB


@pytest.mark.parametrize("kind", ["hello", "batch", "beat", "bye", "probe"])
@pytest.mark.parametrize("depth", [1, 400, 1_000, 1_020])
def test_a_field_of_any_depth_in_any_place_is_refused(kind: str, depth: int) -> None:
    right = {
        "hello": as_bytes(frames.pack_hello(hello(resume_step=3))),
        "batch": packed(Batch(columns([1.0, 2.0]), [blob(Kind.IMAGE_GRID)])),
        "beat": as_bytes(frames.pack_beat(SESSION, 1.0)),
        "bye": as_bytes(frames.pack_bye(SESSION)),
        "probe": as_bytes(frames.pack_probe(Probe(1.0, "run"))),
    }[kind]
    # msgpack packs at most 511 levels, so the lists are put in by hand.
    mark = "a mark in place of the value"
    deep = b"\x91" * depth + b"\x01"

    def places(head: Any) -> list[tuple[Any, str]]:
        maps = [head, *(head.get("blobs") or []), *(b["parameters"] for b in head.get("blobs", []))]
        return [(each, name) for each in maps for name in each]

    for at in range(len(places(header(right)))):
        head = header(right)
        where, name = places(head)[at]
        where[name] = mark
        packed_mark = msgpack.packb(mark)
        hostile = msgpack.packb(head).replace(packed_mark, deep)
        refusal([hostile, *right[1:]])


def test_a_probe_of_any_version_is_understood_and_one_of_a_bad_run_is_refused() -> None:
    probe = Probe(12.5, "digits/lr=0.1", protocol=99)
    assert frames.read_message(as_bytes(frames.pack_probe(probe))) == probe
    answer = ProbeAnswer(12.5, 1e9, "9.9.9", protocol=99)
    assert frames.read_answer(as_bytes(frames.pack_answer(answer))) == answer
    error = refusal(as_bytes(frames.pack_probe(Probe(12.5, "../x"))))
    assert error.code is Code.REFUSED and error.text.startswith("probe: run: expected")


# -- what is mutated --------------------------------------------------------------------


def some_message(rng: random.Random) -> list[bytes]:
    return as_bytes(
        rng.choice(
            (
                lambda: frames.pack_hello(hello(resume_step=rng.choice((None, 5)))),
                lambda: frames.pack_beat(SESSION, 1.0),
                lambda: frames.pack_bye(SESSION),
                lambda: frames.pack_probe(Probe(1.0, "run")),
                lambda: frames.pack_batch(SESSION, 7, Batch(columns([1.0, 2.0, 3.0]))),
                lambda: frames.pack_batch(SESSION, 7, Batch(columns([1.0]), [*map(blob, Kind)])),
                lambda: frames.pack_batch(SESSION, 7, Batch(None, [blob(rng.choice([*Kind]))])),
            )
        )()
    )


@settings(max_examples=400, deadline=2_000, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 64), st.lists(st.sampled_from(MUTATIONS), min_size=1, max_size=3))
def test_a_mutated_message_is_refused_or_understood_and_nothing_else(
    seed: int, mutations: list[messages.Mutation]
) -> None:
    rng = random.Random(seed)
    parts = some_message(rng)
    for mutate in mutations:
        parts = mutate(rng, parts) if parts else parts
    try:
        message = frames.read_message(parts)
    except FrameError as error:
        assert error.code in (Code.MALFORMED, Code.REFUSED, Code.PROTOCOL)
        as_bytes(frames.pack_answer(Error(error.code, error.text, error.number)))
    else:
        # Whatever was understood is a message: it can be said again, and means the same.
        if isinstance(message, BatchMessage):
            again = frames.pack_batch(message.session, message.number, message.batch)
        elif isinstance(message, Hello):
            again = frames.pack_hello(message)
        elif isinstance(message, Beat):
            again = frames.pack_beat(message.session, message.sent)
        elif isinstance(message, Probe):
            again = frames.pack_probe(message)
        else:
            again = frames.pack_bye(message.session)
        assert plain(frames.read_message(as_bytes(again))) == plain(message)


@settings(max_examples=300, deadline=2_000)
@given(st.integers(0, 1 << 64), st.sampled_from(MUTATIONS))
def test_a_mutated_answer_is_refused_or_understood_and_nothing_else(
    seed: int, mutate: messages.Mutation
) -> None:
    rng = random.Random(seed)
    answers = (
        Welcome(3, "run", interval=0.5), Ack(3, 1.5, 1e9, 0.5, 0.5), ByeAnswer(),
        Error(Code.GAP, "missing", 2),
    )  # fmt: skip
    parts = mutate(rng, as_bytes(frames.pack_answer(rng.choice(answers))))
    try:
        assert isinstance(frames.read_answer(parts), DaemonMessage)
    except FrameError as error:
        assert error.code in (Code.MALFORMED, Code.REFUSED, Code.PROTOCOL)


@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda value: repr(value)[:20])
def test_an_answer_with_an_odd_value_in_any_field_is_refused_or_understood(value: Any) -> None:
    for answer in (
        Welcome(3, "run", interval=0.5),
        Ack(3, 1.5, 1e9, 0.5, 0.5),
        ByeAnswer(),
        Error(Code.GAP, "missing", 2),
    ):
        parts = as_bytes(frames.pack_answer(answer))
        for name in header(parts):
            try:
                read = frames.read_answer(with_header(parts, header(parts) | {name: value}))
            except FrameError:
                continue
            assert isinstance(read, DaemonMessage)
            if isinstance(read, Error):
                assert isinstance(read.text, str) and type(read.number) in (int, type(None))


@pytest.mark.parametrize("answer", [Welcome(3), Ack(3), ByeAnswer(), Error(Code.GAP, "", 2)])
def test_a_field_that_a_later_daemon_adds_is_passed_over(answer: DaemonMessage) -> None:
    # As `interval` is by clients of before it was there.
    parts = as_bytes(frames.pack_answer(answer))
    later = with_header(parts, header(parts) | {"something new": [0.5]})
    assert frames.read_answer(later) == answer


@pytest.mark.parametrize("interval", [math.nan, math.inf, True, "0.5", 1, None])
def test_an_interval_that_is_no_number_of_seconds_is_refused(interval: Any) -> None:
    parts = as_bytes(frames.pack_answer(Ack(3, interval=0.5)))
    with pytest.raises(FrameError, match="interval: expected a finite number"):
        frames.read_answer(with_header(parts, header(parts) | {"interval": interval}))


@pytest.mark.parametrize("protocol", [0, 2, True, None, "1"])
def test_a_daemon_of_another_version_is_named(protocol: Any) -> None:
    parts = as_bytes(frames.pack_answer(Welcome(3)))
    with pytest.raises(FrameError, match="this client speaks version 1") as raised:
        frames.read_answer(with_header(parts, header(parts) | {"protocol": protocol}))
    assert raised.value.code is Code.PROTOCOL
