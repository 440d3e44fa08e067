"""Bytes of version 1, written once: of each message, and of a segment of the journal.

Client and daemon are upgraded separately, and a daemon opens the journals of the release
before it, so these bytes are a promise from the first release on. They are never made anew to
make a test pass: when one fails, either the change is a mistake, or the layout is another one.
Then it gets a new number (messages.PROTOCOL, segment.VERSION) and files of its own beside these.

Version 1 has not been released. Its layout changed twice after these bytes were first written,
and they were written again: a record names its parts in a list, where it had a field for each
of three; names may have a sub-run, a scalar has a style, and there are twelve kinds more; and a
hello says what a rank is, clocks are compared, a daemon may name another run, and pictures may
be tiled.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ranktap_wire import frames, segment
from ranktap_wire.journal import JournalWriter
from ranktap_wire.messages import (
    PROTOCOL,
    Ack,
    BatchMessage,
    Beat,
    Bye,
    ByeAnswer,
    Code,
    DaemonMessage,
    Error,
    Hello,
    Probe,
    ProbeAnswer,
    Source,
    Welcome,
)
from ranktap_wire.records import Across, Batch, Blob, Buffer, Columns, Kind, Style, scalar_code
from ranktap_wire.segment import segment_path
from ranktapd.entries import (
    BatchAccepted,
    BatchRefused,
    JobMoved,
    RunBegins,
    SessionGone,
    SessionOpened,
    SessionSource,
    SessionsSoFar,
    WindowsExpired,
    Words,
    pack_entry,
    read_entry,
)
from tests.support.journals import read_journal
from tests.support.messages import as_bytes, plain

GOLDEN = Path(__file__).parent / "golden"
SESSION = bytes(range(16))
WALL = 1_700_000_000.25


def picture(
    kind: Kind, shape: tuple[int, ...], across: Across = Across.EACH, **parameters: object
) -> Blob:
    data = bytes(range(12))
    return Blob(kind, f"a {kind}", 3, WALL, across, "uint8", shape, parameters, data)


ABOUT = {"job": "slurm-17", "device": "größer", "command": "train.py --lr 0.1"}
LAYOUT = b'[["losses", [["band", "Margin", ["mean", "min", "max"]], ["all", "Multiline", []]]]]'
HPARAMS = (
    b'{"hparams": [["lr", 0.1], ["opt", "sgd"]], "metrics": ["loss"], "discrete": {"lr": [1]}}'
)

BATCH = Batch(
    Columns(
        tags=["loss", "größe", "main_a\tmain"],
        across=np.array(
            [Across.MEAN, Across.EACH, scalar_code(Across.RANK0, Style.TENSOR_DOUBLE)], np.uint8
        ),
        tag_index=np.array([0, 1, 0, 2], np.int32),
        step=np.array([0, -1, 1 << 62, 7], np.int64),
        wall_time=np.array([WALL, WALL + 1, WALL + 2, WALL + 3]),
        value=np.array([0.5, float("nan"), float("-inf"), 0.1]),
    ),
    [
        picture(Kind.IMAGE, (3, 2, 2), dataformats="CHW"),
        picture(Kind.IMAGES, (1, 3, 2, 2), Across.TILE, dataformats="NCHW"),
        picture(
            Kind.IMAGE_GRID, (4, 1, 1, 3), nrow=8, padding=2, normalize=False,
            value_range=[0.0, 1.0], scale_each=True, pad_value=0.5,
        ),
        Blob(
            Kind.HISTOGRAM, "weights", 3, WALL, Across.MERGE, "float32", (3,),
            {"bins": "tensorflow", "max_bins": 30}, np.array([1, 2, 3], np.float32),
        ),
        Blob(
            Kind.HISTOGRAM, "edges", 3, WALL, Across.RANK0, "bfloat16", (2,),
            {"bins": None, "max_bins": None}, np.array([0x3F80, 0x4000], np.uint16),
            {"edges": np.array([0.0, 1.0, 2.5])},
        ),
        Blob(Kind.TEXT, "note", 3, WALL, Across.EACH, "utf8", (5,), {}, "groß".encode()),
        Blob(
            Kind.MOMENTS, "weights", 3, WALL, Across.MERGE, "float64", (2, 8),
            {"fields": ["mean", "norm"], "replicated": True},
            np.arange(16.0).reshape(2, 8), {"tags": b"layer/0\nlayer/1"},
        ),
        Blob(
            Kind.TENSOR, "complex", 3, WALL, Across.EACH, "complex64", (2, 1), {},
            np.array([[1 + 2j], [3 - 4j]], np.complex64),
        ),
        Blob(
            Kind.HISTOGRAM_RAW, "counted", 3, WALL, Across.EACH, "float64", (2, 2),
            {"min": 0.0, "max": 2.0, "num": 3.0, "sum": 4.0, "sum_squares": 6.0},
            np.array([[1.0, 2.0], [1.0, 2.0]]),
        ),
        Blob(
            Kind.IMAGE_BOXES, "found", 3, WALL, Across.EACH, "uint8", (3, 2, 2),
            {"dataformats": "CHW", "rescale": 2.0}, bytes(range(12)),
            {"boxes": np.array([[0.0, 0.0, 1.0, 1.5]]), "labels": b'["Katze"]'},
        ),
        Blob(
            Kind.ENCODED_IMAGE, "film", 3, WALL, Across.EACH, "uint8", (8,),
            {"height": 2, "width": 3, "channels": 3}, b"GIF89a..",
        ),
        Blob(
            Kind.AUDIO, "sound", 3, WALL, Across.EACH, "int16", (3,), {"sample_rate": 44_100},
            np.array([0, 1, -1], np.int16),
        ),
        Blob(
            Kind.PR_CURVE, "curve", 3, WALL, Across.EACH, "float16", (2,), {"num_thresholds": 127},
            np.array([0.25, 0.75], np.float16),
            {"labels": np.array([0, 1], np.uint8), "weights": np.array([1.0, 0.5])},
        ),
        Blob(
            Kind.PR_CURVE_RAW, "known curve", 3, WALL, Across.EACH, "float64", (6, 2),
            {"num_thresholds": 2}, np.arange(12.0).reshape(6, 2),
        ),
        Blob(
            Kind.MESH, "triangle", 3, WALL, Across.EACH, "float32", (1, 3, 3), {},
            np.arange(9, dtype=np.float32),
            {
                "colors": np.full(9, 255, np.float32), "faces": np.array([0, 1, 2], np.float32),
                "config": b'{"camera": {"fov": 75}}',
            },
        ),
        Blob(
            Kind.EMBEDDING, "points", 3, WALL, Across.EACH, "float32", (2, 2),
            {"global_step": 3, "sprite_shape": [2, 1, 1, 1], "sprite_dtype": "uint8"},
            np.arange(4, dtype=np.float32), {"metadata": b"a\nb\n", "sprite": bytes([0, 255])},
        ),
        Blob(
            Kind.GRAPH, "graph", 3, WALL, Across.RANK0, "uint8", (2,), {}, b"\x22\x00",
            {"run_metadata": b"\x0a\x00"},
        ),
        Blob(
            Kind.CUSTOM_SCALARS, "layout", 3, WALL, Across.RANK0, "utf8", (len(LAYOUT),), {},
            LAYOUT,
        ),
        Blob(
            Kind.HPARAMS, "1700000000.25\thparams", 3, WALL, Across.RANK0, "utf8",
            (len(HPARAMS),), {}, HPARAMS,
        ),
    ],
    dropped_scalars=3,
    dropped_blobs=1 << 40,
    clock=(-0.125, 0.0625),
)  # fmt: skip

FROM_CLIENT: dict[str, tuple[object, Callable[[], list[Buffer]]]] = {
    "hello": (
        hello := Hello(SESSION, "digits/lr=0.1", 1, 4, "node-7", 4_711, 6, WALL, ".x", -5, ABOUT),
        lambda: frames.pack_hello(hello),
    ),
    "hello of a backlog": (
        backlog := replace(hello, source=Source.BACKLOG),
        lambda: frames.pack_hello(backlog),
    ),
    "batch": (
        BatchMessage(SESSION, 1 << 40, BATCH),
        lambda: frames.pack_batch(SESSION, 1 << 40, BATCH),
    ),
    "beat": (Beat(SESSION, 12.5), lambda: frames.pack_beat(SESSION, 12.5)),
    "bye": (Bye(SESSION), lambda: frames.pack_bye(SESSION)),
    "probe": (
        probe := Probe(12.5, "digits/lr=0.1"),
        lambda: frames.pack_probe(probe),
    ),
}

FROM_DAEMON: dict[str, DaemonMessage] = {
    "welcome": Welcome(5, daemon="0.1.0", limits={"record_bytes": 67_108_864}),
    "welcome to another run": Welcome(5, "digits/lr=0.1-2", daemon="0.1.0"),
    "welcome to a crowd": Welcome(5, daemon="0.1.0", interval=0.5),
    "ack": Ack(5),
    "ack to a crowd": Ack(5, interval=0.5),
    "ack of a beat": Ack(5, 12.5, WALL, 0.25),
    "bye answer": ByeAnswer(),
    "error": Error(Code.GAP, "batch 6 is missing", 5),
    "probe answer": ProbeAnswer(12.5, WALL, "0.1.0"),
    "probe answer that refuses": ProbeAnswer(12.5, WALL, "0.1.0", 1, "busy", "the disk is full"),
    "error without a number": Error(Code.BUSY, "the daemon's disk is full"),
}

OPENED = SessionOpened(SESSION, 1, 4, "node-7", 4_711, WALL, -5, 5, ABOUT)
GROUPS: list[list[tuple[Words, list[bytes]]]] = [
    [(RunBegins(WALL, "loghost", 99, ".x"), [])],
    [(OPENED, []), (BatchAccepted(SESSION, 6), as_bytes(frames.pack_batch(SESSION, 6, BATCH)))],
    [
        (BatchRefused(SESSION, 7), []),
        (WindowsExpired(3), []),
        (JobMoved("slurm-18", "digits/lr=0.1-2"), []),
    ],
    [
        (SessionGone(SESSION, final=False), []),
        (SessionGone(SESSION, final=True, replaced=True), []),
        (
            SessionsSoFar(
                [[SESSION, 1, 4, "node-7", 4_711, WALL, 7, True, "slurm-17"]],
                [[bytes(16), 1 << 40, True]],
                [["slurm-18", "digits/lr=0.1-2"]],
            ),
            [],
        ),
    ],
    [(SessionSource(SESSION, "live"), [])],
]


def golden_messages() -> dict[str, list[bytes]]:
    """Messages by name: under a line with `# name`, a frame a line in hexadecimal."""
    found: dict[str, list[bytes]] = {}
    for line in (GOLDEN / "wire_1.txt").read_text().splitlines():
        if line.startswith("# "):
            found[line[2:]] = frames_of_message = []
        else:
            frames_of_message.append(bytes.fromhex(line))
    return found


MESSAGES = golden_messages()
SEGMENT = GOLDEN / "journal_1.journal"


@pytest.mark.parametrize("name", FROM_CLIENT)
def test_a_message_of_the_client_is_read_from_and_written_to_the_bytes_of_version_1(
    name: str,
) -> None:
    message, pack = FROM_CLIENT[name]
    assert plain(frames.read_message(MESSAGES[name])) == plain(message)
    assert as_bytes(pack()) == MESSAGES[name]


@pytest.mark.parametrize("name", FROM_DAEMON)
def test_a_message_of_the_daemon_is_read_from_and_written_to_the_bytes_of_version_1(
    name: str,
) -> None:
    assert frames.read_answer(MESSAGES[name]) == FROM_DAEMON[name]
    assert as_bytes(frames.pack_answer(FROM_DAEMON[name])) == MESSAGES[name]


def test_every_kind_of_record_is_in_the_batch_of_version_1() -> None:
    assert {blob.kind for blob in BATCH.blobs} == set(Kind)


def test_there_is_no_golden_message_that_nobody_holds_against_the_code() -> None:
    assert [*MESSAGES] == [*FROM_CLIENT, *FROM_DAEMON]
    assert (PROTOCOL, segment.VERSION) == (1, 1)


def test_a_segment_of_version_1_is_read_as_what_was_appended(tmp_path: Path) -> None:
    segment_path(tmp_path, 1).write_bytes(SEGMENT.read_bytes())
    expected = [entry for group in GROUPS for entry in group]
    read = read_journal(tmp_path, len(expected))
    assert read.damages == []
    assert read.ends_group == {
        1: True, 2: False, 3: True, 4: False, 5: False, 6: True, 7: False, 8: False, 9: True,
        10: True,
    }  # fmt: skip
    for (words, others), found in zip(expected, read.entries.values(), strict=True):
        assert read_entry([memoryview(found[0])]) == words
        assert found[1:] == others
    assert plain(frames.read_batch(read.entries[3][1:])) == plain(BATCH)


def test_a_segment_of_version_1_is_continued(tmp_path: Path) -> None:
    path = segment_path(tmp_path, 1)
    path.write_bytes(SEGMENT.read_bytes())
    writer = JournalWriter(tmp_path)
    assert (writer.last, writer.cut) == (10, None)
    assert writer.append([[b"more"]]) == 11
    assert path.read_bytes().startswith(SEGMENT.read_bytes())


def test_a_segment_is_written_as_the_bytes_of_version_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)
    writer = JournalWriter(tmp_path)
    for group in GROUPS:
        writer.append([pack_entry(words, others) for words, others in group])
    assert segment_path(tmp_path, 1).read_bytes() == SEGMENT.read_bytes()
