"""`tap.watch`: what is asked for, checked; what that means of this model; hooks on it.

Everything is resolved before anything is attached. The hooks hold the recorder, and the
recorder does not hold the model: where a model goes, its watch goes with it.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from ranktap import names
from ranktap.collect import FIELDS
from ranktap.probes import Accumulated, After, Before, Site
from ranktap.recorder import Recorder, Settings
from ranktap.shards import Held, Parameters
from ranktap_wire import records

if TYPE_CHECKING:
    from ranktap.tap import Tap

KINDS: Final = ("moments", "histogram", "tensor")
PARAMETER_SECTIONS: Final = ("gradients", "parameters", "updates")
MODULE_SECTIONS: Final = tuple(section for section in FIELDS if section not in PARAMETER_SECTIONS)

_recorders: weakref.WeakKeyDictionary[Any, list[Recorder]] = weakref.WeakKeyDictionary()
"""What keeps a recorder whose model has no hook that would."""


class Watch:
    """A watched model, until `remove()`. Made by `tap.watch`."""

    def __init__(
        self, recorder: Recorder | None, handles: Sequence[Any], detach: Callable[[], None]
    ) -> None:
        self._recorder = recorder
        self._handles = list(handles)
        self._detach = detach

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
        recorder.gate.on = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()


def watch(tap: Tap, model: Any, given: Mapping[str, Any]) -> Watch:
    """Hook a model; `given` are the keyword arguments of `Tap.watch`, which says what they mean.

    Raises:
        TypeError, ValueError: see `Tap.watch`.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    kinds = {section: _kinds(section, given[section]) for section in FIELDS}
    include = names.patterns(given["include"], "include")
    exclude = names.patterns(given["exclude"], "exclude")
    ranks = _ranks(given["ranks"], tap.world_size)
    optimizers = _optimizers(given["optimizer"])
    settings = Settings(
        every=_whole("every", given["every"]),
        kinds=kinds,
        samples=_whole("samples", given["samples"]),
        max_maps=_whole("max_maps", given["max_maps"]),
        max_edge=_whole("max_edge", given["max_edge"]),
        prefix=_prefix(given["name"]),
        has_optimizer=optimizers is not None,
        first_rank=min(ranks),
    )

    modules, owners, held = _named(model, tap.world_size)
    known = [*modules, *owners]
    names.check_used(include, known, "include")
    names.check_used(exclude, known, "exclude")
    chosen = names.choose_modules(modules, include, exclude)
    all_owners = owners
    owners = {
        name: owner
        for name, owner in owners.items()
        if names.is_chosen_parameter(name, include, exclude)
    }
    # A picture is of the lowest rank that takes part: the others' would be as many again.
    draws = tap.rank == settings.first_rank
    drawn = _drawn("feature_maps", given["feature_maps"], modules, chosen) if draws else {}
    weights = _weights(given["kernels"], modules, chosen) if draws else {}
    _check_free(tap, settings.prefix, chosen, owners)

    if tap.rank not in ranks:
        return Watch(None, (), lambda: None)
    wanted = [section for section in MODULE_SECTIONS if kinds[section]]
    recorder = Recorder(
        tap,
        model,
        settings,
        Parameters(all_owners, held),
        Parameters(owners, held),
        Parameters(weights, held),
        has_forward=bool(drawn or (wanted and chosen)),
    )
    recorder.claimed = _claim(settings.prefix, chosen, owners)
    handles: list[Any] = []
    try:
        _attach_modules(recorder, kinds, chosen if wanted else {}, drawn, handles)
        if optimizers is None:
            _attach_parameters(recorder, kinds, owners, handles)
        else:
            _attach_optimizers(recorder, optimizers, handles)
    except BaseException:
        for handle in handles:
            handle.remove()
        raise
    _recorders.setdefault(model, []).append(recorder)
    tap._recorders.add(recorder)

    model_of = weakref.ref(model)

    def detach() -> None:
        tap._recorders.discard(recorder)
        found = model_of()
        if found is not None and recorder in _recorders.get(found, ()):
            _recorders[found].remove(recorder)

    return Watch(recorder, handles, detach)


# -- what it means of this model --------------------------------------------------------


def _named(
    model: Any, world_size: int
) -> tuple[dict[str, Any], dict[str, tuple[Any, str]], dict[str, Held]]:
    """Modules by name; parameters by name, as (module, attribute), and which ranks have which."""
    parallel = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)
    raw = dict(model.named_modules())
    wrappers = [name for name, module in raw.items() if isinstance(module, parallel)]
    modules: dict[str, Any] = {}
    owners: dict[str, tuple[Any, str]] = {}
    held: dict[str, Held] = {}
    seen: set[int] = set()
    for raw_name, module in raw.items():
        name = names.clean(raw_name, wrappers)
        # A wrapper and what it wraps have one name: the inner one is the model.
        modules[name] = module
        for attribute, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue  # shared weights have the name of their first place
            seen.add(id(parameter))
            full = attribute if name == names.ROOT else f"{name}.{attribute}"
            owners[full] = (module, attribute)
            held[full] = _held_by(raw, raw_name, world_size)
    return modules, owners, held


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


def _weights(
    given: object, modules: Mapping[str, Any], chosen: Mapping[str, Any]
) -> dict[str, tuple[Any, str]]:
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


def _claim(prefix: str, chosen: Mapping[str, Any], owners: Mapping[str, Any]) -> set[str]:
    return {prefix + name for name in (*chosen, *owners)}


