"""Which rank has which part of a tensor: what may be added up, and what would count twice.

Nothing here talks to another rank: DTensors say how they are spread, DDP says by being there.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from enum import Enum, auto
from typing import Any


class Held(Enum):
    """Which ranks have which part of a tensor."""

    OWN = auto()
    """Each has its own: they merge."""
    SAME = auto()
    """All have the same, as DDP sees to: the first rank's counts."""
    PERHAPS_SAME = auto()
    """A plain parameter of a job of several ranks: the same where they have one of that name.
    Pipeline stages have others: so what any rank has is shown, and of a name the lowest rank's."""


class Parameters:
    """The watched parameters, by name: not held, but looked up where they are.

    FSDP, `model.to` and lazy modules put other objects in their place.
    """

    def __init__(self, owners: Mapping[str, tuple[Any, str]], held: Mapping[str, Held]) -> None:
        self._owners = {
            name: (weakref.ref(module), attribute) for name, (module, attribute) in owners.items()
        }
        self.held = held

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        for name, (owner, attribute) in self._owners.items():
            module = owner()
            parameter = None if module is None else getattr(module, attribute, None)
            if parameter is not None:
                yield name, parameter


def local_part(tensor: Any, expected: Held) -> tuple[Any | None, Held | None]:
    """This rank's part of a tensor and which ranks have which, without a collective.

    (None, OWN): another rank counts for it. (None, None): it is a sum that is still to be made.
    """
    placements = getattr(tensor, "placements", None)
    if placements is None or not hasattr(tensor, "to_local"):
        return tensor, expected
    if any(placement.is_partial() for placement in placements):
        return None, None
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:
        return None, Held.OWN
    for placement, place in zip(placements, coordinate, strict=True):
        if placement.is_replicate() and place != 0:
            return None, Held.OWN
    return tensor.detach().to_local(), Held.OWN


def is_plain(tensor: Any) -> bool:
    """Whether all of it is here."""
    return not hasattr(tensor, "placements")
