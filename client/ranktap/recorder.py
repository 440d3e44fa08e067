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

import functools
import logging
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from ranktap import pictures, reduce
from ranktap.collect import FIELDS, Collection, Group
from ranktap.probes import Gate, is_recomputing
from ranktap.shards import Held, Parameters, is_plain, local_part
from ranktap_wire import limits, records
from ranktap_wire.records import Across

if TYPE_CHECKING:
    from ranktap.tap import Tap

logger = logging.getLogger("ranktap")

FORWARD_SECTIONS = ("inputs", "activations")

M = TypeVar("M", bound=Callable[..., None])


def never_raises(method: M) -> M:
    """A bug of ours, or a device without memory, must not end the training."""

    @functools.wraps(method)
    def guarded(self: Recorder, *args: Any, **named: Any) -> None:
        try:
            method(self, *args, **named)
        except Exception as error:
            what = "/".join(arg for arg in args if isinstance(arg, str)) or method.__name__
            self.tell(what, f"{type(error).__name__}: {error}")

    return cast(M, guarded)


@dataclass(frozen=True, slots=True)
class Settings:
    """What is asked for, checked."""

    every: int
    kinds: Mapping[str, frozenset[str]]
    """Section to "moments", "histogram", "tensor"."""
    samples: int
    max_maps: int
    max_edge: int
    prefix: str
    """Of names in tags, with its "/"; empty for none."""
    has_optimizer: bool
    first_rank: int
    """The lowest rank that takes part."""


