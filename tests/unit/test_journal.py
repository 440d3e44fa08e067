"""The journal: what is appended is read, what is torn is cut, what is damaged is reported."""

from __future__ import annotations

import errno
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranktap_wire import journal, limits
from ranktap_wire.checksum import crc32c
from ranktap_wire.journal import JournalError, JournalFullError, JournalReader, JournalWriter
from ranktap_wire.segment import START, Position, pack_frames, segment_path, segments, unpack_frames
from tests.support.journals import Read, flip_bit, read_journal, read_on

HEADER_BYTES = START.offset
GROUPS = [["a"], ["b", "c"], ["d", "e and eleven bytes more", "f"], ["g", "h"]]
"""What most tests append; the first frame of each entry."""


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(journal, "_READ_BYTES", 1 << 16)  # these journals are small, and many


def append(writer: JournalWriter, *names: str) -> int:
    """One group; each entry has two frames, the second one of 3 bytes."""
    return writer.append([[name.encode(), b"xyz"] for name in names])


def write(directory: Path, groups: list[list[str]] = GROUPS) -> list[int]:
    """Append the groups; the file's size after each, beginning with that of none."""
    writer = JournalWriter(directory)
    sizes = [writer.path.stat().st_size]
    for group in groups:
        append(writer, *group)
        sizes.append(writer.path.stat().st_size)
    writer.close()
    return sizes


def names(read: Read) -> list[str]:
    return [frame.decode() for frame in read.first_frames]


def open_descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def flat(groups: list[list[str]]) -> list[str]:
    return [name for group in groups for name in group]


# -- what is appended is read -----------------------------------------------------------


@given(
    st.lists(
        st.lists(st.lists(st.binary(max_size=20), max_size=4), min_size=1, max_size=4), max_size=5
    )
)
def test_entries_come_back_in_order_with_the_frames_they_had(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[list[bytes]]]
) -> None:
    directory = tmp_path_factory.mktemp("journal")
    writer = JournalWriter(directory)
    firsts = [writer.append(group) for group in groups]
    writer.close()
    read = read_journal(directory, writer.last)
    assert [*read.entries.values()] == [entry for group in groups for entry in group]
    assert firsts == [1 + sum(map(len, groups[:i])) for i in range(len(groups))]
    ends = [index + 1 == len(group) for group in groups for index in range(len(group))]
    assert [*read.ends_group.values()] == ends
    assert read.damages == []
    shutil.rmtree(directory)


def test_frames_of_every_kind_and_size_are_written(tmp_path: Path) -> None:
    column = np.arange(7, dtype=np.float64)
    large = os.urandom(3 * limits.MIB + 5)
    frames = [b"bytes", bytearray(b"array"), memoryview(b"view"), column, large, b""]
    writer = JournalWriter(tmp_path)
    writer.append([frames, [b"behind the large one"]])
    read = read_journal(tmp_path, 2)
    assert read.entries[1] == [b"bytes", b"array", b"view", column.tobytes(), large, b""]
    assert read.entries[2] == [b"behind the large one"]


def test_more_pieces_than_one_system_call_takes_are_all_written(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path)
    writer.append([[b"%d" % number] for number in range(1_500)])
    assert names(read_journal(tmp_path, 1_500)) == [str(number) for number in range(1_500)]


def test_frames_stand_at_multiples_of_eight_so_that_columns_are_read_in_place(
    tmp_path: Path,
) -> None:
    column = np.arange(5, dtype=np.int64)
    writer = JournalWriter(tmp_path)
    writer.append([[b"odd", column, b"odd again", column]])
    (entry,) = JournalReader(tmp_path).entries(1)
    for frame in entry.frames[1::2]:
        array = np.frombuffer(frame, np.int64)
        assert array.flags.aligned
        assert array.ctypes.data % 8 == 0
        assert array.tolist() == column.tolist()


