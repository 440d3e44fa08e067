"""What `tap.watch` can be asked for, and what things are called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ranktap import Tap, names
from tests.support.networks import network, sgd, train
from tests.support.watching import Make, logged, silent_taps


@pytest.fixture
def make() -> Iterator[Make]:
    with silent_taps() as make:
        yield make


@pytest.fixture
def tap(make: Make) -> Tap:
    return make()


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
