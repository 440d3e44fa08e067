"""What a watch costs, counted in calls, copies and reads of a device: never in time."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import ranktap
from ranktap import Tap, pictures, reduce, staging
from tests.support.networks import EVERYTHING, batch, network, sgd, train
from tests.support.watching import Make, logged, silent_taps

OURS = ranktap.__path__[0]


@pytest.fixture
def make() -> Iterator[Make]:
    with silent_taps() as make:
        yield make


@pytest.fixture
def tap(make: Make) -> Tap:
    return make()


def calls(run: Callable[[], None]) -> Counter[CodeType]:
    """How often this calls each Python function."""
    found: Counter[CodeType] = Counter()

    def count(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            found[frame.f_code] += 1

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found


def of_ours(found: Counter[CodeType]) -> int:
    return sum(count for code, count in found.items() if code.co_filename.startswith(OURS))


# -- a step that is not looked at -------------------------------------------------------------


def test_modules_of_a_step_that_is_not_looked_at_cost_no_call_at_all(tap: Tap) -> None:
    watched, alone = network(), network()
    tap.step(1)
    tap.watch(watched, every=100, **EVERYTHING, feature_maps=True)
    found = [
        calls(lambda model=model: model(batch()).sum().backward()) for model in (watched, alone)
    ]
    assert sum(found[0].values()) == sum(found[1].values()) > 0
    assert of_ours(found[0]) == 0


def test_parameters_of_a_step_that_is_not_looked_at_cost_no_call_at_all(tap: Tap) -> None:
    model = network()
    tap.step(1)
    tap.watch(model, every=100, activations=(), optimizer=False)
    assert of_ours(calls(lambda: model(batch()).sum().backward())) == 0


@pytest.mark.parametrize("layers", [1, 40])
def test_an_optimizers_step_costs_the_same_few_calls_whatever_the_model(
    tap: Tap, layers: int
) -> None:
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(layers)))
    optimizer = sgd(model)
    train(model, optimizer, 2, inputs=lambda: torch.ones(1, 1))
    gc.collect()  # watches of other tests see this optimizer too
    before = of_ours(calls(optimizer.step))
    tap.watch(model, every=100, optimizer=optimizer)
    train(model, optimizer, 2, inputs=lambda: torch.ones(1, 1))
    assert 0 < of_ours(calls(optimizer.step)) - before <= 12


# -- a step that is looked at -----------------------------------------------------------------


def test_a_tensor_that_is_measured_costs_a_bounded_number_of_calls(tap: Tap) -> None:
    def cost(layers: int) -> int:
        model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(layers)))
        optimizer = sgd(model)
        with tap.watch(model, every=1):
            ones = torch.ones(1, 2)
            train(model, optimizer, 2, inputs=lambda: ones)
            return of_ours(calls(lambda: train(model, optimizer, inputs=lambda: ones)))

    tensors = 5  # of a layer: output; weight, bias, and their gradients
    assert (cost(24) - cost(4)) / (20 * tensors) <= 30


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int32], ids=str
)
def test_a_tensor_on_the_host_is_measured_without_a_copy_in_fresh_memory(
    dtype: torch.dtype,
) -> None:
    """Fresh pages cost as much as the work: what is needed is kept from step to step."""
    tensor = (torch.randn(2_100_000) * 4).to(dtype)
    reduce.moments(tensor)
    tracemalloc.start()
    try:
        with Made() as made:
            reduce.moments(tensor)
        peak = tracemalloc.get_traced_memory()[1]  # numpy's memory is in it, torch's is not
    finally:
        tracemalloc.stop()
    assert peak < 100_000
    assert made.bytes < 100_000


class Made(TorchDispatchMode):
    """How much memory torch's operations ask for, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        known = {each.untyped_storage().data_ptr() for each in args if isinstance(each, Tensor)}
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in known:
                self.bytes += each.untyped_storage().nbytes()
        return result


