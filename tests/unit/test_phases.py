"""Where a step's time goes: what is counted as which part, on a clock that the test moves."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ranktap import Tap, base, phases
from tests.support.networks import batch, network, sgd, train
from tests.support.watching import Make, silent_taps

FORWARD_S, BACKWARD_S, WAIT_S, DATA_S = 2.0, 3.0, 5.0, 11.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def __call__(self) -> float:
        return self.now


class Slow(torch.autograd.Function):
    """Passes its input on, and takes its time in both directions."""

    @staticmethod
    def forward(context: Any, value: Tensor, clock: Clock) -> Tensor:
        context.clock = clock
        clock.advance(FORWARD_S)
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        context.clock.advance(BACKWARD_S)
        return gradient, None


class SlowModel(nn.Module):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.clock = clock

    def forward(self, value: Tensor) -> Any:
        return {"out": Slow.apply(self.layer(value), self.clock)}


class Job:
    """A rank of two whose model takes known times."""

    def __init__(self, tap: Tap, clock: Clock, **watched: Any) -> None:
        self.tap, self.clock = tap, clock
        self.model = SlowModel(clock)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.watch = tap.watch(self.model, every=1_000, **watched)

    def call(self) -> Tensor:
        out: Tensor = self.model(torch.ones(1, 2))["out"]
        return out.sum()

    def step(self, number: int | None = None, *, calls: int = 1) -> None:
        self.clock.advance(DATA_S)
        if number is not None:
            self.tap.step(number)
        for call in range(calls):
            if call:
                self.clock.advance(DATA_S)
            self.call().backward()
        self.clock.advance(WAIT_S)
        self.optimizer.step()
        self.clock.advance(0.5)


def logged(tap: Tap) -> dict[str, dict[int, float]]:
    """Part to step to seconds, as far as it was logged."""
    found: dict[str, dict[int, float]] = {}
    while (sealed := tap._outbox.take()) is not None:
        columns = sealed.batch.columns
        if columns is None:
            continue
        for index, step, value in zip(
            columns.tag_index.tolist(), columns.step.tolist(), columns.value.tolist(), strict=True
        ):
            tag = columns.tags[index]
            if tag.startswith(phases.PREFIX):
                steps = found.setdefault(tag.removeprefix(phases.PREFIX), {})
                assert step not in steps, f"{tag} twice at step {step}"
                steps[step] = value
    return found


@pytest.fixture
def make() -> Iterator[Make]:
    with silent_taps() as make:
        yield make


@pytest.fixture
def tap(make: Make) -> Tap:
    return make(rank=1, world_size=2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(phases, "time", SimpleNamespace(perf_counter=clock))
    monkeypatch.setattr(base, "perf_counter", clock)
    return clock


# -- the whole step -----------------------------------------------------------------------


def test_the_time_from_one_step_to_the_next_is_that_of_the_first(tap: Tap, clock: Clock) -> None:
    for step, seconds in ((5, 1.0), (6, 2.0), (9, 4.0), (9, 8.0), (2, 16.0)):
        tap.step(step)
        clock.advance(seconds)
    assert logged(tap) == {"total": {5: 1.0, 6: 2.0, 9: 12.0}}


def test_a_rank_alone_logs_no_times(make: Make, clock: Clock) -> None:
    tap = make()
    job = Job(tap, clock)
    for step in range(3):
        job.step(step)
    assert logged(tap) == {}
    assert not job.model._forward_hooks or tap._recorders


def test_a_step_of_a_closed_tap_is_no_loss(tap: Tap) -> None:
    tap.step(1)
    tap._closed = True
    tap.step(2)
    tap._closed = False
    assert tap._outbox.dropped == 0


# -- its parts ----------------------------------------------------------------------------


def test_each_part_of_a_step_is_what_lies_between_its_marks(tap: Tap, clock: Clock) -> None:
    job = Job(tap, clock)
    for step in range(10, 13):
        job.step(step)
    clock.advance(DATA_S)
    tap.step(13)
    assert logged(tap) == {
        "total": dict.fromkeys((10, 11, 12), FORWARD_S + BACKWARD_S + WAIT_S + 0.5 + DATA_S),
        "forward": dict.fromkeys((10, 11, 12), FORWARD_S),
        "backward": dict.fromkeys((10, 11, 12), BACKWARD_S),
        # Before the first step nothing was, and whose the optimizer is shows when it has stepped.
        "data": dict.fromkeys((11, 12), 0.5 + DATA_S),
        "wait": dict.fromkeys((11, 12), WAIT_S),
    }


def test_without_steps_of_the_tap_the_optimizers_are_counted(tap: Tap, clock: Clock) -> None:
    job = Job(tap, clock)
    for _ in range(3):
        job.step()
    found = logged(tap)
    assert found["forward"] == dict.fromkeys(range(3), FORWARD_S)
    assert found["wait"] == dict.fromkeys((1, 2), WAIT_S)
    assert "total" not in found


def test_several_calls_of_the_model_in_one_step_are_added_up(tap: Tap, clock: Clock) -> None:
    job = Job(tap, clock)
    for step in range(3):
        job.step(step, calls=3)
    tap.step(3)
    found = logged(tap)
    assert found["forward"][2] == 3 * FORWARD_S
    assert found["backward"][2] == 3 * BACKWARD_S
    assert found["data"][2] == 3 * DATA_S + 0.5
    assert found["wait"][2] == WAIT_S


def test_what_is_between_two_calls_without_a_backward_is_no_part(tap: Tap, clock: Clock) -> None:
    job = Job(tap, clock)
    job.step(0)
    tap.step(1)
    first = job.call()
    clock.advance(100.0)
    (first + job.call()).backward()
    job.optimizer.step()
    tap.step(2)
    found = logged(tap)
    assert found["data"] == {1: 0.5}
    assert found["forward"][1] == 2 * FORWARD_S
    assert found["backward"][1] == 2 * BACKWARD_S


def test_evaluation_is_no_part_and_no_waiting_for_data(tap: Tap, clock: Clock) -> None:
    job = Job(tap, clock)
    job.step(0)
    clock.advance(50.0)
    job.model.eval()
    job.call()
    job.model.train()
    with torch.no_grad():
        job.call()
    clock.advance(1.0)
    tap.step(1)
    job.call().backward()
    job.optimizer.step()
    tap.step(2)
    found = logged(tap)
    assert found["data"] == {1: 1.0}
    assert found["forward"] == {0: FORWARD_S, 1: FORWARD_S}


def test_a_forward_that_raises_is_forgotten(tap: Tap, clock: Clock) -> None:
    job = Job(tap, clock)
    job.step(0)
    tap.step(1)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        job.model(torch.ones(1, 3))
    clock.advance(100.0)
    job.call().backward()
    job.optimizer.step()
    tap.step(2)
    assert logged(tap)["forward"] == {0: FORWARD_S, 1: FORWARD_S}


def test_a_forward_within_backward_is_part_of_it(tap: Tap, clock: Clock) -> None:
    job = Job(tap, clock)
    tap.step(0)
    value = torch.ones(1, 2, requires_grad=True)
    with torch.utils.checkpoint.set_checkpoint_early_stop(False):
        out = torch.utils.checkpoint.checkpoint(
            lambda x: job.model(x)["out"], value, use_reentrant=False
        )
    out.sum().backward()
    job.optimizer.step()
    tap.step(1)
    found = logged(tap)
    assert found["forward"] == {0: FORWARD_S}
    assert found["backward"] == {0: FORWARD_S + BACKWARD_S}


def test_the_last_step_is_logged_when_the_watch_ends_and_no_step_twice(
    tap: Tap, clock: Clock
) -> None:
    job = Job(tap, clock)
    job.step(0)
    tap._end_steps()
    job.optimizer.step()
    assert logged(tap)["forward"] == {0: FORWARD_S}
    job.call().backward()  # of step 0 still
    tap.step(1)
    assert "forward" not in logged(tap)
    job.step(1)
    job.watch.remove()
    assert logged(tap)["forward"] == {1: FORWARD_S}
    job.step(2)
    tap.step(3)
    assert set(logged(tap)) == {"total"}


def test_of_two_watched_models_the_first_one_counts(tap: Tap, clock: Clock) -> None:
    first, second = Job(tap, clock), Job(tap, clock, name="second")
    first.step(0)
    second.step(0)
    tap.step(1)
    found = logged(tap)
    assert found["forward"] == {0: FORWARD_S}


def test_another_models_optimizer_is_not_waited_for(tap: Tap, clock: Clock) -> None:
    job = Job(tap, clock)
    other = network()
    other_optimizer = sgd(other)
    for step in range(3):
        clock.advance(DATA_S)
        tap.step(step)
        job.call().backward()
        clock.advance(WAIT_S)
        train(other, other_optimizer)
        job.optimizer.step()
    tap.step(3)
    assert logged(tap)["wait"] == dict.fromkeys((1, 2), WAIT_S)


def test_without_an_optimizer_there_are_no_parts(tap: Tap, clock: Clock) -> None:
    job = Job(tap, clock, optimizer=False)
    job.step(0)
    job.step(1)
    assert set(logged(tap)) == {"total"}


class Event:
    """What is used of a `torch.cuda.Event`; it passes when the test says so."""

    passed = 0.0

    def __init__(self, clock: Clock) -> None:
        self.at = clock.now

    def query(self) -> bool:
        return self.at <= Event.passed

    def elapsed_time(self, end: Event) -> float:
        assert end.query(), "this would raise"
        return (end.at - self.at) * 1_000


def test_a_devices_times_are_logged_when_its_events_have_passed_and_nothing_waits(
    tap: Tap, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases.Phases, "_mark", lambda self: Event(clock))
    monkeypatch.setattr(Event, "passed", 0.0)
    job = Job(tap, clock)
    for step in range(3):
        job.step(step)
    assert set(logged(tap)) == {"total"}
    Event.passed = clock.now
    tap.step(3)
    found = logged(tap)
    assert found["forward"] == dict.fromkeys(range(3), FORWARD_S)
    assert found["wait"] == dict.fromkeys((1, 2), WAIT_S)


def test_a_device_that_hangs_keeps_no_more_than_some_steps(
    tap: Tap, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases.Phases, "_mark", lambda self: Event(clock))
    monkeypatch.setattr(Event, "passed", 0.0)
    job = Job(tap, clock)
    for step in range(phases.PENDING_MAX + 10):
        job.step(step)
    Event.passed = clock.now
    tap.step(1_000)
    assert len(logged(tap)["forward"]) == phases.PENDING_MAX


# -- the model stays as it was ------------------------------------------------------------


def test_a_model_can_be_copied_and_pickled_while_its_times_are_taken(tap: Tap) -> None:
    model = network()
    tap.watch(model)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for each in copies:
        each(batch())
    assert logged(tap) == {}


def test_in_a_compiled_model_the_hooks_are_not_there_and_break_no_graph(
    tap: Tap, clock: Clock
) -> None:
    model = network()
    tap.watch(model, every=1_000)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    optimizer = sgd(model)
    tap.step(1)
    train(compiled, optimizer, 2)
    tap.step(2)
    assert set(logged(tap)) == {"total"}
    torch._dynamo.reset()


def test_a_failure_of_ours_is_told_once_and_the_training_goes_on(
    tap: Tap, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(tap, clock)

    def fails(self: Any) -> Any:
        raise RuntimeError("no such device")

    monkeypatch.setattr(phases.Phases, "_mark", fails)
    job.step(0)
    job.step(1)
    told = [message for message in caplog.messages if "step_time/" in message]
    assert told == [
        "ranktap: step_time/* is not complete: forward_begins: RuntimeError: no such device"
    ]
