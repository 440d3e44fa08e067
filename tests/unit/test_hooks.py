"""What the hooks see, against the same tensors read by hand; nothing is sent anywhere."""

from __future__ import annotations

import copy
import gc
import io
import logging
import pickle
import subprocess
import sys
import weakref
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ranktap import Tap, names, pictures
from ranktapd.render.grid import make_grid, to_uint8_hwc
from tests.support.watching import Logged, logged, silent_taps

Make = Callable[..., Tap]


@pytest.fixture
def make() -> Iterator[Make]:
    with silent_taps() as make:
        yield make


@pytest.fixture
def tap(make: Make) -> Tap:
    return make()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(144, 2),
    )


def batch(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def train(
    model: nn.Module, optimizer: Any, steps: int = 1, *, inputs: Callable[[], Any] = batch
) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(inputs()).square().sum().backward()
        optimizer.step()


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.01)


EVERYTHING: dict[str, Any] = dict.fromkeys(
    ("inputs", "activations", "grad_inputs", "grad_outputs", "gradients", "parameters", "updates"),
    ("moments", "histogram"),
)


# -- what is seen ---------------------------------------------------------------------------


def test_every_section_shows_what_is_read_by_hand(tap: Tap) -> None:
    model, by_hand = network(), network()
    optimizer = sgd(model)
    tap.watch(model, every=1, **EVERYTHING)
    train(model, optimizer)
    found = logged(tap)

    seen: dict[str, Tensor] = {}
    value = batch()
    for name, module in by_hand.named_children():
        seen[f"inputs/{name}"] = value.detach().clone()
        # A view, so that its gradient is that which comes through this module.
        part = value.view_as(value) if value.requires_grad and name != "2" else value
        if part.requires_grad:
            part.register_hook(lambda g, name=name: seen.__setitem__(f"grad_inputs/{name}", g))
        value = module(part)
        seen[f"activations/{name}"] = value.detach().clone()
        value.register_hook(lambda g, name=name: seen.__setitem__(f"grad_outputs/{name}", g))
    value.square().sum().backward()
    for name, parameter in by_hand.named_parameters():
        seen[f"parameters/{name}"] = parameter.detach()
        seen[f"gradients/{name}"] = parameter.grad
        seen[f"updates/{name}"] = -0.01 * parameter.grad

    assert set(found.histograms) == set(seen)
    for tag, tensor in seen.items():
        stats = found.histograms[tag][0]
        assert stats.num == tensor.numel()
        assert stats.sum_squares == pytest.approx(tensor.double().square().sum().item(), rel=1e-4)
        if not tag.startswith("updates"):  # of the difference of two float32
            assert (stats.min, stats.max) == pytest.approx(
                (tensor.min().item(), tensor.max().item()), abs=1e-6
            )
    for section in EVERYTHING:
        assert section in found.sections
    weight, update = seen["parameters/0.weight"], seen["updates/0.weight"]
    assert found.value("gradients/0.weight/norm") == pytest.approx(
        seen["gradients/0.weight"].norm().item(), rel=1e-5
    )
    assert found.value("activations/2/zeros") == pytest.approx(
        (seen["activations/2"] == 0).float().mean().item()
    )
    assert found.value("updates/0.weight/ratio") == pytest.approx(
        (update.norm() / weight.norm()).item(), rel=1e-4
    )


def test_a_watched_model_trains_to_the_same_bits(tap: Tap) -> None:
    watched, alone = network(), network()
    tap.watch(watched, every=1, **EVERYTHING, feature_maps=True, kernels=True)
    train(watched, sgd(watched), 3)
    train(alone, sgd(alone), 3)
    for one, other in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_output_that_is_overwritten_in_place_is_shown_as_it_was(tap: Tap) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(inplace=True))
    nn.init.constant_(model[0].weight, -1.0)
    tap.watch(model, every=1, grad_inputs="moments", grad_outputs="moments", feature_maps=True)
    train(model, sgd(model), inputs=lambda: torch.ones(1, 1, 2, 2))
    found = logged(tap)
    assert found.value("activations/0/mean") == -1.0
    assert found.value("activations/1/mean") == 0.0
    assert found.value("grad_inputs/1/zeros") == 1.0
    assert found.value("grad_outputs/0/zeros") == 1.0


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        out += x
        return out


