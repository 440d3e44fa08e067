"""The steps of a watch: which are looked at, when one ends, and what is read at its end.

A step ends where an optimizer has stepped that holds some of the watched parameters: any
in the process, by torch's global hooks, or those that were named. Without one it ends
where `tap.step` is called again. Steps have the tap's number once `tap.step` is used,
and are counted before that.

    forward     what the probes see, measured at once: an in-place operation may follow
    backward    gradients of activations
    optimizer   before: gradients (after DDP's all-reduce, unscaled, clipped: what the
                optimizer gets), parameters, kernels; after: updates; then all of it as a
                few records

Nothing here raises into the training: what cannot be shown is left out, and told once.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from ranktap import pictures, reduce
from ranktap.asked import Settings
from ranktap.attached import Attached
from ranktap.collect import FORWARD_SECTIONS, MODULE_SECTIONS
from ranktap.gauge import Gauge, never_raises
from ranktap.phases import Phases
from ranktap.probes import is_recomputing
from ranktap.shards import Held, Parameters, local_part

if TYPE_CHECKING:
    from ranktap.tap import Tap

_OTHERS: Final = -1


@dataclass(frozen=True, slots=True)
class Watched:
    """The parameters of a model that matter to a watch."""

    every: Parameters
    """All of them: by these an optimizer is known to be the model's."""
    chosen: Parameters
    kernels: Parameters


