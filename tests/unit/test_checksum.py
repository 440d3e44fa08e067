import mmap
from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranktap_wire.checksum import crc32c


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"", 0),
        (b"123456789", 0xE3069283),
    ],
)
def test_published_values_are_met(data: bytes, crc: int) -> None:
    # RFC 3720, appendix B.4; the last is the check value of the Rocksoft model.
    assert crc32c(data) == crc


@given(st.binary(), st.binary())
def test_a_checksum_continues_over_the_next_piece(first: bytes, second: bytes) -> None:
    assert crc32c(second, crc32c(first)) == crc32c(first + second)


def test_every_contiguous_buffer_is_read_as_its_bytes() -> None:
    numbers = np.arange(6, dtype=np.float64).reshape(2, 3)
    raw = numbers.tobytes()
    with mmap.mmap(-1, len(raw)) as mapped:
        mapped[:] = raw
        buffers = [
            bytearray(raw),
            memoryview(raw),
            memoryview(bytearray(b"x" + raw))[1:],
            memoryview(numbers),
            array("d", range(6)),
            numbers,
            np.frombuffer(raw, np.uint8),
        ]
        assert {crc32c(buffer) for buffer in buffers} == {crc32c(raw)}
        assert crc32c(mapped) == crc32c(raw)


@pytest.mark.parametrize("empty", [bytearray(), memoryview(b""), np.empty((0, 3), np.float32)])
def test_an_empty_buffer_leaves_the_checksum_as_it_is(empty: bytearray) -> None:
    assert crc32c(empty, 7) == 7


@pytest.mark.parametrize(
    "data",
    [np.arange(6)[::2], memoryview(b"abcdef")[::2], np.asfortranarray(np.zeros((2, 3)))],
    ids=["array", "memoryview", "Fortran order"],
)
def test_a_buffer_that_is_not_its_bytes_in_order_is_refused(data: np.ndarray) -> None:
    with pytest.raises(BufferError):
        crc32c(data)
