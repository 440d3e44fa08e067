import mmap
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c as tensorboards_crc

from ranktapd import event_file
from ranktapd.event_file import (
    Ending,
    Scan,
    checkpoint_record,
    file_name,
    frame,
    header,
    later_name,
    read_checkpoint,
    scan,
    start_record,
    version_record,
)


def scalar(step: int, tag: str = "loss", wall_time: float = 1.5) -> bytes:
    summary = Summary(value=[Summary.Value(tag=tag, simple_value=0.25)])
    return frame(Event(wall_time=wall_time, step=step, summary=summary).SerializeToString())


def payload_of(record: bytes) -> bytes:
    return record[event_file.HEADER_BYTES : -event_file.TRAILER_BYTES]


def event_of(record: bytes) -> Event:
    return Event.FromString(payload_of(record))


RECORDS = [
    version_record(1.5),
    start_record(1.5, 0),
    scalar(1),
    checkpoint_record(1.5, "0:100"),
    scalar(2),
    scalar(3, tag="a rather longer tag/with a part"),
    checkpoint_record(1.5, "0:200"),
    scalar(4),
    scalar(5, wall_time=0.0),
]
WHOLE = b"".join(RECORDS)
ENDS = [sum(map(len, RECORDS[:count])) for count in range(len(RECORDS) + 1)]


def expected_scan(ending: Ending, whole_records: int) -> Scan:
    """What a scan must say of RECORDS of which only the first ones are whole."""
    checkpoints = {0: (None, 0), 4: ("0:100", 4), 7: ("0:200", 7)}
    position, count = checkpoints[max(n for n in checkpoints if n <= whole_records)]
    return Scan(ending, ENDS[whole_records], whole_records, position, ENDS[count], count)


# -- records ------------------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_a_frame_is_length_and_payload_each_with_its_masked_checksum(payload: bytes) -> None:
    length = struct.pack("<Q", len(payload))
    assert frame(payload) == (
        length
        + struct.pack("<I", tensorboards_crc(length))
        + payload
        + struct.pack("<I", tensorboards_crc(payload))
    )


def test_a_frame_takes_any_contiguous_buffer() -> None:
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = frame(numbers.tobytes())
    assert frame(numbers) == expected
    assert frame(memoryview(numbers)) == expected
    assert frame(bytearray(numbers.tobytes())) == expected


def test_a_file_begins_with_the_version_that_tensorboard_expects() -> None:
    event = event_of(version_record(12.5))
    assert event.wall_time == 12.5
    assert event.file_version == "brain.Event:2"
    assert event.source_metadata.writer == "ranktap"


def test_a_start_record_names_its_step() -> None:
    event = event_of(start_record(12.5, 700))
    assert (event.wall_time, event.step) == (12.5, 700)
    assert event.session_log.status == SessionLog.START


@given(st.text(), st.floats(allow_nan=False))
@example("", 0.0)
@example("3:4096", -0.0)
def test_a_checkpoint_is_read_back(position: str, wall_time: float) -> None:
    record = checkpoint_record(wall_time, position)
    assert event_of(record).session_log.status == SessionLog.CHECKPOINT
    assert read_checkpoint(payload_of(record)) == position


@pytest.mark.parametrize(
    "event",
    [
        Event(),
        Event(wall_time=1.5),
        Event(wall_time=1.5, session_log=SessionLog(status=SessionLog.START, msg="ranktap:1")),
        Event(wall_time=1.5, session_log=SessionLog(status=SessionLog.CHECKPOINT, msg="other:1")),
        Event(wall_time=1.5, session_log=SessionLog(status=SessionLog.CHECKPOINT)),
        Event(wall_time=1.5, file_version="ranktap:1"),
        # A step of 58 puts the byte of session_log's key where a checkpoint has it.
        Event(step=58, summary=Summary(value=[Summary.Value(tag="ranktap:1")])),
        Event(summary=Summary(value=[Summary.Value(tag="abc:ranktap:1")])),
    ],
    ids=str,
)
def test_other_events_are_no_checkpoints(event: Event) -> None:
    assert read_checkpoint(event.SerializeToString()) is None


