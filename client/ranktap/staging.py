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

import functools
import math
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ranktap.used_memory import empty_array
from ranktap_wire.records import DTYPES, REAL

Arrived = Callable[[], bool] | None
"""How to ask whether a copy is here; None: it is."""


@dataclass(slots=True)
class Snapshot:
    """A copy of an array, here or on its way.

    `bits` holds the elements in C order; when `arrived` says so. `dtype` is its name on
    the wire, which numpy's own is not for bfloat16.
    """

    bits: NDArray[Any]
    dtype: str
    shape: tuple[int, ...]
    arrived: Arrived = None

    @property
    def nbytes(self) -> int:
        return self.bits.nbytes

    def numbers(self) -> NDArray[Any]:
        """The elements as numpy knows them: bfloat16 as float32. Only once it has arrived."""
        if self.dtype == "bfloat16":
            bits = self.bits.view(np.uint16).astype(np.uint32)
            return (bits << np.uint32(16)).view(np.float32)
        return self.bits


def all_arrived(copies: Sequence[Snapshot]) -> Arrived:
    """How to ask whether all of them are here."""
    if len(copies) == 1:
        return copies[0].arrived
    asked = [copy.arrived for copy in copies if copy.arrived is not None]
    return (lambda: all(arrived() for arrived in asked)) if asked else None


def then(arrived: Arrived, act: Callable[[], None]) -> Callable[[], bool]:
    """`arrived`, which does `act` before it says so for the first time."""
    is_done = False

    def is_here() -> bool:
        nonlocal is_done
        if not is_done and (arrived is None or arrived()):
            act()
            is_done = True
        return is_done

    return is_here


def is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def on_device(value: Any) -> bool:
    """Whether reading this tensor on the host would wait for a device."""
    return is_tensor(value) and value.device.type not in ("cpu", "meta")