def test_a_group_is_one_write_and_one_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = JournalWriter(tmp_path)
    calls = []
    true_writev = os.writev

    def writev(fd: int, views: list[memoryview]) -> int:
        calls.append("write")
        return true_writev(fd, views)

    monkeypatch.setattr(os, "writev", writev)
    monkeypatch.setattr(os, "fdatasync", lambda fd: calls.append("sync"))
    append(writer, "a", "b", "c")
    assert calls == ["write", "sync"]


def test_a_journal_goes_on_after_it_was_closed(tmp_path: Path) -> None:
    for group in GROUPS:
        write(tmp_path, [group])
    assert names(read_journal(tmp_path, 8)) == flat(GROUPS)


def test_reading_goes_on_from_every_position(tmp_path: Path) -> None:
    write(tmp_path)
    everything = read_journal(tmp_path, 8)
    for sequence, position in everything.after.items():
        rest = read_journal(tmp_path, 8, Position.parse(str(position)))
        assert names(rest) == flat(GROUPS)[sequence:]


@pytest.mark.parametrize("text", ["", "1", "1@2", "1@2+", "a@1+32", "1+2@3"])
def test_text_that_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Position.parse(text)


def test_an_entry_over_the_limit_is_refused_and_nothing_of_its_group_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ENTRY_BYTES", 1_000)
    writer = JournalWriter(tmp_path)
    append(writer, "a")
    with pytest.raises(ValueError, match=r"entry of 10\d\d bytes, at most 1000 allowed"):
        append(writer, "b", "c" * 1_000)
    append(writer, "d")
    assert names(read_journal(tmp_path, writer.last)) == ["a", "d"]


