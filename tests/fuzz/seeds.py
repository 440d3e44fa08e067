"""Inputs to begin with: what a healthy client, daemon and journal say, one of every kind."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from ranktap_wire import frames
from ranktap_wire.journal import JournalWriter
from ranktap_wire.messages import Ack, ByeAnswer, Code, Error, Welcome
from ranktap_wire.records import Batch, Kind
from ranktap_wire.segment import segment_path
from ranktapd.entries import (
    BatchAccepted,
    BatchRefused,
    RunBegins,
    SessionGone,
    SessionOpened,
    SessionSource,
    SessionsSoFar,
    WindowsExpired,
    pack_entry,
)
from tests.fuzz.targets import pack
from tests.support import messages
from tests.support.messages import HOSTILE_HEADERS, SESSION


def seeds(target: str) -> list[bytes]:
    """Inputs of that target."""
    if target == "journal":
        return [*_segments()]
    if target == "answer":
        error = Error(Code.GAP, "batch 4 is missing", 3)
        answers = [Welcome(7, daemon="1.2"), Ack(3), Ack(3, 1.5), ByeAnswer(), error]
        return [pack(frames.pack_answer(answer)) for answer in answers]
    batches = [
        Batch(messages.columns([0.5, float("nan"), -0.0])),
        messages.batch(),
        *(Batch(None, [messages.blob(kind)]) for kind in Kind),
    ]
    said = [frames.pack_batch(SESSION, 7, batch) for batch in batches]
    if target == "wire":
        said += [
            frames.pack_hello(messages.hello()), frames.pack_beat(SESSION, 1.0),
            frames.pack_bye(SESSION), *([head] for head in HOSTILE_HEADERS),
        ]  # fmt: skip
    return [pack(parts) for parts in said]


def _segments() -> Iterator[bytes]:
    opened = SessionOpened(SESSION, 0, 2, "node", 1, 1.0, None, 0)
    batch = frames.pack_batch(SESSION, 1, Batch(messages.columns([0.5])))
    groups = [
        [pack_entry(RunBegins(1.0, "log-host", 1, ""))],
        [pack_entry(opened), pack_entry(BatchAccepted(SESSION, 1), batch)],
        [pack_entry(BatchRefused(SESSION, 2)), pack_entry(WindowsExpired(3)),
         pack_entry(SessionGone(SESSION, final=True)), pack_entry(SessionSource(SESSION, "spool")),
         pack_entry(SessionsSoFar())],
        [[], [b""], [b"\0" * 9, b"x"]],
    ]  # fmt: skip
    for count in range(len(groups) + 1):
        with tempfile.TemporaryDirectory() as directory:
            writer = JournalWriter(Path(directory), sync=False)
            for group in groups[:count]:
                writer.append(group)
            writer.close()
            yield segment_path(Path(directory), 1).read_bytes()