@pytest.mark.parametrize(
    "payload", [b"", b":", b"\x09", b"\x09" + bytes(8), b":\xff\xff", b":" * 99]
)
def test_a_payload_that_is_no_event_is_no_checkpoint(payload: bytes) -> None:
    assert read_checkpoint(payload) is None


@given(st.binary(max_size=40))
def test_any_bytes_can_be_asked_for_a_checkpoint(payload: bytes) -> None:
    read_checkpoint(payload)


# -- reading ------------------------------------------------------------------------------


def test_a_whole_file_is_complete_up_to_its_last_checkpoint_and_behind() -> None:
    result = scan(WHOLE)
    assert result == Scan(
        ending=Ending.COMPLETE,
        end=len(WHOLE),
        records=9,
        checkpoint="0:200",
        checkpoint_end=ENDS[7],
        checkpoint_records=7,
    )
    assert result.records_behind == 2


def test_a_checkpoint_at_time_zero_counts() -> None:
    # proto3 leaves a wall time of 0 out, which moves the fields behind it.
    data = checkpoint_record(1.5, "0:1") + checkpoint_record(0.0, "0:2") + scalar(1)
    assert scan(data).checkpoint == "0:2"


def test_an_empty_file_is_complete() -> None:
    assert scan(b"") == Scan(Ending.COMPLETE, 0, 0, None, 0, 0)


def test_a_file_cut_at_any_byte_is_torn_behind_its_last_whole_record() -> None:
    for cut in range(len(WHOLE)):
        whole = max(count for count, end in enumerate(ENDS) if end <= cut)
        ending = Ending.COMPLETE if cut in ENDS else Ending.TORN
        assert scan(WHOLE[:cut]) == expected_scan(ending, whole), cut


def test_a_cut_file_whose_tail_is_zeros_is_torn() -> None:
    # The size of a file can reach the disk before its data does.
    for cut in range(len(WHOLE)):
        data = WHOLE[:cut] + bytes(100)
        # A record may end in zeros of its own.
        whole = max(n for n, end in enumerate(ENDS) if data.startswith(WHOLE[:end]))
        assert scan(data) == expected_scan(Ending.TORN, whole), cut


def test_a_changed_byte_anywhere_ends_what_is_whole_before_its_record() -> None:
    for changed in range(len(WHOLE)):
        data = bytearray(WHOLE)
        data[changed] ^= 0x10
        whole = max(count for count, end in enumerate(ENDS) if end <= changed)
        in_last_record = whole == len(RECORDS) - 1
        # A record of which only the payload or its checksum is wrong has nothing behind it
        # if it is the last; a wrong header says nothing of where the record ends.
        in_header = changed - ENDS[whole] < event_file.HEADER_BYTES
        ending = Ending.TORN if in_last_record and not in_header else Ending.CORRUPT
        assert scan(data) == expected_scan(ending, whole), changed


def test_a_record_written_behind_a_torn_one_is_corrupt() -> None:
    torn = WHOLE[: ENDS[6] - 3]
    assert scan(torn + scalar(9)) == expected_scan(Ending.CORRUPT, 5)


def test_a_length_beyond_the_end_of_the_file_is_torn() -> None:
    assert scan(WHOLE + header(1 << 62)) == expected_scan(Ending.TORN, len(RECORDS))


def test_empty_and_short_payloads_are_records() -> None:
    data = b"".join(frame(b":" * length) for length in range(12)) + frame(b"")
    assert scan(data) == Scan(Ending.COMPLETE, len(data), 13, None, 0, 0)


@pytest.mark.parametrize("block_bytes", [1, 13, 64, 100])
def test_records_that_cross_blocks_are_read_whole(
    block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_file, "_BLOCK_BYTES", block_bytes)
    test_a_whole_file_is_complete_up_to_its_last_checkpoint_and_behind()
    test_a_file_cut_at_any_byte_is_torn_behind_its_last_whole_record()
    test_a_changed_byte_anywhere_ends_what_is_whole_before_its_record()


