"""What the hooks see, against the same tensors read by hand; nothing is sent anywhere."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

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


def test_an_output_of_hugging_faces_kind_is_named_by_its_fields(tap: Tap) -> None:
    generic = pytest.importorskip("transformers.utils.generic")

    class Block(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return BlockOutput(last_hidden_state=x, attentions=(x + 1, x + 2))

    @dataclass
    class BlockOutput(generic.ModelOutput):
        last_hidden_state: Tensor | None = None
        pooled: Tensor | None = None
        attentions: tuple[Tensor, ...] | None = None

    model = nn.Sequential(Block())
    tap.watch(model, every=1)
    model(torch.zeros(2))
    tap.step(1)
    found = logged(tap)
    means = {tag: found.value(tag) for tag in found.scalars if tag.endswith("/mean")}
    assert means == {
        "activations/0/last_hidden_state/mean": 0.0,
        "activations/0/attentions/0/mean": 1.0,
        "activations/0/attentions/1/mean": 2.0,
    }


@pytest.mark.parametrize(
    "make_input",
    [lambda: torch.arange(3), lambda: torch.ones(1, 4), lambda: torch.ones(0, 4)],
    ids=["integers", "requires no gradient", "empty"],
)
def test_inputs_without_gradients_show_none_and_disturb_nothing(
    tap: Tap, caplog: pytest.LogCaptureFixture, make_input: Callable[[], Tensor]
) -> None:
    value = make_input()
    model = nn.Embedding(3, 2) if value.dtype is torch.int64 else nn.Linear(4, 2)
    tap.watch(model, every=1, **EVERYTHING)
    model(value).sum().backward()
    sgd(model).step()
    found = logged(tap)
    assert not [tag for tag in found.histograms if tag.startswith("grad_inputs")]
    assert found.histograms["gradients/weight"][0].num == model.weight.numel()
    assert not [r for r in caplog.records if "leaves out" in r.getMessage()]


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
        *(
            torch.tensor([1.5, -0.5]).to(getattr(torch, name))
            for name in ("float8_e4m3fn", "float8_e5m2")
            if hasattr(torch, name)
        ),
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


# -- one thing ------------------------------------------------------------------------------


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
