"""The fold: entries in, the events of a run out."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event

from ranktap_wire import frames
from ranktap_wire.journal import Entry, Position
from ranktap_wire.records import Across, Batch, Buffer, Columns, byte_view
from ranktapd import event_file
from ranktapd.entries import (
    BatchAccepted,
    RunBegins,
    SessionGone,
    SessionOpened,
    Words,
    pack_entry,
)
from ranktapd.fold import Fold

Point = tuple[str, int, float]


class Journal:
    """Feeds a fold entry by entry, a group each, and collects the points that come out."""

    def __init__(self, fold: Fold | None = None) -> None:
        self.fold = fold or Fold(ThreadPoolExecutor(1))
        self.sequence = 0
        self.output = b""

    def say(self, words: Words, batch: Sequence[Buffer] = ()) -> list[Point]:
        """One more entry, which ends its group; the scalars that it brings out."""
        self.sequence += 1
        packed = [memoryview(byte_view(frame)) for frame in pack_entry(words, batch)]
        after = Position(self.sequence, 1, 0)
        self.fold.apply(Entry(self.sequence, True, packed, after))
        written = self.fold.close_group(str(after)).join()
        self.output += written
        return points(written)

    def open(self, session: int, rank: int, world_size: int, resume: int | None = None) -> None:
        identity = session.to_bytes(16, "little")
        self.say(SessionOpened(identity, rank, world_size, "host", 1, 1.0, resume, 0))

    def scalar(self, session: int, number: int, tag: str, step: int, value: float) -> list[Point]:
        """A batch of one scalar."""
        columns = Columns(
            [tag],
            np.array([Across.MEAN], np.uint8),
            np.zeros(1, np.int32),
            np.array([step], np.int64),
            np.ones(1),
            np.array([value]),
        )
        identity = session.to_bytes(16, "little")
        packed = frames.pack_batch(identity, number, Batch(columns))
        return self.say(BatchAccepted(identity, number), packed)


def points(written: bytes) -> list[Point]:
    """(tag, step, value) of every scalar in framed events."""
    found: list[Point] = []
    offset = 0
    while offset < len(written):
        length = int.from_bytes(written[offset : offset + 8], "little")
        start = offset + event_file.HEADER_BYTES
        event = Event.FromString(written[start : start + length])
        found += [
            (value.tag, event.step, value.simple_value)
            for value in event.summary.value
            if value.HasField("simple_value")
        ]
        offset = start + length + event_file.TRAILER_BYTES
    return found


def begun(world_size: int) -> Journal:
    journal = Journal()
    journal.say(RunBegins(1.0, "host", 1, ""))
    for rank in range(world_size):
        journal.open(rank, rank, world_size)
    return journal


def test_a_point_is_written_when_all_ranks_have_reported_it() -> None:
    journal = begun(2)
    assert journal.scalar(0, 1, "loss", 7, 1.0) == []
    assert journal.scalar(1, 1, "loss", 7, 3.0) == [
        ("loss", 7, 2.0),
        ("ranks/loss/min", 7, 1.0),
        ("ranks/loss/max", 7, 3.0),
    ]


def test_a_job_that_died_in_a_step_and_starts_again_from_zero_is_merged_as_before() -> None:
    journal = begun(2)
    journal.scalar(0, 1, "loss", 0, 1.0)
    journal.scalar(1, 1, "loss", 0, 3.0)
    journal.scalar(0, 2, "loss", 1, 5.0)  # and rank 1 died
    journal.say(SessionGone((0).to_bytes(16, "little"), final=True, replaced=True))
    journal.open(10, 0, 2)
    journal.open(11, 1, 2)
    assert journal.scalar(10, 1, "loss", 0, 10.0) == [], "rank 1 is expected again"
    assert journal.scalar(11, 1, "loss", 0, 30.0)[0] == ("loss", 0, 20.0)
    assert ("ranktap/late", 0, 1.0) not in points(journal.output)
    assert ("loss", 1, 5.0) in points(journal.output), "what waited was written as it was"


def test_every_rank_resuming_at_a_step_writes_one_start() -> None:
    journal = Journal()
    journal.say(RunBegins(1.0, "host", 1, ""))
    for rank in range(4):
        journal.open(rank, rank, 4, resume=100)
    for rank in range(4):
        journal.scalar(rank, 1, "loss", 100, float(rank))
    starts = journal.output.count(event_file.start_record(1.0, 100))
    assert starts == 1
    assert ("loss", 100, 1.5) in points(journal.output)


def test_a_group_that_gives_nothing_to_write_gives_no_checkpoint() -> None:
    journal = begun(2)
    before = journal.output
    journal.scalar(0, 1, "loss", 0, 1.0)
    assert journal.output == before


def test_a_fold_goes_on_from_its_state_with_the_same_bytes() -> None:
    whole, first = begun(2), begun(2)
    for journal in (whole, first):
        journal.scalar(0, 1, "loss", 0, 1.0)
    second = Journal(Fold.restore(first.fold.state(), ThreadPoolExecutor(1)))
    second.sequence = first.sequence
    for journal in (whole, second):
        journal.scalar(1, 1, "loss", 0, 3.0)
        journal.scalar(0, 2, "loss", 1, 3.0)
        journal.scalar(1, 2, "loss", 1, float("nan"))
    assert whole.output == first.output + second.output
