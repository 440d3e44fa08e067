import math
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.util import tensor_util
from torch.utils.tensorboard import summary as torch_summary

from ranktap_wire.records import Style
from ranktapd import scalar_encoder
from ranktapd.event_file import Ending, file_name, frame, scan, version_record
from ranktapd.scalar_encoder import ScalarEncoder

Row = tuple[int, int, float, float]
"""Tag index, step, wall time, value."""


def protobufs_value(tag: str, value: float, style: Style) -> Summary.Value:
    value = math.nan if math.isnan(value) else value
    with np.errstate(all="ignore"):
        narrow = float(np.float32(value))
    if style is Style.SIMPLE:
        return Summary.Value(tag=tag, simple_value=narrow)
    plugin = SummaryMetadata.PluginData(plugin_name="scalars")
    tensor = (
        TensorProto(dtype="DT_FLOAT", float_val=[narrow])
        if style is Style.TENSOR_FLOAT
        else TensorProto(dtype="DT_DOUBLE", double_val=[value])
    )
    return Summary.Value(tag=tag, tensor=tensor, metadata=SummaryMetadata(plugin_data=plugin))


def protobufs_records(
    tags: Sequence[bytes], rows: Sequence[Row], style: Style = Style.SIMPLE
) -> bytes:
    """What the encoder must equal, made by protobuf."""
    records = []
    for tag, step, wall_time, value in rows:
        scalar = protobufs_value(tags[tag].decode(), value, style)
        event = Event(wall_time=wall_time, step=step, summary=Summary(value=[scalar]))
        records.append(frame(event.SerializeToString()))
    return b"".join(records)


def encode(encoder: ScalarEncoder, tags: Sequence[bytes], rows: Sequence[Row]) -> bytes:
    tag_index, step, wall_time, value = zip(*rows, strict=True) if rows else ((), (), (), ())
    return bytes(
        encoder.encode(
            tags,
            np.array(tag_index, np.int32),
            np.array(step, np.int64),
            np.array(wall_time, np.float64),
            np.array(value, np.float64),
        )
    )


def assert_both_ways_equal_protobuf(
    tags: Sequence[bytes], rows: Sequence[Row], style: Style
) -> None:
    """Row by row, by columns, and by columns in several blocks."""
    expected = protobufs_records(tags, rows, style)
    for few_rows, block_rows in ((len(rows) + 1, 1), (0, len(rows) + 1), (0, 3)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scalar_encoder, "_FEW_ROWS", few_rows)
            patch.setattr(scalar_encoder, "_BLOCK_ROWS", block_rows)
            assert encode(ScalarEncoder(style), tags, rows) == expected


def float_of_bits(bits: int) -> float:
    value: float = struct.unpack("<d", struct.pack("<Q", bits))[0]
    return value


STEPS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 300),
    st.integers(1, 8).flatmap(
        lambda digits: st.integers(-2, 2).map(lambda d: 2 ** (7 * digits) + d)
    ),
    st.sampled_from([0, -1, 2**62, 2**63 - 1, -(2**63)]),
)
WALL_TIMES = st.one_of(
    st.floats(1.6e9, 2e9), st.floats(allow_nan=False), st.sampled_from([0.0, -0.0, 5e-324])
)
VALUES = st.one_of(
    st.floats(),
    st.floats(width=32),
    st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan, 1e39, -1e39, 1e-40, 1e-46, 5e-324]),
    # Between the largest float32 and what rounds to infinity.
    st.sampled_from([3.4028234663852886e38, 3.4028235677973362e38, 3.4028235677973366e38]),
)
TAGS = st.lists(
    st.one_of(
        st.text(max_size=12),
        # Around the lengths at which a length in front of the tag takes a second byte.
        st.integers(100, 130).map(lambda length: "x" * length),
        st.integers(990, 1000).map(lambda length: "y" * length),
    ).map(str.encode),
    min_size=1,
    max_size=5,
)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[bytes], list[Row]]:
    tags = draw(TAGS)
    row = st.tuples(st.integers(0, len(tags) - 1), STEPS, WALL_TIMES, VALUES)
    return tags, draw(st.lists(row, max_size=12))


