"""When a step of a watch begins and ends, and what belongs to it; what several ranks log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ranktap import Tap
from tests.support.networks import batch, network, sgd, train
from tests.support.watching import Make, logged, silent_taps


@pytest.fixture
def make() -> Iterator[Make]:
    with silent_taps() as make:
        yield make


@pytest.fixture
def tap(make: Make) -> Tap:
    return make()


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


def test_a_parameter_that_is_frozen_or_put_in_anothers_place_is_followed(tap: Tap) -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
    tap.watch(model, every=2, optimizer=False, activations=(), parameters=())
    for step in range(5):
        tap.step(step)
        if step == 1:
            model[0].weight.requires_grad_(False)
        if step == 3:
            model[0].weight = nn.Parameter(torch.ones(1, 2))
        model(torch.ones(1, 2)).sum().backward()
    tap.step(5)
    found = logged(tap)
    assert found.steps("gradients/0.weight/norm") == [0, 4]
    assert found.steps("gradients/1.weight/norm") == [0, 2, 4]


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
