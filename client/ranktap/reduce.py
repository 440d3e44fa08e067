"""Statistics of tensors, computed where the tensors are: the host sees a few numbers of each.

A row has eight columns, in float64, and says what `records.MOMENTS` lists: count, sum,
sum of squares, min, max, zeros, non-finite, reference. Non-finite values are counted in
their own column and in no other. Rows of parts add up to the row of the whole, so the
statistics of shards, of calls and of ranks merge exactly.

On the CPU a row is a list of Python floats: a chunk at a time, so that the second look at
a chunk finds it in a cache. On another
device it is a tensor there: nothing is read back, and no branch depends on a value, so
that nothing waits. `torch.bincount` would (it looks for the largest value first).

Histograms count the upper twelve bits of a float32: sign, exponent, and three bits of
mantissa. Their 4,096 buckets are an eighth of an octave wide and the same for every
tensor, rank and step, so they merge exactly too, and finding a value's bucket is a shift.

What was measured for 11.5 million float32 in 62 tensors, on one core of an AMD EPYC:

    smallest, largest, sums and squares in blocks, zeros                 7 ms
    the same without the zeros, or without the sum                       6 ms
    the same with torch's sum, norm and aminmax                          8 ms
    the same with torch.count_nonzero                                   12 ms
    sum and norm in float64 alone                                       12 ms
    the histogram                                                       16 ms
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any, Final, cast

import numpy as np
import torch

from ranktap_wire.records import HISTOGRAM_BUCKETS, MOMENTS

CHUNK: Final = 1 << 20
"""Values looked at together. What bounds it are the buffers below, 13 MiB a thread that hooks run
in; a quarter as many values take 12 % longer, an eighth 22 %, as each call costs a microsecond
or two whatever it does. That a chunk is larger than a level 2 cache does not show."""

_BLOCK: Final = 1 << 10
_ONES: Final = {char: np.ones(_BLOCK, char) for char in "fd"}

COUNT, SUM, SQUARES, MIN, MAX, ZEROS, NON_FINITE, REFERENCE = range(len(MOMENTS))

EMPTY: Final = (0.0, 0.0, 0.0, math.inf, -math.inf, 0.0, 0.0, 0.0)
"""The row of no values."""

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]

Row = list[float] | Any
"""A list of floats for what is on the CPU, else a tensor of shape (8,) on its device."""

_FLOAT32_MAX: Final = 3.4028234663852886e38
_SQUARE_UNDERFLOW: Final = 1e-30
"""A mean square below it may have lost squares to float32's subnormals: added up again in
float64. Their limit is 1e-38; below 1e-30 they have lost some bits."""

_PLAIN = {
    getattr(torch, name)
    for name in (
        "float16", "bfloat16", "float32", "float64", "bool",
        "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
        "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
    )
    if hasattr(torch, name)
}  # fmt: skip


def on_host(tensor: Any) -> bool:
    """Whether the tensor is in the processor's own memory: a look at a value waits for nothing."""
    return bool(tensor.device.type == "cpu")


def why_not(tensor: Any) -> str | None:
    """Why there are no statistics of this tensor; None when there are."""
    if tensor.device.type == "meta":
        return "it has no data (device meta)"
    if tensor.layout not in (torch.strided, torch.sparse_coo):
        return f"its layout is {tensor.layout}"
    if tensor.dtype not in _PLAIN:
        return f"its elements are {str(tensor.dtype).removeprefix('torch.')}"
    return None


def moments(tensor: Any, *, total: bool = True, zeros: bool = True) -> Row:
    """The row of a tensor that `why_not` has nothing against; any shape, also empty.

    Without `total` or `zeros` the sum or the zeros need not be looked for, and may be 0: on
    the CPU each is a quarter of the work.

    Sums are accurate to float32's rounding for float32 and shorter types, to float64's
    for float64. Integers and bools are taken as numbers.
    """
    if tensor.layout is torch.sparse_coo:
        values = tensor.detach().coalesce().values()
        return _with_zeros(
            moments(values, total=total, zeros=zeros), tensor.numel() - values.numel()
        )
    flat = _flat(tensor)
    if on_host(flat):
        return _host_row(flat, total, zeros)
    return _device_row(flat)