class Recorder:
    """One watch's steps."""

    def __init__(
        self, tap: Tap, model: Any, settings: Settings, watched: Watched, *, has_forward: bool
    ) -> None:
        self.hooks = Attached()
        self.claimed: set[str] = set()
        """Names in tags that no other watch of this tap may have."""
        self.phases: Phases | None = None
        """Where the time of every step goes; None when this watch does not look at that."""
        self._tap = tap
        self._model = weakref.ref(model)
        self._settings = settings
        self._watched = watched
        self._has_forward = has_forward
        self._gauge = Gauge(tap, settings, watched.every.held)
        self._before_update: dict[str, Any] = {}
        self._memory: dict[str, Any] = {}
        self._number = tap._step if tap._has_steps else 0
        self._part = 0
        self._capturing = False
        self._trains = False
        self._ever_saw = False
        self._seen_eval = False
        self._stepped_now = False
        self._optimizer_steps: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        """How often each has stepped, or that it is another model's."""

    # -- steps ------------------------------------------------------------------------

    def begin(self) -> None:
        """The hooks are there: the first step begins."""
        self._begin(self._number)

    def capture(self) -> None:
        """Look at the next whole step, whatever its number."""
        self._capturing = True
        self._set_gate()

    def _set_gate(self) -> None:
        is_on = self._capturing or self._number % self._settings.every == 0
        if is_on:
            self.hooks.open()
        else:
            self.hooks.close()

    @never_raises
    def step_changes(self, number: int) -> None:
        """`tap.step` is being called."""
        if number == self._number:
            return
        self._end_without_optimizer(is_over=True)
        self._begin(number)

    def _begin(self, number: int) -> None:
        self._number = self._gauge.step = number
        if self.phases is not None:
            self.phases.begin(number)
        self._part = 0
        self._stepped_now = False
        self._set_gate()

    @never_raises
    def end(self) -> None:
        """Hand over what there is: the watch is removed, or the tap is flushed."""
        self._end_without_optimizer(is_over=False)
        if self.phases is not None:
            self.phases.end()

    def _end_without_optimizer(self, *, is_over: bool) -> None:
        """Hand over what there is, with the parameters where no optimizer brings them.

        A step that is not over may be one that trains, and its optimizer still comes.
        """
        model = self._model()
        waits = (
            not is_over and self._settings.has_optimizer and model is not None and model.training
        )
        alone = self._tap._has_steps and not (self._has_forward or self._trains or self._part)
        if self.hooks.gate.on and not self._stepped_now and (alone or (self._gauge and not waits)):
            self._read_parameters(None)
        self._hand_over()

    def _hand_over(self) -> None:
        gauge = self._gauge
        if not gauge:
            return
        if self._capturing and self._is_whole():
            self._capturing = False
        now = time.time()
        for blobs, arrived in gauge.collection.records(self._number, now, self._part):
            self._tap._keep(blobs, arrived)
        for tag, pixels in gauge.pictures.items():
            self._tap.image_grid(
                tag, pixels, self._number, nrow=pictures.per_row(len(pixels)), walltime=now
            )
        gauge.clear()
        self._seen_eval = False
        self._part += 1
        self._set_gate()

    def _is_whole(self) -> bool:
        """Whether the step was looked at from its beginning: `capture` may come in its middle."""
        if not self._has_forward or self._gauge.pictures:
            return True
        return self._gauge.collection.any_of(tuple(f"{section}/" for section in MODULE_SECTIONS))

    # -- the optimizer ----------------------------------------------------------------

    @never_raises
    def before_step(self, optimizer: Any) -> None:
        """An optimizer is about to step."""
        known = self._optimizer_steps.get(optimizer)
        # The first time nobody knows whose it is, and that step has no `wait`.
        if self.phases is not None and known is not None and known != _OTHERS:
            self.phases.optimizer_begins()
        if not self.hooks.gate.on or known == _OTHERS:
            return
        ids = _ids(optimizer)
        if not self._has_any(ids):
            return
        if self._has_forward and not self._ever_saw and not self._capturing:
            self.tell(
                "hooks",
                "no module was seen in this step: a model that was compiled and run before "
                "`watch` never calls hooks that are added later",
            )
        chosen = [
            (name, parameter) for name, parameter in self._watched.chosen if id(parameter) in ids
        ]
        if self._settings.kinds["gradients"]:
            for name, parameter in chosen:
                if parameter.grad is not None:
                    self._gauge.measure("gradients", name, parameter.grad)
        self._read_parameters(ids)
        if self._settings.kinds["updates"]:
            self._keep_values(chosen)

    @never_raises
    def after_step(self, optimizer: Any) -> None:
        """An optimizer has stepped."""
        known = self._optimizer_steps.get(optimizer)
        if known is None:
            if not self._has_any(_ids(optimizer)):
                self._optimizer_steps[optimizer] = _OTHERS
                return
        elif known == _OTHERS:
            return
        steps = self._optimizer_steps[optimizer] = (known or 0) + 1
        self._trains = self._stepped_now = True
        if self.phases is not None:
            self.phases.optimizer_ends()
        if self.hooks.gate.on:
            if self._before_update:
                self._read_updates()
            self._hand_over()
        # Of several optimizers the one that steps most often counts.
        if not self._tap._has_steps and steps == max(self._optimizer_steps.values()):
            self._begin(steps)

    def _has_any(self, ids: set[int]) -> bool:
        """Whether some of the model's parameters are among these."""
        return any(id(parameter) in ids for _, parameter in self._watched.every)

    def _read_parameters(self, ids: set[int] | None) -> None:
        """Values and kernels, of all parameters or of these."""
        if self._settings.kinds["parameters"]:
            for name, parameter in self._watched.chosen:
                if ids is None or id(parameter) in ids:
                    self._gauge.measure("parameters", name, parameter)
        for name, weight in self._watched.kernels:
            if ids is None or id(weight) in ids:
                self._gauge.draw_kernels(name, weight)

    def _keep_values(self, chosen: Iterable[tuple[str, Any]]) -> None:
        for name, parameter in chosen:
            local, _ = local_part(parameter, Held.OWN)
            if local is None or reduce.why_not(local) is not None:
                continue
            memory = self._memory.get(name)
            if memory is None or memory.shape != local.shape or memory.dtype != local.dtype:
                # Kept from step to step: fresh pages cost as much as the copy.
                memory = self._memory[name] = torch.empty_like(local, requires_grad=False)
            with torch.no_grad():
                memory.copy_(local)
            self._before_update[name] = memory

    def _read_updates(self) -> None:
        for name, parameter in self._watched.chosen:
            before = self._before_update.get(name)
            if before is None:
                continue
            local, _ = local_part(parameter, Held.OWN)
            reference = reduce.moments(before, total=False, zeros=False)
            with torch.no_grad():
                torch.sub(local, before, out=before)
            self._gauge.measure("updates", name, before, like=parameter, reference=reference)
        self._before_update.clear()

    # -- what is seen -----------------------------------------------------------------

    @never_raises
    def see(self, section: str, name: str, path: str, tensor: Any) -> None:
        """A probe's tensor."""
        self._ever_saw = True
        if section not in FORWARD_SECTIONS or self._is_counted():
            self._gauge.measure(section, name + path, tensor)

    @never_raises
    def see_accumulated(self, name: str, path: str, gradient: Any) -> None:
        """A parameter's gradient after a backward; the last one of a step is what counts."""
        self._gauge.measure("gradients", name, gradient, replace=True)

    @never_raises
    def see_feature_maps(self, name: str, path: str, tensor: Any) -> None:
        """A convolution's output."""
        self._ever_saw = True
        if self._is_counted():
            self._gauge.draw_feature_maps(name + path, tensor)

    def _is_counted(self) -> bool:
        """Whether a forward that is running belongs to the step.

        Not when backward runs it again for activation checkpointing, and not evaluation
        in a job that trains, unless it was asked for by `capture`.
        """
        if is_recomputing():
            return False
        model = self._model()
        if model is not None and model.training:
            if self._seen_eval:
                self._gauge.clear()
                self._seen_eval = False
            return True
        if self._trains and not self._capturing:
            return False
        self._seen_eval = True
        return True

    def tell(self, what: str, why: str) -> None:
        """Say what is left out and why, once."""
        self._gauge.tell(what, why)


def _ids(optimizer: Any) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