def test_an_output_changed_by_an_operation_in_place_trains_on(tap: Tap) -> None:
    """A full backward hook raises here, in the training loop (pytorch issue 61519)."""
    model = nn.Sequential(nn.Linear(3, 3), Residual())
    tap.watch(model, every=1, grad_inputs="moments", grad_outputs="moments", include="*")
    optimizer = sgd(model)
    train(model, optimizer, inputs=lambda: torch.ones(2, 3))
    found = logged(tap)
    assert found.value("grad_inputs/1.inner/rms") > 0
    assert found.value("grad_outputs/1.inner/rms") > 0


def test_a_gradient_of_an_input_is_that_through_the_module_alone(tap: Tap) -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(1, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + 10 * x

    model = Skip()
    nn.init.constant_(model.inner.weight, 3.0)
    tap.watch(model, every=1, grad_inputs="histogram")
    train_input = torch.ones(1, 1, requires_grad=True)
    model(train_input * 1).backward()
    tap.step(1)
    assert logged(tap).histograms["grad_inputs/inner"][0].sum == 3.0


@dataclass
class Answer:
    hidden: Tensor
    extra: dict[str, Any]


Pair = namedtuple("Pair", ["left", "right"])


class Nested(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return Answer(x + 1, {"pair": Pair(x + 2, [x + 3, None, "text"]), "n": 7})


def test_nested_outputs_are_named_by_where_they_are(tap: Tap) -> None:
    model = nn.Sequential(Nested())
    tap.watch(model, every=1)
    model(torch.zeros(2))
    tap.step(1)
    found = logged(tap)
    means = {tag: found.value(tag) for tag in found.scalars if tag.endswith("/mean")}
    assert means == {
        "activations/0/hidden/mean": 1.0,
        "activations/0/extra/pair/0/mean": 2.0,
        "activations/0/extra/pair/1/0/mean": 3.0,
    }


def test_an_lstm_shows_its_outputs_and_its_state(tap: Tap) -> None:
    model = nn.Sequential(nn.LSTM(3, 2))
    tap.watch(model, every=1)
    model(torch.randn(4, 1, 3))
    tap.step(1)
    tags = {tag.rpartition("/")[0] for tag in logged(tap).scalars if tag.startswith("activations")}
    assert tags == {"activations/0/0", "activations/0/1/0", "activations/0/1/1"}


def test_calls_of_a_shared_module_are_merged(tap: Tap) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.second = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x) + 2)

    model = Twice()
    tap.watch(model, every=1, activations=("moments", "histogram"))
    model(torch.zeros(3))
    tap.step(1)
    found = logged(tap)
    assert found.value("activations/first/mean") == 1.0
    assert found.histograms["activations/first"][0].num == 6
    assert not any("second" in tag for tag in found.scalars)


def test_shared_weights_are_logged_once(tap: Tap) -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    tap.watch(model, every=1)
    train(model, sgd(model), inputs=lambda: torch.ones(1, 2))
    assert {tag for tag in logged(tap).scalars if tag.startswith("parameters")} == {
        f"parameters/0.weight/{field}" for field in ("norm", "mean", "std", "abs_max")
    }


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(4),
        torch.tensor([True, False]),
        torch.ones(3, dtype=torch.bfloat16),
        torch.ones(3, dtype=torch.float16),
        torch.ones(3, dtype=torch.float64),
    ],
    ids=lambda value: str(value.dtype),
)
def test_other_element_types_are_shown_as_numbers(tap: Tap, value: Tensor) -> None:
    model = nn.Sequential(nn.Identity())
    tap.watch(model, every=1)
    model(value)
    tap.step(1)
    assert logged(tap).value("activations/0/mean") == value.double().mean().item()


def test_an_empty_output_gives_no_scalar_and_no_error(tap: Tap) -> None:
    model = nn.Sequential(nn.Identity())
    tap.watch(model, every=1, activations=("moments", "histogram"), feature_maps="0")
    model(torch.ones(0, 3))
    tap.step(1)
    assert logged(tap).scalars == {}