@pytest.mark.parametrize("style", Style)
@given(batches())
@example(([b"", b"x"], [(0, 0, 0.0, 1.0), (1, -1, 1.5, 1.0), (0, -1, 0.0, 1.0), (0, 0, 1.5, 1.0)]))
def test_records_equal_what_protobuf_makes_of_the_event(
    style: Style, batch: tuple[list[bytes], list[Row]]
) -> None:
    assert_both_ways_equal_protobuf(*batch, style)


@pytest.mark.parametrize("value", [0.1, -0.0, 3e38, 1e39, 5e-324, math.inf, math.pi])
@pytest.mark.parametrize(
    ("style", "arguments"),
    [
        (Style.SIMPLE, {}),
        (Style.TENSOR_FLOAT, {"new_style": True}),
        (Style.TENSOR_DOUBLE, {"new_style": True, "double_precision": True}),
    ],
)
def test_a_style_is_one_of_torchs(style: Style, arguments: dict[str, bool], value: float) -> None:
    theirs = Event(wall_time=1.5, step=7, summary=torch_summary.scalar("loss", value, **arguments))
    ours = encode(ScalarEncoder(style), [b"loss"], [(0, 7, 1.5, value)])
    assert ours == frame(theirs.SerializeToString())


@pytest.mark.parametrize("style", Style)
def test_every_tag_length_equals_protobuf(style: Style) -> None:
    tags = [b"t" * length for length in range(1001)]
    rows = [(tag, tag, 1.7e9 + tag, tag / 3) for tag in range(len(tags))]
    assert encode(ScalarEncoder(style), tags, rows) == protobufs_records(tags, rows, style)


def test_every_step_length_equals_protobuf_beside_every_other() -> None:
    steps = [0, -1, *(sign * 2**bits for bits in range(63) for sign in (1, -1))]
    rows = [(0, step, 1.7e9, 0.5) for step in steps]
    assert encode(ScalarEncoder(), [b"loss"], rows) == protobufs_records([b"loss"], rows)


@pytest.mark.parametrize("style", Style)
def test_a_large_batch_of_many_layouts_keeps_the_order_of_its_rows(style: Style) -> None:
    random = np.random.default_rng(0)
    tags = [b"layer/%d" % index + b"w" * int(random.integers(40)) for index in range(50)]
    count = 2 * scalar_encoder._BLOCK_ROWS + 1
    tag_index = random.integers(0, 50, count)
    step = random.integers(0, 40_000, count)
    wall_time = 1.7e9 + np.arange(count)
    value = random.standard_normal(count)
    records = ScalarEncoder(style).encode(tags, tag_index, step, wall_time, value)
    rows = list(
        zip(tag_index.tolist(), step.tolist(), wall_time.tolist(), value.tolist(), strict=True)
    )
    assert records == protobufs_records(tags, rows, style)


