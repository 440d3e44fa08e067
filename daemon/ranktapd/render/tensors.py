"""A tensor as `SummaryWriter.add_tensor` writes it: every element, in the field of its dtype.

Field by field what torch writes, also where nobody can read that back:

    float16, bfloat16   the bits of a float32 stand in `half_val`, where TensorFlow has
                        the 16 bits of the number itself
    uint8               in `uint32_val`; TensorFlow looks for them in `int_val`

uint16, uint32 and uint64, which torch refuses, stand where TensorFlow has them.

Source: torch 2.13 `utils/tensorboard/summary.py` (`_TENSOR_TYPE_MAP`);
tensorflow/core/framework/tensor.proto.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto import types_pb2
from tensorboard.compat.proto.tensor_pb2 import TensorProto

from ranktapd.render.protos import (
    packed_varints,
    plugin_metadata,
    tensor_proto,
    value_of_tensor,
)


def tensor_value(tag: str, array: NDArray[Any], dtype: str) -> bytes:
    """A tensor of any shape as a serialized `Summary.Value`.

    `dtype` is its name on the wire; an array of bfloat16 comes widened to float32.

    Raises:
        ValueError: there is no such dtype.
    """
    known = _FIELDS.get(dtype)
    if known is None:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(_FIELDS)}")
    code, number, pack = known
    tensor = tensor_proto(code, array.shape, number, pack(array.ravel()))
    return value_of_tensor(tag, tensor, plugin_metadata("tensor"))


def _integers(flat: NDArray[Any]) -> bytes:
    # A negative number, of 32 bits too, is written as 64 bits.
    wide = flat if flat.dtype == np.uint64 else flat.astype(np.int64).view(np.uint64)
    return packed_varints(wide)


def _halves(flat: NDArray[Any]) -> bytes:
    # By way of float64, as torch goes: that makes every NaN a quiet one.
    with np.errstate(invalid="ignore"):
        floats = flat.astype(np.float64).astype(np.float32)
    return _integers(floats.view(np.int32))


def _floats(dtype: str) -> Callable[[NDArray[Any]], bytes]:
    return lambda flat: flat.astype(dtype, copy=False).tobytes()


_FIELDS: Final[dict[str, tuple[int, int, Callable[[NDArray[Any]], bytes]]]] = {
    "bool": (types_pb2.DT_BOOL, TensorProto.BOOL_VAL_FIELD_NUMBER, _integers),
    "int8": (types_pb2.DT_INT8, TensorProto.INT_VAL_FIELD_NUMBER, _integers),
    "int16": (types_pb2.DT_INT16, TensorProto.INT_VAL_FIELD_NUMBER, _integers),
    "int32": (types_pb2.DT_INT32, TensorProto.INT_VAL_FIELD_NUMBER, _integers),
    "int64": (types_pb2.DT_INT64, TensorProto.INT64_VAL_FIELD_NUMBER, _integers),
    "uint8": (types_pb2.DT_UINT8, TensorProto.UINT32_VAL_FIELD_NUMBER, _integers),
    "uint16": (types_pb2.DT_UINT16, TensorProto.INT_VAL_FIELD_NUMBER, _integers),
    "uint32": (types_pb2.DT_UINT32, TensorProto.UINT32_VAL_FIELD_NUMBER, _integers),
    "uint64": (types_pb2.DT_UINT64, TensorProto.UINT64_VAL_FIELD_NUMBER, _integers),
    "float16": (types_pb2.DT_HALF, TensorProto.HALF_VAL_FIELD_NUMBER, _halves),
    "bfloat16": (types_pb2.DT_BFLOAT16, TensorProto.HALF_VAL_FIELD_NUMBER, _halves),
    "float32": (types_pb2.DT_FLOAT, TensorProto.FLOAT_VAL_FIELD_NUMBER, _floats("<f4")),
    "float64": (types_pb2.DT_DOUBLE, TensorProto.DOUBLE_VAL_FIELD_NUMBER, _floats("<f8")),
    "complex64": (types_pb2.DT_COMPLEX64, TensorProto.SCOMPLEX_VAL_FIELD_NUMBER, _floats("<c8")),
    "complex128": (types_pb2.DT_COMPLEX128, TensorProto.DCOMPLEX_VAL_FIELD_NUMBER, _floats("<c16")),
}