def _check_free(
    tap: Tap, prefix: str, chosen: Mapping[str, Any], owners: Mapping[str, Any]
) -> None:
    """Raise ValueError where another watch of this tap writes the same tags."""
    mine = _claim(prefix, chosen, owners)
    for other in tap._recorders:
        both = sorted(mine & other.claimed)
        if both:
            raise ValueError(
                f"name: another watch of this tap logs {both[0]!r} already; give this one a "
                "name=, or remove() the other"
            )


# -- attaching ----------------------------------------------------------------------------


def _attach_modules(
    recorder: Recorder,
    kinds: Mapping[str, frozenset[str]],
    chosen: Mapping[str, Any],
    drawn: Mapping[str, Any],
    handles: list[Any],
) -> None:
    for name, module in {**chosen, **drawn}.items():
        sites = {
            section: Site(functools.partial(recorder.see, section, name))
            for section in MODULE_SECTIONS
            if kinds[section] and name in chosen
        }
        inputs, grad_inputs = sites.get("inputs"), sites.get("grad_inputs")
        if inputs is not None or grad_inputs is not None:
            before = Before(recorder.gate, inputs, grad_inputs)
            handles.append(module.register_forward_pre_hook(before))
        outputs = [sites["activations"]] if "activations" in sites else []
        if name in drawn:
            outputs.append(Site(functools.partial(recorder.see_feature_maps, name)))
        if outputs or "grad_outputs" in sites:
            after = After(recorder.gate, tuple(outputs), sites.get("grad_outputs"))
            handles.append(module.register_forward_hook(after))


def _attach_parameters(
    recorder: Recorder,
    kinds: Mapping[str, frozenset[str]],
    owners: Mapping[str, tuple[Any, str]],
    handles: list[Any],
) -> None:
    """Without an optimizer: each parameter's own gradient, as backward leaves it on this rank."""
    if not kinds["gradients"]:
        return
    for name, (module, attribute) in owners.items():
        parameter = getattr(module, attribute)
        if parameter.requires_grad:
            site = Site(functools.partial(recorder.see_accumulated, name))
            hook = Accumulated(recorder.gate, site)
            handles.append(parameter.register_post_accumulate_grad_hook(hook))


def _attach_optimizers(recorder: Recorder, optimizers: tuple[Any, ...], handles: list[Any]) -> None:
    # torch holds the hooks for as long as the process or the optimizer lives.
    reference = weakref.ref(recorder)

    # Where a user compiles the optimizer's step, its hooks are not for the compiler.
    @torch.compiler.disable
    def before(optimizer: Any, args: Any, kwargs: Any) -> None:
        found = reference()
        if found is not None and found.gate.on:
            found.before_step(optimizer)

    @torch.compiler.disable
    def after(optimizer: Any, args: Any, kwargs: Any) -> None:
        found = reference()
        if found is not None:
            found.after_step(optimizer)

    attached = []
    if optimizers:
        for optimizer in optimizers:
            attached.append(optimizer.register_step_pre_hook(before))
            attached.append(optimizer.register_step_post_hook(after))
    else:
        attached.append(register_optimizer_step_pre_hook(before))
        attached.append(register_optimizer_step_post_hook(after))
    handles += attached
    weakref.finalize(recorder, _remove_all, attached)


def _remove_all(handles: Sequence[Any]) -> None:
    for handle in handles:
        handle.remove()


# -- arguments ----------------------------------------------------------------------------


def _kinds(section: str, given: object) -> frozenset[str]:
    kinds = (given,) if isinstance(given, str) else given
    if kinds is None:
        kinds = ()
    if not isinstance(kinds, Sequence | set | frozenset) or not all(
        isinstance(kind, str) for kind in kinds
    ):
        raise TypeError(f"{section}: expected some of {KINDS}, got {given!r}")
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"{section}: expected some of {KINDS}, got {kind!r}")
    return frozenset(kinds)


def _whole(argument: str, given: object) -> int:
    number = records.check_step(given, argument)
    if number < 1:
        raise ValueError(f"{argument}: expected a whole number from 1 on, got {number}")
    return number


def _prefix(given: object) -> str:
    if not isinstance(given, str):
        raise TypeError(f"name: expected a string, got {type(given).__name__}")
    return records.check_tag(given) + "/" if given else ""


def _ranks(given: object, world_size: int) -> set[int]:
    if isinstance(given, str):
        if given != "all":
            raise ValueError(f"ranks: expected 'all', a rank or several, got {given!r}")
        return set(range(world_size))
    several = given if isinstance(given, Sequence | set | frozenset | range) else (given,)
    ranks = {records.check_step(rank, "ranks") for rank in several}
    if not ranks or not all(0 <= rank < world_size for rank in ranks):
        raise ValueError(f"ranks: expected ranks from 0 to {world_size - 1}, got {sorted(ranks)}")
    return ranks


def _optimizers(given: Any) -> tuple[Any, ...] | None:
    """The optimizers that are named; empty for all there are, None for none at all."""
    if given is None:
        return ()
    if given is False:
        return None
    several = tuple(given) if isinstance(given, Sequence | set | frozenset) else (given,)
    for optimizer in several:
        if not hasattr(optimizer, "register_step_post_hook"):
            raise TypeError(
                "optimizer: expected a torch.optim.Optimizer, several, None or False, "
                f"got {type(optimizer).__name__}"
            )
    return several or None