# -- a payload --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (b"", "without a frame table"),
        (b"\1\0\0\0", "without a frame table"),
        (struct.pack("<II", 2, 0) + bytes(8), "16 bytes for a table of 2 frames"),
        (struct.pack("<II", 0xFFFFFFFF, 0), "8 bytes for a table of 4294967295 frames"),
        (struct.pack("<IIQ", 1, 0, 1), "past the end"),
        (struct.pack("<IIQ", 1, 0, 1 << 63) + bytes(8), "past the end"),
    ],
)
def test_a_payload_that_is_none_is_refused(payload: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        unpack_frames(memoryview(payload))


@given(st.lists(st.binary(max_size=30), max_size=6))
def test_a_payload_holds_the_frames_that_it_was_made_of(frames: list[bytes]) -> None:
    payload = memoryview(b"".join(map(bytes, pack_frames(frames))))
    assert [bytes(frame) for frame in unpack_frames(payload)] == frames


# -- segments ---------------------------------------------------------------------------


def rolling(directory: Path, count: int, said: list[str] | None = None) -> JournalWriter:
    """A journal of one entry a segment, each segment begun with what was said before it."""
    said = [] if said is None else said
    writer = JournalWriter(
        directory, segment_bytes=HEADER_BYTES + 1, preamble=lambda: [[b"so far " + b"".join(
            name.encode() for name in said)]],
    )  # fmt: skip
    for number in range(count):
        said.append(str(number))
        append(writer, str(number))
    return writer


def test_a_full_segment_is_followed_by_one_that_begins_with_the_preamble(tmp_path: Path) -> None:
    writer = rolling(tmp_path, 3)
    # Entry 1; then a preamble and an entry each.
    assert segments(tmp_path) == [1, 2, 4]
    assert writer.last == 5
    assert names(read_journal(tmp_path, 5)) == ["0", "so far 01", "1", "so far 012", "2"]


def test_a_preamble_and_the_group_behind_it_are_one_group(tmp_path: Path) -> None:
    rolling(tmp_path, 2)
    assert read_journal(tmp_path, 3).ends_group == {1: True, 2: False, 3: True}


def test_the_number_of_a_group_is_that_of_its_first_entry_not_of_the_preamble(
    tmp_path: Path,
) -> None:
    writer = rolling(tmp_path, 2)
    assert append(writer, "a", "b") == 5


def test_a_segment_can_be_read_without_those_before_it(tmp_path: Path) -> None:
    rolling(tmp_path, 4)
    segment_path(tmp_path, 1).unlink()
    segment_path(tmp_path, 2).unlink()
    read = read_journal(tmp_path, 7, Position(3, 4, HEADER_BYTES))
    assert names(read) == ["so far 012", "2", "so far 0123", "3"]


def test_a_reader_follows_into_a_segment_that_began_while_it_waited(tmp_path: Path) -> None:
    said: list[str] = []
    writer = rolling(tmp_path, 1, said)
    reader = JournalReader(tmp_path)
    assert names(read_on(reader, writer.last)) == ["0"]
    said.append("1")
    append(writer, "1")
    assert names(read_on(reader, writer.last)) == ["so far 01", "1"]
    reader.close()


@pytest.mark.parametrize("left", [0, 1, 31, 32])
@pytest.mark.parametrize("zeros", [False, True], ids=["cut off", "zeros"])
def test_a_segment_that_was_cut_off_while_it_was_made_is_made_again_with_its_preamble(
    tmp_path: Path, left: int, zeros: bool
) -> None:
    rolling(tmp_path, 3).close()
    path = segment_path(tmp_path, 4)
    path.write_bytes(bytes(left) if zeros else path.read_bytes()[:left])
    writer = JournalWriter(tmp_path, preamble=lambda: [[b"so far"]])
    assert writer.last == 3
    append(writer, "again")
    assert segments(tmp_path) == [1, 2, 4]
    read = read_journal(tmp_path, writer.last)
    assert names(read) == ["0", "so far 01", "1", "so far", "again"]
    assert read.damages == []


@pytest.mark.parametrize("zeros", [0, 1, 31, 32, 100])
def test_a_first_segment_without_entries_is_an_empty_journal(tmp_path: Path, zeros: int) -> None:
    segment_path(tmp_path, 1).write_bytes(bytes(zeros))
    writer = JournalWriter(tmp_path, preamble=lambda: [[b"never"]])
    assert writer.last == 0
    append(writer, "a")
    assert names(read_journal(tmp_path, 1)) == ["a"]


def test_a_segment_whose_first_group_did_not_fit_still_begins_with_the_preamble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    writer = rolling(tmp_path, 1, said)
    with monkeypatch.context() as full:
        full.setattr(os, "writev", fails(errno.ENOSPC))
        with pytest.raises(JournalFullError):
            append(writer, "1")
    said.append("1")
    append(writer, "1")
    assert names(read_journal(tmp_path, writer.last)) == ["0", "so far 01", "1"]


def test_new_directories_are_synced_up_to_the_one_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").resolve())
    )
    JournalWriter(tmp_path / "runs" / "a" / "journal")
    assert {tmp_path, tmp_path / "runs", tmp_path / "runs" / "a"} <= set(synced)


# -- a torn tail ------------------------------------------------------------------------


def test_a_tail_torn_at_any_byte_takes_its_whole_group_and_nothing_else(tmp_path: Path) -> None:
    sizes = write(tmp_path / "whole")
    data = segment_path(tmp_path / "whole", 1).read_bytes()
    path = segment_path(tmp_path, 1)
    for size in range(sizes[-2], sizes[-1]):
        path.write_bytes(data[:size])
        writer = JournalWriter(tmp_path)
        assert writer.last == 6
        assert path.stat().st_size == sizes[-2]
        if size == sizes[-2]:
            assert writer.cut is None
        else:
            assert writer.cut is not None
            assert (writer.cut.offset, writer.cut.nbytes) == (sizes[-2], size - sizes[-2])
        append(writer, "new")
        writer.close()
        read = read_journal(tmp_path, 7)
        assert names(read) == [*flat(GROUPS[:-1]), "new"]
        assert read.damages == []