def test_a_record_may_be_larger_than_a_block() -> None:
    large = frame(bytes(3 << 20))
    assert scan(RECORDS[0] + large + RECORDS[3]).checkpoint_records == 3
    assert scan(RECORDS[0] + large[:-1]) == Scan(Ending.TORN, len(RECORDS[0]), 1, None, 0, 0)


def test_a_mapped_file_is_read_and_can_be_closed_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_bytes(WHOLE)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        assert scan(data) == expected_scan(Ending.COMPLETE, len(RECORDS))


def test_tensorboard_reads_the_records_in_order(tmp_path: Path) -> None:
    path = tmp_path / file_name(1_700_000_000, "host", 1, 0, "")
    path.write_bytes(WHOLE)
    events = list(EventFileLoader(str(path)).Load())
    assert [event.WhichOneof("what") for event in events] == [
        "file_version",
        "session_log",
        "summary",
        "session_log",
        "summary",
        "summary",
        "session_log",
        "summary",
        "summary",
    ]
    assert [event.step for event in events if event.HasField("summary")] == [1, 2, 3, 4, 5]


# -- names --------------------------------------------------------------------------------


def test_a_name_is_as_tensorboards_own_writer_gives_it() -> None:
    assert (
        file_name(1_700_000_000, "node-7.cluster", 4242, 3, ".fold1")
        == "events.out.tfevents.1700000000.node-7.cluster.4242.3.fold1"
    )


def test_the_time_in_a_name_has_ten_digits() -> None:
    assert file_name(5, "h", 1, 0, "").startswith("events.out.tfevents.0000000005.h")
    for created in (-1, 10**10):
        with pytest.raises(ValueError, match=f"not {created}"):
            file_name(created, "h", 1, 0, "")


@given(st.text(), st.text(max_size=400))
@example("../../etc/passwd", "/../x\0\n")
@example("", "")
@example("h" * 300, "\N{SNOWMAN}" * 300)
def test_no_host_or_suffix_leaves_the_directory_or_the_length_of_a_name(
    host: str, suffix: str
) -> None:
    name = file_name(1_700_000_000, host, 2**22, 2**32, suffix)
    assert "/" not in name
    assert not any(ord(character) < 32 or ord(character) == 127 for character in name)
    assert len(name.encode()) <= 255
    assert name.startswith("events.out.tfevents.1700000000.")


def test_a_later_name_has_the_present_time_when_the_clock_has_passed_the_last_one() -> None:
    old = file_name(1_700_000_000, "z", 99, 9, "")
    assert later_name([old], 1_700_000_050, "a", 1, 0, "") == file_name(
        1_700_000_050, "a", 1, 0, ""
    )
    assert later_name([], 1_700_000_050, "a", 1, 0, "") == file_name(1_700_000_050, "a", 1, 0, "")


def test_a_later_name_passes_the_last_one_when_the_clock_has_not() -> None:
    existing = [file_name(1_700_000_000 + second, "z", 99, 9, "") for second in (7, 0, 3)]
    for now in (0, 1_600_000_000, 1_700_000_007):
        assert later_name(existing, now, "a", 1, 0, "") == file_name(1_700_000_008, "a", 1, 0, "")


@given(
    st.lists(
        st.builds(
            "events.out.tfevents.{}{}".format,
            st.from_regex(r"[0-8][0-9]{0,14}", fullmatch=True),
            st.sampled_from(["", ".host.1.0", ".v2", ".~"]),
        )
    ),
    st.integers(0, 2**32),
)
def test_a_later_name_sorts_behind_all_existing_ones(existing: list[str], now: int) -> None:
    name = later_name(existing, now, "host", 1, 0, "")
    assert sorted([name, *existing])[-1] == name
    assert name not in existing


def test_names_of_other_files_do_not_count() -> None:
    names = ["journal", "events.out.tfevents.latest", "zz.tfevents.9999999999"]
    assert later_name(names, 5, "h", 1, 0, "") == file_name(5, "h", 1, 0, "")


def test_there_is_no_name_behind_the_last_second_of_ten_digits() -> None:
    with pytest.raises(ValueError, match="10000000000"):
        later_name([file_name(10**10 - 1, "h", 1, 0, "")], 5, "h", 1, 0, "")