def bit_counts(tensor: Any) -> Any:
    """How many values fall in each bucket: int64 of shape (4096,), on the tensor's device.

    Buckets are numbered by the upper twelve bits of the value as float32. What is beyond
    float32's range is in the outermost finite bucket; non-finite values are in those of
    the highest exponent.
    """
    zeros = 0
    if tensor.layout is torch.sparse_coo:
        values = tensor.detach().coalesce().values()
        zeros, tensor = tensor.numel() - values.numel(), values
    counts = torch.zeros(HISTOGRAM_BUCKETS, dtype=torch.int64, device=tensor.device)
    is_here = on_host(tensor)
    for chunk in _flat(tensor).split(CHUNK if is_here else 1 << 24):
        bits = _as_float32(chunk).view(torch.int32)
        if is_here:
            cells = torch.bitwise_right_shift(bits, 20, out=_buffers.cells[: bits.numel()])
            cells.bitwise_and_(HISTOGRAM_BUCKETS - 1)
            counts += torch.bincount(cells, minlength=HISTOGRAM_BUCKETS)
        else:
            cells = (bits >> 20) & (HISTOGRAM_BUCKETS - 1)
            # Of floats it returns float32, which counts exactly up to the size of a chunk.
            found = torch.histc(cells.float(), bins=HISTOGRAM_BUCKETS, min=0, max=HISTOGRAM_BUCKETS)
            counts += found.long()
    counts[0] += zeros
    return counts


def merge(left: Row, right: Row) -> Row:
    """The row of both parts' values."""
    if isinstance(left, list):
        merged = [a + b for a, b in zip(left, right, strict=True)]
        merged[MIN], merged[MAX] = min(left[MIN], right[MIN]), max(left[MAX], right[MAX])
        return merged
    merged = left + right
    merged[MIN] = torch.minimum(left[MIN], right[MIN])
    merged[MAX] = torch.maximum(left[MAX], right[MAX])
    return merged


def with_reference(row: Row, other: Row) -> Row:
    """The row with the other's sum of squares as what it is to be compared with."""
    if isinstance(row, list):
        return [*row[:REFERENCE], other[SQUARES]]
    return torch.cat((row[:REFERENCE], other[SQUARES : SQUARES + 1]))


def stack(rows: Sequence[Row]) -> Any:
    """Rows of one device as one array: float64 (N, 8), numpy's for the CPU, else a tensor there."""
    if isinstance(rows[0], list):
        return np.array(rows, np.float64)
    return torch.stack(list(rows))


# -- the CPU ------------------------------------------------------------------------------


def _host_row(flat: Any, total: bool, zeros: bool) -> list[float]:
    if flat.numel() <= CHUNK:
        return _host_chunk(flat, total, zeros)
    row = list(EMPTY)
    for chunk in flat.split(CHUNK):
        row = merge(row, _host_chunk(chunk, total, zeros))
    return row


def _host_chunk(chunk: Any, total: bool, zeros: bool) -> list[float]:
    """numpy throughout: its calls cost half of torch's, and a small tensor is nothing but calls."""
    count = chunk.numel()
    if not count:
        return list(EMPTY)
    values = _as_numbers(chunk)
    with np.errstate(all="ignore"):  # of float32: what it cannot hold is looked at again
        low, high = float(np.minimum.reduce(values)), float(np.maximum.reduce(values))
        if low == high == 0:
            return [count, 0.0, 0.0, 0.0, 0.0, count, 0.0, 0.0]
        squares = _products(values, values)
        summed = _products(values, _ONES[values.dtype.char]) if total else 0.0
    # A value that is not finite shows in the smallest or in the largest: NaN in both.
    is_finite = math.isfinite(low) and math.isfinite(high) and math.isfinite(squares)
    if not is_finite or squares < count * _SQUARE_UNDERFLOW:
        return _careful_chunk(values)
    found = 0
    if zeros and low <= 0 <= high:
        found = int(np.count_nonzero(np.equal(values, 0, out=_buffers.is_zero[:count])))
    return [count, summed, squares, low, high, found, 0.0, 0.0]


def _products(left: Floats, right: Floats) -> float:
    """The sum of left * right; `right` as long as `left`, or a block that serves for all.

    One `dot` of all of it is off by 2e-5 for the squares of a bfloat16 around 0.5, and what std
    then is by a hundredth; blocks, added up in float64, are off by 1e-8 in the same time.
    """
    blocks, rest = divmod(left.size, _BLOCK)
    whole = blocks * _BLOCK
    result = 0.0
    if blocks:
        times = right[:whole].reshape(-1, _BLOCK, 1)
        result = float(np.matmul(left[:whole].reshape(-1, 1, _BLOCK), times).sum(dtype=np.float64))
    if rest:
        result += float(left[whole:].dot(right[-rest:]))
    return result