def test_zeros_in_place_of_any_tail_of_the_last_group_take_the_whole_group(tmp_path: Path) -> None:
    sizes = write(tmp_path / "whole")
    data = segment_path(tmp_path / "whole", 1).read_bytes()
    path = segment_path(tmp_path, 1)
    padding = 5  # of the last frame, which has 3 bytes
    for size in range(sizes[-2], sizes[-1] - padding):
        path.write_bytes(data[:size] + bytes(sizes[-1] - size))
        writer = JournalWriter(tmp_path)
        writer.close()
        assert (writer.last, path.stat().st_size) == (6, sizes[-2])
        assert writer.cut is not None
        assert names(read_journal(tmp_path, 6)) == flat(GROUPS[:-1])


@pytest.mark.parametrize("length", [1, 8, 32, 4_096])
def test_zeros_behind_the_last_group_are_cut_off(tmp_path: Path, length: int) -> None:
    sizes = write(tmp_path)
    path = segment_path(tmp_path, 1)
    path.write_bytes(path.read_bytes() + bytes(length))
    writer = JournalWriter(tmp_path)
    assert (writer.last, path.stat().st_size) == (8, sizes[-1])
    assert writer.cut is not None and writer.cut.nbytes == length


def test_a_hole_anywhere_in_the_last_group_takes_the_whole_group(tmp_path: Path) -> None:
    """A power cut may leave the end of a write without its beginning."""
    sizes = write(tmp_path / "whole", [["a"], ["b", "c", "d"]])
    data = segment_path(tmp_path / "whole", 1).read_bytes()
    path = segment_path(tmp_path, 1)
    for start in range(sizes[1], sizes[2] - 8, 8):
        for end in range(start + 8, sizes[2], 8):
            path.write_bytes(data[:start] + bytes(end - start) + data[end:])
            if path.read_bytes() == data:
                continue
            writer = JournalWriter(tmp_path)
            writer.close()
            assert (writer.last, path.stat().st_size) == (1, sizes[1])


def test_damage_that_reaches_into_the_last_group_does_not_save_the_rest_of_it(
    tmp_path: Path,
) -> None:
    sizes = write(tmp_path, [["a", "b"], ["c", "d"]])
    flip_bit(segment_path(tmp_path, 1), sizes[1] - 70, 0)  # b
    flip_bit(segment_path(tmp_path, 1), sizes[1] + 1, 0)  # c
    writer = JournalWriter(tmp_path)
    # Nothing is left that shows that the first group was ever synced.
    assert writer.last == 0


def test_an_entry_inside_a_torn_payload_is_not_believed(tmp_path: Path) -> None:
    """A client may send the bytes of a journal as a tensor."""
    write(tmp_path / "forged", [["x"]] * 30)
    forged = segment_path(tmp_path / "forged", 1).read_bytes()[HEADER_BYTES:]
    sizes = write(tmp_path, [["a"], ["b"]])
    writer = JournalWriter(tmp_path)
    writer.append([[b"c", forged]])
    writer.close()
    path = segment_path(tmp_path, 1)
    whole = path.stat().st_size
    for size in range(whole - len(forged), whole):
        os.truncate(path, size)
        writer = JournalWriter(tmp_path)
        writer.close()
        assert (writer.last, path.stat().st_size) == (2, sizes[2])
        writer = JournalWriter(tmp_path)
        writer.append([[b"c", forged]])
        writer.close()


# -- damage -----------------------------------------------------------------------------


def places(directory: Path, groups: list[list[str]]) -> Iterator[tuple[int, int, int]]:
    """(number of the entry, or 0; first byte; byte behind it) of a segment's parts."""
    yield 0, 0, HEADER_BYTES
    offset = HEADER_BYTES
    for number, position in read_journal(directory, len(flat(groups))).after.items():
        length = struct.unpack_from("<I", segment_path(directory, 1).read_bytes(), offset + 16)[0]
        yield number, offset, offset + HEADER_BYTES + length
        yield 0, offset + HEADER_BYTES + length, position.offset
        offset = position.offset


