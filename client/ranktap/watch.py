"""`tap.watch`: what is asked for means something of this model; hooks on it.

Everything is resolved before anything is attached. A recorder is held for as long as its
model lives, and holds the hooks; none of them holds the model: where a model goes, its watch
goes with it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from ranktap import asked, names, phases
from ranktap.asked import Asked
from ranktap.closing import Closing
from ranktap.collect import MODULE_SECTIONS
from ranktap.probes import Accumulated, After, Before, Site
from ranktap.recorder import Recorder, Watched
from ranktap.shards import Held, Parameters

if TYPE_CHECKING:
    from ranktap.tap import Tap

_recorders: weakref.WeakKeyDictionary[Any, set[Recorder]] = weakref.WeakKeyDictionary()
"""Those of each model that lives."""


class Watch(Closing):
    """A watched model, until `remove()`. Made by `tap.watch`."""

    def __init__(self, tap: Tap, recorder: Recorder | None) -> None:
        self._tap = tap
        self._recorder = recorder

    def capture(self) -> None:
        """Log everything at the next step that is seen from its forward on, whatever its number."""
        if self._recorder is not None:
            self._recorder.capture()

    def remove(self) -> None:
        """Log what has been seen, and take the hooks off the model. Again is no harm."""
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        recorder.end()
        recorder.hooks.remove()
        _leave_all_optimizers(recorder)
        self._tap._recorders.discard(recorder)
        for of_model in _recorders.values():
            of_model.discard(recorder)

    def _end(self) -> None:
        self.remove()


def watch(tap: Tap, model: Any, given: Mapping[str, Any]) -> Watch:
    """Hook a model; `given` are the keyword arguments of `Tap.watch`, which says what they mean.

    Raises:
        TypeError, ValueError: see `Tap.watch`.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    wanted = asked.check(given, tap.world_size)
    found = _named(model, tap.world_size)
    # A picture is of the lowest rank that takes part: the others' would be as many again.
    chosen = _choose(found, wanted, draws=tap.rank == wanted.settings.first_rank)
    claimed = _claim(tap, wanted.settings.prefix, chosen)
    if tap.rank not in wanted.ranks:
        return Watch(tap, None)
    recorder = Recorder(
        tap,
        model,
        wanted.settings,
        Watched(
            Parameters(found.owners, found.held),
            Parameters(chosen.owners, found.held),
            Parameters(chosen.kernels, found.held),
        ),
        has_forward=bool(chosen.drawn or (chosen.sections and chosen.modules)),
    )
    recorder.claimed = claimed
    try:
        _attach_modules(recorder, chosen)
        if wanted.optimizers is not None:
            _attach_optimizers(recorder, wanted.optimizers)
            phases.attach(recorder, tap, model)
        elif wanted.settings.kinds["gradients"]:
            _attach_parameters(recorder, chosen.owners)
    except BaseException:
        recorder.hooks.remove()
        _leave_all_optimizers(recorder)
        raise
    _recorders.setdefault(model, set()).add(recorder)
    tap._recorders.add(recorder)
    recorder.begin()
    return Watch(tap, recorder)


# -- what it means of this model --------------------------------------------------------

Owners = dict[str, tuple[Any, str]]
"""Parameters by name, as (module, attribute)."""


@dataclass(frozen=True, slots=True)
class _Named:
    """What a model has, by name."""

    modules: dict[str, Any]
    owners: Owners
    held: dict[str, Held]
    """Which ranks have which of the parameters."""


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What of a model is looked at."""

    sections: tuple[str, ...]
    """Of modules, in which something is wanted."""
    modules: dict[str, Any]
    owners: Owners
    drawn: dict[str, Any]
    """Modules whose outputs are drawn."""
    kernels: Owners


def _named(model: Any, world_size: int) -> _Named:
    parallel = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)
    raw = dict(model.named_modules())
    wrappers = [name for name, module in raw.items() if isinstance(module, parallel)]
    found = _Named({}, {}, {})
    seen: set[int] = set()
    for raw_name, module in raw.items():
        name = names.clean(raw_name, wrappers)
        # A wrapper and what it wraps have one name: the inner one is the model.
        found.modules[name] = module
        for attribute, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue  # shared weights have the name of their first place
            seen.add(id(parameter))
            full = attribute if name == names.ROOT else f"{name}.{attribute}"
            found.owners[full] = (module, attribute)
            found.held[full] = _held_by(raw, raw_name, world_size)
    return found


def _choose(found: _Named, wanted: Asked, *, draws: bool) -> _Chosen:
    """Raises ValueError for a pattern that is the pattern of nothing."""
    include, exclude = wanted.include, wanted.exclude
    known = [*found.modules, *found.owners]
    names.check_used(include, known, "include")
    names.check_used(exclude, known, "exclude")
    modules = names.choose_modules(found.modules, include, exclude)
    owners = {
        name: owner
        for name, owner in found.owners.items()
        if names.is_chosen_parameter(name, include, exclude)
    }
    drawn = _drawn("feature_maps", wanted.feature_maps, found.modules, modules)
    kernels = _kernels(wanted.kernels, found.modules, modules)
    kinds = wanted.settings.kinds
    return _Chosen(
        tuple(section for section in MODULE_SECTIONS if kinds[section]),
        modules,
        owners,
        drawn if draws else {},
        kernels if draws else {},
    )


def _held_by(raw: Mapping[str, Any], name: str, world_size: int) -> Held:
    """Which ranks have a plain parameter of the module of this name. DTensors say so themselves."""
    if world_size == 1:
        return Held.OWN
    while True:
        module = raw.get(name)
        if isinstance(module, torch.nn.parallel.DistributedDataParallel):
            whole = module.process_group.size() == world_size
            return Held.SAME if whole else Held.PERHAPS_SAME
        if type(module).__name__ == "FullyShardedDataParallel":
            return Held.OWN
        if not name:
            return Held.PERHAPS_SAME
        name = name.rpartition(".")[0]


_CONVOLUTIONS: Final = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)


def _drawn(
    argument: str, given: object, modules: Mapping[str, Any], chosen: Mapping[str, Any]
) -> dict[str, Any]:
    """The modules that pictures are wanted of."""
    if given is None or given is False:
        return {}
    if given is True:
        return {name: each for name, each in chosen.items() if isinstance(each, _CONVOLUTIONS)}
    wanted = names.patterns(given, argument)
    names.check_used(wanted, modules, argument)
    return {name: each for name, each in modules.items() if names.matches(name, wanted or ())}


def _kernels(given: object, modules: Mapping[str, Any], chosen: Mapping[str, Any]) -> Owners:
    """The weights that are to be drawn, by the parameter's name."""
    if isinstance(given, bool) or given is None:
        drawn = _drawn("kernels", given, modules, chosen)
        return {f"{name}.weight": (module, "weight") for name, module in drawn.items()}
    wanted = names.patterns(given, "kernels") or ()
    every = {
        "weight" if name == names.ROOT else f"{name}.weight": (name, module)
        for name, module in modules.items()
        if getattr(module, "weight", None) is not None and module.weight.dim() == 4
    }
    names.check_used(wanted, [*every, *(name for name, _ in every.values())], "kernels")
    return {
        parameter: (module, "weight")
        for parameter, (name, module) in every.items()
        if names.matches(parameter, wanted) or names.matches(name, wanted)
    }