def _careful_chunk(values: Floats) -> list[float]:
    """The row of values of which some are not finite, or whose squares float32 cannot hold."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return [*EMPTY[:NON_FINITE], float(values.size), 0.0]
    with np.errstate(over="ignore", under="ignore"):  # of float64: infinity is what it then is
        total, squares = float(finite.sum()), float(np.square(finite).sum())
    return [
        float(finite.size), total, squares, float(finite.min()), float(finite.max()),
        float(finite.size - np.count_nonzero(finite)), float(values.size - finite.size), 0.0,
    ]  # fmt: skip


def _as_numbers(chunk: Any) -> Floats:
    """The values as float32 or float64, whichever holds them all; those of other types are copied
    into a buffer, which the next call overwrites."""
    if chunk.dtype is torch.float32 or chunk.dtype is torch.float64:
        return cast(Floats, chunk.numpy())
    buffer = _buffers.singles if chunk.dtype.is_floating_point else _buffers.doubles
    copied = buffer[: chunk.numel()]
    torch.from_numpy(copied).copy_(chunk)
    return copied


class _Buffers(threading.local):
    """Memory that is warm: fresh pages would cost as much as the work. A thread has its own, of
    which only what is used is really there."""

    def __init__(self) -> None:
        self.is_zero = np.empty(CHUNK, np.bool_)
        self.cells = torch.empty(CHUNK, dtype=torch.int32)
        self.doubles = np.empty(CHUNK, np.float64)
        self.singles = self.doubles.view(np.float32)[:CHUNK]


_buffers = _Buffers()


# -- another device -----------------------------------------------------------------------


def _device_row(flat: Any) -> Any:
    """No branch looks at a value: that would wait for the device."""
    float64 = torch.float64
    count = flat.numel()
    if count == 0:
        return _constant(EMPTY, flat.device)
    values = _as_arithmetic(flat)
    clean = torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    # x - x is 0 for finite values, and NaN, which is not zero, for the others.
    non_finite = torch.count_nonzero(values - values)
    infinity = math.inf
    return torch.stack(
        (
            (count - non_finite).to(float64),
            clean.sum(dtype=float64),
            torch.linalg.vector_norm(clean, dtype=float64).square(),
            torch.nan_to_num(values, infinity, infinity, infinity).amin().to(float64),
            torch.nan_to_num(values, -infinity, -infinity, -infinity).amax().to(float64),
            (count - torch.count_nonzero(values)).to(float64),
            non_finite.to(float64),
            torch.zeros((), dtype=float64, device=flat.device),
        )
    )


def _constant(row: Sequence[float], device: Any) -> Any:
    """Filled there: a copy from memory that is not pinned would wait."""
    made = torch.zeros(len(row), dtype=torch.float64, device=device)
    for column, value in enumerate(row):
        if value:
            made[column].fill_(value)
    return made


# -- both ---------------------------------------------------------------------------------


def _with_zeros(row: Row, zeros: int) -> Row:
    """The row of these values and so many zeros."""
    if not zeros:
        return row
    added = [float(zeros), 0.0, 0.0, 0.0, 0.0, float(zeros), 0.0, 0.0]
    if isinstance(row, list):
        return merge(row, added)
    return merge(row, _constant(added, row.device))


def _flat(tensor: Any) -> Any:
    """The elements in some order, in one dimension: a view wherever memory allows.

    Detached, so that what is worked out of it needs no `no_grad`, which costs 2 us a call.
    """
    tensor = tensor.detach()
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    if not tensor.is_contiguous():
        # Channels last, transposed: dense, in another order of dimensions.
        order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
        tensor = tensor.permute(order)
    return tensor.reshape(-1)


def _as_arithmetic(flat: Any) -> Any:
    """The values in a type that has fast sums and holds them all."""
    if flat.dtype in (torch.float32, torch.float64):
        return flat
    return flat.float() if flat.dtype.is_floating_point else flat.double()


def _as_float32(flat: Any) -> Any:
    if flat.dtype is torch.float32:
        return flat
    if flat.dtype is torch.float64:
        # Rounding would make infinities of what is merely beyond float32.
        inside = flat.clamp(-_FLOAT32_MAX, _FLOAT32_MAX)
        return torch.where(torch.isinf(flat), flat, inside).float()
    if flat.dtype.is_floating_point and on_host(flat):
        return torch.from_numpy(_as_numbers(flat))
    return flat.float()