@pytest.mark.parametrize(
    ("value", "reason"),
    [(torch.ones(2, dtype=torch.complex64), "complex64"), (torch.ones(2, device="meta"), "meta")],
    ids=["complex", "meta"],
)
def test_what_cannot_be_shown_is_left_out_with_one_message(
    tap: Tap, caplog: pytest.LogCaptureFixture, value: Tensor, reason: str
) -> None:
    model = nn.Sequential(nn.Identity())
    tap.watch(model, every=1)
    for step in range(3):
        tap.step(step)
        model(value)
    tap.step(3)
    assert logged(tap).scalars == {}
    (message,) = [r.getMessage() for r in caplog.records if "leaves out" in r.getMessage()]
    assert "activations/0" in message
    assert reason in message


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_gradients_count_the_zeros_that_they_leave_out(tap: Tap) -> None:
    model = nn.Embedding(5, 2, sparse=True)
    tap.watch(model, every=1, optimizer=None)
    optimizer = sgd(model)
    model(torch.tensor([1, 1, 3])).sum().backward()
    optimizer.step()
    found = logged(tap)
    assert found.value("gradients/weight/zeros") == 0.6
    assert found.value("gradients/weight/norm") == pytest.approx(10**0.5)


def test_a_non_finite_gradient_is_counted(tap: Tap) -> None:
    model = nn.Linear(1, 1, bias=False)
    tap.watch(model, every=1)
    optimizer = sgd(model)
    (model(torch.ones(1, 1)) * float("nan")).sum().backward()
    optimizer.step()
    assert logged(tap).value("gradients/weight/non_finite") == 1.0


