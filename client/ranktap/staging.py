"""Snapshots of what is logged: from a tensor's device to this process's own memory, without a wait.

A snapshot is taken before the call returns; changing the tensor afterwards changes
nothing. In host memory that is one copy, made in C with the GIL released. On CUDA
the value is cloned on the training stream (device memory, ordered with the training
like any other kernel), then travels to pinned memory on a stream of our own. Nothing
waits for it: the sender thread asks an event whether it has arrived.

torch is looked up among the modules that are loaded, never imported: a program
that has not imported it has no tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranktap_wire.records import DTYPES


@dataclass(slots=True)
class Snapshot:
    """A copy of an array, here or on its way.

    `bits` holds the elements in C order; when `arrived` says so. `dtype` is its name on
    the wire, which numpy's own is not for bfloat16.
    """

    bits: NDArray[Any]
    dtype: str
    shape: tuple[int, ...]
    arrived: Callable[[], bool] | None = None
    """None: it is here."""

    @property
    def nbytes(self) -> int:
        return self.bits.nbytes


def is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def on_device(value: Any) -> bool:
    """Whether reading this tensor on the host would wait for a device."""
    return is_tensor(value) and value.device.type not in ("cpu", "meta")


@dataclass(frozen=True, slots=True)
class Described:
    """What a snapshot would be, known before anything is copied."""

    value: Any
    """The tensor, the array, or the array that numpy made of something else."""
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    is_own: bool = False
    """Nobody else has `value`: it can be the snapshot."""


def describe(value: Any, name: str) -> Described:
    """What a snapshot of a tensor, an array, or whatever numpy makes an array of, would be.

    Raises:
        TypeError: numpy makes no numbers of it, its element type does not travel, or it is a
            tensor without elements in memory (sparse, meta); the message names the argument
            `name` and what is allowed.
    """
    if is_tensor(value):
        torch = sys.modules["torch"]
        dtype = _dtype_name(str(value.dtype).removeprefix("torch."), name)
        if value.layout != torch.strided or value.device.type == "meta":
            raise TypeError(
                f"{name}: expected a dense tensor with data, got {value.layout} on {value.device}"
            )
        return Described(value, dtype, tuple(value.shape), value.numel() * value.element_size())
    # Anything else may show an array that it goes on using.
    is_own = isinstance(value, list | tuple | int | float)
    if not isinstance(value, np.ndarray):
        try:
            value = np.asarray(value)
        # RuntimeError: a list of tensors that require gradients.
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name}: expected an array of numbers: {error}") from None
    dtype = _dtype_name(value.dtype.name, name)
    return Described(value, dtype, value.shape, value.nbytes, is_own)


def of_text(text: str) -> Described:
    """Text as the bytes that travel.

    Raises:
        UnicodeEncodeError: it has surrogates without a partner.
    """
    encoded = np.frombuffer(text.encode(), np.uint8)
    return Described(encoded, "utf8", encoded.shape, encoded.nbytes, is_own=True)


def snapshot(value: Any, name: str) -> Snapshot:
    """A copy of what `describe` takes.

    Raises:
        TypeError: as `describe`.
    """
    return copy(describe(value, name))


def copy(described: Described) -> Snapshot:
    """The snapshot itself."""
    if is_tensor(described.value):
        return _of_tensor(described.value.detach(), described.dtype, described.shape)
    # The wire is little endian, whatever the array came from.
    dtype = described.value.dtype.newbyteorder("<")
    make = np.asarray if described.is_own else np.array
    return Snapshot(make(described.value, dtype, order="C"), described.dtype, described.shape)


def _of_tensor(tensor: Any, dtype: str, shape: tuple[int, ...]) -> Snapshot:
    torch = sys.modules["torch"]
    # `z.imag` of a conjugated tensor is its memory, to be read with the sign changed.
    tensor = tensor.resolve_neg()
    if dtype == "bfloat16":
        tensor = tensor.view(torch.int16)
    if tensor.device.type == "cpu":
        return Snapshot(np.array(tensor.numpy(), order="C", copy=True), dtype, shape)
    if tensor.device.type == "cuda":
        return _from_cuda(tensor, dtype, shape)
    # Other devices have no common way to copy without waiting.
    return Snapshot(tensor.contiguous().cpu().numpy(), dtype, shape)


_streams: dict[Any, Any] = {}


def _from_cuda(tensor: Any, dtype: str, shape: tuple[int, ...]) -> Snapshot:
    torch = sys.modules["torch"]
    training = torch.cuda.current_stream(tensor.device)
    copying = _streams.get(tensor.device)
    if copying is None:
        copying = _streams[tensor.device] = torch.cuda.Stream(tensor.device)
    # Copying the tensor itself on the other stream would race with an in-place update
    # by the training; making the training wait for the copy would cost it the transfer.
    clone = tensor.clone(memory_format=torch.contiguous_format)
    host = torch.empty(shape, dtype=tensor.dtype, pin_memory=True)
    done = torch.cuda.Event()
    copying.wait_stream(training)
    with torch.cuda.stream(copying):
        host.copy_(clone, non_blocking=True)
        done.record(copying)
    # The allocator must not hand the clone's memory out again before the copy is done.
    clone.record_stream(copying)
    return Snapshot(host.numpy(), dtype, shape, done.query)


def _dtype_name(dtype: str, name: str) -> str:
    if dtype not in DTYPES or dtype == "utf8":
        allowed = ", ".join(known for known in DTYPES if known != "utf8")
        raise TypeError(f"{name}: expected elements of one of {allowed}, got {dtype}")
    return dtype
