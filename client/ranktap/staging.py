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


def dtype_name(value: Any, name: str) -> str:
    """The element type of a tensor, an array or a snapshot, by its name on the wire.

    Raises:
        TypeError: elements of this type do not travel; `name` is the argument's.
    """
    if isinstance(value, Snapshot):
        return value.dtype
    return _dtype_name(str(value.dtype).removeprefix("torch."), name)


def snapshot(value: Any, name: str) -> Snapshot:
    """A copy of a tensor, an array, or whatever numpy makes an array of.

    Raises:
        TypeError: numpy makes no numbers of it, or its element type does not travel;
            the message names the argument `name` and what is allowed.
    """
    if is_tensor(value):
        return _of_tensor(value.detach(), name)
    try:
        array = np.array(value, order="C", copy=True)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected an array of numbers: {error}") from None
    return Snapshot(array, _dtype_name(array.dtype.name, name), array.shape)


def _of_tensor(tensor: Any, name: str) -> Snapshot:
    torch = sys.modules["torch"]
    dtype = _dtype_name(str(tensor.dtype).removeprefix("torch."), name)
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        raise TypeError(
            f"{name}: expected a dense tensor with data, got {tensor.layout} on {tensor.device}"
        )
    shape = tuple(tensor.shape)
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