def test_a_flipped_bit_in_any_byte_costs_its_own_entry_and_is_never_passed_over_silently(
    tmp_path: Path,
) -> None:
    sizes = write(tmp_path / "whole")
    data = segment_path(tmp_path / "whole", 1).read_bytes()
    path = segment_path(tmp_path, 1)
    everything = dict(enumerate(flat(GROUPS), 1))
    for entry, first, end in places(tmp_path / "whole", GROUPS):
        for offset in range(first, end):
            path.write_bytes(data)
            flip_bit(path, offset, offset % 8)
            read = read_journal(tmp_path, 8)
            kept = {number: name for number, name in everything.items() if number != entry}
            assert {n: frames[0].decode() for n, frames in read.entries.items()} == kept
            assert read.lost == ([entry] if entry else [])
            assert bool(read.damages) == bool(entry or offset < HEADER_BYTES)
            writer = JournalWriter(tmp_path)
            if entry in (7, 8):
                assert writer.cut is not None
                assert (writer.last, path.stat().st_size) == (6, sizes[-2])
            else:
                assert writer.cut is None
                assert (writer.last, path.stat().st_size) == (8, sizes[-1])
            append(writer, "new")
            writer.close()
            read = read_journal(tmp_path, writer.last)
            assert names(read)[-1] == "new"
            assert read.lost == ([entry] if 0 < entry < 7 else [])


def test_damage_says_where_and_why(tmp_path: Path) -> None:
    sizes = write(tmp_path)
    path = segment_path(tmp_path, 1)
    flip_bit(path, sizes[1] + 40, 3)
    (damage,) = read_journal(tmp_path, 8).damages
    assert str(damage) == (
        f"{path}: entries 2 to 2 are damaged (from byte {sizes[1]}: checksum mismatch)"
    )
    flip_bit(path, 3, 3)
    damage = read_journal(tmp_path, 8).damages[0]
    assert str(damage) == (
        f"{path}: damaged at byte 0 (checksum mismatch of its header), no entry is lost"
    )


@pytest.mark.parametrize("first", range(1, 9))
def test_a_run_of_entries_that_is_wiped_out_is_one_damage(tmp_path: Path, first: int) -> None:
    write(tmp_path)
    after = read_journal(tmp_path, 8).after
    path = segment_path(tmp_path, 1)
    whole = path.read_bytes()
    start = HEADER_BYTES if first == 1 else after[first - 1].offset
    for last in range(first, 9):
        end = after[last].offset
        path.write_bytes(whole[:start] + b"\xff" * (end - start) + whole[end:])
        read = read_journal(tmp_path, 8)
        assert read.lost == [*range(first, last + 1)]
        assert len(read.damages) == 1
        assert len(read.entries) == 8 - len(read.lost)


def test_a_damaged_end_of_a_segment_is_reported_and_the_next_one_read(tmp_path: Path) -> None:
    rolling(tmp_path, 3)
    path = segment_path(tmp_path, 2)
    whole = path.read_bytes()
    for size in range(HEADER_BYTES, len(whole)):
        path.write_bytes(whole[:size])
        read = read_journal(tmp_path, 5)
        assert names(read)[-2:] == ["so far 012", "2"]
        assert {*read.entries, *read.lost} == {1, 2, 3, 4, 5}
        assert read.lost[-1] == 3


@pytest.mark.parametrize("segment", [1, 2])
@pytest.mark.parametrize("garbage", [bytes(64), b"\xff" * 77, b"x"])
def test_what_stands_behind_a_segments_last_entry_is_no_entry(
    tmp_path: Path, garbage: bytes, segment: int
) -> None:
    rolling(tmp_path, 3)
    path = segment_path(tmp_path, segment)
    path.write_bytes(path.read_bytes() + garbage)
    read = read_journal(tmp_path, 5)
    assert (len(read.entries), read.damages) == (5, [])


