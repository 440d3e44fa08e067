"""Where a step's time goes on this rank, by hooks on a watched model itself and its optimizers.

    data      from the end of the last optimizer step to the forward
    forward
    backward  from the forward's end until this rank's last gradient is there
    wait      from there to the optimizer's step: DDP waits for the other ranks' gradients here

At every step: it is two hooks on one module, one on its output, and a clock. On the host
the clock is the host's. On CUDA a mark is an event on the training stream, and the time
between two is asked for at a later step, once the last of them has passed: nothing waits
for the device. Other devices have no such events, and no parts.

The end of backward is a callback of autograd's engine that is queued as backward begins,
and so runs before the one in which DDP waits. What is between calls of the model for one
step (gradient accumulation) is added up; evaluation counts as nothing.
"""

from __future__ import annotations

import time
from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

import torch

from ranktap.gauge import logger, never_raises
from ranktap.probes import Inert, is_recomputing, tensors_in

if TYPE_CHECKING:
    from ranktap.recorder import Recorder
    from ranktap.tap import Tap

PREFIX: Final = "step_time/"
PENDING_MAX: Final = 64
"""Steps whose events have not passed. A device is behind by a few; one that hangs is never done."""


class _At(Enum):
    """What came last."""

    NOTHING = auto()
    FORWARD_BEGUN = auto()
    FORWARD = auto()
    BACKWARD = auto()
    OPTIMIZER_BEGUN = auto()
    OPTIMIZER = auto()
    EVALUATION = auto()


_BEFORE_DATA: Final = (_At.BACKWARD, _At.OPTIMIZER, _At.EVALUATION)

Span = tuple[str, Any, Any]
"""A part's name, and the marks between which it was."""


def attach(recorder: Recorder, tap: Tap, model: Any) -> None:
    """Take the times of a watched model's steps, when there are other ranks to compare with.

    Of several models of a tap the one that was watched first.
    """
    if tap.world_size == 1 or any(other.phases is not None for other in tap._recorders):
        return
    recorder.phases = phases = Phases(tap)
    recorder.hooks.keep(model.register_forward_pre_hook(_Begins(phases)))
    recorder.hooks.keep(model.register_forward_hook(_Ends(phases)))


class Phases:
    """The parts of a model's steps. Not thread safe: backward runs while its caller waits."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._number = 0
        self._logged: int | None = None
        """The step that was logged last: its parts come once."""
        self._device: str | None = None
        self._spans: list[Span] = []
        self._at = _At.NOTHING
        self._last: Any = None
        """The mark where it came to that."""
        self._is_training = False
        self._is_queued = False
        self._pending: deque[tuple[int, list[Span]]] = deque()
        self._has_told = False

    # -- steps ------------------------------------------------------------------------

    @never_raises
    def begin(self, number: int) -> None:
        """A step begins: what the last one took is known."""
        self._log()
        self._number = number

    @never_raises
    def end(self) -> None:
        """Log the step that is over, if it is."""
        if self._at is _At.OPTIMIZER:
            self._log()
        self._log_passed()

    def _log(self) -> None:
        spans, self._spans = self._spans, []
        if spans and self._number != self._logged:
            self._logged = self._number
            self._pending.append((self._number, spans))
            if len(self._pending) > PENDING_MAX:
                self._pending.popleft()
        self._log_passed()

    def _log_passed(self) -> None:
        while self._pending and self._has_passed(self._pending[0][1][-1][2]):
            number, spans = self._pending.popleft()
            parts: dict[str, float] = {}
            for name, begin, end in spans:
                parts[name] = parts.get(name, 0.0) + self._seconds(begin, end)
            for name, seconds in parts.items():
                self._tap._log_own(PREFIX + name, seconds, number)

    # -- what happens -----------------------------------------------------------------

    @never_raises
    def forward_begins(self, model: Any) -> None:
        if is_recomputing():
            return
        if self._device is None:
            parameter = next(model.parameters(), None)
            self._device = "cpu" if parameter is None else parameter.device.type
        self._is_training = model.training and torch.is_grad_enabled()
        if self._is_training:
            self._comes_to(_At.FORWARD_BEGUN, "data" if self._at in _BEFORE_DATA else None)

    @never_raises
    def forward_ends(self, output: Any) -> None:
        if is_recomputing():
            return
        if not self._is_training:
            self._comes_to(_At.EVALUATION, None)
        elif self._at is _At.FORWARD_BEGUN:
            self._comes_to(_At.FORWARD, "forward")
            self._is_queued = False
            for _, tensor in tensors_in(output):
                if tensor.requires_grad:
                    tensor.register_hook(self._backward_begins)

    @never_raises
    def _backward_begins(self, gradient: Any) -> None:
        if not self._is_queued:
            torch.autograd.Variable._execution_engine.queue_callback(self._backward_ends)
            self._is_queued = True

    @never_raises
    def _backward_ends(self) -> None:
        self._is_queued = False
        if self._at in (_At.FORWARD, _At.BACKWARD):
            self._comes_to(_At.BACKWARD, "backward")

    @never_raises
    def optimizer_begins(self) -> None:
        """One that has parameters of the model is about to step."""
        if self._at is _At.BACKWARD:
            self._comes_to(_At.OPTIMIZER_BEGUN, "wait")

    @never_raises
    def optimizer_ends(self) -> None:
        self._comes_to(_At.OPTIMIZER, None)

    def _comes_to(self, at: _At, part: str | None) -> None:
        """What came last ends here; `part` is what it was, None for nothing that counts."""
        mark = self._mark()
        if part is not None and mark is not None and self._last is not None:
            self._spans.append((part, self._last, mark))
        self._at, self._last = at, mark

    # -- clocks -----------------------------------------------------------------------

    def _mark(self) -> Any:
        """This moment, on the model's device; None where nothing tells it."""
        if self._device == "cpu":
            return time.perf_counter()
        # A captured graph runs no Python when it is replayed.
        if self._device != "cuda" or torch.cuda.is_current_stream_capturing():
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _has_passed(self, mark: Any) -> bool:
        return isinstance(mark, float) or bool(mark.query())

    def _seconds(self, begin: Any, end: Any) -> float:
        if isinstance(end, float):
            return float(end - begin)
        return float(begin.elapsed_time(end)) / 1_000

    def tell(self, what: str, why: str) -> None:
        """Say once that there are no parts, and why."""
        if not self._has_told:
            self._has_told = True
            logger.warning("ranktap: %s* is not complete: %s: %s", PREFIX, what, why)


class _Begins(Inert):
    """The model's forward pre-hook. In a graph that torch.compile makes it is not there."""

    def __init__(self, phases: Phases) -> None:
        self.phases = phases

    def __call__(self, module: Any, args: Any) -> None:
        if not torch.compiler.is_compiling():
            self.phases.forward_begins(module)


class _Ends(Inert):
    """Its forward hook."""

    def __init__(self, phases: Phases) -> None:
        self.phases = phases

    def __call__(self, module: Any, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            self.phases.forward_ends(output)
