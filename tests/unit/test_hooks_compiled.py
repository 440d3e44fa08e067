"""Watching a model that torch.compile has compiled, or will."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from ranktap import Tap
from tests.support.networks import EVERYTHING, batch, network, sgd, train
from tests.support.watching import Logged, Make, logged, silent_taps


@pytest.fixture
def make() -> Iterator[Make]:
    with silent_taps() as make:
        yield make


@pytest.fixture
def tap(make: Make) -> Tap:
    return make()


@pytest.fixture
def fresh_dynamo() -> Iterator[Any]:
    import torch._dynamo
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    yield counters
    torch._dynamo.reset()


@pytest.mark.parametrize("first", ["watch", "compile"])
def test_a_compiled_model_is_one_graph_with_and_one_without(
    tap: Tap, fresh_dynamo: Any, first: str
) -> None:
    model = network()
    sections = dict.fromkeys(("inputs", "grad_inputs", "grad_outputs"), "moments")
    if first == "watch":
        tap.watch(model, every=3, **sections, feature_maps=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    if first == "compile":
        tap.watch(compiled, every=3, **sections, feature_maps=True)
    optimizer = sgd(model)
    train(compiled, optimizer, 2)
    graphs = fresh_dynamo["stats"]["unique_graphs"]
    train(compiled, optimizer, 8)
    assert graphs == 2
    assert fresh_dynamo["stats"]["unique_graphs"] == graphs
    assert not fresh_dynamo["graph_break"]
    found = logged(tap)
    for tag in ("inputs/4/mean", "activations/0/rms", "grad_outputs/4/rms", "grad_inputs/4/rms",
                "gradients/0.weight/norm"):  # fmt: skip
        assert found.steps(tag) == [0, 3, 6, 9], tag
    assert list(found.pictures["feature_maps/0"]) == [0, 3, 6, 9]


def test_a_compiled_model_shows_what_the_model_does(make: Make, fresh_dynamo: Any) -> None:
    def run(made: Callable[[nn.Module], Any]) -> Logged:
        tap = make()
        model = network()
        tap.watch(model, every=1, grad_outputs="moments")
        train(made(model), sgd(model), 2)
        return logged(tap)

    eager = run(lambda model: model)
    compiled = run(lambda model: torch.compile(model, backend="aot_eager"))
    assert eager.scalars.keys() == compiled.scalars.keys()
    for tag, series in eager.scalars.items():
        assert compiled.scalars[tag] == pytest.approx(series, rel=1e-3, abs=1e-5), tag


def test_hooks_that_a_compiled_model_never_calls_are_told(
    tap: Tap, fresh_dynamo: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = network()
    compiled = torch.compile(model, backend="eager")
    optimizer = sgd(model)
    train(compiled, optimizer)
    tap.watch(model, every=1)
    train(compiled, optimizer, 3)
    assert logged(tap).steps("gradients/0.weight/norm") == [0, 1, 2]
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert sum("compiled and run before" in message for message in told) == 1


def test_a_model_that_is_compiled_after_its_first_steps_has_its_hooks(
    tap: Tap, fresh_dynamo: Any
) -> None:
    """The hooks are off at step 2, where it is traced: the compiler is waited for."""
    model = network()
    optimizer = sgd(model)
    tap.watch(model, every=4, grad_outputs="moments", feature_maps=True)
    train(model, optimizer, 2)
    assert not model[0]._forward_hooks
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    train(compiled, optimizer, 10)
    assert fresh_dynamo["stats"]["unique_graphs"] == 2
    found = logged(tap)
    for tag in ("activations/0/rms", "grad_outputs/4/rms", "gradients/0.weight/norm"):
        assert found.steps(tag) == [0, 4, 8], tag
    assert list(found.pictures["feature_maps/0"]) == [0, 4, 8]


def test_hooks_stay_where_torch_does_not_say_that_it_compiles(
    tap: Tap, fresh_dynamo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._dynamo.callback

    monkeypatch.delattr(torch._dynamo.callback, "callback_handler")
    model = network()
    optimizer = sgd(model)
    tap.watch(model, every=2)
    train(model, optimizer)
    assert model[0]._forward_hooks
    train(model, optimizer, 2)
    assert logged(tap).steps("activations/0/rms") == [0, 2]


def test_a_watch_that_was_removed_stays_off_when_something_is_compiled(
    tap: Tap, fresh_dynamo: Any
) -> None:
    model = network()
    watch = tap.watch(model, every=2)
    train(model, sgd(model))
    watch.remove()
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))
    assert not model[0]._forward_hooks


# -- CUDA -----------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the training stream on CUDA")
def test_on_cuda_nothing_waits_for_the_device(tap: Tap) -> None:
    model = network().cuda()
    optimizer = sgd(model)
    images = batch().cuda()
    tap.watch(model, every=1, **EVERYTHING, feature_maps=True, kernels=True)
    train(model, optimizer, 2, inputs=lambda: images)  # cuDNN and pinned memory: once
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(model, optimizer, 3, inputs=lambda: images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    found = logged(tap)
    assert found.steps("gradients/0.weight/norm") == [0, 1, 2, 3, 4]
    assert found.histograms["activations/0"][4].num == 288