def _claim(tap: Tap, prefix: str, chosen: _Chosen) -> set[str]:
    """The names in tags. Raises ValueError where another watch of this tap has one of them."""
    mine = {prefix + name for name in (*chosen.modules, *chosen.owners)}
    for other in tap._recorders:
        both = sorted(mine & other.claimed)
        if both:
            raise ValueError(
                f"name: another watch of this tap logs {both[0]!r} already; give this one a "
                "name=, or remove() the other"
            )
    return mine


# -- attaching ----------------------------------------------------------------------------


def _site(see: Callable[..., None], *names: str) -> Site:
    """What comes from there goes to this method of a recorder, which it does not hold."""
    method = weakref.WeakMethod(see)

    def show(path: str, tensor: Any) -> None:
        found = method()
        if found is not None:
            found(*names, path, tensor)

    return Site(show)


def _attach_modules(recorder: Recorder, chosen: _Chosen) -> None:
    gate = recorder.hooks.gate
    modules = chosen.modules if chosen.sections else {}
    for name, module in {**modules, **chosen.drawn}.items():
        sites = {
            section: _site(recorder.see, section, name)
            for section in chosen.sections
            if name in modules
        }
        inputs, grad_inputs = sites.get("inputs"), sites.get("grad_inputs")
        if inputs is not None or grad_inputs is not None:
            before = Before(gate, inputs, grad_inputs)
            recorder.hooks.on_module(module, "register_forward_pre_hook", before)
        outputs = [sites["activations"]] if "activations" in sites else []
        if name in chosen.drawn:
            outputs.append(_site(recorder.see_feature_maps, name))
        if outputs or "grad_outputs" in sites:
            after = After(gate, tuple(outputs), sites.get("grad_outputs"))
            recorder.hooks.on_module(module, "register_forward_hook", after)


def _attach_parameters(recorder: Recorder, owners: Owners) -> None:
    """Without an optimizer: each parameter's own gradient, as backward leaves it on this rank."""
    for name, (module, attribute) in owners.items():
        site = _site(recorder.see_accumulated, name)
        recorder.hooks.on_parameter(module, attribute, Accumulated(recorder.hooks.gate, site))


def _attach_optimizers(recorder: Recorder, optimizers: tuple[Any, ...]) -> None:
    if not optimizers:
        _join_all_optimizers(recorder)
        return
    # An optimizer may outlive its model.
    reference = weakref.ref(recorder)

    # Where a user compiles the optimizer's step, its hooks are not for the compiler.
    @torch.compiler.disable
    def before(optimizer: Any, args: Any, kwargs: Any) -> None:
        found = reference()
        if found is not None:
            found.before_step(optimizer)

    @torch.compiler.disable
    def after(optimizer: Any, args: Any, kwargs: Any) -> None:
        found = reference()
        if found is not None:
            found.after_step(optimizer)

    for optimizer in optimizers:
        recorder.hooks.keep(optimizer.register_step_pre_hook(before))
        recorder.hooks.keep(optimizer.register_step_post_hook(after))


_of_all_optimizers: weakref.WeakSet[Recorder] = weakref.WeakSet()
"""The recorders that see every optimizer of the process."""
_global_handles: list[Any] = []
"""Of two hooks that serve all of them. A recorder that is let go of leaves them where they are:
torch goes through its hooks while the garbage collector may run, and must not lose one there."""


def _join_all_optimizers(recorder: Recorder) -> None:
    _of_all_optimizers.add(recorder)
    if not _global_handles:
        before = torch.compiler.disable(_before_any_step)
        after = torch.compiler.disable(_after_any_step)
        _global_handles.append(register_optimizer_step_pre_hook(before))
        _global_handles.append(register_optimizer_step_post_hook(after))


def _leave_all_optimizers(recorder: Recorder) -> None:
    _of_all_optimizers.discard(recorder)
    if not _of_all_optimizers:
        for handle in _global_handles:
            handle.remove()
        _global_handles.clear()


def _before_any_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    for recorder in list(_of_all_optimizers):
        recorder.before_step(optimizer)


def _after_any_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    for recorder in list(_of_all_optimizers):
        recorder.after_step(optimizer)