def test_a_whole_segment_that_is_gone_is_reported(tmp_path: Path) -> None:
    rolling(tmp_path, 4)
    segment_path(tmp_path, 4).unlink()
    read = read_journal(tmp_path, 7)
    assert read.lost == [4, 5]
    assert names(read) == ["0", "so far 01", "1", "so far 0123", "3"]


def test_a_reader_whose_own_segment_is_gone_says_which(tmp_path: Path) -> None:
    rolling(tmp_path, 3)
    segment_path(tmp_path, 1).unlink()
    with pytest.raises(JournalError, match=f"{1:020d}.journal: .*No such file"):
        read_journal(tmp_path, 5)


def test_damage_in_the_last_entry_told_of_does_not_hide_those_behind_it(tmp_path: Path) -> None:
    for broken_byte in (4, 40):  # of the head, of the payload
        directory = tmp_path / str(broken_byte)
        sizes = write(directory)
        flip_bit(segment_path(directory, 1), sizes[1] + broken_byte, 0)
        reader = JournalReader(directory)
        first = read_on(reader, 2)
        assert (names(first), first.lost) == (["a"], [2])
        # 3 to 8 were on disk already when 2 was the last that the reader was told of.
        rest = read_on(reader, 8)
        assert (names(rest), rest.damages) == (flat(GROUPS)[2:], [])
        reader.close()


# -- segments of others -----------------------------------------------------------------


def header(magic: bytes = b"ranktapJ", version: int = 1, first: int = 1) -> bytes:
    blank = struct.pack("<8sIIQQ", magic, version, 0, first, 0)
    return struct.pack("<8sIIQQ", magic, version, crc32c(blank), first, 0)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (header(version=2), "version 2 of the format, this release reads 1"),
        (header(first=7), "it begins with entry 7, its name says 1"),
        (b"something else entirely, of more than a header's length", "not a segment"),
        (header(magic=b"ranktapX") + b"\1" * 64, "not a segment"),
        (header()[:31] + b"\1" + b"\1" * 64, "not a segment"),
    ],
    ids=["version", "name", "text", "magic", "damaged, and no entry"],
)
def test_a_segment_of_something_else_is_refused_by_the_writer_and_left_as_it_is(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = segment_path(tmp_path, 1)
    path.write_bytes(content)
    descriptors = open_descriptors()
    with pytest.raises(JournalError, match=f"{path.name}: .*{complaint}"):
        JournalWriter(tmp_path)
    assert path.read_bytes() == content
    assert open_descriptors() == descriptors


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (header(version=2), "version 2 of the format, this release reads 1"),
        (header(first=7), "it begins with entry 7, its name says 1"),
    ],
    ids=["version", "name"],
)
def test_a_segment_of_something_else_is_refused_by_the_reader(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    segment_path(tmp_path, 1).write_bytes(content)
    with pytest.raises(JournalError, match=complaint):
        read_journal(tmp_path, 1)


def test_files_that_are_no_segments_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "notes.journal").write_text("mine")
    (tmp_path / "00000000000000000099.journal.bak").write_text("mine")
    assert segments(tmp_path) == [1]


# -- what the disk says -----------------------------------------------------------------


