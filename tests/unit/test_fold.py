"""The fold: entries in, the events of a run out."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event

from ranktap_wire import frames
from ranktap_wire.records import Across, Batch, Blob, Buffer, Columns, Style, byte_view, scalar_code
from ranktap_wire.segment import Entry, Position
from ranktapd import event_file, scalars
from ranktapd.entries import (
    BatchAccepted,
    RunBegins,
    SessionGone,
    SessionOpened,
    Words,
    pack_entry,
)
from ranktapd.fold import Fold
from ranktapd.output import Output
from ranktapd.scalars import Scalars

Point = tuple[str, int, float]


class Journal:
    """Feeds a fold entry by entry, a group each, and collects the points that come out."""

    def __init__(self, fold: Fold | None = None) -> None:
        self.fold = fold or Fold(ThreadPoolExecutor(1))
        self.sequence = 0
        self.output = b""
        self.last = Output("", {}, [])
        """Of the last group."""

    def say(self, words: Words, batch: Sequence[Buffer] = ()) -> list[Point]:
        """One more entry, which ends its group; the scalars that it brings out."""
        self.sequence += 1
        packed = [memoryview(byte_view(frame)) for frame in pack_entry(words, batch)]
        after = Position(self.sequence, 1, 0)
        self.fold.apply(Entry(self.sequence, True, packed, after))
        self.last = self.fold.close_group(str(after))
        written = self.last.join()
        self.output += written
        return points(written)

    def open(self, session: int, rank: int, world_size: int, resume: int | None = None) -> None:
        identity = session.to_bytes(16, "little")
        self.say(SessionOpened(identity, rank, world_size, "host", 1, 1.0, resume, 0))

    def scalar(
        self,
        session: int,
        number: int,
        tag: str,
        step: int,
        value: float,
        policy: Across = Across.MEAN,
        style: Style = Style.SIMPLE,
    ) -> list[Point]:
        """A batch of one scalar."""
        columns = Columns(
            [tag],
            np.array([scalar_code(policy, style)], np.uint8),
            np.zeros(1, np.int32),
            np.array([step], np.int64),
            np.ones(1),
            np.array([value]),
        )
        return self.batch(session, number, Batch(columns))

    def batch(self, session: int, number: int, batch: Batch) -> list[Point]:
        identity = session.to_bytes(16, "little")
        packed = frames.pack_batch(identity, number, batch)
        return self.say(BatchAccepted(identity, number), packed)

    def blobs(self, session: int, number: int, *blobs: Blob) -> list[Point]:
        """A batch of these records."""
        return self.batch(session, number, Batch(None, list(blobs)))


def events(written: bytes) -> list[Event]:
    """Framed events."""
    found: list[Event] = []
    offset = 0
    while offset < len(written):
        length = int.from_bytes(written[offset : offset + 8], "little")
        start = offset + event_file.HEADER_BYTES
        found.append(Event.FromString(written[start : start + length]))
        offset = start + length + event_file.TRAILER_BYTES
    return found


def points(written: bytes) -> list[Point]:
    """(tag, step, value) of every scalar in framed events."""
    return [
        (value.tag, event.step, value.simple_value)
        for event in events(written)
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


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


def test_scalars_of_a_sub_run_are_written_to_its_own_file_with_a_checkpoint_in_both() -> None:
    journal = begun(1)
    assert journal.scalar(0, 1, "sub/run\tloss", 3, 1.0) == []
    assert journal.last.sub_runs == ["sub/run"]
    written = journal.last.join("sub/run")
    assert points(written) == [("loss", 3, 1.0)]
    checkpoint = event_file.checkpoint_record(1.0, journal.last.position)
    assert written.endswith(checkpoint)
    assert event_file.start_record(1.0, 0) not in written
    assert journal.last.join() == event_file.start_record(1.0, 0) + checkpoint
    assert journal.scalar(0, 2, "loss", 3, 2.0) == [("loss", 3, 2.0)]
    assert journal.last.sub_runs == []


def test_ranks_that_log_the_same_have_their_tag_table_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[int] = []
    real = Scalars._read_table

    def counted(of: Scalars, columns: Columns, rank: int) -> object:
        read.append(rank)
        return real(of, columns, rank)

    monkeypatch.setattr(Scalars, "_read_table", counted)
    monkeypatch.setattr(scalars, "CACHED_TABLES", 4)
    ranks = 10
    journal = begun(ranks)
    for number in (1, 2):
        for rank in range(ranks):
            found = journal.scalar(rank, number, "loss", number, float(rank))
        assert ("loss", number, (ranks - 1) / 2) in found
    assert read == [0, 1], (
        "once for rank 0, of which alone some things are, and once for all others"
    )
    for rank in (0, 1, 2):
        journal.scalar(rank, 3, "alone", 1, float(rank), Across.RANK0)
        ((_, _, value),) = journal.scalar(rank, 4, "own", 1, float(rank), Across.EACH)
        assert value == rank
    assert read[2:] == [0, 0, 1, 1, 2], "what is each rank's own has a table for each"


def test_ranks_are_merged_within_a_sub_run_and_one_chart_shows_all_sub_runs() -> None:
    journal = begun(2)
    for number, sub_run in enumerate(("", "a\t", "b\t"), 1):
        journal.scalar(0, number, f"{sub_run}loss", 7, 1.0)
        journal.scalar(1, number, f"{sub_run}loss", 7, 3.0)
        assert points(journal.last.join(sub_run.rstrip())) == [
            ("loss", 7, 2.0),
            ("ranks/loss/min", 7, 1.0),
            ("ranks/loss/max", 7, 3.0),
        ]
    assert journal.output.count(b"custom_scalars__config__") == 1


def test_many_sub_runs_in_one_batch_get_their_own_rows_in_order() -> None:
    journal = begun(1)
    names = [f"{chr(97 + number)}\tloss" for number in range(5)] + ["loss"]
    index = np.arange(60, dtype=np.int32) % len(names)
    columns = Columns(
        names,
        np.full(len(names), scalar_code(Across.MEAN), np.uint8),
        index,
        np.arange(60),
        np.ones(60),
        np.arange(60.0),
    )
    journal.batch(0, 1, Batch(columns))
    for number, sub_run in enumerate([*"abcde", ""]):
        expected = [("loss", row, float(row)) for row in range(number, 60, len(names))]
        assert points(journal.last.join(sub_run)) == expected


def test_scalars_of_one_tag_in_several_styles_are_written_each_as_it_was_asked_for() -> None:
    journal = begun(1)
    for number, style in enumerate((Style.TENSOR_DOUBLE, Style.SIMPLE, Style.TENSOR_FLOAT), 1):
        journal.scalar(0, number, "loss", number, 0.5, style=style)
    second = Journal(Fold.restore(journal.fold.state(), ThreadPoolExecutor(1)))
    second.scalar(0, 4, "loss", 4, 0.25, style=Style.TENSOR_DOUBLE)
    found = [
        (event.step, value.simple_value or [*value.tensor.float_val, *value.tensor.double_val])
        for event in events(journal.output + second.output)
        for value in event.summary.value
    ]
    assert found == [(1, [0.5]), (2, 0.5), (3, [0.5]), (4, [0.25])]


def test_the_band_of_a_tag_has_its_style() -> None:
    journal = begun(2)
    for rank in (0, 1):
        journal.scalar(rank, 1, "loss", 1, rank + 0.1, style=Style.TENSOR_DOUBLE)
    assert [
        (value.tag, list(value.tensor.double_val))
        for event in events(journal.output)
        for value in event.summary.value
        if "loss" in value.tag
    ] == [("loss", [0.6000000000000001]), ("ranks/loss/min", [0.1]), ("ranks/loss/max", [1.1])]


def test_a_resumed_step_is_said_in_the_runs_own_file_alone() -> None:
    journal = begun(1)
    journal.scalar(0, 1, "sub\tloss", 1, 1.0)
    journal.open(1, 0, 1, resume=1)
    assert journal.last.sub_runs == []
    assert event_file.start_record(1.0, 1) in journal.last.join()


def test_a_fold_with_sub_runs_goes_on_from_its_state_with_the_same_bytes() -> None:
    whole, first = begun(2), begun(2)
    for journal in (whole, first):
        journal.scalar(0, 1, "sub\tloss", 0, 1.0)
        journal.scalar(0, 1, "b\tloss", 0, 1.0, style=Style.TENSOR_FLOAT)
    second = Journal(Fold.restore(first.fold.state(), ThreadPoolExecutor(1)))
    second.sequence = first.sequence
    for journal in (whole, second):
        journal.scalar(1, 1, "b\tloss", 0, 3.0, style=Style.TENSOR_FLOAT)
        journal.scalar(1, 1, "sub\tloss", 0, 3.0)
    assert whole.last.join("sub") == second.last.join("sub") != b""
    assert whole.output == first.output + second.output


def test_a_snapshot_of_another_format_is_refused() -> None:
    state = begun(1).fold.state() | {"format": 1}
    with pytest.raises(ValueError, match="a snapshot of format 1, this release reads 3"):
        Fold.restore(state, ThreadPoolExecutor(1))