class Described(Protocol):
    """What a snapshot would be, known before anything is copied."""

    @property
    def name(self) -> str:
        """The argument, for errors."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int: ...

    def copied(self) -> Snapshot:
        """The snapshot itself."""


@dataclass(slots=True)
class Given:
    """What was given, as it is."""

    value: Any
    """The tensor, the array, or the array that numpy made of something else."""
    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    is_own: bool = False
    """Nobody else has `value`: it can be the snapshot."""

    def copied(self) -> Snapshot:
        if not isinstance(self.value, np.ndarray):
            return _of_tensor(self.value.detach(), self.dtype, self.shape)
        # The wire is little endian, whatever the array came from.
        dtype = DTYPES[self.dtype]
        if self.is_own:
            bits = np.asarray(self.value, dtype, order="C")
        else:
            bits = _copy(self.value, dtype)
        return Snapshot(bits, self.dtype, self.shape)


@dataclass(frozen=True, slots=True)
class Converted:
    """Arrays of one size, one behind the other, as elements of another type.

    They are converted here, once they have arrived: on their device that would be more
    kernels between those of the training.
    """

    rows: tuple[Described, ...]
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def copied(self) -> Snapshot:
        copies = [row.copied() for row in self.rows]
        bits = empty_array(self.shape, DTYPES[self.dtype])

        def fill() -> None:
            # What does not fit is infinite, as it would be where it is shown.
            with np.errstate(over="ignore", invalid="ignore"):
                for row, copy in zip(bits.reshape(len(copies), -1), copies, strict=True):
                    row[:] = copy.numbers().reshape(-1)

        arrived = all_arrived(copies)
        if arrived is None:
            fill()
            return Snapshot(bits, self.dtype, self.shape)
        return Snapshot(bits, self.dtype, self.shape, then(arrived, fill))


def describe(value: Any, name: str, dtypes: Collection[str] = REAL) -> Given:
    """What a snapshot of a tensor, an array, or whatever numpy makes an array of, would be.

    Raises:
        TypeError: numpy makes no numbers of it, its element type is none of `dtypes`, or it is a
            tensor without elements in memory (sparse, meta); the message names the argument
            `name` and what is allowed.
    """
    is_own = False
    # The type first: what training calls runs on cold code, and each function of it counts.
    if type(value) is not np.ndarray:
        if is_tensor(value):
            return _describe_tensor(value, name, dtypes)
        # Anything else may show an array that it goes on using.
        is_own = isinstance(value, list | tuple | int | float)
        try:
            value = np.asarray(value)
        # RuntimeError: a list of tensors that require gradients.
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name}: expected an array of numbers: {error}") from None
    dtype = _name_of(value.dtype)
    if dtype not in dtypes:
        raise _other_dtype(dtype, name, dtypes)
    return Given(value, name, dtype, value.shape, value.nbytes, is_own)


def _describe_tensor(value: Any, name: str, dtypes: Collection[str]) -> Given:
    torch = sys.modules["torch"]
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in dtypes:
        raise _other_dtype(dtype, name, dtypes)
    if value.layout != torch.strided or value.device.type == "meta":
        raise TypeError(
            f"{name}: expected a dense tensor with data, got {value.layout} on {value.device}"
        )
    nbytes = value.numel() * value.element_size()
    return Given(value, name, dtype, tuple(value.shape), nbytes)


def convert(described: Described, dtype: str) -> Described:
    """The same, as elements of that type."""
    if described.dtype == dtype:
        return described
    return Converted((described,), described.name, dtype, described.shape)


def stack(rows: Sequence[Described], dtype: str) -> Described:
    """Arrays of one shape as the rows of one; errors name the first."""
    return Converted(tuple(rows), rows[0].name, dtype, (len(rows), *rows[0].shape))


def broadcast(given: Given, shape: tuple[int, ...]) -> Given:
    """The same values, repeated where the shape has more of them.

    Raises:
        ValueError: they cannot be.
    """
    try:
        if is_tensor(given.value):
            value = given.value.expand(shape)
        else:
            value = np.broadcast_to(given.value, shape)
    except (RuntimeError, ValueError):
        raise ValueError(
            f"{given.name}: expected a number or shape {shape}, got shape {given.shape}"
        ) from None
    nbytes = math.prod(shape) * DTYPES[given.dtype].itemsize
    return Given(value, given.name, given.dtype, shape, nbytes)


def of_text(text: str, name: str) -> Given:
    """Text as the bytes that travel.

    Raises:
        ValueError: it has surrogates without a partner; the message names the argument `name`.
    """
    try:
        encoded = np.frombuffer(text.encode(), np.uint8)
    except UnicodeEncodeError:
        raise ValueError(f"{name}: expected Unicode text, got {text[:60]!r}") from None
    return Given(encoded, name, "utf8", encoded.shape, encoded.nbytes, is_own=True)


def of_bytes(data: bytes, name: str) -> Given:
    """Bytes that nobody else changes."""
    array = np.frombuffer(data, np.uint8)
    return Given(array, name, "uint8", array.shape, array.nbytes, is_own=True)


def snapshot(value: Any, name: str) -> Snapshot:
    """A copy of what `describe` takes.

    Raises:
        TypeError: as `describe`.
    """
    return describe(value, name).copied()


def _of_tensor(tensor: Any, dtype: str, shape: tuple[int, ...]) -> Snapshot:
    torch = sys.modules["torch"]
    # A conjugated tensor is another's memory, to be read with signs changed; so is its `imag`.
    tensor = tensor.resolve_conj().resolve_neg()
    if dtype == "bfloat16":
        tensor = tensor.view(torch.int16)
    if tensor.device.type == "cpu":
        array = tensor.numpy()
        return Snapshot(_copy(array, array.dtype), dtype, shape)
    if tensor.device.type == "cuda":
        return _from_cuda(tensor, dtype, shape)
    # Other devices have no common way to copy without waiting.
    return Snapshot(tensor.contiguous().cpu().numpy(), dtype, shape)


def _copy(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    bits = empty_array(array.shape, dtype)
    bits[...] = array
    return bits


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


@functools.lru_cache(maxsize=64)
def _name_of(dtype: np.dtype[Any]) -> str:
    """Its name, which numpy puts together anew each time that it is asked for."""
    return dtype.name


def _other_dtype(dtype: str, name: str, allowed: Collection[str]) -> TypeError:
    return TypeError(f"{name}: expected elements of one of {', '.join(allowed)}, got {dtype}")
