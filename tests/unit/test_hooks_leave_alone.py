"""What a watch leaves as it was: the model, the optimizers, memory."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ranktap import Tap
from tests.support.networks import EVERYTHING, batch, network, sgd, train
from tests.support.watching import Make, logged, silent_taps


@pytest.fixture
def make() -> Iterator[Make]:
    with silent_taps() as make:
        yield make


@pytest.fixture
def tap(make: Make) -> Tap:
    return make()


def test_remove_takes_everything_off_again(tap: Tap) -> None:
    model = network()
    optimizer = sgd(model)
    with tap.watch(model, every=1, **EVERYTHING) as watch:
        train(model, optimizer)
        model(batch())
    watch.remove()
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    found = logged(tap)
    assert found.steps("activations/0/rms") == [0, 1]
    train(model, optimizer)
    assert logged(tap).blobs == []


def _global_hooks() -> int:
    import importlib

    optimizer = importlib.import_module("torch.optim.optimizer")
    return len(optimizer._global_optimizer_pre_hooks) + len(optimizer._global_optimizer_post_hooks)


def test_all_watches_share_two_hooks_of_optimizers_and_the_last_takes_them_off(tap: Tap) -> None:
    gc.collect()
    models = [network() for _ in range(3)]
    before = _global_hooks()
    watches = [tap.watch(model, name=str(number)) for number, model in enumerate(models)]
    assert before <= _global_hooks() == 2
    for watch in watches:
        watch.remove()
    assert _global_hooks() == 0


def test_a_model_goes_with_its_watch(tap: Tap) -> None:
    model = network()
    optimizer = sgd(model)
    tap.watch(model, every=2, **EVERYTHING)
    train(model, optimizer, 2)
    gone = weakref.ref(model)
    (recorder,) = tap._recorders
    watching = weakref.ref(recorder)
    del recorder, optimizer
    gc.collect()
    gc.disable()
    try:
        del model
        assert gone() is None
        assert watching() is None, "its copy of the parameters waits for the garbage collector"
    finally:
        gc.enable()
    assert not list(tap._recorders)


def test_a_watch_may_go_while_torch_calls_the_hooks_of_an_optimizer(tap: Tap) -> None:
    """The garbage collector may run anywhere, so also there."""
    model, other = network(), network()
    optimizer = sgd(model)
    watched = [other]
    tap.watch(other, every=1, name="other")
    tap.watch(model, every=1)
    optimizer.register_step_pre_hook(lambda *args: watched.clear())
    del other
    train(model, optimizer, 2)
    assert not watched
    assert logged(tap).steps("gradients/0.weight/norm") == [0, 1]


def test_an_optimizer_may_outlive_its_model_and_a_watch(tap: Tap) -> None:
    model = network()
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    tap.watch(model, every=1, optimizer=optimizer)
    del model
    gc.collect()
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert logged(tap).blobs == []


def test_a_watch_of_parameters_alone_lives_without_being_held(tap: Tap) -> None:
    model = network()
    tap.watch(model, every=1, activations=())
    gc.collect()
    train(model, sgd(model))
    assert logged(tap).steps("gradients/0.weight/norm") == [0]


def test_no_activation_and_no_graph_is_kept(tap: Tap) -> None:
    model = network()
    tap.watch(model, every=1, **EVERYTHING, feature_maps=True)
    kept = []
    model[0].register_forward_hook(lambda *args: kept.append(weakref.ref(args[2])))
    output = model(batch())
    output.sum().backward()
    del output
    gc.collect()
    assert [ref() for ref in kept] == [None]


@pytest.mark.parametrize("optimizer", [None, False])
def test_a_watched_model_can_be_copied_pickled_and_saved(
    tap: Tap, tmp_path: Path, optimizer: Any
) -> None:
    """At a step that is looked at: in the others it has no hooks."""
    model = network()
    tap.watch(model, every=1, **EVERYTHING, feature_maps=True, kernels=True, optimizer=optimizer)
    train(model, sgd(model))
    logged(tap)
    copied = copy.deepcopy(model)
    loaded = pickle.loads(pickle.dumps(model))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    saved = torch.load(file, weights_only=False)
    for other in (copied, loaded, saved):
        train(other, sgd(other))
        assert list(other.state_dict()) == list(model.state_dict())
    assert logged(tap).blobs == []
    torch.save(model, tmp_path / "model.pt")
    program = (
        "import sys, torch; sys.modules['ranktap'] = None\n"
        f"model = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)\n"
        "print(model(torch.ones(2, 3, 8, 8)).shape)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout.strip() == "torch.Size([2, 2])", ran.stderr


def test_a_disabled_tap_hooks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import ranktap

    monkeypatch.setenv("RANKTAP_DISABLED", "1")
    tap = ranktap.init("run")
    model = network()
    with tap.watch(model, every=1) as watch:
        watch.capture()
        tap.activation(model[0], "x").remove()
        tap.gradient(model[0].weight, "y").remove()
        train(model, sgd(model))
    assert not model[0]._forward_hooks


def test_a_closed_tap_and_a_forked_child_log_nothing_and_raise_nothing(make: Make) -> None:
    tap = make()
    model = network()
    tap.watch(model, every=1)
    tap.close(timeout=0)
    train(model, sgd(model), 2)
    other = make()
    with_other = network()
    other.watch(with_other, every=1)
    other._become_inert()
    train(with_other, sgd(with_other), 2)
    assert logged(other).blobs == []
