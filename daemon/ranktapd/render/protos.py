"""Serialized protobuf messages, put together by their bytes.

Messages are nested by their bytes, not as objects, which would copy an image's megabyte
once for every level and make an object of each number of a tensor. In protobuf's
encoding a field is a key (its number and wire type), then, where it has a length, that
length and the content. Fields of value 0 are absent (proto3), and fields stand in the
order of their numbers, so that the bytes are those that protobuf itself would write.

    Event    0x09 wall time (8 bytes)   0x10 step (varint)   0x2a Summary
    Summary  0x0a Value, repeated
    Value    0x0a tag   0x42 TensorProto   0x4a SummaryMetadata
"""

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto import types_pb2
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

_VARINTS_AT_ONCE: Final = 1 << 16  # 3 MB of temporaries


def varint(number: int) -> bytes:
    """A number from 0 on as protobuf writes it: seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def field(number: int, content: bytes) -> bytes:
    """A field that has a length: a message, a string, bytes or packed numbers."""
    return length_field(number, len(content)) + content


def length_field(number: int, nbytes: int) -> bytes:
    """What stands before the content of such a field."""
    return varint(number << 3 | 2) + varint(nbytes)


def packed_varints(numbers: NDArray[np.uint64]) -> bytes:
    """The content of a packed field of such numbers, shape (N,)."""
    blocks = []
    for first in range(0, numbers.size, _VARINTS_AT_ONCE):
        rest = numbers[first : first + _VARINTS_AT_ONCE]
        digits, present = [], []
        more = np.ones(rest.size, np.bool_)
        while more.any():
            present.append(more)
            digit = (rest & np.uint64(0x7F)).astype(np.uint8)
            rest = rest >> np.uint64(7)
            more = rest > 0
            digits.append(digit | more.astype(np.uint8) << np.uint8(7))
        blocks.append(np.stack(digits, axis=1)[np.stack(present, axis=1)].tobytes())
    return b"".join(blocks)


def event_payload(wall_time: float, step: int, *values: bytes) -> bytes:
    """A serialized `Event` that holds serialized `Summary.Value`s, in the order given.

    `wall_time` is in seconds since the epoch. `step` is an int64; negative is allowed.

    Raises:
        ValueError: `wall_time` is not finite (a NaN there ends the reading of the file
            by TensorBoard's fast loader), or `step` does not fit.
    """
    check_wall_time(wall_time)
    if not -(1 << 63) <= step < 1 << 63:
        raise ValueError(f"step is {step}, expected a 64-bit integer")
    parts = []
    if wall_time:
        parts.append(b"\x09" + struct.pack("<d", wall_time))
    if step:
        # A negative int64 is written as the unsigned number of the same bits.
        parts.append(b"\x10" + varint(step & ((1 << 64) - 1)))
    headed = [part for value in values for part in (b"\x0a" + varint(len(value)), value)]
    parts.append(b"\x2a" + varint(sum(map(len, headed))))
    return b"".join(parts + headed)


def check_wall_time(wall_time: float) -> None:
    """Raise ValueError where it is not finite."""
    if not np.isfinite(wall_time):
        raise ValueError(f"wall_time is {wall_time!r}, expected a finite number of seconds")


def plugin_metadata(plugin: str, content: bytes = b"") -> SummaryMetadata:
    """What says which plugin a value is for, and what that plugin wants to know of it."""
    plugin_data = SummaryMetadata.PluginData(plugin_name=plugin, content=content)
    return SummaryMetadata(plugin_data=plugin_data)


def serialized_value(value: Summary.Value) -> bytes:
    """A `Summary.Value`, always in the same bytes."""
    serialized: bytes = value.SerializeToString(deterministic=True)
    return serialized


def tensor_proto(dtype: int, shape: Sequence[int], number: int, content: bytes) -> bytes:
    """A serialized `TensorProto` whose numbers stand packed in its field `number`."""
    dimensions = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in shape])
    head: bytes = TensorProto(dtype=dtype, tensor_shape=dimensions).SerializeToString()
    return head + (field(number, content) if content else b"")


def float_tensor(values: NDArray[np.float32]) -> bytes:
    """A serialized `TensorProto` of float32."""
    number = TensorProto.FLOAT_VAL_FIELD_NUMBER
    return tensor_proto(types_pb2.DT_FLOAT, values.shape, number, values.astype("<f4").tobytes())


def value_of_tensor(tag: str, tensor: bytes, metadata: SummaryMetadata) -> bytes:
    """A serialized `Summary.Value` with a serialized tensor."""
    return b"".join(
        (
            Summary.Value(tag=tag).SerializeToString(),
            field(Summary.Value.TENSOR_FIELD_NUMBER, tensor),
            Summary.Value(metadata=metadata).SerializeToString(deterministic=True),
        )
    )
