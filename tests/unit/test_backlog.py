"""What is not acknowledged: the order of memory and disk, full and failing disks, damage."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from ranktap.backlog import RETRY_S, Backlog
from ranktap.outbox import Outbox, Sealed
from ranktap.spool import Spool
from ranktap.spooled import InUseError, Loaded
from ranktap_wire import frames
from ranktap_wire.journal import JournalFullError, JournalWriter
from ranktap_wire.messages import BatchMessage, Hello
from ranktap_wire.records import Across, Batch, Columns, scalar_code
from tests.support.messages import as_bytes

SESSION = bytes(range(16))
MEMORY = 1 << 20


def hello(session: bytes = SESSION) -> Hello:
    return Hello(session, "a/run", 3, 4, "host", 1, 1, 0.0)


def batch(number: int, rows: int = 1) -> Batch:
    """A batch that says which one it is."""
    columns = Columns(
        ["tag"], np.full(1, scalar_code(Across.MEAN), np.uint8), np.zeros(rows, np.int32),
        np.full(rows, number, np.int64), np.zeros(rows), np.full(rows, float(number)),
    )  # fmt: skip
    return Batch(columns)


def sealed(number: int, rows: int = 1) -> Sealed:
    made = batch(number, rows)
    return Sealed(made, 28 * rows, 0)


def number_in(item: Sealed | Loaded) -> int:
    """Which batch it is, as a daemon would read it; 0 for an empty one."""
    if isinstance(item, Loaded):
        message = frames.read_message([memoryview(part) for part in as_bytes(item.parts)])
        assert isinstance(message, BatchMessage)
        assert message.number == item.number
        found = message.batch
    else:
        found = item.batch
    return 0 if found.columns is None else int(found.columns.step[0])


class Side:
    """A backlog, and what has come out of it."""

    def __init__(self, root: Path, segment_bytes: int = 1 << 12) -> None:
        self.spool = Spool(root, hello(), segment_bytes=segment_bytes)
        self.outbox = Outbox(MEMORY)
        self.backlog = Backlog(self.outbox, self.spool)
        self.now = 0.0

    def push(self, *numbers: int, rows: int = 1) -> None:
        for number in numbers:
            self.backlog.push(sealed(number, rows))

    def keep(self) -> None:
        self.backlog.keep(self.now, 1.0)

    def due(self) -> list[int]:
        """What is to be sent now."""
        found = []
        while (numbered := self.backlog.due(self.now)) is not None:
            assert number_in(numbered.batch) in (0, numbered.number)
            found.append(numbered.number)
        return found


@pytest.fixture
def side(tmp_path: Path) -> Side:
    return Side(tmp_path / "spool")


def full(*arguments: object) -> None:
    raise JournalFullError("No space left on device")


def test_without_need_nothing_touches_the_disk(side: Side) -> None:
    side.push(1, 2, 3)
    assert side.due() == [1, 2, 3]
    side.backlog.acknowledged(3)
    side.keep()
    assert not side.spool.root.exists()


def test_what_went_to_disk_comes_back_in_order_and_what_follows_goes_behind_it(side: Side) -> None:
    side.push(1, 2, 3)
    assert side.due() == [1, 2, 3]
    side.keep()
    side.push(4, 5)
    assert side.backlog.kept == 3
    side.keep()
    assert (side.backlog.kept, side.backlog.held_bytes) == (5, 0)
    # What was in flight is sent again: it is not known to have arrived.
    assert side.due() == [1, 2, 3, 4, 5]
    assert len(side.backlog) == 5 and side.backlog.unsent == 0
    side.backlog.acknowledged(2)
    side.backlog.rewind()
    assert side.due() == [3, 4, 5]
    side.backlog.acknowledged(5)
    assert not side.backlog.is_on_disk and not len(side.backlog)
    side.push(6)
    assert side.due() == [6], "memory again"
    assert [*side.spool.root.rglob("*")] == []


def test_acknowledgements_of_what_was_not_read_back_yet_are_taken(side: Side) -> None:
    side.push(*range(1, 6))
    side.keep()
    side.backlog.acknowledged(3)
    assert side.backlog.first_unacknowledged == 4
    assert side.due() == [4, 5]


def test_the_outboxs_memory_is_free_once_a_batch_is_on_disk(side: Side) -> None:
    for number in range(1, 4):
        side.outbox.rows += (0, number, 0.0, float(number)) * 1_000
        side.outbox.add_tag("tag", Across.MEAN)
        taken = side.outbox.take()
        assert taken is not None
        side.backlog.push(taken)
    limit = side.outbox.row_limit
    side.keep()
    assert side.outbox.row_limit > limit
    assert side.outbox.row_limit == Outbox(MEMORY).row_limit


def test_segments_are_deleted_as_their_batches_arrive(side: Side) -> None:
    for number in range(1, 41):
        side.push(number, rows=20)
        side.keep()
    before = len([*side.spool.directory.glob("*.journal")])
    assert before > 3
    assert side.due() == list(range(1, 41))
    side.backlog.acknowledged(30)
    after = len([*side.spool.directory.glob("*.journal")])
    assert 0 < after < before / 2
    side.backlog.acknowledged(40)
    assert not side.spool.directory.exists()


def test_a_disk_that_is_full_at_the_beginning_changes_nothing(
    side: Side, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    side.push(1, 2, 3)
    with monkeypatch.context() as patch:
        patch.setattr(JournalWriter, "append", full)
        side.keep()
        side.now += RETRY_S
        side.keep()
    assert side.backlog.kept == 0
    assert not side.spool.directory.exists()
    assert side.due() == [1, 2, 3]
    assert caplog.text.count("the spool takes nothing: No space left on device") == 1
    side.now += RETRY_S
    side.keep()
    assert side.backlog.kept == 3
    assert "takes batches again" in caplog.text


def test_behind_a_disk_that_is_full_batches_wait_in_memory_and_arrive_after_those_on_it(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    side.push(1, 2)
    side.keep()
    with monkeypatch.context() as patch:
        patch.setattr(JournalWriter, "append", full)
        side.push(3, 4)
        side.keep()
        assert side.backlog.kept == 2 and side.backlog.held_bytes == 2 * 28
        assert side.due() == [1, 2]
        side.backlog.acknowledged(2)
        assert side.due() == [3, 4], "from memory, as nothing is left on disk"
    side.backlog.acknowledged(4)
    assert not len(side.backlog)


def test_a_full_disk_is_asked_again_only_after_a_while_but_at_the_end_once_more(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def count(*arguments: object) -> None:
        asked.append(1)
        full()

    side.push(1)
    with monkeypatch.context() as patch:
        patch.setattr(JournalWriter, "append", count)
        for _ in range(10):
            side.keep()
        assert len(asked) == 1
        side.backlog.keep(side.now, 1.0, is_last=True)
        assert len(asked) == 2
    side.backlog.keep(side.now, 1.0, is_last=True)
    assert side.backlog.kept == 1


def test_a_disk_that_cannot_be_written_at_all_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "spool").write_text("a file")
    side = Side(tmp_path / "spool")
    side.push(1)
    side.keep()
    assert side.due() == [1]
    assert "the spool takes nothing" in caplog.text


def test_in_place_of_a_damaged_batch_an_empty_one_comes_and_it_is_counted(
    side: Side, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1, 5):
        side.push(number)
        side.keep()
    segment = side.spool.directory / f"{1:020d}.journal"
    content = bytearray(segment.read_bytes())
    places = [at for at in range(len(content)) if content.startswith(b"tag", at)]
    content[places[1]] ^= 0xFF
    segment.write_bytes(content)
    found = []
    while (numbered := side.backlog.due(side.now)) is not None:
        found.append((numbered.number, number_in(numbered.batch)))
    assert found == [(1, 1), (2, 0), (3, 3), (4, 4)]
    assert side.outbox.dropped == 1
    assert "damaged and lost" in caplog.text
    side.backlog.acknowledged(4)
    (kept,) = [path for path in side.spool.directory.iterdir() if path.is_file()]
    assert kept.name.endswith(".journal.damaged")


def test_a_failed_sync_is_followed_by_a_new_writer(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    side.push(1)
    side.keep()
    with monkeypatch.context() as patch:

        def fail(fd: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        patch.setattr("os.fdatasync", fail)
        side.push(2)
        side.keep()
    assert side.backlog.kept == 1
    side.now += RETRY_S
    side.keep()
    assert side.backlog.kept == 2
    assert side.due() == [1, 2]


def test_two_sessions_in_one_directory_are_apart(tmp_path: Path) -> None:
    spools = [Spool(tmp_path, hello(bytes([each]) * 16)) for each in (1, 2)]
    for spool in spools:
        spool.append([(1, batch(1))], 1.0)
    assert spools[0].directory != spools[1].directory
    spools[0].clear()
    loaded = spools[1].read()
    assert loaded is not None and number_in(loaded) == 1


def test_a_session_that_another_process_has_cannot_be_taken(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def held(*arguments: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(fcntl, "lockf", held)
    with pytest.raises(InUseError, match="another process has it in hand"):
        side.spool.append([(1, batch(1))], 1.0)
