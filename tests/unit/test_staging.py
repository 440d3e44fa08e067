"""Snapshots: values that do not change afterwards, whatever they are taken of."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from ranktap import staging
from ranktap.staging import Snapshot, describe, on_device, snapshot
from ranktap_wire.records import DTYPES, NUMBERS, Across, Blob, Kind
from tests.support.taps import refused, slow_device

TORCH_DTYPES = {
    "bool": torch.bool, "int8": torch.int8, "int16": torch.int16, "int32": torch.int32,
    "int64": torch.int64, "uint8": torch.uint8, "uint16": torch.uint16, "uint32": torch.uint32,
    "uint64": torch.uint64, "float16": torch.float16, "float32": torch.float32,
    "float64": torch.float64, "bfloat16": torch.bfloat16, "complex64": torch.complex64,
    "complex128": torch.complex128,
}  # fmt: skip


def values(copy: Snapshot) -> np.ndarray:
    """What the daemon will read."""
    blob = Blob(Kind.HISTOGRAM, "t", 0, 0.0, Across.EACH, copy.dtype, copy.shape, {}, copy.bits)
    return blob.array()


def test_changing_a_tensor_afterwards_changes_nothing() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    copy = snapshot(tensor, "values")
    tensor.zero_()
    np.testing.assert_array_equal(values(copy), np.arange(6.0).reshape(2, 3))


def test_changing_an_array_afterwards_changes_nothing() -> None:
    array = np.arange(6, dtype=np.int16)
    copy = snapshot(array, "values")
    array[:] = -1
    np.testing.assert_array_equal(values(copy), np.arange(6))


def test_changing_a_list_afterwards_changes_nothing() -> None:
    given = [[1.0, 2.0], [3.0, 4.0]]
    copy = snapshot(given, "values")
    given[0][0] = 9.0
    np.testing.assert_array_equal(values(copy), [[1.0, 2.0], [3.0, 4.0]])


def test_an_array_seen_through_something_else_is_copied_too() -> None:
    array = np.arange(4.0)

    class Wrapper:
        def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
            return array

    copy = snapshot(Wrapper(), "values")
    array[:] = -1.0
    np.testing.assert_array_equal(values(copy), np.arange(4.0))


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_every_dtype_that_travels_arrives_with_its_values(name: str) -> None:
    given = torch.tensor([0, 1, 3, 100], dtype=torch.float64).to(TORCH_DTYPES[name])
    copy = describe(given, "values", NUMBERS).copied()
    assert (copy.dtype, copy.shape) == (name, (4,))
    assert copy.nbytes == 4 * DTYPES[name].itemsize
    np.testing.assert_array_equal(values(copy), given.to(torch.complex128).numpy())


def test_the_test_above_has_every_dtype_of_the_wire() -> None:
    assert set(TORCH_DTYPES) == set(NUMBERS)


@pytest.mark.parametrize("name", sorted(set(TORCH_DTYPES) - {"bfloat16"}))
def test_numpys_dtypes_travel_in_either_byte_order(name: str) -> None:
    given = np.array([0, 1, 3, 100]).astype(np.dtype(name).newbyteorder(">"))
    copy = describe(given, "values", NUMBERS).copied()
    assert copy.dtype == name
    np.testing.assert_array_equal(values(copy), given)


def test_bfloat16_keeps_its_bits() -> None:
    given = torch.tensor([1.0, -0.0, float("nan"), float("inf"), 3.1415927], dtype=torch.bfloat16)
    copy = snapshot(given, "values")
    np.testing.assert_array_equal(values(copy), given.float().numpy())
    assert np.signbit(values(copy)[1])


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.t(),
        lambda t: t[::2, 1::3],
        lambda t: t[:1].expand(5, -1),
        lambda t: t.flip(0),
        lambda t: t.unsqueeze(0).to(memory_format=torch.contiguous_format)[..., 1:],
        lambda t: torch.view_as_complex(t.reshape(-1, 2).contiguous()).conj().imag,
    ],
    ids=["transposed", "strided", "expanded", "flipped", "sliced", "negated"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_in_any_memory_order_arrives_in_its_own(view: Any, dtype: torch.dtype) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    given = view(base).to(dtype)
    copy = snapshot(given, "values")
    assert copy.shape == tuple(given.shape)
    np.testing.assert_array_equal(values(copy), given.float().resolve_neg().numpy())


@pytest.mark.parametrize(
    "view", [lambda a: a.T, lambda a: a[::-1, ::2], np.asfortranarray], ids=["T", "steps", "F"]
)
def test_an_array_in_any_memory_order_arrives_in_its_own(view: Any) -> None:
    given = view(np.arange(24.0).reshape(4, 6))
    copy = snapshot(given, "values")
    assert copy.bits.flags.c_contiguous
    np.testing.assert_array_equal(values(copy), given)


@pytest.mark.parametrize(
    "value",
    [torch.tensor(2.5), torch.tensor(2.5, dtype=torch.bfloat16), np.float32(2.5), np.array(2.5),
     2.5],
    ids=["tensor", "bfloat16", "numpy scalar", "array", "float"],
)  # fmt: skip
def test_a_value_without_dimensions_keeps_having_none(value: Any) -> None:
    copy = snapshot(value, "values")
    assert copy.shape == ()
    assert values(copy) == 2.5


def test_a_parameter_that_requires_a_gradient_is_taken_and_stays_in_its_graph() -> None:
    parameter = torch.nn.Parameter(torch.arange(3.0))
    doubled = parameter * 2
    np.testing.assert_array_equal(values(snapshot(doubled, "values")), [0.0, 2.0, 4.0])
    doubled.sum().backward()
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [2.0, 2.0, 2.0]


def test_a_copy_is_made_once() -> None:
    array = np.zeros(1_000)
    described = describe(array, "values")
    assert described.value is array
    assert not np.shares_memory(described.copied().bits, array)
    # What numpy has made of a list belongs to nobody else.
    described = describe([0.0] * 1_000, "values")
    assert np.shares_memory(described.copied().bits, described.value)


def test_what_a_snapshot_will_be_is_known_before_it_is_taken() -> None:
    described = describe(torch.zeros(2, 3, dtype=torch.bfloat16), "values")
    assert (described.dtype, described.shape, described.nbytes) == ("bfloat16", (2, 3), 12)


@pytest.mark.parametrize(
    ("value", "given"),
    [
        (torch.zeros(2, dtype=torch.complex64), "complex64"),
        (np.zeros(2, np.complex128), "complex128"),
        ([1j], "complex128"),
        (torch.zeros(2, dtype=torch.float8_e4m3fn), "float8_e4m3fn"),
        (np.zeros(2, np.longdouble), "longdouble|float128"),
        (np.array(["a"]), "str"),
        ("text", "str"),
        (np.array([None]), "object"),
        (None, "object"),
        ({"a": 1}, "object"),
        (np.zeros(2, "datetime64[s]"), "datetime64"),
        (np.zeros(2, [("a", "f4")]), "void"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_other_element_types_are_refused_with_what_is_allowed(value: Any, given: str) -> None:
    with pytest.raises(
        TypeError, match=f"^grads: expected elements of one of .*bfloat16.*, got ({given})"
    ):
        snapshot(value, "grads")


@pytest.mark.parametrize(
    "value",
    [torch.eye(3).to_sparse(), torch.empty(3, device="meta")],
    ids=["sparse", "meta"],
)
def test_a_tensor_without_elements_in_memory_is_refused(value: torch.Tensor) -> None:
    with pytest.raises(TypeError, match=r"^image: expected a dense tensor with data, got torch"):
        snapshot(value, "image")


@pytest.mark.parametrize(
    "value",
    [[[1.0], [1.0, 2.0]], [torch.ones(2, requires_grad=True)] * 2],
    ids=["ragged", "tensors with gradients"],
)
def test_what_numpy_makes_nothing_of_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^values: expected an array of numbers: "):
        snapshot(value, "values")


def test_a_conjugated_tensor_arrives_as_what_it_stands_for() -> None:
    given = torch.tensor([1 + 2j, 3 - 4j]).conj()
    copy = describe(given, "values", NUMBERS).copied()
    np.testing.assert_array_equal(values(copy), [1 - 2j, 3 + 4j])


# -- other element types ------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [[1, 2, 3], np.array([1, 2, 3], ">i2"), torch.tensor([1, 2, 3], dtype=torch.bfloat16),
     torch.tensor([1.0, 2.0, 3.0], dtype=torch.float16), np.array([True, 2, 3])],
    ids=["list", "big endian", "bfloat16", "float16", "numbers"],
)  # fmt: skip
def test_elements_of_any_type_can_be_converted(given: Any) -> None:
    converted = staging.convert(describe(given, "values"), "float64")
    assert (converted.dtype, converted.shape, converted.nbytes) == ("float64", (3,), 24)
    np.testing.assert_array_equal(values(converted.copied()), [1.0, 2.0, 3.0])


def test_what_is_of_the_type_already_is_not_converted() -> None:
    described = describe(np.zeros(3), "values")
    assert staging.convert(described, "float64") is described


def test_what_a_converted_type_cannot_hold_is_infinite() -> None:
    converted = staging.convert(describe([1e300, -1e300, math.nan], "values"), "float32")
    np.testing.assert_array_equal(values(converted.copied()), [math.inf, -math.inf, math.nan])


def test_arrays_become_the_rows_of_one() -> None:
    rows = [describe([1, 2], "first"), describe(torch.tensor([3.5, 4.5]), "second")]
    stacked = staging.stack(rows, "float64")
    assert (stacked.name, stacked.shape, stacked.nbytes) == ("first", (2, 2), 32)
    np.testing.assert_array_equal(values(stacked.copied()), [[1.0, 2.0], [3.5, 4.5]])
    empty = staging.stack([describe([], "limits"), describe([], "counts")], "float64")
    assert values(empty.copied()).shape == (2, 0)


def test_what_is_converted_is_a_snapshot_too_also_when_it_is_still_on_its_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = torch.tensor([1.0, 2.0])
    with slow_device(monkeypatch) as arrive:
        copy = staging.stack([describe(given, "a"), describe([3, 4], "b")], "float64").copied()
        given.zero_()
        assert copy.arrived is not None and not copy.arrived()
        arrive()
        assert copy.arrived()
        given.fill_(9.0)
        assert copy.arrived()
    np.testing.assert_array_equal(values(copy), [[1.0, 2.0], [3.0, 4.0]])


@pytest.mark.parametrize("given", [2, [2], [[2], [2]], np.float32(2), torch.tensor([2])])
def test_a_value_is_repeated_where_more_are_needed(given: Any) -> None:
    spread = staging.broadcast(describe(given, "weights"), (2, 3))
    assert (spread.shape, spread.nbytes) == ((2, 3), 6 * describe(given, "weights").value.itemsize)
    np.testing.assert_array_equal(values(spread.copied()), np.full((2, 3), 2))


@pytest.mark.parametrize("given", [[1, 2], torch.ones(2), np.ones((1, 2, 3))])
def test_what_cannot_be_repeated_is_refused(given: Any) -> None:
    with refused("weights"):
        staging.broadcast(describe(given, "weights"), (2, 3))


def test_only_a_tensor_on_a_device_is_on_one() -> None:
    assert not on_device(1.0)
    assert not on_device(np.zeros(2))
    assert not on_device(torch.zeros(2))
    assert not on_device(torch.empty(2, device="meta"))


# -- CUDA ---------------------------------------------------------------------------------


class Stand:
    """Stands in for torch.cuda, where there is none: streams that run when told to.

    It shows the order of what is asked of streams and events, and that nothing is waited
    for; not that CUDA does it. `test_a_cuda_tensor_...` below shows that, where it can run.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.current = "training"
        self.is_done = False

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stand = self

        class Stream:
            def __init__(self, device: Any, name: str = "copying") -> None:
                self.name = name

            def wait_stream(self, other: Stream) -> None:
                stand.asked.append(f"{self.name} waits for {other.name}")

        class Event:
            def record(self, stream: Stream) -> None:
                stand.asked.append(f"record on {stream.name}")

            def query(self) -> bool:
                return stand.is_done

        @contextlib.contextmanager
        def stream(chosen: Stream) -> Iterator[None]:
            stand.current = chosen.name
            yield
            stand.current = "training"

        real_empty, real_clone, real_copy = torch.empty, torch.Tensor.clone, torch.Tensor.copy_

        def empty(*sizes: Any, pin_memory: bool = False, **named: Any) -> torch.Tensor:
            stand.asked.append(f"pinned: {pin_memory}")
            return real_empty(*sizes, **named)

        def clone(tensor: torch.Tensor, **named: Any) -> torch.Tensor:
            stand.asked.append(f"clone on {stand.current}")
            return real_clone(tensor, **named)

        def copy_(to: torch.Tensor, source: torch.Tensor, non_blocking: bool) -> torch.Tensor:
            stand.asked.append(f"copy on {stand.current}, non-blocking: {non_blocking}")
            return real_copy(to, source)

        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(device, "training"))
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch, "empty", empty)
        monkeypatch.setattr(torch.Tensor, "clone", clone)
        monkeypatch.setattr(torch.Tensor, "copy_", copy_)
        monkeypatch.setattr(
            torch.Tensor,
            "record_stream",
            lambda tensor, stream: stand.asked.append(f"memory kept for {stream.name}"),
        )
        monkeypatch.setattr(staging, "_streams", {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_from_cuda_asks_for_a_clone_a_side_stream_and_an_event(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    stand = Stand()
    given = torch.arange(6.0, dtype=dtype).reshape(2, 3).t()
    bits = given.view(torch.int16) if dtype == torch.bfloat16 else given
    with monkeypatch.context() as patched:
        stand.install(patched)
        copy = staging._from_cuda(bits, str(dtype).removeprefix("torch."), (3, 2))
    assert stand.asked == [
        "clone on training",
        "pinned: True",
        "copying waits for training",
        "copy on copying, non-blocking: True",
        "record on copying",
        "memory kept for copying",
    ]
    assert copy.arrived is not None and not copy.arrived()
    given.zero_()
    stand.is_done = True
    assert copy.arrived()
    assert copy.bits.flags.c_contiguous
    np.testing.assert_array_equal(values(copy), np.arange(6.0).reshape(2, 3).T)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cuda_tensor_changed_at_once_arrives_as_it_was_without_a_wait(dtype: torch.dtype) -> None:
    given = torch.ones(1 << 24, dtype=dtype, device="cuda")
    torch.cuda.synchronize()
    torch.cuda._sleep(100_000_000)  # keeps the training stream busy for some 50 ms
    copy = snapshot(given, "values")
    assert copy.arrived is not None
    assert not copy.arrived(), "the call waited for the stream"
    given.zero_()
    torch.cuda.synchronize()
    assert copy.arrived()
    assert values(copy).min() == 1.0