@pytest.mark.parametrize("copies", [1, 200])
@pytest.mark.parametrize("bits", [0x7FF8000000000000, 0xFFF8000000000001, 0x7FF0000000000001])
@pytest.mark.parametrize(
    ("style", "nan", "at"),
    [
        (Style.SIMPLE, "0000c07f", -8),
        (Style.TENSOR_FLOAT, "0000c07f", -21),
        (Style.TENSOR_DOUBLE, "000000000000f87f", -25),
    ],
)
def test_every_nan_is_written_as_the_same_bytes(
    style: Style, nan: str, at: int, bits: int, copies: int
) -> None:
    records = encode(ScalarEncoder(style), [b"loss"], [(0, 1, 1.5, float_of_bits(bits))] * copies)
    assert records == encode(ScalarEncoder(style), [b"loss"], [(0, 1, 1.5, math.nan)] * copies)
    assert records[at : at + len(nan) // 2] == bytes.fromhex(nan)


def test_tags_that_come_later_join_those_that_are_known() -> None:
    encoder = ScalarEncoder()
    tags: list[bytes] = []
    for call in range(30):
        tags += [b"call/%d/tag/%d" % (call, index) for index in range(call % 3)]
        rows = [(row % len(tags), row, 1.5, 0.5) for row in range(150)] if tags else []
        assert encode(encoder, tags, rows) == protobufs_records(tags, rows)
        assert encode(encoder, tags, rows[:5]) == protobufs_records(tags, rows[:5])


def test_no_rows_are_no_bytes() -> None:
    assert encode(ScalarEncoder(), [], []) == b""
    assert encode(ScalarEncoder(), [b"loss"], []) == b""


@pytest.mark.parametrize("count", [3, 300])
def test_columns_may_be_views_with_gaps_or_lie_at_odd_addresses(count: int) -> None:
    rows = [(0, step, 1.7e9 + step, step / 7) for step in range(count)]
    expected = protobufs_records([b"loss"], rows)

    def at_odd_address(column: np.ndarray) -> np.ndarray:
        return np.frombuffer(b"x" + column.tobytes(), column.dtype, offset=1)

    def with_gaps(column: np.ndarray) -> np.ndarray:
        return np.repeat(column, 2)[::2]

    columns = [np.array(column) for column in zip(*rows, strict=True)]
    for form in (at_odd_address, with_gaps):
        assert ScalarEncoder().encode([b"loss"], *map(form, columns)) == expected


def test_the_callers_columns_are_not_changed() -> None:
    rows = [(0, step, 1.5, math.nan) for step in range(300)]
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    for column in columns:
        column.flags.writeable = False
    ScalarEncoder().encode([b"loss"], *columns)


@pytest.mark.parametrize("index", [-1, 2])
@pytest.mark.parametrize("count", [1, 300])
def test_an_index_without_a_tag_is_refused(index: int, count: int) -> None:
    rows = [(0, 1, 1.5, 0.5)] * (count - 1) + [(index, 1, 1.5, 0.5)]
    with pytest.raises(IndexError, match=r"from 0 to 1, not .*(-1|2)"):
        encode(ScalarEncoder(), [b"loss", b"rate"], rows)


def test_columns_of_different_lengths_are_refused() -> None:
    one, two = np.zeros(1), np.zeros(2)
    with pytest.raises(ValueError, match="1 tag indices, 1 steps, 2 wall times, 1 values"):
        ScalarEncoder().encode([b"x"], one.astype(int), one.astype(int), two, one)


def test_a_tag_that_is_too_long_is_refused_and_changes_nothing() -> None:
    encoder = ScalarEncoder()
    with pytest.raises(ValueError, match="at most 1000 bytes, not 1001"):
        encode(encoder, [b"fine", b"t" * 1001], [(0, 1, 1.5, 0.5)])
    rows = [(0, 1, 1.5, 0.5)]
    assert encode(encoder, [b"other"], rows) == protobufs_records([b"other"], rows)


def test_fewer_tags_than_before_are_refused() -> None:
    encoder = ScalarEncoder()
    encode(encoder, [b"loss", b"rate"], [(1, 1, 1.5, 0.5)])
    with pytest.raises(ValueError, match="1 now, 2 at the last call"):
        encode(encoder, [b"loss"], [(0, 1, 1.5, 0.5)])


@pytest.mark.parametrize("style", Style)
def test_tensorboard_reads_the_scalars(style: Style, tmp_path: Path) -> None:
    tags = [b"loss", b"learning rate"]
    rows = [(step % 2, step, 1.7e9 + step, step / 2) for step in range(500)]
    data = version_record(1.7e9) + encode(ScalarEncoder(style), tags, rows)
    assert scan(data).ending is Ending.COMPLETE
    path = tmp_path / file_name(1_700_000_000, "host", 1, 0, "")
    path.write_bytes(data)

    events = [event for event in EventFileLoader(str(path)).Load() if event.summary.value]
    read = [
        (
            event.summary.value[0].tag.encode(),
            event.step,
            event.wall_time,
            float(tensor_util.make_ndarray(event.summary.value[0].tensor)),
        )
        for event in events
    ]
    assert read == [(tags[tag], step, wall_time, value) for tag, step, wall_time, value in rows]