class Recorder:
    """One watch's steps."""

    def __init__(
        self,
        tap: Tap,
        model: Any,
        settings: Settings,
        every_parameter: Parameters,
        parameters: Parameters,
        kernels: Parameters,
        has_forward: bool,
    ) -> None:
        self.gate = Gate()
        self.claimed: set[str] = set()
        """Names in tags that no other watch of this tap may have."""
        self._tap = tap
        self._model = weakref.ref(model)
        self._settings = settings
        self._every_parameter = every_parameter
        self._parameters = parameters
        self._kernels = kernels
        self._has_forward = has_forward
        self._needs = {
            section: (
                "histogram" in kinds or bool({"mean", "std"} & set(FIELDS[section])),
                "moments" in kinds and "zeros" in FIELDS[section],
            )
            for section, kinds in settings.kinds.items()
        }
        """Whether sums and zeros are wanted of a section's tensors."""
        self._groups: dict[tuple[str, Held], Group] = {}
        self._collection = Collection()
        self._pictures: dict[str, Any] = {}
        self._before_update: dict[str, Any] = {}
        self._memory: dict[str, Any] = {}
        self._told: set[str] = set()
        self._checked: set[str] = set()
        self._number = tap._step if tap._has_steps else 0
        self._part = 0
        self._capturing = False
        self._trains = False
        self._ever_saw = False
        self._seen_eval = False
        self._stepped_now = False
        self._optimizer_steps: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._set_gate()

    # -- steps ------------------------------------------------------------------------

    def capture(self) -> None:
        """Look at the next whole step, whatever its number."""
        self._capturing = True
        self._set_gate()

    def _set_gate(self) -> None:
        self.gate.on = self._capturing or self._number % self._settings.every == 0

    @never_raises
    def step_changes(self, number: int) -> None:
        """`tap.step` is being called."""
        if number == self._number:
            return
        self._end_without_optimizer(is_over=True)
        self._begin(number)

    def _begin(self, number: int) -> None:
        self._number = number
        self._part = 0
        self._stepped_now = False
        self._set_gate()

    @never_raises
    def end(self) -> None:
        """Hand over what there is: the watch is removed, or the tap is flushed."""
        self._end_without_optimizer(is_over=False)

    def _end_without_optimizer(self, *, is_over: bool) -> None:
        """Hand over what there is, with the parameters where no optimizer brings them.

        A step that is not over may be one that trains, and its optimizer still comes.
        """
        model = self._model()
        waits = (
            not is_over and self._settings.has_optimizer and model is not None and model.training
        )
        seen = self._collection or self._pictures
        alone = self._tap._has_steps and not (self._has_forward or self._trains or self._part)
        if self.gate.on and not self._stepped_now and (alone or (seen and not waits)):
            self._read_parameters(None)
            self._read_kernels(None)
        self._hand_over()

    def _hand_over(self) -> None:
        if not self._collection and not self._pictures:
            return
        if self._capturing and self._is_whole():
            self._capturing = False
        now = time.time()
        for blobs, arrived in self._collection.records(self._number, now, self._part):
            self._tap._keep(blobs, arrived)
        for tag, pixels in self._pictures.items():
            self._tap.image_grid(
                tag, pixels, self._number, nrow=pictures.per_row(len(pixels)), walltime=now
            )
        self._collection.clear()
        self._pictures.clear()
        self._seen_eval = False
        self._part += 1
        self._set_gate()

    def _is_whole(self) -> bool:
        """Whether the step was looked at from its beginning: `capture` may come in its middle."""
        return not self._has_forward or self._saw_forward()

    def _saw_forward(self) -> bool:
        wanted = tuple(
            f"{section}/" for section in (*FORWARD_SECTIONS, "grad_inputs", "grad_outputs")
        )
        return bool(self._pictures) or self._collection.any_of(wanted)

    # -- the optimizer ----------------------------------------------------------------

    @never_raises
    def before_step(self, optimizer: Any) -> None:
        """An optimizer is about to step."""
        if not self.gate.on:
            return
        ids = _ids(optimizer)
        if not self._has_any(ids):
            return
        chosen = [(name, parameter) for name, parameter in self._parameters if id(parameter) in ids]
        if self._has_forward and not self._ever_saw and not self._capturing:
            self._tell_unseen()
        if self._settings.kinds["gradients"]:
            for name, parameter in chosen:
                if parameter.grad is not None:
                    self.measure("gradients", name, parameter.grad)
        self._read_parameters(ids)
        self._read_kernels(ids)
        if self._settings.kinds["updates"]:
            self._keep_values(chosen)

    @never_raises
    def after_step(self, optimizer: Any) -> None:
        """An optimizer has stepped."""
        known = self._optimizer_steps.get(optimizer)
        if known is None:
            if not self._has_any(_ids(optimizer)):
                self._optimizer_steps[optimizer] = -1
                return
        elif known < 0:
            return
        steps = self._optimizer_steps[optimizer] = (known or 0) + 1
        self._trains = self._stepped_now = True
        if self.gate.on:
            if self._before_update:
                self._read_updates()
            self._hand_over()
        # Of several optimizers the one that steps most often counts.
        if not self._tap._has_steps and steps == max(self._optimizer_steps.values()):
            self._begin(steps)

    def _has_any(self, ids: set[int]) -> bool:
        """Whether some of the model's parameters are among these."""
        return any(id(parameter) in ids for _, parameter in self._every_parameter)

    def _read_parameters(self, ids: set[int] | None) -> None:
        if self._settings.kinds["parameters"]:
            for name, parameter in self._parameters:
                if ids is None or id(parameter) in ids:
                    self.measure("parameters", name, parameter)

    def _read_kernels(self, ids: set[int] | None) -> None:
        for name, weight in self._kernels:
            if ids is None or id(weight) in ids:
                self.see_kernels(f"kernels/{self._settings.prefix}{name}", weight)

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
        section = "updates"
        for name, parameter in self._parameters:
            before = self._before_update.get(name)
            if before is None:
                continue
            local, _ = local_part(parameter, Held.OWN)
            reference = reduce.moments(before, total=False, zeros=False)
            with torch.no_grad():
                torch.sub(local, before, out=before)
            self.measure(section, name, before, like=parameter, reference=reference)
        self._before_update.clear()

    # -- what is seen -----------------------------------------------------------------

    @never_raises
    def see(self, section: str, name: str, path: str, tensor: Any) -> None:
        """A probe's tensor."""
        self._ever_saw = True
        if section in FORWARD_SECTIONS and not self._is_counted():
            return
        self.measure(section, name + path, tensor, is_parameter=False)

    @never_raises
    def see_accumulated(self, name: str, path: str, gradient: Any) -> None:
        """A parameter's gradient after a backward; the last one of a step is what counts."""
        self.measure("gradients", name, gradient, replace=True)

    @never_raises
    def see_feature_maps(self, name: str, path: str, tensor: Any) -> None:
        """A convolution's output, of which the first of a step is drawn."""
        tag = f"feature_maps/{self._settings.prefix}{name}{path}"
        if tag in self._pictures or not self._is_counted():
            return
        settings = self._settings
        try:
            self._pictures[tag] = pictures.feature_maps(
                tensor, settings.samples, settings.max_maps, settings.max_edge
            )
        except ValueError as error:
            self.tell(tag, str(error))

    @never_raises
    def see_kernels(self, tag: str, weight: Any) -> None:
        """A convolution's weight, drawn once a step."""
        if tag in self._pictures:
            return
        if not is_plain(weight):
            self.tell(tag, "a rank has only a shard of it, and a picture would need a collective")
            return
        try:
            self._pictures[tag] = pictures.kernels(
                weight, self._settings.max_maps, self._settings.max_edge
            )
        except ValueError as error:
            self.tell(tag, str(error))

    def _is_counted(self) -> bool:
        """Whether a forward that is running belongs to the step.

        Not when backward runs it again for activation checkpointing, and not evaluation
        in a job that trains, unless it was asked for by `capture`.
        """
        self._ever_saw = True
        if is_recomputing():
            return False
        model = self._model()
        if model is not None and model.training:
            if self._seen_eval:
                self._collection.clear()
                self._pictures.clear()
                self._seen_eval = False
            return True
        if self._trains and not self._capturing:
            return False
        self._seen_eval = True
        return True

    @never_raises
    def measure(
        self,
        section: str,
        name: str,
        tensor: Any,
        *,
        is_parameter: bool = True,
        like: Any = None,
        reference: reduce.Row | None = None,
        replace: bool = False,
    ) -> None:
        """Take the statistics of a tensor; `like` is one that is sharded as it is."""
        tag = f"{section}/{self._settings.prefix}{name}"
        if tag in self._told or not self._is_tag(tag):
            return
        expected = self._parameters.held.get(name, Held.OWN) if is_parameter else Held.OWN
        local, held = local_part(tensor if like is None else like, expected)
        if held is None:
            self.tell(tag, "its gradient is a partial sum on each rank, not reduced yet")
            return
        if local is None:
            return  # another rank has the same, and counts
        local = local if like is None else tensor
        if held is Held.SAME and self._tap.rank != self._settings.first_rank:
            return
        reason = reduce.why_not(local)
        if reason is not None:
            self.tell(tag, reason)
            return
        kinds = self._settings.kinds[section]
        if kinds & {"moments", "histogram"}:
            total, zeros = self._needs[section]
            row = reduce.moments(local, total=total, zeros=zeros)
            if reference is not None:
                row = reduce.with_reference(row, reference)
            counts = reduce.bit_counts(local) if "histogram" in kinds else None
            group = self._group(section, held)
            self._collection.add(group, tag, row, counts, replace=replace)
        if "tensor" in kinds and local.numel():
            across = "merge" if held is Held.OWN else "rank0"
            self._tap.histogram(f"{tag}/tensor", local, self._number, across=across)

    def _group(self, section: str, held: Held) -> Group:
        group = self._groups.get((section, held))
        if group is None:
            first_alone = held is Held.SAME and self._settings.first_rank == 0
            group = self._groups[section, held] = Group(
                f"ranktap/watch/{self._settings.prefix}{section}/{held.name.lower()}",
                Across.RANK0 if first_alone else Across.MERGE,
                held is not Held.OWN,
                FIELDS[section] if "moments" in self._settings.kinds[section] else (),
            )
        return group

    def _is_tag(self, tag: str) -> bool:
        if tag in self._checked:
            return True
        try:
            records.check_tag(tag)
        except ValueError as error:
            self.tell(tag, str(error))
            return False
        if len(tag.encode()) > limits.TAG_BYTES - records.FIELD_BYTES:
            self.tell(tag, "its name is too long for a tag")
            return False
        self._checked.add(tag)
        return True

    def tell(self, what: str, why: str) -> None:
        """Say what is left out and why, once."""
        if what not in self._told and len(self._told) < 1_000:
            self._told.add(what)
            logger.warning("ranktap: watch leaves out %s: %s", what, why)

    def _tell_unseen(self) -> None:
        if "hooks" not in self._told:
            self.tell(
                "hooks",
                "no module was seen in this step: a model that was compiled and run before "
                "`watch` never calls hooks that are added later",
            )


def _ids(optimizer: Any) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