def test_updates_keep_their_copy_of_the_parameters_from_step_to_step(tap: Tap) -> None:
    model = network()
    optimizer = sgd(model)
    watch = tap.watch(model, every=1, activations=(), updates="moments")
    train(model, optimizer)
    before = {name: kept.data_ptr() for name, kept in watch._recorder._memory.items()}
    train(model, optimizer, 2)
    assert before == {name: kept.data_ptr() for name, kept in watch._recorder._memory.items()}
    assert len(before) == len(list(model.parameters()))


# -- another device: no GPU here, so the code that runs there is run on other tensors ---------


class ReadsNoValue(TorchDispatchMode):
    """Fails where an operation would make the host wait for a device."""

    WAITING = (
        "_local_scalar_dense", "nonzero", "bincount", "masked_select", "equal", "unique",
        "index",  # by a mask
    )  # fmt: skip

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = operation._schema.name.partition("::")[2]
        assert name not in self.WAITING, f"{name} waits for the device"
        return operation(*args, **(kwargs or {}))


def test_the_stand_in_for_a_device_notices_what_waits() -> None:
    for waits in (
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: bool((x > 0).all()),
        lambda x: torch.bincount(x.long()),
    ):
        with pytest.raises(AssertionError, match="waits"), ReadsNoValue():
            waits(torch.ones(3))


@pytest.mark.parametrize("value", [1.0, 0.0, float("nan")])
def test_no_branch_of_what_runs_on_a_device_looks_at_a_value(
    monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """A stand-in on the CPU. On CUDA itself this has not been run."""
    monkeypatch.setattr(reduce, "on_host", lambda tensor: False)
    tensor = torch.full((3, 4, 5), value)
    with ReadsNoValue():
        row = reduce.merge(reduce.moments(tensor), reduce.moments(tensor[:0]))
        reduce.stack([reduce.with_reference(row, row), row])
        reduce.bit_counts(tensor)
        pictures.feature_maps(tensor, 1, 2, 3)
        pictures.kernels(tensor.unsqueeze(0), 2, 3)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64], ids=str
)
def test_what_runs_on_a_device_runs_on_tensors_without_data(dtype: torch.dtype) -> None:
    """Whatever asks such a tensor for a value raises; and its device is not the host."""
    tensor = torch.zeros(3, 4, 5, dtype=dtype, device="meta")
    row = reduce.moments(tensor)
    assert row.device.type == "meta"
    assert reduce.stack([row, reduce.merge(row, row)]).shape == (2, 8)
    assert reduce.bit_counts(tensor).shape == (4096,)
    assert pictures.feature_maps(tensor, 1, 2, 3).shape == (2, 1, 2, 3)


def test_all_statistics_of_a_step_come_from_a_device_as_one_copy(
    tap: Tap, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole of a watch, with rows as a device has them, against one with the host's."""
    train_watched(tap)
    by_host = logged(tap)

    copies = []
    real = staging.snapshot

    def snapshot(tensor: Any, name: str) -> Any:
        copies.append(tuple(tensor.shape))
        return real(tensor, name)

    monkeypatch.setattr(staging, "snapshot", snapshot)
    monkeypatch.setattr(reduce, "on_host", lambda tensor: False)
    other = make()
    train_watched(other)
    assert len(copies) == 2  # the rows, and the counts of the histograms
    by_device = logged(other)
    assert by_device.scalars.keys() == by_host.scalars.keys()
    for tag, series in by_host.scalars.items():
        assert by_device.scalars[tag] == pytest.approx(series, rel=1e-4, abs=1e-6), tag
    for tag, steps in by_host.histograms.items():
        limits, counts = steps[0].buckets()
        found_limits, found_counts = by_device.histograms[tag][0].buckets()
        np.testing.assert_array_equal(found_limits, limits, tag)
        np.testing.assert_array_equal(found_counts, counts, tag)


def train_watched(tap: Tap) -> None:
    model = network()
    tap.watch(model, every=1, **EVERYTHING)
    train(model, sgd(model))