def test_a_bug_of_ours_is_told_and_does_not_reach_the_training(
    tap: Tap, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ranktap import reduce

    def broken(tensor: Tensor, **named: Any) -> Any:
        raise RuntimeError("out of memory")

    model = network()
    tap.watch(model, every=1)
    monkeypatch.setattr(reduce, "moments", broken)
    train(model, sgd(model), 2)
    assert sum("activations/0: RuntimeError: out of memory" in r.getMessage()
               for r in caplog.records) == 1  # fmt: skip
    assert logged(tap).scalars == {}


def test_the_tensors_themselves_travel_where_asked(tap: Tap) -> None:
    model = network()
    tap.watch(model, every=1, activations=(), parameters=(), gradients="tensor")
    train(model, sgd(model))
    found = logged(tap)
    assert found.scalars == {}
    np.testing.assert_array_equal(
        found.tensors["gradients/0.weight/tensor"][0].reshape(4, 3, 3, 3), model[0].weight.grad
    )


# -- steps ----------------------------------------------------------------------------------


def test_every_chooses_the_steps(tap: Tap) -> None:
    model = network()
    tap.watch(model, every=3)
    train(model, sgd(model), 8)
    found = logged(tap)
    for tag in ("activations/0/rms", "gradients/0.weight/norm", "parameters/4.bias/mean"):
        assert found.steps(tag) == [0, 3, 6]


def test_steps_have_the_taps_number_once_it_is_used(tap: Tap) -> None:
    model = network()
    optimizer = sgd(model)
    tap.watch(model, every=10)
    for step in (20, 25, 30):
        tap.step(step)
        train(model, optimizer)
    assert logged(tap).steps("gradients/0.weight/norm") == [20, 30]


def test_a_tap_whose_step_is_set_at_the_end_of_the_loop(tap: Tap) -> None:
    model = network()
    optimizer = sgd(model)
    tap.watch(model, every=2)
    for step in range(5):
        train(model, optimizer)
        tap.step(step + 1)
    assert logged(tap).steps("activations/0/rms") == [0, 2, 4]


def test_capture_takes_the_next_whole_step(tap: Tap) -> None:
    model = network()
    optimizer = sgd(model)
    watch = tap.watch(model, every=1_000)
    train(model, optimizer, 3)
    watch.capture()
    train(model, optimizer, 2)
    loss = model(batch()).sum()
    watch.capture()
    loss.backward()
    optimizer.step()
    train(model, optimizer, 2)
    found = logged(tap)
    assert found.steps("activations/0/rms") == [0, 3, 6]
    assert set(found.steps("gradients/0.weight/norm")) >= {0, 3, 6}


def test_accumulated_gradients_are_seen_once_and_activations_of_all_parts(tap: Tap) -> None:
    model = nn.Linear(2, 1, bias=False)
    optimizer = sgd(model)
    tap.watch(model, every=1, activations="histogram", gradients="histogram")
    for part in (1.0, 3.0):
        model(torch.full((4, 2), part)).sum().backward()
    optimizer.step()
    found = logged(tap)
    assert found.histograms["activations/model"][0].num == 8
    assert found.histograms["gradients/weight"][0].max == 16.0
    assert list(found.histograms["gradients/weight"]) == [0]


def test_optimizers_of_other_models_end_no_step(tap: Tap) -> None:
    model, other = network(), network()
    optimizer = sgd(model)
    tap.watch(model, every=1)
    train(other, sgd(other), 3)
    train(model, optimizer)
    assert logged(tap).steps("gradients/0.weight/norm") == [0]


def test_several_optimizers_of_one_model_make_one_step(tap: Tap) -> None:
    model = network()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.Adam(model[4].parameters(), lr=0.1)
    tap.watch(model, every=1, updates="moments")
    for step in range(2):
        tap.step(step)
        model(batch()).sum().backward()
        first.step()
        second.step()
    found = logged(tap)
    for tag in ("gradients/0.weight/norm", "gradients/4.weight/norm", "updates/4.bias/norm"):
        assert found.steps(tag) == [0, 1], tag


def test_a_flush_in_the_middle_of_a_step_doubles_nothing(
    tap: Tap, caplog: pytest.LogCaptureFixture
) -> None:
    model = network()
    optimizer = sgd(model)
    tap.watch(model, every=1, kernels=True)
    for step in range(2):
        tap.step(step)
        loss = model(batch()).sum()
        tap._end_steps()
        loss.backward()
        optimizer.step()
        tap._end_steps()
    found = logged(tap)  # it raises where a tag comes twice at one step
    for tag in ("activations/0/rms", "gradients/0.weight/norm", "parameters/0.weight/norm"):
        assert found.steps(tag) == [0, 1], tag
    assert not [r for r in caplog.records if "leaves out" in r.getMessage()]


def test_a_named_optimizer_is_the_only_one(tap: Tap) -> None:
    model = network()
    named, other = sgd(model), sgd(model)
    tap.watch(model, every=1, optimizer=named)
    train(model, other, 2)
    train(model, named)
    assert logged(tap).steps("gradients/0.weight/norm") == [0]


def test_without_an_optimizer_gradients_are_those_that_backward_leaves(tap: Tap) -> None:
    model = nn.Linear(2, 1, bias=False)
    tap.watch(model, every=1, optimizer=False, gradients="histogram")
    for step in range(2):
        tap.step(step)
        model.zero_grad()
        model(torch.full((1, 2), 1.0 + step)).sum().backward()
        model(torch.full((1, 2), 1.0)).sum().backward()
    tap.step(2)
    found = logged(tap).histograms["gradients/weight"]
    assert {step: stats.max for step, stats in found.items()} == {0: 2.0, 1: 3.0}
    assert {stats.num for stats in found.values()} == {2}


def test_evaluation_in_a_job_that_trains_is_not_mixed_in(tap: Tap) -> None:
    model = nn.Linear(1, 1, bias=False)
    optimizer = sgd(model)
    tap.watch(model, every=1, activations="histogram")
    for _ in range(3):
        train(model, optimizer, inputs=lambda: torch.ones(2, 1))
        model.eval()
        with torch.no_grad():
            model(torch.ones(50, 1))
        model.train()
    assert {stats.num for stats in logged(tap).histograms["activations/model"].values()} == {2}


def test_a_model_that_is_only_evaluated_is_shown_with_its_parameters(tap: Tap) -> None:
    model = network().eval()
    tap.watch(model, every=1)
    with torch.inference_mode():
        for step in range(2):
            tap.step(step)
            model(batch())
    assert tap.flush(timeout=0) is False
    found = logged(tap)
    assert found.steps("activations/0/rms") == [0, 1]
    assert found.steps("parameters/0.weight/norm") == [0, 1]


def test_a_check_before_training_does_not_count_with_the_first_step(tap: Tap) -> None:
    model = nn.Linear(1, 1, bias=False)
    tap.watch(model, every=1, activations="histogram")
    model.eval()
    model(torch.ones(50, 1))
    model.train()
    train(model, sgd(model), inputs=lambda: torch.ones(2, 1))
    assert logged(tap).histograms["activations/model"][0].num == 2


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputed_forward_counts_once(tap: Tap, reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)
            self.last = nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(checkpoint(self.inner, x, use_reentrant=reentrant))

    model = Checkpointed()
    tap.watch(model, every=1, activations="histogram", grad_inputs="histogram",
              grad_outputs="histogram", inputs="histogram")  # fmt: skip
    train(model, sgd(model), inputs=lambda: torch.ones(3, 2, requires_grad=True))
    found = logged(tap)
    for section in ("inputs", "activations", "grad_inputs", "grad_outputs"):
        assert found.histograms[f"{section}/inner"][0].num == 6, section


def test_autocast_outputs_are_seen_in_their_own_type(tap: Tap) -> None:
    model = nn.Linear(64, 64)
    tap.watch(model, every=1)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(torch.ones(2, 64))
    output.float().sum().backward()
    sgd(model).step()
    assert output.dtype is torch.bfloat16
    found = logged(tap)
    assert found.value("activations/model/abs_max") == output.abs().max().item()
    assert found.value("gradients/weight/norm") > 0


def test_what_nobody_trains_or_runs_is_read_at_each_step(tap: Tap) -> None:
    model = network()
    watch = tap.watch(model, every=2, activations=(), kernels=True)
    for step in range(3):
        tap.step(step)
    tap._end_steps()
    tap._end_steps()
    watch.remove()
    found = logged(tap)
    assert found.steps("parameters/0.weight/norm") == [0, 2]
    assert list(found.pictures["kernels/0.weight"]) == [0, 2]


# -- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "parallel", "cleaned"),
    [
        ("module.layer.0", [""], "layer.0"),
        ("_orig_mod.layer.0", [], "layer.0"),
        ("_orig_mod.module.layer", ["_orig_mod"], "layer"),
        ("module._orig_mod.layer", [""], "layer"),
        ("_fsdp_wrapped_module.a._fsdp_wrapped_module.b", [], "a.b"),
        ("block._checkpoint_wrapped_module.fc", [], "block.fc"),
        ("encoder.module.fc", ["encoder"], "encoder.fc"),
        ("encoder.module.fc", [], "encoder.module.fc"),
        ("my_orig_mod.fc", [], "my_orig_mod.fc"),
        ("", [], "model"),
        ("_orig_mod", [], "model"),
        ("module", [""], "model"),
    ],
)
def test_wrappers_do_not_show_in_names(raw: str, parallel: list[str], cleaned: str) -> None:
    assert names.clean(raw, parallel) == cleaned


