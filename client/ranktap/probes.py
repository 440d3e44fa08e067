"""The hooks themselves: what sits on a module, and how what it sees reaches the watch.

    module's hook -> is the gate open? -> each tensor -> Site.see(path, tensor)

Eager, the last step is a call. In a model that torch.compile traces it is an operator
of our own, opaque to the compiler: its body runs when the graph runs, so there is no
graph break, and `fullgraph=True` compiles. The gate is a guard: one graph with the
operators for steps that are looked at, one without anything for the others, and no
recompilation between them. A function excluded from tracing (`torch.compiler.disable`)
would break the graph at every module; a counter in Python would recompile. Of a model
that is not compiled the hooks are taken off between the steps that are looked at
(attached.py).

Gradients are seen by `Tensor.register_hook`, set in the forward hook. A module's full
backward hook would wrap the module's output in a view that no operation may change in
place: `x += y` and ReLU(inplace=True) behind it raise in the training loop (pytorch
issue 61519), which is every ResNet and AlexNet.

Hooks are objects that pickle and copy as something that does nothing, so that a model
can be saved, copied and sent while it is watched, and loaded where there is no ranktap.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch


class Gate:
    """Whether this step is looked at. The one thing that hooks read on steps that are not."""

    def __init__(self) -> None:
        self.on = False


class Site:
    """A place in a model from which tensors come."""

    def __init__(self, see: Callable[[str, Any], None]) -> None:
        self.key = next(_keys)
        self.see = see
        _sites[self.key] = self


_keys = itertools.count()
_sites: weakref.WeakValueDictionary[int, Site] = weakref.WeakValueDictionary()
"""Compiled graphs know a site by its number. What holds the site are the hooks."""


def _observe(tensor: Any, sink: Any, key: int, path: str) -> None:
    site = _sites.get(key)
    if site is not None:
        site.see(path, tensor)


def _observe_fake(tensor: Any, sink: Any, key: int, path: str) -> None:
    """Nothing comes out of it."""


def _define() -> Any:
    # It says that it changes `sink`: what has no result and changes nothing is optimised away.
    # It must not be captured in a CUDA graph, which would run its Python once for all steps.
    library = torch.library.Library("ranktap", "DEF")
    unsafe = getattr(torch.Tag, "cudagraph_unsafe", None)
    library.define(
        "observe(Tensor tensor, Tensor(a!) sink, int key, str path) -> ()",
        tags=() if unsafe is None else (unsafe,),
    )
    library.impl("observe", _observe, "CompositeExplicitAutograd")
    torch.library.register_fake("ranktap::observe", _observe_fake, lib=library)
    return library


_library = _define()
_sink = torch.zeros(1)


def show(key: int, path: str, tensor: Any) -> None:
    """Let the site see this tensor."""
    if torch.compiler.is_compiling():
        torch.ops.ranktap.observe(tensor.detach(), _sink, key, path)
    else:
        _observe(tensor, None, key, path)


def before_compiling(call: Callable[..., None]) -> bool:
    """Have torch call this whenever it is about to compile something; whether it will.

    By a module of torch's that is not public: where it is gone, it will not.
    """
    try:
        from torch._dynamo.callback import callback_handler

        # Asked each time: `torch._dynamo.reset()` forgets it.
        if call not in callback_handler.start_callbacks:
            callback_handler.register_start_callback(call)
    except (ImportError, AttributeError):
        return False
    return True


def tensors_in(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """The tensors in tuples, lists, mappings and dataclasses, each with where it is: "", "/0",
    "/1/hidden" ... A single one in a tuple or list is "" too."""
    if isinstance(value, torch.Tensor):
        return [(path, value)]
    if isinstance(value, tuple | list):
        if len(value) == 1:
            return tensors_in(value[0], path)
        items = [(str(index), item) for index, item in enumerate(value)]
    elif isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif dataclasses.is_dataclass(value):
        items = [(each.name, getattr(value, each.name)) for each in dataclasses.fields(value)]
    else:
        return []
    found = []
    for name, item in items:
        found += tensors_in(item, f"{path}/{name}")
    return found


def show_gradient(key: int, path: str, tensor: Any) -> None:
    """Let the site see the gradient of this tensor when backward comes to it."""

    # Only what has no tensor in it: the graph must not keep itself alive.
    def see(gradient: Any) -> None:
        show(key, path, gradient)

    tensor.register_hook(see)


class Inert:
    """Pickles and copies as a callable that takes anything and does nothing, out of the standard
    library alone."""

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")


class Before(Inert):
    """A forward pre-hook: what goes into a module, and the gradient that comes out of it there."""

    def __init__(self, gate: Gate, inputs: Site | None, grad_inputs: Site | None) -> None:
        self.gate, self.inputs, self.grad_inputs = gate, inputs, grad_inputs

    def __call__(self, module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self.gate.on:
            return None
        if self.inputs is not None:
            for path, tensor in tensors_in(args):
                show(self.inputs.key, path, tensor)
        if self.grad_inputs is None or not torch.is_grad_enabled():
            return None
        # A view of the input, the same memory: the gradient of the input itself would be that
        # of all its users together, and a skip connection is one of them.
        seen: list[Any] = []
        for index, value in enumerate(args):
            if isinstance(value, torch.Tensor) and value.requires_grad:
                # What a module overwrites nobody else may use, and a view would be rebuilt.
                if not getattr(module, "inplace", False):
                    value = value.view_as(value)
                path = "" if len(args) == 1 else f"/{index}"
                show_gradient(self.grad_inputs.key, path, value)
            seen.append(value)
        return tuple(seen)


class After(Inert):
    """A forward hook: what comes out of a module, and the gradient that goes into it there."""

    def __init__(self, gate: Gate, outputs: tuple[Site, ...], grad_outputs: Site | None) -> None:
        self.gate, self.outputs, self.grad_outputs = gate, outputs, grad_outputs

    def __call__(self, module: Any, args: Any, output: Any) -> None:
        if not self.gate.on:
            return
        for path, tensor in tensors_in(output):
            for site in self.outputs:
                show(site.key, path, tensor)
            if self.grad_outputs is not None and tensor.requires_grad:
                show_gradient(self.grad_outputs.key, path, tensor)


class Accumulated(Inert):
    """A post-accumulate-grad hook: a parameter's own gradient on this rank."""

    def __init__(self, gate: Gate, site: Site) -> None:
        self.gate, self.site = gate, site

    def __call__(self, parameter: Any) -> None:
        if self.gate.on and parameter.grad is not None:
            show(self.site.key, "", parameter.grad)


_graph_task = getattr(torch._C, "_current_graph_task_id", lambda: -1)


def is_recomputing() -> bool:
    """Whether this runs within backward: a forward there is activation checkpointing's second one.

    By a private function of torch's; where it is gone, recomputed forwards count twice.
    """
    return bool(_graph_task() != -1)
