"""Which of a watch's hooks are on the model now: all of them in steps that are looked at, none in
the others.

torch calls a module that has any hook by a longer way, which costs 1.2 us, whatever the
hook does. A module without one costs what it costs without ranktap.

torch.compile takes in the hooks that it finds when it traces a model, and never looks
again. So when anything in the process is about to be compiled, the hooks of every watch
come back, and stay: what tells the steps of a compiled model apart is the gate (probes.py).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from ranktap.probes import Gate, before_compiling


class Attached:
    """A watch's hooks, and the gate that they read. It holds no module."""

    def __init__(self) -> None:
        self.gate = Gate()
        self._places: list[Callable[[], Any]] = []
        """Each puts its hook where it belongs and returns torch's handle, or None."""
        self._handles: list[Any] = []
        """Of the hooks that are on the model now."""
        self._lasting: list[Any] = []
        self._stays = False
        _living.add(self)

    def on_module(self, module: Any, register: str, hook: Any) -> None:
        """Attach a hook with the module's method of this name, for now."""
        self._attach(partial(_to_module, weakref.ref(module), register, hook))

    def on_parameter(self, module: Any, attribute: str, hook: Any) -> None:
        """Attach a post-accumulate-grad hook to a parameter of the module, for now."""
        self._attach(partial(_to_parameter, weakref.ref(module), attribute, hook))

    def keep(self, handle: Any) -> None:
        """A hook that is already where it belongs, and stays there until `remove`."""
        self._lasting.append(handle)

    def _attach(self, place: Callable[[], Any]) -> None:
        self._places.append(place)
        self._handles.append(place())

    def open(self) -> None:
        """A step that is looked at begins."""
        self.gate.on = True
        self._put_back()

    def close(self) -> None:
        """A step that is not looked at begins."""
        self.gate.on = False
        if self._handles and not self._stays and before_compiling(_stay_all):
            self._take_off()

    def stay(self) -> None:
        """Put the hooks back, for good."""
        self._stays = True
        self._put_back()

    def remove(self) -> None:
        """Take all of them off, for good. Again is no harm."""
        self.gate.on = False
        self._take_off()
        for handle in self._lasting:
            handle.remove()
        self._lasting.clear()
        self._places.clear()

    def _put_back(self) -> None:
        if not self._handles:
            self._handles = [place() for place in self._places]

    def _take_off(self) -> None:
        handles, self._handles = self._handles, []
        for handle in handles:
            if handle is not None:
                handle.remove()


_living: weakref.WeakSet[Attached] = weakref.WeakSet()


def _stay_all(*_: Any) -> None:
    for each in list(_living):
        each.stay()


def _to_module(module_of: Any, register: str, hook: Any) -> Any:
    module = module_of()
    return None if module is None else getattr(module, register)(hook)


def _to_parameter(module_of: Any, attribute: str, hook: Any) -> Any:
    # Looked up again: `model.to` and FSDP put other parameters in their place.
    parameter = getattr(module_of(), attribute, None)
    if parameter is None or not parameter.requires_grad:
        return None
    return parameter.register_post_accumulate_grad_hook(hook)