@pytest.mark.parametrize(
    ("patterns", "sections"),
    [
        ({"include": "0"}, {"activations/0", "gradients/0.weight", "gradients/0.bias"}),
        ({"include": "*.bias"}, {"gradients/0.bias", "gradients/1.bias", "gradients/4.bias"}),
        (
            {"include": ["0", "4"], "exclude": "*.bias"},
            {"activations/0", "activations/4", "gradients/0.weight", "gradients/4.weight"},
        ),
        ({"include": "model"}, {"activations/model"}),
    ],
)
def test_patterns_choose_modules_and_parameters(
    tap: Tap, patterns: dict[str, Any], sections: set[str]
) -> None:
    model = network()
    tap.watch(model, every=1, parameters=(), **patterns)
    train(model, sgd(model))
    assert {tag.rpartition("/")[0] for tag in logged(tap).scalars} == sections


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"every": 0}, ValueError, "every"),
    ({"every": 1.5}, TypeError, "every"),
    ({"include": "layer9*"}, ValueError, "include.*layer9"),
    ({"exclude": "nothing"}, ValueError, "exclude.*nothing"),
    ({"include": 3}, TypeError, "include"),
    ({"activations": "median"}, ValueError, "activations.*median"),
    ({"gradients": 3}, TypeError, "gradients"),
    ({"feature_maps": "layer9"}, ValueError, "feature_maps.*layer9"),
    ({"kernels": ["layer9"]}, ValueError, "kernels.*layer9"),
    ({"optimizer": "adam"}, TypeError, "optimizer"),
    ({"samples": 0}, ValueError, "samples"),
    ({"max_edge": -1}, ValueError, "max_edge"),
    ({"ranks": "some"}, ValueError, "ranks"),
    ({"ranks": [5]}, ValueError, "ranks"),
    ({"name": 3}, TypeError, "name"),
    ({"name": "a\nb"}, ValueError, "control"),
]


