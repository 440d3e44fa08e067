"""Tensors field by field against `torch.utils.tensorboard.summary.tensor_proto`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tensorboard.compat.proto import types_pb2
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import summary as torch_summary

from ranktapd.render.protos import packed_varints, varint
from ranktapd.render.tensors import tensor_value

DTYPES = [
    "bool", "int8", "int16", "int32", "int64", "uint8",
    "float16", "float32", "float64", "complex64", "complex128",
]  # fmt: skip
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def torchs(tag: str, tensor: torch.Tensor) -> bytes:
    serialized: bytes = torch_summary.tensor_proto(tag, tensor).value[0].SerializeToString()
    return serialized


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None)
@given(data=st.data())
def test_a_tensor_has_the_bytes_that_torch_writes(dtype: str, data: st.DataObject) -> None:
    array = data.draw(arrays.arrays(np.dtype(dtype), SHAPES))
    assert tensor_value("a/b", array, dtype) == torchs("a/b", torch.from_numpy(array.copy()))


@settings(deadline=None)
@given(arrays.arrays(np.dtype(np.int16), SHAPES))
def test_a_tensor_of_bfloat16_has_the_bytes_that_torch_writes(bits: np.ndarray) -> None:
    tensor = torch.from_numpy(bits.copy()).view(torch.bfloat16)
    widened = (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(bits.shape)
    assert tensor_value("a", widened, "bfloat16") == torchs("a", tensor)


@pytest.mark.parametrize(
    ("dtype", "code", "field"),
    [
        ("uint16", types_pb2.DT_UINT16, "int_val"),
        ("uint32", types_pb2.DT_UINT32, "uint32_val"),
        ("uint64", types_pb2.DT_UINT64, "uint64_val"),
    ],
)
def test_what_torch_does_not_write_stands_where_tensorflow_has_it(
    dtype: str, code: int, field: str
) -> None:
    numbers = [0, 1, int(np.iinfo(dtype).max)]
    value = Summary.Value.FromString(tensor_value("a", np.array(numbers, dtype), dtype))
    assert value.tensor.dtype == code
    assert list(getattr(value.tensor, field)) == numbers


def test_a_dtype_without_a_field_is_refused() -> None:
    with pytest.raises(ValueError, match="dtype is 'utf8', expected one of bool, int8"):
        tensor_value("a", np.zeros(1, np.uint8), "utf8")


def test_many_numbers_of_all_lengths_are_packed_one_after_another() -> None:
    lengths = np.random.default_rng(0).integers(0, 64, 200_000).astype(np.uint64)
    numbers = np.uint64(1) << lengths
    assert packed_varints(numbers) == b"".join(map(varint, numbers.tolist()))
