"""The tap of RANKTAP_DISABLED=1: the same methods, no thread, no socket, no check."""

from __future__ import annotations

from typing import Any

from ranktap import drawing
from ranktap.closing import Closing
from ranktap.tap import Tap


def _nothing(self: object, *args: Any, **named: Any) -> None:
    """Do nothing."""


class Nothing(Closing):
    """In place of a watch or a handle."""

    capture = remove = _end = _nothing


def _nothing_to_remove(self: DisabledTap, *args: Any, **named: Any) -> Any:
    """Hook nothing."""
    return Nothing()


class DisabledTap(Tap):
    """Takes everything and does nothing; `flush` and `close` return True."""

    def __init__(self, run: str, rank: int, world_size: int) -> None:
        self.run = run
        self.rank = rank
        self.world_size = world_size

    step = scalar = scalars = curves = _nothing
    histogram = histogram_raw = pr_curve = pr_curve_raw = tensor = audio = mesh = _nothing
    embedding = image = images = image_grid = image_with_boxes = video = _nothing
    text = graph = onnx_graph = custom_scalars = hparams = _nothing
    watch = gradient = activation = _nothing_to_remove

    def figure(
        self,
        tag: Any,
        figure: Any,
        step: Any = None,
        *,
        close: bool = True,
        across: Any = "each",
        walltime: Any = None,
    ) -> None:
        """Only close it: pyplot keeps every figure that it has made."""
        if close:
            drawing.close_figures(figure if isinstance(figure, list | tuple) else [figure])

    def flush(self, timeout: float = 0.0) -> bool:
        return True

    def close(self, timeout: float = 0.0) -> bool:
        return True