def fails(number: int) -> Callable[..., int]:
    def call(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    return call


def takes(nbytes: int, then: Callable[..., int]) -> Callable[..., int]:
    """A `writev` that takes so many bytes in all, one call a byte less, then does the other."""
    left = [nbytes]

    def writev(fd: int, views: list[memoryview]) -> int:
        if not left[0]:
            return then(fd, views)
        data = b"".join(views)[: min(left[0], 7)]
        left[0] -= len(data)
        return os.write(fd, data)

    return writev


def test_a_write_that_comes_in_pieces_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "writev", takes(1 << 60, fails(errno.EIO)))
    write(tmp_path)
    assert names(read_journal(tmp_path, 8)) == flat(GROUPS)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_at_any_byte_of_a_group_leaves_no_trace_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    sizes = write(tmp_path)
    path = segment_path(tmp_path, 1)
    before = path.read_bytes()
    writer = JournalWriter(tmp_path)
    for room in range(sizes[1] - HEADER_BYTES):
        with monkeypatch.context() as full:
            full.setattr(os, "writev", takes(room, fails(number)))
            with pytest.raises(JournalFullError, match=path.name):
                append(writer, "i")
        assert path.read_bytes() == before
    assert append(writer, "there is room again") == 9
    assert names(read_journal(tmp_path, 9)) == [*flat(GROUPS), "there is room again"]


def test_a_shorter_group_after_a_full_disk_is_not_followed_by_the_rest_of_the_longer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = JournalWriter(tmp_path)
    append(writer, "a")
    with monkeypatch.context() as full:
        full.setattr(os, "writev", takes(300, fails(errno.ENOSPC)))
        with pytest.raises(JournalFullError):
            append(writer, "b", "c", "d", "e", "f", "g")
    append(writer, "b")
    writer.close()
    assert JournalWriter(tmp_path).cut is None
    assert names(read_journal(tmp_path, 2)) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "error", "kind"),
    [
        ("open", errno.ENOSPC, JournalFullError),
        ("open", errno.EMFILE, JournalError),
        ("write", errno.ENOSPC, JournalFullError),
        ("fdatasync", errno.ENOSPC, JournalFullError),
        ("fdatasync", errno.EIO, JournalError),
        ("fsync", errno.EIO, JournalError),
    ],
)
def test_a_segment_that_cannot_be_made_is_made_when_it_can(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    error: int,
    kind: type[JournalError],
) -> None:
    writer = rolling(tmp_path, 1)
    with monkeypatch.context() as broken:
        broken.setattr(os, name, fails(error))
        with pytest.raises(kind) as raised:
            append(writer, "1")
    assert type(raised.value) is kind
    assert segments(tmp_path) == [1]
    append(writer, "1")
    assert names(read_journal(tmp_path, writer.last)) == ["0", "so far 0", "1"]


def test_an_interrupted_write_is_taken_back_and_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python itself repeats a call that a signal interrupts, unless the handler raises.
    writer = JournalWriter(tmp_path)
    append(writer, "a")
    with monkeypatch.context() as interrupted:
        interrupted.setattr(os, "writev", takes(11, fails(errno.EINTR)))
        with pytest.raises(JournalError, match="Interrupted"):
            append(writer, "b")
    append(writer, "c")
    assert names(read_journal(tmp_path, 2)) == ["a", "c"]


def test_a_disk_that_takes_nothing_without_an_error_does_not_hang_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = JournalWriter(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(os, "writev", takes(11, lambda *_: 0))
        with pytest.raises(JournalError, match="nothing was written"):
            append(writer, "a")
    append(writer, "b")
    assert names(read_journal(tmp_path, 1)) == ["b"]


def test_after_a_failed_sync_nothing_is_appended_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = JournalWriter(tmp_path)
    append(writer, "a")
    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fails(errno.EIO))
        with pytest.raises(JournalError, match=r"sync: .*Input/output error"):
            append(writer, "b")
    # The disk says nothing more, but what was dirty may be gone: a second sync proves nothing.
    for _ in range(2):
        with pytest.raises(JournalError, match="sync"):
            append(writer, "c")
    assert writer.last == 1


