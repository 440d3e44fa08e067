"""One tensor, one module: `tap.gradient` and `tap.activation`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import torch

from ranktap import pictures, reduce
from ranktap.closing import Closing
from ranktap.collect import ALONE, Collection, Group
from ranktap.probes import Accumulated, After, Gate, Site, is_recomputing
from ranktap_wire import limits, records, rules
from ranktap_wire.records import Across

if TYPE_CHECKING:
    from ranktap.tap import Tap

logger = logging.getLogger("ranktap")

GRADIENT_KINDS: Final = ("moments", "histogram", "tensor")
ACTIVATION_KINDS: Final = (*GRADIENT_KINDS, "feature_maps")

_GROUP: Final = "ranktap/hook/"


class Handle(Closing):
    """Something hooked, until `remove()`; also a context manager."""

    def __init__(self, gate: Gate, hook: Any = None) -> None:
        self._gate = gate
        self._hook = hook

    def remove(self) -> None:
        """Log it no more. Again is no harm."""
        self._gate.on = False
        hook, self._hook = self._hook, None
        if hook is not None:
            hook.remove()

    def _end(self) -> None:
        self.remove()


def gradient(tap: Tap, tensor: Any, tag: str, kind: str) -> Handle:
    """See `Tap.gradient`."""
    see = _logs(tap, tag, kind, GRADIENT_KINDS)
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"tensor: expected a torch.Tensor, got {type(tensor).__name__}")
    gate = Gate()
    if not tensor.requires_grad:
        if torch.is_grad_enabled():
            raise ValueError("tensor: expected one that requires a gradient, got one that does not")
        return Handle(gate)  # the same code without gradients: an evaluation
    gate.on = True
    site = Site(see)
    if tensor.is_leaf:
        return Handle(gate, tensor.register_post_accumulate_grad_hook(Accumulated(gate, site)))

    def on_gradient(given: Any) -> None:
        if gate.on:
            site.see("", given)

    return Handle(gate, tensor.register_hook(on_gradient))


def activation(tap: Tap, module: Any, tag: str | None, kind: str) -> Handle:
    """See `Tap.activation`."""
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    if tag is None:
        tag = f"activations/{type(module).__name__}"
    see = _logs(tap, tag, kind, ACTIVATION_KINDS)

    def once(path: str, tensor: Any) -> None:
        if not is_recomputing():
            see(path, tensor)

    gate = Gate()
    gate.on = True
    return Handle(gate, module.register_forward_hook(After(gate, (Site(once),), None)))


def _logs(tap: Tap, tag: str, kind: str, kinds: tuple[str, ...]) -> Callable[[str, Any], None]:
    """What logs a tensor under `tag` and its place in the output; it never raises."""
    rules.check_tag(tag)
    longest = limits.TAG_BYTES - records.FIELD_BYTES - len(_GROUP) - 8
    if len(tag.encode()) > longest:
        raise ValueError(f"tag: expected at most {longest} bytes of UTF-8, got {tag[:40]!r}...")
    if kind not in kinds:
        raise ValueError(f"kind: expected one of {kinds}, got {kind!r}")
    told: set[str] = set()

    def log(path: str, tensor: Any) -> None:
        try:
            why = _log(tap, tag + path, kind, tensor)
        # A bug of ours, or a device without memory, must not end the training.
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        if why is not None and path not in told:
            told.add(path)
            logger.warning("ranktap: %s is left out: %s", tag + path, why)

    return log


def _log(tap: Tap, tag: str, kind: str, tensor: Any) -> str | None:
    """Log it; or why not."""
    tensor = tensor.detach()
    why = reduce.why_not(tensor)
    if why is not None:
        return why
    if hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    step = tap._step
    if kind == "tensor":
        tap.histogram(tag, tensor, step)
    elif kind == "feature_maps":
        if tap.rank == 0:
            pixels = pictures.feature_maps(tensor, 1, 64, 128)
            tap.image_grid(tag, pixels, step, nrow=pictures.per_row(len(pixels)))
    else:
        rules.check_tag(tag)
        counts = reduce.bit_counts(tensor) if kind == "histogram" else None
        fields = ALONE if kind == "moments" else ()
        collection = Collection()
        group = Group(_GROUP + tag, Across.MERGE, False, fields)
        collection.add(group, tag, reduce.moments(tensor), counts)
        for blobs, arrived in collection.records(step, time.time(), 0):
            tap._keep(blobs, arrived)
    return None