@pytest.mark.parametrize(("given", "error", "message"), WRONG, ids=lambda each: str(each)[:30])
def test_a_wrong_argument_raises_and_leaves_the_model_as_it_was(
    tap: Tap, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = network()
    with pytest.raises(error, match=message):
        tap.watch(model, **given)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert not tap._recorders


def test_what_is_no_model_is_named(tap: Tap) -> None:
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got function"):
        tap.watch(lambda x: x)


def test_two_watches_of_one_name_are_told_apart_or_refused(tap: Tap) -> None:
    model, other = network(), network()
    watch = tap.watch(model, every=1)
    with pytest.raises(ValueError, match="name="):
        tap.watch(other)
    tap.watch(other, every=1, name="critic")
    train(other, sgd(other))
    assert logged(tap).value("gradients/critic/0.weight/norm") > 0
    watch.remove()
    tap.watch(model)


# -- what it leaves alone ---------------------------------------------------------------------


def test_remove_takes_everything_off_again(tap: Tap) -> None:
    model = network()
    optimizer = sgd(model)
    before = _global_hooks()
    with tap.watch(model, every=1, **EVERYTHING) as watch:
        train(model, optimizer)
        model(batch())
    watch.remove()
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert _global_hooks() == before
    found = logged(tap)
    assert found.steps("activations/0/rms") == [0, 1]
    train(model, optimizer)
    assert logged(tap).blobs == []


def _global_hooks() -> int:
    import importlib

    optimizer = importlib.import_module("torch.optim.optimizer")
    return len(optimizer._global_optimizer_pre_hooks) + len(optimizer._global_optimizer_post_hooks)


def test_a_model_goes_with_its_watch(tap: Tap) -> None:
    gc.collect()
    before = _global_hooks()
    model = network()
    tap.watch(model, every=1, **EVERYTHING)
    optimizer = sgd(model)
    train(model, optimizer)
    gone = weakref.ref(model)
    del model, optimizer
    gc.collect()
    assert gone() is None
    assert _global_hooks() == before
    assert not list(tap._recorders)


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


# -- ranks ------------------------------------------------------------------------------------


def test_ranks_that_take_no_part_hook_nothing(make: Make) -> None:
    tap = make(1, 2)
    model = network()
    watch = tap.watch(model, every=1, ranks=0)
    watch.capture()
    train(model, sgd(model))
    watch.remove()
    assert logged(tap).blobs == []


def test_pictures_come_from_the_first_rank_alone(make: Make) -> None:
    for rank in range(2):
        tap = make(rank, 2)
        model = network()
        tap.watch(model, every=1, feature_maps=True, kernels=True)
        train(model, sgd(model))
        assert bool(logged(tap).pictures) == (rank == 0)


def test_plain_parameters_of_several_ranks_are_marked_as_the_same(make: Make) -> None:
    tap = make(0, 2)
    model = network()
    tap.watch(model, every=1)
    train(model, sgd(model))
    marked = {blob.tag.split("/")[2]: blob.parameters["replicated"] for blob in logged(tap).blobs}
    assert marked == {"activations": False, "gradients": True, "parameters": True}


# -- pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pixels_are_those_of_the_daemons_normalising(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    maps = (torch.randn(7, 1, 9, 5) * torch.logspace(-8, 8, 7).view(-1, 1, 1, 1)).to(dtype).float()
    maps[3] = 2.0  # of no range at all
    ours = make_grid(pictures.to_pixels(maps).numpy(), nrow=2)
    daemons = make_grid(maps.numpy(), nrow=2, normalize=True, scale_each=True)
    np.testing.assert_array_equal(to_uint8_hwc(ours, "CHW"), to_uint8_hwc(daemons, "CHW"))


def test_colour_kernels_are_scaled_as_one_picture_each() -> None:
    weight = torch.randn(5, 3, 7, 7)
    ours = pictures.kernels(weight, 4, 7)
    daemons = make_grid(weight[:4].numpy(), normalize=True, scale_each=True)
    drawn = to_uint8_hwc(make_grid(ours.numpy()), "CHW")
    np.testing.assert_array_equal(drawn, to_uint8_hwc(daemons, "CHW"))


def test_maps_are_chosen_and_shrunk_before_they_travel() -> None:
    output = torch.randn(8, 70, 40, 20)
    made = pictures.feature_maps(output, samples=2, max_maps=6, max_edge=10)
    assert made.shape == (12, 1, 10, 5)
    assert made.dtype is torch.uint8
    averaged = torch.nn.functional.avg_pool2d(output[:2, :6], 4).flatten(0, 1).unsqueeze(1)
    assert torch.equal(made, pictures.to_pixels(averaged))


def test_feature_maps_and_kernels_of_a_watched_model(tap: Tap) -> None:
    model = network()
    seen = []
    model[0].register_forward_hook(lambda *args: seen.append(args[2].detach().clone()))
    tap.watch(model, every=2, feature_maps=True, kernels=True)
    weight = model[0].weight.detach().clone()
    train(model, sgd(model), 2)
    found = logged(tap).pictures
    assert set(found) == {"feature_maps/0", "kernels/0.weight"}
    assert list(found["feature_maps/0"]) == [0]
    maps = found["feature_maps/0"][0]
    assert maps.parameters["nrow"] == 2
    np.testing.assert_array_equal(maps.array(), pictures.to_pixels(seen[0][0].unsqueeze(1)))
    shown = found["kernels/0.weight"][0].array()
    assert shown.shape == (4, 3, 24, 24)
    np.testing.assert_array_equal(shown[:, :, ::8, ::8], pictures.to_pixels(weight))


def test_what_has_no_maps_is_told(tap: Tap, caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    tap.watch(model, every=1, feature_maps=["4"])
    train(model, sgd(model), 2)
    assert logged(tap).pictures == {}
    assert sum("feature_maps/4" in r.getMessage() for r in caplog.records) == 1


# -- one thing ------------------------------------------------------------------------------------


def test_the_gradient_of_a_tensor_that_is_no_leaf(tap: Tap) -> None:
    w, x = torch.tensor(1.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    a, b = w + x, w + 1
    tap.step(7)
    tap.gradient(a, "gradients/a")
    tap.gradient(w, "gradients/w")
    tap.gradient(x, "gradients/x")
    (a * b).backward()
    found = logged(tap)
    assert found.scalars["gradients/a/mean"] == {7: 2.0}
    assert found.scalars["gradients/w/mean"] == {7: 5.0}
    assert found.scalars["gradients/x/mean"] == {7: 2.0}


def test_a_gradient_that_nobody_asked_torch_for(tap: Tap) -> None:
    with pytest.raises(ValueError, match="requires a gradient"):
        tap.gradient(torch.ones(2), "x")
    with torch.no_grad():
        tap.gradient(torch.ones(2), "x").remove()
    with pytest.raises(TypeError, match="tensor"):
        tap.gradient(3.0, "x")
    with pytest.raises(ValueError, match="kind"):
        tap.gradient(torch.ones(2, requires_grad=True), "x", kind="picture")


def test_a_gradient_is_logged_until_it_is_removed(tap: Tap) -> None:
    weight = torch.ones(2, requires_grad=True)
    with tap.gradient(weight, "w", kind="histogram"):
        weight.sum().backward()
    weight.sum().backward()
    assert logged(tap).histograms["w"][0].num == 2


@pytest.mark.parametrize("kind", ["moments", "histogram", "tensor", "feature_maps"])
def test_one_modules_activation(tap: Tap, kind: str) -> None:
    model = network()
    handle = tap.activation(model[0], "first", kind)
    model(batch())
    handle.remove()
    model(batch())
    found = logged(tap)
    (blob,) = found.blobs
    if kind == "moments":
        assert "first/rms" in found.scalars
    elif kind == "histogram":
        assert found.histograms["first"][0].num == 2 * 4 * 36
    elif kind == "tensor":
        assert found.tensors["first"][0].size == 2 * 4 * 36
    else:
        assert blob.shape == (4, 1, 6, 6)


def test_an_activation_without_a_tag_is_named_by_its_class(tap: Tap) -> None:
    model = network()
    tap.activation(model[4])
    model(batch())
    assert list(logged(tap).histograms) == ["activations/Linear"]


# -- torch.compile --------------------------------------------------------------------------------


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