def test_a_group_whose_sync_failed_is_not_counted_by_who_opens_the_journal_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = JournalWriter(tmp_path)
    append(writer, "a")
    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fails(errno.EIO))
        with pytest.raises(JournalError):
            append(writer, "b")
    writer.close()
    # It is still in the page cache, from where it would be read, synced and acknowledged.
    writer = JournalWriter(tmp_path)
    assert writer.last == 1
    append(writer, "c")
    assert names(read_journal(tmp_path, 2)) == ["a", "c"]


def test_a_group_that_cannot_be_taken_back_ends_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = JournalWriter(tmp_path)
    append(writer, "a")
    with monkeypatch.context() as broken:
        broken.setattr(os, "writev", takes(20, fails(errno.ENOSPC)))
        broken.setattr(os, "ftruncate", fails(errno.EIO))
        with pytest.raises(JournalError, match=r"No space left.*then.*Input/output error"):
            append(writer, "b")
    with pytest.raises(JournalError):
        append(writer, "c")
    writer.close()
    writer = JournalWriter(tmp_path)
    assert writer.cut is not None
    append(writer, "d")
    assert names(read_journal(tmp_path, 2)) == ["a", "d"]


@pytest.mark.parametrize(
    ("name", "error", "kind"),
    [
        ("open", errno.EACCES, JournalError),
        ("open", errno.ENOSPC, JournalFullError),
        ("fdatasync", errno.EIO, JournalError),
        ("ftruncate", errno.EIO, JournalError),
    ],
)
def test_a_journal_that_cannot_be_opened_says_so_and_keeps_no_descriptor(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    error: int,
    kind: type[JournalError],
) -> None:
    write(tmp_path)
    path = segment_path(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-10])
    descriptors = open_descriptors()
    with monkeypatch.context() as broken:
        broken.setattr(os, name, fails(error))
        with pytest.raises(kind, match=str(tmp_path)) as raised:
            JournalWriter(tmp_path)
    assert type(raised.value) is kind
    assert open_descriptors() == descriptors
    assert JournalWriter(tmp_path).last == 6


def test_a_directory_that_cannot_be_made_is_an_error_of_the_journal(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="File name too long"):
        JournalWriter(tmp_path / ("n" * 256) / "journal")


# -- reading what is being written ------------------------------------------------------


def test_a_reader_never_goes_past_what_it_was_told(tmp_path: Path) -> None:
    write(tmp_path)
    reader = JournalReader(tmp_path)
    for told in (0, 1, 1, 5, 8):
        before = reader.position.sequence
        assert names(read_on(reader, told)) == flat(GROUPS)[before:told]
        assert reader.position.sequence == told
    assert names(read_on(reader, 3)) == []
    reader.close()


def test_bytes_that_were_half_written_when_they_were_read_ahead_are_read_again(
    tmp_path: Path,
) -> None:
    sizes = write(tmp_path / "whole")
    data = segment_path(tmp_path / "whole", 1).read_bytes()
    path = segment_path(tmp_path, 1)
    for written in range(sizes[1], sizes[2]):
        # The second group is under way: partly there, and not what it will be.
        path.write_bytes(data[:written] + b"\xff" * (sizes[2] - written))
        reader = JournalReader(tmp_path)
        assert names(read_on(reader, 1)) == ["a"]
        path.write_bytes(data)
        rest = read_on(reader, 8)
        assert (names(rest), rest.damages) == (flat(GROUPS)[1:], [])
        reader.close()


def test_entries_keep_their_bytes_while_the_reader_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_READ_BYTES", 100)
    write(tmp_path)
    reader = JournalReader(tmp_path)
    entries = [*reader.entries(8)]
    reader.close()
    assert [bytes(entry.frames[0]).decode() for entry in entries] == flat(GROUPS)


def test_a_reader_opened_again_after_close_goes_on_where_it_was(tmp_path: Path) -> None:
    write(tmp_path)
    reader = JournalReader(tmp_path)
    read_on(reader, 3)
    reader.close()
    reader.close()
    assert names(read_on(reader, 8)) == flat(GROUPS)[3:]
    reader.close()
