"""The tap of RANKTAP_DISABLED=1: the same methods, no thread, no socket, no check."""

from __future__ import annotations

from typing import Any, Self

from ranktap.tap import Tap


def _nothing(self: object, *args: Any, **named: Any) -> None:
    """Do nothing."""


class Nothing:
    """In place of a watch or a handle."""

    capture = remove = _nothing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        """There is nothing to remove."""


def _nothing_to_remove(self: DisabledTap, *args: Any, **named: Any) -> Any:
    """Hook nothing."""
    return Nothing()


class DisabledTap(Tap):
    """Takes everything and does nothing; `flush` and `close` return True."""

    def __init__(self, run: str, rank: int, world_size: int) -> None:
        self.run = run
        self.rank = rank
        self.world_size = world_size

    step = scalar = scalars = histogram = image = images = image_grid = text = _nothing
    watch = gradient = activation = _nothing_to_remove

    def flush(self, timeout: float = 0.0) -> bool:
        return True

    def close(self, timeout: float = 0.0) -> bool:
        return True
